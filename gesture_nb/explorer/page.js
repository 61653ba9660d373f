// The explorer's page, first part: the data in the page, and what all parts use.
//
// The parts (page.js, finder.js, viewer.js, overview.js, start.js) become one script inside one function. Everything
// they show is in the page: #data (JSON with typed arrays as base64), #pieces (one compressed recording a line) and
// #plotly (plotly.js, compressed). Labels come from people: they go into the page as text only, and into plotly.js,
// which obeys some tags, through plain().
"use strict";

const $ = id => document.getElementById(id);
const GAP = -32768,
  FAR = 254,
  ABSENT = 255,
  ROW = 30;
let D, C, pieces; // the data, its columns, the compressed recordings
const state = {
  wrong: false,
  y: -1,
  pred: -1,
  person: -1,
  orientation: -1,
  missing: "",
  text: "",
  sort: "",
  down: true,
  a: -1,
  b: -1,
};
let shown = new Uint32Array(0); // sequences that the filters let through, in the table's order

// ---- small things
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter(child => child != null));
  return made;
}
const plain = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, n) => {
  const letters = [...text];
  return letters.length > n ? letters.slice(0, n - 1).join("") + "…" : text;
};
const colours = new Map(); // of page.css by name, until the theme changes
function colour(name) {
  const style = getComputedStyle(document.documentElement);
  if (!colours.has(name)) colours.set(name, style.getPropertyValue("--" + name).trim());
  return colours.get(name);
}
const isNarrow = () => innerWidth < 640;
const fixed = (x, digits) => (Number.isFinite(x) ? x.toFixed(digits) : "–");

const TYPES = {u1: Uint8Array, u2: Uint16Array, i2: Int16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array};
function bytesOf(base64) {
  const text = atob(base64),
    bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}
const arrayOf = ({type, data}) => new TYPES[type](bytesOf(data).buffer);
async function inflate(base64) {
  // zlib (RFC 1950)
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// ---- one recording: rounded changes from row to row become numbers again
const stride = (rows, most) => Math.max(1, Math.ceil(rows / most));
const cache = new Map();
async function recording(i) {
  if (C.piece[i] < 0) return null;
  if (cache.has(i)) return cache.get(i);
  const raw = await inflate(pieces[C.piece[i]]),
    rows = C.rows[i],
    rate = C.rate[i];
  const step = stride(rows, D.maxPoints),
    n = Math.ceil(rows / step);
  const lines = D.tracks.reduce((sum, track) => sum + track.names.length, 0);
  const time = Float64Array.from({length: n}, (_, k) => (k * step) / rate),
    values = [];
  let line = 0;
  for (const track of D.tracks)
    for (const _ of track.names) {
      const out = new Float32Array(n);
      for (let k = 0, sum = 0; k < n; k++) {
        sum = ((sum + raw[line * n + k] + 256 * raw[(lines + line) * n + k]) << 16) >> 16;
        out[k] = sum === GAP ? NaN : sum * track.step;
      }
      values.push(out);
      line++;
    }
  const frameStep = stride(rows, D.maxFrames),
    frames = Math.ceil(rows / frameStep),
    grids = [];
  for (let g = 0, at = 2 * lines * n; g < D.grids.devices.length; g++) {
    const cells = new Uint8Array(64 * frames); // [64, frames]
    for (let cell = 0; cell < 64; cell++)
      for (let k = 0, sum = 0; k < frames; k++) cells[cell * frames + k] = sum = (sum + raw[at++]) & 255;
    grids.push(cells);
  }
  const found = {n, time, values, frames, frameStep, step, grids};
  if (cache.size > 60) cache.delete(cache.keys().next().value);
  cache.set(i, found);
  return found;
}
function valuesOf(record, key) {
  // the lines of a track
  let line = 0;
  for (const track of D.tracks) {
    if (track.key === key) return record.values.slice(line, line + track.names.length);
    line += track.names.length;
  }
  return null;
}

// ---- plots
const CONFIG = {
  displaylogo: false,
  responsive: true,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "hoverClosestCartesian", "hoverCompareCartesian"],
};
function layout(more = {}) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: {color: colour("ink"), size: 11, family: getComputedStyle(document.body).fontFamily},
    margin: {l: 52, r: 10, t: 24, b: 34},
    showlegend: false,
    hoverlabel: {bgcolor: colour("panel"), bordercolor: colour("line"), font: {color: colour("ink")}},
    ...more,
  };
}
const axis = (more = {}) => ({
  gridcolor: colour("grid"),
  zerolinecolor: colour("line"),
  linecolor: colour("line"),
  ...more,
});
