"use strict";
// Sorts tables, switches between baselines, draws curves and marks one arm. Every number was computed in Python.
(() => {
  document.documentElement.classList.add("js");
  const SVG = "http://www.w3.org/2000/svg";

  function make(name, attributes = {}, parent = null, text = null) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }

  function html(name, options = {}, parent = null) {
    const node = Object.assign(document.createElement(name), options);
    if (parent) parent.append(node);
    return node;
  }

  // -- tables

  function sortValue(row, column) {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(text.replaceAll(",", ""));
    return text === "" || text === "–" ? null : Number.isNaN(number) ? text : number;
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function makeSortable(table) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = html("button", { type: "button", textContent: head.textContent });
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row) => [sortValue(row, column), row]);
        rows.sort(([a], [b]) =>
          a === null || b === null ? (a === null) - (b === null) : down ? compare(b, a) : compare(a, b));
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  // -- differences against another baseline

  const COLOURS = ["good", "bad"];

  function followBaseline(section, data) {
    const select = section.querySelector("select.baseline");
    if (!select) return;
    const box = section.querySelector(".differences");
    const cells = [...section.querySelectorAll("small.difference")];
    const own = cells.map((cell) => [cell.textContent, cell.className]);
    const ownTables = box ? [...box.childNodes] : [];
    const against = section.querySelector(".against");
    const ownName = against?.textContent;
    const heads = box ? [...box.querySelectorAll("thead")].slice(0, 1) : [];
    select.addEventListener("change", () => {
      const chosen = data.against[select.value];
      if (against) against.textContent = chosen ? chosen.baseline : ownName;
      const texts = new Map((chosen?.cells ?? []).map(([quantity, arm, ...rest]) => [`${quantity}/${arm}`, rest]));
      cells.forEach((cell, index) => {
        const [text, verdict] = texts.get(`${cell.dataset.quantity}/${cell.dataset.name}`) ?? ["", ""];
        cell.textContent = chosen ? text : own[index][0];
        cell.className = own[index][1];
        if (chosen) {
          cell.classList.remove(...COLOURS);
          if (data.colours[verdict]) cell.classList.add(data.colours[verdict]);
        }
      });
      if (box) box.replaceChildren(...(chosen ? chosen.tables.flatMap((table) => tableOf(table, heads, data)) : ownTables));
    });
  }

  function tableOf(table, heads, data) {
    const wide = html("div", { className: "wide" });
    const shown = html("table", { className: "contrasts" }, wide);
    shown.append(...heads.map((head) => head.cloneNode(true)));
    const body = html("tbody", {}, shown);
    for (const { cells, verdict } of table.rows) {
      const row = html("tr", {}, body);
      cells.forEach((text, column) => {
        const cell = html("td", {}, row);
        if (column < cells.length - 1) cell.textContent = text;
        else html("span", { className: `verdict ${data.colours[verdict] ?? ""}`, textContent: text }, cell);
      });
    }
    return [html("h4", { textContent: table.heading }), wide];
  }

  // -- curves

  const number = (value) =>
    Math.abs(value) >= 1e6 || (value !== 0 && Math.abs(value) < 1e-3)
      ? Number(value.toPrecision(4)).toExponential()
      : Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });

  function ticks(low, high, log, most) {
    if (log) {
      const decades = Math.log10(high / low);
      if (decades > 0.8) {
        const steps = decades < 2.5 ? [1, 2, 5] : [1];
        const every = decades < 2.5 ? 1 : Math.ceil(decades / most);
        const values = [];
        for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += every)
          for (const step of steps) values.push(step * 10 ** power);
        return values.filter((value) => value >= low * 0.9999 && value <= high * 1.0001);
      }
    }
    const rough = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
    const values = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) values.push(value);
    return values.map((value) => Number(value.toPrecision(10)));
  }

  const MARGIN = { left: 56, right: 10, top: 8, bottom: 36 };
  let clips = 0;

  class Plot {
    constructor(parent, panel, study) {
      Object.assign(this, { panel, study, log: { x: panel.x_log, y: panel.y_log }, range: null });
      this.box = html("div", { className: "panel" }, parent);
      const head = html("h4", {}, this.box);
      html("span", { textContent: panel.title }, head);
      this.buttons = {};
      for (const axis of ["x", "y"]) {
        const button = html("button", { type: "button", textContent: `log ${axis}` }, head);
        button.dataset.axis = axis;
        button.addEventListener("click", () => {
          this.log[axis] = !this.log[axis];
          this.range = null;
          this.draw();
        });
        this.buttons[axis] = button;
      }
      this.back = html("button", { type: "button", textContent: "whole" }, head);
      this.back.addEventListener("click", () => this.zoom(null));
      this.svg = make("svg", { role: "img", "aria-label": `${panel.title}: ${panel.y_label} by ${panel.x_label}` });
      this.box.append(this.svg);
      this.tip = html("div", { className: "tip", hidden: true }, this.box);
      this.svg.addEventListener("pointermove", (event) => this.move(event));
      this.svg.addEventListener("pointerleave", () => this.leave());
      this.svg.addEventListener("pointerdown", (event) => this.press(event));
      this.svg.addEventListener("pointerup", (event) => this.release(event));
      this.svg.addEventListener("dblclick", () => this.zoom(null));
      if (panel.lines.length > 1) this.legend(panel.lines);
    }

    legend(lines) {
      const list = html("p", {}, this.box);
      for (const { name, dash } of lines) {
        const entry = html("span", {}, list);
        const sample = make("svg", { viewBox: "0 0 32 10", "aria-hidden": "true" }, entry);
        make("path", { class: "curve", d: "M0 5H32", stroke: "currentColor", "stroke-dasharray": dash || "none" }, sample);
        entry.append(name);
      }
    }

    usable(x, y) {
      return x !== null && y !== null && (!this.log.x || x > 0) && (!this.log.y || y > 0);
    }

    whole() {
      const xs = [], ys = [];
      for (const curve of this.panel.curves)
        this.panel.x[curve.x].forEach((x, i) => {
          for (const y of [curve.y[i], curve.low?.[i] ?? null, curve.high?.[i] ?? null])
            if (this.usable(x, y)) { xs.push(x); ys.push(y); }
        });
      const ends = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
      const padded = ([low, high], log) => {
        if (!(low <= high)) return log ? [1, 10] : [0, 1];
        if (low === high) return log ? [low / 1.5, high * 1.5] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
        const by = log ? (high / low) ** 0.04 : (high - low) * 0.04;
        return log ? [low / by, high * by] : [low - by, high + by];
      };
      return { x: padded(ends(xs), this.log.x), y: padded(ends(ys), this.log.y) };
    }

    place(axis, value) {
      const [low, high] = this.shown[axis];
      const part = this.log[axis] ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
      const [from, to] = this.pixels[axis];
      return from + part * (to - from);
    }

    value(axis, pixel) {
      const [from, to] = this.pixels[axis], [low, high] = this.shown[axis];
      const part = Math.min(1, Math.max(0, (pixel - from) / (to - from)));
      return this.log[axis] ? low * (high / low) ** part : low + part * (high - low);
    }

    zoom(range) {
      this.range = range;
      this.draw();
    }

    draw() {
      const width = Math.max(240, this.box.clientWidth || 360), height = Math.round(Math.min(340, Math.max(230, width * 0.62)));
      this.width = width;
      this.shown = this.range ?? this.whole();
      this.pixels = { x: [MARGIN.left, width - MARGIN.right], y: [height - MARGIN.bottom, MARGIN.top] };
      for (const axis of ["x", "y"]) this.buttons[axis].setAttribute("aria-pressed", this.log[axis]);
      this.back.hidden = !this.range;
      this.svg.replaceChildren();
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.axes(width, height);
      const clip = `clip-${clips++}`;
      make("rect", { x: MARGIN.left, y: MARGIN.top, width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom },
        make("clipPath", { id: clip }, this.svg));
      const inside = make("g", { "clip-path": `url(#${clip})` }, this.svg);
      this.points = [];
      const order = [...this.panel.curves].sort((a, b) => (b.seed ?? false) - (a.seed ?? false));
      for (const curve of order) this.curve(curve, inside);
      this.mark(this.study.marked);
    }

    axes(width, height) {
      const [left, right] = this.pixels.x, [bottom, top] = this.pixels.y;
      for (const value of ticks(...this.shown.x, this.log.x, Math.max(3, Math.floor(width / 90)))) {
        const x = this.place("x", value);
        make("line", { class: "gridline", x1: x, x2: x, y1: top, y2: bottom }, this.svg);
        make("text", { x, y: bottom + 14, "text-anchor": "middle" }, this.svg, number(value));
      }
      for (const value of ticks(...this.shown.y, this.log.y, 5)) {
        const y = this.place("y", value);
        make("line", { class: "gridline", x1: left, x2: right, y1: y, y2: y }, this.svg);
        make("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, this.svg, number(value));
      }
      make("path", { class: "frame", d: `M${left} ${top}V${bottom}H${right}` }, this.svg);
      make("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, this.svg, this.panel.x_label);
      const middle = (top + bottom) / 2;
      make("text", { x: 11, y: middle, "text-anchor": "middle", transform: `rotate(-90 11 ${middle})` }, this.svg, this.panel.y_label);
    }

    curve(curve, parent) {
      const colour = this.study.arms[curve.arm].colour, x = this.panel.x[curve.x];
      const group = make("g", { "data-arm": curve.arm, class: curve.seed ? "seed" : "mean" }, parent);
      const at = (i, values) => [this.place("x", x[i]), this.place("y", values[i])].map((v) => v.toFixed(1)).join(" ");
      const used = [...x.keys()].filter((i) => this.usable(x[i], curve.y[i]));
      if (curve.low) {
        const banded = used.filter((i) => this.usable(x[i], curve.low[i]) && this.usable(x[i], curve.high[i]));
        if (this.panel.points && banded.length < 30)
          for (const i of banded) make("path", { d: `M${at(i, curve.low)}L${at(i, curve.high)}`, stroke: colour }, group);
        else if (banded.length > 1)
          make("path", { class: "band", fill: colour,
            d: `M${banded.map((i) => at(i, curve.high)).join("L")}L${[...banded].reverse().map((i) => at(i, curve.low)).join("L")}Z` }, group);
      }
      if (used.length) {
        const line = make("path", { class: "curve", d: `M${used.map((i) => at(i, curve.y)).join("L")}`, stroke: colour }, group);
        if (curve.dash && !curve.seed) line.setAttribute("stroke-dasharray", curve.dash);
      }
      for (const i of used) {
        const px = this.place("x", x[i]), py = this.place("y", curve.y[i]);
        if ((this.panel.points && !curve.seed && used.length < 30) || used.length === 1)
          make("circle", { cx: px, cy: py, r: 2.6, fill: colour }, group);
        this.points.push({ px, py, x: x[i], y: curve.y[i], low: curve.low?.[i], high: curve.high?.[i], curve });
      }
    }

    mark(arm) {
      for (const group of this.svg.querySelectorAll("g[data-arm]"))
        group.classList.toggle("dim", arm !== null && group.dataset.arm !== String(arm));
    }

    pixel(event) {
      const box = this.svg.getBoundingClientRect();
      return [((event.clientX - box.left) * this.width) / box.width, ((event.clientY - box.top) * this.width) / box.width];
    }

    nearest(x, y) {
      let best = null, distance = 28 ** 2;
      for (const point of this.points) {
        if (this.study.marked !== null && point.curve.arm !== this.study.marked) continue;
        const squared = (point.px - x) ** 2 + (point.py - y) ** 2;
        if (squared < distance) [best, distance] = [point, squared];
      }
      return best;
    }

    move(event) {
      const [x, y] = this.pixel(event);
      if (this.start) return this.stretch(x, y);
      const point = this.nearest(x, y);
      this.leave();
      if (!point) return;
      const { name, colour } = this.study.arms[point.curve.arm];
      this.focus = make("circle", { class: "focus", cx: point.px, cy: point.py, r: 4.5, fill: colour }, this.svg);
      const range = point.low === undefined ? "" : ` (${number(point.low)} to ${number(point.high)})`;
      this.tip.replaceChildren(html("b", { textContent: name }), html("br"), point.curve.note, html("br"),
        `${number(point.y)}${range} at ${number(point.x)} ${this.panel.x_label}`);
      this.tip.hidden = false;
      const scale = this.svg.clientWidth / this.width;
      const left = point.px * scale + 14 + this.tip.offsetWidth > this.box.clientWidth ? point.px * scale - 14 - this.tip.offsetWidth : point.px * scale + 14;
      this.tip.style.left = `${Math.max(0, left)}px`;
      this.tip.style.top = `${this.svg.offsetTop + point.py * scale}px`;
    }

    leave() {
      this.focus?.remove();
      this.tip.hidden = true;
    }

    press(event) {
      if (event.button !== 0 || event.pointerType === "touch") return;
      this.start = this.pixel(event);
      this.svg.setPointerCapture(event.pointerId);
      this.area = make("rect", { class: "zoom", width: 0, height: 0 }, this.svg);
    }

    stretch(x, y) {
      const [x0, y0] = this.start;
      const box = { x: Math.min(x, x0), y: Math.min(y, y0), width: Math.abs(x - x0), height: Math.abs(y - y0) };
      for (const [key, value] of Object.entries(box)) this.area.setAttribute(key, value);
    }

    release(event) {
      const [x, y] = this.pixel(event), from = this.start ?? [x, y];
      this.area?.remove();
      this.start = this.area = null;
      if (Math.abs(x - from[0]) > 8 && Math.abs(y - from[1]) > 8) {
        const order = (axis, a, b) => [this.value(axis, a), this.value(axis, b)].sort((p, q) => p - q);
        this.zoom({ x: order("x", x, from[0]), y: order("y", y, from[1]) });
      } else if (event.detail < 2) {
        const point = this.nearest(x, y);
        if (point) this.study.mark(point.curve.arm);
      }
    }
  }

  // -- one arm in all of a study's plots, tables and samples

  function followArm(section, study) {
    const buttons = [...section.querySelectorAll(".arms button")];
    study.mark = (arm) => {
      study.marked = study.marked === arm ? null : arm;
      const is = (node) => study.marked !== null && Number(node.dataset.arm) === study.marked;
      for (const button of buttons) button.setAttribute("aria-pressed", is(button));
      for (const row of section.querySelectorAll("tr[data-arm]")) row.classList.toggle("marked", is(row));
      for (const grid of section.querySelectorAll(".grid")) grid.classList.toggle("dim", study.marked !== null && !is(grid));
      for (const plot of study.plots) plot.mark(study.marked);
    };
    for (const button of buttons) button.addEventListener("click", () => study.mark(Number(button.dataset.arm)));
  }

  // -- samples side by side

  function followSamples(section) {
    const sets = [...section.querySelectorAll(".samples .set")];
    section.querySelector("select.replicate")?.addEventListener("change", (event) =>
      sets.forEach((set, index) => { set.hidden = index !== Number(event.target.value); }));
    for (const set of sets) {
      const frames = [...set.querySelectorAll(".pixels")];
      const clear = () => set.querySelectorAll(".ring").forEach((ring) => ring.remove());
      set.addEventListener("pointerleave", clear);
      for (const frame of frames)
        frame.addEventListener("pointermove", (event) => {
          clear();
          const box = frame.getBoundingClientRect();
          for (const other of frames) {
            const ring = html("i", { className: "ring" }, other);
            ring.style.left = `${(100 * (event.clientX - box.left)) / box.width}%`;
            ring.style.top = `${(100 * (event.clientY - box.top)) / box.height}%`;
          }
        });
    }
  }

  document.querySelectorAll("table.sortable").forEach(makeSortable);
  for (const section of document.querySelectorAll("section.study")) {
    const data = JSON.parse(section.querySelector("script.study-data").textContent);
    const study = { arms: data.arms, marked: null, plots: [] };
    followBaseline(section, data);
    followArm(section, study);
    followSamples(section);
    for (const box of section.querySelectorAll(".panels")) {
      const panels = JSON.parse(box.parentNode.querySelector("script[type='application/json']").textContent);
      study.plots.push(...panels.map((panel) => new Plot(box, panel, study)));
    }
    for (const plot of study.plots) plot.draw(); // all are in their places only now
    let waiting = 0;
    addEventListener("resize", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => study.plots.forEach((plot) => plot.draw()), 120);
    });
  }
  // A browser that cannot show what is folded on paper gets it unfolded.
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => { details.open = true; }));
})();
