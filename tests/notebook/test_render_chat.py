"""How chats are shown."""

from __future__ import annotations

from PIL import Image
from wide_text import wide

from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.video import SourcedVideo
from glm4v_magic.images import SourcedImage
from glm4v_magic.notebook.render.answers.chat import chats_bundle, history_bundle

IMAGE = SourcedImage(Image.new("RGB", (2, 2)), "<b>.png", (20, 10))
TALK = Conversation(
    (
        Message("user", "Is *this*\na <script>?", (IMAGE,)),
        Message("assistant", "**No**, <img src=x onerror=alert(1)>."),
        Message("user", "Why " + "so " * 40),
        Message("assistant", "Beca", complete=False),
    )
)


def test_history_shows_every_turn_and_what_was_stopped():
    plain = history_bundle(TALK)["text/plain"]
    assert plain.startswith("You:\n[<b>.png, 20 x 10 px]\nIs *this*\na <script>?\n\nModel:\n**No**")
    assert plain.endswith("Model (unfinished):\nBeca")


def test_history_renders_answers_and_quotes_questions():
    markdown = history_bundle(TALK)["text/markdown"]
    assert "**No**" in markdown
    assert "*this*" not in markdown
    for hostile in ("<script", "<img", "<b>"):
        assert hostile not in markdown


def test_thinking_is_folded():
    answer = Message("assistant", "No.", thinking="Hm, <script>\n\n$x$?")
    bundle = history_bundle(Conversation((Message("user", "Is it?"), answer)))
    assert bundle["text/plain"].endswith("Model:\n[Thought, 18 characters]\nNo.")
    (line,) = [line for line in bundle["text/markdown"].split("\n") if "<details" in line]
    assert line.startswith(
        '<details style="margin-bottom:0.6em"><summary style="user-select:none">'
        "<small>Thought, 18 characters</small>"
    )
    assert line.endswith("</details>")
    assert "<script" not in line
    assert "$x$" not in line


def test_chinese_names_keep_the_columns_and_clips_are_counted():
    clip = SourcedVideo("a.mp4", (4, 4), 1, 1.0, lambda *_: iter(()), 0.0, None, True)
    chats = [
        ("图像", Conversation((Message("user", "片段"),))),
        ("cats", Conversation((Message("user", "What?", videos=(clip,)),))),
        ("both", Conversation((Message("user", "What?", (IMAGE,), videos=(clip,)),))),
    ]
    lines = chats_bundle(chats, "cats")["text/plain"].splitlines()
    ends = ("latest question", "片段", "What?", "What?")
    starts = {wide(line.removesuffix(end)) for line, end in zip(lines, ends, strict=True)}
    assert len(starts) == 1
    assert [line.partition("question ")[2].split("  ")[0].strip() for line in lines[1:]] == [
        "0 images", "1 video", "1 image, 1 video",
    ]  # fmt: skip


def test_chats_are_listed_with_the_current_one_marked():
    bundle = chats_bundle([("", Conversation()), ("cats <3", TALK)], "cats <3")
    head, first, second = bundle["text/plain"].splitlines()
    assert head.split() == ["chat", "questions", "images", "latest", "question"]
    assert first.split() == ["(unnamed)", "0", "questions", "0", "images"]
    assert second.startswith("->  cats <3    2 questions  1 image ")
    assert second.endswith("...")
    html = bundle["text/html"]
    assert "cats &lt;3" in html
    assert html.count("<tr>") == 3
    assert html.count('aria-label="current"') == 1
