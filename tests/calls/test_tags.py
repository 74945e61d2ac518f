"""Tags around boxes are never shown, not even in part, and tokens keep their places."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glm4v_magic.calls.tags import Untagged, shown
from glm4v_magic.core.boxes import BOX_TAGS
from glm4v_magic.core.events import Reclassified, Text, Thinking
from glm4v_magic.core.tokens import Token

OPEN, CLOSE = BOX_TAGS


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (f"{OPEN}42{CLOSE}", "42"),
        (f"{OPEN} 42 {CLOSE}", "42"),
        (f"It is {OPEN}[[1,2,3,4]]{CLOSE}, see.", "It is [[1,2,3,4]], see."),
        (f"{OPEN}{CLOSE}", ""),
        (f"a < b <| {OPEN}c{CLOSE}{CLOSE}", "a < b <| c"),
        ("no tags <|begin_of", "no tags <|begin_of"),
        (" kept as it is ", " kept as it is "),
    ],
)
def test_what_an_answer_shows(written, text):
    assert shown(written).text == text


def test_a_tag_that_has_only_begun_is_not_shown_of_an_answer_that_goes_on():
    for length in range(2, len(OPEN) + 1):
        assert shown(f"It is {OPEN[:length]}", complete=False).text == "It is "
    assert shown("1 <", complete=False).text == "1 <"
    assert shown(f"{OPEN}a ", complete=False).text == "a "


def streamed(pieces, begun="", *, complete=True):
    untagged = Untagged(begun)
    events = [event for piece in pieces for event in untagged.take(Text(piece))]
    return [*events, *untagged.end(complete=complete)]


def cut(text, places):
    at = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in pairwise(at)]


SAID = st.lists(
    st.one_of(st.sampled_from([*BOX_TAGS, "<", "<|", "<|begin_", "|>", " ", "\n"]), st.text()),
    max_size=10,
).map("".join)
PLACES = st.lists(st.integers(0, 10**6), max_size=20)


@given(SAID, PLACES, st.booleans())
@example(f"a{OPEN[:5]}", [3], False)
def test_streaming_shows_what_the_whole_shows(said, places, complete):
    events = streamed(cut(said, places), complete=complete)
    assert all(event.text for event in events)
    told = "".join(event.text for event in events)
    assert told.strip() == shown(said, complete=complete).text.strip()


@given(SAID, PLACES)
def test_no_moment_shows_part_of_a_tag(said, places):
    told = ""
    untagged = Untagged()
    for piece in cut(f"{said.replace('<', '')}{OPEN}x{CLOSE}", places):
        told += "".join(event.text for event in untagged.take(Text(piece)))
        assert "<" not in told


@given(SAID, SAID, PLACES)
def test_an_answer_that_goes_on_goes_on_within_a_tag(begun, said, places):
    begun = begun.rstrip("<")  # one alone is shown
    before = shown(begun, complete=False).text
    told = "".join(event.text for event in streamed(cut(said, places), begun))
    whole = shown(begun + said).text
    if before.strip():
        assert (before + told).strip() == whole.strip()
    else:
        assert told.strip() == whole.strip()


@given(SAID, PLACES)
def test_tokens_keep_their_places(said, places):
    at, tokens = 0, []
    for piece in cut(said, places):
        tokens.append(Token(piece, -1.0, at, at + len(piece)))
        at += len(piece)
    found = shown(said)
    moved = found.moved(tokens)
    assert "".join(found.text[each.start : each.end] for each in moved) == found.text
    assert moved[-1].end == len(found.text) if moved else found.text == ""
    if not found.cuts:
        assert list(moved) == tokens


def test_tokens_of_what_goes_on_are_placed_in_the_new_part():
    begun, new = f"It is {OPEN}", f"42{CLOSE}!"
    tokens = [Token("42", -1.0, 0, 2), Token(CLOSE, -1.0, 2, 16), Token("!", -1.0, 16, 17)]
    found = shown(begun + new)
    assert found.place(len(begun)) == len("It is ")
    assert [(t.start, t.end) for t in found.moved(tokens, len(begun))] == [(0, 2), (2, 2), (2, 3)]
    assert found.moved(None) is None


def test_streamed_tokens_come_with_their_text():
    untagged, at, told = Untagged(), 0, []
    for piece in ("It ", "is ", OPEN, "<", "4", "2", CLOSE, "."):
        token = Token(piece, -1.0, at, at + len(piece))
        at += len(piece)
        told += untagged.take(Text(piece, 3, (token,)))
    text = "".join(event.text for event in told)
    assert text == "It is <42."
    assert {event.row for event in told} == {3}
    placed = [text[t.start : t.end] for event in told for t in event.tokens]
    assert placed == ["It ", "is ", "", "<", "4", "2", "", "."]


def test_what_turns_out_to_be_thinking_is_told_before():
    untagged = Untagged()
    events = [
        *untagged.take(Text(f"Hm {OPEN}1{CLOSE} <|b")),
        *untagged.take(Reclassified()),
        *untagged.take(Thinking("so")),
        *untagged.take(Text(f" {OPEN}1")),
    ]
    assert events == [Text("Hm 1 "), Text("<|b"), Reclassified(), Thinking("so"), Text("1")]
