"""A model on machines that people have or rent: whether it fits, how, and how fast at most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.model_shape import ModelShape, Workload
from glm4v_magic.core.options import OBJECTIVES, Quantization
from glm4v_magic.core.plan_text import rate
from glm4v_magic.planning.costs import GPU_OVERHEAD
from glm4v_magic.planning.plan import plan, require_workload
from glm4v_magic.planning.precision import precision
from glm4v_magic.planning.search import Task, can_fit

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
_STEP = 256  # tokens of context

MACHINES = (
    *_SERVICES,
    *(("", f"{count}x{model}") for model in _MODELS for count in _COUNTS),
)
"""Where it is, if it is a service, and its GPUs."""


@dataclass(frozen=True, slots=True)
class MachineFit:
    """A model on a machine.

    Attributes:
        where: service that offers the machine; empty for GPUs of one's own or rented ones.
        gpus: its GPUs.
        dtype: dtype that the model is computed in; ``None`` if it does not fit.
        quantize: quantisation that it takes to fit; ``None`` for none.
        fp8: whether weights that were published in FP8 stay so.
        context: longest context that fits, in tokens; 0 if it does not fit.
        tokens_per_second: limit by memory bandwidth, with an empty KV cache.
    """

    where: str
    gpus: str
    dtype: str | None = None
    quantize: Quantization | None = None
    context: int = 0
    tokens_per_second: float | None = None
    fp8: bool = False

    @property
    def fits(self) -> bool:
        """Whether the model fits at all."""
        return self.context > 0

    def as_json(self) -> dict[str, object]:
        """Return the row as values of JSON."""
        return asdict(self) | {"fits": self.fits}


def machines(
    shape: ModelShape,
    workload: Workload | None = None,
    among: Sequence[tuple[str, str]] = MACHINES,
) -> tuple[MachineFit, ...]:
    """Return how a model fits on each machine.

    In the published dtype if it fits, else in 4 bit; of a GPU without bfloat16 in float16. Weights
    that were published in FP8 stay so where the GPUs compute with it.

    Args:
        shape: sizes of the model.
        workload: images, batch, dtype and quantisation; its context is the longest of interest.
        among: the machines.

    Raises:
        OptionError: if the workload does not suit the model.
    """
    work = workload or Workload()
    most = shape.max_context if work.context is None else work.context
    require_workload(shape, replace(work, context=most))
    found = []
    for where, spec in among:
        gpus = parse_gpus(spec)
        forms: list[Quantization | None] = [work.quantize]
        if work.quantize is None and shape.quantizable:
            forms.append("4bit")
        fits = (_fit(shape, gpus, replace(work, quantize=form), most) for form in forms)
        best = next((fit for fit in fits if fit is not None), None)
        found.append(
            MachineFit(where, spec) if best is None else replace(best, where=where, gpus=spec)
        )
    return tuple(found)


def _fit(shape: ModelShape, gpus: Sequence[GPU], work: Workload, most: int) -> MachineFit | None:
    held = precision(shape, gpus, work.dtype, work.quantize)
    work = replace(work, dtype=held.dtype, fp8=held.fp8)

    def task(context: int) -> Task:
        return Task(
            shape, tuple(gpus), replace(work, context=context), OBJECTIVES[0], None, GPU_OVERHEAD,
            {}, True, None,
        )  # fmt: skip

    def holds(context: int) -> bool | None:
        try:
            return can_fit(task(context))
        except OptionError:  # too short for the images
            return None

    context = most
    if not holds(most):
        low, high = 0, most // _STEP + 1
        while low + 1 < high:
            middle = (low + high) // 2
            if holds(middle * _STEP) is False:
                high = middle
            else:
                low = middle
        context = low * _STEP
    if not context or not holds(context):
        return None
    speed = plan(shape, gpus, replace(work, context=context)).speed
    limit = None if speed is None else speed.tokens_per_second
    return MachineFit("", "", held.dtype, work.quantize, context, limit, held.fp8)


def machine_rows(found: Sequence[MachineFit]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a table, the head first; counts that add nothing are left out."""
    yield ("GPUs", "fits in", "context", "at most tokens/s", "")
    before: MachineFit | None = None
    for fit in found:
        if before is not None and _same_model(before, fit) and _adds_nothing(before, fit):
            continue
        before = fit
        if not fit.fits:
            yield fit.gpus, "no", "", "", fit.where
            continue
        kept = "FP8" if fit.fp8 else fit.quantize
        form = f"{fit.dtype}, {kept}" if kept else str(fit.dtype)
        limit = "?" if fit.tokens_per_second is None else rate(fit.tokens_per_second)
        yield fit.gpus, form, f"{fit.context:,}", limit, fit.where


def _same_model(one: MachineFit, other: MachineFit) -> bool:
    return one.gpus.partition("x")[2] == other.gpus.partition("x")[2] and not other.where


def _adds_nothing(fewer: MachineFit, more: MachineFit) -> bool:
    """Tell whether more GPUs change neither the form nor the context."""
    told = (fewer.fits, fewer.dtype, fewer.quantize, fewer.fp8, fewer.context)
    more_told = (more.fits, more.dtype, more.quantize, more.fp8, more.context)
    return told == more_told and fewer.fits
