// The moving parts of the page of `dlxc report`: sections, comparison of stages, drawings, stepping through a decode.
// Texts reach the page as text nodes and attributes alone, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const HOLE = "\u0001", BEFORE = "\u0002"; // a layer's number, and the one before it

  const fill = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes || {})) if (value !== null) node.setAttribute(name, value);
    for (const child of children) if (child !== null) node.append(child);
    return node;
  };
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const options = (select, names) => select.replaceChildren(...names.map((name, i) => el("option", { value: i }, name)));
  const line = ([text, layer]) => (layer < 0 ? data.lines[text] : data.lines[text].replaceAll(HOLE, layer).replaceAll(BEFORE, layer - 1));
  const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;
  const bytes = (n) => {
    const units = ["B", "kB", "MB", "GB"];
    let i = 0;
    for (; n >= 1000 && i < units.length - 1; i++) n /= 1000;
    return `${i ? n.toPrecision(3) : n} ${units[i]}`;
  };

  // One section at a time; all of them on paper.
  const links = [...document.querySelectorAll("nav a")];
  const sections = links.map((a) => $(a.hash.slice(1)));
  const draws = {};
  const open = (id, focus) => {
    const chosen = Math.max(0, sections.findIndex((s) => s.id === id));
    sections.forEach((s, i) => { s.hidden = i !== chosen; });
    links.forEach((a, i) => (i === chosen ? a.setAttribute("aria-current", "page") : a.removeAttribute("aria-current")));
    (draws[sections[chosen].id] || (() => {}))();
    if (focus) sections[chosen].querySelector("h2").focus({ preventScroll: true });
  };
  const theme = $("theme");
  theme.addEventListener("change", () => {
    if (theme.value) document.documentElement.dataset.theme = theme.value;
    else delete document.documentElement.dataset.theme;
  });

  // Comparison of stages.
  if (data.dumps) {
    const SHOWN = 2; // unchanged lines around a change
    // The items of a part that only says that they are those of the part before.
    const items = (stages, s, p) => {
      for (; stages[s][1][p].items === null; s--) p = stages[s][1][p].from;
      return stages[s][1][p].items;
    };
    // The part of an earlier stage that a part was made from.
    const ancestor = (stages, s, p, to) => {
      for (; s > to && p !== null; s--) p = stages[s][1][p].from;
      return p;
    };
    // Longest run of lines that both have in the same order: their places on the left rise.
    const rising = (places) => {
      const tails = [], before = new Array(places.length).fill(-1);
      places.forEach((place, i) => {
        if (place < 0) return;
        let low = 0, high = tails.length;
        while (low < high) { const mid = (low + high) >> 1; if (places[tails[mid]] < place) low = mid + 1; else high = mid; }
        before[i] = low ? tails[low - 1] : -1;
        tails[low] = i;
      });
      const kept = new Set();
      for (let i = tails.length ? tails[tails.length - 1] : -1; i >= 0; i = before[i]) kept.add(i);
      return kept;
    };
    const pair = (left, right) => {
      const at = new Map(left.map((item, i) => [item[0], i]));
      const places = right.map((item) => (at.has(item[0]) ? at.get(item[0]) : -1));
      const kept = rising(places), rows = [];
      let next = 0;
      const gone = (to) => { for (; next < to; next++) rows.push({ kind: "removed", left: left[next] }); };
      right.forEach((item, i) => {
        if (!kept.has(i)) { rows.push({ kind: "added", right: item }); return; }
        gone(places[i]);
        const old = left[next++];
        rows.push({ kind: old[1] === item[1] ? "same" : "changed", left: old, right: item });
      });
      gone(left.length);
      return rows;
    };
    // Rows of a later layer that look like rows of an earlier one.
    const repeats = (rows) => {
      const seen = new Map();
      for (const row of rows) {
        const item = row.right || row.left;
        if (item[3] < 0 || row.kind === "same") continue;
        const key = [row.kind, row.left && row.left[2], row.right && row.right[2]].join();
        if (!seen.has(key)) seen.set(key, item[3]);
        else if (seen.get(key) !== item[3]) row.again = true;
      }
    };
    // The words of a text that the other does not have in the same order are marked.
    const marked = (text, other) => {
      const [a, b] = [text, other].map((t) => t.split(/([ ,]+)/));
      const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
      for (let i = a.length - 1; i >= 0; i--) {
        for (let j = b.length - 1; j >= 0; j--) best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
      }
      const out = [];
      let run = "";
      const flush = () => { if (run) out.push(el("mark", null, run)); run = ""; };
      for (let i = 0, j = 0; i < a.length;) {
        if (j < b.length && a[i] === b[j]) { flush(); out.push(a[i]); i++; j++; }
        else if (j < b.length && best[i][j + 1] > best[i + 1][j]) j++;
        else run += a[i++];
      }
      flush();
      return out;
    };
    const WORDS = { added: "+ added", removed: "− removed", changed: "~ changed", same: "" };
    const shown = (row) => {
      const [left, right] = [row.left, row.right].map((item) => (item ? line([item[2], item[3]]) : ""));
      const both = row.kind === "changed";
      return el("tr", { class: `row-${row.kind}` }, el("td", { class: `sign ${row.kind}` }, WORDS[row.kind]),
        el("td", null, ...(both ? marked(left, right) : [left])), el("td", null, ...(both ? marked(right, left) : [right])));
    };
    const folded = (rows, what) => {
      const button = el("button", { type: "button" }, `… ${what}`);
      const tr = el("tr", { class: "fold" }, el("td", { colspan: 3 }, button));
      button.addEventListener("click", () => {
        const made = rows.map(shown);
        tr.replaceWith(...made);
        made[0].tabIndex = -1;
        made[0].focus();
      });
      return tr;
    };
    const compare = () => {
      const { stages } = data.dumps[+$("c-target").value];
      const [l, r, p] = ["c-left", "c-right", "c-part"].map((id) => +$(id).value);
      const from = l <= r ? ancestor(stages, r, p, l) : null;
      const old = l <= r ? (from === null ? [] : items(stages, l, from)) : sameName(stages, l, r, p);
      const rows = pair(old, items(stages, r, p));
      if (!$("c-layers").checked) repeats(rows);
      const out = [];
      for (let i = 0; i < rows.length;) {
        const kind = (row) => (row.kind === "same" ? "same" : row.again ? "again" : "shown");
        let j = i;
        while (j < rows.length && kind(rows[j]) === kind(rows[i])) j++;
        const run = rows.slice(i, j);
        const head = i ? SHOWN : 0, tail = j < rows.length ? SHOWN : 0;
        if (kind(run[0]) === "again") out.push(folded(run, `${count(run.length, "line", "lines")} of other layers, changed alike`));
        else if (kind(run[0]) === "same" && run.length > head + tail + 3) {
          out.push(...run.slice(0, head).map(shown));
          out.push(folded(run.slice(head, run.length - tail), `${run.length - head - tail} unchanged lines`));
          out.push(...run.slice(run.length - tail).map(shown));
        } else out.push(...run.map(shown));
        i = j;
      }
      $("c-rows").replaceChildren(...out);
      $("c-left-h").textContent = stages[l][0];
      $("c-right-h").textContent = stages[r][0];
      const n = (kind) => rows.filter((row) => row.kind === kind).length;
      const source = from === null || !stages[l][1][from] || stages[l][1][from].name === stages[r][1][p].name ? "" : ` The left side is @${stages[l][1][from].name}, from which it was made.`;
      $("c-told").textContent = `${n("added")} added, ${n("removed")} removed, ${n("changed")} rewritten, ${n("same")} unchanged.${source}`;
    };
    // Against a later stage there is no line of descent: the part of that name.
    const sameName = (stages, l, r, p) => {
      const q = stages[l][1].findIndex((part) => part.name === stages[r][1][p].name);
      return q < 0 ? [] : items(stages, l, q);
    };
    const parts = () => {
      const { stages } = data.dumps[+$("c-target").value];
      const names = stages[+$("c-right").value][1].map((part) => (part.name ? `@${part.name}` : "weights and states"));
      const had = $("c-part").selectedOptions[0];
      options($("c-part"), names);
      const again = had ? names.indexOf(had.textContent) : -1;
      $("c-part").value = again >= 0 ? again : Math.min(1, names.length - 1);
      compare();
    };
    const targets = () => {
      const names = data.dumps[+$("c-target").value].stages.map(([name]) => name);
      options($("c-left"), names);
      options($("c-right"), names);
      $("c-left").value = Math.max(0, Math.min(names.length - 2, 0));
      $("c-right").value = Math.min(1, names.length - 1);
      parts();
    };
    options($("c-target"), data.dumps.map((dump) => dump.target || "all"));
    $("c-target-l").hidden = data.dumps.length < 2;
    $("c-target").addEventListener("change", targets);
    $("c-right").addEventListener("change", parts);
    for (const id of ["c-left", "c-part", "c-layers"]) $(id).addEventListener("change", compare);
    let drawn = false;
    draws.compare = () => { if (!drawn) { drawn = true; targets(); } };
  }

  const entries = data.programs ? data.programs.targets.flatMap((t) => t.entries.map((entry) => ({ entry, title: `${t.target}: ${entry.name}` }))) : [];

  // Values in the arena.
  if (data.programs && $("m-entry")) {
    const planned = entries.filter(({ entry }) => entry.live.length);
    const [W, H, L, T, B] = [900, 420, 70, 10, 44];
    const draw = () => {
      const { entry } = planned[+$("m-entry").value];
      const end = Math.max(...entry.live.map((v) => v[2])) + 1;
      const x = (t) => L + ((W - L - 10) * t) / end, y = (b) => H - B - ((H - B - T) * b) / Math.max(1, entry.arena);
      const shapes = [0, 0.25, 0.5, 0.75, 1].flatMap((part) => {
        const at = y(part * entry.arena), step = Math.round(part * (end - 1));
        return [svg("line", { class: "grid", x1: L, x2: W - 10, y1: at, y2: at }),
          svg("text", { class: "tick", x: L - 6, y: at + 4, "text-anchor": "end" }, bytes(Math.round(part * entry.arena))),
          svg("text", { class: "tick", x: x(step), y: H - B + 18, "text-anchor": "middle" }, String(step))];
      });
      shapes.push(svg("text", { class: "tick", x: (W + L) / 2, y: H - 6, "text-anchor": "middle" }, "node of the schedule"));
      for (const [name, from, to, at, size] of entry.live) {
        const told = `%${name}: ${bytes(size)} at ${at}, nodes ${from} to ${to}`;
        const bar = svg("rect", { class: "value", x: x(from), y: y(at + size), width: Math.max(0.8, x(to + 1) - x(from)), height: Math.max(0.8, y(at) - y(at + size)) }, svg("title", null, told));
        bar.addEventListener("pointerenter", () => { $("m-told").textContent = told; });
        shapes.push(bar);
      }
      $("m-plot").replaceChildren(...shapes);
      $("m-rows").replaceChildren(...entry.live.map(([name, from, to, at, size]) => el("tr", null, el("th", { scope: "row" }, el("code", null, `%${name}`)), ...[from, to, at, size].map((n) => el("td", { class: "num" }, String(n))))));
    };
    options($("m-entry"), planned.map(({ entry, title }) => `${title}, ${bytes(entry.arena)}`));
    $("m-entry").addEventListener("change", draw);
    let drawn = false;
    draws.memory = () => { if (!drawn) { drawn = true; draw(); } };
  }

  // The graph of an entry.
  if (data.programs) {
    const W = 150, H = 42;
    let shown = null;
    const span = (layers) => (layers.length === 1 ? `layer ${layers[0].number}` : `layers ${layers[0].number}–${layers[layers.length - 1].number}`);
    // Which layer is unfolded: group, place in it, drawing.
    const chosen = (entry) => {
      const value = $("g-layer").value;
      if (!value) return { drawing: entry.folded };
      const [g, k] = value.split(".").map(Number), group = entry.groups[g];
      return { g, k, group, drawing: k === 0 ? group.first : k === group.layers.length - 1 ? group.last : group.middle };
    };
    const tell = (title, ...body) => $("g-told").replaceChildren(el("h3", null, title), ...body);
    const list = (title, lines) => (lines.length ? [el("h4", null, title), el("ul", null, ...lines.map((text) => el("li", null, el("code", null, text))))] : []);
    const node = (entry, i) => {
      const { text, reads } = entry.nodes[i];
      tell(`Node ${i + 1}`, el("p", null, el("code", null, line(text))), ...list("Reads", reads.map(line)));
    };
    const layers = (entry, g, some) => {
      const group = entry.groups[g], inside = group.layers[0].nodes.map((i) => line(entry.nodes[i].text));
      const button = el("button", { type: "button" }, `Unfold layer ${some[0].number}`);
      button.addEventListener("click", () => {
        $("g-layer").value = `${g}.${group.layers.indexOf(some[0])}`;
        draw();
        $("g-layer").focus();
      });
      tell(`${span(some)}: ${count(some.length, "layer", "layers")} of ${count(inside.length, "node", "nodes")}`, el("p", null, button), ...list("The first of them", inside));
    };
    const what = (entry, open, square) => {
      const [kind, n] = typeof square.what === "string" ? [square.what, 0] : Object.entries(square.what)[0];
      const some = { layers: (g) => entry.groups[g].layers, before: (g) => entry.groups[g].layers.slice(0, open.k), after: (g) => entry.groups[g].layers.slice(open.k + 1) }[kind];
      if (some) {
        const which = some(n);
        return { kind: "many", label: [span(which), `${which.length} × ${which[0].nodes.length} nodes`], show: () => layers(entry, n, which) };
      }
      if (kind === "param") return { kind, label: square.label, show: () => tell("Parameter", el("p", null, el("code", null, line(entry.params[n])))) };
      const i = kind === "inside" ? open.group.layers[open.k].nodes[n] : n;
      return { kind: "node", label: square.label, show: () => node(entry, i) };
    };
    const path = (points) => {
      let d = `M${points[0]}`;
      for (let i = 1; i < points.length - 1; i++) d += ` Q${points[i]} ${points[i].map((v, axis) => (v + points[i + 1][axis]) / 2)}`;
      return `${d} L${points[points.length - 1]}`;
    };
    const zoom = () => {
      if (!shown) return;
      const [w, h] = shown, value = $("g-zoom").value;
      const by = value === "fit" ? Math.max(0.6, Math.min(1.2, ($("g-canvas").clientWidth - 4) / w)) : +value;
      fill($("g-svg"), { viewBox: `0 0 ${w} ${h}`, width: w * by, height: h * by }, []);
      $("g-canvas").scrollLeft = (w * by - $("g-canvas").clientWidth) / 2;
    };
    const draw = () => {
      const { entry } = entries[+$("g-entry").value], open = chosen(entry);
      const drawing = open.drawing === null || open.drawing === undefined ? null : data.programs.drawings[open.drawing];
      $("g-none").hidden = drawing !== null;
      $("g-none").textContent = drawing ? "" : "This graph has more boxes than a drawing can show. All its nodes are in the table below.";
      shown = drawing && drawing.size;
      if (!drawing) { $("g-svg").replaceChildren(); return; }
      const wires = drawing.lines.map(([points, state]) => svg("path", { class: state ? "wire state" : "wire", d: path(points), "marker-end": "url(#tip)" }));
      const ends = drawing.lines.map(([points]) => [points[0], points[points.length - 1]]);
      const touches = (at, [x, y]) => x >= at[0] - 2 && x <= at[0] + W + 2 && y >= at[1] - 2 && y <= at[1] + H + 2;
      const boxes = drawing.boxes.map((square, i) => {
        const { kind, label, show } = what(entry, open, square), [x, y] = square.at;
        const box = svg("g", { class: `box ${kind}`, role: "button", tabindex: i ? -1 : 0, "aria-label": label.join(" ").trim(), "aria-pressed": "false" },
          svg("rect", { x, y, width: W, height: H }), svg("text", { x: x + W / 2, y: y + (label[1] ? 18 : 26) }, label[0]), " ", svg("text", { class: "second", x: x + W / 2, y: y + 34 }, label[1]));
        const choose = () => {
          boxes.forEach((other) => { other.classList.toggle("chosen", other === box); other.setAttribute("aria-pressed", other === box); });
          wires.forEach((wire, k) => wire.classList.toggle("near", ends[k].some((end) => touches(square.at, end))));
          show();
        };
        box.addEventListener("click", choose);
        box.addEventListener("keydown", (event) => {
          if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); }
          const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
          if (!step) return;
          event.preventDefault();
          const next = boxes[i + step];
          if (!next) return;
          box.setAttribute("tabindex", -1);
          next.setAttribute("tabindex", 0);
          next.focus();
        });
        return box;
      });
      const tip = svg("marker", { id: "tip", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, svg("path", { class: "tip", d: "M0 0L8 4L0 8z" }));
      $("g-svg").replaceChildren(svg("defs", null, tip), ...wires, ...boxes);
      zoom();
    };
    const entryChosen = () => {
      const { entry } = entries[+$("g-entry").value];
      const all = entry.groups.flatMap((group, g) => group.layers.map((layer, k) => el("option", { value: `${g}.${k}` }, `layer ${layer.number}`)));
      $("g-layer").replaceChildren(el("option", { value: "" }, all.length ? "all folded" : "none are alike"), ...all);
      $("g-rows").replaceChildren(...entry.nodes.map(({ text }, i) => el("tr", null, el("td", { class: "num" }, String(i + 1)), el("td", null, el("code", null, line(text))))));
      draw();
    };
    options($("g-entry"), entries.map(({ entry, title }) => `${title} (${entry.nodes.length} nodes)`));
    $("g-entry").addEventListener("change", entryChosen);
    $("g-layer").addEventListener("change", draw);
    $("g-zoom").addEventListener("change", zoom);
    let drawn = false;
    draws.graph = () => { if (!drawn) { drawn = true; entryChosen(); } };
  }

  // Stepping through a decode.
  if (data.film) {
    const film = data.film, n = film.passes.length;
    const token = (id) => (id === film.mask ? "▒" : film.tokens[id] || `⟨${id}⟩`);
    const visible = (text) => text.replaceAll("\n", "⏎").replaceAll(" ", "␣").replaceAll("\t", "⇥") || "∅";
    const shade = (sure) => (sure === null ? "" : `s${Math.max(0, Math.min(4, Math.floor(sure * 5)))}`);
    const surely = ([, , confidence, prob]) => (prob !== null ? prob : confidence !== null && confidence >= 0 && confidence <= 1 ? confidence : null);
    // What is known after a pass; positions that nothing decided yet are masked or not there.
    const known = (i) => {
      const now = new Map(film.prompt.map((id, position) => [position, id]));
      for (const pass of film.passes.slice(0, i + 1)) {
        if (pass.block) pass.canvas.forEach((id, k) => now.set(pass.block[0] + k, id));
      }
      return now;
    };
    let at = 0, playing = 0;
    const told = (i) => {
      const pass = film.passes[i];
      const end = pass.start + pass.rows - 1;
      const seen = new Map(pass.seen.map((row) => [row[0], row]));
      const got = pass.revealed.map(([position, id]) => {
        const row = seen.get(position), sure = row ? surely(row) : null;
        return `“${visible(token(id))}” at ${position}${sure === null ? "" : ` (${sure.toFixed(2)})`}`;
      });
      const what = got.length ? `It revealed ${got.join(", ")}, by ${pass.why}.` : pass.block ? "It revealed nothing." : "It chose no tokens.";
      return `Pass ${i + 1} of ${n}: ${pass.kind} of positions ${pass.start} to ${end}. ${what}`;
    };
    const text = () => {
      const pass = film.passes[at], now = known(at), fresh = new Set(pass.revealed.map(([position]) => position));
      const from = film.prompt.length, last = [...now.keys()].reduce((a, b) => Math.max(a, b), from - 1), out = [];
      for (let p = from; p <= last; p++) {
        const id = now.has(p) ? now.get(p) : film.mask, masked = id === film.mask;
        out.push(el("span", { class: `token${masked ? " masked" : ""}${fresh.has(p) ? " now" : ""}` }, token(id)));
      }
      $("d-text").replaceChildren(...(out.length ? out : [el("span", { class: "quiet" }, "Nothing is decided yet.")]));
    };
    const grid = () => {
      const home = [...film.passes.slice(0, at + 1)].reverse().find((pass) => pass.block) || film.passes.find((pass) => pass.block);
      if (!home) { $("d-grid").replaceChildren(); return; }
      const [start, end] = home.block, columns = Array.from({ length: end - start }, (_, i) => start + i);
      const rows = film.passes.map((pass, i) => ({ pass, i })).filter(({ pass }) => pass.block && pass.block[0] === start);
      const head = el("tr", null, el("th", { scope: "col" }, "Pass"), ...columns.map((p) => el("th", { scope: "col" }, String(p))));
      const body = rows.map(({ pass, i }) => {
        const seen = new Map(pass.seen.map((row) => [row[0], row])), fresh = new Set(pass.revealed.map(([p]) => p));
        const cells = columns.map((p) => {
          if (i > at) return el("td", null, el("small", null, "\u00a0"), "\u00a0");
          const row = seen.get(p), id = pass.canvas[p - start];
          if (!row) return el("td", { class: "quiet" }, el("small", null, "\u00a0"), visible(token(id)));
          const sure = surely(row);
          return el("td", { class: `${shade(sure)}${fresh.has(p) ? " now" : ""}` }, el("small", null, sure === null ? "–" : sure.toFixed(2)), visible(token(row[1])), fresh.has(p) ? el("span", { class: "hidden" }, " revealed") : null);
        });
        return el("tr", { class: i === at ? "here" : null, "aria-current": i === at ? "step" : null }, el("th", { scope: "row" }, String(i + 1)), ...cells);
      });
      $("d-grid").replaceChildren(el("caption", { class: "hidden" }, `Positions ${start} to ${end - 1}: token and how sure, for each pass`), el("thead", null, head), el("tbody", null, ...body));
    };
    const go = (to) => {
      at = Math.max(0, Math.min(n - 1, to));
      $("d-at").value = at;
      $("d-at").setAttribute("aria-valuetext", `pass ${at + 1} of ${n}`);
      $("d-told").textContent = told(at);
      text();
      grid();
      if (at === n - 1) play(false);
    };
    const play = (on) => {
      clearInterval(playing);
      playing = on ? setInterval(() => go(at + 1), 600) : 0;
      $("d-play").setAttribute("aria-pressed", String(on));
      $("d-play").textContent = on ? "Pause" : "Play";
    };
    const toggle = () => { if (!playing && at === n - 1) go(0); play(!playing); };
    if (n) {
      $("d-at").max = n - 1;
      $("d-first").addEventListener("click", () => go(0));
      $("d-back").addEventListener("click", () => go(at - 1));
      $("d-play").addEventListener("click", toggle);
      $("d-next").addEventListener("click", () => go(at + 1));
      $("d-last").addEventListener("click", () => go(n - 1));
      $("d-at").addEventListener("input", () => go(+$("d-at").value));
      document.addEventListener("keydown", (event) => {
        const elsewhere = $("decode").hidden || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input, .scroll");
        const step = { ArrowRight: () => go(at + 1), ArrowLeft: () => go(at - 1), Home: () => go(0), End: () => go(n - 1) }[event.key];
        if (elsewhere || (!step && (event.key !== " " || event.target.closest("button, summary, a")))) return;
        event.preventDefault();
        (step || toggle)();
      });
      draws.decode = () => go(at);
    } else $("d-told").textContent = "The recording has no passes.";
  }

  links.forEach((a) => a.addEventListener("click", () => setTimeout(() => open(a.hash.slice(1), true))));
  window.addEventListener("hashchange", () => open(location.hash.slice(1), false));
  window.addEventListener("beforeprint", () => { for (const draw of Object.values(draws)) draw(); });
  open(location.hash.slice(1), false);
})();
