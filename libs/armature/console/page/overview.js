// The cell at a glance.

import { h } from "./dom.js";
import { NONE, ago, bytes, count, perSecond, plain, seconds, share, short } from "./format.js";
import { plot, spark } from "./plot.js";

const TIERS = { G1: "Device", G2: "Host memory", G3: "Disk", G4: "Remote" };
const TRUST_TONES = { exact: "good", repairing: "warn", assumed: "idle", stale: "bad" };

export function overview(cell, traffic, state) {
  const workers = Object.entries(cell.workers);
  return [
    notices(cell, workers),
    figures(cell, traffic, workers),
    h("div", { class: "plots" }, plots(cell, traffic, state.hover)),
    fleet(workers),
    h("div", { class: "columns" }, memory(cell, workers), transfers(cell), Object.keys(cell.planners).length ? null : plan(cell)),
    Object.keys(cell.planners).length ? plan(cell) : null,
    control(cell),
  ];
}

export const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);

function notices(cell, workers) {
  const told = [];
  if (cell.is_stale) told.push(["warn", "etcd can’t be heard: who is there is what was last known. Requests go on."]);
  const silent = workers.filter(([, one]) => one.problem).map(([id]) => id);
  if (silent.length) told.push(["bad", `${silent.length === 1 ? `${silent[0]} does` : `${silent.length} workers do`} not answer.`]);
  if (!Object.keys(cell.routers).length) told.push(["warn", "No router is registered: each gateway places requests itself, by load alone."]);
  return told.length ? h("div", { class: "notices" }, told.map(([tone, text]) => h("p", { class: "notice", "data-tone": tone }, text))) : null;
}

function figures(cell, traffic, workers) {
  const last = traffic.at(-1);
  const tile = (name, value, detail, line) =>
    h("div", { class: "card figure" }, h("h2", {}, name), h("p", { class: "value" }, value), h("p", { class: "detail" }, detail), line);
  const line = (value, color) => spark(traffic, value, cell.now, `var(--${color})`);
  const running = sum(workers.map(([, one]) => one.running));
  const waiting = sum(workers.map(([, one]) => one.waiting)) + sum(Object.values(cell.routers).map((one) => one.queued_requests));
  const errors = (last?.failed_per_s ?? 0) + (last?.refused_per_s ?? 0);
  return h(
    "div",
    { class: "figures" },
    tile("Requests", last ? perSecond(last.requests_per_s, count) : NONE, errors ? `${perSecond(errors, count)} refused or failed` : "none refused or failed", line((p) => p.requests_per_s, "c1")),
    tile("First token, p95", seconds(last?.ttft_s_p95), median(last?.ttft_s_p50), line((p) => p.ttft_s_p95, "c2")),
    tile("Between tokens, p95", seconds(last?.itl_s_p95), median(last?.itl_s_p50), line((p) => p.itl_s_p95, "c3")),
    tile("Output", last ? perSecond(last.output_tokens_per_s, count) : NONE, "tokens", line((p) => p.output_tokens_per_s, "c4")),
    tile("Prompts from cache", share(cell.cached_share), (cell.cached_share ?? null) === null ? "no prompts now" : "of prompt tokens", meter(cell.cached_share, "c5")),
    tile("Running", count(running), waiting ? `${count(waiting)} waiting` : "none waiting", line((p) => p.inflight_requests, "c6")),
  );
}

const median = (value) => ((value ?? null) === null ? "none in half a minute" : `median ${seconds(value)}`);

function meter(value, color) {
  return h("div", { class: "meter", "aria-hidden": "true" }, h("i", { style: { width: `${Math.min(1, value ?? 0) * 100}%`, background: `var(--${color})` } }));
}

function plots(cell, traffic, hover) {
  const shared = { points: traffic, now: cell.now, hover };
  const own = Object.keys(cell.gateways).length > 1 ? "this gateway" : "";
  const rate = (value) => perSecond(value, count);
  return [
    plot({
      ...shared, title: "Time to first token", about: own, format: seconds,
      series: [{ name: "median", color: "var(--c1)", value: (p) => p.ttft_s_p50 ?? null }, { name: "p95", color: "var(--c2)", value: (p) => p.ttft_s_p95 ?? null }],
    }),
    plot({
      ...shared, title: "Time between tokens", about: own, format: seconds,
      series: [{ name: "median", color: "var(--c1)", value: (p) => p.itl_s_p50 ?? null }, { name: "p95", color: "var(--c2)", value: (p) => p.itl_s_p95 ?? null }],
    }),
    plot({
      ...shared, title: "Requests", about: own, format: rate,
      series: [
        { name: "ended", color: "var(--c1)", value: (p) => p.requests_per_s },
        { name: "refused", color: "var(--warn)", value: (p) => p.refused_per_s },
        { name: "failed", color: "var(--bad)", value: (p) => p.failed_per_s },
      ],
    }),
    plot({
      ...shared, title: "Tokens", about: own, format: rate,
      series: [{ name: "prompts", color: "var(--c5)", value: (p) => p.prompt_tokens_per_s }, { name: "output", color: "var(--c4)", value: (p) => p.output_tokens_per_s }],
    }),
  ];
}

function fleet(workers) {
  const groups = ["prefill", "decode", "aggregated"].map((role) => [role, workers.filter(([, one]) => one.role === role)]);
  return h(
    "section",
    { class: "card fleet" },
    h("h2", {}, "Workers", h("small", {}, workers.length ? `${workers.length} · bars: device memory in use, and held in cache` : "")),
    workers.length
      ? groups.filter(([, some]) => some.length).map(([role, some]) =>
          h(
            "div",
            { class: "fleet-row" },
            h("h3", {}, h("span", { class: "role", "data-role": role }, role), h("small", {}, some.length)),
            h("div", { class: "tiles" }, some.map(([id, one]) => tile(id, one))),
          ),
        )
      : h("p", { class: "empty" }, "No worker has registered. `armature up` starts some, or `python -m services.decode_worker`."),
  );
}

function tile(id, one) {
  const tone = one.problem ? "bad" : one.state === "draining" ? "warn" : "good";
  const load = one.waiting ? `${one.running} + ${one.waiting}` : `${one.running}`;
  return h(
    "a",
    { class: "tile", "data-key": id, "data-tone": tone, href: `#workers/${encodeURIComponent(id)}`, title: `${id} on ${one.node || "an unknown node"}${one.problem ? `: ${one.problem}` : ""}` },
    h("span", { class: "tile-name" }, short(id)),
    h("b", {}, one.problem ? "?" : load),
    memoryBar(one),
    one.state === "draining" ? h("small", {}, "draining") : null,
  );
}

// What is in use, before what is held in cache.
export function memoryBar(one) {
  const part = (blocks) => `${one.total_blocks ? Math.min(100, (blocks / one.total_blocks) * 100) : 0}%`;
  const text = `${share(one.total_blocks ? one.used_blocks / one.total_blocks : null)} in use, ${share(one.total_blocks ? one.cached_blocks / one.total_blocks : null)} held in cache`;
  return h(
    "span",
    { class: "bar", role: "img", "aria-label": text, title: text },
    h("i", { class: "held", style: { width: part(one.cached_blocks) } }),
    h("i", { class: "used", style: { width: part(one.used_blocks) } }),
  );
}

function memory(cell, workers) {
  const cached = sum(workers.map(([, one]) => one.cached_blocks));
  const rows = Object.entries(cell.tiers).map(([name, one]) => {
    const whole = one.capacity_blocks;
    const held = name === "G1" ? cached : one.used_blocks;
    return h(
      "div",
      { class: "tier", "data-key": name },
      h("span", {}, h("b", {}, name), " ", TIERS[name]),
      h("span", { class: "num" }, `${share(held / whole)} of ${count(whole)} blocks`),
      memoryBar({ total_blocks: whole, used_blocks: name === "G1" ? one.used_blocks : 0, cached_blocks: held }),
    );
  });
  return h(
    "section",
    { class: "card" },
    h("h2", {}, "KV blocks by tier"),
    rows.length ? rows : h("p", { class: "empty" }, "Nobody keeps blocks yet."),
    rows.length && !Object.keys(cell.offloads).length ? h("p", { class: "dim" }, "No kv-offload: what leaves a device is computed again.") : null,
  );
}

function transfers(cell) {
  const rows = Object.entries(cell.transfers);
  return h(
    "section",
    { class: "card" },
    h("h2", {}, "Transfers between workers"),
    rows.length
      ? h(
          "table",
          {},
          h("thead", {}, h("tr", {}, ["over", "now", "prompts", "each", "in all"].map((name, place) => h("th", { scope: "col", class: place ? "num" : null }, name)))),
          h("tbody", {}, rows.map(([name, one]) =>
            h("tr", { "data-key": name }, h("th", { scope: "row" }, name), [perSecond(one.bytes_per_s), count(one.prompts), one.prompts ? seconds(one.mean_s) : NONE, bytes(one.size_bytes)].map((cellText) => h("td", { class: "num" }, cellText)))),
          ),
        )
      : h("p", { class: "empty" }, "No prompt has been computed by one worker for another, or read from its cache."),
  );
}

function plan(cell) {
  // Whoever leads comes first.
  const planners = Object.entries(cell.planners).sort(([a, one], [b, other]) => (other.leader === b) - (one.leader === a));
  return h(
    "section",
    { class: "card" },
    h("h2", {}, "Plan"),
    planners.length
      ? planners.map(([id, one]) => planned(id, one, cell.now))
      : h("p", { class: "empty" }, "No planner is registered: there are as many workers as were started."),
  );
}

// Of those that stand by, there is only that they do.
function planned(id, one, now) {
  const leads = one.leader === id;
  const head = h("div", { class: "member" }, dot(one), h("b", { title: id }, id), h("span", { class: "dim" }, one.problem || (leads ? `leads, by ${one.connector}` : one.leader ? "stands by" : "nobody leads")));
  if (one.problem || !leads) return h("div", { "data-key": id }, head);
  const counts = ["aggregated", "prefill", "decode"].filter((role) => one.wanted[role] || one.ready[role] || one.starting[role]);
  return h(
    "div",
    { "data-key": id, class: "plan" },
    head,
    h("p", { class: "dim" }, `${share(one.target_quantile)} of requests: first token within ${plain(seconds(one.ttft_target_s))}, ${plain(seconds(one.itl_target_s))} between tokens${one.is_paused ? " · paused" : ""}`),
    h("ul", { class: "counts" }, counts.map((role) => h("li", {}, h("span", { class: "role", "data-role": role }, role), h("b", {}, one.ready[role]), one.wanted[role] === one.ready[role] ? null : h("span", {}, " → ", h("b", {}, one.wanted[role])), one.starting[role] ? h("small", {}, ` ${one.starting[role]} starting`) : null))),
    one.text ? h("p", {}, h("span", { class: "tag", "data-tone": "idle" }, one.reason), " ", one.text) : h("p", { class: "empty" }, "It has not made a plan yet."),
    one.obstacles.map((why) => h("p", { class: "notice", "data-tone": "warn" }, why)),
    one.log.length ? h("ol", { class: "log" }, one.log.slice(-6).reverse().map((entry) => noted(entry, now))) : null,
  );
}

// What was decided, and dimmer, what was thought of it.
function noted(entry, now) {
  const end = entry.text.indexOf("); ") + 1 || entry.text.length;
  return h(
    "li",
    {},
    h("time", {}, ago(now - entry.at)),
    h("div", {}, h("b", {}, entry.text.slice(0, end)), h("span", { class: "dim" }, ` ${entry.text.slice(end + 2)}`), entry.done.length ? h("div", {}, entry.done.join(", ")) : null),
  );
}

export function dot(one) {
  const tone = one.problem ? "bad" : one.state === "draining" ? "warn" : "good";
  return h("i", { class: "dot", "data-tone": tone, role: "img", "aria-label": one.problem || one.state });
}

function control(cell) {
  const kinds = [
    ["Gateways", cell.gateways, (one) => (one.is_this ? "shows you this" : "")],
    ["Routers", cell.routers, (one) => `policy ${one.policy || NONE} · ${count(one.requests_in_flight)} in flight · ${count(one.queued_requests)} queued · ${count(one.index_blocks)} blocks known`],
    ["kv-index", cell.indexes, (one) => [`${count(one.indexed_blocks)} blocks · ${bytes(one.size_bytes)} · `, Object.entries(one.sources).map(([trust, number]) => h("span", { class: "tag", "data-tone": TRUST_TONES[trust] ?? "idle" }, `${number} ${trust}`))]],
    ["kv-offload", cell.offloads, (one) => Object.entries(one.tiers).map(([tier, told]) => `${tier} ${count(told.used_blocks)} kept, ${count(told.hit_blocks)} found`).join(" · ") || "waits for its first worker"],
  ];
  return h(
    "section",
    { class: "card" },
    h("h2", {}, "Services"),
    h("div", { class: "services" }, kinds.map(([name, members, about]) =>
      h(
        "div",
        {},
        h("h3", {}, name),
        Object.keys(members).length
          ? Object.entries(members).map(([id, one]) =>
              h("div", { class: "member", "data-key": id }, dot(one), h("b", { title: `${id} at ${one.address}` }, id), h("span", { class: "dim" }, one.problem || (one.state === "draining" ? "draining" : about(one)))))
          : h("p", { class: "empty" }, "none"),
      ),
    )),
  );
}
