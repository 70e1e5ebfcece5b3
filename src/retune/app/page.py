"""The page: the actions of its controls."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is loaded, which asks another machine for its version
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr

from retune.app.controls import BLURS, NOISES, Controls, text_of, visible
from retune.app.desk import Desk
from retune.app.flow import WAITING, Flow, remark
from retune.app.settings import EXAMPLE_NAMES, PROBLEMS, Settings
from retune.errors import RetuneError

__all__ = ["build", "head"]

_PARTS = ("facts", "noise", "blur", "findings", "progress", "glimpse", "curves", "result", "take")


def head() -> str:
    """Scripts and styles of the page."""
    script = f"{text_of('page.js', 'retune.report')}\n{text_of('app.js')}"
    return f'<script>{script}</script><meta name="color-scheme" content="light dark">'


def build(flow: Flow) -> gr.Blocks:
    """The page of a flow."""
    with gr.Blocks(title="ReTune", analytics_enabled=False, fill_width=True) as page:
        _Page(flow, Controls(str(flow.limits))).connect(page)
    page.queue(default_concurrency_limit=1, max_size=32)
    return page


class _Page:
    def __init__(self, flow: Flow, on: Controls):
        self.flow, self.on = flow, on
        self._sessions: dict[str, str] = {}

    def connect(self, page: gr.Blocks) -> None:
        """What the controls do. Everything that computes waits in one queue."""
        on, quiet = self.on, {"show_progress": "hidden", "api_visibility": "private"}
        work = {"concurrency_id": "work", "concurrency_limit": 1, **quiet}
        free = {"queue": False, **quiet}
        inputs, outputs = [on.key, on.pages, *on.asked], self._outputs

        def look_after(event: Any) -> None:
            event.then(self._looks, inputs, outputs, **work)

        page.load(self._opens, None, on.key, **free)
        page.unload(self._leaves)
        on.drop.upload(None, None, on.progress, js=f"() => {json.dumps(remark(WAITING, 'quiet'))}", queue=False)
        on.drop.upload(self._arrives, inputs, outputs, **work)
        look_after(
            on.example.input(self._takes_example, [on.key, on.example], [*outputs, *on.asked, on.example], **work)
        )
        places = [on.mask_said, on.network_said, on.ships, on.progress]
        for kind, drop in (("blur", on.psf), ("mask", on.mask_file), ("network", on.network)):
            look_after(drop.upload(self._file(kind), [on.key], places, **work))
        look_after(on.canvas.input(self._paints, [on.key], [on.mask_said], **work))
        look_after(on.ships.click(self._forgets_network, [on.key], [on.network_said, on.ships], **free))
        kinds = [on.problem, on.shape, on.noise_kind]
        for control in kinds:
            control.change(visible, kinds, on.depend, **free)
        texts = (on.sigma, on.gain, on.white, on.black, on.size, on.angle)
        events = [control.input for control in on.asked if control not in texts]
        events += [event for text in texts for event in (text.submit, text.blur)]
        for event in (*events, on.pages.input):
            event(self._looks, inputs, outputs, trigger_mode="always_last", **work)
        mended = [on.problem, on.background, on.centre, on.white, on.black, on.noise_kind, on.mask_said]
        for key, button in on.mends.items():
            look_after(button.click(self._mends(key), inputs, mended, **work))
        for button, verb in ((on.restore, self.flow.restore), (on.tune, self.flow.tune)):
            asked = button.click(self._waits, [on.key], [on.progress, on.restore, on.tune, on.stop], **free)
            asked.then(self._computes(verb), inputs, outputs, **work)
        on.stop.click(self._stops, [on.key], None, **free)

    def _waits(self, key: str) -> dict[Any, Any]:
        try:
            return self._update(self.flow.waits(self.flow.desks.get(key)))
        except RetuneError as error:
            return {self.on.progress: remark(str(error))}

    def _stops(self, key: str) -> None:
        with suppress(RetuneError):  # the page was left alone, and has nothing to stop
            self.flow.stop(key)

    def _opens(self, request: gr.Request) -> str:
        key = self.flow.desks.open().key
        self._sessions[str(request.session_hash)] = key
        return key

    def _leaves(self, request: gr.Request) -> None:
        key = self._sessions.pop(str(request.session_hash), None)
        if key is not None:
            self.flow.leave(key)

    @property
    def _outputs(self) -> list[Any]:
        """The parts that a step may change."""
        on = self.on
        shown = [getattr(on, name) for name in _PARTS]
        return [*shown, on.pages, on.canvas, *on.mends.values(), on.restore, on.tune, on.stop, on.mask_said]

    def _update(self, shown: dict[str, Any]) -> dict[Any, Any]:
        """The parts of the page that a step changes, with their content."""
        found: dict[Any, Any] = {getattr(self.on, k): v for k, v in shown.items() if k in _PARTS}
        if "canvas" in shown:
            found[self.on.canvas] = gr.update(value=shown["canvas"], visible=bool(shown["canvas"]))
        if "mask" in shown:
            found[self.on.mask_said] = ""
        if "pages" in shown:
            many = shown["pages"] > 1
            found[self.on.pages] = gr.update(maximum=max(2, shown["pages"]), visible=many)
        if "mends" in shown:
            found |= {button: gr.update(visible=key in shown["mends"]) for key, button in self.on.mends.items()}
        if "running" in shown:
            runs = shown["running"]
            found |= {self.on.restore: gr.update(interactive=not runs), self.on.tune: gr.update(interactive=not runs)}
            found[self.on.stop] = gr.update(visible=runs)
        return found or {self.on.progress: gr.skip()}

    def _steps(self, key: str, steps: Callable[[Desk], Iterator[dict[str, Any]]]) -> Iterator[dict[Any, Any]]:
        try:
            desk = self.flow.desks.get(key)
            for shown in steps(desk):
                yield self._update(shown)
        except (RetuneError, ValueError) as error:
            yield self._update({"progress": remark(str(error)), "running": False})

    def _arrives(self, event: gr.EventData, key: str, page: float, *values: Any) -> Iterator[dict[Any, Any]]:
        for shown in self._steps(
            key, lambda desk: self.flow.image(desk, str(event.token), self.on.settings(desk, values))
        ):
            yield shown | ({} if self.on.pages in shown else {self.on.pages: gr.update(value=1)})

    def _looks(self, key: str, page: float, *values: Any) -> Iterator[dict[Any, Any]]:
        yield from self._steps(key, lambda desk: self.flow.look(desk, int(page) - 1, self.on.settings(desk, values)))

    def _computes(self, verb: Callable[[Desk, int, Settings], Iterator[dict[str, Any]]]) -> Callable:
        def compute(key: str, page: float, *values: Any) -> Iterator[dict[Any, Any]]:
            yield from self._steps(key, lambda desk: verb(desk, int(page) - 1, self.on.settings(desk, values)))

        return compute

    def _takes_example(self, key: str, name: str) -> Iterator[dict[Any, Any]]:
        if name not in EXAMPLE_NAMES:
            yield {self.on.progress: gr.skip()}
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
        on = self.on
        told = {on.problem: label, on.noise_kind: NOISES[0], on.shape: BLURS[0], on.size: size, on.factor: 2}
        yield told | {on.white: "", on.black: "", on.pages: 1, on.example: "", on.mask_said: said}

    def _file(self, kind: str) -> Callable:
        def arrive(event: gr.EventData, key: str) -> dict[Any, Any]:
            place = {"mask": self.on.mask_said, "network": self.on.network_said}.get(kind, self.on.progress)
            try:
                name = self.flow.file(self.flow.desks.get(key), kind, str(event.token))
            except RetuneError as error:
                return {place: remark(str(error))}
            told: dict[Any, Any] = {place: remark(f"{name} is used.", "quiet")}
            return told | ({self.on.ships: gr.update(visible=True)} if kind == "network" else {})

        return arrive

    def _forgets_network(self, key: str) -> dict[Any, Any]:
        self.flow.desks.get(key).network = ""
        return {self.on.network_said: "", self.on.ships: gr.update(visible=False)}

    def _paints(self, event: gr.EventData, key: str) -> str:
        try:
            self.flow.paint(self.flow.desks.get(key), list(event.strokes))
        except RetuneError as error:
            return remark(str(error))
        except (TypeError, ValueError, KeyError):  # whoever speaks to the page without a browser
            return remark("The drawing could not be read.")
        return remark("The pixels that you drew over are missing.", "quiet")

    def _mends(self, key: str) -> Callable:
        def mend(desk_key: str, page: float, *values: Any) -> dict[Any, Any]:
            if key == "gaps":
                desk = self.flow.desks.get(desk_key)
                try:
                    self.flow.gaps(desk, int(page) - 1, replace(self.on.settings(desk, values), mask=""))
                except RetuneError as error:
                    return {self.on.mask_said: remark(str(error))}
                return {
                    self.on.problem: "Missing pixels",
                    self.on.mask_said: remark("Pixels that are no numbers are missing.", "quiet"),
                }
            return {
                "background": {self.on.background: True},
                "centre": {self.on.centre: True},
                "levels": {self.on.white: "auto", self.on.black: "auto"},
                "noise": {self.on.noise_kind: NOISES[0]},
            }[key]

        return mend
