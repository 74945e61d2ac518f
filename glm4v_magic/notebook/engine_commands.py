"""Commands that start a server for a model, with the flags that our plan implies.

The flags are those that the engines have: vLLM from 0.19 to 0.33 (``vllm/engine/arg_utils.py``,
``vllm/envs.py``), SGLang from 0.5.7 to 0.5.23 (``sglang/srt/server_args.py``, later
``sglang/srt/arg_groups/fields``). ``make nightly-servers`` reads them in the packages.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from glm4v_magic.core.errors import DoesNotFitError, OptionError
from glm4v_magic.core.gpu_spec import ANY_CPU, CPU, GPU
from glm4v_magic.core.model import Sized
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.remarks import Remark, remark
from glm4v_magic.core.stage import Stage
from glm4v_magic.core.wording import counted, one_unit, sized
from glm4v_magic.planning.costs import price
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.held import least_context, longest_context
from glm4v_magic.planning.precision import precision
from glm4v_magic.planning.shared import shared_bytes
from glm4v_magic.planning.shortfall import refused

__all__ = ["EngineCommand", "Wanted", "command_of", "with_gpus"]

_LAYER = "layer."
_WHOLE_TOWER = {
    "vllm": ("--mm-encoder-tp-mode", "data"),
    "sglang": ("--mm-enable-dp-encoder",),
}
"""Flags that give each GPU the whole vision tower, and its share of the images instead."""
_EQUAL = 0.05  # GPUs whose sizes differ by less than this share are alike
_FILLED = 0.9
"""Share of a GPU that engines fill by default (``--gpu-memory-utilization`` of vLLM)."""
_NOT_THEIRS = {
    "vllm": ("eight_bit_fits", "four_bit_fits", "four_bit_and_offloading_fit", "offloading"),
    "sglang": ("eight_bit_fits", "four_bit", "offloading"),
}
"""Beginnings of the codes of what an engine does not have, or has in another way than our own."""
_OF_CONTEXT = ("no_context_fits", "no_shorter_context_fits", "shorter_context_fits")
_TITLES = {"vllm": "vLLM", "sglang": "SGLang"}
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
        plan: plan for it; ``None`` leaves the GPUs to the engine, or to `shared`.
        context: longest context; ``None`` for the model's.
        images: most images of a prompt.
        quantize: quantisation as the model is loaded.
        revision: commit, branch or tag.
        host: where to listen.
        port: port.
        thinks: whether the model thinks before it answers.
        own: options of our own server, as they are typed.
        shared: GPUs that share every layer; empty for those of the plan, layer by layer.
        dtype: dtype of the weights; ``None`` leaves it to the engine.
        notes: as of a command.
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
    shared: tuple[int, ...] = ()
    dtype: str | None = None
    notes: tuple[str, ...] = ()

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
    words += _unless(None, "--dtype", wanted.dtype)
    words += _unless(None, "--quantization", wanted.quantize and "bitsandbytes")
    words += _unless(None, "--revision", wanted.revision)
    if wanted.is_old:
        overrides = json.dumps({"architectures": [_OLD_IN_VLLM]})
        words += ["--trust-remote-code", "--hf-overrides", overrides]
    words += _thoughts(wanted)
    notes = (*wanted.notes, *(_NOTES if wanted.quantize else ()))
    return EngineCommand(tuple(words), environment, notes)


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
    words += _unless(None, "--dtype", wanted.dtype)
    words += _unless(None, "--revision", wanted.revision)
    words += _thoughts(wanted)
    return EngineCommand(tuple(words), environment, wanted.notes)


def _thoughts(wanted: Wanted) -> list[str]:
    return ["--reasoning-parser", _PARSER] if wanted.thinks else []


def _tower(wanted: Wanted, engine: str, tensor: int) -> tuple[str, ...]:
    heads = _number(wanted.config, "vision_config", "num_heads")
    return _WHOLE_TOWER[engine] if heads % tensor else ()


def _unless(default: object, flag: str, value: object) -> list[str]:
    return [] if value == default or value is None else [flag, str(value)]


def with_gpus(
    engine: str,
    wanted: Wanted,
    model: Sized,
    options: PlacementOptions,
    gpus: Sequence[GPU],
    cpu: CPU = ANY_CPU,
) -> Wanted:
    """Return what is wanted with the GPUs for it.

    Equal GPUs share every layer: as many as our plan uses, or the next number among which the
    layers can be divided. Other GPUs get layers of their own, as the plan gives them. A plan reads
    a prompt at once, which takes more memory than an engine needs, so where no plan fits, the
    GPUs are those that hold what an engine has on them.

    Args:
        engine: ``vllm`` or ``sglang``.
        wanted: what is to be served.
        model: the model.
        options: placement options; the description of the GPUs is in `gpus` already.
        gpus: the GPUs to choose from.
        cpu: the CPU of the machine.

    Raises:
        DoesNotFitError: if the model fits in neither way.
        OptionError: as `make_plan`.
    """
    shape = model.shape()
    try:
        plan: Plan | None = make_plan(model, options, gpus, cpu=cpu)
        best, refusal = plan, None
    except DoesNotFitError as error:
        plan, best, refusal = None, error.plan, error
    stages = [] if best is None else [each for each in best.stages if each.gpu is not None]
    used = [each for each in stages if each.units]
    alike = _alike(used, stages)
    if plan is not None:
        work = replace(plan.workload, image_size=options.image_size)
    else:
        held = precision(shape, gpus, options.dtype, options.quantize, cpu=cpu)
        work = replace(options.workload, dtype=held.dtype, fp8=held.fp8)
    if shape.keeps_fp8:  # an engine does, on GPUs without FP8, too
        work = replace(work, fp8=True)
    room = min((each.capacity_bytes or 0 for each in alike), default=0) * _FILLED
    base = max((each.overhead_bytes for each in used), default=0)
    least = least_context(shape, work) if plan is None else plan.workload.context
    shortest = options.context or min(least or shape.max_context, shape.max_context)

    def need(count: int, context: int) -> int:
        asked = replace(work, context=context)
        return base + shared_bytes(shape, asked, count, _keys(wanted.config, count))

    counts = [count for count in range(1, len(alike) + 1) if _can_share(wanted, count)]
    fewest = 0 if options.objective == "fewest" or plan is None else len(used)
    enough = [count for count in counts if 0 < fewest <= count]
    if not enough:
        enough = [count for count in counts if need(count, shortest) <= room]
    if not enough:
        if refusal is not None:
            shorter = _shorter(shortest, room, counts, need)
            four_bit = _four_bit(engine, wanted, model, options, gpus, cpu, work)
            raise _refused(engine, refusal, shorter, four_bit)
        return replace(wanted, plan=plan, context=_kept(plan, options), dtype=work.dtype)
    count, context = enough[0], options.context
    longest = shape.max_context
    if context is None and shortest < longest and need(count, longest) > room:
        context = longest_context(shortest, longest, lambda n: need(count, n) <= room)
    notes = wanted.notes
    if refusal is not None:
        size = sized(need(count, context or longest))
        notes += (
            f"Our own engine would need more: {_TITLES[engine]} divides every layer among "
            f"{counted(count, 'GPU')} and reads a prompt in pieces, about {size} on each.",
        )
    shared = tuple(sorted(each.gpu for each in alike[:count] if each.gpu is not None))
    return replace(wanted, plan=plan, context=context, shared=shared, dtype=work.dtype, notes=notes)


def _kept(plan: Plan | None, options: PlacementOptions) -> int | None:
    """Return the context of a plan that is not for the model's longest, or that was asked for."""
    is_shorter = plan is not None and any(n.code == "context_shortened" for n in plan.notes)
    return plan.workload.context if plan is not None and is_shorter else options.context


def _alike(used: Sequence[Stage], stages: Sequence[Stage]) -> list[Stage]:
    """Return the GPUs in use and the idle ones as large, if those in use are alike."""
    sizes = [each.capacity_bytes or 0 for each in used]
    if not sizes or min(sizes) < (1 - _EQUAL) * max(sizes):
        return []
    idle = [each for each in stages if not each.units]
    return [*used, *(e for e in idle if (e.capacity_bytes or 0) >= (1 - _EQUAL) * max(sizes))]


def _refused(
    engine: str, error: DoesNotFitError, shorter: Remark | None, four_bit: Remark | None
) -> DoesNotFitError:
    """Return the refusal of a plan with what an engine has instead of our own ways out."""
    named: list[Any] = [each for name in ("ways", "reasons") for each in _several(error, name)]
    ours = [each.values["context"] for each in named if each.code == "shorter_context_fits"]
    if shorter is not None and ours and ours[0] >= shorter.values["context"]:
        shorter = None
    left = _NOT_THEIRS[engine]
    left += () if shorter is None else _OF_CONTEXT
    left += () if four_bit is None else ("four_bit",)
    ways = [each for each in named if not each.code.startswith(left)]
    ways = [each for each in (shorter, *ways, four_bit) if each is not None]
    return refused(error.what, ways) if ways else error


def _several(error: DoesNotFitError, name: str) -> tuple[Any, ...]:
    found = error.values.get(name, ())
    return found if isinstance(found, tuple) else ()


def _shorter(
    context: int, room: float, counts: Sequence[int], need: Callable[[int, int], int]
) -> Remark | None:
    """Return the longest context for which an engine has room where it divides every layer."""

    def least(length: int) -> int | None:
        try:
            return min((need(count, length) for count in counts), default=None)
        except OptionError:  # too short for the images
            return None

    def holds(length: int) -> bool | None:
        size = least(length)
        return None if size is None else size <= room

    longest = longest_context(0, context, holds)
    size = least(longest) if longest else None
    if size is None or size > room:
        return None
    fullness = f"{size / room * _FILLED:.0%}"
    return remark("shorter_context_fits", context=longest, fullness=fullness)


def _four_bit(
    engine: str,
    wanted: Wanted,
    model: Sized,
    options: PlacementOptions,
    gpus: Sequence[GPU],
    cpu: CPU,
    work: Workload,
) -> Remark | None:
    """Return that weights in 4 bit fit, if the engine makes them and they do."""
    if engine != "vllm" or options.quantize is not None or not model.shape().quantizable:
        return None
    try:
        smaller = replace(options, quantize="4bit")
        command_of(
            engine,
            with_gpus(engine, replace(wanted, quantize="4bit"), model, smaller, gpus, cpu),
        )
    except (DoesNotFitError, OptionError):
        return None
    size, before = one_unit(
        *(
            sum(unit.weight_bytes for unit in price(model.shape(), each))
            for each in (replace(work, quantize="4bit"), work)
        )
    )
    return remark("four_bit_weights_fit", size=size, before=before)


def _split(wanted: Wanted, engine: str) -> tuple[dict[str, str], int, int]:
    """Return environment variables, and the sizes of the tensor and the pipeline parallel group."""
    if wanted.shared:
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, wanted.shared))}, len(wanted.shared), 1
    stages = [] if wanted.plan is None else [each for each in wanted.plan.stages if each.units]
    gpus = [each.gpu for each in stages if each.gpu is not None]
    if not gpus:
        return {}, 1, 1
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    if len(gpus) == 1:
        return environment, 1, 1
    layers = [sum(unit.startswith(_LAYER) for unit in each.units) for each in stages]
    if 0 in layers:
        raise OptionError(
            f"A GPU of the plan has no layer of the text part, which {engine} does not do.",
            "Describe fewer GPUs (--gpus), or take --engine own.",
        )
    environment[_PARTITION[engine]] = ",".join(map(str, layers))
    return environment, 1, len(gpus)


def _keys(config: Mapping[str, Any], count: int) -> int:
    text = config.get("text_config", config)
    return text.get("num_key_value_heads") or text.get("multi_query_group_num") or count


def _can_share(wanted: Wanted, count: int) -> bool:
    """Tell whether each layer can be divided among so many GPUs.

    Both engines want the heads, the rows of the feed-forward part, and, in FP8 by block, its blocks
    divided evenly. Heads of keys are divided, or else each is copied to as many GPUs.
    """
    config = wanted.config
    text = config.get("text_config", config)
    keys = _keys(config, count)
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
