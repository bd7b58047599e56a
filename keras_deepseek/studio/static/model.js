// Model: a tree with bars beside the graph; one selection for both.

import {html, useEffect, useMemo, useRef, useState} from "./vendor/preact.js";
import {Graph, layout} from "./vendor/dagre.js";
import {bytes, percent, seconds, shapeOf, short} from "./format.js";
import {useDocument} from "./live.js";

const BYTES = {bool: 1, int8: 1, uint8: 1, float16: 2, bfloat16: 2, int16: 2, float32: 4, int32: 4, float64: 8, int64: 8};
const MEASURES = {
  time: {of: (node) => node.time, write: seconds, words: "of the step"},
  operations: {of: (node) => node.flops ?? 0, write: short, words: "of the operations"},
  parameters: {of: (node) => node.params, write: short, words: "of the parameters"},
  memory: {of: (node) => node.bytes, write: bytes, words: "of the memory of the outputs"},
};
const isLayer = (node) => node.kind === "layer" && node.reason !== "input";
export const layersIn = (node) => node.children.filter(isLayer);

/** Adds to each node the time and the memory of all that it holds, and its parent. */
export function prepare(root, profile, parent = null) {
  const [forward, backward] = profile?.layers[root.path] ?? [0, 0];
  const inner = root.children.map((child) => prepare(child, profile, root));
  const own = (root.out ?? []).reduce((sum, [shape, dtype]) => sum + shape.reduce((a, b) => a * (b || 1), 1) * (BYTES[dtype] ?? 4), 0);
  root.parent = parent;
  root.forward = forward + inner.reduce((sum, each) => sum + each.forward, 0);
  root.backward = backward + inner.reduce((sum, each) => sum + each.backward, 0);
  root.time = root.forward + root.backward;
  root.bytes = inner.length ? inner.reduce((sum, each) => sum + each.bytes, 0) : own;
  root.size = own;
  return root;
}

export const stepSeconds = (profile) => Object.values(profile.parts).reduce((sum, part) => sum + part, 0);

export function everyLayer(root) {
  return [root, ...layersIn(root).flatMap(everyLayer)];
}

/** What a layer has of a measure without the layers in it. */
export const ownOf = (node, of) => of(node) - layersIn(node).reduce((sum, child) => sum + of(child), 0);

/** The layer, a group or a leaf, that has the most of a measure by itself; null if none has any. */
export function largestOf(root, of) {
  const larger = (best, node) => (ownOf(node, of) > (best ? ownOf(best, of) : 0) ? node : best);
  return everyLayer(root).slice(1).reduce(larger, null);
}

/** Lays a layer's own graph out. An open child is laid out first, and takes its size. */
function place(node, open, find) {
  const graph = new Graph({multigraph: false});
  graph.setGraph({rankdir: "TB", nodesep: 22, ranksep: 26, marginx: 14, marginy: 12});
  graph.setDefaultEdgeLabel(() => ({}));
  const inner = node.children.map((child) => (open.has(child.path) && isLayer(child) && child.children.length ? place(child, open, find) : null));
  node.children.forEach((child, i) => {
    const text = 7.2 * Math.max(child.name.length, 0.9 * (shapeOf(child).length + (isLayer(child) ? 8 : 0))) + 26;
    graph.setNode(String(i), inner[i] ? {width: Math.max(inner[i].width, 8 * child.name.length + 40), height: inner[i].height} : {width: Math.max(104, text), height: 40});
  });
  for (const [from, to] of node.edges) {
    const [a, b] = [from, to].map((end) => (Array.isArray(end) ? end[0] : end));
    if (a === "const") continue;
    for (const end of [a, b]) if (typeof end !== "number" && !graph.hasNode(end)) graph.setNode(end, {width: 10, height: 10, isPort: true});
    graph.setEdge(String(a), String(b));
  }
  layout(graph);
  const {width, height} = graph.graph();
  const edges = graph.edges().map((edge) => graph.edge(edge).points), bends = edges.flat().map(({x}) => x);
  // dagre measures nodes alone: a long edge may bend outside of them.
  const left = Math.min(0, ...bends.map((x) => x - 10)), right = Math.max(width, ...bends.map((x) => x + 10));
  const shifted = (point) => ({...point, x: point.x - left}), at = (name) => shifted(graph.node(name));
  return {
    width: right - left + 4, height: height + 26,
    nodes: node.children.map((child, i) => ({child, inner: inner[i], ...at(String(i))})),
    ports: ["in", "out"].filter((name) => graph.hasNode(name)).map((name) => ({name, ...at(name)})),
    edges: edges.map((points) => points.map(shifted)),
  };
}

const curve = (points) => {
  const [start, ...rest] = points;
  let path = `M${start.x} ${start.y}`;
  for (let i = 0; i < rest.length - 1; i++) {
    const mid = i === rest.length - 2 ? rest[i + 1] : {x: (rest[i].x + rest[i + 1].x) / 2, y: (rest[i].y + rest[i + 1].y) / 2};
    path += `Q${rest[i].x} ${rest[i].y} ${mid.x} ${mid.y}`;
  }
  return rest.length === 1 ? `${path}L${rest[0].x} ${rest[0].y}` : path;
};

function Level({placed, paint}) {
  const {selected, onSelect, onToggle, share} = paint;
  return html`<g>
    ${placed.edges.map((points) => html`<path class="edge" d=${curve(points)} marker-end="url(#arrow)"/>`)}
    ${placed.ports.map(({x, y}) => html`<circle class="port" cx=${x} cy=${y} r="4"/>`)}
    ${placed.nodes.map(({child, inner, x, y, width, height}) => {
      const part = isLayer(child) ? share(child) : null;
      return html`<g class=${`box ${child.kind}${isLayer(child) && child.path === selected.path ? " selected" : ""}${inner ? " open" : ""}`}
        transform=${`translate(${x - width / 2} ${y - height / 2})`}
        onClick=${(event) => { event.stopPropagation(); if (isLayer(child)) onSelect(child); }}
        onDblClick=${(event) => { event.stopPropagation(); onToggle(child); }}>
        <rect class="ground" width=${width} height=${height} rx="7"/>
        <rect class="fill" width=${width} height=${height} rx="7" style=${{fillOpacity: inner || !part ? 0 : 0.06 + 0.42 * Math.min(1, part * 4)}}/>
        ${inner ? html`<text x="12" y="17">${child.name} <tspan class="soft">${child.cls}${part ? ` · ${percent(part)}` : ""}</tspan></text>
          <g transform="translate(0 20)"><${Level} placed=${inner} paint=${paint}/></g>`
        : html`<text x=${width / 2} y="17" text-anchor="middle">${child.name}</text>
          <text class="soft" x=${width / 2} y="31" text-anchor="middle">${[shapeOf(child), part && percent(part)].filter(Boolean).join(" · ")}</text>`}
      </g>`;
    })}</g>`;
}

function GraphView({root, open, paint, title}) {
  const placed = useMemo(() => place(root, open), [root, [...open].join()]);
  const svg = useRef(), [view, setView] = useState(null);
  const fit = () => {
    const box = svg.current.getBoundingClientRect();
    const k = Math.max(0.45, Math.min(1.15, (box.width - 24) / placed.width));
    setView({k, x: Math.max(12, (box.width - k * placed.width) / 2), y: 8});
  };
  useEffect(fit, [root]);
  const zoom = (by, event) => setView((old) => {
    const box = svg.current.getBoundingClientRect(), k = Math.max(0.1, Math.min(3, old.k * by));
    const [x, y] = event ? [event.clientX - box.left, event.clientY - box.top] : [box.width / 2, box.height / 2];
    return {k, x: x - ((x - old.x) * k) / old.k, y: y - ((y - old.y) * k) / old.k};
  });
  useEffect(() => {
    const turn = (event) => {
      event.preventDefault();
      if (event.ctrlKey) zoom(Math.exp(-event.deltaY / 300), event);
      else setView((old) => ({...old, x: old.x - event.deltaX, y: old.y - event.deltaY}));
    };
    svg.current.addEventListener("wheel", turn, {passive: false});
    return () => svg.current?.removeEventListener("wheel", turn);
  }, []);
  useEffect(() => {  // Brings the selected box into view, also when it was opened.
    const chosen = svg.current.querySelector(".selected")?.getBoundingClientRect(), box = svg.current.getBoundingClientRect();
    if (!chosen || (chosen.top >= box.top && chosen.bottom <= box.bottom && chosen.left >= box.left && chosen.right <= box.right)) return;
    setView((old) => old && ({...old, x: old.x + (box.left + box.width / 2 - (chosen.left + chosen.right) / 2),
      y: old.y + (box.top + 60 - chosen.top)}));
  }, [paint.selected, placed]);
  const drag = (event) => event.buttons & 1 && setView((old) => ({...old, x: old.x + event.movementX, y: old.y + event.movementY}));
  return html`<div class="card canvas"><div class="zoom">${title && html`<span>${title}</span>`}
      <button class="icon" aria-label="Smaller" onClick=${() => zoom(0.8)}>−</button>
      <button class="icon" aria-label="Larger" onClick=${() => zoom(1.25)}>+</button>
      <button class="icon wide" onClick=${fit}>Fit</button></div>
    <svg ref=${svg} role="img" aria-label=${`Graph of ${root.name}. The tree has the same layers.`} onPointerMove=${drag}>
      <defs><marker id="arrow" viewBox="0 0 6 6" refX="5.5" refY="3" markerWidth="6" markerHeight="6" orient="auto"><path d="M0 0L6 3L0 6z" class="tip-of-edge"/></marker></defs>
      ${view && html`<g transform=${`translate(${view.x} ${view.y}) scale(${view.k})`}><${Level} placed=${placed} paint=${paint}/></g>`}
    </svg></div>`;
}

function rowsOf(node, open, depth = 0) {
  const inner = depth === 0 || open.has(node.path) ? layersIn(node).flatMap((child) => rowsOf(child, open, depth + 1)) : [];
  return [[node, depth], ...inner];
}

function Tree({root, open, selected, onSelect, onToggle, measure, by}) {
  const rows = rowsOf(root, open), body = useRef();
  const most = Math.max(...rows.filter(([, depth]) => depth).map(([node]) => measure.of(node)), 1e-12);
  const index = Math.max(0, rows.findIndex(([node]) => node === selected));
  const key = (event) => {
    const [node] = rows[index];
    const isOpen = open.has(node.path) || node === root, hasInner = layersIn(node).length > 0;
    const to = {
      ArrowDown: () => rows[index + 1]?.[0], ArrowUp: () => rows[index - 1]?.[0],
      Home: () => root, End: () => rows.at(-1)[0],
      ArrowRight: () => (hasInner && !isOpen ? (onToggle(node), node) : hasInner ? rows[index + 1]?.[0] : node),
      ArrowLeft: () => (open.has(node.path) && hasInner ? (onToggle(node), node) : node.parent ?? node),
      Enter: () => (onToggle(node), node),
    }[event.key]?.();
    if (!to) return;
    event.preventDefault();
    onSelect(to);
    requestAnimationFrame(() => body.current?.querySelector("[aria-selected=true]")?.focus());
  };
  useEffect(() => { body.current?.querySelector("[aria-selected=true]")?.scrollIntoView({block: "nearest"}); }, [selected]);
  return html`<div class="card tree"><table role="treegrid" aria-label="Layers of the model">
    <thead><tr role="row"><th role="columnheader">Layer</th><th role="columnheader" class="shape">Output</th><th role="columnheader" class="n">${by[0].toUpperCase() + by.slice(1)}</th></tr></thead>
    <tbody ref=${body} onKeyDown=${key}>${rows.map(([node, depth], i) => html`<tr role="row" key=${node.path} aria-level=${depth + 1}
      aria-selected=${i === index} tabindex=${i === index ? 0 : -1}
      ...${layersIn(node).length && depth ? {"aria-expanded": open.has(node.path)} : {}}
      onClick=${() => onSelect(node)} onDblClick=${() => onToggle(node)}>
      <td role="gridcell" class="name" style=${{paddingLeft: `${0.4 + depth * 1.05}rem`}}><span class="twig" aria-hidden="true"
        onClick=${(event) => { event.stopPropagation(); onToggle(node); }}>${depth && layersIn(node).length ? (open.has(node.path) ? "▾" : "▸") : ""}</span>${node.name} <span class="soft">${node.cls}</span></td>
      <td role="gridcell" class="shape mono">${shapeOf(node)}</td>
      <td role="gridcell" class="n"><span class="bar"><i><u style=${{width: `${depth ? (100 * measure.of(node)) / most : 0}%`}}></u></i><b>${measure.of(node) ? measure.write(measure.of(node)) : ""}</b></span></td>
    </tr>`)}</tbody></table></div>`;
}

function Detail({node, root, twin}) {
  const facts = [
    ["output", `${shapeOf(node)} ${node.out?.[0]?.[1] ?? ""}`], ["parameters", short(node.params)],
    ["operations", short(node.flops) + (twin ? ` → ${short(twin.flops)}` : "")], ["memory of outputs", bytes(node.bytes)],
    ...(root.time ? [["forward", seconds(node.forward)], ["backward", seconds(node.backward)]] : []),
  ];
  return html`<div class="detail"><b>${node.path || node.name}</b> <span class="soft">${node.cls}</span>
    <dl>${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    ${node.reason && html`<p class="soft">It can't be opened: ${node.reason}.</p>`}</div>`;
}

export function Model({run, Say}) {
  const built = useDocument(run, "model_graph"), optimized = useDocument(run, "model_graph_optimized"), taken = useDocument(run, "profile");
  const profile = taken?.reason ? null : taken;
  const root = useMemo(() => built?.children && prepare(built, profile), [built, profile]);
  const after = useMemo(() => optimized && !optimized.reason && prepare(optimized, null), [optimized]);
  const [chosenBy, setBy] = useState(null), [selected, select] = useState(null), [open, setOpen] = useState(null);
  const [text, setText] = useState(""), [isDouble, setDouble] = useState(false);
  if (built === undefined || profile === undefined) return html`<p class="say soft">Reading the model …</p>`;
  if (!root) return html`<${Say}>This run has no model graph.</${Say}><p class="quiet">${built?.reason ? `It could not be traced: ${built.reason}` : html`A <code>Trainer</code> records the graph of its model when the training starts.`}</p>`;
  const by = chosenBy ?? (root.time ? "time" : root.flops ? "operations" : "parameters");
  const measure = MEASURES[by];
  const total = (by === "time" ? stepSeconds(profile) : measure.of(root)) || 1;
  const all = everyLayer(root), top = largestOf(root, measure.of);
  const opened = open ?? new Set(layersIn(root).length === 1 ? [layersIn(root)[0].path] : top ? [top.path.split("/")[0]] : []);
  const node = all.find((each) => each.path === selected) ?? root;
  const onToggle = (which) => {
    if (!isLayer(which) || !which.children.length || which === root) return;
    const next = new Set(opened);
    if (!next.delete(which.path)) next.add(which.path);
    setOpen(next);
  };
  const onSelect = ({path}) => {
    const which = all.find((each) => each.path === path) ?? root, next = new Set(opened);
    for (let parent = which.parent; parent; parent = parent.parent) next.add(parent.path);
    if (next.size !== opened.size) setOpen(next);
    select(which.path);
  };
  const search = (event) => {
    setText(event.target.value);
    const words = event.target.value.toLowerCase();
    const found = words && all.find((each) => each !== root && `${each.path} ${each.cls}`.toLowerCase().includes(words));
    if (found) onSelect(found);
  };
  const twin = isDouble && after ? everyLayer(after).find(({path}) => path === node.path) : null;
  const detail = html`<${Detail} node=${node} root=${root} twin=${twin}/>`;
  const paint = {selected: node, onSelect, onToggle, share: (each) => measure.of(each) / total};
  return html`<${Say}><b>${root.name}</b> has ${short(root.params)} parameters in ${all.length - 1} ${all.length === 2 ? "layer" : "layers"}${top ? html`; <b>${top.path}</b> takes <b class="num">${percent(ownOf(top, measure.of) / total)}</b> ${measure.words}${layersIn(top).length ? " by itself" : ""}` : ""}.</${Say}>
    <div class="bar-of-tools"><div class="tools">
      <label>Colour by <select value=${by} onChange=${(event) => setBy(event.target.value)}>
        ${Object.keys(MEASURES).filter((name) => name !== "time" || root.time).map((name) => html`<option value=${name}>${name}</option>`)}</select></label>
      <input type="search" id="search" placeholder="Find a layer   /" aria-label="Find a layer" value=${text} onInput=${search}/>
      ${after && html`<label><input type="checkbox" checked=${isDouble} onChange=${() => setDouble(!isDouble)}/> beside the optimized step${root.flops && after.flops !== root.flops ? html` <span class="soft num">${percent(after.flops / root.flops)} of the operations</span>` : ""}</label>`}
      ${optimized?.reason && html`<span class="soft">The step runs this graph as it is: ${optimized.reason}.</span>`}
      <span class="soft wide-only">A double click opens a layer; so does →.</span></div></div>
    ${isDouble && after ? html`${detail}<div class="split even">
      <${GraphView} root=${root} open=${opened} paint=${paint} title="as built"/>
      <${GraphView} root=${after} open=${opened} paint=${paint} title="optimized step"/></div>`
    : html`<div class="split"><${Tree} ...${{root, open: opened, selected: node, onSelect, onToggle, measure, by}}/>
      <div>${detail}<${GraphView} root=${root} open=${opened} paint=${paint}/></div></div>`}`;
}
