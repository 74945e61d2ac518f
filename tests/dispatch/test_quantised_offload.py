"""Quantised text beside an offloaded tower or embedding.

bitsandbytes computes on the CPU here, and no virtual GPU can hold its weights. So the CPU stands in
for the GPU, and ``cpu:0``, another name of it, for the host memory that weights visit it from.
"""

from __future__ import annotations

import pytest
import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dispatch.hooks import dispatch
from glm4v_magic.planning.decision import decide

pytest.importorskip("bitsandbytes")

TEXT = "model.language_model"
HOST, GPU = "cpu:0", "cpu"
TOWER = {"model.vision": HOST, TEXT: GPU, "lm_head": GPU}
EMBEDDING = {
    "model.vision": HOST,
    f"{TEXT}.embed_tokens": HOST,
    f"{TEXT}.rotary_emb": GPU,
    f"{TEXT}.layers": GPU,
    f"{TEXT}.norm": GPU,
    "lm_head": GPU,
}


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_answers_stay_the_same_to_the_last_bit(kind):
    checkpoint = resolve("demo")
    model = checkpoint.load(dtype=torch.float32, quantize=kind).model
    inputs = checkpoint.architecture.prompt_inputs(1, 8)
    with torch.no_grad():
        resident = model(**inputs).logits
        for device_map in (TOWER, EMBEDDING):
            dispatched = dispatch(model, device_map, dict.fromkeys(device_map, GPU))
            away = {name for name, weight in model.named_parameters() if weight.is_meta}
            assert any("vision" in name for name in away)
            assert any("embed_tokens" in name for name in away) == (device_map is EMBEDDING)
            assert not any(".layers." in name and "language" in name for name in away)
            assert torch.equal(model(**inputs).logits, resident)
            dispatched.undo()


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_transformers_loads_such_a_map(kind, monkeypatch):
    """It would refuse host memory beside quantised layers unless it is told that this is meant."""
    # Its own hooks, which ours replace, do not tell cpu from cpu:0.
    monkeypatch.setattr("transformers.modeling_utils.accelerate_dispatch", lambda *_, **__: None)
    device_map = {"model.vision": "cpu", TEXT: "cpu:0", "lm_head": "cpu:0"}
    loaded = resolve("demo").load(dtype=torch.float32, device_map=device_map, quantize=kind)
    layers, tower = loaded.model.model.language_model.layers, loaded.model.model.vision
    small = {type(m).__name__ for m in layers.modules() if isinstance(m, torch.nn.Linear)}
    assert small == {{"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[kind]}
    assert {type(m) for m in tower.modules() if isinstance(m, torch.nn.Linear)} == {torch.nn.Linear}
    assert {weight.dtype for weight in tower.parameters()} == {torch.float32}


def test_only_quantised_layers_have_to_be_on_gpus():
    demo, options = resolve("demo").architecture, PlacementOptions(quantize="4bit")
    gpus = parse_gpus("2x1GiB")
    away = {"model.vision": "cpu", TEXT: 0, "lm_head": "cpu"}
    assert decide(demo, options, gpus, away).device_map == away
    for inner in (f"{TEXT}.layers.1", f"{TEXT}.layers.1.mlp", f"{TEXT}.layers"):
        tensors = demo.module_tree().tensors
        given = {name: 1 for name in tensors if not name.startswith(f"{inner}.")}
        with pytest.raises(DeviceMapError, match=r"on the CPU, and quantised layers"):
            decide(demo, options, gpus, given | {inner: "cpu"})
    assert decide(demo, options, gpus, {"": "cpu"}).quantize == "4bit"
