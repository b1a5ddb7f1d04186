// Before anything is drawn, so that nothing flashes: the theme that was chosen here, if one was.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("polyhost-theme");
  } catch {
    // Storage may be forbidden: then the system's choice stands.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
