// The live picture: one stream while the page is looked at, none while it is hidden.

import { authorization } from "./access.js";

const SILENCE_MS = 6000; // a picture comes every second
const HIDDEN_MS = 30000;
const PAUSES_MS = [500, 1000, 2000, 4000, 8000];
const KEPT_POINTS = 300;

export class Feed {
  // `changed()` is called with every picture, `told(tone, text)` about the connection, and
  // `refused(error)` when a key is needed; then `start` is to be called again.
  constructor({ changed, told, refused }) {
    Object.assign(this, { changed, told, refused, cell: null, traffic: [], tries: 0, stop: null });
    let hiding = 0;
    document.addEventListener("visibilitychange", () => {
      clearTimeout(hiding);
      if (!document.hidden) this.start();
      else hiding = setTimeout(() => this.end(), HIDDEN_MS);
    });
  }

  start() {
    if (this.stop) return;
    clearTimeout(this.again);
    this.stop = new AbortController();
    this.read(this.stop).catch((error) => this.failed(error));
  }

  end() {
    clearTimeout(this.again);
    this.stop?.abort("hidden");
    this.stop = null;
  }

  async read(stop) {
    let silence = 0;
    const wait = () => {
      clearTimeout(silence);
      silence = setTimeout(() => stop.abort("silent"), SILENCE_MS);
    };
    wait();
    try {
      const answer = await fetch("/admin/cell", {
        headers: { accept: "text/event-stream", ...authorization() },
        signal: stop.signal,
        cache: "no-store",
      });
      if (!answer.ok) throw await problem(answer);
      let text = "";
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        wait();
        text += part.value;
        const events = text.split("\n\n");
        text = events.pop();
        for (const event of events) if (event.startsWith("data: ")) this.take(JSON.parse(event.slice(6)));
      }
      throw new Error("the gateway has ended the stream");
    } finally {
      clearTimeout(silence);
    }
  }

  take(told) {
    if (told.type === "cell") [this.cell, this.traffic] = [told.cell, []];
    else this.cell = patched(this.cell, told.patch);
    this.traffic = [...this.traffic, ...told.traffic].slice(-KEPT_POINTS);
    this.tries = 0;
    if (this.cell.is_stale) this.told("warn", "Members not up to date");
    else this.told("good", "Live");
    this.changed();
  }

  failed(error) {
    const wanted = this.stop !== null && this.stop.signal.reason !== "hidden";
    this.stop = null;
    if (!wanted) return;
    if (error.status === 401 || error.status === 403) {
      this.told("bad", "No access");
      this.refused(error);
      return;
    }
    const pause = PAUSES_MS[Math.min(this.tries, PAUSES_MS.length - 1)];
    this.tries += 1;
    this.told("bad", error.status === 429 ? "Too many watch" : "Reconnecting");
    this.again = setTimeout(() => this.start(), pause);
    this.changed();
  }
}

// What a gateway's refusal says, as an error with its status and code.
export async function problem(answer) {
  let told = {};
  try {
    told = (await answer.json()).error ?? {};
  } catch {
    // no JSON: somebody else has answered
  }
  const error = new Error(told.message ?? `The gateway answered ${answer.status}`);
  return Object.assign(error, { status: answer.status, code: told.code ?? "" });
}

export async function ask(path) {
  const answer = await fetch(path, { headers: authorization(), cache: "no-store" });
  if (!answer.ok) throw await problem(answer);
  return answer.json();
}

// A JSON merge patch, RFC 7396.
export function patched(document, patch) {
  if (patch === null || typeof patch !== "object" || Array.isArray(patch)) return patch;
  const made = { ...(document !== null && typeof document === "object" && !Array.isArray(document) ? document : {}) };
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete made[name];
    else made[name] = patched(made[name], value);
  }
  return made;
}
