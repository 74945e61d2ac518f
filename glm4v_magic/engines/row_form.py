"""The form of a row's answer: how its constraint is followed, and what that leaves for thinking.

A model that thinks does so freely, and the form counts from the end of its thinking. That end comes
in time: before an answer of a form, thinking takes at most half of the tokens, or as many as the
request allows, and never those that the form needs. A turn that would end within the thinking goes
on with the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from glm4v_magic.checkpoints.encoding import Encoded, Processor
from glm4v_magic.core.conversation import Request
from glm4v_magic.core.errors import ConversationError, OptionError
from glm4v_magic.core.wording import brief
from glm4v_magic.engines.grammars import Grammars, Guide, Tags
from glm4v_magic.engines.sampling import ThinkingBudget
from glm4v_magic.engines.thinking import CLOSE, OPEN
from glm4v_magic.engines.vocabulary import Vocabulary

__all__ = ["RowForm", "row_form"]


@dataclass(frozen=True, slots=True)
class RowForm:
    """How the tokens of a row are limited.

    Attributes:
        texts: ids of each choice, as they follow the prompt, or its thinking; empty if the answer
            is decoded.
        guide: tells which tokens may come next; ``None`` allows all.
        budget: ends the row's thinking; ``None`` for no limit.
        thinking_ends: ids that end the thinking before one of the choices is scored; empty if they
            are scored at once, or there are none.
    """

    texts: tuple[tuple[int, ...], ...] = ()
    guide: Guide | None = None
    budget: ThinkingBudget | None = None
    thinking_ends: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class _Thinking:
    """Thinking of a row that may think.

    Attributes:
        tags: its tags, and whether the prompt ends within it.
        thought: number of thinking tokens in the prompt.
        is_asked_for: whether the request asks for it, and not only the model's default.
    """

    tags: Tags
    thought: int
    is_asked_for: bool


def row_form(
    request: Request,
    encoded: Encoded,
    processor: Processor,
    grammars: Grammars,
    vocabulary: Vocabulary,
    ends: Collection[int],
    limit: int,
) -> RowForm:
    """Return how the tokens of a row are limited.

    Args:
        request: the request.
        encoded: its prompt.
        processor: processor of the model.
        grammars: grammars of constraints, compiled for the tokenizer.
        vocabulary: tokens of the model one by one.
        ends: ids that end a turn.
        limit: maximum number of generated tokens.

    Raises:
        OptionError: if its constraint cannot be followed.
        ConversationError: if the answer to carry on violates the constraint already.
    """
    constraint, thinking = request.constraint, _thinking(request, encoded, processor)
    budget_of = _Budgets(request, thinking, vocabulary, limit)
    if constraint is None:
        return RowForm(budget=budget_of.free())
    if constraint.choices:
        return _choices(request, constraint.choices, processor, thinking, budget_of, ends, limit)
    begun = request.conversation.unfinished
    if thinking is not None:
        guide = grammars.guide(constraint, thinking=thinking.tags, limit=limit)
        if guide is None:
            return RowForm(budget=budget_of.free())
        return RowForm(guide=guide, budget=budget_of.before_a_form(guide.least, ends))
    opening = processor.opening_ids if begun is None else ()
    return RowForm(guide=grammars.guide(constraint, begun or "", opening, limit=limit))


def _thinking(request: Request, encoded: Encoded, processor: Processor) -> _Thinking | None:
    """Return the thinking of a row; ``None`` if it does not think, or has done so."""
    sampling, begun = request.sampling, request.conversation.partial
    if not processor.thinks or sampling.thinking is False or (begun and begun.text):
        return None
    opening, closing = processor.tokenizer.convert_tokens_to_ids([OPEN, CLOSE])
    has_begun = begun is not None and bool(begun.thinking)
    thought = len(processor.text_ids(begun.thinking)) if begun and has_begun else 0
    is_wanted = bool(sampling.thinking or sampling.max_thinking or sampling.effort)
    is_open = encoded.inside_thinking or has_begun
    tags = Tags(opening, closing, is_open, processor.opening_ids)
    return _Thinking(tags, thought, is_wanted or has_begun)


@dataclass(frozen=True, slots=True)
class _Budgets:
    """Makes the budget of a row's thinking."""

    request: Request
    thinking: _Thinking | None
    vocabulary: Vocabulary
    limit: int

    def free(self) -> ThinkingBudget | None:
        """Return the budget of a row without a form; ``None`` without a limit or thinking."""
        most = self.request.sampling.max_thinking
        return None if most is None or self.thinking is None else self._of(self.thinking, most)

    def before_a_form(
        self, needed: int, ends: Collection[int], *, opens: bool = False
    ) -> ThinkingBudget | None:
        """Return the budget of a row with a form.

        Args:
            needed: fewest tokens of the answer, its end included.
            ends: ids that end a turn.
            opens: whether the row has to begin to think.
        """
        if self.thinking is None:
            return None
        tags = len(self.thinking.tags.unwritten)
        most = self.request.sampling.max_thinking
        if most is None:
            most = self.thinking.thought + max(self.limit // 2 - tags, 0)
        most = min(most, self.thinking.thought + max(self.limit - needed - tags, 0))
        return self._of(self.thinking, most, ends, opens=opens)

    def _of(
        self, thinking: _Thinking, most: int, ends: Collection[int] = (), *, opens: bool = False
    ) -> ThinkingBudget:
        tags = thinking.tags
        thought = thinking.thought if tags.is_open else None
        is_blank = self.vocabulary.is_blank
        return ThinkingBudget(
            most, tags.opening, tags.closing, is_blank, thought, ends, opens=opens
        )


def _choices(
    request: Request,
    choices: Sequence[str],
    processor: Processor,
    thinking: _Thinking | None,
    budget_of: _Budgets,
    ends: Collection[int],
    limit: int,
) -> RowForm:
    """Return the form of an answer that is one of some texts.

    A model that thinks does so first if the request asks for it, and otherwise writes the text
    without thinking.
    """
    first = thinking if thinking is not None and thinking.is_asked_for else None
    if request.conversation.unfinished is not None and not (first and first.thought):
        raise ConversationError(
            "An answer that was begun cannot be carried on as one of the choices.",
            "Ask again instead.",
        )
    tags = () if thinking is None else thinking.tags.unwritten
    before = processor.opening_ids if thinking is None else tags
    texts = [tuple(processor.text_ids(each)) for each in choices]
    longest = max(range(len(texts)), key=lambda number: len(texts[number]))
    needed = len(texts[longest]) + 1
    if len(before) + needed > limit:
        raise OptionError(
            f"The choice {brief(choices[longest])} takes {len(before) + needed} tokens with its "
            f"end, but the answer may have {limit}."
        )
    if first is None:
        return RowForm(tuple((*before, *each) for each in texts))
    budget = budget_of.before_a_form(needed, ends, opens=True)
    return RowForm(tuple(texts), budget=budget, thinking_ends=(first.tags.closing,))
