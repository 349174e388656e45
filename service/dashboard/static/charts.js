// The overview's charts: the last hour every five seconds, or counts of a longer range once.
// A cursor over one chart shows the values of its moment in all of them.
"use strict";
(() => {
  const EVERY_MS = 5000;
  const HOUR_S = 3600;
  const HEIGHT = 116;
  const MAX = 720;

  const charts = document.getElementById("charts");
  const range = charts.dataset.range;
  const isHour = range === "hour";
  const sync = uPlot.sync("overview");
  let times = [];
  let figures = {};
  let process = charts.dataset.process;
  let plots = [];

  const SPELL = {
    seconds: (v) =>
      v === 0 ? "0" : v < 0.001 ? `${(v * 1e6).toFixed(0)} µs` : v < 0.01 ? `${(v * 1e3).toFixed(1)} ms` : v < 1 ? `${(v * 1e3).toFixed(0)} ms`
        : v < 100 ? `${v.toFixed(1)} s` : v < 7200 ? `${(v / 60).toFixed(0)} min` : v < 172800 ? `${(v / 3600).toFixed(0)} h` : `${(v / 86400).toFixed(0)} d`,
    rate: (v) => (v === 0 ? "0" : `${short(v)}/s`),
    number: (v) => short(v),
    bytes: (v) => {
      if (v === 0) return "0";
      for (const unit of ["bytes", "kB", "MB", "GB", "TB"]) {
        if (v < 1000 || unit === "TB") return `${v < 10 && unit !== "bytes" ? v.toFixed(1) : v.toFixed(0)} ${unit}`;
        v /= 1000;
      }
    },
  };

  function short(v) {
    if (v >= 1e6) return `${(v / 1e6).toFixed(1)}M`;
    if (v >= 1e4) return `${(v / 1e3).toFixed(1)}k`;
    if (v >= 100 || Number.isInteger(v)) return Math.round(v).toLocaleString("en");
    return v.toFixed(v < 1 ? 2 : 1);
  }

  const spell = (kind, v) => (v === null || v === undefined ? "–" : SPELL[kind](v));
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function options(section, kind, width) {
    const count = section.dataset.figures.split(" ").length;
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    return {
      width,
      height: isHour ? HEIGHT : 280,
      padding: [8, 6, 0, 0],
      legend: { show: false },
      tzDate: (s) => uPlot.tzDate(new Date(s * 1e3), "Etc/UTC"),
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 }, sync: { key: sync.key } },
      scales: {
        x: isHour ? { range: () => { const end = times.at(-1) ?? Date.now() / 1000; return [Math.max(end - HOUR_S, Math.min(times[0] ?? end, end - 300)), end]; } } : {},
        y: { range: (_, low, high) => [0, high > 0 ? high * 1.15 : 1] },
      },
      axes: [
        { ...axis, size: 22, space: isHour ? 56 : 70, values: [[86400, "{DD} {MMM}", null, null, null, null, null, null, 1], [60, "{HH}:{mm}", null, null, null, null, null, null, 1], [1, "{HH}:{mm}", null, null, null, null, null, null, 1]] },
        { ...axis, size: 54, space: 32, gap: 4, values: (_, ticks) => ticks.map((v) => SPELL[kind](v)) },
      ],
      series: [
        {},
        ...Array.from({ length: count }, (_, n) => ({
          stroke: colour(`--s${n}`),
          fill: count === 1 ? colour("--fill") : undefined,
          width: isHour ? 1.6 : 0,
          points: { show: false },
          spanGaps: false,
          ...(isHour ? {} : { paths: uPlot.paths.bars({ size: [0.85, 40] }), fill: colour("--s0") }),
        })),
      ],
      hooks: { setCursor: [(plot) => show(plot.cursor.idx)] },
    };
  }

  function dataOf(section) {
    return [times, ...section.dataset.figures.split(" ").map((name) => figures[name] ?? [])];
  }

  // Show the values of a moment; of the newest one where there is no cursor.
  function show(index) {
    const at = index ?? times.length - 1;
    for (const { section } of plots) {
      const { kind } = section.dataset;
      section.dataset.figures.split(" ").forEach((name, n) => {
        const text = spell(kind, figures[name]?.[at]);
        const field = section.querySelector(`[data-series="${n}"]`);
        if (field.textContent !== text) field.textContent = text;
      });
    }
    charts.classList.toggle("past", index !== null && index !== undefined);
  }

  function describe(section) {
    const { kind } = section.dataset;
    const labels = section.dataset.labels.split("|");
    const parts = section.dataset.figures.split(" ").map((name, n) => {
      const values = (figures[name] ?? []).filter((v) => v !== null);
      if (!values.length) return `${labels[n]}: nothing`;
      const most = SPELL[kind](values.reduce((a, b) => Math.max(a, b), 0));
      return `${labels[n]}: now ${spell(kind, figures[name].at(-1))}, at most ${most}`;
    });
    section.querySelector(".plot").setAttribute("aria-label", `${section.querySelector("h2").textContent}. ${parts.join("; ")}`);
  }

  function build() {
    for (const { plot } of plots) plot.destroy();
    plots = [...charts.querySelectorAll(".chart")].map((section) => {
      const place = section.querySelector(".plot");
      const plot = new uPlot(options(section, section.dataset.kind, place.clientWidth), dataOf(section), place);
      return { section, plot, place };
    });
    show(null);
  }

  function update() {
    for (const { section, plot } of plots) {
      plot.setData(dataOf(section));
      describe(section);
    }
    if (!charts.classList.contains("past")) show(null);
  }

  function take(answer) {
    if (answer.process !== process) {
      process = answer.process; // another replica answers, or a new one: its figures are others
      times = [];
      figures = {};
      return false;
    }
    times = times.concat(answer.times).slice(-MAX);
    for (const [name, values] of Object.entries(answer.figures)) {
      figures[name] = (figures[name] ?? []).concat(values).slice(-MAX);
    }
    return true;
  }

  async function load() {
    if (document.hidden) return;
    const after = times.at(-1) ?? 0;
    const answer = await fetch(`/dashboard/stats?range=${range}&after=${after}`, { headers: { "HX-Request": "true" } });
    if (answer.status === 401) {
      location.assign("/dashboard/login");
      return;
    }
    if (!answer.ok) return; // the list of what is wrong says why
    if (!take(await answer.json())) {
      await load();
      return;
    }
    update();
  }

  function again() {
    load()
      .catch(() => undefined) // the service is away: the next turn tries again
      .finally(() => isHour && setTimeout(again, EVERY_MS));
  }

  build();
  again();
  document.addEventListener("themechange", () => { build(); update(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { build(); update(); });
  new ResizeObserver(() => {
    for (const { plot, place } of plots) plot.setSize({ width: place.clientWidth, height: plot.height });
  }).observe(charts);
})();
