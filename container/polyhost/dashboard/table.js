// The table of models: the server searches, sorts and pages; here is one page of it, kept up to date in place.

import { get, post } from "./api.js";
import { ago, bytes, clock, count, ms, quoted } from "./format.js";
import { toast } from "./toasts.js";

const ROWS = 50;
const TYPING_MS = 120;
// Numbers are asked for with the most first.
const DESCENDING_FIRST = new Set(["size", "requests", "hits", "errors", "last_used"]);

const $ = (id) => document.getElementById(id);

function fill(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** What stands in the table's place: a sentence, and perhaps what to do with a command. */
function hint(sentence, todo = "", command = "") {
  const paragraphs = [[sentence], [todo, command]].filter(([text]) => text).map(([text, code]) => {
    const paragraph = document.createElement("p");
    paragraph.append(text);
    if (code) paragraph.append(" ", Object.assign(document.createElement("code"), { textContent: code }));
    return paragraph;
  });
  const words = (elements) => [...elements].map((element) => element.textContent).join("\n");
  if (words($("no-models").children) !== words(paragraphs)) $("no-models").replaceChildren(...paragraphs);
}

function hintAtFirstModel(source) {
  const copy = source.startsWith("s3://") ? "aws s3 cp" : "cp";
  hint("There are no models yet.", "Pack one as model.tar.gz and copy it here, then press “List again”:", `${copy} model.tar.gz ${quoted(source)}`);
}

export class Table {
  #query = { search: "", status: "", sort: "status", is_descending: false };
  #offset = 0;
  #nextAfter = "";
  #total = 0;
  #order = 0;
  #container = null;
  #rows = new Map();
  #doing = new Map();
  #asking = null;
  #typing = 0;

  /** `failed` is told what went wrong with the server; `tryIt` gets a model's name. */
  constructor({ failed, tryIt }) {
    this.failed = failed;
    this.tryIt = tryIt;
    this.body = $("rows");
    this.#readAddress();
    this.#listen();
  }

  set container(container) {
    if (this.#container?.id !== container?.id) this.#offset = 0;
    this.#container = container;
    const store = container?.source.startsWith("s3://") ? "bucket" : "folder";
    for (const element of document.querySelectorAll(".store-name")) fill(element, `In the ${store}`);
    if (!container) this.#showNone();
    this.place = { memory: "In memory", disk: "On disk", store: `In the ${store}` };
  }

  /** Time for another look. What was asked before is waited for: a slow server must get to its answer. */
  look() {
    if (!this.#asking) this.refresh();
  }

  /** Asks the server; what was asked before and not answered yet is of no use any more. */
  async refresh({ isSame = true } = {}) {
    if (!this.#container) return;
    this.#asking?.abort();
    const asking = (this.#asking = new AbortController());
    // Somebody is about to press a button: rows stay where they are, with what is new about them.
    const held = isSame && this.body.matches(":hover, :focus-within") ? this.#order : 0;
    const query = { ...this.#query, container: this.#container.id, offset: this.#offset, limit: ROWS, held };
    try {
      const page = await get("/dashboard/models", query, asking.signal);
      if (!asking.signal.aborted) this.#show(page);
    } catch (error) {
      if (!asking.signal.aborted) this.failed(error);
    } finally {
      if (this.#asking === asking) this.#asking = null;
    }
  }

  // What is shown

  #show(page) {
    this.#total = page.total;
    this.#order = page.order;
    if (page.rows.length === 0 && this.#offset > 0) {
      this.#go(Math.floor(Math.max(0, page.total - 1) / ROWS) * ROWS);
      return;
    }
    this.#showRows(page.rows);
    this.#showCounts(page);
    this.#showListing(page);
  }

  #showNone() {
    this.#showRows([]);
    $("no-models").hidden = false;
    hint("There is no endpoint yet.", "Make one by boto3's create_endpoint, or start the server with", "polyhost serve FOLDER");
  }

  #showRows(rows) {
    const names = new Set(rows.map((row) => row.name));
    for (const [name, element] of this.#rows) {
      if (names.has(name)) continue;
      element.remove();
      this.#rows.delete(name);
    }
    rows.forEach((row, index) => {
      const element = this.#rows.get(row.name) ?? this.#newRow(row.name);
      if (this.body.children[index] !== element) this.body.insertBefore(element, this.body.children[index] ?? null);
      element.setAttribute("aria-rowindex", this.#offset + index + 2);
      this.#update(element, row);
    });
    this.body.parentElement.setAttribute("aria-rowcount", this.#total + 1);
  }

  #newRow(name) {
    const element = $("row").content.firstElementChild.cloneNode(true);
    const end = name.lastIndexOf("/") + 1;
    fill(element.querySelector(".folder"), name.slice(0, end));
    fill(element.querySelector(".file"), name.slice(end));
    element.querySelector(".name").title = name;
    element.querySelector(".load").addEventListener("click", () => this.#loadOrUnload(name, element));
    element.querySelector(".pin").addEventListener("click", () => this.#pinOrNot(name, element));
    element.querySelector(".try-it").addEventListener("click", () => this.tryIt(name));
    element.querySelector(".try-it").setAttribute("aria-label", `Try ${name}`);
    this.#rows.set(name, element);
    return element;
  }

  #update(element, row) {
    element.row = row;
    const doing = this.#doing.get(row.name);
    const is = (selector) => element.querySelector(selector);
    const isLoaded = row.status === "memory" && !(row.is_loading && row.unpacked_bytes === null);
    fill(is(".problem"), row.problem);
    const place = is(".place");
    fill(place, isLoaded || row.status !== "memory" ? this.place[row.status] : "Loading");
    place.dataset.is = isLoaded || row.status !== "memory" ? row.status : "loading";
    is(".pinned").hidden = !row.is_pinned;
    is(".busy").hidden = !row.users;
    fill(is(".busy"), row.users ? `${count(row.users)} in use` : "");
    this.#updateNumbers(is, row);
    this.#updateButtons(is, row, isLoaded, doing);
  }

  #updateNumbers(is, row) {
    const size = is(".size");
    fill(size, bytes(row.size_bytes));
    size.title = row.unpacked_bytes === null ? "" : `${bytes(row.unpacked_bytes)} unpacked`;
    for (const [selector, value] of [[".uses", row.requests], [".hits", row.hits], [".errors", row.errors]]) {
      fill(is(selector), value ? count(value) : "–");
      is(selector).dataset.is = value ? "some" : "none";
    }
    const used = is(".used");
    fill(used, row.last_used_secs ? ago(Date.now() / 1000 - row.last_used_secs) : "–");
    used.dataset.is = row.last_used_secs ? "some" : "none";
    used.title = row.last_used_secs ? clock(row.last_used_secs) : "";
  }

  #updateButtons(is, row, isLoaded, doing) {
    const load = is(".load");
    fill(load, doing ?? (isLoaded ? "Unload" : "Load"));
    load.setAttribute("aria-label", `${isLoaded ? "Unload" : "Load"} ${row.name}`);
    load.setAttribute("aria-disabled", doing !== undefined);
    const pin = is(".pin");
    fill(pin, row.is_pinned ? "Unpin" : "Pin");
    pin.setAttribute("aria-label", `${row.is_pinned ? "Unpin" : "Pin"} ${row.name}`);
    pin.setAttribute("aria-disabled", !isLoaded);
    pin.title = isLoaded ? "" : "Load it first";
  }

  #showCounts(page) {
    const all = Object.values(page.counts).reduce((sum, some) => sum + some, 0);
    for (const button of $("filters").children) {
      const { status } = button.dataset;
      fill(button.querySelector("b"), count(status ? page.counts[status] : all));
      button.setAttribute("aria-pressed", status === this.#query.status);
    }
    const first = Math.min(this.#offset + 1, page.total);
    const last = Math.min(this.#offset + ROWS, page.total);
    fill($("page-range"), page.total ? `${count(first)}–${count(last)} of ${count(page.total)}` : "");
    $("previous").disabled = this.#offset === 0;
    $("next").disabled = last >= page.total;
    const none = $("no-models");
    none.hidden = page.total > 0;
    const isFiltered = this.#query.search || this.#query.status;
    if (isFiltered) hint("No model is like that.");
    else if (page.is_listing) hint("Looking …");
    else if (!page.total) hintAtFirstModel(this.#container.source);
  }

  #showListing(page) {
    fill($("listing-problem"), page.problem);
    const again = $("list-again");
    const isListing = page.is_listing && !page.problem;
    fill(again, isListing ? "Listing …" : "List again");
    again.hidden = !this.#container.is_multi_model;
    again.title = page.listed_secs === null ? "" : `Listed at ${clock(page.listed_secs)}`;
    // Of a large bucket a part is listed at a time.
    const on = $("list-on");
    this.#nextAfter = page.next_after;
    on.hidden = !page.next_after || isListing;
    on.title = page.next_after ? `The archives behind ${page.next_after}` : "";
    for (const head of document.querySelectorAll("th[data-sort]")) {
      const isSorted = head.dataset.sort === this.#query.sort;
      const order = this.#query.is_descending ? "descending" : "ascending";
      isSorted ? head.setAttribute("aria-sort", order) : head.removeAttribute("aria-sort");
    }
  }

  // What is asked

  #listen() {
    $("search").addEventListener("input", () => {
      clearTimeout(this.#typing);
      this.#typing = setTimeout(() => this.#ask({ search: $("search").value.trim() }), TYPING_MS);
    });
    $("filters").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) this.#ask({ status: button.dataset.status });
    });
    for (const head of document.querySelectorAll("th[data-sort]")) {
      head.querySelector("button").addEventListener("click", () => this.#sort(head.dataset.sort));
    }
    $("previous").addEventListener("click", () => this.#go(Math.max(0, this.#offset - ROWS)));
    $("next").addEventListener("click", () => this.#go(this.#offset + ROWS));
    $("list-again").addEventListener("click", () => this.#listBehind(""));
    $("list-on").addEventListener("click", () => this.#listBehind(this.#nextAfter));
    document.addEventListener("keydown", (event) => {
      const isTyping = event.target.closest?.("input, textarea, select, dialog");
      if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      $("search").select();
    });
  }

  #ask(changes) {
    Object.assign(this.#query, changes);
    this.#writeAddress();
    this.#go(0);
  }

  #sort(sort) {
    const isSame = this.#query.sort === sort;
    this.#ask({ sort, is_descending: isSame ? !this.#query.is_descending : DESCENDING_FIRST.has(sort) });
  }

  #go(offset) {
    this.#offset = offset;
    this.refresh({ isSame: false });
  }

  #readAddress() {
    const address = new URLSearchParams(location.search);
    for (const name of ["search", "status", "sort"]) this.#query[name] = address.get(name) ?? this.#query[name];
    this.#query.is_descending = address.get("order") === "descending";
    $("search").value = this.#query.search;
  }

  #writeAddress() {
    const { search, status, sort, is_descending } = this.#query;
    const address = new URLSearchParams(Object.entries({ search, status }).filter(([, value]) => value));
    if (sort !== "status" || is_descending) address.set("sort", sort);
    if (is_descending) address.set("order", "descending");
    history.replaceState(null, "", `${location.pathname}${address.size ? `?${address}` : ""}`);
  }

  // What is done

  async #do(name, element, words, path, document, done) {
    if (this.#doing.has(name)) return;
    this.#doing.set(name, words);
    this.#update(element, element.row);
    const begin = performance.now();
    try {
      await post(path, { container: this.#container.id, ...document });
      toast(`${done} ${name}`, { note: ms(performance.now() - begin) });
    } catch (error) {
      toast(error.message, { isError: true });
      this.failed(error);
    } finally {
      this.#doing.delete(name);
      await this.refresh();
    }
  }

  #loadOrUnload(name, element) {
    const isLoaded = element.querySelector(".load").getAttribute("aria-label").startsWith("Unload");
    return isLoaded
      ? this.#do(name, element, "Unloading …", "/dashboard/unload", { target: name }, "Unloaded")
      : this.#do(name, element, "Loading …", "/dashboard/load", { target: name }, "Loaded");
  }

  #pinOrNot(name, element) {
    if (element.querySelector(".pin").getAttribute("aria-disabled") === "true") return null;
    const is_pinned = !element.row.is_pinned;
    const words = element.row.status === "memory" ? "Unload" : "Load";
    return this.#do(name, element, words, "/dashboard/pin", { target: name, is_pinned }, is_pinned ? "Pinned" : "Unpinned");
  }

  async #listBehind(after) {
    fill($("list-again"), "Listing …");
    try {
      await post("/dashboard/refresh", { container: this.#container.id, after });
    } catch (error) {
      toast(error.message, { isError: true });
      this.failed(error);
    }
    await this.refresh({ isSame: false });
  }
}
