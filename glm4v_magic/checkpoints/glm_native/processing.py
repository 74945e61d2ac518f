"""Conversations -> prompts of the newer GLM vision models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from glm4v_magic.checkpoints.added_tokens import since_published, too_many_tokens
from glm4v_magic.checkpoints.encoding import Encoded, EncodedImage
from glm4v_magic.checkpoints.files import read_json, refuse_pointer
from glm4v_magic.checkpoints.glm_native.families import Family
from glm4v_magic.checkpoints.glm_native.images import Patches
from glm4v_magic.checkpoints.glm_native.sampling import RULES, stamp
from glm4v_magic.checkpoints.glm_native.template import ChatTemplate
from glm4v_magic.core.boxes import BOX_TAGS
from glm4v_magic.core.conversation import Conversation
from glm4v_magic.core.errors import CheckpointError, ConversationError, OptionError, reason
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.core.video import SourcedVideo

__all__ = ["NativeProcessor"]

_OLD_TEMPLATE = "chat_template.json"
"""File in which processors of transformers 4.45 to 4.52 saved it."""

_END_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>", "<|system|>")
"""Tokens that end an answer: a next turn, or the end of the text."""

_TOLD_TOKENS = ("<think>", "</think>", "<answer>", "</answer>", *BOX_TAGS)
"""Tokens that structure an answer; whether they are special depends on the checkpoint."""


class NativeProcessor:
    """Converts conversations to ids, and images to patches.

    Args:
        name: name of the checkpoint, for messages.
        folder: folder of its files.
        config: its parsed ``config.json``.
        family: its family.
        tokenizer: folder of its tokenizer, if that of an adapter.
        image_size: as in `Checkpoint.processor`.

    Raises:
        CheckpointError: if a file is missing or damaged.
    """

    max_images: int | None = None
    image_size: tuple[int, int] | None = None
    num_visual_tokens: int | None = None

    def __init__(
        self,
        name: str,
        folder: Path,
        config: dict[str, Any],
        family: Family,
        tokenizer: Path | None = None,
        image_size: int | None = None,
    ) -> None:
        self._name, self._folder = name, folder
        self.tokenizer = _tokenizer(tokenizer or folder)
        of_template = tokenizer or folder
        if tokenizer is not None and self.tokenizer.chat_template is None:
            self.tokenizer.chat_template = _tokenizer(folder).chat_template
            of_template = folder
        self._family = family
        self._image_id: int = config["image_token_id"]
        self._image_start: int = config["image_start_token_id"]
        self._image_end: int = config["image_end_token_id"]
        self._context: int = config.get("text_config", config)["max_position_embeddings"]
        vocabulary = self.tokenizer.get_added_vocab()
        self._video_id: int = vocabulary.get("<|video|>", -1)
        if self._image_id not in vocabulary.values():
            raise CheckpointError(
                f"{folder} has the image token {self._image_id} in config.json, but not in its "
                "tokenizer.",
                "The files do not belong together; download them again.",
            )
        largest, size = max(self.tokenizer.get_vocab().values()), _vocabulary(config)
        if largest >= size:
            raise too_many_tokens(tokenizer or folder, largest, size, of_adapter=bool(tokenizer))
        self._template = ChatTemplate(self.tokenizer, str(of_template))
        self._patches = Patches(folder, family, config["vision_config"], image_size)
        self.end_token_ids = tuple(vocabulary[each] for each in _END_TOKENS if each in vocabulary)
        told = {each: vocabulary[each] for each in _TOLD_TOKENS if each in vocabulary}
        self.told_token_ids = (*told.values(), *since_published(vocabulary).values())
        self.thinks, self.takes_video = family.thinks, family.takes_video
        self.efforts = family.efforts

    @cached_property
    def opening_ids(self) -> tuple[int, ...]:
        """Ids that the model writes before every answer: a newline, unless the prompt has it."""
        return () if self._template.ends_line else tuple(self.text_ids("\n"))

    def text_ids(self, text: str) -> list[int]:
        """Encode a text by itself; special tokens in it are ordinary text."""
        return self._template.text_ids(text)

    def encode(
        self,
        conversation: Conversation,
        *,
        thinking: bool | None = None,
        effort: str | None = None,
    ) -> Encoded:
        """Encode a conversation; see `encoding.Processor`.

        Raises:
            OptionError: if a model that always thinks is asked not to.
            ConversationError: if an image is too long and narrow, or a video too long.
            CheckpointError: if the chat template does not write each image once.
        """
        if thinking is False and self.thinks and not self._template.can_skip_thinking:
            raise OptionError(
                f"{self._name} always thinks before it answers.", code="leave_thinking_out"
            )
        published, is_inside = self._template.ids(conversation, thinking, effort)
        images, videos = conversation.images, conversation.videos
        self._require(published.count(self._image_id), len(images), "images")
        self._require(published.count(self._video_id), len(videos), "videos")
        ids: list[int] = []
        encoded: list[EncodedImage] = []
        following_image, following_video = iter(images), iter(videos)
        for token in published:
            if token == self._image_id:
                encoded.append(self._image(next(following_image), len(ids)))
                ids += [token] * encoded[-1].visual_tokens
            elif token == self._video_id:
                self._add_video(next(following_video), ids, encoded)
            else:
                ids.append(token)
        return Encoded(tuple(ids), tuple(published), tuple(encoded), len(ids), is_inside)

    def _require(self, written: int, given: int, what: str) -> None:
        if written != given:
            raise CheckpointError(
                f"The chat template of {self._folder} writes {written} {what} where the "
                f"conversation holds {given}.",
                "Are all files of the same checkpoint?",
            )

    def _add_video(self, video: SourcedVideo, ids: list[int], encoded: list[EncodedImage]) -> None:
        """Add a video as pairs of frames, each pair an image followed by its time.

        That is how the models are trained to read one. An image of a single patch in time has the
        same positions as that patch of a video.
        """
        rule = self._family.video
        assert rule is not None  # a model that takes none is not asked
        indices = RULES[rule](video)
        size = self._patches.video_size(video, len(indices))
        grid = self._patches.grid(size)
        number = len(indices)
        self._require_room(video, number, number // 2 * self._patches.visual_tokens(grid))
        frames = video.frames(indices, self._patches.frame_size(video, number, size))
        for first, second in zip(frames[::2], frames[1::2], strict=True):
            ids.append(self._image_start)
            start = len(ids)
            ids += [self._image_id] * self._patches.visual_tokens(grid)
            pair = (first.image.image, second.image.image)
            values = partial(self._patches.frame_values, pair, size)
            encoded.append(
                EncodedImage(first.image, start, len(ids), size, values, grid, second.image)
            )
            ids.append(self._image_end)
            ids += self.text_ids(stamp(rule, first.time))

    def _require_room(self, video: SourcedVideo, frames: int, tokens: int) -> None:
        # Before the frames are decoded, which may take minutes and more memory than there is.
        if tokens > self._context:
            what = (
                f"{video.source} would be {frames:,} frames, {tokens:,} visual tokens, and "
                f"{self._name} holds {self._context:,} tokens with the answer."
            )
            if video.is_sampled:  # all frames that are given are seen, whatever their rate
                raise ConversationError(what, "Give fewer of its frames.")
            raise ConversationError(
                what, "Ask about a part of it, or about fewer frames per second."
            )

    def _image(self, image: SourcedImage, start: int) -> EncodedImage:
        size = self._patches.size(image)
        grid = self._patches.grid(size)
        stop = start + self._patches.visual_tokens(grid)
        pixels = partial(self._patches.pixel_values, image.image)
        return EncodedImage(image, start, stop, size, pixels, grid)


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", _OLD_TEMPLATE):
        refuse_pointer(folder / name)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            read_json(folder / name)  # which tells what is wrong with it
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of several libraries
        raise CheckpointError(
            f"The tokenizer of {folder} cannot be read: {reason(error)}.",
            "Every checkpoint of this kind has a tokenizer.json; download it again.",
        ) from error
    found = _default_of(tokenizer.chat_template)
    if found is None and (folder / _OLD_TEMPLATE).is_file():
        found = _default_of(read_json(folder / _OLD_TEMPLATE).get("chat_template"))
    tokenizer.chat_template = found
    return tokenizer


def _default_of(template: Any) -> Any:
    """Return a template, or the default one of several that are a dict, or a list as saved."""
    if isinstance(template, list):
        template = {
            each.get("name"): each.get("template") for each in template if isinstance(each, dict)
        }
    return template.get("default") if isinstance(template, dict) else template


def _vocabulary(config: Mapping[str, Any]) -> int:
    return int((config.get("text_config") or config)["vocab_size"])
