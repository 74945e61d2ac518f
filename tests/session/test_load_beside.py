"""Another model is loaded: the one before survives, or it is said that it had to go."""

from __future__ import annotations

import gc
import os
import shutil
import weakref

import pytest
import torch
from following import follow
from shells import TINY

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.errors import (
    CheckpointError,
    DoesNotFitError,
    LoadInterrupted,
    OutOfMemoryError,
)
from glm4v_magic.core.events import Loading
from glm4v_magic.engines import local
from glm4v_magic.hardware import host
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

GREEDY = {"temperature": 0, "max_tokens": 8}
OTHER = "demo"


@pytest.fixture(scope="module")
def session():
    session = Session().load(TINY)
    yield session
    session.unload()


@pytest.fixture(scope="module")
def said(session):
    return session.ask("What?", **GREEDY).text


def test_pytorch_is_said_to_start_only_while_it_does(tmp_path, monkeypatch):
    found = type(resolve(TINY))
    (tmp_path / "slow_code_of_a_model.py").write_text("import time\ntime.sleep(0.5)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(found, "modules", ("slow_code_of_a_model",))
    with Session().stream_load(TINY) as stream:
        kinds = [type(event) for event, _ in zip(stream, range(2), strict=False)]
    assert kinds == [Loading, Loading]


@pytest.fixture
def filled():
    """A session whose model takes so much of a GPU that no other fits beside it; what it says."""
    with VirtualGPUs("1x1GiB"):
        session = Session().load(TINY)
        room = torch.empty(800 * 2**20, dtype=torch.uint8, device="cuda:0")
        session.engine.model.register_buffer("more", room)
        del room
        yield session, session.ask("What?", **GREEDY).text
        session.unload()


def loads(session):
    """Ask; returns what is said, and how many weights were loaded for it."""
    events = []
    said = follow(session.stream("What?", **GREEDY), loading=events.append).text
    return said, len(events)


def stop_at(event, at, seen):
    """Raise an interrupt at an event of a load."""
    seen.append(event)
    if len(seen) == at + 1:
        raise KeyboardInterrupt


def test_the_model_before_survives_an_interrupt_at_each_weight(session, said):
    events = []
    follow(Session().stream_load(OTHER), loading=events.append)
    before = session.status().info
    for at in (0, 1, 2, len(events) // 2, len(events) - 1):
        seen = []
        with pytest.raises(KeyboardInterrupt) as caught:
            follow(
                session.stream_load(OTHER),
                loading=lambda event, at=at, seen=seen: stop_at(event, at, seen),
            )
        assert not isinstance(caught.value, LoadInterrupted)
        assert len(seen) == at + 1
        assert not any(each.released for each in seen)
        assert session.status().info is before
        assert loads(session) == (said, 0)


def test_an_interrupt_when_the_new_model_is_in_use_says_so(monkeypatch):
    session, real = Session().load(TINY), Session.stream_load

    class Interrupted:
        def __init__(self, stream):
            self.stream = stream

        def follow(self):
            self.stream.follow()
            raise KeyboardInterrupt

    monkeypatch.setattr(Session, "stream_load", lambda *a, **o: Interrupted(real(*a, **o)))
    with pytest.raises(KeyboardInterrupt, match=r"demo is loaded all the same: it was ready when"):
        session.load(OTHER)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        session.load(OTHER)  # it was in use before
    session.unload()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_model_before_survives_an_interrupt_around_the_weights(
    session, said, monkeypatch, moment
):
    real = local.load

    def interrupted(*terms, **options):
        if moment == "after":  # the new one stands, and is not in use yet
            real(*terms, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(local, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.load(OTHER)
    assert loads(session) == (said, 0)


def test_the_model_before_survives_an_error_while_weights_are_read(session, said, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(TINY, broken)

    def cut(_progress):  # when its headers have been read
        os.truncate(broken / "model.safetensors", 1000)

    with pytest.raises(CheckpointError, match="broken") as caught:
        follow(session.stream_load(broken), loading=cut)
    assert "released" not in str(caught.value)
    assert loads(session) == (said, 0)


def test_the_model_before_is_gone_when_the_other_is_loaded():
    session = Session().load(TINY)
    before = weakref.ref(session.engine.model)
    there = []
    follow(session.stream_load(OTHER), loading=lambda _: there.append(before() is not None))
    gc.collect()
    assert all(there)
    assert before() is None
    assert session.status().info.model == OTHER
    session.unload()


def test_with_little_host_memory_the_model_before_is_released_first(session, said, monkeypatch):
    monkeypatch.setattr(host, "free_host_bytes", lambda: 2**20)
    there, seen = [], []

    def look(event):
        seen.append(event)
        there.append(session.status().info is not None)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(LoadInterrupted, match="was released to make room") as caught:
        follow(session.stream_load(OTHER), loading=look)
    assert caught.value.released == str(TINY)
    assert there == [True, False, False]
    assert [bool(each.released) for each in seen] == [False, True, True]
    assert session.status().choice.model == str(TINY)
    text, loaded = loads(session)
    assert text == said
    assert loaded


def test_on_a_full_gpu_the_model_before_is_released_first_and_comes_back(filled):
    session, said = filled
    seen = []
    with pytest.raises(LoadInterrupted):
        follow(session.stream_load(OTHER), loading=lambda event: stop_at(event, 2, seen))
    assert seen[-1].released == str(TINY)
    assert session.status().info is None
    assert loads(session)[0] == said
    session.load(OTHER)
    assert session.status().info.model == OTHER


def test_on_a_full_gpu_an_error_says_that_the_model_before_was_released(filled, tmp_path):
    session, said = filled
    broken = tmp_path / "broken"
    shutil.copytree(TINY, broken)

    def cut(_progress):
        os.truncate(broken / "model.safetensors", 1000)

    with pytest.raises(CheckpointError, match="released to make room; the next question loads it"):
        follow(session.stream_load(broken), loading=cut)
    assert session.status().info is None
    assert loads(session)[0] == said


def test_memory_that_is_taken_meanwhile_releases_the_model_before(filled, monkeypatch):
    session, _ = filled
    real, tried = local.load, []

    def short(*terms, **options):
        tried.append(session.status().info is not None)
        if tried[-1]:
            raise OutOfMemoryError("cuda:0 is full.")
        return real(*terms, **options)

    monkeypatch.setattr("glm4v_magic.session.room.fits_beside", lambda *_: True)
    monkeypatch.setattr(local, "load", short)
    session.load(OTHER)
    assert tried == [True, False]
    assert session.status().info.model == OTHER


@pytest.mark.parametrize("given", [None, {"model": 0, "lm_head": 0}], ids=["plan", "map"])
def test_tensors_of_others_in_this_process_stay(given):
    """To the driver they are of the same process as the model that makes room."""
    with VirtualGPUs("1x1GiB") as gpus:
        session = Session().load(OTHER, device_map=given)
        engine, at = session.engine, gpus.live_bytes[0]
        other = torch.empty(800 * 2**20, dtype=torch.uint8, device="cuda:0")
        with pytest.raises(DoesNotFitError, match=r"tensors .* hold 0\.78 GiB of cuda:0") as caught:
            session.load(TINY, device_map=given)
        assert "delete them" in caught.value.hint
        assert (session.engine, gpus.live_bytes[0]) == (engine, at + other.nbytes)
        del other  # as it says
        session.load(TINY, device_map=given)
        assert session.status().info.model == str(TINY)
        del engine
        session.unload()


def test_what_nobody_refers_to_any_more_does_not_stay():
    with VirtualGPUs("1x1GiB"):
        session = Session().load(OTHER)
        gc.disable()
        try:
            circle = [torch.empty(800 * 2**20, dtype=torch.uint8, device="cuda:0")]
            circle.append(circle)
            del circle
            session.load(TINY)
        finally:
            gc.enable()
        assert session.status().info.model == str(TINY)
        session.unload()


def test_a_little_memory_of_others_is_not_told():
    with VirtualGPUs([200 * 2**20]):
        small = torch.empty(2**20, dtype=torch.uint8, device="cuda:0")
        with pytest.raises(DoesNotFitError) as caught:
            Session().load(OTHER)
        assert "tensors of this process" not in str(caught.value)
        del small
