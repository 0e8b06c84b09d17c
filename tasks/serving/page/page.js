// The page: its form, its address and its history. A question is in the fragment of the address, which no server sees.
import { events, get, post, Refused, useToken } from "./api.js";
import * as files from "./export.js";
import { column, decimal, documents, make, question, visible } from "./view.js";

const $ = (id) => document.getElementById(id);
const HISTORY = "trackstar-history", HISTORY_LENGTH = 50;
const LETTER = /[\p{Script=Latin}\p{Script=Cyrillic}\p{Script=Greek}\d]/u;

let indexes = [];
let running = null; // an AbortController
let said = null; // what the model says, and after what
let chosen = null; // tokens [first, last] of it

// ---- the question in the form, and in the address

const formState = () => ({
  index: $("index").value,
  prompt: $("prompt").value,
  completion: $("completion").value,
  contrast: $("contrast").value,
  methods: [...document.querySelectorAll("#methods input:checked")].map((box) => box.value),
  top_k: Number($("top-k").value),
});

const fragment = (state) => {
  const entries = { ...state, methods: state.methods.join(",") };
  return "#" + new URLSearchParams(Object.entries(entries).filter(([, value]) => value !== "")).toString();
};

const stateOf = (hash) => {
  const given = new URLSearchParams(hash.slice(1));
  const word = (name) => given.get(name) ?? "";
  return { ...Object.fromEntries(["index", "prompt", "completion", "contrast"].map((name) => [name, word(name)])),
    methods: word("methods").split(",").filter(Boolean), top_k: Number(word("top_k")) || 10 };
};

const showMethods = (wanted) => {
  const known = indexes.find((index) => index.name === $("index").value)?.methods ?? [];
  const isOn = (method) => wanted.includes(method);
  $("methods").replaceChildren($("methods").firstElementChild, ...known.map((method) =>
    make("label", {}, make("input", { type: "checkbox", value: method, checked: isOn(method) }), ` ${method}`)));
};

const fill = (state) => {
  if (indexes.some((index) => index.name === state.index)) $("index").value = state.index;
  for (const name of ["prompt", "completion", "contrast"]) $(name).value = state[name];
  showMethods(state.methods.length ? state.methods : ["trackstar", "bm25"]);
  if (![...$("top-k").options].some((option) => Number(option.value) === state.top_k)) $("top-k").add(new Option(state.top_k));
  $("top-k").value = String(state.top_k);
};

// ---- asking

const show = (id, isShown) => { $(id).hidden = !isShown; };

const busy = (isBusy) => {
  show("status", isBusy);
  show("cancel", isBusy);
  document.body.toggleAttribute("data-busy", isBusy);
};

const complain = (error) => {
  if (error.name === "AbortError") return;
  if (error instanceof Refused && error.status === 401) show("token-box", true);
  $("error").textContent = visible(error instanceof Refused ? error.message : `the server cannot be reached: ${error.message}`);
  show("error", true);
};

const STAGES = { norms: "measures the corpus, once", scores: "reads the corpus", tokens: "reads the best documents token by token" };

const tell = (news) => {
  $("doing").dataset.stage = `${news.method} ${STAGES[news.stage]}: ${news.done.toLocaleString("en")} of ${news.total.toLocaleString("en")}`;
  $("progress").max = news.total;
  $("progress").value = news.done;
  $("leaders").replaceChildren(...news.leaders.map(({ id, score }) => make("li", {}, `${decimal(score)} `, make("bdi", {}, id))));
};

const clock = () => {
  const started = performance.now();
  const tick = () => {
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    $("doing").textContent = visible(`${$("doing").dataset.stage} · ${seconds} s`);
  };
  tick();
  return setInterval(tick, 100);
};

const ask = async (state, { isNew = true } = {}) => {
  running?.abort();
  const own = running = new AbortController();
  if (isNew && location.hash !== fragment(state)) history.pushState(null, "", fragment(state));
  for (const id of ["error", "answer"]) show(id, false);
  $("doing").dataset.stage = "The model reads the prompt";
  $("progress").removeAttribute("value");
  $("leaders").replaceChildren();
  busy(true);
  const ticking = clock();
  try {
    const { index, ...rest } = state;
    const about = index ? { index } : {};
    let completion = state.completion;
    if (!completion) {
      said = await post("/api/complete", { ...about, prompt: state.prompt }, own.signal);
      chosen = null;
      completion = said.completion;
    }
    showSaid(state.prompt, completion);
    const asked = { ...about, prompt: state.prompt, methods: rest.methods, top_k: rest.top_k, completion };
    if (state.contrast) asked.contrast = state.contrast;
    for await (const { kind, data } of events("/api/ask/stream", asked, own.signal)) {
      if (kind === "progress") tell(data);
      if (kind === "error") throw new Refused(data.status, data.error);
      if (kind === "answer") {
        showAnswer(data);
        remember(state, completion);
      }
    }
  } catch (error) {
    if (running === own) complain(error);
  } finally {
    clearInterval(ticking);
    if (running === own) busy(false);
  }
};

const showAnswer = (answer) => {
  const probability = answer.probability >= 0.001 ? answer.probability.toFixed(3) : answer.probability.toExponential(1);
  const name = "trackstar-answer";
  const button = (label, save) => make("button", { type: "button", onclick: save }, label);
  const isToldAbove = !$("says").hidden && !answer.contrast;
  const header = make("header", {}, ...(isToldAbove ? [] : [question(answer)]),
    make("p", { className: "facts" }, `probability ${probability} · ${answer.settings.num_documents.toLocaleString("en")} documents · ${answer.index}`),
    ...(answer.settings.warnings ?? []).map((warning) => make("p", { className: "warn" }, warning)),
    make("p", { className: "exports" },
      button("JSON Lines", () => files.save(`${name}.jsonl`, files.jsonl(answer), "application/jsonl")),
      button("CSV", () => files.save(`${name}.csv`, files.csv(answer), "text/csv")),
      button("Viewer's format", () => files.save(`${name}-proponents.jsonl`, files.viewer(answer), "application/jsonl"))),
    make("p", { className: "legend read" }, make("i", { className: "p3" }, "raises"), make("i", { className: "n3" }, "lowers"),
      " the score: what the model learnt by predicting this token"));
  $("answer").replaceChildren(header, make("div", { className: "columns" },
    ...answer.settings.methods.map((method) => column(answer, method, open))));
  show("answer", true);
};

const open = async (id) => {
  const index = $("index").value;
  try {
    const found = await get(`/api/documents?${new URLSearchParams({ id, ...(index ? { index } : {}) })}`);
    $("document-text").replaceChildren(...documents(found));
    $("document").showModal();
    $("document").querySelector(".this").scrollIntoView({ block: "center" });
  } catch (error) {
    complain(error);
  }
};

// ---- what the model says, and a span of it

const showSaid = (prompt, completion) => {
  const isOfIt = said && (said.prompt + said.completion).startsWith(prompt + completion) && prompt.startsWith(said.prompt);
  show("says", Boolean(isOfIt));
  if (!isOfIt) return;
  $("said").replaceChildren(make("span", { className: "read" }, said.prompt), ...said.tokens.map((token, place) => {
    const sure = token.probability > 0.75 ? 4 : token.probability > 0.5 ? 3 : token.probability > 0.25 ? 2 : 1;
    const span = make("span", { className: `s${sure}`, tabIndex: 0, title: `probability ${token.probability.toFixed(3)}` }, token.text);
    span.setAttribute("role", "button");
    span.setAttribute("aria-pressed", String(!chosen || (place >= chosen[0] && place <= chosen[1])));
    span.dataset.place = place;
    return span;
  }));
};

const choose = (first, last) => {
  chosen = [Math.min(first, last), Math.max(first, last)];
  const [start, stop] = [said.tokens[chosen[0]].start, said.tokens[chosen[1]].stop];
  const characters = Array.from(said.completion);
  const part = (from, to) => characters.slice(from, to).join("");
  const state = { ...formState(), prompt: said.prompt + part(0, start), completion: part(start, stop) };
  fill(state);
  ask(state);
};

const placeOf = (node) => {
  const token = (node?.nodeType === Node.TEXT_NODE ? node.parentElement : node)?.closest?.("#said [data-place]");
  return token ? Number(token.dataset.place) : null;
};

$("said").addEventListener("mouseup", (event) => {
  const selection = getSelection();
  const ends = selection.isCollapsed ? [placeOf(event.target)] : [selection.anchorNode, selection.focusNode].map(placeOf);
  const known = ends.filter((place) => place !== null);
  if (!known.length) return;
  selection.removeAllRanges();
  choose(event.shiftKey && chosen ? chosen[0] : known[0], known.at(-1));
});
$("said").addEventListener("keydown", (event) => {
  const place = placeOf(event.target);
  if (place === null || !["Enter", " "].includes(event.key)) return;
  event.preventDefault();
  choose(event.shiftKey && chosen ? chosen[0] : place, place);
  $("said").querySelector(`[data-place="${place}"]`)?.focus();
});

// ---- history

const past = () => {
  try {
    const known = JSON.parse(localStorage.getItem(HISTORY));
    return Array.isArray(known) ? known.filter((one) => typeof one.hash === "string") : [];
  } catch {
    return [];
  }
};

const remember = (state, completion) => {
  const hash = fragment(state);
  const entry = { hash, prompt: state.prompt, completion, contrast: state.contrast };
  localStorage.setItem(HISTORY, JSON.stringify([entry, ...past().filter((one) => one.hash !== hash)].slice(0, HISTORY_LENGTH)));
  showHistory();
};

const showHistory = () => {
  const link = ({ hash, prompt, completion, contrast }) => {
    const line = make("a", { dir: "auto", href: "#" + hash.slice(1) }, String(prompt), make("b", {}, String(completion)));
    if (contrast) line.append(visible(` rather than ${contrast}`));
    return make("li", {}, line);
  };
  $("history").replaceChildren(...past().map(link));
};

// ---- wiring

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const state = formState();
  if (!state.methods.length) return complain(new Refused(400, "choose at least one method"));
  ask(state);
});
$("ask").addEventListener("keydown", (event) => {
  if (event.target.id === "prompt" && event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
// A completion that is typed after a word begins a new one; it is seen in the field that it does.
for (const name of ["completion", "contrast"]) {
  $(name).addEventListener("change", ({ target }) => {
    const ends = LETTER.test([...$("prompt").value].at(-1) ?? ""), begins = LETTER.test([...target.value][0] ?? "");
    if (ends && begins) target.value = ` ${target.value}`;
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("document").open && running) {
    running.abort();
    busy(false);
  }
  if (event.key === "/" && !event.target.closest("input, textarea, select, dialog")) {
    event.preventDefault();
    $("prompt").focus();
  }
});
$("cancel").addEventListener("click", () => { running?.abort(); busy(false); });
$("index").addEventListener("change", () => showMethods(formState().methods));
$("forget").addEventListener("click", () => { localStorage.removeItem(HISTORY); showHistory(); });
$("document").addEventListener("click", (event) => { if (event.target === $("document")) $("document").close(); });
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken($("token").value);
  show("token-box", false);
  show("error", false);
  begin();
});
const follow = () => {
  const state = stateOf(location.hash);
  if (!state.methods.length) state.methods = ["trackstar", "bm25"];
  chosen = null;
  fill(state);
  if (state.prompt || state.completion) ask(state, { isNew: false });
};
addEventListener("popstate", follow);

const begin = async () => {
  try {
    indexes = (await get("/api/indexes")).indexes;
    $("index").replaceChildren(...indexes.map(({ name, num_documents }) =>
      new Option(visible(`${name} (${num_documents.toLocaleString("en")} documents)`), name)));
    follow();
  } catch (error) {
    complain(error);
  }
};

showHistory();
$("past").open = innerWidth > 1024;
begin();
