"""The user's own code ends the Ray that replicas have brought: it is said, and a load helps."""

from __future__ import annotations

import pytest

from glm4v_magic.core.errors import EngineError, OptionError
from glm4v_magic.core.events import RowDone
from glm4v_magic.session.session import Session

GREEDY = {"temperature": 0, "max_tokens": 4}
LOST = r"^The replica of demo was lost\. Load it again\.$"


@pytest.fixture
def session():
    session = Session().load("demo", replicas=1)
    yield session
    session.unload()


# A Ray that did not start leaves processes to the collector of garbage.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ray_that_is_shut_down_is_told_of_and_each_way_out_works(session, caplog, monkeypatch):
    import ray

    with pytest.raises(OptionError, match=r"end the replicas there first: session\.unload\(\)"):
        session.load("demo", replicas=2, cluster="127.0.0.1:1")
    assert session.ask("Hello?", **GREEDY).text
    stream = session.stream_map("{{item}}?", list(range(100)), **GREEDY)
    next(event for event in stream if isinstance(event, RowDone))

    ray.shutdown()
    began = []  # by Ray itself, for whoever calls an actor without a cluster
    monkeypatch.setattr(ray, "init", lambda *_, **__: began.append("a cluster"))
    with pytest.raises(EngineError, match=LOST):
        list(stream)
    assert [each.lost for each in session.status().info.replicas] == [True]
    for _ in range(2):
        with pytest.raises(EngineError, match=LOST):
            session.ask("Hello?", **GREEDY)
    with pytest.raises(EngineError, match=LOST):
        session.map("{{item}}?", ["red", "blue"], **GREEDY)  # not asked before
    assert not began
    assert caplog.text.count("Ray was shut down, and all replicas of demo with it.") == 1
    monkeypatch.undo()

    session.load("demo", replicas=1)
    assert session.ask("Hello?", **GREEDY).text
    session.unload()
    assert not ray.is_initialized()
    # it was tried; without the address it worked above
    with pytest.raises(EngineError, match="Leave the address out to use this machine alone"):
        session.load("demo", replicas=2, cluster="127.0.0.1:1")
