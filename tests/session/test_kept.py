"""What was read is kept between calls, within the budget that was asked for."""

from __future__ import annotations

import pytest
from shells import TINY

from glm4v_magic.core.errors import OptionError
from glm4v_magic.notebook.render.status import status_rows
from glm4v_magic.planning.kept import room_for_kept
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

GREEDY = {"temperature": 0, "max_tokens": 4}


@pytest.mark.parametrize(("keep", "budget"), [(0, 0), (0.5, 2**29), (None, 2**30)])
def test_the_budget_is_the_one_that_was_asked_for(keep, budget):
    session = Session().load(TINY, keep=keep)
    session.ask("What?", **GREEDY)
    kept = session.status().kept
    assert kept.budget_bytes == budget
    assert (kept.used_bytes > 0) == (budget > 0)
    (row,) = [value for label, value in _rows(session) if label == "kept"]
    assert ("nothing" in row) == (budget == 0)


def _rows(session):
    status = session.status()
    return status_rows("m", status.info, status.last, kept=status.kept)


def test_another_budget_loads_anew_and_says_the_same():
    session = Session().load(TINY, keep=0)
    first = session.ask("What?", chat="one", **GREEDY)
    follow = session.ask("And?", chat="one", **GREEDY)
    engine = session.engine
    session.load(TINY, keep=1)
    assert session.engine is not engine
    session.reset("one")
    assert session.ask("What?", chat="one", **GREEDY).text == first.text
    assert session.ask("And?", chat="one", **GREEDY).text == follow.text
    assert session.status().kept.prefixes > 0


def test_less_than_nothing_is_refused():
    with pytest.raises(OptionError, match="keep is -1"):
        Session().load(TINY, keep=-1)


def test_more_than_there_is_is_refused_and_the_old_model_stays():
    session = Session().load(TINY)
    engine = session.engine
    with pytest.raises(OptionError, match="keep is 1e\\+06 GiB, but there is only room for"):
        session.load(TINY, keep=1e6)
    assert session.engine is engine
    with (
        VirtualGPUs("2x1GiB"),
        pytest.raises(OptionError, match="GiB, but the plan leaves room for"),
    ):
        session.load(TINY, keep=4)
    assert session.engine is engine


def test_replicas_are_refused_together_before_any_starts(monkeypatch):
    monkeypatch.setattr("glm4v_magic.hardware.host.free_host_bytes", lambda: 16 * 2**30)
    monkeypatch.setattr("glm4v_magic.session.replicas.prepare", None)
    for keep, count in ((9, 2), (17, "max")):
        with pytest.raises(OptionError, match=f"keep is {keep} GiB.* only room for 16.00 GiB"):
            Session().load(TINY, keep=keep, replicas=count, gpus="cpu")
    with pytest.raises(TypeError):  # they would be started
        Session().load(TINY, keep=8, replicas=2, gpus="cpu")


def test_by_default_half_of_what_the_plan_leaves():
    with VirtualGPUs("2x1GiB"):
        session = Session().load(TINY, objective="balance")
        plan = session.status().info.plan
        session.ask("What?", **GREEDY)
        kept = session.status().kept
        assert kept.budget_bytes == room_for_kept(plan.stages).size_bytes // 2 > 0
        assert dict(kept.devices).keys() == {
            stage.device for stage in plan.stages if stage.kv_bytes
        }
        assert sum(dict(kept.devices).values()) == kept.used_bytes > 0
        session.unload()
