"""Names of weights as training tools write them, and what they add to published ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.images.messages import one_line

__all__ = ["OF_VOCABULARY", "adapter_part", "is_of_tokens", "plain_name", "plain_names"]

T = TypeVar("T")

OF_VOCABULARY = (
    "transformer.embedding.word_embeddings.weight",
    "transformer.output_layer.weight",
    "model.language_model.embed_tokens.weight",
    "lm_head.weight",
)
"""Published names of the weights that have a row for each token: a fine-tune may add some."""

_WRAPPERS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",  # of Lightning, around the model that DeepSpeed or DDP wrap
)
_PREFIXES = ("base_model.model.", "module.", *(f"{each}." for each in _WRAPPERS))
_INFIXES = (
    *((rf"\.{each}\.", ".") for each in _WRAPPERS),
    (r"\.base_layer\.", "."),
    (r"\.modules_to_save\.\w+\.", "."),
)
_LEFT_OVER = ".original_module."  # what a module was before it was trained as a whole
_PART = re.compile(
    r"^(?P<module>.+?)\."
    r"(?P<part>lora_\w+|hada_\w+|lokr_\w+|ia3_l|token_adapter|trainable_tokens_\w+)"
    r"(?P<rest>\..+)?$"
)


def plain_name(name: str) -> str:
    """Return the name of a weight without the prefixes and infixes that training tools add."""
    shorter = True
    while shorter:
        shorter = False
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                name, shorter = name.removeprefix(prefix), True
    for infix, instead in _INFIXES:
        name = re.sub(infix, instead, name)
    return name


def adapter_part(name: str) -> str | None:
    """Return the module that a weight of an adapter changes; ``None`` for any other weight."""
    found = _PART.match(plain_name(name))
    return None if found is None else found["module"]


def is_of_tokens(name: str) -> bool:
    """Tell whether a weight of an adapter changes single tokens of a vocabulary."""
    return ".token_adapter" in name or ".trainable_tokens_" in name


def plain_names(weights: Mapping[str, T], where: str) -> tuple[dict[str, T], dict[str, T]]:
    """Return weights by plain names: those of a model, and those of adapters in it.

    Raises:
        CheckpointError: if two of them get the same name.
    """
    whole: dict[str, T] = {}
    parts: dict[str, T] = {}
    for name, weight in weights.items():
        if _LEFT_OVER in name:
            continue
        plain = plain_name(name)
        found = _PART.match(plain)
        if found is not None:
            # What adapters are called, trainers write between; peft's own files do not.
            plain = f"{found['module']}.{found['part']}{_unnamed(found['rest'] or '')}"
        into = whole if found is None else parts
        if plain in into:
            raise CheckpointError(f"{where} holds {one_line(plain)} twice, under two names.")
        into[plain] = weight
    return whole, parts


def _unnamed(rest: str) -> str:
    """Return the end of a name without the name of the adapter, which peft calls default."""
    first, _, last = rest.removeprefix(".").partition(".")
    return f".{last or 'weight'}" if first == "default" else rest
