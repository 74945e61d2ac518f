"""Other people's servers, as they are installed, with tiny models made here.

``make nightly-servers`` runs them, and makes the environments that two of them need: LiteLLM's
packages exclude some of ours, and llama-cpp-python is compiled. `GLM4V_LITELLM` and
`GLM4V_LLAMA_CPP` name the Python of each.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import golden
import httpx
import pytest
import tiny_llava
from PIL import Image
from served import serving

import glm4v_magic
from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.events import Text
from glm4v_magic.core.server_address import API_KEY
from glm4v_magic.session.session import Session

pytestmark = pytest.mark.nightly

SECONDS = 180
KEY = "sk-for-these-tests-and-nothing-else"
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module", autouse=True)
def surroundings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(API_KEY, KEY)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def python_of(name):
    """The Python of another environment."""
    if name not in os.environ:
        pytest.skip(f"{name} is not set; make nightly-servers does")
    return os.environ[name]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@contextlib.contextmanager
def running(words, port, log, health, **variables):
    """A server in a process of its own; gives the URL of its API."""
    with log.open("w") as file:
        process = subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, cwd=log.parent,
            env=os.environ | {name: str(value) for name, value in variables.items()},
            start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + SECONDS
        while not is_there(f"http://127.0.0.1:{port}{health}"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_there(url):
    with contextlib.suppress(httpx.HTTPError):
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.get(url, trust_env=False, headers=headers).status_code == 200
    return False


@contextlib.contextmanager
def asking(url, **options):
    session = glm4v_magic.load(url, **options)
    try:
        yield session
    finally:
        session.unload()


def ask_many(session):
    """Answers to many rows are those to each alone, in order."""
    rows = session.map("What is {{item}}?", [*range(12)], **GREEDY)
    assert [each.error for each in rows] == [None] * 12
    assert rows[7].text == session.ask("What is 7?", **GREEDY).text


class TestTransformers:
    """``transformers serve``, which makes a list of models only from a cache of the hub."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory):
        return tiny_llava.write(tmp_path_factory.mktemp("llava"))

    @pytest.fixture(scope="class")
    @classmethod
    def session(cls, folder):
        port = free_port()
        command = Path(sys.executable).with_name("transformers")
        words = [command, "serve", folder, "--host", "127.0.0.1", "--port", str(port)]
        words += ["--device", "cpu"]
        with (
            running(words, port, folder / "log.txt", "/health") as url,
            asking(url, served_model=str(folder)) as session,
        ):
            yield session

    def test_answers_are_those_of_the_model(self, session, folder):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder)
        photo = Image.linear_gradient("L").convert("RGB")
        for images in ((), (photo,)):
            content = [*({"type": "image", "image": each} for each in images)]
            content.append({"type": "text", "text": "What?"})
            asked = [{"role": "user", "content": content}]
            inputs = processor.apply_chat_template(
                asked, add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors="pt",
            )  # fmt: skip
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)
            count = inputs["input_ids"].shape[1]
            expected = processor.decode(ids[0, count:], skip_special_tokens=True)
            answer = session.ask("What?", images, **GREEDY)
            # Tags of boxes are not part of an answer.
            assert answer.text == re.sub(r"<\|\w+_of_box\|>", "", expected).strip()
            assert answer.finish_reason == "length"
            assert (answer.usage.prompt_tokens, answer.usage.new_tokens) == (count, 8)

    def test_many(self, session):
        ask_many(session)

    def test_log_probabilities_that_it_does_not_send(self, session):
        assert session.ask("What?", logprobs=1, **GREEDY).tokens == ()

    def test_what_it_does_not_take_is_named(self, session):
        with pytest.raises(EngineError, match=r"Not every server takes top_k; leave it out"):
            session.ask("What?", top_k=2)
        session.ask("What do the images show?", chat="begun", **GREEDY)
        with pytest.raises(EngineError, match="Not every server carries an answer on"):
            session.carry_on(chat="begun")


class TestLlamaCpp:
    """llama-cpp-python's server."""

    @pytest.fixture(scope="class")
    @classmethod
    def session(cls, tmp_path_factory):
        python, folder = python_of("GLM4V_LLAMA_CPP"), tmp_path_factory.mktemp("gguf")
        model, port = folder / "tiny.gguf", free_port()
        script = Path(__file__).parents[1] / "tiny_gguf.py"
        subprocess.run([python, script, model], check=True)
        words = [python, "-m", "llama_cpp.server", "--model", model, "--port", str(port)]
        words += ["--n_ctx", "512", "--n_threads", "1", "--logits_all", "true"]
        with (
            running(words, port, folder / "log.txt", "/v1/models") as url,
            asking(url) as session,
        ):
            yield session

    def test_an_answer(self, session):
        answer = session.ask("What?", **GREEDY)
        assert answer.finish_reason == "length"
        assert answer.text
        assert answer.text == session.ask("What?", **GREEDY).text

    def test_sampling(self, session):
        asked = {"temperature": 1.0, "top_k": 5, "repetition_penalty": 1.2, "max_tokens": 8}
        texts = {session.ask("What?", **asked, seed=seed).text for seed in (1, 1, 2)}
        assert len(texts) == 2

    def test_many(self, session):
        ask_many(session)

    def test_an_answer_that_another_client_cuts_off_is_said_to_be(self, session):
        with asking(session.status().info.server) as other:
            stream = session.stream("Tell me.", temperature=0, max_tokens=400)
            pieces = (event for event in stream if isinstance(event, Text))
            others = [other.ask("What?", **GREEDY) for number, _ in enumerate(pieces) if not number]
        assert [each.finish_reason for each in others] == ["length"]
        said = stream.result
        is_whole = said.finish_reason == "length" and said.usage.new_tokens == 400
        assert is_whole or "it may be cut off" in said.notice

    def test_a_schema(self, session):
        schema = {"type": "object", "properties": {"n": {"enum": ["one", "two"]}}}
        schema |= {"required": ["n"], "additionalProperties": False}
        answer = session.ask("What?", schema=schema, temperature=0, max_tokens=80)
        assert answer.value in ({"n": "one"}, {"n": "two"})
        assert not answer.corrected


class TestLiteLLM:
    """LiteLLM's client, and its proxy in front of our own server."""

    @pytest.fixture(scope="class")
    @classmethod
    def local(cls):
        session = Session().load(golden.CHECKPOINT)
        yield session
        session.unload()

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, local):
        with serving(local.engine) as server:
            yield server

    @pytest.fixture(scope="class")
    @classmethod
    def session(cls, server, tmp_path_factory):
        python, folder = python_of("GLM4V_LITELLM"), tmp_path_factory.mktemp("litellm")
        port = free_port()
        behind = {"model": "openai/tiny", "api_base": server.url, "api_key": KEY}
        config = {"model_list": [{"model_name": "tiny", "litellm_params": behind}]}
        (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        words = [Path(python).with_name("litellm"), "--config", folder / "config.yaml"]
        words += ["--host", "127.0.0.1", "--port", str(port)]
        with (
            running(
                words, port, folder / "log.txt", "/health/liveliness",
                LITELLM_LOCAL_MODEL_COST_MAP=True, LITELLM_MASTER_KEY=KEY,
            ) as url,
            asking(url) as session,
        ):  # fmt: skip
            yield session

    def test_answers_are_those_of_the_model(self, session, local):
        photo = Image.linear_gradient("L")
        for images in ((), (photo,)):
            here, there = (each.ask("What?", images, **GREEDY) for each in (local, session))
            assert there.text == here.text
            assert there.usage.new_tokens == 8
            assert there.usage.visual_tokens == here.usage.visual_tokens

    def test_many(self, session):
        ask_many(session)

    def test_forms_and_log_probabilities(self, session):
        assert session.ask("What?", choices=["one", "two"]).text in ("one", "two")
        assert session.ask("What?", schema={"enum": ["one"]}, max_tokens=20).value == "one"
        assert len(session.ask("What?", logprobs=2, **GREEDY).tokens) > 4

    def test_an_answer_is_carried_on(self, session):
        begun = session.ask("What do the images show?", chat="begun", **GREEDY)
        assert session.carry_on(chat="begun", **GREEDY).text.startswith(begun.text)

    def test_the_client(self, server, local):
        script = f"""
            import litellm
            asked = dict(
                model="openai/tiny", api_base={server.url!r}, api_key={KEY!r},
                messages=[dict(role="user", content="What?")], temperature=0,
            )
            whole = litellm.completion(max_tokens=8, **asked)
            print(repr(whole.choices[0].message.content), whole.usage.completion_tokens)
            pieces = litellm.completion(stream=True, max_tokens=8, **asked)
            print(repr("".join(each.choices[0].delta.content or "" for each in pieces).strip()))
            form = dict(type="json_schema", json_schema=dict(name="a", schema=dict(enum=["one"])))
            print(litellm.completion(max_tokens=60, response_format=form, **asked)
                .choices[0].message.content)
            try:
                litellm.completion(**asked | dict(model="openai/other"))
            except litellm.NotFoundError as error:
                print(error)
        """
        done = subprocess.run(
            [python_of("GLM4V_LITELLM"), "-c", textwrap.dedent(script)],
            capture_output=True, text=True, timeout=SECONDS, check=True,
            env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONUTF8": "1"},
        )  # fmt: skip
        text = local.ask("What?", **GREEDY).text
        assert done.stdout.splitlines()[:3] == [f"{text!r} 8", repr(text), '"one"']
        assert "There is no model 'other' here. This is tiny." in done.stdout
