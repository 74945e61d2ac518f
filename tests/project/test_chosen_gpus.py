"""The tables of what a plan chooses stand in the page as they are made."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_tables_of_today(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    script = runpy.run_path(str(ROOT / "benchmarks" / "chosen_gpus.py"))
    page = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    shown = page.partition(script["BEGIN"])[2].partition(script["END"])[0]
    assert shown.strip() == script["tables"]().strip(), "run: make tables"
    assert shown.count("cut") > 5
