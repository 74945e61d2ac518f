"""What would be sent, without a model: prompt, tokens and images."""

from __future__ import annotations

from dataclasses import replace

import pytest
from IPython.utils.capture import capture_output
from PIL import Image
from shells import TINY

from glm4v_magic.calls.prompt import read_prompt
from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.errors import ConversationError, PromptError
from glm4v_magic.core.image import SeenImage
from glm4v_magic.images import SourcedImage, to_image
from glm4v_magic.notebook.render.answers.preview import preview_bundle, tokens_line
from glm4v_magic.session.preview import Piece, Preview, preview

IMAGE = "<|begin_of_image|><|endoftext|><|end_of_image|>"


@pytest.fixture(scope="module")
def checkpoint():
    return resolve(TINY)


@pytest.fixture
def cat() -> SourcedImage:
    return to_image(Image.linear_gradient("L").resize((60, 30)), "cat.png")


def conversation(text: str, *images: SourcedImage, system: str | None = None) -> Conversation:
    before = [Message("system", system)] if system else []
    return Conversation((*before, Message("user", text, images)))


def test_a_prompt_as_it_is_sent(checkpoint, cat):
    shown = preview(checkpoint, conversation("A cat? <|user|>", cat, system="Be brief."))
    assert shown.prompt == (
        f"[gMASK]<sop><|system|>\nBe brief.<|user|>\n{IMAGE}A cat? <|user|><|assistant|>"
    )
    assert [piece.text for piece in shown.pieces if piece.special].count("<|user|>") == 1
    assert shown.media == (cat,)


def test_tokens_are_those_the_model_would_get(checkpoint, cat):
    processor = checkpoint.processor()
    for asked in (conversation("A cat?", cat), conversation("Hello?", system="Hi")):
        shown = preview(checkpoint, asked)
        length = processor([asked])["input_ids"].shape[1]
        assert shown.text_tokens + shown.all_visual_tokens == length
        assert shown.all_visual_tokens == processor.num_visual_tokens * len(asked.images)
        context = checkpoint.config["seq_length"]
        assert shown.room == context - len(processor.prompt_ids(asked))


def test_what_the_checkpoint_refuses(checkpoint, cat):
    with pytest.raises(ConversationError, match="takes one image in a conversation"):
        preview(checkpoint, conversation("Two?", cat, cat))


def test_a_bundle_shows_images_prompt_and_tokens(cat):
    shown = Preview(
        "tiny",
        (Piece("<sop>", True), Piece("<i>A & B</i>\x1b[2J", False)),
        (cat,),
        (SeenImage((56, 56), 6),),
        text_tokens=1200,
        room=50,
    )
    bundle = preview_bundle(shown)
    photo, prompt, line = bundle["text/plain"].splitlines()
    assert photo == "cat.png, 60 x 30 px · the model sees 56 x 56 px · 6 visual tokens"
    assert prompt == "<sop><i>A & B</i>[2J"
    assert line == (
        "tiny · 1,206 tokens: 1,200 text + 6 visual · room for an answer of 50 tokens · "
        "nothing was sent"
    )
    assert '<span style="opacity:0.7">&lt;sop&gt;</span>&lt;i&gt;A &amp; B' in bundle["text/html"]
    assert 'width="56" height="56"' in bundle["text/html"]
    assert "too long for the model" in tokens_line(replace(shown, room=0))
    assert "<img" not in preview_bundle(replace(shown, media=(), seen=()))["text/html"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("qestion.txt", "There is no prompt file qestion.txt. Did you mean question.txt"),
        ("no/where.txt", "There is no prompt file no/where.txt."),
        (".", "The prompt file . cannot be read: Is a directory."),
        ("latin.txt", "The prompt file latin.txt is not text in UTF-8."),
        ("a\0b", "There is no prompt file a\0b."),
    ],
)
def test_a_prompt_file_that_cannot_be_read(tmp_path, monkeypatch, name, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "question.txt").write_text("Wie spät?", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("Wie spät?".encode("latin-1"))
    assert read_prompt("question.txt") == "Wie spät?"
    with pytest.raises(PromptError) as caught:
        read_prompt(name)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


# In a shell, where nothing is ever loaded.


@pytest.fixture
def tiny_shell(run, shell, photo):
    """A shell whose first question would load the tiny checkpoint; an 320 x 240 ``cat.png``."""
    run("%reload_ext glm4v_magic")
    run(f"%config Glm4v.model = {str(TINY)!r}")
    yield shell
    assert "not loaded" in run("%glm4v")


def bundles(shell, code: str) -> list[dict[str, str]]:
    with capture_output() as captured:
        result = shell.run_cell(code, store_history=True)
    result.raise_error()
    assert result.result is None
    return [output.data for output in captured.outputs]


@pytest.mark.parametrize(
    "code",
    [
        '%glm4v preview cat.png "A {{6 * 7}}?"',
        '%glm4v ask cat.png "A {{6 * 7}}?" --preview --temperature 0',
        "%%glm4v cat.png --preview\nA {{6 * 7}}?",
        "%glm4v preview cat.png --file question.txt",
        "%%glm4v cat.png -f question.txt --preview\n\n ",
    ],
)
def test_every_way_to_preview(tiny_shell, tmp_path, code):
    (tmp_path / "question.txt").write_text("A {{6 * 7}}?\n")
    (shown,) = bundles(tiny_shell, code)
    photo, *prompt, line = shown["text/plain"].splitlines()
    assert "\n".join(prompt) == f"[gMASK]<sop><|user|>\n{IMAGE}A 42?<|assistant|>"
    assert photo.startswith("cat.png, 320 x 240 px · the model sees 56 x 56 px")
    assert line.startswith(str(TINY))
    assert "<img" in shown["text/html"]


def test_options_that_change_what_is_sent(tiny_shell, run, tmp_path):
    def text(options: str, question="A {{1}}?") -> str:
        (shown,) = bundles(tiny_shell, f"%%glm4v --preview {options}\n{question}")
        return shown["text/plain"]

    frames = [Image.new("RGB", size) for size in ((8, 6), (10, 4))]
    frames[0].save(tmp_path / "scan.tif", save_all=True, append_images=frames[1:])
    assert "A {{1}}?" in text("--raw")
    assert '<|system|>\nBe "brief".<|user|>' in text("--system 'Be \"brief\".'")
    assert text("cat.png --crop 10,10,50,40").startswith("cat.png, crop 10,10,50,40, 50 x 40 px")
    assert text("scan.tif --page 2").startswith("scan.tif, page 2, 10 x 4 px")
    run("%config Glm4v.system = 'Always.'")
    assert "<|system|>\nAlways.<|user|>" in text("")
    assert "Always." not in text("--system ''")


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("%%glm4v cat.png -f q.txt\nAnd?", "another in --file"),
        ("%glm4v preview cat.png -f q.txt", "There is no prompt file q.txt"),
        ("%glm4v preview -f empty.txt", "The prompt is empty"),
        ("%glm4v preview cat.png", "%glm4v preview needs a question in quotes"),
        ('%glm4v preview "A?" --crop 0,0,1,1', "--crop is about an image, and there is none"),
        ('%glm4v preview "A?" --page 1', "--page is about an image, and there is none"),
        ('%glm4v preview cat.png "A?" --crop 0,0,1', "is not four numbers"),
        ('%glm4v preview cat.png "A?" --crop 300,0,50,50', "reaches to x 350, y 50 of cat.png"),
        ('%glm4v preview cat.png "A?" --page 2', "cat.png has only 1 page, and no page 2."),
        ('%glm4v preview cat.png "A?" --page two', "--page is 'two', but must be a whole number"),
        ('%glm4v preview cat.png cat.png "A?"', "takes one image in a conversation"),
    ],
)
def test_what_cannot_be_previewed(tiny_shell, run, tmp_path, code, part):
    (tmp_path / "empty.txt").touch()
    line = run(code, fails=True).strip().splitlines()[-1]
    assert line.startswith("UsageError: ")
    assert part in line
