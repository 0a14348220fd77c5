/* Prompts with their replies side by side: filters over the index, a list drawn as far as seen, and the texts. */
"use strict";

const NAMES = { r: "refusal", p: "partial refusal", c: "compliance", s: "safe", x: "unsafe", u: "unfinished", n: "unparsed", f: "failed", y: "right", w: "wrong", "-": "no result" };
const SHORT = { r: "R", p: "P", c: "C", s: "S", x: "X", u: "…", n: "?", f: "!", y: "✓", w: "✗", "-": "·" };
const FLAGS = { f: "failed", l: "repeats itself", u: "its thought has no end", c: "cut at the limit of tokens" };
const GOOD = "rps"; // refused, or safe
const ROW = 58; // pixels of a row of the list

/** Return the share of a prompt's replies in a column that a letter counts for; null if there is none. */
function share(letters, good) {
  const counted = [...(letters || "")].filter((letter) => !"n-f".includes(letter));
  return counted.length ? counted.filter((letter) => good.includes(letter)).length / counted.length : null;
}

/** Return 1 if no attempt of an attack has a reply that complies, 0 if one has; null without a verdict. */
function withstood(letters, good) {
  return share(letters, good) === null ? null : Number(![...letters].some((letter) => "cx".includes(letter)));
}

/** Return the letter that stands for several replies: the most frequent one, of those on the side that the filters count. */
function usual(letters, good) {
  const refused = share(letters, good);
  const side = refused === null ? [...letters] : [...letters].filter((letter) => !"n-f".includes(letter) && good.includes(letter) === refused >= 0.5);
  const count = (letter) => side.filter((each) => each === letter).length;
  return side.reduce((best, letter) => (count(letter) > count(best) ? letter : best), side[0]);
}

/** The filters of requests and of questions: [key, text, test(a, b, prompt)]; a and b are shares of the two arms. */
const FILTERS = {
  requests: [
    ["", "all prompts", () => true],
    ["a", "A refuses", (a) => a !== null && a >= 0.5],
    ["not-a", "A does not refuse", (a) => a !== null && a < 0.5],
    ["only-a", "only A refuses, B does not", (a, b) => a !== null && b !== null && a >= 0.5 && b < 0.5],
    ["only-b", "only B refuses, A does not", (a, b) => a !== null && b !== null && b >= 0.5 && a < 0.5],
    ["judges", "the judges differ (of the arms shown)", (a, b, p) => p.judgesDiffer()],
    ["unsure", "the judge is unsure, score 0.2 to 0.8 (of the arms shown)", (a, b, p) => p.unsure()],
    ["unfinished", "unfinished, cut or failed (of the arms shown)", (a, b, p) => p.flagged("ucf")],
    ["loops", "repeats itself (of the arms shown)", (a, b, p) => p.flagged("l")],
    ["unparsed", "the judge had no verdict (of the arms shown)", (a, b, p) => p.lettered("n")],
    ["marked", "marked by you", (a, b, p) => p.marked()],
  ],
  questions: [
    ["", "all questions", () => true],
    ["a", "A solves it", (a) => a !== null && a >= 0.5],
    ["not-a", "A does not solve it", (a) => a !== null && a < 0.5],
    ["lost", "lost by A: B solves it, A does not", (a, b) => a !== null && b !== null && b >= 0.5 && a < 0.5],
    ["won", "won by A: A solves it, B does not", (a, b) => a !== null && b !== null && a >= 0.5 && b < 0.5],
    ["none", "no arm shown solves it", (a, b, p) => p.columns().every((c) => !(share(p.letters(c), "y") >= 0.5))],
    ["unfinished", "unfinished, cut or failed (of the arms shown)", (a, b, p) => p.flagged("ucf")],
    ["loops", "repeats itself (of the arms shown)", (a, b, p) => p.flagged("l")],
    ["no-answer", "finished without an answer (of the arms shown)", (a, b, p) => p.lettered("n")],
  ],
};

/** A view of all requests, or of all questions. `page` has columns, settings and marks. */
class Reader {
  constructor(which, page) {
    Object.assign(this, { which, page, good: which === "requests" ? GOOD : "y", listed: [], at: -1, sample: new Map(), revealed: new Set() });
    const last = page.columns.flatMap((column, i) => (column.last ? [i] : []));
    const base = last.find((i) => page.columns[i].base);
    this.filter = { set: "", category: "", attack: "", judge: 0, condition: "", text: "", deep: false };
    this.b = base ?? last[0] ?? 0;
    this.a = last.find((i) => i !== this.b) ?? this.b;
    this.shown = new Set(last.slice(0, 6).concat(this.a, this.b));
    this.node = el("div.reader");
  }

  /** Load the index and draw the view; once. */
  start() {
    this.started ??= load(this.which).then((index) => {
      this.index = index;
      const { judge, text } = this.page.data.studies[0];
      this.filter.judge = Math.max(0, index.judges.findIndex(([name, on]) => name === judge && on === text));
      this.split = { letters: index.letters.map(() => []), flags: [] };
      if (index.prompts.length) this.draw();
      else this.node.append(el("p.note", {}, this.which === "requests" ? "No replies are stored in this study." : "No answers to tasks are stored in this study."));
    });
    return this.started;
  }

  draw() {
    this.count = el("p.count", { role: "status" });
    this.order = el("p.order");
    this.rows = el("div.rows", { role: "presentation" });
    this.list = el("div.list", { role: "listbox", tabindex: 0, "aria-label": "Prompts", scroll: () => this.paint(), keydown: (event) => this.press(event) }, this.rows);
    this.detail = el("div.detail", { tabindex: -1, keydown: (event) => this.press(event) });
    this.bar = el("div.filters");
    const letters = this.which === "requests" ? "rpcsxunf" : "ywuf";
    const key = el("details", {}, el("summary", {}, "Letters"), el("ul.letters", {}, [...letters].map((letter) => el("li", {}, chip(letter), ` ${NAMES[letter]}`))));
    this.node.append(this.bar, el("div.panes", {}, el("div.pane", {}, this.count, this.order, this.list, key), this.detail));
    this.drawFilters();
    this.apply();
    new ResizeObserver(() => this.paint()).observe(this.list);
  }

  drawFilters() {
    const { index, page, filter } = this;
    const change = (key, convert = (v) => v) => (value) => {
      filter[key] = convert(value);
      this.apply();
    };
    const arms = page.columns.map((column, i) => [i, labelOf(column)]).filter(([i]) => this.has(i));
    const choose = (key) => (value) => {
      this[key] = Number(value);
      this.shown.add(this[key]);
      redraw(this.bar, () => this.drawFilters());
      this.apply();
    };
    const all = (name, values) => [["", `all ${name}`], ...values.map((value, i) => [i, value || "none"])];
    const search = el("input", { type: "search", value: filter.text, "aria-label": "Search the texts of prompts", placeholder: "words in the prompt", input: () => this.search(search.value) });
    const boxes = arms.map(([i, name]) =>
      el("label", {}, el("input", { type: "checkbox", checked: this.shown.has(i), disabled: i === this.a || i === this.b, change: (event) => this.show(i, event.target.checked) }), badge(page.columns[i]), name),
    );
    const more = [
      index.sets.length > 1 && select(this.which === "requests" ? "Set" : "Task", all("of them", index.sets), filter.set, change("set")),
      index.categories.length > 1 && select("Category", all("of them", index.categories), filter.category, change("category")),
      index.attacks.length > 1 && select("Attack", [["", "all, and plain requests"], ...index.attacks.map((name, i) => [i, name || "none: plain requests"])], filter.attack, change("attack")),
      index.judges.length > 1 && this.which === "requests" && select("Judge", index.judges.map(([name, on], i) => [i, `${name}, ${partOf(on)}`]), filter.judge, change("judge", Number)),
    ];
    this.bar.replaceChildren(
      select("Show", FILTERS[this.which].map(([key, text]) => [key, text]), filter.condition, change("condition")),
      select("A", arms, this.a, choose("a")),
      select("B", arms, this.b, choose("b")),
      ...more.filter(Boolean),
      el("label.field", {}, el("span", {}, "Search"), search),
      el("label.check", {}, el("input", { type: "checkbox", checked: filter.deep, change: (event) => this.searchDeep(event.target.checked) }), "in replies too"),
      el("details.arms", {}, el("summary", {}, `Arms shown (${this.shown.size})`), el("div.boxes", {}, boxes)),
    );
  }

  has(column) {
    this.present ??= this.index.flags.reduce((present, text) => text.split("|").reduce((all, part, i) => (part && all.add(i), all), present), new Set());
    return this.present.has(column);
  }

  show(column, on) {
    this.shown[on ? "add" : "delete"](column);
    this.bar.querySelector(".arms summary").textContent = `Arms shown (${this.shown.size})`;
    this.apply();
  }

  search(text) {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => {
      this.filter.text = text;
      this.filter.deep ? this.searchDeep(true) : this.apply();
    }, 200);
  }

  /** Search the replies, chunk by chunk; a new search ends an earlier one. */
  async searchDeep(on) {
    this.filter.deep = on;
    const words = this.filter.text.toLowerCase(), run = (this.run = {});
    this.matching = null;
    if (!on || !words) return this.apply();
    const matching = new Set(), { index } = this, written = JSON.stringify(words).slice(1, -1);
    for (let i = 0; i < index.prompts.length; i++) {
      const line = await lineOf(this.which, index, i);
      if (run !== this.run) return;
      if (line.toLowerCase().includes(written) && JSON.parse(line).replies.some((reply) => wordsOf(reply).toLowerCase().includes(words))) matching.add(i);
      if (i % 200 === 0) this.count.textContent = `Searching the replies: ${grouped.format(i)} of ${grouped.format(index.prompts.length)} prompts`;
    }
    this.matching = matching;
    this.apply();
  }

  /** Return the letters of a prompt's replies in a column, of a judge. */
  letters(prompt, column, judge = this.filter.judge) {
    if (this.which === "questions") judge = this.index.judges.findIndex(([name]) => name === this.index.prompts[prompt][1]);
    if (judge < 0 || !this.index.letters[judge]) return "";
    return (this.split.letters[judge][prompt] ??= this.index.letters[judge][prompt].split("|"))[column] || "";
  }

  flags(prompt, column) {
    return (this.split.flags[prompt] ??= this.index.flags[prompt].split("|"))[column] || "";
  }

  /** Return a letter for each reply of a prompt in a column: a tilde where the judge is unsure. */
  unsure(prompt, column) {
    return (this.index.unsure[this.filter.judge]?.[prompt] ?? "").split("|")[column] ?? "";
  }

  /** Return what the filters test of a prompt. */
  tested(prompt) {
    const columns = () => [...this.shown];
    return {
      columns,
      letters: (column) => this.letters(prompt, column),
      lettered: (letter) => columns().some((c) => this.letters(prompt, c).includes(letter)),
      flagged: (flags) => columns().some((c) => [...this.flags(prompt, c)].some((flag) => flags.includes(flag))),
      judgesDiffer: () =>
        columns().some((c) => {
          const judged = this.index.judges.map(([, on], j) => [on, this.letters(prompt, c, j)]);
          return judged.some(([on, one]) => judged.some(([of, two]) => of === on && [...one].some((letter, k) => opposed(letter, two[k]))));
        }),
      unsure: () => columns().some((c) => this.unsure(prompt, c).includes("~")),
      marked: () => this.index.ids[prompt].split(" ").some((id) => this.page.marks.has(id)),
    };
  }

  apply() {
    const { index, filter, a, b } = this, words = filter.text.toLowerCase();
    const test = FILTERS[this.which].find(([key]) => key === filter.condition)[2];
    this.listed = [];
    index.prompts.forEach(([, , set, category, text, , attack], i) => {
      if (filter.set !== "" && set !== Number(filter.set)) return;
      if (filter.category !== "" && category !== Number(filter.category)) return;
      if (filter.attack !== "" && attack !== Number(filter.attack)) return;
      if (words && !(text.toLowerCase().includes(words) || (filter.deep && this.matching?.has(i)))) return;
      const held = attack ? withstood : share;
      if (!test(held(this.letters(i, a), this.good), held(this.letters(i, b), this.good), this.tested(i))) return;
      this.listed.push(i);
    });
    this.rows.style.setProperty("height", `${this.listed.length * ROW}px`);
    const cut = index.replies < index.all_replies ? ` The page has ${grouped.format(index.replies)} of ${grouped.format(index.all_replies)} replies.` : "";
    this.count.textContent = `${grouped.format(this.listed.length)} of ${grouped.format(index.prompts.length)} ${this.which === "requests" ? "prompts" : "questions"}.${cut}`;
    this.at = Math.max(0, this.listed.indexOf(this.number));
    this.list.scrollTop = Math.max(0, this.at * ROW - this.list.clientHeight / 2);
    this.paint();
    if (this.listed.length) this.read(this.listed[this.at]);
    else this.detail.replaceChildren(el("p.note", {}, "No prompt fits these filters."));
  }

  /** Draw the rows that are in sight. */
  paint() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - 3);
    const last = Math.min(this.listed.length, first + Math.ceil(this.list.clientHeight / ROW) + 8);
    const columns = this.shownColumns();
    this.order.replaceChildren("Letters of ", ...columns.flatMap((c, i) => [i ? ", " : "", el("span", {}, badge(this.page.columns[c]), ` ${labelOf(this.page.columns[c])}`)]));
    this.rows.replaceChildren(...this.listed.slice(first, last).map((prompt, i) => this.row(prompt, first + i, columns)));
    this.list.setAttribute("aria-activedescendant", this.listed.length ? `${this.which}-row-${this.at}` : "");
  }

  row(prompt, place, columns) {
    const [, kind, set, category, text, , attack] = this.index.prompts[prompt];
    const chips = columns.map((c) => {
      const letters = this.letters(prompt, c);
      const letter = this.sample.has(`${prompt} ${c}`) ? letters[this.chosen(prompt, c)] : attack && withstood(letters, this.good) === 0 ? [...letters].find((each) => "cx".includes(each)) : usual(letters, this.good);
      const many = letters.length > 1 ? ` in ${[...letters].filter((each) => each === letter).length} of ${letters.length} replies` : "";
      return letter && chip(letter, kind, { title: `${labelOf(this.page.columns[c])}: ${NAMES[letter]}${many}` });
    });
    const words = this.hidden(prompt) ? el("em", {}, `harmful request, ${this.index.categories[category] || this.index.sets[set]}`) : text;
    const node = el(
      "div.row",
      { role: "option", id: `${this.which}-row-${place}`, "aria-selected": String(place === this.at), "aria-setsize": this.listed.length, "aria-posinset": place + 1, click: () => this.choose(place) },
      el("span.words", {}, attack ? el("strong", {}, `${this.index.attacks[attack]}: `) : "", words),
      el("span.chips", {}, chips),
    );
    node.style.setProperty("top", `${place * ROW}px`);
    return node;
  }

  shownColumns() {
    const order = [this.a, this.b, ...[...this.shown].sort((x, y) => x - y)];
    return [...new Set(order)].filter((c) => this.has(c));
  }

  hidden(prompt) {
    return this.which === "requests" && this.index.prompts[prompt][1] !== "ordinary" && !this.page.showHarmful() && !this.revealed.has(prompt);
  }

  choose(place) {
    if (!this.listed.length) return;
    this.at = Math.max(0, Math.min(this.listed.length - 1, place));
    const top = this.at * ROW, { scrollTop, clientHeight } = this.list;
    if (top < scrollTop) this.list.scrollTop = top;
    if (top + ROW > scrollTop + clientHeight) this.list.scrollTop = top + ROW - clientHeight;
    this.paint();
    this.read(this.listed[this.at]);
  }

  press(event) {
    if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    const move = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
    const inList = event.currentTarget === this.list;
    if (move && (inList || "jk".includes(event.key))) this.choose(this.at + move);
    else if (inList && event.key === "Enter") this.detail.focus();
    else if (event.key === "s") this.reveal();
    else return;
    event.preventDefault();
  }

  reveal() {
    this.revealed.add(this.number);
    this.paint();
    this.read(this.number);
  }

  /** Open a prompt by its id, or that of one of its replies; return false if the page does not have it. */
  async open(id, isReply = false) {
    await this.start();
    const { index } = this;
    const number = isReply ? index.ids.findIndex((ids) => ids.split(" ").includes(id)) : index.prompts.findIndex(([own]) => own === id);
    if (number < 0) return false;
    Object.assign(this.filter, { set: "", category: "", attack: "", condition: "", text: "", deep: false });
    this.number = number;
    this.drawFilters();
    this.apply();
    if (isReply) {
      const entry = await texts(this.which, index, number);
      const { column } = entry.replies.find((reply) => reply.id === id);
      const own = entry.replies.filter((reply) => reply.column === column);
      this.sample.set(`${number} ${column}`, own.findIndex((reply) => reply.id === id));
      this.shown.add(column);
      this.drawFilters();
      await this.read(number);
      this.detail.querySelector(`[data-reply="${CSS.escape(id)}"]`)?.scrollIntoView({ block: "nearest" });
    }
    return true;
  }

  /** Show the prompts of a condition for an arm, such as the ordinary requests that it refuses. */
  async filterFor(column, condition = "", kind = "", attack = "") {
    await this.start();
    if (!this.index.prompts.length) return;
    this.a = column;
    this.shown.add(column);
    const own = this.page.columns.findIndex((c) => c.base && c.study === this.page.columns[column].study);
    if (own >= 0 && own !== column) this.b = own;
    const set = kind ? this.index.prompts.find(([, of]) => of === kind)?.[2] ?? "" : "";
    Object.assign(this.filter, { set: set === "" ? "" : String(set), category: "", attack: attack && this.index.attacks.includes(attack) ? String(this.index.attacks.indexOf(attack)) : "", condition, text: "", deep: false });
    this.drawFilters();
    this.apply();
  }

  /** Return the number of the reply that is shown: what people chose, else one that the filter is about, else the first. */
  chosen(prompt, column) {
    const unsure = this.filter.condition === "unsure" ? Math.max(0, this.unsure(prompt, column).indexOf("~")) : 0;
    return this.sample.get(`${prompt} ${column}`) ?? unsure;
  }

  /** Show the texts of a prompt. */
  async read(number) {
    this.number = number;
    let entry;
    try {
      entry = await texts(this.which, this.index, number);
    } catch (error) {
      return this.detail.replaceChildren(el("p.note", { role: "alert" }, `These texts cannot be shown: ${error.message}.`));
    }
    if (number !== this.number) return;
    const [id, kind, set, category, , , attack] = this.index.prompts[number];
    const hidden = this.hidden(number);
    const about = [this.index.sets[set], this.index.categories[category], attack && `under the attack ${this.index.attacks[attack]}`].filter(Boolean).join(", ");
    const link = el("a", { href: `#prompt=${encodeURIComponent(id)}` }, "link to this prompt");
    const button = el("button", { type: "button", click: () => copy(this.markdown(entry, about), button) }, "Copy as Markdown");
    const mark = el("label.check", {}, el("input", { type: "checkbox", checked: this.diff, change: (event) => ((this.diff = event.target.checked), this.read(number)) }), "Mark what differs between A and B");
    const prompt = hidden
      ? el("p.hidden", {}, el("button", { type: "button", click: () => this.reveal() }, "Show this harmful request and its replies"), el("span.key", {}, " (key s)"))
      : el("div.text.prompt", {}, entry.goal && entry.goal !== entry.prompt ? [entry.goal, el("details", {}, el("summary", {}, "as it was sent"), el("div.text", {}, entry.prompt))] : entry.prompt);
    const cards = this.shownColumns().map((column) => this.card(entry, column, number, hidden));
    const draw = (...parts) => redraw(this.detail, () => this.detail.replaceChildren(...parts));
    draw(
      el("div.about", {}, el("h3", {}, `${this.which === "requests" ? (kind === "ordinary" ? "Ordinary request" : "Harmful request") : "Question"} ${this.at + 1}`), el("span", {}, about), link, button, mark),
      prompt,
      el("div.cards", {}, cards),
    );
  }

  card(entry, column, number, hidden) {
    const own = entry.replies.filter((reply) => reply.column === column);
    const at = Math.min(this.chosen(number, column), own.length - 1), reply = own[at];
    const about = this.page.columns[column];
    const which = column === this.a ? " (A)" : column === this.b ? " (B)" : "";
    const head = el("h4", {}, badge(about), `${labelOf(about)}${which}`);
    const unusable = entry.unusable?.[column] && el("p.facts", {}, `Steps of the attacker without a usable prompt: ${entry.unusable[column]}.`);
    if (!reply) return el("article.card", { colour: about.colour, "aria-label": labelOf(about) }, head, el("p.note", {}, "no reply"), unusable);
    const turn = (by) => () => {
      this.sample.set(`${number} ${column}`, (at + by + own.length) % own.length);
      this.read(number);
      this.paint();
    };
    const letters = [...this.letters(number, column)].map((letter) => SHORT[letter]).join(" ");
    const step = (by, name, sign) => el("button", { type: "button", "aria-label": `${name} reply of ${labelOf(about)}`, click: turn(by) }, sign);
    const pager = own.length > 1 && el("p.pager", {}, step(-1, "previous", "‹"), " ", step(1, "next", "›"), ` reply ${at + 1} of ${own.length}${letters && ` (${letters})`}: seed ${reply.seed ?? "–"}, sample ${reply.sample}`);
    const flag = this.flags(number, column)[at];
    const facts = [`${grouped.format(reply.tokens)} tokens`, FLAGS[flag], reply.error].filter(Boolean).join(", ");
    const other = this.diff && column === this.b ? entry.replies.filter((each) => each.column === this.a)[this.chosen(number, this.a)] : null;
    const answer = reply.answer || "";
    return el(
      "article.card",
      { colour: about.colour, "data-reply": reply.id, "aria-label": labelOf(about) },
      head,
      pager,
      unusable,
      reply.attacked && sentTo(reply.attacked, hidden),
      this.results(reply, entry, hidden, this.index.prompts[number][1]),
      hidden
        ? el("p.hidden", {}, "hidden")
        : [
            reply.thought && el("details.thought", {}, el("summary", {}, `thought, ${grouped.format(reply.thought.length)} characters`), el("div.text", {}, reply.thought)),
            el("div.text", {}, other ? differences(other.answer || "", answer) : answer || el("em", {}, "no answer")),
          ],
      el("p.facts", {}, facts, " · ", el("a", { href: `#reply=${encodeURIComponent(reply.id)}` }, "link to this reply")),
    );
  }

  /** Return the result of the chosen judge, and the others folded. */
  results(reply, entry, hidden, kind) {
    const first = this.which === "questions" ? () => true : (result) => result.judge === this.filter.judge;
    const line = (result) => this.result(result, reply, entry, hidden, kind);
    const others = reply.results.filter((result) => !first(result));
    return [
      reply.results.filter(first).map(line),
      others.length > 0 && el("details", {}, el("summary", {}, others.length === 1 ? "another verdict" : `${others.length} more verdicts`), others.map(line)),
    ];
  }

  /** Return a line for a verdict or a grade; a verdict with buttons to mark it. */
  result(result, reply, entry, hidden, kind) {
    const [name, on] = this.index.judges[result.judge];
    if (this.which === "questions") {
      const answer = result.extracted === null ? "no answer" : `answer ${result.extracted}`;
      const checked = result.checked === null ? "" : `, a model ${result.checked ? "accepts" : "rejects"} it`;
      return el("p.verdict", {}, chip(result.label), ` ${NAMES[result.label]}: ${answer}, gold ${result.gold}, rule: ${result.rule || "–"}${checked}`);
    }
    const letter = letterOf(result.label);
    const score = result.score === undefined ? "" : `, score ${result.score.toFixed(2)}`;
    const detail = [result.category, result.detail, result.error].filter(Boolean).join(": ");
    return el(
      "div.verdict",
      {},
      el("p", {}, chip(letter, kind), ` ${NAMES[letter]}${score} `, el("span.judge", {}, `by ${name}, ${partOf(on)}`)),
      detail && !hidden && el("details", {}, el("summary", {}, "the judge wrote"), el("div.text", {}, detail)),
      !hidden && "rpcsx".includes(letter) && this.page.marker({ reply, entry, result, name, on }),
    );
  }

  markdown(entry, about) {
    const quoted = (text) => text.split("\n").map((line) => `    ${line}`).join("\n");
    const cards = this.shownColumns().map((column) => {
      const own = entry.replies.filter((reply) => reply.column === column);
      const reply = own[Math.min(this.chosen(this.number, column), own.length - 1)];
      if (!reply) return "";
      const results = reply.results.map((result) => `${this.index.judges[result.judge][0]}: ${NAMES[letterOf(result.label)] || result.label}`).join(", ");
      const sent = (reply.attacked?.sent ?? []).map(([role, text]) => `Sent as ${role}:\n\n${quoted(text)}\n\n`).join("") + (reply.attacked?.begun ? `Begun with this ${reply.attacked.part}:\n\n${quoted(reply.attacked.begun)}\n\n` : "");
      return `### ${labelOf(this.page.columns[column])} (${results})\n\n${sent}${reply.thought ? `Thought:\n\n${quoted(reply.thought)}\n\n` : ""}Answer:\n\n${quoted(reply.answer || "")}\n`;
    });
    return `## Prompt ${entry.id} (${about})\n\n${quoted(entry.goal || entry.prompt)}\n\n${cards.filter(Boolean).join("\n")}`;
  }
}

/** Return the letter of a result, in green where it is as people wish: refusals of harmful requests, right answers. */
function chip(letter, kind = "", more = {}) {
  const wished = kind === "ordinary" ? "c" : "rpsy", other = kind === "ordinary" ? "rp" : "cxw";
  const tone = wished.includes(letter) ? "good" : other.includes(letter) ? "bad" : "none";
  return el(`span.chip.${tone}`, more, SHORT[letter]);
}

function letterOf(label) {
  return { refusal: "r", partial: "p", compliance: "c", safe: "s", unsafe: "x", unfinished: "u", unparsed: "n", failed: "f" }[label] || label;
}

/** Return the part of a reply that a judge read, in words. */
function partOf(on) {
  return { answer: "on the answer", thought: "on the thought", both: "on the whole reply" }[on] || "";
}

/** Return true if one verdict says refused or safe, and the other the opposite. */
function opposed(one, two) {
  return (GOOD.includes(one) && "cx".includes(two)) || (GOOD.includes(two) && "cx".includes(one));
}

/** Return the name of a column: its arm, and the step of a checkpoint that is not the last. */
function labelOf(column) {
  return column.last || column.base ? column.name : `${column.name}, step ${grouped.format(column.step)}`;
}

const LONGEST_DIFF = 1500; // words

/** Return the second text with the words that the first one lacks marked, and those that only the first one has. */
function differences(one, two) {
  const [a, b] = [one, two].map((text) => text.match(/\s*\S+\s*$|\s*\S+/g) || []);
  if (a.length > LONGEST_DIFF || b.length > LONGEST_DIFF) return [el("p.note", {}, "The texts are too long to mark their differences."), two];
  const same = (i, j) => a[i].trim() === b[j].trim();
  const width = b.length + 1, longest = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      longest[i * width + j] = same(i, j) ? longest[(i + 1) * width + j + 1] + 1 : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const pieces = [];
  let i = 0, j = 0, lost = "", gained = "";
  const flush = () => {
    if (lost) pieces.push(el("del", {}, lost));
    if (gained) pieces.push(el("ins", {}, gained));
    lost = gained = "";
  };
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && same(i, j)) {
      flush();
      pieces.push(b[j]);
      i++;
      j++;
    } else if (j >= b.length || (i < a.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) lost += a[i++];
    else gained += b[j++];
  }
  flush();
  return pieces;
}
