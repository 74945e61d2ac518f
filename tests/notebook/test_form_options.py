"""``--choices`` and ``--regex`` as they are typed."""

from __future__ import annotations

from argparse import Namespace

import pytest

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.options import OPTIONS
from glm4v_magic.notebook.commands.question import form_asked

NAMES = {"labels": ["cat", "dog"], "number": 3}


def form(choices=None, regex=None, **rest):
    read = OPTIONS["choices"].read
    typed = {"format": None, "schema": None, "regex": regex, **rest}
    return form_asked(Namespace(choices=choices and read(choices), **typed), NAMES)


def test_texts_with_commas_between_them():
    assert form("yes, no ,unsure").choices == ("yes", "no", "unsure")


def test_a_variable():
    assert form("labels").choices == ("cat", "dog")


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ("label", r"--choices label is neither a variable nor a list such as yes,no.*labels"),
        ("number", "at least two different texts"),
        ("yes,", "none of them empty"),
        ("yes,yes", "different texts"),
        (",", "none of them empty"),
    ],
)
def test_what_is_no_list_of_texts(choices, said):
    with pytest.raises(OptionError, match=said):
        form(choices)


def test_a_regex():
    assert form(regex="[0-9]{4}").regex == "[0-9]{4}"
    with pytest.raises(OptionError, match="unclosed"):
        form(regex="(")
