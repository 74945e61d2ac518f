"""Where benchmarks load a model, as ``--gpus`` says: on the GPUs that are there, or on the CPU."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.engines import local
from glm4v_magic.hardware.usable import usable_gpus
from glm4v_magic.planning.decision import Placement, decide

__all__ = ["add_gpus", "load_engine", "placement_of", "synchronise"]


def add_gpus(parser: argparse.ArgumentParser) -> None:
    """Add ``--gpus`` to the options of a benchmark."""
    parser.add_argument("--gpus", help="cpu, or GPUs to use such as 2x24GiB; by default all")


def placement_of(folder: str | Path, gpus: str | None, dtype: str | None = None) -> Placement:
    """Return where a session would put a model.

    Args:
        folder: its files.
        gpus: as given to ``--gpus``.
        dtype: its dtype; by default as the files say on GPUs, and float32 on the CPU.
    """
    found = usable_gpus(gpus)
    return decide(resolve(folder).architecture, PlacementOptions(dtype=dtype), found)


def load_engine(folder: str | Path, gpus: str | None, keep: int) -> local.LocalEngine:
    """Load a model and say where it is.

    Args:
        folder: its files.
        gpus: as given to ``--gpus``.
        keep: budget of the prefix cache in bytes.
    """
    engine = local.load(resolve(folder), placement_of(folder, gpus), keep=keep)
    size = engine.model.num_parameters() / 1e6
    devices = ", ".join(engine.info.devices)
    print(f"{size:.0f} million parameters in {engine.info.dtype} on {devices}", flush=True)
    return engine


def synchronise() -> None:
    """Wait until all GPUs have done what they were given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
