"""Images from files and arrays, and random crops."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from retune.data import as_images, photograph, random_crops
from retune.errors import InvalidParameterError, NotFiniteError, ShapeError, UnknownNameError


def test_a_folder_of_mixed_files(tmp_path):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    deep = rng.integers(0, 65536, (7, 5), dtype=np.uint16)
    iio.imwrite(tmp_path / "a.png", colour)
    iio.imwrite(tmp_path / "b.tiff", deep)
    np.save(tmp_path / "c.npy", rng.random((6, 6)).astype(np.float32))
    (tmp_path / "notes.txt").write_text("not an image")
    first, second, third = as_images(tmp_path)
    assert first.shape == (3, 9, 12)
    assert torch.equal(first, torch.from_numpy(colour).permute(2, 0, 1) / 255)
    assert second.shape == (1, 7, 5)
    assert second.max() <= 1
    assert torch.allclose(second[0], torch.from_numpy(deep.astype(np.float32)) / 65535)
    assert third.shape == (1, 6, 6)


def test_tensors_arrays_and_datasets():
    batch = torch.rand(2, 3, 5, 6)
    assert all(torch.equal(a, b) for a, b in zip(as_images(batch), batch, strict=True))
    assert len(as_images(batch[0])) == 1
    assert torch.equal(as_images([(batch[0], 7)])[0], batch[0])  # (image, label)
    assert as_images([np.zeros((4, 5, 3), np.uint8)])[0].shape == (3, 4, 5)


def test_photographs_ship_with_scikit_image():
    image = photograph("astronaut")
    assert image.shape == (3, 512, 512)
    assert 0 <= image.min() < image.max() <= 1


def test_crops_are_seeded_and_come_from_the_images():
    images = [torch.rand(3, 20, 30), torch.rand(3, 25, 17)]
    one = random_crops(images, 5, 8, torch.Generator().manual_seed(1))
    two = random_crops(images, 5, 8, torch.Generator().manual_seed(1))
    other = random_crops(images, 5, 8, torch.Generator().manual_seed(2))
    assert one.shape == (5, 3, 8, 8)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    pool = torch.cat([i.flatten() for i in images])
    assert torch.isin(one.flatten(), pool).all()


def _file(tmp_path, name, content: bytes):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 5), [(1, 6, 5)]),
        ((6, 3), [(1, 6, 3)]),
        ((6, 5, 3), [(3, 6, 5)]),
        ((6, 5, 1), [(1, 6, 5)]),
        ((2, 6, 5, 3), [(3, 6, 5)] * 2),
        ((1, 6, 5, 1), [(1, 6, 5)]),
    ],
)
def test_an_array_is_one_image_or_a_batch(shape, expected):
    array = np.random.default_rng(0).random(shape)
    images = as_images(array)
    assert [tuple(i.shape) for i in images] == expected
    first = array[0] if len(shape) == 4 else array
    assert torch.equal(images[0], torch.from_numpy(np.atleast_3d(first)).permute(2, 0, 1))


def _rgba(folder):
    iio.imwrite(folder / "a.png", np.zeros((4, 5, 4), np.uint8))
    return folder


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        (lambda p: p / "missing", InvalidParameterError, "missing"),
        (lambda p: p, InvalidParameterError, "holds no image"),
        (lambda p: _file(p, "broken.png", b"\x89PNG\r\n\x1a\nrest"), InvalidParameterError, "broken.png"),
        (lambda p: _file(p, "empty.jpg", b""), InvalidParameterError, "empty.jpg"),
        (lambda p: _file(p, "a.docx", b"x"), InvalidParameterError, "supported format"),
        (lambda p: [], InvalidParameterError, "no images"),
        (lambda p: 3, InvalidParameterError, "int"),
        (lambda p: torch.rand(5, 5), ShapeError, "(5, 5)"),
        (lambda p: [np.zeros((4, 5, 4), np.uint8)], ShapeError, "(4, 5, 4)"),
        (lambda p: np.zeros((4, 5, 4)), ShapeError, "drop the alpha channel, image[..., :3]"),
        (lambda p: np.zeros((4, 5, 2)), ShapeError, "drop the alpha channel, image[..., :1]"),
        (lambda p: np.zeros((3, 8, 9)), ShapeError, "(C, H, W): transpose it, image.transpose(1, 2, 0)"),
        (lambda p: np.zeros((2, 3, 8, 9)), ShapeError, "image 0: expected a grey (H, W) or colour (H, W, 3)"),
        (lambda p: np.zeros((7, 8, 9)), ShapeError, "4 axes (N, H, W, C)"),
        (lambda p: np.zeros(5), ShapeError, "(5,)"),
        (lambda p: np.full((4, 5), "a"), InvalidParameterError, "real numbers"),
        (lambda p: _rgba(p), ShapeError, "remove the alpha channel"),
        (lambda p: [torch.full((1, 3, 3), torch.nan)], NotFiniteError, "image 0"),
        (lambda p: ["x"], InvalidParameterError, "supported format"),
    ],
)
def test_bad_input(tmp_path, source, error, says):
    with pytest.raises(error) as caught:
        as_images(source(tmp_path))
    assert says in str(caught.value)


def test_an_npy_file_with_a_pickle_is_not_loaded(tmp_path):
    path = tmp_path / "evil.npy"
    np.save(path, np.array([{"run": "me"}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidParameterError, match=r"evil\.npy"):
        as_images(path)


def test_unknown_photograph_names_the_nearest():
    with pytest.raises(UnknownNameError, match="astronaut"):
        photograph("astronat")
