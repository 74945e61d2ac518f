"""Device maps that cut a model everywhere, and what has to hold under each of them.

On virtual GPUs with real values, every operation that mixes devices is collected. A map is right
when there is none, when every GPU that it names holds something, and when what the model answers
equals the answer of the plain CPU, bit by bit.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from glm4v_magic.core.model_shape import ModuleTree
from glm4v_magic.virtual_gpus import VirtualGPUs

Map = dict[str, int | str]
Answer = tuple[torch.Tensor, list[list[int]]]  # logits and greedy tokens

RANDOM_MAPS = 500
SAMPLE = 3  # of the random maps; all of them run in `make nightly`
BORDERS = 11  # one of so many is tried: no layer has as many modules, so they are met in turn


def check(
    device_map: Map,
    places: int,
    load: Callable[[Map], Any],
    answer: Callable[[Any, dict[str, torch.Tensor]], Answer],
    inputs: Mapping[str, torch.Tensor],
    reference: Answer,
) -> None:
    """Load and answer under `device_map`."""
    with VirtualGPUs(f"{places}x1GiB", on_mismatch="collect") as gpus:
        model = load(device_map)
        moved = {name: tensor.to("cuda:0") for name, tensor in inputs.items()}
        logits, tokens = answer(model, moved)
        used = {str(t.device) for t in (*model.parameters(), *model.buffers())}
    assert gpus.problems == ()
    assert used - {"cpu", "meta"} == {f"cuda:{d}" for d in device_map.values() if d != "cpu"}
    assert torch.equal(logits, reference[0])
    assert tokens == reference[1]


def cuts(leaves: Sequence[str]) -> list[Any]:
    """A border before every module, every module by itself, and random maps: map and places."""
    borders = [
        pytest.param(
            {leaf: int(i >= border) for i, leaf in enumerate(leaves)},
            2,
            marks=[] if border % BORDERS == 1 else pytest.mark.nightly,
            id=leaves[border],
        )
        for border in range(1, len(leaves))
    ]
    alone = [
        pytest.param(
            {other: int(other == leaf) for other in leaves},
            2,
            marks=pytest.mark.nightly,
            id=f"only-{leaf}",
        )
        for leaf in leaves
    ]
    maps = [
        pytest.param(
            *random_map(leaves, seed),
            marks=[pytest.mark.nightly] if seed >= SAMPLE else [],
            id=f"random-{seed}",
        )
        for seed in range(RANDOM_MAPS)
    ]
    return [*borders, *alone, *maps]


def random_map(leaves: Sequence[str], seed: int) -> tuple[Map, int]:
    """Every module on a GPU of its own choice, of two to eight."""
    rng = random.Random(seed)
    places = rng.randint(2, 8)
    return {leaf: rng.randrange(places) for leaf in leaves}, places


MIXED_SAMPLE = 2  # of the maps that name single weights, for each type of model


def mixed_map(tree: ModuleTree, seed: int) -> tuple[Map, int]:
    """Modules and single weights, each on a GPU of its own choice: every weight is covered.

    Half of the leaves are named weight by weight, and some of everything is on the CPU of every
    third map.
    """
    rng = random.Random(seed)
    places = rng.randint(2, 5)
    choices: list[int | str] = [*range(places), *(["cpu"] if seed % 3 == 0 else [])]
    inside: dict[str, dict[str, None]] = {}
    for tensor in tree.tensors:
        names = ["", *itertools.accumulate(tensor.split("."), "{}.{}".format)]
        for outer, inner in itertools.pairwise(names):
            inside.setdefault(outer, {})[inner] = None
    chosen: Map = {}

    def choose(name: str) -> None:
        is_leaf = not any(inner in inside for inner in inside.get(name, ()))
        is_named = rng.random() < (0.5 if is_leaf else 0.03 * name.count(".") ** 2)
        if name not in inside or (name in tree.modules and is_named):
            chosen[name] = rng.choice(choices)
            return
        for inner in inside[name]:
            choose(inner)

    choose("")
    for name, first in tree.ties.items():
        if name in chosen and first in chosen:
            chosen[name] = chosen[first]
    return chosen, places


def placed(device_map: Map, tree: ModuleTree) -> dict[str, int | str]:
    """The device of every weight: that of the longest entry around it."""
    found = {}
    for tensor in tree.tensors:
        around = [name for name in device_map if not name or f"{tensor}.".startswith(f"{name}.")]
        if around:
            found[tensor] = device_map[max(around, key=len)]
    return found


def spoilt(device_map: Map, tree: ModuleTree, seed: int) -> Map:
    """A map with something wrong in it, of one kind or another."""
    rng = random.Random(seed)
    implied = {*tree.computed, *tree.ties, *tree.ties.values()}  # may be left out
    needed = [tensor for tensor in tree.tensors if tensor not in implied]
    inside = {each: [t for t in needed if f"{t}.".startswith(f"{each}.")] for each in device_map}
    name = rng.choice([each for each in device_map if inside[each]])
    changed = dict(device_map)
    kind = seed % 6
    if kind == 0:
        del changed[name]
    elif kind == 1:
        changed[name] = 99
    elif kind == 2:
        changed[f"{name}.nothing"] = 0
    elif kind == 3:
        changed[name] = "disk"
    elif kind == 4:
        changed[name] = "gpu"
    else:
        changed[name] = -1
    return changed
