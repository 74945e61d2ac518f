"""What the views cost: a change in the planning tool, and memory watched during an answer.

    python benchmarks/monitor.py [--runs N] [--answers N] [--tokens N] [--checkpoint FOLDER]
        [--cpu-time] [--gpus GPUS]

Planning: for each kind of change to a plan of GLM-4V-9B, the time from a control's new value to the
finished view, widgets included. It has to stay below 100 ms, to feel immediate. CPU time
is given beside it, for machines that do other things meanwhile.

Watching: the CPU time of the monitor's thread as a fraction of one core, idle and during calls;
tokens per second with a view of memory open next to none, in turn in one process; and what the
hooks cost that tell which part of the model is running, for as long as a view is open. Without a
checkpoint given, of the embedded model, which takes about 2 ms for a token, and of a larger one
of random weights, whose tokens take as long as a large model's on a GPU. With CPU time, tokens per
second are those of the answering thread: readings come by the clock, and so the monitor's thread
weighs more the slower a busy computer answers. Its own share is in the first line.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from decoding import DecodeClock
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from larger import write_larger
from loading import add_gpus
from ratios import describe

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.notebook.commands.devices import make_tool

CHANGES: tuple[tuple[str, str, Any, Any], ...] = (
    ("GPUs", "gpus", "8x16GiB", "24+16+12GiB"),
    ("context", "context", 4096, 8192),
    ("images", "images", 0, 1),
    ("objective", "objective", "fewest", "balance"),
    ("dtype", "dtype", "float16", "bfloat16"),
    ("quantise", "quantize", "4bit", "no"),
    ("split the tower", "split_vision", "cut", "whole if it fits"),
    ("pin the tower", "to", "cuda:1", "any GPU"),
    ("does not fit, and why", "gpus", "2x9GiB", "4x8GiB"),
    ("offload what does not fit", "offload", True, False),
)


def planning(context: Any, runs: int) -> None:
    """Print milliseconds for each kind of change."""
    options = PlacementOptions(gpus="4x16GiB")
    tool = make_tool(context, "GLM-4V-9B", architecture("GLM-4V-9B"), options)
    print(
        f"planning GLM-4V-9B, {runs} changes of each kind, in ms: median (most); on the processor"
    )
    for name, control, one, other in CHANGES:
        times, own = [], []
        for run in range(runs):
            value = other if run % 2 else one
            start, begin = time.perf_counter(), time.thread_time()
            tool.controls[control].value = value
            own.append(1000 * (time.thread_time() - begin))
            times.append(1000 * (time.perf_counter() - start))
        wall = f"{statistics.median(times):7.1f} ({max(times):.1f})"
        print(f"  {name:26s} {wall:18s} {statistics.median(own):7.1f} ({max(own):.1f})")
    tool.close()


def watching(
    context: Any,
    runs: int,
    tokens: int,
    name: str,
    checkpoint: str,
    clock: Callable[[], float],
    gpus: str | None,
) -> None:
    """Print the monitor's share of a core, and tokens per second with and without it."""
    session = context.session
    session.load(checkpoint, gpus=gpus)
    session.engine.defaults.eos_token_id = []  # always `tokens` tokens

    timer = DecodeClock(session.engine.model, clock)

    def answer() -> float:
        _, decoding = timer.time(
            lambda: session.ask("What is this?", max_tokens=tokens, temperature=0)
        )
        return decoding

    def watched(work: Callable[[], Any]) -> tuple[Any, float]:
        """Return the result of `work`, and the fraction of a core that the monitor took."""
        from glm4v_magic.notebook.widgets.memory import MemoryWidget

        with capture_output():
            image = MemoryWidget(context.monitor)
            image.show()
            (thread,) = (t for t in threading.enumerate() if t.name == "glm4v-monitor")
            clock = time.pthread_getcpuclockid(thread.ident or 0)
            before, start = time.clock_gettime(clock), time.perf_counter()
            result = work()
            share = (time.clock_gettime(clock) - before) / (time.perf_counter() - start)
            image.close()
        return result, share

    answer()  # the first call is not counted
    _, idle = watched(lambda: time.sleep(10))
    times: dict[str, list[float]] = {"open": [], "closed": []}
    shares = []
    for run in range(runs):
        # Each comes first equally often, so that drift affects both.
        for state in ("open", "closed") if run % 2 else ("closed", "open"):
            if state == "closed":
                times[state].append(answer())
                continue
            seconds, share = watched(answer)
            times[state].append(seconds)
            shares.append(share)
    session.unload()
    print(f"watching, {name}, {tokens} tokens, {runs} answers each: median")
    print(f"  of one core: {idle:.2%} idle, {statistics.median(shares):.2%} during a call")
    for state, values in times.items():
        print(f"  {state:8s} {timer.steps / statistics.median(values):8.1f} tokens/s")
    print(f"  {describe(times['closed'], times['open'])}", flush=True)


def hooks(calls: int = 20_000) -> None:
    """Print the microseconds that a part of the model takes longer to call with hooks."""
    import torch

    from glm4v_magic.dispatch.activity import ActivityRecorder, ModelPart

    model, x = torch.nn.ModuleDict({"part": torch.nn.Identity()}), torch.ones(1)

    def microseconds() -> float:
        part, times = model["part"], []
        for _ in range(5):
            begin = time.thread_time()
            for _ in range(calls):
                part(x)
            times.append((time.thread_time() - begin) / calls)
        return 1e6 * min(times)

    recorder = ActivityRecorder()
    recorder.is_watched = True
    bare = microseconds()
    with recorder.recording(model, lambda: (ModelPart("", "", ("part",)),), is_queued=False):
        hooked = microseconds()
    print(f"hooks: a part of the model takes {hooked - bare:.1f} us longer in each step")


def main() -> None:
    """Print all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--answers", type=int, default=15, help="with an image open, and without")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--checkpoint", help="this one only, instead of the two")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="CPU time of the answering thread, on a computer that does other things",
    )
    add_gpus(parser)
    arguments = parser.parse_args()
    clock = time.thread_time if arguments.cpu_time else time.perf_counter

    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "glm4v_magic")
    context = shell.magics_manager.registry["Glm4vMagics"].context
    planning(context, arguments.runs)
    with tempfile.TemporaryDirectory() as temporary:
        checkpoints = {"demo": "demo", "larger": temporary}
        if arguments.checkpoint:
            checkpoints = {arguments.checkpoint: arguments.checkpoint}
        else:
            write_larger(Path(temporary))
        for name, checkpoint in checkpoints.items():
            watching(
                context,
                arguments.answers,
                arguments.tokens,
                name,
                checkpoint,
                clock,
                arguments.gpus,
            )
    hooks()


if __name__ == "__main__":
    main()
