"""Weights in the forms of other programs: every entrance names them, and says what can be done."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import golden
import pytest
import torch
import torch.distributed.checkpoint as parts
from accelerate.commands import accelerate_cli
from safetensors.torch import load_file, save_file

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.contents import read_contents
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.core.remarks import PYTHON, worded
from glm4v_magic.doctor import diagnose, gather
from glm4v_magic.session.session import Session

ORIGINAL = "Take the original checkpoint; quantize="
FOLDER = "Give the folder that the checkpoint is in."


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(golden.CHECKPOINT, tmp_path / "c")


def said_of(path):
    """Return what load, plan, check and doctor say of a path, which is the same."""
    said = []
    for look in (resolve, architecture, lambda path: gather((), model=str(path))):
        with pytest.raises(CheckpointError) as caught:
            look(path)
        said.append(worded(caught.value.text, PYTHON))
    assert len(set(said)) == 1
    assert "\n" not in said[0]
    return said[0]


def unload(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return tensors


def in_parts(folder, at="pytorch_model_fsdp_0"):
    tensors = unload(folder)
    with pytest.warns(UserWarning, match="single process"):
        parts.save({"model": tensors}, checkpoint_id=folder / at)
    optimizer = {"state": {"step": torch.zeros(1)}}
    with pytest.warns(UserWarning, match="single process"):
        parts.save(optimizer, checkpoint_id=folder / "optimizer_0")
    return tensors


@pytest.mark.parametrize("has_config", [True, False])
@pytest.mark.parametrize(
    ("name", "is_in"),
    [
        ("model-Q4_K_M.gguf", "model-Q4_K_M.gguf is in GGUF, the format of llama.cpp, which is"),
        ("model.onnx", "model.onnx is in ONNX, which is not read here."),
    ],
)
def test_a_folder_in_another_format(folder, name, is_in, has_config):
    unload(folder)
    (folder / name).write_bytes(b"GGUF" if "gguf" in name else b"\x08")
    if not has_config:
        (folder / "config.json").unlink()
    said = said_of(folder)
    assert said.startswith(f"{folder} holds no weights that can be loaded: {is_in}")
    assert ORIGINAL in said


def test_what_lies_beside_whole_weights_does_no_harm(folder):
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    assert resolve(folder).tensors
    assert gather((), model=str(folder)).fault is None
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        resolve(folder)


def pack_zip(folder, name):
    return shutil.make_archive(str(folder.parent / name), "zip", folder)


def pack_tar(folder, name):
    with tarfile.open(folder.parent / name, "w:gz" if name.endswith("gz") else "w") as archive:
        archive.add(folder, "c")
    return folder.parent / name


def write_gguf(folder, name):
    (folder / name).write_bytes(b"GGUF\x03\0\0\0" + bytes(400))
    return folder / name


def write(path):
    path.write_bytes(bytes(400))
    return path


@pytest.mark.parametrize(
    ("made", "name", "what", "way"),
    [
        (write_gguf, "m.gguf", " is in GGUF, the format of llama.cpp", ORIGINAL),
        (write_gguf, "blob", " is in GGUF, the format of llama.cpp", ORIGINAL),  # as ollama has it
        (pack_zip, "it", " is an archive.", "Unpack it, and give the folder."),
        (pack_tar, "it.tar", " is an archive.", "Unpack it, and give the folder."),
        (pack_tar, "it.tar.gz", " is an archive.", "Unpack it, and give the folder."),
        (lambda at, name: at / name, "model.safetensors", " is a file of weights.", FOLDER),
        (lambda at, name: write(at / name), "Old.PT", " is a file of weights.", FOLDER),
    ],
)
def test_a_file_instead_of_a_folder(folder, made, name, what, way):
    path = made(folder, name)
    said = said_of(path)
    assert said.startswith(f"{path}{what}")
    assert way in said
    if way == FOLDER:
        assert resolve(path.parent).tensors
    elif way != ORIGINAL:
        shutil.unpack_archive(path, folder.parent / "unpacked")
        (config,) = (folder.parent / "unpacked").rglob("config.json")
        assert resolve(config.parent).tensors


def test_a_pickle_is_weights_and_no_archive(folder):
    torch.save(unload(folder), folder / "pytorch_model.bin")
    assert said_of(folder / "pytorch_model.bin").endswith(f"is a file of weights. {FOLDER}")
    assert resolve(folder).tensors


@pytest.mark.parametrize("has_config", [True, False])
@pytest.mark.parametrize("at", ["pytorch_model_fsdp_0", "."])
def test_the_parts_of_fsdp_are_merged_as_it_is_said(folder, monkeypatch, at, has_config):
    tensors = in_parts(folder, at)
    if not has_config:
        (folder / "config.json").unlink()
    said = said_of(folder)
    assert "holds no weights that can be loaded, but the parts of a training with FSDP" in said
    command, _, rest = said.partition("FSDP has them in parts: ")[2].partition(" Then put ")
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    accelerate_cli.main()
    assert bool(rest) != has_config
    if rest:
        assert rest.startswith("config.json and the tokenizer beside them")
        shutil.copy(golden.CHECKPOINT / "config.json", folder)
    merged = load_file(folder / "model.safetensors")
    assert all(torch.equal(merged[name], each) for name, each in tensors.items())
    assert resolve(folder).tensors.keys() == tensors.keys()


MERGES = """
import argparse, pathlib, torch
from safetensors.torch import save_file
parser = argparse.ArgumentParser()
parser.add_argument("checkpoint_dir", type=pathlib.Path)
parser.add_argument("output_dir", type=pathlib.Path)
parser.add_argument("--safe_serialization", action="store_true")
given = parser.parse_args()
assert given.safe_serialization
step = given.checkpoint_dir / (given.checkpoint_dir / "latest").read_text()
weights = torch.load(step / "mp_rank_00_model_states.pt")
save_file({name: each.float() for name, each in weights.items()},
          given.output_dir / "model.safetensors", metadata={"format": "pt"})
"""
"""What the program that DeepSpeed leaves beside its parts does; see `test_deepspeed`."""


@pytest.mark.parametrize("has_config", [True, False])
@pytest.mark.parametrize("name", ["c", "a user's run", "long" * 15])
def test_the_parts_of_deepspeed_are_merged_as_it_is_said(
    folder, tmp_path, monkeypatch, name, has_config
):
    folder = folder.rename(tmp_path / name)
    tensors = unload(folder)
    part = folder / "global_step500/mp_rank_00_model_states.pt"
    part.parent.mkdir()
    torch.save(tensors, part)
    (folder / "latest").write_text(part.parent.name)
    (folder / "zero_to_fp32.py").write_text(MERGES)
    if not has_config:
        (folder / "config.json").unlink()
    said = said_of(folder)
    assert "holds no weights that can be loaded, but the parts of a training with DeepSpeed" in said
    command, _, rest = said.partition("DeepSpeed has them in parts: ")[2].partition(" Then put ")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    subprocess.run(command, shell=True, check=True)
    assert bool(rest) != has_config
    if rest:
        assert rest.startswith("config.json and the tokenizer beside them")
        shutil.copy(golden.CHECKPOINT / "config.json", folder)
    assert part.exists()
    session = Session().load(folder)
    question = {"temperature": 0, "max_tokens": 4}
    answer = session.ask("What?", **question).text
    assert answer == session.load(golden.CHECKPOINT).ask("What?", **question).text
    session.unload()


def of_mlx(native, folder, keys, words=True):
    shutil.copytree(native("glm46v"), folder)
    weights = load_file(folder / "model.safetensors")
    full = weights["lm_head.weight"]
    if words:
        scales = torch.ones(full.shape[0], 1, dtype=torch.bfloat16)
        weights["lm_head.weight"] = torch.zeros(len(full), full.shape[1] // 8, dtype=torch.uint32)
        weights |= {"lm_head.scales": scales, "lm_head.biases": scales.clone()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "mlx"})
    config = json.loads((folder / "config.json").read_text())
    config |= {key: {"group_size": 64, "bits": 4, "mode": "affine"} for key in keys}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("keys", "scheme"),
    [
        (("quantization", "quantization_config"), "MLX (4 bits)"),
        (("quantization",), "MLX (4 bits)"),
        (("quantization_config",), "MLX (4 bits)"),
        ((), "MLX"),
    ],
)
def test_what_mlx_has_quantised(native, tmp_path, keys, scheme):
    said = said_of(of_mlx(native, tmp_path / "mlx", keys))
    assert f"are quantised by {scheme}, which cannot be loaded here. {ORIGINAL}" in said


def test_what_mlx_says_of_full_weights_does_no_harm(native, tmp_path):
    folder = of_mlx(native, tmp_path / "mlx", ("quantization",), words=False)
    (note,) = read_contents(folder).notes
    assert note.endswith("quantised by MLX (4 bits), but they are not: it is left out")
    assert gather((), model=str(folder)).fault is None


def test_of_a_config_alone_the_doctor_says_that_a_load_takes_its_folder(folder):
    def findings(model):
        found = diagnose(gather("1x16GiB", model=str(model)))
        return {each.subject: each for each in found}

    config = folder / "config.json"
    found = findings(config)
    assert (found["checkpoint"].verdict, found["model"].verdict) == ("warn", "ok")
    assert found["checkpoint"].next_step == "Name the folder that it is in."
    with pytest.raises(CheckpointError, match=re.escape(f"{config} is a file. {FOLDER}")):
        resolve(config)
    assert "checkpoint" not in findings(folder)
    assert "nothing to download" in found["disk"].found
    unload(folder)
    assert "nothing to download" not in findings(config)["disk"].found
