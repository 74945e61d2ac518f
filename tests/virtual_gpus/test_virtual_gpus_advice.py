"""What virtual GPUs refuse with errors of Python's own kinds, and what these say to do instead.

Each is run into within a block, what it says is done there, and works.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.parallel import comm
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaModel

from glm4v_magic.virtual_gpus import VirtualGPUs

Act = Callable[[], object]


def ones(device: str = "cuda:1") -> torch.Tensor:
    return torch.ones(4, 4, device=device)


def is_there(tensor: torch.Tensor, device: str = "cuda:1") -> None:
    assert str(tensor.device) == device
    assert tensor.sum().item() > 0


def gradient_behind_a_move() -> None:
    model = nn.Linear(4, 4)
    loss = model(ones("cpu")).sum()
    model.cuda()
    loss.backward()


def gradient_before_a_move() -> None:
    model = nn.Linear(4, 4)
    model(ones("cpu")).sum().backward()
    model.cuda()
    assert model.weight.grad is not None
    assert model.weight.grad.sum().item() == 64


def gradient_of_a_moved_model_on_the_cpu() -> None:
    model = nn.Linear(4, 4).to("cuda")
    model.cpu()(ones("cpu")).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.sum().item() == 64


def lazy_by_default_device() -> None:
    with torch.device("cuda"):
        nn.LazyLinear(3)


def lazy_on_the_cpu() -> None:
    model = nn.LazyLinear(3, device="cpu")
    model.to("cuda")
    assert model(ones("cuda:0")).shape == (4, 3)
    is_there(model.weight.abs(), "cuda:0")


def backward() -> None:
    nn.Linear(4, 4).cuda()(ones("cuda:0")).sum().backward()


def backward_on_the_cpu() -> None:
    model = nn.Linear(4, 4)
    model(ones("cpu")).sum().backward()
    assert model.weight.grad is not None


def without_gradients() -> None:
    with torch.no_grad():
        is_there(nn.Linear(4, 4).cuda()(ones("cuda:0")).abs(), "cuda:0")


def tangent(device: str) -> torch.Tensor:
    with forward_ad.dual_level():
        twice = forward_ad.make_dual(ones(device), ones(device)) * 2
        return forward_ad.unpack_dual(twice).tangent


def in_forward_mode(device: str) -> None:
    assert tangent(device).sum().item() == 32
    assert torch.func.jvp(lambda x: x * 2, (ones(device),), (ones(device),))[1].sum().item() == 32


def heads() -> torch.Tensor:
    return torch.ones(1, 2, 8, 16, device="cuda:1")


def answer_of_transformers(attention: str) -> torch.Tensor:
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8,
        vocab_size=8, attn_implementation=attention,
    )  # fmt: skip
    with torch.no_grad():
        model = LlamaModel(config).to("cuda:1")
        return model(torch.tensor([[1, 2, 3]], device="cuda:1")).last_hidden_state


def rows() -> list[torch.Tensor]:
    return [torch.ones(2, 3), torch.ones(1, 3)]


def strided() -> None:
    for made in (
        torch.nested.nested_tensor(rows(), layout=torch.strided, device="cuda:1"),
        torch.nested.as_nested_tensor([each.cuda(1) for each in rows()], layout=torch.strided),
    ):
        assert [each.shape[0] for each in made.unbind()] == [2, 1]
        assert str(made.device) == "cuda:1"


def time_between(enable_timing: bool, recorded: int) -> float:
    first, last = (torch.cuda.Event(enable_timing=enable_timing) for _ in range(2))
    for event in (first, last)[:recorded]:
        event.record()
    return first.elapsed_time(last)


def fraction(value: Any) -> None:
    torch.cuda.set_per_process_memory_fraction(value, 1)


def drawn_by(device: str) -> None:
    is_there(torch.rand(4, device="cuda:1", generator=torch.Generator(device).manual_seed(1)))


def coalesced(devices: list[int]) -> None:
    copies = comm.broadcast_coalesced([ones()], devices)
    assert sorted(str(each[0].device) for each in copies) == ["cuda:0", "cuda:1"]


CPU_FIRST = "Use Tensor.cpu() to copy the tensor to host memory first."
JAGGED = (
    "Virtual GPUs have no nested tensors with layout=torch.jagged: pad the rows to one length, "
    "with torch.nn.utils.rnn.pad_sequence, or take layout=torch.strided."
)
MOVED_SINCE = (
    "A parameter was moved since this was computed: gradients of it are computed before `to()` or "
    "`cuda()`, or of an answer of the moved model on the CPU."
)
NO_GRADIENTS = (
    "Virtual GPUs compute no gradients: run backward() on the CPU, and what needs no gradients "
    "under torch.no_grad() here."
)
FLEX = (
    "Virtual GPUs do not run {}: it takes functions as its arguments. Instead of flex_attention "
    'use scaled_dot_product_attention ("sdpa" in transformers).'
)
LAZY = (
    "Virtual GPUs cannot make a lazy module, whose weights have no shape yet: make it on the CPU, "
    'and move it with .to("cuda").'
)
IN_THE_BLOCK: list[tuple[str, Act, Act]] = [
    (MOVED_SINCE, gradient_behind_a_move, gradient_before_a_move),
    (MOVED_SINCE, gradient_behind_a_move, gradient_of_a_moved_model_on_the_cpu),
    (LAZY, lambda: nn.LazyLinear(3, device="cuda"), lazy_on_the_cpu),
    (LAZY, lazy_by_default_device, lazy_on_the_cpu),
    (
        "Virtual GPUs have no tensors of layout {}: make it dense first, with .to_dense() ({}).",
        lambda: ones("cpu").to_sparse().to("cuda:1"),
        lambda: is_there(ones("cpu").to_sparse().to_dense().to("cuda:1")),
    ),
    (NO_GRADIENTS, backward, backward_on_the_cpu),
    (NO_GRADIENTS, backward, without_gradients),
    (
        "Virtual GPUs compute no gradients, in forward mode neither: run it on the CPU.",
        lambda: in_forward_mode("cuda:1"),
        lambda: in_forward_mode("cpu"),
    ),
    (
        FLEX,
        lambda: flex_attention(heads(), heads(), heads()),
        lambda: is_there(functional.scaled_dot_product_attention(heads(), heads(), heads())),
    ),
    (
        FLEX,
        lambda: answer_of_transformers("flex_attention"),
        lambda: is_there(answer_of_transformers("sdpa").abs()),
    ),
    (
        JAGGED,
        lambda: torch.nested.nested_tensor(rows(), layout=torch.jagged, device="cuda:1"),
        lambda: is_there(pad_sequence([each.cuda(1) for each in rows()])),
    ),
    (
        JAGGED,
        lambda: torch.nested.nested_tensor(rows(), layout=torch.jagged).to("cuda:1"),
        strided,
    ),
    (
        "Virtual GPUs end with their process: hand another one the tensor.cpu().",
        lambda: ForkingPickler.dumps(ones()),
        lambda: ForkingPickler.dumps(ones().cpu()),
    ),
    (
        f"can't convert {{}} device type tensor to numpy. {CPU_FIRST}",
        lambda: ones().numpy(),
        lambda: ones().cpu().numpy().sum() == 16,
    ),
    (
        f"can't convert {{}} device type tensor to numpy. {CPU_FIRST}",
        lambda: np.asarray(ones()),
        lambda: np.asarray(ones().cpu()).sum() == 16,
    ),
    (
        f"A tensor on {{}} has no memory that another library could read. {CPU_FIRST}",
        lambda: np.from_dlpack(ones()),
        lambda: np.from_dlpack(ones().cpu()).sum() == 16,
    ),
    (
        "Both events must be created with argument 'enable_timing=True' before calculating "
        "elapsed time.",
        lambda: time_between(False, 2),
        lambda: time_between(True, 2) >= 0,
    ),
    (
        "Both events must be recorded before calculating elapsed time.",
        lambda: time_between(True, 1),
        lambda: time_between(True, 2) >= 0,
    ),
    (
        "Virtual GPUs have streams on cuda:k alone, and none on {}",
        lambda: torch.cuda.Stream(device="cpu"),
        lambda: torch.cuda.Stream(device="cuda:1"),
    ),
    (
        "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol "
        "at the moment.",
        lambda: copy.deepcopy(ones().requires_grad_() * 2),
        lambda: is_there(copy.deepcopy(ones().requires_grad_())),
    ),
    (
        "Invalid type for fraction argument, must be `float`",
        lambda: fraction("1"),
        lambda: fraction(1.0),
    ),
    (
        "Invalid fraction value: {}. Allowed range: 0~1",
        lambda: fraction(1.5),
        lambda: (fraction(0.0), fraction(1.0)),
    ),
    (
        "cannot pin '{}' only dense CPU tensors can be pinned",
        lambda: ones().pin_memory(),
        lambda: ones().cpu().pin_memory().is_pinned(),
    ),
    (
        "Virtual GPUs have no torch.cuda.set_sync_debug_mode but the default: work is done when it "
        "is called, and nothing waits.",
        lambda: torch.cuda.set_sync_debug_mode("warn"),
        lambda: torch.cuda.set_sync_debug_mode("default"),
    ),
    (
        "Expected a '{}' device type for generator but found '{}'",
        lambda: drawn_by("cpu"),
        lambda: drawn_by("cuda:1"),
    ),
    (
        "All tensors must be on devices[0]: {}",
        lambda: coalesced([0, 1]),
        lambda: coalesced([1, 0]),
    ),
    (
        "Could not run '{}' with arguments from the 'CUDA' backend: it exists for the CPU alone "
        "({})",
        lambda: torch.histogram(ones(), 4),
        lambda: torch.histogram(ones().cpu(), 4).hist.sum().item() == 16,
    ),
]


@pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile",
    "ignore:.*prototype",
    "ignore:Lazy modules are a new feature",
    "ignore:.*torch.jit.script:DeprecationWarning",
    "ignore:_compile flag on create_block_mask:DeprecationWarning",
)
@pytest.mark.parametrize(
    ("said", "bad", "good"), IN_THE_BLOCK, ids=[each[0][:50] for each in IN_THE_BLOCK]
)
@pytest.mark.parametrize("available", [False, True])
def test_what_is_said_can_be_done_within_the_block(
    said: str, bad: Act, good: Act, available: bool
) -> None:
    with VirtualGPUs("2x1GiB", available=available):
        with pytest.raises(
            (NotImplementedError, RuntimeError, TypeError, ValueError, BufferError)
        ) as caught:
            bad()
        found = str(caught.value)
        assert all(part in found for part in said.split("{}")), found
        assert "\n" not in found
        assert good() is not False
        is_there(ones())


EXPORT = (
    "torch.export does not see virtual GPUs: export the model on the CPU, before or after their "
    "block."
)


def test_a_model_is_exported_before_or_after_the_block() -> None:
    model = nn.Linear(4, 4)
    before = torch.export.export(model, (ones("cpu"),))
    with VirtualGPUs("2x1GiB"):
        model.cuda()
        for refused in (model, model.cpu()):
            with pytest.raises(NotImplementedError) as caught:
                torch.export.export(refused, (ones("cpu"),))
            assert str(caught.value) == EXPORT
    after = torch.export.export(model, (ones("cpu"),))
    expected = model(ones("cpu"))
    for each in (before, after):
        torch.testing.assert_close(each.module()(ones("cpu")), expected)


FORKED = (
    "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must "
    "use the 'spawn' start method; virtual GPUs are made there by a block of its own."
)
IN_ANOTHER_PROCESS = """
import multiprocessing, sys
import torch
from glm4v_magic.virtual_gpus import VirtualGPUs

def forked(queue):
    try:
        queue.put(str(torch.ones(2, device="cuda:1").device))
    except RuntimeError as error:
        queue.put(str(error))

def spawned(queue):
    with VirtualGPUs("2x1GiB"):
        queue.put(str(torch.ones(2, device="cuda:1").device))

def result(method, target):
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=target, args=(queue,))
    process.start()
    found = queue.get()
    process.join()
    return found

if __name__ == "__main__":
    with VirtualGPUs("2x1GiB"):
        torch.ones(2, device="cuda:0")
        print(result("fork", forked))
        print(result("spawn", spawned))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked on Windows")
def test_another_process_is_spawned_and_has_a_block_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "processes.py"
    file.write_text(IN_ANOTHER_PROCESS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", file], capture_output=True, text=True, timeout=100
    )
    assert done.stdout.splitlines() == [FORKED, "cuda:1"], done.stderr
