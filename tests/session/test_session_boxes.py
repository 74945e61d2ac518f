"""Boxes in a session: in answers, streams, chats and their files, and rows."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle

import numpy as np
import pandas as pd
import pytest
import tiny_native
from PIL import Image
from scripted_server import CHAT, END, MODELS, models, piece, scripted_server, stream
from standins.speaker import Speaker

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.boxes import BOX_TAGS, Box, Point
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import ConversationError, FormatError, OptionError
from glm4v_magic.core.events import Finished, Text
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines.local import load
from glm4v_magic.session.chat_file import from_json, to_json, to_markdown
from glm4v_magic.session.session import Session

OPEN, CLOSE = BOX_TAGS
PHOTO = Image.new("RGB", (200, 100), "gray")
SAID = f"The cat is here: {OPEN}[[100, 300, 600, 900]]{CLOSE}."
SHOWN = "The cat is here: [[100, 300, 600, 900]]."
CAT = Box("", 20, 30, 120, 90)


def saying(*answers):
    speaker = Speaker(*answers)
    return Session(speaker), speaker


def test_an_answer_has_boxes_and_a_text_without_tags():
    session, _ = saying((SAID, "stop"))
    events = list(session.stream("Where?", PHOTO))
    answer = events[-1].answer
    assert (answer.text, answer.written, answer.boxes) == (SHOWN, SAID, (CAT,))
    assert (answer.points, answer.boxes_fault) == ((), "")
    assert "".join(e.text for e in events if isinstance(e, Text)).strip() == SHOWN


def test_a_final_answer_between_the_tags_is_the_answer():
    session, _ = saying((f"{OPEN}42{CLOSE}", "stop"), (f"{OPEN}no{CLOSE}", "stop"))
    answer = session.ask("How many?", PHOTO)
    assert (answer.text, answer.boxes) == ("42", ())
    assert session.ask("Is it?", PHOTO, choices=["yes", "no"]).text == "no"


def test_an_answer_without_tags_is_as_it_was():
    session, _ = saying(("No cat.", "stop"))
    assert session.ask("Where?", PHOTO).written == ""
    assert session.conversation().messages[-1].written == ""


def test_code_and_json_have_boxes_only_where_they_are_named_so():
    table = '{"table": [[1, 2, 3, 4]]}'
    named = '[{"bbox_2d": [100, 300, 600, 900], "label": "cat"}]'
    session, _ = saying((table, "stop"), (named, "stop"), (table, "stop"))
    assert session.ask("Which?", PHOTO, format="json").boxes == ()
    answer = session.ask("Where?", PHOTO, format="json")
    assert answer.boxes == (Box("cat", 20, 30, 120, 90),)
    assert answer.value[0]["label"] == "cat"
    assert len(session.ask("Which?", PHOTO).boxes) == 1


def test_what_follows_tells_the_model_what_it_wrote():
    session, speaker = saying((SAID, "stop"), ("Yes.", "stop"))
    session.ask("Where?", PHOTO)
    session.ask("Sure?", follow_up=True)
    assert [m.text for m in speaker.requests[1].conversation.messages] == ["Where?", SAID, "Sure?"]
    assert [m.text for m in session.conversation().messages][1] == SHOWN


def test_a_user_who_types_tags_keeps_them():
    session, speaker = saying(("Yes.", "stop"))
    session.ask(SAID, PHOTO)
    assert speaker.requests[0].conversation.question == SAID


@pytest.mark.parametrize("at", range(1, len(SAID)))
def test_an_answer_may_be_carried_on_anywhere(at):
    session, speaker = saying((SAID[:at], "length"), (SAID[at:], "stop"))
    first = session.ask("Where?", PHOTO)
    assert "<|" not in first.text
    assert SHOWN.startswith(first.text.removesuffix("<"))  # one alone may be text
    *_, done = session.stream_carry_on()
    assert speaker.requests[1].conversation.unfinished == SAID[:at]
    assert (done.answer.text, done.answer.boxes) == (SHOWN, (CAT,))
    assert session.conversation().messages[-1].written == SAID


def test_an_interrupt_keeps_what_the_model_wrote():
    session, _ = saying((f"Here: {OPEN}[[1, 2", "stop"))
    stream = session.stream("Where?", PHOTO)
    for event in stream:
        if isinstance(event, Text) and "[[1," in event.text:
            break
    stream.close()
    last = session.conversation().messages[-1]
    assert (last.text, last.written, last.complete) == (
        "Here: [[1,", f"Here: {OPEN}[[1,", False,
    )  # fmt: skip


def test_a_correction_is_told_what_was_written_and_has_boxes_of_its_own():
    schema = {"type": "object", "required": ["label"]}
    good = f'{OPEN}{{"label": "cat", "bbox_2d": [100, 300, 600, 900]}}{CLOSE}'
    session, speaker = saying((f"{OPEN}{{}}{CLOSE}", "stop"), (good, "stop"))
    answer = session.ask("Where?", PHOTO, schema=schema)
    assert answer.corrected
    assert (answer.boxes, answer.written) == ((Box("cat", 20, 30, 120, 90),), good)
    assert answer.text == good.removeprefix(OPEN).removesuffix(CLOSE)
    assert speaker.requests[1].conversation.messages[1].text == f"{OPEN}{{}}{CLOSE}"
    bad, _ = saying(("no", "stop"), ("no", "stop"))
    with pytest.raises(FormatError):
        bad.ask("Where?", PHOTO, schema=schema)


def test_a_chat_file_keeps_what_was_written():
    session, _ = saying((SAID, "stop"))
    session.ask("Where?", PHOTO, chat="cats")
    chat = session.conversation("cats")
    name, again = from_json(to_json(chat, "cats"))
    assert name == "cats"
    assert again.messages[-1] == chat.messages[-1]
    assert [m.text for m in again.as_written().messages] == ["Where?", SAID]
    assert f"{SHOWN}\n\n- 1: (20, 30) to (120, 90) px" in to_markdown(chat)


def test_what_a_model_says_is_plain_where_a_chat_is_read():
    label = '<img src=x onerror="alert(1)">\u202e'
    said = json.dumps([{"bbox_2d": [100, 300, 600, 900], "label": label}])
    session, _ = saying((f"Turned: \u202e\x1b[2J{said}", "stop"))
    session.ask("Where?", PHOTO, chat="cats")
    text = to_markdown(session.conversation("cats"))
    assert '- 1 &lt;img src=x onerror="alert(1)"&gt;: (' in text
    assert not {"\u202e", "\x1b"} & {*text}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"text": "No."}, "its text is not what it is without the tags"),
        ({"role": "user"}, "it has tags around boxes, but is not an answer"),
        ({"written": 3}, "written"),
    ],
)
def test_a_chat_file_shows_what_a_model_would_be_told(change, fault):
    message = Message("assistant", SHOWN, written=SAID)
    content = json.loads(to_json(Conversation((message,))))
    content["messages"][0] |= change
    with pytest.raises(ConversationError, match=fault):
        from_json(json.dumps(content))


def test_drawing_and_cutting_out():
    session, _ = saying((SAID, "stop"), ("None.", "stop"))
    answer = session.ask("Where?", PHOTO)
    drawn = answer.draw()
    assert drawn.size == PHOTO.size
    assert drawn.getpixel((20, 60)) == (0, 0, 0)
    assert answer.draw(0).tobytes() == drawn.tobytes()
    assert answer.crop(0).size == answer.crop(-1).size == (100, 60)
    with pytest.raises(OptionError, match=r"There is no box 1: the answer has 1 box\."):
        answer.crop(1)
    with pytest.raises(OptionError, match=r"There is no image 1: the answer has 1 image\."):
        answer.draw(1)
    assert answer.crop(np.int64(0)).size == answer.crop(0).size
    for index in (0.5, math.nan, "0", None, [0]):
        with pytest.raises(OptionError, match="A box is named by its index, a whole number; "):
            answer.crop(index)
    with pytest.raises(OptionError, match="An image is named by its index, a whole number"):
        answer.draw(0.5)
    none = session.ask("Which?")
    with pytest.raises(OptionError, match=r"There is no box 0: the answer has no boxes\."):
        none.crop(0)
    with pytest.raises(OptionError, match="nothing to draw on: the answer has no images"):
        none.draw()


def test_the_image_with_boxes_is_drawn():
    said = f"Image 1: {OPEN}[[100, 300, 600, 900], [500, 500]]{CLOSE}"
    session, _ = saying((said, "stop"))
    answer = session.ask("Where?", [PHOTO, Image.new("RGB", (50, 50))])
    assert (answer.boxes, answer.points) == ((CAT,), (Point("", 100, 50),))
    assert answer.draw().size == PHOTO.size
    assert answer.draw(1).getcolors() == [(2500, (0, 0, 0))]


def test_rows_have_boxes_of_the_original_and_a_column():
    frame = pd.DataFrame({"image": [PHOTO, Image.new("RGB", (1000, 1000))]})
    session, _ = saying((SAID, "stop"), ("None.", "stop"))
    seen = list(session.stream_map("Where?", frame, column="image"))
    told = [event.text for event in seen if isinstance(event, Text) and event.row == 0]
    assert "".join(told).strip() == SHOWN
    result = seen[-1].result
    assert result["boxes"].tolist() == [(CAT,), ()]
    assert "points" not in result
    assert result["answer"].tolist() == [SHOWN, "None."]
    session, _ = saying(("None.", "stop"), ("None.", "stop"))
    assert "boxes" not in session.map("Where?", frame, column="image")


def test_a_server_that_sends_tags_in_parts():
    """Cut anywhere, with tokens that are placed in the text without tags."""
    parts = [SAID[at : at + 5] for at in range(0, len(SAID), 5)]
    pieces = [piece(each) for each in parts]
    for each in pieces:
        content = each["choices"][0]["delta"]["content"]
        each["choices"][0]["logprobs"] = {"content": [{"token": content, "logprob": -1.0}]}
    with scripted_server() as server:
        server.answer(MODELS, models("glm-4.6v"))
        server.answer(CHAT, stream(*pieces, END))
        session = Session().load(server.url)
        events = list(session.stream("Where?", PHOTO, logprobs=0))
        answer = events[-1].answer
        assert (answer.text, answer.written, answer.boxes) == (SHOWN, SAID, (CAT,))
        assert "".join(event.text for event in events if isinstance(event, Text)) == SHOWN
        assert len(answer.tokens) == len(parts)
        assert "".join(SHOWN[each.start : each.end] for each in answer.tokens) == SHOWN
        session.ask("Sure?", follow_up=True)
        assert server.bodies[-1]["messages"][1] == {"role": "assistant", "content": SAID}
        session.unload()


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_a_model_in_this_process_tells_its_tags(native, kind, monkeypatch):
    engine = load(resolve(native(kind)), keep=0)
    tokens = engine.processor.tokenizer.get_added_vocab()
    ids = [tokens[OPEN], *engine.processor.text_ids("[[1,2,3,4]]"), tokens[CLOSE]]
    partial = Message("assistant", "Here:", complete=False)
    monkeypatch.setattr(
        engine.model, "forward", _by_heart(engine.model.forward, [*ids, tokens["<|user|>"]])
    )
    request = Request(
        Conversation((Message("user", "?"), partial)),
        Sampling(temperature=0, max_tokens=40, repetition_penalty=1.0, logprobs=0),
    )
    (done,) = [each for each in engine.stream([request]) if isinstance(each, Finished)]
    assert done.generation.text == f"{OPEN}[[1,2,3,4]]{CLOSE}"
    text = done.generation.text
    spelled = [text[each.start : each.end] for each in done.generation.tokens]
    assert spelled[0] == OPEN
    assert "".join(spelled) == text


def _by_heart(forward, ids):
    """A model's forward pass that finds these ids the likeliest, one after the other."""
    rest = iter(ids)

    def recited(*args, **kwargs):
        found = forward(*args, **kwargs)
        found.logits[:] = 0
        found.logits[..., next(rest)] = 50
        return found

    return recited


def test_an_answer_can_be_compared_copied_and_pickled():
    session, _ = saying((SAID, "stop"))
    answer = session.ask("Where?", PHOTO)
    for again in (copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):
        assert again == answer
        assert again.crop(0).size == (100, 60)


def test_boxes_of_a_video_are_on_its_frames(native, tmp_path):
    session = Session().load(str(native("glm46v")))
    frames = [tiny_native.noise(70, 50, seed) for seed in range(4)]
    said = '[{"frame":1,"bbox_2d":[100,200,600,800],"label":"cat"},{"time":1.5,"point":[500,500]}]'
    with tiny_native.Says(session.engine, said):
        options = {"thinking": False, "temperature": 0, "repetition_penalty": 1.0}
        answer = session.ask("Where?", video=frames, fps=2, max_tokens=100, **options)
    session.unload()
    assert answer.boxes == (Box("cat", 7, 10, 42, 40, frame=1),)
    assert answer.points == (Point("", 35, 25, frame=3),)
    seen = answer.videos[0].seen[1].image.image
    drawn = answer.draw()
    assert drawn.size == seen.size != (70, 50)
    assert drawn.tobytes() != seen.convert("RGB").tobytes()
    across = seen.width / 70
    assert answer.crop(0).width == pytest.approx(35 * across, abs=1)
    _, conversation = from_json(to_json(session.conversation()), "chat.json")
    assert "1 cat: (7, 10) to (42, 40) px: frame 1, " in to_markdown(conversation)
    with pytest.raises(OptionError, match="There is no image 0: the answer has no images"):
        answer.draw(0)
    with pytest.raises(OptionError, match="is about a video, and marks no frame of it"):
        dataclasses.replace(answer, boxes=(), points=()).draw()
