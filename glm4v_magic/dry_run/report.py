"""Results of a dry run, as plain data.

`dry_run.run` makes it, `dry_run.files` writes it as JSON and reads it back, `dry_run.text` puts it
into words, and `notebook.render.plans.dry_run` shows it in a notebook.
"""

from __future__ import annotations

from dataclasses import dataclass

from glm4v_magic.core.gpu_spec import device_name
from glm4v_magic.core.options import Quantization
from glm4v_magic.core.remarks import Remark

__all__ = ["DryRunReport", "GPUUse", "HopUse", "MixedDevices"]


@dataclass(frozen=True, slots=True)
class GPUUse:
    """Memory of one GPU at its fullest moment.

    Attributes:
        gpu: GPU index, as in ``cuda:<gpu>``.
        name: name of the GPU.
        capacity_bytes: memory that may be used.
        weight_bytes: weights and buffers that stay on it.
        kv_bytes: KV cache on it at the end.
        activation_bytes: rest of the peak: activations, copied weights of offloaded modules, or
            what a load needs beside the weights.
        overhead_bytes: CUDA context and workspaces, which a dry run does not see; 0 if idle.
        phase: phase of the peak: ``load``, ``prefill`` or ``decode``.
        module: module whose forward reached it; empty outside of any.
    """

    gpu: int
    name: str
    capacity_bytes: int
    weight_bytes: int = 0
    kv_bytes: int = 0
    activation_bytes: int = 0
    overhead_bytes: int = 0
    phase: str = ""
    module: str = ""

    @property
    def device(self) -> str:
        """The device's name in torch."""
        return device_name(self.gpu, self.name)

    @property
    def peak_bytes(self) -> int:
        """Peak bytes of tensors."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def total_bytes(self) -> int:
        """All memory that the GPU needs."""
        return self.peak_bytes + self.overhead_bytes

    @property
    def fullness(self) -> float:
        """`total_bytes` as a fraction of the capacity, which other programs may have used up."""
        return self.total_bytes / max(1, self.capacity_bytes)

    @property
    def short_bytes(self) -> int:
        """Missing bytes; 0 if the GPU is large enough."""
        return max(0, self.total_bytes - self.capacity_bytes)


@dataclass(frozen=True, slots=True)
class MixedDevices:
    """An operation on mixed devices, which CUDA refuses.

    Attributes:
        message: message of CUDA.
        operation: name of the operator, such as ``aten.add.Tensor``.
        module: module in whose forward it happened.
        source: ``file:line in function``, and the line itself.
        code: text of that line.
        devices: the two devices.
        phase: ``prefill`` or ``decode``.
        count: number of occurrences.
    """

    message: str
    operation: str
    module: str
    source: str
    code: str
    devices: tuple[str, str]
    phase: str
    count: int = 1

    def __str__(self) -> str:
        return _problem_line(self)


def _problem_line(problem: MixedDevices) -> str:
    where = problem.module or "no submodule"
    times = f", {problem.count} times" if problem.count > 1 else ""
    source = f"{problem.operation} in {where}, {problem.source}{times}"
    return f"{problem.phase}: {problem.message} ({source})"


@dataclass(frozen=True, slots=True)
class HopUse:
    """Copies between two devices, in the prefill and in one decode step.

    Attributes:
        source: device copied from.
        target: device copied to.
        prefill_copies, prefill_bytes: of the whole prefill.
        decode_copies, decode_bytes: of one decode step, the mean of all, rounded up.
    """

    source: str
    target: str
    prefill_copies: int
    prefill_bytes: int
    decode_copies: int
    decode_bytes: int


@dataclass(frozen=True, slots=True)
class DryRunReport:
    """Everything that a dry run found.

    Attributes:
        model: name of the checkpoint.
        dtype: dtype of weights and activations.
        placement: ``plan``, ``auto`` (transformers' own), or ``map``.
        images: images of each row.
        batch: number of rows.
        prompt_tokens: length of a row's prompt in tokens, visual ones included.
        decode_steps: number of decode steps after the prefill.
        gpus: use of each GPU, by index; none if everything is on the CPU and no GPU was given.
        copies: copies between devices, the CPU included.
        decode_hops: hops of a token in one decode step, from its id through all layers and back
            with its logits.
        problems: refused operations, in the order they happened.
        offloaded: modules whose weights stay in host memory.
        notes: what was done to the device map, and what differs from the published weights.
        quantize: quantisation of the text part's linear layers as they are loaded, if any.
        fp8: whether weights that were published in FP8 stay so.
        context: context length in tokens that prompt and decode steps fill. Visual tokens of some
            models share positions in it, so that a prompt may have more tokens than it takes.
    """

    model: str
    dtype: str
    placement: str
    images: int
    batch: int
    prompt_tokens: int
    decode_steps: int
    gpus: tuple[GPUUse, ...]
    copies: tuple[HopUse, ...]
    decode_hops: int
    problems: tuple[MixedDevices, ...] = ()
    offloaded: tuple[str, ...] = ()
    notes: tuple[Remark, ...] = ()
    quantize: Quantization | None = None
    fp8: bool = False
    context: int | None = None

    @property
    def form(self) -> str:
        """The dtype, and how the text part's linear layers are kept if otherwise."""
        kept = "FP8" if self.fp8 else self.quantize
        return self.dtype if kept is None else f"{self.dtype}, {kept}"

    @property
    def is_on_cpu(self) -> bool:
        """Whether nothing is on a GPU."""
        return not any(gpu.peak_bytes for gpu in self.gpus)

    @property
    def overfull(self) -> tuple[GPUUse, ...]:
        """GPUs that are too small."""
        return tuple(gpu for gpu in self.gpus if gpu.short_bytes)

    @property
    def works(self) -> bool:
        """Whether nothing would be refused and everything fits."""
        return not self.problems and not self.overfull

    @property
    def fullest(self) -> GPUUse:
        """The GPU that is fullest for its size."""
        return max(self.gpus, key=lambda gpu: gpu.fullness)

    def gpu_copies(self) -> tuple[int, int]:
        """Copies from GPU to GPU in the prefill and in one decode step."""
        between = [hop for hop in self.copies if "cpu" not in (hop.source, hop.target)]
        return sum(h.prefill_copies for h in between), sum(h.decode_copies for h in between)
