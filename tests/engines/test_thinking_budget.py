"""A budget of thinking tokens: its end is written when it is used up, and the answer follows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_native
import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.events import Finished, Text, Thinking
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local
from glm4v_magic.engines.sampling import ThinkingBudget

GREEDY = Sampling(16, temperature=0, repetition_penalty=1.0)
ASKED = Conversation((Message("user", "What is it?", (tiny_native.image(90, 60, 1),)),))
BEGUN = ASKED.add(Message("assistant", "", complete=False, thinking="One or"))
SAID = "\n<think>\nOne or two or three, who knows?</think>\nTwo."


@pytest.fixture(scope="module")
def engine(native):
    return local.load(resolve(native("glm46v")), keep=0)


def answers(engine, *requests):
    events = list(engine.stream(requests))
    found = {event.row: event.generation for event in events if isinstance(event, Finished)}
    return [found[row] for row in range(len(requests))]


def ids(answer):
    return [each.id for each in (*answer.thinking_tokens, *answer.tokens)]


def test_the_tokens_are_those_without_a_limit_and_then_those_after_the_tag(engine, native):
    sampling = replace(GREEDY, logprobs=0)
    (free,) = answers(engine, Request(BEGUN, sampling))
    begun = len(engine.processor.text_ids("One or"))
    (limited,) = answers(engine, Request(BEGUN, replace(sampling, max_thinking=begun + 5)))
    close = engine.processor.tokenizer.convert_tokens_to_ids("</think>")
    found = ids(limited)
    assert found[:6] == [*ids(free)[:5], close]
    assert close not in found[6:]
    prompt = engine.processor.encode(BEGUN).ids
    inputs = tiny_native.oracle_inputs(tiny_native.oracle(native("glm46v")), [ASKED])
    whole = torch.tensor([[*prompt, *found]])
    more = torch.zeros_like(whole[:, inputs["input_ids"].shape[1] :])
    inputs["mm_token_type_ids"] = torch.cat((inputs["mm_token_type_ids"], more), dim=1)
    inputs |= {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    with torch.no_grad():
        engine.model.model.rope_deltas = None
        logits = engine.model(**inputs).logits[0, len(prompt) - 1 :]
    own = logits.float().log_softmax(-1)
    assert own.argmax(-1).tolist()[6 : len(found)] == found[6:]
    told = [each.logprob for each in (*limited.thinking_tokens, *limited.tokens)]
    expected = own[range(len(found)), found].tolist()
    assert told == pytest.approx(expected, abs=1e-3)


def test_the_answer_comes_live_after_thinking_that_was_ended(engine):
    with tiny_native.Says(engine, SAID):
        sampling = replace(GREEDY, max_tokens=60, max_thinking=4)
        *pieces, _ = events = list(engine.stream([Request(ASKED, sampling)]))
    answer = events[-1].generation
    whole = engine.processor.tokenizer.encode(SAID, add_special_tokens=False)
    tokens = engine.processor.tokenizer
    opened = whole.index(tokens.convert_tokens_to_ids("<think>")) + 1
    assert answer.thinking == tokens.decode(whole[opened : opened + 4]).strip()
    assert answer.usage.thinking_tokens == 3  # of these four the first is a newline
    assert "".join(e.text for e in pieces if isinstance(e, Thinking)).strip() == answer.thinking
    assert "".join(e.text for e in pieces if isinstance(e, Text)).strip() == answer.text
    # What would have come after the fifth token, which the tag took the place of.
    rest = tokens.decode(whole[opened + 5 :]).split("</think>")[0]
    assert answer.text.startswith(rest.strip())


@pytest.mark.parametrize("most", [0, 1, 200])
def test_none_and_plenty(engine, most):
    with tiny_native.Says(engine, SAID):
        sampling = replace(GREEDY, max_tokens=60, max_thinking=most)
        (answer,) = answers(engine, Request(ASKED, sampling))
    assert (answer.thinking == "") == (most < 2)  # the first token is a newline
    assert (answer.text == "Two.") == (most == 200)


def test_a_model_that_does_not_begin_to_think_is_not_ended(engine):
    with tiny_native.Says(engine, "\nIt is <think>, a tag."):
        sampling = replace(GREEDY, max_tokens=60, max_thinking=1)
        (answer,) = answers(engine, Request(ASKED, sampling))
    assert (answer.thinking, answer.text) == ("", "It is <think>, a tag.")


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_each_row_has_its_own(engine, temperature):
    sampling = replace(GREEDY, temperature=temperature, seed=7)
    begun = len(engine.processor.text_ids("One or"))
    limits = [None, begun, begun + 2, begun + 5, 99]
    requests = [Request(BEGUN, replace(sampling, max_thinking=each)) for each in limits]
    together = answers(engine, *requests)
    alone = [answers(engine, each)[0] for each in requests]
    assert [(each.thinking, each.text) for each in together] == [
        (each.thinking, each.text) for each in alone
    ]
    assert len({each.thinking for each in together}) == 4  # nothing reaches the last limit


def test_a_form_is_followed_after_it(engine):
    begun = len(engine.processor.text_ids("One or"))
    sampling = replace(GREEDY, max_thinking=begun + 3, logprobs=0)
    (answer,) = answers(engine, Request(BEGUN, sampling, Constraint(regex="[ab]{3}")))
    assert len(answer.text) == 3
    assert set(answer.text) <= set("ab")
    assert answer.finish_reason == "stop"


def test_what_is_carried_on_is_as_long_as_in_one_go(engine):
    with tiny_native.Says(engine, "<think>One or two or three</think>Two."):
        sampling = replace(GREEDY, max_tokens=60, max_thinking=6, logprobs=0)
        (whole,) = answers(engine, Request(ASKED, sampling))
    with tiny_native.Says(engine, "<think>One or two or three</think>Two."):
        first = replace(sampling, max_tokens=4)
        (begun,) = answers(engine, Request(ASKED, first))
    assert begun.finish_reason == "length"
    carried = ASKED.add(Message("assistant", begun.text, complete=False, thinking=begun.thinking))
    said = engine.processor.tokenizer.decode(
        engine.processor.tokenizer.encode(
            "<think>One or two or three</think>Two.", add_special_tokens=False
        )[4:]
    )
    with tiny_native.Says(engine, said):
        (rest,) = answers(engine, Request(carried, sampling))
    assert begun.thinking + rest.thinking == whole.thinking
    counts = [each.usage.thinking_tokens for each in (begun, rest, whole)]
    assert counts[0] + counts[1] == counts[2] == sampling.max_thinking
    assert rest.text == whole.text


def test_an_answer_that_was_begun_goes_on_as_before(engine):
    begun = ASKED.add(Message("assistant", "It is", complete=False, thinking="One or two?"))
    sampling = replace(GREEDY, max_thinking=1)
    assert answers(engine, Request(begun, sampling)) != []
    with tiny_native.Says(engine, " two."):
        (answer,) = answers(engine, Request(begun, sampling))
    assert (answer.thinking, answer.text) == ("", " two.")


def test_a_tag_that_the_model_repeats_is_no_thought():
    budget = ThinkingBudget(1, opening=10, closing=11, is_blank=lambda token: False, thought=0)
    budget.take(10)
    assert budget.due is None
    budget.take(5)
    assert budget.due == 11
    budget.take(11)
    assert budget.is_over
    assert budget.due is None
