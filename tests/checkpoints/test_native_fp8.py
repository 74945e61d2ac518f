"""Checkpoints in FP8: restored weights are those by hand; plans count what stays in FP8."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace

import any_split
import numpy as np
import pytest
import tiny_native
import torch
from safetensors.torch import save_file
from tiny_fp8 import LARGEST, restored_by_hand
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import FineGrainedFP8Config
from transformers.integrations import finegrained_fp8
from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear
from transformers.utils import import_utils

import glm4v_magic
from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import CheckpointError, DeviceMapError, OptionError
from glm4v_magic.core.events import Finished
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.doctor import diagnose, gather
from glm4v_magic.dry_run.files import report_from_json, report_to_json
from glm4v_magic.dry_run.fp8 import fp8_kernels
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.engines import local
from glm4v_magic.planning.decision import Placement, decide, make_plan
from glm4v_magic.planning.machines import machine_rows, machines
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

OF_GLM5 = pytest.param("glm5_next", marks=pytest.mark.nightly)  # it takes ten times as long
KINDS = ("glm46v", "glm_ocr", "glm4v_moe", OF_GLM5)
BLOCK = (48, 40)  # divides no side of a matrix
OF_EXPERTS = (32, 40)  # its rows divide the two halves that are joined
SKIPPED = ["lm_head", "model.visual", "model.language_model.layers.0.mlp"]
FP8 = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "weight_block_size": list(BLOCK),
    "modules_to_not_convert": SKIPPED,
}


def scheme(kind):
    return {
        **FP8,
        "weight_block_size": list(block_of(kind)),
        "modules_to_not_convert": skipped(kind),
    }


def skipped(kind):
    index = "model.language_model.layers.3.self_attn.indexer"  # it needs full weights
    return [*SKIPPED, index] if kind == "glm5_next" else SKIPPED


def block_of(kind):
    return OF_EXPERTS if kind in ("glm4v_moe", "glm5_next") else BLOCK


@pytest.fixture(scope="module")
def checkpoints(native, tmp_path_factory):
    """Folders of a checkpoint in FP8, and of the same weights restored by hand."""
    made = {}

    def folders(kind):
        if kind in made:
            return made[kind]
        fp8, full = (tmp_path_factory.mktemp(f"{kind}-{name}") / "c" for name in ("fp8", "full"))
        for folder in (fp8, full):
            shutil.copytree(native(kind), folder)
        by_hand = restored_by_hand(native(kind), fp8, scheme(kind))
        save_file(by_hand, full / "model.safetensors", metadata={"format": "pt"})
        made[kind] = fp8, full
        return made[kind]

    return folders


def configure(folder, **changes):
    file = folder / "config.json"
    described = json.loads(file.read_text())
    described["dtype"] = described["text_config"]["dtype"] = "bfloat16"
    file.write_text(json.dumps({**described, **changes}))
    return folder


def answer(engine):
    image = tiny_native.image(90, 70)
    chat = Conversation((Message("user", "What is it?", (image,)),))
    events = engine.stream([Request(chat, Sampling(8, temperature=0, repetition_penalty=1.0))])
    return next(each.generation.text for each in events if isinstance(each, Finished))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_restored_weights_and_answers_are_those_by_hand(checkpoints, kind, dtype):
    progress = []
    fp8, full = (resolve(folder) for folder in checkpoints(kind))
    restored = local.load(fp8, Placement(dtype), arrived=progress.append)
    by_hand = local.load(full, Placement(dtype))
    expected = by_hand.model.state_dict()
    found = restored.model.state_dict()
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert torch.equal(weight, expected[name]), name
    assert answer(restored) == answer(by_hand)
    assert progress[-1].done_bytes == progress[-1].total_bytes == fp8.total_bytes


def test_a_look_inside_is_that_of_the_weights_by_hand(checkpoints):
    looks = []
    for folder in checkpoints("glm_ocr"):
        session = Session().load(folder, dtype="float32")
        look = session.ask("?", tiny_native.noise(90, 60), max_tokens=3, temperature=0).inspect()
        looks.append(
            [look.lens(2).probabilities, look.attention(1).values, look.gradient(1).values,
             look.occlusion(1, rows=1, columns=2).values]
        )  # fmt: skip
    for restored, by_hand in zip(*looks, strict=True):
        np.testing.assert_allclose(restored, by_hand, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_restored_on_several_gpus(checkpoints, kind):
    fp8, full = (resolve(folder) for folder in checkpoints(kind))
    with VirtualGPUs("2x1GiB", on_mismatch="collect") as gpus:
        placement = decide(
            fp8.architecture, PlacementOptions(images=0, context=512, max_memory=0.6), gpus.gpus
        )
        assert (placement.dtype, placement.fp8) == ("bfloat16", False)
        engine = local.load(fp8, placement)
        assert any("restored to bfloat16" in note for note in engine.info.notes)
        found = answer(engine)
        engine.close()
    assert found == answer(local.load(full, Placement("bfloat16")))


@pytest.mark.parametrize("kind", [*KINDS[:-1], "glm5_next"])
def test_plans_for_gpus_with_fp8_count_the_bytes_of_transformers_own_modules(checkpoints, kind):
    first = PlacementOptions(gpus="1xL4-24GB", images=0, context=512)  # of capability 8.9
    assert make_plan(architecture(checkpoints(kind)[0]), first).workload.fp8
    known = architecture(checkpoints(kind)[0])
    made = make_plan(known, PlacementOptions(gpus="1xH100-80GB", images=0, context=512))
    assert made.workload.fp8
    assert [note.code for note in made.notes] == ["fp8_stays"]
    model = known.build_meta("bfloat16")
    left = skipped(kind)
    how = FineGrainedFP8Config(weight_block_size=block_of(kind), modules_to_not_convert=left)
    in_float32 = {name for name, each in model.named_parameters() if each.dtype == torch.float32}
    replace_with_fp8_linear(model, left, how, pre_quantized=True)
    for parameter_name, parameter in model.named_parameters():
        is_made = parameter_name not in in_float32 and "scale_inv" not in parameter_name
        if parameter.dtype == torch.float32 and is_made:
            module, _, name = parameter_name.rpartition(".")  # a bias, as loads cast it
            setattr(model.get_submodule(module), name, torch.nn.Parameter(parameter.bfloat16()))
    assert sum(stage.weight_bytes for stage in made.stages) == sum(
        parameter.nbytes for parameter in model.parameters()
    )


@pytest.mark.parametrize(
    ("gpus", "options", "why"),
    [
        ("1xA100-40GB", {}, "compute capability 8.9"),
        ("1x40GiB", {}, "compute capability 8.9"),
        ("H100-80GB+A100-80GB", {}, "all have to be on GPUs"),
        ("1xH100-80GB", {"offload": True}, "all have to be on GPUs"),
        ("1xH100-80GB", {"dtype": "bfloat16"}, "if no dtype and no quantisation is asked for"),
        ("cpu", {}, "all have to be on GPUs"),
    ],
)
def test_elsewhere_weights_are_planned_as_they_are_restored(checkpoints, gpus, options, why):
    fp8, full = map(architecture, checkpoints("glm4v_moe"))
    options = PlacementOptions(gpus=gpus, images=0, context=512, **options)
    made = make_plan(fp8, options)
    assert (made.workload.dtype, made.workload.fp8) == ("bfloat16", False)
    (note,) = [note for note in made.notes if note.code == "fp8_restored"]
    assert why in note.values["why"]
    other = make_plan(full, PlacementOptions(gpus=gpus, images=0, context=512, dtype="bfloat16"))
    assert sum(each.weight_bytes for each in made.stages) == 2 * full.shape().values
    assert [each.weight_bytes for each in made.stages] == [e.weight_bytes for e in other.stages]


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("glm46v", {"modules_to_not_convert": ["lm_head"]}),  # the tower is in FP8, too
        ("glm4v_moe", {"weight_block_size": list(BLOCK)}),  # a block has rows of both halves
        ("glm5_next", {"weight_block_size": list(OF_EXPERTS)}),  # the index is in FP8, too
    ],
)
def test_what_transformers_does_not_keep_in_fp8_is_restored(checkpoints, tmp_path, kind, changed):
    folder = shutil.copytree(checkpoints(kind)[0], tmp_path / "c")
    configure(folder, quantization_config={**FP8, **changed})
    known = architecture(folder)
    options = PlacementOptions(gpus="1xH100-80GB", images=0, context=512)
    assert not make_plan(known, options).workload.fp8
    assert make_plan(architecture(checkpoints(kind)[0]), options).workload.fp8


def restored(weight, scales, block, dtype):
    of_rows = scales.repeat_interleave(block[0], 0)[: weight.shape[0]]
    return (weight.float() * of_rows.repeat_interleave(block[1], 1)[:, : weight.shape[1]]).to(dtype)


@pytest.fixture
def kernels(monkeypatch):
    """Kernels that restore the weights and multiply: the edge, for they need such a GPU."""

    def linear(values, weight, scales, block_size, bias=None, *_, **_options):
        full = restored(weight, scales, block_size, values.dtype)
        return functional.linear(values, full, bias)

    def grouped(values, weights, scales, *, offsets, block_size, **_):
        pairs = zip(weights, scales, strict=True)
        full = torch.stack([restored(*pair, block_size, values.dtype) for pair in pairs])
        return torch._grouped_mm(values, full.transpose(-1, -2), offs=offsets)

    found = finegrained_fp8.FineGrainedFP8(linear, None, grouped)
    monkeypatch.setattr(finegrained_fp8, "fp8_linear", linear)
    monkeypatch.setattr(finegrained_fp8, "load_finegrained_fp8_kernel", lambda: found)


SEEDS = [
    pytest.param(seed, marks=[] if seed == 1 else [pytest.mark.nightly]) for seed in range(100)
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_stay_in_fp8_wherever_maps_and_plans_put_them(checkpoints, kernels, kind, seed):
    """A scale goes with the weights around it; maps name weights singly, or there is a plan."""
    fp8 = resolve(checkpoints(kind)[0])
    known, expected = fp8.architecture, answer(local.load(fp8, Placement("bfloat16")))
    given, count = any_split.mixed_map(known.module_tree(), seed)
    options = PlacementOptions(images=0, context=512, **({} if seed else {"objective": "balance"}))
    machine = f"{count}xH100-1GiB"
    with VirtualGPUs(machine, on_mismatch="collect", available=True) as gpus:
        made = decide(known, options, gpus.gpus, None if seed == 0 else given, loads=False)
        engine = local.load(fp8, made)
        dtypes = {parameter.dtype for parameter in engine.model.parameters()}
        found = answer(engine)
        engine.close()
    assert gpus.problems == ()
    is_kept = "cpu" not in made.device_map.values()
    assert made.fp8 == (torch.float8_e4m3fn in dtypes) == is_kept
    assert found == expected
    report = dry_run(known, machine, made.plan or given, text_tokens=9, images=0)
    assert (report.works, report.fp8) == (True, is_kept)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_keeps_what_the_plan_keeps(checkpoints, kind):
    known, machine = architecture(checkpoints(kind)[0]), "2xH100-80GB"
    options = {"objective": "balance", "images": 1, "context": 256}
    made = make_plan(known, PlacementOptions(gpus=machine, **options))
    assert made.workload.fp8
    report = dry_run(known, machine, made)
    assert report == dry_run(known, machine, **options)
    assert report == report_from_json(report_to_json(report))
    assert (report.works, report.fp8, report.form) == (True, True, "bfloat16, FP8")
    assert [note.code for note in report.notes] == ["fp8_stays"]
    for stage in made.stages:
        used = report.gpus[stage.gpu]
        assert 0 <= used.weight_bytes - stage.weight_bytes < 200  # rotary frequencies
        assert used.total_bytes < 1.01 * stage.total_bytes
    automatic = dry_run(known, machine, "auto", context=256)
    assert (automatic.works, automatic.fp8) == (True, True)
    with pytest.raises(DeviceMapError, match="which these GPUs cannot compute with"):
        dry_run(known, "2xA100-80GB", made)
    for other in ({"gpus": "2xA100-80GB"}, {"gpus": machine, "dtype": "bfloat16"}):
        full = dry_run(known, **other, **options)
        assert (full.works, full.fp8, full.form) == (True, False, "bfloat16")
        assert sum(g.weight_bytes for g in full.gpus) > sum(g.weight_bytes for g in report.gpus)


@pytest.mark.parametrize("kind", KINDS)
def test_idle_gpus_do_not_decide_on_fp8(checkpoints, kind):
    known, gpus = architecture(checkpoints(kind)[0]), parse_gpus("H100-80GB+T4")
    options = PlacementOptions(images=0, context=512)
    made = make_plan(known, options, gpus)
    full = (replace(gpus[0], index=1), replace(gpus[1], index=0, free_bytes=0))
    for given, machine in ((None, gpus), (made, gpus), ({"": 0}, gpus), ({"": 1}, full[::-1])):
        placed = decide(
            known, PlacementOptions() if given else options, machine, given, loads=False
        )
        assert (placed.dtype, placed.fp8) == ("bfloat16", True), given
    for given in ({"": 1}, {"lm_head": 1, "": 0}):
        placed = decide(known, PlacementOptions(), gpus, given, loads=False)
        assert (placed.dtype, placed.fp8) == ("float16", False)
    # That of transformers uses every GPU that has room.
    by_all = dry_run(known, gpus, "auto", context=256)
    by_one = dry_run(known, full[::-1], "auto", context=256)
    assert [(each.works, each.form) for each in (by_all, by_one)] == [
        (True, "float16"),
        (True, "bfloat16, FP8"),
    ]


def test_products_in_fp8_refuse_mixed_devices(checkpoints):
    known = architecture(checkpoints("glm4v_moe")[0])
    with fp8_kernels(), VirtualGPUs("2x1GiB", values="none", on_mismatch="collect") as gpus:
        model = known.build_meta("bfloat16", fp8=True)
        gpus.without_data(model)
        linear = model.get_submodule("model.language_model.layers.1.self_attn.q_proj").to("cuda:1")
        values = torch.zeros(1, 2, linear.in_features, dtype=torch.bfloat16, device="cuda:1")
        linear(values)
        assert gpus.problems == ()
        linear(values.to("cuda:0"))
        assert len(gpus.problems) > 0
        before = len(gpus.problems)
        linear.weight_scale_inv = torch.nn.Parameter(linear.weight_scale_inv.to("cuda:0"))
        linear(values)
        assert len(gpus.problems) > before


def test_common_machines_keep_fp8_where_they_compute_with_it(checkpoints):
    known = architecture(checkpoints("glm46v")[0])
    found = machines(known, PlacementOptions(context=512), (("", "A100-80GB"), ("", "H100")))
    assert [fit.fp8 for fit in found] == [False, True]
    assert [row[1] for row in machine_rows(found)] == ["fits in", "bfloat16", "bfloat16, FP8"]


def test_weights_that_stay_need_their_kernels(checkpoints, monkeypatch):
    known, gpus = architecture(checkpoints("glm46v")[0]), parse_gpus("1xH100-80GB")
    options = PlacementOptions(images=0, context=512)
    monkeypatch.setattr(import_utils, "is_kernels_available", lambda: False)
    with pytest.raises(OptionError, match="need the package kernels") as refused:
        decide(known, options, gpus)
    assert "transformers[kernels]" in str(refused.value)
    monkeypatch.setattr(import_utils, "is_kernels_available", lambda: True)
    assert decide(known, options, gpus).fp8
    with pytest.raises(OptionError, match="published in FP8, and 4bit"):
        decide(known, PlacementOptions(images=0, context=512, quantize="4bit"), gpus)
    made = make_plan(known, options, gpus)
    with pytest.raises(DeviceMapError, match="cannot compute with"):
        decide(known, PlacementOptions(), parse_gpus("1xA100-80GB"), made)


def test_the_doctor_says_which(checkpoints):
    def said(gpus):
        facts = gather(parse_gpus(gpus), model=str(checkpoints("glm46v")[0]))
        return next(each for each in diagnose(facts) if each.subject == "model")

    assert "weights in FP8 fits" in said("1xH100-80GB").found
    assert "in bfloat16 fits" in said("1xA100-80GB").found


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "compressed-tensors"}, "quantised by compressed-tensors"),
        ({"quant_method": "gptq", "bits": 4}, "quantised by GPTQ .4 bits."),
        ({"load_in_4bit": True}, "quantised by bitsandbytes .4 bits."),
        ("odd", "quantised by an unknown scheme"),
        ({"quant_method": "fp8"}, "weight_block_size"),
        ({**FP8, "activation_scheme": "static"}, "activation_scheme"),
        ({**FP8, "scale_fmt": "ue8m0"}, "scale_fmt"),
        ({**FP8, "weight_block_size": [0, 1]}, "weight_block_size"),
        ({**FP8, "weight_block_size": [128, 128]}, r"needs scales of shape \[1, 1\]"),
    ],
)
def test_other_quantised_weights_are_refused_by_name(checkpoints, tmp_path, quantization, message):
    folder = shutil.copytree(checkpoints("glm46v")[0], tmp_path / "c")
    configure(folder, quantization_config=quantization)
    with pytest.raises(CheckpointError, match=message):
        resolve(folder)
    if "scales" not in message:
        with pytest.raises(CheckpointError, match=message):
            architecture(folder)


@pytest.mark.parametrize("quantization", [FP8, {"quant_method": "gptq"}, "odd", None])
def test_what_is_left_over_on_full_weights_does_no_harm(checkpoints, tmp_path, quantization):
    full = checkpoints("glm46v")[1]
    folder = shutil.copytree(full, tmp_path / "c")
    configure(folder, quantization_config=quantization)
    assert not architecture(folder).shape().fp8
    assert not resolve(folder).architecture.shape().fp8
    assert answer(local.load(resolve(folder))) == answer(local.load(resolve(full)))


def is_computed() -> bool:
    """Whether there is a GPU that computes with FP8, and transformers finds its code for it."""
    capable = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
    return capable and import_utils.is_kernels_available()


# Sides that blocks of 128 x 128 divide, as those of published checkpoints do.
WIDE = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "head_dim": 128,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [16, 8, 8],
    },
}
WHOLE_BLOCKS = {
    **FP8,
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head", "model.visual"],
}


def wide(kind, folder):
    """A checkpoint in FP8 that kernels can compute with."""
    text = WIDE if kind == "glm4v_moe" else {k: v for k, v in WIDE.items() if "moe" not in k}
    full = tiny_native.write(kind, folder / "full", text=text)
    made = shutil.copytree(full, folder / "fp8")
    restored_by_hand(full, made, WHOLE_BLOCKS)
    return made


class RoundedInputs(TorchFunctionMode):
    """What kernels for FP8 do besides: inputs are rounded to FP8, each 128 values with a scale."""

    def __init__(self, weights):
        super().__init__()
        self.weights = {each.untyped_storage().data_ptr() for each in weights}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.linear and args[1].untyped_storage().data_ptr() in self.weights:
            groups = args[0].float().unflatten(-1, (-1, 128))
            scales = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST
            rounded = (groups / scales).to(torch.float8_e4m3fn).float() * scales
            args = (rounded.flatten(-2).to(args[0].dtype), *args[1:])
        return func(*args, **(kwargs or {}))


def calls(model, names):
    """What the modules of these names take and return in one pass, and the logits."""
    found = {}

    def keep(name):
        return lambda module, taken, returned: found.update({name: (taken, returned)})

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    torch.manual_seed(0)
    ids = torch.randint(0, 300, (1, 40)).to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0].float()
    for hook in hooks:
        hook.remove()
    return found, logits


def with_weights_in_fp8(model):
    """Names of the modules, linear ones and experts, that hold such weights."""
    held = (n for n, each in model.named_parameters() if each.dtype == torch.float8_e4m3fn)
    return sorted({name.rpartition(".")[0] for name in held})


def difference(found, expected):
    return ((found - expected).abs().mean() / expected.std()).item()


def loaded(folder, **options):
    """An engine, and the bytes that its weights took on the GPU."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    engine = glm4v_magic.load(folder, **options).engine
    return engine, torch.cuda.memory_allocated() - before


@pytest.mark.gpu
@pytest.mark.skipif(not is_computed(), reason="no GPU computes with FP8 here, or no kernels")
@pytest.mark.parametrize("kind", ["glm46v", "glm4v_moe"])
def test_weights_that_stay_in_fp8_answer_like_restored_ones(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_DISABLE_DEEPGEMM_LINEAR", "1")  # would be downloaded
    folder = wide(kind, tmp_path)
    engine, taken = loaded(folder)
    names = with_weights_in_fp8(engine.model)
    assert len(names) > 8
    planned = sum(stage.weight_bytes for stage in engine.info.plan.stages)
    assert planned <= taken <= 1.03 * planned + 2**16
    assert answer(engine)
    found, logits = calls(engine.model, names)
    restored = glm4v_magic.load(folder, dtype="bfloat16").engine.model
    with torch.inference_mode():
        for name in names:
            module = restored.get_submodule(name)
            (given, returned), plain = found[name], module(*found[name][0])
            with RoundedInputs(module.parameters()):
                rounded = module(*given)
            assert difference(returned.float(), rounded.float()) < 0.01, name
            assert difference(plain.float(), rounded.float()) < 0.1, name
    # From layer to layer random weights make more of any rounding, that of bfloat16 as well.
    assert difference(logits, calls(restored, [])[1]) < 0.6  # 1.1 for unrelated ones
    engine.close()
