"""Files that came damaged, from elsewhere or not at all: what a message advises puts them right.

Each scene damages a sound folder, runs into the message, does what it says, which is mostly to
download a file again, and looks anew.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_fp8 import restored_by_hand

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.glm4v_9b.processing import load_tokenizer
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.images import to_image

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def look(folder: Path) -> None:
    """Look at all of a checkpoint but the values of its weights."""
    resolve(folder).require_usable()


def ask(folder: Path) -> None:
    """Encode a question about an image."""
    image = to_image(Image.new("RGB", (56, 56)), "x")
    processor = resolve(folder).processor()
    assert processor.encode(Conversation((Message("user", "What?", (image,)),)))


def changed(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def written(name: str, content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(content)

    return write


def gone(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def cut(folder: Path) -> None:
    os.truncate(folder / SINGLE, 5000)


def moved_to_another_shard(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    places = index["weight_map"]
    name = next(name for name, shard in places.items() if shard == SHARD)
    places[name] = "model-00001-of-00003.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


def linked_to_nothing(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to("nowhere")


def config_linked_to_nothing(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("nowhere")


def without_an_index(folder: Path) -> None:
    gone(INDEX, SHARD)(folder)


def skipped_rank(folder: Path) -> None:
    file = folder / "tokenizer.model"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[1:]))


def as_pickle(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\3\4 cut off")


def optimizer(folder: Path) -> None:
    (folder / SINGLE).unlink()
    torch.save({"step": 3}, folder / "pytorch_model.bin")


def without_a_scale(folder: Path) -> None:
    weights = load_file(folder / SINGLE)
    del weights[next(name for name in weights if name.endswith("scale_inv"))]
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})


ONE, SEVERAL, NATIVE, FP8 = "published", "sharded", "native", "fp8"
SCHEME = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "weight_block_size": [48, 40],
    "modules_to_not_convert": ["lm_head", "model.visual"],
}
DAMAGED: list[tuple[str, str, Callable[[Path], None], Callable[[Path], Any]]] = [
    ("It comes with the checkpoint; download it again.", ONE, gone("tokenizer.model"), look),
    ("or download the file again.", ONE, written(SINGLE, POINTER), look),
    ("Run git lfs pull in its folder", SEVERAL, written(SHARD, POINTER), look),
    ("Download them again.", SEVERAL, gone(SHARD), look),
    ("Download them again.", SEVERAL, without_an_index, look),
    ("Download it again.", ONE, linked_to_nothing, look),
    ("Index and shards are of different versions; download them again.", SEVERAL,
     moved_to_another_shard, look),
    ("The download was cut short or damaged; download this file again.", ONE, cut, look),
    ("Config and weights do not belong together; download them again.", ONE,
     changed("config.json", ffn_hidden_size=99), look),
    ("The tokenizer is of another model; download it again.", ONE,
     changed("config.json", boi_token_id=7), look),
    ("Every checkpoint of this kind has a tokenizer.model; download it again.", ONE,
     gone("tokenizer.model"), lambda folder: load_tokenizer(folder / "tokenizer.model", {}, 4096)),
    ("The file is damaged or of another kind; download it again.", ONE,
     written("tokenizer.model", "a b c\n"), look),
    ("The file is damaged; download it again.", ONE, skipped_rank, look),
    ("The file is damaged; download it again.", ONE, written("config.json", "{"), look),
    ("Is this the folder of a checkpoint?", ONE, gone("config.json"), architecture),
    ("config.json is a link to a file that is not there. Download it again.", ONE,
     config_linked_to_nothing, architecture),
    ("Download the safetensors files of the checkpoint.", ONE, gone(SINGLE), look),
    ("It is damaged; download or save it again.", ONE, as_pickle, look),
    ("Is it a file of a trainer's own state?", ONE, optimizer, look),
    ("Every checkpoint of this kind has a preprocessor_config.json; download it again.", NATIVE,
     changed("preprocessor_config.json", crop_size="x"), ask),
    ("The files do not belong together; download them again.", NATIVE,
     changed("preprocessor_config.json", patch_size=7), ask),
    ("Every checkpoint of this kind has a tokenizer.json; download it again.", NATIVE,
     written("tokenizer.json", "{"), ask),
    ("It is in chat_template.jinja or tokenizer_config.json; download it again.", NATIVE,
     gone("chat_template.jinja"), ask),
    ("Are all files of the same checkpoint?", NATIVE,
     written("chat_template.jinja", "{{ messages | tojson }}"), ask),
    ("Download it again.", NATIVE, written("chat_template.jinja", "{% for %}"), ask),
    ("The file is of another kind, or damaged; download it again.", FP8, without_a_scale, look),
    ("Is this the config.json of a GLM-4V-9B checkpoint?", ONE,
     changed("config.json", num_layers=0), look),
    ("Is this the config.json of a GLM-4.1V", NATIVE, changed("config.json", text_config=3), look),
]  # fmt: skip


@pytest.fixture(scope="module")
def sound(native, tmp_path_factory):
    fp8 = shutil.copytree(native("glm46v"), tmp_path_factory.mktemp("fp8") / "c")
    restored_by_hand(native("glm46v"), fp8, SCHEME)
    return {
        ONE: golden.CHECKPOINT,
        SEVERAL: golden.SHARDED,
        NATIVE: native("glm46v"),
        FP8: fp8,
    }


@pytest.mark.parametrize(("advice", "kind", "damage", "then"), DAMAGED)
def test_the_right_file_puts_it_right(sound, tmp_path, advice, kind, damage, then):
    folder = shutil.copytree(sound[kind], tmp_path / "c")
    then(folder)
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        then(folder)
    assert advice in str(caught.value), str(caught.value)
    shutil.copytree(sound[kind], folder, dirs_exist_ok=True)
    then(folder)


def test_the_checkpoint_in_bfloat16_is_quantised(sound, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = shutil.copytree(sound[FP8], tmp_path / "c")
    changed("config.json", quantization_config={**SCHEME, "weight_block_size": "large"})(folder)
    with pytest.raises(CheckpointError) as caught:
        look(folder)
    advice = "Take the original checkpoint in bfloat16, quantised as it is loaded if need be."
    assert str(caught.value).endswith(advice)
    for how in ({}, {"quantize": "8bit"}):
        assert resolve(sound[NATIVE]).load(dtype=torch.bfloat16, **how).model
