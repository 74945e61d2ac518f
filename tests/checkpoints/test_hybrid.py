"""GLM-5.3-Flash's text part: sizes are those of its modules, plans hold what a dry run takes."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import tiny_native

from glm4v_magic.checkpoints.glm_native.architecture import NativeArchitecture
from glm4v_magic.core.errors import CheckpointError, OptionError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.planning.costs import price
from glm4v_magic.planning.decision import decide, make_plan

KIND = "glm5_next"
LINEAR = {"linear_head_dim": 32, "linear_num_heads": 4}
INDEXED = {"linear_head_dim": 8, "linear_num_heads": 1, "index_n_heads": 32, "index_kpool": 16}


def described(**text):
    made = copy.deepcopy(tiny_native.config(KIND, tiny_native.tokenizer(KIND)))
    made["text_config"].update(text)
    return NativeArchitecture("tiny", made, "config.json")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    "text",
    [
        {},
        {"attention_bias": True, "hc_mult": 2, "linear_conv_kernel_dim": 3, "n_shared_experts": 2},
        {
            "layer_types": ["indexed_attention"] * 4 + ["linear_attention"],
            "indexer_types": ["full", "shared", "full", "shared", "full"],
            "mlp_layer_types": ["sparse", "dense"] * 2 + ["dense"],
        },
    ],
)
def test_every_unit_has_the_bytes_of_its_modules(text, dtype):
    known = described(**text)
    model = known.build_meta(dtype)
    units = price(known.shape(), Workload(context=4000, dtype=dtype))
    found = Counter()
    for name, parameter in model.named_parameters():
        (unit,) = [u for u in units if any(f"{name}.".startswith(f"{m}.") for m in u.modules)]
        found[unit.name] += parameter.nbytes
    assert {unit.name: unit.weight_bytes for unit in units} == found
    assert known.shape().values == model.num_parameters()


@pytest.mark.slow
@pytest.mark.parametrize("text", [LINEAR, INDEXED])
@pytest.mark.parametrize(("images", "batch"), [(1, 1), (0, 2)])
def test_a_plan_holds_what_a_dry_run_takes(text, images, batch):
    known = described(**text)
    work = {"context": 2048, "images": images, "batch": batch}
    made = make_plan(known, PlacementOptions(gpus="2x80GiB", objective="balance", **work))
    report = dry_run(known, "2x80GiB", made, **work)
    assert report.problems == ()
    buffers = 4 * 8 * 2  # of both routers; not counted
    for stage, gpu in zip(made.stages, report.gpus, strict=True):
        assert 0 <= gpu.weight_bytes - stage.weight_bytes <= buffers
        assert stage.kv_bytes == gpu.kv_bytes
        assert gpu.activation_bytes <= 1.01 * stage.activation_bytes
    planned, taken = max(
        (stage.activation_bytes, gpu.activation_bytes)
        for stage, gpu in zip(made.stages, report.gpus, strict=True)
    )
    # How many pools of tokens there are is data, which a dry run has not.
    assert planned < (1.15 if text is LINEAR else 3) * taken


def test_it_is_not_quantised():
    known = described()
    for kind in ("8bit", "4bit"):
        options = PlacementOptions(quantize=kind, context=4000)
        with pytest.raises(OptionError, match="tiny, whose layers cannot be quantised"):
            decide(known, options, parse_gpus("1x16GiB"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"layer_types": ["linear_attention"]}, "layer_types does not name every layer"),
        ({"kv_lora_rank": None}, "kv_lora_rank"),
        ({"qk_rope_head_dim": 64}, "qk_rope_head_dim"),
        ({"hc_mult": 0}, "hc_mult"),
    ],
)
def test_configs_of_another_kind(text, message):
    with pytest.raises(CheckpointError, match=message):
        described(**text)
