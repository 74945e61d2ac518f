"""Chats: named conversations that span several cells."""

from __future__ import annotations

from glm4v_magic.core.conversation import Answer, Conversation
from glm4v_magic.core.errors import ConversationError, did_you_mean
from glm4v_magic.core.options import check

__all__ = ["UNNAMED", "Chats"]

UNNAMED = ""
"""Name of the chat of cells without ``chat``; every fresh question restarts it."""


class Chats:
    """Conversations by name, and the current one: that of the latest answer."""

    def __init__(self) -> None:
        self._chats: dict[str, Conversation] = {}
        self._answers: dict[str, Answer] = {}
        self.current = UNNAMED

    def all(self) -> dict[str, Conversation]:
        """All chats by name, oldest first."""
        return dict(self._chats)

    def get(self, name: str | None = None) -> Conversation | None:
        """Return a chat, or the current one; ``None`` if it has not begun."""
        return self._chats.get(self._named(name))

    def require(self, name: str | None = None) -> Conversation:
        """Return a chat, or the current one.

        Raises:
            ConversationError: if there is no such chat.
        """
        chat = self.get(name)
        if chat is None:
            raise self._missing(name)
        return chat

    def keep(self, name: str, conversation: Conversation, answer: Answer | None = None) -> None:
        """Keep a conversation under a name, which becomes the current one.

        Args:
            name: its name.
            conversation: the turns.
            answer: its latest answer; ``None`` if it comes from elsewhere.
        """
        self._chats[name] = conversation
        self._answers.pop(name, None)
        if answer is not None:
            self._answers[name] = answer
        self.current = name

    def answer(self, name: str | None = None) -> Answer:
        """Return the latest answer of a chat, or of the current one.

        Raises:
            ConversationError: if there is no such chat, or its answer was not given here.
        """
        self.require(name)
        answer = self._answers.get(self._named(name))
        if answer is None:
            raise ConversationError(
                "How the latest answer of this chat was made is not known: it was imported.",
                "Ask the question again.",
            )
        return answer

    def add(self, name: str, conversation: Conversation) -> None:
        """Keep a conversation from elsewhere, such as a file; it becomes the current one.

        Raises:
            ConversationError: if another one has this name.
        """
        if (self.get(name) or conversation) != conversation:
            which = f"a chat {name!r}" if name else "an unnamed conversation"
            raise ConversationError(
                f"There is {which} already, and it is another one.",
                "Give a name to the one that comes, or forget the one that is there.",
            )
        self.keep(name, conversation)

    def reset(self, name: str | None = None) -> tuple[str, ...]:
        """Forget a chat, or the current one, and return the names that are gone."""
        name = self._named(name)
        return (name,) if self._forget(name) else ()

    def clear(self) -> tuple[str, ...]:
        """Forget all chats and return their names."""
        return tuple(name for name in self.all() if self._forget(name))

    def _named(self, name: str | None) -> str:
        """Return the name of a chat, or of the current one; raises OptionError if it is none."""
        if name is None or name == UNNAMED:
            return self.current if name is None else name
        check("chat", name)
        return name

    def _forget(self, name: str) -> bool:
        if name == self.current:
            self.current = UNNAMED
        self._answers.pop(name, None)
        return self._chats.pop(name, None) is not None

    def _missing(self, name: str | None) -> ConversationError:
        named = [known for known in self._chats if known]
        others = f"There {'is' if len(named) == 1 else 'are'} {', '.join(named)}." if named else ""
        if not name:
            what = "There is no conversation to go on with."
            if others:
                return ConversationError(what, others)
            return ConversationError(what, "Ask a question first.")
        what = f"There is no chat {name!r}."
        hint = did_you_mean(name, named) or others
        if hint:
            return ConversationError(what, hint)
        return ConversationError(what, code="chat_not_begun", name=name)
