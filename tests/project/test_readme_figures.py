"""The figures about plans in README, in both languages, are those of the planner."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.plan import Plan
from glm4v_magic.planning.decision import make_plan

ROOT = Path(__file__).parents[2]
GIB = 2**30
SAID = {
    "README.md": (
        r"vision tower, ([\d.]+) GiB",
        r"five GPUs of 10 GiB are (\d+) % full at most, and (\d+) % with a whole tower",
        r"GLM-4V-9B fits\s+on 3 GPUs of 11 GiB or 5 of 8 GiB only with a plan",
        r"its weights, (\d+) GiB",
        r"GLM-OCR, (\d+) GiB",
        r"the published ones are (\d+) GiB in bfloat16",
        r"GLM-4V-9B takes (\d+) GiB of memory in float32",
    ),
    "README.zh.md": (
        r"视觉塔有 ([\d.]+) GiB",
        r"五块 10 GiB 的 GPU 最满 (\d+) %，整塔则是 (\d+) %",
        r"三块 11 GiB 或五块 8 GiB 的 GPU，只有按计划才放得下 GLM-4V-9B",
        r"会下载，(\d+) GiB",
        r"GLM-OCR 只有 (\d+) GiB",
        r"官方的权重在 bfloat16 下是 (\d+) GiB",
        r"在 float32 下需要 (\d+) GiB",
    ),
}


def planned(name: str, gpus: str, **options: Any) -> Plan:
    return make_plan(architecture(name), PlacementOptions(gpus=gpus, context=8192, **options))


def tower() -> str:
    stages = planned("GLM-4V-9B", "5x10GiB", split_vision=False).stages
    (whole,) = (each for each in stages if each.units == ("vision",))
    return f"{whole.weight_bytes / GIB:.2f}"


def in_bfloat16(name: str) -> str:
    return f"{architecture(name).shape().values * 2 / GIB:.0f}"


@pytest.mark.parametrize("row", [pytest.param(0, marks=pytest.mark.nightly), 1, 2])
def test_the_comparison_with_automatic_placement_is_what_its_lines_print(run, row):
    text = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(%glm4v check [^`]+)`[^|]*\| (\d+) \| (\d+) % \|$", text, re.MULTILINE)
    assert len(rows) == 3
    line, copies, full = rows[row]
    assert f"({full}%). One token takes {copies} copies" in run(line)


@pytest.mark.parametrize("name", SAID)
def test_figures_are_those_of_the_planner(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    said = [re.search(pattern, text) for pattern in SAID[name]]
    assert None not in said
    size, fullness, _, *others = (found.groups() for found in said)
    assert size == (tower(),)
    cut, whole = (
        planned("GLM-4V-9B", "5x10GiB"),
        planned("GLM-4V-9B", "5x10GiB", split_vision=False),
    )
    assert fullness == tuple(f"{each.fullness * 100:.0f}" for each in (cut, whole))
    for gpus in ("3x11GiB", "5x8GiB"):
        assert planned("GLM-4V-9B", gpus).fullness <= 1
    on_cpu = planned("GLM-4V-9B", "cpu", dtype="float32")
    sizes = [in_bfloat16(each) for each in ("GLM-4V-9B", "GLM-OCR", "GLM-5.3-Flash")]
    sizes.append(f"{on_cpu.stages[0].total_bytes / GIB:.0f}")
    assert [figure for (figure,) in others] == sizes


def shown(name: str) -> list[list[list[str]]]:
    """Return the figures of README's table of placements: rows, sides and numbers of GPUs."""
    text = (ROOT / name).read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|]*4 / 8 / 16[^|]*\|(.*)\|(.*)\|$", text, re.MULTILINE)
    return [[side.strip().split(" / ") for side in row] for row in rows]


@pytest.mark.parametrize("name", SAID)
def test_the_table_is_an_excerpt_of_the_one_that_the_benchmark_prints(name):
    page = (ROOT / "docs" / "automatic-placement.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"## GLM-4\.1V-9B-Thinking on equal GPUs.*?(?=\n## |\Z)", page, re.DOTALL)
    printed = {}
    for line in table.splitlines():
        cells = [each.strip().split(" / ") for each in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0][0].isdigit():
            printed[cells[0][0]] = cells
    for row, column in zip(shown(name), (4, 3), strict=True):
        for side, figures in enumerate(row):
            assert figures == [printed[count][column][side] for count in ("4", "8", "16")]


@pytest.mark.parametrize(
    "counts",
    [("4",), pytest.param(("8", "16"), marks=pytest.mark.nightly)],
    ids=lambda counts: "-".join(counts),
)
def test_the_table_is_what_placements_come_to(monkeypatch, counts):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    script = runpy.run_path(str(ROOT / "benchmarks" / "placement.py"))
    lab = script["Lab"](architecture("GLM-4.1V-9B-Thinking"))
    copies, fullest = shown("README.md")
    for count in counts:
        gpus = parse_gpus(f"{count}x{script['AMPLE']}GiB")
        ours = lab.run(gpus, lab.plan(gpus))
        least = ours.fullest.peak_bytes + script["CONTEXT_BYTES"]
        place = ("4", "8", "16").index(count)
        for side, report in enumerate((lab.run_automatic(gpus)[1], ours)):
            _, _, share, copied, *_ = script["measured"](report, least)
            assert (copied, share) == (copies[side][place], fullest[side][place])


@pytest.mark.nightly
def test_some_gpus_hold_it_only_by_a_plan(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    script = runpy.run_path(str(ROOT / "benchmarks" / "placement.py"))
    lab = script["Lab"](architecture("GLM-4V-9B"))
    for gpus in map(parse_gpus, ("3x11GiB", "5x8GiB")):
        assert lab.run(gpus, lab.plan(gpus)).works
        _, automatic = lab.run_automatic(gpus)
        assert automatic is None or not automatic.works
