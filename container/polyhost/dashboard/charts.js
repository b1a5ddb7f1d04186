// Small line charts, drawn anew every second: a few hundred numbers each.

const NAMESPACE = "http://www.w3.org/2000/svg";
const TOP = 6;
const BOTTOM = 16;
// For what is written beside the lines.
const GUTTER = 46;
const LEAST_BETWEEN_MARKS = 14;

function shape(name, attributes, text = "") {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  element.textContent = text;
  return element;
}

/** The next of 1, 2, 5, 10, 20 … */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((bound) => bound >= value * 0.999);
}

function linear(values, least) {
  const highest = roundUp(Math.max(least, ...values));
  return { place: (value) => value / highest, marks: [highest] };
}

/** Decades: latencies of loads and of warm models are far apart. */
function logarithmic(values) {
  const positive = values.filter((value) => value > 0);
  if (!positive.length) return { place: () => 0, marks: [] };
  const low = Math.floor(Math.log10(Math.min(...positive)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...positive))));
  const marks = Array.from({ length: high - low }, (_, index) => 10 ** (low + index + 1));
  return { place: (value) => (Math.log10(Math.max(value, 10 ** low)) - low) / (high - low), marks };
}

export class Chart {
  /**
   * `series`: functions of a step, each a number or null; `mark` writes a number of the scale.
   * `pointed` is called with the step under the pointer or chosen by keys, null for none; it returns it in words.
   */
  constructor(svg, { series, mark, isLogarithmic = false, least = 1, isArea = false, pointed }) {
    Object.assign(this, { svg, series, mark, isLogarithmic, least, isArea, pointed });
    this.steps = [];
    this.at = null;
    svg.addEventListener("pointermove", (event) => this.point(event.offsetX));
    svg.addEventListener("pointerleave", () => this.point(null));
    svg.addEventListener("keydown", (event) => this.#step(event));
    svg.addEventListener("blur", () => this.#show(null));
    new ResizeObserver(() => this.draw(this.steps)).observe(svg);
  }

  point(x) {
    this.#show(x === null ? null : Math.round((x / (this.svg.clientWidth - GUTTER)) * (this.steps.length - 1)));
  }

  #show(index) {
    this.at = index === null ? null : Math.max(0, Math.min(this.steps.length - 1, index));
    this.draw(this.steps);
  }

  /** As a slider: arrows go from one step to the next, beginning with the newest. */
  #step(event) {
    const newest = this.steps.length - 1;
    const at = this.at ?? newest + 1;
    const next = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: newest, Escape: null }[event.key];
    if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.#show(next);
  }

  draw(steps) {
    this.steps = steps;
    const { clientWidth, clientHeight: height } = this.svg;
    const width = clientWidth - GUTTER;
    if (width <= 0 || !steps.length) return;
    const columns = this.series.map((value) => steps.map(value));
    const shown = columns.flat().filter((value) => value !== null);
    const scale = this.isLogarithmic ? logarithmic(shown) : linear(shown, this.least);
    const x = (index) => (index / (steps.length - 1)) * (width - 4) + 2;
    const y = (value) => height - BOTTOM - Math.min(1, scale.place(value)) * (height - TOP - BOTTOM);
    this.svg.setAttribute("viewBox", `0 0 ${clientWidth} ${height}`);
    this.svg.replaceChildren(
      ...this.#grid(scale.marks, width, height, y),
      ...columns.flatMap((column, index) => this.#line(column, index, x, y, height)),
      ...this.#pointer(columns, x, y, height),
    );
    const words = this.pointed(this.at === null ? null : steps[this.at]);
    this.svg.setAttribute("aria-valuemax", steps.length - 1);
    this.svg.setAttribute("aria-valuenow", this.at ?? steps.length - 1);
    this.svg.setAttribute("aria-valuetext", words);
  }

  #grid(all, width, height, y) {
    const every = all.length > 1 ? Math.ceil(LEAST_BETWEEN_MARKS / (y(all[0]) - y(all[1]))) : 1;
    const marks = all.filter((_, index) => (all.length - 1 - index) % every === 0);
    const base = shape("line", { class: "base", x1: 0, x2: width, y1: height - BOTTOM, y2: height - BOTTOM });
    const lines = marks.flatMap((value) => [
      shape("line", { class: "grid", x1: 0, x2: width, y1: y(value), y2: y(value) }),
      shape("text", { class: "mark", x: width + 8, y: y(value) + 3.5 }, this.mark(value)),
    ]);
    const then = shape("text", { class: "when", x: 0, y: height - 2 }, "5 min ago");
    const now = shape("text", { class: "when now", x: width, y: height - 2 }, "now");
    return [...lines, base, then, now];
  }

  /** In pieces where there is nothing to show. */
  #line(column, index, x, y, height) {
    const pieces = [];
    column.forEach((value, at) => {
      if (value === null) return;
      if (at === 0 || column[at - 1] === null) pieces.push([]);
      pieces.at(-1).push([x(at), y(value)]);
    });
    const path = pieces.map((piece) => `M${(piece.length > 1 ? piece : [piece[0], piece[0]]).map((point) => point.map((number) => number.toFixed(1)).join(" ")).join("L")}`);
    const line = shape("path", { class: `line series-${index}`, d: path.join("") });
    if (!this.isArea) return [line];
    const floor = height - BOTTOM;
    const areas = pieces.map((piece, at) => `${path[at]}L${piece.at(-1)[0].toFixed(1)} ${floor}L${piece[0][0].toFixed(1)} ${floor}Z`);
    return [shape("path", { class: `area series-${index}`, d: areas.join("") }), line];
  }

  #pointer(columns, x, y, height) {
    if (this.at === null) return [];
    const rule = shape("line", { class: "rule", x1: x(this.at), x2: x(this.at), y1: TOP, y2: height - BOTTOM });
    const dots = columns.flatMap((column, index) =>
      column[this.at] === null ? [] : [shape("circle", { class: `spot series-${index}`, cx: x(this.at), cy: y(column[this.at]), r: 3 })],
    );
    return [rule, ...dots];
  }
}
