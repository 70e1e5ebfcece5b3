"""Tune a restoration on the measurements of a user, without any ground truth."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from retune._files import remove_leftovers
from retune._torch.devices import check_chosen_device
from retune._torch.threads import suited_threads
from retune.build import network_of, options_of
from retune.certificate.quick import sample_certificate
from retune.config import Config, load
from retune.diagnosis.glance import doubts
from retune.diagnosis.psf import kernel_doubts
from retune.errors import CheckpointError, DoubtfulWarning, unknown_name
from retune.instant import calibrated, instant_network
from retune.io.intensity import Level, require_white
from retune.jobs.assess import Scene, indistinguishable, learned
from retune.jobs.contest import AT_ONCE, Contest, compete
from retune.jobs.criteria import criteria_of, judge_of
from retune.jobs.folder import MODEL, RUN, facts_of, prepare, save_model
from retune.jobs.folder import TUNED as TUNE
from retune.jobs.pictures import FOLDER, section_of
from retune.jobs.sections import picture_tuned, tuned_section
from retune.jobs.starting_run import starting_run
from retune.jobs.tuned_on import common_levels, usable_of, with_noise
from retune.model import Restarted
from retune.priors.capabilities import priors_of
from retune.problems.base import Problem
from retune.problems.measured import Measurements
from retune.records import Pictured, TuneFacts, TuneResult
from retune.records.results import finite
from retune.solve import Stop
from retune.training.data import TrainingData
from retune.training.fit import fit
from retune.training.lock import FolderLock
from retune.training.unsupervised import ErrorEstimate

__all__ = ["LOSSES", "earlier", "starting_run", "tune"]

LOSSES = ("auto", "sure", "r2r", "ei")
#: Relative change per block at which the restarts of the learning stop. A gradient needs less accuracy than an image.
#: But an image far from its equilibrium is too smooth, and the chosen strength would be too small.
_NEAR = 5e-4
#: Side of the certified part: the middle of the first measurement.
_CERTIFIED = 128
#: If the estimate rests on a guess, the winner must be better by this many standard errors.
_CLEARLY = 2.0
RESULT = TUNE


def earlier(out: Path) -> tuple[Config, list[Path], TuneFacts]:
    """Run, images and settings of the run in a folder.

    Raises:
        CheckpointError: the folder contains no run.
    """
    try:
        facts = facts_of(out).tuned
        if facts is not None:
            return load(out / RUN), [Path(p) for p in facts.images], facts
        cause = None
    except (OSError, ValueError, CheckpointError) as error:
        cause = error
    raise CheckpointError(
        f"{out} contains no run of retune tune to continue; start a run: retune tune IMAGES --problem denoise"
    ) from cause


def tune(
    config: Config,
    files: Sequence[Path],
    out: Path,
    *,
    white: Level = None,
    black: Level = None,
    loss: str = "auto",
    resume: bool = False,
    device: str = "auto",
    progress: bool = True,
    report: bool = False,
    ships: bool = False,
    note: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[TuneResult, str]:
    """Learn strengths, step sizes and weights at the equilibrium from measurements alone.

    The loss for denoising and a blur is Stein's unbiased estimate of the error where the noise level is given, and
    deepinv's recorrupted loss where it is estimated from the images; it is Stein's estimate with splitting where pixels
    are missing, and with equivariant imaging for larger images of small ones and a physics of the user's, where the
    weights of a norm are left as they are.

    What was learned then competes with what it started from, with equal weights, with the measured image itself, and
    for noise alone with the denoiser that ships (see `ships`). The estimate of the error is not the one that was
    minimised: its draws are fresh. Several pages of one scene judge each other, counts are judged by counts that were
    kept away from the restoration, and a blur by Stein's estimate alone. The best is kept.

    Args:
        config: the run; its own images are not used.
        files: the measurements.
        out: folder for ``config.toml``, ``run.json``, checkpoints, ``log.csv``, ``tune.json`` and
            ``model.safetensors``.
        white: intensity (in the units of the files) that counts as 1; ``data.white`` of the run by default. "auto"
            takes that of the brightest file.
        black: intensity that counts as 0; "auto" takes that of the darkest file.
        loss: "auto", "sure", "r2r" or "ei".
        resume: continue from the newest checkpoint in `out`, if there is one.
        device: "auto", "cpu", "cuda", …
        progress: show a progress bar.
        report: keep a section of the page ``report.html``.
        ships: whether the denoiser that ships competes, for noise alone: nobody has chosen a prior.
        note: called after each step with (steps done, number of steps).

    A file that cannot be read or does not fit the problem is left out, and the result names it.

    Returns:
        The content of ``tune.json``, and why the page has no section of it, if one was wanted.

    Raises:
        RetuneError: no file that can be used, images of different numbers of channels, or a problem or run that cannot
            be used; see [`fit`][retune.fit].

    Warns:
        DoubtfulWarning: a kernel with a background or off its centre, clipped values, or a noise level far from that
            of the images.
    """
    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    check_chosen_device(device)
    require_white(white, black)
    dark, bright = common_levels(config, files, config.data.white if white is None else white, black)
    usable = usable_of(config, files, bright, dark)
    problem, measured = usable.problem, [y for _, y in usable.named]
    doubtful = [*kernel_doubts(problem), *doubts(problem, usable.named)]
    for doubt in doubtful:
        warnings.warn(doubt, DoubtfulWarning, stacklevel=2)
    estimate, criterion, words = criteria_of(config, problem, loss)
    made = Measurements(problem, crops=problem.has_parts)
    data = TrainingData([made.pack(y) for y in measured], made)
    torch.manual_seed(config.seed)
    _, channels, height, width = measured[0].shape
    used = with_noise(config, problem)
    if config.prior.type == "energy":
        used = calibrated(used, problem, measured[0])
    net = network_of(used, problem.image_size((channels, height, width))[0])
    if words.guesses:
        _strength_only(net)
    start = {k: v.clone() for k, v in net.state_dict().items()}
    with FolderLock(out):
        remove_leftovers(out, out / FOLDER)
        facts = TuneFacts(
            images=[str(f.resolve()) for f in usable.files], white=bright, black=dark, loss=loss, ships=ships
        )
        # The strengths depend on the noise, so they are stored: a resumed run must find the same ones.
        prepare(_where(used, usable.files), out, data.fingerprint, resume, tuned=facts)
        smallest = min(min(y.shape[-2:]) for y in measured)
        options = replace(
            options_of(config),
            crop=min(config.data.crop, smallest) if problem.has_parts else None,
            loss=criterion,
            validate_every=None,
            warm_start=False,
            device=device,
            progress=progress,
            folder=out,
            resume=resume,
            flips=made.can_flip,
            note=lambda record: note(record.step, config.optimiser.steps),
            stop=Stop(max(_NEAR, config.model.rtol), max(1, config.model.depth * config.model.restarts)),
        )
        with suited_threads(config.data.batch_size * channels * (options.crop or smallest) ** 2):
            result = fit(net, data, options)
        # A learned energy costs more per pixel than a wavelet norm.
        scene = Scene(problem, measured, _CERTIFIED) if config.prior.type == "energy" else Scene(problem, measured)
        at_once = _at_once(problem, measured[0]) if ships and problem.only_noise else None
        clearly = _CLEARLY if words.guesses else 0.0
        judge = judge_of(problem, estimate)
        contest = compete(net.cpu(), start, scene, problem, judge, config.seed, clearly, at_once)
        factors = _factors(contest, scene, judge, config.seed, words.guesses)
        net = contest.net
        # Only the restoration of the winner is certified: its gradient would cost several hundred products.
        first = Scene(problem, measured[:1], _CERTIFIED)
        certificate = sample_certificate(net, lambda: next(iter(first)), learning=False)
        chosen = learned(net)
        tuned = TuneResult(
            loss=str(words),
            sigma=list(problem.sigma) if isinstance(problem.sigma, tuple) else problem.sigma,
            comparison=contest.comparison,
            factors=factors,
            parameters={name: [finite(v) for v in values] for name, values in chosen.items()},
            seconds=result.seconds,
            certificate=certificate,
            left_out=usable.left_out,
            noise=None if problem.noise is None else str(problem.noise),
            winner=contest.winner,
            estimated=contest.how or None,
            white=bright,
            black=dark,
            candidates=list(contest.rivals),
            measured=contest.measured,
        )
        tuned.write(out / RESULT)
        more = {"borderless": "yes"} if config.prior.type == "energy" else {}
        save_model(net, out / MODEL, used.problem, bright, dark, **more)
        unpictured = _picture(net, problem, config, usable.named, doubtful, tuned, out) if report else ""
    return tuned, unpictured


def _picture(
    net: Restarted,
    problem: Problem,
    config: Config,
    named: Sequence[tuple[str, Tensor]],
    doubtful: Sequence[str],
    tuned: TuneResult,
    out: Path,
) -> str:
    """Write the section of the page. Returns the reason if it fails, else ""."""

    def make(made: str) -> Pictured:
        images = picture_tuned(net, problem, config.problem, named)
        return tuned_section(net, config.problem, tuned, made, images, doubtful, RESULT, tuned.white, tuned.black)

    return section_of(out, RESULT, (out / RESULT).read_bytes(), make)[1]


def _at_once(problem: Problem, y: Tensor) -> Callable[[], Restarted]:
    """A function that makes the network that restores a denoising problem at once, without tuning."""
    return lambda: instant_network(Config(), problem, y)[0]


def _factors(
    contest: Contest, scene: Scene, estimate: ErrorEstimate, seed: int, guesses: bool
) -> tuple[float, float] | None:
    """The range of strengths that are as good as the chosen one; None if it would rest on a guess."""
    if guesses or contest.winner == AT_ONCE:
        return None
    return indistinguishable(contest.net, scene, estimate, seed, contest.errors)


def _strength_only(net: Restarted) -> None:
    """Do not learn the weights of norms. If an image is larger than its measurement, its finest details were not
    measured. Weights that smooth them would have the smaller estimated error.
    """
    for prior in priors_of(net):
        prior.hold_scales()


def _where(config: Config, files: Sequence[Path]) -> Config:
    """The run, with one path for its images: their folder or the common one. ``run.json`` lists all files."""
    place = files[0] if len(files) == 1 else Path(os.path.commonpath([f.resolve().parent for f in files]))
    return config.model_copy(update={"data": config.data.model_copy(update={"train": str(place.resolve())})})
