"""Go on from a trained checkpoint whose tokenizer may have had other tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from glm4v_magic.checkpoints.glm4v_9b.processing import SPECIAL_TOKENS
from training.network import Network
from training.tokenizer import Tokenizer

__all__ = ["carry_over"]

_BY_TOKEN = (
    "transformer.embedding.word_embeddings.weight",
    "transformer.output_layer.weight",
)


def carry_over(source: Network, known: Tokenizer, target: Network, tokenizer: Tokenizer) -> None:
    """Copy the weights of `source`, with tokenizer `known`, to `target`, with `tokenizer`.

    A token that both have keeps its rows of embedding and head; a new one starts as the mean of
    the tokens that used to spell it.
    """
    weights = dict(source.state_dict())
    fresh = target.state_dict()
    for name in _BY_TOKEN:
        weights[name] = _rows(weights[name], known, fresh[name], tokenizer)
    target.load_state_dict(weights)


def _rows(old: Tensor, known: Tokenizer, fresh: Tensor, tokenizer: Tokenizer) -> Tensor:
    rows = fresh.clone()
    for token, rank in tokenizer.ranks.items():
        rows[rank] = torch.stack([old[i] for i in known.spell(token)]).mean(dim=0)
    for offset in range(len(SPECIAL_TOKENS)):
        rows[len(tokenizer.ranks) + offset] = old[len(known.ranks) + offset]
    return rows
