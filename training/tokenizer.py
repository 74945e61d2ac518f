"""Byte-pair ranks for the demo model, in the tiktoken format that GLM-4 uses.

``python -m training.tokenizer --out DIR`` writes ``tokenizer.model``: one line per token, its
bytes in base64, a space, its rank. The 256 single bytes come first, so that any text encodes.
"""

from __future__ import annotations

import argparse
import base64
import functools
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from glm4v_magic.checkpoints.glm4v_9b.processing import PATTERN
from training.phrases import CHINESE_COLOURS, CHINESE_SHAPES, CHINESE_SIDES
from training.questions import CANNOT_TELL, NO_IMAGE, conversation
from training.scenes import COLOURS, SHAPES, rng_for, sample_scene

__all__ = ["RANKS", "Tokenizer", "train_ranks"]

RANKS = 836
"""Tokens of the demo model without the special ones."""

# Chinese is written without spaces, so that a whole clause is one piece of text: free merges would
# cut one word in many ways, by what stands beside it. Tokens are single characters and these words.
_CHINESE_WORDS = (
    *CHINESE_COLOURS.values(), *CHINESE_SHAPES.values(), *CHINESE_SIDES.values(),
    "什么", "颜色", "图形", "形状", "图中", "图片", "背景", "数字", "没有", "多少",
)  # fmt: skip

Pair = tuple[bytes, bytes]


_SPLIT = Split(Regex(PATTERN), behavior="isolated")


def pieces(text: str) -> list[str]:
    """Cut `text` as GLM-4's tokenizer does before it merges bytes."""
    return [piece for piece, _ in _SPLIT.pre_tokenize_str(text)]


class Tokenizer:
    """Encodes and decodes with given ranks; knows no special tokens."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        self.ranks = ranks
        self._tokens = {rank: token for token, rank in ranks.items()}
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a ``tokenizer.model`` file."""
        pairs = (line.split() for line in path.read_bytes().splitlines() if line)
        return cls({base64.b64decode(token): int(rank) for token, rank in pairs})

    def save(self, path: Path) -> None:
        """Write a ``tokenizer.model`` file."""
        lines = (f"{base64.b64encode(t).decode()} {rank}\n" for t, rank in self.ranks.items())
        path.write_text("".join(lines), encoding="ascii")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in pieces(text):
            if piece not in self._cache:
                self._cache[piece] = self.spell(piece.encode())
            ids += self._cache[piece]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; ids that are no ranks (special tokens) are left out."""
        return b"".join(self._tokens.get(i, b"") for i in ids).decode(errors="replace")

    def spell(self, piece: bytes) -> list[int]:
        """Return the ids of one piece of text."""
        parts = [piece[i : i + 1] for i in range(len(piece))]
        while len(parts) > 1:
            pairs = [self.ranks.get(a + b) for a, b in itertools.pairwise(parts)]
            known = [rank for rank in pairs if rank is not None]
            if not known:
                break
            at = pairs.index(min(known))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self.ranks[part] for part in parts]


def train_ranks(words: Counter[str], size: int) -> dict[bytes, int]:
    """Merge the most frequent neighbours until there are `size` tokens.

    Ties go to the pair that sorts first, so that the result depends on `words` alone.
    """
    ranks = {bytes([value]): value for value in range(256)}
    split = [([bytes([b]) for b in word.encode()], count) for word, count in words.items()]
    counts: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)

    def count_pairs(index: int, sign: int) -> None:
        parts, count = split[index]
        for pair in itertools.pairwise(parts):
            if _allowed(pair[0] + pair[1]):
                counts[pair] += sign * count
                places[pair].add(index)

    for index in range(len(split)):
        count_pairs(index, 1)
    while len(ranks) < size:
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] == 0:
            break
        ranks.setdefault(best[0] + best[1], len(ranks))
        for index in places.pop(best):
            count_pairs(index, -1)
            _join(split[index][0], best)
            count_pairs(index, 1)
        del counts[best]
    return ranks


@functools.cache
def _allowed(token: bytes) -> bool:
    if token.isascii():
        return True
    if len(token) <= 3:  # a character from its first byte on, or the beginning of one
        return token[0] >= 0xC0 and all(0x80 <= byte < 0xC0 for byte in token[1:])
    part = token.decode(errors="replace")
    return any(part in word for word in _CHINESE_WORDS)


def _join(parts: list[bytes], pair: Pair) -> None:
    at = 0
    while at < len(parts) - 1:
        if (parts[at], parts[at + 1]) == pair:
            parts[at : at + 2] = [pair[0] + pair[1]]
        at += 1


def corpus_words(seed: int, scenes: int = 3000) -> Counter[str]:
    """Return the pieces of text that questions and answers consist of, with their counts."""
    rng = rng_for("tokenizer", seed)
    words: Counter[str] = Counter()
    for text in _texts(rng, scenes):
        words.update(pieces(text))
    return words


def _texts(rng: random.Random, scenes: int) -> Iterator[str]:
    for _ in range(scenes):
        for exchange in conversation(rng, sample_scene(rng), 5):
            yield exchange.question
            yield exchange.answer
    for _ in range(scenes // 2):
        for exchange in conversation(rng, sample_scene(rng), 5, "chinese"):
            yield exchange.question
            yield exchange.answer
    for answers in (CANNOT_TELL, NO_IMAGE):
        yield from list(answers.values()) * (scenes // 40)
    # Every colour and shape becomes one token wherever it stands.
    names = [*COLOURS, *SHAPES, *(shape + "s" for shape in SHAPES), "crosses"]
    for name in names:
        yield from [f"{name} The {name} {name.capitalize()}"] * (scenes // 30)
    for word in _CHINESE_WORDS:
        yield from [word] * (scenes // 2)


def main() -> None:
    """Write ``tokenizer.model``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--size", type=int, default=RANKS, help="number of ranks")
    parser.add_argument("--scenes", type=int, default=3000, help="scenes to take text from")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ranks = train_ranks(corpus_words(options.seed, options.scenes), options.size)
    Tokenizer(ranks).save(options.out / "tokenizer.model")
    print(f"{len(ranks)} ranks -> {options.out / 'tokenizer.model'}")


if __name__ == "__main__":
    main()
