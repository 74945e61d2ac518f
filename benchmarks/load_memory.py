"""Host memory of a load beyond the model itself, next to plain `from_pretrained`.

    python benchmarks/load_memory.py [--shards N] [--layers N]

Writes a checkpoint of about 2 GB in GLM-4V-9B's own layout (its widths, few layers, weights of
zero) to a temporary folder, and loads it in a fresh interpreter for each line. Two destinations:

GPUs
    virtual GPUs without data: a weight is gone from this computer once it is on its GPU, as on a
    real machine, and every page of it is read on the way, as a real copy does. All that is
    resident beyond the imports is what the load itself keeps.
cpu
    real weights in host memory, widened from bfloat16 to float32 on the way; their own bytes do
    not count. (Without a change of dtype, plain `from_pretrained` would leave them in their files.)

"rss" is the peak of resident memory, less the imports and, on the CPU, the weights;
"anon" is the part of it that the kernel cannot take back at once, because it is not a mapped file.
Both are sampled every 2 ms. The goal is at most one shard.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MIB = 2**20
GPUS = "2x8GiB"
WAYS = ("plan", "from_pretrained")
DESTINATIONS = ("GPUs", "cpu")


def write_checkpoint(folder: Path, layers: int, shards: int) -> None:
    """Write a checkpoint of `layers` decoder layers, spread over `shards` files."""
    import torch
    from full_size import write_published

    def zeros(_: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16)

    tower = {"num_hidden_layers": 2}
    small = {"num_layers": layers, "padded_vocab_size": 16384, "vision_config": tower}
    write_published(folder, small, shards, zeros)


class Sampler:
    """Samples the peak of resident memory while it runs, in bytes."""

    def __init__(self) -> None:
        self.rss = self.anon = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def now(self) -> tuple[int, int]:
        """Return resident and anonymous bytes; Linux only."""
        status = Path("/proc/self/status").read_text(encoding="ascii")
        values = dict(line.split(":", 1) for line in status.splitlines())
        rss, anon = (int(values[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))
        self.rss, self.anon = max(self.rss, rss), max(self.anon, anon)
        return rss, anon

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            self.now()

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()


def read_pages_when_moved() -> None:
    """Read every page that is moved: without data, a virtual GPU would not read any."""
    from glm4v_magic.virtual_gpus.machine import Machine

    move = Machine.move

    def read_and_move(machine: Machine, tensor: Any, *rest: Any, **options: Any) -> Any:
        if type(tensor).__name__ != "VirtualTensor" and tensor.device.type == "cpu":
            content = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
            bytes(memoryview(content)[:: mmap.PAGESIZE])
        return move(machine, tensor, *rest, **options)

    Machine.move = read_and_move  # type: ignore[assignment,method-assign]


def load(way: str, destination: str, folder: Path) -> None:
    """Load once; print the bytes of rss and anon beyond the imports, and the seconds."""
    from contextlib import AbstractContextManager, nullcontext

    import torch

    from glm4v_magic.checkpoints import resolve
    from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig
    from glm4v_magic.checkpoints.glm4v_9b.modeling import Glm4v9bForConditionalGeneration
    from glm4v_magic.core.placement import PlacementOptions
    from glm4v_magic.engines import local
    from glm4v_magic.hardware.usable import usable_gpus
    from glm4v_magic.planning.decision import Placement, decide, make_plan
    from glm4v_magic.virtual_gpus import VirtualGPUs

    checkpoint = resolve(folder)
    on_gpus = destination == "GPUs"
    gpus: AbstractContextManager[object] = nullcontext()
    if on_gpus:
        gpus = VirtualGPUs(GPUS, values="none")
        read_pages_when_moved()
    dtype = "bfloat16" if on_gpus else "float32"
    plan = make_plan(checkpoint.architecture, PlacementOptions(gpus=GPUS, context=2048))
    device_map = plan.device_map() if on_gpus else None
    sampler = Sampler()
    with sampler, gpus:
        start, (rss, anon) = time.perf_counter(), sampler.now()
        if way == "plan":
            placement = Placement(dtype)
            if on_gpus:
                options = PlacementOptions(context=2048)
                placement = decide(checkpoint.architecture, options, usable_gpus(None))
            kept: Any = local.load(checkpoint, placement)
        else:
            kept = Glm4v9bForConditionalGeneration.from_pretrained(
                folder,
                config=Glm4v9bConfig.from_pretrained(folder),
                dtype=getattr(torch, dtype),
                device_map=device_map,
            )
        seconds = time.perf_counter() - start
        del kept
    print(json.dumps([sampler.rss - rss, sampler.anon - anon, seconds]))


def main() -> None:
    """Print a line for each way and destination."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--load", nargs=3, metavar=("WAY", "DESTINATION", "FOLDER"))
    options = parser.parse_args()
    if options.load:
        way, destination, folder = options.load
        load(way, destination, Path(folder))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_checkpoint(folder, options.layers, options.shards)
        sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
        print(f"{sum(sizes) / MIB:.0f} MiB in {len(sizes)} shards, largest {max(sizes) / MIB:.0f}")
        for destination in DESTINATIONS:
            for way in WAYS:
                command = [sys.executable, __file__, "--load", way, destination, temporary]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rss, anon, seconds = json.loads(done.stdout.splitlines()[-1])
                if destination == "cpu":
                    rss, anon = rss - 2 * sum(sizes), anon - 2 * sum(sizes)
                print(
                    f"{destination:6s} {way:16s} {seconds:6.1f} s   "
                    f"rss {rss / MIB:6.0f} MiB = {rss / max(sizes):5.2f} shards   "
                    f"anon {anon / MIB:6.0f} MiB = {anon / max(sizes):5.2f} shards"
                )


if __name__ == "__main__":
    main()
