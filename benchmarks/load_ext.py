"""What ``%load_ext glm4v_magic`` costs: time and memory, next to a bare IPython shell.

    python benchmarks/load_ext.py [--runs N] [EXTENSION ...]

Each run is a fresh interpreter that makes a shell and loads either nothing, IPython's own
autoreload (the baseline that people know), this package, or one of the named extensions, as far as
they are installed. Resident memory is read from /proc/self/statm right before and right after, so
the shell itself does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

PROBE = """
import json, os, sys, time
from IPython.core.interactiveshell import InteractiveShell

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

shell = InteractiveShell.instance()
memory, start = resident(), time.perf_counter()
if sys.argv[1] != "nothing":
    shell.run_line_magic("load_ext", sys.argv[1])
seconds = time.perf_counter() - start
print(json.dumps({"ms": 1e3 * seconds, "MB": (resident() - memory) / 1e6}))
"""
EXTENSIONS = ("nothing", "autoreload", "glm4v_magic")


def measure(extension: str) -> dict[str, float]:
    """Load `extension` in a fresh interpreter; return the milliseconds and megabytes it took."""
    command = [sys.executable, "-c", PROBE, extension]
    # Byte code is kept between runs, as it is for users.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    output = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def main() -> None:
    """Print a table of medians with their range."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("others", nargs="*", metavar="EXTENSION", help="extensions besides ours")
    arguments = parser.parse_args()
    runs, names = arguments.runs, (*EXTENSIONS, *arguments.others)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for name in names:
        measure(name)  # writes byte code; not counted
    for _ in range(runs):
        for name in names:
            results[name].append(measure(name))
    print(f"%load_ext, {runs} fresh interpreters each: median (min to max)")
    width = max(map(len, names))
    for name, figures in results.items():
        cells = []
        for unit in ("ms", "MB"):
            values = [figure[unit] for figure in figures]
            middle = statistics.median(values)
            cells.append(f"{middle:7.2f} {unit} ({min(values):.2f} to {max(values):.2f})")
        print(f"  {name:{width}} {cells[0]:32s} {cells[1]}")


if __name__ == "__main__":
    main()
