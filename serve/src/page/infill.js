// The infill editor: a text in which ⟦8⟧ is a gap of 8 tokens, and what it becomes.

import { cellsOf, draw, el, scrubber } from "./cells.js";
import * as server from "./server.js";

const $ = (id) => document.getElementById(id);
const GAP = /⟦\s*(\d+)\s*⟧/g;

/** The segments of a text, as the server takes them. */
export function segments(text) {
  const parts = [];
  let from = 0;
  for (const gap of text.matchAll(GAP)) {
    if (gap.index > from) parts.push(text.slice(from, gap.index));
    parts.push({ mask: Number(gap[1]) });
    from = gap.index + gap[0].length;
  }
  if (from < text.length) parts.push(text.slice(from));
  return parts;
}

export class Infill {
  constructor(settings, say) {
    Object.assign(this, { settings, say, running: null, filled: "" });
    $("fill").addEventListener("submit", (e) => { e.preventDefault(); this.fill(); });
    $("fill-stop").addEventListener("click", () => this.stop());
    $("gap").addEventListener("click", () => this.gap());
    $("fill-take").addEventListener("click", () => { $("text").value = this.filled; $("text").focus(); });
  }

  stop() {
    this.running?.abort();
  }

  /** Makes a gap of what is selected: about as many tokens as it has words, and half as many again. */
  gap() {
    const text = $("text");
    const { selectionStart: start, selectionEnd: end, value } = text;
    const words = value.slice(start, end).trim().split(/\s+/).filter(Boolean).length;
    text.setRangeText(`⟦${words ? Math.ceil(words * 1.5) : 8}⟧`, start, end, "end");
    text.focus();
  }

  async fill() {
    if (this.running) return;
    const parts = segments($("text").value);
    if (!parts.some((part) => part.mask)) return this.say("The text has no gap: write ⟦8⟧ where 8 tokens may go", true);
    this.running = new AbortController();
    const [steps, out] = [[], $("filled")];
    out.setAttribute("aria-busy", "true");
    $("fill-stop").disabled = false;
    $("fill-in").disabled = true;
    this.say("Filling in …");
    const { model, temperature, seed } = this.settings().parameters;
    const body = { model, temperature, seed, segments: parts, stream_options: { include_canvas: $("show-canvas").checked } };
    try {
      let choice;
      for await (const event of server.stream("v1/infill", body, this.running.signal)) {
        if (event.canvas) {
          steps.push(event.canvas);
          draw($("fill-live"), cellsOf(event.canvas));
          $("fill-live").hidden = false;
        }
        choice = event.choices[0]?.segments ? event.choices[0] : choice;
      }
      this.filled = choice.text;
      const piece = (part) => (part.masked ? el("mark", { className: "filled", textContent: part.text }) : part.text);
      out.replaceChildren(el("p", { className: "text" }, ...choice.segments.map(piece)), ...(steps.length ? [scrubber(steps, "the text")] : []));
      $("fill-take").disabled = false;
      this.say("Filled in");
    } catch (error) {
      if (error.name === "AbortError") this.say("Stopped");
      else this.say(error.message, true);
    }
    this.running = null;
    out.removeAttribute("aria-busy");
    $("fill-live").hidden = true;
    $("fill-stop").disabled = true;
    $("fill-in").disabled = false;
  }
}
