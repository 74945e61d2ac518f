"""Answers of a form from the newer models, some of which think before they answer."""

from __future__ import annotations

import json

import pytest
import tiny_native
import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local
from glm4v_magic.engines.grammars import Tags

CHOICES = ("a", "b", "a b")
ASKED = Conversation((Message("user", "What is it?", (tiny_native.image(90, 60, 1),)),))


@pytest.fixture(scope="module")
def engines(native):
    loaded = {}

    def engine(kind):
        if kind not in loaded:
            loaded[kind] = local.load(resolve(native(kind)))
        return loaded[kind]

    return engine


def ask(engine, sampling, **constraint):
    events = engine.stream([Request(ASKED, sampling, Constraint(**constraint))])
    (answer,) = (event.generation for event in events if isinstance(event, Finished))
    return answer


def naive(engine, folder, thinking):
    """Probability of each choice, by one whole forward of transformers' for each."""
    options = {} if thinking is None else {"enable_thinking": thinking}
    inputs = tiny_native.oracle_inputs(tiny_native.oracle(folder), [ASKED], **options)
    processor, ends = engine.processor, sorted(engine.defaults.eos_token_id)
    tags = processor.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    opening = tags if processor.thinks and thinking is None else processor.opening_ids
    length = inputs["input_ids"].shape[1]
    scores = []
    for choice in CHOICES:
        said = torch.tensor([[*opening, *processor.text_ids(choice)]])
        whole = dict(inputs)
        whole["input_ids"] = torch.cat((inputs["input_ids"], said), dim=1)
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        whole["mm_token_type_ids"] = torch.cat(
            (inputs["mm_token_type_ids"], torch.zeros_like(said)), dim=1
        )
        with torch.no_grad():
            engine.model.model.rope_deltas = None
            steps = engine.model(**whole).logits[0, length - 1 :].float().log_softmax(-1)
        tokens = sum(float(steps[at, token]) for at, token in enumerate(said[0].tolist()))
        scores.append(tokens + float(steps[-1, ends].logsumexp(-1)))
    return torch.tensor(scores).softmax(0).tolist()


@pytest.mark.parametrize(
    ("kind", "thinking"),
    [("glm4v", None), ("glm46v", None), ("glm46v", False), ("glm_ocr", None), ("glm5_next", None)],
)
def test_the_probability_of_each_choice_is_that_of_a_forward_for_it(
    engines, native, kind, thinking
):
    engine = engines(kind)
    expected = naive(engine, native(kind), thinking)
    for _ in range(2):
        answer = ask(engine, Sampling(64, temperature=0, thinking=thinking), choices=CHOICES)
        assert list(answer.choices.values()) == pytest.approx(expected, rel=1e-3)
        assert (answer.text, answer.thinking) == (CHOICES[expected.index(max(expected))], "")


@pytest.mark.parametrize(("kind", "thinking"), [("glm46v", False), ("glm_ocr", None)])
def test_a_model_that_does_not_think_follows_a_form_at_once(engines, kind, thinking):
    sampling = Sampling(64, temperature=0, thinking=thinking)
    answer = ask(engines(kind), sampling, schema=json.dumps({"enum": [1, "b"]}))
    assert json.loads(answer.text) in (1, "b")
    assert ask(engines(kind), sampling, regex="[ab]{3}").finish_reason == "stop"


def test_a_model_that_thinks_follows_a_form_after_its_thinking(engines):
    engine = engines("glm4v")
    opening, close = engine.processor.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    tags = Tags(opening, close, is_open=True)
    guide = engine.grammars.guide(Constraint(regex="[ab]{3}"), thinking=tags)
    assert guide.allowed().all()
    guide.take(5)
    assert guide.allowed().all()
    guide.take(close)
    assert 0 < guide.allowed().sum() < 20
