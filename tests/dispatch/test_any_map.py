"""Maps that name modules and single weights: the answers of one device, or one line before loading.

What `Session.load` refuses a dry run refuses, in the same sentence.
"""

from __future__ import annotations

from functools import cache

import any_split
import golden
import pytest
import tiny_native
import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.engines import local
from glm4v_magic.planning.decision import decide
from glm4v_magic.virtual_gpus import VirtualGPUs

OURS = "glm-4v-9b"
KINDS = [OURS, *(kind for kind in tiny_native.KINDS if kind != "glmga")]  # its code is glm46v's
SEEDS = [
    pytest.param(seed, marks=[pytest.mark.nightly] if seed >= any_split.MIXED_SAMPLE else [])
    for seed in range(any_split.RANDOM_MAPS)
]
GREEDY = Sampling(5, temperature=0, repetition_penalty=1.0)
IMAGE = tiny_native.image(120, 80)
BATCH = [
    Conversation((Message("user", "Compare.", (IMAGE,)),)),
    Conversation((Message("user", "What?"),)),
]

# transformers warns where the first weight of a model is offloaded, but leaves the ids in place.
pytestmark = pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids`")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def answers(checkpoint, device_map, gpus):
    with VirtualGPUs(f"{gpus}x1GiB", on_mismatch="collect") as virtual:
        placement = decide(checkpoint.architecture, PlacementOptions(), virtual.gpus, device_map)
        engine = local.load(checkpoint, placement)
        found = said(engine)
        engine.close()
    assert virtual.problems == ()
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_modules_and_single_weights(models, kind, seed):
    checkpoint, tree, on_one_device = models(kind)
    device_map, gpus = any_split.mixed_map(tree, seed)
    assert answers(checkpoint, device_map, gpus) == on_one_device


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_with_a_map_load_and_dry_run_say_alike(models, kind, seed):
    checkpoint, tree, _ = models(kind)
    device_map, gpus = any_split.mixed_map(tree, seed)
    device_map = any_split.spoilt(device_map, seed)
    with VirtualGPUs(f"{gpus}x1GiB") as virtual, pytest.raises(DeviceMapError) as by_load:
        decide(checkpoint.architecture, PlacementOptions(), virtual.gpus, device_map)
    with pytest.raises(DeviceMapError) as by_check:
        dry_run(checkpoint.architecture, f"{gpus}x1GiB", device_map)
    assert str(by_load.value) == str(by_check.value)
    assert "\n" not in str(by_load.value)
