"""Videos of the newer models against transformers' own rules, prompts and forward."""

from __future__ import annotations

import ast
import copy
import importlib.util
import math
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_native
import torch
from PIL import Image
from transformers.models.glm4v.processing_glm4v import Glm4vProcessor
from transformers.models.glm5_next.processing_glm5_next import Glm5NextProcessor
from transformers.models.glm46v.processing_glm46v import Glm46VProcessor
from transformers.video_utils import VideoMetadata

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.glm_native.sampling import RULES, stamp
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.errors import ImageError
from glm4v_magic.core.video import SourcedVideo
from glm4v_magic.images.video import to_video

KINDS = ("glm4v", "glm46v", "glmga", "glm4v_moe", "glm5_next")


def frames(number, width=70, height=50):
    return [tiny_native.noise(width, height, seed) for seed in range(number)]


def clip(count, fps, **options):
    return SourcedVideo("clip.mp4", (64, 48), count, fps, lambda *_: iter(()), **options)


def asked(video, *images):
    return Conversation((Message("user", "What happens?", images, videos=(video,)),))


def published(rule):
    """`sample_frames` of transformers' video processor, whose module imports torchvision."""
    module = importlib.util.find_spec("transformers").submodule_search_locations[0]
    source = Path(module, "models", rule, f"video_processing_{rule}.py").read_text()
    (function,) = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "sample_frames"
    )
    names = {"np": np, "math": math, "VideoMetadata": VideoMetadata}
    exec(compile(ast.Module([function], []), module, "exec"), names)
    return names["sample_frames"]


class TestSampling:
    @pytest.mark.parametrize("wanted", [None, 1.0, 3.5])
    @pytest.mark.parametrize(
        ("count", "fps"),
        [(1, 25), (7, 10), (41, 10), (90, 30), (1000, 24), (9000, 30), (80_000, 25)],
    )
    @pytest.mark.parametrize("rule", RULES)
    def test_a_rule_is_the_published_one(self, rule, count, fps, wanted):
        if rule == "glm46v" and wanted:
            pytest.skip("the published rule takes no rate")
        metadata = VideoMetadata(total_num_frames=count, fps=fps, duration=count / fps)
        own = SimpleNamespace(fps=2, max_duration=300, temporal_patch_size=2, max_frames=640)
        if rule == "glm5_next":
            own = SimpleNamespace(fps=2, max_duration=0, max_frames=2048)
        expected = published(rule)(own, metadata, wanted).tolist()
        assert RULES[rule](clip(count, fps, wanted_fps=wanted)) == (expected or [0, 0])

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize(
        ("count", "fps"), [(1, 25.0), (41, 10.0), (9000, 30.0), (540_000, 25.0)]
    )
    def test_any_clip_has_a_bounded_even_number_of_growing_frames(self, rule, count, fps):
        found = RULES[rule](clip(count, fps))
        assert found == sorted(found)
        assert 0 <= found[0] <= found[-1] < count
        assert len(found) % 2 == 0
        assert len(found) <= (2048 if rule == "glm5_next" else 642)

    def test_a_rate_that_is_asked_for_is_kept(self):
        found = RULES["glm46v"](clip(100, 10.0, wanted_fps=1.0))
        assert found == [*range(0, 100, 10)]

    @pytest.mark.parametrize("rule", RULES)
    def test_frames_that_were_given_are_all_seen(self, rule):
        assert RULES[rule](clip(3, 1.0, is_sampled=True)) == [0, 1, 2, 2]

    def test_stamps_are_the_published_ones(self):
        assert stamp("glm4v", 12.7) == "12"
        assert stamp("glm46v", 0.3) == "0.3 seconds"


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_is_that_of_the_published_processor(native, kind):
    processor = resolve(native(kind)).processor()
    video = to_video(frames(5), "frames")  # one a second: each has a stamp of its own
    encoded = processor.encode(asked(video))
    words, token = processor.tokenizer, processor.tokenizer.convert_tokens_to_ids
    grid = torch.tensor([[3, *encoded.images[0].grid[1:]]])
    base = Glm4vProcessor if kind in ("glm4v", "glm4v_moe") else Glm46VProcessor
    base = Glm5NextProcessor if kind == "glm5_next" else base
    own = tiny_native.oracle(native(kind))
    own.video_processor = SimpleNamespace(merge_size=2)
    metadata = VideoMetadata(total_num_frames=5, fps=1, frames_indices=[0, 1, 2, 3, 4, 4])
    inner = base.replace_video_token(own, {"video_grid_thw": grid, "video_metadata": [metadata]}, 0)
    text = own.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}],
            }
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    expected = words(text.replace("<|video|>", inner), add_special_tokens=False)["input_ids"]
    assert list(encoded.ids) == expected
    assert encoded.ids.count(token("<|image|>")) == encoded.visual_tokens
    assert encoded.seen == ()


@pytest.mark.parametrize("kind", KINDS)
def test_patches_of_a_pair_are_those_of_the_image_processor(native, kind):
    processor = resolve(native(kind)).processor()
    # GLM-5.3 keeps proportions, and fills up what is seen: 140 x 112 pixels.
    size = (130, 100) if kind == "glm5_next" else (70, 50)
    photos = [tiny_native.noise(*size, seed) for seed in range(2)]
    (pair,) = processor.encode(asked(to_video(photos, "frames"))).images
    halves = []
    for moment, photo in enumerate(photos):
        seen = photo
        if kind != "glm5_next":
            seen = photo.resize(pair.size, Image.Resampling.BICUBIC)
        # Of an image it makes a pair of that image twice.
        published = tiny_native.oracle(native(kind)).image_processor([seen], return_tensors="pt")
        # The image processor might resize once more: only the same size can be compared.
        assert published["image_grid_thw"].tolist() == [list(pair.grid)]
        halves.append(published["pixel_values"].unflatten(1, (3, 2, 14 * 14))[:, :, moment])
    expected = torch.stack(halves, dim=2).flatten(1)
    torch.testing.assert_close(pair.pixels(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "expected"), [((70, 50), (140, 100)), ((130, 100), (130, 100))])
def test_frames_of_glm5_keep_their_proportions(native, size, expected):
    processor = resolve(native("glm5_next")).processor()
    (pair,) = processor.encode(asked(to_video([tiny_native.noise(*size)], "frames"))).images
    assert pair.image.image.size == expected
    assert all(0 <= whole - side < 28 for whole, side in zip(pair.size, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_published_path_for_videos(native, kind):
    checkpoint = resolve(native(kind))
    loaded = checkpoint.load(dtype=torch.float32)
    encoded = loaded.processor.encode(asked(to_video(frames(4), "frames", fps=1)))
    ids = torch.tensor([encoded.ids])
    image = loaded.processor.tokenizer.convert_tokens_to_ids("<|image|>")
    pixels = torch.cat([each.pixels() for each in encoded.images])
    grid = torch.tensor([[len(encoded.images), *encoded.images[0].grid[1:]]])
    types = {"mm_token_type_ids": (ids == image).int() * 2}
    start = loaded.model.config.video_start_token_id
    with torch.no_grad():
        if kind == "glm5_next":
            types, published_start = {}, checkpoint.config["video_start_token_id"]
            loaded.model.config.video_start_token_id = published_start
        published = loaded.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **types,
            pixel_values_videos=pixels,
            video_grid_thw=grid,
        ).logits
        loaded.model.config.video_start_token_id = start
        features = loaded.inputs.features(encoded.images)
        ours = loaded.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=loaded.inputs.positions(encoded),
            **loaded.inputs.arguments(features),
        ).logits
    torch.testing.assert_close(ours, published, atol=2e-5, rtol=1e-4)


def test_image_and_video_in_one_prompt(native):
    processor = resolve(native("glm46v")).processor()
    photo = tiny_native.image(90, 60)
    encoded = processor.encode(asked(to_video(frames(2), "frames"), photo))
    assert [each.second is None for each in encoded.images] == [True, False]
    assert len(encoded.seen) == 1
    assert encoded.images[1].image.source == "frames at 0:00"


def test_models_that_take_none_say_so(native):
    takes = {kind: resolve(native(kind)).processor().takes_video for kind in tiny_native.KINDS}
    assert takes == {kind: kind in KINDS for kind in tiny_native.KINDS}


def test_frames_are_shrunk_as_they_are_decoded():
    video = to_video(np.zeros((3, 40, 60, 3), np.uint8), "array", fps=2)
    seen = video.frames([0, 1, 2, 2], (28, 56))
    assert [frame.image.image.size for frame in seen] == [(28, 56)] * 4
    assert [frame.time for frame in seen] == [0, 0.5, 1, 1]
    assert seen is video.frames([0, 1, 2, 2], (28, 56))
    assert video.seen == seen[:3]
    assert math.isclose(video.duration, 1.5)


def test_a_video_is_copied_and_pickled_with_the_frames_that_were_seen():
    video = to_video(frames(3), "frames", fps=2)
    seen = video.frames([0, 2], (28, 28))
    again = pickle.loads(pickle.dumps(video))
    assert again == video == copy.deepcopy(video)
    assert [frame.time for frame in again.seen] == [0, 1]
    assert again.frames([0, 2], (28, 28))[1].image.image.tobytes() == seen[1].image.image.tobytes()
    with pytest.raises(ImageError, match="Read it again"):
        again.frames([1], (28, 28))
