"""`ReplicasEngine`: one engine over several replicas, which share the requests."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from glm4v_magic.core.conversation import (
    Conversation,
    FinishReason,
    Generation,
    Request,
    Usage,
)
from glm4v_magic.core.errors import (
    EngineError,
    GenerationInterrupted,
    Glm4vError,
    reason,
)
from glm4v_magic.core.events import (
    EngineEvent,
    Failed,
    Finished,
    Loading,
    RowEvent,
    Text,
    Thinking,
)
from glm4v_magic.core.image import SeenImage
from glm4v_magic.core.model import EngineInfo, LoadProgress, ModelChoice, Replica
from glm4v_magic.core.wording import counted
from glm4v_magic.engines.replicas import cluster
from glm4v_magic.engines.replicas.layout import Seat
from glm4v_magic.engines.replicas.worker import (
    OWN_VERSION,
    Load,
    LoadState,
    News,
    ReplicaWorker,
    ended,
)
from glm4v_magic.engines.silence import Silence
from glm4v_magic.held_interrupts import interrupt_held_back

__all__ = ["ReplicasEngine", "start"]

MOST_ATTEMPTS = 3
"""Most times that a request is asked, if replicas are lost while they answer it."""

_log = logging.getLogger(__name__)
_THREADS = 8  # of Ray, for the methods of a replica
_AHEAD = 2  # requests that wait at a replica, beyond those that it answers
_SECONDS_TO_START = 90.0
_SECONDS_TO_STOP = 20.0
_NEWS_SECONDS = 0.5
_PAUSE = 0.05
_CHATS = 1000


class _Replica:
    """A replica, as seen from here.

    Attributes:
        facts: number, machine, devices and memory of it, as others see them.
        open: rows that it is asked.
        news: news that was asked for and has not come yet, if any.
    """

    def __init__(self, number: int, seat: Seat, load: Load, choice: ModelChoice) -> None:
        place = NodeAffinitySchedulingStrategy(seat.machine.id, soft=False)
        self.actor = (
            ray.remote(ReplicaWorker)
            .options(
                num_cpus=seat.cores,
                num_gpus=seat.gpus,
                scheduling_strategy=place,
                max_concurrency=_THREADS,
                max_restarts=0,
            )
            .remote(load, choice, seat.cores)
        )
        self.facts = Replica(number, seat.machine.name)
        self.batch_size = 0
        self.cache: Any = None
        self.open: set[int] = set()
        self.news: Any = None

    @property
    def name(self) -> str:
        return f"Replica {self.facts.number} on {self.facts.machine}"

    def state(self, seconds: float) -> LoadState | None:
        """Return how far loading is; ``None`` if it has not begun after that many seconds.

        Raises:
            EngineError: if the replica has ended, or has another version of this package.
            Glm4vError: the error that stopped the load.
        """
        try:
            found: LoadState = ray.get(self.actor.state.remote(), timeout=seconds)
        except GetTimeoutError:
            return None
        except RayError as error:
            raise EngineError(f"{self.name} ended while it was loaded: {reason(error)}.") from None
        if found.version != OWN_VERSION:
            raise EngineError(
                f"{self.facts.machine} has glm4v_magic {found.version}, not {OWN_VERSION}.",
                "Install the same version on all machines.",
            )
        if found.error is not None:
            raise _told(found.error, self.name)
        return found

    def loaded(self, state: LoadState | None) -> EngineInfo:
        """Take over what a replica tells of itself when it has loaded."""
        assert state is not None
        assert state.info is not None
        process = ray.get(self.actor.process.remote())
        self.batch_size = state.batch_size
        self.facts = replace(self.facts, devices=state.info.devices, process=process)
        return state.info


def start(
    places: Sequence[Seat],
    load: Load,
    choice: ModelChoice,
    total_bytes: int,
    released: str = "",
) -> Generator[Loading, None, ReplicasEngine]:
    """Start replicas and load the model into each; all of them end if one fails.

    Args:
        places: place of each.
        load: loads the model; it is sent to them.
        choice: which model.
        total_bytes: bytes of its weights.
        released: name of the model that was released to make room.

    Raises:
        Glm4vError: as loading in this process; names the replica.
    """
    replicas = [_Replica(number, seat, load, choice) for number, seat in enumerate(places)]
    try:
        states = yield from _loaded(replicas, total_bytes, released)
        infos = [replica.loaded(state) for replica, state in zip(replicas, states, strict=True)]
    except BaseException:
        _kill(replicas)
        raise
    return ReplicasEngine(replicas, infos[0])


def _loaded(
    replicas: Sequence[_Replica], total_bytes: int, released: str
) -> Generator[Loading, None, list[LoadState | None]]:
    """Wait until all replicas have loaded; returns their states."""
    states: list[LoadState | None] = [None] * len(replicas)
    began = time.monotonic()
    while not all(state is not None and state.info for state in states):
        for number, replica in enumerate(replicas):
            states[number] = replica.state(_PAUSE) or states[number]
        if None in states and time.monotonic() - began > _SECONDS_TO_START:
            raise _late(replicas[states.index(None)])
        yield Loading(replace(_progress(states, total_bytes), released=released))
        time.sleep(_PAUSE)
    return states


def _late(replica: _Replica) -> EngineError:
    return EngineError(
        f"{replica.name} has not started: other jobs of the cluster use what it needs.",
        "Ask for fewer replicas, or wait for those jobs.",
    )


def _progress(states: Sequence[LoadState | None], total_bytes: int) -> LoadProgress:
    latest = [state.progress for state in states if state is not None and state.progress]
    done = sum(each.done_bytes for each in latest)
    weight = latest[-1].weight if latest else ""
    return LoadProgress(done, total_bytes * len(states), weight)


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
    replica: _Replica | None = None

    def told(self, ending: FinishReason) -> Generation:
        """Return what was told of its answer, where the replica that knows all of it is lost."""
        carries_on = self.request.conversation.unfinished is not None
        text = self.said[Text].rstrip() if carries_on else self.said[Text].strip()
        thinking = self.said[Thinking].strip()
        return Generation(text, Usage(None, None, None), ending, thinking=thinking)


class ReplicasEngine:
    """Replicas of a model as one engine; see `engines.Engine`.

    A request whose replica is lost is asked again by another, with the same seed, so that it gets
    the same answer; what was told of it is not told twice.

    Args:
        replicas: replicas that have loaded the model.
        info: facts about the model of the first.

    Attributes:
        replicas: all of them, lost ones included.
    """

    def __init__(self, replicas: Sequence[_Replica], info: EngineInfo) -> None:
        self.replicas = list(replicas)
        self._info = info
        self._joined = cluster.connection()
        self._calls = 0
        self._turn = 0
        self._chats: OrderedDict[int, int] = OrderedDict()

    @property
    def info(self) -> EngineInfo:
        """Facts about the model and all replicas; the same object until one of them changes."""
        self.notice_end()
        facts = tuple(each.facts for each in self.replicas)
        if facts != self._info.replicas:
            self._info = replace(self._info, replicas=facts)
        return self._info

    @property
    def batch_size(self) -> int:
        """Requests that are best answered at once by all replicas together."""
        return max(sum(each.batch_size for each in self.alive), 1)

    @property
    def is_gone(self) -> bool:
        """Whether a replica was lost: loading the same again brings it back."""
        return len(self.alive) < len(self.replicas)

    @property
    def cache(self) -> Any:
        """Contents of the prefix caches together; ``None`` before the first answer."""
        caches = [each.cache for each in self.alive if each.cache is not None]
        if not caches:
            return None
        return replace(
            caches[0],
            **{
                name: sum(getattr(each, name) for each in caches)
                for name in ("used_bytes", "budget_bytes", "prefixes", "images")
            },
            devices=(),
        )

    @property
    def alive(self) -> list[_Replica]:
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
        _log.warning("Ray was shut down, and all replicas of %s with it.", self._info.model)

    def require_room(self, request: Request) -> int | None:
        """Return the number of tokens that may follow; see `engines.Engine.require_room`."""
        room: int | None = self._ask(lambda actor: actor.require_room.remote(request))
        return room

    def seen(self, request: Request) -> tuple[SeenImage, ...]:
        """Return what the model sees of each image; see `engines.Engine.seen`."""
        seen: tuple[SeenImage, ...] = self._ask(lambda actor: actor.seen.remote(request))
        return seen

    def _ask(self, call: Callable[[Any], Any]) -> Any:
        """Ask one replica after the other in turn."""
        while True:
            alive = self.alive
            if not alive:
                raise self.all_lost()
            self._turn += 1
            replica = alive[self._turn % len(alive)]
            try:
                return ray.get(call(replica.actor))
            except RayActorError:
                self.lose(replica)
            except RayTaskError as error:
                raise _told(_cause(error), replica.name) from None

    def stream(
        self,
        requests: Iterable[Request | None],
        at_once: int | None = None,
        withdrawn: Container[int] = (),
    ) -> Generator[EngineEvent, None, None]:
        """Answer `requests`; see `engines.Engine.stream`."""
        self._calls += 1
        call = _Stream(self, self._calls, iter(requests), at_once or self.batch_size, withdrawn)
        try:
            yield from call.events()
        except KeyboardInterrupt:
            # Before what is open is given up: a replica forgets what such rows had said.
            stopped = GenerationInterrupted(call.partial())
        except EngineError as error:
            error.generations = call.said("failed") | dict(error.generations)
            raise
        else:
            return
        finally:
            call.leave()
        # Raised here, it has no __context__, whose frames would keep the prompts.
        raise stopped

    def lose(self, replica: _Replica) -> None:
        """Ask a replica no more; a running call asks its requests again."""
        if not replica.facts.lost:
            _log.warning("%s is lost%s.", replica.name, self._then(replica))
        replica.facts = replace(replica.facts, lost=True)
        replica.news = None

    def _then(self, lost: _Replica) -> str:
        return "; the others answer" if any(each is not lost for each in self.alive) else ""

    def all_lost(self) -> EngineError:
        """Return the error that no replica is left."""
        count, model = len(self.replicas), self._info.model
        lost = (
            f"All {count} replicas of {model} were" if count > 1 else f"The replica of {model} was"
        )
        return EngineError(f"{lost} lost.", "Load it again.")

    def for_chat(self, conversation: Conversation) -> _Replica | None:
        """Return the replica that has read the beginning of a chat, if it is known and alive."""
        key = _begun(conversation)
        number = None if key is None else self._chats.get(key)
        if number is None or self.replicas[number].facts.lost:
            return None
        return self.replicas[number]

    def remember(self, conversation: Conversation, replica: _Replica) -> None:
        """Remember which replica reads a conversation."""
        self._chats[_key(conversation.messages)] = replica.facts.number
        if len(self._chats) > _CHATS:
            self._chats.popitem(last=False)

    def close(self) -> None:
        """End the replicas, and the cluster if it was started for them."""
        with interrupt_held_back():
            _kill(self.alive)
            self.replicas = []
            cluster.leave(self._joined)


class _Stream:
    """A call of `ReplicasEngine.stream`."""

    def __init__(
        self,
        engine: ReplicasEngine,
        number: int,
        requests: Iterator[Request | None],
        at_once: int,
        withdrawn: Container[int],
    ) -> None:
        self._engine = engine
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
        silence = Silence(counted(len(self._engine.replicas), "replica"))
        while True:
            self._engine.notice_end()
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
        self._engine.notice_end()
        for replica in self._engine.replicas:  # a lost one, too, must not keep rows of this call
            if replica.open and not replica.facts.lost:
                replica.actor.withdraw.remote(self._number, list(replica.open))
            replica.open.clear()
            replica.news = None

    def partial(self) -> dict[int, Generation]:
        """Stop all replicas; returns what open rows had said, by row."""
        waiting = {
            each: each.actor.stop.remote(self._number, _SECONDS_TO_STOP)
            for each in self._engine.alive
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
        alive = self._engine.alive
        if not alive:
            raise self._engine.all_lost()
        share = -(-self._at_once // len(alive))
        ahead = _AHEAD if self._at_once > 1 else 0
        room = {each: share + ahead - len(each.open) for each in alive}
        handed: dict[_Replica, list[int]] = {}
        most = self._at_once + ahead * len(alive)
        # Those of lost replicas wait to be asked again: counted, they could keep themselves out.
        while sum(room.values()) > 0 and sum(len(each.open) for each in alive) < most:
            row = self._next()
            if row is None:
                break
            asked = self._rows[row]
            replica = self._engine.for_chat(asked.request.conversation)
            if replica is None or room[replica] < 1:
                replica = max(alive, key=room.__getitem__)
            room[replica] -= 1
            asked.replica, asked.attempts = replica, asked.attempts + 1
            replica.open.add(row)
            handed.setdefault(replica, []).append(row)
            self._engine.remember(asked.request.conversation, replica)
        for replica, rows in handed.items():
            self._put(replica, share, rows)
        if self._is_over and not self._again:
            self._level(alive, share)

    def _level(self, alive: Sequence[_Replica], share: int) -> None:
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

    def _put(self, replica: _Replica, share: int, rows: Sequence[int]) -> None:
        asked = [(row, self._rows[row].request) for row in rows]
        replica.actor.put.remote(self._number, share, asked)
        if replica.news is None:
            self._listen(replica)

    def _listen(self, replica: _Replica) -> None:
        replica.news = replica.actor.take.remote(self._number, _NEWS_SECONDS)

    def _arrived(self) -> Iterator[tuple[_Replica, News | None]]:
        """Yield the news of replicas, ``None`` of one that is lost."""
        by_ref = {each.news: each for each in self._engine.alive if each.news is not None}
        ready, _ = ray.wait(list(by_ref), num_returns=1, timeout=_PAUSE) if by_ref else ((), ())
        for ref in ready:
            replica = by_ref[ref]
            try:
                news: News | None = ray.get(ref)
            except RayActorError:
                news = None
            except RayTaskError as error:
                raise _told(_cause(error), replica.name) from None
            replica.news = None
            yield replica, news

    def _noticed_losses(self) -> Iterator[RowEvent]:
        """Ask again the requests of replicas whose loss was noticed outside of this call."""
        for replica in self._engine.replicas:
            if replica.facts.lost and replica.open:
                yield from self._lost(replica)

    def _told(self) -> Iterator[RowEvent]:
        """Yield the events that have arrived, and what comes of replicas that are lost."""
        for replica, news in self._arrived():
            if news is None:
                yield from self._lost(replica)
            else:
                yield from self._heard(replica, news)

    def _lost(self, replica: _Replica) -> Iterator[RowEvent]:
        """Ask the requests of a lost replica again, those that were not asked too often."""
        self._engine.lose(replica)
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

    def _heard(self, replica: _Replica, news: News) -> Iterator[RowEvent]:
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
            raise _told(news.error, replica.name)


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


def _kill(replicas: Sequence[_Replica]) -> None:
    for each in replicas:
        if ray.is_initialized():
            with contextlib.suppress(RayError):  # it was one of a cluster that has ended
                ray.kill(each.actor)


def _cause(error: RayTaskError) -> Exception:
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _told(error: Exception, name: str) -> Glm4vError:
    """Return an error of a replica: ours as it is, since all of them are alike, or in one line."""
    if isinstance(error, Glm4vError):
        return error
    return EngineError(f"{name} failed: {reason(error)}.")
