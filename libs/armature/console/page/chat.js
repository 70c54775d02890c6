// A conversation with the cell, each answer with how it was served.

import { apiAuthorization, apiKey, keepApiKey } from "./access.js";
import { h, on } from "./dom.js";
import { problem } from "./feed.js";
import { bytes, count, seconds, share } from "./format.js";

export class Chat {
  constructor() {
    this.messages = [];
    this.stop = null;
    this.log = h("div", { class: "talk", role: "log", "aria-live": "polite" });
    this.model = h("select", { id: "chat-model" });
    this.tokens = h("input", { id: "chat-tokens", type: "number", min: "1", max: "100000", value: "256" });
    this.heat = h("input", { id: "chat-heat", type: "number", min: "0", max: "2", step: "0.1", value: "0" });
    this.key = h("input", { id: "chat-key", type: "password", autocomplete: "off", spellcheck: "false", placeholder: "none needed without keys" });
    this.text = h("textarea", { id: "chat-text", rows: "2", placeholder: "Ask something", "aria-label": "Message" });
    this.send = h("button", { class: "primary", type: "submit" }, "Send");
    const field = (name, input) => h("label", {}, h("span", {}, name), input);
    this.element = h(
      "div",
      { id: "talk", hidden: true },
      h("div", { class: "heading" }, h("h1", {}, "Chat"), h("button", { id: "chat-new", type: "button" }, "New conversation")),
      h("div", { class: "chat-options card" }, field("Model", this.model), field("Longest answer", this.tokens), field("Temperature", this.heat), field("API key", this.key)),
      this.log,
      h("form", { class: "ask card" }, this.text, this.send),
    );
    this.key.value = apiKey();
    this.greet();
    this.key.addEventListener("change", () => keepApiKey(this.key.value.trim()));
    on(this.element, "click", "#chat-new", () => this.restart());
    on(this.element, "submit", "form", (form, event) => {
      event.preventDefault();
      if (this.stop) this.stop.abort();
      else this.ask();
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.stop) this.ask();
      }
    });
  }

  greet() {
    this.log.replaceChildren(h("p", { class: "empty" }, "What you ask goes through this gateway like any other request. Each answer tells where it was made, how soon it began, and what of the prompt was cached."));
  }

  restart() {
    this.stop?.abort();
    this.messages = [];
    this.greet();
    this.text.focus();
  }

  models(names) {
    const known = [...this.model.options].map((option) => option.value);
    if (names.join("\n") === known.join("\n")) return;
    const chosen = this.model.value;
    this.model.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    if (names.includes(chosen)) this.model.value = chosen;
  }

  async ask() {
    const text = this.text.value.trim();
    if (!text) return;
    if (!this.messages.length) this.log.replaceChildren();
    this.text.value = "";
    this.messages.push({ role: "user", content: text });
    this.log.append(h("div", { class: "said user" }, h("p", {}, text)));
    const answer = new Answer();
    this.log.append(answer.element);
    this.stop = new AbortController();
    this.send.textContent = "Stop";
    const isOver = () => this.log.contains(answer.element);
    try {
      await this.stream(answer);
    } catch (error) {
      answer.failed(this.stop.signal.aborted ? "Stopped." : error.message, error.status === 401);
    }
    if (isOver()) {
      if (answer.text) this.messages.push({ role: "assistant", content: answer.text });
      else this.messages.pop();
      answer.element.scrollIntoView({ block: "end" });
    }
    this.stop = null;
    this.send.textContent = "Send";
  }

  async stream(answer) {
    const began = performance.now();
    const body = {
      model: this.model.value,
      messages: this.messages,
      stream: true,
      max_tokens: Number(this.tokens.value) || 256,
      temperature: Number(this.heat.value) || 0,
      stream_options: { include_usage: true },
      armature: { include_info: true },
    };
    const reply = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json", ...apiAuthorization() },
      body: JSON.stringify(body),
      signal: this.stop.signal,
    });
    if (!reply.ok) throw await problem(reply);
    answer.began(reply.headers.get("x-request-id") ?? "", began);
    let text = "";
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      text += part.value;
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        const data = event.replace(/^data: /, "");
        if (data !== "[DONE]") answer.take(JSON.parse(data));
      }
      const { scrollHeight, scrollTop, clientHeight } = document.documentElement;
      if (scrollHeight - scrollTop - clientHeight < 120) this.send.scrollIntoView({ block: "end" });
    }
    answer.ended();
  }
}

class Answer {
  constructor() {
    Object.assign(this, { text: "", id: "", info: null, usage: null, first: 0, last: 0, pieces: 0 });
    this.words = h("p", { class: "words waiting" }, "…");
    this.facts = h("dl", { class: "served" });
    this.element = h("div", { class: "said model" }, this.words, this.facts);
  }

  began(id, at) {
    [this.id, this.at] = [id, at];
  }

  take(chunk) {
    if (chunk.error) throw Object.assign(new Error(chunk.error.message), { status: 0 });
    const delta = chunk.choices?.[0]?.delta ?? {};
    const added = (delta.reasoning_content ?? "") + (delta.content ?? "");
    if (added) {
      const now = performance.now();
      this.first ||= now;
      this.last = now;
      this.pieces += 1;
      this.text += delta.content ?? "";
      if (this.words.classList.contains("waiting")) {
        this.words.classList.remove("waiting");
        this.words.textContent = "";
      }
      this.words.append(added);
    }
    if (chunk.armature) this.info = chunk.armature;
    if (chunk.usage) this.usage = chunk.usage;
    this.tell();
  }

  ended() {
    if (this.words.classList.contains("waiting")) {
      this.words.classList.remove("waiting");
      this.words.textContent = "(nothing)";
    }
    this.tell();
  }

  failed(why, needsKey) {
    if (this.words.classList.contains("waiting")) this.words.remove();
    this.element.append(h("p", { class: "notice", "data-tone": "bad" }, needsKey ? `${why}. Enter an API key above.` : why));
  }

  tell() {
    const { info, usage } = this;
    const facts = [];
    if (info) {
      facts.push(["Decode", info.decode_worker], ["Prefill", info.prefill_worker || "same worker"]);
      facts.push(["First token", seconds(info.ttft_s)]);
    }
    const made = usage?.completion_tokens ?? this.pieces;
    if (made > 1 && this.last > this.first) facts.push(["Between tokens", seconds((this.last - this.first) / 1000 / (made - 1))]);
    if (usage) {
      const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
      facts.push(["Cached", `${count(cached)} of ${count(usage.prompt_tokens)} (${share(cached / usage.prompt_tokens)})`]);
      facts.push(["Made", `${count(made)} tokens`]);
    }
    if (info?.transferred_bytes) facts.push(["Transferred", `${bytes(info.transferred_bytes)} over ${info.transport} in ${seconds(info.transfer_s)}`]);
    if (info?.migrations) facts.push(["Moved", `${info.migrations} times`]);
    this.facts.replaceChildren(...facts.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", { title: text }, text))));
    if (this.id && info) this.facts.append(h("div", { class: "why" }, h("a", { href: `#decisions/${encodeURIComponent(this.id)}` }, "Why there?")));
  }
}
