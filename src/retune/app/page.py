"""The page: its controls, and what they do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import resources
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is loaded, which asks another machine for its version
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr

from retune._version import __version__
from retune.app.desk import Desk
from retune.app.flow import MENDS, Flow, remark
from retune.app.settings import PROBLEMS, Settings
from retune.errors import RetuneError

__all__ = ["EXAMPLE_NAMES", "HEAD", "build"]

EXAMPLE_NAMES = (
    "Astronaut, with noise",
    "Cameraman, blurred",
    "Cat, half of its pixels missing",
    "Coffee, of half the size",
)
_NOISES = ("Estimated from the image", "The same everywhere", "Grows with the brightness")
_BLURS = ("Out of focus (a soft spot)", "Moved (a line)", "A square", "From a file")
_BORDERS = {"Usual": "", "Goes on beyond the border": "valid", "Opposite borders meet": "circular"}
_IMAGES = ".png,.jpg,.jpeg,.tif,.tiff,.bmp,.npy"


def _text(name: str, package: str = "retune.app") -> str:
    return resources.files(package).joinpath(name).read_text("utf-8")


def HEAD() -> str:
    """Scripts and styles of the page."""
    script = f"{_text('page.js', 'retune.report')}\n{_text('app.js')}"
    return f'<script>{script}</script><meta name="color-scheme" content="light dark">'


def _drop(title: str, hint: str, accept: str, name: str, **more: Any) -> gr.HTML:
    """A place for a file. It sends the file by itself, so that no path of this machine reaches the page."""
    return gr.HTML(
        "", html_template=_text("drop.html"), js_on_load=_text("drop.js"), title=title, hint=hint, accept=accept,
        elem_id=name, apply_default_css=False, **more,
    )  # fmt: skip


def build(flow: Flow) -> gr.Blocks:
    """The page of a flow."""
    with gr.Blocks(title="ReTune", analytics_enabled=False, fill_width=True) as page:
        made = _Page(flow)
        made.layout()
        made.connect(page)
    page.queue(default_concurrency_limit=1, max_size=32)
    return page


class _Page:
    def __init__(self, flow: Flow):
        self.flow = flow

    def layout(self) -> None:
        """The controls."""
        self.key = gr.State("", delete_callback=lambda key: self.flow.leave(key) if key else None)
        gr.HTML(
            "<header><h1>ReTune</h1><p>Take noise, blur and gaps out of an image. Nothing leaves this machine.</p></header>",
            elem_id="top",
        )
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=2, min_width=320, elem_id="asks"):
                self._image()
                self._happened()
                self._how()
            with gr.Column(scale=3, min_width=320, elem_id="shows"):
                self._shown()
        gr.HTML(
            f"<footer><p>ReTune {__version__}. {self.flow.limits} Your files are removed when you close the page.</p></footer>"
        )

    def _image(self) -> None:
        gr.HTML("<h2>1. The image</h2>")
        self.drop = _drop(
            "Drop an image here, or choose one", "PNG, JPEG, TIFF (16 bits, stacks), BMP or NPY", _IMAGES, "drop-image"
        )
        self.example = gr.Dropdown(
            [("…", ""), *((n, n) for n in EXAMPLE_NAMES)], value="", label="or take a photograph that ships",
            elem_id="example", filterable=False,
        )  # fmt: skip
        self.facts = gr.HTML("", elem_id="facts")
        self.pages = gr.Slider(
            1,
            2,
            value=1,
            step=1,
            label="Page of the file that is shown (all are restored)",
            visible=False,
            elem_id="page-number",
        )

    def _happened(self) -> None:
        gr.HTML("<h2>2. What happened to it</h2>")
        self.problem = gr.Radio(
            list(PROBLEMS), value="Only noise", label="What happened to the image", elem_id="problem"
        )
        with gr.Group(visible=False, elem_id="blur-controls") as self.blurred:
            self.shape = gr.Dropdown(
                list(_BLURS),
                value=_BLURS[0],
                label="What a point of light became",
                filterable=False,
                elem_id="blur-shape",
            )
            self.size = gr.Number(1.6, label="Size, in pixels", minimum=0.1, maximum=200, elem_id="blur-size")
            self.angle = gr.Number(
                0, label="Angle, in degrees from the horizontal", visible=False, elem_id="blur-angle"
            )
            self.psf = _drop(
                "Drop the picture of a blurred point",
                "It is called a point spread function (PSF)",
                _IMAGES,
                "drop-blur",
                visible=False,
            )
            self.background = gr.Checkbox(
                False, label="Subtract the pedestal (grey around the point)", visible=False, elem_id="background"
            )
            self.centre = gr.Checkbox(False, label="Centre the blur", visible=False, elem_id="centre")
            self.border = gr.Dropdown(
                list(_BORDERS), value="Usual", label="What lies beyond the border", filterable=False, elem_id="border"
            )
            self.blur = gr.HTML("", elem_id="blur")
        with gr.Group(visible=False, elem_id="mask-controls") as self.masked:
            self.canvas = gr.HTML(
                "",
                html_template=_text("paint.html"),
                js_on_load=_text("paint.js"),
                apply_default_css=False,
                elem_id="canvas",
                visible=False,
            )
            self.mask_file = _drop(
                "or drop a mask",
                "a picture that is black where pixels are missing",
                ".png,.tif,.tiff,.bmp,.npy",
                "drop-mask",
            )
            self.mask_said = gr.HTML("", elem_id="mask-said")
        with gr.Group(visible=False, elem_id="factor-controls") as self.smaller:
            self.factor = gr.Radio([2, 3, 4], value=2, label="Magnify this many times", elem_id="factor")
        self.noise_kind = gr.Radio(list(_NOISES), value=_NOISES[0], label="Noise", elem_id="noise-kind")
        self.sigma = gr.Textbox(
            "0.05",
            label="Its strength, where 1 is white (per channel: 0.05, 0.06, 0.05)",
            visible=False,
            elem_id="sigma",
        )
        self.gain = gr.Textbox(
            "0.01, 0.01", label="One photon, and the noise in the dark, where 1 is white", visible=False, elem_id="gain"
        )
        self.noise = gr.HTML("", elem_id="noise")
        with gr.Accordion("Black and white", open=False, elem_id="levels"):
            gr.HTML(
                "<p>Intensities that count as white and as black, in the numbers of the file: such as 4095 for a camera of 12 bits. “auto” finds them.</p>"
            )
            self.white = gr.Textbox("", label="White", placeholder="usual", elem_id="white")
            self.black = gr.Textbox("", label="Black", placeholder="0", elem_id="black")
        self.findings = gr.HTML("", elem_id="findings")
        with gr.Row(elem_id="mends"):
            self.mends = {
                k: gr.Button(label, visible=False, elem_id=f"mend-{k}", size="sm") for k, label in MENDS.items()
            }

    def _how(self) -> None:
        gr.HTML("<h2>3. Restore</h2>")
        with gr.Row():
            self.restore = gr.Button("Restore", variant="primary", elem_id="restore")
            self.tune = gr.Button("Tune on this image", elem_id="tune")
            self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
        gr.HTML(
            '<p class="muted small">“Restore” takes a second to a minute. “Tune” first learns from this image how strongly to restore it, which takes minutes.</p>'
        )
        with gr.Accordion("A network of your own", open=False, elem_id="own"):
            self.network = _drop(
                "Drop a model", "model.safetensors, of retune train or retune tune", ".safetensors", "drop-network"
            )
            self.network_said = gr.HTML("", elem_id="network-said")
            self.ships = gr.Button("Use the networks that ship", visible=False, size="sm", elem_id="ships")

    def _shown(self) -> None:
        self.progress = gr.HTML("", elem_id="progress")
        self.glimpse = gr.HTML("", elem_id="glimpse")
        self.curves = gr.HTML("", elem_id="curves")
        self.result = gr.HTML(_WELCOME, elem_id="result")
        self.take = gr.HTML("", elem_id="take", js_on_load=_COPY)

    @property
    def controls(self) -> list[Any]:
        """What the settings are made of, in the order of `settings`."""
        return [
            self.problem, self.noise_kind, self.sigma, self.gain, self.shape, self.size, self.angle, self.background,
            self.centre, self.border, self.factor, self.white, self.black,
        ]  # fmt: skip

    def settings(self, desk: Desk, values: tuple) -> Settings:
        """What the controls say."""
        problem, noise, sigma, gain, shape, size, angle, background, centre, border, factor, white, black = values
        said = {_NOISES[1]: str(sigma).replace(" ", ""), _NOISES[2]: f"poisson:{str(gain).replace(' ', '')}"}
        number = f"{float(size or 1):g}"
        kernels = {
            _BLURS[0]: f"gaussian:{number}",
            _BLURS[1]: f"motion:{number}@{float(angle or 0):g}",
            _BLURS[2]: f"uniform:{round(float(size or 1))}",
        }
        name = PROBLEMS.get(problem, "")
        file = shape == _BLURS[3]
        return Settings(
            problem=name,
            noise=said.get(noise, ""),
            kernel=(desk.kernel if file else kernels.get(shape, "")) if name == "deblur" else "",
            background=bool(background) and file,
            centre=bool(centre) and file,
            boundary=_BORDERS.get(border, ""),
            mask=desk.mask if name == "inpaint" else "",
            factor=int(factor or 2),
            white=str(white or "").strip(),
            black=str(black or "").strip(),
            network=desk.network,
        )

    def connect(self, page: gr.Blocks) -> None:
        """What the controls do. Everything that computes waits in one queue."""
        work = {
            "concurrency_id": "work",
            "concurrency_limit": 1,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        free = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        inputs = [self.key, self.pages, *self.controls]
        page.load(lambda: self.flow.desks.open().key, None, self.key, **free)
        page.unload(lambda: None)
        self.drop.upload(self._arrives, inputs, self.outputs, **work)
        self.example.input(
            self._takes_example, [self.key, self.example], [*self.outputs, *self.controls, self.example], **work
        ).then(self._looks, inputs, self.outputs, **work)
        for name, place in (("blur", self.psf), ("mask", self.mask_file), ("network", self.network)):
            place.upload(
                self._file(name), [self.key], [self.mask_said, self.network_said, self.ships, self.progress], **work
            ).then(self._looks, inputs, self.outputs, **work)
        self.canvas.input(self._paints, [self.key], [self.mask_said], **work).then(
            self._looks, inputs, self.outputs, **work
        )
        self.ships.click(self._forgets_network, [self.key], [self.network_said, self.ships], **free)
        shown = [
            self.blurred,
            self.masked,
            self.smaller,
            self.angle,
            self.psf,
            self.background,
            self.centre,
            self.sigma,
            self.gain,
            self.size,
        ]
        for control in (self.problem, self.shape, self.noise_kind):
            control.change(_visible, [self.problem, self.shape, self.noise_kind], shown, **free)
        for control in (*self.controls, self.pages):
            event = (
                control.release
                if control is self.pages
                else control.change
                if isinstance(control, _CHOICES)
                else control.submit
            )
            event(self._looks, inputs, self.outputs, trigger_mode="always_last", **work)
        for text in (self.sigma, self.gain, self.white, self.black, self.size, self.angle):
            text.blur(self._looks, inputs, self.outputs, trigger_mode="always_last", **work)
        for key, button in self.mends.items():
            button.click(
                self._mends(key),
                inputs,
                [self.problem, self.background, self.centre, self.white, self.black, self.noise_kind, self.mask_said],
                **work,
            ).then(self._looks, inputs, self.outputs, **work)
        self.restore.click(self._computes(self.flow.restore), inputs, self.outputs, **work)
        self.tune.click(self._computes(self.flow.tune), inputs, self.outputs, **work)
        self.stop.click(lambda key: self.flow.stop(key) and None, [self.key], None, **free)

    @property
    def outputs(self) -> list[Any]:
        """The parts that a step may change."""
        return [
            self.facts, self.pages, self.canvas, self.noise, self.blur, self.findings, *self.mends.values(), self.progress,
            self.glimpse, self.curves, self.result, self.take, self.restore, self.tune, self.stop, self.mask_said,
        ]  # fmt: skip

    def _update(self, shown: dict[str, Any]) -> dict[Any, Any]:
        """The parts of the page for what a step shows."""
        found: dict[Any, Any] = {getattr(self, k): v for k, v in shown.items() if k in _PARTS}
        if "canvas" in shown:
            found[self.canvas] = gr.update(value=shown["canvas"], visible=bool(shown["canvas"]))
        if "mask" in shown:
            found[self.mask_said] = ""
        if "pages" in shown:
            many = shown["pages"] > 1
            found[self.pages] = gr.update(maximum=max(2, shown["pages"]), visible=many)
        if "mends" in shown:
            found |= {button: gr.update(visible=key in shown["mends"]) for key, button in self.mends.items()}
        if "running" in shown:
            runs = shown["running"]
            found |= {self.restore: gr.update(interactive=not runs), self.tune: gr.update(interactive=not runs)}
            found[self.stop] = gr.update(visible=runs)
        return found or {self.progress: gr.skip()}

    def _steps(self, key: str, steps: Callable[[Desk], Iterator[dict[str, Any]]]) -> Iterator[dict[Any, Any]]:
        try:
            desk = self.flow.desks.get(key)
            for shown in steps(desk):
                yield self._update(shown)
        except (RetuneError, ValueError) as error:
            yield self._update({"progress": remark(str(error)), "running": False})

    def _arrives(self, event: gr.EventData, key: str, page: float, *values: Any) -> Iterator[dict[Any, Any]]:
        for shown in self._steps(
            key, lambda desk: self.flow.image(desk, str(event.token), self.settings(desk, values))
        ):
            yield shown | ({} if self.pages in shown else {self.pages: gr.update(value=1)})

    def _looks(self, key: str, page: float, *values: Any) -> Iterator[dict[Any, Any]]:
        yield from self._steps(key, lambda desk: self.flow.look(desk, int(page) - 1, self.settings(desk, values)))

    def _computes(self, verb: Callable[[Desk, int, Settings], Iterator[dict[str, Any]]]) -> Callable:
        def compute(key: str, page: float, *values: Any) -> Iterator[dict[Any, Any]]:
            yield from self._steps(key, lambda desk: verb(desk, int(page) - 1, self.settings(desk, values)))

        return compute

    def _takes_example(self, key: str, name: str) -> Iterator[dict[Any, Any]]:
        if name not in EXAMPLE_NAMES:
            yield {self.progress: gr.skip()}
            return
        yield self._update({"progress": remark("Preparing the photograph …", "quiet"), "result": "", "take": ""})
        try:
            made = self.flow.example(self.flow.desks.get(key), name)
        except RetuneError as error:
            yield self._update({"progress": remark(str(error))})
            return
        label = next(k for k, v in PROBLEMS.items() if v == made.problem)
        size = float(made.kernel.partition(":")[2]) if made.kernel else 1.6
        said = "A share of its pixels is missing, and known." if made.mask else ""
        yield {
            self.problem: label, self.noise_kind: _NOISES[0], self.shape: _BLURS[0], self.size: size, self.factor: 2,
            self.white: "", self.black: "", self.pages: 1, self.example: "", self.mask_said: said,
        }  # fmt: skip

    def _file(self, kind: str) -> Callable:
        def arrive(event: gr.EventData, key: str) -> dict[Any, Any]:
            place = {"mask": self.mask_said, "network": self.network_said}.get(kind, self.progress)
            try:
                name = self.flow.file(self.flow.desks.get(key), kind, str(event.token))
            except RetuneError as error:
                return {place: remark(str(error))}
            told: dict[Any, Any] = {place: remark(f"{name} is used.", "quiet")}
            return told | ({self.ships: gr.update(visible=True)} if kind == "network" else {})

        return arrive

    def _forgets_network(self, key: str) -> dict[Any, Any]:
        self.flow.desks.get(key).network = ""
        return {self.network_said: "", self.ships: gr.update(visible=False)}

    def _paints(self, event: gr.EventData, key: str) -> str:
        try:
            self.flow.paint(self.flow.desks.get(key), list(event.strokes))
        except (RetuneError, TypeError, ValueError, KeyError) as error:
            return remark(str(error) if isinstance(error, RetuneError) else "The drawing could not be read.")
        return remark("The pixels that you drew over are missing.", "quiet")

    def _mends(self, key: str) -> Callable:
        def mend(desk_key: str, page: float, *values: Any) -> dict[Any, Any]:
            if key == "gaps":
                desk = self.flow.desks.get(desk_key)
                try:
                    self.flow.gaps(desk, int(page) - 1, replace(self.settings(desk, values), mask=""))
                except RetuneError as error:
                    return {self.mask_said: remark(str(error))}
                return {
                    self.problem: "Missing pixels",
                    self.mask_said: remark("Pixels that are no numbers are missing.", "quiet"),
                }
            return {
                "background": {self.background: True},
                "centre": {self.centre: True},
                "levels": {self.white: "auto", self.black: "auto"},
                "noise": {self.noise_kind: _NOISES[0]},
            }[key]

        return mend


def _visible(problem: str, shape: str, noise: str) -> list[Any]:
    """Which controls are of use."""
    file = shape == _BLURS[3]
    shown = [
        problem == "Blur and noise", problem == "Missing pixels", problem == "Too few pixels", shape == _BLURS[1], file, file,
        file, noise == _NOISES[1], noise == _NOISES[2], not file,
    ]  # fmt: skip
    return [gr.update(visible=one) for one in shown]


_PARTS = ("facts", "noise", "blur", "findings", "progress", "glimpse", "curves", "result", "take")
_CHOICES = (gr.Radio, gr.Dropdown, gr.Checkbox)
_WELCOME = (
    '<div class="welcome"><h2>What you get</h2><p>Every image is restored by repeating one small step, a <i>layer</i>, '
    "until the image does not change any more: it is at rest, at an <i>equilibrium</i>. Here you see the image before "
    "and after, what was taken away, and how the image came to rest.</p></div>"
)
_COPY = """
element.addEventListener("click", async (event) => {
  const button = event.target.closest(".copy");
  if (!button) return;
  const text = button.parentElement.querySelector("code").textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
  catch (error) { getSelection().selectAllChildren(button.parentElement.querySelector("code")); button.textContent = "Selected"; }
});
"""
