"""A model on machines that people have or rent: whether it fits, how, and how fast at most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from glm4v_magic.core.errors import DeviceMapError, OptionError, PlacementError
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.options import QUANTIZATIONS, Quantization
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.plan_text import rate
from glm4v_magic.planning.decision import make_plan, may_fit, refuse_for_any_gpu
from glm4v_magic.planning.held import longest_context
from glm4v_magic.planning.precision import INT8_FROM, any_below

if TYPE_CHECKING:
    from glm4v_magic.core.model import Architecture

__all__ = ["MACHINES", "MachineFit", "machine_rows", "machines"]

_SERVICES = (
    ("Colab, free", "T4"),
    ("Kaggle, free", "2xT4"),
    ("Kaggle, free", "P100"),
)
_MODELS = (
    "RTX-3060", "RTX-4060-Ti", "RTX-3090", "RTX-4090", "RTX-5090", "L4", "A10G", "L40S",
    "A100-40GB", "A100-80GB", "H100", "H200", "B200",
)  # fmt: skip
_COUNTS = (1, 2, 4, 8)

MACHINES = (
    *_SERVICES,
    *(("", f"{count}x{model}") for model in _MODELS for count in _COUNTS),
)
"""The service that offers each machine (empty for your own or rented GPUs), and its GPUs."""


@dataclass(frozen=True, slots=True)
class MachineFit:
    """A model on a machine.

    Attributes:
        where: service that offers the machine; empty for your own or rented GPUs.
        gpus: its GPUs.
        dtype: dtype that the model is computed in; ``None`` if it does not fit.
        quantize: quantisation that it takes to fit; ``None`` for none.
        fp8: whether weights that were published in FP8 stay so.
        offloads: whether layers are in host memory.
        context: longest context that fits, in tokens; 0 if it does not fit.
        tokens_per_second: upper bound by memory bandwidth, with an empty KV cache.
        expected_tokens_per_second: what a program is expected to reach of it.
    """

    where: str
    gpus: str
    dtype: str | None = None
    quantize: Quantization | None = None
    context: int = 0
    tokens_per_second: float | None = None
    fp8: bool = False
    offloads: bool = False
    expected_tokens_per_second: float | None = None

    @property
    def fits(self) -> bool:
        """Whether the model fits at all."""
        return self.context > 0

    def as_json(self) -> dict[str, object]:
        """Return the row as values of JSON."""
        return asdict(self) | {"fits": self.fits}


def machines(
    model: Architecture,
    options: PlacementOptions | None = None,
    among: Sequence[tuple[str, str]] = MACHINES,
) -> tuple[MachineFit, ...]:
    """Return how a model fits on each machine.

    In the published dtype if it fits, else with layers in host memory if that is allowed, else in 8
    bit if that holds the whole context and the GPUs have products for it, else in 4 bit; of a GPU
    without bfloat16 in float16. Weights that were published in FP8 stay so where the GPUs compute
    with it.

    Args:
        model: the model, without its weights.
        options: what it is used for, and how it is to be placed, as for a plan; its context is the
            longest of interest. The GPUs are those of the machines.
        among: the machines.

    Raises:
        OptionError: if the options do not suit the model, or have a size for each GPU.
        DeviceMapError: if a unit is pinned that the model does not have.
    """
    asked = options or PlacementOptions()
    if isinstance(asked.max_memory, tuple) and any(
        not isinstance(each, tuple) or each[0] != "cpu" for each in asked.max_memory
    ):
        raise OptionError(
            "max_memory has sizes for GPUs one by one, but machines have different numbers.",
            "Give one size for all.",
            option="max_memory",
        )
    shape = model.shape()
    most = shape.max_context if asked.context is None else asked.context
    work = replace(asked, context=most)
    refuse_for_any_gpu(model, work)
    forms = [replace(work, offload=False)] if asked.offload else [work]
    if asked.offload:
        forms.append(work)
    if asked.quantize is None and shape.quantizable:
        forms += [replace(forms[0], quantize=kind) for kind in QUANTIZATIONS]
    found = []
    for where, spec in among:
        gpus = parse_gpus(spec)
        fits = (_fit(model, gpus, form) for form in forms if _has_products(gpus, form, asked))
        fits = (fit for fit in fits if fit is not None and _is_enough(fit, work, asked))
        best = next(fits, None)
        found.append(
            MachineFit(where, spec) if best is None else replace(best, where=where, gpus=spec)
        )
    return tuple(found)


def _has_products(gpus: Sequence[GPU], form: PlacementOptions, asked: PlacementOptions) -> bool:
    """Tell whether GPUs compute fast in a form, or it was asked for."""
    return form.quantize in (asked.quantize, "4bit") or not any_below(INT8_FROM, gpus)


def _is_enough(fit: MachineFit, work: PlacementOptions, asked: PlacementOptions) -> bool:
    """Tell whether there is no need to look at 4 bits: 8 hold all of the context, or were asked."""
    return fit.quantize in (asked.quantize, "4bit") or fit.context == work.context


def _fit(model: Architecture, gpus: Sequence[GPU], options: PlacementOptions) -> MachineFit | None:
    most = options.context
    assert most is not None

    def holds(context: int) -> bool | None:
        try:
            return may_fit(model, replace(options, context=context), gpus)
        except OptionError:  # too short for the images
            return None
        except DeviceMapError:  # pinned to a GPU that is not there
            return False

    context = most if holds(most) else longest_context(0, most, holds)
    if not context or not holds(context):
        return None
    try:
        made = make_plan(model, replace(options, context=context), gpus)
    except PlacementError:  # more would be in host memory than it may
        return None
    speed = made.speed
    work, away = made.workload, any(stage.offloaded for stage in made.stages)
    return MachineFit(
        "",
        "",
        work.dtype,
        work.quantize,
        context,
        None if speed is None else speed.tokens_per_second,
        work.fp8,
        away,
        None if speed is None else speed.expected_tokens_per_second,
    )


def machine_rows(found: Sequence[MachineFit]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a table, the head first; counts that add nothing are left out."""
    yield ("GPUs", "fits in", "context", "at most tokens/s", "expect", "")
    before: MachineFit | None = None
    for fit in found:
        if before is not None and _same_model(before, fit) and _adds_nothing(before, fit):
            continue
        before = fit
        if not fit.fits:
            yield fit.gpus, "no", "", "", "", fit.where
            continue
        kept = "FP8" if fit.fp8 else fit.quantize
        form = ", ".join(filter(None, [fit.dtype, kept, "offloaded" if fit.offloads else None]))
        speeds = (fit.tokens_per_second, fit.expected_tokens_per_second)
        limit, expected = ("?" if speed is None else rate(speed) for speed in speeds)
        yield fit.gpus, form, f"{fit.context:,}", limit, expected, fit.where


def _same_model(one: MachineFit, other: MachineFit) -> bool:
    return one.gpus.partition("x")[2] == other.gpus.partition("x")[2] and not other.where


def _adds_nothing(fewer: MachineFit, more: MachineFit) -> bool:
    """Tell whether more GPUs change neither the form nor the context."""

    def told(fit: MachineFit) -> tuple[object, ...]:
        return fit.fits, fit.dtype, fit.quantize, fit.fp8, fit.offloads, fit.context

    return told(fewer) == told(more) and fewer.fits
