"""Speed of ``%%glm4v`` next to a bare `generate` of the same model, in turn in one process.

    python benchmarks/tokens_per_second.py [--runs N] [--tokens N] [--checkpoint FOLDER]
        [--cpu-time] [--gpus GPUS]

Both sides answer the same question about the same image greedily with the same number of
tokens. The magic's side is a whole cell in a real shell: parsing, reading the image, writing the
prompt, the tower, the decoder, and the streamed and rendered answer. The bare side is handed
finished tensors and runs tower and decoder only.

What a cell takes on top is some milliseconds once, whatever the model, and some microseconds for
each token. The embedded model takes about 2 ms for a token, which nobody's large model does, so
that the first weighs most with it. A second model, written here with random weights in the same
layout, takes tens of milliseconds on a CPU core. Lines of each:

decode
    tokens/s of the steps after the first: what the line below an answer gives
shown
    fraction of that time spent on showing the text, timed directly
cell
    tokens/s of the whole call, all of the above included
call
    time of a call besides the decoding
"""

from __future__ import annotations

import argparse
import contextlib
import operator
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from decoding import DecodeClock
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from larger import write_larger
from loading import add_gpus
from ratios import describe

from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.events import EngineEvent
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines.sampling import call_config
from glm4v_magic.images import resolve_images

IMAGE = Path(__file__).parent.parent / "notebooks" / "shapes.png"
QUESTION = "What colour is the circle?"


def inputs_of(engine: Any) -> dict[str, Any]:
    """Return the inputs of `generate` for the question, as the model's family takes them."""
    images = resolve_images([str(IMAGE)], {})
    conversation = Conversation((Message("user", QUESTION, images),))
    if callable(engine.processor):
        inputs: dict[str, Any] = engine.processor([conversation])
        return placed(inputs, engine.model.device)
    encoded = engine.processor.encode(conversation)
    ids = torch.tensor([encoded.ids])
    types = torch.zeros_like(ids)
    for image in encoded.images:
        types[0, image.start : image.stop] = 1
    made = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": types,
        "pixel_values": torch.cat([image.pixels() for image in encoded.images]),
        "image_grid_thw": torch.tensor([image.grid for image in encoded.images]),
    }
    return placed(made, engine.model.device)


def placed(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the inputs on a device."""
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def bare_generate(engine: Any, tokens: int) -> Callable[[], None]:
    """Return a call of `generate` alone, its inputs already made."""
    inputs = inputs_of(engine)
    config = call_config(engine.defaults, Sampling(max_tokens=tokens, temperature=0), room=tokens)
    config.eos_token_id = None

    def run() -> None:
        with torch.inference_mode():
            engine.model.generate(**inputs, generation_config=config)

    return run


def whole_cell(shell: InteractiveShell, tokens: int) -> Callable[[], None]:
    """Return a run of the cell."""
    line = f"'{IMAGE}' --temperature 0 --max-tokens {tokens}"

    def run() -> None:
        with capture_output():
            shell.run_cell_magic("glm4v", line, QUESTION)

    return run


def share_shown(cell: Callable[[], None], engine: Any, clock: DecodeClock, runs: int) -> float:
    """Return the fraction of a cell's decoding that goes into showing the engine's stream."""
    stream = engine.stream
    spent: list[float] = []

    def timed(*asked: Any) -> Iterator[EngineEvent]:
        with contextlib.closing(stream(*asked)) as events:
            for event in events:
                start = clock.clock()
                yield event
                spent.append(clock.clock() - start)

    shares = []
    with patch.object(engine, "stream", timed):
        for _ in range(runs):
            spent.clear()
            _, decoding = clock.time(cell)
            shares.append(sum(spent) / decoding)
    return statistics.median(shares)


def compare(
    name: str,
    shell: InteractiveShell,
    engine: Any,
    tokens: int,
    runs: int,
    clock: Callable[[], float],
) -> None:
    """Print the lines of one model."""
    engine.defaults.eos_token_id = []  # always `tokens` tokens
    timer = DecodeClock(engine.model, clock)
    sides = {"cell": whole_cell(shell, tokens), "bare": bare_generate(engine, tokens)}
    for call in sides.values():
        call()  # the first of each is not counted
    whole: dict[str, list[float]] = {side: [] for side in sides}
    decoding: dict[str, list[float]] = {side: [] for side in sides}
    for run in range(runs):
        # Each side comes first equally often, so that drift affects both.
        for side in list(sides) if run % 2 else reversed(sides):
            seconds, steps = timer.time(sides[side])
            whole[side].append(seconds)
            decoding[side].append(steps)

    def line(times: dict[str, list[float]], count: int) -> str:
        cell, bare = (count / statistics.median(times[side]) for side in ("cell", "bare"))
        return (
            f"{cell:8.1f} tokens/s, generate {bare:8.1f}   {describe(times['bare'], times['cell'])}"
        )

    size = engine.model.num_parameters() / 1e6
    print(f"{name}, {size:.1f} million parameters on {', '.join(engine.info.devices)}")
    print(f"  {tokens} tokens, {runs} runs each")
    print(f"  decode  {line(decoding, timer.steps)}")
    print(f"  shown   {share_shown(sides['cell'], engine, timer, min(runs, 9)):8.2%}")
    print(f"  cell    {line(whole, tokens)}")
    cell, bare = (
        1e3 * statistics.median(map(operator.sub, whole[side], decoding[side]))
        for side in ("cell", "bare")
    )
    print(f"  call    {cell:8.1f} ms,       generate {bare:8.1f}", flush=True)


def main() -> None:
    """Print tokens per second of both sides and the ratio of each pair of runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=61)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--checkpoint", help="this one only, instead of the two")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="CPU time instead of wall time, on a computer that does other things",
    )
    add_gpus(parser)
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter

    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "glm4v_magic")
    session = shell.magics_manager.registry["Glm4vMagics"].context.session
    with tempfile.TemporaryDirectory() as temporary:
        names = {"larger": temporary}
        if not arguments.checkpoint:
            write_larger(Path(temporary))
        for name in (
            [arguments.checkpoint] if arguments.checkpoint else ["demo", "demo-4.6v", *names]
        ):
            session.load(names.get(name, name), gpus=arguments.gpus)
            runs = -(-arguments.runs // 6) if name == "larger" else arguments.runs
            compare(name, shell, session.engine, arguments.tokens, runs, clock)
            session.unload()


if __name__ == "__main__":
    main()
