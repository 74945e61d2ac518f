"""The newer models answer as transformers' own `generate` does, alone and in batches."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import tiny_native
import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.boxes import BOX_TAGS
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import GenerationInterrupted, OutOfMemoryError
from glm4v_magic.core.events import Finished, Text, Thinking
from glm4v_magic.core.image import SeenImage
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local
from glm4v_magic.planning.decision import Placement

GREEDY = Sampling(12, temperature=0, repetition_penalty=1.0)
A, B, C = (tiny_native.image(*size) for size in ((300, 200, 0), (90, 260, 1), (5, 7, 2)))
KINDS, ALWAYS, Says = tiny_native.KINDS, tiny_native.ALWAYS, tiny_native.Says
CROPPED = [kind for kind in KINDS if kind != "glm5_next"]  # which has a state instead


def talk(*messages):
    return Conversation(messages)


TEXT = talk(Message("user", "What do they show?"))
ONE = talk(Message("user", "What is it?", (A,)))
SEVERAL = talk(Message("system", "Be brief."), Message("user", "Compare them.", (B, C, A)))
TURNS = talk(*ONE.messages, Message("assistant", "A square."), Message("user", "And?", (B,)))
CONVERSATIONS = [TEXT, ONE, SEVERAL, TURNS]


@pytest.fixture(scope="module")
def engines(native):
    """An engine of a model type that keeps nothing, loaded once."""
    loaded = {}

    def engine(kind):
        if kind not in loaded:
            loaded[kind] = local.load(resolve(native(kind)), keep=0)
        return loaded[kind]

    return engine


def answers(engine, conversations, sampling=GREEDY):
    events = engine.stream([Request(each, sampling) for each in conversations])
    found = {event.row: event.generation for event in events if isinstance(event, Finished)}
    return [found[row] for row in range(len(conversations))]


def told(generations):
    return [(each.thinking, each.text, each.usage.new_tokens) for each in generations]


@contextmanager
def watched(engine) -> Iterator[dict[str, list]]:
    """Logits and positions of every step, how many ids each read, and what the tower encoded."""
    seen: dict[str, list] = {"logits": [], "places": [], "read": [], "shapes": [], "encoded": []}

    def read(_module, _args, options, output):
        seen["read"].append(options["input_ids"].shape[1])
        seen["shapes"].append(tuple(options["input_ids"].shape))
        seen["logits"].append(output.logits[:, -1].float().cpu())
        seen["places"].append(options["position_ids"])

    def encode(_module, _args, options):
        seen["encoded"].append(options["grid_thw"].tolist())

    handles = [
        engine.model.register_forward_hook(read, with_kwargs=True),
        engine.model.model.visual.register_forward_pre_hook(encode, with_kwargs=True),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def generated(engine, folder, conversation, thinking=None):
    """Positions, logits and ids of `generate` for one conversation as transformers encodes it."""
    options = {} if thinking is None else {"enable_thinking": thinking}
    inputs = tiny_native.oracle_inputs(tiny_native.oracle(folder), [conversation], **options)
    with torch.no_grad():
        output = engine.model.generate(
            **inputs,
            max_new_tokens=GREEDY.max_tokens,
            do_sample=False,
            eos_token_id=engine.defaults.eos_token_id,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    engine.model.model.rope_deltas = torch.tensor([[1000]])  # as another prompt would leave it
    length = inputs["input_ids"].shape[1]
    places = torch.arange(length)[None]
    if hasattr(engine.model.model, "get_rope_index"):
        wanted = ("input_ids", "mm_token_type_ids", "image_grid_thw")
        given = {name: inputs[name] for name in wanted if name in inputs}
        places, _ = engine.model.model.get_rope_index(**given)
    return places, torch.cat(output.logits), output.sequences[0, length:].tolist()


@pytest.mark.parametrize(
    ("kind", "thinking"),
    [
        pytest.param(
            kind,
            thinking,
            # Its template knows of no choice to think, and it takes ten times as long.
            marks=pytest.mark.nightly if kind == "glm5_next" and thinking is not None else (),
        )
        for kind in KINDS
        for thinking in (None, True, False)
    ],
)
def test_logits_and_ids_are_those_of_generate(engines, native, kind, thinking):
    if thinking is False and kind in ALWAYS:
        thinking = None
    engine = engines(kind)
    sampling = replace(GREEDY, thinking=thinking, logprobs=0)
    for conversation in CONVERSATIONS:
        places, logits, ids = generated(engine, native(kind), conversation, thinking)
        with watched(engine) as seen:
            (answer,) = answers(engine, [conversation], sampling)
        found = torch.cat(seen["logits"])
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
        assert found.argmax(dim=-1).tolist() == ids
        assert torch.equal(seen["places"][0], places)
        expected = logits.log_softmax(dim=-1)[range(len(ids)), ids].tolist()
        tokens = (*answer.thinking_tokens, *answer.tokens)
        assert [token.id for token in tokens] == ids
        assert [token.logprob for token in tokens] == pytest.approx(expected, abs=1e-4)
        assert answer.usage.new_tokens == len(ids)
        assert [tuple(each.image_size) for each in answer.seen] == [
            (grid[0][2] * 14, grid[0][1] * 14) for grid in seen["encoded"]
        ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_says_what_its_rows_say_alone(engines, kind):
    engine = engines(kind)
    alone = [answers(engine, [each])[0] for each in CONVERSATIONS]
    assert len({each.text for each in alone}) == len(alone)
    for sampling in (GREEDY, Sampling(9, temperature=1.2, repetition_penalty=1.3, seed=7)):
        alone = [answers(engine, [each], sampling)[0] for each in CONVERSATIONS]
        assert told(answers(engine, CONVERSATIONS, sampling)) == told(alone)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_enter_a_running_batch_say_the_same(engines, kind):
    engine = engines(kind)
    rows = [
        Request(each, replace(GREEDY, max_tokens=most))
        for most, each in zip((3, 12, 5, 9), CONVERSATIONS, strict=True)
    ]
    alone = [event for row in rows for event in engine.stream([row]) if isinstance(event, Finished)]
    found = {e.row: e.generation for e in engine.stream(rows, 2) if isinstance(e, Finished)}
    assert told([found[row] for row in range(4)]) == told([each.generation for each in alone])


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_a_form(engines, kind):
    engine = engines(kind)
    of_choices = Request(SEVERAL, GREEDY, Constraint(choices=("a circle", "a square")))
    (finished,) = [e for e in engine.stream([of_choices]) if isinstance(e, Finished)]
    answer = finished.generation
    assert answer.text in answer.choices
    assert sum(answer.choices.values()) == pytest.approx(1)
    if kind in ("glm4v", "glm5_next"):
        return  # always thinks, and a form is that of the answer after it
    pytest.importorskip("llguidance")
    sampling = replace(GREEDY, max_tokens=40, thinking=None if kind in ALWAYS else False)
    rows = [
        Request(each, sampling, Constraint(regex="(red|blue) [0-9]{2}")) for each in (SEVERAL, ONE)
    ]
    for event in engine.stream(rows):
        if isinstance(event, Finished):
            assert re.fullmatch("(red|blue) [0-9]{2}", event.generation.text)
            assert event.generation.finish_reason == "stop"


@pytest.mark.parametrize("kind", CROPPED)
def test_a_follow_up_reads_only_what_is_new(engines, native, kind):
    plain, engine = engines(kind), local.load(resolve(native(kind)), keep=2**26)
    (first,) = answers(engine, [SEVERAL])
    keys = (*engine.prompt(engine.processor.encode(SEVERAL)).keys, *first.ids)
    assert engine.kept.find(keys)[1] == len(keys) - 1  # all but the latest token
    follow_up = talk(*SEVERAL.messages, Message("assistant", "Well."), Message("user", "?", (C, B)))
    answers(engine, [ONE])  # another chat in between
    length = len(engine.processor.encode(SEVERAL).ids)
    with watched(engine) as seen:
        found = answers(engine, [follow_up])
    assert told(found) == told(answers(plain, [follow_up]))
    assert seen["encoded"] == []  # the features of both images are kept
    assert seen["read"][0] <= len(engine.processor.encode(follow_up).ids) - length + 2
    assert seen["read"][0] > sum(each.visual_tokens for each in found[0].seen[3:])


@pytest.mark.parametrize("kind", CROPPED)
def test_rows_that_begin_alike_read_their_beginning_once(engines, native, kind):
    plain, engine = engines(kind), local.load(resolve(native(kind)), keep=2**26)
    rows = [
        talk(Message("user", "Compare these two.", (A, B)), Message("assistant", "Done."), last)
        for last in (Message("user", "x", (C,)), Message("user", "Longer question", (A,)))
    ]
    with watched(engine) as seen:
        found = answers(engine, rows)
    assert told(found) == told([answers(plain, [each])[0] for each in rows])
    assert len(seen["encoded"]) == 3
    assert seen["read"][0] > seen["read"][1] > 1


def read_of(seen):
    """How many ids were read by forwards of more than one token, whatever the answers' lengths."""
    return sum(rows * width for rows, width in seen["shapes"] if width > 1)


def with_states(native):
    return local.load(resolve(native("glm5_next")), keep=2**26)


def test_a_model_with_states_goes_on_from_those_that_a_prompt_left(engines, native):
    plain, engine = engines("glm5_next"), with_states(native)
    system = Message("system", "Say what you see and be as brief as you can, please.")
    first = talk(system, Message("user", "What is it that they show us here?", (A, B)))
    follow_up = talk(*first.messages, Message("assistant", "Well."), Message("user", "?", (C, B)))
    other = talk(system, Message("user", "And which of these two is the larger one?", (A, B)))
    edited = talk(*follow_up.messages[:3], Message("user", "Another question after all. " * 4))
    text = talk(system, Message("user", "Nothing to see here? " * 4))
    lengths = [len(engine.processor.encode(each).ids) for each in (first, follow_up)]
    images = max(each.stop for each in engine.processor.encode(other).images)
    message = engine.processor.encode(text).ids.index(engine.processor.end_token_ids[1])
    turn = lengths[0] - 16  # what follows may be written otherwise in a longer prompt
    for chat, known in (
        (first, 0),
        (follow_up, turn),
        (follow_up, lengths[1] - 16),  # retried
        (first, images),
        (other, images),
        (edited, turn + 16),
        (text, message),
    ):
        with watched(engine) as seen:
            found = answers(engine, [chat])
        assert told(found) == told(answers(plain, [chat]))
        assert read_of(seen) <= len(engine.processor.encode(chat).ids) - known
    assert engine.batch_size == 8


@pytest.mark.parametrize("keep", [0, 2**26])
def test_rows_of_a_model_with_states_read_what_they_share_once(engines, native, keep):
    plain = engines("glm5_next")
    engine = with_states(native) if keep else plain
    questions = ["Compare these two.", "What?", "Which one?", "Compare these six.", "So?"]
    rows = [talk(Message("user", each, (A, B))) for each in questions]
    rows.append(talk(Message("user", "Nothing to see.")))
    alone = told(answers(plain, [each])[0] for each in rows)
    prompts = [engine.processor.encode(each) for each in rows]
    shared = prompts[0].images[-1].stop
    for at_once, most in ((8, shared), (2, shared), (8, shared if keep == 0 else 0)):
        with watched(engine) as seen:
            events = engine.stream([Request(each, GREEDY) for each in rows], at_once)
            found = {event.row: event.generation for event in events if isinstance(event, Finished)}
        assert told(found[row] for row in range(len(rows))) == alone
        rest = sum(len(each.ids) - (shared if each.images else 0) for each in prompts)
        assert read_of(seen) <= most + rest
        assert len(seen["encoded"]) <= 2


@pytest.mark.parametrize("keep", [0, 2**26])
def test_choices_of_a_model_with_states_read_their_prompts_once(engines, native, keep):
    """Their probabilities are held against forwards of the whole elsewhere."""
    engine = with_states(native) if keep else engines("glm5_next")
    choices = Constraint(choices=("yes", "no", "not at all sure"))
    rows = [talk(Message("user", each, (A, B))) for each in ("Two?", "Any?", "Is one larger?")]
    length = len(engine.processor.encode(rows[0]).ids)
    requests = [Request(each, replace(GREEDY, max_tokens=64), choices) for each in rows]
    found = []
    for asked in (requests, requests[:1]):
        with watched(engine) as seen:
            events = list(engine.stream(asked))
        assert read_of(seen) < 3 * length
        assert len(seen["encoded"]) <= 2
        found.append({e.row: e.generation.choices for e in events if isinstance(e, Finished)})
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-3)
    assert len({tuple(each.values()) for each in found[0].values()}) == 3


def test_when_memory_runs_out_in_a_step_of_a_model_with_states_the_next_call_has_room(
    engines, native
):
    """States that a failed step has changed cannot be set back, so the step is not made again."""
    engine = with_states(native)
    (expected,) = answers(engine, [ONE])
    assert engine.cache.used_bytes

    def fail(_module, _args, options):
        if options["input_ids"].shape[1] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = engine.model.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(OutOfMemoryError):
        answers(engine, [ONE])
    handle.remove()
    assert engine.cache.used_bytes == 0
    assert told(answers(engine, [ONE])) == told([expected])


def test_what_was_seen_and_counted(engines):
    (answer,) = answers(engines("glm46v"), [SEVERAL])
    assert answer.seen == (
        SeenImage((84, 252), 27), SeenImage((84, 112), 12), SeenImage((252, 168), 54),
    )  # fmt: skip
    assert answer.usage.visual_tokens == 93
    encoded = engines("glm46v").processor.encode(SEVERAL)
    assert answer.usage.text_tokens == len(encoded.ids) - 93
    info = engines("glm46v").info
    assert (info.max_images, info.image_size, info.visual_tokens) == (None, None, None)
    assert (info.thinks, info.takes_video) == (True, True)


def test_that_linear_attention_runs_transformers_own_code_is_no_news(engines):
    logger, told = logging.getLogger("transformers.integrations.hub_kernels"), []
    handler = logging.Handler()
    handler.emit = told.append
    logging.Logger.warning_once.cache_clear()
    logger.addHandler(handler)
    try:
        answers(engines("glm5_next"), [ONE])
    finally:
        logger.removeHandler(handler)
    assert told == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_keeps_what_was_said(engines, kind):
    engine = engines(kind)
    (whole,) = answers(engine, [ONE])
    events = engine.stream([Request(ONE, GREEDY)])
    first = next(events)
    with pytest.raises(GenerationInterrupted) as caught:
        events.throw(KeyboardInterrupt())
    assert isinstance(first, Text)
    assert first.text.strip()
    assert whole.text.startswith(caught.value.generation.text)
    assert told(answers(engine, [ONE])) == told([whole])


@pytest.mark.parametrize("kind", KINDS)
def test_thinking_is_told_apart(engines, kind):
    engine = engines(kind)
    with Says(engine, "\n<think>\nOne <|user or two?</think>\n<answer>Two.</answer>"):
        events = list(engine.stream([Request(ONE, replace(GREEDY, max_tokens=99))]))
    *pieces, finished = events
    answer = finished.generation
    assert (answer.thinking, answer.text) == ("One <|user or two?", "Two.")
    assert "".join(e.text for e in pieces if isinstance(e, Thinking)).strip() == answer.thinking
    assert "".join(e.text for e in pieces if isinstance(e, Text)).strip() == answer.text
    assert answer.usage.thinking_tokens == len(engine.processor.text_ids(answer.thinking))
    with Says(engine, "\nNo tags."):
        (answer,) = answers(engine, [ONE])
    assert (answer.thinking, answer.text) == ("", "No tags.")
    assert answer.usage.thinking_tokens is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "said",
    [
        "\n<think>\nOne 猫 or two?</think>\n<answer>Two 猫.</answer>",
        "\n<think>One 猫 or two?</think>Two 猫.",
    ],
)
def test_tokens_of_the_thinking_are_kept_apart(engines, kind, said):
    engine = engines(kind)
    with Says(engine, said):
        (answer,) = answers(engine, [ONE], replace(GREEDY, max_tokens=99, logprobs=1))
    assert (answer.thinking, answer.text) == ("One 猫 or two?", "Two 猫.")
    for tokens, text in (
        (answer.tokens, answer.text),
        (answer.thinking_tokens, answer.thinking),
    ):
        places = {at for token in tokens for at in range(token.start, token.end)}
        assert places == set(range(len(text)))
        for token in tokens:
            assert text[token.start : token.end] in token.text or "\ufffd" in token.text
    assert len(answer.tokens) + len(answer.thinking_tokens) == answer.usage.new_tokens


def test_tags_that_a_tokenizer_calls_special_are_read(native, tmp_path):
    folder = shutil.copytree(native("glm46v"), tmp_path / "special")
    described = json.loads((folder / "tokenizer.json").read_text())
    for token in described["added_tokens"]:
        token["special"] = True
    (folder / "tokenizer.json").write_text(json.dumps(described))
    engine, box = local.load(resolve(folder), keep=0), "[[1,2,3,4]]".join(BOX_TAGS)
    with Says(engine, f"\n<think>One.</think>\n{box}"):
        (answer,) = answers(engine, [ONE], replace(GREEDY, max_tokens=99))
    assert (answer.thinking, answer.text) == ("One.", box)


def test_thinking_that_was_stopped_goes_on(engines):
    engine = engines("glm46v")
    partial = Message("assistant", "", complete=False, thinking="One or")
    with Says(engine, " two?</think>\nTwo."):
        (answer,) = answers(engine, [talk(*ONE.messages, partial)], replace(GREEDY, max_tokens=99))
    assert (answer.thinking, answer.text) == (" two?", "Two.")
    partial = Message("assistant", "It is", complete=False, thinking="One or two?")
    with Says(engine, " two."):
        (answer,) = answers(engine, [talk(*ONE.messages, partial)])
    assert (answer.thinking, answer.text) == ("", " two.")


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_checkpoint_and_its_progress(engines, tmp_path, kind):
    folder = tiny_native.write(kind, tmp_path, shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    progress = []
    engine = local.load(resolve(folder), Placement(), arrived=progress.append)
    assert told(answers(engine, [SEVERAL])) == told(answers(engines(kind), [SEVERAL]))
    assert progress[-1].done_bytes == progress[-1].total_bytes == resolve(folder).total_bytes
