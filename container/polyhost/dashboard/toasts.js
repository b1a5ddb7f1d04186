// What an action came to, for a few seconds.

const SECS = 4;
const ERROR_SECS = 12;

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.getElementById("toasts").replaceChildren();
});

export function toast(text, { note = "", isError = false } = {}) {
  const element = document.createElement("div");
  element.className = "toast";
  element.dataset.is = isError ? "error" : "done";
  const words = document.createElement("bdi");
  words.textContent = text;
  const more = document.createElement("span");
  more.className = "muted";
  more.textContent = note;
  element.append(words, more);
  element.addEventListener("click", () => element.remove());
  document.getElementById("toasts").append(element);
  setTimeout(() => element.remove(), 1000 * (isError ? ERROR_SECS : SECS));
}
