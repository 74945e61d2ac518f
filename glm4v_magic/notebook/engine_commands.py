"""Commands that start a server for a model, with the flags that our plan implies.

The flags are those that the engines have: vLLM from 0.19 to 0.33 (``vllm/engine/arg_utils.py``,
``vllm/envs.py``), SGLang from 0.5.7 to 0.5.23 (``sglang/srt/server_args.py``, later
``sglang/srt/arg_groups/fields``). ``make nightly-servers`` reads them in the packages.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.plan import Plan

__all__ = ["EngineCommand", "Wanted", "command_of"]

_LAYER = "layer."
_WHOLE_TOWER = {
    "vllm": ("--mm-encoder-tp-mode", "data"),
    "sglang": ("--mm-enable-dp-encoder",),
}
"""Flags that give each GPU the whole vision tower, and its share of the images instead."""
_EQUAL = 0.05  # GPUs whose sizes differ by less than this share are alike
_ROWS = ("intermediate_size", "moe_intermediate_size", "ffn_hidden_size")
_OLD = "ChatGLMModel"
_OLD_IN_VLLM = "GLM4VForCausalLM"
_PARSER = "glm45"
"""Parser of the thinking of GLM-4.1V and all later ones, in both engines."""

_PARTITION = {"vllm": "VLLM_PP_LAYER_PARTITION", "sglang": "SGLANG_PP_LAYER_PARTITION"}


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """A command that starts a server.

    Attributes:
        words: program and arguments.
        environment: environment variables that it needs, beside those that are set.
        notes: what else to know of it, a sentence each.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the line that starts it, also on another machine."""
        words = ["python" if word == sys.executable else word for word in self.words]
        set_here = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*set_here, shlex.join(words)])


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be served.

    Attributes:
        model: folder or repository; for our own server also another name that it knows.
        config: its parsed ``config.json``.
        plan: plan for it; ``None`` leaves the GPUs to the engine.
        context: context length that was asked for.
        images: most images of a prompt.
        quantize: quantisation as the model is loaded.
        revision: commit, branch or tag.
        host: where to listen.
        port: port.
        thinks: whether the model thinks before it answers.
        own: options of our own server, as they are typed.
    """

    model: str
    config: Mapping[str, Any]
    plan: Plan | None
    context: int | None
    images: int
    quantize: str | None
    revision: str | None
    host: str
    port: int
    thinks: bool = False
    own: Sequence[str] = ()

    @property
    def is_old(self) -> bool:
        """Whether it is GLM-4V-9B in its published layout."""
        return _OLD in self.config.get("architectures", ())


def command_of(engine: str, wanted: Wanted) -> EngineCommand:
    """Return the command that starts an engine.

    Raises:
        OptionError: if the engine does not take what is wanted.
    """
    if engine == "own":
        words = (sys.executable, "-m", "glm4v_magic.server", wanted.model, *wanted.own)
        return EngineCommand(words)
    if wanted.plan is not None and any(stage.offloaded for stage in wanted.plan.stages):
        raise OptionError(
            f"The plan keeps layers in host memory, which {engine} would not do.",
            "Leave --offload out, or take --engine own.",
        )
    return _vllm(wanted) if engine == "vllm" else _sglang(wanted)


def _vllm(wanted: Wanted) -> EngineCommand:
    if wanted.quantize == "8bit":
        raise OptionError(
            "vLLM quantises to 4 bit as it loads, not to 8.",
            "Take --quantize 4bit, or --engine own.",
        )
    words = ["vllm", "serve", wanted.model, "--host", wanted.host, "--port", str(wanted.port)]
    environment, tensor, pipeline = _split(wanted, "vllm")
    words += _unless(1, "--tensor-parallel-size", tensor)
    words += _unless(1, "--pipeline-parallel-size", pipeline)
    words += _tower(wanted, "vllm", tensor)
    words += _unless(None, "--max-model-len", wanted.context)
    words += ["--limit-mm-per-prompt", json.dumps({"image": wanted.images})]
    words += _unless(None, "--dtype", None if wanted.plan is None else wanted.plan.workload.dtype)
    words += _unless(None, "--quantization", wanted.quantize and "bitsandbytes")
    words += _unless(None, "--revision", wanted.revision)
    if wanted.is_old:
        overrides = json.dumps({"architectures": [_OLD_IN_VLLM]})
        words += ["--trust-remote-code", "--hf-overrides", overrides]
    words += _thoughts(wanted)
    return EngineCommand(tuple(words), environment, _NOTES if wanted.quantize else ())


_NOTES = ("vLLM has --quantization bitsandbytes until its version 0.27.",)


def _sglang(wanted: Wanted) -> EngineCommand:
    if wanted.is_old:
        raise OptionError(
            "SGLang does not have GLM-4V-9B.", "Take --engine vllm or own, or a newer model."
        )
    if wanted.quantize:
        raise OptionError(
            "SGLang takes a checkpoint that is quantised already.",
            "Leave --quantize out, or take --engine vllm or own.",
        )
    words = [sys.executable, "-m", "sglang.launch_server", "--model-path", wanted.model]
    words += ["--host", wanted.host, "--port", str(wanted.port)]
    environment, tensor, pipeline = _split(wanted, "sglang")
    words += _unless(1, "--tp-size", tensor)
    words += _unless(1, "--pp-size", pipeline)
    words += _tower(wanted, "sglang", tensor)
    words += _unless(None, "--context-length", wanted.context)
    words += ["--limit-mm-data-per-request", json.dumps({"image": wanted.images})]
    words += _unless(None, "--dtype", None if wanted.plan is None else wanted.plan.workload.dtype)
    words += _unless(None, "--revision", wanted.revision)
    words += _thoughts(wanted)
    return EngineCommand(tuple(words), environment)


def _thoughts(wanted: Wanted) -> list[str]:
    return ["--reasoning-parser", _PARSER] if wanted.thinks else []


def _tower(wanted: Wanted, engine: str, tensor: int) -> tuple[str, ...]:
    heads = _number(wanted.config, "vision_config", "num_heads")
    return _WHOLE_TOWER[engine] if heads % tensor else ()


def _unless(default: object, flag: str, value: object) -> list[str]:
    return [] if value == default or value is None else [flag, str(value)]


def _split(wanted: Wanted, engine: str) -> tuple[dict[str, str], int, int]:
    """Return environment variables, and the sizes of the tensor and the pipeline parallel group.

    Equal GPUs share every layer, if it can be divided among them. Others get layers of their own,
    as many as the plan gives them.
    """
    plan = wanted.plan
    stages = [] if plan is None else [each for each in plan.stages if each.units]
    gpus = [each.gpu for each in stages if each.gpu is not None]
    if not gpus:
        return {}, 1, 1
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    count = len(gpus)
    sizes = [each.capacity_bytes or 0 for each in stages]
    are_alike = min(sizes) >= (1 - _EQUAL) * max(sizes)
    if count == 1 or (are_alike and _can_share(wanted, count)):
        return environment, count, 1
    layers = [sum(unit.startswith(_LAYER) for unit in each.units) for each in stages]
    if 0 in layers:
        raise OptionError(
            f"A GPU of the plan has no layer of the text part, which {engine} does not do.",
            "Describe fewer GPUs (--gpus), or take --engine own.",
        )
    environment[_PARTITION[engine]] = ",".join(map(str, layers))
    return environment, 1, count


def _can_share(wanted: Wanted, count: int) -> bool:
    """Tell whether each layer can be divided among so many GPUs.

    Both engines want the heads, the rows of the feed-forward part, and, in FP8 by block, its blocks
    divided evenly. Heads of keys are divided, or else each is copied to as many GPUs.
    """
    config = wanted.config
    text = config.get("text_config", config)
    keys = text.get("num_key_value_heads") or text.get("multi_query_group_num") or count
    block = (config.get("quantization_config") or {}).get("weight_block_size") or (1,)
    rows = [text[name] for name in _ROWS if text.get(name)]
    # vLLM divides the vision tower of GLM-4V-9B, too.
    tower = _number(config, "vision_config", "num_heads") if wanted.is_old else 0
    return (
        _number(config, "text_config", "num_attention_heads") % count == 0
        and (keys % count == 0 or count % keys == 0)
        and all(each % (count * block[0]) == 0 for each in rows)
        and tower % count == 0
    )


def _number(config: Mapping[str, Any], part: str, name: str) -> int:
    return int(config.get(part, config).get(name, 1))
