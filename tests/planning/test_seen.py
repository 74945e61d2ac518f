"""How large the images are that a plan counts, and that a load shows a model."""

from __future__ import annotations

import pytest
import tiny_native

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.glm_native.tower import grid_of
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.errors import ConversationError, OptionError
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.files import plan_from_json
from glm4v_magic.planning.plan import plan
from glm4v_magic.planning.seen import image_size_of, planned_image

PUBLISHED = architecture("GLM-4.1V-9B-Thinking").shape()


@pytest.mark.parametrize(
    ("workload", "tokens"),
    [
        (Workload(), 6144),
        (Workload(image_size=1120), 1600),
        (Workload(image_size=1147), 1677),  # 1147^2 / 28^2 = 1678.07, in whole rows and columns
        (Workload(image_size=5000), 6144),
        (Workload(context=8192, images=5), 1226),
        (Workload(context=4096), 3070),
        (Workload(context=4096, image_size=1120), 1600),
        (Workload(context=10), 16),
    ],
)
def test_visual_tokens_of_the_largest_image(workload, tokens):
    found = planned_image(PUBLISHED, workload)
    assert abs(found.visual_tokens - 2 - tokens) <= 2
    assert found.positions == found.visual_tokens
    assert found.patches == 4 * (found.visual_tokens - 2)


@pytest.mark.parametrize("workload", [Workload(), Workload(context=4096, images=3)])
def test_the_size_of_a_plan_means_the_same_in_any_context(workload):
    size = image_size_of(PUBLISHED, workload)
    again = Workload(image_size=size, images=10)
    assert image_size_of(PUBLISHED, again) == size
    assert planned_image(PUBLISHED, again) == planned_image(PUBLISHED, workload)


def test_a_plan_says_how_large_and_its_file_keeps_it():
    made = plan(PUBLISHED, (), Workload(context=8192, images=5))
    assert "5 images of up to 980 x 980 px" in str(made)
    assert plan_from_json(made.to_json()).workload.image_size == 980


def test_larger_images_take_more_of_a_gpu():
    def total(**options):
        model = architecture("GLM-OCR")
        made = make_plan(model, PlacementOptions(gpus="1x24GiB", context=32_768, **options))
        return made.stages[0].total_bytes

    assert total(image_size=560, images=4) < total(image_size=1120, images=4) < total(images=4)


@pytest.mark.parametrize("name", ["GLM-4V-9B", "demo"])
def test_a_model_of_one_size_has_none_to_choose(name):
    model = architecture(name)
    with pytest.raises(OptionError, match="sees every image in the same size"):
        make_plan(model, PlacementOptions(gpus="8x80GiB", image_size=560))
    assert plan(model.shape(), ()).workload.image_size is None


def test_a_size_below_the_smallest_image():
    with pytest.raises(OptionError, match="sees no image smaller than 112 x 112"):
        plan(PUBLISHED, (), Workload(image_size=111))


@pytest.mark.parametrize("tokens", [*range(16, 700, 7), 1600, 6144, 8000])
def test_a_grid_of_nearly_as_many_tokens(tokens):
    rows, columns = grid_of(tokens)
    assert tokens - rows * columns <= 1 + tokens // 50
    assert rows <= columns <= 25 * rows


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_the_file_of_a_checkpoint_counts(native, kind):
    shape = architecture(str(native(kind))).shape()
    assert shape.image_tokens == 64
    assert (shape.visual_tokens, shape.patches) == (66, 256)
    processor = resolve(native(kind)).processor()
    large = tiny_native.image(900, 1700)
    (seen,) = processor.encode(Conversation((Message("user", "Q?", (large,)),))).images
    assert 0.75 * 64 <= seen.visual_tokens <= 64


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_an_image_is_seen_as_transformers_sees_it_under_the_same_limit(native, kind):
    processor = resolve(native(kind)).processor(image_size=150)
    large = tiny_native.image(400, 300)
    (seen,) = processor.encode(Conversation((Message("user", "Q?", (large,)),))).images
    assert seen.size[0] * seen.size[1] <= 150**2
    oracle = tiny_native.oracle(native(kind)).image_processor
    limit = {"size": {"shortest_edge": 12544, "longest_edge": 2 * 150**2}}
    if kind == "glm5_next":
        limit = {"max_image_tokens": 150**2 // 28**2}
    expected = oracle([large.image], return_tensors="pt", **limit)
    assert seen.grid == tuple(expected["image_grid_thw"][0].tolist())
    assert (seen.pixels() == expected["pixel_values"]).all()
    (free,) = (
        resolve(native(kind))
        .processor()
        .encode(Conversation((Message("user", "Q?", (large,)),)))
        .images
    )
    assert free.visual_tokens > seen.visual_tokens


def test_an_image_too_long_for_the_size(native):
    processor = resolve(native("glm4v")).processor(image_size=112)
    with pytest.raises(ConversationError, match="too long and narrow for the model to see"):
        processor.encode(Conversation((Message("user", "Q?", (tiny_native.image(5600, 30),)),)))
