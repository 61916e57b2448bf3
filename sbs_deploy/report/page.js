"use strict";
const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)"), touch = matchMedia("(hover: none)");
const figures = [...document.querySelectorAll("script[data-figure]")].map((script) => script.dataset.figure);
const choices = document.querySelectorAll("select[data-trace-of]");
// The page sends nothing anywhere: without the button that uploads a chart.
const options = {displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: ""};
let chosen = null;

function draw(name) {
  const style = getComputedStyle(root);
  const [text, muted, line] = ["--text", "--muted", "--line"].map((key) => style.getPropertyValue(key).trim());
  const {data, layout} = JSON.parse(document.getElementById(name + "-figure").textContent);
  for (const axis of ["xaxis", "yaxis"]) {
    Object.assign(layout.template.layout[axis], {gridcolor: line, linecolor: line, zerolinecolor: line});
  }
  for (const choice of choices) {
    if (choice.dataset.traceOf === name) data.forEach((trace, i) => { trace.visible = i === choice.selectedIndex; });
  }
  Object.assign(layout, {
    font: {...layout.font, color: text},
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    hoversubplots: "axis",
    dragmode: touch.matches ? false : "zoom",
    modebar: {color: muted, activecolor: text, bgcolor: "transparent", remove: ["select2d", "lasso2d", "autoScale2d"]},
  });
  Plotly.react(name, data, layout, {...options, displayModeBar: touch.matches ? false : "hover"});
}

function show(theme) {
  root.dataset.theme = theme;
  const button = document.getElementById("theme");
  button.textContent = theme === "dark" ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to the ${theme === "dark" ? "light" : "dark"} theme`);
  figures.forEach(draw);
}

const theme = () => chosen ?? (system.matches ? "dark" : "light");
document.getElementById("theme").addEventListener("click", () => {
  chosen = theme() === "dark" ? "light" : "dark";
  show(chosen);
});
system.addEventListener("change", () => show(theme()));
choices.forEach((choice) => choice.addEventListener("change", () => draw(choice.dataset.traceOf)));

// What is folded away has no width until it is opened.
for (const fold of document.querySelectorAll("details")) {
  fold.addEventListener("toggle", () => fold.querySelectorAll(".chart").forEach((chart) => Plotly.Plots.resize(chart)));
}
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((fold) => { fold.open = true; });
  show("light");
});
addEventListener("afterprint", () => show(theme()));

const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");  // what is not known comes last, whichever way
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", {numeric: true}) : x - y;
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...body.rows].sort((p, q) => {
      const [a, b] = [value(p, column), value(q, column)];
      return compare(a, b) * (descending && a !== "" && b !== "" ? -1 : 1);
    });
    body.append(...rows);
  }));
}

for (const box of document.querySelectorAll("[data-filters]")) {
  const rows = [...document.getElementById(box.dataset.filters).tBodies[0].rows];
  const search = box.querySelector("input"), kind = box.querySelector("select"), count = box.querySelector("output");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word)) || Boolean(kind?.value && row.dataset.kind !== kind.value);
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  search.addEventListener("input", filter);
  kind?.addEventListener("change", filter);
  filter();
}

show(theme());
