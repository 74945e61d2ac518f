"""The decode loop says what transformers' `generate` says, whatever stands around a row."""

from __future__ import annotations

import gc
import json
import re
import shutil
import weakref
from collections.abc import Callable
from typing import ClassVar

import golden
import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import GenerationInterrupted
from glm4v_magic.core.events import Finished, Text
from glm4v_magic.core.options import Sampling, check, of_group
from glm4v_magic.core.placement import Place
from glm4v_magic.engines import kv_block, local
from glm4v_magic.engines.sampling import TokenSampler, call_config, checkpoint_config
from glm4v_magic.planning.decision import Placement
from glm4v_magic.virtual_gpus import VirtualGPUs

GREEDY = Sampling(16, temperature=0)
SAMPLINGS = {
    "greedy": GREEDY,
    "as the checkpoint has it": Sampling(16, seed=1),
    "temperature": Sampling(16, temperature=1.5, seed=2),
    "top_k": Sampling(16, temperature=1.5, top_k=5, seed=3),
    "top_p": Sampling(16, temperature=1.0, top_p=0.7, seed=4),
    "min_p": Sampling(16, temperature=1.5, min_p=0.3, seed=7),
    "penalty": Sampling(16, temperature=0, repetition_penalty=1.7),
    "everything": Sampling(
        16, temperature=1.2, top_k=40, top_p=0.9, repetition_penalty=1.3, seed=5
    ),
    "no top_k": Sampling(16, temperature=1.5, top_k=0, seed=6),
}
UNFINISHED = Conversation(
    (
        *golden.conversation("image_text").messages,
        Message("assistant", "It is a", complete=False),
    )
)
CONVERSATIONS = {
    **{case: golden.conversation(case) for case in golden.SINGLE_ROW},
    "an answer that goes on": UNFINISHED,
    "a system text": golden.conversation("image_text").with_system("Be brief."),
}
LAYER = "model.language_model.layers.1"
OFFLOAD: dict[str, Place] = {**golden.SPLIT, LAYER: "cpu", "model.vision": "cpu"}


@pytest.fixture(scope="module")
def engine():
    return local.load(resolve(golden.CHECKPOINT), keep=0)


def answers(engine, requests):
    found = {}
    texts = [""] * len(requests)
    for event in engine.stream(requests):
        if isinstance(event, Finished):
            assert event.row not in found
            found[event.row] = event.generation
        else:
            assert isinstance(event, Text)
            assert event.row not in found
            texts[event.row] += event.text
    rows = [found[row] for row in range(len(requests))]
    for row, text, request in zip(rows, texts, requests, strict=True):
        assert row.text == (text.rstrip() if request.conversation.unfinished else text.strip())
    return rows


def oracle(engine, request):
    """What `generate` says: the text of its ids, and how many they are."""
    config = call_config(engine.defaults, request.sampling, engine.require_room(request))
    inputs = engine.processor([request.conversation])
    if request.sampling.seed is not None:
        torch.manual_seed(request.sampling.seed)
    with torch.inference_mode():
        output = engine.model.generate(**inputs, generation_config=config)
    ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    text = engine.processor.decode(ids).rstrip("\ufffd")
    return text.rstrip() if request.conversation.unfinished else text.strip(), len(ids)


def told(generation):
    return generation.text, generation.usage.new_tokens


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_a_row_alone_says_what_generate_says(engine, sampling):
    for conversation in CONVERSATIONS.values():
        request = Request(conversation, sampling)
        (generation,) = answers(engine, [request])
        assert told(generation) == oracle(engine, request)
        is_greedy = sampling.temperature == 0
        assert generation.seed == (None if is_greedy else sampling.seed)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_a_row_of_a_batch_says_what_it_says_alone(engine, sampling):
    requests = [Request(conversation, sampling) for conversation in CONVERSATIONS.values()]
    rows = answers(engine, requests)
    for row, request in zip(rows, requests, strict=True):
        assert told(row) == oracle(engine, request)
        (alone,) = answers(engine, [request])
        assert (row.finish_reason, row.seed) == (alone.finish_reason, alone.seed)
        assert row.usage.prompt_tokens == alone.usage.prompt_tokens
        assert row.usage.visual_tokens == alone.usage.visual_tokens
    assert len({row.text for row in rows}) > 3


def test_each_row_has_its_own_seed_and_length(engine):
    conversation = golden.conversation("text_only")
    requests = [
        Request(conversation, Sampling(most, temperature=1.5, seed=seed))
        for most, seed in ((1, 1), (12, 2), (5, 1), (12, 1))
    ]
    rows = answers(engine, requests)
    for row, request in zip(rows, requests, strict=True):
        assert told(row) == oracle(engine, request)
    assert [row.seed for row in rows] == [1, 2, 1, 1]
    assert rows[0].usage.new_tokens == 1


def test_rows_without_a_seed_draw_their_own(engine):
    request = Request(golden.conversation("text_only"), Sampling(12, temperature=1.5))
    before = torch.random.get_rng_state()
    rows = answers(engine, [request] * 3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert len({row.seed for row in rows}) == len({row.text for row in rows}) == 3


def test_each_row_has_its_own_room(engine):
    cases = ("text_only", "image_second_turn")
    requests = [Request(golden.conversation(case), Sampling(300, temperature=0)) for case in cases]
    engine.defaults.eos_token_id, ends = [], engine.defaults.eos_token_id
    try:
        rows = answers(engine, requests)
    finally:
        engine.defaults.eos_token_id = ends
    for row, request in zip(rows, requests, strict=True):
        length = len(engine.processor.prompt_ids(request.conversation))
        assert row.usage.new_tokens == engine.require_room(request) == engine.info.context - length
        assert row.finish_reason == "length"
    assert rows[0].usage.new_tokens != rows[1].usage.new_tokens


def test_a_row_that_has_ended_leaves_the_batch(engine):
    sizes = []
    handle = engine.model.register_forward_pre_hook(
        lambda _module, _args, options: sizes.append(len(options["input_ids"])), with_kwargs=True
    )
    conversation = golden.conversation("text_only")
    try:
        answers(engine, [Request(conversation, Sampling(most, temperature=0)) for most in (2, 5)])
    finally:
        handle.remove()
    assert sizes == [2, 2, 1, 1, 1]


@pytest.mark.parametrize("device_map", [golden.SPLIT, OFFLOAD], ids=["split", "offload"])
def test_the_same_on_several_gpus(engine, device_map):
    sampled = SAMPLINGS["everything"]
    requests = [Request(each, sampled) for each in CONVERSATIONS.values()]
    greedy = [Request(each, GREEDY) for each in CONVERSATIONS.values()]
    expected = [told(row) for batch in (requests, greedy) for row in answers(engine, batch)]
    runs = {} if device_map is golden.SPLIT else {LAYER: 1, "model.vision": 1}
    with VirtualGPUs("3x64MiB") as gpus:
        split = local.load(
            resolve(golden.CHECKPOINT), Placement(device_map=device_map, execution_map=runs)
        )
        found = [told(row) for batch in (requests, greedy) for row in answers(split, batch)]
        (alone,) = answers(split, requests[:1])
        assert not gpus.problems
        split.close()
    assert found == expected
    assert told(alone) == expected[0]


def state():
    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
    )


def test_between_two_events_torch_is_as_the_user_left_it(engine):
    before = state()
    events = engine.stream([Request(UNFINISHED, SAMPLINGS["everything"])])
    for _ in events:
        assert state() == before
        assert torch.ones(1, requires_grad=True).sum().requires_grad
    weight = torch.ones(2, requires_grad=True)
    events = engine.stream([Request(UNFINISHED, GREEDY)])
    next(events)
    weight.sum().backward()
    assert weight.grad is not None
    torch.rand(1)  # the user's own draws go on between two events
    moved = state()
    next(events)
    assert state() == moved != before
    events.close()


@pytest.fixture
def caches(monkeypatch):
    """Every key/value cache that is still in memory."""
    alive: list[weakref.ref[DynamicCache]] = []

    class Followed(DynamicCache):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            alive.append(weakref.ref(self))

    monkeypatch.setattr(kv_block, "DynamicCache", Followed)
    return lambda: [each for each in alive if each() is not None]


def close(events):
    events.close()


def throw(events):
    with pytest.raises(GenerationInterrupted):
        events.throw(KeyboardInterrupt())


@pytest.mark.parametrize("leave", [close, throw])
def test_leaving_the_stream_frees_the_cache(engine, caches: Callable[[], list], leave):
    events = engine.stream([Request(UNFINISHED, GREEDY)] * 2)
    assert not caches()
    next(events)
    assert len(caches()) == 1
    gc.disable()
    try:
        leave(events)
        assert not caches()
    finally:
        gc.enable()
    assert list(events) == []


def test_an_interrupt_tells_what_the_open_rows_have_said(engine):
    conversation = golden.conversation("text_only")
    requests = [Request(conversation, Sampling(most, temperature=0)) for most in (9, 2, 9)]
    texts, finished = ["", "", ""], []
    events = engine.stream(requests)
    for event in events:
        if isinstance(event, Text):
            texts[event.row] += event.text
        else:
            finished.append(event.row)
        if len(texts[2]) >= 4:
            break
    with pytest.raises(GenerationInterrupted) as caught:
        events.throw(KeyboardInterrupt())
    assert finished == [1]
    assert list(caught.value.generations) == [0, 2]
    assert caught.value.generation is caught.value.generations[0]
    for row, generation in caught.value.generations.items():
        assert generation.text == texts[row].strip()
        assert generation.finish_reason == "interrupted"


@pytest.mark.parametrize("limits", [(2,), (2, 3)])
def test_an_interrupt_at_the_last_event_of_all_loses_no_answer(engine, limits):
    requests = [Request(UNFINISHED, Sampling(most, temperature=0)) for most in limits]
    events, finished = engine.stream(requests), []
    while len(finished) < len(limits):
        event = next(events)
        finished += [event] * isinstance(event, Finished)
    with pytest.raises(GenerationInterrupted) as caught:
        events.throw(KeyboardInterrupt())
    assert list(caught.value.generations) == [len(limits) - 1]
    assert caught.value.generation.text == finished[-1].generation.text
    assert caught.value.generation.finish_reason == "length"


def test_an_interrupt_before_anything_was_done(engine, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.processor, "encode", interrupt)
    with pytest.raises(GenerationInterrupted) as caught:
        next(engine.stream([Request(UNFINISHED, GREEDY)] * 2))
    assert list(caught.value.generations) == [0]
    assert caught.value.generation.text == ""


def test_nothing_happens_before_the_first_event(engine):
    events = engine.stream([Request(Conversation((Message("user", "word " * 300),)), GREEDY)])
    events.close()
    assert list(engine.stream([])) == []


def test_padding_is_nothing_that_was_said():
    sampler = TokenSampler(GenerationConfig(repetition_penalty=2.0), None, "cpu")
    assert sampler.reads_ids
    scores = torch.tensor([[1.0, 1.9, 1.0]])
    assert sampler.choose(torch.tensor([[0]]), scores) == 1
    assert sampler.choose(torch.tensor([[1, 0]]), scores) == 2


class TestShippedConfigs:
    """Settings that people ship in generation_config.json."""

    ODD: ClassVar[dict[str, object]] = {
        "num_beams": 4,
        "num_return_sequences": 2,
        "max_time": 0.001,
        "stop_strings": ["a"],
        "guidance_scale": 1.5,
        "penalty_alpha": 0.6,
        "max_length": 1,
        "top_k": "many",
        "top_p": 7,
    }

    def load(self, folder, content):
        shutil.copytree(golden.CHECKPOINT, folder, dirs_exist_ok=True)
        file = folder / "generation_config.json"
        if content is None:
            file.unlink()
        else:
            file.write_text(json.dumps(content), encoding="utf-8")
        return local.load(resolve(folder))

    @pytest.mark.parametrize("name", ODD)
    def test_what_is_not_understood_changes_nothing_and_is_named(self, engine, tmp_path, name):
        value = self.ODD[name]
        other = self.load(tmp_path, {"do_sample": False, name: value})
        request = Request(golden.conversation("image_text"), GREEDY)
        assert told(answers(other, [request])[0]) == told(answers(engine, [request])[0])
        notes = () if name == "max_length" else (
            f"generation_config.json has {name}={value!r}, which is left out",
        )  # fmt: skip
        assert other.info.notes == notes

    def test_values_that_turn_a_setting_off(self, engine, tmp_path):
        other = self.load(tmp_path, {"do_sample": True, "top_k": -1, "temperature": 1.0})
        request = Request(golden.conversation("text_only"), Sampling(12, seed=3))
        off = Sampling(12, temperature=1.0, top_k=0, top_p=1.0, seed=3)
        expected = answers(engine, [Request(request.conversation, off)])[0]
        assert told(answers(other, [request])[0]) == told(expected)
        assert other.info.notes == ()

    def test_a_temperature_of_zero_is_greedy(self, engine, tmp_path):
        other = self.load(tmp_path, {"do_sample": True, "temperature": 0.0})
        request = Request(golden.conversation("text_only"), Sampling(16))
        greedy = Request(request.conversation, GREEDY)
        assert told(answers(other, [request])[0]) == told(answers(engine, [greedy])[0])
        assert other.info.notes == ()

    @pytest.mark.parametrize("content", [None, {}, {"eos_token_id": 5}], ids=str)
    def test_an_answer_never_runs_past_its_turn(self, engine, tmp_path, content):
        other = self.load(tmp_path, content)
        assert set(other.processor.end_token_ids) <= set(other.defaults.eos_token_id)
        user = other.processor.end_token_ids[1]

        def say_user(_module, _args, logits):  # the next turn, at the third token
            steps.append(len(logits))
            if len(steps) == 3:
                logits[..., user] = logits.max() + 1
            return logits

        steps: list[int] = []
        other.model.lm_head.register_forward_hook(say_user)
        (found,) = answers(other, [Request(golden.conversation("text_only"), GREEDY)])
        assert found.usage.new_tokens == 3
        assert found.finish_reason == "stop"

    def test_the_embedded_models_have_nothing_to_tell(self):
        assert local.load(resolve("demo")).info.notes == ()
        assert checkpoint_config(GenerationConfig(), (3,), 12)[1] == ()


@pytest.mark.parametrize("form", [None, Constraint(regex="[a-z]{5}")])
@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e39},
        {"temperature": 1.7e308},
        {"temperature": 2e-9},
        {"temperature": 2e-9, "repetition_penalty": 1e-3},
        {"temperature": 1e308, "repetition_penalty": 1e3},
        {"temperature": 1.0, "top_p": 5e-324},
        {"temperature": 1.0, "min_p": 1},
        {"temperature": 1.0, "top_k": 10**30},
    ],
    ids=str,
)
def test_the_ends_of_the_ranges_are_sampled(engine, extreme, form):
    for name, value in extreme.items():
        check(name, value)
    requests = [
        Request(golden.conversation(case), Sampling(6, seed=1, **extreme), form)
        for case in ("image_text", "text_only")
    ]
    said = [event.generation for event in engine.stream(requests) if isinstance(event, Finished)]
    assert len(said) == 2
    assert all(each.usage.new_tokens for each in said)
    assert form is None or all(re.fullmatch("[a-z]{5}", each.text) for each in said)


OF_GENERATE = [each for each in of_group(Sampling) if hasattr(GenerationConfig(), each.name)]


@pytest.mark.parametrize("option", OF_GENERATE, ids=lambda each: each.name)
def test_each_option_of_the_table_that_generate_knows_changes_what_is_drawn(option):
    value = {"int": int, "float": float}[option.type](option.example or 1)
    ids = torch.tensor([[0, 0, 1]])
    scores = torch.tensor([[0.6, 0.25, 0.1, 0.05]]).log()

    def drawn(**options):
        config = call_config(GenerationConfig(do_sample=True), Sampling(8, **options), 20)
        samplers = [TokenSampler(config, seed, "cpu") for seed in range(100)]
        return [sampler.choose(ids, scores.clone()) for sampler in samplers]

    assert drawn(**{option.name: value}) != drawn()


def test_options_that_generate_knows_are_found():
    assert {"temperature", "top_k", "repetition_penalty"} <= {each.name for each in OF_GENERATE}
