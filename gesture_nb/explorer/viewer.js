// The explorer's page, third part: one sequence, its signals, time, grids, orientation, probabilities, look-alikes.
"use strict";
const viewers = {};
function choose(side, i) {
  if (side === "b" && i === state.a && state.b < 0) return;
  state[side] = i;
  drawTable();
  if (!viewers[side]) viewers[side] = new Viewer(side);
  viewers[side].show(i);
}
class Viewer {
  constructor(side) {
    this.side = side;
    this.root = el("article", {
      class: "viewer",
      "aria-label": side === "a" ? "chosen sequence" : "second sequence",
    });
    this.head = el("header");
    this.about = el("div");
    this.plot = el("div", {class: "signals"});
    this.slider = el("input", {
      type: "range",
      min: 0,
      value: 0,
      "aria-label": "time",
      oninput: () => this.at(+this.slider.value),
    });
    this.play = el("button", {type: "button", "aria-label": "play", onclick: () => this.run()}, "▶");
    this.output = el("output");
    this.wrist = el("canvas", {width: 10, height: 10, role: "img"});
    this.turn = el("canvas", {
      width: 10,
      height: 10,
      role: "img",
      tabindex: 0,
      "aria-label": "orientation of the device; arrow keys turn the view",
    });
    this.hint = el("p", {class: "hint"});
    this.grids = el(
      "div",
      {class: "grids"},
      el("h3", {}, "Distance grids, as on the wrist"),
      this.wrist,
      el(
        "p",
        {class: "legend"},
        el("span", {class: "scale"}),
        `near … ${250 * D.grids.step}`,
        el("span", {class: "far"}),
        "far: nothing came back",
        el("span", {class: "absent"}),
        "absent: no reading",
      ),
      this.hint,
    );
    this.space = el(
      "div",
      {},
      el("h3", {}, "Orientation in the world"),
      this.turn,
      el("p", {class: "legend"}, (this.turnNote = el("span", {style: "all:unset"}))),
    );
    this.below = el("div", {class: "below"});
    this.body = el(
      "div",
      {},
      this.plot,
      el("div", {class: "time"}, this.play, this.slider, this.output),
      el("div", {class: "parts"}, this.grids, this.space),
    );
    this.root.append(this.head, this.about, this.body, this.below);
    $("viewers").append(this.root);
    this.view = {turn: -0.6, tilt: 0.45};
    this.events();
  }
  events() {
    this.turn.addEventListener("pointerdown", event => this.turn.setPointerCapture(event.pointerId));
    this.turn.addEventListener("pointermove", event => {
      if (!event.buttons) return;
      this.view.turn += event.movementX / 90;
      this.view.tilt = Math.min(Math.max(this.view.tilt + event.movementY / 90, -1.5), 1.5);
      this.drawTurn();
    });
    this.turn.addEventListener("keydown", event => {
      const step = {ArrowLeft: [-0.2, 0], ArrowRight: [0.2, 0], ArrowUp: [0, 0.2], ArrowDown: [0, -0.2]}[event.key];
      if (!step) return;
      event.preventDefault();
      this.view.turn += step[0];
      this.view.tilt = Math.min(Math.max(this.view.tilt + step[1], -1.5), 1.5);
      this.drawTurn();
    });
    this.wrist.addEventListener("pointermove", event => this.point(event));
  }
  async show(i) {
    this.stop();
    this.i = i;
    const record = await recording(i);
    if (this.i !== i) return; // another one was chosen meanwhile
    this.record = record;
    this.root.dataset.sequence = D.ids[i];
    this.drawHead();
    this.drawBelow();
    this.body.hidden = !record;
    if (!record) return;
    this.k = Math.min(this.k || 0, record.n - 1);
    const start = C.start[i];
    if (start > 0) this.k = Math.min(Math.floor(start / record.step), record.n - 1);
    this.slider.max = record.n - 1;
    this.slider.value = this.k;
    this.drawSignals();
    this.at(this.k, true);
  }
  drawHead() {
    const i = this.i,
      wrong = C.pred[i] >= 0 && C.pred[i] !== C.y[i];
    const close = this.side === "b" ? el("button", {type: "button", onclick: () => this.close()}, "close") : null;
    this.head.replaceChildren(
      el("h2", {dir: "auto"}, D.ids[i]),
      el("span", {dir: "auto"}, D.people[C.person[i]]),
      close || "",
    );
    const parts = [
      el(
        "p",
        {},
        el("bdi", {}, nameOf(C.y[i])),
        ...(C.pred[i] < 0
          ? []
          : [
              " → ",
              el("bdi", {class: wrong ? "wrong" : "right"}, nameOf(C.pred[i])),
              wrong ? " (wrong)" : " (right)",
            ]),
      ),
    ];
    const facts = [`${fixed(C.rows[i] / C.rate[i], 1)} s`, `${C.rows[i]} rows at ${fixed(C.rate[i], 1)} Hz`];
    if (Number.isFinite(C.loss[i])) facts.unshift(`loss ${fixed(C.loss[i], 2)}`);
    if (C.fold[i] >= 0) facts.push(`held out in fold ${C.fold[i] + 1}`);
    if (C.orientation[i] < D.orientations.length) facts.push(D.orientations[C.orientation[i]]);
    const missing = D.devices.names.filter((_, d) => (C.missing[i] >> d) & 1);
    if (missing.length) facts.push("missing: " + missing.join(", "));
    if (this.record && this.record.step > 1) facts.push(`every ${this.record.step}th row is shown`);
    parts.push(el("p", {class: "hint", dir: "auto"}, facts.join(" · ")));
    if (!this.record)
      parts.push(el("p", {}, "Its signals are not on this page, which has room for some only (see below)."));
    this.about.replaceChildren(...parts);
  }
  close() {
    this.stop();
    state.b = -1;
    Plotly.purge(this.plot);
    this.root.remove();
    delete viewers.b;
    drawTable();
    resize();
  }
  drawSignals() {
    const r = this.record,
      tracks = D.tracks.filter(track => track.key !== "rot");
    const gap = 0.045,
      height = (1 - gap * (tracks.length - 1)) / tracks.length,
      traces = [],
      titles = [],
      made = layout();
    const named = new Set(); // lines of one name share their place in the legend
    tracks.forEach((track, p) => {
      const top = 1 - p * (height + gap),
        y = p ? `y${p + 1}` : "y";
      made["yaxis" + (p ? p + 1 : "")] = axis({
        domain: [top - height, top],
        tickfont: {size: 9},
        nticks: 4,
        zeroline: true,
        fixedrange: false,
      });
      titles.push({
        text: plain(`${track.title}${track.unit ? ", " + track.unit : ""}`),
        x: 0,
        xref: "paper",
        xanchor: "left",
        y: top,
        yref: "paper",
        yanchor: "bottom",
        showarrow: false,
        font: {size: 10, color: colour("soft")},
      });
      const own = track.names.length <= 4 ? {x: "x", y: "y", z: "z", w: "w"} : {},
        cycle = ["x", "y", "z", "w", "more"];
      valuesOf(r, track.key).forEach((values, k) =>
        traces.push({
          type: "scatter",
          mode: "lines",
          x: r.time,
          y: values,
          xaxis: "x",
          yaxis: y,
          name: plain(track.names[k]),
          legendgroup: track.names[k],
          showlegend: !named.has(track.names[k]) && named.add(track.names[k]) !== null,
          line: {width: 1.2, color: colour(own[track.names[k]] || cycle[k % 5])},
          hovertemplate: "%{y:.3g} at %{x:.2f} s<extra>%{fullData.name}</extra>",
        }),
      );
    });
    const end = C.rows[this.i] / C.rate[this.i],
      start = C.start[this.i] / C.rate[this.i];
    const phase = (name, x0, x1) => ({
      type: "rect",
      xref: "x",
      yref: "paper",
      x0,
      x1,
      y0: 0,
      y1: 1,
      line: {width: 0},
      layer: "below",
      fillcolor: colour(name),
    });
    this.phases =
      C.start[this.i] < 0
        ? []
        : [phase("transition", 0, Math.min(start, end)), phase("gesture", Math.min(start, end), end)];
    if (C.start[this.i] >= 0)
      [
        ["transition", start / 2],
        ["gesture", (start + end) / 2],
      ].forEach(([text, x]) =>
        titles.push({
          text,
          x,
          xref: "x",
          y: 1,
          yref: "paper",
          yanchor: "bottom",
          yshift: 13,
          showarrow: false,
          font: {size: 10, color: colour("soft")},
        }),
      );
    Object.assign(made, {
      height: 90 + 92 * tracks.length,
      annotations: titles,
      showlegend: true,
      uirevision: D.ids[this.i],
      legend: {
        orientation: "h",
        x: 0,
        xanchor: "left",
        y: 0,
        yanchor: "bottom",
        yref: "container",
        font: {size: 10},
        bgcolor: "rgba(0,0,0,0)",
      },
      margin: {l: 46, r: 8, t: 34, b: this.plot.clientWidth < 620 ? 72 : 54},
      hovermode: "closest",
      dragmode: "zoom",
      xaxis: axis({
        ticksuffix: " s",
        anchor: tracks.length > 1 ? "y" + tracks.length : "y",
        range: [0, end],
      }),
      shapes: [...this.phases, this.cursor()],
    });
    const isNew = !this.plot.data;
    Plotly.react(this.plot, traces, made, CONFIG);
    if (!isNew) return;
    this.plot.on("plotly_click", ({points: [point]}) => {
      this.slider.value = point.pointNumber;
      this.at(point.pointNumber);
    });
    this.plot.on("plotly_relayout", change => this.follow(change));
  }
  cursor() {
    const x = this.record.time[this.k];
    return {
      type: "line",
      xref: "x",
      yref: "paper",
      x0: x,
      x1: x,
      y0: 0,
      y1: 1,
      line: {color: colour("ink"), width: 1, dash: "dot"},
    };
  }
  follow(change) {
    // the second sequence is zoomed with the first
    const other = viewers[this.side === "a" ? "b" : "a"];
    if (!other || !other.record || Viewer.following) return;
    const range =
      change["xaxis.range[0]"] != null
        ? {"xaxis.range": [change["xaxis.range[0]"], change["xaxis.range[1]"]]}
        : change["xaxis.autorange"]
          ? {"xaxis.autorange": true}
          : null;
    if (!range) return;
    Viewer.following = true;
    Plotly.relayout(other.plot, range).finally(() => {
      Viewer.following = false;
    });
  }
  at(k, isDrawn = false) {
    // everything moves to row k
    this.k = k;
    const r = this.record,
      t = r.time[k],
      parts = [`${t.toFixed(2)} s`];
    if (C.start[this.i] >= 0) parts.push(k * r.step < C.start[this.i] ? "transition" : "gesture");
    this.output.textContent = parts.join(", ");
    if (!isDrawn && !this.waiting) {
      this.waiting = true;
      requestAnimationFrame(() => {
        this.waiting = false;
        if (this.record && this.plot.data) Plotly.relayout(this.plot, {shapes: [...this.phases, this.cursor()]});
      });
    }
    this.drawGrids();
    this.drawTurn();
  }
  run() {
    // plays in real time, or stops
    if (this.timer) return this.stop();
    const begin = performance.now(),
      from = this.k >= this.record.n - 1 ? 0 : this.k;
    this.play.textContent = "■";
    this.play.setAttribute("aria-label", "stop");
    const beat = () => {
      const seconds = (performance.now() - begin) / 1000,
        r = this.record;
      const k = Math.min(from + Math.floor((seconds * C.rate[this.i]) / r.step), r.n - 1);
      if (k !== this.k) {
        this.slider.value = k;
        this.at(k);
      }
      if (k >= r.n - 1) this.stop();
      else this.timer = requestAnimationFrame(beat);
    };
    this.timer = requestAnimationFrame(beat);
  }
  stop() {
    cancelAnimationFrame(this.timer);
    this.timer = 0;
    this.play.textContent = "▶";
    this.play.setAttribute("aria-label", "play");
  }
  places() {
    // where each grid is drawn: [column, row], and how many of both
    const cross = {tof_1: [1, 1], tof_2: [1, 0], tof_3: [2, 1], tof_4: [1, 2], tof_5: [0, 1]},
      devices = D.grids.devices;
    if (devices.every(name => cross[name])) return {at: devices.map(name => cross[name]), across: 3, down: 3};
    return {at: devices.map((_, k) => [k, 0]), across: devices.length, down: 1};
  }
  drawGrids() {
    this.grids.hidden = !D.grids.devices.length;
    if (this.grids.hidden) return;
    const {at, across, down} = this.places(),
      cell = (this.cell = 9),
      side = (this.side8 = 8 * cell),
      gap = (this.gap = 15);
    const pen = sized(this.wrist, across * (side + gap), down * (side + gap)),
      r = this.record;
    const frame = (this.frame = Math.min(Math.floor((this.k * r.step) / r.frameStep), r.frames - 1));
    const near = colour("near"),
      remote = colour("remote"),
      counts = [];
    pen.font = `10px ${getComputedStyle(document.body).fontFamily}`;
    at.forEach(([column, row], g) => {
      const left = column * (side + gap),
        top = row * (side + gap) + 12;
      pen.fillStyle = colour("soft");
      pen.fillText(D.grids.devices[g], left, top - 3);
      let seen = 0,
        gone = 0;
      for (let c = 0; c < 64; c++) {
        const value = r.grids[g][c * r.frames + frame],
          x = left + (c % 8) * cell,
          y = top + (c >> 3) * cell;
        if (value < FAR) seen++;
        else if (value === ABSENT) gone++;
        drawCell(pen, value, x, y, cell, near, remote);
      }
      pen.strokeStyle = colour("line");
      pen.strokeRect(left + 0.5, top + 0.5, side - 1, side - 1);
      counts.push(`${D.grids.devices[g]}: ${gone === 64 ? "absent" : seen + " of 64 cells near"}`);
    });
    this.wrist.setAttribute("aria-label", "distance grids at this moment; " + counts.join("; "));
  }
  point(event) {
    // says what is under the pointer
    const box = this.wrist.getBoundingClientRect(),
      x = event.clientX - box.left,
      y = event.clientY - box.top,
      {at} = this.places();
    this.hint.textContent = "";
    at.forEach(([column, row], g) => {
      const c = Math.floor((x - column * (this.side8 + this.gap)) / this.cell),
        l = Math.floor((y - row * (this.side8 + this.gap) - 12) / this.cell);
      if (c < 0 || c > 7 || l < 0 || l > 7) return;
      const value = this.record.grids[g][(8 * l + c) * this.record.frames + this.frame];
      this.hint.textContent =
        `${D.grids.devices[g]}, line ${l + 1}, column ${c + 1}: ` +
        (value === ABSENT ? "absent" : value === FAR ? "far" : value * D.grids.step);
    });
  }
  drawTurn() {
    const lines = valuesOf(this.record, "rot"),
      q = lines && lines.map(line => line[this.k]);
    this.space.hidden = !lines;
    if (!lines) return;
    const pen = sized(this.turn, 210, 190),
      known = q.every(Number.isFinite),
      {turn, tilt} = this.view;
    const project = ([x, y, z]) => {
      // orthographic; the world's z is up
      const a = x * Math.cos(turn) - y * Math.sin(turn),
        b = x * Math.sin(turn) + y * Math.cos(turn);
      return [
        105 + 62 * a,
        100 - 62 * (z * Math.cos(tilt) + b * Math.sin(tilt)),
        b * Math.cos(tilt) - z * Math.sin(tilt),
      ];
    };
    const arrow = (to, paint, name, width) => {
      const [x0, y0] = project([0, 0, 0]),
        [x, y] = project(to);
      Object.assign(pen, {strokeStyle: paint, fillStyle: paint, lineWidth: width});
      pen.beginPath();
      pen.moveTo(x0, y0);
      pen.lineTo(x, y);
      pen.stroke();
      pen.fillText(name, x + 3, y - 2);
    };
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    [
      [[1.3, 0, 0], "X"],
      [[0, 1.3, 0], "Y"],
      [[0, 0, 1.3], "up"],
    ].forEach(([to, name]) => arrow(to, colour("mark"), name, 1));
    this.turnNote.textContent = !known
      ? "not known here"
      : C.estimated[this.i]
        ? "estimated: its heading is arbitrary; drag to turn the view"
        : "of the rotation sensor; drag to turn the view";
    if (!known) return;
    const corner = (x, y, z) => spin(q, [0.75 * x, 0.5 * y, 0.14 * z]);
    const faces = [
      [0, 1],
      [0, -1],
      [1, 1],
      [1, -1],
      [2, 1],
      [2, -1],
    ]
      .map(([a, s]) => {
        const around = [
          [-1, -1],
          [1, -1],
          [1, 1],
          [-1, 1],
        ].map(([u, v]) => {
          const p = [0, 0, 0];
          p[a] = s;
          p[(a + 1) % 3] = u;
          p[(a + 2) % 3] = v;
          return project(corner(...p));
        });
        return {around, depth: around.reduce((sum, p) => sum + p[2], 0), top: a === 2 && s > 0};
      })
      .sort((a, b) => b.depth - a.depth);
    pen.lineWidth = 1;
    for (const {around, top} of faces) {
      pen.beginPath();
      around.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
      pen.closePath();
      pen.fillStyle = colour(top ? "chosen" : "panel");
      pen.strokeStyle = colour("soft");
      pen.fill();
      pen.stroke();
    }
    [
      ["x", [1.15, 0, 0]],
      ["y", [0, 1, 0]],
      ["z", [0, 0, 0.8]],
    ].forEach(([name, to]) => arrow(spin(q, to), colour(name), name, 2));
  }
  drawBelow() {
    const i = this.i,
      parts = [];
    if (D.members.length)
      parts.push(el("h3", {}, "Probabilities, out of fold"), el("div", {class: "wide"}, this.probabilities(i)));
    const k = D.alike.k,
      rows = [];
    for (let j = 0; j < k; j++) {
      const other = alike.index[i * k + j];
      rows.push(
        el(
          "tr",
          {},
          el(
            "td",
            {},
            el("button", {type: "button", onclick: () => choose(this.side, other)}, "open"),
            " ",
            el(
              "button",
              {
                type: "button",
                "aria-label": `show ${D.ids[other]} beside the other one`,
                onclick: () => choose(this.side === "a" ? "b" : "a", other),
              },
              "⇄",
            ),
          ),
          el("td", {dir: "auto"}, D.ids[other]),
          el(
            "td",
            {dir: "auto", class: D.classes.length && C.y[other] !== C.y[i] ? "wrong" : ""},
            nameOf(C.y[other]),
          ),
          el("td", {dir: "auto"}, D.people[C.person[other]]),
          el("td", {}, alike.distance[i * k + j].toFixed(2)),
        ),
      );
    }
    if (k)
      parts.push(
        el("h3", {}, "Look-alikes, by summary features"),
        el(
          "div",
          {class: "wide"},
          el(
            "table",
            {class: "alike"},
            el(
              "thead",
              {},
              el(
                "tr",
                {},
                ...["", "sequence", "gesture", "person", "distance"].map(text => (text ? el("th", {scope: "col"}, text) : el("td"))),
              ),
            ),
            el("tbody", {}, ...rows),
          ),
        ),
      );
    this.below.replaceChildren(...parts);
  }
  probabilities(i) {
    // the classes that matter here, as bars, a column a member
    const {k, members} = {k: D.top.k, members: D.members},
      rows = [];
    for (let j = 0; j < k; j++) {
      const c = top.classes[i * k + j];
      rows.push(
        el(
          "tr",
          {class: c === C.y[i] ? "true" : ""},
          el("th", {scope: "row", dir: "auto"}, nameOf(c) + (c === C.y[i] ? " ✓" : "")),
          ...members.map((_, m) => {
            const p = top.probs[(m * D.n + i) * k + j] / 65534;
            return el(
              "td",
              {},
              p > 1 ? "–" : el("i", {style: `width:${(70 * p).toFixed(1)}px`, "aria-hidden": "true"}),
              p > 1 ? "" : p.toFixed(2),
            );
          }),
        ),
      );
    }
    return el(
      "table",
      {class: "probs"},
      el(
        "thead",
        {},
        el("tr", {}, el("th", {scope: "col"}, "gesture"), ...members.map(name => el("th", {scope: "col"}, name))),
      ),
      el("tbody", {}, ...rows),
    );
  }
}
function sized(canvas, width, height) {
  // a pen for so many CSS pixels, sharp on any screen
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.width = width + "px";
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return pen;
}
function drawCell(pen, value, x, y, size, near, remote) {
  if (value === ABSENT) {
    // hatched
    pen.strokeStyle = colour("mark");
    pen.lineWidth = 0.7;
    pen.beginPath();
    pen.moveTo(x + 1, y + size - 1);
    pen.lineTo(x + size - 1, y + 1);
    pen.stroke();
  } else if (value === FAR) {
    // a dot
    pen.fillStyle = colour("cell");
    pen.fillRect(x, y, size, size);
    pen.fillStyle = colour("mark");
    pen.fillRect(x + size / 2 - 1, y + size / 2 - 1, 2, 2);
  } else {
    pen.fillStyle = mixed(near, remote, Math.min(value / 250, 1));
    pen.fillRect(x, y, size, size);
  }
}
function mixed(from, to, share) {
  const part = (text, k) => parseInt(text.slice(1 + 2 * k, 3 + 2 * k), 16);
  return `rgb(${[0, 1, 2].map(k => Math.round(part(from, k) + share * (part(to, k) - part(from, k)))).join(",")})`;
}
function spin([w, x, y, z], [a, b, c]) {
  // a vector turned by a unit quaternion
  const u = 2 * (y * c - z * b),
    v = 2 * (z * a - x * c),
    s = 2 * (x * b - y * a);
  return [a + w * u + y * s - z * v, b + w * v + z * u - x * s, c + w * s + x * v - y * u];
}
