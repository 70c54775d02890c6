// Elements from plain calls, and what keeps a tree on the page equal to one that was just made.
//
// Everything that comes from the cell becomes text or an attribute, never markup. A view is made anew whenever there is
// news, and morphed into what is there: so focus, selection, scroll positions and open details stay. Nodes carry no
// listeners of their own for the same reason: see `on`.

const SVG = "http://www.w3.org/2000/svg";

export function h(tag, attributes, ...children) {
  return build(document.createElement(tag), attributes, children);
}

export function s(tag, attributes, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "style") {
      // Property by property: the page's policy forbids style attributes.
      for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    } else element.setAttribute(name, value === true ? "" : value);
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children) {
    if (Array.isArray(child)) append(element, child);
    else if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}

// Make `there` look like `wanted`, which is used up. Children with `data-key` are recognized by it.
export function morph(there, wanted) {
  if (there.nodeType === Node.TEXT_NODE) {
    if (there.data !== wanted.data) there.data = wanted.data;
    return;
  }
  syncAttributes(there, wanted);
  if (there.hasAttribute("data-kept")) return; // looks after its own children
  const keyed = new Map();
  for (const child of there.children) if (child.dataset.key !== undefined) keyed.set(child.dataset.key, child);
  let place = there.firstChild;
  for (const child of [...wanted.childNodes]) {
    const key = child.dataset?.key;
    const known = key === undefined ? place : keyed.get(key);
    if (known && isAlike(known, child)) {
      if (known === place) place = place.nextSibling;
      else there.insertBefore(known, place);
      morph(known, child);
    } else there.insertBefore(child, place);
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function isAlike(a, b) {
  return a.nodeName === b.nodeName && a.dataset?.key === b.dataset?.key;
}

function syncAttributes(there, wanted) {
  for (const { name, value } of [...wanted.attributes]) {
    if (name !== "style" && there.getAttribute(name) !== value) there.setAttribute(name, value);
  }
  for (const { name } of [...there.attributes]) {
    if (name !== "style" && name !== "open" && !wanted.hasAttribute(name)) there.removeAttribute(name);
  }
  if (there.style.cssText !== wanted.style.cssText) there.style.cssText = wanted.style.cssText;
}

// Call `act(element, event)` for events on elements below `root` that match, now or later.
export function on(root, type, selector, act) {
  root.addEventListener(type, (event) => {
    const element = event.target instanceof Element ? event.target.closest(selector) : null;
    if (element && root.contains(element)) act(element, event);
  });
}
