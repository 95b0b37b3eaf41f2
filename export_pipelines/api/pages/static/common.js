// What all pages have: times in the reader's zone, buttons that copy, lists that are narrowed while one types.

const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** Make what is in a part of the page work. */
export function enliven(part) {
  for (const time of part.querySelectorAll("time[datetime]:not([data-local])")) {
    const moment = new Date(time.dateTime);
    if (Number.isNaN(moment.valueOf())) continue;
    time.title = time.textContent;
    time.textContent = format.format(moment);
    time.dataset.local = "";
  }
  for (const button of part.querySelectorAll("button[data-copy]")) button.hidden = false;
  for (const hidden of part.querySelectorAll("[data-scripted]")) hidden.hidden = false;
  for (const shown of part.querySelectorAll("[data-unscripted]")) shown.hidden = true;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch {
    // Without a clipboard (plain http from afar) the text is at least selected.
    getSelection().selectAllChildren(source);
    button.textContent = "Press Ctrl-C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2500);
});

document.addEventListener("input", (event) => {
  const search = event.target.closest("[data-narrow]");
  if (!search) return;
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let left = 0;
  for (const item of document.querySelectorAll(search.dataset.narrow)) {
    item.hidden = !words.every((word) => item.dataset.text.includes(word));
    left += item.hidden ? 0 : 1;
  }
  const none = search.dataset.none && document.querySelector(search.dataset.none);
  if (none) none.hidden = left > 0;
});

// Enter narrows already; it sends no form.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.closest("[data-narrow]")) event.preventDefault();
});

enliven(document);
document.querySelector("#problems, #warning, #new-token")?.focus();
