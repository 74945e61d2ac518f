"""The thread that watches memory: when it runs, what it tells, and that it ends."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace

import pytest
import torch
from driver_standin import GIB, Described, Driver
from shells import TINY

from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.core.model import EngineInfo, ModelChoice
from glm4v_magic.hardware.readings import Reading, Readings
from glm4v_magic.notebook import monitor as monitor_module
from glm4v_magic.notebook.monitor import Monitor, weights_by_device
from glm4v_magic.notebook.render.memory import memory_html
from glm4v_magic.session.session import Session, Status
from glm4v_magic.virtual_gpus import VirtualGPUs

SECONDS = 60


class Seen:
    """A view that keeps what it is told."""

    def __init__(self):
        self.views, self.threads = [], set()

    def refresh(self, view, status):
        self.views.append(view)
        self.threads.add(threading.current_thread().name)


def until(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.01)


def ours():
    return [thread for thread in threading.enumerate() if thread.name == "glm4v-monitor"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(monitor_module, "IDLE_SECONDS", 0.02)
    monkeypatch.setattr(monitor_module, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(monitor_module, "CATCH_UP_SECONDS", SECONDS)
    yield
    until(lambda: not ours())


@pytest.fixture(scope="module")
def session():
    session = Session().load(TINY)
    yield session
    session.unload()


def test_one_thread_for_all_views_which_ends_with_the_last(session):
    monitor, views = Monitor(session.status), [Seen() for _ in range(5)]
    for view in views:
        monitor.watch(view)
    until(lambda: all(view.views for view in views))
    assert len(ours()) == 1
    for view in (views[2], views[0], views[4], views[1]):  # in any order, and twice
        monitor.forget(view)
        monitor.forget(view)
        assert len(ours()) == 1
    monitor.forget(views[3])
    until(lambda: not ours())
    monitor.watch(views[0])
    until(lambda: len(views[0].views) > 1)
    monitor.stop()
    until(lambda: not ours())
    assert views[0].threads == {"glm4v-monitor"}


def test_a_view_that_is_collected_ends_it_too(session):
    monitor, view = Monitor(session.status), Seen()
    monitor.watch(view)
    del view
    gc.collect()
    until(lambda: not ours())
    assert not monitor.is_running


def test_a_view_that_fails_disturbs_no_other(session):
    class Broken:
        def refresh(self, view, status):
            raise RuntimeError("the page is gone")

    monitor, broken, seen = Monitor(session.status), Broken(), Seen()
    monitor.watch(broken)
    monitor.watch(seen)
    until(lambda: len(seen.views) > 2)
    monitor.forget(seen)


def test_what_cannot_be_read_is_said_until_it_can(monkeypatch, session):
    fails = threading.Event()
    take = monitor_module.take_readings

    def take_or_fail(*arguments):
        if fails.is_set():
            raise OSError("the driver <is> gone")
        return take(*arguments)

    monkeypatch.setattr(monitor_module, "take_readings", take_or_fail)
    monitor, view = Monitor(session.status), Seen()
    monitor.watch(view)
    for failing in (True, False):
        (fails.set if failing else fails.clear)()
        monitor.catch_up()
        assert (view.views[-1].rows == ()) == failing
        assert ("the driver <is> gone" in view.views[-1].note) == failing
    fails.set()
    assert monitor.view().note.startswith("What is in memory cannot be read now")
    assert "<is>" not in memory_html(monitor.view())
    monitor.stop()


def test_free_memory_is_what_others_leave_less_our_own(monkeypatch, session):
    own, noise = 3 * 2**20, 7 * 2**20
    found = Reading("cuda:0", "GPU", "0", 16 * GIB, own, 0, noise, 16 * GIB - own - noise)
    monkeypatch.setattr(monitor_module, "take_readings", lambda *_: Readings((found,)))
    (row,) = Monitor(session.status).view().rows
    assert (row.now.other_bytes, row.now.free_bytes) == (0, 16 * GIB - own)


def test_a_thread_that_ends_after_all_is_not_waited_for(monkeypatch):
    """Whatever ended it: the next view starts another."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    broken = threading.Event()

    def status():
        if broken.is_set():
            raise RuntimeError("a bug")
        return Status(ModelChoice(), None, False, None)

    monitor, view = Monitor(status), Seen()
    monitor.watch(view)
    monitor.catch_up()
    broken.set()
    until(lambda: not monitor.is_running)
    start = time.monotonic()
    monitor.catch_up()
    assert time.monotonic() - start < 0.5 * monitor_module.CATCH_UP_SECONDS
    broken.clear()
    told = len(view.views)
    monitor.watch(view)
    monitor.catch_up()
    assert len(view.views) > told
    monitor.stop()


class SlowSet(weakref.WeakSet):
    """Lets another thread run while it is looked through."""

    def __iter__(self):
        for view in super().__iter__():
            begun.set()
            added.wait(0.2)
            yield view


begun, added = threading.Event(), threading.Event()


def test_a_view_that_comes_while_others_are_told_is_told_next(session, monkeypatch):
    monkeypatch.setattr(weakref, "WeakSet", SlowSet)
    monitor, views = Monitor(session.status), [Seen() for _ in range(3)]
    for view in views[:2]:
        monitor.watch(view)
    until(begun.is_set)
    monitor.watch(views[2])
    added.set()
    until(lambda: all(view.views for view in views))
    assert monitor.is_running
    monitor.stop()


def test_a_view_that_catches_up_while_it_is_told_does_not_wait_for_itself(session):
    class Asking(Seen):
        def refresh(self, view, status):
            super().refresh(view, status)
            start = time.monotonic()
            monitor.catch_up()
            self.seconds = time.monotonic() - start

    monitor, view = Monitor(session.status), Asking()
    monitor.watch(view)
    monitor.catch_up()
    monitor.stop()
    assert view.seconds < 0.5 * monitor_module.CATCH_UP_SECONDS


def test_an_answer_leaves_its_peak(session):
    monitor, view = Monitor(session.status), Seen()
    monitor.watch(view)
    until(lambda: view.views)
    assert view.views[-1].rows[0].peaks == ()
    session.ask("What?", max_tokens=4)
    monitor.catch_up()
    (peak,) = view.views[-1].rows[0].peaks
    assert 0 < peak.size_bytes <= view.views[-1].rows[0].now.own_bytes * 1.5
    assert view.views[-1].model == str(TINY)
    monitor.stop()
    monitor.catch_up()  # without a thread, likewise


def test_what_torch_tells_of_an_answer_is_its_peak(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    Driver([Described(processes=[(os.getpid(), 4 * GIB)])]).install(monkeypatch)
    usage = Usage(1, 0, 1, 0.1, 0.1, {"cuda:0": 9 * GIB})
    answer = Answer("a", "q", "m", usage, "stop", None, "", ())
    last = [answer]
    monitor, view = Monitor(lambda: Status(ModelChoice(), None, False, last[0])), Seen()

    def peaks():
        monitor.catch_up()
        return [peak.size_bytes for peak in view.views[-1].rows[0].peaks]

    monitor.watch(view)
    assert peaks() == []  # it was there before: when it ended, nobody knows
    last[0] = replace(answer, usage=replace(usage, peak_bytes={"cuda:0": 7 * GIB}))
    assert peaks() == [7 * GIB]
    assert peaks() == [7 * GIB]
    monitor.stop()
    last[0] = answer
    assert [p.size_bytes for p in monitor.view().rows[0].peaks] == [7 * GIB]
    monitor.watch(view)
    assert peaks() == [7 * GIB]
    monitor.stop()


def test_it_looks_more_often_during_a_call(monkeypatch):
    monkeypatch.setattr(monitor_module, "IDLE_SECONDS", 1000.0)
    busy = threading.Event()
    busy.set()
    monitor = Monitor(lambda: Status(ModelChoice(), None, busy.is_set(), None))
    view = Seen()
    monitor.watch(view)
    until(lambda: len(view.views) > 3)
    assert view.views[-1].busy
    busy.clear()
    until(lambda: not view.views[-1].busy)
    told = len(view.views)
    time.sleep(0.2)
    assert len(view.views) == told  # it would have looked 20 times
    monitor.stop()


def test_the_history_keeps_the_most_of_each_span():
    history = monitor_module.History()
    span = monitor_module.BUCKET_SECONDS
    for now, size in ((0.1, 5), (0.2, 9), (0.3, 2), (span + 0.1, 3), (2 * span + 0.1, None)):
        history.add(now, size)
    assert history.buckets(2 * span + 0.1)[-3:] == (9, 3, None)
    history.answered(span + 0.2, 0)
    (peak,) = history.peaks(2 * span)
    assert (peak.bucket, peak.size_bytes) == (monitor_module.BUCKETS - 2, 9)
    assert set(history.buckets(1000 * span)) == {None}
    assert history.peaks(1000 * span) == ()


def info(**changes):
    facts = ("m", "", 1, None, None, 9, 1000, "bfloat16", ("cpu",))
    return replace(EngineInfo(*facts), **changes)


def test_what_is_free_is_rounded_to_the_nearest(session):
    with VirtualGPUs("1x16GiB"):
        small = torch.ones(2**18, device="cuda:0")  # 1 MiB
        (gpu,) = (
            row.now for row in Monitor(session.status).view().rows if "cuda" in row.now.device
        )
        assert abs(gpu.total_bytes - small.nbytes - gpu.free_bytes) <= gpu.total_bytes / 2000


def test_weights_are_told_by_plan_or_on_the_cpu(session):
    from glm4v_magic.checkpoints.architecture import architecture
    from glm4v_magic.core.placement import PlacementOptions
    from glm4v_magic.planning.decision import make_plan

    plan = make_plan(architecture("GLM-4V-9B"), PlacementOptions(gpus="4x16GiB"))
    told = weights_by_device(info(devices=("cuda:0",), plan=plan))
    assert told == {stage.device: stage.weight_bytes for stage in plan.stages}
    assert weights_by_device(info()) == {"cpu": 2000}
    assert weights_by_device(info(quantize="4bit")) == {}
    assert weights_by_device(info(devices=("cuda:0",))) == {}
    assert weights_by_device(None) == {}
    held = sum(weight.nbytes for weight in session.engine.model.parameters())
    assert weights_by_device(session.status().info) == {"cpu": held}


def test_a_program_that_ends_while_it_runs_ends_quietly():
    code = (
        "import time\n"
        "from glm4v_magic.notebook.monitor import Monitor\n"
        "from glm4v_magic.session.session import Session\n"
        "class View:\n"
        "    def refresh(self, view, status): self.seen = True\n"
        "view, monitor = View(), Monitor(Session().status)\n"
        "monitor.watch(view)\n"
        "while not hasattr(view, 'seen'): time.sleep(0.01)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
