"""Revisions: what is planned, checked and looked at is what is loaded."""

from __future__ import annotations

import json
import shutil

import golden
import pytest
from huggingface_hub import constants

CONTEXTS = {"main": 256, "v1": 128}


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """A repository in the cache of the hub, with a branch of another context length."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    root = tmp_path / "hub" / "models--somebody--tuned"
    (root / "refs").mkdir(parents=True)
    for number, (revision, context) in enumerate(CONTEXTS.items()):
        commit = str(number) * 40
        (root / "refs" / revision).write_text(commit)
        folder = shutil.copytree(golden.CHECKPOINT, root / "snapshots" / commit)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "seq_length": context}))
    return "somebody/tuned"


def planned(run, line):
    return json.loads(run(f"%glm4v plan {line} --gpus 2x1GiB --json"))["workload"]["context"]


def checked(run, line):
    return json.loads(run(f"%glm4v check {line} --gpus 2x1GiB --json"))["context"]


@pytest.mark.parametrize(("revision", "context"), CONTEXTS.items())
def test_a_revision_is_of_all_commands(run, tuned, revision, context):
    line = f"{tuned} --revision {revision}"
    assert planned(run, line) == checked(run, line) == context
    assert f"{context} tokens" in run(f"%glm4v doctor {line} --gpus 1x1GiB")
    shown = run(f"%glm4v devices https://huggingface.co/{tuned}/tree/{revision} --gpus 2x1GiB")
    assert f"{context} tokens" in shown
    plain, of_main = (
        json.loads(run(f"%glm4v plan {tuned} {given} --gpus 2x1GiB --json"))
        for given in ("", "--revision main")
    )
    assert (plain.pop("made_of"), of_main.pop("made_of")) == ([], [["revision", "main"]])
    assert plain == of_main


def test_without_a_model_it_is_that_of_the_model_in_use(run, tuned):
    run(f"%glm4v load {tuned} --revision v1 --gpus cpu")
    try:
        assert planned(run, "") == checked(run, "") == 128
        assert planned(run, "--revision main") == planned(run, tuned) == 256
        assert "128 tokens" in run("%glm4v devices")
        for engine in ("own", "vllm"):
            line = f"--engine {engine} --print"
            assert "--revision v1" in run(f"%glm4v serve {line}")
            assert "--revision main" in run(f"%glm4v serve --revision main {line}")
            assert "--revision" not in run(f"%glm4v serve {tuned} {line}")
        run("%glm4v load --dtype float16")  # which takes the model loaded last
        assert "128 tokens" in run("%glm4v status")
        run(f"%glm4v load {tuned} --dtype float16")
        assert "256 tokens" in run("%glm4v status")
        run(f"%glm4v load {tuned} --revision v1 --gpus cpu")
    finally:
        run("%glm4v unload")
    assert planned(run, "") == 128  # the next question loads it
    run(f"made = %glm4v plan {tuned} --revision main --gpus 2x1GiB")
    assert json.loads(run("%glm4v check --map made --json"))["context"] == 256
    run("%glm4v load demo")
