"""Constrained decoding: every complete answer is of its form, though the model says nonsense."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import any_form
import golden
import jsonschema
import pytest
import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import (
    ConversationError,
    GenerationInterrupted,
    OptionError,
    OutOfMemoryError,
)
from glm4v_magic.core.events import Failed, Finished, Text
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import grammars, local
from glm4v_magic.planning.decision import Placement
from glm4v_magic.virtual_gpus import VirtualGPUs

QUESTION = golden.conversation("image_text")
BATCH = 8


@pytest.fixture(scope="module")
def engine():
    return local.load(resolve(golden.CHECKPOINT))


def answers(engine, requests):
    found = {}
    for event in engine.stream(requests):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            found[event.row] = event.generation
    return [found[row] for row in range(len(requests))]


def ask(engine, sampling=None, conversation=QUESTION, **constraint):
    sampling = sampling or Sampling(64, temperature=0)
    (answer,) = answers(engine, [Request(conversation, sampling, Constraint(**constraint))])
    return answer


def in_batches(engine, constraints):
    """Yield each constraint with its answer; neighbours in a batch have other constraints."""
    for start in range(0, len(constraints), BATCH):
        batch = constraints[start : start + BATCH]
        requests = [
            Request(QUESTION, Sampling(160, temperature=1.0, seed=start + n), each)
            for n, each in enumerate(batch)
        ]
        yield from zip(batch, answers(engine, requests), strict=True)


def test_every_complete_answer_follows_its_schema(engine):
    schemas = [any_form.schema(seed) for seed in range(200)]
    complete = 0
    constraints = [Constraint(schema=json.dumps(each)) for each in schemas]
    for constraint, answer in in_batches(engine, constraints):
        if answer.finish_reason == "stop":
            complete += 1
            jsonschema.validate(json.loads(answer.text), json.loads(constraint.schema))
    assert complete > 180


def test_every_complete_answer_matches_its_regex(engine):
    regexes = [any_form.regex(seed) for seed in range(96)]
    complete = 0
    for constraint, answer in in_batches(engine, [Constraint(regex=each) for each in regexes]):
        if answer.finish_reason == "stop":
            complete += 1
            assert re.fullmatch(constraint.regex, answer.text), constraint
            assert grammars.matches(constraint.regex, answer.text)
    assert complete == 96


def test_free_answers_beside_constrained_ones_say_what_they_say_alone(engine):
    free = Request(QUESTION, Sampling(12, temperature=0))
    bound = Request(QUESTION, Sampling(12, temperature=0), Constraint(regex="[a-c]{3}"))
    (alone,) = answers(engine, [free])
    beside, short = answers(engine, [free, bound])
    assert beside.text == alone.text
    assert re.fullmatch("[a-c]{3}", short.text)
    assert short.finish_reason == "stop"


def test_an_answer_that_is_cut_off_says_so(engine):
    answer = ask(engine, Sampling(4, temperature=0), regex="[xy]{50}")
    assert answer.finish_reason == "length"
    assert re.fullmatch("[xy]+", answer.text)


@pytest.mark.parametrize("form", [{"regex": "abcde+"}, {"schema": '{"const": "abcdefgh"}'}])
def test_a_form_that_does_not_fit_is_refused_before_anything_is_said(engine, form):
    with pytest.raises(OptionError, match=r"takes at least \d+ .* may have 4"):
        ask(engine, Sampling(4, temperature=0), **form)
    answer = ask(engine, Sampling(24, temperature=0), **form)
    with pytest.raises(OptionError) as caught:
        ask(engine, Sampling(1, temperature=0), **form)
    needed = int(re.search(r"at least (\d+)", str(caught.value))[1])
    assert needed <= answer.usage.new_tokens
    assert ask(engine, Sampling(needed, temperature=0), **form).usage.new_tokens <= needed


def test_a_text_that_is_a_beginning_of_another_can_be_the_answer(engine):
    said = {
        ask(engine, Sampling(64, temperature=9.0, seed=seed), regex="yes(?: please)?").text
        for seed in range(24)
    }
    assert said == {"yes", "yes please"}


def test_an_answer_has_no_whitespace_around_it(engine):
    assert ask(engine, regex=" *x *").text == "x"
    with pytest.raises(OptionError, match="No answer follows the regex"):
        ask(engine, regex=" x")


def test_the_same_seed_says_the_same(engine):
    sampling = Sampling(64, temperature=1.5, top_k=5, top_p=0.9, repetition_penalty=1.2, seed=3)
    first, second = (ask(engine, sampling, regex="[a-z]{8}") for _ in range(2))
    assert first.text == second.text
    assert first.seed == 3


def begun(text):
    return Conversation(
        (*QUESTION.messages, Message("assistant", text, complete=False)),
    )


def test_an_answer_is_carried_on_in_its_form(engine):
    schema = json.dumps({"type": "array", "items": {"enum": [1, 2]}, "minItems": 3, "maxItems": 3})
    answer = ask(engine, conversation=begun("[1, 2"), schema=schema)
    jsonschema.validate(json.loads("[1, 2" + answer.text), json.loads(schema))
    answer = ask(engine, conversation=begun("ab"), regex="abc?d")
    assert "ab" + answer.text in ("abcd", "abd")


def test_prose_that_was_begun_is_carried_on_freely(engine):
    sampling = Sampling(8, temperature=0)
    (free,) = answers(engine, [Request(begun("So: "), sampling)])
    assert ask(engine, sampling, begun("So: "), schema="{}").text == free.text
    with pytest.raises(ConversationError, match="begins with the answer so far"):
        ask(engine, sampling, begun("So: "), regex="a+")
    with pytest.raises(ConversationError, match="one of the choices"):
        ask(engine, sampling, begun("So: "), choices=("yes", "no"))


BAD = {
    "(": "unclosed group",
    "a\\": "ends with a lone",
    "\\\\\\": "ends with a lone",
    "(?=a)b": "look-around",
    r"(a)\1": "backreferences",
    r"a\bb": "look-around",
    r"[^\s\S]": "No answer",
    "((a{1000}){1000}){1000}": "too large",
    "(a+)+b{9999}": "too large",  # noticed with the model's tokens only
}


@pytest.mark.parametrize("regex", BAD)
def test_a_regex_that_cannot_be_followed_is_one_line(engine, regex):
    with pytest.raises(OptionError) as caught:
        ask(engine, regex=regex)
    assert BAD[regex] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ask(engine, regex="ok").text == "ok"


BAD_SCHEMAS = {
    "false": "No answer follows the schema",
    '{"enum": []}': "it allows no value",
    '{"$ref": "#"}': "No answer",
    '{"$ref": "http://example.org/x"}': "refers to 'http://example.org/x'",
    '{"$ref": "#/a"}': "refers to '#/a'",
    '{"type": "integer", "minimum": 2, "maximum": 1}': "greater than maximum",
    '{"type": "string", "pattern": "(?=a)b"}': "look-around",
    '{"$ref": "#/<script>alert(1)"}': "unexpected character",
}


@pytest.mark.parametrize("schema", BAD_SCHEMAS)
def test_a_schema_that_cannot_be_followed_is_one_line(engine, schema):
    with pytest.raises(OptionError, match=BAD_SCHEMAS[schema]) as caught:
        ask(engine, schema=schema)
    assert "\n" not in str(caught.value)


def test_keywords_that_are_not_known_are_left_to_the_check(engine):
    schema = {"type": "array", "uniqueItems": True, "items": {"enum": [1]}, "maxItems": 2}
    value = json.loads(ask(engine, schema=json.dumps(schema)).text)
    assert value in ([], [1], [1, 1])


def test_without_the_package_a_regex_is_refused_and_a_schema_is_left_to_the_check(
    engine, monkeypatch
):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(OptionError, match="pip install llguidance"):
        ask(engine, regex="a")
    sampling = Sampling(8, temperature=0)
    (free,) = answers(engine, [Request(QUESTION, sampling)])
    assert ask(engine, sampling, schema="{}").text == free.text
    assert ask(engine, sampling, choices=("yes", "no")).text in ("yes", "no")
    assert grammars.matches("a+", "aaa")
    assert not grammars.matches("a+", "aab")
    with pytest.raises(OptionError, match="regex"):
        grammars.matches("(", "a")


CHOICES = ("yes", "no", "unsure", "yes please", "圆", "never ever")


def naive(engine, conversation, choices):
    """Probability of each choice, by one whole forward for each."""
    processor, ends = engine.processor, sorted(engine.defaults.eos_token_id)
    inputs = processor([conversation])
    prompt = inputs.pop("input_ids")
    inputs.pop("attention_mask")
    scores = []
    for choice in choices:
        ids = torch.tensor([[*processor.text_ids("\n"), *processor.text_ids(choice)]])
        whole = torch.cat((prompt, ids), dim=1)
        with torch.inference_mode():
            logits = engine.model(
                input_ids=whole, attention_mask=torch.ones_like(whole), **inputs
            ).logits[0]
        steps = logits[prompt.shape[1] - 1 :].float().log_softmax(-1)
        said = sum(float(steps[at, token]) for at, token in enumerate(ids[0].tolist()))
        scores.append(said + float(steps[-1, ends].logsumexp(-1)))
    return torch.tensor(scores).softmax(0).tolist()


@pytest.mark.parametrize("keep", [0, 2**30])
@pytest.mark.parametrize("case", ["image_text", "text_only", "image_second_turn"])
def test_the_probability_of_each_choice_is_that_of_a_forward_for_it(keep, case):
    engine = local.load(resolve(golden.CHECKPOINT), keep=keep)
    conversation = golden.conversation(case)
    expected = naive(engine, conversation, CHOICES)
    for _ in range(2):  # the second time, the prompt is kept
        answer = ask(engine, conversation=conversation, choices=CHOICES)
        assert tuple(answer.choices) == CHOICES
        assert answer.usage.tokens_per_second is None  # they are scored at once
        assert list(answer.choices.values()) == pytest.approx(expected, rel=1e-3)
        assert answer.text == CHOICES[expected.index(max(expected))]
        assert answer.finish_reason == "stop"
    batch = [Request(conversation, Sampling(64, temperature=0), Constraint(choices=CHOICES))] * 3
    for row in answers(engine, batch):
        assert list(row.choices.values()) == pytest.approx(expected, rel=1e-3)


def forwards(engine, requests):
    """Shape of the ids of each forward, and the answers."""
    seen = []
    handle = engine.model.register_forward_pre_hook(
        lambda _module, _args, options: seen.append(tuple(options["input_ids"].shape)),
        with_kwargs=True,
    )
    said = answers(engine, requests)
    handle.remove()
    return seen, said


@pytest.mark.parametrize("keep", [0, 2**30])
def test_rows_with_choices_read_what_they_share_once(keep):
    engine = local.load(resolve(golden.CHECKPOINT), keep=keep)
    photo = golden.photo("image0.png")
    requests = [
        Request(
            Conversation(
                (Message("user", f"Look at all of it, then say: {ask} is there?", (photo,)),)
            ),
            Sampling(64, temperature=0),
            Constraint(choices=CHOICES[:3]),
        )
        for ask in ("What", "Who", "Where", "How much")
    ]
    encoded = []
    handle = engine.model.model.vision.register_forward_pre_hook(
        lambda _module, args: encoded.append(len(args[0]))
    )
    seen, said = forwards(engine, requests)
    handle.remove()
    assert sum(encoded) == 1
    (_, image), (rows, others), *texts = seen
    assert rows == 4  # the rest of all prompts in one forward
    assert others < image / 2
    assert [rows for rows, _ in texts] == [8, 4]  # their texts, as many at once as may be
    for request, answer in zip(requests, said, strict=True):
        expected = naive(engine, request.conversation, CHOICES[:3])
        assert list(answer.choices.values()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("at_once", [1, 2, 8])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_rows_with_choices_beside_others_say_what_they_say_alone(engine, at_once, first):
    kinds = [None, Constraint(choices=CHOICES), Constraint(regex="[a-c]{3}")]
    requests = [
        Request(golden.conversation(case), Sampling(12, temperature=0), kinds[(n + first) % 3])
        for n, case in enumerate(["image_text", "text_only", "image_second_turn"] * 3)
    ]
    alone = [answers(engine, [each])[0] for each in requests]
    stream = engine.stream(iter(requests), at_once)
    found = {e.row: e.generation for e in stream if isinstance(e, Finished)}
    assert [found[row].text for row in range(9)] == [each.text for each in alone]
    assert [found[row].choices.keys() for row in range(9)] == [
        each.choices.keys() for each in alone
    ]
    for row, each in enumerate(alone):
        assert found[row].choices == pytest.approx(each.choices, rel=1e-3)


@pytest.mark.parametrize("case", ["image_text", "text_only"])
@pytest.mark.parametrize("keep", [0, 2**30])
def test_memory_that_runs_out_while_choices_are_scored_drops_what_is_kept(case, keep):
    engine = local.load(resolve(golden.CHECKPOINT), keep=keep)
    text = "One of those that begin alike, which is read before the others: number"
    begun = golden.conversation(case).messages[0]
    requests = [
        Request(
            Conversation((replace(begun, text=f"{text} {row}?"),)),
            Sampling(64, temperature=0),
            Constraint(choices=CHOICES),
        )
        for row in range(5)
    ]
    expected = answers(engine, requests)
    for at in range(len(forwards(engine, requests)[0])):
        count, dropped = 0, []

        def fail_once(*_, at=at, dropped=dropped):
            nonlocal count
            count += 1
            if count == at + 1:
                dropped.append(engine.cache.used_bytes)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

        handle = engine.model.register_forward_pre_hook(fail_once)
        try:
            said = answers(engine, requests)
        except OutOfMemoryError:
            assert dropped == [0]  # there was nothing to drop
            assert at == 0
            continue
        finally:
            handle.remove()
        assert [each.text for each in said] == [each.text for each in expected]
        for one, other in zip(said, expected, strict=True):
            assert one.choices == pytest.approx(other.choices, rel=1e-3)


def test_choices_have_the_same_probabilities_on_a_split():
    alone = ask(local.load(resolve(golden.CHECKPOINT)), choices=CHOICES)
    with VirtualGPUs("3x2GiB"):
        engine = local.load(resolve(golden.CHECKPOINT), Placement(device_map=golden.SPLIT))
        split = ask(engine, choices=CHOICES)
        assert re.fullmatch("[a-c]{3}", ask(engine, regex="[a-c]{3}").text)
    assert split.choices == pytest.approx(alone.choices, rel=1e-3)
    assert split.text == alone.text


def test_choices_are_sampled_by_their_probabilities(engine):
    choices = CHOICES[:3]
    shares = ask(engine, choices=choices).choices
    said = [
        ask(engine, Sampling(64, temperature=1.0, seed=seed), choices=choices).text
        for seed in range(300)
    ]
    for choice in choices:
        assert said.count(choice) / 300 == pytest.approx(shares[choice], abs=0.1)
    sampling = Sampling(64, temperature=1.0, top_k=1, repetition_penalty=5.0, seed=1)
    assert ask(engine, sampling, choices=choices).text == max(shares, key=shares.get)


def test_a_choice_that_does_not_fit_is_refused_before_anything_is_said(engine):
    with pytest.raises(OptionError, match=r"'yes please' takes 11 .* may have 3"):
        ask(engine, Sampling(3), choices=CHOICES)


def test_choices_and_free_follow_ups_share_what_was_read(engine):
    asked = Request(QUESTION, Sampling(64, temperature=0), Constraint(choices=CHOICES))
    said = engine.stream([asked])
    assert "".join(e.text for e in said if isinstance(e, Text)).strip() in CHOICES
    request = Request(QUESTION, Sampling(8, temperature=0))
    fresh = local.load(resolve(golden.CHECKPOINT), keep=0)
    assert answers(engine, [request])[0].text == answers(fresh, [request])[0].text


@pytest.mark.parametrize("constraint", [Constraint(choices=CHOICES), Constraint(regex="[a-z]{9}")])
def test_an_interrupt_while_choices_or_grammars_are_made_ready_loses_nothing(
    engine, monkeypatch, constraint
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    request = Request(QUESTION, Sampling(64, temperature=0), constraint)
    (before,) = answers(engine, [request])
    with monkeypatch.context() as patched:
        patched.setattr(local.ChoiceScorer, "score", interrupt)
        patched.setattr(grammars.Grammars, "guide", interrupt)
        with pytest.raises(GenerationInterrupted) as stopped:
            answers(engine, [request])
    assert stopped.value.generations[0].text == ""
    assert answers(engine, [request])[0].text == before.text


def test_log_probabilities_are_the_models_own_under_a_constraint(engine):
    sampling = Sampling(6, temperature=0, logprobs=20)
    (free,) = answers(engine, [Request(QUESTION, sampling)])
    bound = ask(engine, sampling, regex="[0-9]{6}")
    chosen, likeliest = bound.tokens[0], free.tokens[0].alternatives
    assert chosen.id != free.tokens[0].id
    assert [each.id for each in chosen.alternatives] == [each.id for each in likeliest]
    assert [each.logprob for each in chosen.alternatives] == pytest.approx(
        [each.logprob for each in likeliest], abs=1e-4
    )
    assert chosen.logprob <= chosen.alternatives[0].logprob


def test_tokens_of_a_choice_have_their_log_probabilities(engine):
    sampling = Sampling(64, temperature=0, logprobs=2)
    answer = ask(engine, sampling, choices=CHOICES)
    plain = ask(engine, choices=CHOICES)
    assert plain.tokens is None
    *said, end = (token.text for token in answer.tokens)
    assert "".join(said).strip() == answer.text == plain.text
    assert end.startswith("<|")
    assert answer.choices == pytest.approx(plain.choices, rel=1e-3)
    assert all(len(token.alternatives) == 2 for token in answer.tokens)
