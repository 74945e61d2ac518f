"""Our server keeps what its clients' chats go on from."""

from __future__ import annotations

import contextlib

import pytest
import tiny_native
from served import ask, question, serving, uri

from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.session.session import Session

SLOW = pytest.param("glm5_next", marks=pytest.mark.nightly)
TAIL = {"glm5_next": 16}
"""Tokens of a prompt that are read again, where states are kept from before its last ones."""


def prefilled(model, monkeypatch):
    """Number of tokens of each prefill of a model, from now on."""
    widths, forward = [], model.forward

    def counting(*args, **options):
        width = options["input_ids"].shape[1]
        if width > 1:
            widths.append(width)
        return forward(*args, **options)

    monkeypatch.setattr(model, "forward", counting)
    return widths


def said(server, messages, **options):
    status, answer = ask(server, question(messages=messages, max_tokens=4, **options))
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize("kind", ["demo", "glm46v", SLOW])
def test_a_follow_up_reads_only_what_is_new(kind, native, monkeypatch):
    checkpoint = "demo" if kind == "demo" else native(kind)
    session, forgetful = Session().load(checkpoint), Session().load(checkpoint, keep=0)
    widths = prefilled(session.engine.model, monkeypatch)
    image = {"type": "image_url", "image_url": {"url": uri(tiny_native.image(90, 70).image)}}
    chats, read = [], []
    with serving(session.engine) as server, serving(forgetful.engine) as other:
        for text in ("How many shapes are there?", "Which colour is it?"):
            chat = [{"role": "user", "content": [image, {"type": "text", "text": text}]}]
            answer, tokens = said(server, chat)
            chats.append([*chat, {"role": "assistant", "content": answer}])
            read.append(tokens)
        for chat, before in zip(chats, read, strict=True):
            chat.append({"role": "user", "content": "And which colour is the square?"})
            widths.clear()
            answer, tokens = said(server, chat)
            assert 0 < sum(widths) <= tokens - before + TAIL.get(kind, 0)
            assert said(other, chat)[0] == answer


def test_a_chat_goes_on_from_an_answer_that_ended_at_a_stop_text(monkeypatch):
    session = Session().load("demo")
    widths = prefilled(session.engine.model, monkeypatch)
    chat = [{"role": "user", "content": "Hello, who are you?"}]
    with serving(session.engine) as server:
        answer, before = said(server, chat)
        shorter, _ = said(server, chat, stop=answer[6:9])
        assert shorter == answer[:6]
        chat += [{"role": "assistant", "content": shorter}, {"role": "user", "content": "Well?"}]
        widths.clear()
        _, tokens = said(server, chat)
    assert sum(widths) <= tokens - before


@pytest.mark.parametrize("constraint", [None, Constraint(choices=("yes", "no"))])
@pytest.mark.parametrize("is_kept", [True, False])
def test_only_requests_that_ask_for_it_are_kept_where_others_may_come(constraint, is_kept):
    engine = Session().load("demo").engine
    sampling = Sampling(4, temperature=0)
    open_rows = 0

    def arriving():
        nonlocal open_rows
        for text in ("Is there a circle?", "How are you?"):
            chat = Conversation((Message("user", text),))
            open_rows += 1
            yield Request(chat, sampling, constraint, is_kept=is_kept)
        while open_rows:
            yield None

    with contextlib.closing(engine.stream(arriving(), at_once=2)) as events:
        for event in events:
            open_rows -= isinstance(event, Finished)
    assert engine.cache.prefixes == (2 if is_kept else 0)
