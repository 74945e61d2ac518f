"""A model on common machines: what fits, held against plans."""

from __future__ import annotations

import json

import pytest

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DeviceMapError, DoesNotFitError, OptionError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.options import QUANTIZATIONS
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.machines import MACHINES, machine_rows, machines
from glm4v_magic.planning.plan import plan

MODEL = architecture("GLM-4.1V-9B-Thinking")
SHAPE = MODEL.shape()
FP8 = {
    "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head", "model.visual"],
}  # fmt: skip
SOME = (("Colab", "T4"), ("Kaggle", "2xT4"), ("", "1xRTX-3090"), ("", "2xRTX-3090"), ("", "1GiB"))


def by_gpus(model=MODEL, among=SOME, **options):
    return {fit.gpus: fit for fit in machines(model, PlacementOptions(**options), among)}


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
    asked = by_gpus(context=4096, dtype="float32")
    assert asked["2xRTX-3090"].dtype == "float32"
    assert asked["2xRTX-3090"].context == 4096


def test_the_mildest_quantisation_that_holds_the_context():
    """8 bit before 4 bit, where it is enough and the GPU has products for it."""
    among = [("", gpus) for gpus in ("T4", "P100", "1xRTX-4060-Ti", "1xRTX-3060", "1xRTX-3090")]
    found = by_gpus(among=among, context=8192)
    assert {gpus: fit.quantize for gpus, fit in found.items()} == {
        "T4": "8bit",
        "P100": "4bit",  # of compute capability 6.0
        "1xRTX-4060-Ti": "8bit",
        "1xRTX-3060": "4bit",  # too small
        "1xRTX-3090": None,
    }
    assert {fit.context for fit in found.values()} == {8192}
    longer = by_gpus(among=among[:1], context=SHAPE.max_context)["T4"]
    eight = by_gpus(among=among[:2], context=SHAPE.max_context, quantize="8bit")
    assert longer.quantize == "4bit"
    assert longer.context > eight["T4"].context > 0
    assert eight["P100"].quantize == "8bit"  # asked for


def test_the_table_leaves_out_gpus_that_add_nothing():
    rows = list(machine_rows(machines(MODEL, None, (*SOME, ("", "4xRTX-3090")))))
    assert [row[0] for row in rows] == ["GPUs", "T4", "2xT4", "1xRTX-3090", "2xRTX-3090", "1GiB",
                                        "4xRTX-3090"]  # fmt: skip
    several = (("", "2xRTX-3090"), ("", "4xRTX-3090"))
    assert len(list(machine_rows(machines(MODEL, None, several)))) == 2
    assert rows[3] == (
        "1xRTX-3090",
        "bfloat16",
        f"{by_gpus()['1xRTX-3090'].context:,}",
        "53",
        "27",
        "",
    )
    assert rows[5] == ("1GiB", "no", "", "", "", "")


def test_every_machine_can_be_read_and_has_a_speed():
    for _, spec in MACHINES:
        assert all(gpu.bandwidth and gpu.flops and gpu.capability for gpu in parse_gpus(spec))


def test_rows_are_json():
    fit = machines(MODEL, None, SOME[:1])[0]
    assert json.loads(json.dumps(fit.as_json())) == fit.as_json()
    assert fit.as_json()["fits"] is True


@pytest.mark.parametrize(
    ("model", "work", "said"),
    [
        (
            "GLM-4V-9B",
            {"context": 999_999},
            "A context of 999,999 tokens is longer than GLM",
        ),
        ("GLM-4.6V", {"context": 1}, "A context of 1 tokens is too short for 1 image"),
        ("GLM-5.3-Flash", {"quantize": "4bit"}, "published in FP8, and 4bit weights are made"),
        ("GLM-4V-9B", {"images": 2}, "GLM-4V-9B takes 1 image, not 2"),
        ("GLM-4V-9B", {"pin": (("layer.99", 0),)}, "has no unit 'layer.99' to pin"),
    ],
)
def test_what_no_machine_could_hold_is_refused_as_a_plan_is(model, work, said):
    known, options = architecture(model), PlacementOptions(**work)
    with pytest.raises((OptionError, DeviceMapError), match=said) as by_plan:
        make_plan(known, options, parse_gpus("8xH200"))
    for among in (SOME, ()):
        with pytest.raises(type(by_plan.value)) as by_machines:
            machines(known, options, among)
        assert by_machines.value.text == by_plan.value.text


@pytest.mark.parametrize(
    ("name", "work", "said"),
    [
        ("GLM-4.6V-Flash", {"gpus": "2x16GiB", "batch": 8}, "(1) a context of 3,840 fits "),
        ("GLM-5.3-Flash", {"gpus": "16x80GiB"}, "(1) a context of 5,632 fits "),
        ("GLM-5.3-Flash", {"gpus": "8x80GiB"}, ". But no shorter context fits."),
        # These keep the weights in FP8.
        ("GLM-5.3-Flash", {"gpus": "8xH100"}, "(1) a context of 5,376 fits "),
        ("GLM-4.6V-Flash", {"gpus": "2x16GiB", "image_size": 2000, "batch": 8},
         "no shorter context fits."),
    ],
)  # fmt: skip
def test_a_shorter_context_has_smaller_images_unless_their_size_was_asked_for(name, work, said):
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(architecture(name), PlacementOptions(**work))
    assert said in str(caught.value)


def test_weights_in_fp8_stay_so_where_the_gpus_compute_with_it():
    known = architecture("GLM-4.6V")
    fp8 = type(known)("fp8", known.config | {"quantization_config": FP8}, "config.json")
    found = by_gpus(fp8, (("", "8xH100"), ("", "8xA100-80GB")), context=4096)
    assert [fit.fp8 for fit in found.values()] == [True, False]
    whole = by_gpus(known, (("", "8xH100"),), context=4096)["8xH100"]
    assert found["8xH100"].tokens_per_second > 1.5 * whole.tokens_per_second
    rows = list(machine_rows(tuple(found.values())))
    assert [row[1] for row in rows[1:]] == ["bfloat16, FP8", "bfloat16"]


MIXED = (("", "RTX-3060+RTX-4090"), ("", "2xRTX-3090"), ("", "RTX-3060"), ("", "2xT4"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": "fastest"},
        {"objective": "balance"},
        {"reserve": 3},
        {"max_memory": 10},
        {"split_vision": False},
        {"offload": True},
        {"max_memory": {"cpu": "2GiB"}},
        {"pin": {"vision": 1}},
        {"batch": 4, "images": 3, "image_size": 448},
        {"quantize": "8bit"},
    ],
    ids=str,
)
def test_each_option_means_what_it_means_for_a_plan(options):
    """The first form that fits is what a plan for the machine has, and a longer context is not."""
    for gpus, fit in by_gpus(among=MIXED, context=16_384, **options).items():
        form = {**options, "quantize": fit.quantize}
        if not fit.offloads:
            form.pop("offload", None)

        def made(context, form=form, gpus=gpus):
            chosen = PlacementOptions(**form, context=context)
            return make_plan(MODEL, chosen, parse_gpus(gpus))

        if fit.fits:
            plan = made(fit.context)
            assert plan.speed.tokens_per_second == fit.tokens_per_second
            assert any(stage.offloaded for stage in plan.stages) == fit.offloads
            assert plan.objective == options.get("objective", "headroom")
        if not fit.fits or fit.context < 16_384:
            with pytest.raises((DoesNotFitError, DeviceMapError)):
                made(fit.context + 256 if fit.fits else 2560)


def test_what_a_machine_cannot_do_otherwise_is_offloaded_if_that_is_allowed():
    plain, away = by_gpus(among=MIXED), by_gpus(among=MIXED, offload=True)
    assert (plain["RTX-3060"].quantize, away["RTX-3060"].quantize) == ("4bit", None)
    assert away["RTX-3060"].offloads
    assert away["2xRTX-3090"] == plain["2xRTX-3090"]
    assert away["RTX-3060"].tokens_per_second < plain["RTX-3060"].tokens_per_second
    assert "bfloat16, offloaded" in {row[1] for row in machine_rows(tuple(away.values()))}
    fast, even = (
        by_gpus(among=MIXED, context=8192, objective=each) for each in ("fastest", "headroom")
    )
    mixed = MIXED[0][1]
    assert fast[mixed].tokens_per_second > even[mixed].tokens_per_second


def test_sizes_for_gpus_one_by_one_are_refused():
    with pytest.raises(OptionError, match=r"one by one.*Give one size for all"):
        machines(MODEL, PlacementOptions(max_memory=(10.0, 20.0)), SOME)
    assert machines(MODEL, PlacementOptions(max_memory=10.0), SOME)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("name", ["GLM-4V-9B", "GLM-4.5V", "GLM-OCR"])
def test_what_a_row_of_the_table_says_can_be_planned_on_that_machine(name, offload):
    """Its dtype, quantisation and context as they are written in its cells, and no more context."""
    model = architecture(name)
    among = [("", gpus) for gpus in ("T4", "2xT4", "1xRTX-3090", "2xRTX-3090", "8xA100-40GB")]
    head, *rows = machine_rows(machines(model, PlacementOptions(offload=offload), among))
    assert head[:3] == ("GPUs", "fits in", "context")
    for gpus, form, context, *_ in rows:
        given = {"gpus": gpus, "offload": offload}
        if form == "no":
            with pytest.raises(DoesNotFitError):
                make_plan(model, PlacementOptions(**given, context=2048, quantize="4bit"))
            continue
        dtype, *others = form.split(", ")
        given["offload"] = "offloaded" in others
        kept = {each for each in others if each in QUANTIZATIONS}
        if kept:
            given["quantize"] = kept.pop()
        tokens = int(context.replace(",", ""))
        made = make_plan(model, PlacementOptions(**given, dtype=dtype, context=tokens))
        assert made.fullness <= 1
        assert made.workload.context == tokens
        if tokens < model.shape().max_context:
            with pytest.raises(DoesNotFitError):
                make_plan(model, PlacementOptions(**given, dtype=dtype, context=tokens + 256))
    assert len({form for _, form, *_ in rows}) > 1 or name == "GLM-OCR"
