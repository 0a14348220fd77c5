/* Charts in SVG: points with intervals, lines, and maps. Each has a text alternative and its data as a table. */
"use strict";

const MARKS = {
  o: "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0Z",
  s: "M-4.6,-4.6H4.6V4.6H-4.6Z",
  D: "M0,-6.2L6.2,0L0,6.2L-6.2,0Z",
  v: "M-5.8,-4.8H5.8L0,5.4Z",
  "^": "M-5.8,4.8H5.8L0,-5.4Z",
  P: "M-1.9,-5.6H1.9V-1.9H5.6V1.9H1.9V5.6H-1.9V1.9H-5.6V-1.9H-1.9Z",
  "*": "M0,-8L2,-2.6L7.6,-2.5L3.1,1L4.7,6.5L0,3.3L-4.7,6.5L-3.1,1L-7.6,-2.5L-2,-2.6Z",
};

/** Return the mark of an arm: its shape in its colour, filled or hollow. */
function markOf(column, filled = true) {
  return svg("path", { d: MARKS[column.mark] || MARKS.o, class: filled ? "mark" : "mark hollow", colour: column.colour });
}

/** Return a small picture of an arm's mark, for names and legends. */
function badge(column) {
  return svg("svg", { viewBox: "-9 -9 18 18", class: "badge", "aria-hidden": "true" }, markOf(column));
}

/** Return the width of a chart in its own units: a narrow screen gets a narrow chart, so that its words stay readable. */
function width() {
  return document.documentElement.clientWidth < 640 ? 400 : 710;
}

/** Return round numbers between two ends. */
function ticks(low, high, count = 5) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const listed = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) listed.push(Number((i * step).toPrecision(10)));
  return listed;
}

/** Return the ends of an axis that holds all values, with room; shares stay near 0 to 1. */
function ends(values, unit) {
  let low = Math.min(...values), high = Math.max(...values);
  if (!Number.isFinite(low)) [low, high] = [0, 1];
  if (unit === "rate" && high - low < 0.3) [low, high] = [Math.max(Math.min(low, 0), low - 0.15), Math.min(Math.max(1, high), high + 0.15)];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - room, high + room];
}

/** Return a function from values to places, of a linear or logarithmic axis. */
function scale([low, high], from, to, log = false) {
  const f = log ? Math.log10 : (x) => x;
  return (value) => from + ((f(value) - f(low)) / (f(high) - f(low))) * (to - from);
}

const tip = document.getElementById("tip");

/** Show a text beside an element while the pointer or the focus is on it. */
function hint(node, text) {
  const show = () => {
    tip.textContent = text;
    tip.hidden = false;
    const box = node.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const left = Math.min(box.right + 8, document.documentElement.clientWidth - own.width - 8);
    tip.style.setProperty("left", `${Math.max(8, left)}px`);
    tip.style.setProperty("top", `${Math.max(8, box.top - own.height - 6)}px`);
  };
  const hide = () => (tip.hidden = true);
  for (const event of ["mouseenter", "focus"]) node.addEventListener(event, show);
  for (const event of ["mouseleave", "blur", "click"]) node.addEventListener(event, hide);
}

/** Draw both axes with a grid, and return the frame's elements. */
function axes(box, x, y, xTicks, yTicks, xName, yName, xUnit, yUnit) {
  const write = (value, unit) => (unit === "rate" ? `${Math.round(value * 100)} %` : shown(value, unit));
  return [
    xTicks.map((t) => svg("line", { x1: x(t), x2: x(t), y1: box.top, y2: box.bottom, class: "grid" })),
    yTicks.map((t) => svg("line", { x1: box.left, x2: box.right, y1: y(t), y2: y(t), class: "grid" })),
    xTicks.map((t) => svg("text", { x: x(t), y: box.bottom + 18, class: "tick middle" }, write(t, xUnit))),
    yTicks.map((t) => svg("text", { x: box.left - 8, y: y(t) + 4, class: "tick end" }, write(t, yUnit))),
    svg("text", { x: (box.left + box.right) / 2, y: box.bottom + 40, class: "axis middle" }, xName),
    svg("text", { x: box.left, y: box.top - 12, class: "axis" }, yName),
  ];
}

/** Put a picture and its data into a figure. `head` and `rows` are those of the table. */
function chart(picture, title, head, rows) {
  return el(
    "figure",
    {},
    picture,
    el("details.data", {}, el("summary", {}, `Data of this chart as a table`), scrolling(title, table(title, head, rows))),
  );
}

/**
 * Draw points with intervals. points: {column, name, x, y (figures), last, go}; x, y: measures.
 * A line joins the checkpoints of an arm, from its base.
 */
function scatter(points, xMeasure, yMeasure, level) {
  const box = { left: 58, right: width() - 20, top: 40, bottom: 360 };
  const spread = (values) => values.flatMap((v) => v.filter((part, i) => i < 3 && part !== null && part !== undefined));
  const log = xMeasure.unit === "count" && points.every((p) => p.x[0] > 0);
  let xEnds = ends(spread(points.map((p) => p.x)), xMeasure.unit);
  if (log) xEnds = [Math.min(...points.map((p) => p.x[0])) / 1.5, Math.max(...points.map((p) => p.x[0])) * 1.5];
  const yEnds = ends(spread(points.map((p) => p.y)).concat(level ?? []), yMeasure.unit);
  const x = scale(xEnds, box.left, box.right, log), y = scale(yEnds, box.bottom, box.top);
  const across = width() < 500 ? 3 : 5;
  const xTicks = log ? ticks(Math.log10(xEnds[0]), Math.log10(xEnds[1]), 4).filter(Number.isInteger).map((t) => 10 ** t) : ticks(...xEnds, across);
  const frame = axes(box, x, y, xTicks, ticks(...yEnds), xMeasure.name, yMeasure.name, xMeasure.unit, yMeasure.unit);
  const lines = [...new Set(points.map((p) => p.column.name))].map((name) => {
    const own = points.filter((p) => p.column.name === name);
    const base = points.filter((p) => p.column.base && p.column.study === own[0].column.study);
    const way = (own[0].column.base ? own : [...base, ...own]).map((p) => `${x(p.x[0])},${y(p.y[0])}`);
    return svg("polyline", { points: way.join(" "), class: "way", colour: own[0].column.colour });
  });
  const bars = points.flatMap((p) => {
    const style = { class: p.last ? "bar" : "bar pale", colour: p.column.colour };
    const bar = (values, place) => (values[1] === undefined || values[1] === null ? null : svg("line", { ...place(values), ...style }));
    return [
      bar(p.x, ([, a, b]) => ({ x1: x(a), x2: x(b), y1: y(p.y[0]), y2: y(p.y[0]) })),
      bar(p.y, ([, a, b]) => ({ x1: x(p.x[0]), x2: x(p.x[0]), y1: y(a), y2: y(b) })),
    ];
  });
  const marks = apart(points.map((p) => [x(p.x[0]), y(p.y[0])])).map(([left, top], i) => {
    const p = points[i];
    const text = `${p.name}: ${xMeasure.name} ${figure(p.x, xMeasure.unit)}, ${yMeasure.name} ${figure(p.y, yMeasure.unit)}`;
    const node = svg("g", { transform: `translate(${left},${top})`, tabindex: 0, role: "link", "aria-label": `${text}; show its replies`, class: "point" }, svg("circle", { r: 11, class: "target" }), markOf(p.column, p.last));
    hint(node, text);
    node.addEventListener("click", p.go);
    node.addEventListener("keydown", (event) => event.key === "Enter" && p.go());
    return node;
  });
  const dashed = level === undefined ? null : svg("line", { x1: box.left, x2: box.right, y1: y(level), y2: y(level), class: "level" });
  const title = `${yMeasure.name} against ${xMeasure.name}, ${points.length} checkpoints, with 95 % intervals`;
  const picture = svg("svg", { viewBox: `0 0 ${width()} 410`, role: "group", "aria-label": title, class: "chart" }, frame, dashed, bars, lines, marks);
  const head = ["arm, step", xMeasure.name, yMeasure.name];
  return chart(picture, title, head, points.map((p) => [p.name, figure(p.x, xMeasure.unit), figure(p.y, yMeasure.unit)]));
}

/** Push places apart, mostly sideways, until no mark hides another. */
function apart(places, room = 15) {
  const moved = places.map((place) => [...place]);
  for (let round = 0; round < 60; round++) {
    for (let i = 0; i < moved.length; i++) {
      for (let j = 0; j < i; j++) {
        const dx = moved[i][0] - moved[j][0] + 0.01 * (i - j), dy = moved[i][1] - moved[j][1];
        const distance = Math.hypot(dx, dy), push = (room - distance) / 2;
        if (push <= 0) continue;
        moved[i][0] += (dx / distance) * push;
        moved[j][0] -= (dx / distance) * push;
      }
    }
  }
  return moved;
}

/** Draw lines. series: {name, column, points: [[x, y]]}; bands: the same with [x, [value, low, high]]. */
function lines(series, xName, yName, xUnit = "count", yUnit = "number") {
  const box = { left: 64, right: width() - 20, top: 12, bottom: 216 };
  const value = (y) => (Array.isArray(y) ? y[0] : y);
  const xs = series.flatMap((s) => s.points.map(([x]) => x));
  const ys = series.flatMap((s) => s.points.flatMap(([, y]) => (Array.isArray(y) ? y.slice(0, 3).filter((v) => v !== null && v !== undefined) : [y])));
  const low = Math.min(...xs), high = Math.max(...xs);
  const xEnds = low === high ? [low - 1, high + 1] : [low, high], yEnds = ends(ys, yUnit);
  const x = scale(xEnds, box.left, box.right), y = scale(yEnds, box.bottom, box.top);
  const title = `${yName} by ${xName}`;
  const drawn = series.map((s) => {
    const way = s.points.map(([a, b]) => `${x(a).toFixed(1)},${y(value(b)).toFixed(1)}`).join(" ");
    const [lastX, lastY] = s.points.at(-1);
    const bars = s.points.filter(([, b]) => Array.isArray(b) && b[1] !== null).map(([a, b]) => svg("line", { x1: x(a), x2: x(a), y1: y(b[1]), y2: y(b[2]), class: "bar", colour: s.column.colour }));
    const end = svg("g", { transform: `translate(${x(lastX)},${y(value(lastY))})` }, markOf(s.column));
    return [bars, svg("polyline", { points: way, class: "line", colour: s.column.colour }), end];
  });
  const picture = svg("svg", { viewBox: `0 0 ${width()} 264`, role: "img", "aria-label": title, class: "chart" }, axes(box, x, y, ticks(...xEnds, width() < 500 ? 3 : 5), ticks(...yEnds, 4), xName, "", xUnit, yUnit), drawn);
  const write = (b) => (Array.isArray(b) ? figure(b, yUnit) : shown(b, yUnit));
  const steps = [...new Set(xs)].sort((a, b) => a - b);
  const by = series.map((s) => new Map(s.points));
  return chart(picture, title, [xName, ...series.map((s) => s.name)], steps.map((step) => [shown(step, xUnit), ...by.map((points) => (points.has(step) ? write(points.get(step)) : "–"))]));
}

/** Draw a map of numbers by row and column, in a stronger colour where they are larger; column -1 is no layer. cells: Map of "row column" to number. */
function map(title, rows, columns, cells, largest) {
  const size = 18, wide = Math.max(22, Math.min(56, 560 / columns.length)), left = 150, top = 10;
  const width = left + columns.length * wide + 10, height = top + rows.length * size + 40;
  const drawn = rows.flatMap((row, i) =>
    columns.map((column, j) => {
      const value = cells.get(`${column} ${row}`);
      if (value === undefined || value === null) return null;
      const share = largest ? Math.max(0, Math.min(1, value / largest)) : 0;
      const cell = svg("rect", { x: left + j * wide, y: top + i * size, width: wide - 1, height: size - 1, class: "cell" }, svg("title", {}, `layer ${column}, ${row}: ${shown(value, "number")}`));
      cell.style.setProperty("--share", share.toFixed(3));
      return cell;
    }),
  );
  const every = Math.ceil(columns.length / 16);
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: a map of modules by layer`, class: "chart map" },
    rows.map((row, i) => svg("text", { x: left - 6, y: top + i * size + 13, class: "tick end" }, row.length > 22 ? `${row.slice(0, 20)}…` : row)),
    columns.map((column, j) => (j % every ? null : svg("text", { x: left + j * wide + wide / 2, y: top + rows.length * size + 15, class: "tick middle" }, column === -1 ? "none" : String(column)))),
    svg("text", { x: left, y: top + rows.length * size + 33, class: "tick" }, `by layer; strongest colour: ${shown(largest, "number")}`),
    drawn,
  );
  return chart(scrolling(`map, ${title}`, picture), title, ["module", ...columns.map(String)], rows.map((row) => [row, ...columns.map((column) => shown(cells.get(`${column} ${row}`), "number"))]));
}
