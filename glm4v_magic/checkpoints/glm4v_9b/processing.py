"""Conversations -> ids and pixels, and ids -> text, as GLM-4V-9B was trained on them.

The prompt is ``[gMASK]<sop>``, then for each message ``<|role|>``, a newline, an image if the
message has one, and the text; then ``<|assistant|>`` (the model writes the newline itself). Turns
have no end token. An image is ``<|begin_of_image|><|endoftext|><|end_of_image|>`` in the
published form; here the middle id is repeated once per patch, so that ids, attention mask and KV
cache have one length. `Glm4v9bProcessor.prompt_ids` returns the published form.

Text is never searched for special tokens: ``<|user|>`` inside a message is eight characters.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from glm4v_magic.checkpoints.added_tokens import is_control, since_published, too_many_tokens
from glm4v_magic.checkpoints.encoding import Encoded, EncodedImage
from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig
from glm4v_magic.checkpoints.glm4v_9b.layout import MAX_IMAGES
from glm4v_magic.core.conversation import Conversation
from glm4v_magic.core.errors import CheckpointError, ConversationError, reason
from glm4v_magic.images import to_rgb

__all__ = ["SPECIAL_TOKENS", "Glm4v9bProcessor", "load_tokenizer"]

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)
"""Special tokens in the order of their ids, which follow the last rank of ``tokenizer.model``."""

END_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")
"""Tokens that end an answer: a next turn, or the end of the text; as in the generation config."""

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pattern by which the published tokenizer splits text before it merges bytes."""

# CLIP's statistics, per RGB channel of values in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def _byte_characters() -> dict[int, str]:
    """Map each byte to the printable character that stands for it in byte-level BPE.

    Source: GPT-2's encoder; printable Latin-1 bytes stand for themselves, the rest for the
    characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = {byte: chr(byte) for byte in printable}
    rest = (byte for byte in range(256) if byte not in characters)
    characters.update({byte: chr(0x100 + index) for index, byte in enumerate(rest)})
    return characters


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Read a tiktoken file: one base64 token and its rank per line.

    tiktoken's own reader keeps a copy under a hash of the path and would miss a changed file.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CheckpointError(
            f"The tokenizer file {path} cannot be read: {reason(error)}.",
            "Every checkpoint of this kind has a tokenizer.model; download it again.",
        ) from error
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise CheckpointError(
                f"Line {number} of {path} is not a base64 token and its rank.",
                "The file is damaged or of another kind; download it again.",
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not ranks:
        raise CheckpointError(
            f"The ranks in {path} do not count from 0 without gaps.",
            "The file is damaged; download it again.",
        )
    return ranks


def load_tokenizer(
    path: Path,
    added: Mapping[int, str] | None = None,
    size: int | None = None,
    adapter: Path | None = None,
) -> PreTrainedTokenizerFast:
    """Build a fast tokenizer from a ``tokenizer.model`` of tiktoken ranks.

    Args:
        path: the file.
        added: tokens that a fine-tune has added, by id; published ones among them are left out.
        size: number of ids of the model; ``None`` if it is not known.
        adapter: folder of the adapter that has added them; ``None`` if it is none.

    Raises:
        CheckpointError: if the file is missing or damaged, or has more tokens than the model.
    """
    ranks = _read_ranks(path)
    first = len(ranks) + len(SPECIAL_TOKENS)
    more = {number: token for number, token in (added or {}).items() if number >= first}
    largest = max(more, default=first - 1)
    if size is not None and largest >= size:
        raise too_many_tokens(adapter or path.parent, largest, size, of_adapter=bool(adapter))
    characters = _byte_characters()
    # Latin-1 makes each byte the character of its number.
    written = {token: token.decode("latin-1").translate(characters) for token in ranks}
    # tiktoken merges any two neighbours whose union is a token, lowest rank first; as a list of
    # merges that is every way to cut a token in two, in the order of the token's rank.
    merges = [
        (written[token[:cut]], written[token[cut:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(BPE(vocabulary, merges, fuse_unk=False, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    for number in range(first, largest + 1):
        token = more.get(number, f"<|unused_{number}|>")
        control = is_control(token)
        one = [AddedToken(token, normalized=False, special=control)]
        (tokenizer.add_special_tokens if control else tokenizer.add_tokens)(one)
    return PreTrainedTokenizerFast(
        tokenizer_object=_Given(tokenizer),
        pad_token="<|endoftext|>",  # noqa: S106  a token, not a password
        eos_token="<|endoftext|>",  # noqa: S106
        padding_side="left",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


class _Given:
    """A tokenizer that transformers takes as it is.

    It deep-copies the one that it is given, which writes and parses the whole vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __deepcopy__(self, memo: object) -> Tokenizer:
        return self._tokenizer


class Glm4v9bProcessor:
    """Converts conversations to model inputs, and ids to text.

    Args:
        tokenizer: from `load_tokenizer`.
        config: configuration of the checkpoint.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: Glm4v9bConfig) -> None:
        self.tokenizer = tokenizer
        self.max_images = MAX_IMAGES
        side: int = config.vision_config.image_size
        self.image_size = (side, side)
        self.num_visual_tokens: int = config.vision_config.num_visual_tokens
        self.boi_token_id = config.boi_token_id
        self.eoi_token_id = config.eoi_token_id
        self.pad_token_id = self.token_id("<|endoftext|>")
        self.end_token_ids = tuple(map(self.token_id, END_TOKENS))
        vocabulary = tokenizer.get_added_vocab()
        self.told_token_ids = tuple(since_published(vocabulary).values())
        self.thinks = self.takes_video = False
        self.efforts: tuple[str, ...] = ()
        self.opening_ids = tuple(self.text_ids("\n"))  # the model writes it before its answer

    def token_id(self, token: str) -> int:
        """Return the id of a special token, such as ``<|user|>``."""
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def text_ids(self, text: str) -> list[int]:
        """Encode a text by itself, with nothing before or after it."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def encode(
        self,
        conversation: Conversation,
        *,
        thinking: bool | None = None,
        effort: str | None = None,
    ) -> Encoded:
        """Encode a conversation; see `encoding.Processor`. None of these models thinks.

        Raises:
            ConversationError: if there is more than one image.
        """
        published = self.prompt_ids(conversation)
        ids = self.expand(published)
        images = []
        for image in conversation.images:
            start = ids.index(self.boi_token_id)
            stop = start + self.num_visual_tokens
            pixels = partial(self.pixel_values, image.image)
            images.append(EncodedImage(image, start, stop, self.image_size, pixels))
        return Encoded(tuple(ids), tuple(published), tuple(images), length=len(published))

    def prompt_ids(
        self, conversation: Conversation, *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Encode a conversation in the published form, three ids for an image.

        Args:
            conversation: the turns; an incomplete answer at the end is continued.
            add_generation_prompt: whether to end with ``<|assistant|>``.

        Raises:
            ConversationError: if there is more than one image.
        """
        images = len(conversation.images)
        if images > MAX_IMAGES:
            raise ConversationError(
                f"The conversation holds {images} images, but GLM-4V-9B takes {MAX_IMAGES}.",
                "Ask about one image at a time, or put them side by side into one.",
            )
        newline = self.text_ids("\n")
        ids = [self.token_id("[gMASK]"), self.token_id("<sop>")]
        for message in conversation.messages:
            # The published tokenizer leaves out a message of neither text nor image.
            if not (message.text or message.images or message is conversation.partial):
                continue
            ids += [self.token_id(f"<|{message.role}|>"), *newline]
            if message.images:
                ids += [self.boi_token_id, self.pad_token_id, self.eoi_token_id]
            ids += self.text_ids(message.text)
        if add_generation_prompt and conversation.unfinished is None:
            ids.append(self.token_id("<|assistant|>"))
        return ids

    def expand(self, ids: Sequence[int]) -> list[int]:
        """Repeat the middle id of an image once per patch, as the model takes it."""
        expanded: list[int] = []
        for index, token in enumerate(ids):
            in_image = index > 0 and ids[index - 1] == self.boi_token_id
            expanded += [token] * (self.num_visual_tokens - 2 if in_image else 1)
        return expanded

    def pixel_values(self, image: Image.Image) -> Tensor:
        """Resize to a square with PIL's bicubic filter and normalise: (3, S, S) float32."""
        square = to_rgb(image).resize(self.image_size, Image.Resampling.BICUBIC)
        pixels = np.asarray(square, dtype=np.float32) / 255
        pixels = (pixels - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def __call__(self, conversations: Sequence[Conversation]) -> dict[str, Tensor]:
        """Encode conversations to one batch, padded on the left.

        Returns:
            ``input_ids`` and ``attention_mask`` (B, L), and ``pixel_values`` (images, 3, S, S)
            if there is an image.

        Raises:
            ConversationError: if one conversation holds more than one image.
        """
        rows = [self.expand(self.prompt_ids(conversation)) for conversation in conversations]
        length = max(map(len, rows))
        input_ids = torch.full((len(rows), length), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, length - len(row) :] = torch.tensor(row)
            attention_mask[index, length - len(row) :] = 1
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        images = [
            self.pixel_values(source.image)
            for conversation in conversations
            for source in conversation.images
        ]
        if images:
            inputs["pixel_values"] = torch.stack(images)
        return inputs

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
