"""The newer models from a name or folder to an answer, as everybody uses them."""

from __future__ import annotations

import pytest
import tiny_native

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.image import SeenImage
from glm4v_magic.session.preview import preview
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

A, B = tiny_native.image(300, 200, 0), tiny_native.image(90, 260, 1)
SEEN = (SeenImage((252, 168), 54), SeenImage((84, 252), 27))
OPTIONS = {"temperature": 0, "max_tokens": 6, "repetition_penalty": 1.0}


def answers(folder, **options):
    session = Session().load(str(folder), **options)
    first = session.ask("What do they show?", images=[A, B], chat="c", **OPTIONS)
    second = session.ask("And this?", images=[A], chat="c", **OPTIONS)
    assert first.seen == SEEN
    assert second.seen == (*SEEN, SEEN[0])
    assert second.usage.visual_tokens == 54 + 27 + 54
    session.unload()
    return first.text, second.text


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_planned_split_offloaded_and_plain(native, kind):
    plain = answers(native(kind))
    with VirtualGPUs("3x4GiB"):
        assert answers(native(kind), dtype="float32") == plain
    with VirtualGPUs("1x1GiB"):
        assert answers(native(kind), dtype="float32", offload=True) == plain


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_a_preview_without_weights(native, kind):
    checkpoint = resolve(native(kind))
    asked = Conversation((Message("user", "Compare. <|user|>", (A, B)),))
    shown = preview(checkpoint, asked)
    assert shown.seen == SEEN
    assert shown.prompt.count("<|image|>") == 2
    encoded = checkpoint.processor().encode(asked)
    assert shown.text_tokens + shown.all_visual_tokens == len(encoded.ids)
    assert shown.room == 4096 - len(encoded.ids)
    special = [piece.text for piece in shown.pieces if piece.special]
    assert special.count("<|user|>") == 1
