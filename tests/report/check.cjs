// Opens pages of `dlxc report` in Chromium and checks what a reader needs; see run.sh.
"use strict";
const fs = require("fs");
const path = require("path");
const { createRequire } = require("module");

const from = createRequire(path.join(process.env.OUT, "node_modules", "x.js"));
const axe = fs.readFileSync(from.resolve("axe-core/axe.min.js"), "utf8");
const SIZES = [[1600, 1000], [1400, 900], [390, 844], [360, 740]];
const failures = [];
const check = (name, right, told) => { if (!right) failures.push(`${name}${told ? `: ${told}` : ""}`); };

// What is wrong with how a page moves, by section; runs in the page's own order of sections.
const MOVES = {
  compare: async (page, name) => {
    const told = () => page.$eval("#c-told", (e) => e.textContent);
    check(name, /\d+ added, \d+ removed/.test(await told()), "the comparison says nothing");
    const before = await told();
    await page.focus("#c-right");
    await page.keyboard.press("End");
    await page.keyboard.press("ArrowUp");
    const stages = await page.$$eval("#c-right option", (o) => o.length);
    if (stages > 2) check(name, (await told()) !== before || (await page.$eval("#c-right", (e) => e.value)) !== "1", "another stage changes nothing");
    const fold = await page.$("#c-rows .fold button");
    if (fold) {
      const rows = await page.$$eval("#c-rows tr", (r) => r.length);
      await fold.focus();
      await page.keyboard.press("Enter");
      check(name, (await page.$$eval("#c-rows tr", (r) => r.length)) > rows, "a fold does not open");
    }
  },
  memory: async (page, name) => {
    if (await page.$("#m-plot")) check(name, (await page.$$eval("#m-plot .value", (v) => v.length)) > 3, "no values are drawn");
  },
  graph: async (page, name) => {
    const boxes = await page.$$eval("#g-svg .box", (b) => b.length);
    check(name, boxes > 1, "no boxes are drawn");
    await page.$eval("#g-svg .box[tabindex='0']", (box) => box.focus());
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("Enter");
    check(name, (await page.$$eval("#g-svg .chosen", (b) => b.length)) === 1, "the keyboard chooses no box");
    check(name, (await page.$eval("#g-told", (e) => e.textContent)).length > 10, "a chosen box says nothing");
    const many = await page.$("#g-svg .box.many");
    if (many) {
      await many.evaluate((box) => box.focus());
      await page.keyboard.press("Enter");
      await page.focus("#g-told button");
      await page.keyboard.press("Enter");
      check(name, (await page.$$eval("#g-svg .box", (b) => b.length)) > boxes, "a layer does not unfold");
    }
  },
  decode: async (page, name) => {
    const told = () => page.$eval("#d-told", (e) => e.textContent);
    const first = await told();
    check(name, first.startsWith("Pass 1 of "), first);
    await page.focus("#decode-h");
    await page.keyboard.press("ArrowRight");
    check(name, (await told()).startsWith("Pass 2 of "), "the right arrow does not step");
    await page.keyboard.press("ArrowLeft");
    check(name, (await told()) === first, "the left arrow does not step back");
    await page.keyboard.press("End");
    const last = await told();
    const [, at, of] = /Pass (\d+) of (\d+)/.exec(last);
    check(name, at === of, "End does not go to the end");
    await page.focus("#d-first");
    await page.keyboard.press("Enter");
    check(name, (await told()) === first, "the button First does not go back");
    await page.focus("#d-play");
    await page.keyboard.press("Space");
    await new Promise((done) => setTimeout(done, 1500));
    check(name, (await told()) !== first, "playing does not step");
    await page.keyboard.press("Space");
    check(name, (await page.$eval("#d-play", (e) => e.getAttribute("aria-pressed"))) === "false", "playing does not stop");
  },
};

const complaints = (page) => page.evaluate(async () => {
  const { violations } = await window.axe.run(document, { resultTypes: ["violations"] });
  return violations.map((v) => `${v.id} (${v.nodes.length}): ${v.help}: ${v.nodes[0].html.slice(0, 140)} ${v.nodes[0].failureSummary.slice(0, 200)}`);
});

const visit = async (browser, file) => {
  const base = path.basename(file, ".html");
  const page = await browser.newPage();
  page.on("console", (m) => { if (["error", "warn"].includes(m.type())) failures.push(`${base}: console: ${m.text()}`); });
  page.on("pageerror", (e) => failures.push(`${base}: ${e.message}`));
  page.on("dialog", async (d) => { failures.push(`${base}: a text of a file ran: ${d.message()}`); await d.dismiss(); });
  page.on("request", (r) => { if (r.url() !== `file://${file}` && !r.url().startsWith(`file://${file}#`)) failures.push(`${base}: asks for ${r.url()}`); });
  await page.evaluateOnNewDocument(() => {
    window.shifted = 0;
    const add = (list) => list.getEntries().forEach((e) => { if (!e.hadRecentInput) window.shifted += e.value; });
    new PerformanceObserver(add).observe({ type: "layout-shift", buffered: true });
  });
  await page.setViewport({ width: 1400, height: 900 });
  await page.goto(`file://${file}`);
  await new Promise((done) => setTimeout(done, 300));
  const shift = await page.evaluate(() => window.shifted);
  check(base, shift < 0.02, `shifts its layout by ${shift}`);
  const sections = await page.$$eval("nav a", (links) => links.map((a) => a.hash.slice(1)));
  check(base, sections.length > 0, "no sections");
  for (const section of sections) {
    const name = `${base}#${section}`;
    await page.setViewport({ width: 1400, height: 900 });
    await page.focus(`nav a[href="#${section}"]`);
    await page.keyboard.press("Enter");
    await page.waitForFunction((id) => document.activeElement.id === `${id}-h`, { timeout: 3000 }, section).catch(() => check(name, false, "the heading gets no focus"));
    const shown = await page.$$eval("main > section", (all) => all.filter((s) => !s.hidden).map((s) => s.id));
    check(name, shown.join() === section, `shows ${shown.join()}`);
    if (MOVES[section]) await MOVES[section](page, name);
    for (const scheme of ["light", "dark"]) {
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      for (const [width, height] of SIZES) {
        await page.setViewport({ width, height });
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        check(name, wide <= 0, `is ${wide} px wider than a screen of ${width}`);
        if (base === "all" || process.argv.length === 3) {
          await page.screenshot({ path: path.join(process.env.OUT, `${base}-${section}-${scheme}-${width}.png`) });
        }
        if (width === 1400 || width === 360) {
          await page.evaluate(axe);
          for (const told of await complaints(page)) failures.push(`${name} ${scheme} ${width}: ${told}`);
        }
      }
    }
  }
  await page.select("#theme", "dark");
  check(base, (await page.evaluate(() => getComputedStyle(document.body).backgroundColor)) === "rgb(20, 24, 29)", "the choice of colors does nothing");
  await page.pdf({ path: path.join(process.env.OUT, `${base}.pdf`) });
  await page.close();
  console.log(`${base}: ${sections.join(", ")}`);
};

(async () => {
  const { default: puppeteer } = await import(from.resolve("puppeteer-core"));
  const browser = await puppeteer.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox", "--disable-gpu"] });
  try {
    for (const file of process.argv.slice(2)) await visit(browser, path.resolve(file));
  } finally {
    await browser.close();
  }
  for (const told of failures) console.error(`failed: ${told}`);
  console.log(failures.length ? `${failures.length} failures` : "everything as it should be");
  process.exitCode = failures.length ? 1 : 0;
})();
