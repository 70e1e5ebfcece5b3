"""The table "to add something" of CONTRIBUTING.md: one file and one line make a part of ours, as it says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import public_names

TEXT = (public_names.REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
TOYS = Path(__file__).parent / "toys"
#: the row of the table, and the toy of its kind
KINDS = {
    "a solver": "halfway",
    "a gradient rule": "last_layer",
    "a prior": "quadratic",
    "a map": "averaged_step",
    "a problem": "dimmed",
    "a data fidelity": "weighted",
}
ASKS = """
import json, torch
import retune
run = retune.config.from_dict({
    "problem": {"name": "dimmed", "options": {"factor": 0.6}},
    "prior": {"type": "quadratic", "options": {"weight": 0.3}},
    "map": {"type": "averaged_step"},
    "model": {"solver": "halfway", "depth": 2},
    "gradient": {"rule": "last_layer"},
})
net = retune.build.network_of(run, 1)
net.save("net.safetensors")
net = retune.load("net.safetensors")
y, physics = retune.build.problem_of(run.problem).measure(torch.rand(1, 1, 16, 16))
parts = [net.solver, net.gradient, net.map.prior, net.map, retune.problems.get("dimmed")]
retune.certify(net, y, physics)
print(json.dumps([type(p).__module__ for p in parts] + [retune.__file__]))
"""


def rows():
    """What to add → the row's other cells."""
    table = TEXT.split("## To add something")[1].split("None of this")[0]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| a ")]
    return {name: rest for name, *rest in cells}


def as_ours(toy: str) -> str:
    """The toy with the imports that a file inside the package has."""
    used = dict.fromkeys(re.findall(r"\bretune\.([A-Z]\w*|problems\.Problem)", toy))
    home = public_names.listed() | {"problems.Problem": "retune.problems.base"}
    lines = ["from retune._registry.entries import register"]
    lines += [f"from {home[name]} import {name.split('.')[-1]}" for name in used]
    toy = toy.replace("from retune.maps import", "from retune.parameters import")
    toy = toy.replace("import retune\n", "\n".join(lines) + "\n")
    return re.sub(r"\bretune\.(?:problems\.)?([A-Z]\w*|register\b)", r"\1", toy)


def test_one_file_and_one_line_make_a_part_of_ours(tmp_path):
    shutil.copytree(public_names.ROOT, tmp_path / "retune", ignore=shutil.ignore_patterns("__pycache__"))
    places = []
    for kind, toy in KINDS.items():
        if kind == "a data fidelity":  # it is registered where it is defined, beside deepinv's
            continue
        file, line = re.findall(r"`([\w/]+\.py)`", rows()[kind][0].replace("NAME", toy))
        package = Path(file).parent.relative_to("src")
        (tmp_path / package / f"{toy}.py").write_text(as_ours((TOYS / f"{toy}.py").read_text()))
        with (tmp_path / package.parent / line).open("a") as listed:
            listed.write(f"import {'.'.join(package.parts)}.{toy}\n")
        places.append(".".join((*package.parts, toy)))
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", ASKS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *found, file = json.loads(done.stdout)
    assert Path(file).is_relative_to(tmp_path)
    assert found == places


def test_every_row_points_at_files_that_are_there():
    assert set(KINDS) <= set(rows())
    for kind, (touch, example) in rows().items():
        toy = KINDS.get(kind)
        assert toy is None or f"`tests/toys/{toy}.py`" in example
        for name in re.findall(r"`([\w./]+\.(?:py|pyi|md|txt))`", f"{touch} {example}"):
            if "NAME" in name or "VERB" in name:
                name = str(Path(name).parent)
            assert any((public_names.REPOSITORY / root / name).exists() for root in ("", "src/retune")), (kind, name)
