"""How much sooner uneven answers are there if waiting rows take the places of ended ones.

    python benchmarks/refill.py [--runs N] [--rows N] [--batch-size N] [--checkpoint FOLDER]
        [--cpu-time] [--gpus GPUS]

Text questions whose answers take 4 to 128 tokens, in an order without a pattern. Three sides, in
turn in one process, and their answers compared:

- refill: all requests in one call of the engine;
- batches: the same engine without refill, one call for each batch; a row that ends leaves, and the
  next batch waits for the longest;
- static: as `batches`, but no row leaves either, as in transformers' `generate`: each row is
  computed until the longest has ended, and is cut to its length afterwards.

The lengths are the limits of the requests, which the engine knows: it begins with the largest.

By default with a checkpoint written here, of random weights in GLM-4V-9B's layout.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from larger import write_larger
from loading import add_gpus, load_engine
from ratios import describe

from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local

SHORTEST, LONGEST = 4, 128


def requests_of(rows: int) -> list[Request]:
    """Return questions whose answers have lengths evenly spread from `SHORTEST` to `LONGEST`."""
    step = (LONGEST - SHORTEST) / max(rows - 1, 1)
    lengths = [round(SHORTEST + row * step) for row in range(rows)]
    lengths.sort(key=lambda length: length * 2654435761 % 2**32)  # without a pattern
    return [
        Request(
            Conversation((Message("user", f"Tell me about number {row}."),)),
            Sampling(length, temperature=0),
        )
        for row, length in enumerate(lengths)
    ]


def answers(engine: local.LocalEngine, requests: Sequence[Request], at_once: int) -> list[str]:
    """Ask in one call of the engine."""
    found = {
        event.row: event.generation.text
        for event in engine.stream(requests, at_once)
        if isinstance(event, Finished)
    }
    return [found[row] for row in range(len(requests))]


def in_batches(engine: local.LocalEngine, requests: Sequence[Request], at_once: int) -> list[str]:
    """Ask in one call for each batch."""
    texts = []
    for at in range(0, len(requests), at_once):
        texts += answers(engine, requests[at : at + at_once], at_once)
    return texts


def static(engine: local.LocalEngine, requests: Sequence[Request], at_once: int) -> list[str]:
    """Ask in one call for each batch, every row for as many tokens as the longest."""
    texts = []
    for at in range(0, len(requests), at_once):
        batch = requests[at : at + at_once]
        longest = Sampling(max(each.sampling.max_tokens for each in batch), temperature=0)
        texts += answers(engine, [replace(each, sampling=longest) for each in batch], at_once)
    return texts


def main() -> None:
    """Print seconds of each side and the ratios of pairs of runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--checkpoint", help="a folder, instead of the one that is written here")
    add_gpus(parser)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="CPU time instead of wall time, on a computer that does other things",
    )
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    sides: dict[str, Callable[..., list[str]]] = {
        "refill": answers,
        "batches": in_batches,
        "static": static,
    }
    with tempfile.TemporaryDirectory() as temporary:
        if not arguments.checkpoint:
            write_larger(Path(temporary))
        engine = load_engine(arguments.checkpoint or temporary, arguments.gpus, keep=0)
        engine.defaults.eos_token_id = []  # always the asked number of tokens
        requests = requests_of(arguments.rows)
        answers(engine, requests[:1], 1)  # the first call is not counted
        times: dict[str, list[float]] = {name: [] for name in sides}
        texts: dict[str, list[str]] = {}
        for _ in range(arguments.runs):
            for name, ask in sides.items():
                start = clock()
                texts[name] = ask(engine, requests, arguments.batch_size)
                times[name].append(clock() - start)
        engine.close()
    lengths = f"{SHORTEST} to {LONGEST} tokens"
    print(f"{arguments.rows} answers of {lengths}, {arguments.batch_size} at once")
    for name, seconds in times.items():
        print(f"  {name:<8} {min(seconds):8.2f} s")
    for name in ("batches", "static"):
        print(f"  over {name}: {describe(times[name], times['refill'])}")
    same = sum(one == other for one, other in zip(texts["refill"], texts["batches"], strict=True))
    print(f"  {same} of {arguments.rows} answers are the same", flush=True)


if __name__ == "__main__":
    main()
