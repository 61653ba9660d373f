// The explorer's page, fourth part: the overview.
"use strict";
let isOverviewDrawn = false;
function drawOverview() {
  if (isOverviewDrawn) return;
  isOverviewDrawn = true;
  const O = D.overview,
    page = $("overview");
  for (const box of page.querySelectorAll(".js-plotly-plot")) Plotly.purge(box);
  page.replaceChildren();
  const waiting = []; // all sections come first: a plot is as wide as its place
  const chart = (title, text, traces, more, click) => {
    const box = el("div");
    page.append(el("section", {}, el("h2", {}, title), el("p", {class: "hint"}, text), box));
    waiting.push(() => {
      Plotly.newPlot(box, traces, layout(more), {...CONFIG, displayModeBar: false});
      if (click) box.on("plotly_click", ({points: [point]}) => click(point.pointNumber));
    });
  };
  const letters = isNarrow() ? 16 : 30,
    label = name => plain(short(name, letters));
  const width = names =>
    Math.min(190, 16 + 6 * Math.max(...names.map(name => Math.min([...name].length, letters))));
  const bars = (title, text, groups, kind) => {
    const first = groups.slice(0, 100),
      places = first.map((_, k) => k),
      right = first.some(g => g.right != null);
    const trace = (name, paint, values) => ({
      type: "bar",
      orientation: "h",
      name,
      y: places,
      x: values,
      marker: {color: colour(paint)},
      customdata: first.map(g => plain(g.name)),
      hovertemplate: "%{customdata}: %{x} " + name + "<extra></extra>",
    });
    const traces = right
      ? [
          trace(
            "right",
            "accent",
            first.map(g => g.right),
          ),
          trace(
            "wrong",
            "y",
            first.map(g => g.n - g.right),
          ),
        ]
      : [
          trace(
            "sequences",
            "accent",
            first.map(g => g.n),
          ),
        ];
    chart(
      title,
      text + (groups.length > 100 ? ` The first 100 of ${groups.length}.` : ""),
      traces,
      {
        barmode: "stack",
        height: 70 + 17 * first.length,
        showlegend: right,
        legend: {orientation: "h", traceorder: "normal", y: 1, yanchor: "bottom"},
        margin: {l: width(first.map(g => g.name)), r: 10, t: 24, b: 30},
        xaxis: axis({fixedrange: true}),
        yaxis: axis({
          autorange: "reversed",
          tickvals: places,
          ticktext: first.map(g => label(g.name)),
          showgrid: false,
          tickfont: {size: 9},
          fixedrange: true,
        }),
      },
      place => {
        const k = D[kind === "y" ? "classes" : "people"].indexOf(first[place].name);
        if (k < 0) return;
        open("sequences");
        pick({[kind]: k});
      },
    );
  };
  const boxes = (title, text, entries, unit) =>
    entries.length &&
    chart(
      title,
      text,
      [
        {
          type: "box",
          orientation: "h",
          y: entries.map((_, k) => k),
          lowerfence: entries.map(e => e.values[0]),
          q1: entries.map(e => e.values[1]),
          median: entries.map(e => e.values[2]),
          q3: entries.map(e => e.values[3]),
          upperfence: entries.map(e => e.values[4]),
          marker: {color: colour("accent")},
          line: {width: 1},
          hoverinfo: "x",
        },
      ],
      {
        height: 70 + 19 * entries.length,
        margin: {l: width(entries.map(e => e.name)), r: 10, t: 10, b: 36},
        xaxis: axis({title: {text: unit}, fixedrange: true}),
        yaxis: axis({
          autorange: "reversed",
          tickvals: entries.map((_, k) => k),
          ticktext: entries.map(e => label(e.name)),
          showgrid: false,
          tickfont: {size: 9},
          fixedrange: true,
        }),
      },
    );
  bars("Gestures", "Sequences of each gesture; a click lists them.", O.classes, "y");
  bars("People", "Sequences of each person; a click lists them.", O.people, "person");
  boxes(
    "Strength of the acceleration",
    "|acc| of all rows by gesture, gravity included where the device measures it: 5, 25, 50, 75 and 95 %.",
    O.magnitude,
    "m/s²",
  );
  boxes(
    "Temperature",
    "Mean of the thermopiles of all rows by gesture: 5, 25, 50, 75 and 95 %.",
    O.temperature,
    "°C",
  );
  chart(
    "Length",
    "Share of the sequences that are shorter than so many seconds.",
    [
      {
        type: "scatter",
        mode: "lines",
        x: O.lengths,
        y: O.lengths.map((_, k) => k),
        line: {color: colour("accent")},
        hovertemplate: "%{y} % are shorter than %{x:.1f} s<extra></extra>",
      },
    ],
    {
      height: 240,
      xaxis: axis({title: {text: "s"}, fixedrange: true}),
      yaxis: axis({title: {text: "%"}, fixedrange: true}),
    },
  );
  const gaps = Object.entries(O.missing),
    isWhole = gaps.every(([, share]) => share === 0);
  const missing = "Missing sensors";
  if (isWhole) {
    const text = "Every sequence has readings of every device: " + gaps.map(([name]) => name).join(", ") + ".";
    page.append(el("section", {}, el("h2", {}, missing), el("p", {class: "hint"}, text)));
  } else
    chart(
      missing,
      "Share of the sequences without any reading of a device.",
      [
        {
          type: "bar",
          x: gaps.map(([name]) => plain(name)),
          y: gaps.map(([, share]) => 100 * share),
          marker: {color: colour("y")},
          hovertemplate: "%{x}: %{y:.1f} %<extra></extra>",
        },
      ],
      {
        height: 240,
        xaxis: axis({fixedrange: true}),
        yaxis: axis({title: {text: "%"}, rangemode: "tozero", fixedrange: true}),
      },
    );
  if (O.pixels.length)
    for (const [key, title, text] of [
      ["far", "Pixels that see nothing", "Share of the rows in which nothing came back to a pixel, %."],
      [
        "absent",
        "Pixels without a reading",
        "Share of the rows in which a pixel has no reading, %; recordings without the sensor included.",
      ],
    ])
      pixels(chart, O.pixels, key, title, text);
  waiting.forEach(draw => draw());
}
function pixels(chart, entries, key, title, text) {
  const traces = [],
    made = {height: 190, margin: {l: 8, r: 8, t: 26, b: 8}, annotations: []},
    n = entries.length;
  entries.forEach((entry, g) => {
    const mark = g ? String(g + 1) : "",
      from = g / n,
      to = (g + 0.92) / n,
      z = [];
    for (let line = 0; line < 8; line++) z.push(entry[key].slice(8 * line, 8 * line + 8).map(share => 100 * share));
    traces.push({
      type: "heatmap",
      z,
      xaxis: "x" + mark,
      yaxis: "y" + mark,
      zmin: 0,
      zmax: 100,
      showscale: g === n - 1,
      colorbar: {thickness: 8, tickfont: {size: 9}},
      colorscale: [
        [0, colour("cell")],
        [1, colour("accent")],
      ],
      xgap: 1,
      ygap: 1,
      hovertemplate: "line %{y}, column %{x}: %{z:.1f} %<extra></extra>",
      x0: 1,
      y0: 1,
    });
    made["xaxis" + mark] = axis({domain: [from, to], visible: false, fixedrange: true, constrain: "domain"});
    made["yaxis" + mark] = axis({
      anchor: "x" + mark,
      visible: false,
      autorange: "reversed",
      fixedrange: true,
      scaleanchor: "x" + mark,
      constrain: "domain",
    });
    made.annotations.push({
      text: entry.device,
      x: (from + to) / 2,
      xref: "paper",
      y: 1,
      yref: "paper",
      yanchor: "bottom",
      showarrow: false,
      font: {size: 10},
    });
  });
  chart(title, text, traces, made);
}
