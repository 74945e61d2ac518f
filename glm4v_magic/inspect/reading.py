"""The forward over prompt and answer, and what hooks copy to host memory while it runs.

Shapes: L tokens of prompt and answer, T tokens of the answer, H width of the text part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from glm4v_magic.checkpoints.encoding import Encoded
from glm4v_magic.core.errors import OptionError
from glm4v_magic.engines.local import LocalEngine
from glm4v_magic.engines.prefill import Prefill
from glm4v_magic.engines.prefixes import PrefixStore
from glm4v_magic.engines.prompts import Prompt

__all__ = ["Reader"]

_AT_ONCE = 64
"""Rows of logits in memory at once: 37 MiB for 151,552 tokens in float32."""


class Reader:
    """Forwards over the prompt of an answer and the answer.

    Args:
        engine: engine with the model.
        encoded: the prompt.
        ids: the answer's ids, T of them.
    """

    def __init__(self, engine: LocalEngine, encoded: Encoded, ids: Sequence[int]) -> None:
        self._engine, self._encoded, self._ids = engine, encoded, ids

    @property
    def text(self) -> Any:
        """Text part of the model: its layers and the norm after them."""
        return self._engine.model.model.language_model

    def forward(self, count: int, *, gradients: bool = False) -> Tensor:
        """Run the model on the prompt and the first tokens of the answer.

        Args:
            count: number of these tokens.
            gradients: whether the computation is recorded from the decoder on.

        Returns:
            Logits of the next token, (vocabulary), float32.
        """
        prompt = self._engine.prompt(self._encoded).extended(self._ids[:count])
        store = PrefixStore(0, is_recurrent=self._engine.kept.is_recurrent)
        prefill = Prefill(self._engine.model, store, self._engine.vision)
        with torch.no_grad():
            _, ((block, _),) = prefill.begun([(prompt, 0)], is_only=True)
            features = prefill.features(prompt.images)
        if gradients:  # features that are kept were made without what gradients need
            features = {key: each.clone() for key, each in features.items()}
        return prefill.read(block, [prompt], [0], features)[0]

    def normed_rows(self) -> Tensor:
        """Return what the head reads to predict each token of the answer, (T, H), on the CPU."""
        rows: list[Tensor] = []

        def take(module: nn.Module, args: Any, output: Tensor) -> None:
            rows.append(output[0, -len(self._ids) :].to("cpu", copy=True))

        with _hooked(self.text.norm.register_forward_hook(take)):
            self.forward(len(self._ids) - 1)
        return rows[-1]

    def hidden_rows(self) -> list[Tensor]:
        """Return the hidden states from which each token of the answer was predicted.

        Those after the embeddings and after every layer, (T, H) each, on the CPU.

        Raises:
            OptionError: if the model keeps several hidden states for a token.
        """
        rows = self._states(range(len(self.text.layers) + 1), len(self._ids) - 1, len(self._ids))
        if rows[0].ndim > 2:
            raise OptionError(
                f"{self._engine.info.model} keeps several hidden states for every token, which "
                "its head reads together after the last layer alone: it has no logit lens."
            )
        return rows

    def hidden(self, layer: int) -> Tensor:
        """Return the hidden states of all tokens after a layer, (L, H), on the CPU.

        Args:
            layer: number of the layer, from 1; 0 for the embeddings.
        """
        return self._states([layer], len(self._ids), None)[0]

    def _states(self, layers: Sequence[int], count: int, last: int | None) -> list[Tensor]:
        found: dict[int, Tensor] = {}

        def keep(number: int, states: Any) -> None:
            own = states[0] if isinstance(states, tuple) else states
            found[number] = (own[0] if last is None else own[0, -last:]).to("cpu", copy=True)

        with _each_hooked(self.text.layers, set(layers), keep):
            self.forward(count)
        return [found[each] for each in layers]

    def logits(self, rows: Tensor, *, normed: bool = False) -> Iterator[Tensor]:
        """Yield the logits of rows of hidden states, some at a time: (n, vocabulary), float32.

        Args:
            rows: hidden states, (N, H).
            normed: whether they are those after the last norm.
        """
        head = self._engine.model.get_output_embeddings()
        called = [head] if normed else [self.text.norm, head]
        for part in rows.split(_AT_ONCE):
            states = part[None]
            for module in called:
                states = module(_brought(states, module))
            yield states[0].float()

    def prompt(self) -> Prompt:
        """Return the prompt with the whole answer."""
        return self._engine.prompt(self._encoded).extended(self._ids)


def _brought(states: Tensor, module: nn.Module) -> Tensor:
    """Return states on the device of a module that is called by itself.

    Dispatch puts no hook on a module inside of one that is whole on its device, where states come
    from that device. An offloaded one has a hook, which brings states and weights together.
    """
    weights = next(chain(module.parameters(), module.buffers()), None)
    return states if weights is None or weights.is_meta else states.to(weights.device)


@contextmanager
def _hooked(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _each_hooked(
    layers: nn.ModuleList, wanted: set[int], keep: Callable[[int, Any], None]
) -> Iterator[None]:
    """Call `keep` with the states before the first layer (0) and after every other wanted one."""

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        keep(0, args[0] if args else kwargs["hidden_states"])

    def after(number: int) -> Callable[..., None]:
        return lambda module, args, output: keep(number, output)

    handles = [
        layer.register_forward_hook(after(number))
        for number, layer in enumerate(layers, 1)
        if number in wanted
    ]
    if 0 in wanted:
        handles.append(layers[0].register_forward_pre_hook(before, with_kwargs=True))
    with _hooked(*handles):
        yield
