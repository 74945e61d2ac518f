"""Plan files that were changed by hand: what is wrong is said, in one line, everywhere."""

from __future__ import annotations

import copy
import json
import re

import pytest

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DeviceMapError, DoesNotFitError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dry_run.room import require_room
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.dry_run.text import raise_if_unusable
from glm4v_magic.planning.costs import price
from glm4v_magic.planning.decision import decide, make_plan

GPUS = "4x16GiB"
NAMES = ("GLM-4V-9B", "GLM-4.1V-9B-Thinking")
AGAIN = r".*\. Make a new plan\.$"


def plan_of(name):
    options = PlacementOptions(gpus=GPUS, context=4096)
    return json.loads(make_plan(architecture(name), options).to_json())


PLANS = {name: plan_of(name) for name in NAMES}


def refusal(name, content):
    known, gpus = architecture(name), parse_gpus(GPUS)
    said = []
    for attempt in (
        lambda: decide(known, PlacementOptions(), gpus, json.dumps(content), loads=False),
        lambda: decide(known, PlacementOptions(), gpus, content, loads=False),
        lambda: dry_run(known, gpus, json.dumps(content)),
    ):
        with pytest.raises(DeviceMapError) as caught:
            attempt()
        said.append(str(caught.value))
    assert len({*said}) == 1
    assert "\n" not in said[0]
    assert len(said[0]) < 300
    return said[0]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("context", 10**15, r"A context of 1,000,000,000,000,000 tokens is longer than"),
        ("context", 10**4000, r"A context of 1000+\.\.\. tokens is longer than"),
        ("context", 200_000, r"A context of 200,000 tokens is longer than"),
        ("context", 1, "A context of 1 tokens is too short for 1 image"),
        ("context", 0, "context is 0, but must be"),
        ("context", -1, "context is -1, but must be"),
        ("context", True, "true for 'workload.context'"),
        ("context", 4096.0, r"4096\.0 for 'workload.context'"),
        ("context", float("inf"), "for 'workload.context'"),
        ("context", None, "names no context"),
        ("images", -1, "images is -1, but must be"),
        ("images", True, "true for 'workload.images'"),
        ("images", 10**9, "images is 1000000000, but must be"),
        ("batch", 0, "batch is 0, but must be"),
        ("batch", 10**15, "batch is 1000000000000000, but must be"),
        ("image_size", 10**9, "image_size is 1000000000, but must be"),
        ("image_size", False, "false for 'workload.image_size'"),
        ("dtype", "int8", "Unknown dtype 'int8'"),
        ("dtype", "float32", r"bytes of weights for cuda:\d, whose units have [\d,]+ in float32"),
        ("quantize", "4bit", r"bytes of weights for cuda:\d, whose units have .* bfloat16, 4bit"),
        ("quantize", "2bit", "'2bit' for 'workload.quantize'"),
        ("fp8", 1, "1 for 'workload.fp8'"),
        ("cache", 1, "an unknown entry 'workload.cache'"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_changed_workload_is_told_as_such(name, key, value, said):
    content = copy.deepcopy(PLANS[name])
    content["workload"][key] = value
    found = refusal(name, content)
    assert re.search(said + AGAIN, found), found
    assert "another model" not in found


def changed(change):
    content = copy.deepcopy(PLANS["GLM-4V-9B"])
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(version=2), "has version 2; this one reads 1"),
        (lambda c: c.update(version=True), "has version true; this one reads 1"),
        (lambda c: c.update(format="plan"), "is not a plan of glm4v_magic"),
        (lambda c: c.update(author="me"), "has an unknown entry 'author'"),
        (lambda c: c.update(objective="cheapest"), "Unknown objective 'cheapest'"),
        (lambda c: c.update(stages=[]), "has no stages"),
        (lambda c: c["workload"].update(images=2), "GLM-4V-9B takes 1 image, not 2"),
        (lambda c: c["workload"].update(image_size=100), "The plan is wrong: .*GLM-4V-9B"),
        (
            lambda c: c["stages"][0]["units"].append("layer.99"),
            "names a unit that it does not have, 'layer.99'",
        ),
        (lambda c: c["stages"][0]["units"].pop(), "bytes of weights for cuda:0, whose units"),
        (
            lambda c: c["stages"][0]["modules"].append(c["stages"][1]["modules"].pop()),
            "says other modules for cuda:0 than its units have",
        ),
        (
            lambda c: c["stages"][1]["modules"].append(c["stages"][1]["modules"][0]),
            "says other modules for cuda:1 than its units have",
        ),
        (
            lambda c: c["stages"][1].update(offloaded=["lm_head.weight"]),
            "says other modules for cuda:1 than its units have",
        ),
        (
            lambda c: c["stages"][0].update(weight_bytes=1),
            "The plan of GLM-4V-9B says 1 bytes of weights for cuda:0",
        ),
    ],
)
def test_a_changed_plan_is_told_as_such(change, said):
    found = refusal("GLM-4V-9B", changed(change))
    assert re.search(said + AGAIN, found), found


def less(content):
    for stage in content["stages"]:
        stage.update(kv_bytes=0, activation_bytes=0, overhead_bytes=0, capacity_bytes=10**12)


@pytest.mark.parametrize(
    ("change", "gpus"),
    [
        (lambda c: c["workload"].update(context=65_536), "2x15GiB"),
        (lambda c: c["workload"].update(batch=40), GPUS),
        (lambda c: c["workload"].update(images=10, context=32_768), "2x12GiB"),
        (less, "2x10GiB"),
    ],
    ids=["context", "batch", "images", "sizes"],
)
def test_a_plan_is_judged_by_what_its_units_need_whatever_it_says(change, gpus):
    known, there = architecture(NAMES[1]), parse_gpus(gpus)
    content = copy.deepcopy(PLANS[NAMES[1]])
    change(content)
    options = PlacementOptions()
    placement = decide(known, options, there, content)
    assert placement.plan is not None
    work = placement.plan.workload
    priced = {unit.name: unit for unit in price(known.shape(), work)}
    for stage in (each for each in placement.plan.stages if each.units):
        assert stage.capacity_bytes <= there[stage.gpu].usable_bytes
        names = [name for name in stage.units if name in priced]
        assert stage.kv_bytes == sum(priced[name].kv_bytes for name in names)
        assert stage.activation_bytes > 0
    with pytest.raises(DoesNotFitError) as caught:
        require_room(known, placement, options, content, there)
    with pytest.raises(DoesNotFitError) as of_check:
        raise_if_unusable(dry_run(known, there, content))
    assert str(caught.value) == str(of_check.value)


def test_a_changed_context_is_not_told_as_the_longest_that_fits():
    known, there = architecture(NAMES[1]), parse_gpus("2x16GiB")
    made = make_plan(known, PlacementOptions(), there)
    content = json.loads(made.to_json())
    told = [each.code for each in decide(known, PlacementOptions(), there, content).notes]
    assert told == ["context_shortened"]
    content["workload"]["context"] = 16_384
    assert decide(known, PlacementOptions(), there, content).notes == ()


def test_a_plan_of_another_model_is_still_one():
    for name, other in (NAMES, NAMES[::-1]):
        found = refusal(name, PLANS[other])
        assert f"is of another model than {name}: it says {other}. Make a plan for this" in found
    found = refusal("GLM-4V-9B", PLANS[NAMES[1]] | {"model": "\x1b[2J\n" + 1000 * "x"})
    assert found.count("x") < 100
    assert "\x1b" not in found


@pytest.mark.parametrize(
    "sizes", [[["a\nb", 1.0]], [["0", 1.0]], [[-1, 1.0]], [[0, 9.0], [0, 8.0]]]
)
def test_sizes_of_devices_that_there_are_not(sizes):
    changed = copy.deepcopy(PLANS["GLM-4V-9B"])
    changed["limits"]["max_memory"] = sizes
    assert re.fullmatch(
        r"The plan is wrong: max_memory is \(\(" + AGAIN, refusal("GLM-4V-9B", changed)
    )
