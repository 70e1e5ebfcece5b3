"""The steps of each action on the page, as names of its parts with their new content. Nothing here uses gradio."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from retune.app.desk import Desk, Desks, Restored
from retune.app.events import Request
from retune.app.settings import Settings
from retune.app.worker import Limits, StoppedError, Worker
from retune.errors import InvalidParameterError, RetuneError

__all__ = ["MENDS", "WAITING", "Flow", "remark"]

Shown = dict[str, Any]
#: Points of all strokes that are drawn.
_POINTS = 100_000
#: The labels of the buttons that mend.
MENDS = {
    "background": "Subtract the pedestal",
    "centre": "Centre the blur",
    "levels": "Find black and white in the image",
    "noise": "Use the estimated noise",
    "gaps": "Treat them as missing",
}
#: What is shown while the computations of others run.
WAITING = "Waiting for its turn …"
_NOTHING: Shown = {"facts": "", "noise": "", "blur": "", "findings": "", "mends": [], "canvas": ""}
_NO_RESULT: Shown = {"progress": "", "glimpse": "", "curves": "", "result": "", "take": ""}


def remark(text: str, kind: str = "remark") -> str:
    """A highlighted sentence, which a screen reader reads aloud."""
    return str(Markup('<p class="{}" role="status">{}</p>').format(kind, text))


class Flow:
    """The steps of all users.

    Args:
        desks: their files.
        worker: the process that computes.
        limits: of size and time.
    """

    def __init__(self, desks: Desks, worker: Worker, limits: Limits):
        self.desks, self.worker, self.limits = desks, worker, limits

    def image(self, desk: Desk, token: str, settings: Settings) -> Iterator[Shown]:
        """Take a new image."""
        yield _NOTHING | _NO_RESULT | {"mask": "", "progress": remark("Opening the image …", "quiet")}
        try:
            self.desks.take(desk, token, "image")
        except RetuneError as error:
            yield {"progress": remark(str(error))}
            return
        desk.mask = ""
        yield from self.look(desk, 0, replace(settings, mask=""))

    def file(self, desk: Desk, kind: str, token: str) -> str:
        """Take a new blur, mask or network. Returns its name.

        Raises:
            InvalidParameterError: it cannot be used.
        """
        name = self.desks.take(desk, token, kind)
        setattr(desk, {"blur": "kernel"}.get(kind, kind), name)
        desk.looked = None
        return name

    def look(self, desk: Desk, page: int, settings: Settings) -> Iterator[Shown]:
        """Describe the image, its noise, and the doctor's findings."""
        if not desk.image or desk.looked == (page, settings):
            yield {}
            return
        if desk.looked is None or desk.looked[1] != settings:  # the result belongs to other settings
            if desk.looked is not None or desk.restored is not None:
                yield _NO_RESULT
            desk.forget_results()
        desk.looked = (page, settings)
        options = self._options(desk, page, settings) | {"most": self.limits.values}
        for kind, values in self._run(desk, "look", options, settings):
            if kind == "failed":
                desk.looked = None
                yield _NOTHING | _NO_RESULT | {"progress": remark(values["why"])}
                return
            desk.known = values
            yield {
                "facts": values["facts"],
                "noise": values["noise"],
                "blur": values["blur"],
                "canvas": values["picture"],
                "glimpse": "" if desk.image in desk.results() else _glimpse(values["picture"], "As it was measured"),
                "pages": values["pages"],
                "findings": values.get("findings", remark("Examining …", "quiet")),
                "mends": [mend["key"] for mend in values.get("mends", [])],
                "progress": "",
            }
        yield from self._turn(desk, page)

    def _turn(self, desk: Desk, page: int) -> Iterator[Shown]:
        """Show the result of another page of a stack: all of them were restored."""
        before = desk.restored
        if before is None or before.page == page or desk.image not in desk.results():
            return
        yield {"progress": _moving(f"Drawing page {page + 1} …")}
        options = self._options(desk, page, before.settings) | {"tuned": before.tuned, "solves": before.solves}
        for kind, values in self._run(desk, "turn", options, before.settings):
            if kind == "failed":
                yield {"progress": remark(values["why"])}
            elif kind == "done":
                desk.restored = replace(before, page=page)
                yield {"progress": "", "result": values["result"]}

    def waits(self, desk: Desk) -> Shown:
        """Say that a computation was requested. It may have to wait for those of other users."""
        desk.stopped = False
        return {"progress": _moving(WAITING), "running": True}

    def restore(self, desk: Desk, page: int, settings: Settings) -> Iterator[Shown]:
        """Restore the image."""
        yield from self._restoring(desk, page, settings, "restore", "Restoring …")

    def tune(self, desk: Desk, page: int, settings: Settings) -> Iterator[Shown]:
        """Tune on the image, and restore it."""
        yield from self._restoring(desk, page, replace(settings, network=""), "tune", "Preparing the tuning …")

    def _restoring(self, desk: Desk, page: int, settings: Settings, kind: str, said: str) -> Iterator[Shown]:
        if not desk.image:
            yield {"progress": remark("Choose an image first."), "running": False}
            return
        if desk.stopped:
            yield {"progress": remark("Stopped."), "running": False}
            return
        measured = _glimpse(desk.known["picture"], "As it was measured") if "picture" in desk.known else ""
        yield _NO_RESULT | {"progress": _moving(said), "glimpse": measured, "running": True}
        desk.forget_results()
        noise = desk.known.get("said", "")
        if noise and not settings.noise and kind == "restore":
            settings = replace(settings, noise=noise)
        for step, values in self._run(desk, kind, self._options(desk, page, settings), settings):
            if step == "failed":
                yield {"progress": remark(values["why"]), "glimpse": "", "running": False}
            elif step == "done":
                desk.restored = Restored(page, settings, kind == "tune", values.get("solves", []))
                yield {
                    "progress": "",
                    "glimpse": "",
                    "curves": "",
                    "result": values["result"],
                    "take": self._take(desk, settings, kind == "tune"),
                    "running": False,
                }
            else:
                told = {"progress": _moving(values["say"], values.get("share")), "running": True}
                told |= {"curves": values["curves"]} if "curves" in values else {}
                if "picture" in values:
                    told["glimpse"] = _glimpse(values["picture"], values.get("caption", "So far"))
                yield told

    def example(self, desk: Desk, name: str) -> Settings:
        """Put a photograph that comes with ReTune on the desk. Returns the settings of its measurement.

        Raises:
            InvalidParameterError: it could not be made.
        """
        desk.clear()
        desk.known = {}
        made = self._last(desk, "example", {"folder": str(desk.folder), "name": name})
        desk.image, desk.mask = made["file"], made["settings"].mask
        return made["settings"]

    def paint(self, desk: Desk, strokes: list[dict[str, Any]]) -> None:
        """Use the painted pixels as the missing ones.

        Raises:
            InvalidParameterError: nothing was painted, or there is no image.
        """
        if not desk.image or "size" not in desk.known:
            raise InvalidParameterError("Choose an image first.")
        if not strokes:
            raise InvalidParameterError("Nothing was drawn yet: draw over the pixels that are missing.")
        if sum(len(stroke["points"]) for stroke in strokes) > _POINTS:
            raise InvalidParameterError("These are too many strokes: give the mask as a picture.")
        options = {"folder": str(desk.folder), "image": desk.image, "strokes": strokes, "size": desk.known["size"]}
        desk.looked = None
        desk.mask = self._last(desk, "paint", options | {"mask": "mask.png"})["mask"]

    def gaps(self, desk: Desk, page: int, settings: Settings) -> None:
        """Use the pixels that are NaN or Inf as the missing ones.

        Raises:
            InvalidParameterError: there are none.
        """
        options = self._options(desk, page, settings) | {"most": self.limits.values, "mask": "mask.png"}
        desk.looked = None
        desk.mask = self._last(desk, "gaps", options)["mask"]

    def stop(self, key: str) -> bool:
        """Stop the computation of a desk at once, or before it begins."""
        self.desks.get(key).stopped = True
        return self.worker.stop(key)

    def leave(self, key: str) -> None:
        """Stop the computation of a page that was closed, and remove its files."""
        self.worker.stop(key)
        self.desks.close(key)

    def _options(self, desk: Desk, page: int, settings: Settings) -> dict[str, Any]:
        return {"folder": str(desk.folder), "image": desk.image, "page": page, "settings": settings}

    def _run(self, desk: Desk, kind: str, options: dict[str, Any], settings: Settings) -> Iterator[tuple[str, Shown]]:
        """The events of a computation; the last is "done" or "failed"."""
        try:
            settings.require_known(desk.files())
            for event in self.worker.run(desk.key, Request(kind, options)):
                yield event.kind, event.values
        except RetuneError as error:
            yield "failed", {"why": str(error)}

    def _last(self, desk: Desk, kind: str, options: dict[str, Any]) -> Shown:
        for event in self.worker.run(desk.key, Request(kind, options)):
            if event.kind == "failed":
                raise InvalidParameterError(event.values["why"])
            if event.kind == "done":
                return event.values
        raise StoppedError("Stopped.")

    def _take(self, desk: Desk, settings: Settings, tuned: bool) -> str:
        """Links to the results, and the lines that do the same."""
        labels = {
            desk.image: "Restored image",
            "report.html": "Report",
            "record.json": "Record",
            "model.safetensors": "Model",
            "mask.png": "Mask",
        }
        found = {name: labels[name] for name in desk.results()}
        found |= {"tuned.zip": "Folder of the tuning"} if "model.safetensors" in found else {}
        item = Markup('<li><a href="take/{}/{}" download="{}">{}</a> <span class="muted">{}</span></li>')
        links = Markup("").join(item.format(desk.key, quote(name), name, label, name) for name, label in found.items())
        known = desk.known
        python = settings.python(
            desk.image, plain=bool(known.get("plain")), pages=int(known.get("pages", 1)), tuned=tuned
        )
        lines = Markup("").join(
            Markup(
                '<h3>{}</h3><div class="lines"><pre tabindex="0" aria-label="{}"><code>{}</code></pre>'
                '<button type="button" class="copy" aria-label="Copy: {}">Copy</button></div>'
            ).format(title, title, text, title)
            for title, text in (
                ("The same on the command line", settings.commands(desk.image, tuned)),
                ("The same in Python", python),
            )
        )
        return str(Markup('<h3>To take away</h3><ul class="take">{}</ul>{}').format(links, lines))


def _moving(said: str, share: float | None = None) -> str:
    """A sentence about the current work, with a progress bar."""
    bar = (
        Markup('<progress max="1" aria-label="Progress"></progress>')
        if share is None
        else Markup('<progress max="1" value="{}" aria-label="Progress"></progress>').format(f"{share:.3f}")
    )
    return str(Markup('<div class="moving" role="status">{}<span>{}</span></div>').format(bar, said))


def _glimpse(uri: str, said: str) -> str:
    picture = Markup('<figure class="glimpse"><img src="{}" alt="{}"><figcaption>{}</figcaption></figure>')
    return str(picture.format(uri, said, said))
