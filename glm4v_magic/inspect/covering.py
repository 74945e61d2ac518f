"""Occlusion: how much less probable a token becomes when a part of an image is covered.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 2014.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import ImageStat
from torch import Tensor

from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.engines.choosing import Asked, ChoiceScorer, Scoring
from glm4v_magic.engines.local import LocalEngine
from glm4v_magic.engines.prefill import Vision
from glm4v_magic.engines.prefixes import PrefixStore
from glm4v_magic.engines.prompts import PromptImage
from glm4v_magic.inspect.grids import PixelBox

__all__ = ["drops"]


def drops(
    engine: LocalEngine,
    request: Request,
    ids: Sequence[int],
    image: int,
    boxes: Sequence[PixelBox],
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the drop of each id's log-probability, in nats, for each part, (parts, ids).

    Args:
        engine: engine with the model.
        request: what was asked.
        ids: the answer, or its beginning.
        image: index of the image among those of the conversation.
        boxes: the parts; each is covered in turn, with the image's mean colour.

    Raises:
        EngineError: if the model computes NaN or infinity.
    """
    source = request.conversation.images[image]
    requests = [
        replace(request, conversation=_with_image(request.conversation, image, each))
        for each in (source, *(_covered(source, box) for box in boxes))
    ]
    # What is kept for the user's next question stays as it is.
    store = PrefixStore(0, is_recurrent=engine.kept.is_recurrent)
    scorer = ChoiceScorer(engine.model, store, _without_keeping(engine), engine.batch_size)
    scores: list[list[float]] = []
    for start in range(0, len(requests), engine.batch_size):
        asked = [_asked(engine, each, ids) for each in requests[start : start + engine.batch_size]]
        for found in scorer.score(asked, is_only=False):
            if found is None:
                raise engine.not_finite("for the image with a part covered")
            (scored,) = found
            scores.append([each.logprob or 0.0 for each in scored.tokens[: len(ids)]])
    whole = np.array(scores)
    return whole[0] - whole[1:]


def _asked(engine: LocalEngine, request: Request, ids: Sequence[int]) -> Asked:
    prompt = engine.prompt(engine.encode(request))
    shared = prompt.images[0].encoded.start
    return Asked(prompt, [ids], Scoring(engine.processor.end_token_ids, 0), shared)


def _without_keeping(engine: LocalEngine) -> Vision:
    def encode(images: Sequence[PromptImage]) -> dict[str, Tensor]:
        found = engine.features_of([each.encoded for each in images])
        return {each.digest: own for each, own in zip(images, found, strict=True)}

    return Vision(encode, engine.vision.arguments)


def _covered(image: SourcedImage, box: PixelBox) -> SourcedImage:
    """Return an image with a part of it in its mean colour."""
    across, down = (
        own / original for own, original in zip(image.image.size, image.original_size, strict=True)
    )
    left, top, right, bottom = box
    corners = (
        round(left * across),
        round(top * down),
        round(right * across),
        round(bottom * down),
    )
    colour = tuple(map(round, ImageStat.Stat(image.image).mean))
    own = image.image.copy()
    own.paste(colour, corners)
    return replace(image, image=own, encoded=b"")


def _with_image(conversation: Conversation, index: int, image: SourcedImage) -> Conversation:
    """Return the conversation with `image` in place of the one at `index`."""
    messages: list[Message] = []
    for message in conversation.messages:
        images = list(message.images)
        if 0 <= index < len(images):
            images[index] = image
        index -= len(images)
        messages.append(replace(message, images=tuple(images)))
    return Conversation(tuple(messages))
