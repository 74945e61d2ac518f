"""Tokens that a fine-tune has added to the published vocabulary of a model.

They are words of the model: its answers show them, and a text that spells one has it as a token, as
in training. Tokens that are named like the published ones that structure a prompt, ``<|user|>``,
are shown but never read out of a text, so that nobody can type them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from glm4v_magic.checkpoints.files import read_json
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.outside import checked

__all__ = ["is_control", "read_added", "since_published", "too_many_tokens"]

_PUBLISHED = frozenset(
    {
        "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>",
        "<|assistant|>", "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>",
        "<|begin_of_video|>", "<|end_of_video|>", "<|begin_of_audio|>", "<|end_of_audio|>",
        "<|begin_of_transcription|>", "<|end_of_transcription|>", "<|code_prefix|>",
        "<|code_middle|>", "<|code_suffix|>", "<think>", "</think>", "<answer>", "</answer>",
        "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<arg_key>",
        "</arg_key>", "<arg_value>", "</arg_value>", "/nothink", "<|begin_of_box|>",
        "<|end_of_box|>", "<|image|>", "<|video|>",
    }
)  # fmt: skip
"""Added tokens of published vocabularies; those of a fine-tune follow the last of them."""


class _Token(BaseModel):
    model_config = ConfigDict(strict=True)

    content: Annotated[str, Field(min_length=1, max_length=1000)]


class _TokenizerConfig(BaseModel):
    added_tokens_decoder: dict[int, _Token] = {}


class _AddedTokens(BaseModel):
    tokens: dict[str, Annotated[int, Field(strict=True, ge=0)]]


def is_control(token: str) -> bool:
    """Tell whether a token is named like those that structure a prompt."""
    return (token[:2], token[-2:]) == ("<|", "|>") or (token[:1], token[-1:]) == ("[", "]")


def too_many_tokens(folder: Path, largest: int, size: int, *, of_adapter: bool) -> CheckpointError:
    """Return the error for a tokenizer with ids that a model has no embedding for.

    Args:
        folder: where the tokenizer is, or what has added tokens to it.
        largest: largest id.
        size: number of ids of the model.
        of_adapter: whether it is that of an adapter.
    """
    what = f"The tokenizer of {folder} has tokens up to {largest:,}, but"
    if of_adapter:
        return CheckpointError(
            f"{what} with the adapter the model has a vocabulary of {size:,}.",
            "Save the adapter with the embedding of its tokens: save_embedding_layers=True.",
        )
    return CheckpointError(
        f"{what} config.json a vocabulary of {size:,}.",
        "The tokenizer is of another model; download it again.",
    )


def since_published(added: Mapping[str, int]) -> dict[str, int]:
    """Return the tokens that follow the published ones.

    Args:
        added: ids of all added tokens of a tokenizer.
    """
    last = max((number for token, number in added.items() if token in _PUBLISHED), default=-1)
    return {token: number for token, number in added.items() if number > last >= 0}


def read_added(folder: Path) -> dict[int, str]:
    """Return the added tokens that the files beside a tokenizer name.

    Raises:
        CheckpointError: if a file is damaged.
    """
    found: dict[int, str] = {}
    file = folder / "added_tokens.json"
    if file.is_file():
        what = str(file)
        named = checked(_AddedTokens, {"tokens": read_json(file)}, what, CheckpointError).tokens
        found |= {number: token for token, number in named.items()}
    file = folder / "tokenizer_config.json"
    if file.is_file():
        config = checked(_TokenizerConfig, read_json(file), str(file), CheckpointError)
        found |= {number: each.content for number, each in config.added_tokens_decoder.items()}
    return found
