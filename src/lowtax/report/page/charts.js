/* Charts, drawn by Observable Plot and d3 (vendor/): points with intervals, lines, and maps. Each has its data as a table. */
"use strict";

const flip = (path) => ({ moveTo: (x, y) => path.moveTo(x, -y), lineTo: (x, y) => path.lineTo(x, -y), closePath: () => path.closePath() });
const MARKS = {
  o: d3.symbolCircle,
  s: d3.symbolSquare,
  D: d3.symbolDiamond2,
  v: { draw: (path, size) => d3.symbolTriangle.draw(flip(path), size) },
  "^": d3.symbolTriangle,
  P: d3.symbolCross,
  "*": d3.symbolStar,
};
const RADIUS = 5; // of a mark
const WIDEST = 800; // a chart, in pixels
const HALO = { stroke: "var(--paper)", strokeWidth: 4 }; // around words, where a line may cross them

const colourOf = (column) => column.colour || "var(--ink)";

/** Return a small picture of an arm's mark, for names and legends. */
function badge(column) {
  const d = d3.symbol(MARKS[column.mark] ?? MARKS.o, Math.PI * RADIUS ** 2)();
  return svg("svg", { viewBox: "-9 -9 18 18", class: "badge", "aria-hidden": "true" }, svg("path", { d, fill: colourOf(column) }));
}

/** Return the options of dots: the shapes of their arms in their colours, hollow where a point is not its arm's last. */
function shapes(x, y) {
  const full = (p) => p.last !== false;
  return {
    x, y, r: RADIUS, symbol: (p) => MARKS[p.column.mark] ?? MARKS.o,
    fill: (p) => (full(p) ? colourOf(p.column) : "var(--paper)"),
    stroke: (p) => (full(p) ? "var(--paper)" : colourOf(p.column)),
    strokeWidth: (p) => (full(p) ? 1 : 1.8),
  }; // prettier-ignore
}

/** Return an axis that holds all values and intervals; one of shares is long enough that noise does not look large. */
function axis(figures, unit) {
  const values = figures.flatMap((each) => each.slice(0, 3)).filter((each) => each !== null && each !== undefined);
  let [low, high] = values.length ? d3.extent(values) : [0, 1];
  if (unit === "count" && low > 0 && high / low >= 10) return { type: "log", domain: [low, high] };
  if (unit === "rate") {
    const least = Math.min(0, low), most = Math.max(1, high), short = Math.max(0, 0.3 - (high - low)) / 2;
    [low, high] = [low - short, high + short];
    const shift = Math.max(0, least - low) - Math.max(0, high - most);
    [low, high] = [low + shift, high + shift];
  }
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  return { type: "linear", domain: [low, high] };
}

/** Write a number at an axis. */
function tick(unit) {
  const short = d3.format(".3~s");
  if (unit === "rate") return (value) => `${Number((value * 100).toFixed(1))} %`;
  if (unit === "count" || unit === "tokens") return (value) => (Math.abs(value) < 1e4 ? String(Number(value.toPrecision(3))) : short(value));
  return (value) => shown(value, unit);
}

/** Return both axes with their grid; x and y: name, unit and scale. */
function frame(x, y, width, ticks = 6) {
  const across = width < 500 ? 4 : 7;
  const number = (axis, count) => (axis.scale.type === "log" ? { ticks: Math.min(count, 4), tickFormat: (v) => (Number.isInteger(Math.log10(v)) || axis.scale.domain[1] / axis.scale.domain[0] < 100 ? tick(axis.unit)(v) : "") } : { ticks: count, tickFormat: tick(axis.unit) });
  const grid = { stroke: "var(--rule)", strokeOpacity: 1, strokeWidth: 0.7 };
  return [
    Plot.gridX({ ticks: number(x, across).ticks, ...grid }),
    Plot.gridY({ ticks, ...grid }),
    Plot.axisX({ ...number(x, across), label: brief(x.name, width / 8), labelAnchor: "center", labelArrow: "none", tickSize: 0 }),
    Plot.axisY({ ...number(y, ticks), label: y.name && brief(y.name, width / 9), labelAnchor: "top", labelArrow: "none", tickSize: 0 }),
  ];
}

function brief(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

/**
 * Let Plot draw. `label` is the text alternative; with the role `group`, links in it have their own. Plot names each
 * group of shapes by their kind, which says nothing to a reader: the name becomes `data-part`, for the style sheet.
 */
function picture(label, role, options) {
  const drawn = Plot.plot({ className: "chart", ariaLabel: label, marginLeft: 56, marginRight: 16, marginBottom: 46, ...options });
  drawn.setAttribute("role", role);
  for (const part of drawn.querySelectorAll("g[aria-label]")) {
    part.dataset.part = part.getAttribute("aria-label");
    part.removeAttribute("aria-label");
  }
  return drawn;
}

/** Return the marks that show a text beside the point nearest to the pointer. */
function pointed(rows, title, places) {
  return Plot.tip(rows, Plot.pointer({ ...places, title, fill: "var(--ink)", stroke: "var(--ink)", pathFilter: "none", ariaHidden: true, lineWidth: 40, lineHeight: 1.3, maxRadius: 30 }));
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

/** Put a picture and its data into a figure. `draw` takes a width, and is called again when there is more or less room. */
function chart(draw, title, head, rows) {
  const box = el("div.picture");
  const style = getComputedStyle(main);
  let width = 0;
  const fit = (room) => {
    const next = Math.round(Math.min(room, WIDEST));
    if (next < 120 || Math.abs(next - width) < 4 || box.contains(document.activeElement)) return;
    width = next;
    box.replaceChildren(draw(width));
  };
  fit(main.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
  new ResizeObserver(([entry]) => requestAnimationFrame(() => fit(entry.contentRect.width))).observe(box);
  return el("figure", {}, box, el("details.data", {}, el("summary", {}, "Data of this chart as a table"), scrolling(title, table(title, head, rows))));
}

/**
 * Draw points with intervals. points: {column, name, x, y (figures), last, href}; x, y: measures.
 * A line joins the checkpoints of an arm, from its base.
 */
function scatter(points, xMeasure, yMeasure, level) {
  const title = `${yMeasure.name} against ${xMeasure.name}, ${points.length} checkpoints, with 95 % intervals`;
  const text = (p) => `${p.name}: ${xMeasure.name} ${figure(p.x, xMeasure.unit)}, ${yMeasure.name} ${figure(p.y, yMeasure.unit)}`;
  const x = axis(points.map((p) => p.x), xMeasure.unit), y = axis([...points.map((p) => p.y), [level]], yMeasure.unit);
  const draw = (width) => {
    const room = { width, height: Math.round(Math.min(430, Math.max(320, width * 0.58))), marginTop: 34, marginLeft: 56, marginRight: 16, marginBottom: 46, inset: 14 };
    const places = apart(points, x, y, room);
    const bar = { stroke: (p) => colourOf(p.column), strokeOpacity: (p) => (p.last ? 0.75 : 0.28), strokeWidth: 1.4 };
    const drawn = picture(title, "group", {
      ...room, x, y,
      marks: [
        frame({ ...xMeasure, scale: x }, { ...yMeasure, scale: y }, width),
        level === undefined ? null : Plot.ruleY([level], { stroke: "var(--soft)", strokeDasharray: "5 4" }),
        Plot.ruleX(places, { x: "left", y1: (p) => p.y[1], y2: (p) => p.y[2], ...bar }),
        Plot.ruleY(places, { y: "top", x1: (p) => p.x[1], x2: (p) => p.x[2], ...bar }),
        Plot.line(ways(places), { x: "left", y: "top", z: (p) => p.way, stroke: (p) => p.colour, strokeOpacity: 0.65, strokeWidth: 1.6 }),
        level === undefined ? null : Plot.text([`matched safety, ${tick("rate")(level)}`], { y: [level], frameAnchor: "left", textAnchor: "start", dx: 4, dy: -8, fill: "var(--soft)", ...HALO }),
        Plot.text([towards(xMeasure.better, yMeasure.better)], { frameAnchor: "top-right", dy: -22, textAnchor: "end", fill: "var(--soft)" }),
        Plot.dot(places, shapes("left", "top")),
        Plot.dot(places, { x: "left", y: "top", r: 12, fill: "transparent", stroke: null, href: "href" }),
      ],
    }); // prettier-ignore
    for (const link of drawn.querySelectorAll("a")) {
      const point = places[d3.select(link.firstChild).datum()];
      link.classList.add("point");
      link.setAttribute("aria-label", `${text(point)}; show its replies`);
      hint(link, text(point));
    }
    return drawn;
  };
  return chart(draw, title, ["arm, step", xMeasure.name, yMeasure.name], points.map((p) => [p.name, figure(p.x, xMeasure.unit), figure(p.y, yMeasure.unit)]));
}

/** Return an arrow to where two measures are better. */
function towards(x, y) {
  const arrow = { "up,up": "↗", "up,down": "↘", "down,up": "↖", "down,down": "↙", "up,": "→", "down,": "←", ",up": "↑", ",down": "↓" }[`${x},${y}`];
  return arrow ? `better ${arrow}` : "";
}

/** Return the points of every arm's line, which begins at the base of its study. */
function ways(points) {
  return d3.groups(points.filter((p) => !p.column.base), (p) => p.column.name).flatMap(([name, own]) => {
    const base = points.filter((p) => p.column.base && p.column.study === own[0].column.study);
    return [...base, ...own].map((p) => ({ ...p, way: name, colour: colourOf(own[0].column) }));
  }); // prettier-ignore
}

/** Return the points with the places of their marks, `left` and `top`: pushed apart sideways until none hides another. */
function apart(points, x, y, room) {
  const scale = (options, from, to) => Plot.scale({ x: { ...options, range: [from, to] } });
  const across = scale(x, room.marginLeft + room.inset, room.width - room.marginRight - room.inset), up = scale(y, room.height - room.marginBottom - room.inset, room.marginTop + room.inset);
  const moved = points.map((p) => [across.apply(p.x[0]), up.apply(p.y[0])]);
  const within = (left) => Math.max(room.marginLeft + RADIUS, Math.min(room.width - room.marginRight - RADIUS, left));
  for (let round = 0; round < 60; round++) {
    for (const [i, one] of moved.entries()) {
      for (const [j, two] of moved.slice(0, i).entries()) {
        const dx = one[0] - two[0] + 0.01 * (i - j), distance = Math.hypot(dx, one[1] - two[1]);
        const push = Math.max(0, 3 * RADIUS - distance) / 2;
        one[0] = within(one[0] + (dx / distance) * push);
        two[0] = within(two[0] - (dx / distance) * push);
      }
    }
  }
  return points.map((p, i) => ({ ...p, left: across.invert(moved[i][0]), top: p.y[0] }));
}

/** Draw lines. series: {name, column, points: [[x, y]]}; y: a number, or a figure with its interval. */
function lines(series, xName, yName, xUnit = "count", yUnit = "number") {
  const title = `${yName} by ${xName}`;
  const rows = series.flatMap((s) => s.points.map(([x, y]) => ({ name: s.name, column: s.column, x, y: [y].flat() })));
  const write = (y) => figure(y, yUnit);
  const x = { type: "linear", domain: axis(rows.map((r) => [r.x]), "number").domain }, y = axis(rows.map((r) => r.y), yUnit);
  const ends = series.map((s) => rows.findLast((r) => r.name === s.name));
  const stroke = (r) => colourOf(r.column), height = (r) => r.y[0];
  const draw = (width) =>
    picture(title, "img", {
      width, height: 260, marginTop: 14, insetTop: 6, insetBottom: 6, insetRight: 8, x, y,
      marks: [
        frame({ name: xName, unit: xUnit, scale: x }, { name: null, unit: yUnit, scale: y }, width, 5),
        Plot.ruleX(rows, { x: "x", y1: (r) => r.y[1], y2: (r) => r.y[2], stroke, strokeOpacity: 0.6, strokeWidth: 1.4 }),
        Plot.line(rows, { x: "x", y: height, z: "name", stroke, strokeWidth: 1.6 }),
        Plot.dot(ends, shapes("x", height)),
        pointed(rows, (r) => `${r.name}\n${xName} ${shown(r.x, xUnit)}: ${write(r.y)}`, { x: "x", y: height }),
      ],
    }); // prettier-ignore
  const by = series.map((s) => new Map(s.points));
  const steps = d3.sort(new Set(rows.map((r) => r.x)));
  return chart(draw, title, [xName, ...series.map((s) => s.name)], steps.map((step) => [shown(step, xUnit), ...by.map((points) => (points.has(step) ? write([points.get(step)].flat()) : "–"))]));
}

/** Draw differences with their intervals, a line for each, beside no difference. rows: [name, value, low, high]. */
function forest(rows) {
  const title = "Paired differences, with 95 % intervals";
  const write = (row) => figure(row.slice(1), "rate", true);
  const most = 1.1 * Math.max(0.1, ...rows.flatMap(([, , low, high]) => [-low, high]));
  const x = { type: "linear", domain: [-most, most] }, signed = (value) => `${value > 0 ? "+" : ""}${tick("rate")(value)}`;
  const draw = (width) =>
    picture(`${rows.map((row) => `${row[0]} ${write(row)}`).join("; ")}`, "img", {
      width, height: 50 + 40 * rows.length, marginLeft: 12, marginTop: 6, marginBottom: 40, x, y: { type: "band", domain: d3.range(rows.length), axis: null },
      marks: [
        Plot.gridX({ ticks: width < 500 ? 5 : 9, stroke: "var(--rule)", strokeOpacity: 1, strokeWidth: 0.7 }),
        Plot.ruleX([0], { stroke: "var(--soft)", strokeDasharray: "5 4" }),
        Plot.text(rows, { y: (_, i) => i, frameAnchor: "left", textAnchor: "start", dy: -10, text: (row) => brief(row[0], (width - 150) / 6), fill: "var(--ink)", ...HALO }),
        Plot.text(rows, { y: (_, i) => i, frameAnchor: "right", textAnchor: "end", dy: -10, text: write, fill: "var(--soft)", ...HALO }),
        Plot.ruleY(rows, { y: (_, i) => i, x1: (row) => row[2], x2: (row) => row[3], dy: 7, stroke: "var(--accent)", strokeWidth: 2 }),
        Plot.dot(rows, { y: (_, i) => i, x: (row) => row[1], dy: 7, r: RADIUS, fill: "var(--accent)" }),
        Plot.axisX({ ticks: width < 500 ? 5 : 9, tickFormat: signed, label: "difference of shares, 95 % interval", labelAnchor: "center", labelArrow: "none", tickSize: 0 }),
      ],
    }); // prettier-ignore
  return chart(draw, title, ["share", "difference"], rows.map((row) => [row[0], write(row)]));
}

/** Draw a map of numbers by row and column, in a stronger colour where they are larger; column -1 is no layer. cells: Map of "row column" to number. */
function map(title, rows, columns, cells, largest, along = "layer") {
  const listed = rows.flatMap((row) => columns.map((column) => ({ row, column, value: cells.get(`${column} ${row}`) }))).filter((c) => Number.isFinite(c.value));
  const left = 16 + 7 * Math.min(22, Math.max(...rows.map((row) => row.length)));
  const name = (column) => (along === "layer" && column === -1 ? "none" : String(column));
  const draw = (width) => {
    const wide = Math.max(20, Math.min(64, (width - left - 16) / columns.length)), every = Math.ceil(34 / wide);
    const drawn = picture(`${title}: a map of ${rows.length} rows by ${along}`, "img", {
      width: left + 16 + wide * columns.length, height: 62 + 22 * rows.length, marginLeft: left, marginTop: 8, marginBottom: 54,
      x: { type: "band", domain: columns, padding: 0 }, y: { type: "band", domain: rows, padding: 0 },
      color: { type: "linear", domain: [0, largest || 1], clamp: true, interpolate: (share) => `color-mix(in oklab, var(--accent) ${Math.round(share * 100)}%, var(--panel))` },
      marks: [
        Plot.cell(listed, { x: "column", y: "row", fill: "value", inset: 0.5 }),
        Plot.axisX({ ticks: columns.filter((_, i) => i % every === 0), tickFormat: name, tickSize: 0, label: along, labelAnchor: "center", labelArrow: "none", labelOffset: 40 }),
        Plot.axisY({ tickFormat: (row) => brief(row, 22), tickSize: 0, label: null }),
        pointed(listed, (c) => `${along} ${name(c.column)}, ${c.row}\n${shown(c.value, "number")}`, { x: "column", y: "row" }),
      ],
    }); // prettier-ignore
    return scrolling(`map, ${title}`, drawn);
  };
  const figure = chart(draw, title, ["module", ...columns.map(name)], rows.map((row) => [row, ...columns.map((column) => shown(cells.get(`${column} ${row}`), "number"))]));
  figure.firstChild.after(el("p.ramp", {}, "0", el("span", { "aria-hidden": "true" }), shown(largest, "number")));
  return figure;
}
