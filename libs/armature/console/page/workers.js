// Every worker with everything that is known of it.

import { h, on } from "./dom.js";
import { NONE, count, perSecond, seconds, share, short } from "./format.js";
import { dot, memoryBar } from "./overview.js";

const TRUST_TONES = { exact: "good", repairing: "warn", assumed: "idle", stale: "bad" };
const tokens = (value) => perSecond(value, count);

// name, what it means, how it sorts, how it looks
const COLUMNS = [
  ["Worker", "Its id and machine", (one) => one.id, (one) => h("span", { class: "who" }, dot(one), h("span", { class: "name" }, h("b", { title: one.id }, short(one.id)), h("small", {}, one.problem || (one.state === "draining" ? "draining" : one.node))))],
  ["Role", "", (one) => one.role, (one) => h("span", { class: "role", "data-role": one.role }, one.role)],
  ["Model", "And what computes it", (one) => one.model, (one) => h("span", { class: "name" }, h("span", { title: one.model }, one.model), h("small", {}, one.engine))],
  ["Load", "Requests running, of as many as it takes, and waiting", (one) => one.running + one.waiting, (one) => load(one), "num"],
  ["KV memory", "Blocks of its device: in use, and held in cache", (one) => one.used_blocks / (one.total_blocks || 1), (one) => [memoryBar(one), h("small", {}, `${share(one.used_blocks / (one.total_blocks || 1))} of ${count(one.total_blocks)}`)]],
  ["From cache", "Of the prompt tokens that it needed lately", (one) => one.cached_share ?? -1, (one) => share(one.cached_share), "num"],
  ["Prefill", "Prompt tokens computed", (one) => one.prefill_tokens_per_s ?? -1, (one) => tokens(one.prefill_tokens_per_s), "num"],
  ["Decode", "Tokens made", (one) => one.decode_tokens_per_s ?? -1, (one) => tokens(one.decode_tokens_per_s), "num"],
  ["Step", "A step that only decodes, as measured", (one) => one.step_s, (one) => (one.step_s ? seconds(one.step_s) : NONE), "num"],
  ["Reads", "KV blocks from other workers", (one) => one.read_bytes_per_s ?? -1, (one) => perSecond(one.read_bytes_per_s), "num"],
  ["Tiers", "KV blocks copied below the device, and read from there", (one) => (one.offloaded_bytes_per_s ?? 0) + (one.onboarded_bytes_per_s ?? 0), (one) => h("span", { class: "name" }, h("span", {}, `↓ ${perSecond(one.offloaded_bytes_per_s)}`), h("small", {}, `↑ ${perSecond(one.onboarded_bytes_per_s)}`)), "num"],
  ["Index", "How far kv-index trusts what it knows of it, and how much of that routers believe", (one) => one.index_trust, (one) => [one.index_trust ? h("span", { class: "tag", "data-tone": TRUST_TONES[one.index_trust] ?? "idle" }, one.index_trust) : NONE, one.believed_share === undefined ? null : h("small", {}, ` ${share(one.believed_share)}`)]],
];

function load(one) {
  return h("span", { class: "name" }, h("span", {}, h("b", {}, count(one.running)), h("span", { class: "dim" }, ` / ${count(one.most_running)}`)), h("small", {}, one.waiting ? `${count(one.waiting)} waiting` : one.waiting_prefill_tokens ? `${count(one.waiting_prefill_tokens)} tokens due` : ""));
}

export class WorkersView {
  constructor(root, draw) {
    this.column = 0;
    this.isDown = false;
    this.filter = "";
    on(root, "click", "[data-sort]", (button) => {
      const column = Number(button.dataset.sort);
      this.isDown = column === this.column ? !this.isDown : column !== 0;
      this.column = column;
      draw();
    });
    on(root, "input", "#filter", (input) => {
      this.filter = input.value;
      draw();
    });
  }

  draw(cell, chosen) {
    const all = Object.entries(cell.workers).map(([id, one]) => ({ id, ...one }));
    const words = this.filter.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = all.filter((one) => {
      const text = [one.id, one.node, one.role, one.model, one.engine, one.state, one.problem, one.index_trust].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const by = COLUMNS[this.column][2];
    const way = this.isDown ? -1 : 1;
    shown.sort((a, b) => way * (by(a) < by(b) ? -1 : by(a) > by(b) ? 1 : 0) || (a.id < b.id ? -1 : 1));
    return [
      h(
        "div",
        { class: "heading" },
        h("h1", {}, "Workers"),
        h("p", { class: "dim" }, shown.length === all.length ? `${all.length}` : `${shown.length} of ${all.length}`),
        h("label", { class: "search" }, h("span", { class: "hidden" }, "Show only"), h("input", { id: "filter", type: "search", placeholder: "Filter: decode node-3 draining", autocomplete: "off" })),
      ),
      all.length ? table(shown, chosen, this) : h("p", { class: "card empty" }, "No worker has registered."),
    ];
  }
}

function table(shown, chosen, view) {
  return h(
    "div",
    { class: "card scroll", tabindex: "0", role: "region", "aria-label": "Workers" },
    h(
      "table",
      { class: "workers" },
      h("thead", {}, h("tr", {}, COLUMNS.map(([name, about, , , kind], place) => {
        const direction = place === view.column ? (view.isDown ? "descending" : "ascending") : null;
        return h("th", { scope: "col", class: kind, "aria-sort": direction }, h("button", { "data-sort": place, title: about || null }, name));
      }))),
      h("tbody", {}, shown.map((one) =>
        h("tr", { "data-key": one.id, "aria-selected": one.id === chosen ? "true" : null, "data-silent": one.problem ? "" : null }, COLUMNS.map(([name, , , look, kind]) => h("td", { class: kind, "data-label": name }, look(one)))),
      )),
    ),
    shown.length ? null : h("p", { class: "empty" }, "No worker is like that."),
  );
}
