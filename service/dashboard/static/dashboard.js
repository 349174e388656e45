// What all pages share: the CSRF token of htmx's requests, dialogs, copying, errors in their place.
"use strict";
(() => {
  const csrf = document.body.dataset.csrf;

  document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

  document.addEventListener("htmx:configRequest", (event) => {
    if (csrf) event.detail.headers["X-CSRF-Token"] = csrf;
  });

  // A table that is asked for again and again must not take an open dialog, or a focus, away.
  document.addEventListener("htmx:beforeRequest", (event) => {
    const asking = event.detail.elt;
    if (!asking.hasAttribute("data-polls") || event.detail.requestConfig.verb !== "get") return;
    const isBusy = document.querySelector("dialog[open]") || asking.contains(document.activeElement);
    const most = Number(asking.dataset.polls); // somebody scrolled on: more rows than one page
    if (isBusy || document.hidden || (most && asking.children.length > most)) event.preventDefault();
  });

  // What the service answers to a form is shown in its place for it, else at the top of the page.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { xhr, requestConfig } = event.detail;
    if (xhr.status < 400) return;
    event.detail.swapOverride = "innerHTML"; // the place itself stays, for the next error
    const asking = requestConfig.elt.closest("dialog, [data-asks]");
    if (!asking) return;
    event.detail.target = asking.querySelector(".answer");
    event.detail.target.scrollIntoView({ block: "nearest" });
  });
  document.addEventListener("htmx:afterRequest", (event) => {
    const { elt, successful } = event.detail;
    if (!successful) return;
    document.getElementById("notice").replaceChildren();
    const dialog = elt.closest("dialog");
    if (elt.hasAttribute("data-stays")) {
      dialog.querySelector(".answer").replaceChildren();
      return;
    }
    if (dialog?.open) dialog.close();
    document.getElementById("counted")?.replaceChildren();
    if (dialog) elt.reset?.();
  });
  document.addEventListener("htmx:sendError", () => {
    const text = document.createElement("p");
    text.textContent = "The service does not answer. It is tried again.";
    const problem = document.createElement("div");
    problem.className = "problem";
    problem.append(text);
    document.getElementById("notice").replaceChildren(problem);
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.dialog) {
      const dialog = document.getElementById(button.dataset.dialog);
      dialog.querySelector(".answer")?.replaceChildren();
      dialog.showModal();
    } else if (button.hasAttribute("data-close")) {
      button.closest("dialog").close();
    } else if (button.classList.contains("copy")) {
      copy(button);
    }
  });

  async function copy(button) {
    const field = document.getElementById(button.dataset.copyFrom);
    const before = button.textContent;
    let isDone = true;
    try {
      await navigator.clipboard.writeText(field ? field.value : button.dataset.copy);
    } catch {
      field?.select(); // no clipboard without TLS, or it was refused: the old way
      isDone = Boolean(field) && document.execCommand("copy");
    }
    button.textContent = isDone ? "Copied" : "Press Ctrl+C";
    setTimeout(() => {
      button.textContent = before;
    }, 2000);
  }
})();
