/* Data of the page, and elements for it. Everything that people or models wrote becomes a text node, never markup. */
"use strict";

const parts = {};
const waiting = {};

/** Take a part of the data: each script file in data/ calls this with its name and its text. */
function lowtaxData(name, text) {
  parts[name] = readPart(name, text);
  waiting[name]?.(parts[name]);
  delete waiting[name]; // else it would keep the chunk in memory
}

/**
 * Return a part: JSON, or of a chunk (`requests-3`) the number of its first prompt, and a line of JSON for each.
 * The script of a chunk hands over a function with the lines in a comment, which is read and never called.
 */
function readPart(name, part) {
  if (!/-\d+$/.test(name)) return JSON.parse(part);
  const text = typeof part === "function" ? String(part).slice("() => {/*".length, -"*/}".length) : part;
  const [first, ...lines] = text.split("\n");
  return { first: Number(first), lines };
}

/** The one kind of address that a script of this page may have (Trusted Types): a file of its own data folder. */
const addresses = window.trustedTypes
  ? trustedTypes.createPolicy("lowtax", {
      createScriptURL: (url) => {
        if (!/^data\/[a-z]+(-\d+)?\.js(\?\d+)?$/.test(url)) throw new TypeError("not a file of this page");
        return url;
      },
    })
  : { createScriptURL: (url) => url };

/** Return a promise of a part: from a block in this file, or from its script file. `fresh` reads the file again. */
function load(name, fresh = false) {
  if (name in parts && !fresh) return Promise.resolve(parts[name]);
  const block = document.getElementById(`data-${name}`);
  if (block) {
    parts[name] = readPart(name, block.textContent);
    return Promise.resolve(parts[name]);
  }
  return new Promise((resolve, reject) => {
    waiting[name] = resolve;
    const script = document.createElement("script");
    script.src = addresses.createScriptURL(`data/${name}.js${fresh ? `?${Date.now()}` : ""}`);
    script.addEventListener("error", () => {
      script.remove();
      reject(new Error(`data/${name}.js is missing: the folder of the page is not complete`));
    });
    script.addEventListener("load", () => script.remove());
    document.head.append(script);
  });
}

/* Chunks of texts: the last few stay in memory. */
const RECENT = 6;
const recent = [];

/** Return a promise of the line of a prompt. `which` is requests or questions. */
async function lineOf(which, index, number) {
  const name = `${which}-${index.prompts[number][5]}`;
  const chunk = await load(name);
  if (recent.includes(name)) recent.splice(recent.indexOf(name), 1);
  recent.push(name);
  while (recent.length > RECENT) delete parts[recent.shift()];
  return chunk.lines[number - chunk.first];
}

/** Return a promise of the texts of a prompt; it fails if the page on the disk is a newer one than this. */
async function texts(which, index, number) {
  const line = await lineOf(which, index, number);
  const entry = line && JSON.parse(line);
  if (entry?.id !== index.prompts[number][0]) throw new Error("the page was written again since it was opened: load it again");
  return entry;
}

/** Make an element: its tag with classes (`p.note`), its attributes, and its children; texts become text nodes. */
function el(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) set(node, key, value);
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const PROPERTIES = ["checked", "disabled", "hidden", "open", "selected", "value", "indeterminate"];

function set(node, key, value) {
  if (typeof value === "function") node.addEventListener(key, value);
  else if (key === "colour") value && node.style.setProperty("--arm", value);
  else if (PROPERTIES.includes(key)) node[key] = value;
  else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
}

/** Make an element of SVG. */
function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) set(node, key, value);
  node.append(...children.flat(3).filter(Boolean));
  return node;
}

/** Remember a setting, where the browser lets a file do that. */
const memory = {
  get(key) {
    try {
      return localStorage.getItem(`lowtax.${key}`);
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(`lowtax.${key}`, value);
    } catch {
      /* a private window, or a browser that gives files no storage: the setting holds until the page is closed */
    }
  },
};

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** Write a number in a unit of the overview: rate, count, seconds, tokens or number. */
function shown(value, unit, signed = false) {
  if (value === null || value === undefined) return "–";
  const sign = signed && value > 0 ? "+" : "";
  if (unit === "rate") return sign + value.toFixed(2);
  if (unit === "count" || unit === "tokens") return grouped.format(value);
  if (unit === "seconds") return `${grouped.format(value)} s`;
  return sign + (Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(1) : String(Number(value.toPrecision(3))));
}

/** Write a figure: its value, its interval and n. */
function figure(values, unit, signed = false) {
  if (!values) return "–";
  const [value, low, high] = values;
  if (low === undefined || low === null) return shown(value, unit, signed);
  return `${shown(value, unit, signed)} [${shown(low, unit, signed)}, ${shown(high, unit, signed)}]`;
}

/** Return Wilson's 95 % interval of k of n. */
function wilson(k, n) {
  const z = 1.959964, p = k / n, d = 1 + (z * z) / n;
  const middle = (p + (z * z) / (2 * n)) / d;
  const half = (z / d) * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

/** Let people save a text as a file. */
function save(name, text, type) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** Copy a text, also where a page that is a file has no clipboard; `button` says that it is done. */
async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), 1500);
}

/** Make a table: a caption, a head, and rows of texts or elements. The first cell of a row is its head. */
function table(caption, head, rows, left = 1) {
  const cell = (tag, content, i, more) => el(i < left ? `${tag}.left` : tag, more, content);
  return el(
    "table",
    {},
    el("caption", {}, el("span", {}, caption)),
    el("thead", {}, el("tr", {}, head.map((each, i) => cell("th", each, i, { scope: "col" })))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((each, i) => (i ? cell("td", each, i, {}) : cell("th", each, 0, { scope: "row" })))))),
  );
}

/** Draw again inside of a box, and return the focus to the control of the same name, which the drawing replaced. */
function redraw(box, draw) {
  const name = (node) => `${node.tagName} ${node.dataset.sort || node.getAttribute("aria-label") || node.textContent}`;
  const active = box.contains(document.activeElement) && document.activeElement !== box ? name(document.activeElement) : "";
  draw();
  if (!active || box.contains(document.activeElement)) return;
  const same = [...box.querySelectorAll("a, button, input, select, summary")].find((node) => name(node) === active);
  (same ?? box).focus({ preventScroll: true });
}

/** Put something wide into a box that scrolls, by keyboard too. */
function scrolling(name, ...children) {
  return el("div.scrolling", { role: "region", "aria-label": name, tabindex: 0 }, children);
}

/** Make a select from [value, text] pairs. */
function select(label, options, value, change) {
  const box = el("select", { "aria-label": label, change: () => change(box.value) }, options.map(([id, text]) => el("option", { value: id }, text)));
  box.value = value;
  return el("label.field", {}, el("span", {}, label), box);
}
