"""Plan, dry run and real run need the same memory: random machines, models and workloads."""

from __future__ import annotations

import random

import pytest
import tiny_native
import torch
from live_bytes import LiveBytes
from torch.overrides import TorchFunctionMode
from transformers import GenerationConfig

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.glm4v_9b.architecture import Glm4v9bArchitecture
from glm4v_magic.checkpoints.glm_native.architecture import NativeArchitecture
from glm4v_magic.core.errors import DoesNotFitError
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.options import OBJECTIVES
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.planning.costs import price
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.seen import planned_image

KINDS = (*tiny_native.KINDS, "GLM-4V-9B")
IMAGE = 224  # pixels of a side


def tiny(kind):
    if kind == "GLM-4V-9B":
        sides = {"seq_length": 32_768, "torch_dtype": "bfloat16"}
        return Glm4v9bArchitecture(kind, architecture("demo").config | sides, "config.json")
    config = tiny_native.config(kind, tiny_native.tokenizer(kind))
    config["text_config"]["max_position_embeddings"] = 131_072
    return NativeArchitecture(kind, config | {"dtype": "bfloat16"}, "config.json")


def wide(kind):
    config = tiny_native.widened(tiny_native.config(kind, tiny_native.tokenizer(kind)))
    config["text_config"]["max_position_embeddings"] = 131_072
    return NativeArchitecture(kind, config | {"dtype": "bfloat16"}, "config.json")


PUBLISHED = (
    "GLM-OCR",
    "GLM-OCR",
    "GLM-4.1V-9B-Thinking",
    "GLM-4.6V-Flash",
    "GLM-4V-9B",
    "GLM-4.5V",
    "glmga",
    "glm5_next",
)
"""Published models, and of two types wide ones: those published are too large, or as another's."""


def planned(seed, names):
    """Plan a random model for a random machine; ``None`` if it does not fit."""
    rng = random.Random(seed)
    name = rng.choice(names)
    model = wide(name) if name in tiny_native.KINDS else architecture(name)
    is_old = model.name == "GLM-4V-9B"
    images = rng.choice([0, 1] if is_old else [0, 1, 2, 5, 12])
    options = {
        "images": images,
        "batch": rng.choice([1, 1, 2, 4, 8]),
        "context": images * (3 if is_old else 1700) + rng.choice([100, 1000, 4000]),
        "dtype": rng.choice(["bfloat16", "float16", "float32"]),
        "objective": rng.choice(OBJECTIVES),
        "split_vision": rng.choice([None, True, False]),
        "reserve": rng.choice([None, 0.25, 1.0]),
        "offload": rng.random() < 0.3,
    }
    if not is_old:
        options["image_size"] = rng.choice([448, 1120])
    chosen = PlacementOptions(**options)
    units = price(model.shape(), chosen.workload)
    stays = sum(unit.resident_bytes for unit in units)
    peak = max(unit.transient_bytes for unit in units)
    count = rng.randint(1, 8)
    sizes = [
        2**30 + int(peak * rng.uniform(0.7, 1.2) + stays * rng.uniform(0.6, 2.5) / count)
        for _ in range(count)
    ]
    speeds = [rng.choice([320, 936, 2039, 3350]) * 10**9 for _ in sizes]
    gpus = [
        GPU(index, "GPU", size, bandwidth=speed)
        for index, (size, speed) in enumerate(zip(sizes, speeds, strict=True))
    ]
    try:
        return model, gpus, make_plan(model, chosen, gpus), options
    except DoesNotFitError:
        return None


def hold(seeds, names):
    """Assert that plans that fit do so in their dry runs, priced within 1 %; return how many."""
    found = [case for case in (planned(seed, names) for seed in seeds) if case is not None]
    for model, gpus, made, options in found:
        report = dry_run(model, gpus, made, decode_steps=1)
        assert report.works, (model.name, options)
        used = {gpu.gpu: gpu for gpu in report.gpus}
        for stage in made.stages:
            if stage.units:
                measured = used[stage.gpu].total_bytes
                # An offloaded layer is there in the prefill before later layers have keys and
                # values, which a plan counts in full.
                later = stage.kv_bytes if stage.offloaded else 0
                # Linear attention works in chunks; all it has is priced as filled up to them.
                most = (1.03 if model.name == "glm5_next" else 1.01) * measured + later
                assert 0.99 * measured <= stage.total_bytes <= most, (options, stage)
    return len(found)


def test_where_a_plan_fits_the_dry_run_fits():
    assert hold(range(5), PUBLISHED[:1]) >= 2


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(40))
def test_where_a_plan_fits_the_dry_run_fits_on_a_thousand_machines(part):
    assert hold(range(100 + 25 * part, 125 + 25 * part), PUBLISHED) >= 5


class FlashAttention(TorchFunctionMode):
    """Attention that allocates its result only, as CUDA's flash kernels do."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, _, value = args[:3]
            batch, heads, length, _ = query.shape
            shape = (batch, length, heads, value.shape[-1])
            return torch.zeros(shape, dtype=query.dtype).transpose(1, 2)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_needs_what_is_really_allocated(kind):
    model, batch = tiny(kind), 2
    images = 0 if kind == "GLM-4V-9B" else 3
    context = 700
    size = None if kind == "GLM-4V-9B" else IMAGE
    work = {"context": context, "images": images, "batch": batch, "image_size": size}
    report = dry_run(model, "1x80GiB", **work, dtype="float32", decode_steps=1)
    real = model.build_meta("float32").to_empty(device="cpu")
    for tensor in (*real.parameters(), *real.buffers()):
        torch.nn.init.uniform_(tensor) if tensor.is_floating_point() else tensor.zero_()
    real.generation_config = GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)
    shape = model.shape()
    image = planned_image(shape, Workload(**work))
    text = context - images * image.positions - 1
    inputs = model.prompt_inputs(images, text, batch, image.patches)
    with torch.no_grad(), FlashAttention(), LiveBytes(real, "cpu") as counter:
        for tensor in inputs.values():
            counter.add(tensor)
        real.generate(**inputs, max_new_tokens=2)
    measured = report.gpus[0].kv_bytes + report.gpus[0].activation_bytes
    assert measured == pytest.approx(counter.peak, rel=0.01)


ALONE = {"GLM-OCR": (12, 448), "GLM-4.6V-Flash": (12, 448), "GLM-4V-9B": (1, None)}


@pytest.mark.parametrize(
    "name",
    [
        "GLM-OCR",
        pytest.param("GLM-4.6V-Flash", marks=pytest.mark.nightly),  # as GLM-OCR, and larger
        "GLM-4V-9B",
    ],
)
def test_the_input_of_the_first_layer_is_priced_once(name):
    images, side = ALONE[name]
    model = architecture(name)
    on_gpu = {unit.name: 2 for unit in model.shape().units if unit.kind in ("text_layer", "head")}
    pin = {"vision": 0, **on_gpu, "embedding": 1, "layer.0": 1}
    gpus = parse_gpus("3x80GiB")
    context = 21_000 if images > 1 else 8_000
    options = {"context": context, "images": images, "image_size": side, "pin": pin}
    made = make_plan(model, PlacementOptions(**options), gpus)
    measured = dry_run(model, gpus, made, decode_steps=1).gpus[1]
    together = made.stages[1]
    assert together.units == ("embedding", "layer.0")
    assert together.total_bytes == pytest.approx(measured.total_bytes, rel=0.004)
