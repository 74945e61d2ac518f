"""What happens when one tensor of an operator is on another device: on a machine, and here.

    python -m tests.virtual_gpus.mixtures cuda cpu --write cuda.json [--processes 8]

Tries every sample of every float operator of PyTorch's database with one tensor on the second
device and the others on ``cuda:0``; devices are CUDA's (``cuda``) or virtual ones (``virtual``).
A process of its own does it, and another goes on where one is lost: CUDA cannot be used any more
after a kernel has read an address of the CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from glm4v_magic.virtual_gpus import VirtualGPUs
from tests.virtual_gpus.mixed_devices import CPU, CPU_SCALAR, GPU, GPU_SCALAR
from tests.virtual_gpus.operator_database import call, on, operators, samples

TAKEN, LOST, HANGS, NOT_HERE = "taken", "process lost", "does not end", "not on this device"
PATIENCE = 120  # seconds without news of a process

PLACES = {"cpu": (CPU, CPU_SCALAR), "cuda:1": (GPU, GPU_SCALAR)}


class Key(NamedTuple):
    """A sample with one tensor elsewhere.

    Attributes:
        number: of the operator; several have the same name.
        name: name of the operator.
        sample: number of the sample.
        odd: number of the tensor, among the leaves of its arguments.
        place: the tensor's device and whether it is 0-dim.
    """

    number: int
    name: str
    sample: int
    odd: int
    place: str


def mixtures(
    number: int, elsewhere: str, devices: Callable[[], AbstractContextManager[object]]
) -> Iterator[tuple[Key, Callable[[], str]]]:
    """Yield each mixture of an operator and what tries it."""
    operator = operators()[number]
    for at, sample in enumerate(samples(operator)):
        leaves, spec = tree_flatten((sample.input, sample.args, dict(sample.kwargs)))
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        if len(tensors) < 2:
            continue

        def tried(odd: int | None, leaves: list[Any] = leaves, spec: Any = spec) -> str:
            try:
                with devices():
                    mixed = [
                        on(elsewhere if i == odd else "cuda:0", leaf)
                        for i, leaf in enumerate(leaves)
                    ]
                    call(operator, tree_unflatten(mixed, spec))
                    if torch.cuda.is_initialized():
                        torch.cuda.synchronize()
            except Exception as error:
                return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
            return TAKEN

        # Only where the operator runs at all does a refusal say anything of mixtures.
        unmixed = cache(partial(tried, None))

        def mixture(
            odd: int, unmixed: Callable[[], str] = unmixed, tried: Callable[[int], str] = tried
        ) -> str:
            return tried(odd) if unmixed() == TAKEN else f"{NOT_HERE}: {unmixed()}"

        for odd in tensors:
            place = PLACES[elsewhere][leaves[odd].dim() == 0]
            key = Key(number, operator.name, at, odd, place)
            yield key, partial(mixture, odd)


def work(kind: str, elsewhere: str, numbers: list[int], done: set[Key], news: Connection) -> None:
    """Try the mixtures of some operators, and send each before it is tried and its outcome."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    devices: Callable[[], AbstractContextManager[object]] = nullcontext
    if kind == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("DEVICES_OF_MIXTURES", "0,1")
    else:
        devices = lambda: VirtualGPUs("2x1GiB")  # noqa: E731
    for number in numbers:
        for key, run in mixtures(number, elsewhere, devices):
            if key not in done:
                news.send((key, None))
                outcome = run()
                news.send((key, outcome))
                if "CUDA error" in outcome:  # every later call fails, too
                    os._exit(1)
    news.send(None)
    news.close()


class Share:
    """The operators of one process, and what is known of them."""

    def __init__(self, kind: str, elsewhere: str, numbers: list[int]) -> None:
        self.arguments = (kind, elsewhere, numbers)
        self.outcomes: dict[Key, str] = {}
        self.trying: Key | None = None
        self.start()

    def start(self) -> None:
        """Start a process that goes on after what is known."""
        context = multiprocessing.get_context("fork")  # the database is imported already
        self.news, theirs = context.Pipe(duplex=False)
        known = set(self.outcomes)
        self.process = context.Process(target=work, args=(*self.arguments, known, theirs))
        self.process.start()
        theirs.close()

    def take(self) -> bool:
        """Take one piece of news; tell whether more will come."""
        try:
            piece = self.news.recv()
        except EOFError:
            self.lost(LOST)
            return True
        if piece is None:
            self.process.join()
            return False
        self.trying, outcome = piece
        if outcome is not None:
            self.outcomes[self.trying], self.trying = outcome, None
        return True

    def lost(self, outcome: str) -> None:
        """Note what the process died of and start another."""
        self.process.kill()
        self.process.join()
        if self.trying is not None:
            self.outcomes[self.trying], self.trying = outcome, None
        self.start()


def outcomes(kind: str, elsewhere: str, processes: int) -> dict[Key, str]:
    """Try all mixtures; return the outcome of each."""
    numbers = range(len(operators()))
    shares = [Share(kind, elsewhere, list(numbers[at::processes])) for at in range(processes)]
    running = list(shares)
    while running:
        ready = wait([share.news for share in running], PATIENCE)
        if not ready:
            for share in running:
                share.lost(HANGS)
        for share in [share for share in running if share.news in ready]:
            if not share.take():
                running.remove(share)
    return {key: outcome for share in shares for key, outcome in share.outcomes.items()}


def deviations(real: dict[Key, str], virtual: dict[Key, str]) -> dict[str, list[str]]:
    """What is taken on one side only, by operator; of samples that run on both."""
    assert real.keys() == virtual.keys()
    found: dict[str, list[str]] = {}
    for key, outcome in sorted(real.items()):
        ours = virtual[key]
        runs = not (outcome.startswith(NOT_HERE) or ours.startswith(NOT_HERE))
        if runs and (outcome == TAKEN) != (ours == TAKEN):
            text = f"sample {key.sample}, {key.place}: CUDA {outcome}; virtual GPUs {ours}"
            found.setdefault(key.name, []).append(text)
    return found


def counted(outcome: str) -> str:
    """The kind of an outcome, to be counted."""
    kinds = {TAKEN: TAKEN, LOST: LOST, HANGS: HANGS, NOT_HERE: NOT_HERE}
    kinds |= {"CUDA error": "illegal access", "devic": "refused as mixed"}
    return next((kind for part, kind in kinds.items() if part in outcome), "refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=("cuda", "virtual"))
    parser.add_argument("elsewhere", choices=tuple(PLACES))
    parser.add_argument("--write", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=8)
    options = parser.parse_args()
    # A parent that has used CUDA could not have children that do.
    os.environ["DEVICES_OF_MIXTURES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    found = outcomes(options.kind, options.elsewhere, options.processes)
    options.write.write_text(json.dumps([[*key, outcome] for key, outcome in found.items()]))
    sys.stdout.write(f"{options.kind}: {dict(Counter(map(counted, found.values())))}\n")


if __name__ == "__main__":
    main()
