// The colours that somebody chose, before the first paint; without a choice those of the system.
"use strict";
(() => {
  const NAMES = { "": "System", light: "Light", dark: "Dark" };
  const root = document.documentElement;
  let chosen = "";
  try {
    chosen = localStorage.getItem("theme") || "";
  } catch {
    chosen = ""; // storage is switched off: the choice lasts as long as the page
  }
  const apply = () => {
    if (chosen) root.dataset.theme = chosen;
    else delete root.dataset.theme;
    const button = document.getElementById("theme");
    if (!button) return;
    button.querySelector("span").textContent = NAMES[chosen];
    button.setAttribute("aria-label", `Colours: ${NAMES[chosen]}. Change`);
    document.dispatchEvent(new Event("themechange"));
  };
  apply();
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme")?.addEventListener("click", () => {
      const order = Object.keys(NAMES);
      chosen = order[(order.indexOf(chosen) + 1) % order.length];
      try {
        localStorage.setItem("theme", chosen);
      } catch {
        chosen = String(chosen); // as above
      }
      apply();
    });
  });
})();
