// A request that is under way: its panel is fetched anew when the service tells of a change, or every two seconds.

import { enliven } from "./common.js";

const panel = document.getElementById("panel");
const POLL = 2000;
const LEAST = 400;

let events = null;
let timer = 0;
let busy = false;
let again = false;
let last = 0;

async function refresh() {
  if (busy) { again = true; return; }
  busy = true;
  try {
    const response = await fetch(panel.dataset.panel, { headers: { Accept: "text/html" } });
    if (response.redirected) { location.reload(); return; }
    if (response.ok) show(await response.text());
  } catch {
    // The next try may find the service again.
  }
  busy = false;
  last = performance.now();
  if (again) { again = false; soon(); }
}

function show(text) {
  const found = new DOMParser().parseFromString(text, "text/html").body;
  const state = found.querySelector("[data-state]");
  if (!state) return;
  const focused = panel.contains(document.activeElement) ? document.activeElement.id : "";
  panel.replaceChildren(...found.childNodes);
  enliven(panel);
  if (focused) (document.getElementById(focused) ?? document.getElementById("main")).focus();
  document.title = `${state.querySelector(".chip").textContent.trim()}: ${document.title.replace(/^[^:]*: /, "")}`;
  panel.dataset.live = state.dataset.live;
  if (state.dataset.live === "false") stop();
}

/** Now, but not more often than is good for anybody. */
function soon() {
  clearTimeout(timer);
  timer = setTimeout(refresh, Math.max(0, LEAST - (performance.now() - last)));
}

function poll() {
  clearInterval(panel.poll);
  panel.poll = setInterval(refresh, POLL);
}

function follow() {
  poll();
  if (!("EventSource" in window)) return;
  events = new EventSource(panel.dataset.events);
  events.onopen = () => clearInterval(panel.poll);
  for (const name of ["message", "progress", "state", "end"]) events.addEventListener(name, soon);
  // It tries again by itself; meanwhile we ask.
  events.onerror = () => { poll(); soon(); };
}

function stop() {
  events?.close();
  clearInterval(panel.poll);
  clearTimeout(timer);
}

if (panel.dataset.live === "true") follow();
