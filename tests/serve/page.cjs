// Opens the server's page in Chromium and does what people do with it; see page.sh.
"use strict";
const fs = require("fs");
const http = require("http");
const path = require("path");
const { createRequire } = require("module");

const from = createRequire(path.join(process.env.OUT, "node_modules", "x.js"));
const axe = fs.readFileSync(from.resolve("axe-core/axe.min.js"), "utf8");
const [OPEN, LOCKED] = process.argv.slice(2);
const PREFIX = "/models/dlxc/";
const STORY = "Tell me a story about a fox and a river.";
const failures = [];
const check = (name, right, told) => { if (!right) failures.push(told == null ? name : `${name}: ${told}`); };
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// A server before the server, which has it under a path of its own, and may be slow or away.
const front = { slow: 0, away: false };
const proxy = http.createServer((request, response) => {
  if (!request.url.startsWith(PREFIX)) return response.writeHead(404).end();
  // The page itself is there.
  if (front.away && request.url.startsWith(`${PREFIX}v1/`)) return request.socket.destroy();
  const to = { method: request.method, path: request.url.slice(PREFIX.length - 1), headers: request.headers };
  const onward = http.request(OPEN, to, async (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    if (!front.slow || !answer.headers["content-type"].startsWith("text/event-stream")) return answer.pipe(response);
    let [text, whole] = ["", false];
    answer.on("data", (bytes) => { text += bytes; });
    answer.on("end", () => { whole = true; });
    while ((text || !whole) && !response.destroyed) {
      const end = text.indexOf("\n\n") + 2;
      if (end > 1) response.write(text.slice(0, end));
      text = end > 1 ? text.slice(end) : text;
      await sleep(front.slow);
    }
    response.end();
  });
  response.on("close", () => onward.destroy());
  onward.on("error", () => response.destroy());
  request.pipe(onward);
});

const complaints = (page) => page.evaluate(async () => {
  const { violations } = await window.axe.run(document, { resultTypes: ["violations"] });
  return violations.map((v) => `${v.id} (${v.nodes.length}): ${v.help}: ${v.nodes[0].html.slice(0, 140)} ${v.nodes[0].failureSummary.slice(0, 200)}`);
});

const text = (page, selector) => page.$eval(selector, (e) => e.textContent);
const status = (page, wanted) => page.waitForFunction((w) => document.getElementById("status").textContent.startsWith(w), { timeout: 20000 }, wanted)
  .catch(async () => { throw new Error(`the status is ${JSON.stringify(await text(page, "#status"))}, not ${wanted}`); });
const messages = (page) => page.$$eval("#log article .text:first-of-type", (all) => all.map((e) => e.textContent));
const focused = (page) => page.evaluate(() => document.activeElement.id);
const set = (page, id, value) => page.$eval(`#${id}`, (e, v) => { e.value = v; e.dispatchEvent(new Event("change")); }, value);
const button = (page, label) => page.$(`#log button[aria-label="${label}"]`);

/** Goes on with the Tab key until something has the focus. */
async function tabTo(page, what, selector) {
  for (let i = 0; i < 60; i += 1) {
    if (await page.evaluate((s) => document.activeElement.matches(s), selector)) return;
    await page.keyboard.press("Tab");
  }
  check(what, false, `the Tab key never comes to ${selector}`);
}

/** A page that reports what it should not do. `known` are console messages that belong there. */
async function opened(browser, url, name, known = /^$/) {
  // Each with a storage of its own.
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  page.on("console", (m) => { if (["error", "warn"].includes(m.type()) && !known.test(m.text())) failures.push(`${name}: console: ${m.text()}`); });
  page.on("pageerror", (e) => failures.push(`${name}: ${e.message}`));
  page.on("dialog", async (d) => {
    if (d.type() !== "confirm") failures.push(`${name}: a text ran: ${d.message()}`);
    await d.accept();
  });
  page.on("request", (r) => { if (!r.url().startsWith(url) && !r.url().startsWith("blob:")) failures.push(`${name}: asks for ${r.url()}`); });
  await page.evaluateOnNewDocument(() => {
    document.addEventListener("securitypolicyviolation", (e) => console.error(`forbidden: ${e.violatedDirective} ${e.blockedURI}`));
  });
  await page.setViewport({ width: 1200, height: 800 });
  await page.goto(url);
  return page;
}

/** Looks at a view in both color schemes and as narrow as on a phone. */
async function look(page, name) {
  for (const [kind, width, height] of [["", 1200, 800], ["phone-", 360, 740]]) {
    await page.setViewport({ width, height });
    for (const scheme of ["light", "dark"]) {
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      check(name, wide <= 0, `is ${wide} px wider than a screen of ${width}`);
      await page.screenshot({ path: path.join(process.env.OUT, `${name}-${kind}${scheme}.png`) });
      await page.evaluate(axe);
      for (const told of await complaints(page)) failures.push(`${name} ${scheme} ${width}: ${told}`);
    }
  }
  await page.emulateMediaFeatures([]);
  await page.setViewport({ width: 1200, height: 800 });
}

async function chat(page) {
  await status(page, "Ready");
  check("models", (await page.$$eval("#model option", (all) => all.map((o) => o.value).join())) === "llada,sdar");
  // From the top of the page to an answer, without a mouse.
  await tabTo(page, "chat", ".skip");
  await page.keyboard.press("Enter");
  check("chat", (await focused(page)) === "composer", "the first link does not go to the composer");
  await page.keyboard.down("Shift");
  await tabTo(page, "chat", "#model");
  await page.keyboard.up("Shift");
  await page.keyboard.type("sdar");
  check("chat", (await page.$eval("#model", (e) => e.value)) === "sdar", "the keyboard chooses no model");
  await tabTo(page, "chat", "#composer");
  await page.keyboard.type("What is 27 + 45?");
  await page.keyboard.press("Enter");
  await status(page, "Answered");
  check("chat", (await messages(page)).join("|") === "What is 27 + 45?|72", await messages(page));
  check("chat", (await focused(page)) === "composer", "the focus has left the composer");
  check("chat", /^\d+ tokens in [\d.]+ s, [\d.]+ per second/.test(await text(page, "#log article:last-child .told")), "no figures");

  // The block is seen while it is denoised, and what is settled is read out a sentence at a time.
  await page.evaluate(() => {
    const log = document.getElementById("log");
    window.seen = { blocks: [], said: [], hidden: new Set(), busy: false };
    new MutationObserver(() => {
      const cells = [...document.querySelectorAll("#live .cell")];
      window.seen.blocks.push(cells.map((cell) => (cell.classList.contains("masked") ? 1 : 0)));
      window.seen.hidden.add(document.getElementById("live").getAttribute("aria-hidden"));
      window.seen.busy ||= log.getAttribute("aria-busy") === "true";
      window.seen.live = log.getAttribute("aria-live");
    }).observe(document.getElementById("live"), { childList: true });
    new MutationObserver((all) => {
      for (const node of all.flatMap((one) => [...one.addedNodes])) {
        if (node.textContent && !node.parentElement?.closest("[aria-hidden], [aria-live=off]") && node.parentElement?.matches(".text span")) window.seen.said.push(node.textContent);
      }
    }).observe(log, { childList: true, subtree: true });
  });
  // A model that is less sure, and sees a longer block.
  front.slow = 250;
  await page.select("#model", "llada");
  await set(page, "temperature", "1.3");
  await set(page, "seed", "3");
  await page.focus("#composer");
  await page.keyboard.type(STORY);
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => window.seen.blocks.length > 0);
  await page.screenshot({ path: path.join(process.env.OUT, "live.png") });
  await status(page, "Answered");
  front.slow = 0;
  const seen = await page.evaluate(() => ({ ...window.seen, hidden: [...window.seen.hidden] }));
  const story = (await messages(page))[3];
  check("canvas", seen.blocks.some((block) => block.includes(1)) && seen.blocks.some((block) => block.length && !block.includes(1)), "no block is denoised");
  check("canvas", seen.hidden.join() === "true" && seen.busy && seen.live === "polite", "screen readers are told of the canvas");
  check("log", seen.said.length > 1 && seen.said.join("") === story, `is read out as ${JSON.stringify(seen.said)}`);
  check("canvas", await page.$eval("#live", (e) => e.hidden), "the block stays when it is done");
}

async function steps(page) {
  await page.focus("#log article:last-child summary");
  await page.keyboard.press("Enter");
  const range = "#log article:last-child input[type=range]";
  const told = () => text(page, "#log article:last-child .steps .told");
  const masked = () => page.$$eval("#log article:last-child .cell.masked", (all) => all.length);
  await page.waitForSelector("#log article:last-child .cell");
  const [, last] = /^Step (\d+) of \1: /.exec(await told()) ?? [];
  check("steps", last > 4 && (await masked()) === 0, `do not begin at the end: ${await told()}`);
  await page.focus(range);
  await page.keyboard.press("Home");
  check("steps", (await told()).startsWith(`Step 1 of ${last}: `) && (await masked()) > 0, await told());
  await page.keyboard.press("ArrowRight");
  check("steps", (await told()).startsWith(`Step 2 of ${last}: `), await told());
  check("steps", (await page.$eval(range, (e) => e.getAttribute("aria-valuetext"))) === (await told()), "a screen reader hears a number alone");
  await page.keyboard.press("End");
  const [before, story] = [await text(page, "#log article:last-child .before"), (await messages(page)).at(-1)];
  check("steps", before.length > 4 && story.startsWith(before), `before the block stands ${JSON.stringify(before)}`);
  await page.keyboard.press("Tab");
  const named = () => page.evaluate(() => document.activeElement.getAttribute("aria-label"));
  const first = await named();
  check("steps", /^position \d+: (un)?decided/.test(first), `a cell says ${first}`);
  await page.keyboard.press("ArrowRight");
  check("steps", (await named()) !== first && (await text(page, "#log article:last-child .steps > :last-child")) === (await named()), "the arrows do not go from cell to cell");
  await page.$eval("#log", (log) => { log.scrollTop = log.scrollHeight; });
  await look(page, "chat");
}

async function more(page) {
  // An answer that is cut can go on.
  await page.select("#model", "sdar");
  await set(page, "temperature", "");
  await set(page, "max-tokens", "8");
  await (await button(page, "Regenerate message 4")).press("Enter");
  await status(page, "Answered");
  const begun = (await messages(page))[3];
  await set(page, "max-tokens", "");
  await (await button(page, "Continue message 4")).press("Enter");
  await page.waitForFunction((n) => document.querySelectorAll("#log article")[3]?.querySelector("button[aria-label^=Regenerate]") && document.querySelectorAll("#log .text")[3].textContent.length > n, { timeout: 20000 }, begun.length);
  const whole = (await messages(page))[3];
  check("continue", whole.startsWith(begun) && whole.length > begun.length + 10, whole);
  // Escape stops, and what has come stays.
  front.slow = 60;
  await page.focus("#composer");
  await page.keyboard.type("Tell me a story about a bear and a cave.");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector("#log article:last-child .text").textContent.length > 10);
  await page.keyboard.press("Escape");
  await status(page, "Stopped");
  front.slow = 0;
  await page.waitForSelector('#log button[aria-label="Continue message 6"]');
  check("stop", (await focused(page)) === "composer", "the focus has left the composer");
  await (await button(page, "Edit message 5")).press("Enter");
  check("edit", (await page.$eval("#composer", (e) => e.value)).includes("bear") && (await messages(page)).length === 4, await messages(page));
  await page.$eval("#composer", (e) => { e.value = "<img src=x onerror=alert(1)> 1 < 2 &amp; 3"; });
  await page.focus("#composer");
  await page.keyboard.press("Enter");
  await status(page, "Answered");
  check("text", (await messages(page))[4].includes("<img src=x") && !(await page.$("#log img")), "a message becomes markup");
  // A conversation that is left while it is answered is kept as it is, and one that is deleted stays away.
  front.slow = 60;
  await page.click("#new");
  await page.type("#composer", STORY);
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector("#log article:last-child .text").textContent.length > 10);
  await page.click("#new");
  await page.waitForFunction((title) => [...document.querySelectorAll("#conversations .open")].some((e) => e.textContent === title), {}, STORY);
  await sleep(200);
  const titles = () => page.$$eval("#conversations .open", (all) => all.map((e) => e.textContent));
  check("leave", (await titles()).join("|") === `${STORY}|What is 27 + 45?`, await titles());
  check("leave", (await messages(page)).length === 0, "an answer comes into another conversation");
  await page.click("#conversations li:first-child .open");
  await page.waitForFunction(() => document.querySelectorAll("#log article").length === 2);
  check("leave", (await messages(page))[1].length > 10, "what had come of the answer is lost");
  await (await button(page, "Regenerate message 2")).press("Enter");
  await page.waitForFunction(() => document.querySelector("#log article:last-child .pending")?.textContent.length > 5);
  await page.click("#conversations li:first-child button:last-child");
  await sleep(300);
  check("delete", (await titles()).join("|") === "What is 27 + 45?", await titles());
  front.slow = 0;
}

async function kept(page) {
  await page.reload();
  await status(page, "Ready");
  await page.waitForSelector("#log article");
  const before = await messages(page);
  check("kept", before[1] === "72" && before.length === 6, before);
  check("kept", (await page.$eval("#model", (e) => e.value)) === "sdar", "the model is forgotten");
  const cdp = await page.createCDPSession();
  await cdp.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: process.env.OUT, browserContextId: page.browserContext().id });
  const file = path.join(process.env.OUT, "dlxc-conversations.json");
  fs.rmSync(file, { force: true });
  await page.click("#export");
  for (let i = 0; i < 100 && !fs.existsSync(file); i += 1) await sleep(50);
  await sleep(100);
  check("export", JSON.parse(fs.readFileSync(file, "utf8")).conversations.length === 1, "holds no conversation");
  await page.click("#conversations li button:last-child");
  await page.waitForFunction(() => !document.querySelector("#conversations li") && !document.querySelector("#log article"));
  const bring = async (what) => {
    const [chooser] = await Promise.all([page.waitForFileChooser(), page.click("#import")]);
    await chooser.accept([what]);
  };
  await bring(file);
  await status(page, "1 conversation imported");
  check("import", (await messages(page)).join("|") === before.join("|"), await messages(page));
  fs.writeFileSync(file, '{"version": 1, "conversations": [{"id": 7}]}');
  await bring(file);
  await status(page, "a conversation in the file cannot be read");
  check("import", (await messages(page)).length === before.length, "a broken file changes something");
}

async function infill(page) {
  await tabTo(page, "infill", 'nav a[href="#infill"]');
  await page.keyboard.press("Enter");
  await page.waitForSelector("#infill:not([hidden])");
  // A model that cannot fill in says so.
  await page.focus("#fill-in");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#status.wrong");
  check("infill", /fill|gap/.test(await text(page, "#status")), await text(page, "#status"));
  await page.select("#model", "llada");
  const words = await page.$eval("#text", (e) => {
    e.value = "Once upon a time, a red fox lived by the river. One day it found a gold coin there. The fox laughed and went home.";
    const gap = "One day it found a gold coin there.";
    e.focus();
    e.setSelectionRange(e.value.indexOf(gap), e.value.indexOf(gap) + gap.length);
    return gap.split(" ").length;
  });
  await tabTo(page, "infill", "#gap");
  await page.keyboard.press("Enter");
  const gapped = await page.$eval("#text", (e) => e.value);
  check("infill", gapped === `Once upon a time, a red fox lived by the river. ⟦${Math.ceil(words * 1.5)}⟧ The fox laughed and went home.`, gapped);
  front.slow = 250;
  await tabTo(page, "infill", "#fill-in");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelectorAll("#fill-live .cell").length > 0);
  await sleep(400);
  await page.screenshot({ path: path.join(process.env.OUT, "live-infill.png") });
  await status(page, "Filled in");
  front.slow = 0;
  const parts = await page.$eval("#filled .text", (p) => [...p.childNodes].map((n) => [n.nodeName === "MARK", n.textContent]));
  check("infill", parts.length === 3 && parts[1][0] && parts[1][1].length > 3, JSON.stringify(parts));
  check("infill", parts[0][1] === "Once upon a time, a red fox lived by the river. " && parts[2][1] === " The fox laughed and went home.", "what stays has changed");
  await page.focus("#filled summary");
  await page.keyboard.press("Enter");
  await page.focus("#filled input[type=range]");
  await page.keyboard.press("Home");
  check("infill", (await page.$$eval("#filled .cell.masked", (all) => all.length)) > 0, "the first step has no gap");
  await look(page, "infill");
  await page.keyboard.press("End");
  check("infill", (await page.$$eval("#filled .cell.masked", (all) => all.length)) === 0, "the last step has a gap");
  await page.focus("#fill-take");
  await page.keyboard.press("Enter");
  check("infill", (await page.$eval("#text", (e) => e.value)) === parts.map(([, part]) => part).join(""), "the text is not taken over");
}

async function metrics(page) {
  await page.focus('nav a[href="#metrics"]');
  await page.keyboard.press("Enter");
  await page.waitForSelector("#numbers tbody tr");
  const heads = await page.$$eval("#numbers thead th", (all) => all.map((e) => e.textContent).join());
  check("metrics", heads === "What,llada,sdar", heads);
  const ask = () => fetch(`${OPEN}/v1/chat/completions`, {
    method: "POST", headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "sdar", messages: [{ role: "user", content: STORY }], ignore_eos: true, max_tokens: 400 }),
  });
  // Answers enough to be seen between two looks.
  let on = true;
  const asking = Promise.all(Array.from({ length: 4 }, async () => { while (on) await (await ask()).json(); }));
  const figure = (title) => page.$$eval("#numbers tbody tr", (rows, t) => Number([...rows.find((r) => r.firstChild.textContent === t).children][3].textContent), title);
  await page.waitForFunction(() => {
    const row = [...document.querySelectorAll("#numbers tbody tr")].find((r) => r.firstChild.textContent === "Tokens of answers per second");
    return Number(row.children[3].textContent) > 0;
  }, { timeout: 20000 });
  await sleep(4500);
  for (const title of ["Requests running", "Cache slots", "Tokens of answers per second", "Steps per second", "Rows per second"]) check("metrics", (await figure(title)) > 0, `${title} is 0`);
  check("metrics", (await page.$$eval("#numbers polyline", (all) => all.some((e) => e.getAttribute("points").split(" ").length > 2))), "no curves");
  await look(page, "metrics");
  on = false;
  await asking;
}

async function away(page) {
  // The server goes and comes back; meanwhile the page can be used.
  front.away = true;
  await page.evaluate(() => { location.hash = "chat"; });
  await page.waitForSelector("#chat:not([hidden])");
  await page.select("#model", "sdar");
  await page.click("#new");
  await page.type("#composer", "What is 27 + 45?");
  await page.keyboard.press("Enter");
  await status(page, "the server does not answer");
  await page.waitForFunction(() => !document.getElementById("send").disabled);
  check("away", (await messages(page)).join("|") === "What is 27 + 45?", "the question is lost");
  await page.reload();
  await status(page, "the server does not answer; trying again in 5 s");
  front.away = false;
  await status(page, "Ready");
  await page.waitForSelector("#log article");
  await (await button(page, "Ask again message 1")).press("Enter");
  await status(page, "Answered");
  check("away", (await messages(page)).join("|") === "What is 27 + 45?|72", await messages(page));
}

async function still(page) {
  await page.emulateMediaFeatures([{ name: "prefers-reduced-motion", value: "reduce" }]);
  front.slow = 40;
  await page.type("#composer", STORY);
  await page.keyboard.press("Enter");
  await page.waitForSelector("#live .cell");
  check("still", await page.$eval("#live", (e) => getComputedStyle(e).display === "none"), "the block moves where motion is not wanted");
  await status(page, "Answered");
  front.slow = 0;
}

async function phone(browser, url) {
  const page = await opened(browser, url, "phone");
  await page.setViewport({ width: 390, height: 760, hasTouch: true, isMobile: true });
  await page.reload();
  await status(page, "Ready");
  await page.select("#model", "llada");
  await page.type("#composer", STORY);
  await page.keyboard.press("Enter");
  check("phone", (await page.$eval("#composer", (e) => e.value)) === `${STORY}\n`, "Enter makes no new line");
  front.slow = 60;
  await page.tap("#send");
  await page.waitForFunction(() => document.querySelectorAll("#live .cell:not(.masked)").length > 12, { timeout: 20000 });
  await page.screenshot({ path: path.join(process.env.OUT, "live-phone.png") });
  front.slow = 0;
  await status(page, "Answered");
  await page.browserContext().close();
}

async function locked(browser) {
  const page = await opened(browser, `${LOCKED}/`, "locked", /status of 401/);
  const asks = (what) => page.waitForFunction((w) => document.getElementById("status").textContent === w && document.activeElement.id === "key", { timeout: 5000 }, what);
  await asks("The server asks for an API key");
  await look(page, "locked");
  await page.keyboard.type("guess");
  await page.keyboard.press("Enter");
  await asks("The server does not know this API key: give another");
  await page.$eval("#key", (e) => e.select());
  await page.keyboard.type("secret");
  await page.keyboard.press("Enter");
  await status(page, "Ready");
  await page.select("#model", "sdar");
  await page.focus("#composer");
  await page.keyboard.type("What is 27 + 45?");
  await page.keyboard.press("Enter");
  await status(page, "Answered");
  check("locked", (await messages(page))[1] === "72", await messages(page));
  check("locked", !(await page.evaluate(() => JSON.stringify(localStorage))).includes("secret"), "the key is kept when the tab is closed");
  const [, policy] = await page.evaluate(async () => { const r = await fetch(location.pathname); return [r.status, r.headers.get("content-security-policy")]; });
  check("locked", policy.startsWith("default-src 'self';") && !/unsafe|\*|http/.test(policy), policy);
  await page.browserContext().close();
}

(async () => {
  const { default: puppeteer } = await import(from.resolve("puppeteer-core"));
  await new Promise((done) => proxy.listen(0, "127.0.0.1", done));
  const url = `http://127.0.0.1:${proxy.address().port}${PREFIX}`;
  const browser = await puppeteer.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox", "--disable-gpu"] });
  try {
    // A server that is away is told of in the console.
    const page = await opened(browser, url, "page", /ERR_EMPTY_RESPONSE|ERR_CONNECTION|status of 400/);
    for (const part of [chat, steps, more, kept, infill, metrics, away, still]) {
      await part(page);
      console.log(part.name);
    }
    await phone(browser, url);
    await locked(browser);
    console.log("phone, locked");
  } catch (error) {
    failures.push(error.stack);
  } finally {
    await browser.close();
    proxy.close();
    proxy.closeAllConnections();
  }
  for (const told of failures) console.error(`failed: ${told}`);
  console.log(failures.length ? `${failures.length} failures` : "everything as it should be");
  process.exitCode = failures.length ? 1 : 0;
})();
