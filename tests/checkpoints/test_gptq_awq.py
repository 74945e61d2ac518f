"""Checkpoints of GPTQ and AWQ: priced as they are, loaded where gptqmodel is, else named.

gptqmodel is not among the packages of the tests: it is built from source, and wants the newest
torch. `pip install --no-deps gptqmodel optimum` and what they import makes the nightly tests run.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys

import golden
import pytest
import tiny_native
import torch
from safetensors.torch import load_file, save_file
from tiny_packed import CONFIGS, configure, write_packed, write_whole

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import CheckpointError, DeviceMapError, OptionError
from glm4v_magic.core.events import Finished
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.doctor import gather
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.engines import local
from glm4v_magic.planning.costs import price
from glm4v_magic.planning.decision import decide, make_plan
from glm4v_magic.session.session import Session

LAYER = "model.language_model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders by method, and the full one of the values that they mean."""
    source = write_whole(tmp_path_factory.mktemp("source") / "full")
    return {
        method: write_packed(source, tmp_path_factory.mktemp(method), method) for method in CONFIGS
    }


def changed(source, folder, change):
    """Copy a folder with other weights."""
    shutil.copytree(source, folder)
    weights = change(load_file(source / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("method", CONFIGS)
def test_priced_by_the_bytes_in_their_files(saved, method):
    small, full = saved[method]
    known = architecture(small)
    assert known.shape().values == architecture(full).shape().values
    made = make_plan(known, PlacementOptions(gpus="2x1GiB", context=512, objective="balance"))
    stored = sum(weight.nbytes for weight in load_file(small / "model.safetensors").values())
    assert sum(stage.weight_bytes for stage in made.stages) == stored
    report = dry_run(known, "2x1GiB", made)
    assert report.works
    for gpu, stage in zip(report.gpus, sorted(made.stages, key=lambda s: s.gpu), strict=True):
        assert 0 <= gpu.weight_bytes - stage.weight_bytes < 2000  # rotary frequencies
    assert "scheme_stays" in [note.code for note in made.notes]
    away = {"model.visual": 0, "model.language_model": "cpu", "lm_head": 0}
    with pytest.raises(DeviceMapError, match="quantised layers cannot be offloaded"):
        decide(known, PlacementOptions(), parse_gpus("1x1GiB"), away, loads=False)
    with pytest.raises(OptionError, match="published quantised by"):
        decide(known, PlacementOptions(quantize="4bit"), parse_gpus("1x1GiB"))


@pytest.mark.parametrize("method", CONFIGS)
def test_a_second_matrix_is_priced_while_they_are_arranged_for_their_kernel(saved, method):
    known, weights = (
        architecture(saved[method][0]),
        load_file(saved[method][0] / "model.safetensors"),
    )
    sizes = {}
    for name, weight in weights.items():
        module, _, ending = name.rpartition(".")
        if ending in ("qweight", "qzeros", "scales", "g_idx"):
            sizes[module] = sizes.get(module, 0) + weight.nbytes
    shape = known.shape()
    for unit, priced in zip(shape.units, price(shape, Workload(context=512)), strict=True):
        inside = [size for module, size in sizes.items() if module.startswith(unit.modules)]
        assert unit.restoring_bytes == priced.arrival_bytes == max(inside, default=0)
        assert bool(inside) is (unit.kind == "text_layer")
    made = make_plan(known, PlacementOptions(gpus="1x1GiB", context=512))
    report = dry_run(known, "1x1GiB", made)
    assert report.works


@pytest.mark.parametrize("method", CONFIGS)
def test_without_their_backend_before_anything_is_released(saved, monkeypatch, method):
    monkeypatch.setitem(sys.modules, "gptqmodel", None)
    small, _ = saved[method]
    packages = "gptqmodel optimum" if method == "gptq" else "gptqmodel"
    said = rf"{method.upper()} \(4 bits\) need gptqmodel.* pip install {packages}"
    session = Session().load(golden.CHECKPOINT)
    engine = session.engine
    with pytest.raises(OptionError, match=said):
        session.load(small)
    assert session.engine is engine
    session.unload()
    facts = gather((), model=str(small))
    assert facts.fault is not None
    assert "need gptqmodel" in facts.fault[0]


@pytest.mark.parametrize(
    ("method", "ending", "said"),
    [
        ("gptq", "g_idx", "lacks its g_idx"),
        ("gptq", "scales", "lacks its scales"),
        ("awq", "qzeros", "lacks its qzeros"),
    ],
)
def test_parts_that_are_missing_are_found_by_all(saved, tmp_path, method, ending, said):
    folder = changed(
        saved[method][0],
        tmp_path / "c",
        lambda all_: {name: each for name, each in all_.items() if name != f"{LAYER}.{ending}"},
    )
    for look in (resolve, architecture, lambda path: gather((), model=str(path))):
        with pytest.raises(CheckpointError, match=said):
            look(folder)


OTHER_FORMS = {
    "other groups": ("gptq", {"group_size": 64}, r"lacks scales of shape \[\d, \d+\]"),
    "8 bits": ("gptq", {"bits": 8}, r"quantised by GPTQ \(8 bits\), which cannot be loaded"),
    "another layout": ("awq", {"version": "gemv"}, "quantised by AWQ"),
    "no groups": ("awq", {"group_size": None}, "quantised by AWQ"),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_other_forms_are_refused_by_name(saved, tmp_path, form):
    method, changes, said = OTHER_FORMS[form]
    folder = shutil.copytree(saved[method][0], tmp_path / "c")
    configure(folder, **{**CONFIGS[method], "quant_method": method, **changes})
    for look in (resolve, architecture):
        with pytest.raises(CheckpointError, match=said):
            look(folder)


@pytest.mark.parametrize("method", CONFIGS)
def test_weights_whose_configuration_says_nothing_of_it_are_told_so(saved, tmp_path, method):
    """As AutoGPTQ left it, whose description was in a file of its own."""
    folder = shutil.copytree(saved[method][0], tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    described = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps(described))
    said = (
        rf"are quantised by {method.upper()}, but it has no quantization_config\. Take the original"
    )
    for look in (resolve, architecture, lambda path: gather((), model=str(path))):
        with pytest.raises(CheckpointError, match=said):
            look(folder)
    configure(folder, **described)
    assert resolve(folder).tensors


def test_layers_that_differ_are_refused_by_name(saved, tmp_path):
    """transformers is told the same matrices for all layers."""
    small, full = saved["gptq"]
    plain = load_file(full / "model.safetensors")[f"{LAYER}.weight"]

    def one_full(weights):
        kept = {name: each for name, each in weights.items() if not name.startswith(LAYER)}
        return {**kept, f"{LAYER}.weight": plain}

    with pytest.raises(CheckpointError, match="quantised by GPTQ"):
        resolve(changed(small, tmp_path / "c", one_full))


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # those of gptqmodel and its packages
@pytest.mark.skipif(importlib.util.find_spec("gptqmodel") is None, reason="needs gptqmodel")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", CONFIGS)
def test_loaded_by_gptqmodel(saved, method, dtype):
    small, full = saved[method]
    loaded = resolve(small).load(dtype=getattr(torch, dtype), device_map={"": "cpu"})
    plain = resolve(full).load(dtype=torch.float32)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        found, meant = loaded.model(ids).logits.float(), plain.model(ids).logits
    close = torch.nn.functional.cosine_similarity(found, meant, dim=-1).min()
    assert close > {"float32": 0.9999, "bfloat16": 0.995}[dtype]
    kinds = {type(each).__name__ for each in loaded.model.modules()}
    assert kinds & {"TorchLinear", "AwqTorchLinear"}
    chat = Conversation((Message("user", "What is it?", (tiny_native.image(90, 70),)),))
    events = local.load(resolve(small)).stream(
        [Request(chat, Sampling(4, temperature=0, repetition_penalty=1.0))]
    )
    assert next(each.generation.text for each in events if isinstance(each, Finished))
