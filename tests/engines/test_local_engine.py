"""The engine on the tiny reference checkpoint: streaming, interrupts, seeds, limits."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import golden
import pytest
import torch
from transformers import GenerationConfig

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import ConversationError, GenerationInterrupted, OutOfMemoryError
from glm4v_magic.core.events import Failed, Finished, Text
from glm4v_magic.core.image import SeenImage
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local
from glm4v_magic.engines.sampling import call_config
from glm4v_magic.engines.transcript import Transcript

GREEDY = Sampling(max_tokens=16, temperature=0)


@pytest.fixture(scope="module")
def engine():
    return local.load(resolve(golden.CHECKPOINT), keep=0)


def request(case="image_text", sampling=GREEDY):
    return Request(golden.conversation(case), sampling)


def answer(engine, asked):
    """Pieces of the text, and what comes at the end."""
    *events, finished = engine.stream([asked])
    assert all(isinstance(event, Text) and event.text for event in events)
    assert isinstance(finished, Finished)
    return [event.text for event in events], finished.generation


@pytest.mark.parametrize("case", golden.SINGLE_ROW)
def test_greedy_answers_are_the_reference(engine, case):
    _, generation = answer(engine, request(case))
    ids = golden.CASES[case]["greedy_with_default_eos"]
    # Bytes at the end that are no character yet are no text.
    assert generation.text == engine.processor.decode(ids).rstrip("\ufffd").strip()
    assert generation.usage.new_tokens == len(ids)
    assert generation.seed is None


@pytest.mark.parametrize("case", golden.SINGLE_ROW)
def test_streamed_pieces_join_to_the_text(engine, case):
    pieces, generation = answer(engine, request(case))
    assert generation.text == "".join(pieces).strip()
    assert len(pieces) > 3


def pieces_of(engine, text, **options):
    tokenizer = engine.processor.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    transcript = Transcript(tokenizer, len(ids) + 1, (), **options)
    return [transcript.take(token, 0.0) for token in ids], ids


@pytest.mark.parametrize("text", ["描述这张图像", "ünï 👩‍👩‍👧 naïve", "a😀b", "日本語 text"])
def test_no_piece_holds_part_of_a_character(engine, text):
    pieces, ids = pieces_of(engine, text)
    assert len(ids) > len(text) / 2  # several tokens per character: there is something to get wrong
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)


def test_special_tokens_are_not_text(engine):
    transcript = Transcript(engine.processor.tokenizer, 9, {307})
    assert "".join(transcript.take(token, 0.0) for token in [104, 105, 307]) == "hi"
    assert transcript.ids == [104, 105, 307]
    assert transcript.ending == "stop"


def test_the_leading_newline_is_shown_only_where_an_answer_goes_on(engine):
    assert "".join(pieces_of(engine, "\n hi")[0]) == "hi"
    assert "".join(pieces_of(engine, "\n hi", carries_on=True)[0]) == "\n hi"


def test_half_a_character_at_the_end_is_no_text(engine):
    transcript = Transcript(engine.processor.tokenizer, 4, ())
    assert [transcript.take(token, 0.0) for token in (*b"a", *"猫".encode()[:2])] == ["a", "", ""]
    assert transcript.text == "a"


def test_usage_counts_text_visual_and_new_tokens(engine):
    generation = answer(engine, request())[1]
    usage = generation.usage
    assert usage.visual_tokens == 6
    assert generation.seen == (SeenImage((56, 56), 6),)
    assert usage.text_tokens == len(golden.CASES["image_text"]["input_ids"]) - 3
    assert usage.prompt_tokens == usage.text_tokens + 6
    assert usage.new_tokens == 16
    assert usage.time_to_first_token > 0
    assert usage.decode_seconds > 0


def test_length_and_stop_are_told_apart(engine):
    assert answer(engine, request())[1].finish_reason == "length"
    ends, engine.defaults.eos_token_id = (
        engine.defaults.eos_token_id,
        [golden.CASES["image_text"]["greedy_ids"][3]],
    )
    try:
        generation = answer(engine, request())[1]
    finally:
        engine.defaults.eos_token_id = ends
    assert generation.finish_reason == "stop"
    assert generation.usage.new_tokens == 4


def test_an_interrupt_keeps_the_partial_text_and_the_engine(engine):
    _, whole = answer(engine, request())
    events = engine.stream([request()])
    pieces = [next(events).text for _ in range(5)]
    with pytest.raises(GenerationInterrupted) as caught:
        events.throw(KeyboardInterrupt())
    partial = caught.value.generation
    assert caught.value.__context__ is None  # its frames would hold the cache
    assert caught.value.generations == {0: partial}
    assert isinstance(caught.value, KeyboardInterrupt)
    assert partial.finish_reason == "interrupted"
    assert partial.text == "".join(pieces).strip()
    assert whole.text.startswith(partial.text)
    assert partial.usage.new_tokens < 16
    assert answer(engine, request())[1].text == whole.text


def test_an_interrupt_before_the_first_token(engine):
    def interrupt(*_args):
        raise KeyboardInterrupt

    handle = engine.model.model.vision.register_forward_hook(interrupt)
    try:
        with pytest.raises(GenerationInterrupted) as caught:
            next(engine.stream([request()]))
    finally:
        handle.remove()
    assert caught.value.generation.text == ""
    assert caught.value.generation.usage.time_to_first_token is None


def sample(engine, seed):
    sampling = Sampling(max_tokens=12, temperature=1.0, top_p=1.0, top_k=0, seed=seed)
    return answer(engine, request(sampling=sampling))[1]


def test_a_seed_repeats_an_answer_and_is_reported(engine):
    first, again, other = sample(engine, 7), sample(engine, 7), sample(engine, 8)
    assert first.text == again.text != other.text
    assert first.seed == 7


def test_a_drawn_seed_is_reported_and_repeats_the_answer(engine):
    drawn = sample(engine, None)
    assert sample(engine, drawn.seed).text == drawn.text


def test_the_users_random_state_is_left_alone(engine):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    sample(engine, 5)
    sample(engine, None)
    assert torch.equal(torch.rand(3), expected)


def test_sampling_options_reach_the_config():
    base = GenerationConfig(do_sample=True, temperature=0.8, top_p=0.8, max_length=100)
    asked = Sampling(9, 0.3, top_p=0.5, top_k=7, min_p=0.1, repetition_penalty=1.2)
    config = call_config(base, asked, room=100)
    assert (config.max_new_tokens, config.max_length) == (9, None)
    assert (config.do_sample, config.temperature, config.top_p, config.top_k) == (True, 0.3, 0.5, 7)
    assert (config.min_p, config.repetition_penalty) == (0.1, 1.2)
    assert base.temperature == 0.8


def test_unset_sampling_options_are_the_checkpoints():
    base = GenerationConfig(do_sample=True, temperature=0.8, top_p=0.6)
    config = call_config(base, Sampling(), room=100)
    assert (config.do_sample, config.temperature, config.top_p) == (True, 0.8, 0.6)


def test_temperature_zero_is_greedy():
    base = GenerationConfig(do_sample=True, temperature=0.8, top_p=0.8)
    assert call_config(base, Sampling(temperature=0), room=9).do_sample is False


def test_the_answer_is_cut_at_the_context(engine):
    config = call_config(GenerationConfig(), Sampling(max_tokens=50), room=3)
    assert config.max_new_tokens == 3


def test_a_prompt_longer_than_the_context_is_refused(engine):
    conversation = Conversation((Message("user", "word " * 300),))
    (failed,) = engine.stream([Request(conversation, GREEDY)])
    assert isinstance(failed.error, ConversationError)
    assert re.search(r"tokens long, but .* holds 256", str(failed.error))


def test_two_images_are_refused(engine):
    photos = (golden.photo("image0.png"), golden.photo("image1.png"))
    conversation = Conversation((Message("user", "compare", photos),))
    failed, *_ = engine.stream([Request(conversation, GREEDY), request()])
    assert "2 images, but GLM-4V-9B takes 1" in str(failed.error)


def test_a_request_that_cannot_be_answered_leaves_the_others_alone(engine):
    too_long = Request(Conversation((Message("user", "word " * 300),)), GREEDY)
    events = [*engine.stream([request(), too_long, request()])]
    ended = [(event.row, type(event)) for event in events if isinstance(event, Failed | Finished)]
    assert sorted(ended, key=str) == [(0, Finished), (1, Failed), (2, Finished)]


def test_requests_enter_and_leave_while_others_are_answered(engine):
    """The second comes at the third step of the first, and is withdrawn at its own second piece."""
    long = Request(Conversation((Message("user", "What?"),)), Sampling(64, temperature=0))
    steps, withdrawn = [], set()
    handle = engine.model.lm_head.register_forward_hook(lambda *_: steps.append(_[1][0].shape[0]))

    def arriving():
        yield long
        while len(steps) < 3:
            yield None
        yield replace(long, conversation=Conversation((Message("user", "And?"),)))
        while len(steps) < 20:
            yield None

    events = []
    for event in engine.stream(arriving(), 2, withdrawn):
        events.append(event)
        if len([each for each in events if each.row == 1]) == 2 and not withdrawn:
            withdrawn.add(1)
            until = len(steps)
    handle.remove()
    assert max(steps[:3]) == 1 < max(steps)
    assert max(steps[until:]) == 1  # not a step with both after that
    assert [each.row for each in events if isinstance(each, Finished)] == [0]
    finished = next(each for each in events if isinstance(each, Finished))
    (alone,) = [each for each in engine.stream([long]) if isinstance(each, Finished)]
    assert finished.generation.text == alone.generation.text


@pytest.mark.parametrize("at", range(1, 5))
def test_a_stop_text_ends_the_answer_before_it(engine, at):
    asked = Request(Conversation((Message("user", "What?"),)), Sampling(24, temperature=0))
    whole = next(e for e in engine.stream([asked]) if isinstance(e, Finished)).generation
    stop = whole.text[len(whole.text) // 2 :][:at]
    *said, finished = engine.stream([replace(asked, stop=("never said", stop))])
    text = whole.text[: whole.text.index(stop)]
    assert finished.generation.text == text.rstrip()
    assert "".join(each.text for each in said) == text
    assert finished.generation.finish_reason == "stop"
    assert finished.generation.usage.new_tokens < whole.usage.new_tokens


def test_running_out_of_memory_keeps_the_model(engine):
    def run_out(*_args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 188.00 MiB.")

    handle = engine.model.model.vision.register_forward_hook(run_out)
    try:
        with pytest.raises(OutOfMemoryError, match=r"188.00 MiB.*still loaded"):
            next(engine.stream([request()]))
    finally:
        handle.remove()
    assert answer(engine, request())[1].usage.new_tokens == 16


def test_info_describes_the_model(engine):
    info = engine.info
    assert info.model == str(golden.CHECKPOINT)
    assert info.max_images == 1
    assert info.image_size == (56, 56)
    assert info.visual_tokens == 6
    assert info.context == 256
    assert info.parameters == 381_844 - 4  # inv_freq is stored but computed
    assert (info.dtype, info.devices) == ("float32", ("cpu",))


@pytest.fixture
def transformers_log():
    """What transformers logs, which users would see above their answer."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.mark.parametrize("temperature", [None, 0, 0.7])
def test_no_call_makes_transformers_complain(transformers_log, temperature):
    sampling = Sampling(max_tokens=4, temperature=temperature)
    answer(local.load(resolve(golden.CHECKPOINT)), request(sampling=sampling))
    assert transformers_log == []


def test_progress_counts_every_byte_on_disk():
    seen = []
    checkpoint = resolve(golden.SHARDED)
    local.load(checkpoint, arrived=seen.append)
    assert [step.done_bytes for step in seen] == sorted(step.done_bytes for step in seen)
    assert seen[-1].total_bytes == checkpoint.total_bytes
    assert seen[-1].done_bytes == checkpoint.total_bytes - 16  # inv_freq, four float32


@pytest.mark.parametrize(
    ("parameters", "device", "rows"),
    [(10**6, "cpu", 8), (13 * 10**9, "cpu", 1), (13 * 10**9, "cuda:0", 8)],
)
def test_a_large_model_on_the_cpu_is_asked_row_by_row(
    engine, monkeypatch, parameters, device, rows
):
    info = replace(engine.info, parameters=parameters, devices=(device,))
    monkeypatch.setattr(local.LocalEngine, "info", property(lambda _: info))
    assert engine.batch_size == rows
