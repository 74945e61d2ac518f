"""`Inspection`, a look into the model that gave an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glm4v_magic.checkpoints.encoding import Encoded
from glm4v_magic.core.conversation import Answer, Origin
from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.core.tokens import Token
from glm4v_magic.core.wording import brief, printable
from glm4v_magic.engines.decoding import Chosen, are_finite, with_logprobs
from glm4v_magic.engines.local import LocalEngine
from glm4v_magic.engines.token_places import placed, spelled
from glm4v_magic.inspect.attention import latest_weights, mean_weights, watched
from glm4v_magic.inspect.comparison import Comparison
from glm4v_magic.inspect.covering import drops
from glm4v_magic.inspect.gradients import input_x_gradient, require_gradients
from glm4v_magic.inspect.grids import (
    ImageGrid,
    ImageMap,
    PixelBox,
    TokenMap,
    box_of,
    grid_of,
)
from glm4v_magic.inspect.inspected_token import InspectedToken
from glm4v_magic.inspect.labelled import Labelled
from glm4v_magic.inspect.lending import lent
from glm4v_magic.inspect.lens import Lens
from glm4v_magic.inspect.maps import PARTS, Maps, Method
from glm4v_magic.inspect.reading import Reader

__all__ = ["Inspection", "PromptToken", "prompt_tokens"]

_ALTERNATIVES = 5
_KEPT = ("images", "prompt", "tokens")  # of what is computed once
_MOST_PARTS = 64
"""Most rows or columns of parts to cover; each part takes a forward of its own."""


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of a prompt.

    Attributes:
        id: token id.
        text: its text; empty for a visual token.
        image: index of the image whose patch it stands for; ``None`` for other tokens.
        place: row and column of the patch; ``None`` for other tokens.
        box: left, top, right and bottom of the patch in pixels of the original image; likewise.
    """

    id: int
    text: str
    image: int | None = None
    place: tuple[int, int] | None = None
    box: PixelBox | None = None


class Inspection:
    """A look into the model that gave an answer.

    Every method runs the model on the prompt and the answer when it is called, in the answer's
    session, where the model must still be loaded. Tokens of the answer are numbered from 0; of
    an answer that was carried on, they are those of the last part. What is shown for a token is
    what the model knew before it: all methods read the state from which it was predicted.

    Args:
        answer: the answer.
        origin: how it was made.

    Raises of every method:
        EngineError: if the model is no longer loaded, or computes NaN or infinity.
        BusyError: if another call is running in the session.
        OutOfMemoryError: if a GPU ran out; the engine can be used again.
        OptionError: if there is no such token, layer or image.
    """

    def __init__(self, answer: Answer, origin: Origin) -> None:
        self._answer, self._origin = answer, origin
        self._encoded: Encoded | None = None
        self._maps = Maps(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the answer and what is known of its tokens, as copies of an answer: no model."""
        known = {name: vars(self)[name] for name in _KEPT if name in vars(self)}
        return Inspection, (self._answer, self._origin), known

    def __repr__(self) -> str:
        text = brief(self._answer.text)
        return f"Inspection of {text} by {printable(self._answer.model)}"

    @property
    def answer(self) -> Answer:
        """The answer, with its tokens."""
        return replace(
            self._answer, tokens=tuple(e.token for e in self.tokens if not e.is_thinking)
        )

    @property
    def source_images(self) -> tuple[SourcedImage, ...]:
        """Images of the conversation, videos not included; occlusion counts these."""
        return self._origin.request.conversation.images

    @contextmanager
    def lent(self) -> Iterator[LocalEngine]:
        """Lock the session inside the block, and yield its engine.

        Raises:
            EngineError: if the model is no longer loaded.
            BusyError: if another call is running in the session.
        """
        with lent(self._answer, self._origin) as engine:
            yield engine

    @contextmanager
    def _computing(self) -> Iterator[tuple[LocalEngine, Reader]]:
        with self.lent() as engine, engine.computing():
            if self._encoded is None:
                self._encoded = engine.encode(self._origin.request)
            yield engine, Reader(engine, self._encoded, self._origin.ids)

    @cached_property
    def images(self) -> tuple[ImageGrid, ...]:
        """Images of the prompt, in its order, and where their visual tokens are."""
        with self._computing():
            assert self._encoded is not None
            return tuple(map(grid_of, self._encoded.images))

    @cached_property
    def prompt(self) -> tuple[PromptToken, ...]:
        """Tokens of the prompt; visual tokens with their image, patch and box."""
        grids = self.images
        with self._computing() as (engine, _):
            assert self._encoded is not None
            return prompt_tokens(engine, self._encoded, grids)

    @cached_property
    def tokens(self) -> tuple[InspectedToken, ...]:
        """Tokens of the answer, the end of the turn included, each with five alternatives."""
        ids = self._origin.ids
        with self._computing() as (engine, reader):
            chosen: list[Chosen] = []
            entropies: list[float] = []
            for logits in reader.logits(reader.normed_rows(), normed=True):
                _require_finite(engine, are_finite(logits), "for the tokens of this answer")
                own = logits.log_softmax(dim=-1)
                entropies += torch.special.entr(own.exp()).sum(dim=-1).tolist()
                part = ids[len(chosen) : len(chosen) + len(own)]
                chosen += with_logprobs(part, own, [_ALTERNATIVES] * len(own))
            return _placed(engine.vocabulary.tokens(chosen), entropies, self._answer, self._origin)

    def to_dataframe(self) -> Any:
        """Return the tokens as a pandas DataFrame, a row for each."""
        import pandas as pd

        return pd.DataFrame(
            {
                "text": each.text,
                "id": each.token.id,
                "probability": each.probability,
                "logprob": each.token.logprob,
                "entropy": each.entropy,
                "start": each.token.start,
                "end": each.token.end,
                "is_thinking": each.is_thinking,
            }
            for each in self.tokens
        )

    def lens(self, k: int = 5) -> Lens:
        """Return what the head makes of the hidden states after the embeddings and each layer.

        Args:
            k: number of likeliest tokens.

        Raises:
            OptionError: if the model keeps several hidden states for a token.
        """
        with self._computing() as (engine, reader):
            size = engine.model.config.get_text_config().vocab_size
            if not _is_whole(k) or not 1 <= k <= size:
                raise OptionError(f"k is {k}, but must be a whole number from 1 to {size}.")
            said = torch.tensor(self._origin.ids)
            layers: list[list[tuple[Tensor, ...]]] = []
            for number, rows in enumerate(reader.hidden_rows()):
                read = 0
                layers.append([])
                for logits in reader.logits(rows):
                    _require_finite(engine, are_finite(logits), f"after layer {number}")
                    layers[-1].append(_lens(logits, said[read : read + len(logits)], k))
                    read += len(logits)
            return _lens_of(engine, layers)

    def hidden(self, layer: int) -> Labelled:
        """Return the hidden states of all tokens of prompt and answer after a layer.

        They are those before the last norm. Axes: ``position``, ``component``, and ``stream``
        between them for a model that keeps several hidden states for a token.

        Args:
            layer: number of the layer, from 1; 0 for the embeddings.
        """
        with self._computing() as (_, reader):
            count = len(reader.text.layers)
            if not _is_whole(layer) or not 0 <= layer <= count:
                raise OptionError(
                    f"There is no layer {layer}: they are numbered from 1 to {count}, and 0 is "
                    "what the first of them reads."
                )
            states = _array(reader.hidden(layer))
        dims = (
            ("position", "component") if states.ndim == 2 else ("position", "stream", "component")
        )
        return Labelled(states, dims, name="hidden")

    def attention(self, token: int) -> TokenMap:
        """Return the attention of each layer and head when a token was predicted.

        Axes: ``layer``, ``head``, ``position``. Layers with linear attention, which have no such
        weights, are left out.
        """
        at = self._number(token)
        found: dict[int, Tensor] = {}

        def take(layer: int, *parts: Any) -> None:
            found[layer] = latest_weights(*parts)

        with self._computing() as (engine, reader):
            with watched(reader.text, take):
                reader.forward(at)
            whole = torch.stack([found[layer] for layer in sorted(found)])
            _require_finite(engine, whole.isfinite(), "in its attention")
        values = _array(whole)
        every = Labelled(
            values, ("layer", "head", "position"), {"layer": sorted(found)}, "attention"
        )
        return TokenMap(every, self.images)

    def rollout(self, token: int) -> TokenMap:
        """Return attention followed through all layers back to the tokens of the input.

        The mean over heads and the residual connection count half each (Abnar and Zuidema,
        "Quantifying Attention Flow in Transformers", 2020). Axis: ``position``. Needs 4 bytes of
        host memory for each layer and pair of tokens.
        """
        at = self._number(token)
        means: dict[int, Tensor] = {}

        def take(layer: int, *parts: Any) -> None:
            means[layer] = mean_weights(*parts)

        with self._computing() as (engine, reader):
            with watched(reader.text, take):
                reader.forward(at)
            flow = torch.zeros(next(iter(means.values())).shape[0])
            flow[-1] = 1
            for layer in sorted(means, reverse=True):
                flow = 0.5 * flow + 0.5 * (flow @ means[layer])
            _require_finite(engine, flow.isfinite(), "in its attention")
        return TokenMap(Labelled(_array(flow), ("position",), name="rollout"), self.images)

    def occlusion(
        self, token: int, image: int = 0, rows: int = PARTS, columns: int = PARTS
    ) -> ImageMap:
        """Return the drop, in nats, of a token's log-probability as parts of an image are covered.

        Each of ``rows * columns`` equal parts is covered in turn with the image's mean colour.
        Negative where the token becomes more probable.

        Args:
            token: number of the token.
            image: index of the image among those of the conversation, videos not included.
            rows: number of parts from top to bottom.
            columns: number of parts from left to right.

        Raises:
            OptionError: if there is no such token or image, or a number is out of range.
        """
        drops_of = self._grid_drops(self._number(token) + 1, image, rows, columns)
        values = drops_of.values.values[-1]
        return ImageMap(drops_of.image, Labelled(values, ("row", "column"), name="drop"))

    def occlusions(self, image: int = 0, rows: int = PARTS, columns: int = PARTS) -> ImageMap:
        """Return the `occlusion` of all tokens, which takes no longer than that of one.

        Axes: ``token``, ``row``, ``column``.
        """
        return self._grid_drops(len(self._origin.ids), image, rows, columns)

    def _grid_drops(self, count: int, image: int, rows: int, columns: int) -> ImageMap:
        for name, number in (("rows", rows), ("columns", columns)):
            if not _is_whole(number) or not 1 <= number <= _MOST_PARTS:
                raise OptionError(
                    f"{name} is {number}, but must be a whole number from 1 to {_MOST_PARTS}."
                )
        source, cells = self._source(image), (rows, columns)
        boxes = [box_of(source, cells, *divmod(at, columns)) for at in range(rows * columns)]
        values = self._drops(count, image, boxes).T.reshape(count, *cells)
        return ImageMap(source, Labelled(values, ("token", "row", "column"), name="drop"))

    def occlusion_of(
        self, token: int, boxes: Sequence[Sequence[float]], image: int = 0
    ) -> Labelled:
        """Return the same drop for parts of your own choice. Axis: ``box``.

        Args:
            token: number of the token.
            boxes: left, top, right and bottom of each part in pixels of the original image.
            image: as in `occlusion`.
        """
        width, height = self._source(image).original_size
        try:
            found = [tuple(map(float, box)) for box in boxes]
        except (TypeError, ValueError, OverflowError):
            raise OptionError(
                f"boxes is a list with left, top, right and bottom of each, not {brief(boxes)}."
            ) from None
        for box in found:
            if (
                len(box) != 4
                or not all(map(isfinite, box))
                or not (box[0] < box[2] and box[1] < box[3])
            ):
                raise OptionError(f"A box is left, top, right and bottom in pixels, not {box}.")
            if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
                raise OptionError(
                    f"The box {box} is outside of the image, {width}x{height} pixels."
                )
        parts = [(box[0], box[1], box[2], box[3]) for box in found]
        values = self._drops(self._number(token) + 1, image, parts)[:, -1]
        return Labelled(values, ("box",), {"box": found}, "drop")

    def _source(self, image: int) -> SourcedImage:
        images = self.source_images
        if not _is_whole(image) or not 0 <= image < len(images):
            raise OptionError(f"There is no image {image}: the conversation has {len(images)}.")
        return images[image]

    def _drops(
        self, count: int, image: int, boxes: Sequence[PixelBox]
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        with self._computing() as (engine, _):
            return drops(engine, self._origin.request, self._origin.ids[:count], image, boxes)

    def gradient(self, token: int) -> TokenMap:
        """Return input x gradient of a token's log-probability. Axis: ``position``.

        Raises:
            OptionError: if the model is quantised, offloaded or on virtual GPUs.
        """
        at = self._number(token)
        with self._computing() as (engine, reader):
            require_gradients(engine)
            with torch.inference_mode(mode=False):
                values = input_x_gradient(reader, engine.model, at, self._origin.ids[at])
            _require_finite(engine, torch.from_numpy(values).isfinite(), "for the gradient")
        return TokenMap(Labelled(values, ("position",), name="input_x_gradient"), self.images)

    def on_image(
        self,
        token: int,
        image: int = 0,
        method: Method = "occlusion",
        layer: int | None = None,
        head: int | None = None,
        parts: int = PARTS,
    ) -> ImageMap:
        """Return where on an image a token comes from; kept once it is computed.

        Axes: ``row``, ``column``.

        Args:
            token: number of the token.
            image: index of an image of the prompt, as in `images`: frames of videos count.
            method: ``occlusion``, of equal parts; ``attention``, ``rollout`` or ``gradient``, of
                the patches.
            layer: layer whose attention is meant, from 1; the mean of all unless given.
            head: head whose attention is meant, from 0; the mean of all unless given.
            parts: rows, and columns, of parts that are covered.

        Raises:
            OptionError: if there is no such token, image, method, layer or head.
        """
        return self._maps.at(self._number(token), image, method, layer, head, parts)

    def has_on_image(
        self,
        token: int,
        image: int = 0,
        method: Method = "occlusion",
        layer: int | None = None,
        head: int | None = None,
        parts: int = PARTS,
    ) -> bool:
        """Tell whether `on_image` has this map and need not run the model."""
        return self._maps.has(token, image, method, layer, head, parts)

    def layers_and_heads(self, token: int) -> tuple[Sequence[int], int]:
        """Return the numbers of the layers with attention and the number of heads."""
        return self._maps.layers_and_heads(self._number(token))

    def against(self, other: Inspection) -> Comparison:
        """Return this answer beside another one: what differs in tokens and on the images.

        Args:
            other: look into another answer: to the same question about another image, or to
                another question, or of another model that is loaded in another session.
        """
        if not isinstance(other, Inspection):
            raise OptionError(
                f"An answer is compared with the inspection of another one, not {brief(other)}.",
                "Take other.inspect().",
            )
        return Comparison(self, other)

    def _number(self, token: int) -> int:
        count = len(self._origin.ids)
        if not _is_whole(token) or not 0 <= token < count:
            raise OptionError(
                f"There is no token {token}: the answer has {count}, numbered from 0."
            )
        return token


def _require_finite(engine: LocalEngine, finite: Tensor, where: str) -> None:
    """Raise EngineError unless all that was computed is finite."""
    if not finite.all():
        raise engine.not_finite(where)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor of the CPU as an array; numpy has no bfloat16."""
    found: np.ndarray[Any, Any] = tensor.float().numpy()
    return found


def prompt_tokens(
    engine: LocalEngine, encoded: Encoded, grids: Sequence[ImageGrid]
) -> tuple[PromptToken, ...]:
    """Return the tokens of a prompt; `grids` are its images."""
    return tuple(_prompt_token(engine, grids, at, id_) for at, id_ in enumerate(encoded.ids))


def _prompt_token(
    engine: LocalEngine, grids: Sequence[ImageGrid], at: int, id_: int
) -> PromptToken:
    for number, grid in enumerate(grids):
        if grid.start <= at < grid.stop:
            place = grid.place(at)
            return PromptToken(id_, "", number, place, grid.box(*place))
    return PromptToken(id_, engine.vocabulary.text_and_bytes(id_)[0])


def _placed(
    tokens: Sequence[Token], entropies: Sequence[float], answer: Answer, origin: Origin
) -> tuple[InspectedToken, ...]:
    """Return tokens with their places; those of a carried-on part follow the text before it."""
    partial = origin.request.conversation.partial
    begun, thought = ("", "") if partial is None else (partial.text, partial.thinking)
    text = (answer.written or answer.text).removeprefix(begun)
    thinking = answer.thinking.removeprefix(thought)
    raw, spans = spelled(each.utf8 for each in tokens)
    said, before = placed(tokens, spans, raw, text, thinking)
    ordered = [*((each, True) for each in before), *((each, False) for each in said)]
    return tuple(
        InspectedToken(_moved(each, len(thought if is_thinking else begun)), entropy, is_thinking)
        for (each, is_thinking), entropy in zip(ordered, entropies, strict=True)
    )


def _moved(token: Token, by: int) -> Token:
    return replace(token, start=token.start + by, end=token.end + by)


def _lens(logits: Tensor, said: Tensor, k: int) -> tuple[Tensor, ...]:
    """Return likeliest ids, their probabilities, and rank and probability of what was said."""
    own = logits.softmax(dim=-1)
    values, ids = own.topk(k, dim=-1)
    of_said = own.gather(1, said[:, None].to(own.device))
    rank = (own > of_said).sum(dim=-1)
    return ids.cpu(), values.cpu(), rank.cpu(), of_said[:, 0].cpu()


def _lens_of(engine: LocalEngine, layers: Sequence[Sequence[tuple[Tensor, ...]]]) -> Lens:
    ids, values, ranks, said = (
        torch.stack([torch.cat([part[at] for part in layer]) for layer in layers]).numpy()
        for at in range(4)
    )
    texts = {int(each): engine.vocabulary.text_and_bytes(int(each))[0] for each in np.unique(ids)}
    words = np.vectorize(lambda each: texts[int(each)], otypes=[object])(ids)
    every = ("layer", "token", "rank")
    return Lens(
        Labelled(ids, every, name="id"),
        Labelled(values, every, name="probability"),
        Labelled(words, every, name="word"),
        Labelled(ranks, every[:2], name="rank"),
        Labelled(said, every[:2], name="probability"),
    )
