"""What the Tab key costs in a kernel: from the first second on, and while PyTorch is imported.

    python benchmarks/tab.py [--runs N]

A run is a fresh kernel. Right after ``%load_ext glm4v_magic`` it is asked what it offers for lines
of ours, as a front end asks; then again while PyTorch is imported in the background, after a
question that was stopped; then once more with the model loaded. Seconds of the kernel's processor
time are beside those that pass: on a machine that does other things they say more.
"""

from __future__ import annotations

import argparse
import itertools
import os
import queue
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.manager import start_new_kernel

IMAGE = Path(__file__).parent.parent / "notebooks" / "shapes.png"
QUESTION = f"%%glm4v '{IMAGE}' --max-tokens 1\nWhat is it?"
LINES = (
    "%glm4v ", "%glm4v lo", "%glm4v load --", "%glm4v load --dtype ", "%%glm4v ", "%%glm4v --over ",
    "x = %glm4v ask sh", "%glm4v plan --gpus 2xRTX", "%%glm4v -o ", "%glm4v load GLM",
)  # fmt: skip


class Kernel:
    """A kernel in an empty folder."""

    def __init__(self, folder: str) -> None:
        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=folder)
        pid: int = self.manager.provisioner.pid  # type: ignore[union-attr]  # it runs here
        self.process = psutil.Process(pid)

    def used(self) -> float:
        """Return the seconds that its threads have had of the processor."""
        times = self.process.cpu_times()
        return times.user + times.system

    def run(self, cell: str, stop_at: str = "") -> None:
        """Run a cell to its end; interrupt it once it has shown a text."""
        request, shown = self.client.execute(cell), ""
        while True:
            try:
                message: dict[str, Any] = self.client.get_iopub_msg(timeout=300)
            except queue.Empty:
                raise SystemExit(f"the kernel does not answer: {cell}") from None
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            shown += str(content.get("data", ""))
            if stop_at and stop_at in shown:
                self.manager.interrupt_kernel()
                stop_at = ""
            if content.get("execution_state") == "idle":
                return

    def tab(self, line: str) -> tuple[float, float]:
        """Return the seconds until it has said what it offers, and those of the processor."""
        used, start = self.used(), time.perf_counter()
        request = self.client.complete(line)
        while self.client.get_shell_msg(timeout=300)["parent_header"].get("msg_id") != request:
            pass
        return time.perf_counter() - start, self.used() - used

    def close(self) -> None:
        """End it."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def main() -> None:
    """Print the first, the median and the longest of each state of the kernel."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[str, list[list[tuple[float, float]]]] = {}
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory() as folder:
            kernel = Kernel(folder)
            kernel.run("%load_ext glm4v_magic")
            states = {"fresh": "", "while PyTorch is imported": "Starting PyTorch", "loaded": "no"}
            for state, stop_at in states.items():
                if stop_at:
                    kernel.run(QUESTION, stop_at)
                found.setdefault(state, []).append([kernel.tab(line) for line in LINES])
            kernel.close()
    for state, runs in found.items():
        for name, place in (("ms", 0), ("ms of the processor", 1)):
            firsts = [1e3 * run[0][place] for run in runs]
            each = sorted(1e3 * one[place] for one in itertools.chain(*runs))
            print(
                f"{state}, {name}: first {statistics.median(firsts):.0f} (to {max(firsts):.0f}), "
                f"median of {len(each)} {statistics.median(each):.1f}, longest {each[-1]:.0f}"
            )
    print(f"load average {os.getloadavg()[0]:.0f}")


if __name__ == "__main__":
    main()
