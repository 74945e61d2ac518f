"""Stop at any moment of the first seconds: the kernel answers the next question."""

from __future__ import annotations

import queue
import random
import shutil
import time
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

IMAGE = Path(__file__).parents[2] / "notebooks" / "shapes.png"
QUESTION = "%%glm4v shapes.png\nWhat colour is the circle?"
MOMENTS = 60


class Kernel:
    """A kernel in a folder with an image."""

    stopped = False
    """Whether the last cell was interrupted before it was done."""

    def __init__(self, folder):
        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(folder))

    def run(self, cell, *, stop=lambda text, seconds: False):
        """Run a cell; interrupt it once `stop` holds. Returns all that it shows, as text."""
        # Else ipykernel 6 drops the next cell if it comes within moments of an error.
        request = self.client.execute(cell, stop_on_error=False)
        since, shown, self.stopped = time.monotonic(), [], False
        while time.monotonic() - since < 300:
            if not self.stopped and stop("\n".join(shown), time.monotonic() - since):
                self.manager.interrupt_kernel()
                self.stopped = True
            try:
                message = self.client.get_iopub_msg(timeout=0.05)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if content.get("execution_state") == "idle":
                return "\n".join(shown)
            shown.append(content.get("data", {}).get("text/plain", ""))
            shown.append(f"{content.get('ename', '')}: {content.get('evalue', '')}")
        raise AssertionError(f"The cell did not end; it showed {shown}.")

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def fresh(kernel_folder):
    """Return a function that starts a kernel with the extension, beside the demo's image."""
    shutil.copy(IMAGE, kernel_folder)
    kernels = []

    def start():
        kernels.append(Kernel(kernel_folder))
        kernels[-1].run("%load_ext glm4v_magic")
        return kernels[-1]

    yield start
    for kernel in kernels:
        if kernel.manager.has_kernel:
            kernel.close()


def test_stopped_while_pytorch_starts_it_answers_the_next_question(fresh):
    kernel = fresh()
    stopped = kernel.run(QUESTION, stop=lambda text, _: "Starting PyTorch" in text)
    assert "PyTorch is still starting, in the background" in stopped
    assert "Stopped" in stopped
    assert "red" in kernel.run(QUESTION)


@pytest.mark.nightly
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_stopped_at_any_moment_it_answers_the_next_question(fresh, moment):
    at, stopped = random.Random(moment).uniform(0, 8), False
    while not stopped:  # a cell that was done by then is none to stop: once more, and earlier
        kernel = fresh()
        kernel.run(QUESTION, stop=lambda _, seconds, at=at: seconds > at)
        stopped, at = kernel.stopped, at / 2
        assert "red" in kernel.run(QUESTION)
        kernel.close()
