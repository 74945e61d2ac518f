"""GLM-4V-9B as people publish it quantised: by bitsandbytes, with the names of its own code."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import glm4v_magic
from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.glm4v_9b import layout
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import CheckpointError, DeviceMapError, OptionError
from glm4v_magic.core.events import Finished
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.doctor import diagnose, gather
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.engines import local
from glm4v_magic.planning.decision import decide, make_plan
from glm4v_magic.session.session import Session

bnb = pytest.importorskip("bitsandbytes")

DEMO = Path(glm4v_magic.__file__).parent / "checkpoints" / "demo"
FORMS = ["4bit", "4bit, twice", "4bit, fp4", "8bit", "8bit, text alone", "4bit, torch.save"]
FUSED = "transformer.encoder.layers.1.self_attention.query_key_value"


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The demo's folder in one file, with as many groups as heads: then parts are whole blocks."""
    folder = shutil.copytree(DEMO, tmp_path_factory.mktemp("full") / "c")
    weights = {}
    for file in folder.glob("*.safetensors*"):
        weights |= {} if file.suffix == ".json" else load_file(file)
        file.unlink()
    config = configure(folder, multi_query_group_num=4)
    torch.manual_seed(5)
    for name, shape in layout.weight_shapes(config).items():
        if weights[name].shape != shape:
            weights[name] = torch.randn(shape, dtype=torch.float16) / 10
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def saved(full, tmp_path_factory):
    """Folder in each form, and the weights that it means."""
    made = {}

    def folder(form):
        if form not in made:
            made[form] = quantised(full, tmp_path_factory.mktemp("saved") / "c", form)
        return made[form]

    return folder


def configure(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return json.loads(file.read_text())


def quantised(source, folder, form):
    """What transformers saves of a model that the published code has loaded in few bits."""
    shutil.copytree(source, folder)
    stored, meant = {}, {}
    for name, weight in load_file(source / "model.safetensors").items():
        is_linear = name.endswith(".weight") and weight.dim() == 2 and "embedding" not in name
        if not is_linear or ("text alone" in form and "encoder.layers" not in name):
            stored[name], meant[name] = weight, weight.float()
        elif form.startswith("4bit"):
            kind, twice = "fp4" if "fp4" in form else "nf4", "twice" in form
            stored[name], state = bnb.functional.quantize_4bit(
                weight.float(), blocksize=64, quant_type=kind, compress_statistics=twice
            )
            stored |= {f"{name}.{key}": of for key, of in state.as_dict(packed=True).items()}
            meant[name] = bnb.functional.dequantize_4bit(stored[name], state)
        else:
            stored[name], scales, _ = bnb.functional.int8_vectorwise_quant(weight.half())
            stored[name.replace(".weight", ".SCB")] = scales
            stored[name.replace(".weight", ".weight_format")] = torch.tensor(0, dtype=torch.uint8)
            meant[name] = stored[name].float() * scales[:, None] / 127
    if "torch.save" in form:
        torch.save(stored, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    else:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    four = form.startswith("4bit")
    how = {"quant_method": "bitsandbytes", "load_in_4bit": four, "load_in_8bit": not four}
    more = {"bnb_4bit_quant_type": "fp4" if "fp4" in form else "nf4"} if four else {}
    configure(folder, quantization_config=how | more)
    return folder, meant


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["4bit", "8bit"])
def test_what_is_not_quantised_has_the_dtype_of_the_load(saved, form, dtype):
    folder, _ = saved(form)  # in float16
    model = resolve(folder).load(dtype=dtype, device_map={"": "cpu"}).model
    dtypes = {weight.dtype for weight in model.parameters()}
    assert dtypes == {dtype, torch.uint8 if form == "4bit" else torch.int8}


def restored(module):
    weight = module.weight
    if getattr(weight, "quant_state", None) is not None:
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    if weight.dtype == torch.int8:
        scales = weight.SCB if module.state.SCB is None else module.state.SCB
        return weight.float() * scales[:, None] / 127
    return weight


def answer(engine):
    chat = Conversation((Message("user", "What is it?"),))
    events = engine.stream([Request(chat, Sampling(4, temperature=0, repetition_penalty=1.0))])
    return next(each.generation for each in events if isinstance(each, Finished))


@pytest.mark.parametrize("form", FORMS)
def test_each_module_gets_its_rows(saved, form):
    folder, meant = saved(form)
    checkpoint = resolve(folder)
    engine = local.load(checkpoint, decide(checkpoint.architecture, PlacementOptions(), ()))
    model, few = engine.model, 0
    for own, (published, rows) in layout.published_names(checkpoint.config).items():
        module = model.get_submodule(own.rpartition(".")[0])
        of = meant[published] if rows is None else meant[published][slice(*rows)]
        found = restored(module) if own.endswith(".weight") else model.get_parameter(own)
        assert torch.equal(found, of), own
        few += module.weight.itemsize == 1 if own.endswith(".weight") else 0
    assert few == 4 * 6 if "alone" in form else few > 4 * 6 + 3 * 4
    assert answer(engine).usage.new_tokens
    assert any("quantised by bitsandbytes" in note for note in engine.info.notes)
    engine.close()


@pytest.mark.parametrize("form", ["4bit", "8bit"])
def test_projections_compute_what_the_whole_matrix_does(saved, form):
    folder, meant = saved(form)
    model = resolve(folder).load(dtype=torch.float32).model
    attention = model.model.language_model.layers[1].self_attn
    values = torch.randn(3, 128)
    with torch.no_grad():
        parts = [part(values) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        whole = values @ meant[f"{FUSED}.weight"].T + meant[f"{FUSED}.bias"]
    found = torch.cat(parts, -1)
    assert torch.nn.functional.cosine_similarity(found, whole).min() > 0.999


@pytest.mark.parametrize("form", ["4bit", "8bit"])
def test_priced_and_tried_with_the_bytes_of_the_files(saved, full, form):
    folder, _ = saved(form)
    known = architecture(folder)
    shape = known.shape()
    options = PlacementOptions(gpus="2x1GiB", context=512)
    made = make_plan(known, options)
    planned = sum(stage.weight_bytes for stage in made.stages)
    stored = sum(each.nbytes for each in resolve(folder).tensors.values())
    assert shape.values == architecture(full).shape().values
    assert abs(planned - stored) < 3000  # each part has the map of values
    report = dry_run(known, "2x1GiB", made)
    assert report.works
    for gpu, stage in zip(report.gpus, sorted(made.stages, key=lambda s: s.gpu), strict=True):
        assert 0 <= gpu.weight_bytes - stage.weight_bytes < 2000  # rotary frequencies
        assert gpu.total_bytes <= stage.total_bytes
    assert "scheme_stays" in [note.code for note in report.notes]
    facts = gather(parse_gpus("1x1GiB"), model=str(folder))
    assert (facts.fault, facts.shape) == (None, shape)
    assert {each.subject: each.verdict for each in diagnose(facts)}["model"] == "ok"
    with pytest.raises(DeviceMapError, match="quantised layers cannot be offloaded"):
        decide(known, PlacementOptions(), parse_gpus("1x1GiB"), {
            "model.vision": 0, "model.language_model": "cpu", "lm_head": 0,
        })  # fmt: skip


def broken(folder, tmp_path, change):
    copy = shutil.copytree(folder, tmp_path / "c")
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_faults_are_found_in_the_headers(saved, tmp_path):
    folder, _ = saved("4bit")

    def lacks(weights):
        del weights[f"{FUSED}.weight"]

    def short(weights):
        name = FUSED.replace("query_key_value", "dense.weight")
        weights[name] = weights[name][:-64].clone()

    def foreign(weights):
        weights["transformer.encoder.layers.9.mlp.dense_4h_to_h.weight"] = torch.zeros(2, 2)

    def cut(weights):
        scales = weights[f"{FUSED}.weight.absmax"]
        weights[f"{FUSED}.weight.absmax"] = scales[:-1].clone()

    def shifted(weights):
        scales = weights[f"{FUSED}.weight.absmax"]
        weights[f"{FUSED}.weight.absmax"] = scales[:1].clone()
        name = f"{FUSED}.weight.quant_state.bitsandbytes__nf4"
        state = json.loads(bytes(weights[name].tolist()))
        state["blocksize"] = math.prod(state["shape"])
        weights[name] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    for number, (change, said) in enumerate({
        lacks: "1 of .* weights are missing",
        short: "its quant_state describes",
        cut: r"lacks .* values in absmax",
        foreign: "that GLM-4V-9B does not have",
        shifted: "in blocks of other sizes",
    }.items()):  # fmt: skip
        with pytest.raises(CheckpointError, match=said) as caught:
            resolve(broken(folder, tmp_path / str(number), change))
        assert "\n" not in str(caught.value)


def test_doubly_quantised_parts_that_are_no_whole_blocks_are_refused(tmp_path):
    folder = shutil.copytree(DEMO, tmp_path / "full")
    weights = {}
    for file in folder.glob("*.safetensors"):
        weights |= load_file(file)
    save_file(weights, folder / "model.safetensors")
    quantised(folder, tmp_path / "c", "4bit, twice")
    for each in (tmp_path / "c").glob("model-*"):
        each.unlink()
    (tmp_path / "c" / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="in blocks of other sizes") as caught:
        resolve(tmp_path / "c")
    assert 'Take the original checkpoint; quantize="4bit"' in str(caught.value)


def test_without_bitsandbytes_before_anything_is_released(saved, monkeypatch):
    session = Session().load("demo")
    engine = session.engine
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(OptionError, match=r"pip install 'glm4v_magic\[quantize\]'"):
        session.load(saved("4bit")[0])
    assert session.engine is engine
    session.unload()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_an_adapter_is_not_merged_into_it(saved, tmp_path):
    peft = pytest.importorskip("peft")
    folder, _ = saved("8bit")
    plain = resolve("demo").load(dtype=torch.float32).model
    adapted = peft.PeftModel(plain, peft.LoraConfig(target_modules=["o_proj"]))
    adapted.save_pretrained(tmp_path / "a")
    for look in (resolve, architecture):
        with pytest.raises(CheckpointError, match="an adapter is merged into full ones"):
            look(folder, lora=tmp_path / "a")
