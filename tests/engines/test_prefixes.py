"""What was read is not read again, and the ids are the same as without."""

from __future__ import annotations

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
from glm4v_magic.core.placement import Place
from glm4v_magic.engines import local
from glm4v_magic.engines.prefixes import CacheFacts, KeptPrefix, PrefixStore, common_length
from glm4v_magic.planning.decision import Placement
from glm4v_magic.virtual_gpus import VirtualGPUs

GREEDY = Sampling(8, temperature=0)
PHOTO, OTHER = golden.photo("image0.png"), golden.photo("image1.png")
FIRST = Message("user", "What colour is the circle?", (PHOTO,))


@pytest.fixture(scope="module")
def plain():
    return local.load(resolve(golden.CHECKPOINT), keep=0)


@pytest.fixture
def engine():
    return local.load(resolve(golden.CHECKPOINT), keep=2**26)


def asked(*messages):
    return Conversation(messages)


def answers(engine, conversations, sampling=GREEDY):
    events = engine.stream([Request(each, sampling) for each in conversations])
    found = {event.row: event.generation for event in events if isinstance(event, Finished)}
    return [found[row] for row in range(len(conversations))]


def told(generations):
    return [(each.text, each.usage.new_tokens, each.usage.prompt_tokens) for each in generations]


@contextmanager
def counted(engine) -> Iterator[dict[str, list[tuple[int, int]]]]:
    """Shapes of what the model reads, but for single tokens, and how many images it encodes."""
    seen: dict[str, list] = {"read": [], "encoded": []}

    def read(_module, _args, options):
        if options["input_ids"].shape[1] > 1:
            seen["read"].append(tuple(options["input_ids"].shape))

    handles = [
        engine.model.register_forward_pre_hook(read, with_kwargs=True),
        engine.model.model.vision.register_forward_pre_hook(
            lambda _module, args: seen["encoded"].append(len(args[0]))
        ),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def length(engine, conversation):
    return len(engine.processor.expand(engine.processor.prompt_ids(conversation)))


def later(first, text, question="And its size?"):
    return asked(*first.messages, Message("assistant", text), Message("user", question))


SAMPLINGS = [GREEDY, Sampling(8, temperature=1.5, repetition_penalty=1.3, seed=4)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
def test_a_follow_up_reads_only_what_is_new(engine, plain, sampling):
    first = asked(FIRST)
    (before,) = answers(engine, [first], sampling)
    follow_up = later(first, before.text)
    with counted(engine) as seen:
        found = answers(engine, [follow_up], sampling)
    assert told(found) == told(answers(plain, [follow_up], sampling))
    assert seen["encoded"] == []
    ((rows, width),) = seen["read"]
    assert rows == 1
    assert width <= length(engine, follow_up) - length(engine, first)


@pytest.mark.parametrize(
    "changed",
    [
        asked(FIRST),
        asked(Message("user", "How many shapes are there?", (PHOTO,))),
        asked(FIRST, Message("assistant", "It is", complete=False)),
    ],
    ids=["retry", "another question", "continue"],
)
def test_what_begins_alike_is_read_once(engine, plain, changed):
    answers(engine, [asked(FIRST)])
    with counted(engine) as seen:
        found = answers(engine, [changed])
    assert told(found) == told(answers(plain, [changed]))
    assert seen["encoded"] == []
    ((rows, width),) = seen["read"] or [(1, 1)]
    assert rows == 1
    assert width < length(engine, changed) - engine.info.visual_tokens


def test_an_edited_chat_and_a_chat_in_between(engine, plain):
    first = asked(FIRST)
    other = asked(Message("user", FIRST.text, (OTHER,)))
    chats = [first, other, later(first, "Red."), later(other, "Red."), later(first, "Blue."), first]
    for chat in chats:
        assert told(answers(engine, [chat])) == told(answers(plain, [chat]))


def test_another_image_is_another_prefix(engine, plain):
    answers(engine, [asked(FIRST)])
    other = asked(Message("user", FIRST.text, (OTHER,)))
    with counted(engine) as seen:
        found = answers(engine, [other])
    assert told(found) == told(answers(plain, [other]))
    assert seen["encoded"] == [1]


def test_an_image_behind_another_system_text_is_not_encoded_again(engine, plain):
    answers(engine, [asked(FIRST)])
    briefly = asked(FIRST).with_system("Be brief.")
    with counted(engine) as seen:
        found = answers(engine, [briefly])
    assert told(found) == told(answers(plain, [briefly]))
    assert seen["encoded"] == []


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
def test_rows_on_one_image_read_it_once(engine, plain, sampling):
    system = Message("system", "Be brief and exact.")
    questions = ("What?", "How many shapes are there?", "Which colour is the largest one?")
    rows = [asked(system, Message("user", text, (PHOTO,))) for text in questions]
    with counted(engine) as seen:
        found = answers(engine, rows, sampling)
    assert told(found) == told(answers(plain, rows, sampling))
    assert told(found) == [told(answers(plain, [row], sampling))[0] for row in rows]
    assert seen["encoded"] == [1]
    alone, together = seen["read"]
    assert alone[0] == 1
    assert together[0] == 3
    assert alone[1] + together[1] == max(length(engine, row) for row in rows)
    with counted(engine) as seen:
        again = answers(engine, rows, sampling)
    assert told(again) == told(found)
    assert seen["read"] == [together]


def test_rows_with_images_of_their_own_encode_them_together(engine, plain):
    rows = [asked(Message("user", "What?", (each,))) for each in (PHOTO, OTHER, PHOTO)]
    with counted(engine) as seen:
        found = answers(engine, rows)
    assert told(found) == told(answers(plain, rows))
    assert seen["encoded"] == [2]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_answer_is_carried_on_from_where_it_was(engine, plain, after):
    events = engine.stream([Request(asked(FIRST), GREEDY)])
    if after:
        for _ in range(after):
            next(events)
        with pytest.raises(GenerationInterrupted) as caught:
            events.throw(KeyboardInterrupt())
    else:

        def interrupt(*_args):
            raise KeyboardInterrupt

        layer = engine.model.model.language_model.layers[2]
        handle = layer.register_forward_pre_hook(interrupt)
        with pytest.raises(GenerationInterrupted) as caught:
            next(events)
        handle.remove()
    text = caught.value.generation.text
    goes_on = asked(FIRST, Message("assistant", text, complete=False))
    with counted(engine) as seen:
        found = answers(engine, [goes_on])
    assert told(found) == told(answers(plain, [goes_on]))
    assert seen["encoded"] == []
    if after:
        assert all(width < 10 for _, width in seen["read"])


def run_out(times):
    """A hook that has no memory left so many times."""
    left = [times]

    def hook(*_args):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    return hook


@pytest.mark.parametrize("module", ["vision", "language_model.layers.2"])
def test_what_is_kept_makes_room_when_memory_runs_out(engine, plain, module):
    answers(engine, [asked(Message("user", "Something else?", (OTHER,)))])
    assert engine.cache.prefixes == 1
    handle = engine.model.model.get_submodule(module).register_forward_pre_hook(run_out(1))
    (found,) = answers(engine, [asked(FIRST)])
    handle.remove()
    assert told([found]) == told(answers(plain, [asked(FIRST)]))
    assert engine.cache.prefixes == 1  # of this call alone


def test_in_the_middle_of_an_answer_the_step_is_made_again(engine, plain):
    answers(engine, [asked(Message("user", "Something else?", (OTHER,)))])
    events = engine.stream([Request(asked(FIRST), GREEDY)] * 2)
    said = [next(events)]
    layer = engine.model.model.language_model.layers[2]
    handle = layer.register_forward_pre_hook(run_out(1))
    said += events
    handle.remove()
    found = [event.generation for event in said if isinstance(event, Finished)]
    assert told(found) == told(answers(plain, [asked(FIRST)] * 2))


def test_without_room_after_all_nothing_is_kept(engine):
    answers(engine, [asked(Message("user", "Something else?", (OTHER,)))])
    handle = engine.model.model.vision.register_forward_pre_hook(run_out(2))
    with pytest.raises(OutOfMemoryError):
        answers(engine, [asked(FIRST)])
    handle.remove()
    assert engine.cache == CacheFacts(0, 2**26, 0, 0)


def test_a_hundred_chats_stay_inside_the_budget(engine):
    engine.kept.budget = 300_000
    for number in range(100):
        answers(engine, [asked(Message("user", f"Question {number}"))], Sampling(2, temperature=0))
        assert 0 < engine.cache.used_bytes <= 300_000
    assert 1 < engine.cache.prefixes < 100


def test_nothing_is_kept_without_a_budget_or_after_the_end(plain, engine):
    answers(plain, [asked(FIRST)])
    assert plain.cache == CacheFacts(0, 0, 0, 0)
    answers(engine, [asked(FIRST)])
    assert engine.cache.used_bytes > 0
    assert engine.cache.images == engine.cache.prefixes == 1
    engine.close()
    assert engine.cache.used_bytes == 0


@pytest.mark.parametrize("offloaded", [False, True], ids=["split", "offload"])
def test_each_gpu_keeps_its_own_part(plain, offloaded):
    text = "model.language_model."
    device_map: dict[str, Place] = {
        "model.vision": 1,
        **{f"{text}{name}": 0 for name in ("embed_tokens", "rotary_emb", "layers.0")},
        f"{text}layers.1": "cpu" if offloaded else 1,
        f"{text}layers.2": 2,
        f"{text}layers.3": 1,
        f"{text}norm": 2,
        "lm_head": 0,
    }
    first = asked(FIRST)
    chats = [[first], [later(first, "Red.")], [later(first, each) for each in ("Red.", "Blue!")]]
    with VirtualGPUs("3x64MiB") as gpus:
        placement = Placement(device_map=device_map, execution_map={f"{text}layers.1": 1})
        engine = local.load(resolve(golden.CHECKPOINT), placement, keep=2**26)
        found = [told(answers(engine, rows)) for rows in chats]
        with counted(engine) as seen:
            answers(engine, chats[1])
        assert seen["encoded"] == []
        assert gpus.problems == ()
        engine.close()
    assert found == [told(answers(plain, rows)) for rows in chats]


def test_what_was_used_longest_ago_goes_first():
    def prefix(*keys):
        return KeptPrefix(keys, ((torch.zeros(10), torch.zeros(0)),))

    store = PrefixStore(100)
    store.put(prefix(1, 2))
    store.put(prefix(3, 4))
    assert store.take((1, 5))[1] == 1
    store.put(prefix(6, 7))
    assert [store.take(keys)[1] for keys in ((1, 9), (3, 9), (6, 9))] == [1, 0, 1]
    store.put(prefix(6, 7, 8))  # in the place of what it begins with
    assert store.facts.prefixes == 2
    assert store.take((6, 7, 8, 9))[1] == 3
    assert store.facts.prefixes == 1


def test_how_much_two_prompts_have_in_common():
    assert common_length((), (1,)) == 0
    assert common_length((1, "a", "a", 2), (1, "a", "a", 3)) == 3
    assert common_length((1, "a"), (1, "b")) == 1
    assert common_length((1, 2), (1, 2)) == 2
