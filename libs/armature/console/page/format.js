// Numbers for people. What is not known is a dash.

export const NONE = "–";

export function seconds(value) {
  if (value === null || value === undefined) return NONE;
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (size < 0.00995) return `${(value * 1e3).toFixed(1)} ms`;
  if (size < 1) return `${(value * 1e3).toFixed(0)} ms`;
  if (size < 10) return `${value.toFixed(2)} s`;
  return size < 120 ? `${value.toFixed(1)} s` : `${(value / 60).toFixed(1)} min`;
}

export function count(value) {
  if (value === null || value === undefined) return NONE;
  const size = Math.abs(value);
  if (size >= 1e9) return `${(value / 1e9).toFixed(size < 1e10 ? 1 : 0)} G`;
  if (size >= 1e6) return `${(value / 1e6).toFixed(size < 1e7 ? 1 : 0)} M`;
  if (size >= 1e4) return `${(value / 1e3).toFixed(size < 1e5 ? 1 : 0)} k`;
  if (Number.isInteger(value) || size >= 100) return Math.round(value).toLocaleString("en");
  return size >= 10 ? value.toFixed(1) : value.toFixed(size && size < 0.1 ? 3 : 2);
}

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  let unit = 0;
  let rest = value;
  while (rest >= 1000 && unit < 5) {
    rest /= 1000;
    unit += 1;
  }
  const digits = unit && rest < 10 ? 1 : 0;
  return `${rest.toFixed(digits)} ${["B", "kB", "MB", "GB", "TB", "PB"][unit]}`;
}

export function perSecond(value, unit = bytes) {
  return value === null || value === undefined ? NONE : `${unit(value)}/s`;
}

export function share(value) {
  if (value === null || value === undefined) return NONE;
  const percent = Math.min(1, Math.max(0, value)) * 100;
  return `${percent > 0 && percent < 1 ? "<1" : percent > 99 && percent < 100 ? ">99" : Math.round(percent)} %`;
}

// Without the zeros that only keep changing numbers in line.
export const plain = (text) => text.replace(/(\.\d*?)0+(?!\d)/, "$1").replace(/\.(?!\d)/, "");

export function ago(secondsAgo) {
  const past = Math.max(0, secondsAgo);
  if (past < 1.5) return "now";
  if (past < 90) return `${Math.round(past)} s ago`;
  if (past < 5400) return `${Math.round(past / 60)} min ago`;
  return `${Math.round(past / 3600)} h ago`;
}

// A member's id without its kind, which stands beside it: decode-worker-515524 is 515524.
export function short(id) {
  return id.replace(/^(prefill-worker|decode-worker|aggregated-worker|gateway|router|kv-index|kv-offload|planner)-/, "");
}
