"use strict";
/* A timeline on a canvas: rows of boxes, wheel to zoom, drag to pan, hover for details, keys for both. */

class View {
  /* The visible window of time [s]; timelines that share one move together. */
  constructor(end) {
    this.end = end;
    this.from = 0;
    this.to = end;
    this.listeners = [];
  }
  set(from, to) {
    const least = this.end * 1e-7;
    let width = Math.min(Math.max(to - from, least), this.end);
    from = Math.min(Math.max(from, 0), this.end - width);
    this.from = from;
    this.to = from + width;
    for (const listener of this.listeners) listener();
  }
  zoom(at, factor) {
    this.set(at - (at - this.from) * factor, at + (this.to - at) * factor);
  }
  pan(by) {
    this.set(this.from + by, this.to + by);
  }
}

function seconds(value, digits = 4) {
  const size = Math.abs(value);
  if (size >= 1 || size === 0) return value.toPrecision(digits) + " s";
  if (size >= 1e-3) return (value * 1e3).toPrecision(digits) + " ms";
  return (value * 1e6).toPrecision(digits) + " µs";
}

function ink(colour) {
  const part = (at) => {
    const c = parseInt(colour.slice(at, at + 2), 16) / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  };
  return 0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5) > 0.179 ? "#000" : "#fff";
}

function firstAfter(ends, from, to, time) {
  /* Index of the first box in [from, to) that ends after `time`; boxes of a row do not overlap. */
  while (from < to) {
    const middle = (from + to) >> 1;
    if (ends[middle] <= time) from = middle + 1;
    else to = middle;
  }
  return from;
}

class Timeline {
  /*
   * rows: [{label, start, end, kind}], parallel arrays sorted by time; kind indexes `colours`.
   * text(row, i): what stands in a box. about(row, i): lines of the tooltip; i < 0 is a gap.
   * pad: room above and below the boxes of a row; over(timeline): drawn on top of all rows, if given.
   * detail(row): null, or lanes [{top, height, start, end, kind, about(i)}] drawn where boxes are wide.
   */
  constructor(holder, spec, view) {
    this.spec = spec;
    this.view = view;
    this.holder = holder;
    this.canvas = holder.querySelector("canvas");
    this.tip = holder.querySelector(".tip");
    this.live = holder.querySelector(".live");
    this.inks = spec.colours.map(ink);
    this.row = 0;
    this.box = -1;
    this.hot = null;
    this.left = spec.left || 44;
    this.bottom = 24;
    const count = spec.rows.length;
    this.pitch = spec.pitch || Math.max(4, Math.min(30, Math.floor(720 / count)));
    this.height = count * this.pitch + this.bottom;
    this.canvas.style.height = this.height + "px";
    this.canvas.timeline = this;
    view.listeners.push(() => this.draw());
    this.listen();
    new ResizeObserver(() => this.draw()).observe(holder);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    document.addEventListener("themechange", () => this.draw());
    this.draw();
    this.canvas.dataset.ready = "1";
  }

  /* ---- geometry ---- */
  x(time) {
    return this.left + ((time - this.view.from) / (this.view.to - this.view.from)) * (this.width - this.left);
  }
  time(x) {
    return this.view.from + ((x - this.left) / (this.width - this.left)) * (this.view.to - this.view.from);
  }

  /* ---- drawing ---- */
  draw() {
    const ratio = window.devicePixelRatio || 1;
    this.width = Math.max(200, this.holder.clientWidth);
    const canvas = this.canvas;
    if (canvas.width !== Math.round(this.width * ratio) || canvas.height !== Math.round(this.height * ratio)) {
      canvas.width = Math.round(this.width * ratio);
      canvas.height = Math.round(this.height * ratio);
    }
    const style = getComputedStyle(document.documentElement);
    this.theme = {};
    for (const name of ["ink", "soft", "gap", "page", "line"]) this.theme[name] = style.getPropertyValue("--" + name).trim();
    const g = (this.g = canvas.getContext("2d"));
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, this.width, this.height);
    g.font = "11px system-ui, sans-serif";
    g.textBaseline = "middle";
    this.spec.rows.forEach((row, at) => this.drawRow(row, at));
    if (this.spec.over) this.spec.over(this);
    this.drawAxis();
    this.drawMark();
  }

  drawRow(row, at) {
    const g = this.g, top = at * this.pitch, pad = this.spec.pad || (this.pitch > 12 ? 1.5 : 0.5), high = this.pitch - 2 * pad;
    const every = Math.ceil(14 / this.pitch);
    g.fillStyle = this.theme.soft;
    g.textAlign = "right";
    if (at % every === 0) g.fillText(row.label, this.left - 7, top + this.pitch / 2);
    const x0 = Math.max(this.left, this.x(0)), x1 = Math.min(this.width, this.x(this.spec.end));
    g.fillStyle = this.theme.gap;
    if (x1 > x0) g.fillRect(x0, top + pad, x1 - x0, high);
    let i = firstAfter(row.end, 0, row.end.length, this.view.from);
    const first = i;
    let drawn = -1;
    g.textAlign = "center";
    for (; i < row.start.length && row.start[i] < this.view.to; i++) {
      const a = Math.max(this.left, this.x(row.start[i])), b = Math.min(this.width, this.x(row.end[i]));
      if (b <= drawn + 0.3 && b - a < 0.3) continue;
      drawn = b;
      const rim = b - a > 4 ? 0.5 : 0;
      g.fillStyle = this.spec.colours[row.kind[i]];
      g.fillRect(a, top + pad, Math.max(0.4, b - a - rim), high);
    }
    const lanes = this.pitch >= 22 && this.spec.detail ? this.spec.detail(at) : null;
    const mean = (this.view.to - this.view.from) / Math.max(1, i - first);
    const deep = lanes && (mean / (this.view.to - this.view.from)) * this.width > 70;
    row.deep = deep ? lanes : null;
    if (deep) for (const lane of lanes) this.drawLane(lane, top, pad);
    if (this.pitch >= 11) this.drawTexts(row, first, i, top, deep ? 8 : this.pitch);
  }

  drawLane(lane, top, pad) {
    const g = this.g, y = top + pad + lane.top * (this.pitch - 2 * pad), h = lane.height * (this.pitch - 2 * pad);
    if (lane.clear) {
      g.fillStyle = this.theme.page;
      for (const [from, to] of lane.clear(this.view.from, this.view.to)) {
        const a = Math.max(this.left, this.x(from)), b = Math.min(this.width, this.x(to));
        g.fillRect(a, y, b - a, h * lane.clears);
      }
    }
    let drawn = -1;
    for (let i = firstAfter(lane.end, lane.from, lane.to, this.view.from); i < lane.to && lane.start[i] < this.view.to; i++) {
      const a = Math.max(this.left, this.x(lane.start[i])), b = Math.min(this.width, this.x(lane.end[i]));
      if (b <= drawn + 0.3 && b - a < 0.3) continue;
      drawn = b;
      g.fillStyle = this.spec.colours[lane.kind(i)];
      g.fillRect(a, y, Math.max(0.4, b - a - (b - a > 4 ? 0.5 : 0)), h);
      if (h >= 8 && b - a > 30) this.label(lane.text(i), a, b, y + h / 2 + 0.5, lane.kind(i), 9);
    }
  }

  drawTexts(row, first, last, top, high) {
    for (let i = first; i < last; i++) {
      const a = Math.max(this.left, this.x(row.start[i])), b = Math.min(this.width, this.x(row.end[i]));
      if (b - a < 12) continue;
      const texts = this.spec.text(row, i);
      for (const text of Array.isArray(texts) ? texts : [texts]) {
        if (this.label(text, a, b, top + high / 2 + 0.5, row.kind[i], high < 11 ? 8 : 11)) break;
      }
    }
  }

  label(text, a, b, y, kind, size) {
    const g = this.g;
    g.font = size + "px system-ui, sans-serif";
    g.textAlign = "center";
    if (!text || g.measureText(text).width > b - a - 3) return false;
    g.fillStyle = this.inks[kind];
    g.fillText(text, (a + b) / 2, y);
    return true;
  }

  drawAxis() {
    const g = this.g, span = this.view.to - this.view.from, y = this.height - this.bottom;
    const raw = span / Math.max(2, this.width / 110), power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= raw);
    const [factor, unit] = this.view.to >= 1 && step >= 0.01 ? [1, "s"] : step >= 1e-5 ? [1e3, "ms"] : [1e6, "µs"];
    const digits = Math.max(0, -Math.floor(Math.log10(step * factor) + 1e-9));
    g.font = "11px system-ui, sans-serif";
    g.textAlign = "center";
    g.strokeStyle = this.theme.line;
    g.fillStyle = this.theme.soft;
    for (let k = Math.ceil(this.view.from / step - 1e-9); k * step <= this.view.to * (1 + 1e-12); k++) {
      const x = this.x(k * step);
      g.beginPath();
      g.moveTo(x, y + 1);
      g.lineTo(x, y + 6);
      g.stroke();
      const text = (k * step * factor).toFixed(digits) + " " + unit;
      const half = g.measureText(text).width / 2;
      g.fillText(text, Math.min(this.width - half - 1, x), y + 15);
    }
  }

  drawMark() {
    /* The box that the pointer or the keyboard is at. */
    const hot = this.hot || (this.box >= 0 && document.activeElement === this.canvas ? this.selected() : null);
    if (!hot || hot.end < this.view.from || hot.start > this.view.to) return;
    const a = Math.max(this.left, this.x(hot.start)), b = Math.min(this.width, this.x(hot.end));
    this.g.strokeStyle = this.theme.ink;
    this.g.lineWidth = 2;
    this.g.strokeRect(a, hot.top, Math.max(2, b - a), hot.height);
    this.g.lineWidth = 1;
  }

  /* ---- what is where ---- */
  hit(x, y) {
    const at = Math.floor(y / this.pitch);
    if (x < this.left || at < 0 || at >= this.spec.rows.length) return null;
    const row = this.spec.rows[at], time = this.time(x), top = at * this.pitch;
    for (const lane of row.deep || []) {
      const y0 = top + lane.top * this.pitch, h = lane.height * this.pitch;
      if (y < y0 || y >= y0 + h) continue;
      const i = firstAfter(lane.end, lane.from, lane.to, time);
      if (i < lane.to && lane.start[i] <= time) {
        return { start: lane.start[i], end: lane.end[i], top: y0, height: h, lines: lane.about(i) };
      }
    }
    const i = firstAfter(row.end, 0, row.end.length, time);
    if (i < row.start.length && row.start[i] <= time) return this.boxOf(at, i);
    const from = i > 0 ? row.end[i - 1] : 0, to = i < row.start.length ? row.start[i] : this.spec.end;
    if (time > this.spec.end) return null;
    return { start: from, end: to, top, height: this.pitch, lines: this.spec.about(row, -1, from, to) };
  }
  boxOf(at, i) {
    const row = this.spec.rows[at];
    const pad = this.spec.pad || 0;
    return {
      start: row.start[i], end: row.end[i], top: at * this.pitch + pad, height: this.pitch - 2 * pad,
      lines: this.spec.about(row, i, row.start[i], row.end[i]),
    };
  }
  selected() {
    return this.boxOf(this.row, Math.min(this.box, this.spec.rows[this.row].start.length - 1));
  }

  /* ---- pointer and keys ---- */
  listen() {
    const c = this.canvas;
    c.addEventListener("wheel", (event) => {
      event.preventDefault();
      const by = event.deltaMode === 1 ? 30 : 1;
      const time = this.time(Math.max(this.left, event.offsetX));
      if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        this.view.pan((((event.deltaX || event.deltaY) * by) / this.width) * (this.view.to - this.view.from));
      } else this.view.zoom(time, Math.exp(Math.max(-400, Math.min(400, event.deltaY * by)) * 0.002));
    }, { passive: false });
    c.addEventListener("pointerdown", (event) => {
      this.drag = { x: event.offsetX, from: this.view.from, to: this.view.to };
      c.setPointerCapture(event.pointerId);
    });
    c.addEventListener("pointerup", () => (this.drag = null));
    c.addEventListener("pointercancel", () => (this.drag = null));
    c.addEventListener("pointermove", (event) => {
      if (this.drag) {
        const by = ((this.drag.x - event.offsetX) / (this.width - this.left)) * (this.drag.to - this.drag.from);
        this.view.set(this.drag.from + by, this.drag.to + by);
        this.hide();
      } else this.show(this.hit(event.offsetX, event.offsetY), event.offsetX, event.offsetY);
    });
    c.addEventListener("pointerleave", () => this.hide());
    c.addEventListener("dblclick", (event) => {
      const hit = this.hit(event.offsetX, event.offsetY);
      if (hit) this.look(hit.start, hit.end);
    });
    c.addEventListener("keydown", (event) => this.key(event));
    c.addEventListener("blur", () => this.hide());
    for (const button of this.holder.querySelectorAll("button[data-do]")) {
      button.addEventListener("click", () => this.act(button.dataset.do));
    }
  }

  act(what) {
    const middle = (this.view.from + this.view.to) / 2, width = this.view.to - this.view.from;
    if (what === "in") this.view.zoom(middle, 0.5);
    else if (what === "out") this.view.zoom(middle, 2);
    else if (what === "left") this.view.pan(-width / 4);
    else if (what === "right") this.view.pan(width / 4);
    else if (what === "all") this.view.set(0, this.view.end);
    else if (what === "pair" && this.spec.pair) this.look(this.spec.pair.start, this.spec.pair.end);
  }

  look(start, end) {
    const room = 0.15 * (end - start);
    this.view.set(start - room, end + room);
  }

  key(event) {
    const row = this.spec.rows[this.row];
    const keys = { "+": "in", "=": "in", "-": "out", 0: "all", Home: "all" };
    if (event.key in keys) this.act(keys[event.key]);
    else if (event.shiftKey && event.key === "ArrowLeft") this.act("left");
    else if (event.shiftKey && event.key === "ArrowRight") this.act("right");
    else if (event.key === "ArrowRight") this.select(this.row, this.box < 0 ? firstAfter(row.end, 0, row.end.length, this.view.from) : this.box + 1);
    else if (event.key === "ArrowLeft") this.select(this.row, this.box - 1);
    else if (event.key === "ArrowDown") this.selectNear(this.row + 1);
    else if (event.key === "ArrowUp") this.selectNear(this.row - 1);
    else if (event.key === "Enter" && this.box >= 0) this.look(this.selected().start, this.selected().end);
    else if (event.key === "Escape") this.hide();
    else return;
    event.preventDefault();
  }
  selectNear(at) {
    if (at < 0 || at >= this.spec.rows.length) return;
    const time = this.box >= 0 ? (this.selected().start + this.selected().end) / 2 : this.view.from;
    const row = this.spec.rows[at];
    this.select(at, Math.min(row.end.length - 1, firstAfter(row.end, 0, row.end.length, time)));
  }
  select(at, i) {
    const row = this.spec.rows[at];
    if (i < 0 || i >= row.start.length) return;
    this.row = at;
    this.box = i;
    const box = this.boxOf(at, i), width = this.view.to - this.view.from;
    if (box.start < this.view.from || box.end > this.view.to) {
      const middle = (box.start + box.end) / 2;
      this.view.set(middle - width / 2, middle + width / 2);
    }
    this.show(box, Math.max(this.left, Math.min(this.width, this.x((box.start + box.end) / 2))), box.top + box.height);
    this.live.textContent = box.lines.join(", ");
  }

  show(hit, x, y) {
    this.hot = hit;
    if (!hit) return this.hide();
    this.tip.replaceChildren(...hit.lines.map((line, at) => {
      const element = document.createElement(at ? "div" : "strong");
      element.textContent = line;
      return element;
    }));
    this.tip.hidden = false;
    const wide = this.tip.offsetWidth;
    this.tip.style.left = Math.max(0, x + 14 + wide > this.width ? x - wide - 14 : x + 14) + "px";
    this.tip.style.top = this.canvas.offsetTop + y + 16 + "px";
    this.draw();
  }
  hide() {
    this.hot = null;
    this.tip.hidden = true;
    this.draw();
  }
}
