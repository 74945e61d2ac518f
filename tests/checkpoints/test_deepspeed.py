"""Parts that DeepSpeed writes are merged by the command that a message names, and loaded.

``make nightly-deepspeed`` makes the environment; `GLM4V_DEEPSPEED` names its Python.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import golden
import pytest
import torch
from safetensors.torch import load_file

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.session.session import Session

pytestmark = pytest.mark.nightly


def test_parts_of_deepspeed_are_merged_by_its_own_program_and_loaded(tmp_path, monkeypatch):
    if "GLM4V_DEEPSPEED" not in os.environ:
        pytest.skip("GLM4V_DEEPSPEED is not set; make nightly-deepspeed does")
    python = os.environ["GLM4V_DEEPSPEED"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("PATH", str(Path(python).parent), prepend=os.pathsep)
    folder = tmp_path / "a run/checkpoint-500"
    folder.parent.mkdir()
    writes = Path(__file__).with_name("deepspeed_parts.py")
    subprocess.run([python, writes, golden.CHECKPOINT, folder], check=True)
    parts = sorted(each.name for each in folder.rglob("*.pt"))
    assert len(parts) == 3, parts
    with pytest.raises(CheckpointError, match="the parts of a training with DeepSpeed") as caught:
        resolve(folder)
    (command,) = re.findall(r"DeepSpeed has them in parts: (.*)$", str(caught.value))
    subprocess.run(command, shell=True, check=True)
    assert sorted(each.name for each in folder.rglob("*.pt")) == parts
    merged = load_file(folder / "model.safetensors")
    trained = load_file(golden.CHECKPOINT / "model.safetensors")
    assert merged.keys() == trained.keys()
    assert all(torch.equal(merged[name], each.bfloat16().float()) for name, each in trained.items())
    session = Session().load(folder)
    assert session.ask("What?", temperature=0, max_tokens=4).usage.new_tokens
    session.unload()
