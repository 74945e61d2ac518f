"""The newer models from a name or folder to an answer, as everybody uses them."""

from __future__ import annotations

import pytest
import tiny_native
from IPython.utils.capture import capture_output
from PIL import Image, ImageDraw
from shells import ipython_shell

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.events import Started
from glm4v_magic.core.image import SeenImage
from glm4v_magic.session.preview import preview
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

A, B = tiny_native.image(300, 200, 0), tiny_native.image(90, 260, 1)
SEEN = (SeenImage((252, 168), 54), SeenImage((84, 252), 27))
SEEN_BY_GLM5 = (SEEN[0], SeenImage((112, 280), 40))  # it rounds up
OPTIONS = {"temperature": 0, "max_tokens": 6, "repetition_penalty": 1.0}


def seen_by(kind):
    return SEEN_BY_GLM5 if kind == "glm5_next" else SEEN


def answers(folder, seen, **options):
    session = Session().load(str(folder), **options)
    first = session.ask("What do they show?", images=[A, B], chat="c", **OPTIONS)
    second = session.ask("And this?", images=[A], chat="c", **OPTIONS)
    assert first.seen == seen
    assert second.seen == (*seen, seen[0])
    assert second.usage.visual_tokens == sum(each.visual_tokens for each in second.seen)
    session.unload()
    return first.text, second.text


# GLM-5 takes ten times as long, and the code of glmga is that of glm46v.
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.nightly if kind in ("glm5_next", "glmga") else ())
        for kind in tiny_native.KINDS
    ],
)
def test_planned_split_offloaded_and_plain(native, kind):
    plain = answers(native(kind), seen_by(kind))
    with VirtualGPUs("3x4GiB"):
        spread = {"dtype": "float32", "objective": "balance"}
        assert answers(native(kind), seen_by(kind), **spread) == plain
    with VirtualGPUs("1x1GiB"):
        assert answers(native(kind), seen_by(kind), dtype="float32", offload=True) == plain


@pytest.mark.parametrize("options", [{"thinking": False}, {"max_thinking": 0}])
def test_an_answer_without_thinking_is_carried_on_to_what_it_would_have_been(options):
    session = Session().load("demo-4.6v")
    image = Image.new("RGB", (224, 224), "white")
    ImageDraw.Draw(image).ellipse((60, 60, 160, 160), fill="red")
    given = {"images": [image], "temperature": 0, **options}
    whole = session.ask("What colour is the circle?", **given).text
    assert whole == "The circle is red."
    cut = session.ask("What colour is the circle?", max_tokens=6, chat="c", **given)
    assert (cut.thinking, cut.finish_reason) == ("", "length")
    carried = session.carry_on("c", temperature=0)
    assert (carried.text, carried.thinking) == (whole, "")


def test_efforts(native):
    session = Session().load(str(native("glm5_next")))
    assert session.status().info.efforts == ("low", "high", "max")
    said = {session.ask("?", images=[A], effort=each, **OPTIONS).text for each in ("low", "max")}
    assert len(said) == 2
    for kind in ("glm46v", "glm_ocr"):
        with pytest.raises(OptionError, match="effort low: it has no choice of it"):
            Session().ask("?", model=str(native(kind)), effort="low", **OPTIONS)
    with pytest.raises(OptionError, match="there are low, high, max"):
        session.ask("?", effort="medium", **OPTIONS)


def test_a_first_question_may_ask_for_thinking(native):
    with Session().stream(
        "?", [A], model=str(native("glm46v")), thinking=True, **OPTIONS
    ) as events:
        started = next(event for event in events if isinstance(event, Started))
    assert started.seen == SEEN[:1]
    with pytest.raises(OptionError, match="does not think"):
        Session().ask("?", model=str(native("glm_ocr")), thinking=True, **OPTIONS)


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_a_preview_without_weights(native, kind):
    checkpoint = resolve(native(kind))
    asked = Conversation((Message("user", "Compare. <|user|>", (A, B)),))
    shown = preview(checkpoint, asked)
    assert shown.seen == seen_by(kind)
    assert shown.prompt.count("<|image|>") == 2
    encoded = checkpoint.processor().encode(asked)
    assert shown.text_tokens + shown.all_visual_tokens == len(encoded.ids)
    assert shown.room == 4096 - len(encoded.ids)
    special = [piece.text for piece in shown.pieces if piece.special]
    assert special.count("<|user|>") == 1


def test_a_cell_shows_what_the_model_sees_of_each_image(native, tmp_path):
    A.image.save(tmp_path / "a.png")
    B.image.save(tmp_path / "b.png")
    with ipython_shell(tmp_path) as shell, capture_output() as captured:
        shell.run_line_magic("load_ext", "glm4v_magic")
        shell.run_cell(f"%glm4v load {native('glm46v')}")
        shell.run_cell(f"%%glm4v {tmp_path}/a.png {tmp_path}/b.png --max-tokens 4\nCompare")
    shown = "\n".join(str(output.data.get("text/plain")) for output in captured.outputs)
    assert "a.png, 300 x 200 px · the model sees 252 x 168 px · 54 visual tokens" in shown
    assert "b.png, 90 x 260 px · the model sees 84 x 252 px · 27 visual tokens" in shown
