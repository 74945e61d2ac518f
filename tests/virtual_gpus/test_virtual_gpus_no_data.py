"""Models of any size: floating-point data is dropped, everything else stays real."""

from __future__ import annotations

import pytest
import torch
from accelerate import dispatch_model
from torch import nn
from transformers import GenerationConfig, GlmConfig, GlmForCausalLM

from glm4v_magic.core.errors import PlacementError
from glm4v_magic.virtual_gpus import Guess, VirtualGPUs

LARGE = 1 << 20


def test_what_keeps_its_values() -> None:
    with VirtualGPUs("2x1GiB", values="none"):
        weight = torch.full((LARGE,), 2.0).to("cuda:0")
        assert weight.content.device.type == "meta"
        small = torch.tensor([0.5, 0.25]).to("cuda:0")
        assert small.tolist() == [0.5, 0.25]
        ids = torch.arange(LARGE, device="cuda:0")
        assert ids[-1].item() == LARGE - 1
        mask = ids % 2 == 0
        assert weight[mask].shape == (LARGE // 2,)
        assert (weight + 1).to("cuda:1").cpu().device == torch.device("cpu")


def test_numbers_that_would_depend_on_data_are_zero_and_reported() -> None:
    with VirtualGPUs("1x1GiB", values="none") as gpus:
        scores = torch.ones(4, LARGE, device="cuda:0")
        assert scores.argmax(-1).tolist() == [0, 0, 0, 0]
        assert bool(scores.sum() > 0) is False
        guesses = gpus.report().guesses
    assert Guess("aten.argmax.default", "", 1) in guesses
    assert len(guesses) == 2
    assert sum(guess.count for guess in guesses) == 2


def test_a_meta_model_becomes_one_without_data() -> None:
    with torch.device("meta"):
        model = nn.ModuleList([nn.Linear(4096, 4096), nn.Linear(4096, 4096), nn.BatchNorm1d(8)])
    model[1].weight = model[0].weight
    with VirtualGPUs("2x1GiB", values="none") as gpus:
        assert gpus.without_data(model) is model
        assert model[1].weight is model[0].weight
        assert isinstance(model[0].weight, nn.Parameter)
        assert {p.device for p in model.parameters()} == {torch.device("cpu")}
        assert model[2].running_mean.device == torch.device("cpu")
        model.to("cuda:1")
        linear = 4 * (4096 * 4096 + 2 * 4096)
        norm = 4 * 4 * 8 + 8
        assert gpus.live_bytes == (0, linear + norm)
    with pytest.raises(PlacementError, match="inside the `with"):
        gpus.without_data(model)


def test_a_model_of_nine_billion_weights() -> None:
    config = GlmConfig(dtype=torch.bfloat16, pad_token_id=0, eos_token_id=None, bos_token_id=None)
    with torch.device("meta"):
        model = GlmForCausalLM(config).to(torch.bfloat16).eval()
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters > 9e9
    device_map = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 3, "lm_head": 3}
    device_map |= {f"model.layers.{i}": i // 10 for i in range(config.num_hidden_layers)}
    with VirtualGPUs("4x8GiB", values="none") as gpus:
        gpus.without_data(model)
        dispatch_model(model, device_map, main_device=0)
        assert sum(gpus.live_bytes) >= 2 * parameters
        ids = torch.randint(1, 1000, (1, 2000), device="cuda:0")
        out = model.generate(input_ids=ids, max_new_tokens=2, do_sample=False)
        assert out.shape == (1, 2002)
        assert torch.equal(out[:, :2000].cpu(), ids.cpu())
        report = gpus.report()
    assert dict(report.forwards) == {"prefill": 1, "decode": 1}
    assert not report.problems
    hidden = 2 * config.hidden_size
    assert report.hops("decode")["cuda:1", "cuda:2"][1] >= hidden
    peaks = {(peak.phase, peak.device): peak for peak in report.peaks}
    kv = 2 * config.num_key_value_heads * config.head_dim * 2 * 10
    grown = peaks["decode", 1].start_bytes - peaks["prefill", 1].start_bytes
    assert grown >= 2000 * kv
    assert peaks["prefill", 1].peak_bytes > peaks["decode", 1].peak_bytes
    assert peaks["prefill", 1].module.startswith("model.layers.1")


def test_a_gpu_that_is_too_small() -> None:
    with torch.device("meta"):
        model = nn.Linear(32768, 32768)
    with (
        VirtualGPUs("1x2GiB", values="none") as gpus,
        pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 4.00 GiB"),
    ):
        gpus.without_data(model).to("cuda:0")
