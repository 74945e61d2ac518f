"""Rows with several images each in batches that are refilled, and chats that take turns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_native

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local
from glm4v_magic.session.session import Session

GREEDY = Sampling(12, temperature=0, repetition_penalty=1.0, logprobs=0)
SAMPLED = replace(GREEDY, temperature=1.2, seed=5)
A, B, C, D = (
    tiny_native.image(*size) for size in ((300, 200, 0), (90, 260, 1), (60, 84, 2), (120, 60, 3))
)
KINDS = tiny_native.KINDS
CROPPED = [kind for kind in KINDS if kind != "glm5_next"]  # which has a state instead


def talk(*messages):
    return Conversation(messages)


def asked(text, *images):
    return talk(Message("user", text, images))


def turns(text, first, second):
    answered = Message("assistant", "A square.")
    return talk(Message("user", "What?", first), answered, Message("user", text, second))


# Neighbours begin alike, end at different times, and have up to four images.
ROWS = [
    (asked("Compare them.", A, B), 3),
    (asked("Compare them.", A, B, C), 11),
    (asked("Compare them, and say which is larger.", A, C), 6),
    (asked("Nothing to see?"), 2),
    (turns("And these?", (B, D), (A, C)), 9),
    (asked("Which?", D, C, B, A), 4),
    (asked("Compare them.", A, B, D), 7),
    (turns("And these?", (B, D), (C,)), 5),
    (asked("Which?", D, C, B), 1),
]


@pytest.fixture(scope="module")
def engines(native):
    loaded = {}

    def engine(kind, keep=0):
        if (kind, keep) not in loaded:
            loaded[kind, keep] = local.load(resolve(native(kind)), keep=keep)
        loaded[kind, keep].kept.clear()
        return loaded[kind, keep]

    return engine


def told(events):
    """Ids of each row, in the order of the rows."""
    found = {event.row: event.generation for event in events if isinstance(event, Finished)}
    return [
        [token.id for token in (*found[row].thinking_tokens, *found[row].tokens)]
        for row in range(len(found))
    ]


def alone(engine, requests):
    return [ids for each in requests for ids in told(engine.stream([each]))]


@pytest.mark.parametrize(
    ("kind", "sampling"), [*((kind, GREEDY) for kind in KINDS), ("glm46v", SAMPLED)]
)
def test_rows_with_several_images_say_in_a_refilled_batch_what_they_say_alone(
    engines, kind, sampling
):
    requests = [Request(chat, replace(sampling, max_tokens=most)) for chat, most in ROWS]
    expected = alone(engines(kind), requests)
    assert len({tuple(ids) for ids in expected}) > 5
    for keep, at_once in ((0, 3), (2**26, 2)):
        assert told(engines(kind, keep).stream(requests, at_once)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_two_chats_in_turn_say_what_each_says_by_itself(engines, kind):
    """Neither the positions nor the cache of one chat are taken for those of the other."""
    engine, plain = engines(kind, 2**26), engines(kind)
    chats = [asked("What is it?", A, B), talk(Message("system", "Be brief."))]
    chats[1] = chats[1].add(Message("user", "Hello there, what can you do?"))
    following = [("And this?", (C,)), ("Again?", ()), ("These?", (D, A))]
    for text, images in following:
        for at, chat in enumerate(chats):
            (mine,) = told(engine.stream([Request(chat, GREEDY)]))
            (other,) = told(plain.stream([Request(chat, GREEDY)]))
            assert mine == other
            said = engine.processor.tokenizer.decode(mine, skip_special_tokens=True)
            chat = chat.with_answer(said, complete=True)
            chats[at] = chat.add(Message("user", f"{text} {at}", images if at == 0 else ()))
    if kind in CROPPED:
        assert engine.cache.prefixes >= 2


@pytest.mark.parametrize(("kind", "count"), [("glm46v", 100), ("glm4v_moe", 25), ("glm5_next", 25)])
def test_a_hundred_chats_with_images_stay_inside_the_budget(engines, kind, count):
    engine, budget = engines(kind, 2**26), 400_000
    engine.kept.budget = budget
    short = replace(GREEDY, max_tokens=2)
    try:
        for number in range(count):
            image = tiny_native.image(60 + number % 5 * 28, 84, number % 7)
            list(engine.stream([Request(asked(f"Question {number}", image), short)]))
            assert 0 < engine.cache.used_bytes <= budget
        assert 1 < engine.cache.prefixes < count
        assert engine.cache.images
    finally:
        engine.kept.budget = 2**26


def test_a_map_whose_rows_have_several_images_each(native):
    session = Session()
    session.load(native("glm46v"))
    items = [[A, B], [C], [B, D, A], [A, B, C], [D, C]]
    images = [[each.image for each in item] for item in items]
    common = D.image
    options = {"temperature": 0, "max_tokens": 7, "logprobs": 0}
    rows = session.map("Compare.", images, images=[common], batch_size=2, **options)
    assert [row.error for row in rows] == [None] * len(items)
    single = [session.ask("Compare.", images=[common, *each], **options) for each in images]
    assert [row.answer.text for row in rows] == [answer.text for answer in single]
    assert [[token.id for token in row.answer.tokens] for row in rows] == [
        [token.id for token in answer.tokens] for answer in single
    ]
    assert [len(row.answer.images) for row in rows] == [1 + len(item) for item in items]
    assert len({row.answer.text for row in rows}) > 2
