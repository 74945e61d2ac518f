"""Waiting rows enter a running batch as others leave; each says what it says alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import golden
import pytest
import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import GenerationInterrupted, OutOfMemoryError
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local
from glm4v_magic.engines.arranging import Arranged, alike, arranged
from glm4v_magic.engines.kv_block import KVBlock, joined
from glm4v_magic.engines.prompts import Prompt
from glm4v_magic.virtual_gpus import VirtualGPUs

PHOTO, OTHER = golden.photo("image0.png"), golden.photo("image1.png")
QUESTIONS = ("What?", "How many shapes are there?", "Describe the image in one short sentence.")


def asked(text, *images):
    return Conversation((Message("user", text, images),))


def sampling(row):
    """Greedy, or sampled with a seed and options of its own; 1 to 12 tokens."""
    most = 1 + row * 5 % 12
    if row % 2:
        return Sampling(most, temperature=1.5, top_k=40, repetition_penalty=1.3, seed=row)
    return Sampling(most, temperature=0)


CHATS = [asked(text, *images) for text in QUESTIONS for images in ((), (PHOTO,), (OTHER,))]
REQUESTS = [Request(chat, sampling(row)) for row, chat in enumerate([*CHATS, *CHATS])]


@pytest.fixture(scope="module", params=[0, 2**26], ids=["nothing kept", "kept"])
def engine(request):
    return local.load(resolve(golden.CHECKPOINT), keep=request.param)


@pytest.fixture(scope="module")
def plain():
    return local.load(resolve(golden.CHECKPOINT), keep=0)


@pytest.fixture(scope="module")
def alone(plain):
    return [told(*answers(plain, [each]).values()) for each in REQUESTS]


def answers(engine, requests, at_once=None):
    found = {}
    for event in engine.stream(requests, at_once):
        if isinstance(event, Finished):
            assert event.row not in found
            found[event.row] = event.generation
    return found


def told(generation):
    return generation.text, generation.usage.new_tokens, generation.usage.prompt_tokens


@contextmanager
def shapes(engine) -> Iterator[list[tuple[int, int]]]:
    """Shape of the ids of each forward."""
    seen: list[tuple[int, int]] = []
    handle = engine.model.register_forward_pre_hook(
        lambda _module, _args, options: seen.append(tuple(options["input_ids"].shape)),
        with_kwargs=True,
    )
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
def test_rows_that_enter_say_what_they_say_alone(engine, alone, at_once):
    order = list(range(len(REQUESTS)))
    random.Random(at_once).shuffle(order)
    found = answers(engine, (REQUESTS[row] for row in order), at_once)
    assert [told(found[at]) for at in range(len(order))] == [alone[row] for row in order]
    assert len({text for text, _, _ in alone}) > 6


def test_no_more_rows_are_open_than_allowed_and_none_waits_for_the_longest(plain):
    limits = [9, *[3] * 6]
    requests = [Request(asked("What?"), Sampling(most, temperature=0)) for most in limits]
    with shapes(plain) as seen:
        found = answers(plain, requests, at_once=2)
    assert [found[row].usage.new_tokens for row in range(7)] == limits
    steps = [rows for rows, width in seen if width == 1]
    assert set(steps) <= {1, 2}
    assert len(steps) == 10  # 8 of the longest, beside it 4 others; then the last two
    assert sum(steps) == sum(most - 1 for most in limits)


def test_columns_that_no_row_uses_are_dropped(plain):
    requests = [
        Request(asked(text), Sampling(most, temperature=0))
        for text, most in (("What?" * 30, 2), ("a", 6), ("b", 6), ("c", 6))
    ]
    widths = []
    handle = plain.model.register_forward_pre_hook(
        lambda _module, _args, options: widths.append(
            options["past_key_values"].get_seq_length() + options["input_ids"].shape[1]
        ),
        with_kwargs=True,
    )
    try:
        answers(plain, requests, at_once=2)
    finally:
        handle.remove()
    assert max(widths) > 100
    assert widths[-1] < 20


def test_requests_are_taken_when_there_is_room_outside_of_torchs_contexts(plain):
    taken = []

    def requests():
        for row in range(100):
            assert not torch.is_inference_mode_enabled()
            taken.append(row)
            yield Request(asked("What?"), Sampling(3, temperature=0))

    events = plain.stream(requests(), 2)
    next(events)
    assert len(taken) == 8
    events.close()
    assert len(taken) == 8


def test_an_interrupt_tells_of_open_rows_only(plain):
    requests = [Request(chat, Sampling(9, temperature=0)) for chat in CHATS[:5]]
    events, finished = plain.stream(requests, 2), []
    while not finished:
        event = next(events)
        finished += [event.row] * isinstance(event, Finished)
    for _ in range(4):
        next(events)
    with pytest.raises(GenerationInterrupted) as caught:
        events.throw(KeyboardInterrupt())
    assert 1 <= len(caught.value.generations) <= 2
    assert not set(finished) & set(caught.value.generations)


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_rows_on_one_image_read_it_once_whenever_they_enter(plain, at_once):
    engine = local.load(resolve(golden.CHECKPOINT), keep=2**26)
    images = (PHOTO, OTHER)
    requests = [
        Request(
            asked(f"Look closely: {text} {number}", images[number % 2]), Sampling(2, temperature=0)
        )
        for number, text in enumerate(QUESTIONS * 3)
    ]
    encoded, with_images = [], []
    handles = [
        engine.model.model.vision.register_forward_pre_hook(
            lambda _module, args: encoded.append(len(args[0]))
        ),
        engine.model.register_forward_pre_hook(
            lambda _module, _args, options: (
                with_images.append(len(options["input_ids"]))
                if options.get("image_features") is not None
                else None
            ),
            with_kwargs=True,
        ),
    ]
    found = answers(engine, requests, at_once)
    for handle in handles:
        handle.remove()
    assert sum(encoded) == 2
    assert with_images == [1, 1]  # a row for each image
    expected = answers(plain, requests, 1)
    assert {row: told(each) for row, each in found.items()} == {
        row: told(each) for row, each in expected.items()
    }


def test_memory_that_runs_out_names_the_open_rows(plain):
    def fail(_module, _args, options):
        if len(options["input_ids"]) > 1 and options["input_ids"].shape[1] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    requests = [Request(asked("What?"), Sampling(3, temperature=0))] * 5
    handle = plain.model.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(OutOfMemoryError) as caught:
        answers(plain, requests, 3)
    handle.remove()
    assert caught.value.rows == (0, 1, 2)


def test_joining_copies_a_layer_at_a_time(plain):
    layers = len(plain.model.model.language_model.layers)

    def block(rows, width):
        mask = torch.ones((rows, width), dtype=torch.long, device="cuda:0")
        made = KVBlock(plain.model, mask)
        for layer in made.cache.layers:
            sample = torch.ones((rows, 2, width, 64), device="cuda:0")
            layer.lazy_initialization(sample, sample)
            layer.keys, layer.values = sample.clone(), sample.clone()
        made.latest = mask[:, -1:]
        return made

    with VirtualGPUs("1x64MiB") as gpus:
        running, entered = block(7, 100), block(1, 60)
        before = gpus.live_bytes[0]
        gpus.reset()
        whole = joined(plain.model, [(running, [0, 2, 3, 4, 5, 6]), (entered, [0])], run)
        after = gpus.live_bytes[0]
        peak = max(each.peak_bytes for each in gpus.peaks)
        assert whole.mask.sum(dim=1).tolist() == [100] * 6 + [60]
        shapes_of = {tuple(layer.keys.shape) for layer in whole.cache.layers}
    one = 7 * 2 * 100 * 64 * 4
    assert shapes_of == {(7, 2, 100, 64)}
    assert peak < max(before, after) + 3 * one
    assert 3 * one < 2 * layers * one / 2  # a second copy of all would be seen


def run(action):
    return action()


def prompt(*keys):
    return Prompt(torch.zeros(1, len(keys)), torch.zeros(1, len(keys)), keys)


def test_prompts_that_begin_alike_become_neighbours():
    one, other = ("one",) * 40, ("other",) * 40
    prompts = [
        prompt(*one, 1, 2, 3),
        prompt(*other, 1),
        prompt(*range(9)),
        prompt(*one, 1, 4),
        prompt(*range(5)),
        prompt(*other, 2),
    ]
    assert arranged(prompts, [8] * 6) == [
        Arranged(3, 41), Arranged(0, 41), Arranged(1, 40), Arranged(5, 40), Arranged(4, 0),
        Arranged(2, 0),
    ]  # fmt: skip
    assert arranged([], []) == []


def test_what_may_take_longest_begins_first():
    prompts = [prompt(1, 2), prompt(3), prompt(4)]
    order = arranged(prompts, [5, 5, 90])
    assert [each.index for each in order] == [2, 1, 0]


def test_a_common_beginning_is_not_given_up_for_one_more_prompt():
    system = tuple(range(20))
    prompts = [prompt(*system, *["image"] * 100, row) for row in range(3)]
    prompts.append(prompt(*system, "text"))
    assert [(each.index, each.shared) for each in arranged(prompts, [8] * 4)] == [
        (0, 120), (1, 120), (2, 120), (3, 0),
    ]  # fmt: skip


def test_rows_of_like_length_are_read_together():
    assert alike([10, 12, 1000, 11, 990]) == [[0, 1, 3], [2, 4]]
    assert alike([]) == []
