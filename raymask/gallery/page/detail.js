// One image, large: zoom to its pixels, every object named where one points, the edge of a mask under a loupe.

import { ask, byId, counted, make, nameOf, number, words } from "./dom.js";
import { reason } from "./grid.js";
import { VERDICTS, colourOf, drawObjects, loopsOf, pathOf } from "./masks.js";
import { filter } from "./state.js";

const LOUPE_PIXELS = 23; // of the image, to a side
const MOST_ZOOM = 64; // pixels of the screen, to one of the image
const dialog = byId("detail");
const tip = byId("tip");

let stages = [];
let view = null; // pixels of the screen to one of the image, and where the image's corner lies; the same for all stages
let chosen = null;
let masksShown = true;
let opened = 0;

/** Show an image. `place` says which one it is; `sides` names what stands beside each other. */
export async function openDetail(row, place, sides) {
  const mine = ++opened;
  view = null;
  chosen = null;
  tip.hidden = true;
  byId("detail-name").textContent = nameOf(row.uri);
  byId("detail-place").textContent = place;
  for (const id of ["detail-out", "detail-fit", "detail-in", "detail-masks"]) byId(id).hidden = row.status !== "ok";
  stages = row.status === "ok" ? sides.map((side) => new Stage(row, sides.length > 1 ? side : "")) : [];
  byId("stages").replaceChildren(...(stages.length ? stages.map((s) => s.element) : [failure(row)]));
  byId("side").replaceChildren(facts(row));
  if (!dialog.open) dialog.showModal();
  for (const stage of stages) stage.resize();
  if (row.status !== "ok") return;
  // Whatever the filter leaves: here all objects are shown. The least score tells what a match is.
  const least = sides.length > 1 && filter().min_score ? { min_score: filter().min_score } : {};
  try {
    const found = (await ask("api/objects", { ids: row.id, ...least }))[row.id];
    if (mine !== opened) return;
    [found.shown, found.beside].slice(0, stages.length).forEach((objects, side) => stages[side].take(objects));
    byId("side").replaceChildren(facts(row), loupe(), ...stages.map((stage) => objectList(stage)));
    drawLoupe(null);
  } catch (error) {
    byId("side").append(make("p", { className: "problem", role: "alert" }, error.message));
  }
}

export function closeDetail() {
  opened++;
  tip.hidden = true;
  if (dialog.open) dialog.close();
}

export const isOpen = () => dialog.open;

export function showMasksInDetail(shown) {
  masksShown = shown;
  draw();
}

/** Zoom about the middle; 0 shows the whole image. */
export function zoom(factor) {
  const stage = stages[0];
  if (!stage) return;
  if (factor === 0) view = null;
  else zoomAt(stage.canvas.clientWidth / 2, stage.canvas.clientHeight / 2, factor);
  draw();
}

function zoomAt(x, y, factor) {
  const before = stages[0].placed();
  const scale = Math.min(Math.max(before.scale * factor, stages[0].fitted().scale * 0.5), MOST_ZOOM);
  const share = scale / before.scale;
  view = { scale, x: x - (x - before.x) * share, y: y - (y - before.y) * share };
}

function draw() {
  for (const stage of stages) stage.draw();
}

function choose(object) {
  if (object === chosen) return;
  chosen = object;
  for (const item of dialog.querySelectorAll(".object")) item.classList.toggle("chosen", item.object === object);
  draw();
}

/** A canvas with an image and the objects of one side. */
class Stage {
  constructor(row, title) {
    [this.height, this.width] = row.size;
    this.objects = [];
    this.title = title;
    this.canvas = make("canvas", { role: "img", "aria-label": nameOf(row.uri) });
    this.note = make("p", { className: "why", hidden: true });
    const caption = title ? make("figcaption", {}, title) : null;
    this.element = make("figure", { className: "stage" }, this.canvas, this.note, caption);
    this.image = new Image();
    this.image.addEventListener("load", () => this.draw());
    this.image.addEventListener("error", async () => {
      const problem = await reason(this.image.src);
      this.note.hidden = false;
      this.note.replaceChildren(make("b", {}, `The image cannot be shown: ${words(problem.kind)}`), problem.problem);
    });
    this.image.src = `pictures/${row.id}`;
    this.quick = new Image(); // until the whole image is there
    this.quick.addEventListener("load", () => this.draw());
    this.quick.src = `thumbnails/${row.id}`;
    this.listen();
    new ResizeObserver(() => this.resize()).observe(this.element);
  }

  take(objects) {
    this.objects = objects;
    this.draw();
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = clientWidth * devicePixelRatio;
    this.canvas.height = clientHeight * devicePixelRatio;
    this.draw();
  }

  /** The view in which the whole image is seen. */
  fitted() {
    const { clientWidth, clientHeight } = this.canvas;
    const scale = Math.min((clientWidth - 24) / this.width, (clientHeight - 24) / this.height, 8);
    return { scale, x: (clientWidth - this.width * scale) / 2, y: (clientHeight - this.height * scale) / 2 };
  }

  placed() {
    return view ?? this.fitted();
  }

  picture() {
    return [this.image, this.quick].find((image) => image.complete && image.naturalWidth);
  }

  draw() {
    const context = this.canvas.getContext("2d");
    const { scale, x, y } = this.placed();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.setTransform(scale * devicePixelRatio, 0, 0, scale * devicePixelRatio, x * devicePixelRatio, y * devicePixelRatio);
    this.drawIn(context, scale, { chosen: this.objects.includes(chosen) ? chosen : null, line: 1.8 });
  }

  drawIn(context, scale, how) {
    const picture = this.picture();
    context.imageSmoothingEnabled = scale < 3;
    if (picture) context.drawImage(picture, 0, 0, this.width, this.height);
    else {
      context.fillStyle = "#8884";
      context.fillRect(0, 0, this.width, this.height);
    }
    if (masksShown) drawObjects(context, this.objects, scale, how);
  }

  /** The smallest object at a place of the canvas, and the place in pixels of the image. */
  at(x, y) {
    const placed = this.placed();
    const [column, row] = [(x - placed.x) / placed.scale, (y - placed.y) / placed.scale];
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    const under = this.objects.filter((o) => context.isPointInPath(pathOf(o), column, row, "evenodd"));
    under.sort((a, b) => a.area - b.area);
    return { object: under[0] ?? null, column, row };
  }

  listen() {
    const fingers = new Map();
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoomAt(...place(event), Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)));
      draw();
    }, { passive: false });
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, place(event));
      this.point(event, place(event));
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const [x, y] = place(event);
      const before = fingers.get(event.pointerId);
      if (!before) return this.point(event, [x, y]);
      const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
      if (other) {
        const apart = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
        zoomAt(...other, apart([x, y], other) / Math.max(apart(before, other), 1));
      } else {
        const placed = this.placed();
        view = { scale: placed.scale, x: placed.x + x - before[0], y: placed.y + y - before[1] };
      }
      fingers.set(event.pointerId, [x, y]);
      tip.hidden = true;
      draw();
    });
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, (e) => fingers.delete(e.pointerId));
    this.canvas.addEventListener("pointerleave", () => {
      tip.hidden = true;
      choose(null);
    });
  }

  /** Say what is under the pointer. */
  point(event, [x, y]) {
    const { object, column, row } = this.at(x, y);
    choose(object);
    drawLoupe(this, column, row);
    tip.hidden = !object;
    if (!object) return;
    tip.replaceChildren(swatch(object), make("b", {}, object.name), ` ${scoreOf(object)}`, verdictOf(object));
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8);
    tip.style.setProperty("transform", `translate(${left}px, ${top}px)`);
  }
}

// -------------------------------------------------------------------------------------------------------- at the side

const scoreOf = (object) => object.score.toFixed(3);
const swatch = (object) => make("span", { className: "dot", style: { "--colour": colourOf(object) } });
const verdictOf = (object) => (object.verdict ? make("span", { className: "muted" }, ` ${words(object.verdict)}`) : "");

function facts(row) {
  const line = (name, value) => make("div", {}, make("dt", {}, name), make("dd", {}, value));
  const list = make("dl", { className: "facts" }, line("Key", make("span", { className: "uri" }, row.uri, copyButton("Copy key", row.uri))));
  if (row.size) list.append(line("Size", `${number(row.size[1])} × ${number(row.size[0])} px`));
  if (row.status === "ok") list.append(line("Objects", number(row.count)));
  return list;
}

function failure(row) {
  return make("div", { className: "failure" },
    make("h3", {}, `Failed: ${words(row.error ?? "unknown")}`),
    make("p", {}, row.detail ?? ""),
    make("p", { className: "muted" }, "The segment command with --retry-failed tries it again."),
  );
}

function copyButton(label, text) {
  const button = make("button", { type: "button", className: "quiet" }, label);
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

function objectList(stage) {
  const items = stage.objects.map((object) => {
    const rle = JSON.stringify(object.mask);
    const summary = make("summary", {}, swatch(object),
      make("span", { className: "name" }, object.name), verdictOf(object), make("span", { className: "score" }, scoreOf(object)));
    const box = object.box.map((edge) => edge.toFixed(1)).join(", ");
    const item = make("details", { className: "object" }, summary,
      make("dl", { className: "facts" },
        make("div", {}, make("dt", {}, "Instance"), make("dd", {}, String(object.instance))),
        make("div", {}, make("dt", {}, "Area"), make("dd", {}, `${number(object.area)} px`)),
        make("div", {}, make("dt", {}, "Box"), make("dd", {}, box)),
      ),
      make("div", { className: "row" }, copyButton("Copy RLE", rle), zoomButton(stage, object)),
    );
    item.object = object;
    const point = () => {
      choose(object);
      const loop = loopsOf(object.mask)[0];
      if (loop) drawLoupe(stage, loop[0], loop[1]);
    };
    item.addEventListener("pointerenter", point);
    item.addEventListener("focusin", point);
    item.addEventListener("pointerleave", () => choose(null));
    return item;
  });
  const title = [stage.title, counted(items.length, "object")].filter(Boolean).join(", ");
  return make("section", { className: "objects" }, make("h3", {}, title), ...items);
}

function zoomButton(stage, object) {
  const button = make("button", { type: "button", className: "quiet" }, "Zoom to it");
  button.addEventListener("click", () => {
    const [left, top, right, bottom] = object.box;
    const { clientWidth, clientHeight } = stage.canvas;
    const scale = Math.min((0.7 * clientWidth) / Math.max(right - left, 1), (0.7 * clientHeight) / Math.max(bottom - top, 1), MOST_ZOOM);
    view = { scale, x: clientWidth / 2 - ((left + right) / 2) * scale, y: clientHeight / 2 - ((top + bottom) / 2) * scale };
    draw();
  });
  return button;
}

function loupe() {
  return make("figure", { className: "loupe" },
    make("canvas", { id: "loupe", width: 480, height: 480, role: "img", "aria-label": "Pixels at the pointer" }),
    make("figcaption", { id: "loupe-place", className: "muted" }),
  );
}

/** The pixels around a place of the image, with the edges of masks between them. */
function drawLoupe(stage, column = 0, row = 0) {
  const canvas = byId("loupe");
  if (!canvas) return;
  const place = byId("loupe-place");
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (!stage) {
    place.textContent = "Point at the image to see its pixels.";
    return;
  }
  const scale = canvas.width / LOUPE_PIXELS;
  const [left, top] = [Math.floor(column) - (LOUPE_PIXELS - 1) / 2, Math.floor(row) - (LOUPE_PIXELS - 1) / 2];
  context.setTransform(scale, 0, 0, scale, -left * scale, -top * scale);
  stage.drawIn(context, scale, { chosen: stage.objects.includes(chosen) ? chosen : null, line: 3, fill: 0.3 });
  context.strokeStyle = "#fff";
  context.lineWidth = 2 / scale;
  context.strokeRect(Math.floor(column), Math.floor(row), 1, 1);
  const [x, y] = [Math.floor(column), Math.floor(row)];
  const inside = x >= 0 && y >= 0 && x < stage.width && y < stage.height;
  place.textContent = inside ? `x ${number(x)}, y ${number(y)}` : "outside of the image";
}
