"""A model on common machines: what fits, held against plans."""

from __future__ import annotations

import json

import pytest

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DoesNotFitError, OptionError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.planning.machines import MACHINES, machine_rows, machines
from glm4v_magic.planning.plan import plan

SHAPE = architecture("GLM-4.1V-9B-Thinking").shape()
SOME = (("Colab", "T4"), ("Kaggle", "2xT4"), ("", "1xRTX-3090"), ("", "2xRTX-3090"), ("", "1GiB"))


def by_gpus(shape=SHAPE, work=None, among=SOME):
    return {fit.gpus: fit for fit in machines(shape, work, among)}


def test_the_longest_context_fits_and_a_longer_one_does_not():
    found = by_gpus()
    for gpus, fit in found.items():
        if not fit.fits:
            continue
        work = Workload(fit.context, dtype=fit.dtype, quantize=fit.quantize)
        made = plan(SHAPE, parse_gpus(gpus), work)
        assert made.speed.tokens_per_second == fit.tokens_per_second
        if fit.context < SHAPE.max_context:
            longer = Workload(fit.context + 256, dtype=fit.dtype, quantize=fit.quantize)
            with pytest.raises(DoesNotFitError):
                plan(SHAPE, parse_gpus(gpus), longer)
    assert found["2xRTX-3090"].context == SHAPE.max_context


def test_forms():
    found = by_gpus()
    assert (found["T4"].dtype, found["T4"].quantize) == ("float16", "4bit")
    assert (found["2xT4"].dtype, found["2xT4"].quantize) == ("float16", None)
    assert (found["1xRTX-3090"].dtype, found["1xRTX-3090"].quantize) == ("bfloat16", None)
    assert not found["1GiB"].fits
    asked = by_gpus(work=Workload(context=4096, dtype="float32"))
    assert asked["2xRTX-3090"].dtype == "float32"
    assert asked["2xRTX-3090"].context == 4096


def test_the_table_leaves_out_gpus_that_add_nothing():
    rows = list(machine_rows(machines(SHAPE, None, (*SOME, ("", "4xRTX-3090")))))
    assert [row[0] for row in rows] == ["GPUs", "T4", "2xT4", "1xRTX-3090", "2xRTX-3090", "1GiB",
                                        "4xRTX-3090"]  # fmt: skip
    several = (("", "2xRTX-3090"), ("", "4xRTX-3090"))
    assert len(list(machine_rows(machines(SHAPE, None, several)))) == 2
    assert rows[3] == ("1xRTX-3090", "bfloat16", f"{by_gpus()['1xRTX-3090'].context:,}", "53", "")
    assert rows[5] == ("1GiB", "no", "", "", "")


def test_every_machine_can_be_read_and_has_a_speed():
    for _, spec in MACHINES:
        assert all(gpu.bandwidth and gpu.flops and gpu.capability for gpu in parse_gpus(spec))


def test_rows_are_json():
    fit = machines(SHAPE, None, SOME[:1])[0]
    assert json.loads(json.dumps(fit.as_json())) == fit.as_json()
    assert fit.as_json()["fits"] is True


@pytest.mark.parametrize(
    ("model", "work", "said"),
    [
        ("GLM-4V-9B", Workload(999_999), r"A context of 999,999 tokens is longer than GLM-4V-9B"),
        ("GLM-4.6V", Workload(1, images=1), "A context of 1 tokens is too short for 1 image"),
        ("GLM-5.3-Flash", Workload(quantize="4bit"), "published in FP8, and 4bit weights are made"),
    ],
)
def test_what_no_machine_could_hold_is_refused_as_a_plan_is(model, work, said):
    shape = architecture(model).shape()
    with pytest.raises(OptionError, match=said) as by_plan:
        plan(shape, parse_gpus("8xH200"), work)
    for among in (SOME, ()):
        with pytest.raises(OptionError) as by_machines:
            machines(shape, work, among)
        assert by_machines.value.text == by_plan.value.text
