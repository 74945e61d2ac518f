"""Names and shapes of weights in folders of transformers' own types, before any is read."""

from __future__ import annotations

import shutil

import pytest
import tiny_native
import torch
from safetensors.torch import load_file, save_file

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.session.session import Session

LAST = "lm_head.weight"
IN_LAYER = "model.language_model.layers.0.mlp.down_proj.weight"
OF_MOE = ("glm4v_moe", "glm5_next")
EXPERT = {
    "glm4v_moe": "model.language_model.layers.1.mlp.experts.{}.down_proj.weight",
    "glm5_next": "model.language_model.layers.3.mlp.experts.{}.down_proj.weight",
}


@pytest.fixture
def changed(native, tmp_path):
    """Return a function that copies a tiny folder and changes its weights."""

    def change(kind, edit):
        folder = shutil.copytree(native(kind), tmp_path / "changed", dirs_exist_ok=True)
        weights = load_file(folder / "model.safetensors")
        edit(weights)
        contiguous = {name: value.contiguous() for name, value in weights.items()}
        save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
        return folder

    return change


def rename(old, new):
    return lambda weights: weights.__setitem__(new, weights.pop(old))


def transpose(name):
    return lambda weights: weights.__setitem__(name, weights[name].T)


def refused(folder):
    with pytest.raises(CheckpointError) as caught:
        resolve(folder).require_usable()
    return str(caught.value)


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_folders_as_they_are_published_are_usable(native, kind):
    resolve(native(kind)).require_usable()


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_a_weight_of_another_name_is_named(changed, kind):
    folder = changed(kind, rename(LAST, "head.weight"))
    said = refused(folder)
    assert "1 of " in said
    assert f"weights are missing in {folder}, the first is {LAST}." in said
    assert "Config and weights do not belong together, or a shard is not in the index." in said


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_a_weight_of_another_shape_is_named(changed, kind):
    folder = changed(kind, transpose(LAST))
    assert (
        f"{LAST} in {folder / 'model.safetensors'} has shape [64, 336]; config.json asks for "
        "[336, 64]. Config and weights do not belong together; download them again."
    ) in refused(folder)


@pytest.mark.parametrize("kind", OF_MOE)
@pytest.mark.parametrize("number", [99, 8])
def test_an_expert_of_another_number_is_not_taken_for_the_next(changed, kind, number):
    first = EXPERT[kind].format(0)
    said = refused(changed(kind, rename(first, EXPERT[kind].format(number))))
    assert f"the first is {first}." in said


@pytest.mark.parametrize("kind", OF_MOE)
def test_a_matrix_of_one_expert_that_is_transposed_is_named(changed, kind):
    name = EXPERT[kind].format(3).replace("down_proj", "gate_proj")

    def edit(weights):
        rows, columns = weights[name].shape
        weights[name] = weights[name].reshape(columns // 2, rows * 2)

    folder = changed(kind, edit)
    assert f"{name} in {folder / 'model.safetensors'} has shape" in refused(folder)


def test_weights_of_no_model_are_named(changed):
    def swap(weights):
        weights[LAST] = weights[LAST][:-2]
        weights["extra.weight"] = weights[LAST][:2].clone()

    said = refused(changed("glm46v", swap))
    assert "holds 1 weight that the model does not have, for example extra.weight." in said


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"_fsdp_wrapped_module.{name}",
        lambda name: f"_forward_module.module.{name}",
        lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
        lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module._orig_mod."),
        lambda name: name.removeprefix("model."),  # of the base model alone
    ],
)
def test_names_of_wrappers_are_taken_off(changed, native, wrapped):
    def rename_all(weights):
        for name in [*weights]:
            weights[wrapped(name)] = weights.pop(name)

    found, plain = resolve(changed("glm46v", rename_all)), resolve(native("glm46v"))
    found.require_usable()
    weights = found.load(dtype=torch.float32).model.state_dict()
    for name, value in plain.load(dtype=torch.float32).model.state_dict().items():
        assert weights[name].equal(value), name


def test_it_is_said_before_the_model_in_use_is_released(changed, run):
    folder = changed("glm46v", transpose(IN_LAYER))
    session = Session().load("demo")
    engine = session.engine
    with pytest.raises(CheckpointError, match=rf"{IN_LAYER} in .* has shape"):
        session.load(folder)
    assert session.engine is engine
    session.unload()
    assert f"{IN_LAYER} in " in run(f"%glm4v doctor {folder}")


def test_what_transformers_finds_missing_is_one_line(changed, native):
    # As for what describes quantised weights, whose names are not checked before.
    folder = changed("glm46v", rename(LAST, "head\x1b[2J.weight"))
    found = resolve(folder)
    with pytest.raises(CheckpointError) as caught:
        found.load(dtype=torch.float32)
    said = str(caught.value)
    assert f"could not be loaded completely: missing keys such as {LAST}." in said
    assert "Config and weights do not belong together; download them again." in said
    shutil.copy(native("glm46v") / "model.safetensors", folder)
    assert resolve(folder).load(dtype=torch.float32).model
