"""Files that are no image for Pillow: what a message says makes them one.

``make nightly-formats`` installs the packages that are named, and has two more environments: in one
are those that only write files, in the other an older Pillow.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_server import Server
from PIL import Image

from glm4v_magic.core.errors import ImageError
from glm4v_magic.core.image import Limits
from glm4v_magic.images import resolve_images

RED = Image.new("RGB", (16, 16), "red")
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 99\n"


Refuse = Callable[[str], str]
"""Sees that a file is refused, and returns the message with the advice that is followed then."""
ROOT = Path(__file__).parents[2]


def taken(given: Any) -> np.ndarray:
    """Return the image that a question would be asked about."""
    (found,) = resolve_images(["x"], {"x": given}, limits=Limits(allow_private=True))
    return np.asarray(found.image.convert("RGB")).astype(int)


def refused(path: str, advice: str) -> str:
    with pytest.raises(ImageError) as caught:
        taken(path)
    assert str(caught.value).endswith(advice), str(caught.value)
    return str(caught.value)


def png() -> bytes:
    stream = io.BytesIO()
    RED.save(stream, "PNG")
    return stream.getvalue()


def unpacked(refuse: Refuse) -> Any:
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.png", png())
    refuse("a.zip")
    with zipfile.ZipFile("a.zip") as archive:
        return archive.extract("a.png")


def loaded(refuse: Refuse) -> Any:
    np.save("a.npy", np.asarray(RED))
    refuse("a.npy")
    return np.load("a.npy")


def exported(refuse: Refuse) -> Any:
    Path("a.xcf").write_bytes(b"gimp xcf v011\0")
    refuse("a.xcf")
    RED.save("a.png")  # as GIMP does
    return "a.png"


def fetched(refuse: Refuse) -> Any:
    Path("a.png").write_text(LFS.format("0" * 64))
    refuse("a.png")
    program = Path("bin/git-lfs")  # which git runs
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\nassert sys.argv[1:] == ['pull']\n"
        f"pathlib.Path('a.png').write_bytes({png()!r})\n"
    )
    program.chmod(0o755)
    assert os.system(f"PATH={program.parent.absolute()}:$PATH git lfs pull") == 0
    return "a.png"


def addressed(refuse: Refuse) -> Any:
    server = Server()
    try:
        server.answer("/page", b"<!doctype html><img src=a.png>", kind="text/html")
        Path("page.png").write_bytes(b"<!doctype html><img src=a.png>")
        refuse("page.png")
        server.answer("/a.png", png())
        return np.asarray(taken(f"{server.url}/a.png"), np.uint8)
    finally:
        server.close()


MADE = {
    "Unpack the image.": unpacked,
    "Load it: numpy.load(path).": loaded,
    "Export it as a PNG first.": exported,
    "Fetch it with git lfs pull.": fetched,
    "Give the address of the image itself.": addressed,
}


@pytest.mark.parametrize("advice", MADE)
def test_what_is_no_image_is_made_one(tmp_path, monkeypatch, advice: str) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    made = MADE[advice](lambda path: refused(path, advice))
    assert np.array_equal(taken(made), np.asarray(RED))


def value_of(said: str, expression: str, path: str, **names: Any) -> Any:
    """Return what an expression in a message gives, as it is written there."""
    found = re.search(expression, said)
    assert found, said
    return eval(found[0], {"path": path, **names})


def scaled(values: Any) -> Any:
    """Return values of another range as the message says then; ``values`` is what it calls them."""
    with pytest.raises(ImageError) as caught:
        taken(values)
    return value_of(str(caught.value), r"(?<=range to 0 to 1: ).+(?=\.$)", "", values=values)


def dicom(refuse: Refuse) -> Any:
    pydicom = importlib.import_module("pydicom")
    meta, given = pydicom.dataset.FileMetaDataset(), pydicom.dataset.Dataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    given.file_meta = meta
    given.SOPClassUID = meta.MediaStorageSOPClassUID
    given.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    given.Rows, given.Columns = RAMP.shape
    given.SamplesPerPixel, given.PhotometricInterpretation = 1, "MONOCHROME2"
    given.BitsAllocated, given.BitsStored, given.HighBit = 16, 16, 15
    given.PixelRepresentation = 1  # as of a tomograph, in Hounsfield units
    given.PixelData = (RAMP.astype(np.int16) * 8 - 1024).tobytes()
    given["PixelData"].VR = "OW"
    given.save_as("a", enforce_file_format=True)
    said = refuse("a")
    return scaled(value_of(said, r"pydicom\.dcmread\(.*\)\.pixel_array", "a", pydicom=pydicom))


def hdf5(refuse: Refuse) -> Any:
    h5py = importlib.import_module("h5py")
    with h5py.File("a", "w") as file:
        file["photo"] = RAMP
    said = refuse("a")
    (name,) = value_of(said, r"list\(h5py\.File\(path\)\)", "a", h5py=h5py)
    return value_of(said, r"h5py\.File\(path\)\[name\]\[\(\)\]", "a", h5py=h5py, name=name)


def radiance(refuse: Refuse) -> Any:
    cv2 = importlib.import_module("cv2")
    cv2.imwrite("a.hdr", np.asarray(RED, np.float32)[..., ::-1] / 51)
    said = refuse("a.hdr")
    return scaled(value_of(said, r"cv2\.imread\(.*\[\.\.\., ::-1\]", "a.hdr", cv2=cv2))


def exr(refuse: Refuse) -> Any:
    module = importlib.import_module("OpenEXR")
    header = {"compression": module.ZIP_COMPRESSION, "type": module.scanlineimage}
    with module.File(header, {"RGB": np.asarray(RED, np.float32) / 51}) as file:
        file.write("a.exr")
    said = refuse("a.exr")
    return scaled(value_of(said, r"OpenEXR\.File\(path\).*\.pixels", "a.exr", OpenEXR=module))


def svg(refuse: Refuse) -> Any:
    resvg_py = importlib.import_module("resvg_py")
    size = 'xmlns="http://www.w3.org/2000/svg" width="16" height="16"'
    Path("a.svg").write_text(f'<svg {size}><rect width="16" height="16" fill="red"/></svg>')
    said = refuse("a.svg")
    return value_of(said, r"resvg_py\.svg_to_bytes\(.*?\)", "a.svg", resvg_py=resvg_py)


def heic(refuse: Refuse) -> Any:
    pillow_heif = importlib.import_module("pillow_heif")
    pillow_heif.from_pillow(RED).save("a.heic")
    said = refuse("a.heic")
    value_of(said, r"pillow_heif\.\w+\(\)", "", pillow_heif=pillow_heif)
    Image.open("a.heic").save("a.jpg")  # the other way
    assert np.abs(taken("a.jpg") - np.asarray(RED)).max() <= 2
    return "a.heic"


def jxl(refuse: Refuse) -> Any:
    """Another process writes it: where the package is imported, Pillow reads it."""
    code = "import pillow_jxl; from PIL import Image; "
    code += "Image.new('RGB', (16, 16), 'red').save('a.jxl', lossless=True)"
    subprocess.run([sys.executable, "-c", code], check=True)
    found = re.search(r"import pillow_jxl(?=\.$)", refuse("a.jxl"))
    assert found
    exec(found[0])
    Image.open("a.jxl").save("a.png")  # the other way
    assert np.array_equal(taken("a.png"), np.asarray(RED))
    return "a.jxl"


def grib(refuse: Refuse) -> Any:
    eccodes, xarray = map(importlib.import_module, ("eccodes", "xarray"))
    message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
    shape = eccodes.codes_get(message, "Nj"), eccodes.codes_get(message, "Ni")
    eccodes.codes_set_values(message, np.resize(RAMP / 255.0 * 50 + 250, shape).ravel())
    with open("a.grib", "wb") as file:
        eccodes.codes_write(message, file)
    said = refuse("a.grib")
    (values,) = value_of(
        said, r"xarray\.open_dataset\(.*?\)", "a.grib", xarray=xarray
    ).data_vars.values()
    return scaled(values)[: len(RAMP), : RAMP.shape[1]]


def bufr(refuse: Refuse) -> Any:
    """Four stations are drawn as points of red; the package that reads them is another's."""
    eccodes = importlib.import_module("eccodes")
    figure = importlib.import_module("matplotlib.figure").Figure((0.16, 0.16), facecolor="red")
    message = eccodes.codes_bufr_new_from_samples("BUFR4")
    eccodes.codes_set(message, "compressedData", 1)
    eccodes.codes_set(message, "numberOfSubsets", 4)
    eccodes.codes_set_array(message, "unexpandedDescriptors", [301021])
    for name in ("latitude", "longitude"):
        eccodes.codes_set_array(message, name, [1.0, 2.0, 3.0, 4.0])
    eccodes.codes_set(message, "pack", 1)
    with open("a.bufr", "wb") as file:
        eccodes.codes_write(message, file)
    refuse("a.bufr")
    with open("a.bufr", "rb") as file:
        found = eccodes.codes_bufr_new_from_file(file)
    eccodes.codes_set(found, "unpack", 1)
    places = [eccodes.codes_get_array(found, name) for name in ("latitude", "longitude")]
    assert np.allclose(places, [[1, 2, 3, 4]] * 2)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.plot(*places, "r.")
    return figure


def telescope(refuse: Refuse) -> Any:
    """In all forms in which it is refused, the values are the same."""
    fits = importlib.import_module("astropy.io.fits")
    values = RAMP.astype(np.int16) * 8 - 1024
    forms = [
        fits.PrimaryHDU(values.astype(np.int64)),
        fits.PrimaryHDU(RAMP.astype(np.uint16) * 257),  # with BZERO
        *(fits.CompImageHDU(values, compression_type=kind) for kind in ("RICE_1", "GZIP_2")),
    ]
    read = []
    for number, form in enumerate(forms):
        path = f"{number}.fits"
        form.writeto(path)
        said = refuse(path)
        astropy = sys.modules["astropy"]
        array = value_of(said, r"astropy\.io\.fits\.getdata\(path\)", path, astropy=astropy)
        read.append(array if array.dtype.kind == "u" else scaled(array))
    assert all(np.abs(taken(each) - taken(read[0])).max() <= 2 for each in read)
    return read[0]


def raw(refuse: Refuse) -> Any:
    """An image of red, as the sensor of a camera has it: a square of red, green, green, blue."""
    tifffile, rawpy = map(importlib.import_module, ("tifffile", "rawpy"))
    sensor = np.zeros((32, 32), np.uint16)
    sensor[::2, ::2] = 4095
    tags = [
        (50706, "B", 4, bytes([1, 4, 0, 0]), True), (50707, "B", 4, bytes([1, 1, 0, 0]), True),
        (50708, "s", 0, "Made here", True), (33421, "H", 2, (2, 2), True),
        (33422, "B", 4, bytes([0, 1, 1, 2]), True), (50717, "I", 1, 4095, True),
        (50721, "2i", 9, (1, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1), True),
        (50728, "2I", 3, (1, 1) * 3, True), (50778, "H", 1, 21, True),
    ]  # fmt: skip
    tifffile.imwrite("a.dng", sensor, photometric=32803, extratags=tags, metadata=None)
    with tifffile.TiffWriter("b.dng") as file:  # a small preview comes first
        small = np.zeros((4, 4, 3), np.uint8)
        file.write(small, subifds=1, subfiletype=1, extratags=tags, metadata=None)
        file.write(sensor, photometric=32803, extratags=tags[3:6], metadata=None)
    expression = r"rawpy\.imread\(path\)\.postprocess\(\)"
    photo, other = (
        value_of(refuse(path), expression, path, rawpy=rawpy) for path in ("a.dng", "b.dng")
    )
    assert np.array_equal(photo, other)
    return photo[8:24, 8:24]


RAMP = np.tile(np.arange(0, 256, 17, dtype=np.uint8), (16, 1))
GREY = Image.fromarray(RAMP).convert("RGB")
PACKAGES = {
    "Read it with pydicom: pydicom.dcmread(path).pixel_array is an array. pip install pydicom": (
        "pydicom", dicom, GREY),
    "Read the image with h5py: h5py.File(path)[name][()] is an array, and its names are "
    "list(h5py.File(path)). pip install h5py": ("h5py", hdf5, GREY),
    "Read it with OpenCV, and scale its values to 0 to 1: "
    "cv2.imread(path, cv2.IMREAD_UNCHANGED)[..., ::-1]. pip install opencv-python-headless": (
        "cv2", radiance, RED),
    "Read it with OpenEXR, and scale its values to 0 to 1: "
    'OpenEXR.File(path).channels()["RGB"].pixels. pip install OpenEXR': ("OpenEXR", exr, RED),
    "Save it as a PNG first, or draw it: resvg_py.svg_to_bytes(svg_path=path) is a PNG. "
    "pip install resvg-py": ("resvg_py", svg, RED),
    "Save it as JPEG, or install pillow-heif and call pillow_heif.register_heif_opener().": (
        "pillow_heif", heic, RED),
    "Save it as PNG, or install pillow-jxl-plugin and import pillow_jxl.": (
        "pillow_jxl", jxl, RED),
    'Read it with xarray: xarray.open_dataset(path, engine="cfgrib") has arrays; scale one to 0 '
    "to 1. pip install xarray cfgrib": ("cfgrib", grib, GREY),
    "Draw its values, and give the figure.": ("eccodes", bufr, RED),
    "Read it with astropy: astropy.io.fits.getdata(path). pip install astropy": (
        "astropy", telescope, GREY),
    "Develop it: rawpy.imread(path).postprocess() gives an array. pip install rawpy": (
        "rawpy", raw, RED),
}  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("advice", PACKAGES)
def test_a_package_that_is_named_reads_it(tmp_path, monkeypatch, advice: str) -> None:
    name, read, expected = PACKAGES[advice]
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}; make nightly-formats installs it")
    monkeypatch.chdir(tmp_path)
    given = read(lambda path: refused(path, advice))
    assert np.abs(taken(given) - np.asarray(expected)).max() <= 2


PLUGIN = "Install pillow-avif-plugin and import pillow_avif."
WITH_AN_OLDER_PILLOW = """
import re
from glm4v_magic.core.errors import ImageError
from glm4v_magic.images import to_image
try:
    to_image("a.avif", "x")
except ImageError as error:
    said = str(error)
print(said)
exec(re.search(r"import pillow_avif(?=\\.$)", said)[0])
print(*to_image("a.avif", "x").image.getpixel((8, 8)))
"""


@pytest.mark.nightly
def test_an_older_pillow_reads_avif_with_a_plugin(tmp_path) -> None:
    python = os.environ.get("GLM4V_OLD_PILLOW")
    if python is None:
        pytest.skip("needs a Pillow before 11.3; make nightly-formats has one")
    RED.save(tmp_path / "a.avif", quality=100)
    said, pixel = subprocess.run(
        [python, "-c", WITH_AN_OLDER_PILLOW], cwd=tmp_path, check=True, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout.splitlines()  # fmt: skip
    assert said.endswith(PLUGIN)
    assert np.abs(np.array(pixel.split(), int) - (255, 0, 0)).max() <= 3


def test_what_is_named_is_installed_there() -> None:
    """By the target of the Makefile, in the words of the messages."""
    (target,) = re.findall(
        r"(?m)^nightly-formats:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text()
    )
    named = {
        name
        for said in (*PACKAGES, PLUGIN)
        for words in re.findall(r"(?:pip install|[Ii]nstall(?= pillow)) ((?:[\w-]+ ?)+)", said)
        for name in words.split(" and ")[0].split()
    }
    assert len(named) > 10
    assert named <= set(target.split())
