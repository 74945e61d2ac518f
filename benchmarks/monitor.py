"""What the pictures cost: a change in the planning tool, and memory watched during an answer.

    python benchmarks/monitor.py [--runs N] [--tokens N] [--checkpoint FOLDER]

Planning: for each kind of change to a plan of GLM-4V-9B, the time from a control's new value to the
finished picture, widgets included. It has to stay below 100 ms, to feel immediate. The time on the
processor is given beside it, for machines that do other things meanwhile.

Watching: the processor time of the monitor's thread as a part of one core, idle and during calls;
tokens per second with a picture of memory open next to none, in turn in one process; and what the
hooks cost that tell which part of the model is at work, for as long as a picture is open.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.commands.devices import make_tool
from glm4v_magic.placement.decision import PlacementOptions

CHANGES: tuple[tuple[str, str, Any, Any], ...] = (
    ("GPUs", "gpus", "8x16GiB", "24+16+12GiB"),
    ("context", "context", 4096, 8192),
    ("pictures", "images", 0, 1),
    ("objective", "objective", "fewest", "balance"),
    ("dtype", "dtype", "float16", "bfloat16"),
    ("quantise", "quantize", "4bit", "no"),
    ("split the tower", "split_vision", True, False),
    ("pin the tower", "to", "cuda:1", "any card"),
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


def watching(context: Any, runs: int, tokens: int, checkpoint: str) -> None:
    """Print the monitor's share of a core, and tokens per second with and without it."""
    session = context.session
    session.load(checkpoint)
    session._engine.defaults.eos_token_id = None  # always the asked number of tokens

    def answer() -> float:
        start = time.perf_counter()
        session.ask("What is this?", max_tokens=tokens, temperature=0)
        return time.perf_counter() - start

    def watched(work: Callable[[], Any]) -> tuple[Any, float]:
        """What `work` returns, and which part of a core the monitor took meanwhile."""
        from glm4v_magic.widgets.memory import MemoryWidget

        with capture_output():
            picture = MemoryWidget(context.monitor)
            picture.show()
            (thread,) = (t for t in threading.enumerate() if t.name == "glm4v-monitor")
            clock = time.pthread_getcpuclockid(thread.ident or 0)
            before, start = time.clock_gettime(clock), time.perf_counter()
            result = work()
            share = (time.clock_gettime(clock) - before) / (time.perf_counter() - start)
            picture.close()
        return result, share

    answer()  # the first call is not counted
    _, idle = watched(lambda: time.sleep(10))
    pairs, shares = [], []
    for _ in range(runs):
        (seconds, share), bare = watched(answer), answer()
        pairs.append((seconds, bare))
        shares.append(share)
    print(f"watching, {checkpoint}, {tokens} tokens, {runs} answers each: median")
    print(f"  of one core: {idle:.2%} idle, {statistics.median(shares):.2%} during a call")
    for name, values in zip(("open", "closed"), zip(*pairs, strict=True), strict=True):
        print(f"  {name:8s} {tokens / statistics.median(values):8.1f} tokens/s")
    ratios = sorted(bare / seconds for seconds, bare in pairs)
    middle = statistics.median(ratios)
    print(f"  ratio    {middle:8.3f} (pairs from {ratios[0]:.3f} to {ratios[-1]:.3f})")


def hooks(calls: int = 20_000) -> None:
    """Print the microseconds that a part of the model takes longer to call with hooks."""
    import torch

    from glm4v_magic.placement.activity import ActivityRecorder, ModelPart

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
    parser.add_argument("--tokens", type=int, default=800)
    parser.add_argument("--checkpoint", default="demo")
    arguments = parser.parse_args()

    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "glm4v_magic")
    context = shell.magics_manager.registry["Glm4vMagics"].context
    planning(context, arguments.runs)
    watching(context, arguments.runs, arguments.tokens, arguments.checkpoint)
    hooks()


if __name__ == "__main__":
    main()
