"""`ReplicaGroup`: the replicas of a model, which of them are alive, and which knows which chat."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from glm4v_magic.core.conversation import Conversation
from glm4v_magic.core.errors import EngineError
from glm4v_magic.engines.replicas import cluster
from glm4v_magic.engines.replicas.replica import RunningReplica, kill
from glm4v_magic.held_interrupts import interrupt_held_back

__all__ = ["ReplicaGroup"]

_log = logging.getLogger(__name__)
_CHATS = 1000


class ReplicaGroup:
    """Replicas of a model.

    Args:
        replicas: replicas that have loaded it.
        model: its name.

    Attributes:
        replicas: all of them, lost ones included.
    """

    def __init__(self, replicas: Sequence[RunningReplica], model: str) -> None:
        self.replicas = list(replicas)
        self._model = model
        self._joined = cluster.connection()
        self._chats: OrderedDict[int, int] = OrderedDict()

    @property
    def alive(self) -> list[RunningReplica]:
        """Replicas that were not lost."""
        self.notice_end()
        return [each for each in self.replicas if not each.facts.lost]

    def notice_end(self) -> None:
        """Lose all replicas if their Ray was shut down, as the user's own code may have done.

        Whoever calls one of them then makes Ray start another cluster of its own accord.
        """
        there = [each for each in self.replicas if not each.facts.lost]
        if not there or cluster.connection() == self._joined:
            return
        for replica in there:
            replica.facts, replica.news = replace(replica.facts, lost=True), None
        _log.warning("Ray was shut down, and all replicas of %s with it.", self._model)

    def lose(self, replica: RunningReplica) -> None:
        """Ask a replica no more; a running call asks its requests again."""
        if not replica.facts.lost:
            _log.warning("%s is lost%s.", replica.name, self._then(replica))
        replica.facts = replace(replica.facts, lost=True)
        replica.news = None

    def _then(self, lost: RunningReplica) -> str:
        return "; the others answer" if any(each is not lost for each in self.alive) else ""

    def all_lost(self) -> EngineError:
        """Return the error that no replica is left."""
        count, model = len(self.replicas), self._model
        lost = (
            f"All {count} replicas of {model} were" if count > 1 else f"The replica of {model} was"
        )
        return EngineError(f"{lost} lost.", "Load it again.")

    def for_chat(self, conversation: Conversation) -> RunningReplica | None:
        """Return the replica that has read the beginning of a chat, if it is known and alive."""
        key = _begun(conversation)
        number = None if key is None else self._chats.get(key)
        if number is None or self.replicas[number].facts.lost:
            return None
        return self.replicas[number]

    def remember(self, conversation: Conversation, replica: RunningReplica) -> None:
        """Remember which replica reads a conversation."""
        self._chats[_key(conversation.messages)] = replica.facts.number
        if len(self._chats) > _CHATS:
            self._chats.popitem(last=False)

    def end(self) -> None:
        """End the replicas, and the cluster if it was started for them."""
        with interrupt_held_back():
            kill(self.alive)
            self.replicas = []
            cluster.leave(self._joined)


def _begun(conversation: Conversation) -> int | None:
    """Return the key of the conversation up to its latest answer; ``None`` if it has none."""
    messages = conversation.messages
    answered = [n for n, message in enumerate(messages) if message.role == "assistant"]
    return _key(messages[: answered[-1]]) if answered else None


def _key(messages: Sequence[Any]) -> int:
    return hash(
        tuple(
            (each.role, each.text, tuple((it.source, it.original_size) for it in each.images))
            for each in messages
        )
    )
