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

/** Draws cells; those that can be focused say what they are. */
export function draw(place, cells, focusable = false) {
  place.replaceChildren(...cells.map((cell) => {
    const sure = level(cell.confidence);
    const drawn = el("span", { className: `cell${cell.masked ? " masked" : ""}`, title: words(cell) },
      el("span", { textContent: cell.masked ? "▒" : visible(cell.token) }),
      el("span", { textContent: sure == null ? " " : GLYPHS[sure] }));
    if (sure != null) drawn.dataset.sure = sure;
    if (focusable) {
      drawn.tabIndex = 0;
      drawn.setAttribute("role", "img");
      drawn.setAttribute("aria-label", words(cell));
    }
    return drawn;
  }));
}

/** A scrubber over the canvas events of an answer. */
export function scrubber(events, name) {
  const told = el("p", { className: "told" });
  const place = el("div", { className: "cells" });
  const range = el("input", { type: "range", min: 1, max: events.length, value: events.length, ariaLabel: `Step of ${name}` });
  const show = () => {
    const step = Number(range.value);
    const cells = cellsOf(events[step - 1]);
    const open = cells.filter((cell) => cell.masked).length;
    told.textContent = `Step ${step} of ${events.length}: ${cells.length - open} of ${cells.length} positions decided, from position ${cells[0]?.position ?? 0} on`;
    range.setAttribute("aria-valuetext", told.textContent);
    draw(place, cells, true);
  };
  range.addEventListener("input", show);
  const steps = el("details", { className: "steps" }, el("summary", { textContent: `Steps (${events.length})` }), range, told, place);
  // Cells are drawn when somebody looks.
  steps.addEventListener("toggle", () => steps.open && show());
  return steps;
}
