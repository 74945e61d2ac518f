"""Files that weights are read from while a model is in use, and that others write into."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import golden
import pytest
import torch
from safetensors.torch import load_file, save_file

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.reading import mapped_files, stored_weights
from glm4v_magic.core.errors import EngineError
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

SHORT = {"temperature": 0, "max_tokens": 6, "repetition_penalty": 1.0}
OFFLOADED = {"": 0, "model.language_model.layers.1": "cpu"}


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(golden.CHECKPOINT, tmp_path / "model")


def others(folder, scale=-1.0):
    """The weights, changed, in another file."""
    file = folder / "model.safetensors"
    changed = {name: each * scale for name, each in load_file(file).items()}
    save_file(changed, folder / "others")
    return folder / "others"


def overwrite(folder):
    file, content = folder / "model.safetensors", others(folder).read_bytes()
    with file.open("r+b") as stream:
        stream.write(content)
        stream.truncate()


def replace(folder):
    others(folder).rename(folder / "model.safetensors")


def delete(folder):
    (folder / "model.safetensors").unlink()


def refused(ask):
    with pytest.raises(EngineError) as caught:
        ask()
    said = str(caught.value)
    assert "\n" not in said
    assert "model.safetensors was overwritten after " in said or ".bin was overwritten" in said
    assert "which reads its weights from there. " in said
    assert said.endswith(" Load it again.")
    return caught.value


def test_a_model_whose_weights_were_overwritten_asks_to_be_loaded_again(folder):
    session = Session().load(folder)
    before = session.ask("What?", chat="c", **SHORT)
    look = before.inspect()
    overwrite(folder)
    refused(lambda: session.ask("And?", chat="c", follow_up=True, **SHORT))
    refused(look.lens)
    refused(lambda: session.map("{{item}}", ["a", "b"], **SHORT))
    session.load(folder)
    assert session.ask("And?", chat="c", follow_up=True, **SHORT).usage.new_tokens
    assert session.ask("What?", **SHORT).text != before.text
    session.unload()


def test_what_was_said_until_then_is_kept(folder):
    session = Session().load(folder)
    stream = session.stream("What?", chat="c", temperature=0, max_tokens=200)
    for event in stream:
        if getattr(event, "text", ""):
            break
    overwrite(folder)
    error = refused(lambda: list(stream))
    assert error.answer.text
    assert session.conversation("c").messages[-1].role == "assistant"
    session.unload()


@pytest.mark.parametrize("change", [replace, delete], ids=["replaced", "deleted"])
def test_a_file_that_is_replaced_or_deleted_stays_for_those_who_have_it(folder, change):
    session = Session().load(folder)
    before = session.ask("What?", **SHORT).text
    change(folder)
    session.forget_answers()
    assert session.ask("What?", **SHORT).text == before
    session.unload()


def test_weights_that_were_converted_or_are_on_a_gpu_are_in_no_file(folder):
    session = Session().load(folder, dtype="bfloat16")
    before = session.ask("What?", **SHORT).text
    overwrite(folder)
    assert session.ask("What?", **SHORT).text == before
    session.unload()
    with VirtualGPUs("1x1GiB"):
        session.load(folder, device_map=0)
        before = session.ask("What?", **SHORT).text
        shutil.copy(golden.CHECKPOINT / "model.safetensors", folder / "model.safetensors")
        assert session.ask("What?", **SHORT).text == before
        session.unload()


def test_offloaded_weights_are_in_their_file(folder):
    with VirtualGPUs("1x1GiB"):
        session = Session().load(folder, device_map=OFFLOADED)
        session.ask("What?", **SHORT)
        overwrite(folder)
        refused(lambda: session.ask("What?", **SHORT))
        session.unload()


def test_one_of_several_shards_and_of_a_link(tmp_path):
    folder = shutil.copytree(golden.SHARDED, tmp_path / "sharded")
    shard = min(folder.glob("*.safetensors"))
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")  # as in the hub's cache
    session = Session().load(folder)
    os.utime(tmp_path / "blob")
    with pytest.raises(EngineError, match=f"{shard.name} was overwritten after"):
        session.ask("What?", **SHORT)
    session.load(folder)
    assert session.ask("What?", **SHORT).usage.new_tokens
    session.unload()


@pytest.mark.parametrize("is_zip", [True, False])
def test_files_of_torch_save(folder, is_zip):
    weights = load_file(folder / "model.safetensors")
    delete(folder)
    file = folder / "pytorch_model.bin"
    torch.save(weights, file, _use_new_zipfile_serialization=is_zip)
    session = Session().load(folder)
    session.ask("What?", **SHORT)
    os.utime(file, ns=(1, 1))
    if is_zip:
        refused(lambda: session.ask("What?", **SHORT))
    else:  # torch has read it into memory
        assert session.ask("What?", **SHORT).usage.new_tokens
    session.unload()


def test_the_files_that_were_mapped_are_told(folder):
    with stored_weights(resolve(folder).tensors) as weights:
        assert mapped_files(weights) == ()
        (name, *_) = weights
        weight = weights[name][...]
        (file,) = mapped_files(weights)
    assert file.path == folder / "model.safetensors"
    assert file.holds(weight)
    assert file.holds(weight.flatten()[1:])
    assert not file.holds(weight.clone())
    assert not file.has_changed
    file.path.touch()
    assert file.has_changed


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be cut there")
def test_a_file_that_was_cut_short_does_not_end_the_process(folder):
    """In a process of its own, which SIGBUS would end."""
    code = (
        "import os, sys\n"
        "from glm4v_magic.session.session import Session\n"
        "session = Session().load(sys.argv[1])\n"
        "os.truncate(sys.argv[1] + '/model.safetensors', 4096)\n"
        "try:\n    session.ask('What?', max_tokens=2)\n"
        "except Exception as error:\n    print(error)\n"
        "session.load('demo')\n"
        "print(session.status().info.model)\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert "model.safetensors was overwritten after" in first
    assert last == "demo"
