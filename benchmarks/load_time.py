"""Time of a load next to plain `from_pretrained` of the same files, in turn in one process.

    python benchmarks/load_time.py [--runs N] [--layers N] [--cpu-time] [--quick]
        [--gpus GPUS] [--checkpoint FOLDER]

Writes a checkpoint of about 2 GB in GLM-4V-9B's own layout (its widths, few layers, weights of
zero) to a temporary folder and loads it: to the GPUs, by the same device map, or to the CPU. Both
sides end with a model and a processor
that can encode a question. Our side finds the checkpoint, checks its files, and reports every
weight; the plain side is `from_pretrained` of configuration and model, and the same processor,
which has to be built by hand, as transformers has none for this layout. The files are in the
system's page cache: nothing is said about disks. The lines:

one file, four shards
    as bfloat16, the dtype of the files: both sides leave the weights in their files
to float32
    each weight is converted, which costs nearly all of the time
from float32
    a checkpoint in float32 of half the layers that is loaded as bfloat16

On GPUs there is a line for each number of files, in bfloat16.

"load" is the time until the model is returned, "read" until each of its weights has been looked at
once as well, as a first question does.
"""

from __future__ import annotations

import argparse
import gc
import operator
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from load_memory import write_checkpoint
from loading import add_gpus, placement_of, synchronise
from ratios import describe
from transformers.utils import logging

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig
from glm4v_magic.checkpoints.glm4v_9b.modeling import Glm4v9bForConditionalGeneration
from glm4v_magic.checkpoints.glm4v_9b.processing import Glm4v9bProcessor, load_tokenizer
from glm4v_magic.engines import local
from glm4v_magic.hardware.usable import usable_gpus
from glm4v_magic.planning.decision import Placement


def ours(folder: Path, placement: Placement) -> Any:
    """Load as a session does."""
    return local.load(resolve(folder), placement, arrived=lambda progress: None).model


def plain(folder: Path, placement: Placement) -> Any:
    """Load with transformers alone, and build the processor."""
    config = Glm4v9bConfig.from_pretrained(folder)
    model = Glm4v9bForConditionalGeneration.from_pretrained(
        folder,
        config=config,
        dtype=getattr(torch, placement.dtype),
        device_map=placement.device_map,
    )
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    Glm4v9bProcessor(tokenizer, config)
    return model


def measured(
    load: Callable[[Path, Placement], Any],
    folder: Path,
    placement: Placement,
    clock: Callable[[], float],
) -> tuple[float, float]:
    """Return the seconds of a load, and those with a look at every weight."""
    gc.collect()
    synchronise()
    start = clock()
    model = load(folder, placement)
    synchronise()
    loaded = clock()
    for parameter in model.parameters():
        parameter.sum()
    synchronise()
    return loaded - start, clock() - start


def compare(
    name: str, folder: Path, placement: Placement, runs: int, clock: Callable[[], float]
) -> None:
    """Print the lines of one checkpoint and placement."""
    sides = {"ours": ours, "plain": plain}
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for load in sides.values():
        measured(load, folder, placement, clock)  # the first of each is not counted
    for run in range(runs):
        # Each side comes first as often: what drifts meanwhile weighs on both.
        for side in list(sides) if run % 2 else reversed(sides):
            times[side].append(measured(sides[side], folder, placement, clock))
    for at, what in enumerate(("load", "read")):
        mine, base = (list(map(operator.itemgetter(at), times[side])) for side in sides)
        print(
            f"{name:24s} {what}  {1e3 * statistics.median(mine):7.0f} ms, from_pretrained "
            f"{1e3 * statistics.median(base):7.0f} ms   {describe(base, mine)}",
            flush=True,
        )


def widen(folder: Path) -> None:
    """Rewrite a checkpoint of one file in float32."""
    from safetensors.torch import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    wide = {name: tensor.float() for name, tensor in load_file(file).items()}
    file.unlink()  # its weights may be mapped
    save_file(wide, file, metadata={"format": "pt"})


def main() -> None:
    """Print how much sooner a model is loaded than with `from_pretrained`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="time of the processor instead of the clock's, on a computer that does other things",
    )
    parser.add_argument("--quick", action="store_true", help="the first line alone")
    parser.add_argument("--checkpoint", type=Path, help="a folder, instead of those written here")
    add_gpus(parser)
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    logging.disable_progress_bar()
    on_gpus = bool(usable_gpus(options.gpus))

    def line(name: str, folder: Path, dtype: str = "bfloat16") -> None:
        compare(name, folder, placement_of(folder, options.gpus, dtype), options.runs, clock)

    if options.checkpoint:
        line(options.checkpoint.name, options.checkpoint)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for shards, name in ((4, "four shards"), (1, "one file")):
            write_checkpoint(folder, options.layers, shards)
            line(name, folder)
            if options.quick:
                return
            if not on_gpus:
                line(f"{name} to float32", folder, "float32")
            emptied(folder)
        if not on_gpus:
            write_checkpoint(folder, max(options.layers // 2, 1), shards=1)
            widen(folder)
            line("one file from float32", folder)


def emptied(folder: Path) -> None:
    """Delete the files of a folder."""
    shutil.rmtree(folder)
    folder.mkdir()


if __name__ == "__main__":
    main()
