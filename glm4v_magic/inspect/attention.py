"""Attention weights of a few rows, recomputed beside the model's own attention.

The model computes as always, by an implementation that returns no weights. While it runs, queries
and keys pass through here: for the rows that are asked for, their softmax is computed once more, so
that no matrix of all heads over all pairs of tokens is ever in memory.

Shapes: L tokens, n rows of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

__all__ = ["latest_weights", "mean_weights", "watched"]

_ROWS = 64
"""Number of rows of attention weights, of all heads, in memory at once."""

_lock = threading.Lock()

Take = Callable[[int, Tensor, Tensor, Tensor | None, float], None]
"""Takes a layer's number, queries, keys, mask and scaling."""


@contextmanager
def watched(text: Any, take: Take) -> Iterator[None]:
    """Call `take` whenever a layer of the text part attends, until the block ends.

    transformers looks up its implementation by name at every call. The one in its table is replaced
    meanwhile; other models that are run at the same time, in other threads, pass through it.
    """
    numbers = {
        id(module): number
        for number, layer in enumerate(text.layers, 1)
        for module in layer.modules()
    }
    table = ALL_ATTENTION_FUNCTIONS
    name = text.config._attn_implementation
    own = table["sdpa" if name == "eager" else name]

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        number = numbers.get(id(module))
        if number is not None:
            mask = args[0] if args else kwargs.get("attention_mask")
            scaling = kwargs.get("scaling")
            take(number, query, key, mask, query.shape[-1] ** -0.5 if scaling is None else scaling)
        return own(module, query, key, value, *args, **kwargs)

    with _lock:
        local = table._local_mapping
        before = local.get(name)
        local[name] = attend
        try:
            yield
        finally:
            if before is None:
                del local[name]
            else:
                local[name] = before


def latest_weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Return the weights of the last row, (heads, L), float32, on the CPU."""
    rows = query.shape[2]
    return _weights(query, key, mask, scaling, rows - 1, rows)[:, 0].cpu()


def mean_weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Return the mean over heads of the weights of all rows, (L, L), float32, on the CPU."""
    rows = query.shape[2]
    parts = [
        _weights(query, key, mask, scaling, at, min(at + _ROWS, rows)).mean(dim=0).cpu()
        for at in range(0, rows, _ROWS)
    ]
    return torch.cat(parts)


def _weights(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, start: int, stop: int
) -> Tensor:
    """Return the weights of rows from `start` to `stop` of the first sequence, (heads, n, L)."""
    heads, length = query.shape[1], key.shape[2]
    own = query[0, :, start:stop].float()
    grouped = own.unflatten(0, (key.shape[1], heads // key.shape[1]))
    scores = grouped @ key[0, :, None].float().transpose(-1, -2) * scaling
    scores = scores.flatten(0, 1)
    # Several queries of one key-value head share its keys. A mask of fewer axes is of padding.
    if mask is not None and mask.ndim == 4:
        part = mask[0, :, start:stop, :length].to(scores.device)
        scores = (
            scores.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else scores + part
        )
    else:
        places = torch.arange(length, device=scores.device)
        rows = places[length - query.shape[2] + start : length - query.shape[2] + stop]
        scores = scores.masked_fill(places > rows[:, None], -torch.inf)
    return scores.softmax(dim=-1)
