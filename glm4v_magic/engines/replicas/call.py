"""`ReplicasCall`: hands the requests of a call to replicas, and tells what they answer."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import deque
from collections.abc import Container, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from glm4v_magic.core.conversation import FinishReason, Generation, Request, Usage
from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.events import EngineEvent, Failed, Finished, RowEvent, Text, Thinking
from glm4v_magic.core.wording import counted
from glm4v_magic.engines.replicas.group import ReplicaGroup
from glm4v_magic.engines.replicas.replica import RunningReplica, cause_of, error_of
from glm4v_magic.engines.replicas.worker import News, ended
from glm4v_magic.engines.silence import Silence

__all__ = ["ReplicasCall"]

MOST_ATTEMPTS = 3
"""Most times that a request is asked, if replicas are lost while they answer it."""

_AHEAD = 2  # requests that wait at a replica, beyond those that it answers
_SECONDS_TO_STOP = 20.0
_NEWS_SECONDS = 0.5
_PAUSE = 0.05


@dataclass(slots=True)
class _Asked:
    """A request that waits or is answered.

    Attributes:
        request: the request.
        attempts: how often it was asked.
        said: text and thinking that were told already.
        skipped: characters of both that are left to skip, because it is asked again.
        replica: the one that answers it, if any.
    """

    request: Request
    attempts: int = 0
    said: dict[type, str] = field(default_factory=lambda: {Text: "", Thinking: ""})
    skipped: dict[type, int] = field(default_factory=lambda: {Text: 0, Thinking: 0})
    replica: RunningReplica | None = None

    def told(self, ending: FinishReason) -> Generation:
        """Return what was told of its answer, where the replica that knows all of it is lost."""
        carries_on = self.request.conversation.unfinished is not None
        text = self.said[Text].rstrip() if carries_on else self.said[Text].strip()
        thinking = self.said[Thinking].strip()
        return Generation(text, Usage(None, None, None), ending, thinking=thinking)


class ReplicasCall:
    """Requests that replicas answer together; see `engines.Engine.stream`.

    Args:
        group: the replicas.
        number: number of the call, by which they tell it from others.
        requests: the requests; ``None`` where none has come yet.
        at_once: how many are answered at once.
        withdrawn: rows that are answered no further.
    """

    def __init__(
        self,
        group: ReplicaGroup,
        number: int,
        requests: Iterator[Request | None],
        at_once: int,
        withdrawn: Container[int],
    ) -> None:
        self._group = group
        self._number = number
        self._requests = requests
        self._at_once = at_once
        self._withdrawn = withdrawn
        self._rows: dict[int, _Asked] = {}
        self._again: deque[int] = deque()
        self._count = 0
        self._is_over = False

    def events(self) -> Generator[EngineEvent, None, None]:
        """Yield events until all requests have ended."""
        silence = Silence(counted(len(self._group.replicas), "replica"))
        while True:
            self._group.notice_end()
            self._give_up_withdrawn()
            yield from self._noticed_losses()
            self._fill()
            if self._is_over and not self._rows:
                return
            if not self._rows:
                time.sleep(_PAUSE / 10)
                silence.ends()  # nothing is asked
                continue
            for event in self._told():
                yield event
                silence.ends()
            yield from silence.said()

    def leave(self) -> None:
        """Give up what is still open."""
        self._group.notice_end()
        for replica in self._group.replicas:  # a lost one, too, must not keep rows of this call
            if replica.open and not replica.facts.lost:
                replica.actor.withdraw.remote(self._number, list(replica.open))
            replica.open.clear()
            replica.news = None

    def partial(self) -> dict[int, Generation]:
        """Stop all replicas; returns what open rows had said, by row."""
        waiting = {
            each: each.actor.stop.remote(self._number, _SECONDS_TO_STOP)
            for each in self._group.alive
            if each.open
        }
        found: dict[int, Generation] = {}
        for replica, stopped in waiting.items():
            with contextlib.suppress(RayError):  # what it had not told is lost with it
                known = ray.get(stopped, timeout=_SECONDS_TO_STOP)
                if replica.news is not None:  # answers may have ended that it was to tell of
                    known |= ended(ray.get(replica.news, timeout=_SECONDS_TO_STOP).events)
                found |= {row: known[row] for row in replica.open & known.keys()}
        for row, told in self.said("interrupted").items():
            if row not in found or _length(found[row]) < _length(told):  # it was asked again
                found[row] = told
        if not found and self._rows:
            found[min(self._rows)] = Generation("", Usage(None, None, 0), "interrupted")
        return found

    def said(self, ending: FinishReason) -> dict[int, Generation]:
        """Return what was told of the rows whose answers have begun."""
        begun = {row: each for row, each in self._rows.items() if any(each.said.values())}
        return {row: each.told(ending) for row, each in begun.items()}

    def _give_up_withdrawn(self) -> None:
        for row in [each for each in self._rows if each in self._withdrawn]:
            replica = self._rows.pop(row).replica
            if replica is not None:
                replica.open.discard(row)
                if not replica.facts.lost:
                    replica.actor.withdraw.remote(self._number, [row])

    def _fill(self) -> None:
        """Hand out requests while there is room for them."""
        alive = self._group.alive
        if not alive:
            raise self._group.all_lost()
        share = -(-self._at_once // len(alive))
        ahead = _AHEAD if self._at_once > 1 else 0
        room = {each: share + ahead - len(each.open) for each in alive}
        handed: dict[RunningReplica, list[int]] = {}
        most = self._at_once + ahead * len(alive)
        # Those of lost replicas wait to be asked again: counted, they could keep themselves out.
        while sum(room.values()) > 0 and sum(len(each.open) for each in alive) < most:
            row = self._next()
            if row is None:
                break
            asked = self._rows[row]
            replica = self._group.for_chat(asked.request.conversation)
            if replica is None or room[replica] < 1:
                replica = max(alive, key=room.__getitem__)
            room[replica] -= 1
            asked.replica, asked.attempts = replica, asked.attempts + 1
            replica.open.add(row)
            handed.setdefault(replica, []).append(row)
            self._group.remember(asked.request.conversation, replica)
        for replica, rows in handed.items():
            self._put(replica, share, rows)
        if self._is_over and not self._again:
            self._level(alive, share)

    def _level(self, alive: Sequence[RunningReplica], share: int) -> None:
        """Hand requests that wait at one replica to those that have room in their batch.

        At the end they would be answered alone where they are, which takes as long as a full batch.
        """
        for replica in alive:
            for row in sorted(replica.open, reverse=True)[: max(len(replica.open) - share, 0)]:
                other, asked = min(alive, key=lambda each: len(each.open)), self._rows[row]
                if len(other.open) >= share or any(asked.said.values()):
                    break
                replica.actor.withdraw.remote(self._number, [row])
                replica.open.discard(row)
                other.open.add(row)
                asked.replica = other
                self._put(other, share, [row])

    def _next(self) -> int | None:
        """Return the next row to hand out; ``None`` if there is none now."""
        while self._again:
            row = self._again.popleft()
            if row in self._rows:
                return row
        if self._is_over:
            return None
        try:
            request = next(self._requests)
        except StopIteration:
            self._is_over = True
            return None
        if request is None:
            return None
        row, self._count = self._count, self._count + 1
        sampling = request.sampling
        if sampling.seed is None:  # one that is asked again is answered as before
            request = replace(request, sampling=replace(sampling, seed=secrets.randbelow(2**31)))
        self._rows[row] = _Asked(request)
        return row

    def _put(self, replica: RunningReplica, share: int, rows: Sequence[int]) -> None:
        asked = [(row, self._rows[row].request) for row in rows]
        replica.actor.put.remote(self._number, share, asked)
        if replica.news is None:
            self._listen(replica)

    def _listen(self, replica: RunningReplica) -> None:
        replica.news = replica.actor.take.remote(self._number, _NEWS_SECONDS)

    def _arrived(self) -> Iterator[tuple[RunningReplica, News | None]]:
        """Yield the news of replicas, ``None`` of one that is lost."""
        by_ref = {each.news: each for each in self._group.alive if each.news is not None}
        ready, _ = ray.wait(list(by_ref), num_returns=1, timeout=_PAUSE) if by_ref else ((), ())
        for ref in ready:
            replica = by_ref[ref]
            try:
                news: News | None = ray.get(ref)
            except RayActorError:
                news = None
            except RayTaskError as error:
                raise error_of(cause_of(error), replica.name) from None
            replica.news = None
            yield replica, news

    def _noticed_losses(self) -> Iterator[RowEvent]:
        """Ask again the requests of replicas whose loss was noticed outside of this call."""
        for replica in self._group.replicas:
            if replica.facts.lost and replica.open:
                yield from self._lost(replica)

    def _told(self) -> Iterator[RowEvent]:
        """Yield the events that have arrived, and what comes of replicas that are lost."""
        for replica, news in self._arrived():
            if news is None:
                yield from self._lost(replica)
            else:
                yield from self._heard(replica, news)

    def _lost(self, replica: RunningReplica) -> Iterator[RowEvent]:
        """Ask the requests of a lost replica again, those that were not asked too often."""
        self._group.lose(replica)
        for row in sorted(replica.open):
            asked = self._rows[row]
            asked.replica = None
            if asked.attempts >= MOST_ATTEMPTS:
                error = EngineError(
                    f"{replica.name} was lost while it answered this, as were those before it.",
                    "Is there something wrong with this request, or too little memory?",
                )
                error.generations = self.said("failed")
                del self._rows[row]
                yield Failed(error, row)
            else:
                asked.skipped = {kind: len(text) for kind, text in asked.said.items()}
                self._again.append(row)
        replica.open.clear()

    def _heard(self, replica: RunningReplica, news: News) -> Iterator[RowEvent]:
        replica.facts = replace(replica.facts, used_bytes=news.used_bytes)
        replica.cache = news.cache or replica.cache
        if replica.open and news.error is None:
            self._listen(replica)
        for event in news.events:
            asked = self._rows.get(event.row)
            if asked is None or asked.replica is not replica:
                continue
            if isinstance(event, Finished | Failed):
                del self._rows[event.row]
                replica.open.discard(event.row)
                yield event
            elif isinstance(event, Text | Thinking):
                rest = _unsaid(event, asked)
                if rest is not None:
                    yield rest
            else:
                yield event
        if news.error is not None:
            raise error_of(news.error, replica.name)


def _unsaid(event: Text | Thinking, asked: _Asked) -> Text | Thinking | None:
    """Return the part of a piece that was not told before its request was asked again."""
    kind = type(event)
    known = min(asked.skipped[kind], len(event.text))
    asked.skipped[kind] -= known
    asked.said[kind] += event.text[known:]
    if not known:
        return event
    return replace(event, text=event.text[known:]) if len(event.text) > known else None


def _length(generation: Generation) -> int:
    return len(generation.text) + len(generation.thinking)
