// The live feed: follows /dashboard/stream and puts what comes on top of the table.
//
// fetch and not EventSource: an EventSource hears only the types that it was told of, and Bridge
// may send new ones; and it hides what an error says. All text goes into the page as text.
// Bounds: at most MAX rows are shown and MAX events wait; what is older is read from the log again
// when somebody scrolls there. Rows are drawn at most ten times a second, and so seldom that drawing
// takes a fifth of the time: whoever clicks waits for one drawing at the most.
"use strict";
(() => {
  const MAX = 200;
  const DRAW_MS = 100;
  const RETRY_MS = [500, 5000];
  const SCROLLED_PX = 240;
  const SHARE = 5; // of the time may go into drawing: one part in so many
  const FEW = 5; // so many rows at once are marked as new; more would only flicker

  const feed = document.getElementById("feed");
  const rows = document.getElementById("rows");
  const template = document.getElementById("row");
  const fresh = document.getElementById("fresh");
  const pause = document.getElementById("pause");
  const stateText = document.getElementById("state-text");
  const speed = document.getElementById("speed");

  let lastId = feed.dataset.after;
  let waiting = []; // the newest events that are not drawn yet, oldest first
  let missed = 0; // how many have come that are not drawn, those that were let go among them
  let isPaused = false;
  let timer = null;
  let failures = 0;
  let counted = 0;
  let pauseMs = DRAW_MS;

  function say(state, text) {
    if (feed.dataset.state === state && stateText.textContent === text) return;
    feed.dataset.state = state;
    stateText.textContent = text;
  }

  // The stream

  async function follow() {
    for (;;) {
      try {
        const query = `after=${encodeURIComponent(lastId)}&control=1&format=cloudevents`;
        const answer = await fetch(`/dashboard/stream?${query}${feed.dataset.query}`, {
          headers: { "HX-Request": "true" },
        });
        if (!answer.ok) {
          if (await refused(answer)) return;
        } else {
          failures = 0;
          await read(answer.body.getReader());
        }
      } catch {
        failures += 1; // the service or the network is away: below it is tried again
      }
      say("off", "reconnecting");
      const wait = Math.min(RETRY_MS[1], RETRY_MS[0] * 2 ** Math.min(failures, 5));
      await new Promise((done) => setTimeout(done, wait * (0.5 + Math.random() / 2)));
    }
  }

  // True if it makes no sense to try again. The answer is the service's own words, as HTML.
  async function refused(answer) {
    if (answer.status === 401) {
      location.assign("/dashboard/login?next=" + encodeURIComponent(location.pathname + location.search));
      return true;
    }
    if (answer.status >= 500 || answer.status === 429) {
      failures += 1;
      return false;
    }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.getElementById("notice").replaceChildren(...page.querySelectorAll(".problem"));
    say("off", "stopped");
    return true;
  }

  // HTML standard, 9.2.6. Our server ends lines with LF.
  async function read(reader) {
    const decoder = new TextDecoder();
    let text = "";
    let block = {};
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (text + decoder.decode(value, { stream: true })).split("\n");
      text = lines.pop();
      for (const line of lines) {
        if (line === "") {
          dispatch(block);
          block = {};
        } else if (line.startsWith("id: ")) block.id = line.slice(4);
        else if (line.startsWith("event: ")) block.event = line.slice(7);
        else if (line.startsWith("data: ")) {
          block.data = block.data === undefined ? line.slice(6) : `${block.data}\n${line.slice(6)}`;
        }
      }
    }
  }

  function dispatch({ id, event, data }) {
    if (id) lastId = id;
    if (data === undefined) {
      live();
    } else if (id) {
      counted += 1;
      missed += 1;
      waiting.push(data);
      if (waiting.length > 2 * MAX) waiting = waiting.slice(-MAX);
      soon();
    } else if (event === "stream.caught_up") live();
    else if (event === "stream.fell_behind") say("off", "catching up");
  }

  function live() {
    say(isPaused ? "paused" : "on", isPaused ? "paused" : "live");
  }

  // Drawing

  function soon() {
    if (timer === null) timer = setTimeout(draw, pauseMs);
  }

  function draw() {
    timer = null;
    if (missed === 0) return;
    if (isPaused || window.scrollY > SCROLLED_PX) {
      fresh.hidden = false;
      fresh.textContent = `${missed.toLocaleString("en")} new: show`;
      return;
    }
    const began = performance.now();
    const shown = waiting.slice(-MAX).reverse();
    if (missed > shown.length) rows.replaceChildren(); // some were let go: no hole in the table
    const made = shown.map((text) => row(parse(text)));
    if (made.length <= FEW) for (const one of made) one.classList.add("new");
    rows.prepend(...made);
    waiting = [];
    missed = 0;
    fresh.hidden = true;
    document.getElementById("empty")?.remove();
    trim();
    // After the next frame: laying the rows out is most of the work.
    requestAnimationFrame(() => setTimeout(() => {
      pauseMs = Math.max(DRAW_MS, (performance.now() - began) * (SHARE - 1));
    }));
  }

  // Cut the table to its bound; what was cut is asked for again when somebody scrolls there.
  function trim() {
    const all = rows.querySelectorAll("tr[data-position]");
    const kept = all[Math.min(all.length, MAX) - 1];
    if (all.length <= MAX && rows.querySelector(".more, .end")) return;
    while (kept.nextSibling) kept.nextSibling.remove();
    const more = document.createElement("tr");
    const cell = document.createElement("td");
    more.className = "more";
    cell.colSpan = 7;
    cell.textContent = "…";
    more.append(cell);
    more.setAttribute("hx-get", `/dashboard/events/rows?before=${kept.dataset.position}${feed.dataset.query}`);
    more.setAttribute("hx-trigger", "revealed");
    more.setAttribute("hx-swap", "outerHTML");
    rows.append(more);
    window.htmx.process(more);
  }

  // JSON numbers beyond 2^53 would change their digits: they are read as strings.
  const LARGE = /("(?:[^"\\]|\\.)*")|(-?\d{16,})(?![\d.eE])/g;

  function parse(text) {
    return JSON.parse(text.replace(LARGE, (_, string, number) => string ?? `"${number}"`));
  }

  function row(event) {
    const made = template.content.firstElementChild.cloneNode(true);
    const content = typeof event.data.content === "object" && event.data.content ? event.data.content : {};
    const [position, when, type, item, account, user, source] = made.children;
    made.dataset.position = event.position;
    link(position, `/dashboard/events/${encodeURIComponent(event.position)}`, event.position);
    const time = when.firstElementChild;
    time.dateTime = event.receivedtime;
    time.textContent = event.receivedtime.replace("T", " ").slice(0, 23);
    type.textContent = event.type;
    const itemId = integer(content.item_id);
    if (itemId) link(item, `/dashboard/items?q=${itemId}`, itemId);
    account.textContent = integer(content.account_id);
    const uuid = String(content.user_uuid ?? "").toLowerCase();
    if (/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(uuid)) {
      link(user, `/dashboard/items?q=${uuid}`, uuid.slice(0, 8)).title = uuid;
    }
    source.textContent = event.source.replace("/bridge/", "");
    return made;
  }

  function integer(value) {
    const isOne = Number.isInteger(value) || (typeof value === "string" && /^-?\d{16,19}$/.test(value));
    return isOne ? String(value) : "";
  }

  function link(cell, href, text) {
    const anchor = cell.querySelector("a") ?? document.createElement("a");
    anchor.href = href;
    anchor.textContent = text;
    if (!anchor.parentNode) cell.append(anchor);
    return anchor;
  }

  // What people do

  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    pause.setAttribute("aria-pressed", String(isPaused));
    pause.textContent = isPaused ? "Resume" : "Pause";
    if (feed.dataset.state !== "off") live();
    draw();
  });
  fresh.addEventListener("click", () => {
    if (isPaused) pause.click();
    window.scrollTo({ top: 0 });
    draw();
  });
  window.addEventListener("scroll", () => missed && soon(), { passive: true });
  setInterval(() => {
    speed.textContent = counted ? `${counted.toLocaleString("en")}/s` : "";
    counted = 0;
  }, 1000);
  follow();
})();
