"""What `import retune` gives to somebody who has done nothing else before."""

import os
import subprocess
import sys

import pytest

import public_names
import retune

LISTED = public_names.listed()

# Everything outside retune is loaded once. Each top-level name, with what is documented below it, is then asked of a
# process that has not imported retune yet.
EACH_IN_A_FRESH_PROCESS = """
import functools, itertools, os, sys, warnings
warnings.simplefilter("ignore")
import retune
for name in retune.__all__:
    getattr(retune, name)
for known in [m for m in sys.modules if m.split(".")[0] == "retune"]:
    del sys.modules[known]
del retune

for _, names in itertools.groupby(sys.argv[1:], lambda name: name.split(".")[0]):
    child = os.fork()
    if child == 0:
        for name in names:
            try:
                import retune
                functools.reduce(getattr, name.split("."), retune)
            except BaseException as error:
                print(f"{name}: {error!r}", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def unreachable(names):
    done = subprocess.run(
        [sys.executable, "-c", EACH_IN_A_FRESH_PROCESS, *sorted(names)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which Windows lacks")
def test_every_documented_name_is_reached_from_a_fresh_import():
    names = {*LISTED, *public_names.documented()}
    assert len(names) > 80
    unknown = "zoo.NoSuchMap: AttributeError(\"module 'retune' has no attribute 'zoo'\")"
    assert unreachable([*names, "zoo.NoSuchMap"]) == [unknown]


def test_the_list_has_every_module():
    assert {n for n, module in LISTED.items() if module == f"retune.{n}"} == public_names.modules()


def test_the_list_is_what_is_offered():
    assert set(retune.__all__) == set(LISTED)
    assert set(LISTED) <= set(dir(retune))


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="'retune' has no attribute 'Restart'"):
        retune.Restart  # noqa: B018


def test_the_name_of_before_says_the_name_of_now():
    with pytest.warns(DeprecationWarning, match=r"called retune\.DataTerm"):
        assert retune.Problem is retune.DataTerm


def test_importing_the_package_does_not_load_torch():
    """`retune --help` must not wait for it."""
    code = "import sys, retune; print(retune.__version__, dir(retune)); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


# A line of a user's script -> what mypy in strict mode says of it.
TYPES = {
    "import retune": None,
    "from retune.problems import names": None,
    "prior = retune.priors.WaveletL12('db4', levels=2, channels=3)": None,
    "net = retune.Restarted(retune.ForwardBackward(prior, reg=0.1), depth='auto', solver=retune.Anderson())": None,
    "reveal_type(net)": '"retune.model.Restarted"',
    "reveal_type(retune.load('net.safetensors'))": '"retune.model.Restarted"',
    "reveal_type(retune.guarantee.Convexity(strong=1.0))": '"retune.guarantee.Convexity"',
    "reveal_type(retune.problems.inpaint(keep=0.5))": '"retune.problems.named.Inpaint"',
    "result = net.solve(retune.data.photograph('chelsea'), retune.problems.inpaint().physics((3, 8, 8)))": None,
    "reveal_type(result)": '"retune.equilibrium.Equilibrium"',
    "reveal_type(result.image)": '"torch._tensor.Tensor"',
    "reveal_type(result.status)": '"tuple[retune.equilibrium.Status, ...]"',
    "reveal_type(names())": '"list[str]"',
    "retune.Stop(rtol='small')": 'incompatible type "str"; expected "float"',
    "retune.Restarter": 'Module has no attribute "Restarter"',
    "class Mine(retune.AbstractSolver): ...": None,
    "Mine()": 'Cannot instantiate abstract class "Mine" with abstract attributes "init" and "step"',
}


@pytest.mark.slow
def test_mypy_sees_our_types_from_outside(tmp_path):
    """On the path of Python, mypy takes a package for typed only if it has `py.typed`."""
    script = tmp_path / "script.py"
    script.write_text("\n".join(TYPES) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", tmp_path, script],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(public_names.ROOT.parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = {int(line.split(":")[1]): line for line in done.stdout.splitlines() if line.startswith("script.py:")}
    expected = {number: words for number, words in enumerate(TYPES.values(), 1) if words}
    assert said.keys() == expected.keys(), done.stdout + done.stderr
    for number, words in expected.items():
        assert words in said[number]
