"""Log-probabilities are those of the model's own distribution, whatever stands around a row."""

from __future__ import annotations

import math
from dataclasses import replace

import golden
import pytest
import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Request
from glm4v_magic.core.errors import GenerationInterrupted
from glm4v_magic.core.events import Failed, Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local
from glm4v_magic.engines.sampling import call_config
from glm4v_magic.planning.decision import Placement
from glm4v_magic.virtual_gpus import VirtualGPUs

SAMPLINGS = {
    "greedy": Sampling(12, temperature=0, logprobs=4),
    "sampled": Sampling(12, temperature=1.5, top_k=5, seed=3, logprobs=4),
    "penalty": Sampling(12, temperature=0, repetition_penalty=1.7, logprobs=4),
}


@pytest.fixture(scope="module")
def engine():
    return local.load(resolve(golden.CHECKPOINT), keep=0)


def answers(engine, requests):
    found = {}
    for event in engine.stream(requests):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            found[event.row] = event.generation
    return [found[row] for row in range(len(requests))]


def oracle(engine, request):
    """Ids and log-probabilities from `generate`, and the likeliest ids of each step."""
    config = call_config(engine.defaults, request.sampling, engine.require_room(request))
    config.output_logits = config.return_dict_in_generate = True
    inputs = engine.processor([request.conversation])
    if request.sampling.seed is not None:
        torch.manual_seed(request.sampling.seed)
    with torch.inference_mode():
        out = engine.model.generate(**inputs, generation_config=config)
        scores = engine.model.compute_transition_scores(
            out.sequences, out.logits, normalize_logits=True
        )
    count = request.sampling.logprobs
    likeliest = [each[0].topk(count).indices.tolist() for each in out.logits]
    return out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), scores[0].tolist(), likeliest


def assert_alike(tokens, others):
    assert [each.id for each in tokens] == [each.id for each in others]
    assert [each.logprob for each in tokens] == pytest.approx(
        [each.logprob for each in others], abs=1e-4
    )
    for one, other in zip(tokens, others, strict=True):
        assert replace(one, logprob=0, alternatives=()) == replace(
            other, logprob=0, alternatives=()
        )


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_they_are_those_of_the_models_own_distribution(engine, sampling):
    for case in golden.SINGLE_ROW:
        request = Request(golden.conversation(case), sampling)
        (generation,) = answers(engine, [request])
        ids, logprobs, likeliest = oracle(engine, request)
        assert [token.id for token in generation.tokens] == ids
        assert [token.logprob for token in generation.tokens] == pytest.approx(logprobs, abs=1e-4)
        for token, expected in zip(generation.tokens, likeliest, strict=True):
            assert [each.id for each in token.alternatives] == expected
            logprob = {each.id: each.logprob for each in token.alternatives}
            assert logprob.get(token.id, token.logprob) == token.logprob
            assert sum(math.exp(each.logprob) for each in token.alternatives) <= 1.0001
            assert all(each.logprob <= token.alternatives[0].logprob for each in token.alternatives)


def test_a_row_of_a_batch_tells_what_it_tells_alone(engine):
    counts = (4, None, 0, 20)
    requests = [
        Request(golden.conversation(case), Sampling(most, temperature=0, logprobs=count))
        for case, most, count in zip(golden.SINGLE_ROW, (12, 3, 7, 12), counts, strict=False)
    ]
    assert len(requests) > 2
    for row, request, count in zip(answers(engine, requests), requests, counts, strict=False):
        (alone,) = answers(engine, [request])
        assert row.text == alone.text
        if count is None:
            assert row.tokens is None is alone.tokens
            continue
        assert_alike(row.tokens, alone.tokens)
        assert len(row.tokens) == row.usage.new_tokens
        assert {len(token.alternatives) for token in row.tokens} == {count}


def test_the_same_on_several_gpus(engine):
    request = Request(golden.conversation("image_text"), SAMPLINGS["sampled"])
    (expected,) = answers(engine, [request])
    with VirtualGPUs("3x64MiB") as gpus:
        split = local.load(resolve(golden.CHECKPOINT), Placement(device_map=golden.SPLIT))
        (found,) = answers(split, [request])
        assert not gpus.problems
        split.close()
    assert_alike(found.tokens, expected.tokens)


def test_asking_for_them_changes_no_answer(engine):
    for sampling in SAMPLINGS.values():
        request = Request(golden.conversation("image_text"), sampling)
        silent = Request(request.conversation, replace(sampling, logprobs=None))
        assert answers(engine, [request])[0].text == answers(engine, [silent])[0].text


def test_nobody_pays_who_does_not_ask(engine, monkeypatch):
    computed = []
    normal = torch.Tensor.log_softmax
    monkeypatch.setattr(
        torch.Tensor, "log_softmax", lambda *a, **k: computed.append(1) or normal(*a, **k)
    )
    conversation = golden.conversation("text_only")
    (silent,) = answers(engine, [Request(conversation, Sampling(4, temperature=0))])
    assert silent.tokens is None
    assert not computed
    answers(engine, [Request(conversation, Sampling(4, temperature=0, logprobs=0))])
    assert len(computed) == 4


def test_an_interrupted_answer_has_those_until_then(engine):
    request = Request(golden.conversation("image_text"), SAMPLINGS["greedy"])
    (whole,) = answers(engine, [request])
    stream = engine.stream([request])
    next(stream)
    with pytest.raises(GenerationInterrupted) as stopped:
        stream.throw(KeyboardInterrupt())
    tokens = stopped.value.generations[0].tokens
    assert 0 < len(tokens) < len(whole.tokens)
    assert [each.id for each in tokens] == [each.id for each in whole.tokens[: len(tokens)]]


def test_places_are_those_in_the_text(engine):
    for case in golden.SINGLE_ROW:
        request = Request(golden.conversation(case), SAMPLINGS["sampled"])
        (generation,) = answers(engine, [request])
        covered = set()
        for token in generation.tokens:
            there = generation.text[token.start : token.end]
            assert there in token.text or "\ufffd" in token.text or not there
            covered.update(range(token.start, token.end))
        assert covered == set(range(len(generation.text)))


def test_pieces_hold_the_tokens_that_make_them(engine):
    request = Request(golden.conversation("image_text"), SAMPLINGS["sampled"])
    *pieces, finished = engine.stream([request])
    told = "".join(piece.text for piece in pieces)
    tokens = [token for piece in pieces for token in piece.tokens]
    assert [token.id for token in tokens] == [
        token.id for token in finished.generation.tokens[: len(tokens)]
    ]
    for piece in pieces:
        places = {at for token in piece.tokens for at in range(token.start, token.end)}
        assert "".join(told[at] for at in sorted(places)) == piece.text


def test_special_tokens_and_unknown_ids_have_no_bytes(engine):
    vocabulary = engine.vocabulary
    user = engine.processor.token_id("<|user|>")
    assert vocabulary.text_and_bytes(user) == ("<|user|>", b"")
    assert vocabulary.text_and_bytes(10**6) == ("", b"")
    assert vocabulary.text_and_bytes("猫".encode()[0]) == ("\ufffd", "猫".encode()[:1])
    assert vocabulary.text_and_bytes(ord("a")) == ("a", b"a")
