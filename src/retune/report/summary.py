"""The report in a few sentences, with numbers computed from the results."""

from __future__ import annotations

import math
from dataclasses import dataclass

from retune.records import ProblemResult, Results
from retune.records.results import finite, longest
from retune.report.numbers import FALL, decimal, label, title


@dataclass(frozen=True)
class Headline:
    """The headline of a problem: the best PSNR, its method, and the PSNR to compare it with."""

    key: str
    title: str
    psnr: str
    lines: list[str]


def headlines(results: Results) -> list[Headline]:
    """One headline for each problem with a PSNR."""
    found = []
    for key, problem in results.problems.items():
        ranked = _ranked(problem)
        if not ranked:
            continue
        best, others = ranked[0], ranked[1:]
        lines = [_list(best.labels)]
        if others:
            lines.append(f"next, {_plus(others[0].psnr - best.psnr)} dB: {_list(others[0].labels)}")
        if problem.psnr_measurement is not None:
            lines.append(f"the measurement has {decimal(problem.psnr_measurement)} dB")
        found.append(Headline(key, title(problem, key), decimal(best.psnr), lines))
    return found


def summary(results: Results) -> list[str]:
    """Sentences in plain words. Missing results are not mentioned."""
    sentences = [
        "All methods restore the same test images from the same measurements. They differ in how their parameters are "
        "chosen. At an equilibrium the restoration no longer changes, so a longer run should do no harm. This report "
        "tests that, and gives the cost of each method."
    ]
    sentences += [text for part in (_best, _gain, _longer) if (text := part(results))]
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


@dataclass(frozen=True)
class _Place:
    """Methods with the same PSNR, as it is printed."""

    psnr: float
    labels: list[str]


def _ranked(problem: ProblemResult) -> list[_Place]:
    """The methods of a problem, the best first; those without a PSNR are left out."""
    places: list[_Place] = []
    known = [(p, label(m, name)) for name, m in problem.methods.items() if (p := finite(m.psnr)) is not None]
    for psnr, name in sorted(known, key=lambda found: -found[0]):
        if places and decimal(places[-1].psnr) == decimal(psnr):
            places[-1].labels.append(name)
        else:
            places.append(_Place(psnr, [name]))
    return places


def _best(results: Results) -> str:
    """The method with the best PSNR in every problem with several methods, and its lead."""
    won = []
    for key, problem in results.problems.items():
        ranked = _ranked(problem)
        if len(ranked) > 1:
            best, following = ranked[0], ranked[1]
            ahead = f"{decimal(best.psnr - following.psnr)} dB ahead of {_list(following.labels)}"
            won.append(f"that of {_list(best.labels)} in {title(problem, key).lower()} ({ahead})")
    if not won:
        return ""
    tests = (results.settings or {}).get("test")
    where = "On the test images"
    if isinstance(tests, list) and tests:
        where = f"On {_count(len(tests))} photograph{'s' * (len(tests) > 1)} that no method used for training or tuning"
    return f"{where}, the best PSNR is {_list(won)}."


def _gain(results: Results) -> str:
    """The gain of the other methods over the simplest one, a single λ."""
    gains = []
    for problem in results.problems.values():
        single = problem.methods.get("variational")
        base = None if single is None else finite(single.psnr)
        others = [finite(m.psnr) for name, m in problem.methods.items() if name != "variational"]
        gains += [] if base is None else [psnr - base for psnr in others if psnr is not None]
    if not gains:
        return ""
    low, high = _plus(min(gains)), _plus(max(gains))
    by = f"by {low} dB" if low == high else f"by {low} to {high} dB"
    return f"The other methods differ from the best single regularisation weight λ (grid search) {by}."


def _longer(results: Results) -> str:
    """The change of the PSNR of the methods in their longest runs."""
    moved: dict[str, list[float]] = {}
    for problem in results.problems.values():
        for name, method in problem.methods.items():
            change = finite(method.change)
            if change is not None:
                moved.setdefault(label(method, name), []).append(change)
    steady = {name: max(map(abs, values)) for name, values in moved.items() if min(values) >= -FALL}
    falling = {name: -min(values) for name, values in moved.items() if name not in steady}
    parts = []
    if steady:
        parts.append(f"the PSNR of {_list(list(steady))} changes by at most {_up(max(steady.values()))} dB")
    if falling:
        whose = "that" if steady else "the PSNR"
        parts.append(f"{whose} of {_list(list(falling))} falls by up to {decimal(max(falling.values()))} dB")
    return f"Run {longest(results.methods)} times longer than in training, {', and '.join(parts)}." if parts else ""


def _list(words: list[str]) -> str:
    """«a», «a and b», «a, b and c»."""
    return " and ".join([*[", ".join(words[:-1])][: len(words) > 1], words[-1]])


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
