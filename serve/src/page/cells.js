// A block of the canvas as cells: what stands there, how sure the model is (a color and a glyph), and a scrubber over steps.

const GLYPHS = ["○", "◔", "◑", "◕", "●"];

export const el = (name, attributes = {}, ...children) => {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children.filter((child) => child != null));
  return made;
};

/** How sure, from 0 to 4; measures that are no probability count from their ends. */
const level = (confidence) => (confidence == null ? null : Math.max(0, Math.min(4, Math.floor(confidence * 5))));
const visible = (token) => (token == null || token === "" ? "·" : token.replaceAll("\n", "↵").replaceAll(" ", "␣"));

/** The cells of a canvas event: {position, token, masked, confidence}. */
export const cellsOf = ({ positions, tokens, masked, confidence }) =>
  positions.map((position, i) => ({ position, token: tokens[i], masked: masked[i], confidence: confidence[i] }));

const words = ({ position, token, masked, confidence }) =>
  `position ${position}: ${masked ? "undecided" : "decided"}${token == null ? "" : `, ${JSON.stringify(token)}`}` +
  (confidence == null ? "" : `, confidence ${confidence}`);

/** Draws cells. */
export function draw(place, cells) {
  place.replaceChildren(...cells.map((cell) => {
    const sure = level(cell.confidence);
    const drawn = el("span", { className: `cell${cell.masked ? " masked" : ""}`, title: words(cell) },
      el("span", { textContent: cell.masked ? "▒" : visible(cell.token) }),
      el("span", { textContent: sure == null ? " " : GLYPHS[sure] }));
    if (sure != null) drawn.dataset.sure = sure;
    return drawn;
  }));
}

/** Makes cells say what they are: one of them can be focused, and arrow keys go to its neighbors. */
function speak(place, cells, told) {
  const drawn = [...place.children];
  const focus = (i) => drawn.forEach((one, j) => { one.tabIndex = i === j ? 0 : -1; });
  drawn.forEach((one, i) => {
    one.setAttribute("role", "img");
    one.setAttribute("aria-label", words(cells[i]));
    for (const event of ["focus", "pointerenter"]) one.addEventListener(event, () => { told.textContent = words(cells[i]); });
    one.addEventListener("keydown", (e) => {
      const to = drawn[i + ({ ArrowLeft: -1, ArrowRight: 1 }[e.key] ?? drawn.length)];
      if (!to) return;
      e.preventDefault();
      focus(drawn.indexOf(to));
      to.focus();
    });
  });
  focus(0);
}

/** A scrubber over the canvas events of an answer. */
export function scrubber(events, name) {
  const [told, before] = [el("p", { className: "told" }), el("p", { className: "text before" })];
  // A cell says the same to who cannot see it.
  const cell = el("p", { className: "told", ariaHidden: "true" });
  const place = el("div", { className: "cells", ariaLabel: `Block of ${name}` });
  place.setAttribute("role", "group");
  const range = el("input", { type: "range", min: 1, max: events.length, value: events.length, ariaLabel: `Step of ${name}` });
  const show = () => {
    const step = Number(range.value);
    const cells = cellsOf(events[step - 1]);
    const [open, begin] = [cells.filter((cell) => cell.masked).length, cells[0]?.position ?? 0];
    const settled = new Map(events.slice(0, step - 1).flatMap(cellsOf).filter((c) => c.position < begin).map((c) => [c.position, c.token ?? ""]));
    before.textContent = [...settled].sort(([a], [b]) => a - b).map(([, token]) => token).join("");
    before.hidden = !settled.size;
    told.textContent = `Step ${step} of ${events.length}: ${cells.length - open} of ${cells.length} positions decided, from position ${begin} on`;
    cell.textContent = "Point at a position, or go there with the arrow keys, to see what the model thinks of it.";
    range.setAttribute("aria-valuetext", told.textContent);
    draw(place, cells);
    speak(place, cells, cell);
  };
  range.addEventListener("input", show);
  const steps = el("details", { className: "steps" }, el("summary", { textContent: `Steps (${events.length})` }), range, told, before, place, cell);
  // Cells are drawn when somebody looks.
  steps.addEventListener("toggle", () => steps.open && show());
  return steps;
}
