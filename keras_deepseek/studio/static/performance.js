// Performance: the step as one bar, layers by kind, memory, batch sizes and formats.

import {html, useEffect, useMemo, useState} from "./vendor/preact.js";
import {Card, Chart, linesTable, ticked} from "./charts.js";
import {linesOf} from "./training.js";
import {bytes, percent, seconds, short, whole} from "./format.js";
import {useDocument, useLive} from "./live.js";
import {everyLayer, ownOf, prepare, stepSeconds} from "./model.js";

const PARTS = [["data_wait", "waiting for data", "--r1"], ["forward", "forward", "--r0"], ["loss", "loss", "--r3"],
  ["backward", "backward", "--r2"], ["optimizer", "optimizer", "--r4"], ["rest", "rest", "--r6"], ["idle", "idle", "--idle"]];

function Stack({parts, write = seconds, label}) {
  const total = parts.reduce((sum, [, value]) => sum + value, 0) || 1;
  return html`<div class="stack" role="img" aria-label=${label}>
      ${parts.map(([name, value, colour]) => html`<span style=${{width: `${(100 * value) / total}%`, background: `var(${colour})`, ...(colour === "--idle" ? {color: "var(--ink)"} : {})}} title=${name}><b>${name}</b></span>`)}</div>
    <ul class="legend">${parts.map(([name, value, colour]) => html`<li><i class="dot" style=${{background: `var(${colour})`, borderColor: `var(${colour})`}}></i>
      <span>${name}</span> <b class="num">${write(value)}</b> <span class="soft num">${percent(value / total)}</span></li>`)}</ul>`;
}

const SECONDS_OF_ANSWER = 20;  // In the header, which has no room for more.

/** A button that asks the training for something, and what became of it. */
export function Ask({run, name, words, isPlain}) {
  const live = useLive(), [problem, setProblem] = useState(""), [isAsked, setAsked] = useState(false);
  const last = live.runs[run].commands.find((each) => each.name === name);
  const isOld = isPlain && last?.answered && live.runs[run].seen - last.answered > SECONDS_OF_ANSWER;
  const isWaiting = last ? last.answered === null : isAsked;
  const ask = async () => {
    setProblem("");
    setAsked(true);
    try { await live.ask("command", {run, name}); } catch (error) { setProblem(error.message); setAsked(false); }
    live.poll();
  };
  if (live.isReport || live.runs[run].state !== "running" || live.runs[run].properties.state === undefined) return null;
  return html`<button class=${isPlain ? "plain" : "main"} disabled=${isWaiting} onClick=${ask}>${isWaiting ? `${words} …` : words}</button>
    <span class="soft answer" role="status">${problem || (last && !isWaiting && !isOld && last.answer) || ""}</span>`;
}

function kindsOf(root) {
  const kinds = {};
  for (const node of everyLayer(root)) {
    if (node.parent === null) continue;
    const kind = (kinds[node.cls] ??= {cls: node.cls, count: 0, forward: 0, backward: 0, flops: 0});
    kind.count += 1;
    for (const key of ["forward", "backward", "flops"]) kind[key] += Math.max(0, ownOf(node, (layer) => layer[key]));
  }
  return Object.values(kinds).filter((kind) => kind.forward + kind.backward > 0)
    .sort((a, b) => b.forward + b.backward - a.forward - a.backward);
}

function Kinds({root, total, isFused}) {
  const kinds = useMemo(() => kindsOf(root), [root]);
  if (!kinds.length) return null;
  const most = kinds[0].forward + kinds[0].backward;
  return html`<${Card} title="By kind of layer" sub=${`time of its own, without the layers in it${isFused ? "; XLA, where it is used, gives a fused operation to one layer" : ""}`} wide now="">
    <div class="rows" tabindex="0" role="region" aria-label="Layers by kind"><table><thead><tr><th>Layer</th><th class="n">Share of the step</th><th class="n">Forward</th><th class="n">Backward</th>
      <th class="n">Number</th><th class="n">Operations a second</th></tr></thead>
    <tbody>${kinds.map((kind) => html`<tr><td>${kind.cls}</td><td class="n share"><span class="bar"><i><u style=${{width: `${(100 * (kind.forward + kind.backward)) / most}%`}}></u></i><b>${percent((kind.forward + kind.backward) / total)}</b></span></td>
      <td class="n">${seconds(kind.forward)}</td><td class="n">${seconds(kind.backward)}</td><td class="n">${kind.count}</td>
      <td class="n">${kind.flops ? short(kind.flops / kind.forward) : "–"}</td></tr>`)}</tbody></table></div></${Card}>`;
}

function Curve({title, sub, xs, ys, log, logX, name, marks, heads}) {
  const data = {curve: {x: xs, y: ys}};
  return html`<${Card} title=${title} sub=${sub} now="" table=${() => [heads, xs.map((x, i) => [short(x), short(ys[i])])]}>
    <${Chart} lines=${[{key: "curve", run: null, name, colour: "--r0", label: title}]} data=${data} height=${170}
      x=${heads[0]} log=${log} logX=${logX} marks=${marks} label=${`${title} by ${heads[0]}`}/></${Card}>`;
}

function Formats({latencies: {rows, left_out: leftOut}}) {
  const sizes = [...new Set(rows.map((row) => row.batch_size))].sort((a, b) => a - b);
  const formats = [...new Set(rows.map((row) => row.format))];
  const of = (format, size) => rows.find((row) => row.format === format && row.batch_size === size)?.milliseconds;
  const served = rows.filter((row) => row.format !== "keras");
  const pace = (row) => row.batch_size / row.milliseconds;
  const best = served.reduce((a, b) => (a && pace(a) >= pace(b) ? a : b), null);
  const code = best && `Exporter(model=model, backend="${best.format}").export("exports/model")
ServingEngine("exports/model", max_batch_size=${best.batch_size})`;
  return html`<${Card} title="Latency by format" sub="milliseconds a batch, median" wide now=""><div class="two"><div class="rows" tabindex="0" role="region" aria-label="Latencies"><table>
      <thead><tr><th>Format</th>${sizes.map((size) => html`<th class="n">batch of ${size}</th>`)}</tr></thead>
      <tbody>${formats.map((format) => html`<tr><td>${format}</td>${sizes.map((size) => html`<td class="n">${of(format, size) === undefined ? "–" : html`<span class=${format === best?.format ? "best" : ""}>${short(of(format, size))}</span>`}</td>`)}</tr>`)}</tbody></table></div><div>
    ${Object.entries(leftOut ?? {}).map(([format, reason]) => html`<p class="soft small">${format} was not measured: ${reason}</p>`)}
    ${best && html`<p class="small"><b>${best.format}</b> answers the most rows: ${whole(Math.round(1000 * pace(best)))} a second in batches of ${best.batch_size}.
      For a ModelDeployment, set <code>max_batch_size: ${best.batch_size}</code>.</p><pre tabindex="0">${code}</pre>`}</div></div></${Card}>`;
}

/** A document, unless it only says why there is none. */
function useTaken(run, name) {
  const content = useDocument(run, name);
  return content?.reason ? null : content;
}

export function Performance({run, Say}) {
  const live = useLive();
  const graph = useDocument(run, "model_graph"), profile = useTaken(run, "profile"), memory = useTaken(run, "memory");
  const rates = useTaken(run, "learning_rate_search"), batches = useTaken(run, "batch_size_search"), latencies = useTaken(run, "latencies");
  const root = useMemo(() => graph?.children && profile && prepare(graph, profile), [graph, profile]);
  const paces = ["step_seconds", "data_wait_seconds"].filter((name) => live.runs[run].ends[name]);
  const want = {series: paces.map((name) => [run, name, 1000, 0]), vectors: [], x: "step", window: null};
  useEffect(() => { live.wish(want); }, [JSON.stringify(want)]);
  if (profile === undefined) return html`<p class="say soft">Reading the profile …</p>`;
  const findings = (live.findings[run] ?? []).filter((each) => each.view === "performance");
  const parts = profile ? PARTS.filter(([key]) => profile.parts[key] > 0).map(([key, words, colour]) => [words, profile.parts[key], colour]) : [];
  const total = profile ? stepSeconds(profile) : 0;
  const lines = linesOf(live, [run], paces, run).map((line, i) => ({...line, colour: `--r${i}`}));
  const says = findings.map((each) => each.sentence).join(" ");
  return html`<${Say}>${profile ? html`A step takes <b class="num">${seconds(total)}</b>. ${says}` : html`${says} ${paces.length ? html`The last step took <b class="num">${seconds(live.runs[run].ends[paces[0]].last)}</b>.` : "No step of this run was measured."}`}</${Say}>
    <p class="tools"><${Ask} run=${run} name="profile" words="Profile five steps"/></p>
    ${findings.filter((each) => each.level !== "info").map((each) => html`<p class="quiet">${ticked(each.advice)}</p>`)}
    <div class="grid">
      ${profile && html`<${Card} wide title="Where a step’s time goes" sub=${`mean of ${profile.steps} steps${profile.tool ? `, ${profile.tool}` : ""}${profile.device ? `, ${profile.device}` : ""}`}
        now=${seconds(total)} table=${() => [["Part", "Time", "Share"], parts.map(([name, value]) => [name, seconds(value), percent(value / total)])]}>
        <${Stack} parts=${parts} label=${`Parts of a step: ${parts.map(([name, value]) => `${name} ${percent(value / total)}`).join(", ")}`}/>
        ${profile.trace_file && html`<p class="soft small trace">Each operation, for ui.perfetto.dev: <code>${profile.trace_file}</code></p>`}</${Card}>`}
      ${!profile && paces.length > 0 && html`<${Card} wide title="Seconds per step" sub=${paces[1] ? "and waiting for data" : ""} now="" table=${() => linesTable(lines, live.series, "step")}>
        <${Chart} lines=${lines} data=${live.series} height=${280} label="Seconds per step, and waiting for data"/></${Card}>`}
      ${root && html`<${Kinds} root=${root} total=${total} isFused=${!profile.tool.startsWith("torch")}/>`}
    </div><div class="grid few">
      ${memory && html`<${Card} title="Memory of a step" sub=${`batch of ${memory.batch_size}`}
        now=${bytes(memory.weights + memory.gradients + memory.optimizer + memory.activations)}><${Stack} write=${bytes} label="Parts of the memory"
        parts=${[["activations", memory.activations, "--r0"], ["optimizer", memory.optimizer, "--r4"], ["gradients", memory.gradients, "--r2"], ["weights", memory.weights, "--r1"]]}/></${Card}>`}
      ${batches && html`<${Curve} title="Samples per second" sub=${batches.suggestion ? `suggestion: ${batches.suggestion}` : ""} xs=${batches.batch_sizes}
        ys=${batches.samples_per_second} name="samples_per_second" marks=${batches.suggestion ? [batches.suggestion] : []} heads=${["batch size", "samples per second"]}/>`}
      ${rates && html`<${Curve} title="Loss by learning rate" sub=${rates.suggestion ? `suggestion: ${short(rates.suggestion)}` : "no suggestion"} xs=${rates.rates}
        ys=${rates.losses} logX name="loss" marks=${rates.suggestion ? [rates.suggestion] : []} heads=${["learning rate", "loss"]}/>`}
    </div><div class="grid">
      ${latencies && html`<${Formats} latencies=${latencies}/>`}
    </div>`;
}
