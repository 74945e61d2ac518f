"""Folders that their owner has shut: one line that says so, wherever a name of one is taken."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import golden
import pytest

from glm4v_magic.calls.prompt import read_prompt
from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import Glm4vError
from glm4v_magic.doctor import gather
from glm4v_magic.images import resolve_images
from glm4v_magic.mapping.items import items_of
from glm4v_magic.outside import is_shut
from glm4v_magic.planning.files import read_given
from glm4v_magic.remote_code.source_patch import plan_patch
from glm4v_magic.session.chat_file import read_chat

NOBODY = 65534


@pytest.fixture(scope="module")
def shut():
    """A folder with a checkpoint that this process may not enter."""
    outer = Path(tempfile.mkdtemp())  # pytest's own would be shut to others, too
    outer.chmod(0o755)
    folder = outer / "shut"
    shutil.copytree(golden.CHECKPOINT, folder)
    folder.chmod(0)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(outer)


@contextlib.contextmanager
def as_nobody():
    """Drop root's right to enter everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


READERS = {
    "load": resolve,
    "plan": architecture,
    "doctor": lambda path: gather(model=path),
    "adapter": lambda path: resolve("demo", lora=path),
    "adapter of a plan": lambda path: architecture("demo", lora=path),
    "map": lambda path: read_given(f"{path}/map.json"),
    "prompt": lambda path: read_prompt(f"{path}/a.txt"),
    "image": lambda path: resolve_images([f"{path}/a.png"], {}),
    "images": lambda path: resolve_images([path], {}),
    "folder": lambda path: items_of(path, "x"),
    "pattern": lambda path: items_of(f"{path}/*.png", "x"),
    "document": lambda path: items_of(f"{path}/a.pdf", "x"),
    "chat": lambda path: read_chat(f"{path}/chat.json"),
    "patch": plan_patch,
}


@pytest.mark.parametrize("inside", ["", "/inner"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_shut_is_said(shut, reader, inside):
    if (reader, inside) == ("patch", "/inner"):
        pytest.skip("an id of the hub may be meant")
    with as_nobody(), pytest.raises(Glm4vError) as refused:
        READERS[reader](f"{shut}{inside}")
    assert "permission denied" in str(refused.value).lower()
    assert str(shut) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_open_or_not_there_is_not_shut(shut):
    with as_nobody():
        assert is_shut(shut)
        assert is_shut(shut / "config.json")
        for path in (shut.parent, shut.parent / "nothing", Path("a\0b"), Path("a" * 300)):
            assert not is_shut(path)


def test_a_folder_around_one_that_is_shut(shut):
    with as_nobody(), pytest.raises(Glm4vError, match=r"config\.json cannot be read"):
        resolve(shut.parent)
