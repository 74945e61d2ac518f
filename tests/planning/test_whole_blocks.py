"""4-bit matrices on the CPU: plan, dry run and load refuse sizes that it does not compute."""

from __future__ import annotations

from dataclasses import replace

import golden
import pytest
import tiny_native
import torch
from torch import nn

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.names import PUBLISHED
from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.planning.decision import decide, make_plan
from glm4v_magic.planning.precision import require_whole_blocks

TINY = architecture(golden.CHECKPOINT)  # whose MLP has 176 inputs
ON_CPU = {"": "cpu"}
SHORT = {"context": 256, "images": 0}


def decided(quantize, gpus=(), given=None, loads=False):
    options = {"quantize": quantize, **({} if given else SHORT)}
    return decide(TINY, PlacementOptions(**options), gpus, given, loads=loads)


ENTRANCES = {
    "plan": lambda kind: make_plan(TINY, PlacementOptions(gpus="cpu", quantize=kind, **SHORT)),
    "load": decided,
    "load by a map": lambda kind: decided(kind, parse_gpus("1x8GiB"), ON_CPU),
    "dry run": lambda kind: dry_run(TINY, "1x8GiB", ON_CPU, quantize=kind, **SHORT),
    "dry run without GPUs": lambda kind: dry_run(TINY, "cpu", ON_CPU, quantize=kind, **SHORT),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_refused_at_every_entrance_in_the_same_words(entrance):
    said = r"has layers with 176 inputs, and 4bit on the CPU needs multiples of 64\. Use 8bit"
    with pytest.raises(OptionError, match=said):
        ENTRANCES[entrance]("4bit")
    assert ENTRANCES[entrance]("8bit")
    assert decided("4bit", parse_gpus("1x8GiB")).quantize == "4bit"


def test_both_sizes_of_a_matrix_count():
    shape = architecture("GLM-4V-9B").shape()
    for sizes, said in (
        ((96, 128), None),
        ((48, 128), "layers with 48 outputs, .* multiples of 32"),
        ((96, 160), "layers with 160 inputs, .* multiples of 64"),
    ):
        changed = replace(shape, units=(replace(shape.units[-2], linear=((64, 64), sizes)),))
        for quantize, places in (("4bit", [0, "cpu"]), ("8bit", ["cpu"]), (None, ["cpu"])):
            require_whole_blocks(changed, quantize, places)
        if said is None:
            require_whole_blocks(changed, "4bit", ["cpu"])
            continue
        with pytest.raises(OptionError, match=said):
            require_whole_blocks(changed, "4bit", ["cpu"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_whole_blocks(name):
    require_whole_blocks(architecture(name).shape(), "4bit", ["cpu"])


@pytest.mark.parametrize("kind", ["GLM-4V-9B", *tiny_native.KINDS])
def test_the_sizes_are_those_of_the_modules(native, kind):
    known = TINY if kind == "GLM-4V-9B" else architecture(native(kind))
    model = known.build_meta("bfloat16")
    for unit in known.shape().units:
        layers = [
            layer
            for module in (unit.modules if unit.kind == "text_layer" else ())
            for layer in model.get_submodule(module).modules()
            if type(layer) is nn.Linear
        ]
        sizes = sorted((layer.out_features, layer.in_features) for layer in layers)
        assert sorted(unit.linear) == (sizes if known.shape().quantizable else [])


@pytest.mark.parametrize("sizes", [(96, 128), (48, 128), (96, 160), (64, 32), (33, 64)])
def test_the_rule_is_that_of_bitsandbytes(sizes):
    bnb = pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU computes with all sizes")
    rows, columns = sizes
    layer = bnb.nn.Linear4bit(columns, rows, bias=False, quant_type="nf4")
    weight = torch.randn(rows, columns)
    layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4").to("cpu")
    shape = architecture("GLM-4V-9B").shape()
    shape = replace(shape, units=(replace(shape.units[-2], linear=(sizes,)),))
    try:
        with torch.no_grad():
            layer.eval()(torch.randn(2, columns))
    except (AssertionError, RuntimeError):
        with pytest.raises(OptionError):
            require_whole_blocks(shape, "4bit", ["cpu"])
    else:
        require_whole_blocks(shape, "4bit", ["cpu"])
