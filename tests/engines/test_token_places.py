"""Where tokens stand in a text: whole characters, cut ones, tags and whitespace around it."""

from __future__ import annotations

import random

import pytest

from glm4v_magic.core.tokens import Token, joined
from glm4v_magic.engines.token_places import placed, spelled


def tokens_of(*pieces):
    return [Token(each.decode(errors="replace"), -1.0, 0, 0, utf8=each) for each in pieces]


def places(tokens):
    return [(each.start, each.end) for each in tokens]


def test_tokens_of_one_character_all_span_it():
    cat = "猫".encode()
    raw, spans = spelled([b"a", cat[:1], cat[1:2], cat[2:] + b"b", b"", b"c"])
    assert raw == "a猫bc"
    assert spans == [(0, 1), (1, 2), (1, 2), (1, 3), (3, 3), (3, 4)]


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_are_spelled_as_python_decodes_them(seed):
    chance = random.Random(seed)
    text = "".join(chance.choice("aé猫😀 \n") for _ in range(12)).encode()
    data = bytes(chance.randrange(256) if chance.random() < 0.2 else byte for byte in text)
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(6))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    raw, spans = spelled(pieces)
    assert raw == data.decode(errors="replace")
    for piece, (start, end) in zip(pieces, spans, strict=True):
        assert raw[start:end].strip("\ufffd") in data.decode(errors="replace")
        assert bool(piece) == (start < end)
        whole = piece.decode(errors="replace").strip("\ufffd")
        assert whole in raw[start:end]
    assert {at for span in spans for at in range(*span)} == set(range(len(raw)))


def test_whitespace_around_an_answer_spans_nothing():
    tokens = tokens_of(b"\n", b" a", b" cat", b" \n", b"")
    raw, spans = spelled(each.utf8 for each in tokens)
    answer, thought = placed(tokens, spans, raw, "a cat")
    assert places(answer) == [(0, 0), (0, 1), (1, 5), (5, 5), (5, 5)]
    assert not thought


def test_half_a_character_at_the_end_spans_nothing():
    tokens = tokens_of(b"a", "猫".encode()[:2])
    raw, spans = spelled(each.utf8 for each in tokens)
    assert places(placed(tokens, spans, raw, "a")[0]) == [(0, 1), (1, 1)]


@pytest.mark.parametrize("wrapped", [False, True])
def test_thinking_is_kept_apart(wrapped):
    last = [b"<answer>", b"ab", b"</answer>"] if wrapped else [b"ab"]
    tokens = tokens_of(b"<think>", b"ab", b" c", b"</think>", b"\n", *last)
    raw, spans = spelled(each.utf8 for each in tokens)
    answer, thought = placed(tokens, spans, raw, "ab", "ab c")
    assert [each.text for each in answer if each.start < each.end] == ["ab"]
    assert [(each.text, *place) for each, place in zip(thought, places(thought), strict=True)][
        1:3
    ] == [("ab", 0, 2), (" c", 2, 4)]
    assert len(answer) + len(thought) == len(tokens)


def test_two_parts_of_an_answer_join():
    first, second = tokens_of(b"ab", b"c"), tokens_of(b"d")
    first = placed(first, [(0, 2), (2, 3)], "abc", "abc")[0]
    second = placed(second, [(0, 1)], "d", "d")[0]
    assert places(joined(first, second, 3)) == [(0, 2), (2, 3), (3, 4)]
    # The first part was kept without its last character, which is written again.
    assert places(joined(first, second, 2)) == [(0, 2), (2, 3)]
    assert joined(None, None, 3) is None
    assert places(joined(None, second, 3)) == [(3, 4)]
