// The grid of a page: thumbnails in rows of one height, masks over them, failures with their reason.

import { ask, byId, counted, make, nameOf, words } from "./dom.js";
import { drawObjects } from "./masks.js";
import { filter, linkWith } from "./state.js";

const IMAGES_AT_ONCE = 12; // whose objects are asked for together, from the top of the page: those that are seen first

const grid = byId("grid");
let cards = [];
let masksShown = true;
let pending = new AbortController();

/** Show a page's images, in `sides` panes each; their objects follow. */
export function showPage(rows, sides) {
  pending.abort();
  pending = new AbortController();
  cards = rows.map((row) => card(row, sides));
  grid.classList.toggle("pairs", sides === 2);
  grid.replaceChildren(...cards.map((c) => c.element), make("span", { className: "filler" }));
  loadObjects(cards, pending.signal).catch((error) => {
    if (error.name !== "AbortError") grid.prepend(make("p", { className: "problem", role: "alert" }, error.message));
  });
}

/** A sentence instead of images, with what to do about it. */
export function showMessage(title, text, action = null) {
  pending.abort();
  cards = [];
  grid.replaceChildren(make("div", { className: "message" }, make("h2", {}, title), make("p", {}, text), action));
}

export const rowsShown = () => cards.map((c) => c.row);

export function showMasks(shown) {
  masksShown = shown;
  for (const c of cards) c.draw();
}

export function redraw() {
  for (const c of cards) c.draw();
}

async function loadObjects(loading, signal) {
  const open = loading.filter((c) => c.row.status === "ok");
  for (let start = 0; start < open.length; start += IMAGES_AT_ONCE) {
    const some = open.slice(start, start + IMAGES_AT_ONCE);
    const ids = some.map((c) => c.row.id).join(",");
    const objects = await ask("api/objects", { ...filter(), ids }, signal);
    for (const c of some) c.take(objects[c.row.id]);
  }
}

function card(row, sides) {
  const name = nameOf(row.uri);
  const ratio = row.size ? Math.min(Math.max(row.size[1] / row.size[0], 0.5), 2.2) : 4 / 3;
  const panes = row.status === "ok" ? Array.from({ length: sides }, () => pane(row)) : [failedPane(row)];
  const note = make("span", { className: "note" }, row.status === "ok" ? "" : "failed");
  const element = make(
    "a",
    {
      className: "card",
      href: linkWith({ image: row.id }),
      title: row.uri,
      style: { "--ratio": String(row.status === "ok" ? ratio * sides : ratio) },
    },
    make("span", { className: "panes" }, ...panes.map((p) => p.element)),
    make("span", { className: "caption" }, make("span", { className: "name" }, name), note),
  );
  element.dataset.id = row.id;
  const draw = () => panes.forEach((p) => p.draw?.());
  const take = (found) => {
    const all = [found.shown, found.beside ?? []];
    panes.forEach((p, side) => p.take(all[side]));
    note.replaceChildren(...noteOf(found));
    element.setAttribute("aria-label", `${name}, ${said(found.shown)}`);
    panes.forEach((p, side) => p.describe(`${name}: ${said(all[side])}`));
    draw();
  };
  return { row, element, draw, take };
}

/** What stands beside the name: how many objects, or how many of each verdict. */
function noteOf({ shown, beside }) {
  if (!beside) return [String(shown.length)];
  const of = (objects, verdict) => objects.filter((o) => o.verdict === verdict).length;
  const counts = { match: of(shown, "match"), miss: of(beside, "miss"), false_alarm: of(shown, "false_alarm") };
  return Object.entries(counts).map(([verdict, count]) =>
    make("span", { className: `verdict ${verdict}`, title: words(verdict) }, String(count)),
  );
}

/** "3 objects: 2 dog, 1 cat". */
function said(objects) {
  const counts = new Map();
  for (const { name } of objects) counts.set(name, (counts.get(name) ?? 0) + 1);
  const parts = [...counts].slice(0, 5).map(([name, count]) => `${count} ${name}`);
  return `${counted(objects.length, "object")}${parts.length ? `: ${parts.join(", ")}` : ""}`;
}

function pane(row) {
  const image = make("img", { src: `thumbnails/${row.id}`, alt: nameOf(row.uri), loading: "lazy", decoding: "async" });
  const canvas = make("canvas", { "aria-hidden": "true" });
  const element = make("span", { className: "pane" }, image, canvas);
  let objects = [];
  image.addEventListener("error", async () => {
    const problem = await reason(`thumbnails/${row.id}`);
    image.remove();
    element.classList.add("gone");
    element.prepend(make("span", { className: "why" }, make("b", {}, words(problem.kind)), problem.problem));
  });
  const draw = () => {
    const { clientWidth, clientHeight } = element;
    const density = Math.min(devicePixelRatio, 2);
    canvas.width = clientWidth * density;
    canvas.height = clientHeight * density;
    if (!masksShown || !objects.length) return;
    const [height, width] = row.size;
    const scale = Math.min(canvas.width / width, canvas.height / height);
    const context = canvas.getContext("2d");
    context.translate((canvas.width - width * scale) / 2, (canvas.height - height * scale) / 2);
    context.scale(scale, scale);
    drawObjects(context, objects, scale, { line: 1.3 * density });
  };
  const take = (found) => {
    objects = found;
  };
  const describe = (text) => {
    image.alt = text;
  };
  return { element, draw, take, describe };
}

/** Why an image cannot be shown, in the server's words. */
export async function reason(path) {
  try {
    const answer = await (await fetch(path)).json();
    return { kind: answer.kind ?? "unknown", problem: answer.problem };
  } catch {
    return { kind: "no answer", problem: "the gallery has been stopped" };
  }
}

function failedPane(row) {
  return {
    element: make(
      "span",
      { className: "pane failed" },
      make("span", { className: "why" }, make("b", {}, words(row.error ?? "failed")), row.detail ?? ""),
    ),
  };
}

/** Move the focus by so many cards, or by rows; whether there was one to move to. */
export function moveFocus(key) {
  const at = cards.findIndex((c) => c.element === document.activeElement);
  if (!cards.length) return false;
  if (at < 0) return focusCard(0);
  if (key === "ArrowLeft") return focusCard(at - 1);
  if (key === "ArrowRight") return focusCard(at + 1);
  const here = cards[at].element.getBoundingClientRect();
  const down = key === "ArrowDown";
  const rows = cards
    .map((c, index) => ({ index, box: c.element.getBoundingClientRect() }))
    .filter(({ box }) => (down ? box.top > here.top + 4 : box.top < here.top - 4));
  if (!rows.length) return false;
  const top = down ? Math.min(...rows.map((r) => r.box.top)) : Math.max(...rows.map((r) => r.box.top));
  const middle = ({ box }) => Math.abs(box.left + box.width / 2 - here.left - here.width / 2);
  const row = rows.filter((r) => Math.abs(r.box.top - top) < 4).sort((a, b) => middle(a) - middle(b));
  return focusCard(row[0].index);
}

/** Focus a card by its place or its image's id. */
export function focusCard(place) {
  const found = typeof place === "string" ? cards.find((c) => c.row.id === place) : cards[place];
  found?.element.focus();
  found?.element.scrollIntoView({ block: "nearest" });
  return Boolean(found);
}

new ResizeObserver(() => redraw()).observe(grid);
