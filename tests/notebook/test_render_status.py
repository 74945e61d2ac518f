"""Status table, loading bar, and how numbers read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.core.events import Starting
from glm4v_magic.core.model import EngineInfo, LoadProgress
from glm4v_magic.core.wording import (
    counted,
    printable,
    readable_bytes,
    readable_count,
    readable_seconds,
)
from glm4v_magic.notebook.render.progress import (
    line_bundle,
    loaded_line,
    loading_line,
    progress_bundle,
    starting_line,
    stopped_line,
)
from glm4v_magic.notebook.render.status import status_bundle, status_rows

INFO = EngineInfo(
    model="glm-4v-9b",
    notice="",
    max_images=1,
    image_size=(1120, 1120),
    visual_tokens=1602,
    context=8192,
    parameters=13_906_320_896,
    dtype="bfloat16",
    devices=("cuda:0", "cuda:1"),
)


def test_what_is_left_of_a_start_that_was_stopped_is_true():
    assert "PyTorch is still starting, in the background" in stopped_line(Starting("PyTorch"))
    assert stopped_line(Starting("Ray", goes_on=False)) == "Ray was being started."  # and is ended
    assert starting_line("Ray") == "Starting Ray ..."


def test_status_of_a_loaded_model():
    assert dict(status_rows("glm-4v-9b", INFO, None)) == {
        "model": "glm-4v-9b, 13.9 B parameters",
        "dtype": "bfloat16",
        "devices": "cuda:0, cuda:1",
        "weights": "25.90 GiB",
        "images": "at most 1, seen at 1120 x 1120 px, 1,602 visual tokens each",
        "context": "8,192 tokens",
    }


def test_status_of_a_server():
    served = EngineInfo(
        "glm",
        *("", None, None, None, None, None),
        server="http://127.0.0.1:8000/v1",
        tells_images=False,
    )
    assert dict(status_rows("http://127.0.0.1:8000/v1", served, None)) == {
        "model": "glm",
        "server": "http://127.0.0.1:8000/v1",
        "images": "the server does not tell",
        "context": "the server does not tell",
    }
    rows = dict(status_rows("x", replace(served, notice="A demo.", context=1024), None))
    assert (rows["note"], rows["context"]) == ("A demo.", "1,024 tokens")
    ours = replace(served, tells_images=True, largest_image=500)
    assert dict(status_rows("x", ours, None))["images"] == (
        "any number, each seen at as many pixels as 500 x 500 px at most"
    )


def test_status_without_a_model():
    assert status_rows("demo", None, None) == [
        ("model", "demo, not loaded: the next question loads it")
    ]


def test_status_says_what_is_particular():
    answer = Answer("x", "y", "demo", Usage(1, 2, 3), "stop")
    free = replace(INFO, notice="A demo.", max_images=None, image_size=None, visual_tokens=None)
    rows = dict(status_rows("demo", replace(free, dtype="int8"), answer, busy=True))
    assert rows["note"] == "A demo."
    assert rows["now"] == "a call is running"
    assert rows["images"] == "any number"
    assert rows["last answer"].startswith("demo · 1 text + 2 visual tokens in · 3 tokens out")
    assert "weights" not in rows


def test_status_bundle_is_a_table_and_lines():
    bundle = status_bundle([("model", "<b>"), ("dtype", "x")])
    assert bundle["text/plain"] == "model  <b>\ndtype  x"
    assert "<b>" not in bundle["text/html"]
    assert bundle["text/html"].count("<tr>") == 2


def test_loading_bar():
    bundle = progress_bundle("<b>", LoadProgress(256 * 2**20, 1024 * 2**20, ""))
    assert bundle["text/plain"] == "Loading <b>: 256.0 MiB of 1.00 GiB (25 %)"
    assert 'value="268435456" max="1073741824"' in bundle["text/html"]
    assert "<b>" not in bundle["text/html"]


@pytest.mark.parametrize(("done", "total", "said"), [(0, 0, "0 %"), (5, 4, "100 %")])
def test_loading_bar_at_its_ends(done, total, said):
    assert said in loading_line("demo", done, total)


def test_loaded_line():
    assert loaded_line(INFO, 65.2) == (
        "Loaded glm-4v-9b in 1 min 5 s: 13.9 B parameters, bfloat16, cuda:0, cuda:1."
    )


def test_numbers():
    assert [counted(n, "token") for n in (0, 1, 1602)] == ["0 tokens", "1 token", "1,602 tokens"]
    assert [readable_bytes(n) for n in (5, 2048, 3 * 2**20, 2**30)] == [
        "5 B",
        "2.0 KiB",
        "3.0 MiB",
        "1.00 GiB",
    ]
    assert [readable_count(n) for n in (7, 1500, 1_500_000, 2_000_000_000)] == [
        "7",
        "1.5 K",
        "1.5 M",
        "2.0 B",
    ]
    assert [readable_seconds(s) for s in (0.034, 4.12, 125)] == ["0.03 s", "4.1 s", "2 min 5 s"]


def test_printable_keeps_text_and_drops_controls():
    assert printable("a\tb\r\nc\rd\x1b]0;x\x07\x9b2J é漢") == "a\tb\nc\nd]0;x2J é漢"


def test_a_line_is_harmless():
    bundle = line_bundle("Connected to x: \x1b[31mred<script>.")
    assert "\x1b" not in str(bundle["text/plain"]) + str(bundle["text/html"])
    assert "<script>" not in bundle["text/html"]
