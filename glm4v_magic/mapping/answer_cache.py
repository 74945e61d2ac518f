"""Cache of answers, which are reused while nothing that they depend on has changed.

An answer is remembered, in memory, by what was asked: prompt, system message, pixels of the images,
files of clips, model with revision, dtype and files, sampling options, and the constraint on the
text. The format is not part of the key: the same text is parsed in another format without asking
again. A correction is an answer of its own, to a conversation that ends with the first answer and
its fault, so it is reused exactly where the same answer has the same fault.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from glm4v_magic.core.conversation import PARTIAL, Answer, Request
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.outside import expanded, is_folder

if TYPE_CHECKING:
    from glm4v_magic.core.model import ModelChoice

__all__ = ["AnswerStore", "model_key", "request_key"]

_MOST_REMEMBERED = 10_000


class AnswerStore:
    """Complete answers by key; new ones push out the oldest."""

    def __init__(self, most: int = _MOST_REMEMBERED) -> None:
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._most = most

    @property
    def is_empty(self) -> bool:
        """Whether no answer is known."""
        return not self._answers

    def find(self, key: str) -> Answer | None:
        """Return the answer with this key, if there is one."""
        return self._answers.get(key)

    def keep(self, key: str, answer: Answer) -> None:
        """Store an answer if it is complete."""
        if answer.finish_reason in PARTIAL:
            return
        self._answers[key] = answer
        self._answers.move_to_end(key)
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)


def model_key(choice: ModelChoice) -> str:
    """Return a key made of a model's name, revision, options, and the state of its files."""
    given = choice.options
    options = PlacementOptions(
        dtype=given.dtype,
        quantize=given.quantize,
        gpus=given.gpus,
        image_size=given.image_size,
        context=given.context,  # how large images are seen may depend on these two
        images=given.images,
    )
    facts = repr(
        replace(
            choice,
            model=choice.name,
            options=options,
            device_map=None,
            keep=None,
            replicas=None,
            cluster=None,
        )
    )
    if not is_folder(choice.name):
        return facts
    folder = expanded(choice.name)
    states = sorted((each.name, each.stat().st_mtime_ns) for each in folder.iterdir())
    return f"{facts} {states}"


def request_key(request: Request, model: str) -> str:
    """Return the key of a request to the model with this `model_key`."""
    digest = hashlib.sha256(repr((model, request.sampling, request.constraint)).encode())
    for message in request.conversation.messages:
        digest.update(repr((message.role, message.text, len(message.images))).encode())
        for image in message.images:
            digest.update(repr(image.image.size).encode())
            digest.update(image.image.tobytes())
        for video in message.videos:
            facts = (video, video.is_sampled, message.before_videos)
            digest.update(repr(facts).encode(errors="backslashreplace"))
            if video.is_sampled:
                for frame in video.read(range(video.count), video.size):
                    digest.update(frame.tobytes())
    return digest.hexdigest()
