"""Advice that tests follow: which they take, and the message that gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glm4v_magic.core.errors import Glm4vError

TAKEN: set[str] = set()
"""Codes and sentences whose advice a test takes, of all modules that are imported."""


def takes(*advice: str) -> Callable[[Any], Any]:
    """Mark a test as one that takes this advice."""

    def mark(test: Any) -> Any:
        assert test.__name__.startswith("test_")
        TAKEN.update(advice)
        return test

    return mark


def refused(advice: str, act: Callable[[], Any]) -> str:
    """Return the message of an act, in which the advice is; ``{}`` is what is known then only."""
    with pytest.raises(Glm4vError) as caught:
        act()
    said = str(caught.value)
    assert all(part in said for part in advice.split("{}")), said
    return said
