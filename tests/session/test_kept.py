"""What was read is kept between calls, within the budget that was asked for."""

from __future__ import annotations

import pytest
from shells import TINY

from glm4v_magic.core.errors import OptionError
from glm4v_magic.notebook.render.status import status_rows
from glm4v_magic.session.session import Session

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
