// Draws the charts with Plotly, in the colours of the page.
"use strict";
{
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const MARKERS = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "star", "x"];
  // Plotly takes markup and templates in labels: a name is neither.
  const plain = (text) => String(text).replace(/[&<>{}]/g, (letter) => `&#${letter.charCodeAt()};`);
  const QUIET = new Set(["random", "uniform", "pooling", "norm", "downsampled"]); // controls

  const colourOf = (name, number) => {
    if (name === "vanilla") return colour("ink");
    if (name === "tokencarve" || name === "carved") return colour("one");
    if (QUIET.has(name)) return colour("six");
    return [colour("two"), colour("three"), colour("four"), colour("five")][number % 4];
  };

  const points = (chart, narrow) => chart.series.map((one, number) => ({
    type: "scatter",
    mode: one.x.length > 1 ? "lines+markers" : "markers",
    name: plain(one.name),
    x: one.x,
    y: one.y,
    error_y: one.low && {
      type: "data", symmetric: false, thickness: 1, width: 3,
      array: one.y.map((y, i) => one.high[i] - y), arrayminus: one.y.map((y, i) => y - one.low[i]),
    },
    line: { width: one.name === "tokencarve" ? 2.5 : 1.25, color: colourOf(one.name, number), dash: QUIET.has(one.name) ? "dot" : "solid" },
    marker: { size: chart.small ? 5 : narrow ? 8 : 9, color: colourOf(one.name, number), symbol: MARKERS[number % MARKERS.length] },
    hovertemplate: `<b>%{fullData.name}</b><br>%{y:.4~g}<br>${plain(chart.x)}: %{x:.4~g}<extra></extra>`,
  }));

  const bars = (chart) => chart.series.map((one, number) => ({
    type: "bar",
    orientation: "h",
    name: plain(one.name),
    y: chart.names.map(plain),
    x: one.values,
    marker: { color: chart.series.length > 1 ? [colour("one"), colour("two"), colour("six")][number % 3]
      : chart.names.map((name) => name === "tokencarve" ? colour("one") : colour("six")) },
    text: one.values.map((value) => value === null ? "" : Number(value.toPrecision(3)).toString()),
    textposition: "outside",
    cliponaxis: false,
    hovertemplate: `%{y}: %{x:.4~g} ${plain(chart.x)}<extra>${plain(one.name)}</extra>`,
  }));

  const draw = (id) => {
    const chart = charts[id], element = document.getElementById(id), narrow = element.clientWidth < 480;
    const many = chart.kind === "bars" ? chart.names.length * chart.series.length : chart.series.length;
    const axis = { color: colour("soft"), gridcolor: colour("line"), zerolinecolor: colour("line"), automargin: true, fixedrange: true };
    const side = chart.kind === "points" && many > 10 && !narrow; // the legend beside the chart
    const below = Math.ceil(many / 2) * 20; // and below it otherwise
    const height = chart.kind === "bars" ? 90 + many * (chart.series.length > 1 ? 14 : 26) + chart.names.length * 6 : side ? Math.max(420, 60 + many * 19) : 360 + (many > 4 ? below : 20);
    element.style.height = `${height}px`;
    const layout = {
      height,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
      margin: { l: 48, r: chart.kind === "bars" ? 48 : 16, t: 10, b: 44 },
      xaxis: { ...axis, title: { text: plain(chart.x), standoff: 8 }, ...(chart.kind === "bars" ? { rangemode: "tozero" } : {}) },
      yaxis: chart.kind === "bars" ? { ...axis, autorange: "reversed", ticksuffix: "  " } : { ...axis, title: { text: plain(chart.y), standoff: 6 } },
      showlegend: chart.series.length > 1,
      legend: side ? { orientation: "v", maxheight: height }
        : chart.kind === "bars" ? { orientation: "h", x: 0, xanchor: "left", y: 1, yanchor: "bottom", entrywidth: 70 }
        : { orientation: "h", x: 0, xanchor: "left", y: 0, yref: "container", yanchor: "bottom", maxheight: below + 40 },
      hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { color: colour("ink") }, namelength: -1 },
      bargap: 0.25,
    };
    Plotly.react(element, chart.kind === "bars" ? bars(chart) : points(chart, narrow), layout, { displayModeBar: false, responsive: true });
  };

  // One chart after the other as soon as the browser has time: the page opens at once however many there are, and
  // prints and full-page pictures have all of them.
  const waiting = Object.keys(charts), drawn = [];
  const next = () => {
    if (!waiting.length) return false;
    drawn.push(waiting.shift());
    draw(drawn.at(-1));
    return true;
  };
  const whenIdle = window.requestIdleCallback ?? setTimeout;
  const goOn = () => { if (next()) whenIdle(goOn); };
  whenIdle(goOn);
  document.addEventListener("themechange", () => drawn.forEach(draw));
  addEventListener("beforeprint", () => { while (next()); });
}
