"""A study of a run, part by part; every finished part is kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import deepinv
import torch
from torch import Tensor

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
from retune.studies.grid import Note, mean_of, rule_of_study, study_image
from retune.studies.options import StudyOptions
from retune.studies.race import Contender, contenders, race
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
    note: Note = lambda _: None,
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
    images = sharp(run, options.images, options.crop)
    parts = training_parts(run, options.images, options.crop) if options.train_seconds else None
    if options.train_seconds and parts is None:
        raise ConfigError(
            "trainings for PSNR against seconds need validation images: set data.validation to a folder, or leave the "
            "trainings out with --train-seconds 0"
        )
    trained = net is not None
    if net is None:
        torch.manual_seed(run.seed)
        net = network_of(run, images.shape[1])
    depths = options.depths_for(net.map.layers)
    settings = {
        "run": to_toml(before_testing(run)),
        "network": fingerprint([p.detach().cpu() for p in net.parameters()]),
        "images": fingerprint(list(images)),
        "depths": list(depths),
        "restarts": list(options.restarts),
        "beyond": options.beyond,
    }
    out = Path(out)
    require_own(out)
    make_folder(out)
    ledger = Ledger(out / "progress.json", settings, resume)
    remove_leftovers(out)
    job = _Job(run, out, options, depths, images, net, ledger, device, note, trained)
    job.facts |= {"command": command, "quick": quick}
    job.add_images()
    job.add_costs()
    if parts is not None:
        job.add_races(*parts)
    return job.so_far()


class _Job:
    """One study: its objects, and the results so far."""

    def __init__(
        self,
        run: Config,
        out: Path,
        options: StudyOptions,
        depths: tuple[int, ...],
        images: Tensor,
        net: Restarted,
        ledger: Ledger,
        device: str,
        note: Note,
        trained: bool,
    ):
        self.run, self.out, self.options, self.depths = run, out, options, depths
        self.images, self.net, self.ledger, self.device, self.note = images, net, ledger, device, note
        self.problem, self.rule = problem_of(run.problem), rule_of_study(net)
        self.found: list[StudyImage] = []
        self.costs: list[StepCost] = []
        self.races: list[Raced] = []
        self.facts: dict[str, Any] = {
            "retune": __version__,
            "seed": run.seed,
            "device": device,
            "versions": {"torch": torch.__version__, "deepinv": deepinv.__version__},
            "problem": self.problem.describe(),
            "about": [
                f"map {type(net.map).__name__}, {'trained' if trained else 'initial'} weights",
                f"{len(images)} image{'s' * (len(images) > 1)} of {images.shape[-2]}×{images.shape[-1]} pixels",
            ],
            "parameters": sum(p.numel() for p in net.map.parameters() if p.requires_grad),
            "blocks": self.rule.blocks,
            "depths": list(depths),
            "restarts": list(options.restarts),
            "train_seconds": options.train_seconds,
        }

    def so_far(self) -> Study:
        """Write and return the results so far."""
        parts = {"images": self.found, "mean": mean_of(self.found), "costs": self.costs, "races": self.races}
        result = Study.model_validate(self.facts | parts)
        write_study(result, self.out)
        return result

    def scene(self, i: int, dtype: torch.dtype) -> Scene:
        """An image and its measurement."""
        x = self.images[i : i + 1].to(self.device, dtype)
        return Scene.of(f"image {i + 1}", x, self.problem, self.run.seed + _MEASURED + i)

    def add_images(self) -> None:
        """The grid of each image, in float64."""
        fine = copy.deepcopy(self.net).to(self.device, torch.float64)

        def compute(i: int) -> StudyImage:
            scene = self.scene(i, torch.float64)
            return study_image(fine, scene, self.depths, self.options.restarts, self.options.beyond, self.note)

        for i in range(len(self.images)):
            self.found.append(self.ledger.once(f"image/{i}", StudyImage, lambda i=i: compute(i)))
            self.so_far()

    def add_costs(self) -> None:
        """Time and memory of training steps, in the precision of the training."""

        def compute() -> _Costs:
            self.note("time and memory of training steps")
            usual, scene = copy.deepcopy(self.net).to(self.device), self.scene(0, self.images.dtype)
            return _Costs(costs=step_costs(usual, scene, self.rule, self.depths, self.options.restarts))

        self.costs = self.ledger.once("costs", _Costs, compute).costs
        self.so_far()

    def add_races(self, train: list[Tensor], validation: Tensor) -> None:
        """Trainings of the same time."""
        data, seconds = TrainingData(train, self.problem, validation), self.options.train_seconds

        def compute(one: Contender, seed: int) -> Raced:
            self.note(f"{one.label}: training for {seconds:g} s, seed {seed}")
            return race(self.run, one, data, seconds, seed, self.device)

        for one in contenders(self.run, self.costs):
            for seed in range(self.run.seed, self.run.seed + self.options.seeds):
                name = f"race/{one.key}/{seconds:g}/{seed}"
                self.races.append(self.ledger.once(name, Raced, lambda one=one, seed=seed: compute(one, seed)))
                self.so_far()
