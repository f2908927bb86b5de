// Draws every figure of the page from the same description that report.md's images are drawn from.
(() => {
  "use strict";
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const tip = document.getElementById("tip");
  const LETTER = 7.3, RADIUS = 4.6;

  function svg(tag, attributes, parent, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    const { style, ...others } = attributes;
    for (const [name, value] of Object.entries(others)) node.setAttribute(name, value);
    if (style) node.style.cssText = style; // the page's policy forbids it as an attribute
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }
  function html(tag, properties, parent) {
    const node = Object.assign(document.createElement(tag), properties);
    if (parent) parent.append(node);
    return node;
  }
  // A named colour of the style sheet, or r37: 37 % along the ramp from cool to warm.
  const colour = ({ colour }) => /^r\d+$/.test(colour) ? `color-mix(in oklab, var(--c1) ${colour.slice(1)}%, var(--heat))` : `var(--${colour})`;
  const isNumber = v => typeof v === "number";

  function format(v) {
    if (!isNumber(v)) return String(v ?? "–");
    const size = Math.abs(v);
    if (size !== 0 && size < 1e-3) return v.toExponential(1);
    if (size >= 1e6) return Number((v / 1e6).toPrecision(3)) + "M";
    if (size >= 1e4) return Math.round(v).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");
    return String(Number(v.toPrecision(3)) === Math.round(v) || size < 1000 ? Number(v.toPrecision(3)) : Math.round(v));
  }

  // 4096, 16k: ticks that a figure names are lengths or counts.
  const whole = v => v >= 1e4 && v % 1024 === 0 ? `${v / 1024}k` : String(v);

  // A marker's outline around the origin.
  function outline(shape, r) {
    const ring = (n, turn) => "M" + Array.from({ length: n }, (_, i) => {
      const a = turn + 2 * Math.PI * i / n;
      return `${(1.15 * r * Math.cos(a)).toFixed(2)},${(1.15 * r * Math.sin(a)).toFixed(2)}`;
    }).join("L") + "Z";
    const s = 0.9 * r;
    return {
      circle: `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`, square: `M${-s},${-s}H${s}V${s}H${-s}Z`,
      triangle: ring(3, -Math.PI / 2), down: ring(3, Math.PI / 2), diamond: ring(4, 0), hexagon: ring(6, 0),
      ring: `M${-2 * r},0a${2 * r},${2 * r} 0 1,0 ${4 * r},0a${2 * r},${2 * r} 0 1,0 ${-4 * r},0Z`, plus: `M${-r},0H${r}M0,${-r}V${r}`, minus: `M${-r},0H${r}`, cross: `M${-s},${-s}L${s},${s}M${-s},${s}L${s},${-s}`,
      tick: "M0,-7V7",
    }[shape];
  }
  function marker(style, parent, x = 0, y = 0, r = RADIUS, hollow = false) {
    const path = outline(style.shape, r);
    if (!path) return;
    const stroked = ["plus", "minus", "cross", "tick", "ring"].includes(style.shape);
    const look = stroked || hollow ? `fill:none;stroke:${colour(style)};stroke-width:${hollow || style.shape === "tick" ? 1.2 : 2.2}` : `fill:${colour(style)};stroke:var(--paper);stroke-width:.8`;
    svg("path", { d: path, transform: `translate(${x},${y})`, style: look }, parent);
  }

  function niceTicks(low, high, count) {
    const rough = (high - low) / Math.max(1, count), unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].find(s => s * unit >= rough) * unit;
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9) + 1e-12; i++) ticks.push(Number((i * step).toPrecision(12)));
    return ticks;
  }
  function logTicks(low, high, count) {
    if (high < 5 * low) return niceTicks(low, high, count).filter(v => v > 0);
    const make = steps => {
      const ticks = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
        for (const s of steps) if (s * 10 ** e >= low * .999 && s * 10 ** e <= high * 1.001) ticks.push(Number((s * 10 ** e).toPrecision(3)));
      return ticks;
    };
    const choices = [[1, 2, 3, 4, 5, 6, 8], [1, 2, 5], [1, 3], [1]].map(make);
    const found = choices.find(ticks => ticks.length <= count) || choices.at(-1);
    if (found.length >= 2) return found;
    return choices.find(ticks => ticks.length >= 2 && ticks.length <= 2 * count) || niceTicks(low, high, count).filter(v => v > 0);
  }
  // Pixel positions along one axis: { at, ticks, shown }.
  function scale(axis, log, values, from, to, room) {
    if (axis.categories) {
      const step = (to - from) / axis.categories.length;
      return { at: v => from + step * (axis.categories.indexOf(v) + .5), ticks: axis.categories, shown: String };
    }
    const usable = values.filter(v => isNumber(v) && (!log || v > 0));
    let low = Math.min(...usable), high = Math.max(...usable);
    if (!usable.length) [low, high] = log ? [1, 10] : [0, 1];
    if (low === high) [low, high] = log ? [low / 1.5, high * 1.5] : [low - .5, high + .5];
    const turn = log ? Math.log : v => v, back = log ? Math.exp : v => v;
    const pad = .05 * (turn(high) - turn(low));
    let [a, b] = [turn(low) - pad, turn(high) + pad];
    if (!log && low >= 0 && low < .35 * high) a = 0;
    const at = v => from + (to - from) * ((log ? Math.max(turn(v), a) : v) - a) / (b - a);
    let ticks = axis.ticks || (log ? logTicks(back(a), back(b), room) : niceTicks(a, b, room));
    if (axis.ticks) ticks = ticks.filter((_, i) => (ticks.length - 1 - i) % Math.ceil(ticks.length / room) === 0);
    return { at, ticks, shown: axis.ticks ? whole : format };
  }

  class Chart {
    constructor(box, spec) {
      Object.assign(this, { box, spec, hidden: new Set(), view: 0, logs: {} });
      this.draw();
      let width = box.clientWidth;
      new ResizeObserver(() => {
        if (Math.abs(box.clientWidth - width) < 2 || !box.clientWidth) return;
        width = box.clientWidth;
        this.draw();
      }).observe(box);
    }

    draw() {
      const panels = this.spec.views[this.view].panels;
      this.box.replaceChildren();
      this.tools(panels);
      const width = this.box.clientWidth || 800;
      const columns = Math.max(1, Math.min(this.spec.columns, Math.floor(width / 215)));
      const grid = html("div", { className: "panels" }, this.box);
      grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
      for (const panel of panels) new Panel(this, panel, grid, (width - 20 * (columns - 1)) / columns);
      if (this.spec.legend === "below") this.keys(html("div", { className: "tools" }, this.box), panels);
      this.box.dataset.drawn = "yes";
    }

    tools(panels) {
      const bar = html("div", { className: "tools" }, this.box);
      this.selectors(bar);
      if (this.spec.legend !== "below") this.keys(bar, panels);
      const axes = html("span", { className: "axes" }, bar);
      for (const side of ["y", "x"]) if (panels.some(p => !p.heat && !p[side].categories)) this.axisButton(axes, side, panels);
    }

    keys(bar, panels) {
      const names = new Map();
      for (const panel of panels) for (const s of panel.series)
        if (s.name && s.style.shape !== "tick" && !panel.y.categories?.includes(s.name)) names.set(s.name, s.style);
      if (names.size > 1) for (const [name, style] of names) this.key(bar, name, style, names);
    }

    // A select for the labels, and one for what each label has a view of; what is absent falls back to the label's first.
    selectors(bar) {
      const { views } = this.spec, now = views[this.view];
      const choose = (key, values, ariaLabel, find) => {
        if (values.length < 2) return;
        const select = html("select", { ariaLabel, name: key }, bar);
        for (const value of values) html("option", { textContent: value, value, selected: value === now[key] }, select);
        select.onchange = () => { this.view = Math.max(0, find(select.value)); this.draw(); this.box.querySelector(`select[name=${key}]`)?.focus(); };
      };
      const at = (label, of) => views.findIndex(v => v.label === label && v.of === of);
      choose("label", [...new Set(views.map(v => v.label))], "Show", label => at(label, now.of) >= 0 ? at(label, now.of) : views.findIndex(v => v.label === label));
      choose("of", views.filter(v => v.label === now.label).map(v => v.of), "Against", of => at(now.label, of));
    }

    key(bar, name, style, names) {
      const button = html("button", { type: "button", className: "key", ariaPressed: !this.hidden.has(name) }, bar);
      button.title = "Click: show or hide. Double click: only this one.";
      const swatch = svg("svg", { class: "swatch", viewBox: "-7 -7 14 14", "aria-hidden": "true" }, button);
      if (style.shape !== "ring") svg("path", { d: "M-9,0H9", style: `stroke:${colour(style)};stroke-width:1.75;stroke-dasharray:${style.dash || "none"}` }, swatch);
      marker(style, swatch);
      button.append(name);
      button.onclick = event => {
        const only = event.detail === 2;
        if (only) this.hidden = new Set([...names.keys()].filter(other => other !== name));
        else if (!this.hidden.delete(name)) this.hidden.add(name);
        if (this.hidden.size === names.size) this.hidden.clear();
        this.draw();
        [...this.box.querySelectorAll(".key")].find(other => other.textContent === name)?.focus();
      };
    }

    axisButton(bar, side, panels) {
      const now = this.logs[side] ?? panels.some(p => p[side].log);
      const button = html("button", { type: "button", className: `axis ${side}`, textContent: `log ${side}`, ariaPressed: now }, bar);
      button.onclick = () => { this.logs[side] = !now; this.draw(); this.box.querySelector(`.axis.${side}`).focus(); };
    }
  }

  class Panel {
    constructor(chart, panel, grid, width) {
      this.points = [];
      const label = [panel.title, chart.spec.alt].filter(Boolean).join(": ");
      const height = panel.heat && panel.heat.x.length === panel.heat.y.length ? Math.min(width, 330) : chart.spec.height;
      this.node = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, tabindex: 0 }, grid);
      const series = panel.series.filter(s => !chart.hidden.has(s.name));
      const logs = Object.fromEntries(["x", "y"].map(side => [side, !panel[side].categories && (chart.logs[side] ?? panel[side].log)]));
      if (panel.heat) this.heat(panel, width, height);
      else this.plot(panel, series, logs, width, height);
      this.listen();
    }

    frame(panel, width, height, left, right = 8) {
      const head = [panel.title, panel.y.label].filter(Boolean).length * 16;
      if (panel.title) svg("text", { x: 0, y: 11, class: "title" }, this.node, panel.title);
      if (panel.y.label) svg("text", { x: 0, y: panel.title ? 27 : 11 }, this.node, panel.y.label);
      if (panel.x.label) svg("text", { x: width - right, y: height - 3, "text-anchor": "end" }, this.node, panel.x.label);
      return { left, right: width - right, top: head + 8, bottom: height - (panel.x.label ? 34 : 20) };
    }

    plot(panel, series, logs, width, height) {
      const all = side => series.flatMap(s => [...s[side], ...(s.along === side ? [...(s.low || []), ...(s.high || [])] : [])])
        .concat(panel.rules.filter(r => r.axis === side).map(r => r.at));
      const longest = panel.y.categories ? Math.max(...panel.y.categories.map(c => c.length)) * LETTER + 12 : 44;
      const area = this.frame(panel, width, height, Math.min(longest, .45 * width));
      const x = scale(panel.x, logs.x, all("x"), area.left, area.right, Math.max(2, Math.floor((area.right - area.left) / 52)));
      const y = scale(panel.y, logs.y, all("y"), ...(panel.y.categories ? [area.top, area.bottom] : [area.bottom, area.top]), Math.max(3, Math.floor((area.bottom - area.top) / 34)));
      this.grid(x, y, area);
      this.taken = [];
      for (const s of series) this.series(s, { x, y }, logs);
      for (const rule of panel.rules) this.rule(rule, x, y, area);
      for (const s of series) if (s.label) this.label(s, area);
    }

    grid(x, y, area) {
      for (const tick of x.ticks) {
        svg("path", { d: `M${x.at(tick)},${area.top}V${area.bottom}`, class: "grid" }, this.node);
        svg("text", { x: x.at(tick), y: area.bottom + 15, "text-anchor": "middle" }, this.node, x.shown(tick));
      }
      for (const tick of y.ticks) {
        svg("path", { d: `M${area.left},${y.at(tick)}H${area.right}`, class: "grid" }, this.node);
        svg("text", { x: area.left - 7, y: y.at(tick) + 4, "text-anchor": "end" }, this.node, y.shown(tick));
      }
    }

    rule(rule, x, y, area) {
      const across = rule.axis === "y", at = across ? y.at(rule.at) : x.at(rule.at);
      svg("path", { d: across ? `M${area.left},${at}H${area.right}` : `M${at},${area.top}V${area.bottom}`, class: "rule" }, this.node);
      const crowded = at + 4 + rule.label.length * LETTER > area.right;
      const place = across ? { x: area.right, y: at - 5, "text-anchor": "end" } : { x: at + (crowded ? -4 : 4), y: area.top + 9, "text-anchor": crowded ? "end" : "start" };
      svg("text", { ...place, class: "name" }, this.node, rule.label);
    }

    series(s, { x, y }, logs) {
      const group = svg("g", { class: "series", "data-name": s.name }, this.node);
      const usable = i => s.x[i] !== null && s.y[i] !== null && !(logs.x && s.x[i] <= 0) && !(logs.y && s.y[i] <= 0);
      const index = s.x.map((_, i) => i).filter(usable);
      const stroke = `stroke:${colour(s.style)};stroke-dasharray:${s.style.dash || "none"}`;
      if (s.low && s.line && index.length) {
        const edge = (values, order) => order.map(i => `${x.at(s.x[i])},${y.at(values[i] ?? s.y[i])}`).join("L");
        svg("path", { d: `M${edge(s.high, index)}L${edge(s.low, [...index].reverse())}Z`, class: "band", style: `fill:${colour(s.style)}` }, group);
      } else if (s.low) for (const i of index) {
        const d = s.along === "x" ? `M${x.at(s.low[i])},${y.at(s.y[i])}H${x.at(s.high[i])}` : `M${x.at(s.x[i])},${y.at(s.low[i])}V${y.at(s.high[i])}`;
        svg("path", { d, class: "error", style: `stroke:${colour(s.style)}` }, group);
      }
      if (s.line && index.length > 1) svg("path", { d: "M" + index.map(i => `${x.at(s.x[i])},${y.at(s.y[i])}`).join("L"), class: "line", style: stroke }, group);
      for (const i of index) {
        const [px, py] = [x.at(s.x[i]), y.at(s.y[i])];
        if (s.points) marker(s.style, group, px, py, s.hollow ? 2.8 : s.line ? 3.4 : RADIUS, s.hollow);
        if (s.name && s.style.shape !== "none") this.points.push({ px, py, group, text: this.text(s, i) });
        this.taken?.push([px - 5, py - 5, px + 5, py + 5]);
      }
    }

    text(s, i) {
      const along = s.along, value = v => format(v);
      const range = s.low ? ` [${value(s.low[i])}, ${value(s.high[i])}]` : "";
      const rows = [s.name, `x ${value(s.x[i])}${along === "x" ? range : ""}`, `y ${value(s.y[i])}${along === "y" ? range : ""}`];
      if (s.y[i] === s.name) rows.splice(1, 2, `${value(s.x[i])}${range}`);
      return rows.concat(s.notes?.[i] || []).join("\n");
    }

    // A name beside its point, where it covers nothing; otherwise hovering tells.
    label(s, area) {
      const point = this.points.findLast(p => p.group.dataset.name === s.name);
      if (!point) return;
      const w = s.name.length * LETTER, { px, py } = point, off = s.style.shape === "ring" ? 13 : 8;
      const places = [[px + off, py + 4], [px - off - w, py + 4], [px - w / 2, py - 9], [px - w / 2, py + 17], [px + 7, py - 7], [px + 7, py + 14]];
      const free = places.find(([a, b]) => a >= area.left && a + w <= area.right + 8 && b >= area.top + 8 && b <= area.bottom &&
        this.taken.every(([l, t, r, m]) => a + w < l || a > r || b < t || b - 10 > m));
      if (!free) return;
      this.taken.push([free[0], free[1] - 10, free[0] + w, free[1]]);
      svg("text", { x: free[0], y: free[1], class: "name" }, point.group, s.name).style.fill = colour(s.style);
    }

    heat(panel, width, height) {
      const { x, y, z, label } = panel.heat, longest = Math.max(...y.map(n => n.length)) * LETTER + 8;
      const area = this.frame(panel, width, height, longest);
      const w = (area.right - area.left) / x.length, h = (area.bottom - area.top) / y.length;
      const top = Math.max(...z.flat().filter(isNumber).map(Math.abs)) || 1;
      z.forEach((row, r) => row.forEach((value, c) => {
        if (!isNumber(value)) return;
        const share = Math.abs(value) / top, tone = value < 0 ? "--cold" : "--heat", [left, above] = [area.left + c * w, area.top + r * h];
        const fill = `fill:color-mix(in oklab, var(${tone}) ${(100 * share).toFixed(1)}%, var(--panel))`;
        const group = svg("g", { class: "series" }, this.node);
        svg("rect", { x: left, y: above, width: w, height: h, style: fill }, group);
        if (w > 32 && z.length * x.length <= 120)
          svg("text", { x: left + w / 2, y: above + h / 2 + 4, "text-anchor": "middle", style: `fill:var(${share > .5 ? "--paper" : "--ink"})` }, group, format(Number(value.toPrecision(2))));
        this.points.push({ px: left + w / 2, py: above + h / 2, group, text: `${panel.y.label} ${y[r]}\n${panel.x.label} ${x[c]}\n${label} ${format(value)}`.trim() });
      }));
      const every = Math.ceil(Math.max(...x.map(name => name.length)) * 5.4 / w);
      x.forEach((name, c) => c % every || svg("text", { x: area.left + (c + .5) * w, y: area.bottom + 14, "text-anchor": "middle", class: "small" }, this.node, name));
      y.forEach((name, r) => r % Math.ceil(12 / h) || svg("text", { x: area.left - 6, y: area.top + (r + .5) * h + 4, "text-anchor": "end" }, this.node, name));
    }

    listen() {
      let current = -1;
      const show = i => {
        current = i;
        const point = this.points[i];
        this.node.classList.toggle("focus", !!point && this.points.length < 2000 && !!point.group.dataset.name);
        this.node.querySelectorAll(".on").forEach(node => node.classList.remove("on"));
        tip.hidden = !point;
        if (!point) return;
        this.node.querySelectorAll(".series").forEach(node => node.classList.toggle("on", node.dataset.name === point.group.dataset.name));
        tip.textContent = point.text;
        const box = this.node.getBoundingClientRect(), zoom = box.width / this.node.viewBox.baseVal.width;
        const [x, y] = [box.left + point.px * zoom, box.top + point.py * zoom];
        tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
        tip.style.top = `${Math.max(4, y - tip.offsetHeight - 10)}px`;
      };
      this.node.addEventListener("pointermove", event => {
        const box = this.node.getBoundingClientRect(), zoom = box.width / this.node.viewBox.baseVal.width;
        const [x, y] = [(event.clientX - box.left) / zoom, (event.clientY - box.top) / zoom];
        const far = this.points.map(p => Math.hypot(p.px - x, p.py - y)), nearest = Math.min(...far);
        show(nearest < 36 ? far.indexOf(nearest) : -1);
      });
      for (const leave of ["pointerleave", "blur"]) this.node.addEventListener(leave, () => show(-1));
      this.node.addEventListener("keydown", event => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (event.key === "Escape") show(-1);
        if (!step || !this.points.length) return;
        event.preventDefault();
        show((current + step + this.points.length) % this.points.length);
      });
    }
  }

  for (const node of document.querySelectorAll("svg.swatch[data-colour]")) marker(node.dataset, node);
  for (const spec of specs) new Chart(document.querySelector(`[data-chart="${spec.name}"]`), spec);
})();
