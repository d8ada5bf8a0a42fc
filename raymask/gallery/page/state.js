// What is asked for, kept in the part of the link behind "#", so that reload, back and bookmarks work.

const listeners = [];
let current = read();

function read() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

/** Names that make up the filter; the others are `sort`, `page` and `image`. */
export const FILTERS = [
  ...["name", "status", "error", "category", "min_score", "max_score", "min_area", "max_area"],
  ...["verdict", "where"],
];

export const state = () => current;

/** The filter alone, as the server takes it. */
export const filter = () => Object.fromEntries(Object.entries(current).filter(([name]) => FILTERS.includes(name)));

export const isFiltered = () => FILTERS.some((name) => current[name]);

/** Change some of it; a changed filter or sort begins at its first page. */
export function change(changes) {
  const next = { ...current, ...changes };
  if ([...FILTERS, "sort"].some((name) => name in changes)) delete next.page;
  for (const [name, value] of Object.entries(next)) if (!value) delete next[name];
  const link = linkTo(next);
  if (link === linkTo(current)) return;
  const isTurn = ["page", "image"].some((name) => name in changes);
  history[isTurn ? "pushState" : "replaceState"](null, "", link);
  tell();
}

/** The link to the page with these changes. */
export const linkWith = (changes) => linkTo({ ...current, ...changes });

const linkTo = (wanted) => `#${new URLSearchParams(wanted)}`;

/** A list of a filter, which is separated by commas. */
export const listOf = (name) => (current[name] ?? "").split(",").filter(Boolean);

/** `call(now, before)` after each change. */
export const listen = (call) => listeners.push(call);

function tell() {
  const before = current;
  current = read();
  for (const call of listeners) call(current, before);
}

addEventListener("popstate", tell);
