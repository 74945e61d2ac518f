"""What the command lines of both trainings share."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable
from pathlib import Path

__all__ = ["parser"]


def parser(
    doc: str | None, kinds: Iterable[str], *, minutes_whole: float, chinese: float
) -> argparse.ArgumentParser:
    """Return a parser of what every training takes.

    Args:
        doc: what ``--help`` says.
        kinds: kinds of questions that ``--more`` knows.
        minutes_whole: length of stage B.
        chinese: share of Chinese conversations in it.
    """
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = made.add_argument
    add("--out", type=Path, required=True, help="folder of the checkpoint")
    add("--tower", type=Path, help="skip stage A: tower and heads from this file")
    add("--from", dest="start", type=Path, help="begin with the weights of this folder")
    add(
        "--more", type=functools.partial(_factor, tuple(kinds)), nargs="+", default=[],
        metavar="KIND=FACTOR", help="ask these kinds that much more often in stage B",
    )  # fmt: skip
    add("--chinese", type=float, default=chinese, help="share of Chinese conversations in stage B")
    add("--minutes-tower", type=float, default=16, help="length of stage A")
    add("--minutes-whole", type=float, default=minutes_whole, help="length of stage B")
    add("--seed", type=int, default=0)
    add("--batch-tower", type=int, default=64)
    add("--batch-whole", type=int, default=32)
    add("--rate-tower", type=float, default=2e-3, help="peak learning rate of stage A")
    add("--rate-whole", type=float, default=1.5e-3, help="peak learning rate of stage B")
    add("--dtype", choices=("bfloat16", "float32"), default="float32", help="of the arithmetic")
    add("--threads", type=int, default=2)
    add("--device", default="cpu", help="where the network is: cpu, cuda or cuda:1")
    add("--workers", type=int, default=1, help="processes that make batches")
    return made


def _factor(kinds: tuple[str, ...], text: str) -> tuple[str, float]:
    """``place=3`` -> ("place", 3.0)."""
    kind, _, factor = text.partition("=")
    if kind not in kinds:
        raise argparse.ArgumentTypeError(f"no kind {kind!r}; there are {', '.join(kinds)}")
    return kind, float(factor)
