"""A study of a run, part by part; every finished part is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import deepinv
import torch

from retune._files import make_folder, remove_leftovers
from retune._torch.devices import check_device
from retune._version import __version__
from retune.build import network_of, problem_of
from retune.comparison.ledger import Ledger
from retune.comparison.naming import before_testing
from retune.config import Config, to_toml
from retune.errors import ConfigError
from retune.model import Restarted
from retune.records import Raced, Record, StepCost, Study, StudyImage
from retune.studies.costs import step_costs
from retune.studies.files import require_own, write_study
from retune.studies.grid import mean_of, rule_of_study, study_image
from retune.studies.options import StudyOptions
from retune.studies.race import contenders, race
from retune.studies.scenes import Scene, sharp, training_parts
from retune.training.checkpoints import fingerprint
from retune.training.data import TrainingData

__all__ = ["study"]

#: The seed of the measurement of image i is that of the run plus this, plus i.
_MEASURED = 1000


class _Costs(Record):
    costs: list[StepCost]


def study(
    run: Config,
    out: str | Path,
    options: StudyOptions | None = None,
    *,
    net: Restarted | None = None,
    resume: bool = False,
    device: str = "cpu",
    command: str | None = None,
    quick: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Study:
    """Measure the errors of gradient and state over a grid of depths K and restarts R, and the cost of a step.

    The gradient of each cell is that of a training step: K layers at the state after R restarts, pulled back M times,
    with the loss ``mean (x̂ − x)²``. It is compared with implicit differentiation at the equilibrium, solved to 1e-8.
    In theory, for a map with the factor ρ per layer, the error of the adjoint is at most ``ρ^{KM}``, and the distance
    of the state at most ``ρ^{KR}`` times that of the first one (arXiv:2506.13239). The grid is computed in float64, the
    cost in the precision of the training. Each finished image and training is kept in ``progress.json``, for `resume`.

    Args:
        run: the run.
        out: folder for ``study.json``, ``study.csv`` and ``races.csv``.
        options: the grid and the trainings.
        net: a trained network; by default the network of the run, untrained.
        resume: continue the study in the folder. Trainings may be added to it.
        device: device for the computations.
        command: the command that made the study, for the page.
        quick: whether the grid is too small for conclusions, for the page.
        note: called with a short text at each step.

    Raises:
        DivergedError: an image has no equilibrium.
        InvalidParameterError: an option is out of range, nothing is learned, or the folder holds another study.
        ConfigError: the trainings need validation images.
        CheckpointError: the study to continue has other settings.
    """
    options = StudyOptions() if options is None else options
    check_device(device)
    problem, out = problem_of(run.problem), Path(out)
    images = sharp(run, options.images, options.crop)
    parts = training_parts(run, options.images, options.crop) if options.train_seconds else None
    if options.train_seconds and parts is None:
        raise ConfigError(
            "trainings for PSNR against seconds need validation images: set data.validation to a folder, or leave the "
            "trainings out with --train-seconds 0"
        )
    if net is None:
        torch.manual_seed(run.seed)
        net = network_of(run, images.shape[1])
    depths, restarts = options.depths_for(net.map.layers), options.restarts
    settings = {
        "run": to_toml(before_testing(run)),
        "network": fingerprint([p.detach().cpu() for p in net.parameters()]),
        "images": fingerprint(list(images)),
        "depths": list(depths),
        "restarts": list(restarts),
        "beyond": options.beyond,
    }
    require_own(out)
    make_folder(out)
    ledger = Ledger(out / "progress.json", settings, resume)
    remove_leftovers(out)
    facts = {
        "retune": __version__,
        "command": command,
        "quick": quick,
        "seed": run.seed,
        "device": device,
        "versions": {"torch": torch.__version__, "deepinv": deepinv.__version__},
        "problem": problem.describe(),
        "about": [type(net.map).__name__, f"{len(images)} of {images.shape[-2]}×{images.shape[-1]} pixels"],
        "blocks": rule_of_study(net).blocks,
        "depths": list(depths),
        "restarts": list(restarts),
        "train_seconds": options.train_seconds,
    }
    found: list[StudyImage] = []
    races: list[Raced] = []
    costs: list[StepCost] = []

    def so_far() -> Study:
        mean = mean_of(found)
        result = Study.model_validate(facts | {"images": found, "mean": mean, "costs": costs, "races": races})
        write_study(result, out)
        return result

    fine = copy.deepcopy(net).to(device, torch.float64)
    for i, x in enumerate(images):
        scene = Scene.of(f"image {i + 1}", x[None].to(device, torch.float64), problem, run.seed + _MEASURED + i)
        found.append(
            ledger.once(
                f"image/{i}",
                StudyImage,
                lambda scene=scene: study_image(fine, scene, depths, restarts, options.beyond, note),
            )
        )
        so_far()
    note("time and memory of training steps")
    costs += ledger.once("costs", _Costs, lambda: _Costs(costs=_costs(run, net, images[:1], options, device))).costs
    result = so_far()
    if parts is None:
        return result
    train, validation = parts
    data = TrainingData(train, problem, validation)
    for one in contenders(run, costs):
        for seed in range(options.seeds):
            note(f"{one.label}: training for {options.train_seconds:g} s, seed {seed}")
            name = f"race/{one.key}/{options.train_seconds:g}/{seed}"
            races.append(
                ledger.once(
                    name,
                    Raced,
                    lambda one=one, seed=seed: race(run, one, data, options.train_seconds, run.seed + seed, device),
                )
            )
            result = so_far()
    return result


def _costs(run: Config, net: Restarted, x: torch.Tensor, options: StudyOptions, device: str) -> list[StepCost]:
    coarse = copy.deepcopy(net).to(device)
    scene = Scene.of("image 1", x.to(device), problem_of(run.problem), run.seed + _MEASURED)
    return step_costs(coarse, scene, rule_of_study(net), options.depths_for(net.map.layers), options.restarts)
