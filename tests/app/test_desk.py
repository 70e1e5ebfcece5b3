"""The files of those who use the page."""

from __future__ import annotations

import pytest

from retune.app import desk as desks_module
from retune.app.desk import Desks, safe_name
from retune.errors import InvalidParameterError


@pytest.fixture
def desks():
    made = Desks()
    yield made
    made.remove()


def send(desks, desk, name, kind, content=b"x"):
    token, path = desks.keep(name)
    path.write_bytes(content)
    return desks.take(desk, token, kind)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("photo.png", "photo.png"),
        ("../../etc/passwd.png", "passwd.png"),
        ("C:\\Users\\me\\cat.TIF", "cat.tif"),
        ("a<b>\0.png", "a_b.png"),
        (".png", "file.png"),
        ("", "file"),
        ("-rf.png", "rf.png"),
        ("x" * 300 + ".png", "x" * 80 + ".png"),
    ],
)
def test_a_name_is_one_file_of_the_folder(name, safe):
    assert safe_name(name) == safe


def test_another_image_replaces_the_first_with_its_mask_and_results(desks):
    desk = desks.open()
    send(desks, desk, "a.png", "image")
    send(desks, desk, "psf.tif", "blur")
    assert send(desks, desk, "holes.png", "mask") == "mask.png"
    (desk.folder / "restored").mkdir()
    (desk.folder / "restored" / "a.png").touch()
    assert set(desk.results()) == {"a.png", "mask.png"}
    send(desks, desk, "b.png", "image")
    assert desk.files() == {"b.png", "psf.tif"}
    assert not (desk.folder / "restored").exists()


def test_a_blur_of_the_same_name_does_not_replace_the_image(desks):
    desk = desks.open()
    send(desks, desk, "a.png", "image", b"image")
    assert send(desks, desk, "a.png", "blur", b"blur") == "blur-a.png"
    assert (desk.folder / "a.png").read_bytes() == b"image"


@pytest.mark.parametrize(("name", "kind"), [("a.exe", "image"), ("a.jpg", "mask"), ("a.pt", "network"), ("a.png", "x")])
def test_a_file_of_another_kind_is_refused_and_removed(desks, name, kind):
    with pytest.raises(InvalidParameterError, match="unsupported format"):
        send(desks, desks.open(), name, kind)
    assert [p for p in desks.root.iterdir() if p.is_file()] == []


def test_a_file_is_taken_once(desks):
    desk = desks.open()
    token, path = desks.keep("a.png")
    path.touch()
    desks.take(desk, token, "image")
    with pytest.raises(InvalidParameterError, match="did not arrive"):
        desks.take(desk, token, "image")


def test_files_that_nobody_takes_are_removed(desks, monkeypatch):
    _, path = desks.keep("a.png")
    path.touch()
    monkeypatch.setattr(desks_module, "_WAITS", -1.0)
    desks.keep("b.png")
    assert not path.exists()


def test_a_closed_desk_leaves_nothing(desks):
    desk = desks.open()
    send(desks, desk, "a.png", "image")
    desks.close(desk.key)
    assert list(desks.root.iterdir()) == []
    with pytest.raises(InvalidParameterError, match="load it again"):
        desks.get(desk.key)


def test_the_number_of_desks_is_limited(desks, monkeypatch):
    monkeypatch.setattr(desks_module, "_MOST", 2)
    first, second, _ = desks.open(), desks.open(), desks.open()
    assert not first.folder.exists()
    assert second.folder.exists()


def test_nothing_is_left_at_the_end():
    made = Desks()
    send(made, made.open(), "a.png", "image")
    made.remove()
    assert not made.root.exists()
