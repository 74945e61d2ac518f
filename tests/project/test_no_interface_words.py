"""Only a front end names commands, options and settings: see ``core.remarks`` for the others."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import glm4v_magic

PACKAGE = Path(glm4v_magic.__file__).parent
FILES = sorted(
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] != "notebook"
)
COMMAND_LINES = {
    "server/command.py": "a program: python -m glm4v_magic.server",
    "server/next_steps.py": "the words of that program; those of others are told apart elsewhere",
    "remote_code/patch.py": "a program: python -m glm4v_magic.remote_code.patch",
    "doctor/diagnosis.py": "pip, a program of others",
    "images/holders.py": "pip, a program of others",
    "checkpoints/foreign.py": "the program that DeepSpeed writes beside its parts",
}
"""Files that may name options of a program, not of ours in a notebook; no magics."""
FRONT_PAGES = {
    "__init__.py": "shows a first cell, and registers the magics",
}
"""Files that may name both."""

SENTENCES = {
    "core/options.py": "help of options that work otherwise in a notebook, and say so",
    "doctor/software.py": "a known problem of the kernel's own package",
}
"""Files whose messages may speak of notebooks."""

NOTEBOOK = re.compile(r"\b(?:kernel|cell|notebook)(?:s|'s)?\b", re.IGNORECASE)
NO_NOTEBOOK = re.compile(r"transformers\[kernels\]|the package kernels|non-CPU kernel")
"""Packages of that name, and a message of CUDA."""
MAGIC = re.compile(r"%glm4v|%config|%load_ext")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
# Before Python 3.12 an f-string is a string like any other.
TEXT = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Strings, docstrings and comments, each with its line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in TEXT:
            yield token.start[0], token.string


def interface_words(source: str, *, options: bool = True) -> list[str]:
    found = []
    for line, text in texts(source):
        words = MAGIC.findall(text)
        if options:
            words += OPTION.findall(text)
        found += [f"line {line}: {word}" for word in words]
    return found


@pytest.mark.parametrize("file", [file for file in FILES if file not in FRONT_PAGES])
def test_no_magic_and_no_option_is_named(file):
    source = (PACKAGE / file).read_text(encoding="utf-8")
    assert interface_words(source, options=file not in COMMAND_LINES) == []


def sentences(source: str) -> Iterator[str]:
    """Strings of several words that are not documentation."""
    tree = ast.parse(source)
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in documentation and " " in node.value.strip():
            yield node.value


@pytest.mark.parametrize("file", [file for file in FILES if file not in SENTENCES])
def test_no_message_takes_a_notebook_for_granted(file):
    source = (PACKAGE / file).read_text(encoding="utf-8")
    found = [each for each in sentences(source) if NOTEBOOK.search(NO_NOTEBOOK.sub("", each))]
    assert found == []


@pytest.mark.parametrize("file", SENTENCES)
def test_files_that_speak_of_notebooks_do(file):
    assert any(map(NOTEBOOK.search, sentences((PACKAGE / file).read_text(encoding="utf-8"))))


@pytest.mark.parametrize("file", [*COMMAND_LINES, *FRONT_PAGES])
def test_exceptions_are_needed(file):
    assert OPTION.search(source := (PACKAGE / file).read_text(encoding="utf-8")) or MAGIC.search(
        source
    )


@pytest.mark.parametrize(
    "source",
    [
        'raise X("Leave --gpus out.")',
        'f"{x}: ask again with %glm4v retry"',
        '"""Says ``--over`` in a docstring."""',
        'def f():\n    """Return ``-n``, ``--name``: the form of an option."""',
        "x = 1  # as %config does",
    ],
)
def test_the_search_finds_them(source):
    assert len(interface_words(source)) == 1


def test_the_search_knows_dashes():
    assert interface_words('"a -- b, x--gpus, ---, --"') == []
