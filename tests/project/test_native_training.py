"""Scenes, questions and rows of the second demo's training, and the network that learns them."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_native
import torch
from counting import numbers
from PIL import Image

from glm4v_magic.calls.boxes import marks
from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.boxes import Box
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.images import SourcedImage
from glm4v_magic.images.video import to_video
from training.batches import stream
from training.drawing import draw_scene
from training.native import tokenizer as words
from training.native import train
from training.native.batches import ConversationBatch, conversation_batches, stamps
from training.native.configuration import PALETTE, checkpoint_config
from training.native.evaluate import cases, overlap, questions
from training.native.export import export, load_network
from training.native.gaze import Gaze, Gazes
from training.native.labels import CELL_CLASSES, NOTHING, labels_of
from training.native.network import Layout, Network, initialise
from training.native.prompts import IGNORED, Mode, Writer
from training.native.questions import (
    Exchange,
    ask_about_clip,
    ask_about_image,
    ask_about_pair,
    changed,
    sampled_clip,
)
from training.native.whole import EdgeLoss
from training.scenes import Item, Scene, rng_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint in its published form."""
    folder = tmp_path_factory.mktemp("untrained")
    words.trained(0, 600, scenes=100).save_pretrained(folder)
    network = Network(checkpoint_config(words.load(folder).get_vocab()))
    initialise(network, torch.Generator().manual_seed(0))
    export(dict(network.named_parameters()), folder)
    return folder


@pytest.mark.parametrize("size", [(112, 112), (140, 84)])
def test_the_network_is_the_shipped_model(folder: Path, size: tuple[int, int]) -> None:
    loaded = resolve(folder).load(dtype=torch.float32)
    noise = np.random.default_rng(0).integers(0, 256, (2, size[1], size[0], 3), dtype=np.uint8)
    images = tuple(SourcedImage(Image.fromarray(each), "noise", size) for each in noise)
    question = Conversation((Message("user", "Where is the red star in image 2?", images),))
    encoded = loaded.processor.encode(question)
    features = loaded.inputs.features(encoded.images)
    ids = torch.tensor([encoded.ids])
    with torch.inference_mode():
        expected = loaded.model(
            input_ids=ids,
            position_ids=loaded.inputs.positions(encoded),
            **loaded.inputs.arguments(features),
        ).logits
        network = load_network(folder)
        visual, _ = network.visual_tokens(torch.from_numpy(noise)[:, None])
        layout = Layout(tuple(each.start for each in encoded.images), size[1] // 28, size[0] // 28)
        found = network.logits(network(ids, visual, layout))
    assert torch.equal(layout.positions(len(encoded.ids)), loaded.inputs.positions(encoded)[:, 0])
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def encoded(folder: Path, conversation: Conversation, thinking: bool | None) -> tuple[int, ...]:
    return resolve(folder).processor().encode(conversation, thinking=thinking).ids


@pytest.mark.parametrize("mode", ["on", "off"])
def test_rows_are_the_prompts_of_the_shipped_processor(folder: Path, mode: Mode) -> None:
    writer = Writer(words.load(folder))
    images = tuple(tiny_native.image(112, 112, seed) for seed in range(2))
    for question in ("Where is the star?", "how many shapes are in image 1", "图中有几个图形？"):
        exchange = Exchange("box", question, "I see it.", "It is here.")
        shown = writer.images(2, 16)
        asked, answered = writer.turn(exchange, mode, shown)
        prompt = encoded(folder, Conversation((Message("user", question, images),)), mode == "on")
        assert (*writer.ids("[gMASK]<sop>"), *asked) == prompt
        starts = tuple(at for at, token in enumerate(prompt) if token == shown[1])
        assert writer.starts(shown) == (starts[0], starts[16])
        text = words.load(folder).decode(answered)
        thought = "<think>I see it.</think>\n" if mode == "on" else ""
        assert text == f"\n{thought}It is here.<|user|>"


def test_only_what_the_model_writes_is_learnt(folder: Path) -> None:
    writer = Writer(words.load(folder))
    talk = [Exchange("count", "How many?", "I see it.", f"There are {n}.") for n in (2, 3)]
    _, targets = writer.rows(rng_for("test", 3), [talk], writer.images(1, 16), 112)
    learnt = [token for token in targets[0].tolist() if token != IGNORED]
    said = words.load(folder).decode(learnt).replace("<think>I see it.</think>\n", "")
    assert said == "\nThere are 2.<|user|>\nThere are 3.<|user|>"


def test_rows_of_a_clip_are_the_prompts_of_the_shipped_processor(folder: Path) -> None:
    writer = Writer(words.load(folder))
    frames = [tiny_native.noise(112, 112, seed) for seed in range(4)]
    video = to_video(frames, "frames", fps=2.0)
    message = Message("user", "What moves?", (), videos=(video,))
    asked, _ = writer.turn(
        Exchange("mover", "What moves?", "", ""), "off", writer.clip(stamps(2, 2.0), 16)
    )
    prompt = encoded(folder, Conversation((message,)), False)
    assert (*writer.ids("[gMASK]<sop>"), *asked) == prompt


RED = Item("circle", "red", (220, 20, 60), x=0.3, y=0.22, radius=0.2)
BLUE = Item("square", "blue", (0, 0, 255), x=0.8, y=0.6, radius=0.11)
STAR = Item("star", "green", (0, 128, 0), x=0.2, y=0.8, radius=0.15, tilt=0.1)


def scene(*items: Item, aspect: float = 1.0) -> Scene:
    return Scene("shapes", "white", (255, 255, 255), items, aspect=aspect, palette=PALETTE)


def asked(ask: Callable[[random.Random], Exchange | None], tries: int = 300) -> list[Exchange]:
    rng = rng_for("test", 0)
    return [exchange for exchange in (ask(rng) for _ in range(tries)) if exchange]


def answers(ask: Callable[[random.Random], Exchange | None]) -> set[str]:
    return {exchange.answer for exchange in asked(ask)}


def edges_of_colour(image: Image.Image, rgb: tuple[int, int, int]) -> tuple[float, ...]:
    """Edges of all pixels of a colour, as shares of width and height."""
    rows, columns = (np.asarray(image) == rgb).all(-1).nonzero()
    width, height = image.size
    return (
        columns.min() / width, rows.min() / height,
        (columns.max() + 1) / width, (rows.max() + 1) / height,
    )  # fmt: skip


@pytest.mark.parametrize("aspect", [0.6, 1.0, 1.6])
def test_boxes_are_where_shapes_are_drawn(aspect: float) -> None:
    things = scene(RED, BLUE, STAR, aspect=aspect)
    image = draw_scene(things, 800)
    for item in things.items:
        said = [
            exchange
            for exchange in asked(lambda rng: ask_about_image(rng, things, "box"))
            if item.shape in exchange.answer and "box" in exchange.answer
        ]
        (box,) = marks(said[0].answer, [(1, 1)]).boxes
        drawn = edges_of_colour(image, item.rgb)
        assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx(drawn, abs=0.013)


def test_all_boxes_come_as_json_with_their_names() -> None:
    (answer,) = answers(lambda rng: ask_about_image(rng, scene(RED, BLUE), "boxes"))
    boxes = marks(answer, [(1000, 1000)]).boxes
    assert [box.label for box in boxes] == ["red circle", "blue square"]
    assert boxes[1].x0 == pytest.approx(700, abs=13)


def test_what_two_images_show_is_true() -> None:
    pair = (scene(RED, BLUE), scene(RED))
    for exchange in asked(lambda rng: ask_about_pair(rng, pair, "which image")):
        if "red" in exchange.answer or "circle" in exchange.answer:
            assert exchange.answer.startswith(("Both", "Neither"))
        if re.search(r"a (blue (square|shape)|square)\.", exchange.answer):
            assert exchange.answer.startswith("Image 1 ")
    assert answers(lambda rng: ask_about_pair(rng, pair, "more")) == {"Image 1 shows more shapes."}
    assert answers(lambda rng: ask_about_pair(rng, (pair[1], pair[1]), "more")) == {
        "Both images show the same number of shapes."
    }
    assert answers(lambda rng: ask_about_pair(rng, pair, "count in")) == {
        "There are 2 shapes in image 1.",
        "There is 1 shape in image 2.",
    }
    for exchange in asked(lambda rng: ask_about_pair(rng, pair, "box in")):
        number = 1 if re.search("image 1|first", exchange.question) else 2
        (box,) = marks(exchange.answer, [(1000, 1000)] * 2).boxes
        assert box.image == number - 1
        assert number == 1 or box.x0 < 200
    assert exchange.thought == "Image 1: a red circle, a blue square. Image 2: a red circle."


def test_differences_are_true() -> None:
    def said(one: Scene, other: Scene) -> set[str]:
        return answers(lambda rng: ask_about_pair(rng, (one, other), "difference"))

    yellow = replace(BLUE, colour="yellow", rgb=(255, 255, 0))
    assert said(scene(RED, BLUE), scene(RED)) == {"The blue square is only in image 1."}
    assert said(scene(RED), scene(RED, BLUE)) == {"The blue square is only in image 2."}
    assert said(scene(RED, BLUE), scene(RED, yellow)) == {
        "The square is blue in image 1 and yellow in image 2."
    }
    assert said(scene(RED), scene(RED)) == {"The images are the same."}
    assert said(scene(RED), scene(STAR)) == set()


def test_a_changed_scene_differs_in_one_shape_at_most() -> None:
    rng = rng_for("test", 1)
    before = scene(RED, BLUE, STAR)
    sizes = [len(set(changed(rng, before).items) ^ set(before.items)) for _ in range(100)]
    assert set(sizes) == {0, 1, 2}


def test_clips_move_where_they_say() -> None:
    rng = rng_for("test", 2)
    seen = set()
    for _ in range(200):
        clip = sampled_clip(rng, scene(BLUE), 4)
        if clip is None:
            continue
        first, last = (frame.items[-1] for frame in (clip.frames[0], clip.frames[-1]))
        way = {
            "": (0, 0), "up": (0, -1), "down": (0, 1), "to the left": (-1, 0),
            "to the right": (1, 0),
        }[clip.direction]  # fmt: skip
        length = max(abs(last.x - first.x), abs(last.y - first.y))
        assert np.allclose((last.x - first.x, last.y - first.y), length * np.array(way))
        assert 0 < last.x < 1
        assert 0 < last.y < 1
        seen.add(clip.direction)
        motion = answers(lambda rng, clip=clip: ask_about_clip(rng, clip, "motion"))
        moves = f"moves {clip.direction}" if clip.direction else "does not move"
        assert motion == {f"The square {moves}."}
    assert len(seen) >= 4


@pytest.mark.parametrize("grid", [(8, 8), (6, 10)])
def test_labels_say_what_is_where(grid: tuple[int, int]) -> None:
    rows, columns = grid
    labels = labels_of(scene(RED, BLUE, aspect=columns / rows), rows, columns)
    names = dict(zip(CELL_CLASSES, labels.cells, strict=True))
    assert names["centres"].sum() == 2
    for item in (RED, BLUE):
        at = int(item.y * rows / 2) * (columns // 2) + int(item.x * columns / 2)
        assert names["centres"][at] == 1
        assert names["colour"][at] == PALETTE.colours.index(item.colour) + 1
        left, upper, right, lower = labels.edges[:, at] / 50
        assert left < item.x < right
        assert upper < item.y < lower
        # The four patches of a visual token stand together, as in the tower.
        assert names["shape"][at] in labels.patches[1].reshape(-1, 4)[at]
        assert labels.masks.reshape(-1, 4, 16)[at].any()
    empty = names["shape"] == 0
    assert (labels.edges[:, empty] == NOTHING).all()


def test_an_edge_beside_the_right_one_costs_less_than_one_far_away(folder: Path) -> None:
    tokenizer = words.load(folder)
    loss = EdgeLoss(folder, len(tokenizer))
    ids = [tokenizer.encode(edge)[0] for edge in words.EDGES]
    (yes,) = tokenizer.encode("Yes")[:1]

    def cost(said: int, right: int) -> float:
        logits = torch.zeros(1, len(tokenizer))
        logits[0, said] = 5.0
        return loss(logits, torch.tensor([right])).item()

    assert cost(ids[20], ids[20]) < cost(ids[21], ids[20]) < cost(ids[30], ids[20])
    assert cost(yes, yes) < cost(ids[20], yes) == pytest.approx(cost(ids[21], yes))


@pytest.fixture
def pairs(folder: Path) -> ConversationBatch:
    """Conversations about two images, with boxes and differences."""
    kinds = {"box in": 9.0, "difference": 9.0}
    made = conversation_batches(folder, 112, kinds, 0.0, 0, 24, SimpleNamespace(value=0.6))
    return next(each for each in made if len(each.layout.starts) == 2)


def test_before_a_box_and_a_difference_the_model_learns_where_to_look(
    folder: Path, pairs: ConversationBatch
) -> None:
    tokenizer = words.load(folder)
    gazes = Gazes(folder, len(tokenizer), 4)
    name, shape, change, _ = gazes.of(pairs, torch.device("cpu"))
    for row, place, right in zip(name.rows, name.places, name.right, strict=True):
        told = tokenizer.decode(pairs.ids[row][: place + 1])
        named = tokenizer.decode(pairs.ids[row][right.numpy()]).split()
        assert told.endswith("[[")
        assert f"the {' '.join(named)} " in told[-70:]
    for row, place, right in zip(shape.rows, shape.places, shape.right, strict=True):
        box = gazes.steps(pairs.targets[row])[place + 1 :: 2][:4]
        assert all((seen[:4] == box).all() for seen in _shown(pairs, row, right))
    assert len(change.rows) > 2
    for row, place, right in zip(change.rows, change.places, change.right, strict=True):
        told = tokenizer.decode(pairs.ids[row][place : place + 9])
        assert re.match(r"The .* is (only in|.* in image 1 and)", told)
        first, second = pairs.layout.starts
        assert all(at >= second for at in np.flatnonzero(right.numpy()))
        before = _shown(pairs, row, right.roll(first - second))
        assert all((a != b).any() for a, b in zip(before, _shown(pairs, row, right), strict=True))


def test_an_image_is_compared_with_the_one_before_place_by_place(
    folder: Path, pairs: ConversationBatch
) -> None:
    *_, places = Gazes(folder, len(words.load(folder)), 4).of(pairs, torch.device("cpu"))
    first, second = pairs.layout.starts
    assert len(places.rows) == 24 * pairs.layout.tokens
    for place, right in zip(places.places, places.right, strict=True):
        assert np.flatnonzero(right.numpy()).tolist() == [int(place) - second + first]


def _shown(data: ConversationBatch, row: torch.Tensor, right: torch.Tensor) -> list[Any]:
    """Edges, colour and shape of what some visual tokens of a row show."""
    assert data.images is not None
    found = []
    for at in np.flatnonzero(right.numpy()):
        image = sum(at >= start for start in data.layout.starts[1:])
        labels = data.images.labels
        each, cell = 2 * int(row) + image, at - data.layout.starts[image]
        found.append(np.array([*labels["edges"][each][:, cell], *labels["cells"][each][:2, cell]]))
    return found


def test_looking_elsewhere_costs() -> None:
    gaze = Gaze(
        rows=torch.tensor([1]),
        places=torch.tensor([2]),
        right=torch.tensor([[False, True, False, True]]),
        layer=0,
        group=1,
        loss=torch.zeros(()),
    )
    query = torch.zeros(2, 4, 4, 1)
    query[1, 2:, 2] = 1.0

    def cost(at: int) -> float:
        key = torch.zeros(2, 2, 4, 1)
        key[1, 1, at] = 5.0
        gaze.look(query, key)
        return gaze.loss.item()

    assert cost(1) < 0.02
    assert cost(0) == pytest.approx(cost(2))
    assert cost(0) > 4
    # What comes later cannot be looked at.
    assert cost(3) == pytest.approx(math.log(3))


def test_every_edge_is_one_token(folder: Path) -> None:
    tokenizer = words.load(folder)
    assert all(len(tokenizer.encode(edge)) == 1 for edge in words.EDGES)


def test_batches_have_their_images_where_the_layout_says(folder: Path) -> None:
    progress = SimpleNamespace(value=0.6)
    made = conversation_batches(folder, 112, {}, 0.2, 0, 4, progress)
    seen = set()
    for _ in range(40):
        batch = next(made)
        image = words.load(folder).convert_tokens_to_ids("<|image|>")
        expected = np.zeros(batch.ids.shape[1], bool)
        for start in batch.layout.starts:
            expected[start : start + batch.layout.tokens] = True
        assert ((batch.ids == image) == expected).all()
        assert (batch.targets != IGNORED).any(axis=1).all()
        assert not (batch.targets == image).any()
        if batch.images is not None:
            assert len(batch.images.frames) == 4 * len(batch.layout.starts)
        seen.add((len(batch.layout.starts), batch.images and batch.images.frames.shape[1]))
    assert {(1, 1), (2, 1), (2, 2)} <= seen


def test_a_run_goes_on_from_a_checkpoint_and_leaves_another(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["train", "--from", str(folder), "--out", str(tmp_path), "--batch-whole", "2"]
    brief = ["--threads", "1", "--minutes-tower", "0", "--minutes-whole", "1e-4"]
    monkeypatch.setattr("sys.argv", run + brief)
    train.main()
    before, after = load_network(folder).state_dict(), load_network(tmp_path).state_dict()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=0.01, rtol=0, msg=name)
    assert (tmp_path / "heads.pt").exists()
    loaded = resolve(tmp_path).load(dtype=torch.float32)
    assert loaded.processor.takes_video
    assert loaded.processor.thinks


def test_new_layers_change_nothing_before_they_are_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(0, 500, (1, 12), generator=torch.Generator().manual_seed(0))
    known, grown = load_network(folder), load_network(folder, 6)
    with torch.inference_mode():
        expected, found = (net.logits(net(ids, None, Layout((), 4, 4))) for net in (known, grown))
    assert len(grown.model.language_model.layers) == 6
    torch.testing.assert_close(found, expected)
    run = ["train", "--from", str(folder), "--out", str(tmp_path), "--batch-whole", "2"]
    brief = ["--threads", "1", "--minutes-tower", "0", "--minutes-whole", "1e-4", "--layers", "6"]
    monkeypatch.setattr("sys.argv", run + brief)
    train.main()
    assert len(load_network(tmp_path).model.language_model.layers) == 6


def test_workers_take_turns_each_with_a_seed_of_its_own() -> None:
    with stream(numbers, 5, 2, workers=2) as batches:
        found = [batches.next(0.0) for _ in range(6)]
    assert found[::2] == [5, 7, 9]
    first = found[1]
    assert found[1::2] == [first, first + 2, first + 4]
    assert first not in range(5, 1000)


def test_more_of_an_unknown_kind_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--out", "x", "--more", "weather=2"])
    with pytest.raises(SystemExit):
        train.main()
    assert "no kind 'weather'; there are absent, background" in capsys.readouterr().err


def test_overlap_counts_boxes_that_are_missing_or_too_many() -> None:
    one, half = Box("", 0, 0, 10, 10), Box("", 0, 0, 10, 5)
    assert overlap([one], [one]) == 1
    assert overlap([half], [one]) == 0.5
    assert overlap([one, half], [one]) == 0.5
    assert overlap([], [one]) == 0
    assert overlap([replace(one, image=1)], [one]) == 0


def test_each_kind_is_evaluated_on_questions_that_were_not_trained_on() -> None:
    for case in cases():
        held_out = list(questions(case, 2, 0, "held_out"))
        assert len(held_out) == 2, case.name
        assert all(each.images or each.frames or case.name == "no image" for each in held_out)
