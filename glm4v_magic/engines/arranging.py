"""The order in which waiting prompts are prefilled: those that begin alike are neighbours.

The common prefix of a group of prompts is prefilled once. A prompt joins the group in which that
saves the most tokens: rows about one image share the image, not just the few tokens that all
prompts begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from glm4v_magic.engines.prefixes import common_length
from glm4v_magic.engines.prompts import Prompt

__all__ = ["LEAST_SHARED", "Arranged", "alike", "arranged"]

LEAST_SHARED = 16
"""Length in tokens from which a shared prefix is worth a forward of its own."""

_MOST_PADDING = 128
"""Padding tokens that cost less than another forward."""


@dataclass(frozen=True, slots=True)
class Arranged:
    """Place of a prompt in the order.

    Attributes:
        index: index of the prompt.
        shared: length of the prefix that it has in common with its group; 0 if it is alone.
    """

    index: int
    shared: int


@dataclass(slots=True)
class _Group:
    first: Prompt
    shared: int
    members: list[int] = field(default_factory=list)

    def with_(self, prompt: Prompt) -> int:
        """Return the length of the common prefix if `prompt` joins."""
        common = common_length(self.first.keys, prompt.keys)
        # Logits of the next token need a forward of at least one token.
        common = min(common, self.shared, len(self.first) - 1, len(prompt) - 1)
        return self.first.whole_images(common)

    def gain(self, shared: int) -> int:
        """Return how many more tokens are saved if a prompt joins and the prefix is `shared`."""
        others = len(self.members)
        return others * shared - (others - 1) * self.shared


def arranged(prompts: Sequence[Prompt], limits: Sequence[int]) -> list[Arranged]:
    """Return the order in which to prefill prompts: groups, then the others.

    Prompts with the longest possible answers come first, so that no long answer begins when all
    others have ended; among equals the shortest prompts, so that neighbours need little padding.

    Args:
        prompts: the prompts.
        limits: maximum number of generated tokens of each.
    """

    def ordered(indices: Sequence[int]) -> list[int]:
        return sorted(indices, key=lambda index: (-limits[index], len(prompts[index])))

    groups: list[_Group] = []
    for index, prompt in enumerate(prompts):
        best, most, length = None, 0, 0
        for group in groups:
            shared = group.with_(prompt)
            gain = group.gain(shared)
            if shared >= LEAST_SHARED and gain > most:
                best, most, length = group, gain, shared
        if best is None:
            groups.append(_Group(prompt, len(prompt), [index]))
        else:
            best.members.append(index)
            best.shared = length
    alone = [group.members[0] for group in groups if len(group.members) == 1]
    return [
        Arranged(index, group.shared)
        for group in groups
        if len(group.members) > 1
        for index in ordered(group.members)
    ] + [Arranged(index, 0) for index in ordered(alone)]


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Return groups of rows (indices) to prefill in one forward each, so that little is padding.

    Args:
        lengths: number of tokens to prefill in each row.
    """
    parts: list[list[int]] = []
    padding = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if parts:
            padding += len(parts[-1]) * (lengths[index] - lengths[parts[-1][-1]])
        if not parts or padding > _MOST_PADDING:
            parts.append([])
            padding = 0
        parts[-1].append(index)
    return [sorted(part) for part in parts]
