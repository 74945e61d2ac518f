"""Answers in the words of vLLM and SGLang: keys and values as these servers send them."""

from __future__ import annotations

import json

import pytest
from scripted_server import CHAT, MODELS, models, response, scripted_server, stream

import glm4v_magic
from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.server_address import API_KEY
from glm4v_magic.engines.server import patience

MODEL = "zai-org/GLM-4.1V-9B-Thinking"
FRAME = {
    "id": "chatcmpl-8d0fd1f6",
    "object": "chat.completion.chunk",
    "created": 1764400000,
    "model": MODEL,
}
TOKEN = {
    "token": " one",
    "logprob": -0.25,
    "bytes": [32, 111, 110, 101],
    "top_logprobs": [
        {"token": " one", "logprob": -0.25, "bytes": [32, 111, 110, 101]},
        {"token": " two", "logprob": -1.5, "bytes": [32, 116, 119, 111]},
    ],
}


def vllm(delta, ending=None, tokens=None):
    logprobs = None if tokens is None else {"content": tokens}
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": ending}
    choice["token_ids"] = None
    return {**FRAME, "choices": [choice | ({} if ending is None else {"stop_reason": None})]}


def sglang(ending=None, tokens=None, **delta):
    logprobs = None if tokens is None else {"content": tokens}
    delta = {"role": None, "content": None, "reasoning_content": None, "tool_calls": None} | delta
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": ending}
    choice["matched_stop"] = None if ending is None else 151336
    return {**FRAME, "choices": [choice], "usage": None}


VLLM = {
    "answer": stream(
        vllm({"role": "assistant", "content": ""}),
        vllm({"reasoning": "Count"}),
        vllm({"reasoning": " them."}),
        vllm({"content": "Just"}),
        vllm({"content": " one"}, tokens=[TOKEN]),
        vllm({"content": ""}, ending="stop"),
        {
            **FRAME,
            "choices": [],
            "usage": {"prompt_tokens": 1061, "total_tokens": 1070, "completion_tokens": 9},
        },
    ),
    "refusal": {
        "error": {
            "message": "1 validation error:\n  {'type': 'extra_forbidden', 'loc': 'zeal'}",
            "type": "Bad Request",
            "param": None,
            "code": 400,
        }
    },
    "broken": {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}},
    "model": {
        "object": "model",
        "created": 1764400000,
        "owned_by": "vllm",
        "root": MODEL,
        "parent": None,
        "max_model_len": 65536,
        "permission": [{"id": "modelperm-1", "object": "model_permission"}],
    },
}
SGLANG = {
    "answer": stream(
        sglang(role="assistant", content=""),
        sglang(reasoning_content="Count"),
        sglang(reasoning_content=" them."),
        sglang(content="Just"),
        sglang(content=" one", tokens=[TOKEN]),
        sglang(ending="stop"),
        {
            **FRAME,
            "choices": [],
            "usage": {
                "prompt_tokens": 1061,
                "total_tokens": 1070,
                "completion_tokens": 9,
                "prompt_tokens_details": None,
                "reasoning_tokens": 3,
            },
        },
    ),
    "refusal": {
        "object": "error",
        "message": "Unexpected field 'zeal'",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    },
    "broken": {
        "error": {
            "object": "error",
            "message": "EngineCore died",
            "type": "InternalServerError",
            "param": None,
            "code": 500,
        }
    },
    "model": {
        "object": "model",
        "created": 1764400000,
        "owned_by": "sglang",
        "root": MODEL,
        "parent": None,
        "max_model_len": 65536,
    },
}
FULL = {"error": {"object": "error", "message": "The request queue is full.", "code": 503}}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.delenv(API_KEY, raising=False)


@pytest.fixture(scope="module")
def server():
    with scripted_server() as server:
        yield server


@pytest.fixture(params=[VLLM, SGLANG], ids=["vllm", "sglang"])
def kind(request, server):
    server.forget()
    told = {name: value for name, value in request.param["model"].items() if name != "object"}
    server.answer(MODELS, models(MODEL, **told))
    return request.param


@pytest.fixture
def session(server, kind):
    session = glm4v_magic.load(server.url)
    yield session
    session.unload()


def test_an_answer(server, session, kind):
    server.answer(CHAT, kind["answer"])
    answer = session.ask("How many?", logprobs=2)
    assert (answer.thinking, answer.text) == ("Count them.", "Just one")
    assert answer.finish_reason == "stop"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.new_tokens) == (1061, 9)
    assert usage.thinking_tokens == (3 if kind is SGLANG else None)
    (token,) = answer.tokens
    assert [(each.text, each.logprob) for each in token.alternatives] == [
        (" one", -0.25),
        (" two", -1.5),
    ]
    assert session.engine.info.context == 65536


def test_what_it_refuses(server, session, kind):
    server.answer(CHAT, response(kind["refusal"], status="400 Bad Request"))
    with pytest.raises(EngineError, match=r"answers 400 Bad Request: .*zeal"):
        session.ask("How many?")


def test_an_error_in_the_middle(server, session, kind):
    pieces = kind["answer"].split(b"data: ")[1:4]
    begun = [b"data: " + each for each in pieces]
    server.answer(CHAT, stream(*begun, kind["broken"]))
    with pytest.raises(EngineError, match="stopped with an error: EngineCore died"):
        session.ask("How many?")


@pytest.mark.parametrize("full", [FULL, {"error": "The request queue is full.", "code": "503"}])
def test_a_queue_that_is_full_after_the_status_200(server, session, kind, full, monkeypatch):
    """SGLang refuses a stream in its first event."""
    monkeypatch.setattr(patience, "PATIENCE", 1.0)
    waiting = [stream(full, done=False), stream(full), kind["answer"]]

    def answer(connection):
        connection.sendall(waiting.pop(0))

    server.answer(CHAT, answer)
    assert session.ask("How many?").text == "Just one"
    waiting[:] = [stream(full, done=False)] * 99
    with pytest.raises(EngineError, match="answers 503: The request queue is full"):
        session.ask("How many?")


def test_what_is_sent(server, session, kind):
    server.answer(CHAT, kind["answer"])
    session.ask("How many?", choices=["Just one", "two"], thinking=False, max_tokens=9, top_k=2)
    body = json.loads(server.requests[-1][3])
    assert body["structured_outputs"] == {"choice": ["Just one", "two"]}
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert (body["top_k"], body["max_tokens"]) == (2, 9)
    assert body["stream_options"] == {"include_usage": True}
