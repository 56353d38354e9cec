"use strict";
/* Puts the data of the page into its timelines and makes tables sortable. */

async function unpacked(text) {
  /* gzip, base64 -> bytes */
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function actionRows(steps) {
  /* The columns of all actions, as one row of boxes a rank. */
  return steps.rows.map((row, rank) => ({
    label: String(rank), rank, start: row.start.map((t) => t * steps.tick), end: row.end.map((t) => t * steps.tick),
    kind: row.phase, name: row.name,
  }));
}

function stepSpec(steps) {
  const rows = actionRows(steps);
  return {
    rows, colours: steps.colours, end: steps.end, pair: steps.pair, pitch: steps.pitch,
    text: (row, i) => [row.name[i], row.name[i].split("F").pop().replace(/[^0-9].*/, "")],
    about: (row, i, from, to) => {
      if (i < 0) return ["bubble", `rank ${row.label}`, `${seconds(to - from)}`, `from ${seconds(from, 6)} to ${seconds(to, 6)}`];
      return [
        `${row.name[i]}  ${steps.phases[row.kind[i]]}`, ...wordsOf(row.name[i], steps),
        `rank ${row.label}, ${seconds(to - from)}`, `from ${seconds(from, 6)} to ${seconds(to, 6)}`,
      ];
    },
  };
}

const KINDS = { F: "forward", B: "backward", I: "backward for inputs", W: "weight gradients" };
function wordsOf(name, steps) {
  /* "(2F7;13B3)" in words, one line a half. */
  return Array.from(name.matchAll(/(\d+)([FBIW])(\d+)/g), ([, stage, kind, batch]) => {
    const holds = steps.stages[Number(stage)];
    return `${KINDS[kind]} of microbatch ${batch}, stage ${stage}` + (holds ? ` (${holds})` : "");
  });
}

async function addRuns(spec, steps) {
  /* Kernel sequences inside actions: lanes of compute, all-to-all, sends and gradient sync, drawn where there is room. */
  const runs = steps.runs;
  const buffer = await unpacked(runs.packed), n = runs.count;
  const start = new Float64Array(n), end = new Float64Array(n);
  const ticks = new Uint32Array(buffer, 0, 2 * n), names = new Uint16Array(buffer, 8 * n, n);
  for (let i = 0; i < n; i++) {
    start[i] = ticks[i] * runs.tick;
    end[i] = start[i] + ticks[n + i] * runs.tick;
  }
  const places = [[0.3, 0.4], [0.72, 0.18], [0.91, 0.09], [0.91, 0.09], [0.91, 0.09]];
  const lanes = spec.rows.map((row, rank) => {
    const clear = (from, to) => clip(row, from, to);
    return runs.lanes[rank].map(([lane, first, last], at) => ({
      top: places[lane][0], height: places[lane][1], start, end, from: first, to: last,
      clear: at === 0 ? clear : null, clears: 0.7 / places[lane][1],
      kind: (i) => runs.names[names[i]].colour,
      text: (i) => runs.names[names[i]].name,
      about: (i) => {
        const run = runs.names[names[i]];
        return [run.name, `${run.what}, ${run.ops} ${run.ops === 1 ? "op" : "ops"}`, `rank ${rank}, ${runs.streams[lane]}`,
          seconds(end[i] - start[i]), `from ${seconds(start[i], 6)} to ${seconds(end[i], 6)}`];
      },
    }));
  });
  spec.detail = (rank) => lanes[rank];
}

function clip(row, from, to) {
  const found = [];
  for (let i = firstAfter(row.end, 0, row.end.length, from); i < row.start.length && row.start[i] < to; i++) {
    found.push([row.start[i], row.end[i]]);
  }
  return found;
}

function opsSpec(pair) {
  const rows = pair.lanes.map((lane) => ({
    label: lane.label, start: lane.start, end: lane.end, kind: lane.kind, op: lane.op, segment: lane.segment,
    name: lane.name || (lane.label === "comp" ? "compute" : "communication"), place: lane.place,
  }));
  return {
    rows, colours: pair.colours, end: pair.end, pitch: 44, pair: pair.window, left: pair.window && 58,
    text: (row, i) => [pair.ops[row.op[i]].name, pair.ops[row.op[i]].name.split(".").pop()],
    about: (row, i, from, to) => {
      if (i < 0) return ["nothing runs", row.name, seconds(to - from)];
      const op = pair.ops[row.op[i]];
      return [op.name, `${op.what}, limited by ${op.bound}`, `segment ${pair.segments[row.segment[i]]}, ${row.name}`,
        ...(row.place ? [pair.places[row.place[i]]] : []),
        `${seconds(to - from)} (${seconds(op.alone)} alone)`, `from ${seconds(from, 6)} to ${seconds(to, 6)}`,
        ...(op.calibrated ? [] : ["not calibrated on this GPU"])];
    },
  };
}

function graphSpec(graph) {
  /* The op graph of a block: a row a stream, waits between them, and the critical path along the ops it consists of. */
  const rows = graph.lanes.map((lane) => ({ label: lane.label, start: lane.start, end: lane.end, kind: lane.kind, op: lane.op }));
  const pad = 14;
  return {
    rows, colours: graph.colours, end: graph.end, pitch: 64, pad,
    text: (row, i) => {
      const name = graph.ops[row.op[i]].name, parts = name.split(".");
      return [name, parts.slice(1).join("."), parts[1]];  // attn.q_b.fwd, q_b.fwd, q_b
    },
    about: (row, i, from, to) => {
      if (i < 0) return ["nothing runs", row.label === "comp" ? "compute" : "communication", seconds(to - from)];
      return aboutOp(graph.ops[row.op[i]], from, to);
    },
    over: (timeline) => {
      const g = timeline.g, face = (lane) => (lane ? timeline.pitch + pad - 2 : timeline.pitch - pad + 2);
      g.save();
      g.beginPath();
      g.rect(timeline.left, 0, timeline.width - timeline.left, timeline.height - timeline.bottom);
      g.clip();
      const along = (points, colour, width) => {
        g.strokeStyle = colour;
        g.lineWidth = width;
        g.beginPath();
        points.forEach(([lane, time], at) => g[at ? "lineTo" : "moveTo"](timeline.x(time), face(lane)));
        g.stroke();
      };
      for (const wait of graph.waits) along(wait, timeline.theme.soft, 1);
      along(graph.path, timeline.theme.ink, 3);
      g.restore();
    },
  };
}

function aboutOp(op, from, to) {
  const lines = [op.name, `${op.what}, limited by ${op.bound}`];
  lines.push(`segment ${op.segment}, ${op.kernels} ${op.kernels === 1 ? "kernel" : "kernels"}`);
  lines.push(`${seconds(to - from)} (${seconds(op.alone)} alone)` + (op.rate ? `, ${op.rate} TFLOP/s` : ""));
  lines.push(`from ${seconds(from, 6)} to ${seconds(to, 6)}`, ...op.waits);
  lines.push(op.critical ? "on the critical path" : `not critical: could last ${seconds(op.slack)} longer`);
  return op.calibrated ? lines : [...lines, "not calibrated on this GPU"];
}

function sortable(table) {
  const heads = table.tHead.rows[0].cells;
  Array.from(heads).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => {
        const cell = row.cells[column];
        return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
      };
      const sign = down ? -1 : 1;
      const order = (a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b)));
      const rows = Array.from(table.tBodies[0].rows).map((row) => [value(row), row]);
      rows.sort(([a], [b]) => sign * order(a, b));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

function filterable(input) {
  const table = document.getElementById(input.dataset.table);
  const none = document.createElement("span");
  none.className = "none";
  none.setAttribute("role", "status");
  input.closest("p").append(none);
  const text = (row) => [row.textContent, ...Array.from(row.querySelectorAll("[title]"), (cell) => cell.title)].join(" ").toLowerCase();
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    for (const row of table.tBodies[0].rows) shown += !(row.hidden = !text(row).includes(wanted));
    none.textContent = shown ? "" : `no row has \u201c${wanted}\u201d`;
  });
}

function themes() {
  const button = document.getElementById("theme");
  button.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    document.dispatchEvent(new Event("themechange"));
  });
  let before;
  addEventListener("beforeprint", () => {
    before = document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light";
    document.dispatchEvent(new Event("themechange"));
  });
  addEventListener("afterprint", () => {
    if (before) document.documentElement.dataset.theme = before;
    else delete document.documentElement.dataset.theme;
    document.dispatchEvent(new Event("themechange"));
  });
}

async function main() {
  themes();
  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll("input[data-table]").forEach(filterable);
  const data = JSON.parse(document.getElementById("data").textContent);
  const shared = new View(Math.max(0, ...data.steps.map((steps) => steps.end)));
  for (const steps of data.steps) {
    const spec = stepSpec(steps);
    const timeline = new Timeline(document.getElementById(steps.id), spec, shared);
    if (steps.runs) {
      await addRuns(spec, steps);
      timeline.draw();
    }
  }
  if (data.pair) {
    const timeline = new Timeline(document.getElementById("pair-timeline"), opsSpec(data.pair), new View(data.pair.end));
    if (data.pair.window) timeline.act("pair");
  }
  for (const graph of data.graphs || []) new Timeline(document.getElementById(graph.id), graphSpec(graph), new View(graph.end));
  document.documentElement.dataset.ready = "1";
}

main();
