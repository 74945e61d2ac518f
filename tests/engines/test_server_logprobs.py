"""Log-probabilities from servers: in many forms, not at all, refused, or nonsense."""

from __future__ import annotations

import json

import pytest
from scripted_server import CHAT, END, piece, response, stream

from glm4v_magic.core.errors import EngineError


def scored(*tokens, content=None, **delta):
    """A piece with tokens, each a text, or its bytes."""
    said = piece(content, **delta)
    said["choices"][0]["logprobs"] = {
        "content": [
            {
                "token": token.decode(errors="replace") if isinstance(token, bytes) else token,
                "logprob": -0.5,
                "bytes": list(token) if isinstance(token, bytes) else None,
                "top_logprobs": [{"token": f"x{index}", "logprob": -1} for index in range(5)],
            }
            for token in tokens
        ]
    }
    return said


def told(answer):
    return [(token.text, answer.text[token.start : token.end]) for token in answer.tokens]


def test_they_are_asked_for_and_read(server, session):
    server.answer(CHAT, stream(scored("Hel", content="Hel"), scored("lo.", content="lo."), END))
    answer = session.ask("What?", logprobs=2)
    assert told(answer) == [("Hel", "Hel"), ("lo.", "lo.")]
    assert answer.tokens[0].logprob == -0.5
    assert [each.text for each in answer.tokens[0].alternatives] == ["x0", "x1"]
    body = server.bodies[-1]
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    session.ask("What?", logprobs=0)
    assert server.bodies[-1]["logprobs"] is True
    assert "top_logprobs" not in server.bodies[-1]
    silent = session.ask("What?")
    assert silent.tokens is None
    assert "logprobs" not in server.bodies[-1]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        # a character over three tokens, whose first two come without text
        (
            [
                scored(b"a", content="a"),
                scored("猫".encode()[:1]),
                scored("猫".encode()[1:2]),
                scored("猫".encode()[2:], content="猫"),
            ],
            ["a", "猫", "猫", "猫"],
        ),
        # several tokens in a piece, leading whitespace, and a token that ends the answer
        ([scored("\n", "a", " b", content="\na b"), scored("<|user|>")], ["", "a", " b", ""]),
        # as the vocabulary writes them, which does not spell the text
        ([scored("Ġa", "b", content=" ab"), scored("Ġc", content=" c")], ["ab", "ab", " c"]),
    ],
)
def test_places_in_the_text(server, session, events, expected):
    server.answer(CHAT, stream(*events, END))
    answer = session.ask("What?", logprobs=1)
    assert [there for _, there in told(answer)] == expected


def test_thinking_is_kept_apart(server, session):
    marked = [
        scored("<think>"),
        scored("Hm", reasoning_content="Hm"),
        scored("</think>"),
        scored("Yes", content="Yes"),
    ]
    inline = [scored(each, content=each) for each in ("<think>", "Hm", "</think>", "\n", "Yes")]
    for events in (marked, inline):
        server.answer(CHAT, stream(*events, END))
        answer = session.ask("What?", logprobs=0)
        assert [pair for pair in told(answer) if pair[1]] == [("Yes", "Yes")]
        thought = [each for each in answer.thinking_tokens if each.start < each.end]
        assert [(each.text, each.start, each.end) for each in thought] == [("Hm", 0, 2)]


def test_a_server_that_ignores_them(server, session):
    server.answer(CHAT, stream(piece("Hello."), END))
    answer = session.ask("What?", logprobs=3)
    assert (answer.text, answer.tokens) == ("Hello.", ())


@pytest.mark.parametrize("status", ["400 Bad Request", "403 Forbidden", "422 Unprocessable"])
def test_a_server_that_refuses_them(server, session, monkeypatch, status):
    no = response({"error": {"message": "logprobs are not supported"}}, status)
    yes = stream(piece("Hello."), END)

    class Script(dict):
        def get(self, about, default=()):
            asks = about == CHAT and "logprobs" in server.bodies[-1]
            return (no if asks else yes,) if about == CHAT else super().get(about, default)

    monkeypatch.setattr(server, "script", Script(server.script))
    answer = session.ask("What?", logprobs=3)
    assert (answer.text, answer.tokens) == ("Hello.", ())
    session.ask("What?", logprobs=3)
    assert ["logprobs" in body for body in server.bodies] == [True, False, False]


def test_a_request_that_is_refused_for_another_reason(server, session):
    server.answer(CHAT, response({"error": {"message": "too long"}}, "400 Bad Request"))
    for _ in range(2):
        with pytest.raises(EngineError, match="too long"):
            session.ask("What?", logprobs=3)
    assert ["logprobs" in body for body in server.bodies] == [True, False] * 2


@pytest.mark.parametrize(
    "nonsense",
    [
        7,
        [],
        {"content": 7},
        {"content": [7, None, {"token": 3}, {"token": "a"}]},
        {"content": [{"token": "a", "logprob": "much"}]},
        {"content": [{"token": "a", "logprob": 1e999}]},
        {"content": [{"token": "Hi", "logprob": -1, "bytes": [999], "top_logprobs": 3}]},
        {"content": [{"token": "Hi", "logprob": -1, "top_logprobs": [{"token": 1}, None]}]},
        {"content": [{"token": "not at all", "logprob": -1}] * 3},
        {"content": [{"token": "zzz", "logprob": 5.0}]},
    ],
    ids=repr,
)
def test_nonsense_loses_no_answer(server, session, nonsense):
    said = piece("Hi")
    said["choices"][0]["logprobs"] = nonsense
    data = b"data: " + json.dumps(said).encode() + b"\n\n"
    server.answer(CHAT, stream(data, END))
    answer = session.ask("What?", logprobs=3)
    assert answer.text == "Hi"
    for token in answer.tokens:
        assert (token.start, token.end, token.alternatives) == (0, 2, ())
        assert token.logprob <= 0
