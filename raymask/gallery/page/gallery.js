// The page as a whole: the link says what to show, the server is asked for it, keys and buttons change the link.

import { ask, byId, counted, later, make, number } from "./dom.js";
import { closeDetail, isOpen, openDetail, showMasksInDetail, zoom } from "./detail.js";
import { buildFilters } from "./filters.js";
import { focusCard, moveFocus, redraw, rowsShown, showMasks, showMessage, showPage } from "./grid.js";
import { learnColours } from "./masks.js";
import { FILTERS, change, filter, isFiltered, listen, state } from "./state.js";

const COMPARED_SCORE = "0.5"; // below it, what a model finds is mostly not meant to be right

let about = null;
let page = null;
let asked = new AbortController();
let sayProblem = () => {};

const sides = () => {
  if (!about?.beside) return [""];
  return [nameOfOutput(about.out), about.beside.is_truth ? "truth" : nameOfOutput(about.beside.name)];
};
const nameOfOutput = (url) => url.replace(/\/+$/, "").split("/").slice(-2).join("/");

async function start() {
  // The first page does not wait for counts over the whole output.
  const first = load();
  try {
    about = await ask("api/about");
  } catch (error) {
    return showMessage("The gallery cannot be opened", error.message);
  }
  learnColours(about.categories);
  byId("title").textContent = nameOfOutput(about.out);
  byId("title").title = about.out;
  document.title = `${nameOfOutput(about.out)} · raymask`;
  sayProblem = buildFilters(about);
  await first;
  if (about.beside) {
    if (!isFiltered()) change({ min_score: COMPARED_SCORE });
    await load();
  } else if (page) {
    sayCount(page);
    redraw();
  }
  await showImage();
}

/** Ask for the page that the link names, and show it. */
async function load() {
  asked.abort();
  asked = new AbortController();
  byId("grid").classList.add("waiting");
  try {
    const { sort = "input", page: place = "1" } = state();
    const found = await ask("api/images", { ...filter(), sort, page: String(Math.max(Number(place) || 1, 1) - 1) }, asked.signal);
    page = found;
    sayProblem(null);
    show(found);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (state().where) sayProblem(error.message);
    byId("count").textContent = "";
    byId("pager").hidden = true;
    showMessage("That cannot be shown", error.message, isFiltered() ? clearButton() : null);
  } finally {
    byId("grid").classList.remove("waiting");
  }
}

function show(found) {
  sayCount(found);
  byId("clear").hidden = !isFiltered();
  byId("pager").hidden = found.pages < 2;
  byId("pages").textContent = number(found.pages);
  byId("page").value = String(found.page + 1);
  byId("page").max = String(found.pages);
  byId("first").disabled = byId("previous").disabled = found.page === 0;
  byId("last").disabled = byId("next").disabled = found.page >= found.pages - 1;
  if (found.rows.length) showPage(found.rows, sides().length);
  else if (isFiltered()) showMessage("Nothing like that", "No image of this output passes all of the filters.", clearButton());
  else if (found.images) showMessage("No such page", `There are ${number(found.pages)} pages.`);
  else showMessage("Nothing here yet", "This output has no images. `raymask segment` adds them.");
}

function sayCount(found) {
  const objects = found.objects ? `, ${counted(found.objects, "object")}` : "";
  const of = about && isFiltered() ? ` of ${number(about.images)}` : "";
  byId("count").textContent = `${number(found.images)}${of} ${found.images === 1 && !of ? "image" : "images"}${objects}`;
  byId("listed").hidden = !(about?.listed > about?.images);
  byId("listed").textContent = `so far, of ${number(about?.listed ?? 0)} that are listed`;
}

function clearButton() {
  const button = make("button", { className: "main" }, "Clear filters");
  button.addEventListener("click", clear);
  return button;
}

const clear = () => change(Object.fromEntries(FILTERS.map((name) => [name, ""])));

function turn(places) {
  if (!page) return;
  goTo(page.page + places);
}

function goTo(place) {
  const last = Math.max(page.pages - 1, 0);
  change({ page: String(Math.min(Math.max(place, 0), last) + 1) });
  scrollTo({ top: 0 });
}

// ------------------------------------------------------------------------------------------------------ one image open

async function showImage() {
  const { image } = state();
  if (!image) return closeDetail();
  const rows = rowsShown();
  const at = rows.findIndex((row) => row.id === image);
  if (at < 0) return closeDetail();
  const place = `${number(page.page * page.images_a_page + at + 1)} of ${number(page.images)}`;
  await openDetail(rows[at], place, sides());
}

/** The image before or after the one that is open, on another page if need be. */
async function step(by) {
  const rows = rowsShown();
  const next = rows.findIndex((row) => row.id === state().image) + by;
  if (rows[next]) return change({ image: rows[next].id });
  const other = page.page + by;
  if (other < 0 || other >= page.pages) return;
  change({ page: String(other + 1), image: "" });
  await loading;
  const there = rowsShown();
  change({ image: there[by > 0 ? 0 : there.length - 1].id });
}

function close() {
  const { image } = state();
  change({ image: "" });
  if (image) focusCard(image);
}

// ----------------------------------------------------------------------------------------------------- what one can do

let loading = Promise.resolve();

listen((now, before) => {
  const rest = ({ image, ...others }) => JSON.stringify(Object.entries(others).sort());
  byId("sort").value = now.sort ?? "input";
  if (document.activeElement !== byId("name")) byId("name").value = now.name ?? "";
  if (rest(now) !== rest(before)) loading = load().then(showImage);
  else showImage();
});

const findByName = later(() => change({ name: byId("name").value.trim() }), 250);
byId("name").addEventListener("input", findByName);
byId("sort").addEventListener("change", (event) => change({ sort: event.target.value === "input" ? "" : event.target.value }));
byId("clear").addEventListener("click", clear);
byId("first").addEventListener("click", () => goTo(0));
byId("last").addEventListener("click", () => goTo(page.pages - 1));
byId("previous").addEventListener("click", () => turn(-1));
byId("next").addEventListener("click", () => turn(1));
byId("page").addEventListener("change", (event) => goTo(Number(event.target.value) - 1));
byId("size").addEventListener("input", (event) => byId("grid").style.setProperty("--row", `${event.target.value}px`));
byId("help").addEventListener("click", () => byId("keys").showModal());
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  focusCard(0);
});
byId("toggle-filters").addEventListener("click", (event) => {
  const open = document.body.classList.toggle("filters-open");
  event.target.setAttribute("aria-expanded", String(open));
});
for (const id of ["masks", "detail-masks"]) byId(id).addEventListener("click", toggleMasks);
byId("detail-previous").addEventListener("click", () => step(-1));
byId("detail-next").addEventListener("click", () => step(1));
byId("detail-out").addEventListener("click", () => zoom(1 / 1.5));
byId("detail-fit").addEventListener("click", () => zoom(0));
byId("detail-in").addEventListener("click", () => zoom(1.5));
byId("detail-close").addEventListener("click", close);
byId("detail").addEventListener("cancel", (event) => {
  event.preventDefault();
  close();
});
byId("grid").addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (!card || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  change({ image: card.dataset.id });
});

function toggleMasks() {
  const shown = byId("masks").getAttribute("aria-pressed") !== "true";
  for (const id of ["masks", "detail-masks"]) byId(id).setAttribute("aria-pressed", String(shown));
  showMasks(shown);
  showMasksInDetail(shown);
}

const KEYS_IN_IMAGE = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  "+": () => zoom(1.5),
  "=": () => zoom(1.5),
  "-": () => zoom(1 / 1.5),
  0: () => zoom(0),
  m: toggleMasks,
  "?": () => byId("keys").showModal(),
};
const KEYS = {
  "/": () => byId("name").focus(),
  s: () => {
    document.body.classList.add("filters-open");
    byId("where")?.focus();
  },
  n: () => turn(1),
  p: () => turn(-1),
  m: toggleMasks,
  "?": () => byId("keys").showModal(),
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  const isTyping = event.target.matches("input:not([type=checkbox], [type=radio]), textarea, select");
  if (isTyping) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const key = (isOpen() ? KEYS_IN_IMAGE : KEYS)[event.key];
  if (key) {
    event.preventDefault();
    key();
  } else if (!isOpen() && event.key.startsWith("Arrow") && !event.target.matches("[type=radio]")) {
    if (moveFocus(event.key)) event.preventDefault();
  }
});

start();
