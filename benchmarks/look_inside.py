"""What a look into the model costs beside the answer.

    python benchmarks/look_inside.py

The demo answers a question in 7 tokens; then tokens, lens and attention of one token are computed.
The peak memory with 1,602 visual tokens is checked in tests/inspect.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from PIL import Image, ImageDraw

from glm4v_magic.session.session import Session

QUESTION = "What colour is the circle?"
REPEATS = 7


def drawn(shift: int) -> Image.Image:
    """Draw a circle; no two images are equal, so that nothing is kept from the one before."""
    image = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(image).ellipse((20 + shift, 30, 100 + shift, 110), fill="red")
    return image


def seconds(action: Callable[[], object]) -> float:
    """Return how long a call takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def main() -> None:
    """Print the times."""
    session = Session().load("demo")
    answers: list[float] = []
    looks: list[float] = []
    for number in range(REPEATS + 1):
        begun = time.perf_counter()
        answer = session.ask(QUESTION, drawn(number))
        answers.append(time.perf_counter() - begun)
        look = answer.inspect()
        looks.append(seconds(lambda look=look: (look.tokens, look.lens(), look.attention(4))))  # type: ignore[misc]
    answers, looks = answers[1:], looks[1:]  # the first call sets libraries up
    shares = [look / answer for look, answer in zip(looks, answers, strict=True)]
    print(f"answer of {answer.usage.new_tokens} tokens: {statistics.median(answers) * 1e3:.0f} ms")
    print(f"tokens, lens and attention of one token: {statistics.median(looks) * 1e3:.0f} ms")
    print(f"share: {statistics.median(shares):.2f}")


if __name__ == "__main__":
    main()
