"""Plans for many images, held against their own dry runs: never short, and within 1 %."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import tiny_native

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.glm_native.architecture import NativeArchitecture
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.planning.partition import Budget, Item, needed, partition
from glm4v_magic.planning.plan import plan
from glm4v_magic.planning.seen import planned_image

TEXT = 64


def tiny(kind):
    config = tiny_native.config(kind, tiny_native.tokenizer(kind))
    config["text_config"]["max_position_embeddings"] = 131_072
    return NativeArchitecture(f"tiny {kind}", config | {"dtype": "bfloat16"}, "config.json")


def held_against_its_dry_run(model, gpus, images, batch, context=None, image_size=1120):
    shape = model.shape()
    work = Workload(context, images, batch, image_size=image_size)
    if context is None:
        work = replace(work, context=images * planned_image(shape, work).positions + TEXT)
    made = plan(shape, parse_gpus(gpus), work)
    report = dry_run(
        model,
        gpus,
        context=work.context,
        images=images,
        batch=batch,
        decode_steps=1,
        image_size=image_size,
    )
    by_gpu = {gpu.gpu: gpu for gpu in report.gpus}
    for stage in made.stages:
        measured = by_gpu[stage.gpu]
        if stage.units:
            assert stage.total_bytes >= measured.total_bytes, stage
            assert stage.total_bytes <= 1.01 * measured.total_bytes, stage


# Each model type and each way to be short of room, once; all others in `make nightly`.
TELLING = {
    ("glm4v", "1x80GiB", 1, 1),
    ("glm4v", "2x8GiB", 40, 1),
    ("glm46v", "2x8GiB", 5, 4),
    ("glm_ocr", "2x8GiB", 5, 4),
    ("glm4v_moe", "1x80GiB", 5, 4),
    ("GLM-OCR", "2x80GiB", 5, 4),
}


def cases(models, loads):
    return [
        pytest.param(*case, marks=[] if case in TELLING else pytest.mark.nightly)
        for case in ((*model, *load) for model, load in itertools.product(models, loads))
    ]


TINY = itertools.product(
    ("glm4v", "glm46v", "glmga", "glm_ocr", "glm4v_moe"), ("1x80GiB", "2x8GiB")
)
PUBLISHED = (
    ("GLM-4.1V-9B-Thinking", "1x80GiB"),
    ("GLM-4.6V-Flash", "4x80GiB"),
    ("GLM-OCR", "2x80GiB"),
    ("GLM-4.5V", "8x80GiB"),
)


@pytest.mark.parametrize(
    ("kind", "gpus", "images", "batch"), cases(TINY, ((1, 1), (5, 4), (40, 1)))
)
def test_tiny_models(kind, gpus, images, batch):
    held_against_its_dry_run(tiny(kind), gpus, images, batch)


@pytest.mark.parametrize("kind", ["glm4v", "glm_ocr", "glm4v_moe"])
def test_a_wide_gated_layer_without_images(kind):
    """Gate and up in one matrix or, beside experts, in two."""
    model = tiny(kind)
    text = model.config["text_config"] | {"num_hidden_layers": 1, "intermediate_size": 20_000}
    config = model.config | {"text_config": text}
    model = NativeArchitecture(model.name, config, "config.json")
    held_against_its_dry_run(model, "1x80GiB", 0, 1, context=5000)


@pytest.mark.parametrize(("name", "gpus", "images", "batch"), cases(PUBLISHED, ((5, 4), (40, 1))))
def test_published_models(name, gpus, images, batch):
    held_against_its_dry_run(architecture(name), gpus, images, batch)


@pytest.mark.parametrize(("images", "context"), [(1, 8192), (5, 8192), (1, 4096)])
def test_images_as_large_as_the_model_or_the_context_takes(images, context):
    model = architecture("GLM-4.1V-9B-Thinking")
    held_against_its_dry_run(model, "1x140GiB", images, 4, context, image_size=None)


def test_what_is_needed_is_the_larger_of_tower_and_decoder():
    tower = Item(10, 0, None, 30, 500)
    layers = [Item(100, 50, None, 60, 0)] * 4
    assert needed([tower]) == 530
    assert needed([tower, *layers[:1]]) == 30 + 60 + 500
    assert needed([tower, *layers]) == 30 + 240 + 500
    heavier = [Item(300, 50, None, 60, 0)] * 4
    assert needed([tower, *heavier]) == 10 + 1200 + 50
    found = partition([tower, *layers], [Budget(770)])
    assert found.fullness == 1
