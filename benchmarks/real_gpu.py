"""What was planned for a GPU and what it does: memory, tokens per second, first token.

    python benchmarks/real_gpu.py [--small] [--folder DIR] [--tokens 128] [--contexts 2048,8192]

Writes GLM-4V-9B with random weights (26 GiB in bfloat16; once, if a folder is given), loads it on
the GPUs that are there, asks about an image, and prints

gpu
    what the driver says of the GPU, and what the table of GPUs says
bandwidth
    the bandwidth of its memory by the driver, and that of summing a large tensor
memory
    bytes by the plan and by the dry run, of tensors and with what CUDA takes; the peak of what
    tensors asked for, of what they were given, of what PyTorch reserved, and of the whole GPU
speed
    tokens/s and the time to the first token, with the limits of the plan and their ratio

``--small`` takes a model of 0.1 billion parameters, and without a GPU a virtual one: that tries the
script, and measures nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from larger import write_larger, write_random
from PIL import Image

import glm4v_magic
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.conversation import Usage
from glm4v_magic.core.gpu_models import gpu_model
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.model import Architecture
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.hardware.gpus import find_gpus
from glm4v_magic.hardware.usable import usable_gpus
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

GIB = 2**30
WORD = "word "
LARGE = 2**31  # values in bfloat16, 4 GiB


def gib(size: int) -> str:
    """Return bytes in GiB, as text."""
    return f"{size / GIB:.3f} GiB"


def describe_gpus() -> None:
    """Print what the driver and the table say of each GPU."""
    for found in find_gpus():
        model = gpu_model(found.name, found.total_bytes)
        table = "not in the table"
        if model is not None:
            table = (
                f"table: {model.name}, {model.memory_gib} GiB, {model.bandwidth / 1e9:.0f} GB/s, "
                f"{model.flops / 1e12:.0f} TFLOPS, {model.capability}"
            )
        print(
            f"gpu        {found.name}: {gib(found.total_bytes or 0)}, of which free "
            f"{gib(found.free_bytes or 0)}, {(found.bandwidth or 0) / 1e9:.0f} GB/s, "
            f"{found.capability}; {table}"
        )
    for line in by_nvml():
        print(f"gpu        {line}")


def by_nvml() -> Sequence[str]:
    """Return lines of what NVML says of bus and clocks."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # no driver, no library
        return [f"no NVML: {error}"]
    lines = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        asked = {
            "memory bus": lambda h: f"{pynvml.nvmlDeviceGetMemoryBusWidth(h)} bits",
            "memory clock": lambda h: f"{pynvml.nvmlDeviceGetMaxClockInfo(h, 2)} MHz",
            "SM clock": lambda h: f"{pynvml.nvmlDeviceGetMaxClockInfo(h, 1)} MHz",
            "power limit": lambda h: f"{pynvml.nvmlDeviceGetEnforcedPowerLimit(h) / 1000:.0f} W",
            "memory": lambda h: gib(pynvml.nvmlDeviceGetMemoryInfo(h).total),
        }
        said = []
        for name, ask in asked.items():
            try:
                said.append(f"{name} {ask(handle)}")
            except pynvml.NVMLError as error:
                said.append(f"{name}: {error}")
        lines.append("NVML: " + ", ".join(said))
    pynvml.nvmlShutdown()
    return lines


def bandwidth(values: int) -> float:
    """Return bytes per second of reading memory: the best of several sums of a large tensor."""
    tensor = torch.ones(values, dtype=torch.bfloat16, device="cuda:0")
    best = float("inf")
    for _ in range(8):
        torch.cuda.synchronize()
        began = time.perf_counter()
        tensor.sum()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return tensor.nbytes / best


def peaks() -> dict[str, int]:
    """Return the peaks of PyTorch's counters, and what the whole GPU holds now."""
    stats = torch.cuda.memory_stats(0)
    free, total = torch.cuda.mem_get_info(0)
    names = ("requested_bytes", "allocated_bytes", "reserved_bytes")
    found = {name.partition("_")[0]: int(stats.get(f"{name}.all.peak", 0)) for name in names}
    found["allocated"] = torch.cuda.max_memory_allocated(0)
    found["reserved"] = torch.cuda.max_memory_reserved(0)
    return found | {"whole GPU": total - free}


@dataclass(frozen=True)
class Measured:
    """Calls with one length of prompt and answer: peaks in bytes, and the usage of each."""

    context: int
    peaks: dict[str, int]
    usages: tuple[Usage, ...]


def asked(session: Session, words: int, tokens: int) -> Usage:
    """Ask about an image, with as many words as make the prompt long."""
    image = Image.effect_noise((1120, 1120), 50).convert("RGB")
    text = "What is in the image? " + WORD * words
    return session.ask(text, [image], max_tokens=tokens, temperature=0, min_p=None).usage


def measure(folder: Path, contexts: Sequence[int], tokens: int) -> Iterator[Measured]:
    """Load the model and yield what calls take that fill each of the contexts."""
    shape = architecture(folder).shape()
    began = time.perf_counter()
    session = glm4v_magic.load(folder, context=max(contexts), keep=0)
    print(f"load       {time.perf_counter() - began:.1f} s", flush=True)
    engine: Any = session.engine
    engine.defaults.eos_token_id = []
    few = asked(session, 0, 8).text_tokens or 0  # the first call loads kernels
    per_word = ((asked(session, 100, 1).text_tokens or 0) - few) // 100
    for context in contexts:
        words = (context - shape.image_positions - few - tokens) // per_word
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(0)
        usages = tuple(asked(session, words, tokens) for _ in range(2))
        used = (usages[0].text_tokens or 0) + shape.image_positions + tokens
        yield Measured(used, peaks(), usages)
    session.unload()


def compare(found: Architecture, gpus: Sequence[GPU], measured: Measured) -> None:
    """Print memory and speed of calls beside plan and dry run."""
    made = make_plan(found, PlacementOptions(context=measured.context), gpus)
    stage = made.stages[0]
    dry = dry_run(found, gpus, made, decode_steps=1).gpus[0]
    tensors, whole = stage.total_bytes - stage.overhead_bytes, stage.total_bytes
    first = measured.usages[0]
    print(f"context    {measured.context} tokens, and {first.visual_tokens} of the image")
    print(f"memory     plan: tensors {gib(tensors)}, with what CUDA takes {gib(whole)}")
    print(f"           dry run: tensors {gib(dry.peak_bytes)}")
    for name, size in measured.peaks.items():
        ratios = " ".join(
            f"{size / planned:.4f} of {what}"
            for what, planned in (
                ("the plan's tensors", tensors),
                ("the plan", whole),
                ("the dry run's tensors", dry.peak_bytes),
            )
        )
        print(f"           {name} {gib(size)}: {ratios}")
    rate = max(usage.tokens_per_second or 0.0 for usage in measured.usages)
    wait = min(usage.time_to_first_token or 0.0 for usage in measured.usages)
    print(f"speed      {rate:.1f} tokens/s, first token after {wait:.3f} s")
    speed = made.speed
    if speed is not None and speed.tokens_per_second and speed.full_tokens_per_second:
        empty, full = speed.tokens_per_second, speed.full_tokens_per_second
        print(
            f"           at most {empty:.1f} tokens/s, {full:.1f} with all of the context: "
            f"ratio {rate / empty:.3f}, {rate / full:.3f}"
        )
    if speed is not None and speed.prefill_seconds:
        print(
            f"           first token after at least {speed.prefill_seconds:.3f} s: "
            f"ratio {speed.prefill_seconds / wait:.3f}",
            flush=True,
        )


def main() -> None:
    """Write the checkpoint if it is not there, and print what is compared."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="a small model")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is to be written")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to generate")
    parser.add_argument("--contexts", default="2048,8192", help="tokens of context")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "config.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            began = time.perf_counter()
            if options.small:
                write_larger(folder, visual_tokens=402)
            else:
                config = architecture("GLM-4V-9B").config
                write_random(folder, config, "cuda" if torch.cuda.is_available() else "cpu")
            size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            print(f"written    {gib(size)} in {time.perf_counter() - began:.1f} s")
        describe_gpus()
        virtual = stack.enter_context(ExitStack())
        if not torch.cuda.is_available():
            virtual.enter_context(
                VirtualGPUs([GPU(0, "H200", 140 * GIB, bandwidth=4917 * 10**9)], available=True)
            )
        gpus = usable_gpus(None)
        reached = bandwidth(LARGE if not options.small else 2**20)
        by_driver = (gpus[0].bandwidth or 0) / 1e9
        print(f"bandwidth  {by_driver:.0f} GB/s by the driver, {reached / 1e9:.0f} GB/s of a sum")
        torch.cuda.empty_cache()
        contexts = [int(each) for each in options.contexts.split(",")]
        measured = list(measure(folder, contexts, options.tokens))
        virtual.close()
        for each in measured:
            compare(architecture(folder), gpus, each)


if __name__ == "__main__":
    main()
