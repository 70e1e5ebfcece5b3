"""Image files: what is read is what was stored, what is written is stored the way it came, and bad files say so."""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from retune.data import as_images
from retune.errors import InvalidParameterError, NotFiniteError, RetuneError, ShapeError
from retune.io import list_files, read, write

RNG = np.random.default_rng(0)


def pixels(dtype, *shape):
    if np.dtype(dtype).kind == "f":
        return RNG.normal(2, 3, shape).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def png16(array):
    """A 16-bit colour PNG, written from the specification."""
    height, width = array.shape[:2]
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8)
    raw = np.hstack([np.zeros((height, 1), np.uint8), rows]).tobytes()

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def store(path, array):
    """By another route than the one under test."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        colour = array.ndim > 2 and array.shape[-1] == 3
        tifffile.imwrite(path, array, photometric="rgb" if colour else "minisblack")
    elif array.dtype == np.uint16 and array.ndim == 3:
        path.write_bytes(png16(array))
    else:
        Image.fromarray(array).save(path)


def load(path):
    """By another route than the one under test."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".tif":
        return tifffile.imread(path)
    return np.asarray(Image.open(path))


CASES = [
    ("a.png", np.uint8, (5, 7)),
    ("a.png", np.uint8, (5, 7, 3)),
    ("a.png", np.uint16, (5, 7)),
    ("a.tif", np.uint8, (5, 7, 3)),
    ("a.tif", np.uint16, (5, 7)),
    ("a.tif", np.uint16, (1, 9, 3)),
    ("a.tif", np.uint16, (4, 5, 7)),
    ("a.tif", np.float32, (5, 7)),
    ("a.tif", np.float64, (2, 5, 7, 3)),
    ("a.bmp", np.uint8, (5, 7, 3)),
    ("a.npy", np.uint16, (5, 7, 3)),
    ("a.npy", np.float64, (5, 7)),
    ("a.npy", np.float16, (5, 7)),
    ("a.npy", np.uint8, (4, 5, 7, 3)),
    ("a.npy", ">f4", (5, 7)),
]


@pytest.mark.parametrize(("name", "dtype", "shape"), CASES, ids=lambda v: str(v))
def test_what_is_written_back_is_what_was_read(tmp_path, name, dtype, shape):
    array, path = pixels(dtype, *shape), tmp_path / name
    store(path, array)
    images, layout = read(path)
    colour = shape[-1] == 3
    count = shape[0] if len(shape) > (3 if colour else 2) else 1
    assert tuple(images.shape) == (count, 3 if colour else 1, *shape[-3 if colour else -2 :][:2])
    top = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    first = np.atleast_3d(array.reshape(count, *shape[-3 if colour else -2 :])[0]).astype(np.float64) / top
    assert torch.allclose(images[0].double(), torch.from_numpy(first).permute(2, 0, 1), atol=1e-6, rtol=0)
    again = tmp_path / f"b{path.suffix}"
    write(again, images, layout)
    back = load(again)
    assert back.dtype == np.dtype(dtype)
    assert np.array_equal(back, array)


def test_16_bit_colour_png_keeps_all_its_bits(tmp_path):
    array = pixels(np.uint16, 6, 5, 3)
    (tmp_path / "a.png").write_bytes(png16(array))
    images, layout = read(tmp_path / "a.png")
    assert layout.dtype == np.uint16
    assert np.array_equal((images[0] * 65535).round().numpy().transpose(1, 2, 0), array)
    write(tmp_path / "b.png", images, layout)
    from torchvision.io import ImageReadMode, decode_image

    stored = torch.frombuffer(bytearray((tmp_path / "b.png").read_bytes()), dtype=torch.uint8)
    assert np.array_equal(decode_image(stored, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy(), array)


def test_jpeg_loses_little(tmp_path):
    smooth = (np.linspace(0, 200, 32)[:, None, None] + np.linspace(0, 50, 40)[None, :, None]).repeat(3, 2)
    Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / "a.jpg", quality=95, dpi=(240, 240))
    images, layout = read(tmp_path / "a.jpg")
    write(tmp_path / "b.jpg", images, layout)
    with Image.open(tmp_path / "b.jpg") as again:
        assert again.info["dpi"] == (240, 240)
        assert np.abs(np.asarray(again).astype(int) - np.asarray(Image.open(tmp_path / "a.jpg")).astype(int)).max() <= 2


@pytest.mark.parametrize("mode", ["P", "1", "L"])
def test_palettes_and_bits_are_expanded(tmp_path, mode):
    array = pixels(np.uint8, 6, 5, 3)
    image = Image.fromarray(array).convert(mode)
    image.save(tmp_path / "a.png")
    images, _ = read(tmp_path / "a.png")
    expected = np.atleast_3d(np.asarray(image.convert("RGB" if mode == "P" else "L"))).transpose(2, 0, 1)
    assert np.array_equal((images[0] * 255).round().numpy(), expected)


def test_a_tiff_palette_and_white_is_zero(tmp_path):
    index = pixels(np.uint8, 6, 5)
    palette = (pixels(np.uint8, 3, 256).astype(np.uint16)) * 257
    tifffile.imwrite(tmp_path / "p.tif", index, photometric="palette", colormap=palette)
    images, layout = read(tmp_path / "p.tif")
    assert layout.dtype == np.uint8
    assert np.array_equal((images[0] * 255).round().numpy(), palette[:, index] // 257)
    tifffile.imwrite(tmp_path / "w.tif", index, photometric="miniswhite")
    assert np.array_equal((read(tmp_path / "w.tif")[0][0, 0] * 255).round().numpy(), 255 - index)


def test_resolution_and_profile_stay(tmp_path):
    array = pixels(np.uint8, 6, 8, 3)
    profile = b"p" * 130
    Image.fromarray(array).save(tmp_path / "a.png", dpi=(300, 300), icc_profile=profile)
    tifffile.imwrite(
        tmp_path / "a.tif", array, photometric="rgb", resolution=(118, 120), resolutionunit=3, iccprofile=profile
    )
    for name in ("a.png", "a.tif"):
        images, layout = read(tmp_path / name)
        write(tmp_path / f"b{name}", images, layout)
        double = images.repeat_interleave(2, -1).repeat_interleave(2, -2)
        write(tmp_path / f"c{name}", double, layout)
    with Image.open(tmp_path / "ba.png") as one, Image.open(tmp_path / "ca.png") as two:
        assert one.info["dpi"] == pytest.approx((300, 300), abs=0.02)
        assert two.info["dpi"] == pytest.approx((600, 600), abs=0.02)  # twice the pixels in the same width
        assert one.info["icc_profile"] == profile
    with tifffile.TiffFile(tmp_path / "ba.tif") as one, tifffile.TiffFile(tmp_path / "ca.tif") as two:
        assert one.pages[0].resolution == (118, 120)
        assert int(one.pages[0].resolutionunit) == 3
        assert one.pages[0].iccprofile == profile
        assert two.pages[0].resolution == (236, 240)


def test_an_imagej_stack_stays_one(tmp_path):
    array = pixels(np.uint16, 3, 2, 5, 6)
    told = {"axes": "TZYX", "spacing": 0.5, "unit": "um"}
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata=told, resolution=(10, 10))
    images, layout = read(tmp_path / "a.tif")
    assert tuple(images.shape) == (6, 1, 5, 6)
    write(tmp_path / "b.tif", images, layout)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.is_imagej
        assert file.series[0].axes == "TZYX"
        assert file.imagej_metadata["spacing"] == 0.5
        assert file.imagej_metadata["unit"] in ("um", "\\u00B5m", "µm")
        assert file.pages[0].resolution == (10, 10)
        assert np.array_equal(file.asarray(), array)


def test_planar_and_compressed_tiff(tmp_path):
    array = pixels(np.uint16, 3, 6, 5)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", planarconfig="separate", compression="zlib")
    images, layout = read(tmp_path / "a.tif")
    assert np.array_equal((images[0] * 65535).round().numpy(), array)
    write(tmp_path / "b.tif", images, layout)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert int(file.pages[0].compression) == 8
        assert np.array_equal(file.asarray().transpose(2, 0, 1), array)


def test_integers_are_clipped_and_rounded_floats_are_not(tmp_path):
    store(tmp_path / "a.png", pixels(np.uint8, 1, 4))
    store(tmp_path / "a.tif", pixels(np.float32, 1, 4))
    image = torch.tensor([[[[-0.5, 0.4999, 0.502, 1.7]]]])
    for name, expected in (("a.png", [[0, 127, 128, 255]]), ("a.tif", image[0, 0].numpy())):
        layout = read(tmp_path / name)[1]
        write(tmp_path / f"b{name}", image, layout)
        assert np.array_equal(load(tmp_path / f"b{name}"), expected)
    with pytest.raises(NotFiniteError, match="uint8"):
        write(tmp_path / "c.png", image * torch.nan, read(tmp_path / "a.png")[1])


def rgba(path):
    Image.fromarray(pixels(np.uint8, 4, 5, 4)).save(path)


def cut(path, share=0.6):
    Image.fromarray(pixels(np.uint8, 40, 50, 3)).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def cut_tiff(path):
    tifffile.imwrite(path, pixels(np.uint8, 40, 50))
    path.write_bytes(path.read_bytes()[:1500])


def cut_16(path):
    path.write_bytes(png16(pixels(np.uint16, 9, 9, 3))[:-40])


def palette_with_transparency(path):
    image = Image.fromarray(pixels(np.uint8, 6, 5, 3)).convert("P")
    image.save(path, transparency=3)


def nan_tiff(path):
    array = pixels(np.float32, 5, 5)
    array[2, 3] = np.nan
    tifffile.imwrite(path, array)


def alpha_tiff(path):
    tifffile.imwrite(path, pixels(np.uint8, 5, 6, 4), photometric="rgb", extrasamples=["unassalpha"])


def mixed_pages(path):
    with tifffile.TiffWriter(path) as out:
        out.write(pixels(np.uint8, 5, 6))
        out.write(pixels(np.uint8, 7, 6))


BAD = [
    ("a.png", lambda p: p.write_text("hello"), InvalidParameterError, "cannot be read as an image"),
    ("a.jpg", lambda p: p.write_text("hello"), InvalidParameterError, "cannot be read as an image"),
    ("a.tif", lambda p: p.write_text("hello"), InvalidParameterError, "cannot be read as an image"),
    ("a.npy", lambda p: p.write_text("hello"), InvalidParameterError, "cannot be read as an image"),
    ("a.png", cut, InvalidParameterError, "truncated or damaged"),
    ("b.png", cut_16, InvalidParameterError, "truncated or damaged"),
    ("a.jpg", cut, InvalidParameterError, "truncated"),
    ("a.tif", cut_tiff, InvalidParameterError, "truncated, damaged or sparse"),
    ("a.tif", lambda p: p.write_bytes(b""), InvalidParameterError, "empty (0 bytes)"),
    ("a.png", rgba, ShapeError, "alpha channel"),
    ("a.tif", alpha_tiff, ShapeError, "alpha channel"),
    ("a.png", palette_with_transparency, ShapeError, "transparent"),
    ("a.tif", nan_tiff, NotFiniteError, "1 of 25 values"),
    ("a.tif", mixed_pages, InvalidParameterError, "different shapes"),
    ("a.npy", lambda p: np.save(p, np.arange(20).reshape(4, 5)), InvalidParameterError, "int64"),
    ("a.npy", lambda p: np.save(p, np.ones((4, 5), complex)), InvalidParameterError, "complex128"),
    ("a.npy", lambda p: np.save(p, np.ones((0, 5))), ShapeError, "shape"),
    ("a.npy", lambda p: np.save(p, np.ones(5)), ShapeError, "(5,)"),
    ("a.jpg", lambda p: Image.new("CMYK", (4, 4)).save(p), InvalidParameterError, "CMYK"),
    ("a.tif", lambda p: Image.new("CMYK", (4, 4)).save(p), InvalidParameterError, "CMYK"),
    ("a.png", lambda p: p.mkdir(), InvalidParameterError, "folder"),
    ("a.gif", lambda p: p.write_text("x"), InvalidParameterError, "supported format"),
    ("a.png", lambda p: None, InvalidParameterError, "no file"),
]


@pytest.mark.parametrize(("name", "make", "error", "says"), BAD, ids=[f"{b[0]}-{b[3]}" for b in BAD])
def test_bad_files(tmp_path, name, make, error, says):
    make(tmp_path / name)
    with pytest.raises(error) as caught:
        read(tmp_path / name)
    assert says in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    ("compression", "predictor"), [("lzw", False), ("lzw", True), ("zlib", True), ("packbits", False), ("zstd", True)]
)
def test_a_compressed_tiff_is_read_and_written_the_same_way(tmp_path, dtype, compression, predictor):
    """With and without differences, as ImageJ, Photoshop and microscopes save."""
    array = pixels(dtype, 9, 7, 3)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", compression=compression, predictor=predictor)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        wanted = file.pages[0].compression
    images, layout = read(tmp_path / "a.tif")
    write(tmp_path / "b.tif", images, layout)
    assert np.array_equal(tifffile.imread(tmp_path / "b.tif"), array)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages[0].compression == wanted
        assert (file.pages[0].predictor != 1) == predictor


def test_every_prefix_of_a_png_is_refused_or_whole(tmp_path):
    """No half-read image: at whatever byte the copying stopped."""
    out = io.BytesIO()
    Image.fromarray(pixels(np.uint8, 9, 7, 3)).save(out, "PNG")
    content, path = out.getvalue(), tmp_path / "a.png"
    for length in range(len(content) - 4):  # the last four bytes are the checksum of the end mark
        path.write_bytes(content[:length])
        with pytest.raises(RetuneError):
            read(path)


def test_no_pickle_is_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"run": "me"}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidParameterError, match=r"a\.npy"):
        read(tmp_path / "a.npy")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    store(path, pixels(np.uint8, 5, 7))
    before = path.read_bytes()
    images, layout = read(path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, 1 - images, layout)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_stack_is_as_many_training_images(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels(np.uint8, 4, 5, 6), photometric="minisblack")
    store(tmp_path / "b.png", pixels(np.uint8, 3, 3))
    assert [tuple(i.shape) for i in as_images(tmp_path)] == [(1, 5, 6)] * 4 + [(1, 3, 3)]
    assert [p.name for p in list_files(tmp_path)] == ["a.tif", "b.png"]


def test_a_batch_that_does_not_fit_the_layout(tmp_path):
    store(tmp_path / "a.png", pixels(np.uint8, 3, 3))
    images, layout = read(tmp_path / "a.png")
    with pytest.raises(ShapeError, match="expected 1 image"):
        write(tmp_path / "b.png", images.expand(2, 1, 3, 3), layout)
