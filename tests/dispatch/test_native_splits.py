"""Whatever the device map, the newer models answer as on one device, through the engine itself."""

from __future__ import annotations

import random

import pytest
import tiny_native

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local
from glm4v_magic.planning.decision import Placement
from glm4v_magic.virtual_gpus import VirtualGPUs

KINDS = tiny_native.KINDS
A, B, C = (tiny_native.image(*size) for size in ((120, 80, 0), (90, 260, 1), (5, 7, 2)))
GREEDY = Sampling(6, temperature=0, repetition_penalty=1.0)
SHORT = Conversation((Message("user", "What?"),))
FIRST = Conversation((Message("user", "Compare.", (A, B)),))
SECOND = Conversation((*FIRST.messages, Message("assistant", "No."), Message("user", "?", (C,))))
TURNS = ([FIRST], [SECOND], [SHORT, SECOND, FIRST])
OF_GLM5 = ([FIRST], [SHORT, SECOND])  # it takes ten times as long
SAMPLE = 1  # random maps at module level for each type; more in `make nightly`

NIGHTLY = pytest.mark.nightly


def few_or_all(*, glm5):
    """A few maps for each type in the suite, all of them in `make nightly`.

    Those of glmga, whose layers are glm46v's, all in `make nightly`.

    Args:
        glm5: whether GLM-5, which takes ten times as long, is in the suite.
    """
    by_night = {"glmga"} if glm5 else {"glmga", "glm5_next"}
    few = [
        pytest.param(kind, False, id=kind, marks=NIGHTLY if kind in by_night else ())
        for kind in KINDS
    ]
    every = [pytest.param(kind, True, id=f"{kind}-all", marks=NIGHTLY) for kind in KINDS]
    return pytest.mark.parametrize(("kind", "every"), [*few, *every])


def said(engine, turns=TURNS):
    """A question, a follow-up with another image that reuses its cache, and a batch."""
    found = []
    for conversations in turns:
        events = engine.stream([Request(each, GREEDY) for each in conversations])
        done = {e.row: e.generation for e in events if isinstance(e, Finished)}
        found += [(done[row].text, done[row].usage.new_tokens) for row in sorted(done)]
    return found


@pytest.fixture(scope="module")
def references(native):
    found = {}

    def reference(kind):
        if kind not in found:
            turns = OF_GLM5 if kind == "glm5_next" else TURNS
            found[kind] = said(local.load(resolve(native(kind))), turns)
            assert len({text for text, _ in found[kind]}) == 3
        return found[kind]

    return reference


def check(checkpoint, device_map, gpus, reference, runs=()):
    placement = Placement(device_map=device_map, execution_map=dict(runs))
    with VirtualGPUs(f"{gpus}x1GiB", on_mismatch="collect") as virtual:
        engine = local.load(checkpoint, placement)
        found = said(engine, OF_GLM5 if checkpoint.config["model_type"] == "glm5_next" else TURNS)
        engine.close()
    assert virtual.problems == ()
    assert found == reference


def units(checkpoint):
    return [unit.modules for unit in checkpoint.architecture.shape().units]


@pytest.mark.parametrize(
    ("kind", "every"),
    [("glm46v", False), *(pytest.param(kind, True, marks=NIGHTLY) for kind in KINDS)],
)
def test_a_split_at_a_border_of_units(native, references, kind, every):
    checkpoint = resolve(native(kind))
    parts = units(checkpoint)
    for border in range(1, len(parts)) if every else (1, len(parts) // 2, len(parts) - 1):
        places = {name: int(at >= border) for at, names in enumerate(parts) for name in names}
        check(checkpoint, places, 2, references(kind))


@few_or_all(glm5=False)
def test_units_on_three_gpus_in_any_order(native, references, kind, every):
    checkpoint, rng = resolve(native(kind)), random.Random(kind)
    for _ in range(8 if every else 1):
        drawn = [(names, rng.randrange(3)) for names in units(checkpoint)]
        check(
            checkpoint, {name: gpu for names, gpu in drawn for name in names}, 3, references(kind)
        )


def leaves(checkpoint):
    """Modules without modules, which hold all weights, in the order of the module tree."""
    model = checkpoint.architecture.build_meta("float32")
    holding = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    holding |= {name.rpartition(".")[0] for name, _ in model.named_buffers()}
    return sorted(holding)


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        pytest.param(kind, seed, marks=NIGHTLY if seed >= SAMPLE or kind == "glmga" else ())
        for kind in KINDS
        for seed in range(60)
    ],
)
def test_any_split_of_modules(native, references, kind, seed):
    checkpoint, rng = resolve(native(kind)), random.Random(seed)
    gpus = rng.randint(2, 5)
    places = {name: rng.randrange(gpus) for name in leaves(checkpoint)}
    check(checkpoint, places, gpus, references(kind))


@pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids`")
@few_or_all(glm5=True)
def test_units_offloaded_to_the_cpu(native, references, kind, every):
    checkpoint = resolve(native(kind))
    parts = units(checkpoint)
    last, mixed = [len(parts) - 1], range(4, len(parts), 2)
    for offloaded in ([0], last, mixed, range(3)) if every else (mixed,):
        places = {
            name: "cpu" if at in offloaded else at % 2
            for at, names in enumerate(parts)
            for name in names
        }
        check(checkpoint, places, 2, references(kind))
