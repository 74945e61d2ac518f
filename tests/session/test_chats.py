"""Conversations by name, and their files."""

from __future__ import annotations

import json

import pytest
from any_json import changed_somewhere, taken_or_refused
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.errors import ConversationError
from glm4v_magic.images import SourcedImage
from glm4v_magic.session.chat_file import from_json, to_json, to_markdown
from glm4v_magic.session.chats import UNNAMED, Chats


def talk(*texts: str, complete: bool = True) -> Conversation:
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], text) for i, text in enumerate(texts)]  # type: ignore[arg-type]
    if not complete:
        messages[-1] = Message("assistant", texts[-1], complete=False)
    return Conversation(tuple(messages))


def test_the_latest_chat_is_current():
    chats = Chats()
    assert chats.get() is None
    chats.keep(UNNAMED, talk("a", "b"))
    chats.keep("cats", talk("c", "d"))
    assert chats.current == "cats"
    assert chats.require() == talk("c", "d")
    assert chats.require(UNNAMED) == talk("a", "b")
    assert list(chats.all()) == [UNNAMED, "cats"]


def test_a_chat_that_is_gone_is_not_current():
    chats = Chats()
    chats.keep("cats", talk("a"))
    chats.keep("dogs", talk("b"))
    assert chats.reset("dogs") == ("dogs",)
    assert chats.get() is None
    assert chats.reset("dogs") == chats.reset() == ()
    assert chats.clear() == ("cats",)
    assert chats.all() == {}


def test_unknown_chats_are_named_with_what_there_is():
    chats = Chats()
    with pytest.raises(ConversationError, match="no conversation to go on with"):
        chats.require()
    with pytest.raises(ConversationError, match="chat='cats' begins one"):
        chats.require("cats")
    chats.keep("cats", talk("a"))
    with pytest.raises(ConversationError, match="Did you mean cats"):
        chats.require("cat")
    with pytest.raises(ConversationError, match="There is cats"):
        chats.require("zebra")


def test_json_gives_back_every_pixel():
    photo = Image.effect_noise((7, 5), 60).convert("RGB")
    question = Message("user", "Ж {{x}} <b>", (SourcedImage(photo, "noise", (70, 50)),))
    stopped = Message("assistant", "It is ", complete=False)
    before = Conversation((Message("system", "short"), question, stopped))
    name, after = from_json(to_json(before, "cats"))
    assert name == "cats"
    assert [(m.role, m.text, m.complete) for m in after.messages] == [
        ("system", "short", True),
        ("user", "Ж {{x}} <b>", True),
        ("assistant", "It is ", False),
    ]
    (restored,) = after.images
    assert (restored.source, restored.original_size) == ("noise", (70, 50))
    assert restored.image.tobytes() == photo.tobytes()


def test_thinking_is_kept_in_files_and_older_files_are_read():
    thoughts = Message("assistant", "Yes.", thinking="Hm.\n\nSo </DETAILS> <b>it</b>?")
    before = Conversation((Message("user", "Is it?"), thoughts))
    assert from_json(to_json(before))[1] == before
    assert to_markdown(before) == (
        "**Question**\n\nIs it?\n\n**Answer**\n\n<details><summary>Thinking</summary>\n\n"
        "Hm.\n\nSo &lt;/DETAILS> <b>it</b>?\n\n</details>\n\nYes.\n"
    )
    older = json.loads(to_json(talk("a", "b")))
    assert all("thinking" not in message for message in older["messages"])


def damaged(change: dict, message: dict | None = None, photo: dict | None = None) -> str:
    image = SourcedImage(Image.new("RGB", (2, 2)), "dot", (2, 2))
    data = json.loads(to_json(Conversation((Message("user", "a", (image,)),))))
    data.update(change)
    if message is not None:
        data["messages"][0].update(message)
    if photo is not None:
        data["messages"][0]["images"][0].update(photo)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "chat.json is not valid JSON"),
        ("[]", "not an exported chat"),
        (damaged({"format": "other"}), "not an exported chat"),
        (damaged({"version": 7}), "has version 7; this one reads 1"),
        (damaged({"name": 3}), "chat.json has 3 for 'name': it should be a valid string"),
        (damaged({"messages": {}}), r"has \{\} for 'messages': it should be a list"),
        (damaged({"messages": ["a"]}), r"has 'a' for 'messages\[0\]': it should be an object"),
        (damaged({}, {"role": "robot"}), r"has 'robot' for 'messages\[0\].role': it should be 's"),
        (damaged({}, {"text": None}), r"has null for 'messages\[0\].text'"),
        (damaged({}, {"thinking": "Hm"}), r"at 'messages\[0\]': it has a thinking, but is not an"),
        (damaged({}, {"role": "assistant", "thinking": 1}), r"has 1 for 'messages\[0\].thinking'"),
        (damaged({}, {"extra": 1}), r"has an unknown entry 'messages\[0\].extra'"),
        (damaged({}, {}, {"original_size": [2]}), r"messages\[0\].images\[0\].original_size'"),
        (damaged({}, {}, {"original_size": [2, 0]}), r"images\[0\].original_size\[1\]'"),
        (damaged({}, {}, {"png": "%%"}), r"images\[0\].png': it is not base64"),
        (damaged({}, {}, {"png": "Ж"}), "it is not base64"),
        (damaged({}, {}, {"png": 3}), "it should be a string"),
    ],
)
def test_files_of_another_kind_are_refused_in_one_line(text: str, message: str):
    with pytest.raises(ConversationError, match=message) as caught:
        from_json(text, "chat.json")
    assert "\n" not in str(caught.value)


@given(st.data())
def test_a_chat_with_anything_in_any_place_is_taken_or_refused_in_one_line(data: st.DataObject):
    content = changed_somewhere(json.loads(damaged({})), data)
    taken_or_refused(lambda: to_markdown(from_json(json.dumps(content))[1]))


def test_markdown_names_images_and_marks_what_was_stopped():
    image = SourcedImage(Image.new("RGB", (2, 2)), "dot.png", (20, 10))
    conversation = Conversation(
        (Message("user", "What?", (image,)), Message("assistant", "A do", complete=False))
    )
    assert to_markdown(conversation, "dots") == (
        "# dots\n\n**Question**\n\n*dot.png, 20 x 10 px*\n\nWhat?\n\n"
        "**Answer** (unfinished)\n\nA do\n"
    )


def test_what_is_left_when_the_last_answer_goes():
    assert talk("a", "b").without_last_answer() == talk("a")
    assert talk("a").without_last_answer() == talk("a")
    assert Conversation().without_last_answer() == Conversation()


def test_only_an_answer_that_was_stopped_is_unfinished():
    assert talk("a", "b").unfinished is None
    assert talk("a", "b", complete=False).unfinished == "b"
    assert Conversation().unfinished is None
