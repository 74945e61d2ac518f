"""JSON of all kinds, for what reads JSON: it must take it, or refuse it in one line."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

from glm4v_magic.core.errors import Glm4vError

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.sampled_from([2**63, -(2**70), 10**30])
    | st.floats()
    | st.text(st.characters(), max_size=20)  # halves of characters included
)

ANY_JSON = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=10,
)


def taken_or_refused(read: Callable[[], object]) -> None:
    """Call what reads, and fail unless it takes what it gets or says in one line why not."""
    try:
        read()
    except Glm4vError as error:
        said = str(error)
    else:
        return
    assert len(said.splitlines()) == 1
    assert len(said) < 600


def changed_somewhere(content: Any, data: st.DataObject, more: Sequence[str] = ()) -> Any:
    """A copy of `content` that has anything else in one place, or lacks the place.

    Keys in `more` may be added to it, and to the objects right within it.
    """
    content = copy.deepcopy(content)
    places = st.sampled_from(sorted(_places(content), key=str))
    if more:
        objects = [(), *((key,) for key, each in content.items() if isinstance(each, dict))]
        added = st.tuples(st.sampled_from(objects), st.sampled_from(more))
        places |= added.map(lambda drawn: (*drawn[0], drawn[1]))
    *path, last = data.draw(places)
    inner = content
    for key in path:
        inner = inner[key]
    is_new = isinstance(inner, dict) and last not in inner
    if is_new or data.draw(st.booleans()):
        inner[last] = data.draw(ANY_JSON)
    else:
        del inner[last]
    return content


def _places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys and indices that lead to everything inside of an object or a list."""
    keys: Any = ()
    if isinstance(content, dict):
        keys = content
    elif isinstance(content, list):
        keys = range(min(len(content), 3))  # one of many alike is enough
    for key in keys:
        yield (*path, key)
        yield from _places(content[key], (*path, key))
