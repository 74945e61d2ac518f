"""How much sooner a follow-up begins than the first question, and what a map on one image gains.

    python benchmarks/follow_up.py [--runs N] [--rows N] [--visual-tokens N] [--checkpoint FOLDER]
        [--gpus GPUS]

The first question about an image encodes it and reads the whole prompt. A follow-up in the same
chat reads its own words. On GPUs the peak memory of both is told, too. A hundred chats in turn stay
inside the budget of what is kept. Questions that are mapped over one image read it once, where one
by one, without anything kept, each reads it again. All of it in one process, in turn; answers
compared.

By default with a checkpoint written here: random weights in GLM-4V-9B's layout, with as many
visual tokens for an image as the published one has.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from larger import write_larger
from loading import add_gpus, load_engine
from PIL import Image
from ratios import describe

from glm4v_magic.core.conversation import Conversation, Generation, Message, Request
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local
from glm4v_magic.images import SourcedImage

KEEP = 2**32
MIB = 2**20


def photo(shade: int) -> SourcedImage:
    """Return an image that no other call returned."""
    image = Image.linear_gradient("L").resize((320, 240)).point(lambda value: value ^ shade)
    return SourcedImage(image.convert("RGB"), f"{shade}.png", image.size)


def asked(image: SourcedImage, text: str) -> Conversation:
    """Return a question about an image."""
    return Conversation((Message("user", text, (image,)),))


def answers(
    engine: local.LocalEngine, chats: Sequence[Conversation], tokens: int
) -> list[Generation]:
    """Ask all at once."""
    requests = [Request(chat, Sampling(tokens, temperature=0)) for chat in chats]
    found = {
        event.row: event.generation
        for event in engine.stream(requests)
        if isinstance(event, Finished)
    }
    return [found[row] for row in range(len(chats))]


def follow_ups(engine: local.LocalEngine, runs: int, tokens: int) -> None:
    """Print the time to first token (TTFT, s) of a first question and of its follow-up."""
    first_times, later_times = [], []
    for run in range(runs + 1):
        chat = asked(photo(run), "What colour is the circle?")
        (first,) = answers(engine, [chat], tokens)
        again = chat.with_answer(first.text, complete=True)
        (later,) = answers(engine, [again.add(Message("user", "And how large is it?"))], tokens)
        if run:  # the first of each is not counted
            first_times.append(first.usage.time_to_first_token or 0.0)
            later_times.append(later.usage.time_to_first_token or 0.0)
    print(f"first token of a follow-up, prompt of {first.usage.prompt_tokens} tokens")
    print(f"  first question {min(first_times):8.3f} s")
    print(f"  follow-up      {min(later_times):8.3f} s")
    print(f"  {describe(first_times, later_times)}")
    if first.usage.peak_bytes:  # of GPUs alone
        peaks = [sum(each.usage.peak_bytes.values()) / MIB for each in (first, later)]
        print("  peak memory: first question {:.0f} MiB, follow-up {:.0f} MiB".format(*peaks))
    sys.stdout.flush()


def many_chats(engine: local.LocalEngine, chats: int = 100) -> None:
    """Print how much is kept at most while many chats take turns, next to the budget."""
    budget, most = engine.kept.budget, 0
    engine.kept.clear()
    answers(engine, [asked(photo(255), "Question?")], 1)
    engine.kept.budget = 3 * engine.cache.used_bytes
    for number in range(chats):
        text = Conversation((Message("user", f"Question {number}?"),))
        answers(engine, [asked(photo(number), "What?") if number % 40 == 0 else text], 1)
        most = max(most, engine.cache.used_bytes)
    print(f"{chats} chats, some with an image, {engine.cache.prefixes} kept at the end")
    print(f"  kept at most {most / 1024:.0f} KiB of {engine.kept.budget / 1024:.0f}", flush=True)
    engine.kept.budget = budget


def map_on_one_image(engine: local.LocalEngine, rows: int, runs: int, tokens: int) -> None:
    """Print seconds of questions on one image, in batches and one by one with nothing kept."""
    chats = [[asked(photo(run), f"Question {row}?") for row in range(rows)] for run in range(runs)]
    single_times, batched_times, same = [], [], 0
    for each in chats:
        engine.kept.clear()
        engine.kept.budget = 0
        start = time.perf_counter()
        alone = [answers(engine, [chat], tokens)[0].text for chat in each]
        single_times.append(time.perf_counter() - start)
        engine.kept.budget = KEEP
        start = time.perf_counter()
        together = answers(engine, each, tokens)
        batched_times.append(time.perf_counter() - start)
        same += sum(one == other.text for one, other in zip(alone, together, strict=True))
    print(f"{rows} questions on one image, {tokens} tokens each")
    print(f"  one by one {min(single_times):8.2f} s")
    print(f"  mapped     {min(batched_times):8.2f} s")
    print(f"  {describe(single_times, batched_times)}")
    print(f"  {same} of {rows * runs} answers are the same", flush=True)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--visual-tokens", type=int, default=1602)
    parser.add_argument("--checkpoint", help="a folder, instead of the one that is written here")
    add_gpus(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if not arguments.checkpoint:
            write_larger(Path(temporary), visual_tokens=arguments.visual_tokens)
        engine = load_engine(arguments.checkpoint or temporary, arguments.gpus, KEEP)
        engine.defaults.eos_token_id = []  # always `tokens` tokens
        follow_ups(engine, arguments.runs, arguments.tokens)
        many_chats(engine)
        map_on_one_image(engine, arguments.rows, max(arguments.runs // 2, 1), arguments.tokens)
        engine.close()


if __name__ == "__main__":
    main()
