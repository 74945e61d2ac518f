"""Files and variables that no image, question, map or checkpoint should be."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path

from PIL import Image
from shells import TINY


def fill(folder: Path) -> None:
    """Put all of them into `folder`, beside one good image ``cat.png`` and a model ``tiny``."""
    Image.linear_gradient("L").resize((320, 240)).convert("RGB").save(folder / "cat.png")
    good = (folder / "cat.png").read_bytes()
    contents = {
        "zero.png": b"",
        "text.png": b"I am not an image.",
        "page.html": b"<!doctype html><p>cat</p>",
        "short.png": good[: len(good) // 2],
        "header.png": good[:16],
        "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "paper.pdf": b"%PDF-1.7\n",
        "film.mp4": b"\0\0\0 ftypisom\0\0\0\0",
        "archive.zip": b"PK\3\4" + bytes(40),
        "pixels.png": _png_of_size(0, 10),
        "bomb.png": _png_of_size(60_000, 60_000),
        "binary.txt": bytes(range(128, 256)),
        "blank.txt": b" \n",
        "q.txt": b"What is this?",
        "list.json": b"[1, 2]",
        "empty.json": b"{}",
        "unknown_module.json": json.dumps({"transformer.nose": 0, "": "cpu"}).encode(),
        "unknown_gpu.json": json.dumps({"": "cuda:99"}).encode(),
        "missing_module.json": json.dumps({"transformer.embedding": "cpu"}).encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.png")
    (folder / "empty").mkdir()
    (folder / "folder").mkdir()
    (folder / "folder" / "a.png").write_bytes(good)
    for name in ("tiny", "broken_config", "no_weights", "cut_weights", "other_model"):
        shutil.copytree(TINY, folder / name)
    (folder / "broken_config" / "config.json").write_text("{")
    (folder / "no_weights" / "model.safetensors").unlink()
    weights = folder / "cut_weights" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (folder / "other_model" / "config.json").write_text('{"model_type": "llama"}')


def _png_of_size(width: int, height: int) -> bytes:
    """A header that promises an image of this size."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks
    )


VARIABLES = """
import datetime, io, os as module
import numpy as np, torch, pandas as pd
from matplotlib.figure import Figure
number, nothing, mapping, empty_list = 3, None, {"a": 1}, []
function, numbers, words = len, [1, 2, 3], "no such file.png"
nested, mixed = [[b"x"]], ["cat.png", 3]
date, big = datetime.date(2024, 1, 1), 10**5000
class Class: pass
class BadText:
    def __str__(self): raise ValueError("no text")
    __repr__ = __format__ = __str__
def boom(): raise RuntimeError("boom\\nsecond line")
generator = (x for x in ())
closed, textfile = io.BytesIO(b"x"), io.StringIO("x")
closed.close()
nan, huge = np.full((4, 4), np.nan), np.full((4, 4), 1e30)
negative, deep, flat = np.full((4, 4), -3), np.zeros((4, 4, 7)), np.zeros(9)
noise, objects = np.random.randn(4, 4, 3) * 9, np.array([[None]])
batch, nopixels = np.zeros((3, 4, 4, 3)), np.zeros((0, 4, 3))
complexes, tensor_meta = np.zeros((4, 4), complex), torch.zeros(3, 4, 4, device="meta")
broken_figure = Figure()
_ = broken_figure.text(0, 0, r"$\\\\nonsense{$")
class Photo:
    def _repr_png_(self): raise OSError("no camera")
bad_image, bytes_, none_bytes = Photo(), b"no image", b""
answer_list, frame = ["missing.png"], pd.DataFrame({"a": [1]})
"""
