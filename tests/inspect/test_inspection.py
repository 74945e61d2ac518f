"""Looks into models equal plain forwards that return everything, on any split."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_native
import torch
from PIL import Image, ImageDraw
from scripted_engine import ScriptedEngine

from glm4v_magic.core.errors import BusyError, ConversationError, EngineError, OptionError
from glm4v_magic.core.events import Text
from glm4v_magic.inspect.labelled import Labelled
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

QUESTION = "What colour is the circle?"
EXACT = {"temperature": 0, "repetition_penalty": 1.0, "max_tokens": 5}
KINDS = ("demo", "demo-4.6v", "glm_ocr", "glm4v_moe")


def drawn(width=300, height=200):
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 30, 100, 110), fill="red")
    draw.rectangle((200, 60, 280, 140), fill="blue")
    return image


@pytest.fixture(scope="module")
def session():
    return Session().load("demo")


@pytest.fixture(scope="module")
def answer(session):
    return session.ask(QUESTION, drawn(), logprobs=5)


@pytest.fixture(scope="module")
def look(answer):
    return answer.inspect()


def plain(session, answer, count=None):
    """Run the model's own forward on prompt and answer, with attention that returns its weights."""
    engine, ids = session.engine, answer.origin.ids
    encoded = engine.encode(answer.origin.request)
    prompt = engine.prompt(encoded).extended(ids[:count])
    own = engine.model.config._attn_implementation
    engine.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = engine.model(
                input_ids=prompt.ids,
                position_ids=prompt.places,
                attention_mask=torch.ones_like(prompt.ids),
                output_hidden_states=True,
                output_attentions=True,
                **engine.vision.see(prompt.images),
            )
    finally:
        engine.model.set_attn_implementation(own)
    return out, len(encoded.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_that_of_a_plain_forward(native, session, kind):
    if kind != "demo":
        session = Session().load(str(native(kind)) if kind.startswith("glm") else kind)
    image = drawn() if not kind.startswith("glm") else tiny_native.noise(300, 200)
    answer = session.ask(QUESTION, image, **EXACT)
    look, ids = answer.inspect(), answer.origin.ids
    out, start = plain(session, answer)
    rows = out.logits[0, start - 1 : -1].float().log_softmax(dim=-1)
    expected = rows[range(len(ids)), list(ids)]
    assert np.allclose([each.token.logprob for each in look.tokens], expected, atol=1e-4)
    entropy = -(rows.exp() * rows).sum(dim=-1)
    assert np.allclose([each.entropy for each in look.tokens], entropy, atol=1e-4)

    states = out.hidden_states
    for layer in range(len(states) - 1):
        hidden = look.hidden(layer)
        assert hidden.dims == ("position", "component")
        assert np.allclose(hidden, states[layer][0], atol=1e-4)
    text = session.engine.model.model.language_model
    with torch.no_grad():
        last = text.norm(torch.tensor(look.hidden(len(states) - 1).values))
        assert torch.allclose(last, out.hidden_states[-1][0], atol=1e-4)
        middle = session.engine.model.lm_head(text.norm(states[1][0, start - 1 : -1])).softmax(-1)
    lens = look.lens(3)
    assert np.array_equal(lens.ids.values[1], middle.topk(3).indices)
    assert np.allclose(lens.probabilities.values[1], middle.topk(3).values, atol=1e-4)
    said = middle[range(len(ids)), list(ids)]
    assert np.allclose(lens.said_probabilities.values[1], said, atol=1e-4)
    assert np.array_equal(lens.said.values[1], (middle > said[:, None]).sum(dim=-1))
    assert np.allclose(lens.said_probabilities.values[-1], expected.exp(), atol=1e-4)

    out, start = plain(session, answer, 2)  # up to what predicts the third token
    weights = torch.stack(out.attentions)[:, 0]
    session.engine.kept.clear()  # the tower runs, too, whose attention is not asked for
    attention = look.attention(2)
    assert attention.values.dims == ("layer", "head", "position")
    assert np.allclose(attention.values, weights[:, :, -1], atol=1e-5)
    flow = torch.eye(weights.shape[-1])
    for layer in weights.mean(dim=1):
        flow = (0.5 * layer + 0.5 * torch.eye(len(layer))) @ flow
    assert np.allclose(look.rollout(2).values, flow[-1], atol=1e-5)


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_quantised_models_are_looked_into(kind):
    """On the CPU, where bitsandbytes computes, too."""
    session = Session().load("demo", quantize=kind)
    answer = session.ask(QUESTION, drawn(), **EXACT)
    look, ids = answer.inspect(), answer.origin.ids
    out, start = plain(session, answer)
    rows = out.logits[0, start - 1 : -1].float().softmax(dim=-1)
    expected = rows[range(len(ids)), list(ids)]
    assert np.allclose([each.probability for each in look.tokens], expected, atol=1e-3)
    assert np.allclose(look.lens().said_probabilities.values[-1], expected, atol=1e-3)
    assert np.allclose(look.hidden(3), out.hidden_states[3][0], atol=1e-4)
    out, start = plain(session, answer, 4)
    weights = torch.stack(out.attentions)[:, 0, :, -1]
    assert np.allclose(look.attention(4).values, weights, atol=1e-5)
    assert look.occlusion(4, rows=2, columns=3).values.values.argmax() == 0  # the circle
    with pytest.raises(OptionError, match="demo is quantised"):
        look.gradient(4)


def test_tokens_are_those_of_the_answer(answer, look):
    assert "".join(each.text for each in look.tokens) == f"\n{answer.text}<|user|>"
    for mine, told in zip(look.tokens, answer.tokens, strict=True):
        assert (mine.text, mine.token.id) == (told.text, told.id)
        assert (mine.token.start, mine.token.end) == (told.start, told.end)
        assert mine.probability == pytest.approx(told.probability, abs=1e-4)
        assert [each.id for each in mine.alternatives][:2] == [
            each.id for each in told.alternatives
        ][:2]
    frame = look.to_dataframe()
    assert list(frame["text"]) == [each.text for each in look.tokens]


def test_a_visual_token_has_its_patch_in_the_original_image(look):
    (grid,) = look.images
    assert (grid.rows, grid.columns) == (4, 4)
    visual = [each for each in look.prompt if each.image == 0]
    assert [each.place for each in visual] == [(r, c) for r in range(4) for c in range(4)]
    assert visual[0].box == (0, 0, 75, 50)
    assert visual[-1].box == (225, 150, 300, 200)
    assert all(each.box is None for each in look.prompt if each.image is None)
    attention = look.attention(4)
    on_image = attention.on_image()
    assert on_image.values.dims == ("layer", "head", "row", "column")
    assert on_image.values.values[1, 2, 3, 1] == attention.values.values[1, 2, grid.start + 13]
    assert on_image.box(0, 0) == visual[0].box
    text = attention.on_text()
    both = on_image.values.values.sum((-1, -2)) + text.values.sum(-1)
    assert np.allclose(both, 1, atol=1e-5)
    assert not {*text.labels("position")} & {*range(grid.start, grid.stop)}


def test_merged_patches_of_several_images():
    session = Session().load("demo-4.6v")
    answer = session.ask("What do they show?", [drawn(), drawn(200, 300)], max_tokens=4)
    first, second = answer.inspect().images
    assert first.rows < first.columns
    assert second.rows > second.columns
    images = session.engine.encode(answer.origin.request).images
    assert [(each.start, each.stop) for each in images] == [
        (first.start, first.stop), (second.start, second.stop)
    ]  # fmt: skip
    right, bottom = second.box(second.rows - 1, second.columns - 1)[2:]
    assert (right, bottom) == (200, 300)
    # Each image by itself is covered; of some words the model is too sure for any of it.
    maps = [
        [answer.inspect().occlusion(at, which, 2, 2).values.values for which in (0, 1)]
        for at in range(4)
    ]
    assert any(not np.allclose(one, other) for one, other in maps)


def test_gradients_are_those_of_a_step_along_the_input(native):
    session = Session().load(str(native("glm_ocr")))  # unsure of everything: nothing is saturated
    answer = session.ask(QUESTION, tiny_native.noise(90, 60), **EXACT)
    token, step, look = 1, 1e-2, answer.inspect()
    gradient = look.gradient(token)
    layer = session.engine.model.model.language_model.layers[0]
    grid = look.images[0]
    said = []
    for factor in (1 + step, 1 - step):

        def scaled(module, args, factor=factor):
            states = args[0].clone()
            states[:, grid.start : grid.stop] *= factor
            return (states, *args[1:])

        handle = layer.register_forward_pre_hook(scaled)
        out, _ = plain(session, answer, token)
        handle.remove()
        said.append(float(out.logits[0, -1].log_softmax(-1)[answer.origin.ids[token]]))
    slope = (said[0] - said[1]) / (2 * step)
    assert gradient.on_image().values.values.sum() == pytest.approx(slope, rel=0.02, abs=1e-4)
    assert abs(slope) > 1e-3
    assert all(each.requires_grad for each in session.engine.model.parameters())


def test_occlusion_is_the_answer_to_the_covered_image(session, look, answer):
    token = 4
    drops = look.occlusion(token, rows=2, columns=3)
    assert drops.values.dims == ("row", "column")
    assert drops.box(1, 2) == (200, 100, 300, 200)
    covered = answer.images[0].image.copy()
    mean = tuple(round(each) for each in np.asarray(covered).reshape(-1, 3).mean(axis=0))
    covered.paste(mean, (100, 100, 200, 200))
    choices = [answer.text, "No."]
    again = session.ask(QUESTION, covered, choices=choices, logprobs=0)
    expected = look.tokens[token].token.logprob - again.tokens[token].logprob
    assert again.text == answer.text
    assert drops.values.values[1, 1] == pytest.approx(expected, abs=1e-3)
    assert drops.values.values.argmax() == 0  # the circle
    (own,) = look.occlusion_of(token, [(100, 100, 200, 200)]).values
    assert own == pytest.approx(drops.values.values[1, 1], abs=1e-4)


def test_gradients_are_refused_by_name(session, answer, look, monkeypatch):
    from dataclasses import replace

    info = session.engine.info
    for changed, why in (
        (replace(info, quantize="4bit"), "is quantised"),
        (replace(info, devices=("cuda:0", "cpu")), "is offloaded"),
    ):
        monkeypatch.setattr(type(session.engine), "info", changed)
        with pytest.raises(OptionError, match=why):
            look.gradient(1)
        monkeypatch.undo()


def test_looking_keeps_nothing_and_changes_nothing(session, answer):
    before = session.status().kept
    look = answer.inspect()
    look.occlusion(1, rows=2, columns=2)
    look.attention(1)
    look.gradient(1)
    assert session.status().kept == before
    assert session.ask(QUESTION, drawn()).text == answer.text
    assert torch.is_grad_enabled()


def everything(look):
    found = [
        look.lens(2).probabilities, look.attention(4).values, look.rollout(4).values,
        look.hidden(2), look.occlusion(4, rows=2, columns=2).values,
        np.array([each.token.logprob for each in look.tokens]),
    ]  # fmt: skip
    return [np.asarray(each) for each in found]


def test_splits_and_offload_show_the_same(look):
    expected = everything(look)
    text = "model.language_model"
    spread = {"model.vision": 0, f"{text}.embed_tokens": 0, f"{text}.rotary_emb": 0}
    spread |= {f"{text}.layers.{at}": at % 3 for at in range(4)}
    spread |= {f"{text}.norm": 1, "lm_head": 2}
    with VirtualGPUs("3x1GiB") as gpus:
        there = Session().load("demo", device_map=spread, dtype="float32")
        mine = there.ask(QUESTION, drawn()).inspect()
        for own, other in zip(everything(mine), expected, strict=True):
            assert np.allclose(own, other, atol=1e-4)
        with pytest.raises(OptionError, match="on virtual GPUs, which compute no gradients"):
            mine.gradient(4)
    assert gpus.problems == ()
    offloaded = spread | {f"{text}.layers.2": "cpu", "lm_head": "cpu", f"{text}.norm": "cpu"}
    with VirtualGPUs("3x1GiB") as gpus:
        there = Session().load("demo", device_map=offloaded, dtype="float32")
        mine = there.ask(QUESTION, drawn()).inspect()
        for own, other in zip(everything(mine), expected, strict=True):
            assert np.allclose(own, other, atol=1e-4)
    assert gpus.problems == ()
    with pytest.raises(EngineError, match="virtual GPUs"):
        mine.attention(4)


UNITS = ["vision", "embed", 0, 1, 2, 3, "norm", "head"]


@pytest.mark.nightly
@pytest.mark.parametrize("border", range(1, len(UNITS)))
def test_a_split_at_any_border_shows_the_same(look, border):
    text = "model.language_model"
    names = {"vision": "model.vision", "embed": f"{text}.embed_tokens", "norm": f"{text}.norm",
             "head": "lm_head"}  # fmt: skip
    spread = {
        names.get(unit, f"{text}.layers.{unit}"): int(at >= border) for at, unit in enumerate(UNITS)
    }
    with VirtualGPUs("2x1GiB") as gpus:
        spread[f"{text}.rotary_emb"] = 0
        there = Session().load("demo", device_map=spread, dtype="float32")
        mine = there.ask(QUESTION, drawn()).inspect()
        for own, other in zip(everything(mine), everything(look), strict=True):
            assert np.allclose(own, other, atol=1e-4)
    assert gpus.problems == ()


def test_random_weights_change_every_map(look):
    """The sanity check of Adebayo et al., 2018: a map that stays shows nothing of the model."""
    other = Session().load("demo")
    answer = other.ask(QUESTION, drawn())
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in other.engine.model.model.language_model.layers:
            for weight in layer.self_attn.parameters():
                weight.copy_(torch.randn_like(weight) * weight.std())
    other.engine.kept.clear()
    changed = answer.inspect()
    pairs = [
        (each.attention(4).on_image().values.mean("head").mean("layer").values,
         each.rollout(4).on_image().values.values, each.gradient(4).on_image().values.values,
         each.occlusion(4).values.values)
        for each in (look, changed)
    ]  # fmt: skip
    for mine, random in zip(*pairs, strict=True):
        assert abs(np.corrcoef(mine.ravel(), random.ravel())[0, 1]) < 0.9


def test_several_states_for_a_token_have_no_lens(native):
    session = Session().load(str(native("glm5_next")))
    look = session.ask("?", tiny_native.noise(90, 60), **EXACT).inspect()
    with pytest.raises(OptionError, match=r"several hidden states .* no logit lens"):
        look.lens()
    assert look.hidden(1).dims == ("position", "stream", "component")
    assert len(look.tokens) == len(look.gradient(1).on_text().values) - len(
        [each for each in look.prompt if each.image is None]
    ) + len(look.tokens) - 1  # fmt: skip
    weights = look.attention(1).values
    assert list(weights.labels("layer")) == [4]  # the others have linear attention
    assert np.allclose(weights.values.sum(-1), 1, atol=1e-4)
    assert np.isfinite(look.occlusion(1, rows=1, columns=2).values.values).all()


def test_a_carried_on_answer_shows_its_last_part(session):
    session.ask(QUESTION, drawn(), max_tokens=3, chat="c")
    whole = session.carry_on("c")
    tokens = whole.inspect().tokens
    for each in tokens:
        assert whole.text[each.token.start : each.token.end] in (each.text, "")
    assert tokens[0].token.start > 0


@pytest.mark.parametrize("token", [-1, 7, 1.0, True, "red", None])
def test_tokens_that_do_not_exist(look, token):
    for method in (look.attention, look.rollout, look.occlusion, look.gradient):
        with pytest.raises(OptionError, match=r"no token .*: the answer has 7, numbered from 0"):
            method(token)


def test_places_that_do_not_exist(look):
    with pytest.raises(OptionError, match="no layer 5: they are numbered from 1 to 4"):
        look.hidden(5)
    with pytest.raises(OptionError, match="no image 1: the conversation has 1"):
        look.occlusion(1, image=1)
    with pytest.raises(OptionError, match="no image 1: the prompt has 1"):
        look.attention(1).on_image(1)
    with pytest.raises(OptionError, match="rows is 0"):
        look.occlusion(1, rows=0)
    with pytest.raises(OptionError, match="outside of the image, 300x200"):
        look.occlusion_of(1, [(300, 0, 310, 9)])
    with pytest.raises(OptionError, match="A box is left, top, right and bottom"):
        look.occlusion_of(1, [(9, 0, 3, 9)])
    for odd in ([(0, 0, math.inf, 9)], [("a", 0, 9, 9)], (0, 0, 9, 9), None, [(10**400, 0, 9, 9)]):
        with pytest.raises(OptionError, match="left, top, right and bottom"):
            look.occlusion_of(1, odd)
    assert repr(look) == f"Inspection of {look.answer.text!r} by demo"
    with pytest.raises(OptionError, match="k is 0"):
        look.lens(0)
    with pytest.raises(OptionError, match="no row 4, column 0"):
        look.occlusion(1).box(4, 0)


def test_a_copy_of_a_look_keeps_its_tokens(session, answer):
    look = answer.inspect()
    tokens = look.tokens
    for other in (pickle.loads(pickle.dumps(look)), copy.deepcopy(look)):
        assert other.tokens == tokens
        assert other.answer == look.answer
        with pytest.raises(EngineError, match="a copy of an answer"):
            other.lens()
    assert copy.copy(look).hidden(0).values.shape == look.hidden(0).values.shape


def test_answers_that_cannot_be_looked_into(session, answer, tmp_path, monkeypatch):
    from dataclasses import replace

    with pytest.raises(ConversationError, match="was broken off"):
        replace(answer, finish_reason="interrupted").inspect()
    for other in (pickle.loads(pickle.dumps(answer)), copy.deepcopy(answer)):
        with pytest.raises(EngineError, match="a copy of an answer"):
            other.inspect()
    (row,) = session.map("What is it?", [drawn()])
    with pytest.raises(ConversationError, match="is a row of a map"):
        row.answer.inspect()
    with session.stream(QUESTION, drawn(), chat="stopped") as events:
        for event in events:
            if isinstance(event, Text):
                break
    with pytest.raises(ConversationError):
        session.inspect("stopped")
    session.ask(QUESTION, drawn(), chat="kept")
    session.import_chat(session.export_chat(tmp_path / "kept.json", "kept"), "elsewhere")
    with pytest.raises(ConversationError, match="it was imported"):
        session.inspect("elsewhere")
    keeper = Session(ScriptedEngine())
    told = keeper.ask("?")
    with pytest.raises(EngineError, match="in other processes"):
        told.inspect()
    server = ScriptedEngine()
    server.info = replace(server.info, server="http://127.0.0.1:8000/v1")
    keeper = Session(server)
    told = keeper.ask("?")
    # said before anything is imported, which takes seconds where a server answers
    monkeypatch.setitem(sys.modules, "glm4v_magic.inspect.inspection", None)
    with pytest.raises(EngineError, match="is on a server, which tells the log-probabilities"):
        told.inspect()


def test_a_model_that_was_unloaded_and_one_in_use():
    session = Session().load("demo")
    answer = session.ask(QUESTION, drawn())
    look = answer.inspect()
    with session.stream(QUESTION, drawn()) as events:
        next(events)
        with pytest.raises(BusyError):
            look.attention(1)
    assert len(look.tokens) == 7
    session.unload()
    session.load("demo")
    with pytest.raises(EngineError, match="no longer loaded, or was loaded anew"):
        look.attention(1)
    with pytest.raises(EngineError, match="no longer loaded"):
        answer.inspect()
    del session
    with pytest.raises(EngineError, match="no longer loaded"):
        answer.inspect()


def test_labels():
    array = Labelled(np.arange(6).reshape(2, 3), ("layer", "token"), {"layer": (4, 7)}, "x")
    frame = array.to_dataframe()
    assert list(frame.columns) == ["layer", "token", "x"]
    assert frame.query("layer == 7 and token == 2")["x"].item() == 5
    mean = array.mean("token")
    assert (mean.dims, list(mean.values), mean.labels("layer")) == (("layer",), [1, 4], (4, 7))
    found = array.to_xarray()
    assert found.sel(layer=7, token=1).item() == 4
    assert found.name == "x"
    with pytest.raises(OptionError, match="no axis 'head'"):
        array.mean("head")


def test_results_become_tables_and_dataarrays(look):
    attention, lens = look.attention(4), look.lens(2)
    for found in (attention.values, attention.on_image().values, attention.on_text(),
                  look.rollout(4).values, look.occlusion(4, rows=2, columns=2).values,
                  look.hidden(1), look.gradient(4).values, lens.words, lens.said):  # fmt: skip
        frame, array = found.to_dataframe(), found.to_xarray()
        assert list(frame.columns) == [*found.dims, found.name]
        assert len(frame) == found.values.size
        assert (array.dims, array.name) == (found.dims, found.name)
        last = {dim: found.labels(dim)[-1] for dim in found.dims}
        assert list(frame.iloc[-1, :-1]) == list(last.values())
        kept = {dim: label for dim, label in last.items() if dim in array.coords}
        assert array.sel(kept).values.flat[-1] == found.values.flat[-1] == frame.iloc[-1, -1]
    assert attention.values.to_xarray().sel(layer=4).shape == attention.values.values.shape[1:]


def test_each_method_has_what_it_shows_on_the_page_with_a_source():
    page = (Path(__file__).parents[2] / "docs" / "inspect.md").read_text(encoding="utf-8")
    told = page.partition("## What each method shows")[2].partition("\n::: ")[0]
    paragraphs = told.split("\n\n")
    for method in ("tokens", "lens", "hidden", "attention", "rollout", "occlusion", "gradient"):
        (own,) = (each for each in paragraphs if re.match(rf"\*\*.*\*\*.*`{method}`", each))
        assert "](https://" in own


def test_xarray_is_optional(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "xarray", None)
    with pytest.raises(OptionError, match="xarray is not installed"):
        Labelled(np.zeros(1), ("token",)).to_xarray()


@pytest.mark.nightly
def test_peak_memory_is_that_of_the_prefill(native, tmp_path, record_property):
    folder = shutil.copytree(native("glm_ocr"), tmp_path / "larger")
    limits = json.loads((folder / "preprocessor_config.json").read_text())
    limits["size"]["longest_edge"] = 2**28
    (folder / "preprocessor_config.json").write_text(json.dumps(limits))
    with VirtualGPUs("1x4GiB"):
        session = Session().load(str(folder), dtype="float32", image_size=1120)
        answer = session.ask("?", Image.new("RGB", (1120, 1120), "teal"), **EXACT)
        assert answer.usage.visual_tokens >= 1600
        weights = sum(each.nbytes for each in session.engine.model.parameters())
        prefill = answer.usage.peak_bytes["cuda:0"] - weights
        look = answer.inspect()
        for method in (lambda: look.tokens, look.lens, lambda: look.attention(1)):
            session.engine.kept.clear()
            torch.cuda.reset_peak_memory_stats(0)
            method()
            share = (torch.cuda.max_memory_allocated(0) - weights) / prefill
            record_property("share", f"{share:.3f}")
            assert share < 1.2
