"""Turns requests into bodies of OpenAI's protocol, with vLLM's extensions."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from PIL import Image

from glm4v_magic.core.conversation import Message, Request
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.core.options import Sampling, of_group
from glm4v_magic.engines.thinking import CLOSE, OPEN

__all__ = ["EXTENSIONS", "body_of"]

_OPENAI = ("max_tokens", "temperature", "top_p", "seed")
"""Sampling parameters of OpenAI's protocol."""

EXTENSIONS = tuple(
    each.name for each in of_group(Sampling) if each.who.request and each.name not in _OPENAI
)
"""Sampling parameters that OpenAI's protocol lacks; vLLM and SGLang accept most of them."""

_JPEG = b"\xff\xd8"

_THEIRS = {
    "repetition_penalty": ("repetition_penalty", "repeat_penalty"),  # the latter of llama.cpp
    "effort": ("reasoning_effort",),
    "max_thinking": ("thinking_token_budget",),  # of vLLM
}
"""Parameters whose names differ from those here, and the names to send."""


def body_of(
    model: str, request: Request, image_size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Return the body of ``POST /chat/completions``.

    Args:
        model: name of the model on the server.
        request: request to send.
        image_size: width and height in pixels to which the server says it resizes images.
    """
    conversation, sampling = request.conversation, request.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message, image_size) for message in conversation.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for name in (*_OPENAI, *EXTENSIONS, "effort"):
        value = getattr(sampling, name)
        if value is not None:
            body |= dict.fromkeys(_THEIRS.get(name, (name,)), value)
    body["max_tokens"] = max(body["max_tokens"], _least_tokens(request))
    if sampling.logprobs is not None:
        body["logprobs"] = True
        if sampling.logprobs:
            body["top_logprobs"] = sampling.logprobs
    body |= _form(request)
    if sampling.thinking is not None:
        # A variable of the chat template, and the one that those of GLM and Qwen know; vLLM,
        # SGLang, llama.cpp and transformers serve hand it on.
        body["chat_template_kwargs"] = {"enable_thinking": sampling.thinking}
    if (partial := conversation.partial) is not None:
        if partial.thinking:  # as the model wrote it; the templates know these tags
            written = OPEN + partial.thinking + (CLOSE + partial.text if partial.text else "")
            body["messages"][-1]["content"] = written
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    return body


def _least_tokens(request: Request) -> int:
    """Return the number of tokens that a choice may need: that of its bytes, and its end.

    A choice is never cut off, as in this process, where all are scored at once.
    """
    choices = () if request.constraint is None else request.constraint.choices
    return max((len(each.encode()) + 1 for each in choices), default=0)


def _form(request: Request) -> dict[str, Any]:
    """Return the fields that say what the answer must be."""
    constraint = request.constraint
    # Servers apply a form to the new part of an answer alone, and so would begin it anew.
    if constraint is None or request.conversation.unfinished:
        return {}
    if constraint.choices:
        return {"structured_outputs": {"choice": list(constraint.choices)}}  # vLLM's name
    if constraint.regex:
        return {"structured_outputs": {"regex": constraint.regex}}
    named = {"name": "answer", "schema": json.loads(constraint.schema)}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _message(message: Message, image_size: tuple[int, int] | None) -> dict[str, Any]:
    # Without the thinking: models are trained to see that of the answer they are writing alone, and
    # the templates of GLM (https://huggingface.co/zai-org/GLM-4.7/blob/main/chat_template.jinja)
    # and Qwen3 leave it out of the answers before.
    if not message.images:
        return {"role": message.role, "content": message.text}
    images = [
        {"type": "image_url", "image_url": {"url": _data_uri(image, image_size)}}
        for image in message.images
    ]
    return {"role": message.role, "content": [*images, {"type": "text", "text": message.text}]}


def _data_uri(image: SourcedImage, seen: tuple[int, int] | None) -> str:
    """Return the image as it came unless that is large, else as a PNG of what the model sees."""
    if image.encoded and (seen is None or len(image.encoded) <= _channels(seen)):
        kind = "jpeg" if image.encoded.startswith(_JPEG) else "png"
        return f"data:image/{kind};base64,{base64.b64encode(image.encoded).decode('ascii')}"
    pixels = image.image
    if seen is not None and _channels(seen) < _channels(pixels.size):
        # As the server would do, which then finds nothing left to do.
        pixels = pixels.resize(seen, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    # Lossless, so that the model sees what it would see here; fast rather than small.
    pixels.save(buffer, format="png", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _channels(size: tuple[int, int]) -> int:
    """Return the number of bytes of an RGB image that is not encoded."""
    return 3 * size[0] * size[1]
