"""The least times of a plan: what is read and computed, by hand, and what is not known."""

from __future__ import annotations

import dataclasses
import re

import pytest

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core import speed
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.speed import MeasuredShare, SpeedLimit, measured_on
from glm4v_magic.notebook.render.plans.plan import plan_bundle, plan_html
from glm4v_magic.planning.files import plan_from_json
from glm4v_magic.planning.plan import plan
from glm4v_magic.planning.speed import HOP_SECONDS, bus_of, work_of

OLD = architecture("GLM-4V-9B").shape()
NEW = architecture("GLM-4.1V-9B-Thinking").shape()
MOE = architecture("GLM-4.5V").shape()
WORK = Workload(context=4096)
GB = 10**9


def limit(shape, gpus, work=WORK, **options):
    speed = plan(shape, parse_gpus(gpus), work, **options).speed
    assert isinstance(speed, SpeedLimit)
    return speed


def decoder_bytes(shape, work=WORK):
    """Weights of decoder and head, and a row of the table of embeddings."""
    kinds = {unit.name: unit.kind for unit in shape.units}
    read = [each for each in work_of(shape, work) if kinds[each.name] in ("text_layer", "head")]
    return sum(each.weight_bytes for each in read) + 2 * 4096 * work.batch


def test_a_step_reads_the_decoder_and_the_head_once_and_then_its_cache():
    found = limit(OLD, "80GiB@1000GB/s")
    values = 8_158_433_280 + 4_096 + 620_756_992 + 4_096  # layers, norm, head, an embedding
    assert found.step_seconds == pytest.approx(2 * values / 1000 / GB)
    cache = (4096 + 1599) * 40 * 1024  # entries, layers, bytes
    assert found.full_step_seconds == pytest.approx(found.step_seconds + cache / 1000 / GB)
    assert found.prefill_seconds is None  # nothing tells how fast it computes


def test_rows_of_a_batch_share_the_reading_of_weights():
    one, four = (limit(OLD, "A100-80GB", dataclasses.replace(WORK, batch=n)) for n in (1, 4))
    assert four.step_seconds == pytest.approx(one.step_seconds, rel=1e-4)
    assert four.tokens_per_second == pytest.approx(4 * one.tokens_per_second, rel=1e-4)
    assert four.prefill_seconds == pytest.approx(4 * one.prefill_seconds, rel=1e-2)


def test_gpus_run_one_after_another_each_at_its_own_speed():
    fast, slow = (limit(NEW, f"2x16GiB@{speed}GB/s") for speed in (1000, 500))
    assert fast.step_seconds == pytest.approx(decoder_bytes(NEW) / 1000 / GB + 2e-6)  # one hop
    assert slow.step_seconds - HOP_SECONDS == pytest.approx(2 * (fast.step_seconds - HOP_SECONDS))
    mixed = limit(NEW, "16GiB@1000GB/s+16GiB@500GB/s")
    assert fast.step_seconds < mixed.step_seconds < slow.step_seconds


def test_quantised_weights_count_as_they_are_read():
    full, eight, four = (
        limit(OLD, "80GiB@1000GB/s", dataclasses.replace(WORK, quantize=kind)).step_seconds
        for kind in (None, "8bit", "4bit")
    )
    assert 0.5 < eight / full < 0.6
    assert 0.3 < four / full < 0.36


def test_of_experts_only_those_that_a_token_chooses_are_read():
    found = limit(MOE, "8x80GiB@1000GB/s")
    read = found.step_seconds * 1000 * GB
    assert 0.09 < read / (2 * MOE.values) < 0.12  # 12 of 107.7 billion are active
    layer = next(unit for unit in MOE.units if unit.name == "layer.7")
    assert layer.idle_values == 120 * 3 * 4096 * 1408


def test_offloaded_weights_cross_the_bus():
    work = dataclasses.replace(WORK, context=2048)
    whole = limit(NEW, "24GiB@936GB/s", work)
    made = plan(NEW, parse_gpus("RTX-3090-16GiB"), work, offload=True)
    away = set(made.stages[0].offloaded)
    names = [unit.name for unit in NEW.units if away.issuperset(unit.modules)]
    sizes = [each.weight_bytes for each in work_of(NEW, work) if each.name in names]
    crossing = sum(
        size for name, size in zip(names, sizes, strict=True) if name.startswith(("layer", "emb"))
    )
    assert crossing
    more = made.speed.step_seconds - whole.step_seconds
    assert more == pytest.approx(crossing / bus_of(made_of((8, 6))).rate, rel=1e-6)


def made_of(capability):
    return GPU(0, "GPU", 16 * GB, bandwidth=936 * GB, capability=capability)


def test_buses_by_the_generation_of_the_gpu():
    third, fourth, fifth, unknown = (
        bus_of(made_of(each)) for each in ((7, 5), (8, 6), (9, 0), None)
    )
    assert fourth.rate == pytest.approx(31_507_692_307)
    assert (fourth.rate, fifth.rate) == (2 * third.rate, 4 * third.rate)
    assert third.name == "PCIe 3.0 x16"
    assert unknown == fifth


@pytest.mark.parametrize("capability", [(7, 5), (8, 6), None])
def test_a_plan_speaks_of_one_bus(capability):
    """No sentence says less than the limit below it."""
    made = plan(NEW, [made_of(capability)], dataclasses.replace(WORK, context=2048), offload=True)
    said = str(made)
    bus = bus_of(made_of(capability)).name
    assert set(re.findall(r"PCIe \S+ x16", said)) == {bus}
    seconds = float(re.search(r"per token: at least ([0-9.]+) s over", said)[1])
    most = float(re.search(r"At most ([0-9.]+) tokens/s", said)[1])
    assert most * seconds < 1.05
    assert "by the bus to the host and the GPUs' memory bandwidth" in said


def test_a_prefill_computes_tower_and_text():
    text = limit(OLD, "A100-80GB", Workload(context=8192, images=0)).prefill_seconds
    layers, head = 8_158_433_280, 620_761_088
    attention = 40 * 2 * 8192**2 * 4096
    assert text == pytest.approx((2 * layers * 8192 + 2 * head + attention) / 312e12, rel=1e-2)
    seen = limit(OLD, "A100-80GB", Workload(context=8192, images=1)).prefill_seconds
    tower = 63 * (2 * 67_926_784 * 6401 + 4 * 6401**2 * 1792)
    assert (seen - text) * 312e12 > tower
    assert (
        limit(MOE, "8xA100-80GB").prefill_seconds
        < 0.3 * limit(OLD, "A100-80GB").prefill_seconds * 13
    )


def test_of_unknown_gpus_nothing_is_said_but_that():
    for gpus in ("2x16GiB", "16GiB+16GiB@500GB/s"):
        found = limit(NEW, gpus)
        assert found.unknown == ("GPU",)
        assert found.tokens_per_second is found.full_tokens_per_second is None
        assert found.prefill_seconds is None
        text = str(plan(NEW, parse_gpus(gpus), WORK))
        assert "Speed: unknown, for nothing tells the memory bandwidth of GPU" in text
        assert "tokens/s" not in text
    assert limit(NEW, "80GiB@936GB/s+16GiB").unknown == ()  # the one in use is known
    assert plan(NEW, ()).speed is None


def test_a_plan_says_its_limit_as_one_and_keeps_it_in_its_file():
    made = plan(NEW, parse_gpus("RTX-3090"), dataclasses.replace(WORK, context=8192))
    assert (
        "At most 53 tokens/s (52 with 8,192 tokens of context), by the GPUs' memory bandwidth, and "
        "at least 4.0 s for a prompt of that length; expect about half as fast."
    ) in str(made)
    assert plan_from_json(made.to_json()).speed == made.speed


def test_on_a_fast_gpu_the_host_sets_the_pace():
    made = plan(OLD, parse_gpus("H200"), dataclasses.replace(WORK, context=2048))
    assert (
        "by the GPUs' memory bandwidth; expect about 31, for the host starts a GPU's work no "
        "faster. At least 0.14 s for a prompt of that length; expect twice as long."
    ) in str(made)
    assert (
        "Measured on H200: 0.10 to 0.13 of these tokens/s, and the first token at 0.44 to 0.48 of "
        "the limit's speed (GLM-4V-9B in bfloat16"
    ) in str(made)
    least, most = (made.speed.tokens_per_second * share for share in (0.10, 0.13))
    assert least < made.speed.expected_tokens_per_second < most
    assert "about half" not in str(made)
    slow = plan(OLD, parse_gpus("2xT4"), dataclasses.replace(WORK, context=1024, images=0)).speed
    assert slow.expected_tokens_per_second == slow.tokens_per_second / 2
    of_eight = dataclasses.replace(made.speed, batch=8)
    assert of_eight.expected_tokens_per_second == pytest.approx(8 / (40 * speed.LAYER_SECONDS))


def test_the_share_that_was_measured_is_beside_the_limit(monkeypatch):
    cpu = [GPU(0, "CPU", 2**40, bandwidth=10 * GB)]
    (share,) = measured_on({"CPU"})
    assert 0.3 < share.share[0] < 1
    line = f"Measured on CPU: {share.share[0]:.2f} of this limit (95 million parameters in float32,"
    assert line in str(plan(NEW, cpu, WORK))
    assert line in plan_bundle(plan(NEW, cpu, WORK))["text/plain"]
    assert line in plan_html(plan(NEW, cpu, WORK))
    assert "Measured on" not in str(plan(NEW, parse_gpus("RTX-3090"), WORK))
    known = MeasuredShare("RTX 3090", (0.5, 0.5), "a model")
    monkeypatch.setattr(speed, "MEASURED", (*speed.MEASURED, known))
    for gpus in ("RTX-3090", "2xRTX-3090", "NVIDIA GeForce RTX 3090-24GB"):
        found = str(plan(NEW, parse_gpus(gpus), WORK))
        assert found.count("Measured on RTX 3090: 0.50 of this limit (a model).") == 1
    assert "Measured on" not in str(plan(MOE, parse_gpus("8xA100-80GB+RTX-3090"), WORK))
    mixed = plan(NEW, parse_gpus("RTX-3060+RTX-3090"), WORK)
    assert all(stage.units for stage in mixed.stages)
    assert "Measured on" not in str(mixed)  # of the other one nothing is known
