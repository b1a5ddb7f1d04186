// The page: asks for the state every second, shows it, and hands what else there is to its parts.

import { Refused, get, post } from "./api.js";
import { Chart } from "./charts.js";
import { bytes, clock, compact, count, duration, ms, percent } from "./format.js";
import { History } from "./history.js";
import { Table } from "./table.js";
import { toast } from "./toasts.js";
import { TryIt } from "./tryit.js";

const TICK_MS = 1000;
const LONGEST_PAUSE_MS = 30_000;
const TABLE_EVERY = 2;
const RATE_SECS = 5;
const EVENTS_SHOWN = 100;
const KINDS = { load: "Loaded", evict: "Evicted", unload: "Unloaded", swap: "Swapped" };

const $ = (id) => document.getElementById(id);
const history = new History();
const table = new Table({ failed, tryIt: (target) => tryIt.open(container, state.server, target) });
const tryIt = new TryIt({ failed, answered: () => table.refresh() });

let state = null;
let containers = [];
let container = null;
let eventsSeen = -1;
let endpointsVersion = -1;
let failures = 0;
let ticks = 0;
let timer = 0;

// The clock

async function tick() {
  clearTimeout(timer);
  if (document.hidden) return; // begins again when somebody looks
  try {
    const known = { after: history.last, event: eventsSeen, endpoints: endpointsVersion };
    show(await get("/dashboard/state", Object.fromEntries(Object.entries(known).filter(([, value]) => value >= 0))));
    failures = 0;
  } catch (error) {
    if (failed(error, { isState: true })) return;
  }
  clearTimeout(timer);
  timer = setTimeout(tick, failures ? Math.min(LONGEST_PAUSE_MS, TICK_MS * 2 ** failures) : TICK_MS);
}

/** True if somebody must log in first. Whoever may not do one thing may do others; to see nothing is another matter. */
function failed(error, { isState = false } = {}) {
  if (error instanceof Refused) {
    if (error.status === 401 || (error.status === 403 && isState)) {
      askToLogIn(error.status === 403 ? error.message : "");
      return true;
    }
    if (error.status < 500) return false;
  }
  failures += 1;
  health("lost", error instanceof Refused ? error.message : "Disconnected");
  return false;
}

document.addEventListener("visibilitychange", () => document.hidden || tick());
addEventListener("online", tick);

// What is shown

function health(is, words) {
  $("health").dataset.is = is;
  if ($("health-words").textContent !== words) $("health-words").textContent = words;
  document.body.classList.toggle("lost", is === "lost");
}

function show(next) {
  if (state && state.server.id !== next.server.id) restart();
  state = next;
  $("login").hidden = true;
  $("dashboard").hidden = false;
  health("well", "Healthy");
  showServer(next);
  if (next.containers) showContainers(next);
  history.add(next.moment, next.seconds, next.server.now_secs - next.server.started_secs);
  showNumbers(next);
  showRoom($("memory"), next.memory, "resident");
  showRoom($("disk"), next.disk, "unpacked");
  showEvents(next);
  if (ticks++ % TABLE_EVERY === 0) table.look();
}

/** The server is another one: what was seen of the one before is over. */
function restart() {
  history.clear();
  eventsSeen = -1;
  endpointsVersion = -1;
  $("events").replaceChildren();
}

function fill(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function showServer({ server, user }) {
  fill($("uptime"), `Up ${duration(server.now_secs - server.started_secs)}`);
  fill($("version"), `Polyhost ${server.version} on ${server.name}`);
  fill($("user"), user ?? "");
  $("log-out").hidden = user === null;
}

function showContainers(next) {
  containers = next.containers;
  endpointsVersion = next.endpoints_version;
  const wanted = container?.id ?? sessionStorage.getItem("polyhost-container");
  $("container").replaceChildren(
    ...containers.map((one) => {
      const option = document.createElement("option");
      option.value = one.id;
      option.textContent = [one.endpoint, one.variant, one.hostname].filter(Boolean).join(" · ");
      return option;
    }),
  );
  document.querySelector(".container-choice").hidden = containers.length < 2;
  choose(containers.find((one) => one.id === wanted) ?? containers[0] ?? null);
}

function choose(chosen) {
  container = chosen;
  table.container = chosen;
  $("container").value = chosen?.id ?? "";
  fill($("source"), chosen?.source ?? "");
  $("source").title = chosen?.source ?? "";
  const endpoints = [...new Set(containers.map((one) => one.endpoint))];
  fill($("endpoints"), endpoints.length === 1 ? endpoints[0] : `${count(endpoints.length)} endpoints`);
  document.title = endpoints.length === 1 ? `${endpoints[0]} · Polyhost` : "Polyhost";
}

function showNumbers({ minute, totals }) {
  const [, errors, hits, lookups, ...percentiles] = minute;
  const requests = minute[0];
  const recent = history.recent(RATE_SECS);
  const steps = history.steps();
  fill($("requests").querySelector(".value"), compact(recent.requests / RATE_SECS));
  note("requests", `${count(totals.invocations)} since the start`);
  ["p50", "p90", "p99"].forEach((name, index) => {
    fill($("latency").querySelector(`.${name} dd`), requests ? ms(percentiles[index]) : "–");
  });
  note("latency", "last minute, loads included");
  fill($("hits").querySelector(".value"), percent(hits, lookups));
  note("hits", `${percent(totals.hits, totals.lookups)} since the start`);
  fill($("errors").querySelector(".value"), count(errors));
  $("errors").dataset.is = errors ? "some" : "none";
  note("errors", `${percent(errors, requests)} of requests, ${count(totals.errors)} since the start`);
  for (const chart of charts) chart.draw(steps);
}

const notes = {};
const pointed = {};

/** What is said below a number: of the step that is pointed at, or what is always said. */
function note(id, text) {
  notes[id] = text;
  fill($(id).querySelector(".note"), pointed[id] ?? notes[id]);
}

function reader(id, words) {
  return (step) => {
    pointed[id] = step ? `${duration(step.agoSecs)} ago: ${words(step)}` : undefined;
    note(id, notes[id] ?? "");
    return pointed[id] ?? "now";
  };
}

const chart = (id, options) => new Chart($(id).querySelector(".chart"), options);
const charts = [
  chart("requests", {
    series: [(step) => (step.isKnown ? step.requests / step.secs : null)],
    mark: (value) => `${compact(value)}/s`,
    isArea: true,
    pointed: reader("requests", (step) => `${compact(step.requests / step.secs)} per second`),
  }),
  chart("latency", {
    series: [(step) => step.p50, (step) => step.p90, (step) => step.p99],
    mark: (value) => (value < 1000 ? `${value} ms` : `${value / 1000} s`),
    isLogarithmic: true,
    pointed: reader("latency", (step) => (step.requests ? `${ms(step.p50)}, ${ms(step.p90)}, ${ms(step.p99)}` : "–")),
  }),
  chart("hits", {
    series: [(step) => (step.lookups ? step.hits / step.lookups : null)],
    mark: (value) => `${100 * value} %`,
    pointed: reader("hits", (step) => percent(step.hits, step.lookups)),
  }),
  chart("errors", {
    series: [(step) => (step.isKnown ? step.errors / step.secs : null)],
    mark: (value) => `${compact(value)}/s`,
    isArea: true,
    pointed: reader("errors", (step) => `${count(step.errors)} of ${count(step.requests)}`),
  }),
];

function showRoom(element, { used_bytes: used, budget_bytes: budget, models }, word) {
  const share = budget ? Math.min(1, used / budget) : 0;
  fill(element.querySelector(".value"), bytes(used));
  fill(element.querySelector(".budget"), `of ${bytes(budget)}`);
  fill(element.querySelector(".note"), `${count(models)} ${models === 1 ? "model" : "models"} ${word}`);
  element.querySelector("meter").value = share;
  element.querySelector(".bar-of > div").style.inlineSize = `${Math.max(share * 100, used > 0 ? 0.5 : 0)}%`;
}

function showEvents({ events, events_ever: ever, totals }) {
  const list = $("events");
  // The newest first. Whoever has scrolled down reads on where they are.
  const height = list.scrollHeight;
  list.prepend(...events.slice(-EVENTS_SHOWN).map(eventItem).reverse());
  while (list.children.length > EVENTS_SHOWN) list.lastElementChild.remove();
  if (list.scrollTop > 0) list.scrollTop += list.scrollHeight - height;
  eventsSeen = ever;
  $("no-events").hidden = list.children.length > 0;
  list.hidden = list.children.length === 0;
  fill($("events-sums"), `${count(totals.loads)} loads, ${count(totals.evictions)} evictions`);
}

function eventItem([secs, kind, endpoint, variant, target, took]) {
  const element = $("event").content.firstElementChild.cloneNode(true);
  element.querySelector("time").textContent = clock(secs);
  element.querySelector("time").dateTime = new Date(secs * 1000).toISOString();
  element.querySelector(".kind").textContent = KINDS[kind] ?? kind;
  element.querySelector(".kind").dataset.is = kind;
  element.querySelector(".target").textContent = target;
  element.querySelector(".of").textContent = containers.length > 1 ? endpoint : "";
  element.querySelector(".target").title = `${target} of ${endpoint}, ${variant}`;
  element.querySelector(".ms").textContent = ms(took);
  return element;
}

$("container").addEventListener("change", () => {
  sessionStorage.setItem("polyhost-container", $("container").value);
  choose(containers.find((one) => one.id === $("container").value));
  table.refresh({ isSame: false });
});

// Who looks

function askToLogIn(message) {
  clearTimeout(timer);
  state = null;
  restart();
  $("try").close();
  $("dashboard").hidden = true;
  $("log-out").hidden = !message;
  for (const id of ["endpoints", "uptime", "version", "user"]) fill($(id), "");
  health("waiting", "Locked");
  $("login-error").textContent = message;
  if ($("login").hidden) {
    $("login").hidden = false;
    $("access-key-id").focus();
  }
}

$("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  if (button.disabled) return;
  button.disabled = true;
  $("login-error").textContent = "";
  try {
    await post("/dashboard/login", { access_key_id: $("access-key-id").value.trim(), secret_access_key: $("secret").value });
    event.target.reset();
    await tick();
  } catch (error) {
    $("login-error").textContent = error.message;
  } finally {
    button.disabled = false;
  }
});

$("log-out").addEventListener("click", async () => {
  try {
    await post("/dashboard/logout", {});
    askToLogIn("");
  } catch (error) {
    toast(error.message, { isError: true });
  }
});

// Light and dark

const system = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : system.matches;
}

function nameTheme() {
  $("theme").setAttribute("aria-label", `Use the ${isDark() ? "light" : "dark"} theme`);
}

$("theme").addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("polyhost-theme", theme);
  } catch {
    // Then it is for this page only.
  }
  nameTheme();
});
system.addEventListener("change", nameTheme);
nameTheme();

tick();
