/* The page: its views, the routes to them (`#replies`, `#reply=ID`), and people's marks. */
"use strict";

const VIEWS = [["overview", "Overview"], ["replies", "Replies"], ["reasoning", "Reasoning"], ["training", "Training"], ["anatomy", "Anatomy"], ["labels", "Your labels"], ["recipe", "Recipe and card"]];
const main = document.getElementById("main");
const CONTRARY = { refusal: "compliance", partial: "compliance", compliance: "refusal", safe: "unsafe", unsafe: "safe" };
const LABELS = { refusal: ["refusal", "partial", "compliance"], harm: ["safe", "unsafe"] };

/** What the views share: the columns, the settings, and people's marks by reply and judge. */
const page = {
  columns: [],
  marks: new Map(),
  showHarmful: () => document.getElementById("harmful").checked,

  /** Return the buttons with which people mark a verdict right or wrong. */
  marker({ reply, entry, result, name, on }) {
    const own = () => (page.marks.get(reply.id) || []).find((mark) => mark.judge === name && mark.on === on);
    const box = el("p.marker");
    const put = (label) => {
      const others = (page.marks.get(reply.id) || []).filter((mark) => mark.judge !== name || mark.on !== on);
      const text = on === "thought" ? reply.thought : on === "answer" ? reply.answer : `${reply.thought ? `<think>\n${reply.thought}\n</think>\n\n` : ""}${reply.answer || ""}`;
      const mark = { id: `${reply.id}.${name}.${on}`, reply_id: reply.id, prompt: entry.goal || entry.prompt, reply: text || "", judge: name, on, judge_label: result.label, label, arm: page.columns[reply.column].name };
      page.marks.set(reply.id, label ? [...others, mark] : others);
      if (!page.marks.get(reply.id).length) page.marks.delete(reply.id);
      page.store();
      draw();
    };
    const draw = () => {
      const label = own()?.label;
      const options = LABELS[result.label in { safe: 1, unsafe: 1 } ? "harm" : "refusal"];
      box.replaceChildren(
        el("button", { type: "button", "aria-pressed": String(label === result.label), click: () => put(label === result.label ? "" : result.label) }, "right"),
        el("button", { type: "button", "aria-pressed": String(Boolean(label) && label !== result.label), click: () => put(label && label !== result.label ? "" : CONTRARY[result.label]) }, "wrong"),
        label && label !== result.label ? select("it is", options.filter((each) => each !== result.label).map((each) => [each, each]), label, put) : "",
      );
    };
    draw();
    return box;
  },

  store() {
    memory.set(`marks.${page.data.key}`, JSON.stringify([...page.marks.values()].flat()));
  },

  restore(marks) {
    for (const mark of marks) {
      if (typeof mark?.reply_id !== "string" || typeof mark.label !== "string") continue;
      const others = (page.marks.get(mark.reply_id) || []).filter((each) => each.judge !== mark.judge || each.on !== mark.on);
      page.marks.set(mark.reply_id, [...others, mark]);
    }
  },

  /** Return, for each judge, n, the share on which it agrees with the marks, and its interval. */
  agreement() {
    const judges = {};
    for (const mark of [...page.marks.values()].flat()) {
      const key = `${mark.judge}, ${partOf(mark.on)}`;
      judges[key] ??= { judge: mark.judge, n: 0, k: 0 };
      judges[key].n++;
      judges[key].k += CONTRARY[mark.label] !== mark.judge_label && (mark.label === mark.judge_label || (mark.label !== "compliance" && mark.judge_label !== "compliance"));
    }
    return Object.entries(judges).map(([name, { judge, n, k }]) => [name, judge, n, k / n, ...wilson(k, n)]);
  },
};

/* --- overview */

function overview(section) {
  const { data } = page;
  section.append(el("h2", {}, "Overview"));
  if (!data.rows.length) section.append(el("p.note", {}, "There is no table yet. The replies that are stored can be read under Replies."));
  const notes = data.studies.flatMap((study) => study.notes.map((note) => (data.studies.length > 1 ? `${study.name}: ${note}` : note)));
  const listed = [...data.warnings, ...notes];
  if (listed.length) section.append(el("div.warnings", { role: "note" }, el("h3", {}, "Read this first"), el("ul", {}, listed.map((line) => el("li", {}, line)))));
  if (!data.rows.length) return;
  if (data.answers.length) section.append(el("div.answers", {}, el("h3", {}, "In short"), el("ul", {}, data.answers.map(({ question, text, links }) => el("li", {}, question && el("strong", {}, `${question} `), text, links.map(([name, href], i) => [i ? ", " : " ", el("a", { href }, name)]))))));
  for (const study of data.studies) {
    const start = data.studies.length > 1 ? `${study.name}: ` : "", own = data.answers.filter((line) => line.differences && line.text.startsWith(start));
    if (own.length) section.append(el("h3", {}, `Paired differences of ${start}${own[0].of}`), forest(own.flatMap((line) => line.differences)));
  }
  section.append(frontier(), legend());
  if (data.matched.length) section.append(matched());
  section.append(el("h3", {}, "All checkpoints"), measured(), attacked(data.attacks, data.columns));
  const readings = el("div");
  const drawReadings = () => {
    const rows = page.agreement().map(([name, , n, ...interval]) => [name, `${figure(interval, "rate")}`, grouped.format(n)]);
    readings.replaceChildren(rows.length ? table("Agreement of the judges with your marks in this browser, 95 % intervals", ["judge", "agrees with you", "n"], rows) : "");
  };
  drawReadings();
  page.whenShown.overview = drawReadings;
  section.append(stored(), readings);
}

/** The agreement of the judges with the labels in the study's folder. */
function stored() {
  const { readings, studies } = page.data;
  if (!readings.length) return "";
  const name = (row) => `${studies.length > 1 ? `${studies[row.study].name}: ` : ""}${row.judge}, ${partOf(row.on)}`;
  const rows = readings.map((row) => [name(row), figure(row.figure, "rate"), ...[row.figure[3], row.judge_alone, row.people_alone, row.no_verdict].map((n) => grouped.format(n))]);
  const caption = "Labels in the study's folder (labels.jsonl), 95 % intervals by prompt; of the replies that were marked, which were not drawn by chance unless you did so";
  return el("div", {}, el("h3", {}, "Your reading of the judges"), scrolling("Your reading of the judges", table(caption, ["judge", "agrees with your reading", "n", "refused by the judge alone", "by you alone", "no verdict"], rows)));
}

function measure(key) {
  return page.data.measures.find((each) => each.key === key);
}

/** The chart of all checkpoints, with a choice of its axes. */
function frontier() {
  const { data } = page;
  const usual = data.measures.filter((m) => Object.keys(m.figures).length > 0);
  const options = usual.map((m) => [m.key, `${m.name}${m.group === "categories" || m.group === "prompt sets" ? ` (${m.group})` : ""}`]);
  const has = (key) => usual.some((m) => m.key === key);
  const first = (...keys) => keys.find(has) ?? usual[0].key;
  let x = first("tasks", data.measures.find((m) => m.key.startsWith("task."))?.key, "answered"), y = first("safety");
  const box = el("div"), holder = el("div.frontier", {}, el("h3", {}, "Frontier"));
  const draw = () => {
    const [mx, my] = [measure(x), measure(y)];
    const points = data.rows.flatMap(({ column }) => {
      const [fx, fy] = [mx.figures[column], my.figures[column]];
      if (!fx || !fy) return [];
      const own = data.columns[column];
      return [{ column: own, name: own.base ? own.name : `${own.name}, step ${grouped.format(own.step)}`, x: fx, y: fy, last: own.last, href: `#arm=${column}` }];
    });
    const level = y === "safety" ? data.matched[0]?.level?.safety : undefined;
    box.replaceChildren(points.length ? scatter(points, mx, my, typeof level === "number" ? level : undefined) : el("p.note", {}, "No checkpoint has both measures."));
    const wanted = [mx, my].filter((m) => m.better).map((m) => `${m.name}: ${m.better === "up" ? "more" : "less"} is better`);
    note.textContent = `${wanted.join("; ")}. Bars: 95 % intervals. Filled: the last checkpoint. A click on a mark shows its replies. Marks that would hide each other are moved apart sideways.`;
  };
  const note = el("p.note");
  holder.append(el("div.filters", {}, select("Up", options, y, (value) => ((y = value), draw())), select("Across", options, x, (value) => ((x = value), draw()))), box, note);
  draw();
  return holder;
}

/** The names of the marks of a chart: of the arms, or of the series of a chart that has others. */
function legend(label = "Arms", listed = page.columns.filter((c) => c.last).map((c) => [c, c.name])) {
  return el("ul.legend", { "aria-label": label }, listed.map(([column, name]) => el("li", {}, badge(column), name)));
}

function named(column) {
  return el("span.arm", {}, badge(column), labelOf(column));
}

function matched() {
  const { data } = page;
  const names = [...new Set(data.matched.flatMap((row) => Object.keys(row.rates)))].filter((name) => name !== "safety");
  const title = { over_refusal: "ordinary refused", tax: "tax" };
  const level = data.matched[0].level;
  const rows = data.matched.map((row) => [
    named({ ...data.columns[row.column], last: true }),
    row.step === null ? "never reached" : grouped.format(row.step),
    ...names.map((name) => (row.rates[name] ? figure(row.rates[name], "rate", name === "tax") : "–")),
    row.reached === null ? "–" : `${Math.round(row.reached * 100)} %`,
  ]);
  return el(
    "div",
    {},
    el("h3", {}, "At matched safety"),
    scrolling("At matched safety", table(`Where each arm first refuses ${shown(level.safety, "rate")} of the harmful requests and at most ${shown(level.over_refusal, "rate")} of the ordinary ones`, ["arm", "step", ...names.map((name) => title[name] || name), "reached"], rows)),
    el("p.note", {}, "Interpolated between checkpoints. Reached: the share of resamples that reach the level; under a half there is no interval."),
  );
}

/** The table of all measures: sorted by a click on a head, with a choice of its columns. */
function measured() {
  const { data } = page;
  const groups = [...new Set(data.measures.map((m) => m.group))];
  const usual = new Set(["safety", "over_refusal", "tax", "parameters", "seconds", "update", "unfinished"]);
  const visible = new Set(data.measures.filter((m) => usual.has(m.key) || m.key.startsWith("task.")).map((m) => m.key));
  let by = null, down = true;
  const box = el("div");
  const draw = () => {
    const columns = data.measures.filter((m) => visible.has(m.key));
    const rows = [...data.rows];
    const key = (row) => (by === "arm" ? row.column : by === "step" ? data.columns[row.column].step : measure(by).figures[row.column]?.[0]);
    if (by) rows.sort((one, two) => (down ? -1 : 1) * ((key(one) ?? -Infinity) - (key(two) ?? -Infinity)));
    const sort = (id) => redraw(box, () => ((down = by === id ? !down : true), (by = id), draw()));
    const head = (name, id) => el("button.sort", { type: "button", "data-sort": id, title: "sort by this column", click: () => sort(id) }, name, by === id && el("span", { "aria-hidden": "true" }, down ? " ↓" : " ↑"));
    const body = rows.map(({ column, best }) => [
      el("span.arm", {}, badge(data.columns[column]), best ? el("strong", {}, data.columns[column].name) : data.columns[column].name),
      grouped.format(data.columns[column].step),
      ...columns.map((m) => cellOf(m, column)),
    ]);
    const drawn = table("Rates with 95 % intervals. Bold: on the frontier of problems solved and harmful requests refused.", [head("arm", "arm"), head("step", "step"), ...columns.map((m) => head(m.name, m.key))], body);
    drawn.tBodies[0].append(...failedRows(data.failed, columns.length + 2));
    const order = ["arm", "step", ...columns.map((m) => m.key)];
    drawn.querySelectorAll("thead th").forEach((th, i) => order[i] === by && by && th.setAttribute("aria-sort", down ? "descending" : "ascending"));
    box.replaceChildren(scrolling("All checkpoints", drawn));
  };
  const boxes = groups.map((group) =>
    el("fieldset", {}, el("legend", {}, group), data.measures.filter((m) => m.group === group).map((m) => el("label", {}, el("input", { type: "checkbox", checked: visible.has(m.key), change: (event) => (visible[event.target.checked ? "add" : "delete"](m.key), draw()) }), m.name))),
  );
  draw();
  return el("div", {}, el("details.arms", {}, el("summary", {}, "Columns"), el("div.boxes", {}, boxes)), box);
}

function cellOf(m, column) {
  const values = m.figures[column];
  if (!values) return "–";
  const [value, low, high, n] = values;
  if (low === undefined || low === null) return shown(value, m.unit);
  const signed = m.key.startsWith("tax");
  return el("span", { title: n ? `n = ${grouped.format(n)}` : null }, shown(value, m.unit, signed), " ", el("small", {}, `[${shown(low, m.unit, signed)}, ${shown(high, m.unit, signed)}]`));
}

/* --- training and anatomy */

async function training(section) {
  const { runs, names } = await load("training");
  section.append(el("h2", {}, "Training"));
  const seen = runs.filter((run) => run.steps);
  if (!seen.length) section.append(el("p.note", {}, "No steps of training are stored in this study."));
  else section.append(legend());
  for (const [key, name] of Object.entries(names)) {
    const series = seen.filter((run) => run.curves[key]).map((run) => ({ name: nameOf(run), column: columnOf(run), points: run.curves[key] }));
    if (series.length) section.append(el("h3", {}, name), lines(series, "step", name));
  }
  const rows = runs.map((run) => {
    const { card } = run, checkpoints = Array.isArray(card.checkpoints) ? card.checkpoints : [];
    const methods = (Array.isArray(card.methods) ? card.methods : []).map((m) => m?.name).concat((Array.isArray(card.edits) ? card.edits : []).map((m) => m?.name)).filter(Boolean);
    return [nameOf(run), run.finished ? "finished" : "not finished", grouped.format(run.steps), checkpoints.length ? shown(checkpoints.at(-1).loss, "number") : "–", checkpoints.length ? shown(checkpoints.at(-1).seconds, "seconds") : "–", shown(card.peak_memory_gb, "number"), methods.join(", ") || "–"];
  });
  if (rows.length) section.append(el("h3", {}, "Runs"), scrolling("Runs", table("Runs of training, and edits", ["run", "state", "steps", "last loss", "time", "peak memory, GB", "methods and edits"], rows)));
  const reports = runs.filter((run) => (run.card.methods || []).length || run.card.sources || run.card.edits);
  for (const run of reports) section.append(el("details", {}, el("summary", {}, `Methods, edits and data of ${nameOf(run)}`), el("pre", { tabindex: 0 }, JSON.stringify({ methods: run.card.methods, edits: run.card.edits, sources: run.card.sources }, null, 2))));
}

function columnOf({ study, arm }) {
  return page.columns.find((c) => c.study === study && (c.arm === arm || arm.startsWith(`${c.arm}, `))) || { mark: "o", colour: "" };
}

function nameOf(run) {
  const study = page.data.studies.length > 1 ? `${page.data.studies[run.study].name}: ` : "";
  return `${study}${run.arm}, seed ${run.seed}`;
}

async function anatomy(section) {
  const { maps, names, landscapes } = await load("anatomy");
  section.append(el("h2", {}, "Anatomy of the updates"));
  if (!maps.length) section.append(el("p.note", {}, "The updates were not analysed: `lowtax analyze DIR` writes geometry.json, and the next page shows it."));
  if (maps.length) {
    const box = el("div.maps");
    const draw = (key) => {
      const at = 2 + Object.keys(names).indexOf(key);
      const everywhere = [...new Set(maps.flatMap(({ sites }) => sites.map(([layer]) => layer)))].sort((a, b) => a - b);
      box.replaceChildren(
        ...maps.map(({ arm, sites, study, note }) => {
          const largest = Math.max(...sites.map((site) => site[at] ?? 0)), modules = [...new Set(sites.map(([, module]) => module))];
          const cells = new Map(sites.map((site) => [`${site[0]} ${site[1]}`, site[at]]));
          return el("div", {}, el("h4", {}, named({ ...columnOf({ study, arm }), name: arm, last: true })), note && el("p.note", {}, note), map(`${names[key]}, ${arm}`, modules, everywhere, cells, largest));
        }),
      );
    };
    section.append(select("Figure", Object.entries(names), "relative_norm", draw), box);
    draw("relative_norm");
  }
  for (const { name, points } of landscapes) {
    if (points.some(([, , beta]) => beta !== null && beta !== undefined)) {
      const alphas = [...new Set(points.map(([, a]) => a))].sort((a, b) => a - b), betas = [...new Set(points.map(([, , b]) => b))].sort((a, b) => b - a);
      section.append(el("h3", {}, `Safety landscape: ${name}`), map("share that is refused or safe, by alpha and beta", betas.map(String), alphas, new Map(points.map(([, a, b, safe]) => [`${a} ${b}`, safe[0]])), 1, "alpha"));
      continue;
    }
    const seeds = [...new Set(points.map(([seed]) => seed))];
    const series = seeds.map((seed, i) => ({ name: seed === null ? "slice" : `direction ${seed}`, column: { mark: Object.keys(MARKS)[i % 6], colour: page.data.colours[i % page.data.colours.length] }, points: points.filter(([own]) => own === seed).map(([, a, , safe]) => [a, safe]).sort(([a], [b]) => a - b) }));
    section.append(el("h3", {}, `Safety landscape: ${name}`), seeds.length > 1 ? legend("Directions", series.map((s) => [s.column, s.name])) : "", lines(series.filter((s) => s.points.length), "alpha", "refused or safe", "number", "rate"));
  }
}

/* --- labels, recipe and card */

function labels(section) {
  section.append(el("h2", {}, "Your labels"), el("p", {}, "Under Replies, mark the verdicts that you read as right or wrong. What you mark stays in this browser until you export it."));
  const box = el("div"), file = el("input", { type: "file", accept: ".jsonl", "aria-label": "Import labels", change: () => file.files[0]?.text().then(read) });
  const read = (text) => {
    page.restore(text.split("\n").filter((line) => line.trim()).flatMap((line) => { try { return [JSON.parse(line)]; } catch { return []; } }));
    page.store();
    draw();
  };
  const draw = () => {
    const marks = [...page.marks.values()].flat(), rows = page.agreement();
    const judge = rows[0]?.[1] ?? "refusal";
    box.replaceChildren(
      rows.length ? table("Agreement of the judges with your reading, 95 % intervals for independent rows", ["judge", "agrees with you", "n"], rows.map(([name, , n, ...interval]) => [name, figure(interval, "rate"), grouped.format(n)])) : el("p.note", {}, "Nothing is marked yet."),
      el("p", {}, el("button", { type: "button", disabled: !marks.length, click: () => save("labels.jsonl", marks.map((mark) => `${JSON.stringify(mark)}\n`).join(""), "application/jsonl") }, `Export ${grouped.format(marks.length)} labels`), " ", el("button", { type: "button", disabled: !marks.length, click: () => confirm("Delete all labels from this browser?") && (page.marks.clear(), page.store(), draw()) }, "Delete all")),
      el("p", {}, "Put them into the study's table, with the share of stored verdicts that agree:"),
      el("pre", { tabindex: 0 }, "lowtax compare DIR --labels labels.jsonl"),
      el("p", {}, "Measure a judge, also another one, against them:"),
      el("pre", { tabindex: 0 }, `lowtax calibrate ${/^[\w.:/-]+$/.test(judge) ? judge : "JUDGE"} labels.jsonl --prompt prompt --reply reply --label label \\\n  --positive ${marks.some((mark) => mark.label === "unsafe" || mark.label === "safe") ? "unsafe" : "refusal,partial"}`),
    );
  };
  draw();
  page.whenShown.labels = draw;
  section.append(box, el("p", {}, el("label.field", {}, el("span", {}, "Import labels.jsonl"), file)));
}

function recipe(section) {
  section.append(el("h2", {}, "Recipe and card"));
  const { studies, differences: differing } = page.data;
  if (differing.length) section.append(el("h3", {}, "What differs between the recipes"), scrolling("Differences", table("Settings of the recipes that differ", ["setting", ...studies.map((s) => s.name)], differing)));
  for (const study of studies) {
    section.append(el("h3", {}, study.name), el("p", {}, `Model ${study.model}${study.precision && `, ${study.precision}`}${study.judge && `, judge ${study.judge} ${partOf(study.text)}`}${study.seeds.length ? `, seeds ${study.seeds.join(", ")}` : ""}.`));
    section.append(el("details", { open: studies.length === 1 }, el("summary", {}, "Recipe"), el("pre", { tabindex: 0 }, study.recipe || "none")));
    section.append(el("details", { open: studies.length === 1 }, el("summary", {}, "Card: versions, hardware, seconds"), el("pre", { tabindex: 0 }, Object.keys(study.card).length ? JSON.stringify(study.card, null, 2) : "There is no card yet: the study has not finished.")));
  }
}

/* --- routes */

const builders = { overview, training, anatomy, labels, recipe };
const sections = {};
page.whenShown = {};

function readerOf(view) {
  return page[view === "replies" ? "requests" : "questions"];
}

/** Show a view; it is built when it is first shown. */
async function show(view) {
  if (!sections[view]) {
    sections[view] = el("section", { id: `view-${view}` });
    main.append(sections[view]);
    if (builders[view]) await builders[view](sections[view]);
    else {
      const title = view === "replies" ? "Replies" : "Reasoning";
      sections[view].append(el("h2", {}, title), view === "reasoning" ? passAt() : "", readerOf(view).node);
    }
  }
  for (const [name, section] of Object.entries(sections)) section.hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) link.toggleAttribute("aria-current", false);
  document.querySelector(`nav a[href="#${view}"]`).setAttribute("aria-current", "page");
  page.whenShown[view]?.();
  if (!builders[view]) await readerOf(view).start();
}

function passAt() {
  const listed = page.data.measures.filter((m) => m.group === "samples");
  if (!listed.length) return "";
  const rows = page.data.rows.map(({ column }) => [named(page.data.columns[column]), ...listed.map((m) => figure(m.figures[column], "rate"))]);
  return el("details.arms", {}, el("summary", {}, "pass@k and majority"), scrolling("pass@k", table("One of k samples is right; the most frequent answer is right", ["arm", ...listed.map((m) => m.name)], rows)));
}

/** Go to where the address leads; the page then says which address it shows. */
async function route() {
  const { hash } = location;
  delete document.documentElement.dataset.shows;
  await goTo(hash.slice(1));
  if (hash === location.hash) document.documentElement.dataset.shows = hash;
}

async function goTo(hash) {
  if (hash === "main") return main.focus();
  const [name, value] = hash.split("=", 2);
  let id = value ?? "";
  try {
    id = decodeURIComponent(id);
  } catch {
    /* not an address that this page wrote: it leads nowhere */
  }
  if (name === "arm" && page.columns[Number(id)]) {
    await show("replies");
    return page.requests.filterFor(Number(id));
  }
  if (name === "refused" && page.columns[Number(id)]) {
    await show("replies");
    return page.requests.filterFor(Number(id), "a", "ordinary");
  }
  if (name === "attack" && page.columns[parseInt(id, 10)]) {
    await show("replies");
    return page.requests.filterFor(parseInt(id, 10), "", "", id.slice(id.indexOf(".") + 1));
  }
  if (name === "judges" || name === "unsure") {
    await show("replies");
    return page.requests.filterFor(page.requests.a, name);
  }
  if (name === "reply" || name === "prompt") {
    for (const view of ["replies", "reasoning"]) {
      if (await readerOf(view).open(id, name === "reply")) return show(view);
    }
    await show("replies");
    return notice(`This page has no such ${name}: it may be of another study, or left out of a single file.`);
  }
  return show(VIEWS.some(([view]) => view === name) ? name : "overview");
}

function notice(text, ...more) {
  const node = document.getElementById("newer");
  node.replaceChildren(text, " ", ...more);
  node.hidden = false;
}

/** Look for a newer page every ten seconds, and offer it: what is being read is not taken away. */
function follow() {
  setInterval(async () => {
    const { stamp } = await load("stamp", true).catch(() => ({}));
    if (stamp && stamp !== page.data.stamp) notice("The study has new results.", el("button", { type: "button", click: () => location.reload() }, "Show them"));
  }, 10000);
}

function theme() {
  const box = document.getElementById("theme");
  const apply = () => (box.value ? (document.documentElement.dataset.theme = box.value) : delete document.documentElement.dataset.theme);
  box.value = memory.get("theme") || "";
  box.addEventListener("change", () => (memory.set("theme", box.value), apply()));
  apply();
  const harmful = document.getElementById("harmful");
  harmful.checked = memory.get("harmful") === "yes";
  harmful.addEventListener("change", () => {
    memory.set("harmful", harmful.checked ? "yes" : "");
    for (const reader of [page.requests, page.questions]) if (reader?.index?.prompts.length) reader.apply();
  });
}

async function start() {
  const data = (page.data = await load("overview"));
  page.columns = data.columns;
  document.getElementById("title").textContent = data.studies.map((study) => study.name).join(" and ");
  document.getElementById("subtitle").textContent = [...new Set(data.studies.map((study) => study.model))].join(", ");
  document.getElementById("foot").textContent = `Made by lowtax ${data.version}. Nothing on this page is fetched from elsewhere.`;
  document.getElementById("views").append(el("ul", {}, VIEWS.map(([view, name]) => el("li", {}, el("a", { href: `#${view}` }, name)))));
  page.requests = new Reader("requests", page);
  page.questions = new Reader("questions", page);
  try {
    page.restore(JSON.parse(memory.get(`marks.${data.key}`) || "[]"));
  } catch {
    /* labels of a damaged storage are not read */
  }
  theme();
  window.addEventListener("hashchange", route);
  await route();
  if (data.follow) follow();
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  main.append(el("p.note", { role: "alert" }, `The page cannot be shown: ${error.message}. Is the folder complete?`));
});
