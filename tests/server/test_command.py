"""``python -m glm4v_magic.server``, as a user starts it, and cells that ask it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import golden
import httpx
import pytest
from following import follow
from scripted_engine import ScriptedEngine
from served import SECONDS, ask, assert_error, begun, question, send, serving

import glm4v_magic
from glm4v_magic.core.errors import EngineError, GenerationInterrupted, OptionError
from glm4v_magic.core.model import Replica
from glm4v_magic.core.server_address import API_KEY
from glm4v_magic.server import command
from glm4v_magic.server.listening import Server
from glm4v_magic.session.session import Session


class TestCommandLine:
    def test_a_port_in_use(self):
        said = r"Port \d+ of 127.0.0.1 cannot be used: Address already in use"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(OptionError, match=said):
                Server("127.0.0.1", port)

    @pytest.mark.parametrize("host", ["0.0.0.0x", "192.0.2.1", "a\nb"])
    def test_a_host_that_is_not_here(self, host):
        with pytest.raises(OptionError, match="is not an address of this machine") as caught:
            Server(host, 0)
        assert str(caught.value).startswith(" ".join(host.split()))

    @pytest.mark.parametrize("host", ["a\0b", "\udcff", "a" * 5000, "\x1b[2J"])
    def test_a_host_that_is_no_name(self, capsys, host):
        assert command.main(["demo", "--port", "0", "--host", host]) == 1
        said = capsys.readouterr().err
        assert "is not an address of this machine" in said
        assert len(said.splitlines()) == 1
        assert len(said) < 200
        assert not {"\0", "\udcff", "\x1b"} & set(said)

    def test_a_port_that_another_opens_while_the_model_loads(self, monkeypatch, capsys):
        loaded = command.load
        with Server("127.0.0.1", 0) as other:

            def load(*given, **options):
                other.open(session, "demo")
                return session

            session = loaded("demo")
            monkeypatch.setattr(command, "load", load)
            assert command.main(["demo", "--port", str(other.port)]) == 1
            monkeypatch.setattr(command, "load", lambda *_, **__: session)
            opened = []  # another port, and any free one
            monkeypatch.setattr(Server, "serve", lambda server: opened.append(server.port))
            with socket.create_server(("127.0.0.1", 0)) as free:
                another = free.getsockname()[1]
            for port in (another, 0):
                assert command.main(["demo", "--port", str(port)]) == 0
            assert opened[0] == another
            assert opened[1] not in {0, other.port}
        said = capsys.readouterr().err
        assert re.fullmatch(
            rf"Port {other.port} of 127.0.0.1 cannot be used: Address already in use\. "
            r"Choose another with --port; 0 is any free one\.\n",
            said,
        )

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["no-such-folder", "--port", "0"], "There is no checkpoint 'no-such-folder'"),
            (["demo", "--port", "99999"], "--port is 99999, but must be a whole"),
            (["demo", "--port", "0", "--parallel", "0"], "--parallel is 0, but must be a whole"),
            (["demo", "--host", " "], "--host is ' ', but must be a name or an address"),
            (["demo", "--port", "0", "--gpus", "0x4GiB"], "0x4GiB"),
            (["http://127.0.0.1:1/v1"], "is a server"),
            (["demo", "--port", "0", "--map", "no.json"], "no.json cannot be read"),
            (["demo", "--port", "0", "--replicas", "0"], "--replicas is 0, but must be a whole"),
            (["demo", "--port", "0", "--cluster", "here:1"], "--cluster is about replicas"),
            (["demo", "--port", "0", "--map", "7"], "on GPU 7, but there is none"),
            (["demo", "--port", "0", "--reserve", "1e400"], "--reserve is inf"),
            (["demo", "--port", "0", "--pin", "foo=1"], "has no unit 'foo' to pin"),
        ],
    )
    def test_what_it_refuses(self, capsys, words, said):
        assert command.main(words) == 1
        assert said in capsys.readouterr().err

    def test_options_of_the_placement_reach_the_model(self, monkeypatch, capsys):
        served = []
        monkeypatch.setattr(Server, "open", lambda self, *given: served.append(given))
        monkeypatch.setattr(Server, "serve", lambda self: None)
        words = [str(golden.CHECKPOINT), "--port", "0", "--dtype", "bfloat16", "--host", "0.0.0.0"]
        words += ["--parallel", "3"]
        assert command.main(words) == 0
        ((session, name, at_once),) = served
        assert at_once == 3
        assert session.status().info.dtype == "bfloat16"
        assert name == "checkpoint"
        assert "Whoever reaches this port may ask; set GLM4V_API_KEY" in capsys.readouterr().err


class Lost(ScriptedEngine):
    """Replicas of which none is left."""

    def __init__(self):
        super().__init__()
        self.info = replace(self.info, replicas=(Replica(0, "here", lost=True),))

    def stream(self, requests, at_once=None, withdrawn=()):
        raise EngineError("All 1 replica of scripted were lost.", "Load it again.")
        yield


def test_a_server_whose_replicas_are_all_lost_ends_and_can_be_started_again(monkeypatch, capsys):
    monkeypatch.setattr(command, "load", lambda *_, **__: Session(Lost()))
    found, statuses = [], []
    opened = Server.open

    def open_and_tell(server, *given):
        opened(server, *given)
        found.append(server)

    monkeypatch.setattr(Server, "open", open_and_tell)
    words = ["demo", "--port", "0"]
    serving = threading.Thread(target=lambda: statuses.append(command.main(words)))
    serving.start()
    while not found:
        time.sleep(0.01)
    assert_error(ask(found[0], question(model=None)), 500, "All 1 replica of scripted were lost.")
    serving.join(SECONDS)
    assert statuses == [1]
    assert capsys.readouterr().err.endswith(
        "All replicas of demo were lost. Start the server again.\n"
    )
    monkeypatch.setattr(command, "load", lambda *_, **__: Session(ScriptedEngine()))
    serving = threading.Thread(target=lambda: statuses.append(command.main(words)))
    serving.start()
    while len(found) == 1:
        time.sleep(0.01)
    assert ask(found[1], question(model=None))[0] == 200
    found[1].stop()
    serving.join(SECONDS)
    assert statuses == [1, 0]


@pytest.mark.parametrize("package", ["prometheus_client", "starlette", "uvicorn"])
def test_a_package_that_is_not_installed(package):
    script = f"""
import runpy, sys
sys.modules["{package}"] = None
sys.argv = ["server", "demo", "--port", "0"]
runpy.run_module("glm4v_magic.server", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Serving needs the package {package}, which is not installed. "
        "Install it with: pip install 'glm4v_magic[server]'\n"
    )


def test_an_interrupt_while_the_server_is_imported():
    # The signal comes in the middle of the imports, however fast they are.
    script = """
import os, runpy, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "uvicorn":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["server", "demo", "--port", "0"]
runpy.run_module("glm4v_magic.server", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "Stopped.\n")


class Process:
    """The demo model in a process of its own. `log` is what it wrote to its standard error."""

    def __init__(self, log, *options, model="demo"):
        words = ["-W", "error", *options, "-m", "glm4v_magic.server", str(model), "--port", "0"]
        environment = {name: value for name, value in os.environ.items() if name != API_KEY}
        self._log = log
        with log.open("w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                stdout=subprocess.PIPE, stderr=file, text=True, env=environment,
            )  # fmt: skip
        line = self.said = self.process.stdout.readline()
        name = model if model == "demo" else model.name
        found = re.fullmatch(name + r" is served at (http://127\.0\.0\.1:(\d+)/v1)\..*\n", line)
        assert found, self.log
        self.address, self.port = found[1], int(found[2])

    @property
    def log(self):
        return self._log.read_text(encoding="utf-8")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


CUT = """
import importlib.abc, os, sys

class Cut(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "glm4v_magic.server.app":
            sys.meta_path.remove(self)
            from glm4v_magic.engines.local import LocalEngine
            stream = LocalEngine.stream

            def over_a_cable(*given, **options):
                try:
                    open(os.environ["CABLE"]).close()
                except OSError as error:
                    raise RuntimeError("No answer") from error
                return stream(*given, **options)

            LocalEngine.stream = over_a_cable

sys.meta_path.insert(0, Cut())
"""
"""Ends each answer with an error, as long as a file is not there."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    with Process(tmp_path_factory.mktemp("demo") / "log") as process:
        yield process


class TestCells:
    def test_the_same_cell_asks_a_server(self, demo, run, shell, photo):
        address = shell.user_ns["address"] = demo.address
        assert run("%glm4v load {{address}}") == f"Connected to {address}: demo.\n"
        there = run("%%glm4v cat.png -o there --temperature 0\nWhat colour is the background?")
        assert "cat.png, 320 x 240 px · the model sees 112 x 112 px · 18 visual tokens" in there
        assert "18 visual tokens in" in there
        assert "This is the demo model" in there
        held = run("%glm4v memory")
        assert held.startswith(f"demo answers at {address}; no model is loaded here, as of ")
        status = run("%glm4v")
        assert re.search(rf"server +{address}", status)
        assert re.search(r"context +1,024 tokens", status)
        assert "parameters" not in status
        # It is asked again, for it may have been started anew.
        assert run("%glm4v load {{address}}") == f"Connected to {address}: demo.\n"
        assert "is a server: prompt, plan and memory are its own" in run(
            '%glm4v preview cat.png "A?"', fails=True
        )
        said = run("%glm4v unload")
        assert said == f"Disconnected from {address}, which goes on.\n"
        run("%glm4v load demo")
        run("%%glm4v cat.png -o here --temperature 0\nWhat colour is the background?")
        assert shell.user_ns["here"].text == shell.user_ns["there"].text
        run("%glm4v unload")

    def test_options_of_load(self, demo, run):
        address = demo.address
        said = run(f"%glm4v load {address} --served-model demo")
        assert said == f"Connected to {address}: demo.\n"
        said = run(f"%glm4v load {address} --served-model other", fails=True)
        assert f"{address} serves demo, not other. Choose one: --served-model NAME." in said
        run("%%glm4v --max-tokens 1\nWhat?")  # the connection stays
        assert "Only --served-model and --timeout" in run(
            f"%glm4v load {address} --gpus cpu", fails=True
        )
        run("%glm4v unload")


def test_an_interrupt_here_stops_the_model_there(talkative, interrupt):
    session = Session().load(talkative)
    tokens = []
    session.engine.model.lm_head.register_forward_hook(lambda *_: tokens.append(1))
    with serving(session.engine) as server:
        remote = glm4v_magic.load(server.url)
        pieces = []

        def stop_at_third(text):
            pieces.append(text)
            if len(pieces) == 3:
                interrupt()

        with pytest.raises(GenerationInterrupted) as caught:
            follow(remote.stream("What?", max_tokens=4000), text=stop_at_third)
        assert caught.value.answer.text
        # One request at a time: this answer comes when the other has been given up.
        assert remote.ask("What?", max_tokens=3).usage.new_tokens == 3
        assert len(tokens) < 3000  # of 4000
    session.unload()


class TestProcess:
    def test_ctrl_c_ends_it_with_an_answer_half_written(self, demo):
        with begun(demo, question(stream=True, max_tokens=400)) as client:
            assert client.getresponse().readline().startswith(b"data: ")
            demo.process.send_signal(signal.SIGINT)
            assert demo.process.wait(60) == 0
        assert demo.said.endswith(f" is served at {demo.address}. Ctrl-C ends it.\n")
        assert demo.log.splitlines()[-1] == "Stopped."
        assert "Traceback" not in demo.log

    @pytest.mark.skipif(sys.platform != "linux", reason="prlimit is of Linux")
    def test_with_a_higher_limit_those_that_wait_are_answered(self, tmp_path):
        """As its log says; what ulimit -n sets for the next one, prlimit sets for this."""
        import resource  # which Windows has not

        ask_it = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        told = "No more connections can be accepted: Too many open files. Those that wait"
        with Process(tmp_path / "log") as process, contextlib.ExitStack() as stack:
            assert send(process, "GET", "/health")[0] == 200  # it has begun to listen
            number, kind = process.process.pid, resource.RLIMIT_NOFILE
            before, most = resource.prlimit(number, kind)
            opened = len(os.listdir(f"/proc/{number}/fd"))
            resource.prlimit(number, kind, (opened + 2, most))
            clients = [
                stack.enter_context(socket.create_connection(("127.0.0.1", process.port), SECONDS))
                for _ in range(8)
            ]
            end = time.monotonic() + SECONDS
            while told not in process.log and time.monotonic() < end:
                time.sleep(0.05)
            assert f"{told} are tried again each second; a higher limit (ulimit -n) helps." in (
                process.log
            )
            clients[-1].sendall(ask_it)
            clients[-1].settimeout(1.5)
            with pytest.raises(TimeoutError):
                clients[-1].recv(1)
            resource.prlimit(number, kind, (before, most))
            clients[-1].settimeout(SECONDS)
            assert clients[-1].recv(12) == b"HTTP/1.1 200"

    def test_what_is_left_out_of_a_generation_config_is_in_its_log(self, tmp_path):
        folder = tmp_path / "model"
        shutil.copytree(golden.CHECKPOINT, folder)
        (folder / "generation_config.json").write_text('{"num_beams": 4, "eos_token_id": "x"}')
        with Process(tmp_path / "log", model=folder) as process:
            status, _ = ask(process, question())
            assert status == 200
            log = process.log
        assert len(re.findall("num_beams=4, which is left out", log)) == 1
        assert len(re.findall("eos_token_id='x', which is left out", log)) == 1

    def test_the_log_tells_the_cause_of_an_error_and_without_it_answers_come(self, tmp_path):
        cable, sites = tmp_path / "cable", tmp_path / "sites"
        sites.mkdir()
        (sites / "sitecustomize.py").write_text(CUT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(sites), prepend=os.pathsep)
            patch.setenv("CABLE", str(cable))
            server = Process(tmp_path / "log")
        with server:
            session = Session().load(server.address)
            with pytest.raises(EngineError, match=r"No answer\. Its log may tell more\.") as caught:
                session.ask("What?", temperature=0, max_tokens=4)
            assert str(cable) not in str(caught.value)
            cause = re.compile(f"^FileNotFoundError: .*: '{cable}'", re.MULTILINE)

            def told(times):
                """Return how often the cause is logged; it may be once an answer is sent."""
                end = time.monotonic() + SECONDS
                while len(cause.findall(server.log)) < times and time.monotonic() < end:
                    time.sleep(0.05)
                return len(cause.findall(server.log))

            assert told(1) == 1
            asked = {"messages": [{"role": "user", "content": "What?"}], "max_tokens": 4}
            at_once = httpx.post(f"{server.address}/chat/completions", json=asked)
            assert at_once.status_code == 500
            assert told(2) == 2
            cable.write_text("")
            assert session.ask("What?", temperature=0, max_tokens=4).usage.new_tokens

    def test_it_does_not_load_what_a_notebook_needs(self, tmp_path):
        with Process(tmp_path / "log", "-X", "importtime") as process:
            time.sleep(0.1)
            imported = re.findall(r"^import time:.*\| *(\S+)$", process.log, re.MULTILINE)
        assert {"torch", "starlette", "glm4v_magic.server.app"} <= set(imported)
        assert not {"IPython", "ipywidgets", "traitlets", "glm4v_magic.notebook"} & set(imported)
