"""`Trace`, an answer whose states can be read and changed while it is computed, with nnsight.

nnsight reads the source of a ``with`` block and runs it beside the model: where the block names the
output of a module, it waits until the model has come there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType
from typing import Any

from nnsight import NNsight
from nnsight.intervention.tracer import InterleavingTracer
from torch import nn

from glm4v_magic.checkpoints.encoding import Encoded
from glm4v_magic.core.conversation import Answer, Lend
from glm4v_magic.core.errors import ConversationError, Glm4vError
from glm4v_magic.engines.local import LocalEngine
from glm4v_magic.inspect.grids import ImageGrid, grid_of
from glm4v_magic.inspect.inspection import PromptToken, prompt_tokens
from glm4v_magic.inspect.lending import local_engine

__all__ = ["Trace"]


class Trace(InterleavingTracer):
    """An answer whose states the ``with`` block reads and changes; from `Session.trace`.

    It is nnsight's tracer, with the prompt, its images and their positions filled in. What is read
    in the block is kept past it with ``.save()``. The states of the prompt come first, then those
    of each further token, which ``trace.iter`` counts.

    Args:
        engine: engine with the model.
        encoded: the prompt.
        lend: gives the engine when the block is run.
        answered: asks an engine and returns the answer.

    Attributes:
        images: images of the prompt, and where their visual tokens are.
        prompt: tokens of the prompt; visual tokens with their image, patch and box.
    """

    def __init__(
        self,
        engine: LocalEngine,
        encoded: Encoded,
        lend: Lend,
        answered: Callable[[LocalEngine], Answer],
    ) -> None:
        super().__init__(None, answered)  # the model is known when the block is run
        self.images: tuple[ImageGrid, ...] = tuple(map(grid_of, encoded.images))
        self.prompt: tuple[PromptToken, ...] = prompt_tokens(engine, encoded, self.images)
        self._name, self._lend, self._answered = engine.info.model, lend, answered
        self._answer: Answer | None = None
        self._refusal: Glm4vError | None = None

    @property
    def model(self) -> Any:
        """The model, within the block: each module by its name, with ``input`` and ``output``.

        Raises:
            ConversationError: outside of the block.
        """
        if self.envoy is None:
            raise ConversationError(
                "The model can be read within the `with` block of a trace alone.",
                "Keep what you read there with .save().",
            )
        return self.envoy

    @property
    def layers(self) -> Any:
        """Layers of the text part, within the block; the first is number 0.

        Raises:
            ConversationError: outside of the block.
        """
        return self.model.model.language_model.layers

    @property
    def answer(self) -> Answer:
        """The answer, after the block.

        Raises:
            ConversationError: if there is none: the block is not over, or has stopped the model.
        """
        if self._answer is None:
            raise ConversationError(
                "There is no answer: the `with` block is not over, was left by an error, or has "
                "stopped the model.",
                "Read the answer after a block that lets the model end.",
            )
        return self._answer

    def __exit__(self, *error: Any) -> bool:
        """Run the block, unless an error came before it."""
        try:
            return super().__exit__(*error)
        except Glm4vError as refusal:
            if refusal is not self._refusal:
                raise
            # It is of no line of the block: nnsight's frames would say nothing.
            raise refusal.with_traceback(None) from None
        finally:
            self.info = self.node = self._refusal = None  # another block may follow

    def execute(self, code: CodeType) -> None:
        """Run the block beside the model, which is as before afterwards."""

        def answer(engine: LocalEngine) -> Answer:
            self._answer = self._answered(engine)
            return self._answer

        with self._lent() as local, _left_as_it_was(local.model):
            self._answer = None
            self.envoy, self.fn = NNsight(local.model), answer
            self.args = (local.bare(),)
            try:
                super().execute(code)
            except Exception as error:  # without the model's frames, if it is the block's own
                raise error.with_traceback(self.traceback(error)) from error.__cause__

    @contextmanager
    def _lent(self) -> Iterator[LocalEngine]:
        with ExitStack() as stack:
            try:
                engine = stack.enter_context(self._lend())
                local = local_engine(engine, self._name, "Call session.trace again.")
            except Glm4vError as error:
                self._refusal = error
                raise
            yield local


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Take from the modules what they were given inside the block.

    nnsight puts itself in the place of every module's ``forward`` and stays there; a block may add
    modules, too.
    """
    before = [
        (module, set(vars(module)), vars(module).get("forward"), dict(module._modules))
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, names, forward, children in before:
            for name in vars(module).keys() - names:
                del vars(module)[name]
            if forward is not None:
                vars(module)["forward"] = forward
            if module._modules != children:
                module._modules.clear()
                module._modules.update(children)
