"""A decode step without module calls computes what the model's forward does, and is heard alike."""

from __future__ import annotations

import contextlib
import copy
import itertools
from unittest.mock import patch

import golden
import pytest
import torch
from torch import nn
from transformers import DynamicCache

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.bypassed import whole_step
from glm4v_magic.checkpoints.glm4v_9b.text_step import TextStep, text_step
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.options import Sampling
from glm4v_magic.dispatch.activity import ActivityRecorder, ModelPart
from glm4v_magic.dispatch.hooks import dispatch
from glm4v_magic.engines import local
from glm4v_magic.planning.decision import Placement
from glm4v_magic.virtual_gpus import VirtualGPUs

COLUMNS, STEPS = 21, 8


@pytest.fixture(scope="module", params=["demo", "golden"])
def loaded(request):
    name = golden.CHECKPOINT if request.param == "golden" else "demo"
    return resolve(name).load(dtype=torch.float32)


@pytest.fixture
def tiny():
    return resolve(golden.CHECKPOINT).load(dtype=torch.float32).model


def begun(model, rows, *, padded):
    """Return a mask, position ids of the last column, and a function that makes a filled cache."""
    ids = torch.randint(0, 200, (rows, COLUMNS), generator=torch.Generator().manual_seed(rows))
    mask = torch.ones_like(ids)
    for row in range(rows if padded else 0):
        mask[row, : 2 * row + 1] = 0
    places = (mask.cumsum(dim=-1) - 1).clamp(min=0)

    def cache():
        filled = DynamicCache(config=model.config.get_text_config())
        model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=filled,
            use_cache=True,
        )
        return filled

    return mask, places[:, -1:], cache


def forward(model, ids, mask, places, cache):
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
    )
    return output.logits[:, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_logits_and_cache_are_those_of_the_forward_bit_for_bit(loaded, rows, padded, dtype):
    model = copy.deepcopy(loaded.model).to(dtype)
    model.model.language_model.rotary_emb.attention_scaling = 1.25
    mask, places, cache = begun(model, rows, padded=padded)
    with torch.inference_mode():
        step, ours, theirs = text_step(model), cache(), cache()
        for number in range(STEPS):
            ids = torch.full((rows, 1), 7 + number)
            mask, places = torch.cat((mask, torch.ones_like(ids)), dim=1), places + 1
            given = mask if padded else None
            expected = forward(model, ids, given, places, theirs)
            assert torch.equal(step(ids, given, places, ours), expected)
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)


def test_every_module_that_somebody_listens_to_is_called(tiny):
    _, places, cache = begun(tiny, 1, padded=False)
    ids, heard = torch.tensor([[7]]), []
    kinds = ("register_forward_pre_hook", "register_forward_hook")
    with torch.inference_mode():
        step = text_step(tiny)
        for name, module in tiny.named_modules():
            if "vision" in name or isinstance(module, nn.ModuleList):
                continue
            for kind in kinds:
                handle = getattr(module, kind)(lambda *_, name=name: heard.append(name))
                step(ids, None, places + 1, cache())
                handle.remove()
                # The filling of the cache calls it once, the step a second time.
                assert heard == [name, name], kind
                heard.clear()
        for register in (
            nn.modules.module.register_module_forward_pre_hook,
            nn.modules.module.register_module_forward_hook,
        ):
            full = cache()
            with contextlib.closing(register(lambda *_: heard.append("any"))) as handle:
                handle.close = handle.remove
                step(ids, None, places + 1, full)
            assert len(heard) > len(tiny.model.language_model.layers)
            heard.clear()


@pytest.mark.parametrize("others", [False, True])
def test_parts_are_noted_in_the_same_order_with_and_without_calls(tiny, others):
    """Views of what is at work do not make a step call its modules, other hooks do."""
    _, places, cache = begun(tiny, 1, padded=False)
    text, ids = "model.language_model.", torch.tensor([[7]])
    parts = [
        ModelPart("cpu", "first", (f"{text}embed_tokens", f"{text}rotary_emb", f"{text}layers.0")),
        ModelPart("cpu", "rotary", (f"{text}rotary_emb",)),
        ModelPart("cpu", "middle", tuple(f"{text}layers.{at}" for at in (1, 2))),
        ModelPart("cpu", "last", (f"{text}layers.3", f"{text}norm", "lm_head")),
    ]
    steps = {
        "step": lambda full: text_step(tiny)(ids, None, places + 1, full),
        "forward": lambda full: forward(tiny, ids, None, places + 1, full),
    }
    shares, called = {}, []
    if others:
        listened = tiny.model.language_model.layers[2].mlp.down_proj
        listened.register_forward_hook(lambda *_: called.append(""))
    with torch.inference_mode():
        for name, run in steps.items():
            times = itertools.count()
            recorder, full = ActivityRecorder(clock=times.__next__), cache()
            recorder.is_watched = True
            called.clear()
            with (
                recorder.recording(tiny, lambda: tuple(parts), is_queued=False),
                patch(f"{TextStep.__module__}.whole_step", side_effect=whole_step) as whole,
            ):
                run(full)
                shares[name] = recorder.read(is_busy=True).parts
            assert whole.called == (others and name == "step")
            assert len(called) == others
    assert [each.name for each in shares["step"]] == [each.name for each in parts]
    assert shares["step"] == shares["forward"]


class Doubled(nn.Linear):
    """Not the layer of the checkpoint, as an adapter or a quantised layer is not."""

    def forward(self, hidden):
        return 2 * super().forward(hidden)


@pytest.mark.parametrize(
    "name", ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"]
)
def test_another_kind_of_layer_is_called_as_it_is(tiny, name):
    _, places, cache = begun(tiny, 1, padded=False)
    layer = tiny.model.language_model.layers[1].get_submodule(name)
    before = layer.weight.clone()
    layer.__class__ = Doubled
    ids = torch.tensor([[7]])
    with torch.inference_mode():
        expected = forward(tiny, ids, None, places + 1, cache())
        assert torch.equal(text_step(tiny)(ids, None, places + 1, cache()), expected)
        layer.__class__ = nn.Linear
        assert not torch.equal(text_step(tiny)(ids, None, places + 1, cache()), expected)
    assert torch.equal(layer.weight, before)


# torch's compiler is imported, which warns of a part of torch itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_changed_or_unusual_model_has_no_such_step(tiny):
    assert text_step(tiny) is not None
    layer = tiny.model.language_model.layers[0]
    for module in (layer, layer.self_attn, layer.mlp.down_proj, tiny):
        with patch.object(module, "forward", module.forward):
            assert text_step(tiny) is None
    own, layer.mlp = layer.mlp, nn.Sequential(layer.mlp)
    assert text_step(tiny) is None
    layer.mlp = own
    assert text_step(tiny) is not None
    own.compile()
    assert text_step(tiny) is None


@pytest.mark.parametrize("change", ["train", "eager"])
def test_a_model_in_another_mode_has_none(tiny, change):
    if change == "train":
        tiny.train()
    else:
        tiny.set_attn_implementation("eager")
    assert text_step(tiny) is None


def test_a_model_that_is_whole_on_one_gpu_has_it_and_a_patched_one_not():
    request = Request(Conversation((Message("user", "What?"),)), Sampling(5, temperature=0))
    (*_, on_cpu) = local.load(resolve(golden.CHECKPOINT)).stream([request])
    with VirtualGPUs("2x1GiB"):
        engine = local.load(resolve(golden.CHECKPOINT), Placement(device_map={"": 0}))
        assert text_step(engine.model) is not None
        (*_, on_gpu) = engine.stream([request])
        with patch.object(engine.model, "forward", engine.model.__call__):
            assert text_step(engine.model) is None
    assert on_gpu.generation.text == on_cpu.generation.text
    assert on_gpu.generation.usage.new_tokens == 5


@pytest.mark.parametrize(
    "places",
    [
        {"model": 0, "lm_head": 1},
        {"model.vision": 0, "model.language_model": "cpu", "lm_head": "cpu"},
    ],
)
def test_a_split_or_offloaded_model_has_none(places):
    with VirtualGPUs("2x1GiB"):
        loaded = resolve(golden.CHECKPOINT).load(dtype=torch.float32, device_map={"": "cpu"})
        dispatch(loaded.model, places)
        assert text_step(loaded.model) is None


def test_an_answer_is_decoded_with_it():
    engine = local.load(resolve(golden.CHECKPOINT))
    engine.defaults.eos_token_id = []
    request = Request(Conversation((Message("user", "What?"),)), Sampling(5, temperature=0))
    with patch.object(TextStep, "__call__", autospec=True, side_effect=TextStep.__call__) as steps:
        list(engine.stream([request, request]))
    assert steps.call_count == 4  # the prefill chooses the first token
