"""The words of a section of ``report.html``: assumptions, results and doubts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from retune._version import __version__
from retune.certificate.quick import in_words
from retune.config import ProblemConfig
from retune.equilibrium import Status
from retune.io import Layout
from retune.io.intensity import Unit
from retune.jobs.contest import MEASURED, TUNED
from retune.jobs.inputs import middle
from retune.jobs.opened import OpenedModel
from retune.jobs.pictures import doubts_of, facts_of_network, picture_image, problem_words
from retune.jobs.residuals import MIDDLE
from retune.jobs.tiles import restore_image
from retune.model import Restarted
from retune.problems.base import Problem
from retune.records import EstimatedGain, Pictured, PicturedImage, RestoredImage, TuneResult

__all__ = ["Seen", "gain_in_words", "picture_tuned", "restored_section", "tuned_section", "tuning_in_words"]


#: Number of measurements of a tuning that are shown.
SHOWN = 3


@dataclass(frozen=True)
class Seen:
    """The first image of a file, and its restoration.

    Attributes:
        y: the measurement (1, C, h, w), as the network saw it.
        restored: the restored image, on the same scale.
        unit: of these values.
        layout: how the file is stored.
        pages: number of images in the file.
        read_again: whether the restored image was read from its file.
        fitted: the network and the problem of the restoration, if they are known.
    """

    y: Tensor
    restored: Tensor
    unit: Unit
    layout: Layout
    pages: int = 1
    read_again: bool = False
    fitted: tuple[OpenedModel, Problem] | None = None


def restored_section(
    model: OpenedModel,
    problem: Problem,
    told: RestoredImage,
    made: str,
    seen: Seen,
    detailed: bool,
    white_remembered: bool,
) -> Pictured:
    """The section of a file that was restored.

    Args:
        model: the network, with its problem.
        problem: the same problem, made.
        told: the record of the result.
        made: fingerprint of this record.
        seen: the image.
        detailed: whether the section has all pictures.
        white_remembered: whether the intensity of white comes from the network.
    """
    y = seen.y.cpu()
    image = picture_image(
        told.file, problem, model.problem, y, seen.restored.to(y), seen.unit, seen.layout,
        detailed=detailed, rounded=seen.read_again,
    )  # fmt: skip
    if seen.pages > 1:
        image.name = f"image 1 of {seen.pages}"
        image.notes.append(
            f"The other {seen.pages - 1} images of the file were restored in the same way. The record {told.file}.json "
            "has the worst number of all of them."
        )
    facts = [
        ["problem", problem_words(model.problem)],
        ["noise", _noise(model.problem, problem.sigma, seen)],
        ["white", _white(seen, white_remembered, told)],
        *facts_of_network(model.net, model.digest),
        *_ended(told),
    ]
    if told.seconds is not None:
        facts.append(["time", f"{told.seconds:.3g} seconds on {model.device}"])
    found = doubts_of(model.problem, problem, told.file, y)
    if told.status not in (Status.CONVERGED, Status.DEPTH_REACHED):
        found.insert(0, _unsettled(told))
    if seen.read_again:
        image.notes.append("The restored image was read from its file, where its values are rounded.")
    return Pictured(
        retune=__version__,
        format=1,
        verb="restore",
        file=told.file,
        made=made,
        title=told.file,
        verdict=["" if image.residual is None else f"Residual: {image.residual.sentence}"],
        certificate=in_words(told.certificate),
        facts=facts,
        doubts=found,
        images=[image],
    )


def tuned_section(
    net: Restarted,
    problem: ProblemConfig,
    told: TuneResult,
    made: str,
    images: Sequence[PicturedImage],
    found: Sequence[str],
    name: str,
    white: float | None,
    black: float | None = None,
) -> Pictured:
    """The section of a tuning.

    Args:
        net: the network.
        problem: the section [problem] of the run.
        told: ``tune.json``.
        made: fingerprint of that file.
        images: the measurements that are shown.
        found: doubts about the measurements.
        name: of that file.
        white: intensity that counts as 1.
        black: intensity that counts as 0.
    """
    levels = told.sigma if isinstance(told.sigma, list) else [told.sigma]
    sigma = " ".join(f"{level:.3g}" for level in levels if level is not None)
    level = f"grows with the brightness: {told.noise}" if told.noise else f"σ = {sigma}"
    facts = [
        ["problem", problem_words(problem)],
        ["noise", f"{level}, {'estimated from the images' if problem.sigma == 'estimate' else 'given'}"],
        [
            "white",
            ("the largest value of the type of the file, 1 for floats" if white is None else f"{white:g}")
            + (f"; black is {black:g}" if black else ""),
        ],
        ["learned with", told.loss],
    ]
    comparison = told.comparison
    for label, psnr, error in (
        ("defaults", comparison.before, None),
        (_of_comparison(told), comparison.after, comparison.uncertainty),
    ):
        sure = "" if error is None else f" ± {error:.2f}"
        of = f" of {comparison.of}" if comparison.of else ""
        facts.append([label, "no estimate" if psnr is None else f"{psnr:.2f}{sure} dB estimated PSNR{of}"])
    for rival in told.candidates:
        if rival.name not in ("defaults", _of_comparison(told)) and rival.gain is not None:
            facts.append([rival.name, f"{_gain(rival.gain, rival.spread)} over the defaults"])
    if told.estimated:
        facts.append(["estimated", told.estimated])
    if told.factors is not None:
        low, high = told.factors
        facts.append(["strengths that do as well", f"×{low:g} to ×{high:g} of the chosen one"])
    facts += facts_of_network(net)
    if told.seconds is not None:
        facts.append(["time", f"{told.seconds:.3g} seconds of learning"])
    return Pictured(
        retune=__version__,
        format=1,
        verb="tune",
        file=name,
        made=made,
        title="Tuning",
        verdict=[tuning_in_words(told)],
        certificate=in_words(told.certificate),
        facts=facts,
        doubts=[*found, *(f"{file} was not used: {why}" for file, why in told.left_out.items())],
        images=list(images),
    )


def picture_tuned(
    net: Restarted, problem: Problem, config: ProblemConfig, named: Sequence[tuple[str, Tensor]]
) -> list[PicturedImage]:
    """The first measurements of a tuning, restored with the tuned network. Of large ones, the middle is restored.

    Args:
        net: the network, on the CPU.
        problem: the problem of the measurements, with its noise level.
        config: the same as a section of a run.
        named: names and measurements (1, C, h, w).
    """
    known = config.model_copy(
        update={"sigma": list(problem.sigma) if isinstance(problem.sigma, tuple) else problem.sigma}
    )
    images = []
    for name, y in named[:SHOWN]:
        part, seen = middle(problem, y, MIDDLE) if problem.has_parts else (problem, y)
        restored, _ = restore_image(net, part, seen)
        image = picture_image(name, part, known, seen, restored, Unit(), None)
        if seen.shape != y.shape:
            image.notes.append(f"The middle {seen.shape[-2]}×{seen.shape[-1]} pixels are shown.")
        images.append(image)
    return images


def tuning_in_words(told: TuneResult) -> str:
    """The verdict on a tuning."""
    image = told.measured
    if image is not None and image.better and image.gain is not None:
        return (
            f"The measured image is better than every restoration: {_gain(image.gain, image.spread)} (estimated, of "
            f"{image.of}). The given kernel or noise is probably wrong (retune doctor examines both). "
            f"{gain_in_words(told.comparison, told.winner)}"
        )
    return gain_in_words(told.comparison, told.winner)


def gain_in_words(found: EstimatedGain, winner: str | None = None) -> str:
    """Whether the winner of a tuning is better than the initial parameters, and by how much."""
    who = winner if winner and found.better and winner != MEASURED else TUNED
    verb, have = ("are", "have") if who == TUNED else ("is", "has")
    decides = found.gain if found.again is None else found.again
    if not found.better and decides is not None and decides > 0:
        return f"The defaults are kept: the estimated error of the {TUNED} is smaller, but not clearly so."
    if not found.better:
        return f"The defaults are kept: the {TUNED} have no smaller estimated error."
    of = f"estimated, of {found.of}" if found.of else "estimated"
    if found.gain is None:  # written by an earlier version
        return f"The {who} {have} the smaller estimated error. By how much is unknown."
    if found.again is not None:
        return (
            f"The {who} {verb} better than the defaults by restoring the restored image again: "
            f"{_gain(found.again, found.again_spread)}. Alone, the error of {found.of} says "
            f"{_gain(found.gain, found.spread)} (estimated)."
        )
    gain = _gain(found.gain, found.spread)
    if found.spread is None or found.gain < 2 * found.spread:
        return f"The {who} {verb} used, but the gain is not significant: {gain} ({of})."
    return f"The {who} {verb} better than the defaults: {gain} ({of})."


def _gain(gain: float, spread: float | None) -> str:
    """A gain with its standard error."""
    return f"{gain:+.2f} dB" if spread is None else f"{gain:+.2f} ± {spread:.2f} dB"


def _of_comparison(told: TuneResult) -> str:
    """Name of the candidate that is compared with the defaults."""
    return told.winner if told.winner and told.comparison.better and told.winner != MEASURED else TUNED


def _unsettled(told: RestoredImage) -> str:
    """The meaning of an iteration that did not settle, and the remedy, as options of the command."""
    moves = (
        "" if told.residual is None else f" Its last block still changed the image by {told.residual:.1e} of its size."
    )
    how = "--set model.max_layers=10000" if told.status == Status.MAX_LAYERS else "--set model.solver=damped"
    return (
        f"The iteration did not settle ({told.status}), so the image is not an equilibrium.{moves} Tune or train the "
        f"network with {how}, or with a smaller --set model.step_size=0.5."
    )


def _noise(config: ProblemConfig, sigma: float | tuple[float, ...], seen: Seen) -> str:
    if config.noise is not None:
        return f"grows with the brightness: {config.noise} (one count, read noise; 1 is white)"
    if config.sigma == "estimate":
        return "estimated from each image"
    levels = sigma if isinstance(sigma, tuple) else (sigma,)
    told = f"σ = {' '.join(f'{level:.3g}' for level in levels)}, where 1 is white"
    if seen.layout.top is None:
        return told
    return f"{told} ({' '.join(f'{level / seen.unit.scale * seen.layout.top:.3g}' for level in levels)} in the file)"


def _white(seen: Seen, remembered: bool, told: RestoredImage) -> str:
    black, white = seen.unit.levels
    dark = f"; black is {black:g}{', found in the image' if told.black == 'auto' else ''}" if black else ""
    if told.white == "auto":
        return f"{white:g}, found in the image{dark}"
    if told.white is not None:
        return f"{white:g}, {'as in the training of the network' if remembered else 'given'}{dark}"
    top = seen.layout.top
    return ("1, as usual for floats" if top is None else f"{top}, the largest value of the type") + dark


def _ended(told: RestoredImage) -> list[list[str]]:
    facts = [["ended", f"{told.status} after {told.layers} layers"]]
    if told.residual is not None:
        facts.append(["last change", f"{told.residual:.1e} of the size of the image, in the last block"])
    return facts if not told.tiles or told.tiles == 1 else [*facts, ["tiles", str(told.tiles)]]
