"""Bytes of units: against the published sizes, and against what the real modules keep alive."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig
from glm4v_magic.checkpoints.glm4v_9b.modeling import Glm4v9bForConditionalGeneration
from glm4v_magic.checkpoints.glm4v_9b.units import model_shape
from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model_shape import ModelShape, Workload
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.planning.costs import Unit, cache_entries, merge, price
from glm4v_magic.planning.plan import plan

MIB = 2**20

PUBLISHED = architecture("GLM-4V-9B").config


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return model_shape(PUBLISHED)


def by_name(units: tuple[Unit, ...]) -> dict[str, Unit]:
    return {unit.name: unit for unit in units}


def test_sizes_are_those_of_the_published_weights(shape: ModelShape) -> None:
    values = {unit.name: unit.values for unit in shape.units}
    assert values["embedding"] == 620_756_992
    assert sum(v for n, v in values.items() if n.startswith("layer.")) == 8_158_433_280
    assert values["head"] == 4_096 + 620_756_992
    assert values["vision.patches"] == 12_527_872
    assert sum(values[f"vision.{index}"] for index in range(63)) == 4_279_387_392
    assert values["vision.projector"] == 185_081_856 + 29_364_224 + 8_192
    assert shape.values == 13_906_320_896
    assert sum(u.weight_bytes for u in price(shape, Workload())) == 27_812_641_792


def meta_model(**changes: Any) -> Any:
    vision = {**PUBLISHED["vision_config"], "num_hidden_layers": 3}
    config = Glm4v9bConfig(**{**PUBLISHED, "num_layers": 3, "vision_config": vision, **changes})
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        return Glm4v9bForConditionalGeneration(config).to(torch.bfloat16).eval()


def test_units_name_every_weight_of_the_model_once_and_count_it_right() -> None:
    config = {
        **PUBLISHED,
        "num_layers": 3,
        "vision_config": {**PUBLISHED["vision_config"], "num_hidden_layers": 3},
    }
    model = meta_model()
    modules = {**dict(model.named_modules()), **dict(model.named_parameters())}
    seen: set[str] = set()
    for unit in model_shape(config).units:
        count = 0
        for name in unit.modules:
            assert name in modules
            for weight, tensor in model.named_parameters():
                if weight == name or weight.startswith(name + "."):
                    assert weight not in seen
                    seen.add(weight)
                    count += tensor.numel()
        assert count == unit.values, unit.name
    assert seen == {name for name, _ in model.named_parameters()}


class FlashAttention(TorchFunctionMode):
    """Attention that allocates its result only, as CUDA's flash kernels do."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, _, value = args[:3]
            batch, heads, length, _ = query.shape
            shape = (batch, length, heads, value.shape[-1])
            return torch.empty(shape, dtype=query.dtype, device="meta").transpose(1, 2)
        return func(*args, **(kwargs or {}))


def peak_bytes(
    model: torch.nn.Module, inputs: list[torch.Tensor], run: Callable[..., object]
) -> int:
    with torch.no_grad(), FlashAttention(), LiveBytes(model) as counter:
        for tensor in inputs:
            counter.add(tensor)
        run(*inputs)
    return counter.peak


def bfloat16(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


@pytest.mark.parametrize("images", [1, 3])
def test_activations_of_the_tower(shape: ModelShape, images: int) -> None:
    model = meta_model()
    units = by_name(price(shape, Workload(images=1, batch=images)))
    vision = model.model.vision

    measured = peak_bytes(vision, [bfloat16(images, 3, 1120, 1120)], vision)
    pixels = images * 3 * 1120 * 1120 * 2  # here, they were cast already
    kept = pixels + images * 6401 * 1792 * 2  # and the tower's input
    assert units["vision.1"].transient_bytes + kept == pytest.approx(measured, rel=0.03)

    embed = vision.patch_embedding
    measured = peak_bytes(embed, [bfloat16(images, 3, 1120, 1120)], embed)
    planned = units["vision.patches"].transient_bytes + images * 6401 * 1792 * 2
    assert planned == pytest.approx(measured, rel=0.01)

    projection = vision.linear_proj
    measured = peak_bytes(projection, [bfloat16(images, 1600, 4096)], projection)
    assert units["vision.projector"].transient_bytes == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize(("rows", "context"), [(1, 8192), (1, 700), (3, 2048)])
def test_activations_of_the_decoder(shape: ModelShape, rows: int, context: int) -> None:
    model = meta_model()
    workload = Workload(context=context, images=0, batch=rows)
    units = by_name(price(shape, workload))
    decoder = model.model.language_model

    def run(embeds: torch.Tensor, positions: torch.Tensor) -> object:
        cache = DynamicCache(config=model.config.text_config)
        return decoder(
            inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=True
        )

    positions = torch.empty((rows, context), dtype=torch.long, device="meta")
    measured = peak_bytes(decoder, [bfloat16(rows, context, 4096), positions], run)
    layer = units["layer.0"]
    mask = rows * context * context if rows > 1 else 0  # rows of equal length need none
    cache = 3 * layer.kv_bytes
    held = units["embedding"].held_bytes
    assert layer.transient_bytes - mask + held + cache == pytest.approx(measured, rel=0.03)

    norm = decoder.norm
    measured = peak_bytes(norm, [bfloat16(rows, context, 4096)], norm)
    assert units["head"].transient_bytes == pytest.approx(measured, rel=0.03)


def test_cache_is_what_the_real_cache_holds(shape: ModelShape) -> None:
    workload = Workload(context=500, images=0, batch=2)
    model = meta_model()
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model.model.language_model(
            inputs_embeds=bfloat16(2, 500, 4096), past_key_values=cache, use_cache=True
        )
    layer = by_name(price(shape, workload))["layer.0"]
    assert layer.kv_bytes == cache.layers[0].keys.nbytes + cache.layers[0].values.nbytes
    assert 40 * layer.kv_bytes_per_token == 40 * 1024


def test_an_image_takes_more_entries_than_positions(shape: ModelShape) -> None:
    assert cache_entries(shape, Workload(context=1000, images=0)) == 1000
    assert cache_entries(shape, Workload(context=1000, images=1)) == 1000 + 1599
    assert cache_entries(shape, Workload()) == 8192 + 1599


def total(shape: ModelShape, workload: Workload, attribute: str) -> int:
    return sum(getattr(unit, attribute) for unit in price(shape, workload))


def test_every_part_of_a_workload_has_its_price(shape: ModelShape) -> None:
    base = Workload(context=2048)
    kv = total(shape, base, "kv_bytes")
    assert total(shape, replace(base, context=4096), "kv_bytes") > kv
    assert total(shape, replace(base, images=0), "kv_bytes") < kv
    assert total(shape, replace(base, batch=2), "kv_bytes") == 2 * kv
    assert total(shape, replace(base, dtype="float32"), "kv_bytes") == 2 * kv
    layer = by_name(price(shape, base))["vision.0"]
    assert by_name(price(shape, replace(base, images=0)))["vision.0"].transient_bytes == 0
    assert by_name(price(shape, replace(base, images=2)))["vision.0"].transient_bytes == (
        2 * layer.transient_bytes
    )


def test_rows_of_a_batch_need_a_mask(shape: ModelShape) -> None:
    one = by_name(price(shape, Workload(context=4096, images=0)))["layer.0"]
    two = by_name(price(shape, Workload(context=4096, images=0, batch=2)))["layer.0"]
    assert two.transient_bytes - 2 * one.transient_bytes == 2 * 4096 * 4096


def test_quantised_weights(shape: ModelShape) -> None:
    plain = by_name(price(shape, Workload()))
    eight = by_name(price(shape, Workload(quantize="8bit")))
    four = by_name(price(shape, Workload(quantize="4bit")))
    linear = 4608 * 4096 + 4096 * 4096 + 3 * 4096 * 13696
    rest = (4608 + 2 * 4096) * 2
    rows = 4608 + 4096 + 2 * 13696 + 4096
    assert plain["layer.3"].weight_bytes == 2 * linear + rest
    assert eight["layer.3"].weight_bytes == linear + 4 * rows + rest
    assert four["layer.3"].weight_bytes == linear // 2 + linear // 64 * 4 + rest
    for name in ("embedding", "head", "vision.0", "vision.projector"):
        assert plain[name].weight_bytes == four[name].weight_bytes == eight[name].weight_bytes
    assert eight["layer.3"].transient_bytes > plain["layer.3"].transient_bytes
    short = Workload(context=64, images=0)
    restored = by_name(price(shape, replace(short, quantize="4bit")))["layer.3"]
    assert restored.transient_bytes > 2 * 4096 * 13696 * 2
    assert restored.transient_bytes > by_name(price(shape, short))["layer.3"].transient_bytes


@pytest.mark.parametrize(
    ("model", "gpus", "workload"),
    [
        ("GLM-4V-9B", "8x16GiB", Workload(context=8192)),
        ("GLM-4.1V-9B-Thinking", "6x16GiB", Workload(context=16384, images=2, image_size=1120)),
        pytest.param(
            "GLM-4.5V", "8x80GiB", Workload(context=2048), marks=pytest.mark.nightly
        ),  # as GLM-4.6V
        ("GLM-4.6V", "6x80GiB", Workload(context=2048, batch=2)),
    ],
)
def test_predictions_are_the_peaks_of_a_dry_run(model: str, gpus: str, workload: Workload) -> None:
    found = architecture(model)
    stages = plan(found.shape(), parse_gpus(gpus), workload).stages
    report = dry_run(
        found,
        gpus,
        context=workload.context,
        images=workload.images,
        batch=workload.batch,
        decode_steps=1,
        image_size=workload.image_size,
    )
    assert report.works
    by_gpu = {stage.gpu: stage for stage in stages}
    for gpu in report.gpus:
        stage = by_gpu[gpu.gpu]
        assert stage.weight_bytes == pytest.approx(gpu.weight_bytes, rel=1e-6)
        assert stage.kv_bytes == gpu.kv_bytes
        assert stage.activation_bytes == pytest.approx(gpu.activation_bytes, rel=0.01)
        assert stage.total_bytes == pytest.approx(gpu.total_bytes, rel=0.01)


def test_merged_units_add_up_but_peaks_do_not_meet(shape: ModelShape) -> None:
    parts = [unit for unit in price(shape, Workload()) if unit.name.startswith("vision")]
    tower = merge(parts, "vision", ("model.vision",), "vision")
    assert tower.weight_bytes == 9_012_739_072
    assert tower.transient_bytes == max(part.transient_bytes for part in parts)
    assert tower.resident_bytes == sum(part.resident_bytes for part in parts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 0}, "context is 0, but must be a whole number of at least 1."),
        ({"images": -1}, "images is -1, but must be a whole number from 0 to 100, the most that a "
         "question may have."),
        ({"batch": 0}, "batch is 0, but must be a whole number from 1 to 4,096."),
        ({"dtype": "bfloat"}, "Unknown dtype 'bfloat'; there are bfloat16, float16, float32. "
         "Did you mean bfloat16?"),
        ({"quantize": "2bit"}, "Unknown quantisation '2bit'; there are 8bit and 4bit."),
    ],
)  # fmt: skip
def test_workloads_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Workload(**arguments)
    assert str(caught.value) == message


def test_contexts_that_the_model_cannot_hold(shape: ModelShape) -> None:
    with pytest.raises(OptionError, match=r"9,000 tokens is longer than GLM-4V-9B allows \(8,192"):
        price(shape, Workload(context=9000))
    with pytest.raises(OptionError, match=r"too short for 1 image"):
        price(shape, Workload(context=2))


def test_what_a_config_leaves_out_is_what_the_model_is_built_with(shape: ModelShape) -> None:
    short = {name: PUBLISHED[name] for name in PUBLISHED}
    assert short.pop("multi_query_attention") is short.pop("add_qkv_bias") is True
    assert model_shape(short) == shape
    assert model_shape(PUBLISHED | {"multi_query_attention": False}) != shape
    assert model_shape(PUBLISHED | {"add_qkv_bias": False}) != shape


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "import glm4v_magic.checkpoints.glm4v_9b.units, glm4v_magic.planning.plan\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'numpy', 'PIL', 'pynvml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_config_of_the_golden_checkpoint() -> None:
    folder = Path(__file__).parents[1] / "data" / "golden" / "checkpoint"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    inv_freq = 4  # stored, but computed rather than loaded
    assert model_shape(config).values == 381_844 - inv_freq
