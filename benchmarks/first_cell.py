"""First cell of a fresh kernel next to `import torch, transformers` and the model's own load.

    python benchmarks/first_cell.py [--runs N] [--cpu-time]

Each side runs in an interpreter of its own, in turn. Our side is ``%load_ext glm4v_magic`` and a
cell about an image that is answered by the embedded model, with one token. The plain side imports
torch and transformers, loads the same model with `from_pretrained`, and runs one forward. IPython
is imported by both, untimed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ratios import describe

IMAGE = Path(__file__).parent.parent / "notebooks" / "shapes.png"


def ours(clock: Callable[[], float]) -> float:
    """Return the seconds of the first cell."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    start = clock()
    shell.run_line_magic("load_ext", "glm4v_magic")
    with capture_output():
        shell.run_cell_magic("glm4v", f"'{IMAGE}' --temperature 0 --max-tokens 1", "What is it?")
    return clock() - start


def plain(clock: Callable[[], float]) -> float:
    """Return the seconds of the imports, the load and one forward."""
    from importlib.util import find_spec

    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.instance()
    spec = find_spec("glm4v_magic")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "checkpoints" / "demo"
    start = clock()
    import torch
    import transformers  # noqa: F401

    from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig
    from glm4v_magic.checkpoints.glm4v_9b.modeling import Glm4v9bForConditionalGeneration

    model = Glm4v9bForConditionalGeneration.from_pretrained(
        folder, config=Glm4v9bConfig.from_pretrained(folder), dtype=torch.float32
    )
    with torch.inference_mode():
        model(input_ids=torch.ones(1, 8, dtype=torch.long))
    return clock() - start


SIDES = {"ours": ours, "plain": plain}


def main() -> None:
    """Print the seconds of both sides and the ratio of each pair of runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--side", choices=sorted(SIDES), help="this one only, and once")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="time of the processor instead of the clock's, on a computer that does other things",
    )
    options = parser.parse_args()
    if options.side:
        clock = time.process_time if options.cpu_time else time.perf_counter
        print(SIDES[options.side](clock))
        return
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    more = ["--cpu-time"] if options.cpu_time else []
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for run in range(options.runs + 1):
        # Each side comes first as often: what drifts meanwhile weighs on both.
        for side in list(SIDES) if run % 2 else reversed(SIDES):
            command = [sys.executable, __file__, "--side", side, *more]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            )
            if run:  # the first of each is not counted
                times[side].append(float(done.stdout.splitlines()[-1]))
    mine, base = (statistics.median(times[side]) for side in ("ours", "plain"))
    print(
        f"first cell {mine:6.2f} s, imports and load {base:6.2f} s   "
        f"{describe(times['plain'], times['ours'])}"
    )


if __name__ == "__main__":
    main()
