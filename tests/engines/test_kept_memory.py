"""Memory of what is kept, by bytes counted on virtual GPUs."""

from __future__ import annotations

import golden
import pytest
import tiny_native
import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local
from glm4v_magic.planning.decision import Placement
from glm4v_magic.virtual_gpus import VirtualGPUs

GREEDY = Sampling(4, temperature=0)
CAPACITY = 2**26


@pytest.fixture
def on_gpu():
    with VirtualGPUs([CAPACITY]) as gpus:
        engine = local.load(resolve(golden.CHECKPOINT), Placement(device_map={"": 0}), keep=2**24)
        yield engine, gpus
        engine.close()


def asked(number):
    text = f"Number {number}: " + "word " * 25
    return Conversation((Message("user", text, (golden.photo("image0.png"),)),))


def answer(engine, conversation):
    (found,) = (
        event.generation
        for event in engine.stream([Request(conversation, GREEDY)])
        if isinstance(event, Finished)
    )
    return found


def peak(gpus):
    return max(each.peak_bytes for each in gpus.peaks)


def test_a_follow_up_takes_no_more_than_the_first_question(on_gpu):
    engine, gpus = on_gpu
    first = asked(1)
    gpus.reset()
    said = answer(engine, first).text
    of_first = peak(gpus)
    follow_up = first.with_answer(said, complete=True).add(Message("user", "And?"))
    gpus.reset()
    assert answer(engine, follow_up).usage.prompt_tokens > 40
    assert peak(gpus) <= of_first


@pytest.mark.parametrize(
    "kind",
    ["glm46v", "glm4v_moe", "glm_ocr", pytest.param("glm5_next", marks=pytest.mark.nightly)],
)
def test_nor_do_later_ones_of_native_models(native, kind):
    """Each follow-up has a prompt that is longer by far less than the first."""
    with VirtualGPUs([CAPACITY]) as gpus:
        engine = local.load(resolve(native(kind)), Placement(device_map={"": 0}), keep=2**24)
        image = tiny_native.image(300, 200)
        chat = Conversation((Message("user", "What is it? " + "word " * 25, (image,)),))
        peaks = []
        for question in ("And?", "Why?", "So?"):
            gpus.reset()
            said = answer(engine, chat).text
            peaks.append(peak(gpus))
            chat = chat.with_answer(said, complete=True).add(Message("user", question))
        assert max(peaks[1:]) <= peaks[0]
        engine.close()


def test_what_is_kept_is_dropped_for_a_call_that_needs_its_room(on_gpu):
    engine, gpus = on_gpu
    weights = gpus.live_bytes[0]
    engine.kept.budget = 0
    gpus.reset()
    expected = answer(engine, asked(9)).text
    needed = peak(gpus) - weights
    engine.kept.budget = 2**24
    for number in range(4):
        answer(engine, asked(number))
    kept = gpus.live_bytes[0] - weights
    assert engine.cache.prefixes == 4
    assert dict(engine.cache.devices) == {"cuda:0": engine.cache.used_bytes}
    assert engine.cache.used_bytes <= kept
    # Too little while all of it is kept, enough without.
    others = torch.empty(
        CAPACITY - weights - kept - max(needed - kept // 2, 0), dtype=torch.uint8, device="cuda:0"
    )
    assert answer(engine, asked(9)).text == expected
    assert engine.cache.prefixes == 1
    del others
