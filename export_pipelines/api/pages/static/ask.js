// The form of a data set: its answer is fetched while one types, and its address holds the question.

import { enliven } from "./common.js";

const form = document.getElementById("ask");
const answer = document.getElementById("answer");
const PAUSE = 350;

let timer = 0;
let running = null;
let shown = question();

/** What the form says now, without what does not belong into an address. */
function question() {
  const found = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    if (!["csrf", "email", "anyway"].includes(name)) found.append(name, value);
  }
  return found.toString();
}

async function refresh() {
  const asked = question();
  if (asked === shown) return;
  running?.abort();
  const own = running = new AbortController();
  answer.setAttribute("aria-busy", "true");
  try {
    const response = await fetch(`${form.dataset.preview}?${asked}`, { signal: own.signal, headers: { Accept: "text/html" } });
    if (response.redirected) { location.reload(); return; }
    const found = new DOMParser().parseFromString(await response.text(), "text/html");
    if (response.ok) show(found);
    else tell(found.querySelector("h1")?.textContent ?? "The preview cannot be made now");
    shown = asked;
    history.replaceState(null, "", `${form.action}?${asked}`);
  } catch (error) {
    if (error.name === "AbortError") return;
    tell("The service does not answer");
  }
  if (running === own) answer.setAttribute("aria-busy", "false");
}

function show(found) {
  // What was wrong with the question before is told anew if it still is.
  document.getElementById("problems")?.remove();
  const open = document.querySelector("[data-keep]")?.open;
  put("count", found.getElementById("new-count").content);
  put("preview", found.getElementById("new-preview").content);
  const kept = document.querySelector("[data-keep]");
  if (kept && open) kept.open = true;
}

function put(id, content) {
  const place = document.getElementById(id);
  place.replaceChildren(content);
  enliven(place);
}

function tell(text) {
  const note = document.createElement("p");
  note.className = "wrong";
  note.textContent = text;
  document.getElementById("count").replaceChildren(note);
}

function later() {
  clearTimeout(timer);
  timer = setTimeout(refresh, PAUSE);
}

/** The input that suits an operator: none for “is empty”, a date picker, or plain text for several values. */
function suit(select) {
  const line = select.closest(".condition");
  const value = line.querySelector("[name^='v.']");
  const kind = select.selectedOptions[0].dataset.input;
  line.classList.toggle("alone", kind === "none");
  value.hidden = kind === "none";
  if (value.tagName === "INPUT" && kind !== "none" && value.type !== kind) {
    // A time that the picker cannot hold would be lost.
    const text = value.value;
    value.type = kind;
    if (text && !value.value) { value.type = "text"; value.value = text; }
  }
}

form.addEventListener("input", (event) => {
  if (event.target.name !== "email") later();
});

form.addEventListener("change", (event) => {
  if (event.target.matches("[data-operator]")) suit(event.target);
  if (event.target.name !== "email") later();
});

form.addEventListener("click", (event) => {
  const all = event.target.closest("[data-all]");
  if (all) {
    // Those that the search hides stay as they are.
    for (const box of form.querySelectorAll("#columns label:not([hidden]) input")) box.checked = all.dataset.all === "true";
    later();
  }
  const add = event.target.closest("[data-add]");
  if (add) {
    event.preventDefault();
    const lines = add.closest(".filter").querySelectorAll(".condition");
    const line = lines[lines.length - 1].cloneNode(true);
    const input = line.querySelector("[name^='v.']");
    input.value = "";
    input.removeAttribute("aria-invalid");
    lines[lines.length - 1].after(line);
    suit(line.querySelector("select"));
    line.querySelector("select").focus();
  }
});

// Enter in a filter looks; only the button asks.
form.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.target.tagName !== "INPUT" || event.target.matches("[data-narrow]")) return;
  event.preventDefault();
  clearTimeout(timer);
  refresh();
});

for (const select of form.querySelectorAll("[data-operator]")) suit(select);
