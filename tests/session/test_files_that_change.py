"""Files of models: damage is found before the old model is released; changed ones are loaded."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file
from shells import TINY

from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.session.session import Session

GREEDY = {"max_tokens": 8, "temperature": 0}
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 1234567\n"
)


@pytest.fixture(scope="module")
def session():
    session = Session().load(TINY)
    yield session
    session.unload()


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def other_tokenizer(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-10]))


NINE_B = {
    "ranks that are none": ("tokenizer.model", lambda path: path.write_bytes(b"no ranks\n"), ""),
    "a tokenizer of another model": ("tokenizer.model", other_tokenizer, "of another model"),
    "a pointer for a tokenizer": ("tokenizer.model", lambda path: path.write_text(POINTER), "lfs"),
    "a pointer for weights": ("model.safetensors", lambda path: path.write_text(POINTER), "lfs"),
    "no tokenizer": ("tokenizer.model", os.unlink, "tokenizer.model"),
    "an unknown dtype": ("config.json", lambda path: edit(path, torch_dtype="int3"), "int3"),
}


def refused(session, folder, said):
    """Loading is refused on one line, and the model that was loaded stays."""
    engine = session.engine
    with pytest.raises(CheckpointError) as caught:
        session.load(folder)
    assert session.engine is engine
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "released" not in str(caught.value)


@pytest.mark.parametrize("damage", NINE_B)
def test_damage_is_found_while_the_old_model_is_loaded(session, tmp_path, damage):
    name, do, said = NINE_B[damage]
    folder = shutil.copytree(TINY, tmp_path / "broken")
    do(folder / name)
    refused(session, folder, said)


NATIVE = {
    "a damaged tokenizer": ("tokenizer.json", lambda path: path.write_text("{"), "tokenizer"),
    "a pointer for a tokenizer": ("tokenizer.json", lambda path: path.write_text(POINTER), "lfs"),
    "a damaged preprocessor": (
        "preprocessor_config.json",
        lambda path: path.write_text("{"),
        "preprocessor_config.json",
    ),
    "other patches": ("preprocessor_config.json", lambda path: edit(path, patch_size=7), "7"),
    "no preprocessor": ("preprocessor_config.json", os.unlink, "preprocessor_config.json"),
    "an unknown dtype": (
        "config.json",
        lambda path: edit(path, dtype="int3", text_config=of_text(path, dtype="int3")),
        "int3",
    ),
}


def of_text(path, **changes):
    return {**json.loads(path.read_text())["text_config"], **changes}


@pytest.mark.parametrize("damage", NATIVE)
def test_damage_of_newer_models_is_found_as_early(session, native, tmp_path, damage):
    name, do, said = NATIVE[damage]
    folder = shutil.copytree(native("glm4v"), tmp_path / "broken")
    do(folder / name)
    refused(session, folder, said)


def test_a_tokenizer_with_more_tokens_than_the_model(session, native, tmp_path):
    folder = shutil.copytree(native("glm4v"), tmp_path / "broken")
    file = folder / "tokenizer.json"
    described = json.loads(file.read_text())
    added = described["added_tokens"][-1] | {"id": 5000, "content": "<more>"}
    described["added_tokens"].append(added)
    file.write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="tokens up to 336, but config"):
        session.load(folder)


@pytest.mark.parametrize("family", ["GLM-4V-9B", "glm4v"])
@pytest.mark.parametrize("given", ["auto", None])
def test_dtypes_that_the_files_tell(native, tmp_path, family, given):
    source = TINY if family == "GLM-4V-9B" else native(family)
    folder = shutil.copytree(source, tmp_path / "auto")
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config.get("text_config", {})):
        part.pop("dtype", None)
        part.pop("torch_dtype", None)
        if given is not None:
            part["torch_dtype"] = given
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    save_file({name: each.half() for name, each in weights.items()}, folder / "model.safetensors")
    (folder / "generation_config.json").unlink()
    from glm4v_magic.checkpoints.architecture import architecture

    assert architecture(folder).shape().dtype == "float16"
    session = Session().load(folder)
    assert session.ask("What?", **GREEDY).text is not None
    session.unload()


def test_a_folder_that_was_merged_again_is_loaded_again(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "merged")
    session = Session().load(folder)
    engine, before = session.engine, session.ask("What?", **GREEDY).text
    rows = session.map("What is {{item}}?", [1, 2], **GREEDY)
    for name in ("train.log", "notes.ipynb", "plan.json", "rows.parquet", "trainer_state.json"):
        (folder / name).write_text("{}")
    session.load(folder)
    assert session.engine is engine  # loaded already: no load reads these
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["transformer.output_layer.weight"] = weights["transformer.output_layer.weight"].flip(0)
    save_file(weights, file, metadata={"format": "pt"})
    session.load(folder)
    assert session.engine is not engine
    assert session.ask("What?", **GREEDY).text != before
    again = session.map("What is {{item}}?", [1, 2], **GREEDY)
    assert [row.answer.text for row in again] != [row.answer.text for row in rows]
    session.unload()
