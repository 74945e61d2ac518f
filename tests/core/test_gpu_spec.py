"""Descriptions of GPUs."""

from __future__ import annotations

import pytest

from glm4v_magic.core.errors import GPUDescriptionError
from glm4v_magic.core.gpu_models import GPU_MODELS, GPUModel
from glm4v_magic.core.gpu_spec import GPU, MAX_GPUS, parse_gpus

GIB = 2**30
NOMINAL = (6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 94, 96, 141, 144, 180, 192)


@pytest.mark.parametrize(
    ("description", "sizes"),
    [
        ("4x16GiB", [16 * GIB] * 4),
        ("4 x 16 gib", [16 * GIB] * 4),
        ("24+16+12GiB", [24 * GIB, 16 * GIB, 12 * GIB]),
        ("512MiB + 1GiB", [512 * 2**20, GIB]),
        ("2x24+16GiB", [24 * GIB, 24 * GIB, 16 * GIB]),
        ("1x80GB", [80 * 10**9]),
        ("0.5GiB", [GIB // 2]),
        ("16GiB", [16 * GIB]),
        ("cpu", []),
        (" CPU ", []),
    ],
)
def test_sizes(description: str, sizes: list[int]) -> None:
    gpus = parse_gpus(description)
    assert [gpu.total_bytes for gpu in gpus] == sizes
    assert [gpu.index for gpu in gpus] == list(range(len(sizes)))


@pytest.mark.parametrize(
    ("description", "names"),
    [
        ("2xA100-40GB", ["A100", "A100"]),
        ("RTX 4090-24GiB + H100-PCIe-80GB", ["RTX 4090", "H100-PCIe"]),
        ("16GiB", ["GPU"]),
    ],
)
def test_names(description: str, names: list[str]) -> None:
    assert [gpu.name for gpu in parse_gpus(description)] == names


@pytest.mark.parametrize(
    ("description", "known"),
    [
        ("2xT4", [("T4", 14.56, 320)] * 2),
        ("2xRTX-3090", [("RTX-3090", 23.67, 936)] * 2),
        (
            "rtx3090 + 2x4090",
            [("rtx3090", 23.67, 936), ("4090", 23.52, 1008), ("4090", 23.52, 1008)],
        ),
        ("NVIDIA A100 80GB PCIe", [("NVIDIA A100 80GB PCIe", 79.15, 1935)]),
        ("A100-80GiB", [("A100", 79.15, 2039)]),
        ("A100-40+80GiB", [("A100", 39.38, 1555), ("GPU", 80, None)]),
        # as drivers report them
        ("NVIDIA GH200 480GB", [("NVIDIA GH200", 94.5, 4023)]),
        ("NVIDIA A100-SXM4-40GB", [("NVIDIA A100-SXM4", 39.38, 1555)]),
        ("NVIDIA A100-SXM4-80GB", [("NVIDIA A100-SXM4", 79.15, 2039)]),
        ("NVIDIA A100-PCIE-40GB", [("NVIDIA A100-PCIE", 39.38, 1555)]),
        ("2xTesla V100-SXM2-32GB", [("Tesla V100-SXM2", 31.73, 900)] * 2),
        # models that are told apart by their size
        ("RTX-3080-12GB", [("RTX-3080", 11.76, 912)]),
        ("RTX 3080 10GB", [("RTX 3080", 9.76, 760)]),
        ("GH200-144GB", [("GH200", 139.7, 4917)]),
        # nominal sizes, and limits
        ("2xT4-16GiB", [("T4", 14.56, 320)] * 2),
        ("T4-16GB", [("T4", 14.56, 320)]),
        ("T4-15360MiB", [("T4", 14.56, 320)]),
        ("A10G-24GiB+V100-16GiB", [("A10G", 21.98, 600), ("V100", 15.77, 900)]),
        ("RTX-4090-24GiB@900GB/s", [("RTX-4090", 23.52, 900)]),
        ("H200-141GB", [("H200", 139.72, 4917)]),
        ("2x4090-24GB+3090 24GiB", [("4090", 23.52, 1008)] * 2 + [("3090", 23.67, 936)]),
        ("T4-14GiB", [("T4", 14, 320)]),
        ("A100-20GiB", [("A100", 20, 1555)]),
        ("24GiB@936GB/s", [("GPU", 24, 936)]),
        ("2x16GiB @ 0.5TB/s + T4@300GB/s", [("GPU", 16, 500)] * 2 + [("T4", 14.56, 300)]),
        ("RTX 4090 Laptop-16GiB", [("RTX 4090 Laptop", 16, None)]),
        ("4090 Laptop-16GiB", [("4090 Laptop", 16, None)]),
    ],
)
def test_models_and_bandwidths(
    description: str, known: list[tuple[str, float, int | None]]
) -> None:
    found = [
        (gpu.name, gpu.total_bytes, gpu.bandwidth and gpu.bandwidth // 10**9)
        for gpu in parse_gpus(description)
    ]
    assert found == [(name, int(size * GIB), speed) for name, size, speed in known]


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ("RTX-3900", "'RTX-3900' names a GPU that is not known. Did you mean RTX 3090"),
        ("2xGTX-1080", 'RTX 3080? Add its memory, as in "2xGTX-1080-16GiB".'),
        ("2xRTX 4090 Laptop", 'Add its memory, as in "2xRTX 4090 Laptop-16GiB".'),
        ("RTX 3090-24", 'gives a size without a unit. Add the unit, as in "RTX 3090-24GiB".'),
        ("2xT4-64GB", 'T4 has 14.56 GiB, not 64GB. Leave the size out, or the name: "2x64GB".'),
        ("2080-Ti-22+8GiB", 'has 10.75 GiB, not 22GiB. Leave the size out, or the name: "22GiB".'),
        ("24GiB@936", "Cannot read the bandwidth '936' in '24GiB@936'."),
        ("24GiB@", "Cannot read the bandwidth '' in"),
        ("T4@0GB/s", "Cannot read the bandwidth '0GB/s'"),
        ("0xT4", "'0xT4' has a count below one."),
        ("A100-40", "gives a size without a unit"),
    ],
)
def test_models_and_bandwidths_that_cannot_be_read(description: str, said: str) -> None:
    with pytest.raises(GPUDescriptionError) as caught:
        parse_gpus(description)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("description", "meant"),
    [
        ("2 T4", "2xT4"),
        ("2 RTX 3090", "2xRTX 3090"),
        ("4 A100-40GB@1TB/s", "4xA100-40GB"),
        ("2 24GiB", "2x24GiB"),
        ("T4+RTX 3090 x 2", "2xRTX 3090"),
        ("3090 x2", "2x3090"),
        ("RTX-3090x2", "2xRTX-3090"),
        ("24GiB x 2", "2x24GiB"),
        ("A100-80GB ×8", "8xA100-80GB"),
    ],
)
def test_counts_at_another_place_are_told_where_they_belong(description: str, meant: str) -> None:
    with pytest.raises(GPUDescriptionError, match=f'Did you mean "{meant}"\\?'):
        parse_gpus(description)
    assert len(parse_gpus(meant)) == int(meant[0])


@pytest.mark.parametrize("model", GPU_MODELS, ids=lambda model: model.name)
def test_a_model_with_its_size_is_the_model(model: GPUModel) -> None:
    (named,) = parse_gpus(model.name)
    assert named.total_bytes == model.memory_bytes
    size = next((size for size in NOMINAL if size >= model.memory_gib), None)
    assert size is not None
    for unit in ("GB", "GiB", "gb"):
        (gpu,) = parse_gpus(f"{model.name.removesuffix(f'{size}GB')} {size}{unit}")
        assert (gpu.total_bytes, gpu.bandwidth, gpu.flops) == (
            model.memory_bytes, model.bandwidth, model.flops
        )  # fmt: skip


@pytest.mark.parametrize(
    "description",
    [
        "", "  ", "4x", "x16GiB", "0x16", "0x16GiB", "3x-1GiB", "-2x16GiB", "4x0GiB", "16",
        "4x16", "four", "4x16GiB+", "+16GiB", "4x16 parsecs", "4xGiB", "nanGiB", "infGiB",
        "1e9GiB", "4x16GiB;rm", "1000 24GiB", "4x16GiB 2x8GiB", "٤x16GiB", "9" * 300 + "GiB",
        "10**9x1GiB",
    ],
)  # fmt: skip
def test_one_clear_line_for_what_cannot_be_read(description: str) -> None:
    with pytest.raises(GPUDescriptionError) as caught:
        parse_gpus(description)
    message = str(caught.value)
    assert "\n" not in message
    assert '"4x16GiB"' in message
    assert len(message) < 300


def test_more_gpus_than_pytorch_can_number() -> None:
    assert len(parse_gpus(f"{MAX_GPUS}x1GiB")) == MAX_GPUS
    for description in (f"{MAX_GPUS + 1}x1GiB", "999999999999x1GiB", "100x1GiB+100x1GiB"):
        with pytest.raises(GPUDescriptionError, match=f"more than {MAX_GPUS} GPUs"):
            parse_gpus(description)


def test_not_a_string() -> None:
    with pytest.raises(GPUDescriptionError, match="not by int"):
        parse_gpus(4)  # type: ignore[arg-type]


def test_usable_bytes_is_the_free_memory_where_it_is_known() -> None:
    assert GPU(0, "GPU", 16 * GIB).usable_bytes == 16 * GIB
    assert GPU(0, "GPU", 16 * GIB, free_bytes=0).usable_bytes == 0


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("4x16GiB,8GiB", "4x16GiB+8GiB"),
        ("RTX 4090, RTX 3090", "RTX 4090+RTX 3090"),
        ("2xT4;L4", "2xT4+L4"),
        ("24GiB，16GiB", "24GiB+16GiB"),
        ("24GiB＋16GiB", "24GiB+16GiB"),
    ],
)
def test_gpus_that_are_not_joined_by_a_plus(text, meant):
    with pytest.raises(GPUDescriptionError) as caught:
        parse_gpus(text)
    assert f'Different GPUs are joined by +: "{meant}".' in str(caught.value)
    assert len(parse_gpus(meant)) >= 2


def test_what_is_added_to_a_name_that_is_not_known():
    with pytest.raises(GPUDescriptionError, match='Add its memory, as in "M3-Max-16GiB"'):
        parse_gpus("M3-Max")
    assert parse_gpus("M3-Max-16GiB")[0].total_bytes == 16 * 2**30
