// The carve map: a grid of patches over an image, for pointer, finger, keyboard and screen reader.
"use strict";

// What a map of results.json says of every patch: {fate, host} with fate "kept", "merged" or "dropped".
const readMap = (map, count) => {
  const patches = Array.from({ length: count }, () => ({ fate: "dropped", host: null, guests: [] }));
  map.kept.forEach((patch) => Object.assign(patches[patch], { fate: "kept", host: patch }));
  map.merged.forEach(([patch, host]) => {
    Object.assign(patches[patch], { fate: "merged", host });
    if (host >= 0) patches[host].guests.push(patch);
  });
  return patches;
};

class Board {
  // `inspect(patch)` is told which patch is pointed at or has the focus.
  constructor(element, inspect) {
    this.element = element;
    this.inspect = inspect;
    this.grid = 0;
    this.at = 0;
    this.cells = [];
    element.addEventListener("pointerover", (event) => this.#to(event.target));
    element.addEventListener("focusin", (event) => this.#to(event.target));
    element.addEventListener("click", (event) => {
      if (event.target.dataset.patch) event.target.focus();
    });
    element.addEventListener("keydown", (event) => this.#key(event));
  }

  #build(grid) {
    this.grid = grid;
    this.element.style.setProperty("--grid", grid);
    this.element.setAttribute("role", "grid");
    this.element.replaceChildren();
    this.cells = [];
    for (let y = 0; y < grid; y++) {
      const row = document.createElement("div");
      row.setAttribute("role", "row");
      for (let x = 0; x < grid; x++) {
        const cell = document.createElement("div");
        cell.setAttribute("role", "gridcell");
        cell.dataset.patch = String(this.cells.length);
        cell.tabIndex = -1;
        this.cells.push(cell);
        row.append(cell);
      }
      this.element.append(row);
    }
    this.lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.lines.setAttribute("viewBox", `0 0 ${grid} ${grid}`);
    this.lines.setAttribute("aria-hidden", "true");
    this.element.append(this.lines);
  }

  show({ grid, image, patches, label }) {
    if (grid !== this.grid) this.#build(grid);
    this.patches = patches;
    this.element.style.backgroundImage = image ? `url(${image})` : "none";
    this.element.setAttribute("aria-label", label);
    let number = 0;
    const tints = new Map(patches.flatMap((patch, i) => patch.guests.length ? [[i, number++]] : []));
    patches.forEach((patch, i) => {
      const cell = this.cells[i];
      cell.className = patch.guests.length ? "host" : patch.fate;
      // Neighbours in the list are far apart in hue.
      if (tints.has(patch.host)) cell.style.setProperty("--tint", `hsl(${(20 + 222.5 * tints.get(patch.host)) % 360} 90% ${number % 2 ? 50 : 55}%)`);
      cell.setAttribute("aria-label", `row ${Math.floor(i / grid) + 1}, column ${(i % grid) + 1}: ${patch.fate}`);
    });
    this.select(this.at < patches.length ? this.at : 0);
  }

  select(patch) {
    this.cells[this.at].tabIndex = -1;
    this.at = patch;
    this.cells[patch].tabIndex = 0;
    const { host } = this.patches[patch];
    const group = host === null || host < 0 ? [patch] : [host, ...this.patches[host].guests];
    this.cells.forEach((cell, i) => cell.classList.toggle("lit", group.includes(i)));
    this.lines.replaceChildren();
    for (const guest of group.slice(1)) for (const kind of ["under", "over"]) {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
      line.setAttribute("class", kind);
      [["x1", guest % this.grid], ["y1", Math.floor(guest / this.grid)], ["x2", host % this.grid], ["y2", Math.floor(host / this.grid)]]
        .forEach(([name, value]) => line.setAttribute(name, value + 0.5));
      this.lines.append(line);
    }
    this.inspect(patch);
  }

  #to(target) {
    if (target.dataset.patch && this.patches) this.select(Number(target.dataset.patch));
  }

  #key(event) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -this.grid], End: [0, this.grid] };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const inside = (value) => Math.min(this.grid - 1, Math.max(0, value));
    const [down, right] = steps[event.key];
    const row = inside(Math.floor(this.at / this.grid) + down), column = inside((this.at % this.grid) + right);
    this.cells[row * this.grid + column].focus();
  }
}
