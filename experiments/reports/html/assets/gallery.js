// The gallery: one scene at a time, by method and number of visual tokens.
"use strict";
{
  const data = JSON.parse(document.getElementById("scenes").textContent);
  const $ = (id) => document.getElementById(id);

  const element = (name, text, attributes = {}) => {
    const made = Object.assign(document.createElement(name), attributes);
    made.append(text);
    return made;
  };

  const start = () => {
    const names = data.methods.map((method) => method.name);
    const about = Object.fromEntries(data.methods.map((method) => [method.name, method]));
    const state = { scene: 0, method: names.find((name) => name !== data.baseline) ?? names[0], tokens: null };

    const scene = () => data.scenes[state.scene];
    // Everything is a budget too: the picture before the cut.
    const budgets = () => [...new Set([...Object.keys(scene().maps[state.method] ?? {}).map(Number), data.every])].sort((a, b) => a - b);
    const answered = () => Object.keys(scene().predictions[state.method] ?? {}).map(Number);
    const everything = () => ({ kept: Array.from({ length: scene().grid ** 2 }, (_, i) => i), merged: [] });
    const place = (patch) => `row ${Math.floor(patch / scene().grid) + 1}, column ${(patch % scene().grid) + 1}`;
    const nearest = (wanted, found) => found.reduce((best, one) => Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best, found[0]);

    let patches = [];

    const list = (found) => found.length > 8 ? `${found.slice(0, 8).map(place).join("; ")}; and ${found.length - 8} more` : found.map(place).join("; ");

    const why = (patch, ranks, passes) => {
      const one = patches[patch], method = about[state.method], of = scene().grid ** 2;
      if (one.fate === "kept") {
        return one.guests.length
          ? `Kept. Stands for itself and ${one.guests.length} merged ${one.guests.length === 1 ? "patch" : "patches"}: ${list(one.guests)}.`
          : "Kept as it is; nothing merged into it.";
      }
      if (one.fate === "merged") {
        const host = one.host < 0 ? "the class token" : place(one.host);
        const first = ranks && passes < of ? `Passed stage I (fused rank ${ranks.fused[patch]}, the best ${passes} pass), and in stage II merged` : "Merged";
        return `${first} into the most similar patch, ${host}.`;
      }
      if (ranks) return `Dropped in stage I: its fused rank is ${ranks.fused[patch]}, and only the best ${passes} pass.`;
      const where = method.place ? ` at ${method.place}` : "";
      return `Dropped: not among the ${state.tokens} tokens that ${state.method} leaves${where}, going by ${method.how}.`;
    };

    const inspect = (patch) => {
      const own = state.tokens === data.every ? null : scene().ranks[state.method];
      const ranks = own ?? scene().ranks.tokencarve, of = scene().grid ** 2;
      const passes = patches.filter((one) => one.fate !== "dropped").length;
      $("patch").textContent = `Patch in ${place(patch)}`;
      const parts = [element("p", why(patch, own, passes))];
      if (ranks) {
        const rows = element("dl", "");
        for (const [name, label] of [["attention", "Attention rank"], ["information", "Information rank"], ["fused", "Fused rank"]]) {
          rows.append(element("dt", label), element("dd", `${ranks[name][patch]} of ${of}`, { id: `rank-${name}` }));
        }
        if (!own) parts.push(element("p", "TokenCarve would rank it:", { className: "note" }));
        parts.push(rows);
      }
      $("fate").replaceChildren(...parts);
    };

    const board = new Board($("board"), inspect);

    const answers = () => {
      const { predictions, answer } = scene(), unasked = [], body = $("answers").tBodies[0];
      body.replaceChildren();
      for (const name of names) {
        const tokens = name === data.baseline ? data.every : state.tokens === data.every ? null : state.tokens;
        const text = tokens === null ? undefined : predictions[name]?.[tokens];
        if (text === undefined) {
          unasked.push(name);
          continue;
        }
        const row = element("tr", "", { className: name === state.method ? "strong" : "", role: "row" });
        const right = answer === null ? null : text === answer;
        const mark = right === null ? "" : right ? " ✓" : " ✗";
        const cell = element("td", `${text || "(nothing)"}${mark}`, { className: right === null ? "" : right ? "right" : "wrong", role: "cell" });
        if (right !== null) cell.append(element("span", right ? " right" : " wrong", { className: "unseen" }));
        row.append(element("th", name, { scope: "row", role: "rowheader" }), element("td", String(tokens), { role: "cell" }), cell);
        body.append(row);
      }
      const others = unasked.filter((name) => name !== data.baseline);
      $("unasked").textContent = others.length && state.tokens !== data.every ? `Not asked at ${state.tokens} tokens: ${others.join(", ")}.` : "";
    };

    const show = () => {
      const stops = budgets(), current = scene();
      if (state.tokens === null) state.tokens = Math.max(stops[0], ...answered().filter((tokens) => tokens !== data.every));
      state.tokens = nearest(state.tokens, stops);
      const slider = $("budget");
      slider.max = stops.length - 1;
      slider.value = stops.indexOf(state.tokens);
      const text = `${state.tokens} of ${data.every}`;
      slider.setAttribute("aria-valuetext", `${text} visual tokens`);
      $("budget-value").textContent = text;
      $("method").value = state.method;
      $("stops").replaceChildren(...stops.map((_, i) => Object.assign(document.createElement("option"), { value: i })));
      $("family").textContent = current.family;
      $("question").textContent = current.question;
      $("answer").textContent = current.answer ?? "not known";
      $("image").alt = `The image that is asked about: ${current.question}`;
      $("image").src = current.image ?? "data:,";
      patches = readMap(state.tokens === data.every ? everything() : current.maps[state.method][state.tokens], current.grid ** 2);
      const count = (fate) => patches.filter((one) => one.fate === fate).length;
      const words = `${count("kept")} patches kept, ${count("merged")} merged into them, ${count("dropped")} dropped`;
      $("counts").textContent = `${state.tokens === data.every ? "Nothing is cut" : state.method}: ${words}`;
      board.show({ grid: current.grid, image: current.image, patches, label: `Carve map. ${words}. Arrow keys move through the patches.` });
      answers();
      [...$("strip").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === state.scene)));
    };

    $("method").append(...names.filter((name) => name !== data.baseline).map((name) => element("option", name, { value: name })));
    $("method").addEventListener("change", (event) => { state.method = event.target.value; show(); });
    $("budget").addEventListener("input", (event) => { state.tokens = budgets()[event.target.value]; show(); });
    const lazily = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      lazily.unobserve(entry.target);
      entry.target.src = data.scenes[entry.target.dataset.scene].image ?? "data:,";
    }), { root: $("strip"), rootMargin: "400px" });
    data.scenes.forEach((one, i) => {
      const image = Object.assign(document.createElement("img"), { alt: `${one.family} ${i + 1}: ${one.question}` });
      image.dataset.scene = i;
      const button = element("button", image, { type: "button", title: one.question });
      button.addEventListener("click", () => { state.scene = i; state.tokens ??= null; show(); });
      $("strip").append(button);
      lazily.observe(image);
    });
    show();
  };

  if (data) start();
}
