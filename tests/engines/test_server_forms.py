"""The form of an answer is told to servers, and left out for those that refuse it."""

from __future__ import annotations

import pytest
from scripted_server import CHAT, END, piece, response, stream

from glm4v_magic.core.errors import EngineError, FormatError

REFUSED = response({"error": {"message": "unknown field"}}, status="400 Bad Request")


@pytest.fixture
def in_turn(server, monkeypatch):
    """Give the responses to the next requests, one after the other."""

    def give(*responses):
        waiting = list(responses)

        class Script(dict):
            def get(self, about, default=()):
                return (waiting.pop(0),) if about == CHAT else super().get(about, default)

        monkeypatch.setattr(server, "script", Script(server.script))

    return give


def said(text):
    return stream(piece(text), END)


@pytest.mark.parametrize(
    ("options", "text", "name", "value"),
    [
        (
            {"schema": {"type": "array"}},
            "[]",
            "response_format",
            {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "array"}},
            },
        ),
        ({"choices": ["a", "b"]}, "a", "structured_outputs", {"choice": ["a", "b"]}),
        ({"regex": "[0-9]+"}, "12", "structured_outputs", {"regex": "[0-9]+"}),
    ],
)
def test_the_form_is_sent(server, session, options, text, name, value):
    server.answer(CHAT, said(text))
    answer = session.ask("What?", **options)
    assert (answer.text, answer.corrected) == (text, "")
    assert server.bodies[-1][name] == value
    session.ask("What?")
    assert name not in server.bodies[-1]


def test_a_schema_in_the_way_of_llama_cpp(server, session, in_turn):
    message = (
        "1 validation error: {'loc': ('body', 'response_format', 'type'), 'msg': "
        "\"Input should be 'text' or 'json_object'\", 'input': 'json_schema'}"
    )
    in_turn(response({"error": {"message": message}}, "500 Oh"), said("[]"), said("[]"))
    for _ in range(2):  # it is known by the second
        assert session.ask("What?", schema={"type": "array"}).value == []
        assert server.bodies[-1]["response_format"] == {
            "type": "json_object", "schema": {"type": "array"},
        }  # fmt: skip
    assert len(server.bodies) == 3


def test_a_server_that_fails_otherwise_is_not_asked_again(server, session, in_turn):
    in_turn(response({"error": {"message": "out of memory"}}, "500 Oh"))
    with pytest.raises(EngineError, match="out of memory"):
        session.ask("What?", schema={"type": "array"})
    assert len(server.bodies) == 1


def test_a_choice_is_given_the_tokens_that_it_needs(server, session):
    server.answer(CHAT, said("猫猫"))
    session.ask("What?", choices=["猫猫", "no"], max_tokens=2)
    assert server.bodies[-1]["max_tokens"] == 7
    session.ask("What?", choices=["猫猫", "no"], max_tokens=20)
    assert server.bodies[-1]["max_tokens"] == 20


def test_a_server_that_refuses_a_form_is_asked_without_it_from_then_on(server, session, in_turn):
    in_turn(REFUSED, said("Perhaps"), said("yes"), said("no"), said("maybe"))
    answer = session.ask("What?", choices=["yes", "no"])
    assert (answer.text, bool(answer.corrected)) == ("yes", True)
    session.ask("What?", choices=["yes", "no"])
    session.ask("What?", choices=["yes", "maybe"])  # it may take another one
    with_form = ["structured_outputs" in body for body in server.bodies]
    assert with_form[-5:] == [True, False, False, False, True]


def test_a_form_that_our_server_cannot_follow_is_told_and_not_paid_for(server, session):
    refusal = {"error": {"message": "The form cannot be followed: it is too large."}}
    server.answer(CHAT, response(refusal, status="400 Bad Request"))
    with pytest.raises(EngineError, match=r"cannot be followed: it is too large\.$"):
        session.ask("What?", regex="(a+)+b{9999}", top_k=5)
    assert len(server.bodies) == 1


def test_only_what_is_refused_is_left_out(server, session, in_turn):
    in_turn(REFUSED, REFUSED, said("yes"), said("no"))
    session.ask("What?", choices=["yes", "no"], logprobs=1)
    assert [("structured_outputs" in b, "logprobs" in b) for b in server.bodies[-3:]] == [
        (True, True),
        (False, True),
        (True, False),
    ]
    session.ask("What?", choices=["yes", "no"], logprobs=1)
    assert ("structured_outputs" in server.bodies[-1], "logprobs" in server.bodies[-1]) == (
        True,
        False,
    )


def test_a_server_that_refuses_the_question_says_why(server, session):
    server.answer(CHAT, REFUSED)
    with pytest.raises(EngineError, match="unknown field"):
        session.ask("What?", choices=["yes", "no"])


def test_an_answer_of_another_form_is_corrected_once_only(session, in_turn):
    in_turn(said("<b>Perhaps</b>"), said("Perhaps."))
    with pytest.raises(FormatError, match="none of the choices") as caught:
        session.ask("What?", choices=["yes", "no"])
    assert caught.value.answer.text == "Perhaps."


def with_choices(sent):
    last = piece("yes")
    last["choices"][0]["glm4v_magic"] = {"choices": sent}
    return stream(last, END)


def test_probabilities_of_choices_are_taken_in_the_order_of_the_choices(server, session):
    server.answer(CHAT, with_choices({"no": 0.25, "yes": 0.75}))
    answer = session.ask("What?", choices=["yes", "no"])
    assert list(answer.choices.items()) == [("yes", 0.75), ("no", 0.25)]
    assert session.ask("What?").choices == {}


@pytest.mark.parametrize(
    "sent",
    [
        {"yes": 1},
        {"yes": 0.5, "no": 0.25, "<b>": 0.25},
        {"yes": "0.5", "no": 0.5},
        {"yes": 2.0, "no": -1.0},
        {"yes": True, "no": 0.0},
        ["yes", "no"],
        None,
        "yes",
    ],
    ids=str,
)
def test_nonsense_for_probabilities_of_choices_is_none(server, session, sent):
    server.answer(CHAT, with_choices(sent))
    answer = session.ask("What?", choices=["yes", "no"])
    assert (answer.text, answer.choices) == ("yes", {})


def test_an_answer_is_carried_on_without_the_form_and_checked(server, session):
    """A server would apply it to the new part alone, which then begins the JSON anew."""
    server.answer(CHAT, stream(piece('{"a":'), piece(ending="length")))
    with pytest.raises(FormatError, match="carry it on"):
        session.ask("What?", format="json")
    assert "response_format" in server.bodies[-1]
    server.answer(CHAT, said(" 1}"))
    answer = session.carry_on()
    assert (answer.text, answer.value) == ('{"a": 1}', {"a": 1})
    assert server.bodies[-1]["continue_final_message"] is True
    assert "response_format" not in server.bodies[-1]
