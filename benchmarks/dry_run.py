"""What a dry run of a full-size model costs: seconds, and memory beyond the imports.

    python benchmarks/dry_run.py [MODEL] [--gpus 8x16GiB] [--map plan|auto|FILE] [--report]

In a fresh interpreter; the libraries are imported first and do not count. Target for GLM-4V-9B on
eight GPUs: 10 s and 600 MiB for the whole process beyond its imports. The memory is the peak of
resident memory (getrusage), less what was resident after the imports.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import sys
import time

HEAVY = ("torch", "transformers", "accelerate", "glm4v_magic.dispatch.hooks")


def peak_mib() -> float:
    """Return the peak memory of this process in MiB; Linux counts KiB, macOS bytes."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    """Make a dry run and print both figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default="GLM-4V-9B")
    parser.add_argument("--gpus", default="8x16GiB")
    parser.add_argument("--map", default="plan")
    parser.add_argument("--report", action="store_true", help="print the report, too")
    options = parser.parse_args()

    start = time.perf_counter()
    for name in HEAVY:
        importlib.import_module(name)
    from glm4v_magic.checkpoints.architecture import architecture
    from glm4v_magic.dry_run.run import dry_run
    from glm4v_magic.dry_run.text import report_text, title, verdict

    imports, before = time.perf_counter() - start, peak_mib()
    start = time.perf_counter()
    report = dry_run(architecture(options.model), options.gpus, options.map)
    seconds = time.perf_counter() - start
    if options.report:
        print(report_text(report), end="\n\n")
    print(f"{title(report)}\n{verdict(report)}")
    print(f"imports  {imports:6.1f} s  {before:6.0f} MiB")
    print(f"dry run  {seconds:6.1f} s  {peak_mib() - before:6.0f} MiB more (goal: 10 s, 600 MiB)")


if __name__ == "__main__":
    main()
