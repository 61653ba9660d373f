// The explorer's page, last part: pages, colours, and the start.
"use strict";
// ---- pages, colours, size
function open(name) {
  for (const page of ["sequences", "overview"]) {
    $(page).hidden = page !== name;
    $("tab-" + page).setAttribute("aria-selected", String(page === name));
    $("tab-" + page).tabIndex = page === name ? 0 : -1;
  }
  if (name === "overview") drawOverview();
  else {
    drawTable();
    resize();
  }
}
function wantedTheme() {
  // chosen here, else JupyterLab's around this page, else the browser's
  if ($("theme").value) return $("theme").value;
  try {
    const light = parent !== window && parent.document.body.dataset.jpThemeLight;
    if (light) return light === "true" ? "light" : "dark";
  } catch (error) {
    /* another origin: nothing can be known of it */
  }
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}
function dress() {
  // draws all again in the colours that are wanted
  const theme = wantedTheme();
  if (document.documentElement.dataset.theme === theme) return;
  document.documentElement.dataset.theme = theme;
  colours.clear();
  if (!window.Plotly) return;
  drawConfusion();
  for (const viewer of Object.values(viewers))
    if (viewer.record) {
      viewer.drawSignals();
      viewer.at(viewer.k, true);
    }
  isOverviewDrawn = false;
  if (!$("overview").hidden) drawOverview();
}
function watchTheme() {
  $("theme").addEventListener("change", dress);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", dress);
  try {
    if (parent !== window)
      new MutationObserver(dress).observe(parent.document.body, {
        attributes: true,
        attributeFilter: ["data-jp-theme-light"],
      });
  } catch (error) {
    /* another origin */
  }
}
function resize() {
  for (const box of document.querySelectorAll("#sequences .js-plotly-plot"))
    if (box.offsetParent) Plotly.Plots.resize(box);
}

// ---- start
const alike = {},
  top = {};
async function start() {
  D = JSON.parse($("data").textContent);
  C = Object.fromEntries(Object.entries(D.columns).map(([name, column]) => [name, arrayOf(column)]));
  pieces = $("pieces").textContent.trim().split("\n");
  Object.assign(alike, {index: arrayOf(D.alike.index), distance: arrayOf(D.alike.distance)});
  if (D.members.length) Object.assign(top, {classes: arrayOf(D.top.classes), probs: arrayOf(D.top.probs)});
  $("facts").textContent = D.facts.join(" · ");
  $("limits").append(...D.limits.map(text => el("p", {}, text)));
  watchTheme();
  dress();
  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(await inflate($("plotly").textContent.trim()));
  document.head.append(script);
  for (const page of ["sequences", "overview"]) $("tab-" + page).addEventListener("click", () => open(page));
  document.querySelector("nav").addEventListener("keydown", event => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const next = $("sequences").hidden ? "sequences" : "overview";
    open(next);
    $("tab-" + next).focus();
  });
  $("confusion-figure").hidden = !D.members.length;
  state.sort = D.members.length ? "loss" : "id";
  state.down = !!D.members.length;
  buildFilters();
  tableEvents();
  refresh();
  addEventListener("resize", () => drawTable());
  const first = shown.find(i => C.piece[i] >= 0);
  choose("a", first ?? 0);
  document.documentElement.dataset.ready = "1";
}
start().catch(error => {
  $("problem").hidden = false;
  $("problem").textContent =
    typeof DecompressionStream === "undefined"
      ? "This browser is too old for this page: it needs DecompressionStream (Chrome 80, Firefox 113, Safari 16.4)."
      : `This page cannot be shown: ${error}`;
  throw error;
});
