"""Commands for vLLM and SGLang: each flag is one of theirs, and has a value that they take."""

from __future__ import annotations

import argparse
import json
import os
import re
import zipfile
from itertools import product
from pathlib import Path

import pytest

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DoesNotFitError, OptionError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.notebook.engine_commands import Wanted, command_of, with_gpus
from glm4v_magic.planning.costs import price
from glm4v_magic.planning.shared import shared_bytes

# As vllm 0.19.1 and 0.33.0 and sglang 0.5.7 and 0.5.23 declare them: how each is read.
SWITCH = {"action": "store_true"}
NUMBER, TEXT, JSON = {"type": int}, {"type": str}, {"type": json.loads}
DTYPES = {"choices": ["auto", "half", "float16", "bfloat16", "float", "float32"]}
PARSERS = {"choices": ["glm45"]}
FLAGS = {
    "vllm": {
        "--host": TEXT,
        "--port": NUMBER,
        "--tensor-parallel-size": NUMBER,
        "--pipeline-parallel-size": NUMBER,
        "--mm-encoder-tp-mode": {"choices": ["weights", "data"]},
        "--max-model-len": NUMBER,
        "--limit-mm-per-prompt": JSON,
        "--dtype": DTYPES,
        "--quantization": {"choices": ["bitsandbytes"]},  # until 0.27
        "--revision": TEXT,
        "--trust-remote-code": SWITCH,
        "--hf-overrides": JSON,
        "--reasoning-parser": PARSERS,
    },
    "sglang": {
        "--model-path": {"type": str, "required": True},
        "--host": TEXT,
        "--port": NUMBER,
        "--tp-size": NUMBER,
        "--pp-size": NUMBER,
        "--mm-enable-dp-encoder": SWITCH,
        "--context-length": NUMBER,
        "--limit-mm-data-per-request": JSON,
        "--dtype": DTYPES,
        "--revision": TEXT,
        "--reasoning-parser": PARSERS,
    },
}
VARIABLES = {
    "vllm": {"CUDA_VISIBLE_DEVICES", "VLLM_PP_LAYER_PARTITION"},
    "sglang": {"CUDA_VISIBLE_DEVICES", "SGLANG_PP_LAYER_PARTITION"},
}
PLAIN = {"--host", "--port", "--model-path"}
MODELS = ("GLM-4V-9B", "GLM-4.6V", "GLM-OCR", "GLM-5.3-Flash")
GPUS = ("3x80GiB", "8x40GiB", "80+48GiB", "6x48GiB")
OPTIONS = ({"revision": "main"}, {"quantize": "4bit"})


def command(engine, model, gpus, revision=None, **options):
    found = architecture(model)
    asked = PlacementOptions(**{"context": 8192} | options)
    wanted = Wanted(
        model, found.config, None, asked.context, asked.images, asked.quantize, revision,
        "0.0.0.0", 8000, thinks=found.thinks,
    )  # fmt: skip
    return command_of(engine, with_gpus(engine, wanted, found, asked, parse_gpus(gpus)))


def read(engine, words):
    """The values of the flags, as the engine reads them."""
    reader = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for flag, how in FLAGS[engine].items():
        reader.add_argument(flag, **how)
    start = ["vllm", "serve"] if engine == "vllm" else ["-m", "sglang.launch_server"]
    place = words.index(start[-1]) + 1
    assert list(words[place - 2 : place]) == start
    rest = words[place + (engine == "vllm") :]  # behind the model, which SGLang has as a flag
    values = vars(reader.parse_args(rest))
    return {name: value for name, value in values.items() if value not in (None, False)}


@pytest.fixture(scope="module")
def commands():
    """Commands for models on GPUs of all kinds, of those that fit."""
    found = []
    for engine, model, gpus in product(FLAGS, MODELS, GPUS):
        for options in OPTIONS:
            try:
                made = command(engine, model, gpus, **options)
            except (OptionError, DoesNotFitError):
                continue
            found.append((engine, model, made))
    return found


def test_each_flag_is_one_of_the_engine(commands):
    used = {engine: set() for engine in FLAGS}
    for engine, model, made in commands:
        values = read(engine, made.words)
        used[engine] |= {f"--{name.replace('_', '-')}" for name in values}
        assert set(made.environment) <= VARIABLES[engine]
        assert ("reasoning_parser" in values) == (model not in ("GLM-4V-9B", "GLM-OCR"))
    assert used == {engine: set(flags) for engine, flags in FLAGS.items()}


def test_what_is_divided_among_gpus_can_be(commands):
    shared = 0
    for engine, _, made in commands:
        values = read(engine, made.words)
        tensor = values.get("tensor_parallel_size", values.get("tp_size", 1))
        pipeline = values.get("pipeline_parallel_size", values.get("pp_size", 1))
        gpus = made.environment["CUDA_VISIBLE_DEVICES"].split(",")
        assert tensor * pipeline == len(gpus)
        shared += tensor > 1
        model = values.get("model_path") or made.words[2]
        config = architecture(model).config
        text, vision = config.get("text_config", config), config["vision_config"]
        assert text["num_attention_heads"] % tensor == 0
        keys = text.get("num_key_value_heads", 2)
        assert keys % tensor == 0 or tensor % keys == 0
        whole = {"mm_encoder_tp_mode", "mm_enable_dp_encoder"} & set(values)
        assert bool(whole) == (vision["num_heads"] % tensor != 0)
        layers = next((made.environment[n] for n in made.environment if "LAYER" in n), "")
        assert bool(layers) == (pipeline > 1)
        if layers:
            all_layers = text.get("num_hidden_layers") or text["num_layers"]
            assert sum(map(int, layers.split(","))) == all_layers
    assert shared > 2


def test_the_docs_name_each_flag():
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    table = page.partition("| of the plan | vLLM | SGLang |")[2].partition("\n\n")[0]
    rows = [line.split(" | ") for line in table.splitlines()]
    for place, (engine, flags) in enumerate(FLAGS.items(), start=1):
        cells = " ".join(row[place] for row in rows if len(row) == 3)
        said = set(re.findall(r"--[a-z][a-z-]+|\b[A-Z_]{9,}", cells))
        assert said | PLAIN == set(flags) | VARIABLES[engine] | PLAIN


def test_equal_gpus_share_every_layer():
    assert str(command("vllm", "GLM-4.1V-9B-Thinking", "2x16GiB", images=3)) == (
        "CUDA_VISIBLE_DEVICES=0,1 vllm serve GLM-4.1V-9B-Thinking --host 0.0.0.0 --port 8000 "
        "--tensor-parallel-size 2 --max-model-len 8192 "
        "--limit-mm-per-prompt '{\"image\": 3}' --dtype bfloat16 --reasoning-parser glm45"
    )
    assert str(command("sglang", "GLM-4.1V-9B-Thinking", "2x16GiB")) == (
        "CUDA_VISIBLE_DEVICES=0,1 python -m sglang.launch_server "
        "--model-path GLM-4.1V-9B-Thinking --host 0.0.0.0 --port 8000 --tp-size 2 "
        "--context-length 8192 --limit-mm-data-per-request '{\"image\": 1}' --dtype bfloat16 "
        "--reasoning-parser glm45"
    )


@pytest.mark.parametrize("engine", FLAGS)
@pytest.mark.parametrize(
    ("model", "gpus", "options", "tensor", "context"),
    [
        # the plan is for 7, 5 and 4 of them
        ("GLM-4.5V", "8xH100", {"context": None}, 8, None),
        ("GLM-4.6V", "8xH100", {"context": 32768}, 8, 32768),
        ("GLM-4.5V", "8xH100", {"context": None, "objective": "fewest"}, 4, None),
        # five cannot share the layers, four can
        ("GLM-4.6V", "5x80GiB", {"context": None}, 4, None),
        # no plan is for the whole context, read at once
        ("GLM-4.5V", "4x80GiB", {"context": 65536}, 4, 65536),
        ("GLM-4.6V", "4x80GiB", {"context": None}, 4, None),
        ("GLM-4.5V", "4x80GiB+8GiB", {"context": 65536}, 4, 65536),
    ],
)
def test_equal_gpus_are_no_pipeline(engine, model, gpus, options, tensor, context):
    made = command(engine, model, gpus, **options)
    values = read(engine, made.words)
    assert values.get("tensor_parallel_size", values.get("tp_size")) == tensor
    assert not {"pipeline_parallel_size", "pp_size"} & set(values)
    assert made.environment["CUDA_VISIBLE_DEVICES"] == ",".join(map(str, range(tensor)))
    assert values.get("max_model_len", values.get("context_length")) == context
    assert bool(made.notes) == (options["context"] == 65536)
    for note in made.notes:
        assert f"among {tensor} GPUs and reads a prompt in pieces, about 58." in note


@pytest.mark.parametrize(
    ("gpus", "least", "most"), [("1x24GiB", 16384, 65535), ("24GiB+16GiB", 32768, 65535)]
)
def test_a_context_that_the_gpus_hold(gpus, least, most):
    made = command("vllm", "GLM-4.6V-Flash", gpus, context=None)
    assert least <= read("vllm", made.words)["max_model_len"] <= most


def test_a_refusal_has_no_ways_that_an_engine_does_not_have():
    for engine in FLAGS:
        with pytest.raises(DoesNotFitError, match=r"does not fit on 15\.52 GiB") as caught:
            command(engine, "GLM-4.1V-9B-Thinking", "1x16GiB")
        assert "no shorter context fits, the weights alone are 19.17 GiB." in str(caught.value)
        assert "offload" not in str(caught.value)
        assert "8bit" not in str(caught.value)
    assert "It takes more GPU memory: no" in str(caught.value)  # SGLang's
    assert command(engine, "GLM-4.1V-9B-Thinking", "1x32GiB").words


@pytest.mark.parametrize(
    ("model", "gpus", "options", "codes"),
    [
        ("GLM-4.1V-9B-Thinking", "1x16GiB", {}, {"four_bit_weights_fit"}),
        ("GLM-4V-9B", "1x20GiB", {"context": None}, {"four_bit_weights_fit"}),
        ("GLM-4.6V-Flash", "2x7GiB", {}, {"four_bit_weights_fit"}),  # divided
        (
            "GLM-4.1V-9B-Thinking", "1x24GiB", {"context": 65536},
            {"shorter_context_fits", "four_bit_weights_fit"},
        ),
        ("GLM-4.5V", "4x64GiB", {"context": 65536}, {"shorter_context_fits"}),
        ("GLM-4.1V-9B-Thinking", "1x8GiB", {}, set()),
        ("GLM-4.1V-9B-Thinking", "1x13GiB", {"quantize": "4bit", "context": 65536},
         {"shorter_context_fits"}),
        ("GLM-4.5V", "2x40GiB", {}, set()),
    ],
)  # fmt: skip
def test_every_way_out_of_vllm_can_be_taken(model, gpus, options, codes):
    with pytest.raises(DoesNotFitError) as caught:
        command("vllm", model, gpus, **options)
    said, ways = str(caught.value), caught.value.values.get("ways", ())
    assert {each.code for each in ways} == codes
    assert said.count("(1)") == bool(codes)
    for each in ways:
        taken = (
            {"quantize": "4bit"}
            if each.code == "four_bit_weights_fit"
            else {"context": each.values["context"]}
        )
        given = {**options, **taken}
        values = read("vllm", command("vllm", model, gpus, **given).words)
        quantised = "bitsandbytes" if "quantize" in given else None
        assert values.get("quantization") == quantised
        if "context" in taken:
            assert values["max_model_len"] == taken["context"]
            longer = {**options, "context": taken["context"] + 512}
            with pytest.raises(DoesNotFitError):
                command("vllm", model, gpus, **longer)
    if "four_bit_weights_fit" not in codes and "quantize" not in options:
        with pytest.raises(DoesNotFitError):
            command("vllm", model, gpus, **options, quantize="4bit")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_what_each_of_equal_gpus_holds(count):
    """Weights and cache are divided, the tower is whole, and a prompt is read in pieces."""
    shape = architecture("GLM-4.5V").shape()
    work = Workload(65536, dtype="bfloat16")
    units = price(shape, work)
    tower = sum(unit.weight_bytes for unit in units if unit.in_tower)
    rest = sum(unit.weight_bytes + unit.kv_bytes for unit in units) - tower
    size = shared_bytes(shape, work, count, 8)
    held = tower + rest / count
    assert held < size < held + 6 * 2**30
    assert shared_bytes(shape, work, 16, 8) - tower > rest / 16  # keys are copied


@pytest.mark.parametrize(
    ("engine", "model", "options", "said"),
    [
        ("sglang", "GLM-4V-9B", {}, "SGLang does not have GLM-4V-9B"),
        ("sglang", "GLM-4.1V-9B-Thinking", {"quantize": "4bit"}, "quantised already"),
        ("vllm", "GLM-4.1V-9B-Thinking", {"quantize": "8bit"}, "quantises to 4 bit"),
    ],
)
def test_what_an_engine_does_not_take(engine, model, options, said):
    with pytest.raises(OptionError, match=said):
        command(engine, model, "1x80GiB", **options)


def test_a_plan_that_offloads_is_for_our_own_server():
    with pytest.raises(OptionError, match="keeps layers in host memory, which vllm would not do"):
        command("vllm", "GLM-4V-9B", "1x16GiB", context=2048, offload=True)


SOURCES = {
    "vllm": r"vllm/(engine/arg_utils|entrypoints/(common|openai)/cli_args|envs)\.py",
    "sglang": r"sglang/srt/(server_args|arg_groups/fields/\w+|distributed/utils)\.py",
}


@pytest.mark.nightly
@pytest.mark.parametrize("engine", FLAGS)
def test_the_packages_have_each_flag(engine):
    folder = os.environ.get("GLM4V_WHEELS")
    if folder is None:
        pytest.skip("GLM4V_WHEELS is not set; make nightly-servers does")
    wheels = sorted(Path(folder).glob(f"{engine}-*.whl"))
    assert wheels
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as packed:
            names = [each for each in packed.namelist() if re.fullmatch(SOURCES[engine], each)]
            source = "\n".join(packed.read(each).decode() for each in names)
        # Written out, or made from the name of a field.
        fields = re.findall(r"^    ([a-z]\w+): ", source, re.MULTILINE)
        there = set(re.findall(r"--[a-z][a-z-]+", source))
        there |= {f"--{name.replace('_', '-')}" for name in fields}
        assert set(FLAGS[engine]) <= there, wheel.name
        for variable in VARIABLES[engine] - {"CUDA_VISIBLE_DEVICES"}:
            assert variable in source
