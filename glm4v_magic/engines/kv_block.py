"""KV cache of rows that are prefilled or decoded together, with their mask and positions.

Shapes: B rows, W columns of the KV cache, some of which are padding in some rows; position ids
(B, W), or (axes, B, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionLayer

from glm4v_magic.checkpoints.encoding import DecodeStep
from glm4v_magic.engines.attempts import Attempts
from glm4v_magic.engines.prefixes import KeptPrefix, Keys

__all__ = ["KVBlock", "joined", "padded"]

_Result = TypeVar("_Result")

_Place: TypeAlias = tuple[list[int] | None, list[int] | None]
"""Rows and columns of a block; ``None`` for all."""


class KVBlock:
    """Rows whose keys and values are one tensor for each layer.

    Args:
        model: model whose cache it is.
        mask: 1 marks the columns of each row that are in use, (B, W).

    Attributes:
        cache: keys and values, (B, heads, W, head size) for each layer.
        rows: B.
        width: W, the number of complete columns.
        device: device of the mask.
        latest: position ids of the last column, (..., B, 1).
    """

    def __init__(self, model: Any, mask: Tensor) -> None:
        self._model = model
        self.cache = self._empty()
        self.rows, self.width = mask.shape
        self.device = mask.device
        self._padded = _with_padding(mask)
        self.latest = mask[:, :0]

    @property
    def mask(self) -> Tensor:
        """1 marks the columns of each row that are in use, (B, W)."""
        if self._padded is not None:
            return self._padded
        return torch.ones((self.rows, self.width), dtype=torch.long, device=self.device)

    @classmethod
    def of_prefixes(
        cls, model: Any, prefixes: Sequence[tuple[KeptPrefix | None, int]], device: torch.device
    ) -> KVBlock:
        """Return a block of rows that begin with the first columns of kept prefixes.

        Args:
            model: model whose cache it is.
            prefixes: prefix of each row, and how many of its columns are used.
            device: device of the mask.
        """
        lengths = [length for _, length in prefixes]
        width = max(lengths)
        columns = torch.arange(width, device=device)
        starts = width - torch.tensor(lengths, device=device)
        block = cls(model, (columns >= starts[:, None]).long())
        first, _ = prefixes[0]
        if all(prefix is first and length == width for prefix, length in prefixes):
            block._share(first, width)
        else:
            block._copy(prefixes)
        return block

    def _empty(self) -> DynamicCache:
        return DynamicCache(config=self._model.config.get_text_config())

    def _share(self, prefix: KeptPrefix | None, length: int) -> None:
        """Let all rows begin with the same tensors."""
        if prefix is None or not length:
            return
        if prefix.is_whole:
            for layer, kept in zip(self.cache.layers, prefix.layers, strict=True):
                _restore(layer, tuple(_chosen(each, [0] * self.rows) for each in kept))
            return
        for layer, (keys, values) in zip(self.cache.layers, prefix.layers, strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = (
                tensor[..., :length, :].expand(self.rows, -1, -1, -1) for tensor in (keys, values)
            )

    def _copy(self, prefixes: Sequence[tuple[KeptPrefix | None, int]]) -> None:
        """Copy the prefix of each row to the right end of its columns."""
        like = next(prefix for prefix, length in prefixes if prefix is not None and length)
        for at, layer in enumerate(self.cache.layers):
            layer.lazy_initialization(*like.layers[at])
            for which, name in enumerate(("keys", "values")):
                sample = like.layers[at][which]
                shape = (len(prefixes), sample.shape[1], self.width, sample.shape[3])
                whole = sample.new_zeros(shape)
                for row, (prefix, length) in enumerate(prefixes):
                    if prefix is not None and length:
                        part = prefix.layers[at][which][0, :, :length]
                        whole[row, :, self.width - length :] = part
                setattr(layer, name, whole)

    def forward(
        self, ids: Tensor, mask: Tensor, position_ids: Tensor, attempt: Attempts, **more: Any
    ) -> Tensor:
        """Run the model on n new columns; returns logits of the next token, (B, vocabulary).

        Args:
            ids: (B, n).
            mask: (B, n); 0 marks padding, which stands on the left.
            position_ids: (..., B, n).
            attempt: runs the forward.
            more: further arguments of the model.
        """

        def compute() -> tuple[Tensor, Tensor | None]:
            whole = torch.cat((self.mask, mask), dim=1)
            logits = self._read(ids, whole, position_ids, **more)
            return self._whole(logits), _with_padding(whole)

        logits, self._padded = self._computed(compute, attempt)
        self.width += ids.shape[1]
        self.latest = position_ids[..., -1:]
        return logits

    def step(
        self, ids: Sequence[int], attempt: Attempts, quick: DecodeStep | None = None
    ) -> Tensor:
        """Run the model on the next column of all rows; returns logits, (B, vocabulary).

        Args:
            ids: latest id of each row.
            attempt: runs the forward.
            quick: a faster step than the model's forward.
        """

        def compute() -> tuple[Tensor, Tensor | None, Tensor]:
            latest = torch.tensor(ids, device=self.device)[:, None]
            # A single new column attends to all others if no row has padding: it needs no mask.
            whole = None
            if self._padded is not None:
                whole = torch.cat((self._padded, torch.ones_like(latest)), dim=1)
            position_ids = self.latest + 1
            if quick is None:
                logits = self._read(latest, whole, position_ids)
            else:
                logits = quick(latest, whole, position_ids, self.cache)
            return self._whole(logits), whole, position_ids

        logits, self._padded, self.latest = self._computed(compute, attempt)
        self.width += 1
        return logits

    def followed(self, ids: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        """Run the model on n columns that follow some of the rows, which stay as they are.

        Args:
            ids: n ids for each of them.
            rows: row that each of them follows; one may be followed several times.

        Returns:
            The logits after each of the columns, (K, n, vocabulary).
        """
        which, columns = list(rows), torch.tensor(ids, device=self.device)
        count = columns.shape[1]
        mask = torch.cat((self.mask[which], torch.ones_like(columns)), dim=1)
        position_ids = self.latest[..., which, :] + torch.arange(1, count + 1, device=self.device)
        cache = self._copied(which)
        return self._whole(self._logits(columns, mask, position_ids, cache, logits_to_keep=count))

    def _copied(self, rows: list[int]) -> DynamicCache:
        """Return a cache that begins with the complete columns of some rows."""
        self.cut()
        cache = self._empty()
        for own, layer in zip(self.cache.layers, cache.layers, strict=True):
            _restore(layer, tuple(_chosen(each, rows) for each in _kept(own)))
        return cache

    def _read(self, ids: Tensor, mask: Tensor | None, position_ids: Tensor, **more: Any) -> Tensor:
        logits = self._logits(ids, mask, position_ids, self.cache, logits_to_keep=1, **more)
        return logits[:, -1]

    def _logits(
        self,
        ids: Tensor,
        mask: Tensor | None,
        position_ids: Tensor,
        cache: DynamicCache,
        **more: Any,
    ) -> Tensor:
        logits: Tensor = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            **more,
        ).logits
        return logits

    def _whole(self, logits: Tensor) -> Tensor:
        """Return logits in float32 on the device of the mask."""
        return logits.to(device=self.device, dtype=torch.float32)

    def _computed(self, compute: Callable[[], _Result], attempt: Attempts) -> _Result:
        """Call a function that adds columns to the cache, from the same cache if it is repeated."""
        before: list[tuple[Any, list[Tensor]]] = []

        def run() -> _Result:
            for layer, states in before:
                _set_states(layer, states)
            before.clear()
            # States are changed in place and cannot be cropped.
            if self.width and attempt.are_repeated:
                before.extend((each, _copied_states(each)) for each in self._recurrent)
            self.cut()
            return compute()

        return attempt(run)

    @property
    def _recurrent(self) -> list[Any]:
        return [each for each in self.cache.layers if isinstance(each, LinearAttentionLayer)]

    def cut(self) -> None:
        """Crop the cache to its complete columns: a failed step may have written some layers.

        States have no columns.
        """
        if not self.width:
            self.cache = self._empty()
            return
        for layer in self.cache.layers:
            if not isinstance(layer, LinearAttentionLayer):
                _crop(layer, self.width)

    def prefix(self, keys: Keys, row: int = 0) -> KeptPrefix:
        """Return the columns of a row without its padding, to be kept.

        Keys and values are copied unless the row is alone and has no padding.

        Args:
            keys: keys of its columns; there may be more of them.
            row: which row of the block.
        """
        self.cut()
        columns = _indices(self.mask[row].bool())
        place = (None if self.rows == 1 else [row], columns)
        layers = tuple(
            (_joined([layer.keys], [place], 0), _joined([layer.values], [place], 0))
            for layer in self.cache.layers
        )
        return KeptPrefix(keys[: self.width if columns is None else len(columns)], layers)

    def states(self, keys: Keys, *, is_fork: bool = False) -> KeptPrefix:
        """Return the states and caches of all layers for a row that is alone, as they are now.

        Args:
            keys: keys of its columns; there may be more of them.
            is_fork: see `KeptPrefix`.
        """
        # Copied, since the next token changes them in place.
        layers = tuple(
            tuple(map(torch.clone, _kept(layer)))
            if isinstance(layer, LinearAttentionLayer)
            else _kept(layer)
            for layer in self.cache.layers
        )
        return KeptPrefix(keys[: self.width], layers, is_whole=True, is_fork=is_fork)


_STATES = ("conv_states", "recurrent_states")


def _with_padding(mask: Tensor) -> Tensor | None:
    """Return a mask; ``None`` if it marks all columns."""
    return None if bool(mask.all()) else mask


def _copied_states(layer: Any) -> list[Tensor]:
    return [getattr(layer, name)[0].clone() for name in _STATES]


def _set_states(layer: Any, states: Sequence[Tensor]) -> None:
    for name, state in zip(_STATES, states, strict=True):
        getattr(layer, name)[0] = state


def _crop(layer: Any, width: int) -> None:
    """Crop keys, values and the indexer's keys to their first columns."""
    if layer.keys.shape[-2] > width:
        layer.keys = layer.keys[..., :width, :]
        layer.values = layer.values[..., :width, :]
    index = getattr(layer, "indexer_keys", None)
    if index is not None and index.shape[1] > width:
        layer.indexer_keys = index[:, :width]


def _kept(layer: Any) -> tuple[Tensor, ...]:
    """Return what a layer keeps."""
    if isinstance(layer, LinearAttentionLayer):
        return tuple(getattr(layer, name)[0] for name in _STATES)
    index = getattr(layer, "indexer_keys", None)
    return (layer.keys, layer.values, *(() if index is None else (index,)))


def _chosen(tensor: Tensor, rows: list[int]) -> Tensor:
    """Return rows of a tensor, (B, ...); if all are the same one, they share its memory."""
    if len(set(rows)) == 1:
        return tensor[rows[:1]].expand(len(rows), *tensor.shape[1:])
    return tensor.index_select(0, torch.tensor(rows, device=tensor.device))


def _restore(layer: Any, kept: tuple[Tensor, ...]) -> None:
    """Give an empty layer what another has kept; its states are copied."""
    if isinstance(layer, LinearAttentionLayer):
        for name, state in zip(_STATES, kept, strict=True):
            layer.lazy_initialization(**{name: state})
            getattr(layer, name)[0].copy_(state)
        layer.has_previous_state[0] = True
        return
    keys, values, *index = kept
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    for each in index:
        layer.lazy_initialization_indexer(each)
        layer.indexer_keys = each


def joined(model: Any, parts: Sequence[tuple[KVBlock, list[int]]], attempt: Attempts) -> KVBlock:
    """Return one block of some rows of several blocks, without columns that none of them uses.

    Keys and values are copied once, a layer at a time, and a layer is freed before the next is
    copied. The blocks cannot be used afterwards.

    Args:
        model: model whose cache they are.
        parts: blocks, and which of their rows.
        attempt: runs the copying of a tensor.
    """
    whole, places = attempt(partial(_begun, model, parts))
    width = whole.width
    for at, layer in enumerate(whole.cache.layers):
        layers = [each.cache.layers[at] for each, _ in parts]
        if isinstance(layer, LinearAttentionLayer):
            _join_states(layer, layers, [rows for rows, _ in places], attempt)
            continue
        attempt(partial(layer.lazy_initialization, layers[0].keys, layers[0].values))
        for name in ("keys", "values"):
            tensors = [getattr(each, name) for each in layers]
            setattr(layer, name, attempt(partial(_joined, tensors, places, width)))
            for each in layers:
                setattr(each, name, None)
        if getattr(layers[0], "indexer_keys", None) is not None:
            _join_index(layer, layers, places, width, attempt)
    return whole


def _begun(model: Any, parts: Sequence[tuple[KVBlock, list[int]]]) -> tuple[KVBlock, list[_Place]]:
    """Return a block for some rows of others, still without their keys, and their places there."""
    used = [each.mask[list(which)].bool().any(dim=0) for each, which in parts]
    width = max(int(columns.sum()) for columns in used)
    masks = [
        padded(each.mask[list(which)][:, columns], width)
        for (each, which), columns in zip(parts, used, strict=True)
    ]
    whole = KVBlock(model, torch.cat(masks))
    whole.latest = torch.cat([each.latest[..., which, :] for each, which in parts], dim=-2)
    places: list[_Place] = [
        (None if len(which) == each.rows else which, _indices(columns))
        for (each, which), columns in zip(parts, used, strict=True)
    ]
    return whole, places


def _join_states(
    whole: Any, layers: Sequence[Any], rows: Sequence[list[int] | None], attempt: Attempts
) -> None:
    """Join the states of linear attention, (B, ...), which have no columns."""

    def join(name: str) -> None:
        state = _rows_of([getattr(each, name)[0] for each in layers], rows)
        whole.lazy_initialization(**{name: state})
        getattr(whole, name)[0] = state

    for name in _STATES:
        attempt(partial(join, name))
    whole.has_previous_state[0] = True


def _rows_of(states: Sequence[Tensor], rows: Sequence[list[int] | None]) -> Tensor:
    return torch.cat(
        [
            state if which is None else state[torch.tensor(which, device=state.device)]
            for state, which in zip(states, rows, strict=True)
        ]
    )


def _join_index(
    whole: Any,
    layers: Sequence[Any],
    places: Sequence[_Place],
    width: int,
    attempt: Attempts,
) -> None:
    """Join the keys of sparse attention's indexer, (B, W, size); zeros among them are padding."""
    given = [each.indexer_keys[:, None] for each in layers]
    attempt(partial(whole.lazy_initialization_indexer, given[0]))
    whole.indexer_keys = attempt(partial(_joined, given, places, width))[:, 0]


def _indices(columns: Tensor) -> list[int] | None:
    """Return the indices of columns that are in use; ``None`` if all are."""
    return None if bool(columns.all()) else columns.nonzero().flatten().tolist()


def _joined(
    tensors: Sequence[Tensor],
    places: Sequence[_Place],
    width: int,
) -> Tensor:
    """Copy rows and columns of (B, heads, W, head size) tensors into one, padded on the left."""
    chosen = []
    for tensor, (rows, columns) in zip(tensors, places, strict=True):
        for axis, indices in ((0, rows), (2, columns)):
            if indices is not None:
                tensor = tensor.index_select(axis, torch.tensor(indices, device=tensor.device))
        chosen.append(tensor)
    if len(chosen) == 1:
        return chosen[0]
    first = chosen[0]
    count = sum(len(each) for each in chosen)
    whole = first.new_zeros((count, first.shape[1], width, first.shape[3]))
    at = 0
    for each in chosen:
        whole[at : at + len(each), :, width - each.shape[2] :] = each
        at += len(each)
    return whole


def padded(rows: Tensor, width: int) -> Tensor:
    """Pad the last axis with zeros on the left."""
    return torch.nn.functional.pad(rows, (width - rows.shape[-1], 0))
