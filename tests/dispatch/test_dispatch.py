"""Dispatch: hooks at stage borders only, one copy per GPU and step, and nothing left behind."""

from __future__ import annotations

import random
from itertools import pairwise

import golden
import pytest
import tiny_glm4v
import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook

from glm4v_magic.checkpoints import resolve
from glm4v_magic.dispatch.arrival import verify_places
from glm4v_magic.dispatch.copies import shared
from glm4v_magic.dispatch.hooks import dispatch, dispatch_like_accelerate
from glm4v_magic.virtual_gpus import VirtualGPUs

TEXT = "model.language_model"
STEPS = 4


class Subject:
    """A tiny model, its prompt, and what one device answers."""

    def __init__(self, tower, build, inputs):
        self.tower, self.build, self.inputs = tower, build, inputs
        self.logits, self.ids = self.ask(build())

    def ask(self, model):
        there = {name: tensor.to(model.device) for name, tensor in self.inputs.items()}
        if model.device.type == "meta":
            there = {name: tensor.to("cuda:0") for name, tensor in self.inputs.items()}
        with torch.no_grad():
            logits = model(**there).logits.cpu()
            ids = model.generate(
                **there,
                max_new_tokens=STEPS + 1,
                max_length=None,
                do_sample=False,
                eos_token_id=None,
            )
        return logits, ids.tolist()

    def is_right(self, model):
        logits, ids = self.ask(model)
        return torch.equal(logits, self.logits) and ids == self.ids

    def stages(self, *places, tower=0):
        """Embedding and layers on `places`, norm and head with the last of them."""
        first, *layers = places
        places = {self.tower: tower, f"{TEXT}.embed_tokens": first, f"{TEXT}.rotary_emb": first}
        places |= {f"{TEXT}.layers.{i}": gpu for i, gpu in enumerate(layers)}
        return places | {f"{TEXT}.norm": layers[-1], "lm_head": layers[-1]}


@pytest.fixture(scope="module")
def glm4v_9b():
    loaded = resolve(golden.CHECKPOINT).load(dtype=torch.float32)
    inputs = loaded.processor(
        [golden.conversation(case) for case in ("image_text", "image_second_turn")]
    )
    return Subject(
        "model.vision",
        lambda: resolve(golden.CHECKPOINT).load(dtype=torch.float32).model,
        inputs,
    )


@pytest.fixture(scope="module")
def glm4v():
    return Subject("model.visual", tiny_glm4v.build, tiny_glm4v.prompt())


@pytest.fixture(params=["glm4v_9b", "glm4v"])
def subject(request):
    return request.getfixturevalue(request.param)


def aligning(model):
    """Modules with a hook of accelerate's that moves their input."""
    found = set()
    for name, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
        if any(isinstance(inner, AlignDevicesHook) for inner in hooks):
            found.add(name)
    return found


def traces(model):
    """All that a dispatch might leave on a model."""
    names = ("_hf_hook", "_old_forward")
    found = [n for n, m in model.named_modules() if any(hasattr(m, name) for name in names)]
    found += [n for n, m in model.named_modules() if m._forward_pre_hooks or m._forward_hooks]
    return found + [n for n in ("hf_device_map",) if hasattr(model, n)]


def test_hooks_stand_at_stage_borders_only(subject):
    with VirtualGPUs("3x1GiB"):
        model = subject.build()
        dispatched = dispatch(model, subject.stages(0, 0, 1, 1, 2))
        borders = ["layers.0", "layers.1", "layers.3"]
        assert sorted(dispatched.inbound) == sorted(
            [
                subject.tower,
                f"{TEXT}.embed_tokens",
                *(f"{TEXT}.{layer}" for layer in borders),
                f"{TEXT}.norm",
                f"{TEXT}.rotary_emb",
                "lm_head",
            ]
        )
        assert aligning(model) == {"", *dispatched.inbound}
        # GLM-4V-9B's own layers ask for the copies themselves.
        is_own = subject.tower == "model.vision"
        layers = tuple(f"{TEXT}.layers.{index}" for index in range(4))
        assert dispatched.sharing == (() if is_own else layers)
        assert subject.is_right(model)


@pytest.mark.parametrize(
    "places", [(0, 0, 1, 1, 2), (0, 1, 2, 3, 4), (1, 1, 1, 0, 0)], ids=lambda places: f"{places}"
)
def test_a_gpu_gets_one_copy_per_step_of_what_layers_share(subject, places):
    with VirtualGPUs("5x1GiB") as gpus:
        model = subject.build()
        dispatch(model, subject.stages(*places, tower=places[0]))
        gpus.reset()
        assert subject.is_right(model)
        report = gpus.report()
    steps = dict(report.forwards)["decode"]
    assert steps == STEPS
    decode = [copy for copy in report.copies if copy.phase == "decode"]
    # ids start and logits end where the embedding is, as the weights of the tower
    route = [places[0], *places[1:], places[0]]
    hops = sum(a != b for a, b in pairwise(route))
    assert sum(copy.count for copy in decode) <= 3 * hops * steps
    # to every GPU but the first: hidden states; rotary tables as one; the mask. No position ids.
    for gpu in set(places) - {places[0]}:
        inbound = [copy.count for copy in decode if copy.target == f"cuda:{gpu}"]
        assert sum(inbound) == 3 * steps


def test_accelerate_alone_copies_what_layers_share_for_every_layer(glm4v):
    def copies(put):
        with VirtualGPUs("2x1GiB") as gpus:
            model = glm4v.build()
            put(model, glm4v.stages(0, 0, 1, 1, 1))
            gpus.reset()
            assert glm4v.is_right(model)
            report = gpus.report()
        return sum(count for count, _ in report.hops("decode").values()) // STEPS

    # hidden states there, logits back, and tables and mask: 2 against 4 for each of 3 layers
    assert copies(dispatch) == 1 + 1 + 2
    assert copies(dispatch_like_accelerate) == 1 + 1 + 4 * 3


@pytest.mark.parametrize(("attention", "moves"), [("sdpa", False), ("flash_attention_2", True)])
def test_only_flash_attention_reads_the_positions_in_a_layer(glm4v, attention, moves):
    with VirtualGPUs("2x1GiB"):
        model = glm4v.build()
        model.config._attn_implementation = attention
        dispatch(model, glm4v.stages(0, 0, 0, 1, 1))
        _, border = model.get_submodule(f"{TEXT}.layers.2")._hf_hook.hooks
    assert ("position_ids" not in border.skip_keys) == moves
    assert "past_key_values" in border.skip_keys


def test_undo_leaves_nothing_behind(subject):
    with VirtualGPUs("2x1GiB"):
        model = subject.build()
        before = traces(model)
        dispatched = dispatch(model, subject.stages(0, "cpu", 0, 1, 1))
        dispatched.undo()
        assert traces(model) == before == []
        assert dispatched.inbound == dispatched.sharing == ()
        devices = {str(p.device) for p in model.parameters()}
        assert devices == {"cpu", "cuda:0", "cuda:1"}
        model.to("cuda:1")
        assert subject.is_right(model)


def test_dispatching_again_replaces_the_map(subject):
    with VirtualGPUs("3x1GiB") as gpus:
        model = subject.build()
        dispatch(model, subject.stages(0, 1, "cpu", 1, 2))
        second = dispatch(model, subject.stages(2, 2, 2, 0, 0, tower=2))
        assert aligning(model) == {"", *second.inbound}
        assert model.hf_device_map == subject.stages(2, 2, 2, 0, 0, tower=2)
        gpus.reset()
        assert subject.is_right(model)
        assert {copy.target for copy in gpus.copies} <= {"cuda:0", "cuda:2", "cpu"}


@pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids`")
@pytest.mark.parametrize("unit", ["tower", "layers", "embedding", "head"])
def test_offloaded_units_come_and_go(subject, unit):
    away = {
        "tower": [subject.tower],
        "layers": [f"{TEXT}.layers.{index}" for index in (1, 2)],
        "embedding": [f"{TEXT}.embed_tokens"],
        "head": ["lm_head"],
    }[unit]
    with VirtualGPUs("2x1GiB") as gpus:
        model = subject.build()
        places = subject.stages(0, 0, 0, 1, 1) | dict.fromkeys(away, "cpu")
        dispatch(model, places)
        verify_places(model, places)
        for name in away:
            assert {p.device.type for p in model.get_submodule(name).parameters()} == {"meta"}
        resting = gpus.live_bytes
        gpus.reset()
        assert subject.is_right(model)
        kept = sum(gpus.live_bytes) - sum(resting)
        assert kept <= 16  # transformers' Glm4v keeps an offset of positions for each row
        size = sum(p.nbytes for p in next(model.get_submodule(n) for n in away).parameters())
        visits = [c for c in gpus.copies if (c.source, c.phase) == ("cpu", "prefill")]
        assert size == 0 or sum(copy.total_bytes for copy in visits) >= size
        for name in away:
            assert {p.device.type for p in model.get_submodule(name).parameters()} == {"meta"}


def test_an_offloaded_layer_runs_where_the_execution_map_says(subject):
    layer = f"{TEXT}.layers.3"
    with VirtualGPUs("2x1GiB") as gpus:
        model = subject.build()
        places = subject.stages(0, 0, 0, 1, 1) | {layer: "cpu"}
        dispatch(model, places, {layer: 1})
        gpus.reset()
        assert subject.is_right(model)
        visited = {c.target for c in gpus.copies if c.source == "cpu" and layer in c.used_in}
    assert visited == {"cuda:1"}


def test_a_model_that_accelerate_has_dispatched_is_taken_over(glm4v_9b):
    with VirtualGPUs("3x1GiB"):
        places = glm4v_9b.stages(0, 1, "cpu", 1, 2)
        model = resolve(golden.CHECKPOINT).load(dtype=torch.float32, device_map=places).model
        dispatched = dispatch(model, places, places | {f"{TEXT}.layers.1": 1})
        layers = {f"{TEXT}.layers.{index}" for index in range(4)}
        assert aligning(model) == {"", *dispatched.inbound, f"{TEXT}.layers.1"}
        assert layers & set(dispatched.inbound) == {f"{TEXT}.layers.0", f"{TEXT}.layers.3"}
        assert glm4v_9b.is_right(model)


def test_weights_that_only_the_map_names(glm4v_9b):
    parts = {f"model.vision.{name}": 0 for name in ("patch_embedding", "transformer", "conv")} | {
        "model.vision.linear_proj": 1,
        "model.vision.boi": 2,
        "model.vision.eoi": 0,
    }
    text = glm4v_9b.stages(1, 1, 1, 2, 2)
    del text["model.vision"]
    with VirtualGPUs("3x1GiB"):
        model = glm4v_9b.build()
        dispatch(model, text | parts)
        assert str(model.model.vision.boi.device) == "cuda:2"
        assert str(model.model.vision.eoi.device) == "cuda:0"
        assert glm4v_9b.is_right(model)


def pieces(model):
    """Every module without parts, and every weight that a module with parts holds itself."""
    for name, module in model.named_modules():
        if any(True for _ in module.children()):
            yield from (f"{name}.{own}" for own, _ in module.named_parameters(recurse=False))
        elif any(True for _ in module.state_dict()) or any(True for _ in module.buffers()):
            yield name


@pytest.mark.parametrize("seed", range(4))
def test_any_map_of_glm4v_9b(glm4v_9b, seed):
    chance = random.Random(seed)
    with VirtualGPUs("4x1GiB"):
        model = glm4v_9b.build()
        places = {name: chance.randrange(4) for name in pieces(model)}
        dispatch(model, places)
        verify_places(model, places)
        assert glm4v_9b.is_right(model)


def test_one_gpu_needs_one_hook(subject):
    with VirtualGPUs("1x1GiB") as gpus:
        model = subject.build()
        assert dispatch(model, {"": 0}).inbound == ("",)
        gpus.reset()
        assert subject.is_right(model)
        assert {copy.target for copy in gpus.copies if copy.phase == "decode"} <= {"cpu"}


def test_the_cpu_alone_is_a_device_like_others(subject):
    model = subject.build()
    dispatched = dispatch(model, {"": "cpu"})
    assert subject.is_right(model)
    dispatched.undo()
    assert traces(model) == []


def copied(gpus):
    return [(copy.source, copy.target, copy.count) for copy in gpus.copies]


def test_what_is_shared_crosses_once_per_gpu():
    with VirtualGPUs("3x1GiB") as gpus:
        mask = torch.ones(2, 3, device="cuda:0")
        there = shared(mask, torch.device("cuda", 1))
        assert shared(mask, torch.device("cuda", 1)) is there
        assert shared(mask, torch.device("cuda", 0)) is mask
        shared(mask, torch.device("cuda", 2))
        assert copied(gpus) == [("cuda:0", "cuda:1", 1), ("cuda:0", "cuda:2", 1)]
        assert torch.equal(there.cpu(), torch.ones(2, 3))


def test_tables_cross_as_one_and_together():
    with VirtualGPUs("2x1GiB") as gpus:
        cos, sin, other = (torch.full((2,), float(i), device="cuda:0") for i in range(3))
        target = torch.device("cuda", 1)
        first = shared((cos, sin), target)
        assert copied(gpus) == [("cuda:0", "cuda:1", 1)]
        assert [t.tolist() for t in first] == [[0, 0], [1, 1]]
        assert shared((cos, sin), target)[1] is first[1]
        # the same cos with another sin is another pair
        assert [t.tolist() for t in shared((cos, other), target)] == [[0, 0], [2, 2]]
        # and cos alone is none
        assert shared(cos, target).tolist() == [0, 0]
        assert [t.tolist() for t in shared((cos, sin), target)] == [[0, 0], [1, 1]]


def test_shared_leaves_alone_what_is_no_tensor():
    target = torch.device("cpu")
    for value in (None, 3, "text", (), [1, None], {"a": 1}):
        assert shared(value, target) == value
    long, short = torch.ones(2), torch.ones(1)
    assert shared([long, (short, 1)], target) == [long, (short, 1)]


def test_copies_live_as_long_as_their_originals():
    with VirtualGPUs("2x1GiB") as gpus:
        mask = torch.ones(1000, device="cuda:0")
        shared(mask, torch.device("cuda", 1))
        assert gpus.live_bytes[1] > 0
        del mask
        assert gpus.live_bytes == (0, 0)
