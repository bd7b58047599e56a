// A card with a chart of lines, its table, and a picture of rows by steps.

import {html, useEffect, useRef, useState} from "./vendor/preact.js";
import {axisLabels, bytes, columnWriter, resolved, short, span, titleOf, whole, writerOf} from "./format.js";

/** A text with `code` in it. */
export const ticked = (text) => text.split("`").map((part, i) => (i % 2 ? html`<code>${part}</code>` : part));

/** A framed picture with its title; `table` is a function that returns [heads, rows]. */
export function Card({title, sub, now, wide, table, children}) {
  const [isTable, setTable] = useState(false);
  return html`<article class=${`card${wide ? " wide" : ""}`}>
    <h2><span class="title">${title}</span>${sub && html` <span class="sub">${sub}</span>`}
      <span class="now">${now}</span>
      ${table && html`<button class="icon" aria-pressed=${isTable} aria-label=${`Table of ${title}`}
        title="Table" onClick=${() => setTable(!isTable)}>≡</button>`}</h2>
    ${isTable ? html`<${Table} content=${table()} label=${title}/>` : children}
  </article>`;
}

export function Table({content: [heads, rows], label}) {
  return html`<div class="rows data" tabindex="0" role="region" aria-label=${`${label}, numbers`}><table>
    <thead><tr>${heads.map((head, i) => html`<th class=${i ? "n" : ""}>${head}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr>${row.map((cell, i) => html`<td class=${i ? "n" : ""}>${cell}</td>`)}</tr>`)}
    </tbody></table></div>`;
}

const POWERS = Array.from({length: 50}, (_, power) => 2 ** power);

const xWriter = (x) => (x === "time" ? span : (value) => (Number.isInteger(value) ? whole(value) : short(value)));

function join(lines, data) {
  const tables = lines.map(({key}) => {
    const points = data[key];
    const rows = [points.x, points.y];
    if (points.least) rows.push(points.least, points.most);
    else if (points.raw) rows.push(points.raw);
    return rows;
  });
  return tables.length ? uPlot.join(tables) : [[]];
}

/** The table behind a chart: at most 100 of its points. */
export function linesTable(lines, data, x) {
  const given = lines.filter(({key}) => data[key]);
  const joined = join(given, {...Object.fromEntries(given.map(({key}) => [key, {x: data[key].x, y: data[key].y}]))});
  const stride = Math.max(1, Math.ceil(joined[0].length / 100));
  const picked = joined[0].map((_, i) => i).filter((i) => i % stride === 0);
  return [[titleOf(x), ...given.map((line) => line.label)],
    picked.map((i) => joined.map((column, k) => (k ? writerOf(given[k - 1].name)(column[i]) : xWriter(x)(column[i]))))];
}

/** Lines over steps. The band is what lies between the least and the largest value of a pixel. */
export function Chart({lines, data, height, x = "step", log, logX, window: range, most, onWindow, onPick, label, marks = []}) {
  const at = useRef(), plot = useRef(), rangeNow = useRef(range), picked = useRef(onPick), mostNow = useRef(most), tip = useRef();
  const [theme, setTheme] = useState(0);
  rangeNow.current = range;
  picked.current = onPick;
  mostNow.current = most;
  const given = lines.filter(({key}) => data[key]?.x.length);
  const parts = given.map(({key}) => (data[key].least ? "band" : data[key].raw ? "raw" : "line")).join();
  const look = JSON.stringify([given, parts, log, logX, height, x, theme, given.every(({key}) => data[key].x.length < 16), marks]);

  useEffect(() => {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const changed = () => setTheme((n) => n + 1);
    dark.addEventListener("change", changed);
    return () => dark.removeEventListener("change", changed);
  }, []);

  useEffect(() => {
    if (!given.length) return undefined;
    const series = [{}], bands = [], owners = [];
    const columns = [];  // Of each line: its index among the series.
    given.forEach((line) => {
      const colour = resolved(line.colour), points = data[line.key];
      columns.push(series.length);
      owners.push(line);
      const hasRaw = !points.least && points.raw;
      series.push({stroke: colour(line.isFaint ? 0.5 : 1), width: line.width ?? 1.75, dash: line.dash, spanGaps: false,
        points: {show: points.x.length < 16, size: 5, fill: colour(line.isFaint ? 0.5 : 1), stroke: colour(line.isFaint ? 0.5 : 1)}});
      if (points.least) {
        const k = series.length;
        series.push({stroke: "transparent", points: {show: false}}, {stroke: "transparent", points: {show: false}});
        bands.push({series: [k + 1, k], fill: colour(line.isFaint ? 0.07 : 0.16)});
      } else if (hasRaw) series.push({stroke: colour(line.isFaint ? 0.12 : 0.25), width: 1, points: {show: false}});
    });
    const ink = resolved("--soft")(), line = resolved("--line")();
    const write = writerOf(given[0].name);
    const axis = {stroke: ink, font: "11px system-ui, sans-serif", ticks: {show: false},
      grid: {stroke: line, width: 1}, border: {show: false}};
    const nearest = (u) => owners.map((owner, k) => {
      const column = u.data[columns[k]], from = u.cursor.idx;
      for (let d = 0; d < column.length; d++) for (const i of [from - d, from + d])
        if (column[i] !== undefined && column[i] !== null) return {owner, value: column[i], x: u.data[0][i]};
      return null;
    }).filter(Boolean);
    const showTip = (u) => {
      const box = tip.current;
      if (!box) return;
      if (u.cursor.idx === null || u.cursor.idx === undefined || !u.over.matches(":hover")) { box.hidden = true; return; }
      const found = nearest(u).sort((a, b) => b.value - a.value);
      box.replaceChildren();
      const head = box.appendChild(document.createElement("b"));
      head.textContent = `${titleOf(x)} ${xWriter(x)(u.data[0][u.cursor.idx])}`;
      for (const {owner, value} of found.slice(0, 10)) {
        const row = box.appendChild(document.createElement("span"));
        const dot = row.appendChild(document.createElement("i"));
        dot.style.background = `var(${owner.colour})`;
        row.append(owner.label);
        row.appendChild(document.createElement("em")).textContent = write(value);
      }
      box.hidden = false;
      const left = u.cursor.left + u.over.offsetLeft;
      box.style.left = `${Math.max(0, left > u.width - box.offsetWidth - 30 ? left - box.offsetWidth - 14 : left + 14)}px`;
      box.style.top = `${Math.max(0, Math.min(u.cursor.top - 20, u.height - box.offsetHeight))}px`;
    };
    const setWindow = (u) => {
      if (u.select.width < 5 || !onWindow) return;
      onWindow([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
      u.setSelect({left: 0, top: 0, width: 0, height: 0}, false);
    };
    const pick = (u) => {
      const close = nearest(u).map((each) => ({...each, d: Math.abs(u.valToPos(each.value, "y") - u.cursor.top)}))
        .sort((a, b) => a.d - b.d)[0];
      if (close && close.d < 16) picked.current?.(close.owner.run);
    };
    const drawMarks = (u) => {
      u.ctx.save();
      u.ctx.strokeStyle = resolved("--warn")(0.8);
      u.ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
      for (const mark of marks) {
        const left = u.valToPos(mark, "x", true);
        if (left < u.bbox.left || left > u.bbox.left + u.bbox.width) continue;
        u.ctx.beginPath();
        u.ctx.moveTo(left, u.bbox.top);
        u.ctx.lineTo(left, u.bbox.top + u.bbox.height);
        u.ctx.stroke();
      }
      u.ctx.restore();
      if (log || cutOf(u, columns) === null) return;
      u.ctx.save();
      u.ctx.fillStyle = ink;
      u.ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
      u.ctx.textAlign = "right";
      const top = Math.max(...columns.flatMap((k) => u.data[k].filter(Number.isFinite)));
      u.ctx.fillText(`↑ up to ${write(top)}`, u.bbox.left + u.bbox.width - 6, u.bbox.top + 14 * devicePixelRatio);
      u.ctx.restore();
    };
    plot.current = new uPlot({
      width: at.current.clientWidth, height, series, bands, legend: {show: false}, padding: [8, 20, 0, 0],
      cursor: {...(onWindow ? {sync: {key: "steps"}} : {}), points: {size: 6}, drag: {x: Boolean(onWindow), y: false, dist: 5}},
      scales: {
        x: {time: false, distr: logX ? 3 : 1, ...(logX ? {} : {range: (_, least, most) => rangeNow.current ?? widened(least, Math.max(most, mostNow.current ?? most))})},
        y: {distr: log ? 3 : 1, ...(log ? {} : {range: (u, least, most) => upTo(least, cutOf(u, columns) ?? most, write === bytes)})},
      },
      axes: [
        {...axis, size: 24, gap: 4, space: (u, i, low, high, wide) => (wide > 1500 ? 120 : 76), ...(logX ? {filter: powersOf, grid: {...axis.grid, filter: powersOf}} : {}), values: (_, v) => (x === "time" ? v.map(span) : logX ? v.map((n) => (n === null ? "" : n >= 0.01 && n < 1e4 ? short(n) : n.toExponential(0).replace("+", ""))) : axisLabels(v))},
        {...axis, size: (u, v) => 14 + 6.4 * Math.max(2, ...(v ?? []).map((text) => text.length)), gap: 6, space: height > 250 ? 46 : 26,
          ...(write === bytes ? {incrs: POWERS} : {}),
          values: (_, v) => axisLabels(v, write), ...(log ? {filter: (u, v) => everyOther(v)} : {})},
      ],
      hooks: {setSelect: [setWindow], setCursor: [showTip], draw: [drawMarks]},
    }, join(given, data), at.current);
    const u = plot.current;
    let downAt = 0;
    u.over.addEventListener("mousedown", (event) => { downAt = event.clientX; });
    u.over.addEventListener("click", (event) => Math.abs(event.clientX - downAt) < 4 && pick(u));
    u.over.addEventListener("dblclick", () => onWindow?.(null));
    u.over.addEventListener("mouseleave", () => { if (tip.current) tip.current.hidden = true; });
    const watcher = new ResizeObserver(() => at.current && u.setSize({width: at.current.clientWidth, height}));
    watcher.observe(at.current);
    return () => { watcher.disconnect(); u.destroy(); plot.current = null; };
  }, [look]);

  useEffect(() => { plot.current?.setData(join(given, data)); }, [data, range && range.join()]);

  if (!given.length) return html`<p class="quiet blank" style=${{height: `${height}px`}}>No points yet.</p>`;
  return html`<div class="chart"><div ref=${at} role="img" aria-label=${label}></div><div class="tip" ref=${tip} hidden></div></div>`;
}

/** The end of the axis where a few points lie far above all others, and would hide them; else null. */
function cutOf(u, columns) {
  const values = columns.flatMap((k) => u.data[k].filter(Number.isFinite)).sort((a, b) => a - b);
  const high = values[Math.floor(0.97 * values.length)];
  return values.length > 30 && high > 0 && values.at(-1) > 20 * high ? 2 * high : null;
}

const widened = (least, most) => (least === most ? [least - 1, most + 1] : [least >= 0 && least < 0.35 * most ? 0 : least, most]);

/** The range of a linear axis: from 0 where that wastes little, else with a margin. */
function upTo(least, most, isSize) {
  if (least === null || most === null) return [0, 1];
  if (least === most) return least === 0 ? [0, 1] : [Math.min(least * 0.9, least * 1.1), Math.max(least * 0.9, least * 1.1)];
  const margin = 0.06 * (most - least);
  return [least >= 0 && (isSize || least < 0.35 * most) ? 0 : least - margin, most + margin];
}

const powersOf = (u, values) => values.map((n) => (n > 0 && Math.abs(Math.log10(n) - Math.round(Math.log10(n))) < 1e-6 ? n : null));

/** On a logarithmic axis, the labels of 1, 2 and 5 alone. */
const everyOther = (values) => values.map((v) => {
  const first = v / 10 ** Math.floor(Math.log10(v) + 1e-9);
  return [1, 2, 5].some((n) => Math.abs(first - n) < 1e-6) ? v : null;
});

/** Rows by steps in one hue, with the last number of each row. */
export function Heat({vectors: {labels, steps, rows}, isLog, title}) {
  const canvas = useRef(), [theme, setTheme] = useState(0), [over, setOver] = useState(null);
  const values = rows.flat().filter((v) => v !== null && (!isLog || v > 0));
  const toScale = (v) => (isLog ? Math.log10(v) : v);
  const most = values.length ? values.reduce((a, v) => Math.max(a, toScale(v)), -Infinity) : 1;
  // Less than a factor of ten is no difference to look at.
  const least = isLog ? Math.min(most - 1, values.reduce((a, v) => Math.min(a, toScale(v)), Infinity)) : 0;
  const share = (v) => (v === null || (isLog && v <= 0) ? 0 : (toScale(v) - least) / (most - least || 1));
  const tall = labels.length > 24 ? 14 : 19;
  useEffect(() => {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const changed = () => setTheme((n) => n + 1);
    dark.addEventListener("change", changed);
    return () => dark.removeEventListener("change", changed);
  }, []);
  useEffect(() => {
    const box = canvas.current, pen = box.getContext("2d"), hue = resolved("--key"), missing = resolved("--line");
    box.width = steps.length;
    box.height = rows.length;
    rows.forEach((row, i) => row.forEach((value, k) => {
      pen.fillStyle = value === null ? missing() : hue(0.05 + 0.95 * share(value));
      pen.fillRect(k, i, 1, 1);
    }));
  }, [rows, theme]);
  const find = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const k = Math.floor(((event.clientX - box.left) / box.width) * steps.length);
    const i = Math.floor(((event.clientY - box.top) / box.height) * rows.length);
    setOver(rows[i]?.[k] === undefined ? null : `${labels[i]} at step ${whole(steps[k])}: ${short(rows[i][k])}`);
  };
  const write = columnWriter(rows.map((row) => row.at(-1)), short, 0);
  const unscaled = (v) => short(isLog ? 10 ** v : v);
  return html`<div class="heat" style=${{"--tall": `${tall}px`}}>
    <div class="labels">${labels.map((text) => html`<span title=${text}>${text}</span>`)}</div>
    <canvas ref=${canvas} style=${{height: `${tall * rows.length}px`}} role="img" aria-label=${`${title} by step`}
      onMouseMove=${find} onMouseLeave=${() => setOver(null)}></canvas>
    <div class="labels num">${rows.map((row) => html`<span>${write(row.at(-1))}</span>`)}</div></div>
    <p class="scale"><span>step ${whole(steps[0])} to ${whole(steps.at(-1))}</span><span class="over">${over}</span>
      <span>${unscaled(least)}</span><i></i><span>${unscaled(most)}</span></p>`;
}

export const heatTable = ({labels, steps, rows}) => {
  const picked = steps.map((_, i) => i).filter((i) => i % Math.max(1, Math.ceil(steps.length / 12)) === 0);
  return [["Name", ...picked.map((i) => `step ${whole(steps[i])}`)],
    labels.map((label, r) => [label, ...picked.map((i) => short(rows[r][i]))])];
};
