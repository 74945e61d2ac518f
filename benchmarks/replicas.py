"""How many more rows a second two replicas on two cores answer than one on one core.

    python benchmarks/replicas.py [--rows N] [--tokens N] [--rounds N] [--checkpoint FOLDER]

Each side is a process with a Ray cluster of its own, bound to one core and to two. They answer the
same rows in turn, and the ratio is that of the medians.

By default with a checkpoint written here, of random weights in GLM-4V-9B's layout.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from larger import write_larger

from glm4v_magic.session.session import Session


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cores is not None:
        answer(options.checkpoint, options.cores, options.rows, options.tokens)
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or Path(folder)
        if options.checkpoint is None:
            write_larger(checkpoint)
        measure(checkpoint, options)


def measure(checkpoint: Path, options: argparse.Namespace) -> None:
    """Print the rows per second of both sides, and their ratio."""
    common = [sys.executable, __file__, "--checkpoint", str(checkpoint)]
    common += ["--rows", str(options.rows), "--tokens", str(options.tokens)]
    rates: dict[int, list[float]] = {1: [], 2: []}
    sides = {cores: side([*common, "--cores", str(cores)]) for cores in rates}
    try:
        for number in range(options.rounds + 1):
            for cores, process in sides.items():
                seconds = asked(process)
                if number:  # the first answers warm up
                    rates[cores].append(options.rows / seconds)
    finally:
        for process in sides.values():
            process.kill()
    for cores, found in rates.items():
        print(f"{cores} on {cores}: {statistics.median(found):.2f} rows/s, {found}")
    print(f"ratio: {statistics.median(rates[2]) / statistics.median(rates[1]):.2f}")


def side(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start a side, and wait until it has loaded the model."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    told(process)
    return process


def asked(process: subprocess.Popen[str]) -> float:
    """Have a side answer all rows; returns the seconds that it took."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(told(process))


def told(process: subprocess.Popen[str]) -> str:
    """Return the next line that a side tells; Ray prints others."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("told "):
            return line.removeprefix("told ")
    raise SystemExit("A side has ended.")


def answer(checkpoint: Path, cores: int, rows: int, tokens: int) -> None:
    """Be a side: answer the rows for each line of the standard input."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    session = Session().load(checkpoint, replicas=cores, dtype="float32")
    print("told ready", flush=True)
    items = [f"item {number}" for number in range(rows)]
    for _ in sys.stdin:
        began = time.perf_counter()
        session.map("Tell of {{item}}.", items, max_tokens=tokens, temperature=0, fresh=True)
        print(f"told {time.perf_counter() - began}", flush=True)


if __name__ == "__main__":
    main()
