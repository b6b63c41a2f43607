"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "path", "circle", "rect", "text", "title"].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e4 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

// --- axes ---

function scale(low, high, from, to, log) {
  const f = log ? Math.log10 : (v) => v;
  const span = f(high) - f(low) || 1;
  return (v) => from + ((f(v) - f(low)) / span) * (to - from);
}

function ticks(low, high, log) {
  if (log) {
    const found = [];
    const wide = Math.log10(high / low) > 2.5;
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const m of wide ? [1] : [1, 2, 5]) {
        const v = m * 10 ** e;
        if (v >= low * 0.999 && v <= high * 1.001) found.push(v);
      }
    if (found.length > 1) return found;
  }
  const rough = (high - low) / 5 || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= rough);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) found.push(Math.abs(v) < step * 1e-6 ? 0 : v);
  return found;
}

// A chart of curves [{label, colour, points: [{x, y, low, high}], dash, thick}] in the width that it has.
function plot(box, curves, { xTicks, xLabel, yLabel, xLog, height = 340, flat, label }) {
  const width = Math.max(260, box.clientWidth || 640);
  const left = 58, right = 14, top = 12, bottom = 44;
  const points = curves.flatMap((curve) => curve.points);
  const ys = points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]);
  const yLog = !flat && ys.length > 0 && Math.min(...points.map((p) => p.y)) > 0;
  const positive = yLog ? ys.filter((v) => v > 0) : ys;
  let low = yLog ? Math.max(Math.min(...positive), Math.min(...points.map((p) => p.y)) / 3) : Math.min(...ys);
  let high = Math.max(...ys);
  if (yLog) [low, high] = [low / 1.1, high * 1.1];
  else { const pad = (high - low || Math.abs(high) || 1) * 0.06; [low, high] = [low - pad, high + pad]; }
  const xs = points.map((p) => p.x);
  let [first, last] = [Math.min(...xs), Math.max(...xs)];
  if (xLog) [first, last] = [first / 1.08, last * 1.08];
  else { const pad = (last - first || 1) * 0.03; [first, last] = [first - pad, last + pad]; }
  const x = scale(first, last, left, width - right, xLog), y = scale(low, high, height - bottom, top, yLog);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const v of ticks(low, high, yLog)) {
    svg.append(make("line", { x1: left, x2: width - right, y1: y(v), y2: y(v), class: "axis" }));
    svg.append(make("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, number(v)));
  }
  let taken = -Infinity;
  for (const v of xTicks ?? ticks(first, last, xLog)) {
    if (v < first || v > last || x(v) - taken < 26) continue;
    taken = x(v);
    svg.append(make("line", { x1: x(v), x2: x(v), y1: top, y2: height - bottom, class: "axis" }));
    svg.append(make("text", { x: x(v), y: height - bottom + 16, "text-anchor": "middle" }, number(v)));
  }
  svg.append(make("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, xLabel));
  svg.append(make("text", { x: 12, y: (top + height - bottom) / 2, "text-anchor": "middle",
    transform: `rotate(-90 12 ${(top + height - bottom) / 2})` }, yLabel));
  curves.forEach((curve, place) => {
    const aside = curve.points.some((p) => p.low !== undefined) ? (place - (curves.length - 1) / 2) * 4 : 0; // bars side by side
    const stroke = `var(${curve.colour})`;
    const path = curve.points.map((p, i) => `${i ? "L" : "M"}${x(p.x) + aside} ${y(p.y)}`).join("");
    svg.append(make("path", { d: path, fill: "none", style: `stroke:${stroke}`, "stroke-width": curve.thick ? 2.6 : 1.6,
      "stroke-dasharray": curve.dash ?? "none" }));
    if (curve.dash && !curve.marked) return;
    for (const p of curve.points) {
      if (p.low !== undefined) {
        const bottomEnd = Math.min(y(yLog ? Math.max(p.low, low) : p.low), height - bottom);
        svg.append(make("line", { x1: x(p.x) + aside, x2: x(p.x) + aside, y1: bottomEnd, y2: y(p.high), style: `stroke:${stroke}`, "stroke-width": 1.4 }));
      }
      const text = `${curve.label}, ${p.text ?? `${number(p.x)}: ${number(p.y)}`}`;
      svg.append(make("circle", { cx: x(p.x) + aside, cy: y(p.y), r: curve.thick ? 4.5 : 3.2, style: `fill:${stroke}` }, make("title", {}, text)));
    }
  });
  box.replaceChildren(svg);
}

// --- quality against calls or evaluations ---

const order = { plan: 0, "best untuned": 1, untuned: 2 };
const series = [...new Set(data.runs.filter((r) => r.kind !== "reference")
  .sort((a, b) => order[a.kind] - order[b.kind]).map((r) => r.series))];
const colours = Object.fromEntries(series.map((name, i) => [name, `--s${i % 7}`]));
const hidden = new Set();

for (const size of data.sizes) $("size").append(make("option", { value: size }, `network ${size}`));
$("size").value = data.sizes.at(-1);
$("size").parentElement.hidden = data.sizes.length < 2;
for (const [name, metric] of Object.entries(data.metrics)) $("metric").append(make("option", { value: name }, metric.title));
series.forEach((name, i) => {
  const box = make("input", { type: "checkbox", id: `series-${i}` });
  box.checked = true;
  box.addEventListener("change", () => { box.checked ? hidden.delete(name) : hidden.add(name); quality(); });
  $("series").append(make("label", { for: box.id }, box, make("span", { class: "swatch", style: `background:var(${colours[name]})` }), name));
});

function quality() {
  const metric = $("metric").value, about = data.metrics[metric], size = $("size").value;
  $("metric-text").textContent = `${about.title}: ${about.text}. ${about.more ? "More" : "Less"} is better.`;
  const curves = series.filter((name) => !hidden.has(name)).map((name) => {
    const runs = data.runs.filter((r) => r.series === name && r.kind !== "reference" && metric in r.values).sort((a, b) => a[size] - b[size]);
    const thick = runs.some((r) => r.kind === "plan");
    const points = runs.map((r) => { const [y, low, high] = r.values[metric]; return { x: r[size], y, low, high, text: `${r.name}: ${number(y)}` }; });
    return { label: name, colour: colours[name], thick, points, marked: true, dash: runs.some((r) => r.kind === "best untuned") ? "5 4" : undefined };
  }).filter((curve) => curve.points.length);
  const reference = data.runs.find((r) => r.kind === "reference" && metric in r.values);
  const xs = curves.flatMap((curve) => curve.points.map((p) => p.x));
  if (reference && xs.length) {
    const y = reference.values[metric][0];
    if (y > 0 || curves.some((curve) => curve.points.some((p) => p.y <= 0)))
      curves.push({ label: "reference", colour: "--soft", dash: "2 4", points: [{ x: Math.min(...xs), y }, { x: Math.max(...xs), y }] });
  }
  if (!xs.length) { $("chart").replaceChildren(make("p", { class: "note" }, "No curve is chosen.")); return; }
  plot($("chart"), curves, { xTicks: [...new Set(xs)].sort((a, b) => a - b), xLabel: `network ${size}`, yLabel: about.title, xLog: true,
    label: `${about.title} against network ${size}; the numbers are in the table` });
}
$("metric").addEventListener("change", quality);
$("size").addEventListener("change", quality);

// --- samples ---

const pictured = data.runs.filter((r) => r.picture);
const reference = pictured.find((r) => r.kind === "reference");
let current = null;

function choose(run) {
  current = run;
  const shown = $("flip").getAttribute("aria-pressed") === "true" && reference ? reference : run;
  for (const image of $("samples").children) image.hidden = image.dataset.run !== shown.name;
  const value = shown.values.distance;
  $("sample-text").textContent = `${shown.name}, ${shown.calls} calls` + (value ? `, distance ${number(value[0])}` : "");
}

function offer() {
  const calls = Number($("calls").value);
  const runs = pictured.filter((r) => r.kind !== "reference" && r.calls === calls);
  $("shown").querySelectorAll("label").forEach((label) => label.remove());
  runs.sort((a, b) => order[a.kind] - order[b.kind]).forEach((run, i) => {
    const radio = make("input", { type: "radio", name: "run", id: `run-${i}` });
    radio.checked = i === 0;
    radio.addEventListener("change", () => choose(run));
    $("shown").append(make("label", { for: radio.id }, radio, run.kind === "best untuned" ? `best untuned, ${run.name}` : run.name));
  });
  if (runs.length) choose(runs[0]);
}

if (pictured.length) {
  for (const run of pictured) {
    const image = make("img", { src: run.picture, alt: `samples of ${run.name}`, "data-run": run.name });
    image.className = data.points ? "points" : data.small ? "small" : "";
    $("samples").append(image);
  }
  const counts = [...new Set(pictured.filter((r) => r.kind !== "reference").map((r) => r.calls))].sort((a, b) => a - b);
  for (const calls of counts) $("calls").append(make("option", { value: calls }, String(calls)));
  const planned = pictured.find((r) => r.kind === "plan");
  if (planned) $("calls").value = planned.calls;
  $("calls").addEventListener("change", offer);
  $("flip").addEventListener("click", () => {
    $("flip").setAttribute("aria-pressed", String($("flip").getAttribute("aria-pressed") !== "true"));
    choose(current);
  });
  offer();
} else {
  $("sample-controls").hidden = true;
  $("samples").replaceChildren(make("p", { class: "note" }, "Samples of this shape are no pictures."));
}

// --- plans ---

const plans = data.runs.filter((r) => r.kind !== "reference").sort((a, b) => order[a.kind] - order[b.kind]);
plans.forEach((run, i) => $("plan").append(make("option", { value: i }, run.name)));

function curves() {
  const run = plans[$("plan").value];
  const k = run.t.map((_, i) => i);
  const points = (values) => values.map((y, i) => ({ x: i, y }));
  plot($("grid"), [{ label: "t", colour: "--s0", thick: true, points: points(run.t) },
    { label: "tau", colour: "--s1", points: points(run.tau), dash: "5 4", marked: true }],
    { xTicks: k, xLabel: "call (solid t, dashed tau)", yLabel: "time", height: 260, flat: true, label: "Solver's and conditioning times of the calls" });
  plot($("ratio"), [{ label: "tau / t", colour: "--s0", thick: true, points: points(run.tau.map((tau, i) => tau / run.t[i])) }],
    { xTicks: k, xLabel: "call", yLabel: "tau / t", height: 260, flat: true, label: "Ratios of the calls" });
}

function heat() {
  const run = plans[$("plan").value];
  $("heat-text").textContent = `Row k is the state after call k as a sum of x_T and of the predictions before it; ${run.predicts}.`;
  const rows = run.table, columns = rows[0].length;
  const most = Math.max(...rows.flat().map(Math.abs)) || 1;
  const head = make("tr", {}, make("th", { scope: "col" }, "k"), ...Array.from({ length: columns }, (_, j) =>
    make("th", { scope: "col" }, j ? `p${j - 1}` : "x_T")));
  const body = rows.map((row, k) => make("tr", {}, make("th", { scope: "row" }, String(k)), ...row.map((value, j) => {
    const cell = make("td", {}, j > k + 1 ? "" : number(Number(value.toPrecision(2))));
    const shade = 0.42 * Math.sqrt(Math.abs(value) / most);
    cell.style.background = `rgba(var(${value < 0 ? "--negative" : "--positive"}), ${shade.toFixed(3)})`;
    return cell;
  })));
  $("heat").replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}
$("plan").addEventListener("change", () => { curves(); heat(); });

// --- the width of the page ---

function draw() { quality(); if (plans.length) curves(); }
draw();
if (plans.length) heat();
let width = document.body.clientWidth;
addEventListener("resize", () => { if (document.body.clientWidth !== width) { width = document.body.clientWidth; draw(); } });
addEventListener("beforeprint", draw);
