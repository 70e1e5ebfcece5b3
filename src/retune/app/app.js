"use strict";
// What gradio puts on the page later: comparisons get their slider, and links their names.
new MutationObserver(() => {
  for (const figure of document.querySelectorAll("figure.compare:not([data-ready])")) {
    figure.dataset.ready = "yes";
    prepareComparison(figure);
  }
}).observe(document.documentElement, { childList: true, subtree: true });
// On a phone, what happens is told below all controls: it comes into view when it begins.
let told = null;
new MutationObserver(() => {
  const now = document.querySelector("#progress .moving, #progress .remark");
  if (now && !told && innerWidth < 700) {
    const box = now.getBoundingClientRect();
    if (box.top < 0 || box.top > innerHeight / 2) now.scrollIntoView({ block: "start" });
  }
  told = now;
}).observe(document.documentElement, { childList: true, subtree: true });
// A file that is dropped beside its place must not replace the page.
for (const name of ["dragover", "drop"]) {
  window.addEventListener(name, (event) => { event.preventDefault(); });
}
async function sendFile(file, say) {
  say("Sending " + file.name + " …");
  try {
    const answer = await fetch("files?name=" + encodeURIComponent(file.name), { method: "POST", body: file });
    const told = await answer.json();
    if (!answer.ok) { say(told.why || "The file did not arrive. Send it again."); return null; }
    say("");
    return told.token;
  } catch (error) {
    say("The file did not arrive: is retune app still running?");
    return null;
  }
}
