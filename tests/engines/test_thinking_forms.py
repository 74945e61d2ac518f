"""Forms of answers from models that think first: thinking ends, and from there the form counts."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import tiny_native
import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import ConversationError, GenerationInterrupted, OptionError
from glm4v_magic.core.events import Failed, Finished, Text, Thinking
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local

GREEDY = Sampling(40, temperature=0, repetition_penalty=1.0)
ASKED = Conversation((Message("user", "What is it?", (tiny_native.image(90, 60, 1),)),))
OTHER = Conversation((Message("user", "Is there anything else to be seen here?"),))
CHOICES = ("a", "b", "a b")
FOREVER = "<think>" + "one or two " * 40
LETTERS = Constraint(regex="[ab]{3}")
CHOSEN = Constraint(choices=CHOICES)


@pytest.fixture(scope="module", params=["glm46v", "glm4v", "glm5_next"])
def engine(request, native):
    return local.load(resolve(native(request.param)))


def answers(engine, *requests):
    found = {}
    for event in engine.stream(requests):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            found[event.row] = event.generation
    return [found[row] for row in range(len(requests))]


def said(engine, text, sampling, constraint=LETTERS, conversation=ASKED):
    """Return the answer of a model that would say a text."""
    with tiny_native.Says(engine, text):
        (answer,) = answers(engine, Request(conversation, sampling, constraint))
    return answer


def ids(answer):
    return [each.id for each in (*answer.thinking_tokens, *answer.tokens)]


def tags(engine):
    return engine.processor.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])


@pytest.mark.parametrize("constraint", [LETTERS, Constraint(schema='{"enum": [1, 2]}')])
def test_thinking_that_does_not_end_leaves_half_of_the_tokens(engine, constraint):
    answer = said(engine, FOREVER, GREEDY, constraint)
    assert answer.finish_reason == "stop"
    assert re.fullmatch("[ab]{3}|1|2", answer.text)
    assert answer.thinking.startswith("one or two one")
    # Its tags are among the half.
    assert answer.usage.thinking_tokens in (GREEDY.max_tokens // 2 - 1, GREEDY.max_tokens // 2 - 2)


def test_a_limit_of_its_own_may_take_all_that_the_form_leaves(engine):
    for most, expected in ((3, 3), (30, 30), (99, 40 - 2 - 2)):
        sampling = replace(GREEDY, max_thinking=most, logprobs=0)
        answer = said(engine, FOREVER, sampling, Constraint(regex="a"))
        assert answer.text == "a"
        assert answer.finish_reason == "stop"
        thought = ids(answer)
        assert thought.index(tags(engine)[1]) - thought.index(tags(engine)[0]) - 1 == expected


def test_a_turn_that_would_end_within_the_thinking_goes_on_with_the_answer(engine):
    answer = said(engine, "<think>one", GREEDY)
    assert (answer.thinking, answer.finish_reason) == ("one", "stop")
    assert re.fullmatch("[ab]{3}", answer.text)


@pytest.mark.parametrize("begins", ["", "\n"])
def test_a_model_that_does_not_begin_to_think_follows_the_form_at_once(engine, begins):
    answer = said(engine, f"{begins}It is one.", GREEDY)
    assert (answer.thinking, answer.finish_reason) == ("", "stop")
    assert re.fullmatch("[ab]{3}", answer.text)


def test_without_a_form_nothing_is_changed(engine):
    answer = said(engine, FOREVER, GREEDY, None)
    assert (answer.text, answer.finish_reason) == ("", "length")
    answer = said(engine, "<think>one", GREEDY, None)
    assert (answer.thinking, answer.text) == ("one", "")


def probabilities(engine, folder, thought, conversation=ASKED):
    """Return that of each choice after given thinking, by a forward of transformers' for each."""
    prompt = engine.processor.encode(conversation, thinking=True).ids
    inputs = tiny_native.oracle_inputs(tiny_native.oracle(folder), [conversation])
    ends, scores = sorted(engine.defaults.eos_token_id), []
    for choice in CHOICES:
        after = [*thought, *engine.processor.text_ids(choice)]
        whole = dict(inputs)
        whole["input_ids"] = torch.tensor([[*prompt, *after]])
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        types = inputs["mm_token_type_ids"]
        more = whole["input_ids"].shape[1] - types.shape[1]
        whole["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, more))
        with torch.no_grad():
            engine.model.model.rope_deltas = None
            logits = engine.model(**whole).logits[0, len(prompt) + len(thought) - 1 :]
        steps = logits.float().log_softmax(-1)
        spelled = after[len(thought) :]
        own = sum(float(steps[at, token]) for at, token in enumerate(spelled))
        scores.append(own + float(steps[len(spelled), ends].logsumexp(-1)))
    return torch.tensor(scores).softmax(0).tolist()


@pytest.mark.parametrize("keep", [0, 2**28])
@pytest.mark.parametrize("asked", [{"thinking": True}, {"max_thinking": 5}])
def test_choices_are_scored_after_the_thinking_that_was_asked_for(native, asked, keep):
    engine = local.load(resolve(native("glm46v")), keep=keep)
    sampling = replace(GREEDY, logprobs=0, **asked)
    (answer,) = answers(engine, Request(ASKED, sampling, CHOSEN))
    opening, closing = tags(engine)
    found = ids(answer)
    thought = found[: found.index(closing) + 1]
    assert thought[0] == opening
    assert len(thought) == 2 + (5 if "max_thinking" in asked else GREEDY.max_tokens // 2 - 2)
    expected = probabilities(engine, native("glm46v"), thought)
    assert list(answer.choices.values()) == pytest.approx(expected, rel=1e-3)
    assert answer.text == CHOICES[expected.index(max(expected))]
    assert answer.thinking
    assert answer.finish_reason == "stop"


def test_rows_that_think_first_choose_beside_others_as_alone(engine):
    thinks = replace(GREEDY, thinking=True)
    requests = [
        Request(ASKED, replace(thinks, max_thinking=7), CHOSEN),
        Request(ASKED, replace(GREEDY, max_tokens=9)),
        Request(OTHER, replace(thinks, max_thinking=2), CHOSEN),
        Request(OTHER, GREEDY, CHOSEN),
        Request(ASKED, GREEDY, LETTERS),
        Request(OTHER, thinks, CHOSEN),
    ]
    engine.kept.clear()
    together = answers(engine, *requests)
    engine.kept.clear()
    alone = [answers(engine, each)[0] for each in requests]
    assert [(each.thinking, each.text) for each in together] == [
        (each.thinking, each.text) for each in alone
    ]
    for one, other in zip(together, alone, strict=True):
        assert one.choices == pytest.approx(other.choices, rel=1e-3)
    assert [bool(together[row].thinking) for row in (0, 2, 3, 5)] == [True, True, False, True]


def test_what_was_read_for_the_thinking_is_not_read_again(native):
    engine = local.load(resolve(native("glm46v")))
    widths = []
    handle = engine.model.register_forward_pre_hook(
        lambda _, __, given: widths.append(given["input_ids"].shape), with_kwargs=True
    )
    requests = [
        Request(each, replace(GREEDY, max_thinking=most), CHOSEN)
        for each, most in ((ASKED, 5), (OTHER, 3))
    ]
    for count in (1, 2):
        engine.kept.clear()
        widths.clear()
        answers(engine, *requests[:count])
        # Each prompt once, alone or beside the other; then single tokens, and the choices.
        longest = max(len(engine.processor.text_ids(each)) for each in CHOICES)
        assert 1 <= len([width for width in widths if width[1] > longest]) <= count
        assert widths.count((len(CHOICES), longest)) == count
    handle.remove()


def test_the_thinking_comes_live_and_then_the_choice(engine):
    request = Request(ASKED, replace(GREEDY, max_thinking=6), CHOSEN)
    events = list(engine.stream([request]))
    answer = events[-1].generation
    kinds = [type(each) for each in events if isinstance(each, Thinking | Text)]
    assert kinds == sorted(kinds, key=lambda kind: kind is Text)
    assert "".join(e.text for e in events if isinstance(e, Thinking)).strip() == answer.thinking
    assert "".join(e.text for e in events if isinstance(e, Text)).strip() == answer.text


def test_a_choice_whose_thinking_was_stopped_goes_on(engine):
    sampling = replace(GREEDY, max_thinking=6)
    events = engine.stream([Request(ASKED, sampling, CHOSEN)])
    next(each for each in events if isinstance(each, Thinking))
    with pytest.raises(GenerationInterrupted) as caught:
        events.throw(KeyboardInterrupt())
    begun = caught.value.generation
    assert begun.thinking
    partial = Message("assistant", "", complete=False, thinking=begun.thinking)
    (answer,) = answers(engine, Request(ASKED.add(partial), sampling, CHOSEN))
    assert answer.text in CHOICES
    partial = Message("assistant", "a", complete=False, thinking=begun.thinking)
    with pytest.raises(ConversationError, match="cannot be carried on as one of the choices"):
        answers(engine, Request(ASKED.add(partial), sampling, CHOSEN))


@pytest.mark.parametrize("asked", [{}, {"max_thinking": 0}])
def test_choices_are_chosen_at_once_otherwise(engine, asked):
    (answer,) = answers(engine, Request(ASKED, replace(GREEDY, **asked), CHOSEN))
    assert answer.thinking == ""
    assert answer.text in CHOICES


def test_a_long_choice_that_does_not_fit_is_named_in_short(engine):
    long = Constraint(choices=("no", "yes " * 400 + "yes"))
    with pytest.raises(OptionError, match=r"'yes yes .*\.\.\. takes \d+ tokens") as caught:
        answers(engine, Request(ASKED, replace(GREEDY, thinking=True), long))
    assert len(str(caught.value)) < 200


def test_a_form_and_the_end_of_the_thinking_that_do_not_fit_are_refused(engine):
    needed = len(engine.processor.text_ids("a b")) + 1 + 2
    sampling = replace(GREEDY, thinking=True, max_tokens=needed)
    (answer,) = answers(engine, Request(ASKED, sampling, CHOSEN))
    assert answer.finish_reason == "stop"
    with pytest.raises(OptionError, match=f"takes {needed} tokens with its end"):
        answers(engine, Request(ASKED, replace(sampling, max_tokens=needed - 1), CHOSEN))
