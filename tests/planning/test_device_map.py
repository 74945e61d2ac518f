"""Device maps: every mistake is named in one line."""

from __future__ import annotations

import json

import golden
import pytest
import torch
from any_json import ANY_JSON, changed_somewhere, taken_or_refused
from hypothesis import given
from hypothesis import strategies as st

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.core.gpu_spec import APPLE, GPU, parse_gpus
from glm4v_magic.core.model_shape import ModuleTree
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dispatch.module_tree import tree_of
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.device_map import check, place_of, settle
from glm4v_magic.planning.files import read_given
from glm4v_magic.planning.plan import plan

GPUS = parse_gpus("2x16GiB")
WHOLE = {"model.vision": 0, "model.language_model": 1, "lm_head": 1}


@pytest.fixture(scope="module")
def model():
    return architecture(golden.CHECKPOINT).build_meta("float32")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("maps") / "map.json"


def refusal(device_map, model, gpus=GPUS):
    with pytest.raises(DeviceMapError) as caught:
        check(read_given(device_map), tree_of(model), gpus)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_way_to_write_a_place(model):
    given = {
        "model.vision": "cuda:1",
        "model.language_model": torch.device("cuda", 0),
        "lm_head": torch.device("cpu"),
    }
    expected = {"model.vision": 1, "model.language_model": 0, "lm_head": "cpu"}
    assert check(read_given(given), tree_of(model), GPUS) == expected
    assert read_given({"": "cuda", "a": "CUDA:1", "b": "CPU"}) == {"": 0, "a": 1, "b": "cpu"}


def test_an_inner_entry_that_says_the_same_is_dropped(model):
    assert check({**WHOLE, "model.vision.boi": 0}, tree_of(model), GPUS) == WHOLE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.vison": 0}, "names 'model.vison', which the model does not have. Did you mean "
         "model.vision?"),
        ({"model.language_model.layers.7": 0}, "'model.language_model.layers.7', which the model "
         "does not have. Did you mean model.language_model.layers.3"),
        ({"zzz": 0}, "'zzz', which the model does not have. The model holds lm_head, model."),
        ({0: "lm_head"}, "is wrong at '[0]': 0 is not the name of a module."),
        ({"x" * 300: 0}, "names '" + "x" * 79 + "..., which the model does not have."),
        ({"lm_head": 2}, "puts 'lm_head' on GPU 2, but there are GPUs 0 to 1."),
        ({"lm_head": -1}, "at 'lm_head': -1 is not a device."),
        ({"lm_head": "disk"}, "is wrong at 'lm_head': disk is not supported; use cpu."),
        ({"lm_head": "gpu1"}, "at 'lm_head': 'gpu1' is not a device. A device is a number"),
        ({"lm_head": "cuda:x"}, "at 'lm_head': 'cuda:x' is not a device."),
        ({"lm_head": None}, "at 'lm_head': None is not a device."),
        ({"lm_head": True}, "at 'lm_head': True is not a device."),
        ({"lm_head": 1.0}, "at 'lm_head': 1.0 is not a device."),
        ({"lm_head": [1]}, "at 'lm_head': [1] is not a device."),
        ({"lm_head": b"cpu"}, "at 'lm_head': b'cpu' is not a device."),
        ({"lm_head": 2**70}, "at 'lm_head': 1180591620717411303424 is not a device."),
        ({"": 7}, "puts the whole model on GPU 7, but there are GPUs 0 to 1."),
    ],
)  # fmt: skip
def test_entries_that_are_wrong(model, changes, message):
    assert message in refusal({**WHOLE, **changes}, model)


def test_modules_that_are_missing(model):
    assert refusal({}, model) == (
        'The device map is empty. A device map is a JSON object such as {"model.vision": 0, '
        '"lm_head": 1}.'
    )
    without_head = {k: v for k, v in WHOLE.items() if k != "lm_head"}
    assert "gives 'lm_head' no device. Every weight needs one." in refusal(without_head, model)
    parts = dict.fromkeys(
        [f"model.vision.{name}" for name, _ in model.model.vision.named_children()], 0
    )
    parts |= {"model.language_model": 1, "lm_head": 1}
    assert "gives 'model.vision.boi' and 1 more no device." in refusal(parts, model)
    assert "gives 'model.language_model' and 1 more no device" in refusal(
        {"model.vision": 0}, model
    )


def test_weights_that_are_one(model):
    tied = torch.nn.Module()
    tied.first = torch.nn.Linear(2, 2, bias=False)
    tied.second = torch.nn.Linear(2, 2, bias=False)
    tied.second.weight = tied.first.weight
    assert "separates 'first.weight' and 'second.weight', which are one weight" in refusal(
        {"first": 0, "second": 1}, tied
    )


def test_no_gpu_or_one(model):
    assert "on GPU 0, but there is none. Put it on the cpu, or leave" in refusal({"": 0}, model, ())
    assert "on GPU 1, but there is GPU 0 only." in refusal({"": 1}, model, GPUS[:1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"lm_head": 0,', "is not valid JSON"),
        ("[1]", r"map.json is \[1\], not a JSON object"),
        ('{"lm_head": 0, "lm_head": 1}', "names 'lm_head' twice"),
        ('{"format": "something"}', "not a plan of glm4v_magic"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"lm_head": true}', r"map.json is wrong at 'lm_head': True is not a device\."),
        (b"\xff\xfe\x00", "is not a text file in UTF-8"),
        (b"", "is not valid JSON: Expecting value"),
        ('{"": ' + "9" * 5000 + "}", "is not valid JSON: a number has too many digits"),
        ('{"": 1e400}', "wrong at '': inf is not a device"),
        ('{"": NaN}', "wrong at '': nan is not a device"),
        ('{"": "cuda:\u0661"}', "is not a device"),
        ('{"weight_map": {"a": "b"}}', "is the index of a checkpoint"),
    ],
)
def test_files_that_are_no_map(tmp_path, content, message):
    path = tmp_path / "map.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DeviceMapError, match=message) as caught:
        read_given(path)
    assert "\n" not in str(caught.value)


def test_json_itself_is_a_map_or_a_plan(tmp_path):
    made = make_plan(architecture("demo"), PlacementOptions(gpus="2x8GiB"))
    file = made.save(tmp_path / "plan.json")
    for each in (made, made.to_json(), json.loads(made.to_json()), file, str(file)):
        assert read_given(each) == made
    placed = {"model": 0, "lm_head": "cpu"}
    file.write_text(json.dumps(placed))
    for each in (placed, json.dumps(placed), f" {json.dumps(placed)}", file, str(file)):
        assert read_given(each) == placed


def test_a_map_without_a_name():
    with pytest.raises(DeviceMapError, match=r"^The name of the device map is empty\."):
        read_given("")


@given(st.data())
def test_any_json_is_taken_or_refused_in_one_line(model, file, data):
    text = data.draw(ANY_JSON.map(json.dumps) | st.text())
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    taken_or_refused(lambda: check(read_given(file), tree_of(model), GPUS))


@given(st.data())
def test_a_map_with_anything_in_any_place_is_taken_or_refused_in_one_line(model, file, data):
    content = changed_somewhere(WHOLE, data)
    taken_or_refused(lambda: check(read_given(content), tree_of(model), GPUS))
    file.write_text(json.dumps(content), encoding="utf-8")
    taken_or_refused(lambda: check(read_given(file), tree_of(model), GPUS))


def test_files_that_are_maps(tmp_path, model):
    path = tmp_path / "map.json"
    path.write_text(json.dumps(WHOLE))
    assert read_given(str(path)) == WHOLE
    with pytest.raises(DeviceMapError, match="cannot be read: No such file"):
        read_given(tmp_path / "none.json")
    with pytest.raises(DeviceMapError, match=r"~nobody-here/map\.json cannot be read: No"):
        read_given("~nobody-here/map.json")
    with pytest.raises(DeviceMapError, match="cannot be read: embedded null"):
        read_given("map\0.json")
    planned = plan(architecture("GLM-4V-9B").shape(), parse_gpus("2x24GiB"))
    path.write_text(planned.to_json())
    assert read_given(path) == planned


def test_where_a_parameter_is():
    assert place_of(WHOLE, "model.vision.boi") == 0
    assert place_of(WHOLE, "model") is None
    assert place_of({"": "cpu"}, "model.vision") == "cpu"


@pytest.mark.parametrize("given", ["first", "second", "first.weight", "second.weight"])
def test_a_weight_with_two_names_needs_one(given):
    tree = ModuleTree(
        ("", "first", "second"),
        ("first.weight", "second.weight"),
        {"second.weight": "first.weight"},
    )
    found, _ = settle({given: 1}, tree, parse_gpus("2x1GiB"), lambda name, tree: None)
    assert [place_of(found, name) for name in tree.tensors] == [1, 1]


def test_of_published_names_for_the_same_the_inner_one_counts():
    tree = ModuleTree(("", "first", "second"), ("first.weight", "second.weight"))
    given = {"old": 0, "old.inner": 1, "second": 0}
    found, _ = settle(
        given, tree, parse_gpus("2x1GiB"), lambda name, tree: ("first",) if "old" in name else None
    )
    assert [place_of(found, name) for name in tree.tensors] == [1, 0]


def test_apples_gpu_by_the_name_that_torch_has_for_it(model):
    tree, apple = tree_of(model), [GPU(0, APPLE, 2**34)]
    for each in ("mps", "mps:0", torch.device("mps"), {"": "mps:0"}):
        assert settle(read_given(each), tree, apple, lambda *_: None)[0] == {"": 0}
        with pytest.raises(
            DeviceMapError, match=r"on mps, but there is GPU 0 only\. Put it on one"
        ):
            settle(read_given(each), tree, parse_gpus("1x1GiB"), lambda *_: None)


@pytest.mark.parametrize("text", ["cuda:x", "cuda:-1", "xpu:0", "meta", "GPU", "npu"])
def test_words_that_are_like_a_device_are_not_told_as_files(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeviceMapError, match="is not a device"):
        read_given(text)
    (tmp_path / text).write_text('{"": 0}')
    assert read_given(text) == {"": 0}


@pytest.mark.parametrize("name", ["a\nb", "a\x00b"])
def test_a_file_with_an_odd_name_is_told_in_a_line(name):
    with pytest.raises(DeviceMapError, match="cannot be read") as caught:
        read_given(name)
    assert str(caught.value).isprintable()
