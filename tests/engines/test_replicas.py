"""Replicas on Ray: one cluster on this machine, the demo model twice, and what can go wrong."""

from __future__ import annotations

import io
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from scripted_engine import ScriptedEngine
from scripted_server import scripted_server

from glm4v_magic.core.conversation import (
    Conversation,
    Generation,
    Message,
    Request,
    Sampling,
    Usage,
)
from glm4v_magic.core.errors import (
    DoesNotFitError,
    EngineError,
    GenerationInterrupted,
    MapInterrupted,
    OptionError,
    PlacementError,
)
from glm4v_magic.core.events import Finished, RowDone, Text, Waiting
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model import EngineInfo, Replica
from glm4v_magic.engines.replicas import cluster
from glm4v_magic.engines.replicas.layout import Machine, seats
from glm4v_magic.engines.replicas.worker import News, ReplicaWorker
from glm4v_magic.notebook.render.memory import MemoryView, memory_bundle
from glm4v_magic.notebook.render.status import status_rows
from glm4v_magic.session.session import Session

SECONDS = 300
"""How long anything is waited for that should come at once; Ray is slow on a busy machine."""

GREEDY = {"temperature": 0, "max_tokens": 8}
SHAPES = str(Path(__file__).parents[2] / "notebooks" / "shapes.png")
QUESTION = "What colour is the circle?"


class TestLayout:
    """Where replicas go."""

    @staticmethod
    def holds(gib):
        return lambda gpus: sum(gpu.total_bytes for gpu in gpus) >= gib * 2**30

    @staticmethod
    def machines(*specs):
        return [
            Machine(f"id{n}", f"10.0.0.{n}", 8, parse_gpus(spec) if spec else ())
            for n, spec in enumerate(specs)
        ]

    def test_each_takes_as_few_gpus_as_hold_it(self):
        there = self.machines("4x16GiB", "2x24GiB", "")
        found = seats("GLM", "max", there, self.holds(20))
        assert [(each.machine.name, each.gpus) for each in found] == [
            *[("10.0.0.0", 2)] * 2,
            *[("10.0.0.1", 1)] * 2,
        ]

    def test_the_smallest_gpus_must_do(self):
        (seat,) = seats("GLM", 1, self.machines("1x24GiB+2x8GiB"), self.holds(20))
        assert seat.gpus == 3

    def test_replicas_are_spread_over_machines(self):
        found = seats("GLM", 3, self.machines("4x24GiB", "4x24GiB"), self.holds(20))
        assert [each.machine.name for each in found] == ["10.0.0.0", "10.0.0.0", "10.0.0.1"]

    def test_more_replicas_than_gpus(self):
        with pytest.raises(PlacementError, match="3 replicas of GLM do not fit: the cluster has 4"):
            seats("GLM", 3, self.machines("4x16GiB"), self.holds(20))

    def test_a_model_that_no_machine_holds(self):
        with pytest.raises(DoesNotFitError, match="GLM fits on the GPUs of no machine"):
            seats("GLM", 1, self.machines("1x16GiB", "1x16GiB"), self.holds(20))

    def test_without_gpus_the_cores_are_divided(self):
        found = seats("GLM", 3, self.machines("", ""), self.holds(1))
        assert [(each.machine.name, each.cores) for each in found] == [
            ("10.0.0.0", 4),
            ("10.0.0.0", 4),
            ("10.0.0.1", 8),
        ]
        assert [each.cores for each in seats("GLM", "max", self.machines("", ""), None)] == [8, 8]
        with pytest.raises(PlacementError, match="17 replicas are more than the 16 cores"):
            seats("GLM", 17, self.machines("", ""), None)


class TestRefusals:
    """One clear line, within seconds, and nothing is begun."""

    def test_no_cluster_is_there(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(EngineError, match=rf"no Ray cluster at 127.0.0.1:{port}: Conn"):
            cluster.connect(f"127.0.0.1:{port}")
        assert time.monotonic() - began < 60  # Ray by itself tries for minutes

    def test_something_else_is_there(self, capfd):
        with scripted_server() as server:
            address = server.url.removeprefix("http://").removesuffix("/v1")
            with pytest.raises(EngineError, match=f"at {address}: something else answers there"):
                cluster.connect(address)
        assert capfd.readouterr().err == ""  # no log of Ray's

    @pytest.mark.parametrize(
        "address", ["ray://a:1", "10.0.0.5", "a:0", "a:70000", "http://a:1", "a b:1", "local", ":1"]
    )
    def test_no_address(self, address):
        session = Session()
        with pytest.raises(OptionError, match="is not the address of a Ray cluster"):
            session.load("demo", replicas=2, cluster=address)
        assert session.status().info is None

    def test_ray_is_missing(self):
        code = (
            "import importlib.util, sys\n"
            "find = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name, *rest: None if name == 'ray' else find(name)\n"
            "from glm4v_magic.session.session import Session\n"
            "try:\n"
            "    Session().load('demo', replicas=2)\n"
            "except Exception as error:\n"
            "    print(error, 'torch' in sys.modules or 'transformers' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "pip install 'glm4v_magic[ray]' False" in done.stdout  # before what takes seconds

    @pytest.mark.parametrize("replicas", [0, -1, 1.5, "two", "", True])
    def test_no_number(self, replicas):
        with pytest.raises(OptionError, match="must be a whole number of at least 1, or max"):
            Session().load("demo", replicas=replicas)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"device_map": {"": "cpu"}}, "A device map does not go with replicas"),
            ({"gpus": "2x16GiB"}, "gpus does not go with replicas"),
        ],
    )
    def test_what_does_not_go_with_replicas(self, options, said):
        with pytest.raises(OptionError, match=said):
            Session().load("demo", replicas=2, **options)

    def test_a_cluster_without_replicas(self):
        with pytest.raises(OptionError, match="cluster is about replicas, and there are none"):
            Session().load("demo", cluster="auto")

    def test_a_server_has_none(self):
        with pytest.raises(OptionError, match="is a server"):
            Session().load("http://127.0.0.1:1/v1", replicas=2)


def prints_words_of_ray():
    """Whether Ray prints what happens to its processes."""
    from ray._private.worker import print_worker_logs

    with io.StringIO() as file:
        print_worker_logs({"pid": "raylet", "ip": "", "lines": ["A worker died."]}, file)
        return bool(file.getvalue())


class TestCluster:
    """A Ray that ends or does not start, with a stand-in for it."""

    @pytest.fixture
    def nodes(self, monkeypatch):
        """Whether Ray is there, and the nodes that it tells."""
        import ray

        state = {"begun": 0, "ended": 0, "there": False, "nodes": [{"Alive": True}]}

        def init(**options):
            state.update(begun=state["begun"] + 1, there=True, nodes=[{"Alive": True}])

        def shutdown():
            state.update(ended=state["ended"] + 1, there=False)

        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(ray, "shutdown", shutdown)
        monkeypatch.setattr(ray, "nodes", lambda: state["nodes"])
        monkeypatch.setattr(ray, "is_initialized", lambda: state["there"])
        monkeypatch.setattr(
            cluster, "connection", lambda: str(state["begun"]) if state["there"] else ""
        )
        yield state
        state["there"] = False
        cluster.leave("")  # what a test has not left is forgotten

    def test_one_that_has_ended_is_started_again(self, nodes):
        first, second = cluster.connect(None), cluster.connect(None)
        assert (nodes["begun"], nodes["ended"]) == (1, 0)
        nodes["nodes"] = [{"Alive": False}]
        third = cluster.connect(None)
        assert (nodes["begun"], nodes["ended"]) == (2, 1)
        cluster.leave(first)
        cluster.leave(second)
        assert nodes["there"]  # the third engine uses it
        cluster.leave(third)
        assert not nodes["there"]

    def test_one_that_the_user_has_shut_down_is_forgotten(self, nodes):
        ours = cluster.connect(None)
        nodes["there"] = False
        nodes.update(there=True, begun=2)  # and begun another
        assert cluster.connect(None) == "2"
        assert prints_words_of_ray()
        cluster.leave(ours)
        cluster.leave("2")
        assert (nodes["there"], nodes["ended"]) == (True, 0)

    def test_one_of_the_user_is_left_alone(self, nodes):
        nodes.update(there=True, nodes=[{"Alive": False}])
        cluster.connect(None)
        assert (nodes["begun"], nodes["ended"]) == (0, 0)
        assert prints_words_of_ray()

    def test_where_ray_is_not_there_or_not_in_time_it_is_had_in_another_way(
        self, nodes, monkeypatch
    ):
        import ray

        begin, is_busy = ray.init, [True]

        def init(*, address, **options):
            if address == "auto" and not nodes["nodes"]:
                raise ConnectionError
            if is_busy:
                raise RuntimeError("The node is overloaded.")
            begin()

        monkeypatch.setattr(ray, "init", init)
        nodes["nodes"] = []
        joined = "Ray is started and joined with `ray start`; without an address it runs here."
        with pytest.raises(EngineError, match=joined):
            cluster.connect("auto")
        with pytest.raises(EngineError, match="Is this machine very busy, or short of memory"):
            cluster.connect(None)
        is_busy.clear()
        ours = cluster.connect(None)  # without an address
        assert nodes["there"]
        cluster.leave(ours)
        nodes["nodes"] = [{"Alive": True}]  # `ray start`
        cluster.leave(cluster.connect("auto"))

    def test_an_interrupt_comes_when_the_end_is_through(self, nodes, caplog, monkeypatch):
        import ray

        shutdown, ours = ray.shutdown, cluster.connect(None)

        def half_way():
            os.kill(os.getpid(), signal.SIGINT)
            assert "Stopping: Ray is being ended" in caplog.text
            os.kill(os.getpid(), signal.SIGINT)
            shutdown()

        monkeypatch.setattr(ray, "shutdown", half_way)
        with pytest.raises(KeyboardInterrupt):
            cluster.leave(ours)
        assert (nodes["there"], nodes["ended"]) == (False, 1)
        assert caplog.text.count("Stopping") == 1
        assert prints_words_of_ray()

    def test_an_interrupt_is_told_that_the_end_takes_a_while(self, nodes, caplog):
        ours = cluster.connect(None)
        assert not prints_words_of_ray()
        cluster.leave(ours, is_interrupted=True)
        assert "Stopping: Ray is being ended" in caplog.text
        assert prints_words_of_ray()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, Exception("The node is overloaded.")])
    def test_one_that_is_half_started_leaves_no_process(self, nodes, monkeypatch, error):
        import ray

        begun = []

        def init(**options):
            of_ray = [sys.executable, "-c", "input()", ray.__file__]
            begun.append(subprocess.Popen(of_ray, stdin=subprocess.PIPE))
            raise error

        monkeypatch.setattr(ray, "init", init)
        other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            with pytest.raises((KeyboardInterrupt, EngineError)) as caught:
                cluster.connect(None)
            assert str(caught.value) in (
                "",
                "Ray did not start on this machine: The node is overloaded. "
                "Is this machine very busy, or short of memory?",
            )
            assert begun
            assert [each.wait(10) for each in begun] == [-signal.SIGKILL] * len(begun)
            assert other.poll() is None
        finally:
            for each in (*begun, other):
                each.communicate()


class Seated:
    """A replica that answers what it has in batches, as far as its engine is concerned."""

    def __init__(self, number):
        self.facts = Replica(number, "here")
        self.batch_size, self.cache, self.open, self.news = 8, None, set(), None
        self.waiting, self.batches = [], 0
        self.actor, self.name, self.is_killed = self, f"Replica {number}", False

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *given: getattr(self, f"on_{name}")(*given))

    def on_put(self, number, at_once, asked):
        self.waiting += [row for row, _ in asked]

    def on_require_room(self, request):
        if self.is_killed:
            from ray.exceptions import RayActorError

            raise RayActorError
        return lambda: 99

    def on_stop(self, number, seconds):
        return dict  # nothing was said

    def on_withdraw(self, number, rows):
        self.waiting = [row for row in self.waiting if row not in rows]

    def on_take(self, number, seconds):
        def news():
            batch, self.waiting = self.waiting[:8], self.waiting[8:]
            self.batches += bool(batch)
            ended = Generation("", Usage(None, None, 0), "stop")
            return News([Finished(ended, row) for row in batch], None, 0, None)

        news.replica = self
        return news


def next_news(news, **how):
    """The news of the replica that has been busy for the shorter time, as each batch takes one."""
    return [min(news, key=lambda each: each.replica.batches)], ()


@pytest.mark.parametrize("count", [64, 60, 3])
def test_the_last_rows_wait_at_no_replica_while_another_has_room(monkeypatch, count):
    import ray

    from glm4v_magic.engines.replicas.engine import ReplicasEngine

    monkeypatch.setattr(ray, "wait", next_news)
    monkeypatch.setattr(ray, "get", lambda ref, **_: ref())
    info = EngineInfo("demo", "", 1, None, None, None, None)
    both = [Seated(0), Seated(1)]
    engine = ReplicasEngine(both, info)
    requests = [Request(Conversation((Message("user", str(n)),))) for n in range(count)]
    events = list(engine.stream(requests))
    assert sorted(event.row for event in events) == list(range(count))
    assert max(each.batches for each in both) == -(-count // 16)


def test_replicas_that_say_nothing_are_waited_for_and_can_be_stopped(monkeypatch):
    import ray

    from glm4v_magic.engines.replicas.engine import ReplicasEngine

    looks = []

    def nothing_comes(refs, **_):
        looks.append(refs)
        assert len(looks) < 100
        return (), refs

    monkeypatch.setattr(ray, "wait", nothing_comes)
    monkeypatch.setattr(ray, "get", lambda ref, **_: ref())
    monkeypatch.setattr("glm4v_magic.engines.silence.SECONDS", 0)
    engine = ReplicasEngine(
        [Seated(0), Seated(1)], EngineInfo("demo", "", 1, None, None, None, None)
    )
    stream = Session(engine).stream_map("{{item}}?", ["a", "b"])
    waiting = next(event for event in stream if isinstance(event, Waiting))
    assert (waiting.on, waiting.seconds > 0) == ("2 replicas", True)
    stream.close()


def test_a_call_that_ends_as_a_replica_is_lost_leaves_nothing_to_the_next(monkeypatch):
    import ray

    from glm4v_magic.engines.replicas.engine import ReplicasEngine

    monkeypatch.setattr(ray, "wait", next_news)
    monkeypatch.setattr(ray, "get", lambda ref, **_: ref())
    engine = ReplicasEngine(
        [Seated(0), Seated(1)], EngineInfo("demo", "", 1, None, None, None, None)
    )
    requests = [Request(Conversation((Message("user", str(n)),))) for n in range(64)]
    events = engine.stream(requests)
    next(events)
    engine.group.lose(engine.group.replicas[0])
    events.close()
    assert len(list(engine.stream(requests[:8]))) == 8


def test_all_replicas_that_are_lost_in_a_map_are_told_of_at_each_call(monkeypatch):
    import ray

    from glm4v_magic.engines.replicas.engine import ReplicasEngine

    monkeypatch.setattr(ray, "wait", next_news)
    monkeypatch.setattr(ray, "get", lambda ref, **_: ref())
    engine = ReplicasEngine(
        [Seated(0), Seated(1)], EngineInfo("demo", "", 1, None, None, None, None)
    )
    stream = Session(engine).stream_map("{{item}}?", [str(n) for n in range(64)])
    assert next(event for event in stream if isinstance(event, RowDone)).row.error is None
    for replica in engine.group.replicas:
        replica.is_killed = True  # noticed where the map asks whether there is room for a row
    with pytest.raises(EngineError, match=r"^All 2 replicas of demo were lost\. Load it again\.$"):
        list(stream)
    for _ in range(2):
        with pytest.raises(EngineError, match="All 2 replicas of demo were lost"):
            list(engine.stream([Request(Conversation((Message("user", "Red?"),)))]))


class Dying(Seated):
    """A replica that ends with its first batch, as long as `deaths` holds another end."""

    def __init__(self, number, deaths):
        super().__init__(number)
        self.deaths = deaths

    def on_take(self, number, seconds):
        told = super().on_take(number, seconds)

        def news():
            from ray.exceptions import RayActorError

            if self.waiting and self.deaths:
                self.deaths.pop()
                raise RayActorError
            return told()

        news.replica = self
        return news


@pytest.mark.parametrize("losses", [2, 3])
def test_a_request_is_asked_again_twice_and_then_fails_alone(monkeypatch, losses):
    import ray

    from glm4v_magic.engines.replicas.engine import ReplicasEngine

    monkeypatch.setattr(ray, "wait", next_news)
    monkeypatch.setattr(ray, "get", lambda ref, **_: ref())
    deaths = [None] * losses
    engine = ReplicasEngine(
        [Dying(number, deaths) for number in range(4)],
        EngineInfo("demo", "", 1, None, None, None, None),
    )
    requests = [Request(Conversation((Message("user", str(n)),))) for n in range(3)]
    events = {event.row: event for event in engine.stream(requests, 1)}
    assert len(engine.group.alive) == 4 - losses
    assert [type(events[row]) for row in (1, 2)] == [Finished] * 2
    if losses == 2:
        assert isinstance(events[0], Finished)
    else:
        said = str(events[0].error)
        assert re.match(r"Replica \d was lost while it answered this, as were those before", said)


class Telling(Seated):
    """A replica that tells the beginning of each answer, and knows of more when it is stopped.

    Args:
        number: its number.
        known: what a stop returns.
        coming: events of the news that is on its way then; ``None`` for a replica that is lost.
    """

    def __init__(self, number, known, coming=()):
        super().__init__(number)
        self.known, self.coming, self.given_up = known, coming, []

    def on_stop(self, number, seconds):
        # A replica that has given rows up has forgotten what they said.
        known = {row: each for row, each in self.known.items() if row not in self.given_up}
        return lambda: known

    def on_withdraw(self, number, rows):
        self.given_up += rows

    def on_take(self, number, seconds):
        batch, self.waiting = self.waiting, []

        def news():
            if not batch and self.coming is None:
                from ray.exceptions import RayActorError

                raise RayActorError
            events = [Text("Once ", row) for row in batch] if batch else self.coming
            return News(events, None, 0, None)

        news.replica = self
        return news


def whole(text, ending="interrupted"):
    return Generation(text, Usage(7, None, 3), ending)


@pytest.mark.parametrize(
    ("known", "coming", "said"),
    [
        ({0: whole("Once upon")}, (), [("Once upon", "interrupted")]),
        ({0: whole("Once upon.", "stop")}, (), [("Once upon.", "stop")]),  # ended meanwhile
        ({}, [Finished(whole("Once upon.", "stop"))], [("Once upon.", "stop")]),  # on its way
        ({0: whole("O")}, (), [("Once", "interrupted")]),  # asked again, it has not come so far
        ({}, None, [("Once", "interrupted")]),  # lost at that moment
    ],
)
def test_a_stop_keeps_what_was_told_and_what_a_replica_knows(monkeypatch, known, coming, said):
    import ray

    from glm4v_magic.engines.replicas.engine import ReplicasEngine

    monkeypatch.setattr(ray, "wait", lambda news, **_: (news[:1], ()))
    monkeypatch.setattr(ray, "get", lambda ref, **_: ref())
    info = EngineInfo("demo", "", 1, None, None, None, None)
    engine = ReplicasEngine([Telling(0, known, coming)], info)
    stream = engine.stream([Request(Conversation((Message("user", "Red?"),)))])
    assert next(event for event in stream if isinstance(event, Text)).text == "Once "
    with pytest.raises(GenerationInterrupted) as stopped:
        stream.throw(KeyboardInterrupt())
    found = stopped.value.generations
    assert [(each.text, each.finish_reason) for each in found.values()] == said


def test_an_answer_that_breaks_off_as_the_last_replica_is_lost_is_kept(monkeypatch):
    import ray

    from glm4v_magic.engines.replicas.engine import ReplicasEngine

    monkeypatch.setattr(ray, "wait", lambda news, **_: (news[:1], ()))
    monkeypatch.setattr(ray, "get", lambda ref, **_: ref())
    info = EngineInfo("demo", "", 1, None, None, None, None)
    session = Session(ReplicasEngine([Telling(0, {}, None)], info))
    with pytest.raises(EngineError, match=r"^The replica of demo was lost\. What was said until"):
        session.ask("Red?")
    assert (session.status().last.text, session.status().last.finish_reason) == ("Once", "failed")


class Quick(ScriptedEngine):
    """An engine that tells a word and, if it is let, the end."""

    def __init__(self, may_end):
        super().__init__()
        self.may_end, self.has_ended = may_end, threading.Event()

    def stream(self, requests, at_once=None, withdrawn=()):
        for number, _ in enumerate(requests):
            yield Text("Once", number)
            assert self.may_end.wait(SECONDS)
            yield Finished(whole("Once upon.", "stop"), number)
            self.has_ended.set()


def test_a_replica_that_is_stopped_tells_of_answers_that_have_ended():
    engine = Quick(threading.Event())
    worker = ReplicaWorker(lambda *_: engine, None, 0)
    while worker.state().info is None:
        time.sleep(0.01)
    worker.put(1, 1, [(3, Request(Conversation((Message("user", "Red?"),))))])
    while not (news := worker.take(1, 0.1)).events:
        pass
    assert news.events == [Text("Once", 3)]
    engine.may_end.set()
    assert engine.has_ended.wait(SECONDS)
    began = time.monotonic()
    assert worker.stop(1, SECONDS) == {3: whole("Once upon.", "stop")}
    assert worker.stop(2, SECONDS) == {}
    assert [len(worker.take(1, SECONDS).events) for _ in range(2)] == [1, 0]
    assert time.monotonic() - began < SECONDS / 2  # a call that is stopped is not waited for


def test_ray_is_imported_only_if_it_is_asked_for():
    code = (
        "import sys, glm4v_magic.session.session, glm4v_magic.session.replicas\n"
        "import glm4v_magic.engines.replicas.cluster, glm4v_magic.engines.replicas.worker\n"
        "session = glm4v_magic.session.session.Session().load('demo')\n"
        "session.ask('Hello?', max_tokens=1)\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def ray():
    """A cluster that the user has begun: it must be left alone."""
    import ray

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  that is how Ray writes it
    for _ in range(4):  # on a busy machine Ray gives up on its own processes
        try:
            ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20)
        except Exception:
            ray.shutdown()
        else:
            break
    del os.environ["RAY_worker_niceness"]  # noqa: SIM112
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def alone():
    session = Session().load("demo")
    yield session
    session.unload()


@pytest.fixture(scope="module")
def session(ray):
    session = Session()
    yield session
    session.unload()
    assert ray.is_initialized()


@pytest.fixture
def two(session):
    """Two replicas; those that a test has ended are begun again."""
    return session.load("demo", replicas=2)


def end(replica):
    os.kill(replica.process, signal.SIGKILL)


def lost(session):
    return [each.lost for each in session.status().info.replicas]


TWO_PORTS = """
from glm4v_magic.core.errors import EngineError
from glm4v_magic.session.session import Session

session = Session()
for address in ({!r}, {!r}):
    try:
        session.load("demo", replicas=1, cluster=address)
        print("loaded")
    except EngineError as error:
        print(error.hint)
session.unload()
"""


TWO_CLUSTERS = """
import ray
from glm4v_magic.core.errors import OptionError
from glm4v_magic.engines.replicas import cluster

quiet = dict(include_dashboard=False, log_to_driver=False, configure_logging=False)
ray.init(num_cpus=1, object_store_memory=100 * 2**20, **quiet)
began = cluster.connection()
try:
    cluster.connect({address!r})
except OptionError as error:
    print(error.hint)
print("the user's" if cluster.connect(None) == began else "another")
ray.shutdown()
joined = cluster.connect({address!r})
print(ray.get_runtime_context().gcs_address)
cluster.leave(joined)
"""


# A Ray that did not start leaves processes to the collector of garbage.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
class TestTwoReplicas:
    """All that one engine does, by two of them."""

    def test_stop_ends_all_and_keeps_what_was_said(self, two):
        told = threading.Event()

        def interrupt_when_something_is_said():
            assert told.wait(SECONDS)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt_when_something_is_said).start()
        prompt = "Write a long story about {{item}}."

        def read():
            for event in two.stream_map(prompt, list(range(5000)), max_tokens=300):
                if isinstance(event, Text):
                    told.set()

        with pytest.raises(MapInterrupted) as stopped:
            read()
        assert 0 < len([row for row in stopped.value.result if row.text]) < 5000
        assert two.ask("Hello?", **GREEDY).text  # at once: nothing is left over
        for seconds in (0, 2):  # after the second, all has been said
            with two.stream("Hello?", regex="(a long story, ){9}the end") as stream:
                next(event for event in stream if isinstance(event, Text))
                time.sleep(seconds)
            assert two.status().last.text.startswith("a long")
        assert two.ask("Hello?", **GREEDY).text

    def test_answers_are_those_of_one_process(self, two, alone):
        for options in (GREEDY, {"temperature": 1, "seed": 3, "max_tokens": 8}):
            assert two.ask(QUESTION, SHAPES, **options).text == (
                alone.ask(QUESTION, SHAPES, **options).text
            )
        rows, others = (
            each.map("Is {{item}} red?", list("abcdefgh"), temperature=1, seed=5, max_tokens=6)
            for each in (two, alone)
        )
        assert [row.text for row in rows] == [row.text for row in others]
        assert [row.answer.seed for row in rows] == [5] * 8
        assert two.ask("Hello?", temperature=1, max_tokens=2).seed is not None

    def test_both_answer_rows_and_are_shown(self, two):
        two.map("Is {{item}} red?", list(range(24)), **GREEDY)
        info = two.status().info
        assert all(each.used_bytes for each in info.replicas)
        words = dict(status_rows("demo", info, None))
        for number, each in enumerate(info.replicas):
            assert f"process {each.process}" in words[f"replica {number}"]
        text = memory_bundle(MemoryView("demo", False, (), replicas=info.replicas))["text/plain"]
        assert "demo is loaded 2 times, not in this process" in text
        assert "replica 1: cpu of" in text
        assert two.load("demo", replicas=2).status().info is info

    def test_chats_stay_with_the_replicas_that_have_read_them(self, two):
        engine, sampling = two.engine, Sampling(temperature=0, max_tokens=8)
        chats = [two.draft(f"What colour is {each}?", SHAPES) for each in ("the circle", "it")]
        answers = {}
        for event in engine.stream([Request(chat, sampling) for chat in chats], 2):
            if isinstance(event, Finished):
                answers[event.row] = event.generation.text
        for number in (1, 0, 1):  # one was read by each
            answer = Message("assistant", answers[number])
            chats[number] = chats[number].add(answer).add(Message("user", "And the square?"))
            asked = set()
            for event in engine.stream([Request(chats[number], sampling)]):
                if isinstance(event, Text):
                    asked |= {each.facts.number for each in engine.group.replicas if each.open}
                if isinstance(event, Finished):
                    answers[number] = event.generation.text
            assert asked == {number}

    def test_a_replica_that_is_killed_loses_no_row(self, two, alone, caplog):
        items = [f"thing {number}" for number in range(200)]
        stream = two.stream_map("Is {{item}} red?", items, temperature=1, seed=5, max_tokens=6)
        said = {}
        for event in stream:
            if isinstance(event, Text):
                said[event.row] = said.get(event.row, "") + event.text
            if isinstance(event, RowDone) and event.progress.done == 50:
                end(two.status().info.replicas[0])
        assert lost(two) == [True, False]
        assert re.search(r"Replica 0 on \S+ is lost; the others answer\.", caplog.text)
        expected = alone.map("Is {{item}} red?", items, temperature=1, seed=5, max_tokens=6)
        assert [row.error for row in stream.result] == [None] * 200
        assert [row.text for row in stream.result] == [row.text for row in expected]
        assert {row: text.strip() for row, text in said.items()} == {
            row.index: row.text for row in stream.result
        }
        assert "is lost; the others answer" in str(status_rows("demo", two.status().info, None))
        two.load("demo", replicas=2)  # the same again brings it back
        assert lost(two) == [False, False]

    def test_when_all_are_killed_it_is_said_and_a_load_helps(self, two):
        for each in two.status().info.replicas:
            end(each)
        with pytest.raises(EngineError, match=r"All 2 replicas of demo were lost\. Load it again"):
            two.ask("Hello?", **GREEDY)
        told = str(status_rows("demo", two.status().info, None))
        assert told.count("and is lost; load the model again") == 2
        two.load("demo", replicas=2)
        assert "load the model again" not in str(status_rows("demo", two.status().info, None))
        assert two.ask("Hello?", **GREEDY).text

    def test_unload_ends_the_processes(self, two, ray):
        processes = [each.process for each in two.status().info.replicas]
        two.unload()
        for _ in range(200):
            if not any(os.path.exists(f"/proc/{process}") for process in processes):
                break
            time.sleep(0.1)
        else:
            pytest.fail("a replica goes on")
        assert ray.is_initialized()

    def test_in_a_cell(self, session, run):
        session.unload()  # its replicas hold all cores
        screen = run("%glm4v load demo --replicas 2")
        assert "Loaded demo" in screen
        assert run('x = %glm4v ask "Hello?" --max-tokens 4 --temperature 0').strip()
        screen = run("%glm4v")
        assert re.findall(r"replica \d", screen) == ["replica 0", "replica 1"]
        assert len(set(re.findall(r"process (\d+)", screen)) - {str(os.getpid())}) == 2
        rows = run("%%glm4v --over ['a','b','c'] --max-tokens 2 -o rows\n{{item}}?")
        assert "3 of 3" in rows or "3 rows" in rows
        assert "unloaded" in run("%glm4v unload")

    def test_another_cluster_than_the_users(self, ray):
        address = ray.get_runtime_context().gcs_address
        done = subprocess.run(
            [sys.executable, "-c", TWO_CLUSTERS.format(address=address)],
            capture_output=True,
            text=True,
            timeout=SECONDS * 6,
        )
        assert done.stdout.splitlines() == [
            "Leave the address out, or call ray.shutdown() first.",
            "the user's",
            address,
        ], done.stderr

    def test_the_users_own_cluster_by_another_name_of_its_machine(self, ray):
        number, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        for name in (number, "localhost", "127.0.0.1"):
            assert cluster.connect(f"{name}:{port}") == cluster.connection()
        for other in (f"{number}:{int(port) - 1}", f"10.1.2.3:{port}", f"no.such.name:{port}"):
            with pytest.raises(OptionError, match="is connected to the Ray"):
                cluster.connect(other)

    def test_another_version_is_told_and_the_same_one_loads(self, session, monkeypatch):
        session.unload()  # its replicas hold all cores
        monkeypatch.setattr("glm4v_magic.engines.replicas.replica.OWN_VERSION", "0.0.7")
        with pytest.raises(
            EngineError, match=r"not 0\.0\.7\. Install the same version on all machine"
        ):
            session.load("demo", replicas=1)
        monkeypatch.undo()
        assert session.load("demo", replicas=1).ask("Hello?", **GREEDY).text

    def test_cores_that_other_jobs_use_are_waited_for(self, session, ray, monkeypatch):
        class Job:  # here, so that it is sent as a whole: workers do not find this file
            def begun(self):
                return True

        session.unload()
        other = ray.remote(Job).options(num_cpus=2).remote()
        ray.get(other.begun.remote())
        starting = sys.modules["glm4v_magic.engines.replicas.starting"]
        minutes = itertools.count(step=60)
        quick = SimpleNamespace(monotonic=lambda: next(minutes), sleep=time.sleep)
        monkeypatch.setattr(starting, "time", quick)
        advice = r"Ask for fewer replicas, or wait for those jobs\."
        with pytest.raises(EngineError, match=advice):
            session.load("demo", replicas=1)
        monkeypatch.undo()
        ray.kill(other)
        assert session.load("demo", replicas=1).ask("Hello?", **GREEDY).text
        session.unload()

    def test_the_port_of_the_head_node_is_the_one_to_give(self, session, ray):
        session.unload()
        address = ray.get_runtime_context().gcs_address
        with scripted_server() as other:
            wrong = other.url.removeprefix("http://").removesuffix("/v1")
            code = TWO_PORTS.format(wrong, address)
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS * 6
            )
        assert done.stdout.splitlines() == [
            "The port is that of the head node, 6379 by default; 8265 is the dashboard's.",
            "loaded",
        ], done.stderr

    def test_more_replicas_than_cores(self, ray):
        with pytest.raises(PlacementError, match="99 replicas are more than the"):
            Session().load("demo", replicas=99)
