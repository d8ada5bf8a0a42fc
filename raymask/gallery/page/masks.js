// Masks in COCO's compressed run-length encoding, as outlines that are crisp at any zoom.

const paths = new WeakMap();

/** The runs of a mask, zeros first, column by column from the top left; null if it is malformed. */
export function runsOf({ size: [height, width], counts }) {
  const runs = [];
  let place = 0;
  let sum = 0;
  while (place < counts.length) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = counts.charCodeAt(place++) - 48;
      if (!(code >= 0 && code < 64) || shift > 30) return null;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16 && shift < 32) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    if (value < 0) return null;
    sum += value;
    runs.push(value);
  }
  return sum === height * width ? runs : null;
}

/** The stretches of each column that lie inside: column -> [top, bottom, top, bottom, ...]. */
function columnsOf(runs, height) {
  const columns = new Map();
  let pixel = 0;
  runs.forEach((run, index) => {
    const stop = pixel + run;
    while (index % 2 && pixel < stop) {
      const column = Math.floor(pixel / height);
      const top = pixel - column * height;
      const bottom = Math.min(height, stop - column * height);
      const stretches = columns.get(column) ?? [];
      if (stretches.at(-1) === top && stretches.length) stretches[stretches.length - 1] = bottom;
      else stretches.push(top, bottom);
      columns.set(column, stretches);
      pixel = column * height + bottom;
    }
    pixel = stop;
  });
  return columns;
}

/** The stretches of `a` that are not in `b`. */
function without(a, b) {
  const left = [];
  let other = 0;
  for (let i = 0; i < a.length; i += 2) {
    let top = a[i];
    while (other < b.length && b[other + 1] <= top) other += 2;
    for (let j = other; j < b.length && b[j] < a[i + 1]; j += 2) {
      if (b[j] > top) left.push(top, b[j]);
      top = Math.max(top, b[j + 1]);
    }
    if (top < a[i + 1]) left.push(top, a[i + 1]);
  }
  return left;
}

/** The corners of the edges between pixels inside and outside, in loops: [[x, y, x, y, ...], ...]. */
export function loopsOf(mask) {
  const [height, width] = mask.size;
  const runs = runsOf(mask);
  if (!runs) return [];
  const columns = columnsOf(runs, height);
  const edges = new Map(); // corner -> the corners to which edges lead from it, the inside on their right
  const corner = (x, y) => y * (width + 1) + x;
  const add = (from, to) => (edges.has(from) ? edges.get(from).push(to) : edges.set(from, [to]));
  for (const [x, stretches] of columns) {
    for (let i = 0; i < stretches.length; i += 2) {
      add(corner(x, stretches[i]), corner(x + 1, stretches[i]));
      add(corner(x + 1, stretches[i + 1]), corner(x, stretches[i + 1]));
    }
    const before = without(stretches, columns.get(x - 1) ?? []);
    for (let i = 0; i < before.length; i += 2) add(corner(x, before[i + 1]), corner(x, before[i]));
    const after = without(stretches, columns.get(x + 1) ?? []);
    for (let i = 0; i < after.length; i += 2) add(corner(x + 1, after[i]), corner(x + 1, after[i + 1]));
  }
  const loops = [];
  for (const [start, ends] of edges) {
    while (ends.length) {
      const loop = [];
      let from = start;
      do {
        loop.push(from % (width + 1), Math.floor(from / (width + 1)));
        from = edges.get(from).pop();
      } while (from !== start);
      loops.push(loop);
    }
  }
  return loops;
}

/** The outline of an object's mask, in pixels of the image. */
export function pathOf(object) {
  if (!paths.has(object)) {
    const path = new Path2D();
    for (const loop of loopsOf(object.mask)) {
      path.moveTo(loop[0], loop[1]);
      for (let i = 2; i < loop.length; i += 2) path.lineTo(loop[i], loop[i + 1]);
      path.closePath();
    }
    paths.set(object, path);
  }
  return paths.get(object);
}

/** How objects are drawn that have a verdict: Okabe and Ito's colours, and lines that differ as well. */
export const VERDICTS = {
  match: { colour: "#009e73", dash: [] },
  miss: { colour: "#56b4e9", dash: [5, 3] },
  false_alarm: { colour: "#d55e00", dash: [2, 2.5] },
  crowd: { colour: "#999999", dash: [1, 4] },
};

const colours = new Map();

/** Learn the colours of categories. */
export function learnColours(categories) {
  for (const { id, colour } of categories) colours.set(id, colour);
}

export const colourOf = (object) =>
  object.verdict ? VERDICTS[object.verdict].colour : (colours.get(object.category) ?? "#0072b2");

/** Draw objects, the best on top; the context is in pixels of the image, of which one is `scale` of the screen's. */
export function drawObjects(context, objects, scale, { line = 1.5, fill = 0.34, chosen = null } = {}) {
  context.lineJoin = "round";
  for (let i = objects.length - 1; i >= 0; i--) {
    if (objects[i] !== chosen) drawObject(context, objects[i], scale, line, chosen ? fill * 0.35 : fill);
  }
  if (chosen) drawObject(context, chosen, scale, line * 1.6, Math.min(fill * 1.3, 0.6));
}

function drawObject(context, object, scale, line, fill) {
  const path = pathOf(object);
  const colour = colourOf(object);
  context.fillStyle = colour;
  context.globalAlpha = fill;
  context.fill(path, "evenodd");
  context.globalAlpha = 0.5;
  context.strokeStyle = "#000";
  context.lineWidth = (line * 2) / scale;
  context.stroke(path);
  context.globalAlpha = 1;
  context.setLineDash((VERDICTS[object.verdict]?.dash ?? []).map((part) => (part * line * 1.3) / scale));
  context.strokeStyle = colour;
  context.lineWidth = line / scale;
  context.stroke(path);
  context.setLineDash([]);
}
