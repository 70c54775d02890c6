// Small plots over the last minutes: lines in SVG that stretch with their box, text beside them in HTML.

import { h, s } from "./dom.js";
import { plain } from "./format.js";

const WINDOWS_MIN = [2, 5, 10];
const W = 1000;
const H = 100;

// `series` are {name, color, value(point)}; `hover` is null or where the pointer is, from 0 to 1.
export function plot({ title, about, series, points, now, format, hover }) {
  const { minutes, start, shown } = past(points, now);
  const x = (at) => ((at - start) / (minutes * 60)) * W;
  const top = ceiling(Math.max(0, ...series.flatMap((one) => shown.map((point) => one.value(point) ?? 0))));
  const told = hover === null ? shown.at(-1) : nearest(shown, start + hover * minutes * 60);
  const isEmpty = !shown.some((point) => series.some((one) => one.value(point) !== null && one.value(point) > 0));
  const summary = series.map((one) => `${one.name} ${format(told ? one.value(told) : null)}`).join(", ");
  return h(
    "section",
    { class: "card plot", "aria-label": title },
    h("h2", {}, title, about ? h("small", {}, about) : null),
    h(
      "ul",
      { class: "legend" },
      series.map((one) =>
        h("li", {}, h("i", { style: { background: one.color } }), one.name, h("b", {}, format(told ? one.value(told) : null))),
      ),
    ),
    h(
      "div",
      { class: "plot-area", role: "img", "aria-label": `${title}: ${summary}` },
      [1, 0.5, 0].map((part) => h("span", { class: "tick", style: { top: `${(1 - part) * 100}%` } }, plain(format(top * part)))),
      s(
        "svg",
        { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", "aria-hidden": "true" },
        [0, 50, 100].map((y) => s("line", { x1: 0, x2: W, y1: y, y2: y, class: "grid" })),
        series.map((one) => s("path", { d: path(shown, one.value, x, top), stroke: one.color })),
        hover !== null && told
          ? s("line", { x1: x(told.at), x2: x(told.at), y1: 0, y2: H, class: "cross" })
          : null,
      ),
      isEmpty ? h("p", { class: "plot-empty" }, `Nothing in the last ${minutes} minutes`) : null,
    ),
    h(
      "div",
      { class: "times", "aria-hidden": "true" },
      h("span", {}, `${minutes} min ago`),
      h("span", {}, hover !== null && told ? clock(told.at) : ""),
      h("span", {}, "now"),
    ),
  );
}

// A line without anything around it.
export function spark(points, value, now, color) {
  const { minutes, start, shown } = past(points, now);
  const top = Math.max(1e-9, ...shown.map((point) => value(point) ?? 0)) * 1.1;
  return s(
    "svg",
    { class: "spark", viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    s("path", { d: path(shown, value, (at) => ((at - start) / (minutes * 60)) * W, top), stroke: color }),
  );
}

// The shortest window that all points fit into, and those that fit into the longest.
function past(points, now) {
  const age = points.length ? now - points[0].at : 0;
  const minutes = WINDOWS_MIN.find((some) => some * 60 >= age) ?? WINDOWS_MIN.at(-1);
  const start = now - minutes * 60;
  return { minutes, start, shown: points.filter((point) => point.at >= start) };
}

function path(points, value, x, top) {
  let made = "";
  let isDown = false;
  for (const point of points) {
    const y = value(point);
    if (y === null || y === undefined) {
      isDown = false;
      continue;
    }
    made += `${isDown ? "L" : "M"}${x(point.at).toFixed(1)} ${(H - (y / top) * H).toFixed(1)}`;
    if (!isDown) made += "h0.01"; // a point alone is seen, too
    isDown = true;
  }
  return made;
}

function nearest(points, at) {
  return points.reduce((best, point) => (best && Math.abs(best.at - at) <= Math.abs(point.at - at) ? best : point), undefined);
}

// The next round number: 1, 2 or 5 times a power of ten.
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * 0.999);
}

const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");
