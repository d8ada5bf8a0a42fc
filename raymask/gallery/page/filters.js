// The filters beside the grid: what there is, how much of it, and which of it is to be shown.

import { ask, byId, counted, later, make, number, words } from "./dom.js";
import { VERDICTS } from "./masks.js";
import { change, filter, listOf, listen, state } from "./state.js";

const MANY_CATEGORIES = 12; // from which on one can look for them by name
const CATEGORIES_SHOWN = 200;
const PAUSE_MS = 250;

/** Build all filters; returns a function that shows a problem with the condition in SQL, or that there is none. */
export function buildFilters(about) {
  const sql = sqlSection(about);
  byId("filters").replaceChildren(
    ...[
      about.beside ? verdictSection(about) : null,
      statusSection(about),
      about.errors.length ? errorSection(about) : null,
      about.categories.length ? categorySection(about) : null,
      about.instances ? rangeSection("Score", "score", about.scores, SCORE) : null,
      about.instances ? rangeSection("Area of the mask", "area", about.areas, AREA) : null,
      sql.element,
    ].filter(Boolean),
  );
  return sql.say;
}

function section(title, ...children) {
  return make("section", {}, make("h2", {}, title), ...children);
}

/** A row that can be switched on, with its count. */
function choice(name, value, label, count, mark = null, kind = "checkbox") {
  const input = make("input", { type: kind, name: `filter-${name}`, value });
  const shown = make("span", { className: "count" }, count === null ? "" : number(count));
  const element = make("label", { className: "choice" }, input, mark, make("span", { className: "name" }, label), shown);
  return { element, input, count: shown };
}

/** Choices of which any number may be on; follows the link as well. */
function choices(name, options) {
  const follow = () => {
    for (const option of options) option.input.checked = listOf(name).includes(option.input.value);
  };
  for (const { input } of options) {
    input.addEventListener("change", () => {
      const kept = listOf(name).filter((value) => value !== input.value);
      change({ [name]: [...kept, ...(input.checked ? [input.value] : [])].join(",") });
    });
  }
  listen(follow);
  follow();
  return options.map((option) => option.element);
}

function statusSection(about) {
  const options = [
    ["", "All", about.images],
    ["ok", "Segmented", about.ok],
    ["failed", "Failed", about.images - about.ok],
  ].map(([value, label, count]) => choice("status", value, label, count, null, "radio"));
  const follow = () => {
    for (const { input } of options) input.checked = input.value === (state().status ?? "");
  };
  for (const { input } of options) input.addEventListener("change", () => change({ status: input.value }));
  listen(follow);
  follow();
  return section("Images", ...options.map((option) => option.element));
}

function errorSection(about) {
  return section("Failures", ...choices("error", about.errors.map(({ kind, count }) => choice("error", kind, words(kind), count))));
}

function categorySection(about) {
  const options = about.categories.slice(0, CATEGORIES_SHOWN).map(({ id, name, count, colour }) => {
    const dot = make("span", { className: "dot", style: { "--colour": colour } });
    return choice("category", String(id), name, count, dot);
  });
  const list = make("div", { className: "scroll" }, ...choices("category", options));
  if (about.categories.length <= MANY_CATEGORIES) return section("Categories", list);
  const search = make("input", { type: "search", placeholder: `Find among ${number(about.categories.length)}`, "aria-label": "Find a category" });
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const { element } of options) element.hidden = !element.textContent.toLowerCase().includes(wanted);
  });
  return section("Categories", search, list);
}

// ------------------------------------------------------------------------------------------------------------- ranges

/** How a range is cut into steps: the value of each, the step of a value, and what is said of it. */
const SCORE = {
  steps: () => 100,
  value: (step) => step / 100,
  step: (value) => Math.round(value * 100),
  said: (step) => (step / 100).toFixed(2),
};
const AREA = {
  steps: (bins) => Math.max(bins.length - 1, 1) * 2,
  value: (step) => (step === 0 ? 0 : Math.round(2 ** (step / 2))),
  step: (value) => (value < 1 ? 0 : Math.round(2 * Math.log2(value))),
  said: (step) => `${number(AREA.value(step))} px`,
};

function rangeSection(title, name, bins, kind) {
  const steps = kind.steps(bins);
  const most = Math.max(...bins, 1);
  const bars = bins.map((count) =>
    make("span", { title: counted(count, "object"), style: { "--share": String(Math.sqrt(count / most)) } }),
  );
  const handle = (label) => make("input", { type: "range", min: 0, max: steps, "aria-label": `${label} ${title.toLowerCase()}` });
  const [low, high] = [handle("Least"), handle("Greatest")];
  const said = make("output", {});
  const show = () => {
    const [from, to] = [Number(low.value), Number(high.value)];
    said.textContent = `${kind.said(from)} to ${kind.said(to)}`;
    bars.forEach((bar, index) => {
      const middle = ((index + 0.5) / bars.length) * steps;
      bar.classList.toggle("out", middle < from || middle > to);
    });
  };
  const send = later(() => {
    const [from, to] = [Number(low.value), Number(high.value)];
    change({
      [`min_${name}`]: from === 0 ? "" : String(kind.value(from)),
      [`max_${name}`]: to === steps ? "" : String(kind.value(to)),
    });
  }, PAUSE_MS);
  const moved = (mine, other, isPast) => {
    if (isPast(Number(mine.value), Number(other.value))) other.value = mine.value;
    show();
    send();
  };
  low.addEventListener("input", () => moved(low, high, (a, b) => a > b));
  high.addEventListener("input", () => moved(high, low, (a, b) => a < b));
  const follow = () => {
    const value = (bound, otherwise) => {
      const text = state()[`${bound}_${name}`];
      return String(text === undefined ? otherwise : kind.step(Number(text)));
    };
    [low.value, high.value] = [value("min", 0), value("max", steps)];
    show();
  };
  listen(follow);
  follow();
  return section(
    title,
    make("div", { className: "bars", "aria-hidden": "true" }, ...bars),
    make("div", { className: "range" }, low, high),
    said,
  );
}

// -------------------------------------------------------------------------------------------------------- comparisons

/** What is called how: against the truth, or between two models. */
export const verdictNames = (beside) =>
  beside.is_truth
    ? { match: "Matches", miss: "Misses", false_alarm: "False alarms" }
    : { match: "In both", miss: "Only beside", false_alarm: "Only here" };

function verdictSection(about) {
  const names = verdictNames(about.beside);
  const options = Object.entries(names).map(([verdict, label]) => {
    const line = make("span", { className: `dot ${verdict}`, style: { "--colour": VERDICTS[verdict].colour } });
    return choice("verdict", verdict, label, null, line);
  });
  const progress = make("p", { className: "muted", role: "status" });
  let timer = 0;
  const count = async () => {
    clearTimeout(timer);
    const found = await ask("api/compared", filter());
    options.forEach(({ input, count }) => (count.textContent = number(found[input.value])));
    progress.hidden = found.is_done;
    progress.textContent = `${number(found.images)} of ${number(about.images)} images compared so far`;
    if (!found.is_done) timer = setTimeout(safely, 1000);
  };
  const safely = later(
    () =>
      count().catch((error) => {
        progress.hidden = false;
        progress.textContent = error.message;
      }),
    0,
  );
  listen(safely);
  safely();
  const least = "of objects that score at least what is chosen below";
  return section(`Beside ${about.beside.is_truth ? "the truth" : "another output"}`, ...choices("verdict", options), progress,
    make("p", { className: "muted" }, `Same category, IoU of at least 0.5; ${least}.`));
}

// ---------------------------------------------------------------------------------------------------------------- SQL

function sqlSection(about) {
  const input = make("textarea", {
    id: "where",
    rows: 3,
    spellcheck: false,
    placeholder: "score < 0.3 AND category = 'dog'",
    "aria-label": "Condition in SQL",
    "aria-describedby": "where-problem",
  });
  const problem = make("p", { id: "where-problem", className: "problem", role: "alert", hidden: true });
  const ask = () => change({ where: input.value.trim() });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      ask();
    }
  });
  const run = make("button", { type: "button" }, "Apply");
  run.addEventListener("click", ask);
  const follow = () => {
    if (document.activeElement !== input || !state().where) input.value = state().where ?? "";
  };
  listen(follow);
  follow();
  const columns = Object.entries(about.columns).map(([table, names]) =>
    make("p", {}, make("b", {}, `${table}: `), names.join(", ")),
  );
  const element = section(
    "SQL",
    input,
    problem,
    make("div", { className: "row" }, run, make("span", { className: "muted" }, make("kbd", {}, "Enter"))),
    make("details", {}, make("summary", {}, "Columns"), ...columns,
      make("p", { className: "muted" }, "A condition on columns of instances leaves the objects for which it holds, and images with any; one on columns of images alone leaves images.")),
  );
  const say = (text) => {
    problem.hidden = !text;
    problem.textContent = text ?? "";
    input.setAttribute("aria-invalid", String(Boolean(text)));
  };
  return { element, say };
}
