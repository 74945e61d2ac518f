"""The names that users may rely on, pinned."""

from __future__ import annotations

import re

import pytest

import glm4v_magic

PUBLIC = {
    "Answer": "core.conversation",
    "ComparisonInterrupted": "core.errors",
    "Conversation": "core.conversation",
    "GenerationInterrupted": "core.errors",
    "Glm4vError": "core.errors",
    "ImageAnswer": "calls.answer",
    "LoadInterrupted": "core.errors",
    "MapInterrupted": "core.errors",
    "Message": "core.conversation",
    "Sampling": "core.options",
    "Session": "session.session",
    "Usage": "core.conversation",
    "load": "session.session",
    "load_ipython_extension": "",
    "unload_ipython_extension": "",
}


def test_the_public_names_are_these():
    assert sorted(glm4v_magic.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize(("name", "home"), PUBLIC.items())
def test_a_name_leads_to_its_home(name, home):
    value = getattr(glm4v_magic, name)
    assert value.__module__ == f"glm4v_magic.{home}".rstrip(".")
    assert name in dir(glm4v_magic)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        glm4v_magic.lod  # noqa: B018


def test_the_version_is_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+", glm4v_magic.__version__)
