"""A model that computes NaN or infinity: one error for each row it concerns, and no answer."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import golden
import numpy as np
import pytest
import torch
from following import follow
from PIL import Image
from served import SECONDS, ask, assert_error, data_of, question, serving
from torch import nn

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.events import Failed, Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local
from glm4v_magic.engines.not_finite import broken_weight, not_finite
from glm4v_magic.engines.replicas.worker import ReplicaWorker
from glm4v_magic.planning.decision import Placement
from glm4v_magic.server.next_steps import in_http
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

GREEDY = Sampling(8, temperature=0)
SAMPLED = Sampling(8, temperature=1.0, seed=1)
BAD = "Z"  # a character whose embedding overflows
DOWN = "model.language_model.layers.1.mlp.down_proj.weight"
ASTRAY = "Its training went astray, or its files are damaged: take an earlier step of it, or another copy."  # noqa: E501
WAYS = {
    "greedy": (GREEDY, None),
    "sampled": (SAMPLED, None),
    "penalty": (Sampling(8, temperature=0, repetition_penalty=1.5), None),
    "logprobs": (Sampling(8, temperature=0, logprobs=3), None),
    "choices": (GREEDY, Constraint(choices=("yes", "no"))),
    "sampled choices": (SAMPLED, Constraint(choices=("yes", "no"))),
    "regex": (GREEDY, Constraint(regex="[0-9]+")),
    "schema": (SAMPLED, Constraint(schema=json.dumps({"type": "integer"}))),
}


@pytest.fixture(scope="module")
def session():
    session = Session().load(golden.CHECKPOINT)
    yield session
    session.unload()


@pytest.fixture
def engine(session):
    engine = session.engine
    engine.kept.clear()
    vars(engine).pop("_broken_weight", None)
    return engine


@contextlib.contextmanager
def overflowing(engine, number=float("inf")):
    """Let the embedding of `BAD` overflow, as one image's features may."""
    (bad,) = set(engine.processor.tokenizer.encode(BAD, add_special_tokens=False))

    def spoil(_, inputs, output):
        return output.masked_fill((inputs[0] == bad)[..., None], number)

    handle = engine.model.get_input_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def broken_after(engine, steps, number=float("nan"), rows=None):
    """Let the logits be NaN from a step on, in the first rows alone or in all."""
    made = []

    def spoil(_, __, output):
        made.append(1)
        if len(made) > steps:
            output = output.clone()
            output[:rows] = number
        return output

    handle = engine.model.get_output_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def broken(engine, name=DOWN, number=float("nan")):
    """Put a number into a weight."""
    weight = engine.model.get_parameter(name)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.view(-1)[-1] = number
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


def requests(way, *texts):
    sampling, constraint = WAYS[way]
    return [Request(Conversation((Message("user", each),)), sampling, constraint) for each in texts]


def events(engine, asked, **more):
    return {each.row: each for each in engine.stream(asked, **more) if type(each) in ENDS}


ENDS = (Finished, Failed)


def told(event):
    shares = {text: round(each, 3) for text, each in event.generation.choices.items()}
    return event.generation.text, event.generation.ids, shares


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("at_once", [1, 8])
def test_the_row_fails_and_those_beside_it_are_answered_as_before(engine, way, at_once):
    asked = requests(way, "a", BAD, "what is this", f"long {BAD} text", "b")
    before = events(engine, asked, at_once=at_once)
    engine.kept.clear()
    with overflowing(engine):
        found = events(engine, asked, at_once=at_once)
    assert sorted(found) == [0, 1, 2, 3, 4]
    for row in (1, 3):
        error = found[row].error
        assert isinstance(error, EngineError)
        place = "for the choices" if "choices" in way else "for the first token of the answer"
        assert error.what.startswith(f"{engine.info.model} computes NaN or infinity {place}: ")
        assert "its weights are finite" in error.what
        assert error.reach == "request"
        assert not error.generations
    for row in (0, 2, 4):
        assert told(found[row]) == told(before[row])
    assert told(events(engine, asked)[1]) == told(before[1])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_no_token_is_chosen_among_them(engine, way, number):
    with broken_after(engine, 0, number):
        assert isinstance(events(engine, requests(way, "a"))[0], Failed)


@pytest.mark.parametrize("way", ["greedy", "choices"])
def test_nothing_is_kept_of_a_prompt_that_overflowed(engine, way):
    asked = [replace(each, is_kept=True) for each in requests(way, f"{BAD} and more text")]
    with overflowing(engine):
        assert isinstance(events(engine, asked)[0], Failed)
        assert engine.cache.prefixes == 0
    assert isinstance(events(engine, asked)[0], Finished)
    assert engine.cache.prefixes == 1


def test_features_of_an_image_that_overflowed_are_not_kept(engine):
    image = golden.photo("image0.png")
    asked = [Request(Conversation((Message("user", "a", (image,)),)), GREEDY)]
    with overflowing_tower(engine):
        assert isinstance(events(engine, asked)[0], Failed)
    assert engine.cache.images == 0
    assert isinstance(events(engine, asked)[0], Finished)


@contextlib.contextmanager
def overflowing_tower(engine):
    """Let the features of all images overflow that are encoded meanwhile."""
    handle = engine.model.model.vision.register_forward_hook(
        lambda _, __, output: output * float("inf")
    )
    try:
        yield
    finally:
        handle.remove()


def chat(text, *images):
    return Request(Conversation((Message("user", text, images),)), GREEDY, is_kept=True)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("beside", [[], ["a", "b"]])
def test_what_is_kept_of_other_chats_stays(engine, beside, number):
    one, bad = golden.photo("image0.png"), golden.photo("image1.png")
    kept = [chat("What is this?", one), chat("what is that, and why?"), chat("What?", one)]
    for each in kept:
        events(engine, [each])
    before = engine.cache
    assert (before.prefixes, before.images) == (3, 1)
    asked = [chat(f"What is {BAD}?", one), chat("What is this?", bad), *map(chat, beside)]
    with overflowing(engine, number), overflowing_tower(engine):
        found = events(engine, asked)
    assert [row for row, each in found.items() if isinstance(each, Failed)] == [0, 1]
    assert engine.cache.prefixes == before.prefixes + len(beside)
    assert engine.cache.images == before.images
    for each in kept:
        keys = engine.prompt(engine.encode(each)).keys
        assert engine.kept.find(keys)[1] == len(keys)


def test_states_of_other_chats_stay(native):
    engine = local.load(resolve(native("glm5_next")), keep=2**26)
    engine.kept.clear()
    long = "and more text " * 8
    events(engine, [chat(f"What is this? {long}")])
    before = engine.cache
    assert before.prefixes
    bad = chat(f"What is that? {BAD} {long}")
    with overflowing(engine):
        assert isinstance(events(engine, [bad])[0], Failed)
    assert engine.cache == before
    assert isinstance(events(engine, [bad])[0], Finished)
    assert engine.cache.prefixes > before.prefixes
    engine.close()


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_kept_prefix_that_leads_there_is_dropped(engine, layer, number):
    """A call that was interrupted may have left it; the next question must not fail for it."""
    first, other = chat("What is this, please?"), chat("Why?")
    for each in (first, other):
        events(engine, [each])
    keys = engine.prompt(engine.encode(first)).keys
    prefix, length = engine.kept.find(keys)
    with torch.inference_mode():
        prefix.layers[layer][-1][0, :, length - 3] = number  # of its question, not of all chats
    assert isinstance(events(engine, [first, other])[0], Failed)
    assert engine.kept.find(keys)[0] is not prefix
    assert isinstance(events(engine, [first])[0], Finished)
    assert engine.cache.prefixes == 2


@pytest.mark.parametrize("rows", [None, 1])
@pytest.mark.parametrize("way", ["choices", "sampled choices"])
def test_texts_are_not_chosen_by_what_follows_a_finite_beginning(engine, way, rows):
    with broken_after(engine, 1, rows=rows):
        (found,) = events(engine, requests(way, "a")).values()
    assert "for the choices" in str(found.error)


def test_ids_that_are_never_said_may_be_minus_infinity(engine):
    (before,) = events(engine, requests("greedy", "a")).values()
    unsaid = next(id_ for id_ in range(100) if id_ not in before.generation.ids)

    def mask(_, __, output):
        output[..., unsaid] = -float("inf")
        return output

    handle = engine.model.get_output_embeddings().register_forward_hook(mask)
    found = events(engine, requests("greedy", "a", "b") + requests("sampled", "c"))
    handle.remove()
    assert told(found[0]) == told(before)
    assert all(isinstance(each, Finished) for each in found.values())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_and_is_told(engine, number):
    with broken(engine, number=number):
        found = events(engine, requests("greedy", "a", "b"))
    for each in found.values():
        assert each.error.reach == "request"
        assert each.error.what.endswith(f"its weight {DOWN} has values that are not finite.")
        assert each.error.hint == ASTRAY
    vars(engine).pop("_broken_weight")
    assert isinstance(events(engine, requests("greedy", "a"))[0], Finished)  # another copy


def test_what_was_said_is_kept_and_can_be_carried_on(session, engine):
    pieces = []
    with broken_after(engine, 4), pytest.raises(EngineError) as caught:
        follow(
            session.stream("a", temperature=0, max_tokens=8, chat="d"),
            text=pieces.append,
        )
    assert "after 4 tokens of the answer" in str(caught.value)
    assert "What was said until then is kept, and can be carried on." in str(caught.value)
    assert "".join(pieces).strip() == caught.value.answer.text != ""
    on = session.carry_on(temperature=0, max_tokens=3)
    assert on.usage.new_tokens == 3
    assert on.text.startswith(caught.value.answer.text.rstrip("\ufffd"))


def test_a_chat_goes_on_from_before_the_question(session, engine):
    session.ask("a", temperature=0, max_tokens=4, chat="e")
    follow_up = {"text": "b", "follow_up": True, "chat": "e", "temperature": 0, "max_tokens": 4}
    with broken(engine), pytest.raises(EngineError) as caught:
        session.ask(**follow_up)
    assert caught.value.answer is None
    roles = [each.role for each in session.conversation("e").messages]
    assert roles == ["user", "assistant"]
    assert session.ask(**follow_up).text


class TestMap:
    def test_a_row_of_many(self, session, engine):
        texts = ["a", "b", BAD, "c", BAD, BAD, "d"]
        session.forget_answers()
        with overflowing(engine):
            rows = session.map("{{item}}", texts, temperature=0, max_tokens=4, batch_size=1)
        assert [bool(row.error) for row in rows] == [each == BAD for each in texts]
        assert all("NaN or infinity" in row.error for row in rows if row.error)

    @pytest.mark.parametrize("more", [{}, {"choices": ["yes", "no"]}])
    def test_a_broken_weight_is_told_of_each_row(self, session, engine, more):
        session.forget_answers()
        with broken(engine):
            rows = session.map("{{item}}", list("abcdefgh"), temperature=0, batch_size=2, **more)
        assert len(rows) == 8
        assert all(DOWN in row.error for row in rows)
        again = session.map("{{item}}", list("abcdefgh"), temperature=0, batch_size=2, **more)
        assert not any(row.error for row in again)

    def test_a_broken_weight_of_the_tower_spoils_images_alone(self, photo):
        session = Session().load(golden.CHECKPOINT, gpus="cpu")
        values = session.engine.model.get_parameter("model.vision.boi")
        with torch.no_grad():
            values.view(-1)[0] = torch.nan
        short = {"temperature": 0, "max_tokens": 3}
        assert all("vision.boi" in row.error for row in session.map("What?", [photo] * 2, **short))
        assert not any(row.error for row in session.map("{{item}}", ["a", "b"], **short))
        session.unload()


class TestCause:
    def test_offloaded_weights_are_looked_at(self):
        with VirtualGPUs("1x1GiB"):
            there = {"": 0, "model.language_model.layers.1": "cpu"}
            engine = local.load(resolve(golden.CHECKPOINT), Placement(device_map=there), keep=0)
            assert broken_weight(engine.model) is None
            (hook,) = (
                each
                for each in local_hooks(engine.model.get_submodule(DOWN.rpartition(".mlp")[0]))
                if getattr(each, "weights_map", None)
            )
            with torch.no_grad():
                hook.weights_map[DOWN.partition("layers.1.")[2]].view(-1)[0] = torch.nan
            assert broken_weight(engine.model).name == DOWN
            engine.close()

    def test_scales_of_quantised_weights_tell_it(self):
        bitsandbytes = pytest.importorskip("bitsandbytes")
        weight = torch.randn(64, 64)
        weight[3, 3] = torch.inf
        four = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4")
        four.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        four = four.to("cpu")
        assert not four.weight.is_floating_point()
        assert broken_weight(nn.ModuleDict({"linear": four})).name == "linear.weight"

    def test_fp8_is_read(self):
        module = nn.Linear(4, 4, bias=False)
        module.weight = nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
        assert broken_weight(module) is None
        module.weight.data.view(torch.uint8)[1, 1] = 0x7F
        assert broken_weight(module).has_nan

    @pytest.mark.parametrize(
        ("dtype", "number", "said"),
        [
            ("float16", torch.nan, "has values that are not finite. Its training went astray"),
            ("float16", torch.inf, "are too large for float16. Load it again"),
            ("float16", None, "what it makes of them is too large for float16. Load it again"),
            ("bfloat16", torch.inf, "has values that are not finite. Its training went astray"),
            ("float32", None, "what it makes of them is not. Are they as they were trained?"),
        ],
    )
    def test_what_is_said(self, engine, dtype, number, said):
        module = nn.Linear(4, 4)
        if number is not None:
            module.weight.data[2, 2] = number
        error = not_finite(replace(engine.info, dtype=dtype), "here", broken_weight(module))
        assert said in str(error)
        assert ("its weight weight " in str(error)) == (number is not None)


def test_weights_as_they_were_trained_compute_finite_numbers():
    session = Session().load(golden.CHECKPOINT, dtype="float32")
    weight = session.engine.model.get_parameter(DOWN)
    trained = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1e38 / float(weight.abs().max()))
    with pytest.raises(EngineError, match=r"are finite, .* Are they as they were trained\?"):
        session.ask("a", temperature=0, max_tokens=2)
    with torch.no_grad():
        weight.copy_(trained)
    assert session.ask("a", temperature=0, max_tokens=2).usage.new_tokens
    session.unload()


def local_hooks(module):
    hook = module._hf_hook
    return getattr(hook, "hooks", (hook,))


def test_float16_overflows_and_float32_does_not(tmp_path):
    """The advice is followed."""
    session = Session().load(golden.CHECKPOINT, dtype="float16")
    weight = session.engine.model.get_parameter(DOWN)
    with torch.no_grad():
        weight.mul_(6e4 / float(weight.abs().max()))
        assert weight.isfinite().all()
    with pytest.raises(EngineError) as caught:
        session.ask("a", temperature=0, max_tokens=2)
    assert 'dtype="float32", which takes twice the memory' in str(caught.value)
    assert 'dtype="bfloat16"' in str(caught.value)
    large = weight.detach().clone()
    for dtype in ("float32", "bfloat16"):
        session.load(golden.CHECKPOINT, dtype=dtype)
        with torch.no_grad():
            session.engine.model.get_parameter(DOWN).copy_(large)
        assert session.ask("a", temperature=0, max_tokens=2).usage.new_tokens
    session.unload()


class TestServer:
    def test_the_client_is_told(self, session, engine):
        with serving(engine) as server, overflowing(engine):
            assert_error(ask(server, question(BAD)), 500, "computes NaN or infinity")
            status, events = ask(server, question(BAD, stream=True))
            assert status == 500
            assert "NaN" in events["error"]["message"]
            assert ask(server, question("a"))[0] == 200
            with broken_after(engine, 3):
                *_, last = data_of(ask(server, question("b", stream=True))[1])
            assert "after 3 tokens of the answer" in last["error"]["message"]

    def test_the_advice_is_that_of_the_server(self, engine):
        error = not_finite(replace(engine.info, dtype="float16"), "here", None)
        assert "Start the server with --dtype float32" in in_http(error)


def test_a_replica_tells_which_row_it_was(session, engine):
    worker = ReplicaWorker(lambda *_: engine, None, 0)
    found = {}
    with broken_after(engine, 3):
        worker.put(1, 1, [(7, requests("greedy", "a")[0])])
        for _ in range(SECONDS * 10):
            news = worker.take(1, 0.1)
            assert news.error is None
            found |= {each.row: each for each in news.events if isinstance(each, Failed)}
            if found:
                break
    assert list(found) == [7]
    assert list(found[7].error.generations) == [7]
    assert found[7].error.generations[7].finish_reason == "failed"


def test_a_look_into_an_answer(session, engine):
    answer = session.ask("a", Image.new("RGB", (40, 40), "red"), temperature=0, max_tokens=4)
    look = answer.inspect()
    with broken(engine):
        for method in (
            lambda: look.tokens,
            look.lens,
            lambda: look.attention(0),
            lambda: look.rollout(0),
            lambda: look.gradient(0),
            lambda: look.occlusion(0, rows=1, columns=2),
        ):
            with pytest.raises(EngineError, match=DOWN):
                method()
    assert look.tokens
    assert np.isfinite(look.occlusion(0, rows=1, columns=2).values.values).all()
