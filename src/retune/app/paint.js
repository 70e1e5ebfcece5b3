// Strokes are kept as shares of the width, so that the size of the window does not matter.
let strokes = [];
let stroke = null;
const stage = () => element.querySelector(".paint-stage");
const canvas = () => element.querySelector("canvas");
const radius = () => Number(element.querySelector(".paint-size").value) / 1000;
const draw = () => {
  const c = canvas();
  if (!c) return;
  const box = stage().getBoundingClientRect();
  c.width = Math.max(1, Math.round(box.width));
  c.height = Math.max(1, Math.round(box.height));
  const g = c.getContext("2d");
  g.strokeStyle = g.fillStyle = "rgba(213, 94, 0, 0.75)";
  g.lineCap = g.lineJoin = "round";
  for (const s of strokes) {
    g.lineWidth = Math.max(1, 2 * s.radius * c.width);
    g.beginPath();
    s.points.forEach(([x, y], i) => { if (i) g.lineTo(x * c.width, y * c.width); else g.moveTo(x * c.width, y * c.width); });
    if (s.points.length === 1) g.lineTo(s.points[0][0] * c.width + 0.01, s.points[0][1] * c.width);
    g.stroke();
  }
};
const at = (event) => {
  const box = stage().getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.width];
};
element.addEventListener("pointerdown", (event) => {
  if (!event.target.closest(".paint-stage")) return;
  event.preventDefault();
  event.target.setPointerCapture?.(event.pointerId);
  stroke = { radius: radius(), points: [at(event)] };
  strokes.push(stroke);
  draw();
});
element.addEventListener("pointermove", (event) => {
  if (stroke === null) return;
  stroke.points.push(at(event));
  draw();
});
for (const end of ["pointerup", "pointercancel"]) {
  element.addEventListener(end, () => { stroke = null; });
}
element.addEventListener("click", (event) => {
  if (event.target.closest(".paint-undo")) { strokes.pop(); draw(); }
  if (event.target.closest(".paint-use")) trigger("input", { strokes: strokes });
});
watch("value", () => { strokes = []; });
