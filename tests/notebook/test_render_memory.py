"""The view of memory, as HTML and as text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from html_tree import Tree

from glm4v_magic.hardware.readings import Reading
from glm4v_magic.notebook.render.memory import (
    BUCKETS,
    MemoryRow,
    MemoryView,
    Peak,
    memory_bundle,
    memory_html,
    memory_text,
)

GIB = 2**30
GPU = Reading(
    "cuda:0", "NVIDIA A100", "GPU-a", 40 * GIB, 20 * GIB, 5 * GIB, 5 * GIB, 10 * GIB,
    0.35, 61, 212.4, 400.0, 0,
)  # fmt: skip
HISTORY = (None,) * (BUCKETS - 3) + (5 * GIB, 30 * GIB, 25 * GIB)


def view(*rows, **changes):
    rows = rows or (MemoryRow(GPU, HISTORY, (Peak(BUCKETS - 2, 30 * GIB),)),)
    return MemoryView("GLM-4V-9B", False, rows, at="2025-01-02 03:04:05", **changes)


def test_a_gpu_with_all_it_tells():
    tree = Tree(memory_html(view()))
    (group,) = tree.all("div", role="group")
    for told in ("40.00 GiB", "35% busy", "61 °C", "212 of 400 W", "weights: 20.00 GiB",
                 "kernel's other memory: 5.00 GiB", "other programs: 5.00 GiB",
                 "free: 10.00 GiB"):  # fmt: skip
        assert told in group["aria-label"].replace("&#x27;", "'")
    shares = re.findall(r"flex:0 1 ([0-9.]+)%", memory_html(view()))
    assert [float(share) for share in shares] == [50, 12.5, 12.5, 25]


def test_the_table_is_always_there_and_nothing_in_a_live_view_takes_the_focus():
    html = memory_html(view())
    assert "<details" not in html
    assert "tabindex" not in html
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t", html)
    assert cells == [
        "", "cuda:0",
        "weights", "20.00 GiB",
        "kept", "0 B",
        "kernel", "5.00 GiB",
        "others", "5.00 GiB",
        "free", "10.00 GiB",
        "total", "40.00 GiB",
        "last peak", "30.00 GiB",
    ]  # fmt: skip


def test_a_wide_table_scrolls_by_keyboard_where_it_stays_as_it_is():
    for dated in (True, False):
        tree = Tree(memory_html(view(*[MemoryRow(GPU)] * 8), dated=dated))
        assert [each["aria-label"] for each in tree.scrolling] == ["memory in numbers"] * dated
        assert not [each for each in tree.all("div") if "overflow" in each.get("style", "")]
        assert len(tree.all("tr")) == 7
    assert "last peak" not in memory_html(view(MemoryRow(GPU)))


def test_little_in_a_large_memory_is_drawn_once_more_and_larger():
    little = replace(GPU, weight_bytes=GIB // 64, kept_bytes=GIB // 64, kernel_bytes=0)
    html = memory_html(view(MemoryRow(little)))
    assert "of it this kernel&#x27;s, 32.0 MiB, 1,280 times as large" in html.replace(
        "&#39;", "&#x27;"
    )
    assert "times as large" not in memory_html(view())


def test_what_is_kept_stands_beside_the_weights():
    held = replace(GPU, kept_bytes=2 * GIB, kernel_bytes=3 * GIB)
    assert held.own_bytes == GPU.own_bytes
    html, text = (show(view(MemoryRow(held))) for show in (memory_html, memory_text))
    assert "prompts and images kept: 2.00 GiB" in html
    assert "<td style" in html
    assert "kept: 2.00 GiB" in text
    assert "kept: " not in memory_text(view())


def test_the_history_is_drawn_with_the_peak_of_each_answer():
    html = memory_html(view())
    ((points,),) = [re.findall(r'points="([^"]+)"', html)]
    places = [tuple(map(int, point.split(","))) for point in points.split()]
    assert len(places) == 3
    assert places[1][1] < places[2][1] < places[0][1]  # downwards is less
    assert places[2][0] == max(x for x, _ in places)
    assert html.count("peak of an answer: 30.00 GiB") == 1
    assert "now 25.00 GiB, most 30.00 GiB; ▼ peak of the last answer 30.00 GiB" in html
    assert "<svg" not in memory_html(view(MemoryRow(GPU)))


def test_what_is_not_told_is_said():
    silent = Reading("cuda:0", "NVIDIA GB10", "GPU-b", None)
    html = memory_html(view(MemoryRow(silent)))
    assert "size not told" in html
    assert "not told</td>" in html
    assert "size not told" in memory_text(view(MemoryRow(silent)))


def test_gpus_are_to_one_scale():
    small = replace(GPU, device="cuda:1", total_bytes=10 * GIB)
    html = memory_html(view(MemoryRow(GPU), MemoryRow(small)))
    assert re.findall(r"width:([0-9.]+)%;min-width", html) == ["100.00", "25.00"]


def test_only_what_stays_is_dated():
    assert "2025-01-02" not in memory_html(view())
    bundle = memory_bundle(view())
    assert "as of 2025-01-02 03:04:05" in bundle["text/html"]
    assert "as of 2025-01-02 03:04:05" in bundle["text/plain"]


def test_the_time_alone_is_no_change():
    assert view() == replace(view(), at="later")
    assert view() != replace(view(), busy=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "GLM-4V-9B is loaded."),
        ({"busy": True}, "GLM-4V-9B is loaded; a call is running."),
        ({"model": ""}, "No model is loaded."),
        ({"note": "Virtual GPUs."}, "Virtual GPUs."),
    ],
)
def test_the_headline(changes, said):
    shown = replace(view(), **changes)
    assert said in memory_html(shown)
    assert said in memory_text(shown)


def test_the_text_has_a_bar_and_a_history():
    text = memory_text(view())
    assert "[" + "W" * 25 + "K" * 6 + "x" * 7 + "." * 12 + "]" in text
    assert re.search(r"[▁-█]+  this kernel over 5 minutes", text)


def test_what_is_held_now_is_the_latest_reading_not_the_latest_point():
    """A point of the history is the most of its span; and a driver may stop telling."""
    row = MemoryRow(replace(GPU, kernel_bytes=2 * GIB), HISTORY)
    assert "minutes: now 22.00 GiB, most 30.00 GiB" in memory_text(view(row))
    row = MemoryRow(replace(GPU, kernel_bytes=None), HISTORY)
    for text in memory_bundle(view(row)).values():
        assert "minutes: most 30.00 GiB" in text


@pytest.mark.parametrize("size", [0, 1, 8, 9, 11])
def test_the_smallest_histories_have_a_level(size):
    row = MemoryRow(GPU, (None,) * (BUCKETS - 1) + (size,))
    levels = memory_text(view(row)).splitlines()[-1].split()[0]
    assert levels == "▁" if size == 0 else levels in "▅▆▇█"
    assert "<svg" in memory_html(view(row))


def test_names_cannot_be_markup_or_steer_a_terminal():
    bad = "<script>\x1b[31m'\""
    hostile = MemoryView(bad, False, (MemoryRow(replace(GPU, name=bad), HISTORY),), bad)
    bundle = memory_bundle(hostile)
    Tree(bundle["text/html"])
    assert "<script" not in bundle["text/html"]
    assert "\x1b" not in bundle["text/html"] + bundle["text/plain"]
