"""Files that are no image for Pillow: what a message says makes them one.

``make nightly-formats`` installs the packages that are named.
"""

from __future__ import annotations

import importlib
import io
import os
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


Refuse = Callable[[str], None]
"""Sees that a file is refused, with the advice that is followed then."""


def taken(given: Any) -> np.ndarray:
    """Return the image that a question would be asked about."""
    (found,) = resolve_images(["x"], {"x": given}, limits=Limits(allow_private=True))
    return np.asarray(found.image.convert("RGB")).astype(int)


def refused(path: str, advice: str) -> None:
    with pytest.raises(ImageError) as caught:
        taken(path)
    assert str(caught.value).endswith(advice), str(caught.value)


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


def dicom(pydicom: Any, refuse: Refuse) -> Any:
    meta, given = pydicom.dataset.FileMetaDataset(), pydicom.dataset.Dataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    given.file_meta = meta
    given.SOPClassUID = meta.MediaStorageSOPClassUID
    given.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    given.Rows = given.Columns = 16
    given.SamplesPerPixel, given.PlanarConfiguration = 3, 0
    given.PhotometricInterpretation = "RGB"
    given.BitsAllocated = given.BitsStored = 8
    given.HighBit, given.PixelRepresentation = 7, 0
    given.PixelData = np.asarray(RED).tobytes()
    given.save_as("a", enforce_file_format=True)
    refuse("a")
    return pydicom.dcmread("a").pixel_array


def hdf5(h5py: Any, refuse: Refuse) -> Any:
    with h5py.File("a", "w") as file:
        file["image"] = np.asarray(RED)
    refuse("a")
    return h5py.File("a")["image"][:]


def radiance(cv2: Any, refuse: Refuse) -> Any:
    cv2.imwrite("a.hdr", np.asarray(RED, np.float32)[..., ::-1] / 51)
    refuse("a.hdr")
    return cv2.imread("a.hdr", cv2.IMREAD_UNCHANGED)[..., ::-1] / 5


def exr(module: Any, refuse: Refuse) -> Any:
    header = {"compression": module.ZIP_COMPRESSION, "type": module.scanlineimage}
    with module.File(header, {"RGB": np.asarray(RED, np.float32) / 51}) as file:
        file.write("a.exr")
    refuse("a.exr")
    return module.File("a.exr").channels()["RGB"].pixels / 5


def svg(cairosvg: Any, refuse: Refuse) -> Any:
    size = 'xmlns="http://www.w3.org/2000/svg" width="16" height="16"'
    Path("a.svg").write_text(f'<svg {size}><rect width="16" height="16" fill="red"/></svg>')
    refuse("a.svg")
    return cairosvg.svg2png(url="a.svg")


def heic(pillow_heif: Any, refuse: Refuse) -> Any:
    pillow_heif.from_pillow(RED).save("a.heic")
    refuse("a.heic")
    pillow_heif.register_heif_opener()
    return "a.heic"


def jxl(_: Any, refuse: Refuse) -> Any:
    """The package is imported by then, so the refusal is that of another test."""
    RED.save("a.jxl", lossless=True)
    return "a.jxl"


def grib(eccodes: Any, refuse: Refuse) -> Any:
    xarray = importlib.import_module("xarray")
    message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
    with open("a.grib", "wb") as file:
        eccodes.codes_write(message, file)
    refuse("a.grib")
    values = xarray.open_dataset("a.grib", engine="cfgrib")["t"].values
    assert values.ndim == 2
    return np.asarray(RED)


PACKAGES = {
    "Read it with pydicom: pydicom.dcmread(path).pixel_array is an array. pip install pydicom": (
        "pydicom", dicom),
    "Read the image with h5py. pip install h5py": ("h5py", hdf5),
    "Read it with OpenCV, and scale its values to 0 to 1: "
    "cv2.imread(path, cv2.IMREAD_UNCHANGED)[..., ::-1]. pip install opencv-python-headless": (
        "cv2", radiance),
    "Read it with OpenEXR, and scale its values to 0 to 1: "
    'OpenEXR.File(path).channels()["RGB"].pixels. pip install OpenEXR': ("OpenEXR", exr),
    "Save it as a PNG first, or draw it with cairosvg.svg2png. pip install cairosvg": (
        "cairosvg", svg),
    "Save it as JPEG, or install pillow-heif and call pillow_heif.register_heif_opener().": (
        "pillow_heif", heic),
    "Save it as PNG, or install pillow-jxl-plugin and import pillow_jxl.": ("pillow_jxl", jxl),
    "Read it with xarray and cfgrib, and give one of its arrays. pip install xarray cfgrib": (
        "eccodes", grib),
}  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("advice", PACKAGES)
def test_a_package_that_is_named_reads_it(tmp_path, monkeypatch, advice: str) -> None:
    name, read = PACKAGES[advice]
    package = pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    given = read(package, lambda path: refused(path, advice))
    assert np.abs(taken(given) - np.asarray(RED)).max() <= 2
