// Which view is shown, and when it is made anew.

import { askForKey } from "./access.js";
import { Chat } from "./chat.js";
import { Decisions } from "./decisions.js";
import { h, morph, on } from "./dom.js";
import { Feed } from "./feed.js";
import { overview } from "./overview.js";
import { WorkersView } from "./workers.js";

const TITLES = { overview: "Overview", workers: "Workers", decisions: "Decisions", chat: "Chat" };

const main = document.getElementById("main");
const live = h("div", { id: "live" });
const chat = new Chat();
const state = { hover: null };
let isDue = false;

const feed = new Feed({
  changed: draw,
  told(tone, text) {
    const status = document.getElementById("status");
    status.dataset.tone = tone;
    if (status.textContent !== text) status.textContent = text;
  },
  refused(error) {
    askForKey(error, () => feed.start());
  },
});
const workers = new WorkersView(live, draw);
const decisions = new Decisions(live, draw);

function route() {
  const [view, ...rest] = location.hash.slice(1).split("/");
  return { view: view in TITLES ? view : "overview", id: decodeURIComponent(rest.join("/")) };
}

// At most once a frame, whatever happens meanwhile.
function draw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    const { view, id } = route();
    const name = document.getElementById("cell-name");
    name.hidden = !feed.cell;
    if (feed.cell) name.textContent = feed.cell.namespace;
    const appears = view === "chat" && chat.element.hidden;
    chat.element.hidden = view !== "chat";
    live.hidden = view === "chat";
    if (appears) chat.text.focus(); // not before: what is hidden takes no focus
    if (view === "chat") chat.models(Object.keys(feed.cell?.models ?? {}));
    else morph(live, h("div", { id: "live" }, ...content(view, id)));
  });
}

function content(view, id) {
  if (!feed.cell) return [h("p", { class: "loading" }, "Waiting for the cell…")];
  if (view === "workers") return workers.draw(feed.cell, id);
  if (view === "decisions") return decisions.draw(feed.cell, id);
  return overview(feed.cell, feed.traffic, state);
}

function moved() {
  const { view, id } = route();
  document.title = `${TITLES[view]} · Armature`;
  for (const link of document.querySelectorAll("header nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  decisions.show(view === "decisions", id);
  draw();
}

// One cross-hair for all plots.
on(live, "pointermove", ".plot-area", (area, event) => {
  const box = area.getBoundingClientRect();
  state.hover = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  draw();
});
live.addEventListener("pointerleave", leave);
on(live, "pointerout", ".plot-area", (area, event) => {
  if (!area.contains(event.relatedTarget)) leave();
});
function leave() {
  if (state.hover === null) return;
  state.hover = null;
  draw();
}

main.replaceChildren(live, chat.element);
window.addEventListener("hashchange", () => {
  moved();
  main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
});
moved();
feed.start();
