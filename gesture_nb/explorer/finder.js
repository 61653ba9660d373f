// The explorer's page, second part: filters, the table of sequences, the confusion matrix.
"use strict";
// ---- filters and table
const passes = {
  wrong: i => !state.wrong || (C.pred[i] >= 0 && C.pred[i] !== C.y[i]),
  y: i => state.y < 0 || C.y[i] === state.y,
  pred: i => state.pred < 0 || C.pred[i] === state.pred,
  person: i => state.person < 0 || C.person[i] === state.person,
  orientation: i => state.orientation < 0 || C.orientation[i] === state.orientation,
  missing: i =>
    state.missing === "" ||
    (state.missing === "none"
      ? C.missing[i] === 0
      : state.missing === "any"
        ? C.missing[i] !== 0
        : (C.missing[i] & +state.missing) === +state.missing),
  text: i => state.text === "" || D.ids[i].toLowerCase().includes(state.text),
};
function select(keys) {
  // sequences that pass these filters
  const found = new Uint32Array(D.n),
    tests = keys.map(key => passes[key]);
  let count = 0;
  for (let i = 0; i < D.n; i++) if (tests.every(test => test(i))) found[count++] = i;
  return found.subarray(0, count);
}
const COLUMNS = [
  {
    key: "loss",
    title: "loss",
    num: true,
    width: "3.6rem",
    run: true,
    value: i => C.loss[i],
    text: i => fixed(C.loss[i], 2),
  },
  {key: "id", title: "sequence", width: "6.9rem", value: i => D.ids[i], text: i => D.ids[i]},
  {key: "y", title: "true", value: i => nameOf(C.y[i]), text: i => nameOf(C.y[i]), labels: true},
  {key: "pred", title: "answered", run: true, value: i => nameOf(C.pred[i]), text: i => nameOf(C.pred[i])},
  {
    key: "person",
    title: "person",
    width: "5.6rem",
    narrow: true,
    value: i => D.people[C.person[i]],
    text: i => D.people[C.person[i]],
  },
  {
    key: "seconds",
    title: "s",
    num: true,
    width: "2.9rem",
    narrow: true,
    value: i => C.rows[i] / C.rate[i],
    text: i => fixed(C.rows[i] / C.rate[i], 1),
  },
];
const columns = () =>
  COLUMNS.filter(c => (!c.run || D.members.length) && (!c.labels || D.classes.length) && !(c.narrow && isNarrow()));
const nameOf = k => (k < 0 ? "–" : D.classes[k]);

function sorted(found) {
  const column = COLUMNS.find(c => c.key === state.sort) || COLUMNS[1],
    sign = state.down ? -1 : 1;
  const keys = new Map();
  for (const i of found) keys.set(i, column.value(i));
  const order = column.num
    ? (a, b) => sign * (keys.get(a) - keys.get(b))
    : (a, b) => sign * (keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : 0);
  const known = [],
    unknown = []; // sequences without a loss come last
  for (const i of found) (column.num && Number.isNaN(keys.get(i)) ? unknown : known).push(i);
  known.sort((a, b) => order(a, b) || a - b);
  return Uint32Array.from([...known, ...unknown]);
}
let laterConfusion = 0;
function refresh() {
  // after every change of a filter
  shown = sorted(select(Object.keys(passes)));
  $("count").textContent = `${shown.length.toLocaleString("en")} of ${D.n.toLocaleString("en")} sequences`;
  $("clear").hidden = shown.length === D.n;
  $("table").scrollTop = 0;
  drawTable();
  clearTimeout(laterConfusion);
  laterConfusion = setTimeout(drawConfusion, 30); // the table comes first, also while somebody types
}
function drawTable() {
  // only the rows that can be seen are in the page
  const box = $("table"),
    first = Math.max(0, Math.floor(box.scrollTop / ROW) - 5);
  const last = Math.min(shown.length, first + Math.ceil(box.clientHeight / ROW) + 12),
    used = columns();
  const head = el(
    "tr",
    {},
    ...used.map(c => {
      const on = state.sort === c.key;
      return el(
        "th",
        {
          scope: "col",
          class: c.num ? "num" : "",
          style: c.width ? `width:${c.width}` : null,
          "aria-sort": on ? (state.down ? "descending" : "ascending") : "none",
        },
        el(
          "button",
          {
            type: "button",
            onclick: () => {
              state.down = on ? !state.down : !!c.num;
              state.sort = c.key;
              refresh();
            },
          },
          c.title + (on ? (state.down ? " ↓" : " ↑") : ""),
        ),
      );
    }),
    el("td", {style: "width:2.4rem", title: "show beside the other one"}),
  );
  const body = [
    el(
      "tr",
      {class: "pad", "aria-hidden": "true"},
      el("td", {colspan: used.length + 1, style: `height:${first * ROW}px`}),
    ),
  ];
  for (let k = first; k < last; k++) {
    const i = shown[k],
      wrong = C.pred[i] >= 0 && C.pred[i] !== C.y[i];
    body.push(
      el(
        "tr",
        {
          "data-i": i,
          class: i === state.a ? "a" : i === state.b ? "b" : "",
          "aria-rowindex": k + 2,
          "aria-selected": String(i === state.a),
        },
        ...used.map(c =>
          el(
            "td",
            {
              title: c.text(i),
              dir: "auto",
              class: [c.num ? "num" : "", c.key === "pred" ? (wrong ? "wrong" : "right") : ""].join(" "),
            },
            c.text(i),
          ),
        ),
        el(
          "td",
          {},
          el(
            "button",
            {
              type: "button",
              "data-beside": i,
              "aria-label": `show ${D.ids[i]} beside the other one`,
              title: "show beside the other one",
            },
            "⇄",
          ),
        ),
      ),
    );
  }
  body.push(
    el(
      "tr",
      {class: "pad", "aria-hidden": "true"},
      el("td", {colspan: used.length + 1, style: `height:${(shown.length - last) * ROW}px`}),
    ),
  );
  box.replaceChildren(
    el("table", {"aria-rowcount": shown.length + 1}, el("thead", {}, head), el("tbody", {}, ...body)),
  );
}
function tableEvents() {
  const box = $("table");
  let waiting = false;
  box.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      drawTable();
    });
  });
  box.addEventListener("click", event => {
    const beside = event.target.closest("[data-beside]"),
      row = event.target.closest("tr[data-i]");
    if (beside) choose("b", +beside.dataset.beside);
    else if (row) choose("a", +row.dataset.i);
  });
  box.addEventListener("keydown", event => {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step || !shown.length || event.target !== box) return;
    event.preventDefault();
    const place = shown.indexOf(state.a),
      next = Math.min(Math.max(place + step, 0), shown.length - 1);
    const top = next * ROW;
    if (top < box.scrollTop) box.scrollTop = top;
    if (top + 2 * ROW > box.scrollTop + box.clientHeight) box.scrollTop = top + 2 * ROW - box.clientHeight;
    choose("a", shown[next]);
  });
}
function buildFilters() {
  const form = $("filters"),
    set = (key, value) => {
      state[key] = value;
      refresh();
    };
  const menu = (key, title, options) =>
    form.append(
      el(
        "label",
        {},
        title,
        el(
          "select",
          {
            id: "filter-" + key,
            onchange: event => set(key, key === "missing" ? event.target.value : +event.target.value),
          },
          ...options.map(([value, text]) => el("option", {value}, text)),
        ),
      ),
    );
  const names = (list, all) => [[-1, all], ...list.map((name, k) => [k, name])];
  if (D.members.length)
    form.append(
      el(
        "label",
        {class: "tick"},
        el("input", {type: "checkbox", id: "filter-wrong", onchange: event => set("wrong", event.target.checked)}),
        "wrong only",
      ),
    );
  form.append(
    el(
      "label",
      {},
      "name",
      el("input", {
        type: "search",
        id: "filter-text",
        oninput: event => set("text", event.target.value.toLowerCase()),
      }),
    ),
  );
  if (D.classes.length) menu("y", "true gesture", names(D.classes, "all"));
  if (D.members.length) menu("pred", "answered", names(D.classes, "all"));
  menu("person", "person", names(D.people, "all"));
  if (D.orientations.length) menu("orientation", "orientation", names(D.orientations, "all"));
  menu("missing", "sensors", missingOptions());
  form.addEventListener("submit", event => event.preventDefault());
  $("clear").addEventListener("click", () => {
    pick({wrong: false, y: -1, pred: -1, person: -1, orientation: -1, missing: "", text: ""});
  });
}
function missingOptions() {
  // [bits of the devices, text], for those that are missing somewhere
  const options = [
    ["", "all sequences"],
    ["none", "every sensor gave readings"],
    ["any", "something is missing"],
  ];
  let ever = 0;
  for (const bits of C.missing) ever |= bits;
  for (const kind of new Set(D.devices.kinds)) {
    const bits = D.devices.kinds.reduce((sum, k, d) => (k === kind ? sum | (1 << d) : sum), 0),
      many = bits & (bits - 1);
    if (many && (ever & bits) === bits) options.push([bits, `all ${kind} missing`]);
    D.devices.kinds.forEach((k, d) => {
      if (k === kind && (ever >> d) & 1) options.push([1 << d, `${D.devices.names[d]} missing`]);
    });
  }
  return options;
}
function pick(filters) {
  // sets several filters at once, and shows them in their menus
  Object.assign(state, filters);
  for (const key of Object.keys(filters)) {
    const input = $("filter-" + key);
    if (!input) continue;
    if (input.type === "checkbox") input.checked = state[key];
    else input.value = String(state[key]);
  }
  refresh();
}

let confusionKey = "";
function drawConfusion() {
  // of what the other filters show
  if (!D.members.length) return;
  const size = D.classes.length,
    counts = Array.from({length: size}, () => new Float64Array(size));
  for (const i of select(["person", "orientation", "missing", "text"]))
    if (C.y[i] >= 0 && C.pred[i] >= 0) counts[C.y[i]][C.pred[i]]++;
  const mark = state.y >= 0 && state.pred >= 0 ? [state.y, state.pred] : null;
  const key = JSON.stringify([
    state.person,
    state.orientation,
    state.missing,
    state.text,
    mark,
    document.documentElement.dataset.theme,
    isNarrow(),
  ]);
  if (key === confusionKey) return;
  confusionKey = key;
  const share = counts.map(row => {
    const sum = row.reduce((a, b) => a + b, 0) || 1;
    return Array.from(row, x => x / sum);
  });
  const places = D.classes.map((_, k) => k),
    named = size <= 40,
    letters = isNarrow() ? 13 : 22;
  const labels = named
    ? D.classes.map(name => plain(short(name, letters)))
    : D.classes.map((_, k) => String(k + 1));
  const hover = counts.map((row, a) =>
    Array.from(row, (x, b) => `${plain(D.classes[a])} → ${plain(D.classes[b])}: ${x}`),
  );
  const ticks = axis({
    tickvals: named ? places : places.filter(k => k % 10 === 9),
    ticktext: named ? labels : labels.filter((_, k) => k % 10 === 9),
    showgrid: false,
    zeroline: false,
    fixedrange: true,
    tickfont: {size: size > 20 ? 8 : 10},
    constrain: "domain",
  });
  const left = Math.min(150, 14 + 6 * Math.max(...labels.map(text => [...text].length)));
  const made = layout({
    height: Math.min(560, 170 + 22 * size),
    margin: {l: left, r: 6, t: 6, b: left},
    xaxis: {...ticks, tickangle: -60, ticklabeloverflow: "allow"},
    yaxis: {...ticks, autorange: "reversed"},
    shapes: mark
      ? [
          {
            type: "rect",
            x0: mark[1] - 0.5,
            x1: mark[1] + 0.5,
            y0: mark[0] - 0.5,
            y1: mark[0] + 0.5,
            line: {color: colour("wrong"), width: 2},
          },
        ]
      : [],
  });
  const trace = {
    type: "heatmap",
    z: share,
    text: size <= 24 ? counts.map(row => Array.from(row, x => (x ? String(x) : ""))) : undefined,
    texttemplate: size <= 24 ? "%{text}" : undefined,
    textfont: {size: 9},
    hovertext: hover,
    hoverinfo: "text",
    showscale: false,
    colorscale: [
      [0, colour("cell")],
      [1, colour("accent")],
    ],
    zmin: 0,
    zmax: 1,
    xgap: 1,
    ygap: 1,
  };
  const box = $("confusion"),
    isNew = !box.data;
  Plotly.react(box, [trace], made, {...CONFIG, displayModeBar: false});
  if (isNew)
    box.on(
      "plotly_click",
      ({
        points: [
          {
            pointIndex: [a, b],
          },
        ],
      }) => chooseCell(a, b),
    );
}
function chooseCell(y, pred) {
  const again = state.y === y && state.pred === pred;
  pick(again ? {y: -1, pred: -1} : {y, pred, wrong: false});
  if (!again && shown.length) choose("a", shown[0]);
}
