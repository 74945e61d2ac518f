"""A decode step without the models around its layers computes what transformers' forward does."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import tiny_native
import torch
from transformers import DynamicCache

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.glm_native.text_step import TextStep, text_step
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.options import Sampling
from glm4v_magic.dispatch.hooks import dispatch
from glm4v_magic.engines import local
from glm4v_magic.planning.decision import Placement
from glm4v_magic.virtual_gpus import VirtualGPUs

COLUMNS, STEPS = 13, 5
KINDS = [kind for kind in tiny_native.KINDS if kind != "glm5_next"]
REQUEST = Request(Conversation((Message("user", "What?"),)), Sampling(5, temperature=0))


def model_of(folder, dtype=torch.float32):
    return resolve(folder).load(dtype=dtype).model


def begun(model, rows, *, padded):
    """Return a mask, position ids of the last column, and a function that makes a filled cache."""
    ids = torch.randint(0, 100, (rows, COLUMNS), generator=torch.Generator().manual_seed(rows))
    mask = torch.ones_like(ids)
    for row in range(rows if padded else 0):
        mask[row, : 2 * row + 1] = 0
    places = (mask.cumsum(dim=-1) - 1).clamp(min=0).expand(3, -1, -1)

    def cache():
        filled = DynamicCache(config=model.config.get_text_config())
        forward(model, ids, mask, places, filled)
        return filled

    return mask, places[..., -1:], cache


def not_called(model):
    text = model.model.language_model
    layer = text.layers[1]
    parts = (layer.self_attn, layer.self_attn.k_proj, layer.mlp, layer.mlp.activation_fn)
    norms = (layer.input_layernorm, layer.post_self_attn_layernorm, layer.post_mlp_layernorm)
    return (model, model.model, text, layer, *parts, *norms)


def forward(model, ids, mask, places, cache):
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_cache_are_those_of_the_forward_bit_for_bit(native, kind, dtype):
    model = model_of(native(kind), dtype)
    shift = torch.tensor([0, 5, 9])[:, None, None]  # the axes differ after an image
    for rows, padded in ((1, False), (3, False), (3, True)):
        mask, places, cache = begun(model, rows, padded=padded)
        with torch.inference_mode():
            step, ours, theirs = text_step(model), cache(), cache()
            for number in range(STEPS):
                ids = torch.full((rows, 1), 7 + number)
                mask, places = torch.cat((mask, torch.ones_like(ids)), dim=1), places + 1
                given = mask if padded else None
                expected = forward(model, ids, given, places + shift, theirs)
                assert torch.equal(step(ids, given, places + shift, ours), expected)
        for mine, other in zip(ours.layers, theirs.layers, strict=True):
            assert torch.equal(mine.keys, other.keys)
            assert torch.equal(mine.values, other.values)


def test_a_model_that_somebody_listens_to_is_called(native):
    model = model_of(native("glm46v"))
    _, places, cache = begun(model, 1, padded=False)
    heard = []
    with torch.inference_mode():
        step = text_step(model)
        for module in not_called(model):
            for kind in ("register_forward_pre_hook", "register_forward_hook"):
                full = cache()
                handle = getattr(module, kind)(lambda *_: heard.append(1))
                step(torch.tensor([[7]]), None, places + 1, full)
                handle.remove()
                assert heard == [1], kind
                heard.clear()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_changed_split_or_unusual_model_has_no_such_step(native):
    model = model_of(native("glm46v"))
    assert text_step(model) is not None
    for module in not_called(model):
        with patch.object(module, "forward", module.forward):
            assert text_step(model) is None
    model.set_attn_implementation("eager")
    assert text_step(model) is None
    model.set_attn_implementation("sdpa")
    assert text_step(model.train()) is None
    assert text_step(model_of(native("glm5_next"))) is None
    with VirtualGPUs("2x1GiB"):
        split = resolve(native("glm46v")).load(dtype=torch.float32, device_map={"": "cpu"}).model
        dispatch(split, {"model": 0, "lm_head": 1})
        assert text_step(split) is None


@pytest.mark.parametrize("place", ["cpu", 0])
def test_an_answer_is_decoded_with_it(native, place):
    with VirtualGPUs("1x1GiB"):
        engine = local.load(resolve(native("glm46v")), Placement(device_map={"": place}))
        engine.defaults.eos_token_id = []
        with patch.object(
            TextStep, "__call__", autospec=True, side_effect=TextStep.__call__
        ) as steps:
            list(engine.stream([REQUEST, REQUEST]))
    assert steps.call_count == 4  # the prefill chooses the first token
