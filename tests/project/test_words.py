"""The field's words: GPU, image, character and token, in code, messages, pages and notebooks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("glm4v_magic", "training", "benchmarks", "docs", "notebooks", "tests")
SUFFIXES = (".py", ".md", ".ipynb", ".html", ".toml")


@dataclass(frozen=True)
class Rule:
    """A word that is not used, and the one to use instead."""

    found: re.Pattern[str]
    instead: str


RULES = {
    "card": Rule(re.compile(r"\b(?<!model )cards?\b"), "GPU"),
    "picture": Rule(re.compile(r"\bpictures?\b"), "image"),
    "sign": Rule(re.compile(r"\b(?<!percent )(?<!dollar )signs?\b(?! of life)"), "character"),
    "positions": Rule(
        re.compile(
            r"[\d}] positions\b(?! to)|'position'|\bin positions\b|positions of (the )?prompt"
        ),
        "tokens (of context)",
    ),
}

EXCEPTIONS = {
    ("CHANGELOG.md", "picture"): "the name of a module that is gone",
    ("glm4v_magic/checkpoints/demo/README.md", "picture"): "what the demo model says; its cases",
    ("notebooks/01_quickstart.ipynb", "picture"): "a prompt of the demo model, as it was trained",
    ("tests/project/test_training_scenes.py", "picture"): "phrases of the training",
    ("tests/remote_code/test_patch.py", "picture"): "code of the stand-in for the published model",
    ("tests/standins/eva2clip/modeling_chatglm.py", "picture"): "stands in for published code",
    ("tests/project/test_ratios.py", "sign"): "the test of statistics",
    ("training/batches.py", "picture"): "a kind of question in the published training",
    ("training/evaluate.py", "picture"): "names of cases, which seed their samples",
    ("training/optimisation.py", "sign"): "that of a number",
    ("training/phrases.py", "picture"): "phrases of the training",
    ("training/phrases.py", "sign"): "phrases of the training",
    ("training/questions.py", "picture"): "phrases of the training",
    ("training/README.md", "sign"): "that of a number",
    ("training/tokenizer.py", "sign"): "that of a number",
}
"""(file, word) -> why it may stand there."""


def files() -> Iterator[Path]:
    """Every text that people read or write, this test and the test's data excepted."""
    yield from ROOT.glob("*.md")
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            is_data = "data" in path.parts or path == Path(__file__)
            if path.suffix in SUFFIXES and not is_data:
                yield path


def written(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a file; of a notebook, those of its cells without their outputs."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    yield from enumerate(text.splitlines(), 1)


def plain(line: str) -> str:
    """A line with the words of its names apart, in small letters."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", " ", line).lower()


def words_in(line: str) -> set[str]:
    return {word for word, rule in RULES.items() if rule.found.search(plain(line))}


def test_only_the_fields_words_are_used() -> None:
    unexpected, seen = [], set()
    for path in files():
        name = str(path.relative_to(ROOT))
        found = [(0, name), *written(path)]
        for number, line in found:
            for word in words_in(line):
                if (name, word) in EXCEPTIONS:
                    seen.add((name, word))
                else:
                    unexpected.append(f"{name}:{number}: {RULES[word].instead}, not {word}: {line}")
    assert not unexpected, "\n".join(unexpected)
    assert seen == EXCEPTIONS.keys(), "an exception is not needed any more"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("FOUR_CARDS = 4", {"card"}),
        ("class GPUCard:", {"card"}),
        ("see the model card and the wildcard *", set()),
        ("def to_picture(image):", {"picture"}),
        ("Pictures[0]", {"picture"}),
        ("the last signs of `text`", {"sign"}),
        ("a percent sign, a dollar sign, a sign of life", set()),
        ('f"{context:,} positions are too many"', {"positions"}),
        ("context: positions of prompt and answer", {"positions"}),
        ("position_ids of the tokens", set()),
    ],
)
def test_the_words_that_are_found(line: str, words: set[str]) -> None:
    assert words_in(line) == words
