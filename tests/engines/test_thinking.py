"""A model's thinking told apart from its answer, wherever the pieces are cut."""

from __future__ import annotations

import pytest

from glm4v_magic.core.events import Reclassified, Text, Thinking
from glm4v_magic.engines.thinking import ThinkingSplitter

CASES = [
    # as it was written; the thinking; the answer
    ("Hello.", "", "Hello."),
    ("", "", ""),
    (" \n", "", ""),
    ("<think>Hm.</think>Yes.", "Hm.", "Yes."),
    ("\n<think>\nHm.\n</think>\n\nYes.\n", "\nHm.\n", "Yes.\n"),
    ("<think>Hm.</think><answer>Yes.</answer>", "Hm.", "Yes."),
    ("<think>Hm.</think>\n<answer>\nYes.\n</answer>\n", "Hm.", "\nYes.\n"),
    ("<think></think>Yes.", "", "Yes."),
    ("<think>\n\n</think>\n\nYes.", "\n\n", "Yes."),
    # the opening tag stands in the prompt
    ("Hm.\n</think>\nYes.", "Hm.\n", "Yes."),
    ("Hm.</think><answer>Yes.</answer>", "Hm.", "Yes."),
    ("</think>Yes.", "", "Yes."),
    ("Hm.</think>", "Hm.", ""),
    ("Is 1 < 2? </thin, no. </think>Yes.", "Is 1 < 2? </thin, no. ", "Yes."),
    # stopped, or cut off
    ("<think>Hm, a", "Hm, a", ""),
    ("<think>Hm, a </thi", "Hm, a </thi", ""),
    ("<thi", "", "<thi"),
    ("<think>Hm.</think>", "Hm.", ""),
    ("<think>Hm.</think>\n<ans", "Hm.", "<ans"),
    ("<think>Hm.</think><answer>Ye", "Hm.", "Ye"),
    ("<think>Hm.</think><answer>Yes</ans", "Hm.", "Yes</ans"),
    ("Yes </th", "", "Yes </th"),
    # words like others
    ("A <think> in the middle </think> is none.", "", "A <think> in the middle </think> is none."),
    ("The tag <think> ends with </think>", "", "The tag <think> ends with </think>"),
    ("It ends with `</think>`.", "", "It ends with `</think>`."),
    ('The tag "</think>"', "", 'The tag "</think>"'),
    ("<answer>Yes.</answer>", "", "<answer>Yes.</answer>"),
    ("<thinking>Hm.</thinking>", "", "<thinking>Hm.</thinking>"),
    ("< think>Hm", "", "< think>Hm"),
    ("<think>a <think> b</think>c</think>", "a <think> b", "c</think>"),
    ("<think>a</think>Yes <answer>x</answer>", "a", "Yes <answer>x</answer>"),
    (
        "<think>a</think><answer>Say <answer>x</answer> so.</answer>",
        "a",
        "Say <answer>x</answer> so.",
    ),
    ("<think>a</think><answer>b</answer> and more", "a", "b</answer> and more"),
]


def told(pieces, **how):
    """What is told of these pieces: the thinking, and the answer."""
    splitter = ThinkingSplitter(**how)
    events = [event for piece in pieces for event in splitter.add(piece)]
    return joined([*events, *splitter.end()])


def joined(events):
    thinking, answer = [], []
    for event in events:
        match event:
            case Reclassified():
                assert answer, "there is nothing to take back"
                assert not thinking, "thinking comes before the answer"
                thinking, answer = answer, []
            case Thinking():
                assert not answer, "thinking comes before the answer"
                thinking.append(event.text)
            case Text():
                answer.append(event.text)
    assert all([*thinking, *answer]), "no piece is empty"
    return "".join(thinking), "".join(answer)


@pytest.mark.parametrize(("written", "thinking", "answer"), CASES)
def test_thinking_and_answer_wherever_the_text_is_cut(written, thinking, answer):
    assert told([written]) == (thinking, answer)
    assert told(written) == (thinking, answer)
    for first in range(len(written)):
        for second in range(first, len(written)):
            pieces = (written[:first], written[first:second], written[second:])
            assert told(pieces) == (thinking, answer), pieces


def test_pieces_are_told_at_once_but_for_what_may_be_a_tag():
    splitter = ThinkingSplitter()
    pieces = ("<th", "ink>Hm", " <", " 3</", "think> ", "Yes", " <b>", "</answer>")
    assert [list(splitter.add(piece)) for piece in pieces] == [
        [], [Thinking("Hm")], [Thinking(" ")], [Thinking("< 3")], [],
        [Text("Yes")], [Text(" <b>")], [Text("</answer>")],
    ]  # fmt: skip


def test_no_text_is_told_twice():
    splitter = ThinkingSplitter()
    events = [list(splitter.add(piece)) for piece in ("Hm", " so. Well</", "think>Yes", ".")]
    assert events == [
        [Text("Hm")],
        [Text(" so. Well")],
        [Reclassified(), Text("Yes")],
        [Text(".")],
    ]
    splitter = ThinkingSplitter()
    assert [*splitter.add("Hm,"), *splitter.add(" so.</think>Yes")] == [
        Text("Hm,"),
        Reclassified(),
        Thinking(" so."),
        Text("Yes"),
    ]


@pytest.mark.parametrize(
    ("how", "written", "thinking", "answer"),
    [
        ({"inside": True}, " and on</think>\nYes.", " and on", "Yes."),
        ({"inside": True}, "<think>anew</think>Yes.", "anew", "Yes."),
        ({"inside": True}, " and on", " and on", ""),
        ({"inside": True}, "</think><answer>Yes.</answer>", "", "Yes."),
        ({"inside": True}, " <thi", " <thi", ""),
        ({"answer": True}, " and on</think> </answer>", "", " and on</think> </answer>"),
        ({"answer": True}, "<think>", "", "<think>"),
        ({"answer": True, "thought": True}, " and on.</answer>\n", "", " and on."),
    ],
)
def test_what_goes_on_with_something_that_was_stopped(how, written, thinking, answer):
    assert told([written], **how) == (thinking, answer)
    assert told(written, **how) == (thinking, answer)


def test_where_the_server_has_taken_the_thinking_out_tags_are_words():
    splitter = ThinkingSplitter()
    events = [
        *splitter.add("\n"),
        *splitter.add_thinking("Hm"),
        *splitter.add_thinking("."),
        *splitter.add("\n<think>."),
    ]
    assert joined([*events, *splitter.end()]) == ("Hm.", "<think>.")
    splitter = ThinkingSplitter(inside=True)
    events = [*splitter.add_thinking(" on"), *splitter.add("<answer>Yes.</answer>")]
    assert joined([*events, *splitter.end()]) == (" on", "Yes.")
    splitter = ThinkingSplitter()
    events = [*splitter.add("<think>Hm</"), *splitter.add_thinking("."), *splitter.add("Yes")]
    assert joined([*events, *splitter.end()]) == ("Hm</.", "Yes")
