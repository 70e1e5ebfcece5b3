"""What the page says as a command and as lines of Python."""

from __future__ import annotations

import shlex

import pytest

from retune.app.settings import Settings
from retune.errors import ConfigError, RetuneError

BLURRED = Settings("deblur", kernel="psf.tif", background=True, centre=True, noise="0.1,0.2,0.3", boundary="valid")


def test_the_fields_are_those_of_a_run_with_the_files_in_their_folder(tmp_path):
    (tmp_path / "psf.tif").touch()
    assert BLURRED.fields(tmp_path) == {
        "name": "deblur",
        "kernel": str((tmp_path / "psf.tif").resolve()),
        "kernel_background": "auto",
        "centre_kernel": True,
        "boundary": "valid",
        "sigma": [0.1, 0.2, 0.3],
    }
    assert BLURRED.fields()["kernel"] == "psf.tif"


def test_only_what_a_problem_has_is_said():
    whole = Settings("denoise", kernel="gaussian:1", mask="m.png", factor=3, boundary="valid")
    assert whole.fields() == {"name": "denoise"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (BLURRED, "retune restore 'my image.tif' --problem deblur --kernel psf.tif --kernel-background auto "
                  "--centre-kernel --boundary valid --sigma 0.1,0.2,0.3 --out restored"),
        (Settings("inpaint", mask="mask.png", noise="0.02"),
         "retune restore 'my image.tif' --problem inpaint --mask mask.png --sigma 0.02 --out restored"),
        (Settings("superres", factor=3, noise="poisson:0.01,0.002", white="4095", black="auto"),
         "retune restore 'my image.tif' --problem superres --factor 3 --noise poisson:0.01,0.002 --white 4095 "
         "--black auto --out restored"),
        (Settings(network="model.safetensors", noise="0.1"),
         "retune restore model.safetensors 'my image.tif' --out restored"),
    ],
)  # fmt: skip
def test_the_command(settings, words):
    assert settings.commands("my image.tif") == words
    assert shlex.split(words)[0] == "retune"


def test_a_tuned_image_has_two_commands():
    lines = Settings("deblur", kernel="gaussian:1.6").commands("a.png", tuned=True).splitlines()
    assert lines == [
        "retune tune a.png --problem deblur --kernel gaussian:1.6 --out tuned",
        "retune restore tuned a.png --out restored",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings("deblur"), "blur is not known"),
        (Settings("inpaint"), "which pixels are missing"),
        (Settings(noise="loud"), "is no number"),
        (Settings("inpaint", mask="m.png", noise="poisson:1"), "give one level"),
    ],
)
def test_what_is_missing_is_said(settings, message):
    with pytest.raises(ConfigError, match=message):
        settings.fields()


@pytest.mark.parametrize(
    "settings",
    [
        Settings("deblur", kernel="/etc/secret.png"),
        Settings("deblur", kernel="../secret.png"),
        Settings("inpaint", mask="/etc/secret.png"),
        Settings(network="/root/model.safetensors"),
        Settings("my_module:function"),
        Settings("deblur", kernel="gaussian:1", boundary="zeros"),
        Settings("superres", factor=100),
    ],
)
def test_a_page_reads_no_other_file_of_the_machine_and_runs_no_code(settings):
    with pytest.raises(ConfigError):
        settings.require_known({"psf.tif"})


@pytest.mark.parametrize("kernel", ["psf.tif", "gaussian:1.6", "motion:15@-30", "uniform:9", "three-motions", ""])
def test_the_choices_of_the_page_are_known(kernel):
    Settings("deblur", kernel=kernel).require_known({"psf.tif"})


def test_a_level_that_is_no_number_is_said():
    with pytest.raises(RetuneError, match="expected an intensity"):
        Settings(white="bright").levels()
