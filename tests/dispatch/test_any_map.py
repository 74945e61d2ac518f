"""Maps that name modules and single weights: the answers of one device, or one line before loading.

What `Session.load` refuses a dry run refuses, in the same sentence.
"""

from __future__ import annotations

import json
from functools import cache

import any_split
import golden
import pytest
import tiny_native
import torch
from accelerate import infer_auto_device_map
from safetensors.torch import save_file

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.core.events import Finished
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.engines import local
from glm4v_magic.planning.decision import Placement, decide
from glm4v_magic.virtual_gpus import VirtualGPUs

OURS = "glm-4v-9b"
KINDS = [OURS, *tiny_native.KINDS]


def by_day(kind, at, number):
    if kind in ("glm46v", "glmga"):  # whose layers are the same: they take turns
        return at < number and at % 2 == (kind == "glmga")
    # GLM-5 takes ten times as long: its split of any modules is in `test_native_splits`.
    return at < number and kind != "glm5_next"


def sample(number, ids):
    """`number` of the ids with each kind, or few; all of them run in `make nightly`."""
    return [
        pytest.param(kind, each, marks=() if by_day(kind, at, number) else pytest.mark.nightly)
        for kind in KINDS
        for at, each in enumerate(ids)
    ]


seeds = pytest.mark.parametrize(
    ("kind", "seed"), sample(any_split.MIXED_SAMPLE, range(any_split.RANDOM_MAPS))
)
GREEDY = Sampling(5, temperature=0, repetition_penalty=1.0)
IMAGE = tiny_native.image(120, 80)
BATCH = [
    Conversation((Message("user", "Compare.", (IMAGE,)),)),
    Conversation((Message("user", "What?"),)),
]

# transformers warns where the first weight of a model is offloaded, but leaves the ids in place.
pytestmark = pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids`")


def said(engine):
    events = engine.stream([Request(each, GREEDY) for each in BATCH])
    done = {each.row: each.generation for each in events if isinstance(each, Finished)}
    return [(done[row].text, done[row].usage.new_tokens) for row in sorted(done)]


@pytest.fixture(scope="module")
def models(native):
    """Checkpoint, module tree and the answers of one device, by kind."""

    @cache
    def model(kind):
        checkpoint = resolve(golden.CHECKPOINT if kind == OURS else native(kind))
        return checkpoint, checkpoint.architecture.module_tree(), said(local.load(checkpoint))

    return model


def answers(checkpoint, device_map, gpus, options=None):
    with VirtualGPUs(f"{gpus}x1GiB", on_mismatch="collect") as virtual:
        options = options or PlacementOptions()
        placement = decide(checkpoint.architecture, options, virtual.gpus, device_map)
        engine = local.load(checkpoint, placement)
        found = said(engine)
        engine.close()
    assert virtual.problems == ()
    return found


@seeds
def test_modules_and_single_weights(models, kind, seed):
    checkpoint, tree, on_one_device = models(kind)
    device_map, gpus = any_split.mixed_map(tree, seed)
    assert answers(checkpoint, device_map, gpus) == on_one_device


@seeds
def test_inner_entries_win_over_those_around_them(models, kind, seed):
    checkpoint, tree, on_one_device = models(kind)
    inner, gpus = any_split.mixed_map(tree, seed)
    outer = ["", "model", *sorted({name.rpartition(".")[0] for name in inner})]
    around = {
        name: (seed + number) % gpus for number, name in enumerate(outer) if name not in inner
    }
    named = any_split.placed(inner, tree)
    found = any_split.placed(
        decide(
            checkpoint.architecture, PlacementOptions(), parse_gpus(f"{gpus}x1GiB"), around | inner
        ).device_map,
        tree,
    )
    assert found == named
    if seed < any_split.MIXED_SAMPLE // 2:
        assert answers(checkpoint, around | inner, gpus) == on_one_device


@pytest.mark.parametrize(
    ("kind", "first"),
    [(OURS, ("model.vision.boi", "model.vision.eoi")), ("glm46v", ("model.visual.",))],
)
def test_the_first_weights_offloaded_beside_the_one_gpu_that_runs_all(models, kind, first):
    """The ids of a prompt are then in host memory, the embedding is on the GPU."""
    checkpoint, tree, on_one_device = models(kind)
    offloaded = {name: "cpu" for name in tree.tensors if name.startswith(first)}
    placement = Placement(
        device_map={"": 0} | offloaded, execution_map={"": 0} | dict.fromkeys(offloaded, 0)
    )
    with VirtualGPUs("1x1GiB", on_mismatch="collect") as virtual:
        engine = local.load(checkpoint, placement)
        found = said(engine)
        engine.close()
    assert virtual.problems == ()
    assert found == on_one_device


MIXED = [("glm4v", 1), (OURS, 3)]
"""A sample for what changes weights on their way; of the second, some are on the CPU."""


@pytest.mark.parametrize(("kind", "seed"), MIXED)
def test_maps_with_another_dtype(models, kind, seed):
    checkpoint, tree, _ = models(kind)
    asked = PlacementOptions(dtype="bfloat16")
    on_one_device = said(local.load(checkpoint, decide(checkpoint.architecture, asked, ())))
    device_map, gpus = any_split.mixed_map(tree, seed)
    assert answers(checkpoint, device_map, gpus, asked) == on_one_device


@pytest.mark.parametrize(("kind", "seed"), MIXED)
def test_maps_with_an_adapter(models, kind, seed, tmp_path):
    pytest.importorskip("peft")
    base, tree, plain = models(kind)
    adapted = resolve(base.folder, lora=adapter(base, tmp_path / "a"))
    on_one_device = said(local.load(adapted))
    assert on_one_device != plain
    device_map, gpus = any_split.mixed_map(tree, seed)
    assert answers(adapted, device_map, gpus) == on_one_device


def adapter(base, folder):
    """Save a low-rank change of the attention's output in each layer."""
    folder.mkdir()
    ending = "self_attention.dense" if base.name == str(golden.CHECKPOINT) else "o_proj"
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, info in base.tensors.items():
        if name.endswith(f"{ending}.weight") and "vis" not in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            for part, shape in (("A", (2, info.shape[1])), ("B", (info.shape[0], 2))):
                weights[f"{module}.lora_{part}.weight"] = torch.randn(shape, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": [ending]}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(("kind", "seed", "quantize"), [("glm4v", 1, "4bit"), (OURS, 2, "8bit")])
def test_maps_with_quantised_layers(models, kind, seed, quantize):
    """What bitsandbytes computes needs real GPUs; a dry run sees whether devices are mixed."""
    checkpoint, tree, _ = models(kind)
    device_map, gpus = any_split.mixed_map(tree, seed)
    report = dry_run(
        checkpoint.architecture, f"{gpus}x1GiB", device_map, context=200, quantize=quantize
    )
    assert report.works
    assert sum(gpu.weight_bytes > 0 for gpu in report.gpus) == len(set(device_map.values()))


def test_as_accelerate_places_them(models):
    """``{"": 0, "lm_head": 1}`` is the whole model on 0 but the head."""
    checkpoint, _, on_one_device = models(OURS)
    for given in ({"": 0, "lm_head": 1}, {"": 0, "transformer.output_layer": 1}):
        with VirtualGPUs("2x1GiB") as virtual:
            placed = decide(checkpoint.architecture, PlacementOptions(), virtual.gpus, given)
            engine = local.load(checkpoint, placed)
            devices = {n: str(p.device) for n, p in engine.model.named_parameters()}
            assert said(engine) == on_one_device
        assert [name for name in devices if devices[name] == "cuda:1"] == ["lm_head.weight"]


@pytest.mark.parametrize(
    ("kind", "count"), sample(1, [5, *(count for count in range(2, 17) if count != 5)])
)
def test_what_accelerate_infers_for_equal_gpus(models, kind, count):
    checkpoint, _, on_one_device = models(kind)
    model = checkpoint.architecture.build_meta("float32")
    sizes = [parameter.nbytes for parameter in model.parameters()]
    # It leaves room for the largest layer on the first GPU, and gives up where there is none.
    each = max(sum(sizes) * 5 // (count * 4), 3 * max(sizes))
    with VirtualGPUs(f"{count}x1GiB"):  # it warns of sizes for GPUs that it does not see
        memory = dict.fromkeys(range(count), each) | {"cpu": 2**40}
        inferred = infer_auto_device_map(model, memory, no_split_module_classes=())
    assert len(set(inferred.values())) > 1
    assert answers(checkpoint, inferred, count) == on_one_device


@seeds
def test_what_is_wrong_with_a_map_load_and_dry_run_say_alike(models, kind, seed):
    checkpoint, tree, _ = models(kind)
    device_map, gpus = any_split.mixed_map(tree, seed)
    device_map = any_split.spoilt(device_map, tree, seed)
    with VirtualGPUs(f"{gpus}x1GiB") as virtual, pytest.raises(DeviceMapError) as by_load:
        decide(checkpoint.architecture, PlacementOptions(), virtual.gpus, device_map)
    with pytest.raises(DeviceMapError) as by_check:
        dry_run(checkpoint.architecture, f"{gpus}x1GiB", device_map)
    assert str(by_load.value) == str(by_check.value)
    assert "\n" not in str(by_load.value)
