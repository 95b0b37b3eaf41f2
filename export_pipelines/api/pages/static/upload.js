// Sends a file in pieces, with progress; goes on after a cut, and after the page was loaded again.

const PAUSE = 2000;
const TRIES = 30;

// A browser opens what is dropped beside the zone, and the page with what was filled in is gone.
for (const name of ["dragover", "drop"]) {
  addEventListener(name, (event) => {
    if (event.defaultPrevented || !event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "none";
  });
}

for (const form of document.querySelectorAll("form.upload")) {
  const input = form.querySelector("input[type=file]");
  const drop = form.querySelector(".drop");
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    const { files } = event.dataTransfer;
    const why = refusal(files, input.accept);
    if (!why) input.files = files;
    complain(form, why);
  });
  input.addEventListener("change", () => complain(form, ""));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form, input.files[0]);
  });
}

/** Why what was dropped is not taken; empty if it is. A browser asks `accept` only where a file is chosen. */
function refusal(files, accept) {
  if (files.length === 0) return "What was dropped is no file.";
  if (files.length > 1) return `These are ${files.length} files, and one is sent at a time: drop one of them.`;
  const [{ name, type }] = files;
  const taken = accept.split(",").some((each) => each === type || name.toLowerCase().endsWith(each));
  return taken ? "" : `${name} is no CSV file: drop one, plain or packed by gzip, zstd or ZIP.`;
}

function complain(form, text) {
  const wrong = form.querySelector("[data-wrong]");
  wrong.textContent = text;
  wrong.hidden = !text;
}

async function send(form, file) {
  const button = form.querySelector("button[type=submit]");
  const progress = form.querySelector("[data-progress]");
  button.disabled = true;
  progress.hidden = false;
  complain(form, "");
  try {
    if (file.size > told(form, "most")) throw new Error(`The file is larger than ${told(form, "most")} bytes.`);
    location.assign(await sent(form, file, (received) => show(progress, received, file.size)));
  } catch (error) {
    complain(form, error.message);
    button.disabled = false;
  }
}

function show(progress, received, size) {
  progress.querySelector("progress").value = received / size;
  progress.querySelector("[data-said]").textContent = `${Math.floor((100 * received) / size)} %`;
}

/** A number of the form's. It has a field named `dataset`, which hides the property. */
function told(form, name) {
  return Number(form.getAttribute(`data-${name}`));
}

async function sent(form, file, progressed) {
  const csrf = form.elements.csrf.value;
  const fields = new URLSearchParams({
    csrf, area: form.elements.area.value, organisation: form.elements.organisation.value,
    dataset: form.elements.dataset.value, file_name: file.name, size: file.size, fingerprint: file.lastModified,
  });
  const begun = await called("/uploads/begin", { method: "POST", body: fields });
  const chunk = told(form, "chunk");
  let { received } = begun;
  progressed(received);
  while (received < file.size) {
    // Read here: a file that was changed meanwhile is told as an error, and never sent as something else.
    const body = await file.slice(received, received + chunk).arrayBuffer();
    const options = { method: "PUT", body, headers: { "x-csrf": csrf } };
    ({ received } = await called(`/uploads/${begun.id}/content?offset=${received}`, options));
    progressed(received);
  }
  return begun.url;
}

/** An answer; what is cut or busy is tried again. */
async function called(url, options) {
  for (let number = 1; ; number += 1) {
    let answer;
    try {
      answer = await fetch(url, { ...options, headers: { accept: "application/json", ...options.headers } });
    } catch (error) {
      if (number >= TRIES) throw new Error("The service cannot be reached. Send the file again: it goes on where it was.");
    }
    if (answer) {
      const data = await answer.json().catch(() => ({}));
      if (answer.ok || (answer.status === 409 && "received" in data)) return data;
      if (![408, 429, 502, 503, 504].includes(answer.status) || number >= TRIES) {
        throw new Error([data.detail || `The service answered ${answer.status}.`, data.hint].filter(Boolean).join(" "));
      }
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
  }
}
