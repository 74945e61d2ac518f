"""A load by a map or a plan refuses what a dry run of it refuses, and says what would fit."""

from __future__ import annotations

import pytest

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DoesNotFitError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.remarks import PYTHON, worded
from glm4v_magic.dry_run.room import require_room
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.dry_run.text import raise_if_unusable
from glm4v_magic.hardware import usable
from glm4v_magic.planning.decision import decide, make_plan
from glm4v_magic.planning.needs import needs_of_map
from glm4v_magic.session.session import Session

MIB = 2**20
MAP = {"model.vision": 0, "model.language_model": 0, "lm_head": 1}
PARTS = {**MAP, "model.language_model.layers.1.mlp": 1}


@pytest.fixture(scope="module")
def demo():
    return architecture("demo")


def outcome(function, *arguments):
    try:
        function(*arguments)
    except DoesNotFitError as error:
        return error.what
    return ""


def need(demo, given, total=600 * MIB, **options):
    """Bytes that the fullest of two GPUs, of `total` bytes each, needs by prices."""
    asked = PlacementOptions(**options)
    gpus = [GPU(index, "GPU", total) for index in range(2)]
    placed = decide(demo, asked, gpus, given)
    return max(needs_of_map(demo.shape(), asked.workload, placed.device_map, gpus).values())


@pytest.mark.parametrize("given", [MAP, PARTS], ids=["modules", "within a layer"])
@pytest.mark.parametrize("missing", [-2, 1, 60])  # MiB
def test_what_check_refuses_load_refuses_in_the_same_words(demo, given, missing):
    gpus = [GPU(index, "GPU", need(demo, given) - missing * MIB) for index in range(2)]
    placed = decide(demo, PlacementOptions(), gpus, given)
    load = outcome(require_room, demo, placed, PlacementOptions(), given, gpus)
    assert load == outcome(raise_if_unusable, dry_run(demo, gpus, given))
    assert bool(load) == (missing == 60)


def test_a_plan_on_gpus_with_less_memory(demo):
    made = make_plan(demo, PlacementOptions(gpus="1x1GiB"))
    (stage,) = made.stages
    for size in (stage.total_bytes + MIB, stage.total_bytes - 8 * MIB):
        gpus = [GPU(0, "GPU", 2**30, free_bytes=size)]
        placed = decide(demo, PlacementOptions(), gpus, made)
        load = outcome(require_room, demo, placed, PlacementOptions(), made, gpus)
        assert load == outcome(raise_if_unusable, dry_run(demo, gpus, made))
        assert bool(load) == (size < stage.total_bytes)


def test_the_way_out_of_a_load_can_be_taken(demo, monkeypatch):
    total = need(demo, MAP)
    size = need(demo, MAP, total, context=512) + MIB // 4  # prices are above what is measured
    gpus = tuple(GPU(index, "GPU", total, free_bytes=size) for index in range(2))
    monkeypatch.setattr(usable, "usable_gpus", lambda *_, **__: gpus)
    session = Session()
    with pytest.raises(DoesNotFitError, match="would not run on this placement") as caught:
        session.load("demo", device_map=MAP)
    assert session.status().info is None
    (way,) = caught.value.values["ways"]
    context = way.values["context"]
    assert f"(context={context};" in worded(way, PYTHON)
    assert 512 <= context < demo.shape().max_context
    asked = PlacementOptions(context=context)
    placed = decide(demo, asked, gpus, MAP)
    assert not outcome(require_room, demo, placed, asked, MAP, gpus)
    assert dry_run(demo, gpus, MAP, context=context).works
