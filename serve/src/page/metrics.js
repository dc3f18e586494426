// Metrics of the server, by model, with what they were in the last two minutes.

import { el } from "./cells.js";
import * as server from "./server.js";

const EVERY = 2000;
const KEPT = 60;
const ROWS = [
  ["Requests running", "dlxc_requests_running"],
  ["Requests waiting", "dlxc_requests_waiting"],
  ["Cache slots taken", "dlxc_cache_slots_taken"],
  ["Cache slots", "dlxc_cache_slots"],
  ["Tokens of answers per second", "dlxc_completion_tokens_total", true],
  ["Tokens of prompts per second", "dlxc_prompt_tokens_total", true],
  ["Steps per second", "dlxc_steps_total", true],
  ["Rows per second", "dlxc_step_rows_total", true],
];

/** Numbers by model and name. */
function read(text) {
  const found = new Map();
  for (const [, name, model, value] of text.matchAll(/^(\w+)\{model="((?:[^"\\]|\\.)*)"\} (\S+)$/gm)) {
    if (!found.has(model)) found.set(model, {});
    found.get(model)[name] = Number(value);
  }
  return found;
}

/** A curve of numbers, which the cell beside it says. */
function curve(values) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  const top = Math.max(1, ...values);
  // Now is at the right.
  const before = KEPT - values.length;
  line.setAttribute("points", values.map((v, i) => `${(((before + i) * 100) / (KEPT - 1)).toFixed(1)},${(20 - (v / top) * 18).toFixed(1)}`).join(" "));
  for (const [name, value] of [["viewBox", "0 0 100 20"], ["preserveAspectRatio", "none"], ["class", "curve"], ["aria-hidden", "true"]]) svg.setAttribute(name, value);
  svg.append(line);
  return svg;
}

export class Metrics {
  constructor(say) {
    this.say = say;
    this.history = new Map();
    this.before = null;
  }

  /** Begins or ends to look. */
  watch(on) {
    clearInterval(this.timer);
    if (!on) return;
    this.look();
    this.timer = setInterval(() => !document.hidden && this.look(), EVERY);
  }

  async look() {
    try {
      const now = { at: performance.now(), models: read(await server.metrics()) };
      this.draw(now);
      this.before = now;
    } catch (error) {
      this.say(error.message, true);
    }
  }

  draw({ at, models }) {
    const names = [...models.keys()].sort();
    const value = (model, name, rate) => {
      const current = models.get(model)[name] ?? 0;
      if (!rate) return current;
      const old = this.before?.models.get(model)?.[name];
      return old == null || current < old ? 0 : ((current - old) * 1000) / (at - this.before.at);
    };
    const rows = ROWS.map(([title, name, rate]) => {
      const cells = names.flatMap((model) => {
        const now = value(model, name, rate);
        const id = `${model} ${name}`;
        const kept = [...(this.history.get(id) ?? []), now].slice(-KEPT);
        this.history.set(id, kept);
        return [el("td", { textContent: rate ? now.toFixed(1) : String(now) }), el("td", {}, curve(kept))];
      });
      return el("tr", {}, el("th", { scope: "row", textContent: title }), ...cells);
    });
    const heads = names.map((model) => el("th", { scope: "col", colSpan: 2, textContent: model }));
    document.getElementById("numbers").replaceChildren(
      el("caption", { textContent: "By model" }),
      el("thead", {}, el("tr", {}, el("th", { scope: "col", textContent: "What" }), ...heads)), el("tbody", {}, ...rows));
  }
}
