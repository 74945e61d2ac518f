"""Infers from token counts whether a server carried an answer on, and whether it read the images.

Not every server knows ``continue_final_message``, and most ignore fields that they do not know.
Such a server takes the begun answer for a finished turn. Its prompt then ends with the tokens that
end a turn and those that begin the next, so that it is longer than the prompt and the answer
before.

Images that count for nothing have not been read: as many tokens with them as without, or too few
for the text and any image.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from glm4v_magic.core.conversation import Conversation, Generation

__all__ = ["Lengths"]

_MOST = 256  # conversations that are remembered
_SAME = 24
"""Characters at the beginning that two answers must share to count as the same."""

_LEAST_SAME = 12
"""Characters of the shortest begun answer that is recognised by its text."""

_LEAST_IMAGE = 16
"""Tokens of the smallest image: of 112 x 112 pixels for GLM-4.1V and later models. One that sees
images apart from its prompt counts one token; so the notice about it is worded as a question.
"""

_SLACK = 1
"""Tokens that a prompt may be longer by: templates of GLM begin each answer with a newline."""
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # stands for bytes that are not UTF-8

_Key: TypeAlias = tuple[tuple[str, str, int], ...]


class Lengths:
    """Tokens of the latest prompts together with their answers, as the server has counted them."""

    def __init__(self) -> None:
        self._known: OrderedDict[_Key, tuple[str, int]] = OrderedDict()
        self._prompts: OrderedDict[_Key, tuple[int, int]] = OrderedDict()

    def note(self, conversation: Conversation, generation: Generation) -> None:
        """Remember an answer."""
        usage = generation.usage
        # Templates leave thinking out of answers that are sent back.
        if usage.prompt_tokens is None or usage.new_tokens is None or generation.thinking:
            return
        key = _key(conversation)
        self._known[key] = generation.text, usage.prompt_tokens + usage.new_tokens
        self._known.move_to_end(key)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)

    def images_count_for_nothing(self, conversation: Conversation, prompt_tokens: int) -> bool:
        """Tell whether a prompt with images is as long as one without, and remember its length."""
        count = len(conversation.images)
        texts = tuple((each.role, each.text, 0) for each in conversation.messages)
        fewest, tokens = self._prompts.get(texts, (count, prompt_tokens))
        if count <= fewest:
            self._prompts[texts] = count, prompt_tokens
            self._prompts.move_to_end(texts)
            if len(self._prompts) > _MOST:
                self._prompts.popitem(last=False)
        elif prompt_tokens <= tokens:
            return True
        # Tokenizers cut at spaces: each word takes at least one token.
        words = sum(len(each.text.split()) for each in conversation.messages)
        return prompt_tokens < words + _LEAST_IMAGE * count

    def is_anew(self, conversation: Conversation, text: str, prompt_tokens: int | None) -> bool:
        """Tell whether the answer to a conversation that ends with a begun one is a new one.

        Args:
            conversation: conversation with the begun answer.
            text: whole text of the answer.
            prompt_tokens: tokens of the prompt, if the server has counted them.
        """
        begun = conversation.unfinished
        if begun is None or (partial := conversation.partial) is None or partial.thinking:
            return False
        head = begun.strip()[:_SAME]
        if len(head) >= _LEAST_SAME and text.removeprefix(begun).strip().startswith(head):
            return True
        before, tokens = self._known.get(_key(conversation), ("", 0))
        if before != begun or prompt_tokens is None or _UNREADABLE in begun:
            return False
        return prompt_tokens > tokens + _SLACK


def _key(conversation: Conversation) -> _Key:
    """Return what identifies a conversation, without the answer that is begun."""
    messages = conversation.messages
    whole = messages if conversation.partial is None else messages[:-1]
    return tuple((each.role, each.text, len(each.images)) for each in whole)
