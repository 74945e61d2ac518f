"""What comes from outside: every fault is one line that names the place."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from any_json import ANY_JSON, taken_or_refused
from hypothesis import given
from pydantic import BaseModel, ConfigDict

from glm4v_magic.calls.prompt import read_prompt
from glm4v_magic.core.errors import CheckpointError, DeviceMapError, OptionError, PromptError
from glm4v_magic.outside import FileKind, checked, json_object, json_value, text_of


@dataclass(frozen=True, slots=True)
class Part:
    size: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.size == 13:
            raise ValueError("13 is\nno size")
        if self.size == 14:
            raise OptionError("14 is none.", "Take 15.")


@dataclass(frozen=True, slots=True)
class Whole:
    parts: tuple[Part, ...]
    share: float | None = None


class Outer(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    parts: list[Part]


GOOD = {"parts": [{"size": 1, "names": ["a"]}]}


def test_what_has_the_shape_is_taken():
    assert checked(Whole, GOOD, "It", DeviceMapError) == Whole((Part(1, ("a",)),))
    assert checked(Outer, {"parts": []}, "It", DeviceMapError).parts == []
    # Half a character cannot be shown; it does not make a file unreadable.
    odd = checked(Part, {"size": 1, "names": ["\udcff"]}, "It", DeviceMapError)
    assert odd.names == ("\ufffd",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "It lacks 'parts'."),
        ({"parts": [{}]}, "It lacks 'parts[0].size'."),
        ({"parts": [], "more\n": 1}, r"It has an unknown entry 'more\n'."),
        ({"parts": 3}, "It has 3 for 'parts': it should be a list."),
        ({"parts": [None]}, "It has null for 'parts[0]': it should be an object."),
        ({"parts": [{"size": True}]}, "It has true for 'parts[0].size': it should be a valid int"),
        ({"parts": [{"size": "1"}]}, "It has '1' for 'parts[0].size': it should be a valid int"),
        ({"parts": [{"size": 1.0}]}, "It has 1.0 for 'parts[0].size': it should be a valid int"),
        ({"parts": [{"size": 13}]}, "It is wrong at 'parts[0]': 13 is no size."),
        ({"parts": [{"size": 14}]}, "It is wrong: 14 is none. Take 15."),
        ({"parts": [], "share": "a"}, "It has 'a' for 'share': it should be a valid number"),
        ([], "It is []: it should be an object."),
        (None, "It is null: it should be an object."),
        ({"k" * 900: 1, **GOOD}, "It has an unknown entry 'kkk"),
        ({"parts": [[["y" * 50] * 9] * 9]}, 'It has [["yyyyyyy'),
        ({"parts": ["x" * 9000]}, "It has 'xxxxxxxxxxxxxxx"),
    ],
)
def test_what_has_not_is_one_line(content, message):
    with pytest.raises(DeviceMapError) as caught:
        checked(Whole, content, "It", DeviceMapError)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


def test_a_hint_is_given():
    with pytest.raises(CheckpointError, match=r"It lacks 'parts'\. Get another\."):
        checked(Outer, {}, "It", CheckpointError, "Get another.")


@given(ANY_JSON)
def test_any_json_is_taken_or_refused_in_one_line(content):
    for shape in (Whole, Outer, Part):
        taken_or_refused(partial(checked, shape, content, "It", DeviceMapError))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000, b"\xff\xff"])
def test_text_that_is_no_json(text):
    with pytest.raises(DeviceMapError, match="It is not valid JSON: ") as caught:
        json_value(text, "It", DeviceMapError)
    assert len(str(caught.value).splitlines()) == 1
    assert "sys." not in str(caught.value)  # advice to programmers
    assert "recursion" not in str(caught.value)


def test_json_of_another_kind_and_with_a_key_twice():
    assert json_object('{"a": 1, "a": 2}', "It", DeviceMapError) == {"a": 2}
    with pytest.raises(DeviceMapError, match=r"It is \[1\], not a JSON object\."):
        json_object("[1]", "It", DeviceMapError)
    with pytest.raises(DeviceMapError, match="It names 'a' twice"):
        json_object('{"b": {"a": 1, "a": 2}}', "It", DeviceMapError, unique=True)


def test_files(tmp_path):
    (tmp_path / "good").write_text("Ж", encoding="utf-8")
    (tmp_path / "bad").write_bytes(b"\xff")
    assert text_of(tmp_path / "good", "It", DeviceMapError) == "Ж"
    for name, why in (("bad", "not a text file in UTF-8"), ("none", "cannot be read: No such file"),
                      (".", "cannot be read: Is a directory")):  # fmt: skip
        with pytest.raises(DeviceMapError, match=why):
            text_of(tmp_path / name, "It", DeviceMapError)


def test_files_of_ours_say_what_they_are():
    kind = FileKind("glm4v_magic.thing", 2, "a thing")
    text = '{"format": "glm4v_magic.thing", "version": 2, "a": 1}'
    assert kind.content(text, "It", OptionError) == {"a": 1}
    for text, why in (
        ("[]", "It is not a thing of glm4v_magic."),
        ('{"format": "glm4v_magic.plan"}', "It is not a thing of glm4v_magic."),
        ('{"format": "glm4v_magic.thing"}', "It has version null; this one reads 2."),
        ('{"format": "glm4v_magic.thing", "version": 2.0}', "It has version 2.0; this"),
    ):
        with pytest.raises(OptionError, match=why):
            kind.content(text, "It", OptionError)


def test_pydantic_is_imported_when_something_is_checked():
    code = (
        "import sys\n"
        "import glm4v_magic.planning.files, glm4v_magic.session.session\n"
        "print('pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False"]


def test_what_may_never_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(DeviceMapError, match="It cannot be read: it is a device or a pipe"):
            text_of(path, "It", DeviceMapError)
        with pytest.raises(PromptError, match="cannot be read: it is a device or a pipe"):
            read_prompt(str(path))
