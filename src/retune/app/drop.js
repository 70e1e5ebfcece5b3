const said = (text) => { element.querySelector(".drop-said").textContent = text; };
const send = async (file) => {
  if (!file) return;
  const token = await sendFile(file, said);
  if (token !== null) trigger("upload", { token: token });
};
element.addEventListener("change", async (event) => {
  if (event.target.type !== "file") return;
  const input = event.target;
  await send(input.files[0]);
  input.value = "";
});
element.addEventListener("dragover", (event) => {
  event.preventDefault();
  element.querySelector(".drop").classList.add("over");
});
element.addEventListener("dragleave", () => { element.querySelector(".drop").classList.remove("over"); });
element.addEventListener("drop", (event) => {
  event.preventDefault();
  element.querySelector(".drop").classList.remove("over");
  send(event.dataTransfer.files[0]);
});
