"""Prefix cache: KV caches of prompts and image features, kept for later calls.

Prompts are compared by the keys of their tokens: the token's id, or for tokens of an image the
digest of the image, since all images have the same ids. Over the budget, the least recently used
entry is dropped first.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from glm4v_magic.images import SourcedImage

__all__ = [
    "CacheFacts",
    "KeptPrefix",
    "Keys",
    "PrefixStore",
    "common_length",
    "image_digest",
    "longest",
]

Keys: TypeAlias = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """Contents of the prefix cache.

    Attributes:
        used_bytes: bytes in use.
        budget_bytes: maximum number of bytes; 0 keeps nothing.
        prefixes: number of kept prompts (with their answers).
        images: number of images with kept features.
        devices: bytes in use on each device, by torch's name of it.
    """

    used_bytes: int
    budget_bytes: int
    prefixes: int
    images: int
    devices: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class KeptPrefix:
    """A KV cache.

    Attributes:
        keys: keys of its tokens.
        layers: keys and values of each layer, (1, heads, length, head size); or whatever a layer
            keeps instead.
        is_whole: whether layers keep states, which are those after all tokens and cannot be cut.
        is_fork: whether other prompts may go on from here in another way, so that it stays when a
            longer prefix is kept.
    """

    keys: Keys
    layers: tuple[tuple[Tensor, ...], ...]
    is_whole: bool = False
    is_fork: bool = False

    @property
    def nbytes(self) -> int:
        """Size of all layers in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def tensors(self) -> Iterator[Tensor]:
        """What all layers keep."""
        return (tensor for layer in self.layers for tensor in layer)

    def beginning(self, length: int) -> Iterator[Tensor]:
        """What all layers keep of its first tokens; nothing of states that are those of more."""
        if not self.is_whole:
            return (tensor[..., :length, :] for tensor in self.tensors)
        return self.tensors if length == len(self.keys) else iter(())


def common_length(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Return the length of the common prefix of two sequences of keys."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def longest(prefixes: Iterable[KeptPrefix], keys: Keys) -> tuple[KeptPrefix | None, int]:
    """Return the prefix that shares the longest beginning with a prompt, and the shared length.

    One that cannot be cut is not found unless the prompt begins with all of it.
    """
    found, most = None, 0
    for each in prefixes:
        length = common_length(each.keys, keys)
        if length > most and not (each.is_whole and length < len(each.keys)):
            found, most = each, length
    return found, most


def image_digest(image: SourcedImage) -> str:
    """Return a digest of an image's pixels, whatever its name."""
    pixels = image.image
    digest = hashlib.sha256(f"{pixels.mode} {pixels.size} ".encode())
    digest.update(pixels.tobytes())
    palette = pixels.getpalette()
    digest.update(bytes(palette or ()) + repr(pixels.info.get("transparency")).encode())
    return digest.hexdigest()


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether all values are finite: their extremes are, NaN among them; no mask is made."""
    extremes = (each for tensor in tensors if tensor.numel() for each in tensor.aminmax())
    return all(bool(each.isfinite()) for each in extremes)


class PrefixStore:
    """Prefix cache with a budget; least recently used entries are dropped.

    Args:
        budget: maximum size in bytes; 0 keeps nothing.
        is_recurrent: whether layers of the model keep states, so that prefixes cannot be cut.

    Attributes:
        budget: as given; may be changed.
        is_recurrent: as given.
    """

    def __init__(self, budget: int, *, is_recurrent: bool = False) -> None:
        self.budget = budget
        self.is_recurrent = is_recurrent
        self._entries: OrderedDict[Hashable, KeptPrefix | Tensor] = OrderedDict()

    @property
    def facts(self) -> CacheFacts:
        """Contents now."""
        kept = list(self._entries.values())
        prefixes = sum(isinstance(each, KeptPrefix) for each in kept)
        used: Counter[str] = Counter()
        for each in kept:
            tensors = each.tensors if isinstance(each, KeptPrefix) else (each,)
            for tensor in tensors:
                used[str(tensor.device)] += tensor.nbytes
        devices = tuple(sorted(used.items()))
        return CacheFacts(used.total(), self.budget, prefixes, len(kept) - prefixes, devices)

    def find(self, keys: Keys) -> tuple[KeptPrefix | None, int]:
        """Return the kept prefix that shares the longest beginning with a prompt.

        Returns:
            The prefix, and how many of its keys are those of the prompt.
        """
        found, most = longest(self._prefixes(), keys)
        if found is not None:
            self._entries.move_to_end(found.keys)
        return found, most

    def take(self, keys: Keys) -> tuple[KeptPrefix | None, int]:
        """Return what `find` returns, and remove that prefix if the prompt begins with all of it.

        The longer prefix that the call leaves will replace it, so that it is in memory only once.
        One that cannot be cut stays: the call may leave none.
        """
        found, most = self.find(keys)
        if found is not None and most == len(found.keys) and not found.is_whole:
            del self._entries[found.keys]
        return found, most

    def put(self, prefix: KeptPrefix) -> None:
        """Keep a prefix; it replaces kept prefixes that it begins with, except forks."""
        if not prefix.keys or prefix.nbytes > self.budget:
            return
        for entry in list(self._prefixes()):
            is_same = entry.keys == prefix.keys
            if is_same or (not entry.is_fork and entry.keys == prefix.keys[: len(entry.keys)]):
                del self._entries[entry.keys]
        self._entries[prefix.keys] = prefix
        self._fit()

    def features(self, digest: str) -> Tensor | None:
        """Return the features of an image, if they are kept."""
        found = self._entries.get(digest)
        if not isinstance(found, Tensor):
            return None
        self._entries.move_to_end(digest)
        return found

    def put_features(self, digest: str, features: Tensor) -> None:
        """Keep the features of an image."""
        if features.nbytes <= self.budget:
            self._entries[digest] = features
            self._fit()

    def drop_spoilt(self, keys: Keys, digests: Iterable[str]) -> None:
        """Drop what is not finite of what a prompt may have left here or gone on from.

        Of prefixes that only begin like the prompt, that beginning is looked at. What is finite
        stays: computed again it would be the same.

        Args:
            keys: keys of the prompt.
            digests: of its images.
        """
        for digest in digests:
            features = self._entries.get(digest)
            if isinstance(features, Tensor) and not _are_finite((features,)):
                del self._entries[digest]
        for prefix in list(self._prefixes()):
            if not _are_finite(prefix.beginning(common_length(prefix.keys, keys))):
                del self._entries[prefix.keys]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept."""
        return not self._entries

    def clear(self) -> None:
        """Drop everything."""
        self._entries = OrderedDict()

    def _prefixes(self) -> Iterable[KeptPrefix]:
        return (each for each in self._entries.values() if isinstance(each, KeptPrefix))

    def _fit(self) -> None:
        used = sum(each.nbytes for each in self._entries.values())
        while used > self.budget:
            _, dropped = self._entries.popitem(last=False)
            used -= dropped.nbytes
