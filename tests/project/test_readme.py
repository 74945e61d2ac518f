"""The README in English and in Chinese: the same commands, options, code and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")}
ENGLISH, CHINESE = TEXTS.values()


def blocks(text: str) -> list[str]:
    return re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)


def rows(text: str) -> list[tuple[list[str], list[str]]]:
    """Return of each row of a table the code in its first cell, and the numbers in all cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [(code(line.split(" | ")[0]), sorted(re.findall(r"\d+", line))) for line in lines]


def code(text: str) -> list[str]:
    """Return the code in the lines of a text; blocks are left out."""
    for block in blocks(text):
        text = text.replace(block, "")
    return [" ".join(each.split()) for each in re.findall(r"`(?:[^`\n]|\n(?!\n))+`", text)]


def links(text: str) -> set[str]:
    return set(re.findall(r"\]\(([^)]+)\)", text))


def test_the_first_screen_says_what_shows_a_cell_and_gives_two_commands() -> None:
    for text in (ENGLISH, CHINESE):
        before, image, after = re.split(r'(<img src="[^"]+" width="640" alt="[^"]{30,}">)', text)
        shown = ROOT / re.findall('"(.*?)"', image)[0]
        assert shown.read_bytes()[:3] == b"GIF"
        assert shown.stat().st_size < 300_000
        assert len(before) < 900
        commands = blocks(after)[0].splitlines()[1:-1]
        assert [line.split("#")[0].strip() for line in commands] == ["make demo", "make test"]
        assert after.index(blocks(after)[0]) < 250


def test_code_blocks_are_the_same() -> None:
    assert blocks(CHINESE) == blocks(ENGLISH)
    assert len(blocks(ENGLISH)) > 5


def test_tables_have_the_same_options_and_numbers() -> None:
    for english, chinese in zip(rows(ENGLISH), rows(CHINESE), strict=True):
        assert chinese == english
    assert sum(bool(options) for options, _ in rows(ENGLISH)) > 60


def test_each_names_what_the_other_names() -> None:
    assert set(code(CHINESE)) ^ set(code(ENGLISH)) == set()


def test_each_links_to_the_other_at_its_top_and_to_the_same_pages() -> None:
    assert "](README.zh.md)" in ENGLISH.partition("## ")[0]
    assert "](README.md)" in CHINESE.partition("## ")[0]
    own = {"README.md", "README.zh.md"}
    english, chinese = (
        {link for link in links(text) if not link.startswith("#")} - own for text in TEXTS.values()
    )
    assert chinese == english


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    titles = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", TEXTS[name], re.MULTILINE)
    }
    for link in links(TEXTS[name]):
        file, _, anchor = link.partition("#")
        if not link.startswith("https://"):
            assert not file or (ROOT / file).exists(), link
            assert file or anchor in titles, link
