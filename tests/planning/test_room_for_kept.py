"""What a plan leaves for the prefix cache, and budgets that are larger."""

from __future__ import annotations

import pytest

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.room import Room, room_for_kept
from glm4v_magic.core.stage import Stage
from glm4v_magic.notebook.render.plans.plan import plan_bundle
from glm4v_magic.planning.kept import kept_budget

GIB = 2**30


def stage(gpu, capacity, kv, weights):
    return Stage(gpu, "GPU", capacity, ("layer",), weight_bytes=weights, kv_bytes=kv)


def plan(*stages):
    return Plan("model", Workload(context=2048), "balance", stages)


UNEVEN = plan(stage(0, 24 * GIB, 3 * GIB, 12 * GIB), stage(1, 16 * GIB, 1 * GIB, 14 * GIB))


def test_the_stage_with_the_least_room_for_its_share_limits_the_whole():
    # cuda:0 has 9 GiB for three quarters, cuda:1 has 1 GiB for one quarter.
    assert room_for_kept(UNEVEN.stages) == Room(4 * GIB, "cuda:1")


def test_stages_without_layers_and_full_ones():
    tower = stage(2, 24 * GIB, 0, 24 * GIB)
    assert room_for_kept((*UNEVEN.stages, tower)) == Room(4 * GIB, "cuda:1")
    full = plan(stage(0, 10 * GIB, GIB, 9 * GIB))
    assert room_for_kept(full.stages) == Room(0, "cuda:0")
    assert kept_budget(None, full) == 0
    assert room_for_kept((stage(None, None, GIB, GIB),)) is None


def test_the_default_is_half_of_it_and_less_may_be_asked_for():
    assert kept_budget(None, UNEVEN) == 2 * GIB
    assert kept_budget(4, UNEVEN) == 4 * GIB
    assert kept_budget(0, UNEVEN) == 0
    assert kept_budget(None, None) == kept_budget(1, None) == GIB


def test_a_map_leaves_what_it_leaves():
    left = Room(4 * GIB, "cuda:1")
    assert kept_budget(None, None, left=left) == 2 * GIB
    assert kept_budget(4, None, left=left) == 4 * GIB
    with pytest.raises(OptionError, match=r"but the map leaves room for 4\.00 GiB.* on cuda:1"):
        kept_budget(5, None, Room(99 * GIB, "cuda:0"), left=left)


def test_a_plan_tells_what_it_leaves():
    full = plan(stage(0, 10 * GIB, GIB, 9 * GIB))
    on_cpu = plan(stage(None, None, GIB, GIB))
    assert str(UNEVEN).splitlines()[-1] == (
        "4.00 GiB are left for prompts and images that need not be read again (cuda:1 is the "
        "limit): half of it is used for them, nothing with keep=0."
    )
    html = plan_bundle(UNEVEN)["text/html"]
    assert "4.00 GiB are left for prompts" in html
    assert "--keep 0" in html
    assert "--keep 0" in plan_bundle(UNEVEN)["text/plain"]
    for each in (str(full), plan_bundle(full)["text/html"]):
        assert "No room is left on cuda:0 for prompts and images" in each
    assert "need not be read again" not in str(on_cpu) + plan_bundle(on_cpu)["text/html"]


@pytest.mark.parametrize(
    ("made", "free", "said"),
    [
        (UNEVEN, None, "keep is 5 GiB, but the plan leaves room for 4.00 GiB, for lack of memory "
                       "on cuda:1."),
        (None, Room(2 * GIB, "cpu"), "keep is 5 GiB, but there is only room for 2.00 GiB, for lack "
                                     "of memory on cpu."),
    ],
)  # fmt: skip
def test_more_than_there_is_is_one_clear_line(made, free, said):
    with pytest.raises(OptionError) as caught:
        kept_budget(5, made, free)
    assert str(caught.value) == f"{said} Ask for less; 0 keeps nothing."
