"""A run as a TOML file: defaults, overrides, errors that say which field, and a file to start from."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from retune import config
from retune.config import Config
from retune.errors import ConfigError, UnknownNameError

SECTIONS = {n: f.annotation for n, f in Config.model_fields.items() if n != "seed"}


def test_an_empty_file_is_a_run(tmp_path):
    (tmp_path / "a.toml").write_text("")
    assert config.load(tmp_path / "a.toml") == Config()


def test_every_field_has_a_default_and_a_line_of_its_own():
    seen = []
    for section in (Config, *SECTIONS.values()):
        assert issubclass(section, BaseModel)
        section()
        for name, field in section.model_fields.items():
            assert field.description, name
            assert "\n" not in field.description
            assert len(field.description) < 120
            seen.append((section, field.description))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_every_shipped_run_is_loaded(name):
    loaded = config.load(config.shipped()[name])
    assert loaded.problem.name in name
    assert config.load(name) == loaded


def test_the_three_families_of_the_paper_ship():
    assert {"paper-denoise", "paper-inpaint", "paper-deblur"} <= set(config.shipped())
    assert config.load("paper-denoise").problem.sigma == [0.1, 0.25, 0.5]
    assert config.load("paper-deblur").problem.kernel == "three-motions"
    families = ("", "-pnp", "-embedded", "-embedded-ridge", "-embedded-energy")
    for problem in ("denoise", "deblur", "inpaint", "inpaint-10"):
        assert {f"paper{family}-{problem}" for family in families} <= set(config.shipped())
    assert all(config.load(f"paper{family}-inpaint-10").problem.keep == 0.1 for family in families)
    assert all(config.load(f"paper{family}-denoise").problem.sigma == [0.1, 0.25, 0.5] for family in families)
    for problem in ("deblur", "inpaint"):
        scalars, whole = (config.load(f"paper-{family}-{problem}").prior for family in ("pnp", "embedded"))
        assert (scalars.type, scalars.learn_weights, scalars.strength) == ("denoiser", False, 0.9)
        assert (whole.type, whole.learn_weights) == ("denoiser", True)


@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_the_starting_point_explains_every_field_and_is_the_shipped_run(name):
    text = config.starting_point(name)
    assert Config.model_validate(tomllib.loads(text)) == config.load(name)
    for section in (Config, *SECTIONS.values()):
        for field, info in section.model_fields.items():
            if field not in SECTIONS:
                assert f"# {info.description}\n" in text
                assert f"\n{field} = " in text or f"\n# {field} =" in text


def test_what_a_prior_does_not_have_is_explained_but_not_set():
    text = config.starting_point("deblur-denoiser")
    read = tomllib.loads(text)["prior"]
    assert {"type", "sigma", "learn_weights", "learn_strength"} <= read.keys()
    assert not {"levels", "norm", "wavelet", "box", "lipschitz"} & read.keys()
    assert "\n# levels =\n" in text


def test_the_starting_point_of_an_unknown_name():
    with pytest.raises(UnknownNameError, match="did you mean 'deblur'"):
        config.starting_point("deblurr")


def test_overrides_are_toml_or_plain_words():
    loaded = config.load(
        "deblur",
        ["model.depth=3", "problem.kernel=motion:15@30", 'data.train="a b"', "problem.sigma=[0.1, 0.2]", "seed=4"],
    )
    assert loaded.model.depth == 3
    assert loaded.problem.kernel == "motion:15@30"
    assert loaded.data.train == "a b"
    assert loaded.problem.sigma == [0.1, 0.2]
    assert loaded.seed == 4
    assert loaded.problem.boundary == "reflect"  # the rest is the file's


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "k.npy").write_bytes(b"")
    (tmp_path / "a.toml").write_text('[problem]\nkernel = "k.npy"\nmask = "none.png"\n[data]\ntrain = "."\n')
    loaded = config.load(tmp_path / "a.toml")
    assert loaded.problem.kernel == str(tmp_path.resolve() / "k.npy")
    assert loaded.problem.mask == "none.png"
    assert loaded.data.train == str(tmp_path.resolve())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"problem": {"sigam": 1}}, ["unknown key problem.sigam; did you mean 'sigma'?", "known here: name, sigma"]),
        ({"model": {"sigma": 1}}, ["unknown key model.sigma; did you mean problem.sigma or prior.sigma?"]),
        ({"modle": {}}, ["unknown key modle; did you mean 'model'"]),
        ({"depth": 3}, ["unknown key depth; did you mean model.depth?"]),
        ({"problem": {"sigma": -1}}, ["problem.sigma = -1:", "Noise standard deviation"]),
        ({"problem": {"sigma": []}}, ["problem.sigma = []:"]),
        ({"problem": {"sigma": True}}, ["problem.sigma = true:"]),
        ({"problem": {"sigma": float("nan")}}, ["problem.sigma = nan:"]),
        ({"problem": {"boundary": "reflct"}}, ['problem.boundary = "reflct"', "'reflect', 'circular' or 'valid'"]),
        ({"problem": {"factor": 5}}, ["problem.factor = 5: it should be 2, 3 or 4"]),
        ({"model": {"depth": 0}}, ["model.depth = 0: it should be greater than or equal to 1"]),
        ({"model": {"depth": "ten"}}, ['model.depth = "ten": it should be a valid integer']),
        ({"model": {"depth": 2.5}}, ["model.depth = 2.5: it should be a valid integer"]),
        ({"model": {"step_size": 1.0}}, ["model.step_size = 1.0: it should be less than 1"]),
        ({"model": 3}, ["model = 3: it should be a section: a table [model] of fields"]),
        ({"data": {"train": " "}}, ['data.train = "": it is empty']),
        ({"prior": {"coarse": 1}}, ["prior.coarse = 1: it should be a valid boolean"]),
        ({"prior": {"type": "wavlet"}}, ['prior.type = "wavlet"', "'wavelet', 'denoiser', 'red', 'ridge'"]),
        (
            {"prior": {"type": "denoiser", "levels": 3}},
            ['prior.levels = 3: a prior of type "denoiser" has no levels (type = wavelet has)'],
        ),
        ({"prior": {"wieghts": "x"}}, ["unknown key prior.wieghts; did you mean 'weights'"]),
        (
            {"prior": {"weights": "denoiser-gray"}},
            ['"wavelet" has no weights (type = denoiser or red or ridge or energy has)'],
        ),
        ({"prior": {"type": "ridge", "sigma": [0.1, 0.2]}}, ["prior.sigma = [0.1, 0.2]: it should be one number"]),
        ({"prior": {"type": "denoiser", "sigma": []}}, ["prior.sigma = []:"]),
        ({"prior": {"type": "denoiser", "sigma": 0.0}}, ["prior.sigma = 0.0:"]),
        ({"prior": {"type": "denoiser", "strength": 1.0}}, ["prior.strength = 1.0:"]),
        ({"prior": {"type": "red", "strength": 0.5}}, ['"red" has no strength']),
        ({"optimiser": {"penalty": 0.1}}, ["optimiser.penalty = 0.1", "set prior.type to denoiser or red"]),
        ({"model": {"depth": 0}, "seed": -1}, ["2 fault(s)", "seed = -1", "model.depth = 0"]),
    ],
)
def test_a_fault_names_the_field_the_value_and_what_is_allowed(values, says):
    with pytest.raises(ConfigError) as caught:
        config.from_dict(values)
    for text in says:
        assert text in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model.depth", "SECTION.FIELD=VALUE"),
        ("=3", "SECTION.FIELD=VALUE"),
        ("seed.x=3", "not a section"),
        ("model.dpeth=3", "did you mean 'depth'"),
    ],
)
def test_bad_overrides(text, says):
    with pytest.raises(ConfigError, match=says):
        config.from_dict({"seed": 1}, [text])


@pytest.mark.parametrize(
    ("content", "says"), [(b"a = = 3", "not a TOML file"), (b"\xff\xfe\x00", "not a TOML file"), (None, "no file")]
)
def test_a_file_that_is_no_run(tmp_path, content, says):
    path = tmp_path / "debulr.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        config.load(path)


def test_a_misspelt_shipped_run_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'deblur'"):
        config.load("debulr")


@given(
    st.builds(
        dict,
        seed=st.integers(0, 2**40),
        problem=st.fixed_dictionaries(
            {
                "name": st.text(),
                "kernel": st.none() | st.text(),
                "sigma": st.floats(0, 1e12) | st.lists(st.floats(0, 9), min_size=1),
                "options": st.dictionaries(st.text(), st.integers() | st.booleans() | st.text()),
            }
        ),
        prior=st.fixed_dictionaries({"wavelet": st.lists(st.text())}),
    ),
    st.booleans(),
)
def test_what_is_written_is_what_is_read(values, comments):
    made = Config.model_validate(values)
    assert Config.model_validate(tomllib.loads(config.to_toml(made, comments))) == made


@pytest.mark.parametrize("problem", [{"noise": "poisson:0.02,0"}, {"noise": "poisson:0.02,0", "sigma": "estimate"}])
def test_noise_that_grows_is_written_so_that_it_can_be_read(problem):
    """Without its level, which it replaces. A folder of a training keeps such a file, and --resume reads it."""
    made = config.from_dict({"problem": {"name": "denoise", **problem}})
    text = config.to_toml(made)
    assert config.from_dict(tomllib.loads(text)) == made
    assert ("sigma =" in text.partition("[prior]")[0]) == ("sigma" in problem)
