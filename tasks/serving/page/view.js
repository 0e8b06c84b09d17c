// What is shown. Text of a corpus becomes text nodes, never markup.
const TONES = 4;
const SMALLEST_TINTED = 1 / 8; // of the largest share of a passage
const SHOWN_CHARACTERS = 600;

const UNREADABLE = /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]/gu;
export const visible = (text) => text.replace(UNREADABLE, "\ufffd");
export const decimal = (value) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(3);

// An element with properties, and with children that are elements or text.
export const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children.map((child) => (typeof child === "string" ? visible(child) : child)));
  return element;
};

const drawing = (name, attributes, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};

// The tone of each character: tokens are counted in characters of Unicode, not in units of UTF-16.
const tones = (tokens, length) => {
  const largest = tokens.reduce((most, token) => Math.max(most, Math.abs(token.share)), 0);
  const shares = new Float64Array(length);
  for (const { start, stop, share } of tokens) for (let i = start; i < Math.min(stop, length); i++) shares[i] += share;
  return Array.from(shares, (share) => {
    const size = Math.abs(share) / largest;
    return size > SMALLEST_TINTED ? Math.sign(share) * Math.min(TONES, Math.floor(size * TONES) + 1) : 0;
  });
};

export const tinted = (text, tokens, limit = Infinity) => {
  const characters = Array.from(text).slice(0, limit);
  const tone = tones(tokens, characters.length);
  const pieces = [];
  for (let start = 0, end; start < characters.length; start = end) {
    const own = (i) => (/\s/.test(characters[i]) ? 0 : tone[i]);
    for (end = start + 1; end < characters.length && own(end) === own(start); end++);
    const part = characters.slice(start, end).join("");
    const size = own(start);
    pieces.push(size ? make("i", { className: (size > 0 ? "p" : "n") + Math.abs(size) }, part) : visible(part));
  }
  return pieces;
};

// Where a score stands among those of all documents.
const place = (spread, best) => {
  if (!spread || best === undefined) return make("p", { className: "place" });
  const low = Math.min(spread.low, spread.mean), high = Math.max(best, spread.high);
  const x = (value) => (100 * (value - low)) / (high - low || 1);
  const line = (value, name) => drawing("line", { class: name, x1: x(value), x2: x(value), y1: 0, y2: 10 });
  const deviations = spread.deviation ? (best - spread.mean) / spread.deviation : 0;
  const band = { class: "most", x: x(spread.low), width: x(spread.high) - x(spread.low), y: 3, height: 4 };
  return make("div", { className: "place" },
    drawing("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      drawing("rect", band), line(spread.mean, "mean"), line(best, "hit-score")),
    `The best lies ${deviations.toFixed(1)} standard deviations above the mean of ${spread.num_documents.toLocaleString("en")} ` +
    `documents; nine in ten lie between ${decimal(spread.low)} and ${decimal(spread.high)}.`);
};

// Finds some words whole, in whatever case.
const finder = (words) => {
  const escaped = words.replace(/[.*+?^${}()|[\]\\\/]/g, "\\$&");
  return words ? new RegExp(`(?<![\\p{L}\\p{N}])${escaped}(?![\\p{L}\\p{N}])`, "iu") : null;
};

const hit = (found, words, open) => {
  const states = words?.test(found.text);
  const length = Array.from(found.text).length;
  const text = make("p", { className: "text read", dir: "auto" }, ...tinted(found.text, found.tokens, SHOWN_CHARACTERS));
  const source = make("p", { className: "source" },
    make("button", { type: "button", className: "id", dir: "auto", onclick: () => open(found.id) }, found.id));
  if (length > SHOWN_CHARACTERS) {
    const whole = () => { text.replaceChildren(...tinted(found.text, found.tokens)); more.remove(); };
    const more = make("button", { type: "button", className: "more", onclick: whole }, `all ${length.toLocaleString("en")} characters`);
    text.append("…");
    source.append(more);
  }
  const meta = make("p", { className: "meta" },
    make("span", { className: "rank" }, String(found.rank)), make("span", {}, decimal(found.score)));
  if (states) meta.append(make("span", { className: "tag" }, "has the answer in it"));
  return make("li", { className: states ? "hit stated" : "hit" }, meta, text, source);
};

export const column = (answer, method, open) => {
  const of = (list) => list.filter((found) => found.method === method);
  const best = of(answer.proponents), worst = of(answer.opponents);
  const words = finder(answer.completion.trim());
  const list = (found) => make("ol", {}, ...found.map((one) => hit(one, words, open)));
  const section = make("section", { className: "method" },
    make("h3", {}, method), place(answer.settings.scores[method]?.spread, best[0]?.score), list(best));
  if (worst.length) {
    const summary = make("summary", {}, "Opponents ", make("span", {}, "training on them makes the completion less likely"));
    section.append(make("details", { className: "opponents" }, summary, list(worst)));
  }
  return section;
};

export const question = (asked) => {
  const line = make("p", { className: "question", dir: "auto" }, asked.prompt, make("span", { className: "completion" }, asked.completion));
  if (asked.contrast) line.append(" rather than ", make("span", {}, asked.contrast));
  return line;
};

export const documents = (found) => {
  const article = (one, isThis) => {
    const more = Object.entries(one.columns).filter(([, value]) => value).map(([name, value]) => `${name} ${value}`);
    return make("article", { className: isThis ? "this" : "" },
      make("p", { dir: "auto" }, one.text),
      make("p", { className: "source" }, make("bdi", {}, one.id), make("bdi", {}, [`${one.file} row ${one.row}`, ...more].join(", "))));
  };
  return [...found.before.map((one) => article(one)), article(found.document, true), ...found.after.map((one) => article(one))];
};
