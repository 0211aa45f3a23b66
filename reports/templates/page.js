"use strict";
// Draws the figures, keeps their colours in step with the page's, and copies text. Loads nothing.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const touch = matchMedia("(pointer: coarse)").matches;
  const paperWidth = 660;
  const config = {
    displaylogo: false,
    responsive: true,
    displayModeBar: false,
  };

  // "--name" stands for the value of that CSS variable.
  function coloured(part, style) {
    if (Array.isArray(part)) return part.map((item) => coloured(item, style));
    if (part !== null && typeof part === "object") {
      return Object.fromEntries(Object.entries(part).map(([key, value]) => [
        key,
        /color$/.test(key) && value !== null ? resolved(value, style) : coloured(value, style),
      ]));
    }
    return part;
  }
  function resolved(value, style) {
    if (Array.isArray(value)) return value.map((item) => resolved(item, style));
    return typeof value === "string" && value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
  }

  function draw(width) {
    const style = getComputedStyle(root);
    for (const place of document.querySelectorAll("[data-figure]")) {
      const { data, layout } = coloured(figures[place.dataset.figure], style);
      const size = width ? { width, autosize: false } : { autosize: true };
      Plotly.react(place, data, { ...layout, ...size, dragmode: touch ? false : "zoom" }, config);
    }
  }
  draw();
  root.dataset.drawn = "yes";

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  addEventListener("beforeprint", () => {
    root.dataset.paper = "yes";
    document.querySelectorAll("details").forEach((part) => { part.dataset.was = part.open; part.open = true; });
    draw(paperWidth);
  });
  addEventListener("afterprint", () => {
    delete root.dataset.paper;
    document.querySelectorAll("details").forEach((part) => { part.open = part.dataset.was === "true"; });
    draw();
  });

  for (const button of document.querySelectorAll("[data-copies]")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copies);
      const before = button.textContent;
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = before; }, 1600);
    });
  }
})();
