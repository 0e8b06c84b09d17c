"use strict";
// Everything is on the page already; this filters it and moves through it.
{
  const queries = [...document.querySelectorAll("article.query")];
  const entries = [...document.querySelectorAll("nav.index li")];
  const index = JSON.parse(document.getElementById("index-data").textContent);
  const filter = document.getElementById("filter");
  const found = document.getElementById("found");
  const narrow = matchMedia("(max-width: 64rem)");

  const matches = (entry, words, choice) => {
    if (!words.every((word) => entry.text.includes(word))) return false;
    if (!choice) return true;
    return entry.evidence && (choice[0] === "+") === (entry.found[Number(choice.slice(1))] !== null);
  };

  const apply = () => {
    const words = filter.value.normalize("NFKC").toLowerCase().split(/\s+/).filter(Boolean);
    const choice = found ? found.value : "";
    let count = 0;
    index.forEach((entry, i) => {
      const shown = matches(entry, words, choice);
      queries[i].hidden = entries[i].hidden = !shown;
      count += shown;
    });
    document.getElementById("count").textContent = count.toLocaleString("en");
    document.getElementById("nothing").hidden = count > 0;
    const section = document.getElementById("queries");
    if (section.getBoundingClientRect().top < 0) section.scrollIntoView();
  };

  // Scrolling lays out queries for the first time, at other heights than were assumed for them, and that moves the goal:
  // aim again for a few frames, unless the reader scrolls.
  let goal = null;
  const reveal = (query) => {
    goal = query;
    query.focus({ preventScroll: true });
    let frames = 15;
    const aim = () => {
      if (goal !== query) return;
      query.scrollIntoView();
      if (frames-- > 0) requestAnimationFrame(aim);
      else goal = null;
    };
    aim();
  };
  for (const gesture of ["wheel", "touchstart", "pointerdown"]) addEventListener(gesture, () => { goal = null; }, { passive: true });

  // The current query: where we are going, or else the last one whose top edge is above the upper third of the window.
  const current = () => {
    const shown = queries.filter((query) => !query.hidden);
    const passed = goal
      ? shown.indexOf(goal)
      : shown.findLastIndex((query) => query.getBoundingClientRect().top < innerHeight / 3);
    return { shown, passed };
  };

  const move = (step) => {
    const { shown, passed } = current();
    const next = shown[Math.max(0, passed + step)];
    if (next) reveal(next);
  };

  let marked = null;
  const follow = () => {
    const { shown, passed } = current();
    const next = passed < 0 ? null : entries[queries.indexOf(shown[passed])].firstElementChild;
    if (next === marked) return;
    marked?.removeAttribute("aria-current");
    next?.setAttribute("aria-current", "true");
    if (next && !narrow.matches) {
      const list = next.closest("ol");
      const { top, bottom } = next.getBoundingClientRect();
      const frame = list.getBoundingClientRect();
      if (top < frame.top || bottom > frame.bottom) list.scrollTop += top - frame.top - frame.height / 3;
    }
    marked = next;
  };

  const arrive = () => {
    const query = document.getElementById(location.hash.slice(1))?.closest("article.query");
    if (query) reveal(query);
  };
  addEventListener("hashchange", arrive);
  addEventListener("load", arrive);

  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; follow(); });
  }, { passive: true });

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select")) {
      if (event.key === "Escape") { filter.value = ""; apply(); event.target.blur(); }
      return;
    }
    if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if (event.key === "/") { event.preventDefault(); filter.closest("details").open = true; filter.focus(); }
  });

  filter.form.addEventListener("submit", (event) => event.preventDefault());
  filter.addEventListener("input", apply);
  found?.addEventListener("change", apply);
  if (narrow.matches) filter.closest("details").open = false;

  // Paper cannot be clicked: print the folded parts too, then fold them again.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const part of opened) part.open = true;
  });
  addEventListener("afterprint", () => { for (const part of opened) part.open = false; });
}
