"""Folders that are not, or not quite, checkpoints: one clear line, before any memory is taken."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import sys
import threading
import traceback
import weakref
from pathlib import Path

import golden
import pytest
import safetensors
import torch
from any_json import ANY_JSON, changed_somewhere, taken_or_refused
from hypothesis import given
from hypothesis import strategies as st

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.files import read_tensor_infos
from glm4v_magic.checkpoints.reading import forget_locals, stored_weights
from glm4v_magic.core.errors import CheckpointError


@pytest.fixture
def single(tmp_path):
    return shutil.copytree(golden.CHECKPOINT, tmp_path / "single")


@pytest.fixture
def sharded(tmp_path):
    return shutil.copytree(golden.SHARDED, tmp_path / "sharded")


def refused(folder, *parts):
    with pytest.raises(CheckpointError) as caught:
        resolve(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))


def test_a_folder_a_path_and_a_name_resolve(single):
    assert resolve(single).folder == single
    assert resolve(str(single)).name == str(single)


def test_nothing_and_demo_are_the_embedded_model():
    assert resolve().name == resolve("demo").name == "demo"
    assert "demo model" in resolve().notice


def test_headers_say_what_the_tensors_are(single, sharded):
    assert {n: i.shape for n, i in read_tensor_infos(single).items()} == {
        n: i.shape for n, i in read_tensor_infos(sharded).items()
    }
    assert resolve(single).total_bytes == 4 * 381_844


def test_unknown_folder_names_similar_ones(single):
    refused(single.parent / "singel", "no checkpoint", "singel", "Did you mean single?")


def test_unknown_repository(tmp_path, monkeypatch):
    refused("nobody/no-such-model", "nobody/no-such-model", "not in the hub cache")


def test_the_name_of_a_published_model(tmp_path):
    refused("GLM-4.1V-9B-Thinking", "no checkpoint 'zai-org/GLM-4.1V-9B-Thinking'", "hub cache")
    (tmp_path / "config.json").write_text('{"model_type": "glm4v", "vision_config": {}}')
    refused(tmp_path, "config.json", "text_config")


def test_a_file_is_not_a_folder(single):
    refused(single / "config.json", "is a file", "folder")


def test_folder_without_config(tmp_path):
    refused(tmp_path, "config.json cannot be read")


@pytest.mark.parametrize("content", ["{", "[1]", "", "null", "\udcff"])
def test_config_that_is_no_json_object(single, content):
    (single / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    refused(single, "config.json")


def test_config_of_another_model(single):
    edit_config(single, model_type="llama")
    refused(single, "'llama'", "chatglm")


def test_config_without_a_tower(single):
    config = json.loads((single / "config.json").read_text())
    del config["vision_config"]
    (single / "config.json").write_text(json.dumps(config))
    refused(single, "without a vision tower")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_layers": "four"}, "num_layers"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"seq_length": None}, "seq_length"),
        ({"rmsnorm": False}, "rmsnorm"),
        ({"multi_query_group_num": 3}, "multi_query_group_num"),
        ({"vision_config": {"hidden_size": 48}}, "vision_config.num_hidden_layers"),
        ({"vision_config": 3}, "vision_config"),
        ({"num_layers": True}, "num_layers"),
        ({"layernorm_epsilon": "small"}, "layernorm_epsilon"),
        ({"eos_token_id": {}}, "eos_token_id"),
    ],
)
def test_wrong_config_values_are_named(single, changes, part):
    edit_config(single, **changes)
    refused(single, part, "config.json")


@pytest.mark.parametrize(
    ("content", "part"), [("{", "is not valid JSON"), ("[]", "is [], not a JSON object")]
)
def test_a_damaged_generation_config_is_left_out_and_named(single, content, part):
    (single / "generation_config.json").write_text(content)
    (note,) = resolve(single).load(dtype=torch.float32).notes
    assert note.startswith("generation_config.json ")
    assert part in note
    assert note.endswith("and is left out")


def test_one_stop_token_or_several(single):
    for ids in (5, [5, 6]):
        (single / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        assert resolve(single).folder == single


def test_positions_that_do_not_match_the_image(single):
    config = json.loads((single / "config.json").read_text())
    edit_config(single, vision_config=config["vision_config"] | {"num_positions": 16})
    refused(single, "num_positions must be 17")


def test_config_of_another_size(single):
    edit_config(single, ffn_hidden_size=177)
    refused(single, "dense_h_to_4h.weight", "has shape [352, 64]", "[354, 64]")


def test_config_with_more_layers_than_weights(single):
    edit_config(single, num_layers=5)
    refused(single, "weights are missing", "transformer.encoder.layers.4")


def test_config_with_fewer_layers_than_weights(single):
    edit_config(single, num_layers=3)
    refused(single, "that GLM-4V-9B does not have", "transformer.encoder.layers.3")


def test_folder_without_weights(single):
    (single / "model.safetensors").unlink()
    refused(single, "holds no weights")


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("put", "said"),
    [
        (lambda path: path.symlink_to(path.name), "link to a file that is not there|symbolic link"),
        (lambda path: path.symlink_to("gone"), "a link to a file that is not there|No such file"),
        (lambda path: path.mkdir(), "is no file|Is a directory"),
        (os.mkfifo, "is no file|is a device or a pipe"),
    ],
)
def test_weights_that_are_no_file(single, name, put, said):
    (single / "model.safetensors").unlink()  # which would count before an index
    put(single / name)
    with pytest.raises(CheckpointError, match=f"{name} ([a-z ]+: )?.*({said})"):
        resolve(single)


def test_folder_with_other_weights_says_what_it_holds(single):
    (single / "model.safetensors").rename(single / "consolidated.bin")
    refused(single, "holds no weights", "consolidated.bin")
    (single / "zero_to_fp32.py").write_text("")
    merge = f"cd {single} && python zero_to_fp32.py . . --safe_serialization"
    refused(single, f"DeepSpeed has them in parts: {merge}")


def test_what_git_lfs_left_in_place_of_the_config(single):
    (single / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    refused(single, "config.json is a pointer of git-lfs, not the file itself. Run git lfs pull")


def test_weights_that_the_system_refuses(single, monkeypatch):
    def shut(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(safetensors, "safe_open", shut)
    refused(single, "model.safetensors cannot be read: Permission denied.")


def test_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    refused(sharded, "1 of 3 shards", "model-00002-of-00003.safetensors")


def test_truncated_shard_is_named_with_its_sizes(sharded):
    path = sharded / "model-00003-of-00003.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 1000)
    refused(sharded, path.name, "truncated", f"{size - 1000:,} of {size:,} bytes")


def test_bytes_behind_the_weights_are_said(sharded):
    path = sharded / "model-00003-of-00003.safetensors"
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(bytes(1000))
    refused(sharded, path.name, "too long", f"{size + 1000:,} of {size:,} bytes")


@pytest.mark.parametrize("length", [0, 4, 8, 100])
def test_shard_cut_in_its_header(sharded, length):
    path = sharded / "model-00001-of-00003.safetensors"
    with path.open("r+b") as file:
        file.truncate(length)
    refused(sharded, path.name)


def test_shard_that_is_something_else(sharded):
    (sharded / "model-00001-of-00003.safetensors").write_bytes(b"<html>Not found</html>" * 40)
    refused(sharded, "model-00001-of-00003.safetensors", "not a safetensors file")


def test_header_of_garbage(sharded):
    path = sharded / "model-00001-of-00003.safetensors"
    content = bytearray(path.read_bytes())
    content[8:40] = b"x" * 32
    path.write_bytes(content)
    refused(sharded, path.name, "header")


def test_index_that_places_a_tensor_in_the_wrong_shard(sharded):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["transformer.output_layer.weight"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    refused(sharded, "lacks transformer.output_layer.weight")


def test_index_without_a_weight_map(sharded):
    (sharded / "model.safetensors.index.json").write_text("{}")
    refused(sharded, "weight_map")


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "a\\b", "a\n"])
def test_index_that_points_elsewhere(sharded, name):
    path = sharded / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"transformer.output_layer.weight": name}}))
    refused(sharded, "for 'weight_map.transformer.output_layer.weight'")


@given(ANY_JSON)
def test_any_json_as_index_and_as_header(folder, content):
    text = json.dumps(content).encode()
    (folder / "model.safetensors.index.json").write_bytes(text)
    taken_or_refused(lambda: read_tensor_infos(folder))
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    taken_or_refused(lambda: read_tensor_infos(folder))


@given(st.data())
def test_a_header_with_anything_in_any_place(folder, data):
    good = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"b": "c"}}
    text = json.dumps(changed_somewhere(good, data)).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    taken_or_refused(lambda: read_tensor_infos(folder))


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        ("F64", [1], "header of .* is damaged: invalid shape, data type, or offset"),
        ("F32", [2], "header of .* is damaged: invalid shape, data type, or offset"),
        ("X9", [1], "header of .* is damaged: .*`X9`"),
        ("F8_E8M0", [4], "is of dtype F8_E8M0, which is not read"),
    ],
)
def test_a_tensor_whose_bytes_are_not_its_own(folder, dtype, shape, message):
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, 4]}
    text = json.dumps({"a": entry}).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(CheckpointError, match=message):
        read_tensor_infos(folder)


def test_a_tensor_that_ends_before_it_begins(folder):
    text = json.dumps({"a": {"dtype": "F32", "shape": [], "data_offsets": [4, 0]}}).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(
        CheckpointError, match=r"header of .* is damaged: invalid offset for tensor .a."
    ):
        read_tensor_infos(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("read")


def test_folder_without_tokenizer(single):
    (single / "tokenizer.model").unlink()
    refused(single, "tokenizer.model")


@pytest.mark.parametrize(
    ("content", "part"),
    [("AA== zero\n", "Line 1"), ("not base64! 0\n", "Line 1"), ("AA== 1\n", "count from 0")],
)
def test_damaged_tokenizer_is_found_when_loading(single, content, part):
    import torch

    (single / "tokenizer.model").write_text(content)
    with pytest.raises(CheckpointError, match=part):
        resolve(single).load(dtype=torch.float32)


class TestReading:
    """Weights are read one at a time, and not at all once a load was given up."""

    def test_values_are_those_of_the_files(self):
        from safetensors.torch import load_file

        expected = load_file(golden.CHECKPOINT / "model.safetensors")
        with stored_weights(read_tensor_infos(golden.SHARDED)) as weights:
            assert weights.keys() == expected.keys()
            assert all(weights[name][...].equal(tensor) for name, tensor in expected.items())

    def test_a_weight_at_an_odd_offset(self, tmp_path):
        file = weights_file(tmp_path, [0.5, -2.0], padding=3)
        with stored_weights(read_tensor_infos(file.parent)) as weights:
            assert weights["a"][...].tolist() == [0.5, -2.0]

    def test_what_is_written_to_a_weight_does_not_reach_the_file(self, tmp_path):
        file = weights_file(tmp_path, [0.5, -2.0])
        before = file.read_bytes()
        with stored_weights(read_tensor_infos(file.parent)) as weights:
            weight = weights["a"][...]
        weight.fill_(1.0)
        assert weight.tolist() == [1.0, 1.0]
        assert file.read_bytes() == before

    def test_a_weight_outlives_its_reader_and_its_file(self, tmp_path):
        file = weights_file(tmp_path, [0.5, -2.0])
        with stored_weights(read_tensor_infos(file.parent)) as weights:
            weight = weights["a"][...]
        del weights
        file.unlink()
        assert weight.tolist() == [0.5, -2.0]

    @pytest.mark.parametrize("left", [0, 40])
    def test_a_file_that_is_cut_short_while_it_is_loaded(self, tmp_path, left):
        file = weights_file(tmp_path, [0.5, -2.0])
        with stored_weights(read_tensor_infos(file.parent)) as weights:
            os.truncate(file, left)
            with pytest.raises(CheckpointError, match=re.escape(str(file))):
                weights["a"][...]

    @pytest.mark.skipif(sys.platform != "linux", reason="counts resident pages of /proc")
    def test_pages_of_a_dropped_weight_are_not_resident(self, tmp_path):
        file = weights_file(tmp_path, [1.0] * 2**20)
        with stored_weights(read_tensor_infos(file.parent)) as weights:
            before = resident_bytes(file)
            weight = weights["a"][...]
            assert weight.sum() == 2**20
            assert resident_bytes(file) - before > 2**21
            del weight
            assert resident_bytes(file) - before < 2**17

    def test_nothing_is_read_afterwards(self):
        with stored_weights(read_tensor_infos(golden.CHECKPOINT)) as weights:
            name, weight = next(iter(weights.items()))
        with pytest.raises(InterruptedError):
            weight[...]
        assert name

    def test_no_thread_of_an_interrupted_load_reads_on(self):
        from concurrent.futures import ThreadPoolExecutor

        threads = set(threading.enumerate())
        with (
            pytest.raises(KeyboardInterrupt),
            stored_weights(read_tensor_infos(golden.CHECKPOINT)) as weights,
        ):
            interrupted_in_a_pool(ThreadPoolExecutor(2), weights)
        # One that had not read yet is refused, and needs a moment to end.
        for thread in set(threading.enumerate()) - threads:
            thread.join(10)
        assert set(threading.enumerate()) <= threads

    def test_an_exception_lets_go_of_what_it_came_through(self):
        thing = Thing()
        with pytest.raises(ValueError) as caught:
            fail_beside(thing)
        watch = weakref.ref(thing.inner)
        thing.inner = None
        assert watch() is not None
        forget_locals(caught.value)
        assert watch() is None
        assert "fail_beside" in "".join(traceback.format_exception(caught.value))


def weights_file(folder, values, padding=0):
    """Write one float32 weight; its header is padded to an offset of ``8 n + padding``."""
    shape = {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, 4 * len(values)]}
    text = json.dumps({"a": shape}).encode()
    text += b" " * (-len(text) % 8 + padding)
    file = folder / "model.safetensors"
    content = struct.pack(f"<{len(values)}f", *values)
    file.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return file


def resident_bytes(file):
    """Return the bytes of a mapped file that are resident in this process."""
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    sizes, is_of_file = [0], False
    for line in lines:
        key, *values = line.split()
        if "-" in key:
            is_of_file = line.endswith(str(file))
        elif key == "Rss:" and is_of_file:
            sizes.append(int(values[0]) * 1024)
    return sum(sizes)


class Thing:
    def __init__(self):
        self.inner = type("Inner", (), {})()


def fail_beside(thing):
    inner = thing.inner
    try:
        {}[id(inner)]
    except KeyError as error:
        raise ValueError from error


def interrupted_in_a_pool(pool, weights):
    futures = [pool.submit(weight.__getitem__, ...) for weight in weights.values()]
    futures[0].result()
    raise KeyboardInterrupt
