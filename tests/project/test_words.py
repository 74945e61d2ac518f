"""The field's words: GPU, image, character and token, in every text, English and Chinese."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEST_DATA = ROOT / "tests" / "data"


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
    "显卡": Rule(re.compile("显卡"), "GPU"),
    "图片": Rule(re.compile("图片|图画"), "图像"),
    "字元": Rule(re.compile("字元"), "字符"),
    "令牌": Rule(re.compile("令牌|记号|标记符"), "词元"),
    "提示语": Rule(re.compile("提示语"), "提示词"),
    "空跑": Rule(re.compile("空跑|干跑"), "试运行"),
}
"""The name of each word that is not used, and its rule."""

EXCEPTIONS = {
    ("CHANGELOG.md", "picture"): "the name of a module that is gone",
    ("glm4v_magic/checkpoints/demo/README.md", "picture"): "what the demo model says; its cases",
    ("glm4v_magic/calls/boxes.py", "picture"): "what models say",
    ("glm4v_magic/calls/boxes.py", "图片"): "likewise",
    ("tests/calls/test_boxes.py", "picture"): "what models say",
    ("tests/calls/test_boxes.py", "图片"): "likewise",
    ("tests/project/test_training_scenes.py", "picture"): "phrases of the training",
    ("tests/remote_code/test_patch.py", "picture"): "code of the stand-in for the published model",
    ("tests/standins/eva2clip/modeling_chatglm.py", "picture"): "stands in for published code",
    ("tests/project/test_ratios.py", "sign"): "the test of statistics",
    ("training/batches.py", "picture"): "a kind of question in the published training",
    ("training/evaluate.py", "picture"): "names of cases, which seed their samples",
    ("training/native/batches.py", "picture"): "a thought, as it was trained",
    ("training/native/batches.py", "图片"): "likewise",
    ("training/native/phrases.py", "picture"): "phrases of the training",
    ("training/native/phrases.py", "图片"): "phrases of the training",
    ("training/native/questions.py", "图片"): "answers, as they were trained",
    ("training/native/tokenizer.py", "图片"): "a word of the training",
    ("training/optimisation.py", "sign"): "that of a number",
    ("training/phrases.py", "picture"): "phrases of the training",
    ("training/phrases.py", "图片"): "phrases of the training",
    ("training/phrases.py", "sign"): "phrases of the training",
    ("training/questions.py", "picture"): "phrases of the training",
    ("training/questions.py", "图片"): "phrases of the training",
    ("training/README.md", "sign"): "that of a number",
    ("training/tokenizer.py", "sign"): "that of a number",
    ("training/tokenizer.py", "图片"): "a word of the training",
}
"""(file, word) -> why it may stand there."""


def files() -> Iterator[Path]:
    """Every file that is kept in the repository, this test and the test's data excepted."""
    ignored = [".git", *(line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split())]
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(
            name for name in folders if not any(fnmatch(name, pattern) for pattern in ignored)
        )
        for name in sorted({*names} - {*ignored}):  # in a worktree .git is a file
            path = Path(folder) / name
            if TEST_DATA not in path.parents and path != Path(__file__):
                yield path


def written(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, none of a binary one; of a notebook, those of its sources."""
    data = path.read_bytes()
    if b"\0" in data:
        return
    text = data.decode()
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
        ("四块显卡上的图片", {"显卡", "图片"}),
        ("四块 GPU 上的图像，图中的图形", set()),
    ],
)
def test_the_words_that_are_found(line: str, words: set[str]) -> None:
    assert words_in(line) == words
