"""``%glm4v serve``: a stand-in for vLLM that behaves like it, and our own server."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import signal
import socket
import stat
import sys
import time

import psutil
import pytest
import torch
from scripted_server import MODELS, models, scripted_server

from glm4v_magic.checkpoints.places import find_place
from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.notebook.engine_commands import EngineCommand
from glm4v_magic.notebook.launched import LaunchedServer
from glm4v_magic.planning.files import read_given

STANDIN = """#!{python}
import json, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
print("INFO 01-01 00:00:00 api_server: args:", " ".join(sys.argv[1:]), flush=True)
if "--revision" in sys.argv:
    print("ValueError: no such revision \\x1b[31m", flush=True)
    sys.exit(3)
time.sleep(0.5)
print("Loading safetensors checkpoint shards: 100%", flush=True)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({{"object": "list", "data": [{{"id": sys.argv[2]}}]}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
port = int(sys.argv[sys.argv.index("--port") + 1])
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


OTHERS: set[psutil.Process] = set()


@pytest.fixture(scope="module", autouse=True)
def _others():
    """Processes of other tests, such as a JupyterLab."""
    OTHERS.update(psutil.Process().children())


def started() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child not in OTHERS]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """A program named vllm on the PATH."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "vllm"
    program.write_text(STANDIN.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_print_needs_neither_engine_nor_gpus(run):
    line = "%glm4v serve GLM-4.1V-9B-Thinking --gpus 2x24GiB --engine vllm --print"
    assert "vllm serve zai-org/GLM-4.1V-9B-Thinking" in run(line)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "GLM-4.1V-9B-Thinking --engine sglang --gpus 1x80GiB",
            "--model-path zai-org/GLM-4.1V-9B-Thinking ",
        ),
        ("GLM-4V-9B --engine vllm --gpus 2x24GiB", "vllm serve zai-org/glm-4v-9b "),
        ("demo --engine vllm --gpus 1x8GiB", f"vllm serve {find_place('demo').folders[0]} "),
        (
            "GLM-4V-9B --engine vllm --gpus 2x24GiB --quantize 4bit",
            "vLLM has --quantization bitsandbytes until its version 0.27.",
        ),
        (  # whose configuration is not here
            "zai-org/GLM-4.5V-FP8 --engine vllm --gpus 4x80GiB",
            "CUDA_VISIBLE_DEVICES=0,1,2,3 vllm serve zai-org/GLM-4.5V-FP8 --host 127.0.0.1 "
            "--port 8000 --tensor-parallel-size 4 --limit",
        ),
        ("GLM-4.6V-FP8 --engine sglang --gpus 2xA100-80GB --context 8192", " --tp-size 2 "),
        ("GLM-4V-9B --engine own", "python -m glm4v_magic.server GLM-4V-9B"),
        ("GLM-4V-9B --engine own --port 80", "--port 80"),
    ],
)
def test_print_says_what_works_on_another_machine(run, line, said):
    assert said in f" {run(f'%glm4v serve {line} --print')}"


def test_print_refuses_what_our_own_server_would(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("%glm4v plan GLM-4V-9B --gpus 4x16GiB --save plan.json")
    for line, said in (
        ("GLM-4.6V-Flash --gpus 1x8GiB", "GLM-4.6V-Flash does not fit on"),
        ("demo --map plan.json", "The plan is of another model than demo: it says GLM-4V-9B."),
        ("GLM-4V-9B --map plan.json --gpus 1x16GiB", "GPU"),
        ("--map plan.json --context 512", "--context is 512, but the plan was made with 8192."),
        ("--map plan.json --batch 2", "--batch is 2, but the plan was made with 1."),
        ("--map plan.json --images 0", "--images is 0, but the plan was made with 1."),
        ("--map plan.json --offload", "--offload is on, but the plan was made without."),
        ("--map plan.json --image-size 56", "--image-size is 56, but the plan was made without."),
        (
            "--map plan.json --objective fastest",
            "--objective is fastest, but the plan was made with headroom.",
        ),
        ("--map plan.json --replicas 2", "A device map does not go with replicas"),
        ("GLM-4V-9B --map there.json --replicas 2", "A device map does not go with replicas"),
        ("GLM-4V-9B --gpus 1x40GiB --replicas 2", "--gpus does not go with replicas"),
    ):
        assert said in run(f"%glm4v serve {line} --engine own --print", fails=True)
    for line in (
        "GLM-4V-9B --map plan.json",
        "--map plan.json --context 8192 --images 1 --objective headroom",
        "GLM-4V-9B --gpus cpu --replicas 2",
        "GLM-4.6V-Flash --gpus 2x24GiB",
        "someone/else --gpus 1x8GiB",  # of the other machine
        "GLM-4V-9B --map there.json --gpus 1x16GiB",
    ):
        assert "glm4v_magic.server" in run(f"%glm4v serve {line} --engine own --print")


def test_a_map_that_is_nowhere_is_said_before_a_server_starts(run, shell, tmp_path):
    shell.user_ns["my_map"] = {"": "cpu"}
    for line in ("demo --map my_mapp", "demo --map my_mapp --print"):
        screen = run(f"%glm4v serve {line}", fails=True)
        assert screen.strip().endswith(
            "--map my_mapp is neither a variable nor a file that is here. Did you mean my_map?"
        )
    assert "--map '{" in run("%glm4v serve demo --map my_map --print")
    screen = run("%glm4v serve demo --map elsewhere.json", fails=True)
    assert "The line for another machine, where it is, is printed with --print." in screen
    assert "--map elsewhere.json" in run("%glm4v serve demo --map elsewhere.json --print")


def test_a_map_that_leaves_weights_out_is_said_before_a_line_is_printed(run, shell):
    """How many GPUs a server has it alone knows, but not what a map has to say."""
    for places in ({"model.vision": 0}, {"model.vision": 0, "nose": "cuda:7"}):
        shell.user_ns["part"] = places
        screen = run("%glm4v serve demo --map part --print", fails=True)
        assert "no device" in screen or "'nose'" in screen
    shell.user_ns["part"] = {"model": 7, "lm_head": "cuda:2"}
    words = shlex.split(run("%glm4v serve demo --map part --print"))
    assert read_given(words[words.index("--map") + 1]) == {"model": 7, "lm_head": 2}


def test_a_map_may_name_the_gpu_of_a_mac(run, shell):
    shell.user_ns["mac"] = {"model": "mps", "lm_head": "cpu"}
    shell.user_ns["device"] = torch.device("mps")
    for typed, read in (
        ("mps", {"": "mps"}),
        ("{{device}}", {"": "mps"}),
        ("mac", {"model": "mps", "lm_head": "cpu"}),
    ):
        words = shlex.split(run(f"%glm4v serve demo --map {typed} --print"))
        assert read_given(words[words.index("--map") + 1]) == read
    shell.user_ns["mac"] = {"model": "mps", "lm_head": 1}  # of no machine
    screen = run("%glm4v serve demo --map mac --print", fails=True)
    assert "The device map puts 'lm_head' on GPU 1, but there is GPU 0 only." in screen


def test_a_map_may_be_any_path_in_a_variable(run, shell, tmp_path, monkeypatch):
    class Place:
        def __fspath__(self):
            return "plan.json"

    monkeypatch.chdir(tmp_path)
    shell.user_ns["place"] = Place()
    assert "demo --map plan.json" in run("%glm4v serve demo --map place --print")
    run("%glm4v plan demo-4.6v --gpus 1x1GiB --save plan.json")
    assert "demo-4.6v --map plan.json" in run("%glm4v serve --map place --print")


def test_a_map_or_plan_in_a_variable_reaches_the_server(run, shell, port):
    shell.user_ns["parts"] = {"model": torch.device("cpu"), "lm_head": "cpu"}
    run("made = %glm4v plan demo --gpus 2x1GiB")
    shell.user_ns |= {"empty": {}, "auto": {"": "cpu"}}
    assert "--map auto" in run("%glm4v serve demo --map auto --print")  # a word of --map itself
    assert "--map auto is not here" not in run("%glm4v serve --map auto --print")
    shell.user_ns |= {
        "device": torch.device("cpu"),
        "number": 1,
        "text": "cuda:1",
        "gone": "a.json",
    }
    shell.user_ns |= {"way": "auto", "file": "plan.json", "none": None}
    for name, told in (("device", {"": "cpu"}), ("number", {"": 1}), ("text", {"": 1})):
        words = shlex.split(run(f"%glm4v serve demo --map {name} --print"))
        assert read_given(words[words.index("--map") + 1]) == told
    assert "demo --map auto" in run("%glm4v serve demo --map way --print")
    run("%glm4v plan demo-4.6v --gpus 2x1GiB --save plan.json")
    assert "server demo-4.6v --map plan.json" in run("%glm4v serve --map file --print")
    assert "demo --map a.json" in run("%glm4v serve demo --map gone --print")
    assert "none is a variable. The" in run("%glm4v serve demo --map none --print", fails=True)
    for name in ("gone", "nosuch"):
        screen = run(f"%glm4v serve --map {name} --print", fails=True)
        assert "is not here, so that the model it is for is not known." in screen
    screen = run("%glm4v serve --map nosuch.json --print", fails=True)
    assert "--map nosuch.json is not here, so that the model it is for is not known." in screen
    assert "Name the model: %glm4v serve MODEL --map nosuch.json." in screen
    assert "demo --map nosuch.json" in run("%glm4v serve demo --map nosuch.json --print")
    on_cpu = {"model": "cpu", "lm_head": "cpu"}
    for name, expected in (("parts", on_cpu), ("made", shell.user_ns["made"])):
        words = shlex.split(run(f"%glm4v serve demo --map {name} --print"))
        assert read_given(words[words.index("--map") + 1]) == expected
    assert "The device map is empty" in run("%glm4v serve demo --map empty", fails=True)
    run("%glm4v load demo-4.6v --gpus cpu")
    assert "glm4v_magic.server demo --map" in run("%glm4v serve --map made --print")  # its model
    screen = run(f"%glm4v serve demo --map parts --port {port}")
    assert f"Our server serves demo at http://127.0.0.1:{port}/v1." in screen
    run("%glm4v unload")
    run("%glm4v load demo --gpus cpu")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("glm-4v-9b --gpus 1x40GiB --engine vllm", "vLLM is not installed here. Install it with:"),
        ("GLM-4.6V-Flash --gpus 1x80GiB --engine sglang", "SGLang is not installed here."),
        ("glm-4v-9b --gpus 1x40GiB --engine vllm --keep 1", "--keep is of our own server."),
        ("glm-4v-9b --gpus 1x40GiB --engine vllm --replicas 2", "--replicas is of our own server."),
        ("GLM-4.6V --gpus 8x80GiB --engine sglang --image-size 900", "--image-size is of our own"),
        ("GLM-4.6V --gpus 8x80GiB --engine vllm --pin vision=0", "--pin is of our own server."),
        ("GLM-4.6V --gpus 8x80GiB --engine vllm --split-vision on", "--split-vision is of our own"),
        ("GLM-4.6V --gpus 8x80GiB --engine sglang --reserve 2", "--reserve is of our own server."),
        ("GLM-4.6V --gpus 8x80GiB --engine vllm --max-memory 40", "--max-memory is of our own"),
        ("http://127.0.0.1:1/v1", "is the address of a server, which runs already. To ask it:"),
        ("demo --port 70000", "must be a whole number from 0 to 65535"),
        ("demo --host 999.1.1.1", "--host '999.1.1.1' is not the name or address of a computer."),
        ("demo --host http://a.b", "--host 'http://a.b' is not the name or address"),
        ("demo --host me@there", "--host 'me@there' is not the name or address"),
        ("demo --host ''", "--host is '', but must be a name or an address."),
        ("''", "The model has an empty name."),
        ("demo --engine tgi", "--engine is 'tgi', but must be vllm, sglang or own."),
    ],
)
def test_refusals(run, line, said, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    screen = run(f"%glm4v serve {line}", fails=True)
    assert said in screen
    assert "Traceback" not in screen


def test_a_started_server_is_asked_and_ended(run, shell, vllm, port):
    screen = run(f"%glm4v serve glm-4v-9b --engine vllm --gpus 2x24GiB --port {port}")
    assert "api_server: args: serve zai-org/glm-4v-9b" in screen
    assert "Loading safetensors checkpoint shards" in screen
    assert f"vLLM serves zai-org/glm-4v-9b at http://127.0.0.1:{port}/v1." in screen
    assert f"http://127.0.0.1:{port}/v1" in run("%glm4v status")
    screen = run("%glm4v load demo")
    assert f"vLLM at http://127.0.0.1:{port}/v1 goes on; %glm4v unload ends it." in screen
    assert "goes on" not in run(f"%glm4v load http://127.0.0.1:{port}/v1")
    run("%glm4v load demo")
    screen = run("%glm4v unload")
    assert f"demo was unloaded. vLLM at http://127.0.0.1:{port}/v1 was ended." in screen
    assert "goes on" not in run("%glm4v load demo")
    run("%glm4v unload")
    with socket.socket() as again:
        assert again.connect_ex(("127.0.0.1", port)) != 0


def test_a_vllm_that_does_not_quantise(run, vllm, port, monkeypatch):
    real, there = importlib.metadata.version, {"vllm": "0.33.0"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: there.get(name) or real(name))
    line = "%glm4v serve glm-4v-9b --engine vllm --gpus 1x40GiB --quantize 4bit"
    screen = run(line, fails=True)
    assert "vLLM 0.33.0 does not quantise to 4 bit as it loads: it has no bitsandbytes." in screen
    assert "Install 'vllm<0.28', leave --quantize out, or take --engine own." in screen
    assert started() == []
    own = "%glm4v serve glm-4v-9b --engine own --gpus 1x40GiB --quantize 4bit --print"
    assert "--quantize 4bit" in run(own)
    run(f"%glm4v serve glm-4v-9b --engine vllm --gpus 1x40GiB --port {port}")
    there["vllm"] = "0.27.1"
    run(f"{line} --port {port}")
    assert len(started()) == 1
    run("%glm4v unload")


def test_a_server_that_ends_before_it_is_ready(run, vllm, port):
    began = time.monotonic()
    screen = run(
        f"%glm4v serve glm-4v-9b --engine vllm --gpus 1x40GiB --revision x --port {port}",
        fails=True,
    )
    ended = "vLLM ended with status 3 before it was ready: ValueError: no such revision"
    assert ended in screen
    log, _, advice = screen.rpartition(ended)
    assert "no such revision" in log  # of the server itself
    assert "Its log is above." in advice
    assert "\x1b[31m" not in screen
    assert "Traceback" not in screen
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("stays", [0, 8])  # the second keeps the log open
def test_what_a_server_said_last_is_in_its_log(port, stays):
    # Written by a process of another session, after the server itself has ended.
    server = f"""
import os, time
if os.fork():
    os._exit(3)
os.setsid()
time.sleep(0.5)
print("Killed by the kernel", flush=True)
time.sleep({stays})
"""
    words = (sys.executable, "-c", server)
    launched = LaunchedServer(EngineCommand(words, {}), "A server", f"http://127.0.0.1:{port}/v1")
    launched.start()
    log = []
    with pytest.raises(EngineError, match="ended with status 3 before it was ready: Killed by"):
        log.extend(launched.wait())
    assert "Killed by the kernel" in log


def test_a_port_that_is_taken(run, port):
    before = run("%glm4v status")
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        screen = run(f"%glm4v serve demo --engine own --port {port}", fails=True)
    assert f"Port {port} of 127.0.0.1 is taken by another program." in screen
    told = f"Choose another (--port). To ask what is there: %glm4v load http://127.0.0.1:{port}/v1."
    assert told in screen
    assert run("%glm4v status") == before
    assert str(port + 1) in run(f"%glm4v serve demo --engine own --port {port + 1} --print")
    with scripted_server() as there:
        there.answer(MODELS, models("m"))
        taken = there.url.removesuffix("/v1").rpartition(":")[2]
        line = f"%glm4v serve demo --engine own --port {taken}"
        advice = run(line, fails=True).partition("To ask what is there: ")[2]
        assert "Connected to" in run(advice.strip().removesuffix("."))
        run("%glm4v unload")


def test_a_server_that_runs_already_is_asked(run):
    with scripted_server() as there:
        there.answer(MODELS, models("m"))
        said = run(f"%glm4v serve {there.url}", fails=True)
        (advised,) = re.findall(r"To ask it: (%glm4v load \S+)\.", said)
        assert "Connected to" in run(advised)
        run("%glm4v unload")


class TestInterrupt:
    """An interrupt of ``serve``, sent at a moment of its own."""

    at_a_fork = False

    @staticmethod
    def forked():
        if TestInterrupt.at_a_fork:
            TestInterrupt.at_a_fork = False
            os.kill(os.getpid(), signal.SIGINT)

    def test_as_the_process_forks(self, run, vllm, port):
        TestInterrupt.at_a_fork = True
        line = f"%glm4v serve glm-4v-9b --engine vllm --gpus 1x40GiB --port {port}"
        screen = run(line, fails=True)
        assert "Stopped: %glm4v serve did not finish." in screen
        assert started() == []

    def test_the_server_before_has_ended(self, run, vllm, port):
        line = f"%glm4v serve glm-4v-9b --engine vllm --port {port} --gpus"
        run(f"{line} 1x40GiB")
        TestInterrupt.at_a_fork = True
        screen = run(f"{line} 1x40GiB --context 2048", fails=True)
        url = f"http://127.0.0.1:{port}/v1"
        assert f"vLLM at {url} was ended to make room." in screen
        assert "Stopped" in screen
        gone = f"{url}, was ended; the %glm4v serve line starts it again"
        assert gone in run("%glm4v status")
        gone = f"vLLM at {url}, started by %glm4v serve, was ended. The same line starts it again"
        assert gone in run('%glm4v ask "Hello?"', fails=True)


def test_a_server_that_does_not_start_leaves_the_one_before(run, vllm, port, monkeypatch):
    line = "%glm4v serve glm-4v-9b --engine vllm --gpus 1x40GiB --port"
    run(f"{line} {port}")
    assert "ended with status 3" in run(f"{line} {free_port()} --revision x", fails=True)
    assert f"http://127.0.0.1:{port}/v1" in run("%glm4v status")
    assert len(started()) == 1
    module = sys.modules["glm4v_magic.notebook.commands.serve"]
    # GPUs, which the one before may fill.
    monkeypatch.setattr(module, "gpus_here", lambda: parse_gpus("1x40GiB"))
    screen = run(f"{line} {free_port()} --revision x", fails=True)
    assert f"vLLM at http://127.0.0.1:{port}/v1 was ended to make room." in screen
    assert "was ended; the %glm4v serve line" in run("%glm4v status")


os.register_at_fork(after_in_parent=TestInterrupt.forked)


def test_our_own_server_for_real(run, shell, port):
    url = f"http://127.0.0.1:{port}/v1"
    again = f"%glm4v serve demo --engine own --port {port}"
    assert f"Our server serves demo at {url}." in run(again)
    ask = '%glm4v ask "Hello?" --max-tokens 4 --temperature 0'
    assert run(ask).strip()

    (own,) = started()
    own.kill()
    os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
    gone = f"Our server at {url}, started by %glm4v serve, ended by signal 9. The same line starts"
    assert gone in run(ask, fails=True)
    assert f"{url}, ended by signal 9; the %glm4v serve line starts it again" in run(
        "%glm4v status"
    )
    assert f"Our server serves demo at {url}." in run(again)  # and so it does
    (own,) = started()
    assert f"Our server serves demo at {url}." in run(again)
    assert [own] == started()
    assert run(ask).strip()
    # Another model behind the same address.
    screen = run(f"%glm4v serve demo-4.6v --engine own --port {port}")
    assert f"Our server at {url} was ended.\nOur server serves demo-4.6v at {url}." in screen
    assert run(ask).strip()

    before, url = url, f"http://[::1]:{port}/v1"  # another place, where nothing is in its way
    screen = run(f"%glm4v serve demo --host ::1 --port {port}")
    assert f"Our server at {before} was ended.\nOur server serves demo at {url}." in screen
    assert run(ask).strip()

    assert "was ended" in run("%glm4v unload")
    assert f"{url}, started by %glm4v serve, was ended. The same line" in run(ask, fails=True)
