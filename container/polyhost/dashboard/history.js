// The last five minutes, second by second as the server counts them, and in steps that a chart can show.

export const SPAN_SECS = 300;
export const STEP_SECS = 5;

export class History {
  #seconds = new Map();
  #moment = -1;
  #began = 0;

  /** The last second that is known whole. */
  get last() {
    return Math.max(this.#moment - 1, ...this.#seconds.keys(), -1);
  }

  /** `upSecs`: how long the server has been there; before that there was nothing, not even silence. */
  add(moment, seconds, upSecs) {
    this.#moment = moment;
    this.#began = moment - upSecs;
    for (const [at, ...numbers] of seconds) this.#seconds.set(at, numbers);
    for (const at of this.#seconds.keys()) if (at < moment - SPAN_SECS) this.#seconds.delete(at);
  }

  clear() {
    this.#seconds.clear();
    this.#moment = -1;
  }

  /** Of the last whole seconds. */
  recent(secs) {
    return this.#sum(this.#moment - secs, this.#moment);
  }

  /** The oldest first. */
  steps() {
    const end = Math.ceil(this.#moment / STEP_SECS) * STEP_SECS;
    const steps = [];
    for (let at = end - SPAN_SECS; at < end; at += STEP_SECS) steps.push(this.#sum(at, Math.min(at + STEP_SECS, this.#moment)));
    return steps;
  }

  #sum(from, to) {
    const sum = { secs: Math.max(to - from, 1), requests: 0, errors: 0, hits: 0, lookups: 0, p50: 0, p90: 0, p99: 0 };
    sum.agoSecs = this.#moment - from;
    sum.isKnown = to > this.#began;
    for (let at = from; at < to; at += 1) {
      const [requests, errors, hits, lookups, ...latencies] = this.#seconds.get(at) ?? [0, 0, 0, 0, 0, 0, 0];
      sum.requests += requests;
      sum.errors += errors;
      sum.hits += hits;
      sum.lookups += lookups;
      ["p50", "p90", "p99"].forEach((name, index) => (sum[name] += requests * latencies[index]));
    }
    for (const name of ["p50", "p90", "p99"]) sum[name] = sum.requests ? sum[name] / sum.requests : null;
    return sum;
  }
}
