"""What is advised where a machine or a request ends replicas is done, and they answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glm4v_magic.core.errors import EngineError
from glm4v_magic.session.session import Session

GREEDY = {"temperature": 0, "max_tokens": 4}
POISON = "poison"

SITE = f"""
import importlib.abc, os, pathlib, sys

ROOM = pathlib.Path(os.environ["OF_TESTS"])

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "glm4v_magic" and (ROOM / "without").exists():
            raise ModuleNotFoundError(f"No module named {{name!r}}")
        if name == "glm4v_magic.engines.replicas.worker":
            sys.meta_path.remove(self)
            from glm4v_magic.engines.local import LocalEngine
            stream = LocalEngine.stream

            def watched(requests):
                for each in requests:
                    if {POISON!r} in str(each) and (ROOM / "deadly").exists():
                        os._exit(1)
                    yield each

            LocalEngine.stream = lambda self, requests, *given, **options: stream(
                self, watched(requests), *given, **options)

sys.meta_path.insert(0, Watch())
"""
"""Runs in the processes of Ray: one question ends them, and they may lack the package."""


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder whose files say what is wrong in the processes of a cluster that has begun."""
    import ray

    room = tmp_path_factory.mktemp("room")
    (room / "sitecustomize.py").write_text(SITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(room), prepend=os.pathsep)
        patch.setenv("OF_TESTS", str(room))
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")  # a machine is asked for its GPUs if it has some
        patch.setenv("RAY_worker_niceness", "0")
        for _ in range(4):  # on a busy machine Ray gives up on its own processes
            try:
                ray.init(num_cpus=4, num_gpus=1, include_dashboard=False,
                         object_store_memory=100 * 2**20)  # fmt: skip
            except Exception:
                ray.shutdown()
            else:
                break
    yield room
    ray.shutdown()


@pytest.fixture
def session():
    session = Session()
    yield session
    session.unload()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_machine_without_the_package_gets_it(room: Path, session: Session) -> None:
    (room / "without").touch()
    with pytest.raises(EngineError, match="does not tell its GPUs") as caught:
        session.load("demo", replicas=1)
    said = str(caught.value)
    assert said.endswith("Is glm4v_magic installed there, in the same version?")
    assert "\n" not in said
    assert "No module named 'glm4v_magic'" in said
    (room / "without").unlink()
    session.load("demo", replicas=1)
    assert session.ask("What?", **GREEDY).usage.new_tokens


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_question_that_ends_processes_is_left_or_given_memory(
    room: Path, session: Session
) -> None:
    session.load("demo", replicas=4)
    (room / "deadly").touch()
    with pytest.raises(EngineError, match="was lost while it answered this") as caught:
        session.ask(f"What is this {POISON}?", **GREEDY)
    step = "Is there something wrong with this request, or too little memory?"
    assert str(caught.value).endswith(step)
    assert [each.lost for each in session.status().info.replicas].count(True) == 3
    assert session.ask("What is this?", **GREEDY).usage.new_tokens
    (room / "deadly").unlink()  # as with more memory
    assert session.ask(f"What is this {POISON}?", **GREEDY).usage.new_tokens
    assert [each.lost for each in session.status().info.replicas].count(True) == 3
