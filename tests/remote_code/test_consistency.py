"""`make_consistent` on a stand-in with the names and the unguarded places of the original code."""

from __future__ import annotations

import copy
import random
import threading

import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from standins import eva2clip_splits as splits
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from glm4v_magic.core.errors import PlacementError
from glm4v_magic.remote_code.consistency import Site, make_consistent
from glm4v_magic.virtual_gpus import MixedDeviceError, VirtualGPUs

TOWER = "transformer.vision"


@pytest.fixture(scope="module")
def modeling():
    return splits.load()


@pytest.fixture
def model(modeling):
    return splits.build(modeling)


@pytest.fixture(scope="module")
def expected(modeling):
    return splits.build(modeling)(**splits.example())


@pytest.fixture(scope="module")
def expected_answers(modeling):
    return splits.answers(splits.build(modeling), "cpu")


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("site", splits.SITES.values(), ids=splits.SITES.keys())
def test_each_site_fails_without_the_cure(model, site):
    with VirtualGPUs("2x1GiB") as gpus:
        splits.place(model, splits.map_apart(model, site.apart))
        with pytest.raises(MixedDeviceError, match=site.message):
            splits.run(model, padded=site.padded)
    (problem,) = gpus.problems
    assert problem.module == site.module
    assert site.code in problem.source.code


def test_torchscript_within_a_text_layer_fails_without_the_cure(model, expected_answers):
    apart = ("transformer.encoder.layers.1.self_attention.query_key_value",)
    with VirtualGPUs("2x1GiB"):
        splits.place(model, splits.map_apart(model, apart))
        with pytest.raises(RuntimeError, match="TorchScript"):
            splits.run(model)
        make_consistent(model)
        assert_equal(splits.answers(model), expected_answers)


# The other two pairs say no more: `make nightly`.
@pytest.mark.parametrize(
    ("home", "order"),
    [
        (0, "before dispatch"),
        (1, "after dispatch"),
        pytest.param(1, "before dispatch", marks=pytest.mark.nightly),
        pytest.param(0, "after dispatch", marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("site", splits.SITES.values(), ids=splits.SITES.keys())
def test_each_site_passes_with_the_cure(model, expected_answers, site, home, order):
    device_map = splits.map_apart(model, site.apart, home=home, away=1 - home)
    with VirtualGPUs("2x1GiB") as gpus:
        if order == "before dispatch":
            make_consistent(model)
        splits.place(model, device_map)
        if order == "after dispatch":
            make_consistent(model)
        assert_equal(splits.answers(model), expected_answers)
    assert not gpus.problems


@pytest.mark.parametrize("seed", range(12))
def test_any_map_of_leaves_gives_the_same_logits(model, expected_answers, seed):
    chance = random.Random(seed)
    inside_blocks = seed % 2 == 0
    device_map = {name: chance.randrange(5) for name in splits.units(model, inside_blocks)}
    with VirtualGPUs("5x1GiB") as gpus:
        splits.place(model, device_map)
        make_consistent(model)
        assert_equal(splits.answers(model), expected_answers)
    assert not gpus.problems


@pytest.mark.parametrize(
    "offloaded",
    [
        f"{TOWER}.transformer.layers.1.input_layernorm",
        f"{TOWER}.linear_proj.gate_proj",
        f"{TOWER}.boi",
        f"{TOWER}.patch_embedding.cls_embedding",
        "transformer.encoder.layers.1",
    ],
)
def test_a_unit_offloaded_to_the_cpu_gives_the_same_logits(model, expected, offloaded):
    device_map: dict[str, int | str] = {n: i % 2 for i, n in enumerate(splits.units(model))}
    assert offloaded in device_map
    with VirtualGPUs("2x1GiB") as gpus:
        splits.place(model, device_map | {offloaded: "cpu"})
        make_consistent(model)
        assert torch.equal(splits.run(model), expected)
    assert not gpus.problems


def test_positions_of_the_caller_may_live_anywhere(model, expected):
    with VirtualGPUs("3x1GiB"):
        splits.place(model, splits.map_apart(model, ("transformer.rotary_pos_emb",), 0, 2))
        make_consistent(model)
        positions = torch.arange(expected.shape[1], device="cuda:1").unsqueeze(0)
        logits = model(**splits.example("cuda:0"), position_ids=positions)
        assert torch.equal(logits.cpu(), expected)


def test_it_says_what_it_did(model):
    report = make_consistent(model)
    assert report.already == ()
    assert [(site.module, site.kind) for site in report.sites] == [
        ("transformer", "splice"),
        (TOWER, "boundary"),
        (f"{TOWER}.patch_embedding", "patch_embedding"),
        (f"{TOWER}.transformer.layers.0", "residual"),
        (f"{TOWER}.transformer.layers.1", "residual"),
        (f"{TOWER}.transformer.layers.2", "residual"),
        (f"{TOWER}.linear_proj", "gated_product"),
        ("transformer.encoder.layers.0", "text_residual"),
        ("transformer.encoder.layers.1", "text_residual"),
        ("transformer.encoder.layers.0.self_attention", "text_attention"),
        ("transformer.encoder.layers.1.self_attention", "text_attention"),
    ]
    assert f"{TOWER}: boi and eoi go to the image features" in str(report).splitlines()


def test_a_second_call_changes_nothing(model):
    first = make_consistent(model)
    classes = [type(module) for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    second = make_consistent(model)
    assert second.sites == ()
    assert second.already == first.sites
    assert "11 modules were consistent already" in str(second)
    assert [type(module) for module in model.modules()] == classes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    second.undo()
    assert [type(module) for module in model.modules()] == classes


def test_undo_restores_classes_hooks_and_the_error(modeling, model):
    untouched = splits.build(modeling)
    report = make_consistent(model)
    assert [type(m) for m in model.modules()] != [type(m) for m in untouched.modules()]
    report.undo()
    report.undo()
    for module, before in zip(model.modules(), untouched.modules(), strict=True):
        assert type(module) is type(before)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    site = splits.SITES["gated product"]
    with VirtualGPUs("2x1GiB"):
        splits.place(model, splits.map_apart(model, site.apart))
        with pytest.raises(MixedDeviceError):
            splits.run(model)
        assert make_consistent(model).sites == report.sites


def test_it_outlives_the_removal_of_accelerates_hooks(model, expected):
    site = splits.SITES["residual after MLP"]
    with VirtualGPUs("2x1GiB"):
        splits.place(model, splits.map_apart(model, site.apart))
        make_consistent(model)
        remove_hook_from_module(model, recurse=True)
        splits.place(model, splits.map_apart(model, site.apart))
        assert torch.equal(splits.run(model), expected)


def test_a_model_on_one_device_is_as_before(model, expected):
    names = list(model.state_dict())
    make_consistent(model)
    assert torch.equal(model(**splits.example()), expected)
    assert list(model.state_dict()) == names
    assert type(model.transformer.vision).__name__ == "EVA2CLIPModel"
    assert torch.equal(copy.deepcopy(model)(**splits.example()), expected)


def test_a_tower_without_a_text_model(model):
    tower = model.transformer.vision
    pixels = splits.example()["images"]
    before = tower(pixels)
    with VirtualGPUs("2x1GiB"):
        splits.place(tower, {n: i % 2 for i, n in enumerate(splits.units(tower))})
        report = make_consistent(tower)
        assert torch.equal(tower(pixels.to("cuda:0")).cpu(), before)
    assert "splice" not in {site.kind for site in report.sites}
    assert str(report).startswith("(model): boi and eoi")


def test_only_the_modules_own_code_is_aligned(model):
    class Careless(nn.Module):
        def forward(self, tokens):
            return tokens + torch.zeros(1, device="cuda:1")

    with VirtualGPUs("2x1GiB"):
        model.to("cuda:0")
        model.transformer.vision.transformer.layers[0].mlp = Careless()
        model.transformer.vision.linear_proj.act1 = Careless()
        make_consistent(model)
        with pytest.raises(MixedDeviceError, match="cuda:1"):
            splits.run(model)
        model.transformer.vision.transformer.layers[0].mlp = nn.Identity()
        with pytest.raises(MixedDeviceError, match="cuda:1"):
            splits.run(model)


@pytest.mark.parametrize(
    ("part", "moved", "away", "crossings"),
    [
        # The middle of the layer goes to the MLP and to the residual add, and nothing returns.
        ("transformer.layers.1", (1, 17, 12), ("mlp", "post_attention_layernorm"), 2),
        # In the order of the checkpoint: the features and one factor, not the product.
        ("linear_proj", (1, 4, 16), ("gate_proj", "dense_4h_to_h"), 2),
        # boi and eoi go to the features; the features stay.
        ("", (1, 3, 8, 8), ("boi", "eoi"), 2),
        ("patch_embedding", (1, 3, 8, 8), ("cls_embedding", "position_embedding"), 2),
    ],
)
def test_copies_at_a_border_in_the_order_of_the_checkpoint(model, part, moved, away, crossings):
    part = f"{TOWER}.{part}".rstrip(".")
    with VirtualGPUs("2x1GiB") as gpus:
        splits.place(model, splits.map_apart(model, tuple(f"{part}.{name}" for name in away)))
        make_consistent(model)
        inputs = torch.zeros(moved).to("cuda:0")
        gpus.reset()
        model.get_submodule(part)(inputs)
    assert sum(copied.count for copied in gpus.copies) == crossings


@pytest.mark.parametrize("interrupted", ["attention", "input_layernorm"])
def test_an_interrupt_leaves_nothing_behind(model, expected, interrupted):
    def interrupt(module, args):
        raise KeyboardInterrupt

    make_consistent(model)
    before = _get_current_function_mode_stack()
    part = getattr(model.transformer.vision.transformer.layers[1], interrupted)
    handle = part.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(**splits.example())
    assert _get_current_function_mode_stack() == before
    handle.remove()
    assert torch.equal(model(**splits.example()), expected)


def test_an_error_in_the_middle_leaves_nothing_behind(model, expected):
    make_consistent(model)
    with pytest.raises(RuntimeError):
        model(input_ids=splits.example()["input_ids"], images=torch.zeros(2, 3, 3, 3))
    assert _get_current_function_mode_stack() == []
    assert torch.equal(model(**splits.example()), expected)


def test_a_submodule_called_by_itself_is_not_aligned(model):
    tower = model.transformer.vision
    make_consistent(model)
    model(**splits.example())
    tower.linear_proj.gate_proj(torch.zeros(1, 16))
    assert _get_current_function_mode_stack() == []


def test_a_mode_of_the_models_own_code_stays(model, monkeypatch):
    names = set()

    class Seen(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            names.add(func.__name__)
            return func(*args, **(kwargs or {}))

    tower = model.transformer.vision
    forward = type(tower).forward

    def forward_seen(tower, pixels):
        with Seen():
            return forward(tower, pixels)

    monkeypatch.setattr(type(tower), "forward", forward_seen)
    with VirtualGPUs("2x1GiB"):
        model.to("cuda:0")
        make_consistent(model)
        splits.run(model)
        assert "linear" in names
        tower.conv.forward = lambda pixels: pixels + pixels.to("cuda:1")
        with pytest.raises(MixedDeviceError, match="cuda:1"):
            splits.run(model)
    assert _get_current_function_mode_stack() == []


def test_an_operation_in_place_stays_in_place(model, monkeypatch):
    def forward(layer, tokens):
        same = tokens
        tokens += layer.input_layernorm(layer.attention(tokens))
        tokens += layer.post_attention_layernorm(layer.mlp(tokens))
        return same

    layer = model.transformer.vision.transformer.layers[1]
    monkeypatch.setattr(type(layer), "forward", forward)
    before = layer(splits.example()["images"].new_ones(1, 17, 12))
    with VirtualGPUs("2x1GiB"):
        splits.place(layer, {n: i % 2 for i, n in enumerate(splits.units(layer))})
        make_consistent(model)
        assert torch.equal(layer(torch.ones(1, 17, 12).to("cuda:0")).cpu(), before)


@pytest.mark.parametrize("name", ["add_", "sub_", "mul_", "div_", "__isub__", "__itruediv__"])
def test_an_operator_in_place_takes_its_operand_along(model, monkeypatch, name):
    def forward(layer, tokens):
        same = tokens
        getattr(tokens, name)(layer.input_layernorm(layer.attention(tokens)))
        return same

    layer = model.transformer.vision.transformer.layers[1]
    monkeypatch.setattr(type(layer), "forward", forward)
    before = layer(torch.ones(1, 17, 12))
    with VirtualGPUs("2x1GiB"):
        splits.place(layer, {n: int(n == "input_layernorm") for n in splits.units(layer)})
        make_consistent(model)
        found = layer(torch.ones(1, 17, 12).to("cuda:0"))
        assert found.device.index == 0
        assert torch.equal(found.cpu(), before)


def test_two_threads_at_once(model, expected):
    with VirtualGPUs("3x1GiB"):
        splits.place(model, {n: i % 3 for i, n in enumerate(splits.units(model))})
        make_consistent(model)
        results: list[torch.Tensor] = []
        threads = [
            threading.Thread(target=lambda: results.append(splits.run(model))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [torch.equal(logits, expected) for logits in results] == [True, True]


def test_a_model_without_such_a_tower():
    with pytest.raises(PlacementError) as caught:
        make_consistent(nn.Linear(2, 2))
    assert str(caught.value) == (
        "Linear has no vision tower that is known: looked for a module of class EVA2CLIPModel "
        "with boi, eoi, linear_proj."
    )


@pytest.mark.parametrize(
    ("part", "attribute", "class_name"),
    [
        ("linear_proj", "gate_proj", "GLU"),
        ("patch_embedding", "proj", "PatchEmbedding"),
    ],
)
def test_a_tower_with_a_part_of_another_form(model, part, attribute, class_name):
    delattr(getattr(model.transformer.vision, part), attribute)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(PlacementError) as caught:
        make_consistent(model)
    assert f"looked in it for a module of class {class_name} with " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [type(module) for module in model.modules()] == classes


def test_something_that_is_no_model():
    with pytest.raises(PlacementError, match="takes a torch model, not a str"):
        make_consistent("glm-4v-9b")


def test_sites_compare_by_value():
    assert Site("a", "residual", "x") == Site("a", "residual", "x")
