"""Time of a load next to plain `from_pretrained` of the same files, in turn in one process.

    python benchmarks/load_time.py [--runs N] [--layers N] [--cpu-time] [--quick]

Writes a checkpoint of about 2 GB in GLM-4V-9B's own layout (its widths, few layers, weights of
zero) to a temporary folder and loads it to the CPU. Both sides end with a model and a processor
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
from ratios import describe
from transformers.utils import logging

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig
from glm4v_magic.checkpoints.glm4v_9b.modeling import Glm4v9bForConditionalGeneration
from glm4v_magic.checkpoints.glm4v_9b.processing import Glm4v9bProcessor, load_tokenizer
from glm4v_magic.engines import local
from glm4v_magic.planning.decision import Placement


def ours(folder: Path, dtype: str) -> Any:
    """Load as a session does."""
    return local.load(resolve(folder), Placement(dtype), arrived=lambda progress: None).model


def plain(folder: Path, dtype: str) -> Any:
    """Load with transformers alone, and build the processor."""
    config = Glm4v9bConfig.from_pretrained(folder)
    model = Glm4v9bForConditionalGeneration.from_pretrained(
        folder, config=config, dtype=getattr(torch, dtype)
    )
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    Glm4v9bProcessor(tokenizer, config)
    return model


def measured(
    load: Callable[[Path, str], Any], folder: Path, dtype: str, clock: Callable[[], float]
) -> tuple[float, float]:
    """Return the seconds of a load, and those with a look at every weight."""
    gc.collect()
    start = clock()
    model = load(folder, dtype)
    loaded = clock()
    for parameter in model.parameters():
        parameter.sum()
    return loaded - start, clock() - start


def compare(name: str, folder: Path, dtype: str, runs: int, clock: Callable[[], float]) -> None:
    """Print the lines of one checkpoint and dtype."""
    sides = {"ours": ours, "plain": plain}
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for load in sides.values():
        measured(load, folder, dtype, clock)  # the first of each is not counted
    for run in range(runs):
        # Each side comes first as often: what drifts meanwhile weighs on both.
        for side in list(sides) if run % 2 else reversed(sides):
            times[side].append(measured(sides[side], folder, dtype, clock))
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
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_checkpoint(folder, options.layers, shards=4)
        compare("four shards", folder, "bfloat16", options.runs, clock)
        if options.quick:
            return
        compare("four shards to float32", folder, "float32", options.runs, clock)
        shutil.rmtree(folder)
        folder.mkdir()
        write_checkpoint(folder, options.layers, shards=1)
        compare("one file", folder, "bfloat16", options.runs, clock)
        compare("one file to float32", folder, "float32", options.runs, clock)
        shutil.rmtree(folder)
        folder.mkdir()
        write_checkpoint(folder, max(options.layers // 2, 1), shards=1)
        widen(folder)
        compare("one file from float32", folder, "bfloat16", options.runs, clock)


if __name__ == "__main__":
    main()
