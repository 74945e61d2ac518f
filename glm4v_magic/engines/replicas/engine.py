"""`ReplicasEngine`: one engine over several replicas, which share the requests."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from glm4v_magic.core.conversation import Request
from glm4v_magic.core.errors import EngineError, GenerationInterrupted
from glm4v_magic.core.events import EngineEvent, Loading
from glm4v_magic.core.image import SeenImage
from glm4v_magic.core.model import EngineInfo, ModelChoice
from glm4v_magic.engines.replicas.call import ReplicasCall
from glm4v_magic.engines.replicas.group import ReplicaGroup
from glm4v_magic.engines.replicas.layout import Seat
from glm4v_magic.engines.replicas.replica import RunningReplica, cause_of, error_of
from glm4v_magic.engines.replicas.starting import started
from glm4v_magic.engines.replicas.worker import Load

__all__ = ["ReplicasEngine", "start"]


def start(
    places: Sequence[Seat],
    load: Load,
    choice: ModelChoice,
    total_bytes: int,
    released: str = "",
) -> Generator[Loading, None, ReplicasEngine]:
    """Start replicas, and return them as one engine; see `starting.started`."""
    return ReplicasEngine(*(yield from started(places, load, choice, total_bytes, released)))


class ReplicasEngine:
    """Replicas of a model as one engine; see `engines.Engine`.

    A request whose replica is lost is asked again by another, with the same seed, so that it gets
    the same answer; what was told of it is not told twice.

    Args:
        replicas: replicas that have loaded the model.
        info: facts about the model of the first.

    Attributes:
        group: all of them, lost ones included.
    """

    def __init__(self, replicas: Sequence[RunningReplica], info: EngineInfo) -> None:
        self.group = ReplicaGroup(replicas, info.model)
        self._info = info
        self._calls = 0
        self._turn = 0

    @property
    def info(self) -> EngineInfo:
        """Facts about the model and all replicas; the same object until one of them changes."""
        self.group.notice_end()
        facts = tuple(each.facts for each in self.group.replicas)
        if facts != self._info.replicas:
            self._info = replace(self._info, replicas=facts)
        return self._info

    @property
    def batch_size(self) -> int:
        """Requests that are best answered at once by all replicas together."""
        return max(sum(each.batch_size for each in self.group.alive), 1)

    @property
    def is_gone(self) -> bool:
        """Whether a replica was lost: loading the same again brings it back."""
        return len(self.group.alive) < len(self.group.replicas)

    @property
    def cache(self) -> Any:
        """Contents of the prefix caches together; ``None`` before the first answer."""
        caches = [each.cache for each in self.group.alive if each.cache is not None]
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
            alive = self.group.alive
            if not alive:
                raise self.group.all_lost()
            self._turn += 1
            replica = alive[self._turn % len(alive)]
            try:
                return ray.get(call(replica.actor))
            except RayActorError:
                self.group.lose(replica)
            except RayTaskError as error:
                raise error_of(cause_of(error), replica.name) from None

    def stream(
        self,
        requests: Iterable[Request | None],
        at_once: int | None = None,
        withdrawn: Container[int] = (),
    ) -> Generator[EngineEvent, None, None]:
        """Answer `requests`; see `engines.Engine.stream`."""
        self._calls += 1
        call = ReplicasCall(
            self.group, self._calls, iter(requests), at_once or self.batch_size, withdrawn
        )
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

    def close(self) -> None:
        """End the replicas, and the cluster if it was started for them."""
        self.group.end()
