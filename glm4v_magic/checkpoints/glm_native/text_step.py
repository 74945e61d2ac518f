"""One decode step of the text part: its layers one after the other, without the models around them.

A step has no image to put in place and computes one column, so that of what the outer models and
their decorators do nothing is left but handing over. Layers, norm, rotary embedding and head are
called as the modules they are, with what transformers' own forward gives them: logits are bit for
bit the same. Where somebody listens to a model that would not be called (hooks), the model's own
forward runs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.models.glm4v.modeling_glm4v import Glm4vTextModel
from transformers.models.glm4v_moe.modeling_glm4v_moe import Glm4vMoeTextModel
from transformers.models.glm_ocr.modeling_glm_ocr import GlmOcrTextModel

from glm4v_magic.checkpoints.bypassed import hooks_of, is_changed, is_whole, whole_step

__all__ = ["TextStep", "text_step"]

_KNOWN = (Glm4vTextModel, Glm4vMoeTextModel, GlmOcrTextModel)
"""Text parts whose forward is that of `TextStep`."""


class TextStep:
    """Computes one new column of all rows; made by `text_step`.

    Args:
        model: the model, as it is now: made anew for each answer.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        text = model.model.language_model
        self._config, self._embed, self._rotary = text.config, text.embed_tokens, text.rotary_emb
        self._layers = list(text.layers[: text.config.num_hidden_layers])
        self._norm, self._head = text.norm, model.lm_head
        self._hooks = hooks_of(_bypassed(model))

    def __call__(
        self, ids: Tensor, mask: Tensor | None, position_ids: Tensor, cache: Cache
    ) -> Tensor:
        """Return the logits of the next token, (B, vocabulary), and add a column to the cache.

        Args:
            ids: (B, 1).
            mask: 1 marks the columns of each row that are in use, the new one included; ``None`` if
                all are.
            position_ids: (3, B, 1): time, height and width.
            cache: KV cache of at least one column.
        """
        if any(self._hooks):
            return whole_step(self._model, ids, mask, position_ids, cache)
        hidden = self._embed(ids)
        seen = None
        if mask is not None:
            seen = create_causal_mask(
                config=self._config,
                inputs_embeds=hidden,
                attention_mask=mask,
                past_key_values=cache,
                position_ids=None,
            )
        turned = self._rotary(hidden, position_ids=position_ids)
        for layer in self._layers:
            hidden = layer(
                hidden,
                attention_mask=seen,
                position_ids=None,
                past_key_values=cache,
                position_embeddings=turned,
            )
        logits = self._head(self._norm(hidden))
        return logits[:, -1]


def text_step(model: Any) -> TextStep | None:
    """Return a faster step for a model; ``None`` for a split, changed or unusual one."""
    text: Any = getattr(model.model, "language_model", None)
    if type(text) not in _KNOWN or text.config._attn_implementation != "sdpa":
        return None
    if not is_whole(model, text, model.lm_head) or is_changed(_bypassed(model)):
        return None
    return TextStep(model)


def _bypassed(model: Any) -> list[Any]:
    """Return the modules that a step does not call."""
    return [model, model.model, model.model.language_model]
