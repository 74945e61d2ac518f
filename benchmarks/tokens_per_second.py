"""Speed of ``%%glm4v`` next to a bare `generate` of the same model, in turn in one process.

    python benchmarks/tokens_per_second.py [--runs N] [--tokens N] [--checkpoint FOLDER]

Both sides answer the same question about the same picture greedily with the same number of
tokens. The magic's side is a whole cell in a real shell: parsing, reading the picture, writing the
prompt, the tower, the decoder, and the streamed and rendered answer. The bare side is handed
finished tensors and runs tower and decoder only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from glm4v_magic.conversation import Conversation, Message, Sampling
from glm4v_magic.engines.local import generation_config
from glm4v_magic.images import resolve_images

PICTURE = Path(__file__).parent.parent / "notebooks" / "shapes.png"
QUESTION = "What colour is the circle?"


def bare_generate(engine: Any, tokens: int) -> Callable[[], None]:
    """Return a call of `generate` alone, its inputs already made."""
    pictures = resolve_images([str(PICTURE)], {})
    inputs = engine.processor([Conversation((Message("user", QUESTION, pictures),))])

    config = generation_config(
        engine.defaults, Sampling(max_tokens=tokens, temperature=0), room=tokens
    )

    def run() -> None:
        with torch.inference_mode():
            engine.model.generate(**inputs, generation_config=config)

    return run


def seconds(side: Callable[[], None]) -> float:
    """Time one call."""
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def main() -> None:
    """Print tokens per second of both sides and the ratio of each pair of runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--checkpoint", default="demo")
    arguments = parser.parse_args()
    tokens = arguments.tokens

    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "glm4v_magic")
    session = shell.magics_manager.registry["Glm4vMagics"].context.session
    session.load(arguments.checkpoint)
    engine = session._engine
    engine.defaults.eos_token_id = None  # always the asked number of tokens

    def cell() -> None:
        line = f"'{PICTURE}' --temperature 0 --max-tokens {tokens}"
        with capture_output():
            shell.run_cell_magic("glm4v", line, QUESTION)

    bare = bare_generate(engine, tokens)
    for side in (cell, bare):
        side()  # the first call of each is not counted
    pairs = [(seconds(cell), seconds(bare)) for _ in range(arguments.runs)]
    print(f"{arguments.checkpoint}, {tokens} tokens, {arguments.runs} runs each: median")
    for name, values in zip(("%%glm4v", "generate"), zip(*pairs, strict=True), strict=True):
        print(f"  {name:10s} {tokens / statistics.median(values):8.1f} tokens/s")
    ratios = sorted(bare_time / cell_time for cell_time, bare_time in pairs)
    middle = statistics.median(ratios)
    print(f"  ratio      {middle:8.3f} (pairs from {ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
