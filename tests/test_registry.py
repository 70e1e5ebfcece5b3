"""The register of names: what may be registered, how it is described, and what a plug-in is."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from deepinv.optim.prior import Prior
from torch import nn

import retune
from programs import python
from retune import registry
from retune._registry import entries
from retune._registry.describe import by_arguments, description, rebuild
from retune.errors import InvalidParameterError, UnknownNameError
from retune.parameters import Positive
from retune.priors import WaveletL1
from retune.solvers import AbstractSolver, Anderson


@pytest.fixture(autouse=True)
def _registered_names_stay_here(monkeypatch):
    for name in ("_BY_NAME", "_BY_CLASS"):
        monkeypatch.setattr(entries, name, dict(getattr(entries, name)))


class Plain(AbstractSolver):
    def init(self, u):
        return retune.Picard().init(u)

    def step(self, block, state):
        return retune.Picard().step(block, state)


def network(**options):
    return retune.Restarted(retune.ForwardBackward(WaveletL1("db2", levels=2)), **options)


def test_a_registered_class_is_found_by_its_name_in_any_writing():
    class PlainSteps(Plain):
        pass

    assert retune.register(PlainSteps) is PlainSteps
    assert "plain_steps" in registry.names("solver")
    for name in ("PlainSteps", "plain_steps", "plainsteps"):
        assert entries.find(name, "solver").cls is PlainSteps


def test_what_is_saved_is_loaded_and_what_cannot_be_loaded_is_not_saved(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(InvalidParameterError, match=r"the solver Plain, because .* not registered.*@retune\.register"):
        network(solver=Plain()).save(path)
    assert not path.exists()
    retune.register(Plain)
    network(solver=Plain()).save(path)
    assert type(retune.load(path).solver) is Plain


def test_a_subclass_is_not_taken_for_its_parent(tmp_path):
    class Slow(Anderson):
        pass

    with pytest.raises(InvalidParameterError, match="the solver Slow, because the class is not registered"):
        network(solver=Slow()).save(tmp_path / "net.safetensors")
    retune.register(Slow)
    net = network(solver=Slow(memory=3))
    net.save(tmp_path / "net.safetensors")
    again = retune.load(tmp_path / "net.safetensors").solver
    assert (type(again), again.memory) == (Slow, 3)


def test_arguments_are_told_by_attributes_or_fields():
    @retune.register
    @dataclass(frozen=True)
    class Fields(Plain):
        rate: float = 0.5
        steps: tuple[int, ...] = (1, 2)

    @retune.register
    class Attributes(Plain):
        def __init__(self, rate, inner=None):
            self.rate, self.inner = rate, inner

    told = description(Attributes(torch.tensor(0.25), Fields(0.1)))
    assert told == {
        "type": "Attributes",
        "rate": 0.25,
        "inner": {"type": "Fields", "rate": 0.1, "steps": [1, 2]},
    }
    assert rebuild(told).inner.rate == 0.1
    assert repr(Attributes(0.5)) == "Attributes(rate=0.5, inner=None)"


@pytest.mark.parametrize("held", [lambda x: x, Plain, torch.float32, object()])
def test_what_a_file_cannot_hold_is_named(held, tmp_path):
    @retune.register
    class Holds(Plain):
        def __init__(self, f):
            self.f = f

    with pytest.raises(InvalidParameterError, match=r"Holds\.f is a .*but a checkpoint cannot store it"):
        network(solver=Holds(held)).save(tmp_path / "net.safetensors")


def test_arguments_that_are_not_kept_are_named():
    @retune.register
    class Forgets(Plain):
        def __init__(self, rate):
            self.speed = rate

    @retune.register
    class Loose(Plain):
        def __init__(self, **options):
            self.options = options

    @retune.register
    class Adds(Anderson):
        def __init__(self, extra=1, **options):
            super().__init__(**options)
            self.extra = extra

        def describe(self):
            return {"type": "Anderson", "memory": self.memory}

    @retune.register
    class AddsMore(Adds):
        def __init__(self, more=1):
            super().__init__()
            self.more = more

    with pytest.raises(InvalidParameterError, match=r"has no attribute of that name.*self\.rate = rate"):
        by_arguments(Forgets(1))
    with pytest.raises(InvalidParameterError, match=r"takes \*\*options"):
        by_arguments(Loose(a=1))
    with pytest.raises(InvalidParameterError, match=r"AddsMore takes more, but its describe.* inherited from Adds"):
        description(AddsMore())


def test_a_description_asks_a_parameter_whether_it_is_trained_and_leaves_out_what_came_later():
    class Scaled(nn.Module):
        def __init__(self, factor=1.0, learn_factor=True, learn_bias=False, bound=None):
            super().__init__()
            self.factor = Positive(factor, (), learn=learn_factor, name="factor")
            self.bound = bound

    told = by_arguments(Scaled(learn_factor=False), ("factor",), ("bound",), learn_bias=True)
    assert told == {"type": "Scaled", "learn_factor": False, "learn_bias": True}
    assert by_arguments(Scaled(bound=2), ("factor",), ("bound",), learn_bias=True)["bound"] == 2
    with pytest.raises(InvalidParameterError, match="takes the argument learn_bias but has no attribute"):
        by_arguments(Scaled(), ("factor",), ("bound",))


def test_a_description_that_does_not_make_the_same_weights_is_not_saved(tmp_path):
    @retune.register
    class Grows(Prior):
        def __init__(self, size=1):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(size))

        def describe(self):
            return {"size": 1}

        def prox(self, x, *args, **kwargs):
            return x

    net = retune.Restarted(retune.ForwardBackward(Grows(3)))
    with pytest.raises(InvalidParameterError, match=r"it has different weights .*priors\.0\.weight"):
        net.save(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("cls", "name", "says"),
    [
        (Plain, "anderson", "that name is ReTune's own.*register.name="),
        (Plain, "AUTO", "a reserved word in runs"),
        (Plain, "a b", "cannot be a registered name"),
        (int, None, "int cannot be registered: expected a map"),
        (AbstractSolver, None, "it lacks init, step"),
        (3, None, "must be a class, got 3"),
    ],
)
def test_what_cannot_be_registered(cls, name, says):
    with pytest.raises(InvalidParameterError, match=says):
        registry.register(cls, name=name)


def test_two_classes_do_not_share_a_name():
    retune.register(Plain)
    retune.register(Plain)  # again, as when a cell of a notebook is run again
    other = type("Plain", (Plain,), {"__module__": "elsewhere"})
    with pytest.raises(InvalidParameterError, match=r"elsewhere\.Plain cannot be called 'Plain': that name belongs to"):
        retune.register(other)
    retune.register(other, name="OtherPlain")
    with pytest.raises(InvalidParameterError, match="already registered, as 'OtherPlain'"):
        retune.register(other, name="Third")


def test_an_unknown_name_says_how_to_register_one():
    with pytest.raises(UnknownNameError, match=r"did you mean 'anderson'.*@retune\.register.*--plugin FILE\.py"):
        entries.find("andersen", "solver")
    with pytest.raises(UnknownNameError, match="unknown solver"):
        entries.find("WaveletL1", "solver")
    with pytest.raises(UnknownNameError):
        entries.find(["Picard"])


PLUGIN = """
import retune
from beside_plugin import STEP

@retune.register
class FromFile(retune.Picard):
    step_of_mine = STEP
"""


@pytest.fixture
def forgotten(monkeypatch):
    """Modules and places that a plug-in adds are gone afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_plugin_registers_what_it_defines(tmp_path, monkeypatch, forgotten):
    (tmp_path / "beside_plugin.py").write_text("STEP = 3\n")
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    (tmp_path / "module_plugin.py").write_text(PLUGIN.replace("FromFile", "FromModule"))
    monkeypatch.chdir(tmp_path)
    registry.load_plugin(tmp_path / "my_plugin.py")
    registry.load_plugin(str(tmp_path / "my_plugin.py"))
    registry.load_plugin("module_plugin")
    assert {"from_file", "from_module"} <= set(registry.names("solver"))


def test_two_files_with_a_class_of_one_name_are_both_named(tmp_path, forgotten):
    (tmp_path / "beside_plugin.py").write_text("STEP = 3\n")
    for name in ("first_plugin", "second_plugin"):
        (tmp_path / f"{name}.py").write_text(PLUGIN)
    registry.load_plugin(tmp_path / "first_plugin.py")
    with pytest.raises(InvalidParameterError) as error:
        registry.load_plugin(tmp_path / "second_plugin.py")
    told = str(error.value)
    assert told.startswith(f"{tmp_path / 'second_plugin.py'} fails when it is imported: second_plugin.FromFile (in ")
    assert f"first_plugin.FromFile (in {tmp_path / 'first_plugin.py'}), which was registered before" in told
    assert "load only one of the two; if not, give it another name: @retune.register(name=...)" in told
    assert "InvalidParameterError" not in told


SCRIPT = """
import sys
import retune

@retune.register
class Mine(retune.Picard):
    pass

if __name__ == "__main__":
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL1("haar", 1)), solver=Mine())
    net.save("net.safetensors")
    module = retune.registry.load_plugin("my_script.py")
    assert module.__name__ == "my_script" and module.Mine is not Mine
    assert type(retune.load("net.safetensors").solver) is module.Mine
    net.save("again.safetensors")
    sys.exit(sys.modules["my_script"] is not module)
"""


def test_a_script_may_be_a_plugin_too(tmp_path):
    """It is executed twice, as ``__main__`` and by its name; its classes are the same ones."""
    (tmp_path / "my_script.py").write_text(SCRIPT)
    words = [*python(), "my_script.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def test_an_installed_distribution_offers_its_classes(monkeypatch, forgotten, tmp_path):
    """By an entry point, which is looked at only when a name is not known."""
    site = tmp_path / "site"
    info = site / "toys-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[retune.plugins]\nmine = offered_plugin\nbroken = no_such_plugin\n")
    (site / "offered_plugin.py").write_text("import retune\nretune.register(type('Offered', (retune.Picard,), {}))\n")
    monkeypatch.setattr(entries, "_failures", [])
    sys.path.append(str(site))
    assert entries.find("offered", "solver").name == "Offered"
    with pytest.raises(UnknownNameError, match=r"The installed plug-in broken .no_such_plugin. failed"):
        entries.find("another", "solver")
