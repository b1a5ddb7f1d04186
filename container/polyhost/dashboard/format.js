// Numbers, sizes and times as people read them.

const plain = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const coarse = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const NOTHING = "–";

export const count = (number) => plain.format(number);

export const compact = (number) => (number < 10_000 ? digits.format(number) : short.format(number));

export function bytes(size) {
  if (size === null) return NOTHING;
  const power = size > 0 ? Math.min(UNITS.length - 1, Math.floor(Math.log2(size) / 10)) : 0;
  const value = size / 1024 ** power;
  return `${value < 999.5 ? digits.format(value) : plain.format(Math.round(value))} ${UNITS[power]}`;
}

export function ms(value) {
  if (value >= 999.5) return `${(value / 1000).toFixed(value < 9995 ? 2 : 1)} s`;
  return `${value < 10 ? coarse.format(value) : Math.round(value)} ms`;
}

export function percent(part, whole) {
  if (!whole) return NOTHING;
  const value = (100 * part) / whole;
  // Not all is not 100 %, some is not none.
  if (part < whole && value > 99.9) return "99.9 %";
  if (part > 0 && value < 0.1) return "0.1 %";
  return `${value === 100 || value === 0 ? value : value.toFixed(1)} %`;
}

export function duration(secs) {
  if (secs < 60) return `${Math.max(0, Math.floor(secs))} s`;
  const minutes = Math.floor(secs / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function ago(secs) {
  if (secs < 60) return `${Math.max(0, Math.floor(secs))} s ago`;
  if (secs < 3600) return `${Math.floor(secs / 60)} min ago`;
  return secs < 48 * 3600 ? `${Math.floor(secs / 3600)} h ago` : `${Math.floor(secs / 86400)} d ago`;
}

export const clock = (secs) => new Date(secs * 1000).toLocaleTimeString("en-GB");

/** For a shell: nothing in it means anything. */
export function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
