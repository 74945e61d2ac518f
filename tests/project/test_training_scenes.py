"""Scenes, questions and rows of the demo model's training, and the network that learns them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig
from glm4v_magic.checkpoints.glm4v_9b.processing import Glm4v9bProcessor, load_tokenizer
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.images import SourcedImage
from training import train
from training.configuration import checkpoint_config, special_ids
from training.continuing import carry_over
from training.drawing import draw_scene, render
from training.export import export, load_network
from training.heads import DenseHeads
from training.labels import CELL_CLASSES, GRID, dense_labels
from training.network import Network, initialise, normalised
from training.phrases import (
    CHINESE,
    CHINESE_COLOURS,
    CHINESE_SHAPES,
    CHINESE_SIDES,
    ENGLISH,
    OUT_OF_SCOPE,
)
from training.prompts import IGNORED, rows
from training.questions import (
    CANNOT_TELL,
    CHINESE_KINDS,
    KINDS,
    Exchange,
    Language,
    ask,
    conversation,
)
from training.scenes import COLOURS, SHAPES, Item, Scene, rng_for, sample_scene
from training.tokenizer import Tokenizer, corpus_words, train_ranks

RED = Item("circle", "red", (220, 20, 60), x=0.3, y=0.22, radius=0.2)
BLUE = Item("square", "blue", (0, 0, 255), x=0.8, y=0.6, radius=0.11)
TWO = Scene("shapes", "white", (255, 255, 255), (RED, BLUE))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_ranks(corpus_words(seed=0, scenes=200), size=690))


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint in its published form."""
    folder = tmp_path_factory.mktemp("untrained")
    network = Network(checkpoint_config(len(tokenizer.ranks)))
    initialise(network, torch.Generator().manual_seed(0))
    export(dict(network.named_parameters()), len(tokenizer.ranks), folder)
    tokenizer.save(folder / "tokenizer.model")
    return folder


def asked(scene: Scene, kind: str, tries: int = 200, **options) -> list[Exchange]:
    rng = rng_for("test", 0)
    found = (ask(rng, scene, kind, **options) for _ in range(tries))
    return [exchange for exchange in found if exchange]


def test_equal_seeds_give_equal_scenes_and_splits_differ():
    def draw(split: str, seed: int) -> list[Scene]:
        rng = rng_for(split, seed)
        return [sample_scene(rng) for _ in range(20)]

    assert draw("train", 0) == draw("train", 0)
    assert draw("train", 0) != draw("train", 1)
    assert not {repr(scene) for scene in draw("train", 0)} & {
        repr(scene) for scene in draw("held-out", 0)
    }


def test_every_shape_and_colour_occurs_and_stays_inside():
    rng = rng_for("test", 1)
    items = [item for _ in range(400) for item in sample_scene(rng, "shapes").items]
    assert {item.shape for item in items} == set(SHAPES)
    assert {item.colour for item in items} == set(COLOURS)
    assert all(0 < item.x < 1 and 0 < item.y < 1 for item in items)


def test_shapes_that_are_alike_have_one_outline_and_their_own_colours():
    rng = rng_for("test", 1)
    scenes = [sample_scene(rng, "shapes", (3, 3), alike=True) for _ in range(100)]
    assert all(len({item.shape for item in scene.items}) == 1 for scene in scenes)
    assert {item.shape for scene in scenes for item in scene.items} == set(SHAPES)
    assert sum(len({item.colour for item in scene.items}) > 1 for scene in scenes) > 80


def test_shapes_keep_apart():
    rng = rng_for("test", 2)
    for _ in range(200):
        items = sample_scene(rng, "shapes", (5, 5)).items
        for index, one in enumerate(items):
            for other in items[:index]:
                gap = ((one.x - other.x) ** 2 + (one.y - other.y) ** 2) ** 0.5
                assert gap > 0.75 * (one.radius + other.radius)


@pytest.mark.parametrize("side", [112, 300])
def test_shapes_are_drawn_in_their_colours_where_they_are(side: int):
    image = draw_scene(TWO, side)
    for item in TWO.items:
        assert image.getpixel((int(item.x * side), int(item.y * side))) == item.rgb
    assert image.getpixel((side - 2, 2)) == TWO.background_rgb


def test_a_squeezed_image_is_square():
    wide = Scene("shapes", "white", (255, 255, 255), (RED,), aspect=1.25)
    assert draw_scene(wide, 100).size == (125, 100)
    assert render(wide, 112, rng_for("test", 3)).size == (112, 112)


def test_labels_say_what_is_where():
    labels = dense_labels(TWO)
    colour, shape = labels.patches.reshape(2, GRID, GRID)
    at = {item.name: (int(item.y * GRID), int(item.x * GRID)) for item in TWO.items}
    names = list(COLOURS)
    for item in TWO.items:
        assert colour[at[item.name]] == names.index(item.colour) + 1
        assert shape[at[item.name]] == SHAPES.index(item.shape) + 1
    assert colour[0, GRID - 1] == shape[0, GRID - 1] == 0
    cells = dict(zip(CELL_CLASSES, labels.cells.reshape(-1, GRID // 2, GRID // 2), strict=True))
    assert cells["centres"].sum() == 2
    assert cells["centres"][0, 1] == cells["centres"][2, 3] == 1
    # Every cell of a shape says where that shape's centre is, in twelfths from 1 on.
    for item in TWO.items:
        covered = cells["shape"] == SHAPES.index(item.shape) + 1
        assert covered.any()
        assert (cells["across"][covered] == 1 + int(12 * item.x)).all()
        assert (cells["down"][covered] == 1 + int(12 * item.y)).all()
    assert cells["across"][0, 3] == cells["down"][0, 3] == 0
    assert cells["size"][0, 1] > cells["size"][2, 3] > 0
    assert (cells["row"][2] == 2).all()
    assert (cells["column"][:, 3] == 3).all()


def test_masks_agree_with_the_drawing():
    masks = dense_labels(TWO).masks.reshape(GRID, GRID, 4, 4)
    painted = masks.transpose(0, 2, 1, 3).reshape(4 * GRID, 4 * GRID)
    drawn = np.asarray(draw_scene(TWO, 4 * GRID)).min(axis=2) < 255
    assert (painted != drawn).mean() < 0.01


def test_answers_about_colour_and_shape_are_true():
    assert {e.answer for e in asked(TWO, "colour")} == {
        "The circle is red.",
        "The square is blue.",
    }
    assert {e.answer for e in asked(TWO, "shape")} == {
        "The red shape is a circle.",
        "The blue shape is a square.",
    }
    assert {e.answer for e in asked(TWO, "background")} == {"The background is white."}
    assert {e.answer for e in asked(TWO, "count")} == {"There are 2 shapes."}


def test_nobody_asks_for_what_has_two_answers():
    twins = Scene(
        "shapes", "white", items=(RED, Item("circle", "blue", (0, 0, 255), 0.7, 0.7, 0.1))
    )
    assert asked(twins, "colour") == []
    same = Scene("shapes", "white", items=(RED, Item("star", "red", (255, 0, 0), 0.7, 0.7, 0.1)))
    assert asked(same, "shape") == []


def test_existence_is_asked_both_ways_and_answered_truly():
    exchanges = asked(TWO, "existence", 600)
    said = Counter(exchange.answer.split(",")[0] for exchange in exchanges)
    assert 0.35 < said["Yes"] / len(exchanges) < 0.65
    for exchange in exchanges:
        thing = re.search(r"there is (?:no|an?) (.+)\.", exchange.answer)
        assert thing
        words = [word for word in thing[1].split() if word != "shape"]
        there = any(set(words) <= {item.colour, item.shape} for item in TWO.items)
        assert exchange.answer.startswith("Yes" if there else "No"), exchange


def test_relations_are_true():
    for exchange in asked(TWO, "relation"):
        red_first = "red circle" in exchange.question.split("blue")[0]
        level = "above" in exchange.question or "below" in exchange.question
        true = ("above" if red_first else "below") if level else ("left" if red_first else "right")
        assert true in exchange.answer
        assert exchange.answer.startswith("Yes" if true in exchange.question else "No")


def test_sides_are_true():
    for exchange in asked(TWO, "side"):
        red_first = "red circle" in exchange.question.split("blue")[0]
        level = "above" in exchange.question
        assert ("below" in exchange.question) == level
        true = ("above" if red_first else "below") if level else ("left" if red_first else "right")
        assert exchange.answer in (f"It is {true} it.", f"It is to the {true}.")


def test_places_are_true_and_nobody_asks_on_a_border():
    star = Item("star", "green", (0, 128, 0), x=0.2, y=0.8, radius=0.12)
    scene = Scene("shapes", "white", (255, 255, 255), (RED, BLUE, star))
    assert {e.answer for e in asked(scene, "place")} == {
        "The blue square is at the right.",
        "The green star is at the bottom left.",
    }
    assert {e.answer for e in asked(scene, "place", language="chinese")} == {
        "蓝色的正方形在右侧。",
        "绿色的星形在左下角。",
    }


def test_sizes_and_extremes_are_true():
    assert {e.answer for e in asked(TWO, "size")} == {
        "The red circle is large.",
        "The blue square is small.",
    }
    assert {e.answer for e in asked(TWO, "extreme")} == {
        "The largest shape is the red circle.",
        "The smallest shape is the blue square.",
    }


def test_what_is_not_there_has_no_colour():
    for exchange in asked(TWO, "absent"):
        assert re.fullmatch(r"There is no [a-z]+( shape)?\.", exchange.answer)
        assert not set(exchange.answer[12:-1].split()) & {"circle", "square", "red", "blue"}


def test_a_description_names_everything():
    assert {e.answer for e in asked(TWO, "description")} == {
        "A red circle and a blue square on a white background."
    }


def test_chinese_answers_match_the_scene():
    answers = {e.answer for e in asked(TWO, "colour", language="chinese")}
    assert answers == {"圆形是红色的。", "正方形是蓝色的。"}
    assert {e.answer for e in asked(TWO, "count", language="chinese")} == {"有2个图形。"}
    assert {e.answer for e in asked(TWO, "size", language="chinese")} == {
        "红色的圆形是大的。",
        "蓝色的正方形是小的。",
    }
    for exchange in asked(TWO, "absent", language="chinese"):
        assert re.fullmatch("图中没有.+。", exchange.answer)
        assert not re.search("圆形|正方形|红色|蓝色", exchange.answer)


@pytest.mark.parametrize("kind", ["relation", "side"])
def test_chinese_relations_are_true(kind: str):
    exchanges = asked(TWO, kind, language="chinese")
    assert len(exchanges) > 20
    for exchange in exchanges:
        level = "上面" in exchange.question or "下面" in exchange.question
        red_first = exchange.question.index("红色") < exchange.question.index("蓝色")
        true = ("上面" if red_first else "下面") if level else ("左边" if red_first else "右边")
        assert exchange.answer.endswith(f"它在{true}。")
        if kind == "relation":
            assert exchange.answer.startswith("是的" if true in exchange.question else "不是")


def test_noise_cannot_be_told():
    noise = sample_scene(rng_for("test", 4), "noise")
    answers = {e.answer for kind in KINDS for e in asked(noise, kind, 5)}
    assert answers == {CANNOT_TELL["english"]}


@pytest.mark.parametrize("kinds", [ENGLISH, CHINESE, OUT_OF_SCOPE])
def test_held_out_phrases_are_not_trained_on(kinds):
    for phrases in kinds.values():
        assert phrases.held_out
        assert not set(phrases.trained) & set(phrases.held_out)


def plain(question: str) -> str:
    """A question without what `_typed` varies."""
    return question.lower().replace("color", "colour").replace("grey", "gray").rstrip("?.!？。")


_SIDE = "(?:above|below|(?:to the )?(?:left|right)(?: of)?|左边|右边|上面|下面)"
_FIELDS = {
    "where": "(?: in the picture| in this picture| in the image| here)?",
    "shape": f"(?:{'|'.join((*SHAPES, *CHINESE_SHAPES.values()))})",
    "colour": f"(?:{'|'.join((*COLOURS, *CHINESE_COLOURS.values()))})",
    "side": _SIDE,
    "choice": f"{_SIDE}(?: or |还是){_SIDE}",
}


def pattern_of(phrase: str) -> re.Pattern[str]:
    """Matches every question that `phrase` can become, as `plain` writes it."""
    parts = re.split(r"\{(\w+)\}", plain(phrase))
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = [_FIELDS.get(field, ".+") for field in parts[1::2]]
    return re.compile("".join(parts))


@pytest.mark.parametrize(("language", "kinds"), [("english", ENGLISH), ("chinese", CHINESE)])
def test_conversations_never_use_held_out_phrases(language: Language, kinds):
    """Not even by another kind's phrase whose fields are filled by chance."""
    phrases = [phrase for kind in kinds.values() for phrase in kind.held_out]
    held_out = {phrase: pattern_of(phrase) for phrase in phrases}
    fixed = {plain(question) for question in OUT_OF_SCOPE[language].held_out}
    rng = rng_for("test", 5)
    questions = {
        plain(exchange.question)
        for _ in range(1500)
        for exchange in conversation(rng, sample_scene(rng), 6, language)
    }
    assert len(questions) > 2000
    assert not questions & fixed
    for phrase, pattern in held_out.items():
        found = [question for question in questions if pattern.fullmatch(question)]
        assert not found, (phrase, found[:3])


@pytest.mark.parametrize(("language", "kinds"), [("english", ENGLISH), ("chinese", CHINESE)])
def test_held_out_questions_match_their_phrases(language: Language, kinds):
    """The check above can fail: it recognises held-out questions."""
    rng = rng_for("test", 9)
    patterns = [pattern_of(phrase) for kind in kinds.values() for phrase in kind.held_out]
    for kind in KINDS if language == "english" else CHINESE_KINDS:
        scenes = [sample_scene(rng, "digit" if "digit" in kind else "shapes") for _ in range(20)]
        for scene in scenes:
            for exchange in asked(scene, kind, 5, language=language, split="held_out"):
                question = plain(exchange.question)
                assert any(pattern.fullmatch(question) for pattern in patterns), question


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_out_of_scope_questions_are_many_and_trained_ones_are_not_held_out(language: Language):
    rng = rng_for("test", 10)
    scene = sample_scene(rng, "shapes")
    found = [ask(rng, scene, "out of scope", language) for _ in range(30_000)]
    questions = {plain(exchange.question) for exchange in found if exchange}
    assert len(questions) > 400
    assert not any("{" in question for question in questions)
    assert not questions & {plain(question) for question in OUT_OF_SCOPE[language].held_out}


@pytest.mark.parametrize("kind", [*KINDS, "out of scope"])
def test_every_kind_can_be_asked_in_held_out_phrases(kind: str):
    rng = rng_for("test", 6)
    scenes = [sample_scene(rng, "digit" if "digit" in kind else "shapes") for _ in range(30)]
    assert any(asked(scene, kind, 20, split="held_out") for scene in scenes)


@pytest.mark.parametrize("kind", CHINESE_KINDS)
def test_every_chinese_kind_can_be_asked(kind: str):
    rng = rng_for("test", 7)
    scenes = [sample_scene(rng, "digit" if kind == "digit" else "shapes") for _ in range(30)]
    found = [e for s in scenes for e in asked(s, kind, 20, language="chinese", split="held_out")]
    assert found
    assert not any(exchange.answer.isascii() for exchange in found)


def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer):
    for text in ("What color is it?", "Ünïcode žluť 猫 🐈 \n\n  x 12345 it's", "背景是蓝色的。"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chinese_names_are_one_token_wherever_they_stand(tokenizer: Tokenizer):
    for name in (*CHINESE_COLOURS.values(), *CHINESE_SHAPES.values(), *CHINESE_SIDES.values()):
        (token,) = tokenizer.encode(name)
        for text in ("图中的{}是什么颜色的？", "有没有{}的？", "背景是{}的。"):
            assert token in tokenizer.encode(text.format(name)), (name, text)


def test_what_a_network_knows_survives_another_tokenizer(tokenizer: Tokenizer, folder: Path):
    source = load_network(folder)
    fewer = Tokenizer(train_ranks(corpus_words(seed=0, scenes=50), size=600))
    target = Network(checkpoint_config(len(fewer.ranks)))
    carry_over(source, tokenizer, target, fewer)
    before = source.transformer.embedding.word_embeddings.weight
    after = target.transformer.embedding.word_embeddings.weight
    kept = [token for token in fewer.ranks if token in tokenizer.ranks]
    new = [token for token in fewer.ranks if token not in tokenizer.ranks]
    assert len(kept) > 400
    assert new
    for token in kept:
        assert torch.equal(after[fewer.ranks[token]], before[tokenizer.ranks[token]])
    for token in new:
        spelt = tokenizer.spell(token)
        assert len(spelt) > 1
        torch.testing.assert_close(after[fewer.ranks[token]], before[spelt].mean(dim=0))
    old_ids, new_ids = special_ids(len(tokenizer.ranks)), special_ids(len(fewer.ranks))
    for name, index in new_ids.items():
        assert torch.equal(after[index], before[old_ids[name]])
    assert torch.equal(target.transformer.vision.boi, source.transformer.vision.boi)


def test_a_run_goes_on_from_a_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """``--from``; a run of no time makes no step and writes what it began with."""
    vision = checkpoint_config(0)["vision_config"]
    heads = DenseHeads(vision["hidden_size"], checkpoint_config(0)["hidden_size"])
    torch.save(heads.state_dict(), folder / "heads.pt")
    monkeypatch.setattr(
        "sys.argv",
        [
            *("train", "--from", str(folder), "--out", str(tmp_path), "--ranks", "400"),
            *("--minutes-tower", "0", "--minutes-whole", "1e-6", "--more", "place=3"),
        ],
    )
    train.main()
    saved = torch.load(tmp_path / "heads.pt", weights_only=True)
    assert torch.equal(saved["cell.weight"], heads.cell.weight)
    before, after = load_network(folder), load_network(tmp_path)
    assert after.transformer.embedding.word_embeddings.num_embeddings == 416
    for name, weight in before.transformer.vision.state_dict().items():
        assert torch.equal(after.transformer.vision.state_dict()[name], weight), name
    known, now = (Tokenizer.load(path / "tokenizer.model") for path in (folder, tmp_path))
    was, became = (n.transformer.embedding.word_embeddings.weight for n in (before, after))
    shared = [token for token in now.ranks if token in known.ranks]
    assert len(shared) > 300
    for token in shared:
        assert torch.equal(became[now.ranks[token]], was[known.ranks[token]])


def test_kinds_can_be_asked_more_often():
    def share(more: dict[str, float]) -> float:
        rng = rng_for("test", 11)
        kinds = [e.kind for _ in range(300) for e in conversation(rng, TWO, 4, more=more)]
        return kinds.count("place") / len(kinds)

    assert share({"place": 10}) > 3 * share({})


def test_more_of_an_unknown_kind_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["train", "--out", "x", "--more", "weather=2"])
    with pytest.raises(SystemExit):
        train.main()
    assert "no kind 'weather'; there are colour, shape" in capsys.readouterr().err


def test_ranks_mean_the_same_to_tiktoken(tokenizer: Tokenizer):
    tiktoken = pytest.importorskip("tiktoken")
    from glm4v_magic.checkpoints.glm4v_9b.processing import PATTERN

    reference = tiktoken.Encoding(
        "demo", pat_str=PATTERN, mergeable_ranks=tokenizer.ranks, special_tokens={}
    )
    rng = rng_for("test", 8)
    for _ in range(50):
        for exchange in conversation(rng, sample_scene(rng), 5):
            assert tokenizer.encode(exchange.question) == reference.encode(exchange.question)


def test_rows_follow_the_prompt_rule_of_the_shipped_processor(tokenizer: Tokenizer, folder: Path):
    processor = Glm4v9bProcessor(
        load_tokenizer(folder / "tokenizer.model"), Glm4v9bConfig.from_pretrained(folder)
    )
    first = Exchange("colour", "What color is the circle?", "The circle is red.")
    second = Exchange("background", "Background colour?", "The background is white.")
    image = draw_scene(TWO, 112)
    shown = (SourcedImage(image, "drawn", image.size),)
    turns = (
        Message("user", first.question, shown),
        Message("assistant", first.answer),
        Message("user", second.question),
    )
    prompt = processor.prompt_ids(Conversation(turns))
    ids, targets = rows(tokenizer, [[first, second]], 96, image=True)
    assert ids[0, : len(prompt)].tolist() == prompt

    user = special_ids(len(tokenizer.ranks))["<|user|>"]
    answer = [*tokenizer.encode("\n"), *tokenizer.encode(second.answer), user]
    end = len(prompt) + len(answer)
    assert ids[0, len(prompt) : end].tolist() == answer
    assert targets[0, len(prompt) : end].tolist() == answer
    assert (targets[0, end:] == IGNORED).all()
    learnt = targets[0][targets[0] != IGNORED].tolist()
    assert learnt[: -len(answer)] == [
        *tokenizer.encode("\n"),
        *tokenizer.encode(first.answer),
        user,
    ]


@pytest.mark.parametrize("case", ["image_text", "image_two_turn", "text_only", "unicode_text"])
def test_the_training_network_gives_the_original_codes_logits(case: str):
    config = json.loads((golden.CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    weights = load_file(golden.CHECKPOINT / "model.safetensors")
    del weights["transformer.rotary_pos_emb.inv_freq"]
    network = Network(config)
    network.load_state_dict(weights)
    data = golden.tensors(case)
    with torch.inference_mode():
        cells = network.visual_tokens(data["in.images"])[0] if "in.images" in data else None
        logits = network.logits(network(data["in.input_ids"], cells))
    torch.testing.assert_close(logits, data["logits"], atol=2e-3, rtol=0)


def test_an_exported_network_is_the_shipped_model(folder: Path):
    loaded = resolve(folder).load(dtype=torch.float32)
    network = load_network(folder)
    image = draw_scene(TWO, 112)
    shown = (SourcedImage(image, "drawn", image.size),)
    asked = Conversation((Message("user", "What color is the circle?", shown),))
    inputs = loaded.processor([asked])
    ids = torch.tensor([loaded.processor.prompt_ids(asked)])
    pixels = normalised(torch.from_numpy(np.array(image))[None], torch.float32)
    torch.testing.assert_close(pixels, inputs["pixel_values"])
    with torch.inference_mode():
        ours = network.logits(network(ids, network.visual_tokens(pixels)[0]))
        shipped = loaded.model(**inputs).logits
    torch.testing.assert_close(ours, shipped, atol=1e-4, rtol=1e-4)


def test_an_exported_folder_has_shards_that_layers_straddle(folder: Path):
    index = (folder / "model.safetensors.index.json").read_text(encoding="utf-8")
    weight_map = json.loads(index)["weight_map"]
    assert "transformer.rotary_pos_emb.inv_freq" in weight_map
    files_of_layer: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if layer := re.match(r".*\.layers\.\d+", name):
            files_of_layer.setdefault(layer[0], set()).add(file)
    assert len(set(weight_map.values())) == 3
    assert [len(files) for files in files_of_layer.values()].count(2) == 2
