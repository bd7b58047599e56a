// The frame of the page: views, the selected run, findings, keys.

import {html, render, useEffect, useRef, useState} from "./vendor/preact.js";
import {live, startOptions, useLive} from "./live.js";
import {ticked} from "./charts.js";
import {Training} from "./training.js";
import {Model} from "./model.js";
import {Ask, Performance} from "./performance.js";
import {STATES, Runs, bestOf, judgeOf} from "./runs.js";
import {short, span, titleOf, whole} from "./format.js";

const VIEWS = ["Training", "Model", "Performance", "Runs"];
const SHOWN_AT_FIRST = 6;
const KEYS = [["1 2 3 4", "the views"], ["/", "find a layer or a run"], ["← → ↑ ↓", "the tree of layers"], ["drag", "zoom into steps; a double click shows all"],
  ["[ ]", "the run before and after"], ["?", "this list"]];

const Say = ({children}) => html`<h1 class="say">${children}</h1>`;

/** How a run is, in a sentence: for a run without findings. */
function describe(name, run) {
  const judge = judgeOf([run]);
  const value = run.ends[judge];
  const {epochs, steps_per_epoch: perEpoch} = run.properties;
  const all = epochs && perEpoch ? epochs * perEpoch : null;
  const pace = run.step && run.seen > run.begin ? run.step / (run.seen - run.begin) : null;
  const best = value && bestOf(run, judge);
  const numbers = value ? html`${titleOf(judge).toLowerCase()} <b class="num">${short(value.last)}</b>${best !== null && best < value.last && short(best) !== short(value.last) ? html`, best <b class="num">${short(best)}</b>` : ""}` : "no value yet";
  if (run.state === "running") {
    const left = all && pace && all > run.step ? `, about ${span((all - run.step) / pace)} left` : "";
    return html`<b>${name}</b> is at step <b class="num">${whole(run.step ?? 0)}</b>${all ? ` of ${whole(all)}` : ""}: ${numbers}${left}.`;
  }
  return html`<b>${name}</b> ${run.state === "stopped" ? "was stopped" : "has ended"} at step <b class="num">${whole(run.step ?? 0)}</b>: ${numbers}.`;
}

function Findings({run, selected, onZoom}) {
  const found = (live.findings[selected] ?? []).filter((each) => each.level !== "info");
  if (run.problem) return html`<${Say}><b>${selected}</b> can’t be read: ${run.problem}</${Say}>`;
  if (!found.length) return html`<${Say}>${describe(selected, run)}</${Say}>`;
  return html`<${Say}>${found[0].sentence}</${Say}>
    <p class="advice ${found[0].level}">${ticked(found[0].advice)} ${found[0].step !== null && found[0].view === "training" && html`<button class="plain" onClick=${() => onZoom(found[0].step)}>Look there</button>`}</p>
    ${found.slice(1).map((each) => html`<details class="advice ${each.level}"><summary>${each.sentence}</summary>${ticked(each.advice)}
      ${each.step !== null && html` <button class="plain" onClick=${() => onZoom(each.step)}>Look there</button>`}</details>`)}`;
}

function Empty() {
  return html`<div class="empty"><${Say}>No run yet.</${Say}>
    <p class="quiet">Studio shows the run records in <code>${live.settings.folder}</code>. This starts one:</p>
    <pre tabindex="0">from keras_deepseek.studio import launch_studio

launch_studio(trainer=trainer)
trainer.fit(x, y, epochs=10)</pre>
    <p class="quiet">A bare <code>model.fit</code> writes one with <code>callbacks=[RunRecorder("runs/first.sqlite")]</code>. The page shows it within a second.</p></div>`;
}

function Help({dialog}) {
  return html`<dialog ref=${dialog} aria-label="Keys" onClick=${(event) => event.target === event.currentTarget && event.currentTarget.close()}><h2>Keys</h2>
    <dl>${KEYS.map(([key, words]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${words}</dd></div>`)}</dl>
    <form method="dialog"><button class="main">Close</button></form></dialog>`;
}

async function saveReport() {
  const {page} = await live.ask("report");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([page], {type: "text/html"}));
  link.download = "report.html";
  link.click();
  URL.revokeObjectURL(link.href);
}

function App() {
  useLive();
  const [view, goTo] = useState(startOptions.view ?? "Training"), [chosen, setChosen] = useState(startOptions.run ?? null);
  const [hidden, setHidden] = useState(new Set()), [added, setAdded] = useState(new Set()), [range, setRange] = useState(null);
  const help = useRef();
  const selected = live.runs[chosen] ? chosen : live.order.at(-1);
  const shown = new Set(live.order.filter((run, i) => !hidden.has(run) && (added.has(run) || run === selected || i >= live.order.length - SHOWN_AT_FIRST)));
  live.assignColours(shown);
  const onToggle = (run) => {
    const [on, off] = [new Set(added), new Set(hidden)];
    if (shown.has(run)) { on.delete(run); off.add(run); } else { on.add(run); off.delete(run); }
    setAdded(on);
    setHidden(off);
  };
  const onSelect = (run) => { if (run) { setChosen(run); setHidden(new Set([...hidden].filter((each) => each !== run))); } };
  useEffect(() => { live.findingsOf = selected; live.poll(); }, [selected]);
  useEffect(() => {
    const timer = setInterval(() => document.hidden || live.poll(), 1000);
    const seen = () => document.hidden || live.poll();
    document.addEventListener("visibilitychange", seen);
    return () => { clearInterval(timer); document.removeEventListener("visibilitychange", seen); };
  }, []);
  useEffect(() => {
    const press = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=range]):not([type=checkbox]), select")) {
        if (event.key === "Escape") event.target.blur();
        return;
      }
      const step = {"[": -1, "]": 1}[event.key];
      if (VIEWS[event.key - 1]) goTo(VIEWS[event.key - 1]);
      else if (event.key === "?") help.current?.showModal();
      else if (event.key === "/") { document.getElementById("search")?.focus(); event.preventDefault(); }
      else if (step) onSelect(live.order[live.order.indexOf(selected) + step]);
    };
    document.addEventListener("keydown", press);
    return () => document.removeEventListener("keydown", press);
  });
  useEffect(() => { if (live.settings) document.title = live.settings.dashboard.title; }, [live.settings]);
  if (!live.settings) return html`<main><${Say}>${live.problem ?? "Reading the runs …"}</${Say}></main>`;
  const run = live.runs[selected];
  const onZoom = (step) => { const wide = Math.max(20, Math.round((run.step ?? 0) * 0.06)); setRange([Math.max(0, step - wide), step + wide]); goTo("Training"); };
  const common = {selected, shown, onToggle, onSelect, goTo, Say};
  return html`<header><span class="brand">${live.settings.dashboard.title}</span>
      <nav role="tablist" aria-label="Views">${VIEWS.map((each) => html`<button role="tab" id=${`tab-${each}`} aria-selected=${each === view} aria-controls="view" onClick=${() => goTo(each)}>${each}</button>`)}</nav>
      <span class="spring"></span>
      ${run && html`<span class="state"><i class="dot ${STATES[run.state] ?? "soft"}"></i><span>${run.state === "lost" ? "died" : run.state}${run.step ? html` <span class="num">· step ${whole(run.step)}</span>` : ""}</span></span>`}
      ${run?.state === "running" && html`<${Ask} run=${selected} name="checkpoint" words="Checkpoint" isPlain/><${Ask} run=${selected} name="stop" words="Stop" isPlain/>`}
      ${!live.isReport && html`<button class="plain wide-only" onClick=${saveReport}>Save report</button>`}
      <button class="icon keys" aria-label="Keys" title="Keys (?)" onClick=${() => help.current.showModal()}>?</button></header>
    ${(live.isLost || live.problem) && html`<p class="banner" role="status">${live.problem ?? "The server doesn’t answer. Reconnecting …"}</p>`}
    <main class=${live.isLost ? "lost" : ""}><div id="view" role="tabpanel" aria-labelledby=${`tab-${view}`}>
      ${!run ? html`<${Empty}/>`
      : view === "Model" ? html`<${Model} key=${selected} run=${selected} Say=${Say}/>`
      : view === "Performance" ? html`<${Performance} key=${selected} run=${selected} Say=${Say}/>`
      : view === "Runs" ? html`<${Runs} ...${common}/>`
      : html`<${Findings} ...${{run, selected, onZoom}}/><${Training} ...${common} range=${range} setRange=${setRange}/>`}
    </div></main><${Help} dialog=${help}/>`;
}

render(html`<${App}/>`, document.getElementById("app"));
live.poll();
