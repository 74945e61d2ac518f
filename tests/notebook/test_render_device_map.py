"""The view of a device map, as HTML and as text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from html_tree import Tree

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DoesNotFitError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.notebook.render.plans.device_map import (
    device_map_bundle,
    device_map_html,
    device_map_text,
    verdict,
)
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.occupancy import Occupancy, OccupiedGPU, Part, occupancy

NINE_B = architecture("GLM-4V-9B")


def view(gpus="4x16GiB", **options):
    plan = make_plan(NINE_B, PlacementOptions(gpus=gpus, **options))
    return occupancy(plan, NINE_B.shape(), parse_gpus(gpus), cached_tokens=1000)


@pytest.fixture(scope="module")
def shown():
    return view(objective="balance", split_vision=False)


def test_each_part_tells_its_modules_bytes_and_dtype_to_mouse_keyboard_and_reader(shown):
    tree = Tree(device_map_html(shown))
    segments = tree.all("span", role="img")
    assert len(segments) == sum(len(gpu.parts) for gpu in shown.gpus)
    stops = tree.all("div", role="group", tabindex="0")
    assert len(stops) == len(shown.gpus)  # the keyboard's, each with all parts
    assert sum(s["title"] in stop["data-parts"] for s in segments for stop in stops) >= len(
        segments
    )
    layers = next(s for s in segments if s["title"].startswith("layers 0-11"))
    assert layers["title"] == layers["aria-label"]
    assert "4.56 GiB, bfloat16" in layers["title"]
    assert "model.language_model.layers.0-11" in layers["title"]
    groups = tree.all("div", role="group")
    assert [g["aria-label"].split(",")[0] for g in groups] == [f"cuda:{i} GPU" for i in range(4)]


def test_bars_are_to_one_scale():
    tree = Tree(device_map_html(view("24+16+12GiB")))
    widths = {
        group["aria-label"].split(",")[1]: float(re.search(r"width:([0-9.]+)%", group["style"])[1])
        for group in tree.all("div", role="group")
    }
    assert widths[" 24.00 GiB"] == 100
    assert widths[" 16.00 GiB"] == pytest.approx(66.67, abs=0.01)
    assert widths[" 12.00 GiB"] == 50


def test_segments_fill_their_bar(shown):
    html = device_map_html(shown)
    for bar in html.split('role="group"')[1:]:
        shares = map(float, re.findall(r"flex:0 1 ([0-9.]+)%", bar))
        assert sum(shares) == pytest.approx(100, abs=0.02)


def test_no_two_kinds_look_the_same_without_colour(shown):
    """Pattern and label tell what colour tells; what is written is not only in the legend."""
    fills = {}
    for attributes in Tree(device_map_html(shown)).all("span", role="img"):
        kind = re.sub(r"[0-9-]+", "", attributes["title"].partition(":")[0])
        pattern = re.search(r"background-image:(.*?);", attributes["style"])
        fills.setdefault(pattern and pattern[1], set()).add(kind)
    # Layers and free memory have no pattern, and are wide enough to be labelled.
    assert {len(kinds) for pattern, kinds in fills.items() if pattern} == {1}
    assert fills[None] == {"layers ", "free"}


def test_nothing_of_the_base_is_what_jupyterlab_drops_from_untrusted_notebooks(shown):
    styles = [a["style"] for a in Tree(device_map_html(shown)).all("span", role="img")]
    assert all(re.search(r"background-color:(rgba\(|transparent)", style) for style in styles)
    assert not re.search(r"outline|background:|border[^:;]*:[^;]*var", " ".join(styles))


SMALL = Occupancy(
    "m",
    "w",
    tuple(
        OccupiedGPU(f"cuda:{i}", "G", 1 << 34, 1 << 34, (
            Part("vision", "vision", 1 << 20), Part("cache", "cache", 1 << 10),
            Part("overhead", "CUDA context", 1 << 29), Part("free", "free", (1 << 34) - (1 << 29)),
        ))
        for i in range(2)
    ),
)  # fmt: skip


def test_a_small_model_on_large_gpus_is_drawn_once_more_and_larger():
    text = " ".join(Tree(device_map_html(SMALL)).text)
    assert text.count("of it the model, 1.0 MiB, 16,369 times as large") == 2
    assert "times as large" not in device_map_html(view())
    for place in ("0.0", "0.1", "1.0"):  # both are lit
        assert device_map_html(SMALL).count(f'data-place="{place}"') == 2
    assert device_map_html(SMALL).count('data-stage="0"') == 1


def test_where_there_is_no_plan_the_last_drawing_stays_faded(shown):
    none = Occupancy("m", "no plan", (), problem="x is not a number.")
    html = device_map_html(none, before=shown)
    assert "x is not a number." in html
    assert "opacity:0.45" in html
    assert html.count('role="group"') == len(shown.gpus)
    assert "opacity" not in device_map_html(shown, before=SMALL)
    assert 'role="group"' not in device_map_html(none)


def test_colours_follow_the_theme(shown):
    html = device_map_html(shown)
    assert "var(--jp-ui-font-color2, GrayText)" in html
    assert not re.search(r"color:\s*(black|white|#)", html)


def test_the_table_says_what_the_view_says(shown):
    html = device_map_html(shown)
    rows = re.findall(r"<tr><th scope=\"row\".*?</tr>", html)
    assert len(rows) == sum(len(gpu.parts) for gpu in shown.gpus)
    assert "<details><summary>as a table" in html
    assert "<details open>" in device_map_html(shown, table_open=True)


def test_hops_stand_behind_their_gpu(shown):
    text = " ".join(Tree(device_map_html(shown)).text)
    assert re.search(r"cuda:1 GPU.*to cuda:2: hidden state, 8.0 KiB per token.*cuda:2 GPU", text)
    assert "to cuda:0: logits, 296.0 KiB per token" in text
    assert "0 B per token, 12.5 MiB per image" in text


def test_what_visits_from_host_memory_is_marked():
    html = device_map_html(view("2x9GiB", offload=True, context=1024))
    assert "visit from host memory" in html
    dashed = [s for s in Tree(html).all("span", role="img") if "dashed" in s["style"]]
    assert dashed
    assert all("in host memory" in segment["title"] for segment in dashed)
    for style in (segment["style"] for segment in dashed):  # on all four sides
        assert style.index("border-right:") < style.index("border:1px dashed")
    assert "dashed" not in device_map_html(view())


def test_what_does_not_fit_sticks_out():
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(NINE_B, PlacementOptions(gpus="2x9GiB"))
    plan = caught.value.plan
    over = occupancy(plan, NINE_B.shape(), parse_gpus("2x9GiB"), problem=str(caught.value))
    html = device_map_html(over)
    assert html.count("the GPU ends here") == 2
    assert "the GPU ends here" not in device_map_html(view())
    bars = re.findall(r"width:([0-9.]+)%;min-width", html)
    assert all(float(width) < 70 for width in bars)
    assert verdict(over).startswith("GLM-4V-9B does not fit")
    assert re.search(r"\[[^\]]+\][LHAo]", device_map_text(over))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Fits: the fullest GPU is cuda:0, 60% of the 15.52 GiB"),
        ({"loaded": True}, "Loaded: the fullest GPU is cuda:0"),
        ({"problem": "Too small."}, "Too small."),
    ],
)
def test_the_verdict(shown, changes, said):
    assert verdict(replace(shown, **changes)).startswith(said)


def test_the_verdict_on_the_cpu():
    on_cpu = view("cpu")
    assert verdict(on_cpu) == "On the CPU, whose memory is not checked."
    assert verdict(replace(on_cpu, loaded=True)).startswith("Loaded on the CPU")


def test_almost_full_is_not_full():
    def with_parts(size):
        return Occupancy("m", "w", (OccupiedGPU("cuda:0", "G", 1000, 1000,
                                                 (Part("layers", "layers", size),)),))  # fmt: skip

    assert "99.9%" in verdict(with_parts(999))
    assert "100.1%" in verdict(with_parts(1001))


def test_the_text_has_the_same_numbers(shown):
    bundle = device_map_bundle(shown)
    text = bundle["text/plain"]
    assert text == device_map_text(shown)
    for gpu in shown.gpus:
        assert gpu.device in text
        for part in gpu.parts:
            assert part.name in text
    bars = re.findall(r"\[(.*?)\]", text)
    assert {len(bar) for bar in bars} == {60}
    assert bars[0].startswith("VVVV")


def test_what_will_stay_is_dated(shown):
    bundle = device_map_bundle(shown, at="2025-01-02 03:04:05")
    assert all("as of 2025-01-02 03:04:05" in text for text in bundle.values())
    assert not any("as of" in text for text in device_map_bundle(shown).values())


def test_an_idle_gpu_says_so():
    assert "idle" in device_map_text(view("4x80GiB", objective="fewest"))


def test_names_cannot_be_markup_or_steer_a_terminal():
    bad = '<script>alert(1)</script>"\x1b[31m'
    part = Part("layers", bad, 5, (bad,), bad)
    hostile = Occupancy(bad, bad, (OccupiedGPU("cuda:0", bad, 10, 10, (part,)),), (), (bad,))
    for changes in ({}, {"problem": bad}):
        bundle = device_map_bundle(replace(hostile, **changes))
        assert "<script" not in bundle["text/html"]
        Tree(bundle["text/html"])
        assert "\x1b" not in bundle["text/html"] + bundle["text/plain"]
