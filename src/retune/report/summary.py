"""The report in a few sentences, with numbers computed from the results."""

from __future__ import annotations

import math
from dataclasses import dataclass

from retune.records import ProblemResult, Results
from retune.records.results import finite, longest
from retune.report.numbers import decimal, title


@dataclass(frozen=True)
class Headline:
    """The key figures of a problem: ReTune's PSNR, and values for comparison."""

    key: str
    title: str
    psnr: str
    lines: list[str]


def headlines(results: Results) -> list[Headline]:
    """The key figures of every problem that ReTune was run on."""
    found = []
    for key, problem in results.problems.items():
        psnr = _psnr(problem, "retune")
        if psnr is None:
            continue
        lines = []
        measured = problem.psnr_measurement
        if measured is not None:
            lines.append(f"the measurement has {decimal(measured)} dB")
        for name, words in (("variational", "best single λ"), ("implicit", "implicit gradient")):
            other = _psnr(problem, name)
            if other is not None:
                lines.append(f"{_plus(psnr - other)} dB against the {words}")
        found.append(Headline(key, title(problem, key), decimal(psnr), lines))
    return found


def summary(results: Results) -> list[str]:
    """Sentences in plain words. Missing results are not mentioned."""
    sentences = [
        "ReTune learns the weights of an image prior at the point where the restoration no longer changes. Running the "
        "network longer should then do no harm; this report checks that, and shows the cost."
    ]
    sentences += [text for part in (_gain, _gap, _longer) if (text := part(results))]
    verdicts = results.verdicts
    if verdicts:
        held = sum(v.holds for v in verdicts)
        sentences.append(
            f"All {held} claims checked below hold."
            if held == len(verdicts) > 1
            else f"Of {len(verdicts)} claims checked below, {held} hold{'s' if held == 1 else ''} and "
            f"{len(verdicts) - held} {'does' if len(verdicts) - held == 1 else 'do'} not."
        )
    if results.quick:
        sentences.append("This was a quick run, with too few training steps for conclusions.")
    return sentences


def _psnr(problem: ProblemResult, name: str) -> float | None:
    return finite(problem.methods[name].psnr) if name in problem.methods else None


def _differences(results: Results, other: str) -> dict[str, float]:
    """ReTune's PSNR minus that of another method, by the title of the problem."""
    found = {}
    for key, problem in results.problems.items():
        ours, theirs = _psnr(problem, "retune"), _psnr(problem, other)
        if ours is not None and theirs is not None:
            found[title(problem, key).lower()] = ours - theirs
    return found


def _gain(results: Results) -> str:
    gains = _differences(results, "variational")
    if not gains:
        return ""
    tests = (results.settings or {}).get("test")
    where = "On the test images"
    if isinstance(tests, list) and tests:
        where = f"On {_count(len(tests))} photograph{'s' * (len(tests) > 1)} that no method used for training or tuning"
    each = [f"{_plus(gain)} dB in {name}" for name, gain in gains.items()]
    each = [*each[:-2], " and ".join(each[-2:])]
    return (
        f"{where}, its PSNR differs from that of the best single regularisation weight λ (grid search) by "
        f"{', '.join(each)}."
    )


def _gap(results: Results) -> str:
    gaps = _differences(results, "implicit")
    if not gaps:
        return ""
    largest = max(abs(gap) for gap in gaps.values())
    return f"It differs from training with the implicit gradient by at most {_up(largest)} dB."


def _longer(results: Results) -> str:
    """The change of ReTune and of the unrolled network at the longest tested run."""
    moved: dict[str, list[float]] = {}
    for name in ("retune", "unrolled"):
        values = [finite(p.methods[name].change) for p in results.problems.values() if name in p.methods]
        moved[name] = [v for v in values if v is not None]
    if not moved["retune"]:
        return ""
    last = longest(results.methods)
    most = _up(max(map(abs, moved["retune"])))
    text = f"Run {last} times longer than in training, its PSNR changes by at most {most} dB"
    if moved["unrolled"]:
        worst = min(moved["unrolled"])
        text += (
            f", while that of the ordinary unrolled network falls by up to {decimal(-worst)} dB"
            if worst <= -0.01
            else "; that of the ordinary unrolled network does not fall either"
        )
    return text + "."


def _up(value: float) -> str:
    """Rounded up, because it is a bound."""
    digits = 2 if value >= 0.01 else 4
    return decimal(max(math.ceil(round(value * 10**digits, 6)), 1) / 10**digits, digits)


def _plus(value: float) -> str:
    text = decimal(value)
    return f"+{text}" if value > 0 and float(text) > 0 else text


def _count(number: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[number] if number < len(words) else str(number)
