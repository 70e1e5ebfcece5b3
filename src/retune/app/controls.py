"""The controls of the page, and the settings in them."""

from __future__ import annotations

from importlib import resources
from typing import Any

import gradio as gr

from retune._version import __version__
from retune.app.desk import Desk
from retune.app.flow import MENDS
from retune.app.settings import EXAMPLE_NAMES, PROBLEMS, Settings

__all__ = ["BLURS", "NOISES", "Controls", "text_of", "visible"]

NOISES = ("Estimated from the image", "The same everywhere", "Grows with the brightness")
BLURS = ("Out of focus (a soft spot)", "Moved (a line)", "A square", "From a file")
BORDERS = {"Usual": "", "Goes on beyond the border": "valid", "Opposite borders meet": "circular"}
IMAGES = ".png,.jpg,.jpeg,.tif,.tiff,.bmp,.npy"


def text_of(name: str, package: str = "retune.app") -> str:
    """A file of a package."""
    return resources.files(package).joinpath(name).read_text("utf-8")


def _drop(title: str, hint: str, accept: str, name: str, **more: Any) -> gr.HTML:
    """A control that uploads a file. It sends the file itself, so no path of this machine reaches the page."""
    place = text_of("drop.html")
    for mark, text in (("TITLE", title), ("HINT", hint), ("ACCEPT", accept)):
        place = place.replace(mark, text)
    return gr.HTML(
        "", html_template=place, js_on_load=text_of("drop.js"), elem_id=name, apply_default_css=False, **more
    )


class Controls:
    """All controls of the page. Create it inside a ``gr.Blocks``.

    Args:
        limits: of size and time, in a sentence.
    """

    def __init__(self, limits: str):
        self.key = gr.State("")
        gr.HTML(
            "<header><h1>ReTune</h1><p>Take noise, blur and gaps out of an image. Nothing leaves this machine.</p>"
            "</header>",
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
            f"<footer><p>ReTune {__version__}. {limits} Your files are removed when you close the page.</p></footer>",
            elem_id="bottom",
        )

    def _image(self) -> None:
        gr.HTML("<h2>1. The image</h2>")
        self.drop = _drop(
            "Drop an image here, or choose one", "PNG, JPEG, TIFF (16 bits, stacks), BMP or NPY", IMAGES, "drop-image"
        )
        self.example = gr.Dropdown(
            [("choose …", ""), *((n, n) for n in EXAMPLE_NAMES)], value="", label="or take a photograph that ships",
            elem_id="example", filterable=False,
        )  # fmt: skip
        self.facts = gr.HTML("", elem_id="facts")
        self.pages = gr.Slider(
            1,
            2,
            value=1,
            step=1,
            label="Page that is shown (all are restored, with the noise of this one)",
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
                list(BLURS),
                value=BLURS[0],
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
                IMAGES,
                "drop-blur",
                visible=False,
            )
            self.background = gr.Checkbox(
                False, label="Subtract the pedestal (grey around the point)", visible=False, elem_id="background"
            )
            self.centre = gr.Checkbox(False, label="Centre the blur", visible=False, elem_id="centre")
            self.border = gr.Dropdown(
                list(BORDERS), value="Usual", label="What lies beyond the border", filterable=False, elem_id="border"
            )
            self.blur = gr.HTML("", elem_id="blur")
        with gr.Group(visible=False, elem_id="mask-controls") as self.masked:
            self.canvas = gr.HTML(
                "",
                html_template=text_of("paint.html"),
                js_on_load=text_of("paint.js"),
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
        self.noise_kind = gr.Radio(list(NOISES), value=NOISES[0], label="Noise", elem_id="noise-kind")
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
                "<p>Intensities that count as white and as black, in the numbers of the file: such as 4095 for a "
                "camera of 12 bits. “auto” finds them.</p>"
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
        gr.HTML(
            '<p class="muted small">“Restore” takes a second to a minute. “Tune” first learns from this image how '
            "strongly to restore it, which takes minutes.</p>"
        )
        with gr.Accordion("A network of your own", open=False, elem_id="own"):
            self.network = _drop(
                "Drop a model", "model.safetensors, of retune train or retune tune", ".safetensors", "drop-network"
            )
            gr.HTML(
                '<p class="muted small">A network remembers its measurement and its noise. Under 2, change '
                "only the differences, such as another blur.</p>"
            )
            self.network_said = gr.HTML("", elem_id="network-said")
            self.ships = gr.Button("Use the networks that ship", visible=False, size="sm", elem_id="ships")

    def _shown(self) -> None:
        self.progress = gr.HTML("", elem_id="progress")
        self.stop = gr.Button("Stop", variant="stop", visible=False, size="sm", elem_id="stop")
        self.glimpse = gr.HTML("", elem_id="glimpse")
        self.curves = gr.HTML("", elem_id="curves")
        self.result = gr.HTML(_WELCOME, elem_id="result")
        self.take = gr.HTML("", elem_id="take", js_on_load=_COPY)

    @property
    def asked(self) -> list[Any]:
        """The controls that `settings` reads, in its order."""
        return [
            self.problem, self.noise_kind, self.sigma, self.gain, self.shape, self.size, self.angle, self.background,
            self.centre, self.border, self.factor, self.white, self.black,
        ]  # fmt: skip

    @property
    def depend(self) -> list[Any]:
        """The parts that `visible` shows or hides, in its order."""
        return [
            self.blurred, self.masked, self.smaller, self.angle, self.psf, self.background, self.centre, self.sigma,
            self.gain, self.size,
        ]  # fmt: skip

    def settings(self, desk: Desk, values: tuple) -> Settings:
        """The settings that the controls have."""
        problem, noise, sigma, gain, shape, size, angle, background, centre, border, factor, white, black = values
        said = {NOISES[1]: str(sigma).replace(" ", ""), NOISES[2]: f"poisson:{str(gain).replace(' ', '')}"}
        number = f"{float(size or 1):g}"
        kernels = {
            BLURS[0]: f"gaussian:{number}",
            BLURS[1]: f"motion:{number}@{float(angle or 0):g}",
            BLURS[2]: f"uniform:{round(float(size or 1))}",
        }
        name = PROBLEMS.get(problem, "")
        file = shape == BLURS[3]
        return Settings(
            problem=name,
            noise=said.get(noise, ""),
            kernel=(desk.kernel if file else kernels.get(shape, "")) if name == "deblur" else "",
            background=bool(background) and file,
            centre=bool(centre) and file,
            boundary=BORDERS.get(border, ""),
            mask=desk.mask if name == "inpaint" else "",
            factor=int(factor or 2),
            white=str(white or "").strip(),
            black=str(black or "").strip(),
            network=desk.network,
        )


def visible(problem: str, shape: str, noise: str) -> list[Any]:
    """Show the controls that the settings need, and hide the others."""
    name, file = PROBLEMS.get(problem, ""), shape == BLURS[3]
    shown = [
        name == "deblur", name == "inpaint", name == "superres", shape == BLURS[1],
        file, file, file, noise == NOISES[1], noise == NOISES[2], not file,
    ]  # fmt: skip
    return [gr.update(visible=one) for one in shown]


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
  catch (error) {
    getSelection().selectAllChildren(button.parentElement.querySelector("code"));
    button.textContent = "Selected";
  }
});
"""
