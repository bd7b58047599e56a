// What the page knows of the runs: asked of the server once a second, or read from the report.

import {useEffect, useState} from "./vendor/preact.js";

const [secret, ...options] = location.hash.slice(1).split("&");
export const startOptions = Object.fromEntries(new URLSearchParams(options.join("&")));

const COLOURS = 8;

class Live {
  constructor() {
    const report = document.getElementById("report");
    this.isReport = report !== null;
    Object.assign(this, {runs: {}, order: [], series: {}, vectors: {}, findings: {}, settings: null});
    this.problem = null;  // Why nothing was ever read.
    this.isLost = false;  // The server answered once, and doesn't now.
    this.want = {series: [], vectors: [], x: "step", window: null};
    this.colours = new Map();
    this.findingsOf = null;
    this.listeners = new Set();
    this.documents = new Map();
    if (this.isReport) Object.assign(this, JSON.parse(report.textContent));
  }

  async ask(path, body = {}) {
    const answer = await fetch(`api/${path}`, {
      method: "POST", headers: {"X-Studio-Key": secret}, body: JSON.stringify(body),
    });
    const value = await answer.json();
    if (!answer.ok) throw Object.assign(new Error(value.error), {isRefused: true});
    return value;
  }

  changed() {
    for (const listener of this.listeners) listener();
  }

  /** Asks for what changed. Only one question is on the way; a new wish follows at once. */
  async poll() {
    if (this.isReport) return;
    if (this.isAsking) { this.isStale = true; return; }
    this.isAsking = true;
    try {
      this.settings ??= await this.ask("settings");
      const {series, vectors, ...how} = this.want;
      const drawn = JSON.stringify(how);
      const versioned = (known) => ([run, name, pixels, smoothing]) => {
        const held = known[`${run}\n${name}`];
        return [run, name, held && (held.drawn === undefined || held.drawn === drawn + smoothing) ? held.version : -1, pixels, smoothing];
      };
      const answer = await this.ask("poll", {
        ...how, findings_of: this.findingsOf,
        seen: Object.fromEntries(Object.entries(this.runs).map(([name, run]) => [name, run.version])),
        series: series.map(versioned(this.series)), vectors: vectors.map(versioned(this.vectors)),
      });
      Object.assign(this.runs, answer.runs);
      if (answer.order) {
        this.order = answer.order;
        for (const name of Object.keys(this.runs)) if (!answer.order.includes(name)) delete this.runs[name];
      }
      for (const [run, name, , smoothing] of series) {
        const points = answer.series[`${run}\n${name}`];
        if (points) points.drawn = drawn + smoothing;
      }
      if (Object.keys(answer.series).length) this.series = {...this.series, ...answer.series};
      if (Object.keys(answer.vectors).length) this.vectors = {...this.vectors, ...answer.vectors};
      if (answer.findings) this.findings[this.findingsOf] = answer.findings;
      this.isLost = false;
      this.problem = null;
    } catch (error) {
      if (error.isRefused || !this.settings) this.problem = error.isRefused ? error.message : "No server answers.";
      else this.isLost = true;
    }
    this.isAsking = false;
    this.changed();
    if (this.isStale) { this.isStale = false; await this.poll(); }
  }

  /** Gives each run on the screen a colour of its own, as long as there are enough. */
  assignColours(shown) {
    const taken = new Map([...this.colours].filter(([run]) => shown.has(run)));
    for (const run of shown) {
      if (taken.has(run)) continue;
      const used = new Set(taken.values()), first = this.order.indexOf(run);
      const free = Array.from({length: COLOURS}, (_, i) => (first + i) % COLOURS).find((i) => !used.has(i));
      taken.set(run, free ?? first % COLOURS);
    }
    this.colours = taken;
  }

  colour(run) {
    return `--r${this.colours.get(run) ?? Math.max(0, this.order.indexOf(run)) % COLOURS}`;
  }

  /** Says what the view draws. */
  wish(want) {
    const key = JSON.stringify(want);
    if (key === this.wished) return;
    this.wished = key;
    this.want = want;
    this.poll();
  }

  document(run, name) {
    const version = this.runs[run]?.documents[name];
    if (version === undefined) return Promise.resolve(null);
    if (this.isReport) return Promise.resolve(this.documents[`${run}\n${name}`]);
    const key = `${run}\n${name}\n${version}`;
    if (!this.documents.has(key)) this.documents.set(key, this.ask("document", {run, name}));
    return this.documents.get(key);
  }
}

export const live = new Live();

/** Draws the component anew whenever something is read. */
export function useLive() {
  const [, draw] = useState(0);
  useEffect(() => {
    const listener = () => draw((n) => n + 1);
    live.listeners.add(listener);
    return () => live.listeners.delete(listener);
  }, []);
  return live;
}

/** A document of a run; undefined while it is read, null where there is none. */
export function useDocument(run, name) {
  const [held, hold] = useState({});
  const version = live.runs[run]?.documents[name];
  const key = `${run} ${name} ${version}`;
  useEffect(() => {
    let isWanted = true;
    live.document(run, name).then(
      (value) => isWanted && hold({key, value}), () => isWanted && hold({key, value: null}));
    return () => { isWanted = false; };
  }, [key]);
  if (version === undefined) return null;
  return held.key === key ? held.value : undefined;
}
