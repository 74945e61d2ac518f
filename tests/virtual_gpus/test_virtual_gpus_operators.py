"""Every operator of PyTorch's own database on one virtual GPU, and with tensors on two devices.

By day a few samples of some operators are taken; ``make nightly`` takes all.
"""

from __future__ import annotations

import operator as of_python
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from glm4v_magic.virtual_gpus import MixedDeviceError, VirtualGPUs
from tests.virtual_gpus.mixed_devices import (
    CPU,
    CPU_SCALAR,
    FOR_THE_CPU_ALONE,
    GPU,
    GPU_SCALAR,
    NOT_EQUAL,
    TAKEN,
)
from tests.virtual_gpus.operator_database import call, on, operators, samples

BY_DAY = 40
SAMPLES_BY_DAY = 6
SEED = 16

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch warns of its own deprecated operators


def difference(expected: Any, found: Any) -> str | None:
    """What differs, bit by bit; a tensor that no argument put on the GPU may be on the CPU."""
    pairs = list(zip(tree_leaves(expected), tree_leaves(found), strict=True))
    for one, other in pairs:
        if not isinstance(one, torch.Tensor):
            if one != other and one == one:  # not NaN
                return f"{one} {other}"
            continue
        if (one.dtype, one.shape, one.stride()) != (other.dtype, other.shape, other.stride()):
            return f"{one.dtype} {one.shape} {one.stride()}: {other.shape} {other.stride()}"
        content = other.cpu().resolve_conj().resolve_neg()
        if not torch.equal(bits(one.resolve_conj().resolve_neg()), bits(content)):
            return f"values, by up to {(one - content).abs().max()}"
    return None


def bits(tensor: torch.Tensor) -> torch.Tensor:
    is_number = tensor.is_floating_point() or tensor.is_complex()
    return torch.nan_to_num(tensor, nan=77.0) if is_number else tensor


def compared(chosen: Sequence[Any], limit: int | None = None) -> tuple[int, dict[str, list[str]]]:
    """Number of samples, and what differs by operator; of those that CUDA has kernels for."""
    count, different = 0, defaultdict(list)
    for operator in chosen:
        if operator.name in FOR_THE_CPU_ALONE:
            continue
        for sample in samples(operator, limit):
            arguments = (sample.input, sample.args, dict(sample.kwargs))
            try:
                expected = call(operator, on("cpu", arguments))
            except Exception:  # what does not run on the CPU
                continue
            count += 1
            try:
                with VirtualGPUs("1x8GiB"):
                    text = difference(expected, call(operator, on("cuda:0", arguments)))
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
            if text is not None:
                different[operator.name].append(text)
    return count, different


def places_taken(
    chosen: Sequence[Any], limit: int | None = None
) -> tuple[Counter[str], dict[str, set[str]]]:
    """Number of samples by outcome, and by operator where one tensor of several may be."""
    outcomes: Counter[str] = Counter()
    taken: dict[str, set[str]] = defaultdict(set)
    for operator in chosen:
        for sample in samples(operator, limit):
            leaves, spec = tree_flatten((sample.input, sample.args, dict(sample.kwargs)))
            tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
            for odd in tensors if len(tensors) > 1 else ():
                for device, names in (("cpu", (CPU, CPU_SCALAR)), ("cuda:1", (GPU, GPU_SCALAR))):
                    outcome = outcome_of(operator, leaves, spec, odd, device)
                    outcomes[outcome] += 1
                    if outcome == "taken":
                        taken[operator.name].add(names[leaves[odd].dim() == 0])
    return outcomes, taken


def outcome_of(operator: Any, leaves: list[Any], spec: Any, odd: int, device: str) -> str:
    """What happens with the tensor number `odd` on `device` and all others on ``cuda:0``."""
    try:
        with VirtualGPUs("2x1GiB"):
            mixed = [on(device if i == odd else "cuda:0", leaf) for i, leaf in enumerate(leaves)]
            call(operator, tree_unflatten(mixed, spec))
    except MixedDeviceError:
        return "refused"
    except Exception:  # checks of the operator itself, in its own words
        return "refused otherwise"
    return "taken"


def some() -> list[Any]:
    return random.Random(SEED).sample(operators(), BY_DAY)


def test_some_operators_give_the_same_result() -> None:
    count, different = compared(some(), SAMPLES_BY_DAY)
    assert count > 150
    assert different.keys() <= NOT_EQUAL.keys(), dict(different)


def test_some_operators_give_the_same_result_in_inference_mode() -> None:
    with torch.inference_mode():
        count, different = compared(some(), 1)
    assert count > 35
    assert different.keys() <= NOT_EQUAL.keys(), dict(different)


def test_some_operators_on_two_devices() -> None:
    outcomes, taken = places_taken(some(), SAMPLES_BY_DAY)
    check_places(taken)
    assert outcomes["refused"] > outcomes["taken"] > 0


def check_places(taken: dict[str, set[str]]) -> None:
    allowed = {name: group.places for group in TAKEN for name in group.names}
    wrong = {name: places - allowed.get(name, set()) for name, places in taken.items()}
    assert not {name: places for name, places in wrong.items() if places}


def test_operators_for_the_cpu_alone_are_refused() -> None:
    refused = set()
    for operator in operators():
        for sample in samples(operator, 2) if operator.name in FOR_THE_CPU_ALONE else ():
            arguments = (sample.input, sample.args, dict(sample.kwargs))
            with VirtualGPUs("1x1GiB"), pytest.raises(NotImplementedError, match="Could not run"):
                call(operator, on("cuda:0", arguments))
            refused.add(operator.name)
    assert refused == FOR_THE_CPU_ALONE


@pytest.mark.nightly
def test_all_operators_give_the_same_result() -> None:
    count, different = compared(operators())
    unequal = sum(map(len, different.values()))
    sys.stdout.write(f"{count - unequal} of {count} samples are equal ({1 - unequal / count:.2%})")
    assert different.keys() == NOT_EQUAL.keys(), dict(different)
    assert unequal < 0.01 * count


@pytest.mark.nightly
def test_all_operators_give_the_same_result_in_inference_mode() -> None:
    with torch.inference_mode():
        count, different = compared(operators(), SAMPLES_BY_DAY)
    sys.stdout.write(f"{sum(map(len, different.values()))} of {count} samples are not equal")
    assert different.keys() <= NOT_EQUAL.keys(), dict(different)


@pytest.mark.nightly
def test_all_operators_on_two_devices() -> None:
    outcomes, taken = places_taken(operators())
    sys.stdout.write(f"{outcomes.total()} mixtures of devices: {dict(outcomes)}")
    check_places(taken)
    assert taken.keys() == {name for group in TAKEN for name in group.names}


def test_each_operator_is_in_one_group() -> None:
    names = [name for group in TAKEN for name in group.names]
    assert len(names) == len(set(names))
    assert set(names) <= {operator.name for operator in operators()}
    assert NOT_EQUAL.keys() <= {operator.name for operator in operators()}


OF_PYTHON = (
    "lshift", "rshift", "and_", "or_", "xor", "add", "sub", "mul", "floordiv", "mod", "pow", "lt",
    "eq",
)  # fmt: skip


@pytest.mark.parametrize("other", ["a number", "a tensor"])
@pytest.mark.parametrize("name", OF_PYTHON)
def test_operators_of_python_make_a_new_tensor(name, other):
    """That of ``a << b`` has a name as an operator that writes into its first argument."""
    apply = getattr(of_python, name)
    values, more = torch.tensor([1, 2, 3]), 1 if other == "a number" else torch.tensor([2, 1, 1])
    expected = apply(values, more)
    with VirtualGPUs("1x1GiB"):
        given, beside = values.to("cuda:0"), more if other == "a number" else more.to("cuda:0")
        before = torch.cuda.memory_allocated(0)
        found = apply(given, beside)
        assert found is not given
        assert torch.cuda.memory_allocated(0) > before
        assert found.tolist() == expected.tolist()
        assert given.tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", ["ilshift", "irshift", "iand", "ior", "ixor", "iadd", "imul"])
def test_operators_of_python_that_write_into_a_tensor_return_it(name):
    apply, values = getattr(of_python, name), torch.tensor([1, 2, 3])
    expected = apply(values.clone(), 1)
    with VirtualGPUs("1x1GiB"):
        given = values.to("cuda:0")
        before = torch.cuda.memory_allocated(0)
        assert apply(given, 1) is given
        assert torch.cuda.memory_allocated(0) == before
        assert given.tolist() == expected.tolist()
