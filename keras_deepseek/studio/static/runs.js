// Runs: best and last values, and the settings in which runs differ.

import {html, useEffect, useState} from "./vendor/preact.js";
import {Card, Chart, linesTable} from "./charts.js";
import {useLive} from "./live.js";
import {linesOf} from "./training.js";
import {columnWriter, short, span, titleOf, whole, writerOf} from "./format.js";

const SHOWN = 200;
const isSmallBest = (name) => !/accuracy|auc|precision|recall|f1|per_second|utilization/.test(name);
export const bestOf = (run, name) => run.ends[name]?.[isSmallBest(name) ? "least" : "most"];
export const STATES = {running: "good", finished: "soft", stopped: "soft", ended: "soft", failed: "bad", lost: "bad", unreadable: "bad"};

/** What a run is compared by: validation before training, the loss before the rest. */
export function judgeOf(runs) {
  const names = ["val_loss", "loss", "step_loss"];
  return names.find((name) => runs.some((run) => run.ends[name])) ?? Object.keys(runs[0]?.ends ?? {})[0];
}

function settingsThatDiffer(runs) {
  const flat = runs.map(({properties}) => ({...properties.arguments, backend: properties.backend, device: properties.device,
    parameters: properties.parameters, commit: properties.commit, model: properties.model}));
  const names = [...new Set(flat.flatMap(Object.keys))];
  const differing = runs.length < 2 ? [] : names.filter((name) => new Set(flat.map((each) => JSON.stringify(each[name]))).size > 1);
  return differing.map((name) => [name, flat.map((each) => each[name])]);
}

const written = (value) => (typeof value === "number" ? (Number.isInteger(value) ? whole(value) : short(value))
  : value === undefined || value === null ? "–" : typeof value === "string" ? value : JSON.stringify(value));

export function Runs({selected, shown, onToggle, onSelect, goTo, Say}) {
  const live = useLive(), [order, setOrder] = useState(null), [text, setText] = useState("");
  const words = text.toLowerCase();
  const names = live.order.filter((name) => name.toLowerCase().includes(words)), runs = names.map((name) => live.runs[name]);
  const judge = judgeOf(Object.values(live.runs));
  const visible = live.order.filter((name) => shown.has(name) && !live.runs[name].problem);
  const want = {series: visible.filter((name) => live.runs[name].ends[judge]).map((name) => [name, judge, 1000, 0]), vectors: [], x: "step",
    window: null};
  useEffect(() => { live.wish(want); }, [JSON.stringify(want)]);
  const metrics = ["val_loss", "val_accuracy", "loss", "accuracy", "samples_per_second"].filter((name) => runs.some((run) => run.ends[name]))
    .filter((name, _, all) => name.startsWith("val_") || !all.includes(`val_${name}`)).slice(0, 3);
  const differing = settingsThatDiffer(runs);
  const writers = Object.fromEntries([...metrics, judge].map((name) => [name, columnWriter(runs.flatMap((run) => [bestOf(run, name), run.ends[name]?.last]), writerOf(name))]));
  const columns = [
    ...metrics.flatMap((name) => name === "samples_per_second" ? [{title: titleOf(name), values: runs.map((run) => run.ends[name]?.last), write: short}] : [
      {title: `${titleOf(name)}, best`, values: runs.map((run) => bestOf(run, name)), write: writers[name], isBest: true, isSmallBest: isSmallBest(name)},
      {title: "last", values: runs.map((run) => run.ends[name]?.last), write: writers[name]}]),
    ...differing.map(([name, values]) => ({title: titleOf(name), values, write: written})),
    {title: "Steps", values: runs.map((run) => run.step), write: whole},
    {title: "Duration", values: runs.map((run) => (run.begin ? run.seen - run.begin : null)), write: span},
  ];
  for (const column of columns.filter(({isBest}) => isBest)) {
    const known = column.values.filter((value) => typeof value === "number");
    const best = Math[column.isSmallBest ? "min" : "max"](...known);
    if (2 * known.filter((value) => value === best).length <= known.length) column.best = best;  // Else it says nothing.
  }
  const indices = names.map((_, i) => i);
  if (order) indices.sort((a, b) => order.sign * ((columns[order.column].values[a] ?? Infinity) > (columns[order.column].values[b] ?? Infinity) ? 1 : -1));
  else indices.reverse();
  const ahead = runs.filter((run) => typeof bestOf(run, judge) === "number").length > 1
    ? names.reduce((a, b) => { const [x, y] = [a, b].map((n) => bestOf(live.runs[n], judge)); return x === undefined || x === null || (y !== undefined && y !== null && y < x) ? b : a; }) : null;
  const going = live.order.filter((name) => live.runs[name].state === "running").length;
  const lines = linesOf(live, visible, [judge], selected).map((line) => ({...line, label: line.run, dash: undefined}));
  const settings = names.length === 1 ? Object.entries(runs[0].properties.arguments ?? {}) : [];
  return html`<${Say}>${ahead ? html`<b>${ahead}</b> is ahead: ${titleOf(judge).toLowerCase()} <b class="num">${writers[judge](bestOf(live.runs[ahead], judge))}</b>. `
      : html`${whole(live.order.length)} ${live.order.length === 1 ? "run" : "runs"} in <code>${live.settings.folder.split("/").at(-1)}</code>. `}${going ? `${going} ${going === 1 ? "is" : "are"} running.` : live.order.length > 1 ? "All have ended." : ""}</${Say}>
    ${lines.length > 0 && html`<div class="grid"><${Card} wide title=${titleOf(judge)} sub="a click on a line selects its run" now="" table=${() => linesTable(lines, live.series, "step")}>
      <${Chart} lines=${lines} data=${live.series} height=${260} onPick=${onSelect} label=${`${titleOf(judge)} of ${lines.length} runs`}/></${Card}></div>`}
    ${live.order.length > 8 && html`<div class="bar-of-tools"><div class="tools"><input type="search" id="search" placeholder="Find a run   /" aria-label="Find a run" value=${text} onInput=${(event) => setText(event.target.value)}/>
      ${names.length > SHOWN && html`<span class="soft">The newest ${SHOWN} of ${whole(names.length)}; a search finds the others.</span>`}</div></div>`}
    <div class="card"><div class="rows tall" tabindex="0" role="region" aria-label="Table of runs"><table><thead><tr><th><span class="unseen">Shown</span></th><th>Run</th><th>State</th>${columns.map(({title}, k) => html`<th class="n"
      aria-sort=${order?.column === k ? (order.sign > 0 ? "ascending" : "descending") : "none"}><button class="plain" onClick=${() => setOrder({column: k, sign: order?.column === k ? -order.sign : 1})}>${title}${order?.column === k ? (order.sign > 0 ? " ↑" : " ↓") : ""}</button></th>`)}</tr></thead>
    <tbody>${indices.slice(0, SHOWN).map((i) => { const [name, run] = [names[i], runs[i]]; return html`<tr key=${name} class=${name === selected ? "chosen" : ""}>
      <td><button class="tick" aria-pressed=${shown.has(name)} aria-label=${`Show ${name} on the charts`} onClick=${() => onToggle(name)}><i class="dot"
        style=${{background: shown.has(name) ? `var(${live.colour(name)})` : "transparent", borderColor: `var(${live.colour(name)})`}}></i></button></td>
      <td><button class="plain name" onClick=${() => { onSelect(name); goTo("Training"); }}>${name}</button></td>
      <td><span class=${STATES[run.state] ?? "soft"} title=${run.problem ?? ""}>${run.state === "lost" ? "died" : run.state}</span>${run.problem && html` <span class="soft small">${run.problem}</span>`}</td>
      ${columns.map(({values, write, best}) => html`<td class="n">${best !== undefined && values[i] === best ? html`<span class="best">${write(values[i])}</span>` : write(values[i])}</td>`)}</tr>`; })}</tbody></table></div></div>
    ${settings.length > 0 && html`<div class="grid of-two"><${Card} title="Settings" now=""><dl class="settings">${settings.map(([name, value]) => html`<div><dt>${titleOf(name)}</dt><dd>${written(value)}</dd></div>`)}</dl></${Card}></div>`}`;
}
