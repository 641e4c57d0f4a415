// Asks the server once a second for what is new, and draws the last seconds. Whatever comes from the server is put in as text.
"use strict";

const POLL_MS = 1000;
const OUTCOMES = ["met", "late", "dropped", "failed", "cancelled"];
const VIOLATIONS = ["late", "dropped", "failed"];
const PRIORITIES = ["high", "low"];
const LEFT = 110, ROW = 22, AXIS = 20; // pixels: the names of rows, a row, the axis
const MOST_QUEUES = 12;
const MOST_ROWS = 25;

let token = "";
let paused = false;
let known = nothing();

function nothing() {
  return { started: 0, since: 0, window: 0, batches: [], ticks: new Map(), refusals: [], server: {} };
}

const byId = (id) => document.getElementById(id);

function setText(id, text) {
  // Set only when it changes, so that a screen reader does not repeat it.
  if (byId(id).textContent !== text) byId(id).textContent = text;
}

async function poll() {
  let again = true;
  if (!paused && !document.hidden) {
    try {
      const headers = token ? { Authorization: `Bearer ${token}` } : {};
      const response = await fetch(`v2/status?since=${known.since}`, { headers, cache: "no-store" });
      const answer = await response.json();
      again = response.status !== 401;
      byId("token-form").hidden = again;
      if (response.ok) take(answer);
      else setText("message", answer.error);
    } catch (error) {
      setText("message", `No answer from the server (${error.message}); trying again.`);
    }
  }
  if (again) setTimeout(poll, POLL_MS);
}

function take(answer) {
  if (answer.started_s !== known.started) {
    const asked = known.since;
    known = nothing();
    known.started = answer.started_s;
    if (asked > 0) return; // another server than before: ask for all
  }
  known.since = answer.now_ms;
  known.window = answer.window_ms;
  const begin = answer.now_ms - answer.window_ms;
  known.batches = known.batches.concat(answer.batches).filter((batch) => batch.end_ms > begin);
  for (const tick of answer.ticks) known.ticks.set(tick.start_ms, tick);
  for (const start of [...known.ticks.keys()]) if (start < begin) known.ticks.delete(start);
  known.refusals = answer.refusals;
  known.server = answer.server;
  show();
}

function show() {
  setText("message", `The last ${known.window / 1000} seconds, ${Math.round(1000 / POLL_MS)} update per second.`);
  showServer(known.server);
  drawTimeline();
  showEnds();
  showModels();
  const seconds = (ms) => ((known.since - ms) / 1000).toFixed(1);
  fill("batches", known.batches.slice(-MOST_ROWS).reverse().map((batch) => [
    seconds(batch.end_ms), batch.stream, batch.model, batch.priority, batch.high, batch.size - batch.high,
    inMs(batch.predicted_ms), inMs(batch.end_ms - batch.start_ms), batch.error || "",
  ]));
  fill("refusals", known.refusals.map((one) => [
    one.reason, one.model, one.priority, one.count, seconds(one.last_ms), one.message,
  ]));
}

function showServer(server) {
  setText("policy", server.policy);
  setText("reason", server.reason);
  setText("accepting", server.accepting ? "are taken" : "are not taken: the server is stopping");
  setText("busy", server.streams ? `${server.busy} of ${server.streams}` : "-");
  setText("weight", server.high_weight ? `${server.high_weight} times a low-priority one` : "-");
  setText("fallbacks", `${server.fallbacks}`);
  setText("note", server.note);
}

// Tables.

function fill(id, rows) {
  byId(id).tBodies[0].replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    cells.forEach((cell, at) => {
      const made = document.createElement(at ? "td" : "th");
      if (!at) made.scope = "row";
      made.textContent = cell;
      row.append(made);
    });
    return row;
  }));
}

function showEnds() {
  const ticks = [...known.ticks.values()];
  const rows = PRIORITIES.map((priority) => {
    const counts = OUTCOMES.map((outcome) => sum(ticks.map((tick) => tick.ends[priority][outcome] || 0)));
    const violated = sum(VIOLATIONS.map((outcome) => counts[OUTCOMES.indexOf(outcome)]));
    return [priority, ...counts, share(violated, violated + counts[0])];
  });
  fill("ends", rows);
  drawViolations(ticks, rows);
}

function showModels() {
  const queued = latest() ? latest().queued : {};
  const names = [...new Set([...known.batches.map((batch) => batch.model), ...Object.keys(queued)])].sort();
  fill("models", names.map((name) => {
    const mine = known.batches.filter((batch) => batch.model === name && !batch.error);
    const predicted = mine.filter((batch) => batch.predicted_ms !== null);
    const [high, low] = queued[name] || [0, 0];
    return [
      name, high, low, mine.length, mine.length ? (sum(mine.map((batch) => batch.size)) / mine.length).toFixed(1) : "-",
      inMs(median(predicted.map((batch) => batch.predicted_ms))),
      inMs(median(mine.map((batch) => batch.end_ms - batch.start_ms))),
      share(predicted.filter((batch) => batch.end_ms > batch.start_ms + batch.predicted_ms).length, predicted.length),
    ];
  }));
}

const latest = () => [...known.ticks.values()].pop();
const sum = (values) => values.reduce((total, value) => total + value, 0);
const inMs = (value) => (value === null || value === undefined ? "-" : value.toFixed(1));
const share = (part, all) => (all ? `${(100 * part / all).toFixed(1)} %` : "-");
const median = (values) => values.sort((one, other) => one - other)[values.length >> 1];

// Drawings: time runs from left to right and ends now.

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function horizontal(svg, span) {
  const width = svg.clientWidth - LEFT - 10;
  const begin = known.since - span;
  return (ms) => LEFT + Math.min(Math.max((ms - begin) / span, 0), 1) * width;
}

function axis(x, height, span) {
  const parts = [];
  for (let back = 0; back <= span; back += span / 4) {
    const at = x(known.since - back);
    const anchor = back ? "middle" : "end";
    parts.push(element("path", { class: "grid", d: `M${at} 0V${height - AXIS}` }));
    parts.push(element("text", { x: at, y: height - 6, "text-anchor": anchor }, back ? `-${back / 1000} s` : "now"));
  }
  return parts;
}

function put(svg, parts, height, label) {
  svg.style.height = `${height + 2}px`; // with its border
  svg.setAttribute("aria-label", label);
  svg.replaceChildren(...parts);
}

const clipped = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const rowName = (text, row) => element("text", { x: 6, y: row * ROW + 15 }, clipped(text, 15));

function drawTimeline() {
  const span = Number(byId("span").value), svg = byId("timeline"), x = horizontal(svg, span);
  const streams = known.server.streams, longest = longestQueues(known.since - span);
  const height = (streams + longest.length) * ROW + AXIS;
  const parts = axis(x, height, span);
  const batches = known.batches.filter((batch) => batch.end_ms > known.since - span);
  for (let stream = 0; stream < streams; stream++) parts.push(rowName(`stream ${stream}`, stream));
  let marks = "";
  for (const batch of batches) {
    const y = batch.stream * ROW + 2, from = x(batch.start_ms), wide = Math.max(x(batch.end_ms) - from - 1, 1);
    const kind = batch.error ? "failed" : batch.priority;
    parts.push(element("rect", { class: `batch ${kind}`, x: from, y, width: wide, height: ROW - 4 }));
    if (kind === "high" && batch.high < batch.size) {
      // Low priority that was taken along: its share of the bar, from below.
      const height = (ROW - 4) * (1 - batch.high / batch.size);
      parts.push(element("rect", { class: "batch low", x: from, y: y + ROW - 4 - height, width: wide, height }));
    }
    if (wide > 60 && !batch.error) {
      const text = clipped(`${batch.model} ×${batch.size}`, Math.floor((wide - 6) / 7));
      parts.push(element("text", { class: "bar-text", x: from + 3, y: y + 13 }, text));
    }
    if (batch.predicted_ms !== null) marks += `M${x(batch.start_ms + batch.predicted_ms)} ${y - 1}v${ROW - 2}`;
  }
  if (marks) parts.push(element("path", { class: "predicted", d: marks }));
  longest.forEach(([name, most], at) => parts.push(...drawQueue(x, streams + at, name, most)));
  const shown = `${batches.length} batches on ${streams} streams in ${span / 1000} seconds`;
  put(svg, parts, height, `${shown}, and the queues of ${longest.length} models`);
}

function longestQueues(begin) {
  const most = new Map();
  for (const { start_ms, queued } of known.ticks.values()) {
    if (start_ms < begin) continue;
    for (const [name, [high, low]] of Object.entries(queued)) most.set(name, Math.max(most.get(name) || 0, high + low));
  }
  return [...most].sort((one, other) => other[1] - one[1]).slice(0, MOST_QUEUES).sort();
}

function drawQueue(x, row, name, most) {
  const base = (row + 1) * ROW - 1;
  const area = (of) => {
    let path = `M${LEFT} ${base}`;
    for (const tick of known.ticks.values()) {
      path += `H${x(tick.start_ms)}V${base - of(tick.queued[name] || [0, 0]) / most * (ROW - 4)}`;
    }
    return `${path}H${x(known.since)}V${base}Z`;
  };
  return [
    rowName(`${most} ${name}`, row),
    element("path", { class: "low", d: area(([high, low]) => high + low) }),
    element("path", { class: "high", d: area(([high]) => high) }),
  ];
}

function drawViolations(ticks, rows) {
  const svg = byId("violations"), x = horizontal(svg, known.window), tall = 2 * ROW, height = 2 * tall + AXIS;
  const seconds = new Map();
  for (const tick of ticks) {
    const second = Math.floor(tick.start_ms / 1000) * 1000;
    const counts = seconds.get(second) || { high: [0, 0], low: [0, 0] };
    for (const priority of PRIORITIES) {
      counts[priority][0] += tick.ends[priority].met || 0;
      counts[priority][1] += sum(VIOLATIONS.map((outcome) => tick.ends[priority][outcome] || 0));
    }
    seconds.set(second, counts);
  }
  const most = Math.max(1, ...[...seconds.values()].flatMap((counts) => PRIORITIES.map((one) => sum(counts[one]))));
  const parts = axis(x, height, known.window);
  PRIORITIES.forEach((priority, at) => {
    const base = (at + 1) * tall - 1, scale = (tall - 6) / most;
    parts.push(rowName(`${priority} priority`, 2 * at));
    for (const [second, counts] of seconds) {
      const [met, violated] = counts[priority].map((count) => count * scale);
      const place = { x: x(second), width: Math.max(x(second + 1000) - x(second) - 2, 1) };
      parts.push(element("rect", { class: "met", y: base - met, height: met, ...place }));
      parts.push(element("rect", { class: "violated", y: base - met - violated, height: violated, ...place }));
    }
  });
  put(svg, parts, height, rows.map((row) => `${row[0]} priority: violation rate ${row[row.length - 1]}`).join("; "));
}

// Controls.

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", paused);
});
byId("span").addEventListener("change", drawTimeline);
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value; // in this page's memory only
  byId("token").value = "";
  poll();
});
poll();
