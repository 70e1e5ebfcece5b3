"""A result keeps what its file declares: one table of formats, written, read, written again and compared."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from retune.errors import InvalidParameterError, ShapeError
from retune.io import read, write

RNG = np.random.default_rng(0)


def pixels(dtype, *shape):
    if np.dtype(dtype).kind == "f":
        return RNG.uniform(0, 1, shape).astype(dtype)
    return RNG.integers(0, 1000 if np.dtype(dtype).itemsize > 1 else 256, shape).astype(dtype)


def described_tiff(path):
    """What a TIFF file says of itself and of each of its pages."""
    codes = (270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 33432, 34675, 258, 262, 277, 285, 700)
    with tifffile.TiffFile(path) as file:
        tags = [{c: p.tags[c].value for c in codes if c in p.tags} for p in file.pages]
        for page in tags:  # the pages of an OME file are counted anew
            page.pop(270, None) if file.is_ome or file.is_imagej else None
        said = (file.is_imagej, file.is_ome, file.is_shaped, file.byteorder, file.is_bigtiff)
        series = file.series[0]
        return said, series.axes, series.shape, series.dtype, tags


def described_png(path):
    with Image.open(path) as image:
        image.load()
        return image.mode, image.size, dict(image.info), image.getexif().get(274)


def described_jpeg(path):
    with Image.open(path) as image:
        kept = ("jfif_unit", "jfif_density", "dpi", "icc_profile", "exif", "comment", "progressive")
        segments = [s in path.read_bytes() for s in SEGMENTS]
        return (
            image.mode,
            image.size,
            segments,
            {k: image.info[k] for k in kept if k in image.info},
            image.getexif().get(274),
        )


def exif(orientation):
    found = Image.Exif()
    found[274], found[271] = orientation, "a camera"
    return found


def tiff(**options):
    def make(path, array):
        tifffile.imwrite(path, array, **{"photometric": "minisblack"} | options)

    return make


def png(**options):
    def make(path, array):
        info = PngImagePlugin.PngInfo()
        info.add_text("Title", "cells")
        info.add_itxt("Comment", "0.1 µm")
        Image.fromarray(array).save(path, pnginfo=info, **options)

    return make


def jpeg(**options):
    return lambda path, array: Image.fromarray(array).save(path, **options)


#: comments, IPTC and extended XMP, as cameras and editors write them
SEGMENTS = (
    b"\xff\xfe\0\x05one\xff\xfe\0\x06\xc2\xb5m\n",
    b"\xff\xed\0\x14Photoshop 3.0\0abcd",
    b"\xff\xe1\0\x25http://ns.adobe.com/xmp/extension/\0",
)


def jpeg_with():
    """A JPEG file with segments that Pillow does not keep."""

    def make(path, array):
        Image.fromarray(array).save(path)
        content = path.read_bytes()
        path.write_bytes(content[:20] + b"".join(SEGMENTS) + content[20:])  # the header of JFIF ends here

    return make


def pages_with_words(path, array):
    with tifffile.TiffWriter(path) as out:
        for i, page in enumerate(array):
            tags = [(274, 3, 1, 3, False), (285, 2, 0, f"page {i}", True)]
            out.write(page, description=f"exposure {i} s", metadata=None, extratags=tags, photometric="minisblack")


MICRONS = {"axes": "ZCYX", "PhysicalSizeX": 0.1, "PhysicalSizeXUnit": "µm", "Channel": {"Name": ["α", "β"]}}
LABELS = [(315, 2, 0, "me", True), (33432, 2, 0, "µ".encode(), True)]
IMAGEJ = {"axes": "ZCYX", "unit": "um", "spacing": 0.5}
TABLE = {
    "tiff orientation": ("a.tif", tiff(extratags=[(274, 3, 1, 6, True)]), pixels("u2", 5, 7)),
    "tiff words": ("a.tif", tiff(extratags=LABELS), pixels("u1", 5, 7)),
    "tiff description": ("a.tif", tiff(description="0.1 µm".encode(), metadata=None), pixels("u2", 5, 7)),
    "tiff resolution": ("a.tif", tiff(resolution=(1000 / 3, 11.5), resolutionunit=3), pixels("u2", 5, 7)),
    "tiff profile": ("a.tif", tiff(photometric="rgb", iccprofile=b"p" * 130), pixels("u2", 5, 7, 3)),
    "tiff white is zero": ("a.tif", tiff(photometric="miniswhite"), pixels("u2", 5, 7)),
    "tiff white is zero, floats": ("a.tif", tiff(photometric="miniswhite"), pixels("f4", 5, 7)),
    "tiff 12 bits": ("a.tif", tiff(bitspersample=12), pixels("u2", 5, 7)),
    "tiff big-endian": ("a.tif", tiff(byteorder=">", extratags=[(274, 3, 1, 8, True)]), pixels("u2", 5, 7)),
    "tiff 64-bit offsets": ("a.tif", tiff(bigtiff=True), pixels("f4", 5, 7)),
    "tiff one channel": ("a.tif", tiff(), pixels("f4", 5, 7, 1)),
    "tiff axes": ("a.tif", tiff(metadata={"axes": "ZCYX", "unit": "µm"}), pixels("u2", 2, 3, 5, 7)),
    "tiff axes, colour": ("a.tif", tiff(photometric="rgb", metadata={"axes": "ZYXS"}), pixels("u1", 2, 5, 7, 3)),
    "tiff pages": ("a.tif", pages_with_words, pixels("u2", 3, 5, 7)),
    "ome": ("a.ome.tif", tiff(ome=True, metadata=MICRONS), pixels("u2", 4, 2, 5, 7)),
    "imagej": ("a.tif", tiff(imagej=True, metadata=IMAGEJ), pixels("u2", 2, 3, 5, 7)),
    "png": ("a.png", png(dpi=(300, 200)), pixels("u1", 5, 7)),
    "png orientation, profile": ("a.png", png(exif=exif(6), icc_profile=b"p" * 130), pixels("u1", 5, 7, 3)),
    "png 16 bits": ("a.png", png(), pixels("u2", 5, 7)),
    "jpeg": ("a.jpg", jpeg(exif=exif(8), dpi=(300, 300), comment="hi"), pixels("u1", 16, 16)),
    "jpeg, colour": ("a.jpg", jpeg(progressive=True, icc_profile=b"p" * 130), pixels("u1", 16, 16, 3)),
    "bmp": ("a.bmp", jpeg(dpi=(300, 200)), pixels("u1", 5, 7)),
    "jpeg, words of programs": ("a.jpg", jpeg_with(), pixels("u1", 16, 16)),
    "npy byte order": ("a.npy", np.save, pixels(">f4", 5, 7)),
    "npy columns first": ("a.npy", np.save, np.asfortranarray(pixels("f4", 5, 7))),
    "npy one channel": ("a.npy", np.save, pixels("f4", 5, 7, 1)),
    "npy stack of one channel": ("a.npy", np.save, pixels("u2", 3, 5, 7, 1)),
    "npy doubles": ("a.npy", np.save, pixels("f8", 5, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_what_a_file_declares_its_result_declares(tmp_path, name):
    file, make, array = TABLE[name]
    make(tmp_path / file, array)
    (tmp_path / "out").mkdir()
    images, layout = read(tmp_path / file)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    write(tmp_path / "out" / file, images, layout)
    one, two = tmp_path / file, tmp_path / "out" / file
    if file.endswith(".npy"):
        first, second = np.load(one), np.load(two)
        assert (first.dtype, first.shape) == (second.dtype, second.shape)
        assert first.flags.f_contiguous == second.flags.f_contiguous
        assert np.array_equal(first, second)
        return
    describe = described_tiff if file.endswith(".tif") else described_jpeg if file.endswith(".jpg") else described_png
    assert describe(two) == describe(one)
    if file.endswith(".tif"):
        assert np.array_equal(tifffile.imread(two), tifffile.imread(one))
    elif not file.endswith(".jpg"):
        assert np.array_equal(np.asarray(Image.open(two)), np.asarray(Image.open(one)))


def test_the_colours_of_imagej_channels_stay(tmp_path):
    colours = [np.stack([np.arange(256) * (c == i) for c in range(3)]).astype("u1") for i in range(3)]
    told = {"axes": "CYX", "mode": "composite", "LUTs": colours}
    tifffile.imwrite(tmp_path / "a.tif", pixels("u2", 3, 5, 7), imagej=True, metadata=told)
    write(tmp_path / "b.tif", *read(tmp_path / "a.tif"))
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.imagej_metadata["mode"] == "composite"
        assert np.array_equal(file.imagej_metadata["LUTs"], colours)


def imagej(path):
    with tifffile.TiffFile(path) as file:
        return file.imagej_metadata


CALIBRATED = {"cf": 0, "c0": -32768.0, "c1": 1.0, "vunit": "Gray Value", "xorigin": 3.0, "yunit": "um", "tunit": "sec"}


def test_the_calibration_and_the_drawings_of_imagej_stay(tmp_path):
    """A 16-bit image of signed numbers is one of unsigned numbers, whose calibration subtracts 32768."""
    drawn = {"ROI": b"Iout" + bytes(60), "Overlays": [b"Iout" + bytes(60)], "Info": "µ"}
    told = {"axes": "ZCYX", "unit": "um", "min": 0.0, "max": 9.0} | CALIBRATED | drawn
    tifffile.imwrite(tmp_path / "a.tif", pixels("u2", 2, 3, 5, 7), imagej=True, metadata=told)
    images, layout = read(tmp_path / "a.tif")
    write(tmp_path / "b.tif", images, layout)
    write(tmp_path / "c.tif", images.repeat_interleave(2, -1).repeat_interleave(2, -2), layout)
    one, two, three = (imagej(tmp_path / f"{n}.tif") for n in "abc")
    assert {k: v for k, v in one.items() if k not in ("min", "max")} == two
    assert {k: three.get(k) for k in CALIBRATED} == CALIBRATED | {"xorigin": 6.0}
    assert not {"ROI", "Overlays"} & set(three)


def test_a_unit_of_imagej_beyond_ascii_is_written_as_imagej_does(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels("u2", 5, 7), imagej=True, metadata={"unit": "um"})
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content.replace(b"unit=um", b"unit=\xb5m"))
    assert imagej(tmp_path / "a.tif")["unit"] == "µm"
    write(tmp_path / "b.tif", *read(tmp_path / "a.tif"))
    assert imagej(tmp_path / "b.tif")["unit"] == "\\u00B5m"


def test_an_ome_image_of_single_bits_says_that_its_result_has_bytes(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels("u2", 5, 7) > 500, ome=True, metadata={"SignificantBits": 1})
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert 'Type="bit"' in file.pages[0].description
    write(tmp_path / "b.ome.tif", *read(tmp_path / "a.ome.tif"))
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as file:
        assert file.series[0].dtype == np.uint8
        assert 'Type="uint8"' in file.pages[0].description
        assert 'SignificantBits="1"' not in file.pages[0].description


@pytest.mark.parametrize("dtype", [np.ulonglong, np.longlong, np.uint32])
def test_every_name_of_an_integer_type_is_named(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((5, 7), dtype))
    with pytest.raises(InvalidParameterError, match="range of intensities is unknown"):
        read(tmp_path / "a.tif")


def test_a_header_that_no_parser_can_read_is_a_damaged_file(tmp_path):
    header = (b"{'descr': " + b"-" * 8000 + b"1}").ljust(8999) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(InvalidParameterError, match="its header is damaged"):
        read(tmp_path / "a.npy")


def test_an_ome_description_stays_word_by_word_and_follows_the_size(tmp_path):
    tiff(ome=True, metadata=MICRONS)(tmp_path / "a.ome.tif", pixels("u2", 4, 2, 5, 7))
    images, layout = read(tmp_path / "a.ome.tif")
    write(tmp_path / "b.ome.tif", images, layout)
    write(tmp_path / "c.ome.tif", images.repeat_interleave(2, -1).repeat_interleave(2, -2), layout)
    one, two, three = (tifffile.TiffFile(tmp_path / f"{n}.ome.tif") for n in "abc")
    assert two.pages[0].description == one.pages[0].description
    assert "µm" in three.pages[0].description
    assert 'PhysicalSizeX="0.05"' in three.pages[0].description
    assert three.series[0].shape == (4, 2, 10, 14)
    for file in (one, two, three):
        file.close()


def test_packed_bits_have_a_maximum_of_their_own(tmp_path):
    array = pixels("u2", 5, 7)
    array[0, 0] = 4095
    tiff(bitspersample=12)(tmp_path / "a.tif", array)
    images, layout = read(tmp_path / "a.tif")
    assert float(images.max()) == 1
    write(tmp_path / "b.tif", 2 * images, layout)
    assert tifffile.imread(tmp_path / "b.tif").max() == 4095


@pytest.mark.parametrize("dtype", ["i2", "i4", "u4", "i8", "u8"])
def test_integers_of_an_unknown_range_are_counts(tmp_path, dtype):
    array = np.array([[0, 1, 40000 if np.dtype(dtype).itemsize > 2 else 3000]], dtype)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InvalidParameterError, match="range of intensities is unknown"):
        read(tmp_path / "a.npy")
    images, layout = read(tmp_path / "a.npy", any_integers=True)
    assert layout.top is None
    assert images.flatten().tolist() == array.flatten().tolist()
    write(tmp_path / "b.npy", images, layout)
    back = np.load(tmp_path / "b.npy")
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


def test_an_image_in_several_files_is_refused(tmp_path):
    uid = "urn:uuid:11111111-1111-1111-1111-11111111111"
    planes = "".join(
        f'<TiffData IFD="0" FirstZ="{i}" PlaneCount="1"><UUID FileName="t{i}.ome.tif">{uid}{i}</UUID></TiffData>'
        for i in (0, 1)
    )
    for i in (0, 1):
        xml = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uid}{i}">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="float" SizeX="7" SizeY="5" '
            f'SizeZ="2" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image>'
            "</OME>"
        )
        tifffile.imwrite(tmp_path / f"t{i}.ome.tif", pixels("f4", 5, 7), description=xml, metadata=None)
    for i in (0, 1):
        with pytest.raises(InvalidParameterError, match="others are missing or in other files"):
            read(tmp_path / f"t{i}.ome.tif")


def test_a_resolution_that_no_file_can_hold_is_named(tmp_path):
    tiff(resolution=(4e9, 4e9))(tmp_path / "a.tif", pixels("u1", 5, 7))
    png(dpi=(9e7, 9e7))(tmp_path / "a.png", pixels("u1", 5, 7))
    for name in ("a.tif", "a.png"):
        images, layout = read(tmp_path / name)
        write(tmp_path / f"b{name}", images, layout)  # as it was, it can be held
        with pytest.raises(InvalidParameterError, match=f"b{name}.*more than a .* file can store"):
            write(tmp_path / f"b{name}", images.repeat_interleave(2, -1).repeat_interleave(2, -2), layout)


def test_a_damaged_png_never_reaches_the_decoder(tmp_path, monkeypatch):

    import imagecodecs

    content = imagecodecs.png_encode(pixels("u2", 9, 8, 3))
    path = tmp_path / "a.png"
    monkeypatch.setattr(imagecodecs, "png_decode", lambda _: pytest.fail("decoded"))
    for at in range(8, len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises((InvalidParameterError, ShapeError)):
            read(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".npy"])
def test_content_of_another_kind_is_not_decoded(tmp_path, suffix):
    """PostScript in a JPEG file would be run by Ghostscript, if Pillow were asked what it is."""
    mark = tmp_path / "written"
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(" + str(mark).encode()
    (tmp_path / f"a{suffix}").write_bytes(script + b") (w) file dup (x) writestring closefile\nshowpage\n")
    with pytest.raises(InvalidParameterError, match="cannot be read as an image"):
        read(tmp_path / f"a{suffix}")
    assert not mark.exists()
    Image.new("L", (4, 4)).save(tmp_path / "b.gif")
    (tmp_path / f"b{suffix}").write_bytes((tmp_path / "b.gif").read_bytes())
    with pytest.raises(InvalidParameterError, match="cannot be read as an image"):
        read(tmp_path / f"b{suffix}")
