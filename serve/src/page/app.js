// The page: views, settings, the status line, and which models there are.

import { Chat } from "./chat.js";
import { el } from "./cells.js";
import { Infill } from "./infill.js";
import { Metrics } from "./metrics.js";
import * as server from "./server.js";

const $ = (id) => document.getElementById(id);
const VIEWS = ["chat", "infill", "metrics"];
const SETTINGS = ["system", "max-tokens", "temperature", "seed", "show-canvas"];

const say = (text, wrong = false) => {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
};

/** What requests ask for, by the settings. */
function settings() {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const parameters = { model: $("model").value, max_tokens: number("max-tokens"), temperature: number("temperature"), seed: number("seed") };
  return { system: $("system").value.trim(), parameters };
}

function remember() {
  const of = (id) => ($(id).type === "checkbox" ? $(id).checked : $(id).value);
  localStorage.setItem("dlxc-settings", JSON.stringify(Object.fromEntries(SETTINGS.map((id) => [id, of(id)]))));
}

function recall() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem("dlxc-settings")) ?? {};
  } catch {
    // Nothing that can be read was kept.
  }
  for (const id of SETTINGS) {
    if (typeof kept[id] === "boolean" && $(id).type === "checkbox") $(id).checked = kept[id];
    if (typeof kept[id] === "string" && $(id).type !== "checkbox") $(id).value = kept[id];
  }
  $("key").value = server.key.get();
}

/** Asks which models there are until the server says so; the page can be used meanwhile. */
async function models() {
  clearTimeout(models.timer);
  try {
    const names = await server.models();
    const chosen = $("model").value || localStorage.getItem("dlxc-model");
    $("model").replaceChildren(...names.map((name) => el("option", { value: name, textContent: name })));
    if (names.includes(chosen)) $("model").value = chosen;
    say(names.length ? "Ready" : "No model is loaded", !names.length);
    // One may be loaded while the server runs.
    if (!names.length) models.timer = setTimeout(models, 5000);
  } catch (error) {
    const wait = error.retryAfter ?? 5;
    if (error.status === 401) {
      say(server.key.get() ? "The server does not know this API key: give another" : "The server asks for an API key", true);
      $("settings").open = true;
      return $("key").focus();
    }
    say(`${error.message}; trying again in ${wait} s`, true);
    models.timer = setTimeout(models, wait * 1000);
  }
}

const chat = new Chat(settings, say);
const infill = new Infill(settings, say);
const metrics = new Metrics(say);

function view() {
  const wanted = location.hash.slice(1);
  const chosen = VIEWS.includes(wanted) ? wanted : "chat";
  for (const name of VIEWS) {
    $(name).hidden = name !== chosen;
    const link = document.querySelector(`nav a[href="#${name}"]`);
    if (name === chosen) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  metrics.watch(chosen === "metrics");
}

addEventListener("hashchange", view);
addEventListener("keydown", (e) => {
  if (e.key !== "Escape") return;
  chat.stop();
  infill.stop();
});
for (const id of SETTINGS) $(id).addEventListener("change", remember);
$("key").addEventListener("change", () => { server.key.set($("key").value.trim()); models(); });
$("model").addEventListener("change", () => localStorage.setItem("dlxc-model", $("model").value));
$("settings").querySelector("form").addEventListener("submit", (e) => e.preventDefault());

recall();
view();
$("shelf").open = matchMedia("(min-width: 48.01rem)").matches;
models();
chat.begin().catch((error) => say(`conversations cannot be kept here: ${error.message}`, true));
