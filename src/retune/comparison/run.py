"""Compare methods on the problem and the images of a run, with the same effort for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from deepinv.loss.metric import PSNR
from rich.progress import track

from retune._files import make_folder, remove_leftovers
from retune._torch.clock import clock_of
from retune._torch.devices import check_device
from retune._torch.memory import peak_of
from retune.build import options_of, problem_of
from retune.comparison.images import Images, images_of
from retune.comparison.ledger import Ledger
from retune.comparison.methods import METHODS, PNP, Method, methods_of
from retune.comparison.naming import before_testing, file_name, grid_name, model_names, title_of
from retune.comparison.pace import TRIAL, Clocked
from retune.comparison.rows import header, means, require_own, write_picture
from retune.comparison.score import Pair, certified, gradient_error, layers_of_training, learned, score, visible
from retune.comparison.tuning import Tuned, grid_search, method_network
from retune.config import Config, to_toml
from retune.errors import DivergedError, InvalidParameterError, unknown_name
from retune.jobs.folder import MODEL, save_model
from retune.jobs.opened import open_network
from retune.model import Restarted
from retune.problems.base import Problem
from retune.records import ImageScores, MethodResult, ProblemResult, Results, Searched, Trained
from retune.registry import load
from retune.training.checkpoints import fingerprint
from retune.training.data import TrainingData
from retune.training.fit import fit
from retune.training.options import FitOptions

__all__ = ["KEYS", "compare"]

KEYS = (METHODS[0].key, PNP.key, *(m.key for m in METHODS[1:]))
#: number of shown test images
PICTURES = 2

Note = Callable[[str], None]


def compare(
    run: Config,
    out: str | Path,
    *,
    methods: Sequence[str] | None = None,
    models: Sequence[Path] = (),
    resume: bool = False,
    device: str = "cpu",
    note: Note = lambda _: None,
    progress: bool = False,
    changed: Callable[[Results], None] = lambda _: None,
) -> Results:
    """Tune or train every method, and score it on the test images.

    Each finished part is stored at once in ``progress.json``, ``training/`` or ``models/``, for `resume`. A comparison
    on a few test images (``compare.every``) can be resumed on all of them.

    Args:
        run: the run.
        out: folder of the results.
        methods: keys of the methods; by default ``KEYS``, and the gradient rule of the run if it is another one.
        models: trained networks (files, or folders of retune train), which are only scored.
        resume: continue the comparison in the folder.
        device: device for the computations.
        note: called with a short text at each step.
        progress: show a bar for each training.
        changed: called with the results after each method.

    Returns:
        The results, for [`report`][retune.report].

    Raises:
        RetuneError: see [`fit`][retune.fit]. A diverged training is no error: it gets a row in the table.
    """
    known = methods_of(run)
    chosen = [known[k] if k in known else _unknown(k, known) for k in (known if methods is None else methods)]
    if not chosen and not models:
        raise InvalidParameterError("nothing to compare: give methods or trained models")
    for key in (*run.compare.run_on, *run.compare.certified):
        if key not in known:
            _unknown(key, known)
    if run.optimiser.warm_start:
        raise InvalidParameterError(
            "optimiser.warm_start: the methods are compared from the same starts; set it to false, or train with "
            "retune train and give the result with --model"
        )
    check_device(device)
    # Networks are opened first: a wrong path fails now, not after hours.
    opened = {key: (path, *open_network(path)) for key, path in model_names(models).items()}
    out, start = Path(out), time.perf_counter()
    images, problem = images_of(run), problem_of(run.problem)
    data = TrainingData(images.train, problem, images.validation)
    settings = {
        "run": to_toml(before_testing(run)),
        "train": data.fingerprint,
        "validation": data.validation_fingerprint,
    }
    if not (out / "progress.json").exists():
        require_own(out, "images", "models")
    make_folder(out)
    ledger = Ledger(out / "progress.json", settings, resume)
    remove_leftovers(out, *(out / name for name in ("images", "models", "figures") if (out / name).is_dir()))
    job = _Job(run, out, images, problem, data, ledger, device, note, progress)
    section = {
        "title": title_of(run.problem.name),
        "description": " ".join(filter(None, (run.compare.about, images.describe()))),
        "problem": job.problem.describe(),
        **job.pictures(),
    }
    rows: list[tuple[str, Callable[[], MethodResult]]] = [(m.key, lambda m=m: job.row(m)) for m in chosen]
    rows += [(key, lambda model=model: job.row_of_model(*model)) for key, model in opened.items()]
    done: dict[str, MethodResult] = {}
    results = None
    for key, make in rows:
        done[key] = make()
        problem = ProblemResult.model_validate(section | {"methods": dict(done)})
        seconds = time.perf_counter() - start
        found = {"problems": {file_name(run.problem.name): problem}, "seconds": seconds}
        results = Results.model_validate(header(run, device) | found)
        changed(results)
    assert results is not None
    return results


class _Job:
    """One comparison: the data that all methods share."""

    def __init__(
        self,
        run: Config,
        out: Path,
        images: Images,
        problem: Problem,
        data: TrainingData,
        ledger: Ledger,
        device: str,
        note: Note,
        progress: bool,
    ):
        self.run, self.out, self.images, self.ledger = run, out, images, ledger
        self.device, self.note, self.progress = device, note, progress
        self.problem, self.data = problem, data
        self.channels = images.test[0].shape[0]
        x = images.validation.to(device)
        self.held_out: Pair = (x, *self.problem.measure(x, run.seed + 11))

    def pair(self, i: int) -> Pair:
        """A test image, its measurement and its operator: the same for every method."""
        x = self.images.test[i][None].to(self.device)
        return (x, *self.problem.measure(x, self.run.seed + 1000 + self.images.places[i]))

    def pictures(self) -> dict:
        """Files of the first test images and their measurements, and the mean PSNR of all measurements."""
        shown: dict[str, list[str]] = {"names": [], "truth": [], "measurement": []}
        psnr = []
        for i in range(len(self.images.test)):
            pair = self.pair(i)
            psnr.append(float(PSNR()(visible(pair), pair[0])))
            if i >= PICTURES:
                continue
            place = self.images.places[i]
            shown["names"].append(f"test image {place + 1}")
            for key, image in (("truth", pair[0]), ("measurement", visible(pair))):
                shown[key].append(write_picture(self.out, f"{place}-{key}", image))
        return {"images": shown, "psnr_measurement": sum(psnr) / len(psnr)}

    def row(self, method: Method) -> MethodResult:
        """Tune or train, then score."""
        failure = None
        tuned = self.tuned(method.run_of(self.run))
        run = tuned.run
        if method.rule is None:
            net = method_network(method, run, self.channels).to(self.device)
            facts = {"seconds": tuned.seconds}
        else:
            net, facts = self.trained(method, run)
            failure = facts.pop("failure", None)
        if run.compare.memory:
            facts["memory"] = self.ledger.once(f"memory/{method.key}", int, lambda: self.memory(method, run))
        save_model(net, self.out / "models" / f"{method.key}.safetensors", self.run.problem, self.run.data.white)
        row = self.scored(method.key, net) | {"label": method.label, "how": method.how}
        if method.rule is None:  # for the other methods the grid only gives the start
            row |= {"remark": tuned.remark, "grid": tuned.tried}
        return MethodResult.model_validate(row | facts | {"failure": failure, "learned": learned(net)})

    def tuned(self, run: Config) -> Tuned:
        """The run with the best values of its grid. Methods with the same prior share the search."""

        def search() -> Searched:
            start = time.perf_counter()
            found = grid_search(run, self.held_out, self.note)
            model, prior = found.run.model, found.run.prior
            best = {"reg": model.reg, "step_size": model.step_size, "sigma": prior.sigma}
            return Searched(best=best, tried=found.tried, seconds=time.perf_counter() - start)

        entry = self.ledger.once(f"grid/{grid_name(run)}", Searched, search)
        best = entry.best
        model = run.model.model_copy(update={"reg": best["reg"], "step_size": best["step_size"]})
        prior = run.prior.model_copy(update={"sigma": best["sigma"]})
        return Tuned(run.model_copy(update={"model": model, "prior": prior}), entry.tried, entry.seconds)

    def trained(self, method: Method, run: Config) -> tuple[Restarted, dict]:
        """The network with the best validation PSNR over the learning rates."""
        rates = run.compare.lr or [run.optimiser.lr]
        found = []
        for lr in rates:
            name = f"{method.key}-{lr:g}"
            entry = self.ledger.once(
                f"train/{name}", Trained, lambda lr=lr, name=name: self._train(method, run, lr, name)
            )
            found.append((entry, self.out / "training" / name / MODEL))
        best, path = max(found, key=lambda f: f[0].psnr_validation)
        seconds = sum(entry.seconds for entry, _ in found)
        return load(path).to(self.device), best.plain() | {"seconds": seconds}

    def _train(self, method: Method, run: Config, lr: float, name: str) -> Trained:
        self.note(f"{method.label}: training, lr = {lr:g}")
        folder = self.out / "training" / name
        options = replace(
            options_of(run), lr=lr, device=self.device, progress=self.progress, folder=folder, resume=True
        )
        torch.manual_seed(run.seed)
        net = method_network(method, run, self.channels)
        entry: dict = {"lr": lr, "failure": None, "psnr_validation": -1e9, "seconds": None}
        try:
            if run.compare.seconds is not None:
                steps = self.ledger.once(f"steps/{name}", int, lambda: self._steps(method, run, options))
                options = replace(options, steps=steps)
                entry["steps"] = steps
            result = fit(net, self.data, options)
            entry |= {
                "seconds": result.seconds,
                "gradient_error": gradient_error(method, result),
                "psnr_validation": result.best_psnr,
                "best_step": result.best_step,
                "training": {"loss": [s.loss for s in result.steps]},
            }
        except DivergedError as error:  # it gets a row in the table; the comparison goes on
            entry["failure"], entry["seconds"] = str(error), 0.0
        save_model(net.cpu(), folder / MODEL, run.problem, run.data.white)
        return Trained.model_validate(entry)

    def _steps(self, method: Method, run: Config, options: FitOptions) -> int:
        """The number of training steps that take ``compare.seconds``, from a short trial."""
        assert run.compare.seconds is not None
        clock = Clocked(options.loss, clock_of(self.device))
        trial = replace(
            options, loss=clock, steps=TRIAL, validate_every=TRIAL, folder=None, resume=False, progress=False
        )
        torch.manual_seed(run.seed)
        net = method_network(method, run, self.channels)
        fit(net, TrainingData(self.data.images, self.data.problem), trial)
        return clock.steps_in(run.compare.seconds)

    def memory(self, method: Method, run: Config) -> int:
        """Peak memory of a training step in bytes; for an untrained method, of a restoration of the same crops."""
        net = method_network(method, run, self.channels).to(self.device)
        side = min(run.data.crop, self.images.validation.shape[-1])
        x = self.images.validation[: run.data.batch_size, :, :side, :side].to(self.device)
        y, physics = self.problem.measure(x, 0)

        def step() -> None:
            if method.rule is None:
                with torch.no_grad():
                    net.eval().solve(y, physics)
                return
            (net.train()(y, physics) - x).square().mean().backward()

        return peak_of(step, torch.device(self.device))

    def row_of_model(self, path: Path, net: Restarted, digest: str) -> MethodResult:
        """The row of a network that was trained before."""
        self.note(str(path))
        row = self.scored(f"model-{digest[:12]}", net.to(self.device))
        return MethodResult.model_validate(
            row | {"label": path.name, "how": "trained before, as it is", "learned": learned(net)}
        )

    def scored(self, key: str, net: Restarted) -> dict:
        """The means over the test images, with pictures and certificates of the first."""
        count = len(self.images.test)
        self.note(f"{key}: {count} test image(s)")
        return means(
            [
                self.ledger.once(self._name(key, i), ImageScores, lambda i=i: self._score_image(key, net, i)).plain()
                for i in track(range(count), f"{key}: test images", transient=True, disable=not self.progress)
            ]
        )

    def _name(self, key: str, i: int) -> str:
        """The name of the scores of a test image. It does not depend on the other test images."""
        place, digest = self.images.places[i], fingerprint([self.images.test[i]])[:12]
        more = "shown" * (i < PICTURES) + "certified" * self._is_certified(key, i)
        return f"image/{key}/{place}-{digest}{more}"

    def _is_certified(self, key: str, i: int) -> bool:
        compare = self.run.compare
        return i < compare.certify and (not compare.certified or key in compare.certified)

    def _score_image(self, key: str, net: Restarted, i: int) -> ImageScores:
        run, pair = self.run, self.pair(i)
        model = run.model
        far = run.compare.multiples
        settled = None if key in run.compare.run_on else model.rtol
        row, image = score(net, pair, model.depth, far, max(far) * layers_of_training(net), settled=settled)
        if i < PICTURES:
            row["image"] = write_picture(self.out, f"{self.images.places[i]}-{key}", image)
        if self._is_certified(key, i):
            row["certificate"] = certified(net, pair)
        return ImageScores.model_validate(row)


def _unknown(key: str, known: Iterable[str]) -> Method:
    raise unknown_name("method", key, known)
