"""A prompt as a family's processor returns it: places, sizes and pixels of its images."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from shells import TINY

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.image import SeenImage
from glm4v_magic.images import to_image


@pytest.fixture(scope="module")
def processor():
    return resolve(TINY).processor()


def test_the_place_and_the_pixels_of_an_image(processor):
    cat = to_image(Image.linear_gradient("L").resize((60, 30)), "cat.png")
    asked = Conversation(
        (Message("system", "<|begin_of_image|>"), Message("user", "A cat?", (cat,)))
    )
    encoded = processor.encode(asked)
    inputs = processor([asked])
    assert list(encoded.ids) == inputs["input_ids"][0].tolist()
    (image,) = encoded.images
    within = encoded.ids[image.start : image.stop]
    assert (within[0], within[-1]) == (processor.boi_token_id, processor.eoi_token_id)
    assert encoded.visual_tokens == image.visual_tokens == len(within) == 6
    assert image.seen == SeenImage((56, 56), 6)
    assert torch.equal(image.pixels(), inputs["pixel_values"][0])
    assert encoded.length == len(encoded.published) == len(encoded.ids) - 3


def test_text_alone(processor):
    asked = Conversation((Message("user", "A cat?"),))
    encoded = processor.encode(asked, thinking=True)
    assert encoded.images == ()
    assert encoded.ids == encoded.published
    assert encoded.length == len(encoded.ids)
    assert not encoded.inside_thinking
