"""Device maps that cut a model everywhere, and what has to hold under each of them.

On virtual GPUs with real values, every operation that mixes devices is collected. A map is right
when there is none, when every GPU that it names holds something, and when what the model answers
equals the answer of the plain CPU, bit by bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from glm4v_magic.virtual_gpus import VirtualGPUs

Map = dict[str, int | str]
Answer = tuple[torch.Tensor, list[list[int]]]  # logits and greedy tokens

RANDOM_MAPS = 500
SAMPLE = 6  # of the random maps; all of them run in `make nightly`


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
            {leaf: int(i >= border) for i, leaf in enumerate(leaves)}, 2, id=leaves[border]
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
