// Training: the loss in one large chart, then its companions, then layers by steps.

import {html, useEffect, useState} from "./vendor/preact.js";
import {Card, Chart, Heat, heatTable, linesTable} from "./charts.js";
import {useLive} from "./live.js";
import {short, titleOf, whole, writerOf} from "./format.js";

const FIRST = ["accuracy", "learning_rate", "gradient_norm", "samples_per_second", "tokens_per_second",
  "memory_bytes", "device_memory_bytes", "process_memory_bytes", "step_seconds", "data_wait_seconds"];
const OF_LAYERS = ["layer_gradient_norms", "layer_update_ratios", "expert_load"];

/** The charts: names that belong together, the loss first. */
export function panelsOf(names, dashboard) {
  const left = new Set(names.filter((name) => !dashboard.hidden.includes(name) && name !== "epoch"));
  if (left.has("memory_bytes")) left.delete(left.has("device_memory_bytes") ? "device_memory_bytes" : "process_memory_bytes");
  if (left.has("step_seconds")) left.delete("steps_per_second");
  const take = (wanted) => wanted.filter((name) => left.delete(name));
  const panels = [];
  for (const {names: chosen, ...how} of dashboard.panels) {
    const given = take(chosen);
    if (given.length) panels.push({...how, names: given});
  }
  const loss = take([left.has("step_loss") ? "step_loss" : "loss", "val_loss"]);
  if (loss.length) panels.unshift({names: loss});
  const rest = [...FIRST, ...[...left].filter((name) => left.has(`val_${name}`)), ...[...left].sort()];
  for (const name of rest) {
    const given = take([name, `val_${name}`]);
    if (given.length) panels.push({names: given});
  }
  return panels;
}

/** A chip for each run on the screen: a click hides or shows it, its name selects it. */
function Chips({shown, selected, onToggle, onSelect, goTo}) {
  const live = useLive();
  const listed = live.order.filter((run) => shown.has(run) || run === selected);
  const others = live.order.length - listed.length;
  return html`<div class="chips" role="group" aria-label="Runs on the charts">
    ${listed.map((run) => {
      const ends = live.runs[run].ends;
      return html`<span class=${`chip${run === selected && live.order.length > 1 ? " chosen" : ""}`}>
        <button aria-pressed=${shown.has(run)} aria-label=${`Show ${run}`} onClick=${() => onToggle(run)}>
          <i class="dot" style=${{background: shown.has(run) ? `var(${live.colour(run)})` : "transparent",
            borderColor: `var(${live.colour(run)})`}}></i></button>
        <button title=${`Select this run. Its ${ends.val_loss ? "validation loss" : "loss"} is shown.`} onClick=${() => onSelect(run)}>${run}
          <span class="soft num"> ${short(ends.val_loss?.last ?? ends.step_loss?.last ?? ends.loss?.last)}</span></button></span>`;
    })}
    ${others > 0 && html`<button class="plain" onClick=${() => goTo("Runs")}>${whole(others)} more</button>`}</div>`;
}

export function linesOf(live, runs, names, selected) {
  const lastOnTop = [...runs.filter((run) => run !== selected), ...runs.filter((run) => run === selected)];
  return lastOnTop.flatMap((run) => names.filter((name) => live.runs[run]?.ends[name]).map((name) => ({
    key: `${run}\n${name}`, run, name, colour: live.colour(run),
    label: `${runs.length > 1 ? `${run} · ` : ""}${titleOf(name)}`,
    dash: name.startsWith("val_") ? [6, 4] : undefined, width: runs.length > 1 && run === selected ? 1.9 : 1.4, isFaint: runs.length > 1 && run !== selected,
  })));
}

export function Training({selected, shown, onToggle, onSelect, goTo, range, setRange}) {
  const live = useLive();
  const [smoothing, setSmoothing] = useState(0), [log, setLog] = useState(false), [x, setX] = useState("step");
  const runs = live.order.filter((run) => shown.has(run) && !live.runs[run].problem);
  const names = [...new Set(runs.flatMap((run) => Object.keys(live.runs[run].ends)))];
  const panels = panelsOf(names, live.settings.dashboard);
  const vectors = live.runs[selected] ? OF_LAYERS.concat(live.runs[selected].vectors.filter((v) => !OF_LAYERS.includes(v)))
    .filter((name) => live.runs[selected].vectors.includes(name)) : [];
  const wanted = panels.flatMap((panel) => panel.names);
  const pixels = Math.min(2000, Math.max(300, Math.round(innerWidth * 0.8)));
  const smoothingOf = (name) => smoothing || (panels.find((panel) => panel.names.includes(name)).smoothing ?? 0);
  const want = {
    series: runs.flatMap((run) => wanted.filter((name) => live.runs[run].ends[name])
      .map((name) => [run, name, panels[0].names.includes(name) ? pixels : 320, smoothingOf(name)])),
    vectors: vectors.map((name) => [selected, name]), x, window: range,
  };
  useEffect(() => { live.wish(want); }, [JSON.stringify(want)]);
  const marks = x === "step" && runs.includes(selected)
    ? (live.findings[selected] ?? []).filter((each) => each.view === "training" && each.step !== null && each.level !== "info").map((each) => each.step) : [];
  const [first, ...rest] = panels, lastStep = Math.max(0, ...runs.map((run) => live.runs[run].step ?? 0));
  const draw = (panel, height, isFirst) => {
    const lines = linesOf(live, runs, panel.names, selected);
    const end = runs.length === 1 ? live.runs[runs[0]].ends[panel.names[0]]?.last : undefined;
    const title = panel.names[0] === "loss" && names.includes("step_loss") ? "Loss, mean since the epoch began" : titleOf(panel.names[0]);
    const sub = panel.names.length > 1 && panel.names[1].startsWith("val_") ? "dashed: validation" : "";
    return html`<${Card} key=${panel.names.join()} title=${title} sub=${sub} wide=${isFirst}
      now=${end === undefined ? "" : writerOf(panel.names[0])(end)} table=${() => linesTable(lines, live.series, x)}>
      <${Chart} lines=${lines} data=${live.series} height=${height} x=${x} log=${panel.log || (log && isFirst)}
        window=${range} most=${x === "step" ? lastStep : undefined} onWindow=${setRange} onPick=${onSelect} marks=${isFirst ? marks : []}
        label=${`${title} by ${x} of ${runs.length === 1 ? runs[0] : `${runs.length} runs`}`}/></${Card}>`;
  };
  return html`
    <div class="bar-of-tools">
      <${Chips} ...${{shown, selected, onToggle, onSelect, goTo}}/>
      <div class="tools">
        ${range && html`<button class="plain" onClick=${() => setRange(null)}>Show all</button>`}
        ${!live.isReport && html`
          <label>Smoothing <input type="range" min="0" max="0.2" step="0.005" value=${smoothing}
            onInput=${(event) => setSmoothing(+event.target.value)}/></label>
          <label>By <select value=${x} onChange=${(event) => { setRange(null); setX(event.target.value); }}>
            ${["step", "time", "epoch", ...names.filter((n) => n !== "epoch").sort()].map((n) => html`<option value=${n}>${titleOf(n).toLowerCase()}</option>`)}
          </select></label>`}
        <label><input type="checkbox" checked=${log} onChange=${() => setLog(!log)}/> log</label>
      </div>
    </div>
    ${first ? html`<div class="grid">
      ${draw(first, innerHeight > 1200 ? 460 : innerWidth < 700 ? 240 : 340, true)}
      ${rest.map((panel) => draw(panel, 150, false))}
    </div>` : html`<p class="quiet">${runs.length ? "The run has logged nothing yet." : "No run is shown. Choose one above, or in Runs."}</p>`}
    ${vectors.length > 0 && html`<div class="grid of-two">${vectors.map((name) => {
      const held = live.vectors[`${selected}\n${name}`];
      const title = titleOf(name);
      return held?.steps.length ? html`<${Card} key=${name} title=${title} sub=${live.order.length > 1 ? selected : ""} now=""
        table=${() => heatTable(held)}><${Heat} vectors=${held} isLog=${name !== "expert_load"} title=${title}/></${Card}>` : null;
    })}</div>`}`;
}
