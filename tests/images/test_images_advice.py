"""What is packed, misread by Pillow or out of range is told, and what is said then is done.

`test_formats_followed` is about the other kinds of files, and those that need packages of others.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
import zipfile

import numpy as np
import pytest
from advice import refused
from photos import BLUE, GREEN, colours, png

from glm4v_magic.core.errors import ImageError
from glm4v_magic.images import to_image


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


UNPACK = "Unpack the image."


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_image_is_unpacked(folder, pack):
    packed = folder / "cat.png.packed"
    packed.write_bytes(pack(png(GREEN)))
    assert "a packed file" in refused(UNPACK, lambda: to_image(packed, "x"))
    unpack = {gzip.compress: gzip, bz2.compress: bz2, lzma.compress: lzma}[pack].decompress
    unpacked = folder / "cat.png"
    unpacked.write_bytes(unpack(packed.read_bytes()))
    assert colours(to_image(unpacked, "x")) == [GREEN]


@pytest.mark.parametrize(
    ("archive", "member"),
    [("photos.zip", "cat.png"), ("letter.docx", "word/media/image1.png")],
)
def test_an_image_of_an_archive_is_unpacked(folder, archive, member):
    with zipfile.ZipFile(folder / archive, "w") as file:
        file.writestr("[Content_Types].xml", "<Types/>")
        file.writestr(member, png(BLUE))
    refused(UNPACK, lambda: to_image(folder / archive, "x"))
    with zipfile.ZipFile(folder / archive) as file:
        unpacked = file.extract(member, folder / "unpacked")
    assert colours(to_image(unpacked, "x")) == [BLUE]


LOAD = "Load it: numpy.load(path)."


def loaded(path):
    """What the expression in the message gives."""
    said = refused(LOAD, lambda: to_image(path, "x"))
    return eval(re.search(r"numpy\.load\(path\)", said)[0], {"numpy": np, "path": path})


def test_an_array_of_numpy_is_loaded(folder):
    array = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    np.save(folder / "a.npy", array)
    assert np.array_equal(np.asarray(to_image(loaded(folder / "a.npy"), "x").image), array)


def test_several_arrays_of_numpy_are_unpacked_and_loaded(folder):
    array = np.full((6, 8), 7, np.uint8)
    np.savez(folder / "all.npz", a=array)
    refused(UNPACK, lambda: to_image(folder / "all.npz", "x"))
    with zipfile.ZipFile(folder / "all.npz") as file:
        unpacked = file.extract("a.npy", folder)
    assert colours(to_image(loaded(unpacked), "x")) == ["#070707"]


def fits(*units):
    """A file of FITS: the entries of each unit, in order, and the bytes of the last."""
    *headers, pixels = units
    content = b""
    for entries in headers:
        lines = [f"{name:8}= {value:>20}".ljust(80) for name, value in entries.items()]
        content += "".join([*lines, "END".ljust(80)]).encode().ljust(2880)
    return content + pixels.ljust(2880, b"\0")


EMPTY = {"SIMPLE": "T", "BITPIX": 8, "NAXIS": 0}
PIXELS = {"SIMPLE": "T", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 4, "NAXIS2": 3}
EXTENSION = {"XTENSION": "'IMAGE   '", **PIXELS}
GREY = bytes([128] * 12)


@pytest.mark.parametrize("units", [
    (PIXELS,), (EMPTY, EXTENSION), (EMPTY, EMPTY | {"XTENSION": "'IMAGE   '"}, EXTENSION),
    (PIXELS | {"BZERO": "0.0D0", "BSCALE": "1. / none"},), (PIXELS | {"BZERO": "what"},),
])  # fmt: skip
def test_plain_images_of_telescopes_are_read(units):
    assert colours(to_image(fits(*units, GREY), "x")) == ["#808080"]


READ = "Read it with astropy: astropy.io.fits.getdata(path). pip install astropy"


@pytest.mark.parametrize("units", [
    (PIXELS | {"BITPIX": 64},),
    (PIXELS | {"BITPIX": 16, "BZERO": 32768},),
    (PIXELS | {"BSCALE": "5.0D-1"},),
    (EMPTY, EXTENSION | {"BZERO": "-128"}),
    (EMPTY, PIXELS | {"XTENSION": "'TABLE   '"}),
    (EMPTY, PIXELS | {"XTENSION": "'BINTABLE'"}),
    (EMPTY, PIXELS | {"XTENSION": "'BINTABLE'", "ZIMAGE": "T", "ZCMPTYPE": "'RICE_1  '"}),
    (EMPTY, PIXELS | {"XTENSION": "'BINTABLE'", "ZCMPTYPE": "'GZIP_1  '", "BZERO": 32768}),
])  # fmt: skip
def test_what_would_be_read_as_other_pixels_is_not(units):
    refused(READ, lambda: to_image(fits(*units, bytes(200)), "x"))


@pytest.mark.parametrize("end", [40, 80, 300, 2000])
def test_a_header_that_is_cut_short(end):
    with pytest.raises(ImageError, match="cut short or damaged"):
        to_image(fits(PIXELS, GREY)[:end], "x")


DEVELOP = "Develop it: rawpy.imread(path).postprocess() gives an array. pip install rawpy"


def tiff(tags):
    """A TIFF of one pixel, with tags of its own."""
    entries = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1, **tags}
    directory = b"".join(
        struct.pack("<HHII", name, 4, 1, entries[name]) for name in sorted(entries)
    )
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + bytes(40)


@pytest.mark.parametrize("tags", [
    {258: 16, 262: 32803}, {258: 16, 262: 34892}, {258: 24, 50706: 0x401}, {254: 1, 330: 8},
])  # fmt: skip
def test_raw_images_in_the_form_of_tiff_are_developed(tags):
    """They are no TIFF with bands to choose from, nor the small preview that comes first."""
    refused(DEVELOP, lambda: to_image(tiff(tags), "x"))


@pytest.mark.parametrize("tags", [{}, {254: 0, 330: 8}, {254: 1}, {254: 2}, {50706: 0x401}])
def test_what_is_whole_in_a_tiff_is_read(tags):
    assert to_image(tiff(tags), "x").original_size == (1, 1)


RANGE = "Or scale their range to 0 to 1: {}."


@pytest.mark.parametrize(("low", "high", "kind"), [
    (-1024, 1016, "i2"), (-32768, 32767, "i2"), (0, 300, "i4"), (10**6, 10**6 + 20, "i4"),
    (-1024, 2**40, "i8"), (0, 256, "u4"),
])  # fmt: skip
def test_integers_of_any_range_are_scaled(low, high, kind):
    values = np.array([[low, (low + high) // 2, high]], kind)
    said = refused(RANGE, lambda: to_image(values, "x"))
    scaled = eval(re.search(r"0 to 1: (.+)\.$", said)[1], {"values": values})
    image = to_image(scaled, "x").image
    assert [image.getpixel((x, 0))[0] for x in (0, 2)] == [0, 255]
    assert 117 <= image.getpixel((1, 0))[0] <= 138


@pytest.mark.parametrize("low", [101325, 2.5e5, 1e9])
def test_a_narrow_range_of_floats_is_scaled(low):
    """Air pressure in Pa, for example: a few digits of it would be as far off as its range."""
    values = np.linspace(low, low + 75, 5).reshape(1, 5)
    said = refused("Scale its range to 0 to 1: {}.", lambda: to_image(values, "x"))
    scaled = eval(re.search(r"0 to 1: (.+)\.$", said)[1], {"values": values})
    image = to_image(scaled, "x").image
    assert [image.getpixel((x, 0))[0] for x in (0, 4)] == [0, 255]
