"use strict";
// The pictures work without this script: they then lie side by side.
const prepareComparison = (figure) => {
  const view = figure.querySelector(".view");
  const stack = figure.querySelector(".stack");
  const range = figure.querySelector("input[type=range]");
  const button = figure.querySelector("button");
  const sizes = [["fit", "fit"], ["one", "1:1"], ["four", "4:1"]];
  let size = 0;
  let pressed = null;

  const divide = () => stack.style.setProperty("--at", range.value + "%");
  const divideAt = (event) => {
    const box = stack.getBoundingClientRect();
    const share = 100 * (event.clientX - box.left) / Math.max(1, box.width);
    range.value = String(Math.min(100, Math.max(0, share)));
    divide();
  };
  // The place that was pointed at stays where it is.
  const zoom = (event) => {
    const box = stack.getBoundingClientRect();
    const frame = view.getBoundingClientRect();
    const pointed = event !== undefined && event.clientX !== undefined;
    const x = pointed ? (event.clientX - box.left) / Math.max(1, box.width) : 0.5;
    const y = pointed ? (event.clientY - box.top) / Math.max(1, box.height) : 0.5;
    size = (size + 1) % sizes.length;
    view.className = "view " + sizes[size][0];
    button.textContent = "zoom: " + sizes[size][1];
    const now = stack.getBoundingClientRect();
    view.scrollLeft = x * now.width - (pointed ? event.clientX - frame.left : frame.width / 2);
    view.scrollTop = y * now.height - (pointed ? event.clientY - frame.top : frame.height / 2);
  };

  range.addEventListener("input", divide);
  button.addEventListener("click", () => zoom());
  stack.addEventListener("pointerdown", (event) => {
    pressed = { x: event.clientX, y: event.clientY, moved: false };
  });
  stack.addEventListener("pointermove", (event) => {
    if (pressed === null) return;
    if (Math.abs(event.clientX - pressed.x) + Math.abs(event.clientY - pressed.y) > 4) pressed.moved = true;
    if (pressed.moved) divideAt(event);
  });
  stack.addEventListener("pointerup", (event) => {
    if (pressed !== null && !pressed.moved) zoom(event);
    pressed = null;
  });
  for (const end of ["pointerleave", "pointercancel"]) {
    stack.addEventListener(end, () => { pressed = null; });
  }
  divide();
};
document.querySelectorAll("figure.compare").forEach(prepareComparison);
