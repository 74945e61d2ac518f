"""Memory that runs out once, at any moment: what is kept is dropped, and answers are the same."""

from __future__ import annotations

import random

import golden
import pytest
import tiny_native
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import OutOfMemoryError
from glm4v_magic.core.events import Failed, Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local

KINDS = ("glm4v_9b", *tiny_native.KINDS)
OTHER = "another image"


class RunsOut(TorchDispatchMode):
    """Counts the operations of torch that take memory; one of them, or all from it on, fails.

    Args:
        at: number of the operation; ``None`` for no one.
        again: whether all others after it fail, too.
    """

    def __init__(self, at: int | None = None, *, again: bool = False) -> None:
        super().__init__()
        self.count, self._at, self._again = 0, at, again

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.count += 1
            if self._at is not None and (
                self.count == self._at or (self._again and self.count > self._at)
            ):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        return function(*args, **(kwargs or {}))


def chats() -> list[Conversation]:
    photo = golden.photo("image0.png")
    first = Message("user", "What is there? " + "word " * 12, (photo,))
    return [
        Conversation((first,)),
        Conversation((Message("user", "And here? Say it well.", (golden.photo("image1.png"),)),)),
        Conversation((first, Message("assistant", "A cat."), Message("user", "Which colour?"))),
    ]


def calls() -> dict[str, list[Request]]:
    """A question alone, rows that enter and leave, sampled and not, and forms."""
    one, two, three = chats()
    greedy = Sampling(4, temperature=0, logprobs=2)
    drawn = Sampling(3, temperature=1.2, top_k=9, seed=3, repetition_penalty=1.3, logprobs=0)
    return {
        "alone": [Request(one, drawn)],
        "rows": [Request(one, greedy), Request(two, drawn), Request(three, Sampling(2, seed=1))],
        "forms": [
            Request(one, Sampling(9, temperature=0), Constraint(choices=("yes", "no"))),
            Request(two, drawn, Constraint(regex="[a-c]{3}")),
        ],
    }


@pytest.fixture(scope="module")
def engine_of(native):
    loaded = {}

    def engine(kind):
        if kind not in loaded:
            folder = golden.CHECKPOINT if kind == "glm4v_9b" else native(kind)
            loaded[kind] = local.load(resolve(folder), keep=2**26)
        return loaded[kind]

    return engine


def answers(engine, requests, mode):
    """Texts, ids and probabilities of all rows, whatever was kept before."""
    engine.kept.clear()
    engine.kept.put_features(OTHER, torch.zeros(1))
    found = {}
    with mode:
        for event in engine.stream(requests, 2):
            assert not isinstance(event, Failed), event
            if isinstance(event, Finished):
                said = event.generation
                tokens = (*(said.thinking_tokens or ()), *(said.tokens or ()))
                chosen = {each: round(share, 4) for each, share in said.choices.items()}
                found[event.row] = (
                    said.text, said.usage.new_tokens, [each.id for each in tokens], chosen
                )  # fmt: skip
    return found


def sweep(engine, requests, moments):
    counted = RunsOut()
    expected = answers(engine, requests, counted)
    assert len(expected) == len(requests)
    assert engine.kept.features(OTHER) is not None
    for at in moments(counted.count):
        assert answers(engine, requests, RunsOut(at)) == expected, f"operation {at}"
        assert engine.kept.features(OTHER) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", calls())
def test_at_some_moments_of_each_call(engine_of, kind, call):
    drawn = random.Random(f"{kind} {call}")
    sweep(engine_of(kind), calls()[call], lambda count: drawn.sample(range(1, count + 1), 3))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", calls())
def test_at_every_moment_of_each_call(engine_of, kind, call):
    sweep(engine_of(kind), calls()[call], lambda count: range(1, count + 1))


@pytest.mark.parametrize("kind", ["glm4v_9b", "glm5_next"])
def test_if_it_does_not_help_the_call_fails_and_the_next_one_works(engine_of, kind):
    engine, requests = engine_of(kind), calls()["rows"]
    expected = answers(engine, requests, RunsOut())
    with pytest.raises(OutOfMemoryError, match="can be asked again"):
        answers(engine, requests, RunsOut(400, again=True))
    assert engine.kept.is_empty
    assert answers(engine, requests, RunsOut()) == expected
