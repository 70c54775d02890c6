// Where requests went, and why.

import { h, on } from "./dom.js";
import { ask } from "./feed.js";
import { NONE, ago, count, seconds, share, short } from "./format.js";

const PAUSE_MS = 2000;
const COLORS = ["c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"];

export class Decisions {
  constructor(root, draw) {
    Object.assign(this, { redraw: draw, latest: null, detail: null, id: "", problem: "", isShown: false, isPaused: false, timer: 0 });
    on(root, "click", "[data-pause]", () => {
      this.isPaused = !this.isPaused;
      this.look();
    });
    on(root, "submit", "#find", (form, event) => {
      event.preventDefault();
      const id = new FormData(form).get("id").trim().replace(/^(chatcmpl|cmpl|resp|msg)[-_]/, "");
      if (id) location.hash = `#decisions/${encodeURIComponent(id)}`;
    });
    document.addEventListener("visibilitychange", () => this.look());
  }

  show(isShown, id) {
    if (id !== this.id) [this.detail, this.problem] = [null, ""];
    Object.assign(this, { isShown, id });
    this.look();
  }

  // Asked for while it is looked at, and not again when it is settled.
  async look() {
    clearTimeout(this.timer);
    this.redraw();
    if (!this.isShown || document.hidden || (!this.id && this.isPaused)) return;
    const { id } = this;
    try {
      const told = await ask(id ? `/admin/decisions/${encodeURIComponent(id)}` : "/admin/decisions?limit=25");
      if (id !== this.id) return;
      if (id) this.detail = told;
      else this.latest = told;
      this.problem = "";
    } catch (error) {
      if (id !== this.id) return;
      this.problem = error.message;
    }
    this.redraw();
    const isSettled = id && (this.problem || this.detail.data.every((one) => one.is_rejected || (one.ttft_s ?? null) !== null));
    if (!isSettled) this.timer = setTimeout(() => this.look(), PAUSE_MS);
  }

  draw(cell, id) {
    return id ? this.one(cell, id) : this.list(cell);
  }

  list(cell) {
    const told = this.latest;
    const find = h("form", { id: "find", class: "search" }, h("label", { class: "hidden", for: "find-id" }, "A request’s id"), h("input", { id: "find-id", name: "id", type: "search", placeholder: "Request id", autocomplete: "off", spellcheck: "false" }), h("button", {}, "Explain"));
    const heading = h("div", { class: "heading" }, h("h1", {}, "Decisions"), h("button", { "data-pause": "", "aria-pressed": this.isPaused ? "true" : "false" }, this.isPaused ? "Go on" : "Pause"), find);
    if (this.problem && !told) return [heading, h("p", { class: "notice", "data-tone": "bad" }, this.problem)];
    if (!told) return [heading, h("p", { class: "loading" }, "Asking the routers…")];
    const silent = Object.entries(told.problems).map(([router, why]) => h("p", { class: "notice", "data-tone": "warn" }, `${router} did not answer: ${why}`));
    if (!told.data.length) return [heading, ...silent, h("p", { class: "card empty" }, Object.keys(cell.routers).length ? "No request has been placed lately. Ask something under Chat." : "No router is registered.")];
    return [heading, ...silent, h("div", { class: "card scroll", tabindex: "0", role: "region", "aria-label": "Latest decisions" }, h("table", { class: "decisions" }, head(["When", "Request", "Went to", "Prompt", "Cached", "Predicted", "First token", "Ways"], 3), h("tbody", {}, told.data.map((one) => row(one, cell.now)))))];
  }

  one(cell, id) {
    const back = h("p", { class: "back" }, h("a", { href: "#decisions" }, "← Latest decisions"));
    if (this.problem) return [back, h("h1", {}, "Request ", h("code", {}, id)), h("p", { class: "notice", "data-tone": "bad" }, this.problem)];
    if (!this.detail) return [back, h("p", { class: "loading" }, "Asking the routers…")];
    return [back, ...this.detail.data.flatMap((one) => explained(one, cell.now))];
  }
}

function head(names, firstNumber) {
  return h("thead", {}, h("tr", {}, names.map((name, place) => h("th", { scope: "col", class: place >= firstNumber ? "num" : null }, name))));
}

function way(one) {
  if (!one) return NONE;
  const parts = [h("b", { title: one.decode_worker }, short(one.decode_worker))];
  if (one.prefill_worker) parts.push(h("small", {}, " prefill on "), h("b", { title: one.prefill_worker }, short(one.prefill_worker)));
  if (one.pull_worker) parts.push(h("small", {}, " reads from "), h("b", { title: one.pull_worker }, short(one.pull_worker)));
  return parts;
}

function row(one, now) {
  const chosen = one.candidates.find((way) => way.is_chosen);
  const to = one.is_rejected ? h("span", { class: "tag", "data-tone": "bad" }, "refused") : way(chosen);
  const cells = [count(one.prompt_tokens), share(cachedShare(one)), seconds(chosen?.predicted_ttft_s), seconds(one.ttft_s), one.num_candidates ? count(one.num_candidates) : NONE];
  return h(
    "tr",
    { "data-key": `${one.router}/${one.request_id}` },
    h("td", { "data-label": "When", class: "when" }, ago(now - one.decided_at)),
    h("td", { "data-label": "Request" }, h("a", { href: `#decisions/${encodeURIComponent(one.request_id)}`, title: one.request_id }, h("code", {}, one.request_id.slice(0, 12)))),
    h("td", { "data-label": "Went to" }, to),
    cells.map((text, place) => h("td", { class: "num", "data-label": ["Prompt", "Cached", "Predicted", "First token", "Ways"][place] }, text)),
  );
}

const cachedShare = (one) => ((one.cached_tokens ?? null) === null || !one.prompt_tokens ? null : one.cached_tokens / one.prompt_tokens);

function explained(one, now) {
  const chosen = one.candidates.find((way) => way.is_chosen);
  const facts = [
    ["Prompt", `${count(one.prompt_tokens)} tokens`],
    ["Predicted first token", seconds(chosen?.predicted_ttft_s)],
    ["First token came after", seconds(one.ttft_s)],
    ["Was cached", (one.cached_tokens ?? null) === null ? NONE : `${count(one.cached_tokens)} tokens`],
    ["Model", one.model],
    ["Tenant", one.tenant || NONE],
    ["Policy", one.policy],
    ["Decided by", `${one.router}, ${ago(now - one.decided_at)}`],
  ];
  return [
    h("h1", {}, "Request ", h("code", {}, one.request_id)),
    h("dl", { class: "facts card" }, facts.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text)))),
    one.is_rejected ? h("p", { class: "notice", "data-tone": "bad" }, `Refused: ${one.reason}`) : h("p", { class: "reason" }, one.reason),
    one.candidates.length ? bars(one) : null,
    one.counterfactuals.length ? others(one) : null,
  ];
}

function bars(one) {
  const most = {};
  for (const candidate of one.candidates) for (const [name, value] of Object.entries(candidate.terms)) most[name] = Math.max(most[name] ?? 0, Math.abs(value));
  const names = Object.keys(most).filter((name) => most[name] > 0).sort((a, b) => most[b] - most[a] || (a < b ? -1 : 1));
  const color = (name) => `var(--${COLORS[names.indexOf(name) % COLORS.length]})`;
  const longest = Math.max(1e-12, ...one.candidates.map((candidate) => names.reduce((total, name) => total + Math.max(0, candidate.terms[name] ?? 0), 0)));
  const cost = (value) => (one.unit === "s" ? seconds(value) : `${count(value)} ${one.unit}`.trim());
  const left = one.num_candidates - one.candidates.length;
  return h(
    "section",
    { class: "card" },
    h("h2", {}, "Ways that were weighed", h("small", {}, left > 0 ? `the best ${one.candidates.length} of ${one.num_candidates}` : "all of them")),
    h("ul", { class: "legend" }, names.map((name) => h("li", {}, h("i", { style: { background: color(name) } }), name))),
    h("ol", { class: "ways" }, one.candidates.map((candidate) =>
      h(
        "li",
        { "data-chosen": candidate.is_chosen ? "" : null },
        h("span", { class: "way" }, candidate.is_chosen ? h("span", { class: "tag", "data-tone": "good" }, "chosen") : null, way(candidate)),
        h(
          "span",
          { class: "stack", role: "img", "aria-label": names.map((name) => `${name} ${cost(candidate.terms[name] ?? 0)}`).join(", ") },
          names.filter((name) => candidate.terms[name] > 0).map((name) => h("i", { title: `${name} ${cost(candidate.terms[name])}`, style: { width: `${(candidate.terms[name] / longest) * 100}%`, background: color(name) } })),
        ),
        h("b", { class: "num" }, cost(candidate.cost)),
        h("small", { class: "num" }, `first token ${seconds(candidate.predicted_ttft_s)}${candidate.overlap_tokens ? ` · ${count(candidate.overlap_tokens)} cached` : ""}${Object.entries(candidate.onboard_tokens).map(([tier, some]) => ` · ${count(some)} in ${tier}`).join("")}`),
      ),
    )),
    h("details", {}, h("summary", {}, "All terms as numbers"), h("div", { class: "scroll" }, h("table", {}, head(["way", ...names, "cost"], 1), h("tbody", {}, one.candidates.map((candidate) => h("tr", {}, h("td", {}, way(candidate)), [...names.map((name) => candidate.terms[name] ?? 0), candidate.cost].map((value) => h("td", { class: "num" }, cost(value))))))))),
  );
}

function others(one) {
  const chosen = one.candidates.find((way) => way.is_chosen);
  return h(
    "section",
    { class: "card" },
    h("h2", {}, "What other policies would have done", h("small", {}, "at the same moment, with the same knowledge")),
    h("div", { class: "scroll" }, h("table", {}, head(["Policy", "Would have sent it to", "First token", "Compared"], 2), h("tbody", {}, one.counterfactuals.filter((other) => other.policy !== one.policy).map((other) => {
      const later = chosen && other.decode_worker ? other.predicted_ttft_s - chosen.predicted_ttft_s : 0;
      const verdict = !other.decode_worker ? "nowhere" : other.is_same ? "the same" : Math.abs(later) < 0.0005 ? "elsewhere" : later > 0 ? `${seconds(later)} later` : `${seconds(-later)} sooner`;
      return h("tr", {}, h("th", { scope: "row" }, other.policy), h("td", {}, other.decode_worker ? way(other) : NONE), h("td", { class: "num" }, other.decode_worker ? seconds(other.predicted_ttft_s) : NONE), h("td", { class: "num dim" }, verdict));
    })))),
  );
}
