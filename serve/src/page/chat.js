// Conversations: asking, streaming, editing, asking again, going on, and what is kept of them.

import { cellsOf, draw, el, scrubber } from "./cells.js";
import * as server from "./server.js";
import * as store from "./store.js";

const $ = (id) => document.getElementById(id);

/** The end of the last whole sentence of a text that has not been shown as such. */
function sentence(text) {
  const ends = [...text.matchAll(/[.!?…。！？]["')\]]*\s|\n/g)];
  const last = ends.at(-1);
  return last ? last.index + last[0].length : 0;
}

export class Chat {
  /** `settings` gives the parameters of a request, `say` writes the status line. */
  constructor(settings, say) {
    this.settings = settings;
    this.say = say;
    this.now = store.fresh();
    this.steps = new WeakMap();
    this.removed = new Set();
    this.running = null;
    $("compose").addEventListener("submit", (e) => { e.preventDefault(); this.send(); });
    $("composer").addEventListener("keydown", (e) => {
      // On a phone, where there is no other way to make one, Enter is a new line.
      const phone = matchMedia("(pointer: coarse)").matches;
      if (e.key === "Enter" && !e.shiftKey && !e.isComposing && !phone) { e.preventDefault(); this.send(); }
    });
    $("stop").addEventListener("click", () => this.stop());
    $("new").addEventListener("click", () => this.open(store.fresh()));
    $("export").addEventListener("click", () => this.export());
    $("import").addEventListener("click", () => $("import-file").click());
    $("import-file").addEventListener("change", () => this.import());
  }

  async begin() {
    const [latest] = await store.all();
    this.open(latest ?? store.fresh(), false);
  }

  /** Shows a conversation. */
  open(conversation, focus = true) {
    this.stop();
    this.now = conversation;
    this.show();
    this.shelf();
    if (focus) $("composer").focus();
  }

  show() {
    const log = $("log");
    // What was said before is not read out again.
    log.setAttribute("aria-live", "off");
    log.replaceChildren(...this.now.messages.map((message, i) => this.message(message, i)));
    log.scrollTop = log.scrollHeight;
    requestAnimationFrame(() => log.setAttribute("aria-live", "polite"));
  }

  message(message, i) {
    const mine = message.role === "user";
    const name = mine ? "You" : "Model";
    return el("article", { className: message.role }, el("h3", { textContent: name }),
      el("p", { className: "text", textContent: message.text }), this.below(message, i));
  }

  /** What stands below a message: figures, steps, and what can be done with it. It is not read out by itself. */
  below(message, i) {
    const act = (text, run) => {
      const button = el("button", { type: "button", textContent: text, ariaLabel: `${text} message ${i + 1}` });
      button.addEventListener("click", run);
      return button;
    };
    const buttons = el("div", { className: "buttons" });
    const last = i === this.now.messages.length - 1;
    if (message.role === "user") {
      buttons.append(act("Edit", () => this.edit(i)));
      if (last && !this.running) buttons.append(act("Ask again", () => this.again(i + 1)));
    } else {
      buttons.append(act("Regenerate", () => this.again(i)));
      if (last && message.cut) buttons.append(act("Continue", () => this.ask(true)));
    }
    const steps = this.steps.get(message);
    return el("div", { ariaLive: "off" }, message.told ? el("p", { className: "told", textContent: message.told }) : null,
      steps?.length ? scrubber(steps, `message ${i + 1}`) : null, buttons);
  }

  async shelf() {
    const conversations = await store.all();
    $("conversations").replaceChildren(...conversations.map((conversation) => {
      const title = conversation.title || "Untitled";
      const open = el("button", { type: "button", className: "open", textContent: title });
      if (conversation.id === this.now.id) open.setAttribute("aria-current", "true");
      open.addEventListener("click", () => this.open(conversation));
      const remove = el("button", { type: "button", textContent: "✕", ariaLabel: `Delete ${title}` });
      remove.addEventListener("click", async () => {
        if (!confirm(`Delete “${title}”?`)) return;
        this.removed.add(conversation.id);
        await store.remove(conversation.id);
        if (conversation.id === this.now.id) this.open(store.fresh());
        else this.shelf();
      });
      return el("li", {}, open, remove);
    }));
  }

  async keep(conversation) {
    if (this.removed.has(conversation.id)) return;
    conversation.changed = Date.now();
    conversation.title ||= (conversation.messages[0]?.text ?? "").trim().slice(0, 60);
    try {
      await store.put(conversation);
      await this.shelf();
    } catch (error) {
      this.say(`the conversation cannot be kept: ${error.message}`, true);
    }
  }

  async export() {
    const url = URL.createObjectURL(new Blob([await store.exported()], { type: "application/json" }));
    el("a", { href: url, download: "dlxc-conversations.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  async import() {
    const [file] = $("import-file").files;
    if (!file) return;
    try {
      const taken = await store.take(await file.text());
      this.say(`${taken} conversation${taken === 1 ? "" : "s"} imported`);
      await this.begin();
    } catch (error) {
      this.say(error.message, true);
    }
    $("import-file").value = "";
  }

  send() {
    const text = $("composer").value;
    if (!text.trim() || this.running) return;
    $("composer").value = "";
    this.now.messages.push({ role: "user", text });
    this.ask();
  }

  edit(i) {
    if (this.running) return;
    $("composer").value = this.now.messages[i].text;
    this.now.messages.length = i;
    this.show();
    this.keep(this.now);
    $("composer").focus();
  }

  again(i) {
    if (this.running) return;
    this.now.messages.length = i;
    this.ask();
  }

  stop() {
    this.running?.abort();
  }

  /** Asks for the next message, or for more of the last one. */
  async ask(more = false) {
    if (this.running) return;
    const conversation = this.now;
    const before = more ? conversation.messages.pop() : null;
    const answer = { role: "assistant", text: before?.text ?? "" };
    const steps = [];
    this.steps.set(answer, steps);
    this.running = new AbortController();
    this.show();
    // The question is there even if the page is closed before its answer.
    if (!more) this.keep(conversation);
    const { system, parameters } = this.settings();
    const messages = [...(system ? [{ role: "system", content: system }] : []), ...conversation.messages.map((m) => ({ role: m.role, content: m.text }))];
    if (more) messages.push({ role: "assistant", content: before.text });
    const options = { include_usage: true, include_canvas: $("show-canvas").checked };
    const body = { ...parameters, messages, stream_options: options, ...(more && { continue_final_message: true }) };

    const log = $("log");
    const settled = el("span", { textContent: answer.text });
    const pending = el("span", { className: "pending" });
    pending.setAttribute("aria-hidden", "true");
    const article = el("article", { className: "assistant" }, el("h3", { textContent: "Model" }), el("p", { className: "text" }, settled, pending));
    log.append(article);
    log.setAttribute("aria-busy", "true");
    $("stop").disabled = false;
    $("send").disabled = true;
    this.say("Answering …");
    let [shown, usage, finish, first] = [answer.text.length, null, null, null];
    const begin = performance.now();
    try {
      for await (const event of server.stream("v1/chat/completions", body, this.running.signal)) {
        const choice = event.choices[0];
        usage = event.usage ?? usage;
        if (event.canvas) {
          steps.push(event.canvas);
          draw($("live"), cellsOf(event.canvas));
          if ($("live").hidden) {
            $("live").hidden = false;
            log.scrollTop = log.scrollHeight;
          }
        }
        finish = choice?.finish_reason ?? finish;
        const piece = choice?.delta?.content;
        if (!piece) continue;
        first ??= performance.now();
        answer.text += piece;
        const end = shown + sentence(answer.text.slice(shown));
        if (end > shown) settled.append(el("span", { textContent: answer.text.slice(shown, end) }));
        shown = end;
        pending.textContent = answer.text.slice(shown);
        log.scrollTop = log.scrollHeight;
      }
      this.say("Answered");
    } catch (error) {
      finish = "length";
      if (error.name === "AbortError") this.say("Stopped");
      else this.say(`${error.message}${error.retryAfter ? `; try again in ${error.retryAfter} s` : ""}`, true);
    }
    const seconds = (performance.now() - begin) / 1000;
    if (usage) {
      const [tokens, wait] = [usage.completion_tokens, ((first ?? performance.now()) - begin) / 1000];
      answer.told = `${tokens} tokens in ${seconds.toFixed(2)} s, ${(tokens / seconds).toFixed(1)} per second, the first text after ${wait.toFixed(2)} s`;
    }
    if (finish === "length") answer.cut = true;
    // Nothing is kept of a question that was refused but the question.
    if (answer.text) conversation.messages.push(answer);
    await this.keep(conversation);
    this.running = null;
    settled.append(answer.text.slice(shown));
    pending.textContent = "";
    log.removeAttribute("aria-busy");
    $("live").hidden = true;
    $("stop").disabled = true;
    $("send").disabled = false;
    if (this.now === conversation) {
      if (answer.text) article.append(this.below(answer, conversation.messages.length - 1));
      else this.show();
      log.scrollTop = log.scrollHeight;
    }
  }
}
