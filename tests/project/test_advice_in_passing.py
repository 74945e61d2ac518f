"""Advice that is no hint of an error: each is followed here, or in the test that is named.

It is in errors of Python's own kinds and in what an error says has happened, in warnings, lines of
logs, and what is printed or shown. `hints.in_errors_of_python` finds all of the former, and
`hints.in_passing` whatever else tells to do something or names a command; a text that advises
nothing is listed, too, so that a new one is looked at.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import golden
import numpy as np
import pytest
import test_advice
import torch
from hints import PACKAGE, in_errors_of_python, in_passing, in_views
from PIL import Image
from served import CHAT, JSON, SECONDS, ask, question, send, serving
from standins import eva2clip_splits as splits

from glm4v_magic.core.errors import Glm4vError
from glm4v_magic.images import resolve_images
from glm4v_magic.images.video import to_video
from glm4v_magic.mapping.items import items_of
from glm4v_magic.notebook import settings
from glm4v_magic.planning.given_map import device_map_of
from glm4v_magic.remote_code import patch
from glm4v_magic.server import app, command, worker
from glm4v_magic.server.listening import Server
from glm4v_magic.session.session import Session

ROOT = Path(__file__).parents[2]
SQUARE = np.zeros((56, 56, 3), np.uint8)
GREEDY = {"temperature": 0, "max_tokens": 2}


@pytest.fixture(scope="module")
def tiny():
    session = Session().load(golden.CHECKPOINT)
    yield session
    session.unload()


def said_by(act, *parts, kind=Exception):
    """Return the message of an act, in which all parts are, on one line."""
    with pytest.raises(kind) as caught:
        act()
    said = str(caught.value)
    assert all(part in said for part in parts), said
    assert "\n" not in said
    return said


# Python


def test_a_model_is_given_what_its_processor_writes(tiny):
    """Ids with places for images, and positions where something is cached."""
    from transformers import DynamicCache

    model = tiny.engine.model
    shape = model.config
    pixels = torch.zeros(1, 3, shape.vision_config.image_size, shape.vision_config.image_size)
    embeds = torch.zeros(1, 4, shape.hidden_size)
    with torch.no_grad():
        said_by(
            lambda: model(inputs_embeds=embeds, pixel_values=pixels),
            "Images need input_ids, which tell where they stand.",
        )
        said_by(
            lambda: model(input_ids=torch.tensor([[1, 2]]), pixel_values=pixels),
            "; let the processor write them.",
        )
        assert tiny.ask("What?", [SQUARE], **GREEDY).usage.new_tokens  # which are written there

        ids = torch.tensor([[1, 2, 3]])
        cache = DynamicCache()
        whole = model(input_ids=ids, use_cache=False).logits[:, -1]
        model(input_ids=ids[:, :2], past_key_values=cache, use_cache=True)
        said_by(
            lambda: model(input_ids=ids[:, 2:], past_key_values=cache, use_cache=True),
            "position_ids are needed when something is cached already.",
        )
        last = model(
            input_ids=ids[:, 2:], past_key_values=cache, use_cache=True,
            position_ids=torch.tensor([[2]]),
        )  # fmt: skip
        torch.testing.assert_close(last.logits[:, -1], whole)


def test_devices_are_those_that_are_named():
    said = said_by(lambda: device_map_of({"": "gpuu"}), 'such as 0, "cuda:0", "mps" or "cpu"')
    assert "is not a device. A device is a number" in said
    for place in (0, "cuda:0", "mps", "cpu"):
        assert device_map_of({"": place})
    said_by(lambda: device_map_of({"": "disk"}), "disk is not supported; use cpu")


def test_frames_are_given_in_place_of_a_beginning():
    frames = [SQUARE] * 3
    said_by(lambda: to_video(frames, "x", start=1), "; of frames, give those you mean.")
    assert to_video(frames[1:], "x")


def test_a_trace_of_a_model_that_is_gone_is_begun_again():
    pytest.importorskip("nnsight")
    session = Session().load("demo")
    trace = session.trace("What?", max_tokens=1)
    session.unload()
    with pytest.raises(Glm4vError, match=r"Call session\.trace again\."), trace:
        pass
    session.load("demo")
    again = session.trace("What?", max_tokens=1)
    with again:
        found = again.layers[0].output[0].save()
    assert found is not None
    session.unload()


def test_a_setting_in_a_file_of_another_encoding_is_read_once_it_is_in_utf_8(tmp_path, caplog):
    file = tmp_path / "pyproject.toml"
    text = "# Größe\n[tool.glm4v_magic]\nmax_tokens = 7\n"
    file.write_bytes("# Größe\n".encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert settings.read({}, {}, tmp_path).max_tokens != 7
    assert "is not UTF-8, so that nothing in it was read." in caplog.text
    caplog.clear()
    file.write_text(text, encoding="utf-8")
    assert settings.read({}, {}, tmp_path).max_tokens == 7
    assert not caplog.records


def test_a_process_that_has_imported_the_code_keeps_it(tmp_path, capsys):
    """Until it is restarted, as a patch of the code says."""
    for name in ("visual.py", "modeling_chatglm.py"):
        shutil.copy(splits.FOLDER / name, tmp_path / name)
    program = """
import importlib.util, inspect, sys, time
spec = importlib.util.spec_from_file_location("visual", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print("ready", flush=True)
sys.stdin.readline()
kinds = [each for each in vars(module).values() if isinstance(each, type)]
kinds = [each for each in kinds if each.__module__ == "visual"]
code = [getattr(each, "__code__", None) for kind in kinds for each in vars(kind).values()]
print(any("device" in each.co_names for each in code if each))
"""

    def started():
        process = subprocess.Popen(
            [sys.executable, "-c", program, tmp_path / "visual.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        return process

    before = started()
    assert patch.main([str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert (
        "Restart every Python process that has loaded this model: it keeps the code that it has "
        "imported."
    ) in told
    after = started()
    assert [each.communicate("\n")[0] for each in (before, after)] == ["False\n", "True\n"]


def test_a_column_is_named_as_it_is_proposed():
    (row,) = items_of([{"name": "a", "age": 3}], "dogs").records
    said = said_by(lambda: row.nmae, "row has no column nmae. ", kind=AttributeError)
    (name,) = re.findall(r"Did you mean (\w+)\?", said)
    assert getattr(row, name) == "a"
    assert row[name] == "a"


def test_a_patch_needs_what_its_help_says(tmp_path):
    """What `pip install --no-deps . libcst` brings: this package and libcst, and nothing else."""
    for name in ("visual.py", "modeling_chatglm.py"):
        shutil.copy(splits.FOLDER / name, tmp_path / name)
    program = """
import builtins, sys
real = builtins.__import__
known = {*sys.stdlib_module_names, "glm4v_magic", "libcst", "yaml", "_yaml", "typing_extensions"}
def only(name, globals=None, locals=None, fromlist=(), level=0):
    if not level and name.partition(".")[0] not in known:
        raise ModuleNotFoundError(name, name=name)
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = only
from glm4v_magic.remote_code.patch import main
sys.exit(main(sys.argv[1:]))
"""
    helped, done = (
        subprocess.run(
            [sys.executable, "-c", program, word], capture_output=True, text=True, timeout=100
        )
        for word in ("--help", str(tmp_path))
    )
    assert "In the folder of this repository: pip install --no-deps . libcst" in helped.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert "Restart every Python process" in done.stdout
    assert (tmp_path / "visual.py.orig").is_file()


# Cells

CELLS = {
    "{} is a command for one line: %glm4v {}.": ("%%glm4v chats\nWhat?", "%glm4v chats"),
    "--compare: {} is not a setting, such as temperature=1.": (
        "%%glm4v cat --compare 'demo x,demo' --max-tokens 2\nWhat?",
        "%%glm4v cat --compare 'demo temperature=1,demo' --max-tokens 2\nWhat?"),
    "--choices {} is neither a variable nor a list such as yes,no.": (
        "%%glm4v cat --choices label --preview\nWhat?",
        "%%glm4v cat --choices yes,no --preview\nWhat?"),
}  # fmt: skip


@pytest.mark.parametrize("advice", CELLS)
def test_what_a_line_says_is_typed(run, shell, advice):
    shell.user_ns["cat"] = Image.new("RGB", (56, 56))
    bad, good = CELLS[advice]
    said = run(bad, fails=True)
    assert all(part in said for part in advice.split("{}")), said
    run(good)


def test_chats_are_begun_gone_on_with_and_forgotten(run, shell, tmp_path):
    run("%glm4v load demo")
    run("%glm4v reset --all")
    ask_it = "--max-tokens 2 --temperature 0\nWhat?"
    assert "There is no chat yet: a cell with --chat NAME begins one." in run("%glm4v chats")
    run(f"%%glm4v --chat cats {ask_it}")
    assert "cats" in run("%glm4v chats")
    run("%glm4v export cats cats.json")
    run("%glm4v reset cats")
    assert "cats is there; --continue goes on with it." in run("%glm4v import cats.json")
    run(f"%%glm4v --continue -o more {ask_it}")
    session = shell.magics_manager.registry["Glm4vMagics"].context.session
    assert len(session.conversation("cats").messages) == 4
    said = run("%glm4v reset all")
    assert "There was no chat all. To forget all of them: %glm4v reset --all." in said
    (line,) = re.findall(r"all of them: (.*?)\.\s", said + "\n")
    assert "Forgotten: cats" in run(line)
    assert "There is no chat yet" in run("%glm4v chats")


def test_from_a_folder_that_is_gone_one_goes_to_another(run, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    Image.fromarray(SQUARE).save(tmp_path / "a.png")
    with monkeypatch.context() as moved:
        moved.chdir(gone)
        gone.rmdir()
        said = run("%glm4v preview a.png 'What?'", fails=True)
        assert "The current folder is no longer there. Go to one" in said
        said_by(lambda: resolve_images(["a.png"], {}), "Go to one that is (%cd, os.chdir).")
        os.chdir(tmp_path)
        assert resolve_images(["a.png"], {})
        os.chdir(tmp_path.parent)
        run(f"%cd {tmp_path}")
        assert "a.png" in run("%glm4v preview a.png 'What?'")
        moved.chdir(tmp_path)


# The server


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny.engine) as opened:
        yield opened


def answered(found):
    status, told = found
    assert status == 200, told


def refused_with(found, status, *parts):
    assert found[0] == status
    message = found[1]["error"]["message"]
    assert all(part in message for part in parts), message
    return message


def test_a_request_is_sent_as_it_is_said(server, monkeypatch):
    body = str(question()).replace("'", '"').encode()
    for headers in ({"Content-Type": "text/plain"}, {}):
        refused_with(send(server, "POST", CHAT, body, headers), 415, "Send application/json, not ")
    packed = {**JSON, "Content-Encoding": "gzip"}
    refused_with(
        send(server, "POST", CHAT, body, packed), 415, "Send the body uncompressed, not as"
    )
    refused_with(send(server, "POST", CHAT, b"", JSON), 411, "Send a body, and its Content-Length.")
    monkeypatch.setattr(app, "MOST_BYTES", 2**20)
    long = ask(server, question("What? " * 2**18))
    refused_with(long, 413, "A request may have 1 MiB; send less.")
    refused_with(ask(server, question(audio={})), 400, "this server cannot do that; leave it out")
    with monkeypatch.context() as full:
        full.setattr(worker, "MOST_REQUESTS", 0)
        refused_with(ask(server, question()), 429, "requests wait already. Ask again later.")
    _, told = send(server, "GET", "/openapi.json")
    described = told["paths"][CHAT]["post"]["responses"]["429"]["description"]
    assert described == "Too many requests wait; ask again later."
    answered(send(server, "POST", CHAT, body, JSON))


def test_a_request_that_is_too_slow_is_sent_in_time(server, monkeypatch):
    monkeypatch.setattr(app, "BODY_SECONDS", 0.3)
    body = str(question()).replace("'", '"')
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    for sent, status in ((body[:9], 408), (body, 200)):
        with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as client:
            client.sendall((head + sent).encode())
            said = client.makefile("rb").read().decode()
        assert said.startswith(f"HTTP/1.1 {status}")
        slow = "The request came too slowly: send it within 0.3 s, or 64 KiB per second."
        assert (slow in said) == (status == 408)


def test_with_a_key_not_everybody_may_ask(monkeypatch, capsys, tiny):
    key = "GLM4V_API_KEY"
    told = f"Whoever reaches this port may ask; set {key} to a key to prevent that."
    monkeypatch.setattr(Server, "serve", lambda self: None)
    words = [str(golden.CHECKPOINT), "--port", "0", "--host", "0.0.0.0"]
    monkeypatch.delenv(key, raising=False)
    assert command.main(words) == 0
    assert told in capsys.readouterr().err
    monkeypatch.setenv(key, "sk-mine")
    assert command.main(words) == 0
    assert told not in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv(key, "sk-mine")
    with serving(tiny.engine) as server:
        assert ask(server, question())[0] == 401
        answered(ask(server, question(), Authorization="Bearer sk-mine"))


@pytest.mark.parametrize("package", ["prometheus_client", "starlette", "uvicorn"])
def test_serving_works_with_what_is_to_be_installed(package):
    """The extra names each of them; a module that is not there stands for what is not installed."""
    from importlib.metadata import requires

    script = f"""
import runpy, sys
sys.modules.update({{"{package}": None}} if sys.argv[1] == "without" else {{}})
sys.argv = ["server", "--help"]
runpy.run_module("glm4v_magic.server", run_name="__main__", alter_sys=True)
"""
    told = {}
    for case in ("without", "with"):
        told[case] = subprocess.run(
            [sys.executable, "-c", script, case], capture_output=True, text=True, timeout=120
        )
    assert told["without"].stderr == (
        f"Serving needs the package {package}, which is not installed. "
        "Install it with: pip install 'glm4v_magic[server]'\n"
    )
    assert (told["with"].returncode, told["with"].stderr) == (0, "")
    names = {each.lower().replace("-", "_") for each in map(str, requires("glm4v_magic") or ())}
    extra = {each for each in names if "extra" in each and "server" in each}
    assert any(each.startswith(package) for each in extra)


# The lists.

BLOCK = "virtual_gpus/test_virtual_gpus_advice.py::test_what_is_said_can_be_done_within_the_block"
HERE = "project/test_advice_in_passing.py::"
FOLLOWED = "project/test_advice_followed.py::"
ELSEWHERE = "project/test_advice_elsewhere.py::"
SERVED = "notebook/test_serve_command.py::"
SENT = f"{HERE}test_a_request_is_sent_as_it_is_said"
TYPED = f"{HERE}test_what_a_line_says_is_typed"
IN_ERRORS_OF_PYTHON = {
    **dict.fromkeys((
        "A parameter was moved since this was computed: gradients of it are computed before `to()` "
        "or `cuda()`, or of an answer of the moved model on the CPU.",
        "A tensor on {} has no memory that another library could read. Use Tensor.cpu() to copy "
        "the tensor to host memory first.",
        "All tensors must be on devices[0]: {}",
        "Both events must be created with argument 'enable_timing=True' before calculating "
        "elapsed time.",
        "Both events must be recorded before calculating elapsed time.",
        "Could not run '{}' with arguments from the 'CUDA' backend: it exists for the CPU alone "
        "({})",
        "Expected a '{}' device type for generator but found '{}'",
        "Invalid fraction value: {}. Allowed range: 0~1",
        "Invalid type for fraction argument, must be `float`",
        "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol "
        "at the moment.",
        "Virtual GPUs cannot make a lazy module, whose weights have no shape yet: make it on the "
        'CPU, and move it with .to("cuda").',
        "Virtual GPUs compute no gradients, in forward mode neither: run it on the CPU.",
        "Virtual GPUs compute no gradients: run backward() on the CPU, and what needs no gradients "
        "under torch.no_grad() here.",
        "Virtual GPUs do not run {}: it takes functions as its arguments. Instead of "
        'flex_attention use scaled_dot_product_attention ("sdpa" in transformers).',
        "Virtual GPUs end with their process: hand another one the tensor.cpu().",
        "Virtual GPUs have no nested tensors with layout=torch.jagged: pad the rows to one length, "
        "with torch.nn.utils.rnn.pad_sequence, or take layout=torch.strided.",
        "Virtual GPUs have no tensors of layout {}: make it dense first, with .to_dense() ({}).",
        "Virtual GPUs have no torch.cuda.set_sync_debug_mode but the default: work is done when it "
        "is called, and nothing waits.",
        "Virtual GPUs have streams on cuda:k alone, and none on {}",
        "can't convert {} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
        "memory first.",
        "cannot pin '{}' only dense CPU tensors can be pinned",
    ), BLOCK),
    "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must "
    "use the 'spawn' start method; virtual GPUs are made there by a block of its own.":
        "virtual_gpus/test_virtual_gpus_advice.py::"
        "test_another_process_is_spawned_and_has_a_block_of_its_own",
    "torch.export does not see virtual GPUs: export the model on the CPU, before or after their "
    "block.":
        "virtual_gpus/test_virtual_gpus_advice.py::"
        "test_a_model_is_exported_before_or_after_the_block",
    "Images need input_ids, which tell where they stand.":
        f"{HERE}test_a_model_is_given_what_its_processor_writes",
    "The pixels are of {} with {} visual tokens each, but the ids hold {} ids for images; let the "
    "processor write them.":
        f"{HERE}test_a_model_is_given_what_its_processor_writes",
    "position_ids are needed when something is cached already.":
        f"{HERE}test_a_model_is_given_what_its_processor_writes",
    "disk is not supported; use cpu": f"{HERE}test_devices_are_those_that_are_named",
    '{} is not a device. A device is a number such as 0, "cuda:0", "mps" or "cpu"':
        f"{HERE}test_devices_are_those_that_are_named",
    "The current folder is no longer there. Go to one: %cd FOLDER":
        f"{HERE}test_from_a_folder_that_is_gone_one_goes_to_another",
    "glm4v_magic was not loaded. Put this right (%env NAME= unsets a variable), then %load_ext "
    "glm4v_magic again.":
        "notebook/test_settings.py::test_a_bad_environment_stops_the_extension_in_one_line",
    "%s is not UTF-8, so that nothing in it was read.":
        f"{HERE}test_a_setting_in_a_file_of_another_encoding_is_read_once_it_is_in_utf_8",
    "No font that was found here has {}: written as code points. A font such as Noto Sans CJK is "
    "used once it is installed.":
        "images/test_fonts.py::test_a_font_such_as_noto_sans_cjk_is_used_once_it_is_installed",
    "No more connections can be accepted: %s. Those that wait are tried again each second; a "
    "higher limit (ulimit -n) helps.":
        "server/test_command.py::test_with_a_higher_limit_those_that_wait_are_answered",
    "row has no column {}. {}":
        f"{HERE}test_a_column_is_named_as_it_is_proposed",
}  # fmt: skip
"""Errors and warnings of Python's own kinds, and lines of logs, that advise something."""

NOTHING_TO_DO = {
    " Also on this GPU: {}.", " Other programs and the driver hold {} GiB of it.",
    '"{}" not implemented for \'{}\'', "%s It is asked again in %.0f s.", "%s is lost%s.",
    "%s is there, but has said nothing for %.3g s; it is waited for.", ": {} were asked for",
    ": {} were asked for and {} are free", "A request failed.",
    "An answer failed.",
    "Attempted to call `variable.set_data(tensor)`, but `variable` and `tensor` have incompatible "
    "tensor type.",
    "Backend doesn't support getting device capabilities.",
    "CUDA error: invalid device ordinal: there is no cuda:{}",
    "CUDA error: invalid device ordinal: there is no {}",
    "CUDA out of memory. Tried to allocate {}. GPU {} has a total capacity of {} of which {} is "
    "free. Of the allocated memory {} is allocated by PyTorch, and 0 bytes is reserved by PyTorch "
    "but unallocated.{}",
    "Invalid device id", "Nothing was reloaded; %glm4v works as before.",
    "Ray was shut down, and all replicas of %s with it.",
    "Stopping: Ray is being ended, which takes some seconds.",
    "The model does not keep to %s of the schema while it writes; a session checks the complete "
    "answer for that.",
    "The model does not keep to %s of the schema, and nobody checks it.",
    "Virtual GPUs cannot run '{}', which is not made for the CPU ({})",
    "Virtual GPUs have no torch.accelerator.Graph: nothing is launched that a CUDA graph could "
    "record.",
    "Virtual GPUs have no torch.cuda.{}: {}.", "an answer has no {}",
    "broken data in a JPEG 2000 file", "broken header of a JPEG 2000 file",
    "failed to decode a frame", "failed to decode the pixels of a WebP file",
    "hidden_size must be a multiple of num_heads", "hidden_size {} has no {} equal heads",
    "image_size must be an even multiple of patch_size", "in {}, {}",
    "it has a form with unknown options", "it has a thinking, but is not an answer",
    "it has no form of an answer: {}", "it has tags around boxes, but is not an answer",
    "it has tokens that are not in its text", "it holds half a character, {}", "it is not base64",
    "it should be a string", "it should be a whole number",
    "its text is not what it is without the tags around boxes",
    "min_image_tokens {} is more than max_image_tokens {}", "module {} has no attribute {}",
    "more images are before its videos than it has",
    "num_attention_heads must be a multiple of multi_query_group_num",
    "num_experts_per_tok {} is more than the {} experts",
    "num_positions must be {}, one per patch and one for the class token",
    "out_hidden_size {} is not hidden_size {} of the text part",
    "the file cannot be opened again", "the load was given up",
    "topk_group {} is more than the {} groups", "values are missing in a JPEG 2000 file",
    "{} attention heads have no {} equal groups", "{} does not name every layer",
    "{} experts have no {} equal groups of two and more", "{} is not JSON", "{} is not a number",
    "{} is not the name of a module", "{} is {}, but must not be negative",
    "{} ran out of memory {}", "{} shares {} angles, but a head has {}",
}  # fmt: skip
"""Those that say how it is: a fault in a file, what PyTorch says of CUDA, what goes on."""

IN_PASSING = {
    "A request may have {}; send less.": SENT,
    "Send a body, and its Content-Length.": SENT,
    "Send application/json, not {}.": SENT,
    "Send the body uncompressed, not as {}.": SENT,
    "this server cannot do that; leave it out": SENT,
    "The request came too slowly: send it within {} s, or {} KiB per second.":
        f"{HERE}test_a_request_that_is_too_slow_is_sent_in_time",
    "Whoever reaches this port may ask; set {} to a key to prevent that.":
        f"{HERE}test_with_a_key_not_everybody_may_ask",
    "Serving needs the package {}, which is not installed. Install it with: pip install "
    "'glm4v_magic[server]'":
        f"{HERE}test_serving_works_with_what_is_to_be_installed",
    "{} is served at {}. Ctrl-C ends it.":
        "server/test_command.py::test_ctrl_c_ends_it_with_an_answer_half_written",
    "Too many requests wait; ask again later.":
        SENT,
    "Call session.trace again.":
        f"{HERE}test_a_trace_of_a_model_that_is_gone_is_begun_again",
    "Only a clip has a beginning and an end; of frames, give those you mean.":
        f"{HERE}test_frames_are_given_in_place_of_a_beginning",
    "{} is one image; put it into a list.":
        f"{FOLLOWED}test_what_is_advised_before_the_end_of_a_message",
    "{} cannot be compared: give from 2 to {} models or settings.":
        f"{FOLLOWED}test_from_two_settings_on_are_compared",
    "Go to one that is (%cd, os.chdir).":
        f"{HERE}test_from_a_folder_that_is_gone_one_goes_to_another",
    "Put it into a variable, and give its name.":
        "notebook/test_as_people_type.py::"
        "test_the_variable_that_is_advised_in_place_of_python_does_it",
    "Restart every Python process that has loaded this model: it keeps ":
        f"{HERE}test_a_process_that_has_imported_the_code_keeps_it",
    "The same line starts it again; %glm4v load MODEL takes another model.":
        f"{SERVED}test_our_own_server_for_real",
    "{}, {}; the %glm4v serve line starts it again": f"{SERVED}test_our_own_server_for_real",
    "{} at {} goes on; %glm4v unload ends it.":
        f"{SERVED}test_a_started_server_is_asked_and_ended",
    "There is no chat yet: a cell with --chat NAME begins one.":
        f"{HERE}test_chats_are_begun_gone_on_with_and_forgotten",
    "To forget all of them: %glm4v reset --all.":
        f"{HERE}test_chats_are_begun_gone_on_with_and_forgotten",
    "{} is there; --continue goes on with it.":
        f"{HERE}test_chats_are_begun_gone_on_with_and_forgotten",
    "{} is a command for one line: %glm4v {}.": TYPED,
    "--compare: {} is not a setting, such as temperature=1.": TYPED,
    "--choices {} is neither a variable nor a list such as yes,no.": TYPED,
    "run the cell {} to go on":
        "notebook/test_over.py::test_an_interrupt_keeps_rows_and_the_cell_goes_on",
    "without --fresh":
        "notebook/test_over.py::test_an_interrupt_keeps_rows_and_the_cell_goes_on",
    "take back: {}": "notebook/test_widgets.py::test_a_pin_is_taken_back_by_its_button",
    "load the model again":
        "engines/test_replicas.py::test_when_all_are_killed_it_is_said_and_a_load_helps",
    "That code runs with transformers 4.42 to 4.48. There, this program needs nothing but Python "
    "3.11\nand libcst. In the folder of this repository: pip install --no-deps . libcst\n\nexit "
    "status: 0 done, or nothing to do; 1 the folder or a copy cannot be patched; 2 wrong "
    "command\nline": f"{HERE}test_a_patch_needs_what_its_help_says",
}  # fmt: skip
"""Other texts that advise something."""

NAMED_ALONE = {
    " Asking again failed: {}", " {} was released to make room; the next question loads it again.",
    "%glm4v [IMAGE ...] [options]    with the question below, or a command: %glm4v ...",
    "%glm4v has no command {}.", "%glm4v needs a command before its options.",
    "%glm4v reset takes a NAME or --all, not both.", "%glm4v {} did not finish.",
    "%glm4v {} needs a question in {} behind the images.",
    "--compare names nothing between two commas.",
    "--compare names {} alone, and there is no such variable.",
    "--compare: there is no setting {}.",
    "--compare: {} cannot be read: No closing quotation.",
    "--host {} is not the name or address of a computer.",
    "--machines shows a table of common machines, so {} has no meaning.",
    "--map {} is neither a variable nor a file that is here.",
    "--map {} is not here, so that the model it is for is not known.",
    "--out {} is not the name of a variable.",
    "--out {} would replace a name that the notebook itself needs.",
    "--port 0 is not a port that can be asked.", "--preview does not go with --compare.",
    "--schema {}", "--{} is about --evaluate, and there is no --evaluate.",
    "--{} is about the rows of --over, and there is no --over.", "Describe a model.",
    "Edit the code in a checkpoint folder of GLM-4V-9B (visual.py and modeling_chatglm.py), "
    'CogVLM2 or\nCogAgent (visual.py) so that no split of the model over GPUs ends in "Expected '
    "all tensors to be on\nthe same device\", and transformers' copies of it, which are what runs. "
    "The diff is shown, the\noriginals are kept as *.orig, and running it again changes nothing.",
    "Empty answer: {}.", "LOAD REPORT", "List the model.",
    "That is not right: {}. Answer again, {}.",
    "There is a question in the cell, and another in --file.",
    "There is no question in this chat to ask again.", "free space not known",
    "keep is {} GiB{}, but {} room for {} GiB, for lack of memory on {}.",
    "python -m glm4v_magic.remote_code.patch", "python -m glm4v_magic.server", "read as 0 to 255",
    "read as {}-bit", "vLLM has --quantization bitsandbytes until its version 0.27.",
    "{} Asking again failed:", "{} at {}, started by %glm4v serve, {}.",
    "{} describes an adapter whose training began in a way that cannot be done again here, "
    "init_lora_weights {}.",
    "{} does not go with --compare.",
    "{} does not go with --over. Each row is a fresh question of its own.",
    "{} is a video, and so are rows of --over; a question has one.",
    "{} outside of the image or empty left out", "{}, crop {}",
}  # fmt: skip
"""Texts with the name of a command or option, or a word that hints begin with, and no advice."""


IN_VIEWS = {
    "This page plans only when it comes from a web server: python -m http.server is enough.":
        "project/test_docs.py::"
        "test_a_page_from_a_file_says_what_is_enough_and_that_is_enough",
    "the plan as JSON, for --map":
        "notebook/test_widgets.py::"
        "test_the_plan_of_the_tool_is_taken_as_a_line_and_as_json_for_map",
}  # fmt: skip
"""Advice in scripts of the pages and in templates of views."""

HEADINGS = {"read after"}


def test_what_pages_and_views_tell_to_do_is_followed():
    found = in_views(ROOT / "docs/js") | in_views(PACKAGE / "notebook/render/templates")
    assert found - IN_VIEWS.keys() - HEADINGS == set(), "new: no test follows it"
    assert HEADINGS | IN_VIEWS.keys() <= found, "nobody says it any more"


def test_every_error_of_python_and_line_of_a_log_is_followed_or_advises_nothing():
    found = in_errors_of_python()
    assert found - IN_ERRORS_OF_PYTHON.keys() - NOTHING_TO_DO == set(), "new: no test follows it"
    assert NOTHING_TO_DO | IN_ERRORS_OF_PYTHON.keys() <= found, "nobody says it any more"


def test_whatever_else_tells_to_do_something_is_followed_or_advises_nothing():
    found = in_passing()
    assert found - IN_PASSING.keys() - NAMED_ALONE == set(), "new: no test follows it"
    assert NAMED_ALONE | IN_PASSING.keys() <= found, "nobody says it any more"


@pytest.mark.parametrize("advice", [*IN_ERRORS_OF_PYTHON, *IN_PASSING, *IN_VIEWS])
def test_the_tests_that_are_named_hold_what_they_follow(advice):
    test = {**IN_ERRORS_OF_PYTHON, **IN_PASSING, **IN_VIEWS}[advice]
    assert test_advice.is_taken_in(advice, test)
