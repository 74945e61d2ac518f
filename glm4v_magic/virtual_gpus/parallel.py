"""What ``nn.DataParallel`` and ``torch.nn.parallel.comm`` call in C++, made of copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from glm4v_magic.virtual_gpus.tensor import CPU

__all__ = ["collectives"]

_Tensors = Sequence[torch.Tensor]


def collectives() -> dict[str, Callable[..., Any]]:
    """Return the functions, by name in ``torch._C``; a PyTorch without CUDA has none of them."""
    return {
        "_broadcast": _broadcast,
        "_broadcast_coalesced": _broadcast_coalesced,
        "_broadcast_out": _broadcast_out,
        "_gather": _gather,
        "_gather_out": _gather_out,
        "_scatter": _scatter,
        "_scatter_out": _scatter_out,
    }


def _broadcast(tensor: torch.Tensor, devices: Sequence[int]) -> list[torch.Tensor]:
    return [tensor.to(_gpu(index)) for index in devices]


def _broadcast_coalesced(
    tensors: _Tensors, devices: Sequence[int], buffer_size: int
) -> list[list[torch.Tensor]]:
    first = _gpu(devices[0])
    if any(tensor.device != first for tensor in tensors):
        raise RuntimeError(f"All tensors must be on devices[0]: {first.index}")
    return [[tensor.to(_gpu(index)) for tensor in tensors] for index in devices]


def _broadcast_out(tensor: torch.Tensor, out: _Tensors) -> _Tensors:
    for target in out:
        target.copy_(tensor)
    return out


def _scatter(
    tensor: torch.Tensor,
    devices: Sequence[int],
    chunk_sizes: Sequence[int] | None,
    dim: int,
    streams: object,
) -> list[torch.Tensor]:
    if chunk_sizes is None:
        chunks = tensor.chunk(len(devices), dim)
    else:
        chunks = tensor.split_with_sizes(list(chunk_sizes), dim)
    return [
        chunk.contiguous().to(_gpu(index)) for chunk, index in zip(chunks, devices, strict=False)
    ]


def _scatter_out(
    tensor: torch.Tensor, out: _Tensors, dim: int, streams: object
) -> tuple[torch.Tensor, ...]:
    chunks = tensor.split_with_sizes([target.size(dim) for target in out], dim)
    return tuple(target.copy_(chunk) for target, chunk in zip(out, chunks, strict=True))


def _gather(tensors: _Tensors, dim: int, destination: int | None) -> torch.Tensor:
    if destination is None:
        destination = torch.cuda.current_device()
    device = CPU if destination < 0 else _gpu(destination)
    return torch.cat([tensor.to(device) for tensor in tensors], dim)


def _gather_out(tensors: _Tensors, out: torch.Tensor, dim: int) -> torch.Tensor:
    return out.copy_(torch.cat([tensor.to(out.device) for tensor in tensors], dim))


def _gpu(index: int) -> torch.device:
    return torch.device("cuda", index)
