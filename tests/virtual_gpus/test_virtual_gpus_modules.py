"""Modules of ``torch.nn`` with kernels of their own for CUDA give the CPU's result bit by bit."""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from typing import Any

import pytest
import torch
from operator_database import on
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

from glm4v_magic.virtual_gpus import MetaTensorError, MixedDeviceError, VirtualGPUs

RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
LENGTHS = [5, 3, 2]
ENCODER = {"d_model": 4, "nhead": 2, "dim_feedforward": 8, "dropout": 0.0, "batch_first": True}
ON_CPU = torch.device("cpu")


def steps(size: int = 4) -> torch.Tensor:
    return torch.randn(5, 3, size, generator=torch.Generator().manual_seed(1))


def tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers(kind: Any, grad: bool) -> None:
    torch.manual_seed(0)
    options: list[dict[str, Any]] = [
        {}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True},
    ]  # fmt: skip
    options += [{"proj_size": 2}] if kind is nn.LSTM else [{"num_layers": 3}]
    for chosen in options:
        layer, x = kind(4, 6, **chosen), steps()
        if chosen.get("batch_first"):
            x = x.transpose(0, 1).contiguous()
        packed = pack_padded_sequence(x, LENGTHS, batch_first=layer.batch_first)
        with torch.set_grad_enabled(grad):
            expected = [t.detach() for t in tensors((layer(x), layer(packed)))]
            with VirtualGPUs("2x1GiB"):
                layer.to("cuda:1")
                whole, in_pack = layer(x.to("cuda:1")), layer(packed.to("cuda:1"))
                padded, _ = pad_packed_sequence(in_pack[0], batch_first=layer.batch_first)
                assert {str(t.device) for t in tensors((whole, padded))} == {"cuda:1"}
                found = [t.detach().cpu() for t in tensors((whole, in_pack))]
        assert all(map(torch.equal, found, expected)), chosen


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells(kind: Any) -> None:
    torch.manual_seed(0)
    cell, x = kind(4, 6).requires_grad_(False), steps()[0]
    expected = tensors(cell(x))
    with VirtualGPUs("2x1GiB"):
        cell.to("cuda:0")
        assert all(map(torch.equal, [t.cpu() for t in tensors(cell(x.to("cuda:0")))], expected))
        with pytest.raises(MixedDeviceError, match="found at least two devices, cuda:1 and cuda:0"):
            cell(x.to("cuda:1"))


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_take_tensors_of_one_device(kind: Any) -> None:
    layer, x = kind(4, 6).requires_grad_(False), steps()
    packed = pack_padded_sequence(x, LENGTHS)
    state = torch.zeros(1, 3, 6)
    expected = tensors((layer(x), layer(packed)))
    with VirtualGPUs("2x1GiB") as gpus:
        layer.to("cuda:1")
        for given, where in ((x, "cpu"), (x.to("cuda:0"), "cuda:0"), (packed, "cpu")):
            words = f"Input and parameter .* input tensor at {where} and parameter .* at cuda:1"
            with pytest.raises(MixedDeviceError, match=words):
                layer(given)
        hidden = (state, state) if kind is nn.LSTM else state
        with pytest.raises(MixedDeviceError, match="input tensor at cuda:1 and hidden tensor at c"):
            layer(x.to("cuda:1"), hidden)
        with pytest.raises(MetaTensorError, match="Cannot copy out of meta tensor"):
            layer(x.to("meta"))
        assert len(gpus.problems) == 5
        layer.cpu()
    with VirtualGPUs("2x1GiB", on_mismatch="collect") as gpus:
        layer.to("cuda:1")
        found = tensors((layer(x.to("cuda:0")), layer(packed.to("cuda:0"))))
        assert all(map(torch.equal, [t.cpu() for t in found], expected))
        assert len(gpus.problems) == 2


def test_recurrent_layers_without_data() -> None:
    with VirtualGPUs("1x1GiB", values="none") as gpus:
        with torch.device("meta"):
            layer = nn.LSTM(400, 600, 2, bidirectional=True)
        gpus.without_data(layer).to("cuda:0")
        x = torch.ones(50, 3, 400, device="cuda:0")
        before = gpus.live_bytes[0]
        output, state = layer(x)
        assert output.shape == (50, 3, 1200)
        assert gpus.live_bytes[0] - before == 4 * (output.numel() + 2 * state[0].numel())
        assert layer(pack_padded_sequence(x, [50, 30, 20]))[0].data.shape == (100, 1200)


def test_recurrent_layers_under_autocast() -> None:
    layer, x = nn.LSTM(4, 6).requires_grad_(False), steps()
    expected = layer.bfloat16()(x.bfloat16())[0]
    with VirtualGPUs("1x1GiB"):
        layer.float().to("cuda:0")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert layer(x.to("cuda:0"))[0].cpu().equal(expected)


PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 2 + [True] * 3])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("norm_first", "batch_first", "padding"),
    [(False, True, None), (True, True, PADDING), (False, True, PADDING), (False, False, PADDING)],
)
def test_transformer_encoders(norm_first: bool, batch_first: bool, padding: Any) -> None:
    """Those with padding nest their sequences: what is padding comes out as zeros."""
    torch.manual_seed(0)
    options = ENCODER | {"norm_first": norm_first, "batch_first": batch_first}
    layer = nn.TransformerEncoderLayer(**options)
    nested = batch_first and not norm_first
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval()
    x = steps().transpose(0, 1) if batch_first else steps()
    with torch.no_grad():
        expected = encoder(x, src_key_padding_mask=padding)
        with VirtualGPUs("2x1GiB"):
            encoder.to("cuda:0")
            mask = None if padding is None else padding.to("cuda:0")
            assert encoder(x.to("cuda:0"), src_key_padding_mask=mask).cpu().equal(expected)
            encoder.layers[1].linear1.to("cuda:1")
            with pytest.raises(MixedDeviceError, match=r"at least two devices, cuda:[01] and"):
                encoder(x.to("cuda:0"), src_key_padding_mask=mask)


def test_attention_inside_of_functions_is_that_of_the_cpu() -> None:
    torch.manual_seed(0)
    layer, x = nn.TransformerDecoderLayer(**ENCODER | {"batch_first": False}).eval(), steps()
    layer.requires_grad_(False)
    expected = layer(x, x + 1)
    with VirtualGPUs("1x1GiB"):
        layer.to("cuda:0")
        assert layer(x.to("cuda:0"), x.to("cuda:0") + 1).cpu().equal(expected)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_all_samples_of_modules_give_the_same_result() -> None:
    from torch.testing._internal.common_modules import module_db

    count, different = 0, defaultdict(list)
    for info in module_db:
        for sample in info.module_inputs_func(
            info, device=ON_CPU, dtype=torch.float32, requires_grad=False, training=False
        ):
            built, given = sample.constructor_input, sample.forward_input
            if given is None:
                continue
            torch.manual_seed(0)
            try:
                module = info.module_cls(*built.args, **built.kwargs).eval()
                torch.manual_seed(1)
                with torch.no_grad():
                    expected = tensors(module(*given.args, **given.kwargs))
            except Exception:  # what does not run on the CPU
                continue
            count += 1
            try:
                with VirtualGPUs("1x1GiB"), torch.no_grad():
                    module.to("cuda:0")
                    torch.manual_seed(1)
                    found = module(*on("cuda:0", given.args), **on("cuda:0", given.kwargs))
                    pairs = itertools.zip_longest((t.cpu() for t in tensors(found)), expected)
                    is_same = all(a.nan_to_num().equal(b.nan_to_num()) for a, b in pairs)
            except Exception as error:
                different[info.name].append(str(error))
            else:
                if not is_same:
                    different[info.name].append("another result")
    sys.stdout.write(f"{count} samples of {len(module_db)} modules\n")
    assert not different
    assert count > 1700
