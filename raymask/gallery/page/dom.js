// The few things that all parts of the page need. Text goes in as text, never as markup.

export const byId = (id) => document.getElementById(id);

/** An element with properties, attributes (those with a dash, and `role`) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export const number = (value) => value.toLocaleString("en");

/** "1 image", "2 images". */
export const counted = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** The last part of a key, which is what people call a file. */
export const nameOf = (uri) => uri.split(/[/#]/).filter(Boolean).pop() ?? uri;

/** "not_an_image" as words. */
export const words = (kind) => kind.replaceAll("_", " ");

/** What the server answers; an Error with what it says if that is a problem. */
export async function ask(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams(parameters).toString();
  let response;
  try {
    response = await fetch(query ? `${path}?${query}` : path, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The gallery has been stopped. Start `raymask view` again, and open the link that it prints.");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.problem);
  return answer;
}

/** The function, called once nobody has asked for it again for some time. */
export function later(call, milliseconds) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...given), milliseconds);
  };
}
