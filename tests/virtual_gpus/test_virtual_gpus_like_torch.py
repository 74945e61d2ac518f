"""What PyTorch refuses on a GPU is refused, and what it allows works, with the data still there."""

from __future__ import annotations

import copy
import functools
import io
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import GlmForCausalLM

from glm4v_magic.core.errors import PlacementError
from glm4v_magic.virtual_gpus import MetaTensorError, MixedDeviceError, VirtualGPUs

GPU = torch.device("cuda:0")


def numbers(*shape: int, device: str = "cuda:0") -> torch.Tensor:
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape).to(device)


Mixture = Callable[[torch.Tensor, torch.Tensor], object]
# x has values, m is on meta
MIXTURES: dict[str, Mixture] = {
    "to a GPU": lambda x, m: m.to("cuda:0"),
    "to the current GPU": lambda x, m: m.cuda(),
    "there and back": lambda x, m: x.to("meta").to("cuda:0"),
    "copy": lambda x, m: x.copy_(m),
    "copy to a slice": lambda x, m: x.__setitem__(0, m[0]),
    "data": lambda x, m: nn.Linear(2, 2, device="meta").to("cuda:0"),
    "add": lambda x, m: x + m,
    "add to meta": lambda x, m: m + x,
    "add in place": lambda x, m: x.add_(m),
    "add a scalar in place": lambda x, m: x.add_(m[0, 0]),
    "multiply": lambda x, m: x * m[0, 0],
    "matrix product": lambda x, m: x @ m,
    "linear": lambda x, m: F.linear(x, m, m[0]),
    "bias": lambda x, m: F.linear(x, x, m[0]),
    "layer norm": lambda x, m: F.layer_norm(x, (2,), m[0], m[0]),
    "index": lambda x, m: x[m[0].long()],
    "index of meta": lambda x, m: m[x[0].long()],
    "mask": lambda x, m: x[m > 0],
    "index_put": lambda x, m: x.index_put_((x[0].long() - 1,), m[0, 0]),
    "index_put index": lambda x, m: x.index_put_((m[0].long(),), x),
    "index_add": lambda x, m: x.index_add_(0, m[0].long(), x),
    "gather": lambda x, m: x.gather(0, m.long()),
    "embedding": lambda x, m: F.embedding(m.long(), x),
    "fill": lambda x, m: x.fill_(m[0, 0]),
    "masked_fill": lambda x, m: x.masked_fill(x > 0, m[0, 0]),
    "masked_scatter": lambda x, m: x.masked_scatter(m > 0, x),
    "where": lambda x, m: torch.where(x > 0, x, m[0, 0]),
    "where mask": lambda x, m: torch.where(m > 0, x, x),
    "cat": lambda x, m: torch.cat([x, m]),
    "stack": lambda x, m: torch.stack([m, x]),
    "out": lambda x, m: torch.add(m, m, out=x),
    "attention": lambda x, m: F.scaled_dot_product_attention(x[None], m[None], m[None]),
}


@pytest.mark.parametrize("on_mismatch", ["raise", "collect"])
@pytest.mark.parametrize("values", ["real", "none"])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_meta_tensors_never_meet_values(mixture: str, values: Any, on_mismatch: Any) -> None:
    with VirtualGPUs("2x1GiB", values=values, on_mismatch=on_mismatch) as gpus:
        x, m = numbers(2, 2), torch.ones(2, 2, device="meta")
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor; no data!"):
            MIXTURES[mixture](x, m)
        assert x.tolist() == [[1, 2], [3, 4]]
        assert len(gpus.problems) == 1


def test_what_meta_tensors_are_for() -> None:
    with VirtualGPUs("2x1GiB"):
        x, m = numbers(2, 2), torch.ones(2, 2, device="meta")
        assert x.to("meta").device == m.copy_(x).device == torch.device("meta")
        assert (m + torch.tensor(1.0)).device == m[torch.tensor([0])].device == m.device
        assert torch.ones_like(m, device="cuda:1").tolist() == [[1, 1], [1, 1]]
        layer = nn.Linear(2, 2, device="meta").to_empty(device="cuda:1")
        assert layer.weight.device == torch.device("cuda:1")
        layer.load_state_dict({"weight": torch.ones(2, 2), "bias": torch.ones(2)})
        assert layer(torch.ones(1, 2, device="cuda:1")).tolist() == [[3, 3]]


def test_only_models_without_values_lose_their_data() -> None:
    with VirtualGPUs("2x1GiB") as gpus, pytest.raises(PlacementError, match="no real values"):
        gpus.without_data(nn.Linear(2, 2))


@pytest.mark.parametrize("current", [0, 1])
def test_a_device_without_index_is_the_current_one(current: int) -> None:
    bare = torch.device("cuda")
    ways: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda x: x.to("cuda"), lambda x: x.to(bare), lambda x: x.to(device=bare),
        lambda x: x.to("cuda", torch.float32), lambda x: x.cuda(), lambda x: x.cuda(bare),
        lambda x: torch.tensor([1.0, 2.0], device=bare), lambda x: x.clone().to("cuda"),
        lambda x: torch.as_tensor([1.0, 2.0], device=bare),
        lambda x: torch.as_tensor(x, device="cuda"), lambda x: x.new_tensor([1, 2], device=bare),
        lambda x: nn.ParameterList([nn.Parameter(x)]).to("cuda")[0],
        lambda x: nn.ParameterList([nn.Parameter(x)]).to(bare)[0],
        lambda x: nn.ParameterList([nn.Parameter(x)]).cuda()[0],
    ]  # fmt: skip
    with VirtualGPUs("2x1GiB"):
        torch.cuda.set_device(current)
        for number, way in enumerate(ways):
            tensor = way(torch.tensor([1.0, 2.0]))
            assert tensor.device == torch.device("cuda", current), number
            assert tensor.tolist() == [1, 2], number
        assert numbers(2, device=f"cuda:{1 - current}").to("cuda").device.index == current


NEW: dict[str, Callable[[torch.Tensor, Any], torch.Tensor]] = {
    "numbers": lambda x, y: x.new_tensor([1.0, 2.0]),
    "number": lambda x, y: x.new_tensor(3),
    "by name": lambda x, y: x.new_tensor(data=[1]),
    "nested": lambda x, y: x.new_tensor([[1], [2]]),
    "array": lambda x, y: x.new_tensor(np.ones(2)),
    "tensor": lambda x, y: x.new_tensor(y),
    "tensor on the CPU": lambda x, y: x.new_tensor(torch.ones(2)),
    "tensors": lambda x, y: x.new_tensor([y[0], 2]),
    "dtype": lambda x, y: x.new_tensor([1.5], dtype=torch.int64),
    "of integers": lambda x, y: x.long().new_tensor([1.5]),
    "of a view": lambda x, y: x[:1, None].new_tensor([1]),
    "of a parameter": lambda x, y: nn.Parameter(x).new_tensor([1.0], requires_grad=True),
    "no device": lambda x, y: x.new_tensor([1], device=None),
    "old: numbers": lambda x, y: x.new([1, 2]),
    "old: tensors": lambda x, y: x.new([y[0], 2]),
    "old: tuple": lambda x, y: x.new((1, 2)),
    "old: sizes": lambda x, y: x.new(2, 3).fill_(1),
    "old: size": lambda x, y: x.new(torch.Size([2])).fill_(1),
    "old: nothing": lambda x, y: x.new(),
    "old: memory": lambda x, y: x.new(x),
}  # fmt: skip


@pytest.mark.parametrize("way", NEW)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_a_tensor_made_from_another_lies_beside_it(way: str, gradients: bool) -> None:
    make = NEW[way]
    expected = make(numbers(2, device="cpu"), numbers(2, device="cpu"))
    with VirtualGPUs("3x1GiB"), torch.set_grad_enabled(gradients):
        found = make(numbers(2, device="cuda:1"), numbers(2, device="cuda:2"))
        assert found.device == torch.device("cuda:1")
        assert found.dtype == expected.dtype
        assert found.requires_grad == expected.requires_grad
        assert found.tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_a_tensor_made_from_another_goes_where_it_is_told() -> None:
    with VirtualGPUs("2x1GiB"):
        x, y = numbers(2, device="cuda:1"), numbers(2, device="cuda:0")
        assert x.new_tensor([1], device="cpu").device.type == "cpu"
        assert x.new_tensor(y, device="cuda:0").device == y.device
        assert x.new([1], device="cuda:0").device == x.new(device="cuda:0").device == y.device
        assert x.new(y).device == y.device
        on_cpu = torch.ones(2)
        assert on_cpu.new_tensor(y).device == on_cpu.new_tensor([y[0], 1]).device == on_cpu.device
        assert torch.asarray([x[0], 2]).tolist() == [1, 2]
        with pytest.raises(RuntimeError, match="legacy constructor expects device type: cuda"):
            x.new([1], device="cpu")


InPlace = Callable[[torch.Tensor], Any]
IN_PLACE: dict[str, InPlace] = {
    "unsqueeze_": lambda x: x.unsqueeze_(1),
    "squeeze_": lambda x: x.unsqueeze_(0).squeeze_(),
    "squeeze_ dim": lambda x: x.unsqueeze_(0).squeeze_(0),
    "t_": lambda x: x.t_(),
    "transpose_": lambda x: x.transpose_(0, 1),
    "swapaxes_": lambda x: x.swapaxes_(0, 1),
    "resize_ smaller": lambda x: x.resize_(2, 2),
    "resize_ larger": lambda x: x.resize_(4, 4).fill_(1),
    "as_strided_": lambda x: x.as_strided_((2, 2), (1, 2)),
    "set_": lambda x: x.set_(torch.ones(7, device=x.device)),
    "out": lambda x: torch.add(x, 1, out=x),
    "out of nothing": lambda x: torch.add(x, 1, out=torch.empty(0, device=x.device)),
    "vector times matrix": lambda x: x[0] @ x.T,
    "quantile": lambda x: x.quantile(0.3),
    "stft": lambda x: torch.stft(
        x.flatten(), 4, window=torch.ones(4, device=x.device), return_complex=True
    ),
    "data": lambda x: setattr(x, "data", x.data * 2),
}  # fmt: skip


@pytest.mark.parametrize("change", IN_PLACE)
def test_shapes_changed_in_place(change: str) -> None:
    expected = numbers(2, 3, device="cpu")
    wanted = IN_PLACE[change](expected)
    with VirtualGPUs("1x1GiB"):
        x = numbers(2, 3)
        found = IN_PLACE[change](x)
        for one, other in ((x, expected), (found, wanted)):
            if isinstance(one, torch.Tensor):
                assert (one.device, one.shape, one.stride()) == (GPU, other.shape, other.stride())
                assert one.tolist() == other.tolist()
                assert (one * 2).tolist() == (other * 2).tolist()


def test_a_view_keeps_its_base_through_a_change_of_shape() -> None:
    with VirtualGPUs("1x1GiB"):
        x = numbers(2, 3)
        row = x[0]
        row.unsqueeze_(0).fill_(7)
        assert x.tolist() == [[7, 7, 7], [4, 5, 6]]


def test_views_that_are_conjugated_or_negated_later() -> None:
    x = torch.tensor([1 + 2j, 3 - 4j])
    with VirtualGPUs("1x1GiB"):
        for view in (
            lambda t: t.conj(),
            lambda t: t.conj().imag,
            lambda t: t.conj().conj().flip(0),
        ):
            expected, found = view(x), view(x.cuda())
            assert (found.is_conj(), found.is_neg()) == (expected.is_conj(), expected.is_neg())
            assert found.tolist() == expected.tolist()
            assert (
                torch.view_as_real(found + 1j).tolist()
                == torch.view_as_real(expected + 1j).tolist()
            )
            assert torch.fft.hfft(found.cuda()).tolist() == torch.fft.hfft(expected).tolist()


@pytest.mark.parametrize("lengths", [(3, 3), torch.tensor([3, 3])])
def test_kernels_of_libraries_are_not_asked_for(lengths: Any) -> None:
    scores = torch.randn(8, 2, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    targets = torch.tensor([[1, 2, 3], [4, 3, 2]])
    expected = F.ctc_loss(scores, targets, lengths, lengths)
    with VirtualGPUs("1x1GiB"):
        found = F.ctc_loss(scores.cuda(), targets.cuda(), lengths, lengths)
        assert found.item() == expected.item()


def test_operators_made_of_others_are_checked_as_those() -> None:
    with VirtualGPUs("2x1GiB") as gpus:
        x, y, cpu = numbers(2, 3), numbers(2, 3, device="cuda:1"), numbers(2, 3, device="cpu")
        assert x.slice_scatter(y).tolist() == cpu.tolist()
        assert torch.ldexp(x, torch.tensor(2.0)).tolist() == (cpu * 4).tolist()
        assert [each.tolist() for each in torch._foreach_add([x, y], [x, y])] == [
            (cpu * 2).tolist()
        ] * 2
        assert not gpus.problems
        with pytest.raises(MixedDeviceError, match=r"aten\.sub"):
            torch.dist(x, y)
        with pytest.raises(MixedDeviceError, match=r"aten\.addcdiv"):
            torch.addcdiv(x, x, torch.tensor(2.0))


def test_a_tensor_that_grows_in_place_takes_memory() -> None:
    with VirtualGPUs([4000]) as gpus:
        x = torch.zeros(10, device="cuda")
        x.resize_(500)
        assert gpus.live_bytes == (2000,)
        with pytest.raises(torch.OutOfMemoryError):
            x.resize_(2000)
        del x
        assert gpus.live_bytes == (0,)


def test_data_moves_a_tensor() -> None:
    with VirtualGPUs("2x1GiB") as gpus:
        layer = nn.Linear(2, 2)
        weight, expected = layer.weight, layer.weight.tolist()
        for device in ("cuda:1", "cuda:0", "cpu"):
            layer.weight.data = layer.weight.data.to(device)
            assert layer.weight is weight
            assert isinstance(weight, nn.Parameter)
            assert weight.requires_grad
            assert (str(weight.device), weight.tolist()) == (device, expected)
        assert gpus.live_bytes == (0, 0)


def test_generators_belong_to_a_kind_of_device() -> None:
    with VirtualGPUs("2x1GiB"):
        generator = torch.Generator("cuda")
        assert isinstance(generator, torch.Generator)
        assert isinstance(torch.default_generator, torch.Generator)
        assert generator.device == GPU
        assert torch.Generator(device="cuda:1").device.index == 1
        assert torch.Generator().device == torch.device("cpu")
        ones, of_cpu = torch.ones(2, device="cuda:0"), torch.Generator()
        refused: list[Callable[[], object]] = [
            lambda: torch.rand(2, device="cuda:0", generator=of_cpu),
            lambda: ones.normal_(generator=of_cpu),
            lambda: torch.multinomial(ones, 1, generator=of_cpu),
            lambda: torch.bernoulli(ones, generator=of_cpu),
        ]  # fmt: skip
        for use in refused:
            with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
                use()
        for use in (
            lambda: torch.rand(2, generator=generator),
            lambda: torch.randperm(3, generator=generator),
            lambda: torch.zeros(2).uniform_(generator=generator),
        ):
            with pytest.raises(RuntimeError, match="Expected a 'cpu' device type for generator"):
                use()
        generator.manual_seed(5)
        state = generator.get_state()
        first = torch.randn(3, device="cuda:1", generator=generator)
        generator.set_state(state)
        assert torch.randn(3, device="cuda:0", generator=generator).tolist() == first.tolist()
        same = generator.clone_state()
        assert (same.device, same.initial_seed()) == (GPU, 5)
    assert type(torch.Generator()).__name__ == "Generator"


def test_seeds_and_random_states() -> None:
    with VirtualGPUs("2x1GiB"):
        torch.cuda.manual_seed_all(3)
        state = torch.cuda.get_rng_state()
        first = torch.rand(3, device="cuda:1").tolist()
        torch.cuda.set_rng_state(state)
        assert torch.rand(3, device="cuda:0").tolist() == first
        torch.cuda.manual_seed(3)
        assert torch.rand(3, device="cuda:0").tolist() == first
        with torch.random.fork_rng(devices=[0]):
            torch.rand(1, device="cuda:0")


def test_streams_and_events_keep_the_order() -> None:
    with VirtualGPUs("2x1GiB"):
        stream = torch.cuda.Stream(device=1, priority=-1)
        assert stream.device == torch.device("cuda:1")
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        x = numbers(2)
        start.record()
        with torch.cuda.stream(stream):
            stream.wait_stream(torch.cuda.current_stream())
            y = x.to("cuda:1", non_blocking=True)
            y.add_(1)
            y.record_stream(stream)
        time.sleep(0.002)
        end.record(stream)
        torch.cuda.current_stream().wait_event(end)
        end.synchronize()
        assert end.query()
        assert stream.query()
        assert y.tolist() == [2, 3]
        assert start.elapsed_time(end) >= 2
        with pytest.raises(ValueError, match="enable_timing=True"):
            torch.cuda.Event().elapsed_time(end)
        with pytest.raises(ValueError, match="must be recorded"):
            start.elapsed_time(torch.cuda.Event(enable_timing=True))
        with torch.Stream("cuda:1") as generic:
            assert generic.record_event().query()
        torch.cuda.default_stream().synchronize()


def test_pinned_memory() -> None:
    with VirtualGPUs("1x1GiB"):
        x = torch.ones(2)
        assert not x.is_pinned()
        for pinned in (x.pin_memory(), torch.ones(2, pin_memory=True)):
            assert pinned.is_pinned()
            assert pinned[:1].is_pinned()
            assert pinned.pin_memory() is pinned
            assert pinned.to("cuda", non_blocking=True).tolist() == [1, 1]
        assert not x.cuda().is_pinned()
        with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
            x.cuda().pin_memory()


def test_memory_pinned_in_a_loaders_thread() -> None:
    data = torch.utils.data.TensorDataset(torch.ones(4))
    with VirtualGPUs("1GiB", available=True):
        for workers in (0, 1):
            loader = torch.utils.data.DataLoader(data, 2, pin_memory=True, num_workers=workers)
            assert all(batch.is_pinned() for (batch,) in loader)


def saved(value: object) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("weights_only", [True, False])
def test_files_are_loaded_to_any_gpu(weights_only: bool) -> None:
    x = torch.arange(4.0)
    file = saved({"a": x, "half": x[2:], "nested": [nn.Parameter(x.bfloat16())]})
    for place, device in (
        ("cuda:1", "cuda:1"), (torch.device("cuda"), "cuda:0"), ({"cpu": "cuda:1"}, "cuda:1"),
        (lambda storage, location: storage, "cpu"), ("cpu", "cpu"), (None, "cpu"),
        (lambda storage, location: storage.cuda(1), "cuda:1"),
        (lambda storage, location: storage.cuda(), "cuda:0"),
        (lambda storage, location: storage.to(device="cuda:1"), "cuda:1"),
        (lambda storage, location: None, "cpu"), ({"cuda:1": "cuda:0"}, "cpu"),
    ):  # fmt: skip
        file.seek(0)
        with VirtualGPUs("2x1GiB") as gpus:
            found = torch.load(file, map_location=place, weights_only=weights_only)
            parameter = found["nested"][0]
            assert isinstance(parameter, nn.Parameter)
            assert {str(t.device) for t in (found["a"], found["half"], parameter)} == {device}
            assert (found["half"].tolist(), parameter.tolist()) == ([2, 3], [0, 1, 2, 3])
            found["half"].zero_()
            assert found["a"].tolist() == [0, 1, 0, 0]
            assert sum(gpus.live_bytes) == (24 if device != "cpu" else 0)
    for place, words in (
        ("cuda:5", "no virtual GPU 5"),
        (lambda storage, location: storage.cuda(5), "invalid device ordinal: there is no cuda:5"),
    ):
        file.seek(0)
        with VirtualGPUs("2x1GiB"), pytest.raises((PlacementError, RuntimeError), match=words):
            torch.load(file, map_location=place)


def test_files_say_on_which_gpu_their_tensors_were() -> None:
    with VirtualGPUs("2x1GiB"):
        x = numbers(4, device="cuda:1")
        file = saved([x, x[1:], nn.Linear(2, 2).to("cuda:0").state_dict()])
        again = torch.load(file)
        assert [str(t.device) for t in (*again[:2], *again[2].values())] == [
            "cuda:1", "cuda:1", "cuda:0", "cuda:0",
        ]  # fmt: skip
        assert again[1].tolist() == [2, 3, 4]
        file.seek(0)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
            torch.load(file)
    file.seek(0)
    assert torch.load(file, map_location="cpu")[0].tolist() == [1, 2, 3, 4]


def test_what_a_file_cannot_hold() -> None:
    with VirtualGPUs("2x1GiB", values="none"):
        x = torch.ones(1 << 17, device="cuda:0")
        with pytest.raises(MetaTensorError, match="no data"):
            saved(x)


def test_a_model_is_saved_from_its_gpus(
    glm: GlmForCausalLM, glm_folder: Path, tmp_path: Path
) -> None:
    layers = {f"model.layers.{i}": i % 2 for i in range(4)}
    ends = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"), 0)
    with VirtualGPUs("2x64MiB"):
        model = GlmForCausalLM.from_pretrained(glm_folder, device_map={**layers, **ends})
        model.save_pretrained(tmp_path)
    again = GlmForCausalLM.from_pretrained(tmp_path)
    expected = glm.state_dict()
    found = again.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_for_inference(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, norm, x = nn.Linear(8, 8), nn.LayerNorm(8), torch.randn(1, 4, 8)
    product = F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
    attended = F.scaled_dot_product_attention(product, product, product)
    with VirtualGPUs("1x1GiB"), torch.no_grad():
        layer, norm, x = layer.cuda(), norm.cuda(), x.cuda()
        with torch.autocast("cuda", dtype=dtype):
            assert layer(x).tolist() == product.tolist()
            assert norm(x).dtype == torch.softmax(product.cuda(), -1).dtype == torch.float32
            q = layer(x).float()
            found = F.scaled_dot_product_attention(q, q, q)
            assert found.dtype == dtype
            assert found.tolist() == attended.tolist()
            with torch.autocast("cuda", enabled=False):
                assert layer(x).dtype == torch.float32
        assert layer(x).dtype == torch.float32


def test_programs_for_gpus_can_be_tried_unchanged() -> None:
    def program() -> list[Any]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        x = torch.ones(2, device=device)
        return [
            torch.cuda.device_count(), torch.cuda.current_device(), torch.cuda.get_device_name(),
            torch.cuda.mem_get_info(1), torch.cuda.is_bf16_supported(),
            torch.accelerator.is_available(), str(torch.accelerator.current_accelerator()),
            torch.accelerator.device_count(), str(x.device), x.tolist(),
        ]  # fmt: skip

    before = torch.cuda.is_available(), torch.accelerator.is_available()
    with VirtualGPUs("A100-2GiB+1GiB", available=True):
        free = 1 << 30
        assert program() == [
            2, 0, "A100", (free, int(1.25 * free)), True, True, "cuda", 2, "cuda:0", [1, 1],
        ]  # fmt: skip
    assert (torch.cuda.is_available(), torch.accelerator.is_available()) == before
    with VirtualGPUs("2x1GiB"):
        assert (torch.cuda.is_available(), torch.accelerator.is_available()) == before


def test_transformers_where_gpus_are_available(glm: GlmForCausalLM, glm_folder: Path) -> None:
    options = {"max_new_tokens": 5, "do_sample": False}
    ids = torch.tensor([[5, 6, 7]])
    expected = glm.generate(ids, **options)
    for extra in ({}, {"cache_implementation": "static"}, {"cache_implementation": "offloaded"}):
        with VirtualGPUs("2x64MiB", available=True):
            model = GlmForCausalLM.from_pretrained(glm_folder, device_map="auto")
            model.generation_config = glm.generation_config
            found = model.generate(ids.to(model.device), **options, **extra)
            assert found.tolist() == expected.tolist()


def backward_of_a_tensor() -> None:
    (torch.ones(2, device="cuda", requires_grad=True) * 2).sum().backward()


def backward_of_a_module() -> None:
    nn.Linear(2, 1).to("cuda")(torch.ones(1, 2, device="cuda")).sum().backward()


def grad() -> None:
    weights = torch.ones(2, device="cuda", requires_grad=True)
    torch.autograd.grad((weights * 2).sum(), [weights])


@pytest.mark.parametrize("compute", [backward_of_a_tensor, backward_of_a_module, grad])
def test_gradients_are_refused_in_one_line(compute):
    with VirtualGPUs("1x1GiB"):
        with pytest.raises(NotImplementedError, match=r"no gradients: run backward\(\)") as caught:
            compute()
        assert "\n" not in str(caught.value)
        on_cpu = torch.ones(2, requires_grad=True)
        (on_cpu * 2).sum().backward()
        assert on_cpu.grad.tolist() == [2.0, 2.0]


def test_gradients_are_refused_where_a_package_wraps_backward(monkeypatch):
    """As nnsight does when it is imported."""
    original = torch.Tensor.backward

    @functools.wraps(original)
    def wrapper(*args, **kwargs):
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", wrapper)
    for compute in (backward_of_a_tensor, backward_of_a_module):
        test_gradients_are_refused_in_one_line(compute)


def test_sparse_layouts_are_refused_in_one_line():
    with VirtualGPUs("1x1GiB"):
        for make in (lambda: torch.eye(2).to_sparse().to("cuda"), torch.eye(2).cuda().to_sparse):
            with pytest.raises(NotImplementedError, match=r"sparse_coo: make it dense") as caught:
                make()
            assert "\n" not in str(caught.value)


def test_a_model_moves_while_its_answer_with_gradients_lives():
    model, x = nn.Linear(3, 3), torch.ones(1, 3, requires_grad=True)
    weight, alive = model.weight, weakref.ref(model.weight)
    with VirtualGPUs("1x1GiB"):
        answer = model(x)
        model.to("cuda:0")
        assert model.weight is weight is alive()
        assert weight.device == GPU
        assert torch.equal(model(x.to(GPU)).cpu(), answer)
        with pytest.raises(RuntimeError, match="A parameter was moved since this was computed"):
            answer.sum().backward()
        model.cpu()
    model(x).sum().backward()
    assert model.weight.grad is not None


def test_layers_without_a_shape_yet_are_made_where_they_were_moved():
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()).eval()
    with VirtualGPUs("1x1GiB"), torch.no_grad():
        model.to("cuda:0")
        moved = model(numbers(2, 3))
        assert type(model[0]) is nn.Linear
        assert {tensor.device for tensor in model.state_dict().values()} == {GPU}
        model.cpu()
        assert torch.equal(model(numbers(2, 3, device="cpu")), moved.cpu())


def test_a_model_is_saved_by_the_functions_of_safetensors(tmp_path):
    model = nn.Linear(3, 3)
    with VirtualGPUs("1x1GiB"):
        model.to("cuda:0")
        save_model(model, tmp_path / "model.safetensors")
        model.weight.data.zero_()
        load_model(model, tmp_path / "model.safetensors", device="cuda:0")
        assert model.weight.device == GPU
        assert model.weight.any()


def test_bitsandbytes_is_not_told_of_gpus_whose_kernels_it_lacks():
    asked = "torch.cuda.is_available()"
    with VirtualGPUs("1x1GiB", available=True):
        assert eval(asked, {"torch": torch, "__name__": "bits"})
        assert not eval(asked, {"torch": torch, "__name__": "bitsandbytes.cextension"})


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_functions_of_functions_are_refused_in_one_line():
    with VirtualGPUs("1x1GiB"):
        x = numbers(1, 1, 2, 16)
        with pytest.raises(NotImplementedError, match=r"^[^\n]*use scaled_dot_product_attention"):
            flex_attention(x, x, x)
        with pytest.raises(NotImplementedError, match=r"^Virtual GPUs compute no gradients[^\n]*$"):
            torch.func.grad(lambda values: values.sum())(x)
        assert torch.func.grad(lambda values: values.sum())(x.cpu()).sum() == 32


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_that_was_forked_has_no_gpus():
    with VirtualGPUs("1x1GiB"):
        there = numbers(2)
        child = os.fork()
        if not child:
            try:
                there + 1
            except RuntimeError as error:
                os._exit(7 if "forked subprocess" in str(error) else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert (there + 1).device == GPU


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: torch.nn.Parameter(t), lambda t: t.bool()])
@pytest.mark.parametrize("values", ["real", "none"])
def test_a_shallow_copy_shares_its_values_on_the_same_gpu(wrap, values):
    with VirtualGPUs("2x1GiB", values=values), torch.no_grad():
        tensor = wrap(torch.ones(2, device="cuda:1"))
        found = copy.copy(tensor)
        assert found is not tensor
        assert (found.device, type(found)) == (tensor.device, type(tensor))
        assert found.requires_grad == tensor.requires_grad
        assert found.untyped_storage()._cdata == tensor.untyped_storage()._cdata
        if values == "real":
            tensor.zero_()
            assert found.tolist() == [0, 0]


@pytest.mark.parametrize("device", ["cuda:2", torch.device("cuda:7"), 2])
@pytest.mark.parametrize("make", ["Generator", "Stream", "cuda.Stream"])
def test_there_is_no_generator_or_stream_of_a_gpu_that_is_not_there(make, device):
    with VirtualGPUs("2x1GiB"):
        maker = torch.cuda.Stream if make == "cuda.Stream" else getattr(torch, make)
        with pytest.raises(RuntimeError, match="invalid device ordinal: there is no cuda:"):
            maker(device)
        assert maker("cuda:1").device == torch.device("cuda:1")


def test_there_is_no_stream_of_the_cpu():
    with VirtualGPUs("1x1GiB"), pytest.raises(RuntimeError, match="streams on cuda:k alone"):
        torch.Stream("cpu")
