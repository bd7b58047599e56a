// Numbers, names and colours as people read them.

const UNITS = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

/** A number in about three digits: 1.63 M, 0.0718, 3.1e-5. */
export function short(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-4) return value.toExponential(1).replace(".0e", "e");
  if (size >= 1e3 && size < 1e4) return Math.round(value).toLocaleString("en");
  if (size < 1e4) return trim(size < 1 ? value.toPrecision(digits) : value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size)))));
  const [unit, name] = UNITS.find(([unit]) => size >= unit * 0.9995);
  const part = value / unit;
  return `${trim(part.toFixed(Math.abs(part) < 10 ? 2 : Math.abs(part) < 100 ? 1 : 0))}\u00a0${name}`;
}

const BYTES = ["B", "KiB", "MiB", "GiB", "TiB"];
const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const power = Math.min(4, Math.max(0, Math.floor(Math.log2(Math.max(Math.abs(value), 1)) / 10)));
  return `${short(value / 1024 ** power)}\u00a0${BYTES[power]}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1e-3) return `${short(value * 1e6)}\u00a0µs`;
  return value < 1 ? `${short(value * 1e3)}\u00a0ms` : `${short(value)}\u00a0s`;
}

/** A span of time: 42 s, 3 min, 1 h 20 min. */
export function span(value) {
  if (value === null || value === undefined) return "–";
  if (value < 60) return `${Math.max(0, Math.round(value))} s`;
  const minutes = Math.round(value / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const percent = (share) =>
  share === null || share === undefined || Number.isNaN(share) ? "–"
    : `${100 * share >= 10 || share === 0 ? Math.round(100 * share) : +(100 * share).toPrecision(share < 0.01 ? 1 : 2)}\u00a0%`;

export const whole = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));

/** How values of a name are written. */
export const writerOf = (name) => (/bytes$/.test(name) ? bytes : /seconds$/.test(name) ? seconds : short);

/** How values below each other are written: with the same decimals, and enough to tell them apart. */
export function columnWriter(values, writer = short, more = 2) {
  const known = [...new Set(values.filter(Number.isFinite))], sizes = known.map(Math.abs);
  const most = Math.max(...sizes, 0);
  if (writer !== short || most >= 1e4 || most < 1e-4) return writer;
  const least = Math.max(0, 2 - Math.floor(Math.log10(most)));
  const write = (digits) => (value) => (!Number.isFinite(value) ? "–" : value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits ? short(value) : value.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits}));
  const tells = (digits) => new Set(known.map(write(digits))).size === known.length;
  return write(Array.from({length: more}, (_, i) => least + i).find(tells) ?? least + more);
}

/** The labels of an axis: one unit for all, and as many digits as tell them apart. */
export function axisLabels(values, writer = short) {
  const known = values.filter((value) => value !== null);
  const most = Math.max(...known.map(Math.abs), 0);
  const step = known.length > 1 ? Math.abs(known[1] - known[0]) : most;
  const power = Math.min(4, Math.floor(Math.log2(Math.max(Math.min(most, 100 * step), 1)) / 10));
  const [unit, name] = writer === bytes ? [1024 ** power, BYTES[power]]
    : writer === seconds ? (most >= 1 ? [1, "s"] : most >= 1e-3 ? [1e-3, "ms"] : [1e-6, "µs"])
    : most >= 1e4 ? UNITS.find(([unit]) => most >= unit) : [1, ""];
  const gap = step / unit;
  if (writer === short && most < 1e-3 && most > 0) return values.map((v) => (v === null ? "" : v === 0 ? "0" : v.toExponential(0)));
  let digits = 0;
  while (digits < (writer === short ? 6 : 2) && Math.abs(gap * 10 ** digits - Math.round(gap * 10 ** digits)) > 1e-3 * gap * 10 ** digits) digits += 1;
  const write = (v) => (v / unit).toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
  return values.map((v) => (v === null ? "" : v === 0 ? "0" : `${write(v)}${name && ` ${name}`}`));
}

const TITLES = {
  step_loss: "Loss", val_loss: "Validation loss", learning_rate: "Learning rate", gradient_norm: "Gradient norm",
  step_seconds: "Seconds per step", data_wait_seconds: "Waiting for data",
  memory_bytes: "Memory", process_memory_bytes: "Process memory", device_memory_bytes: "Device memory",
  layer_gradient_norms: "Gradient norm by layer", layer_update_ratios: "Update-to-weight ratio by layer",
  expert_load: "Load of the experts", model_flops_utilization: "Model FLOPs utilization",
};
export function titleOf(name) {
  if (name.startsWith("val_") && !TITLES[name]) return `Validation ${titleOf(name.slice(4)).toLowerCase()}`;
  const text = name.replace(/_/g, " ");
  return TITLES[name] ?? text.charAt(0).toUpperCase() + text.slice(1);
}

/** The value of a colour of the style sheet, for a canvas. */
export function resolved(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const [, ...rgb] = getComputedStyle(probe).color.match(/(\d+)\D+(\d+)\D+(\d+)/);
  probe.remove();
  return (alpha = 1) => `rgba(${rgb.join(",")},${alpha})`;
}

export const shapeOf = (node) => node.out?.map(([shape]) => shape.map((n) => n ?? "?").join("×")).join(", ") ?? "";
