"""A model behind a server: what is sent, what comes back, and all that can go wrong between."""

from __future__ import annotations

import base64
import errno
import io
import json
import logging
import operator
import os
import re
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from following import follow, returned
from IPython.utils.capture import capture_output
from PIL import Image
from scripted_server import (
    CHAT,
    END,
    MODELS,
    SECONDS,
    deaf,
    models,
    piece,
    response,
    scripted_server,
    silence,
    stream,
    while_the_client_waits,
)
from shells import InterruptingStream

import glm4v_magic
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import (
    CheckpointError,
    ConversationError,
    EngineError,
    GenerationInterrupted,
    OptionError,
)
from glm4v_magic.core.events import Reclassified, Text, Thinking
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.rows import Totals
from glm4v_magic.core.server_address import API_KEY, ServerAddress, is_address, read_address
from glm4v_magic.engines.server import connect
from glm4v_magic.notebook.live.screen import NotebookScreen
from glm4v_magic.session.session import Session

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(API_KEY, raising=False)


@pytest.fixture(scope="module")
def running():
    with scripted_server() as server:
        yield server


@pytest.fixture
def server(running):
    """A server of the model ``m`` that answers "Hello."."""
    running.forget()
    running.answer(MODELS, models("m"))
    running.answer(CHAT, stream(piece("Hel"), piece("lo."), END))
    return running


def generation_of(engine, request):
    *_, finished = engine.stream([request])
    return finished.generation


def refused(call, *arguments, kind=EngineError, **options):
    with pytest.raises(kind) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestAddresses:
    @pytest.mark.parametrize(
        ("given", "read"),
        [
            ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
            ("HTTP://Host/", "http://Host/v1"),
            ("https://host/api/v3/", "https://host/api/v3"),
            ("http://host:1/v1/chat/completions", "http://host:1/v1"),
            ("http://host:1/v1/models", "http://host:1/v1"),
            ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ],
    )
    def test_forms(self, given, read):
        assert is_address(given)
        assert read_address(given) == read

    @pytest.mark.parametrize(
        "given", ["http://", "http://h:port/v1", "http://h?x=1", "http://h/#x", "http://h /v1"]
    )
    def test_what_is_none(self, given):
        assert "127.0.0.1:8000/v1" in refused(Session().load, given, kind=OptionError)

    def test_a_folder_or_repository_is_none(self):
        assert not any(map(is_address, ("demo", "./http", "zai-org/glm-4v-9b", "httpx://a")))

    def test_a_password_is_refused_and_not_shown(self):
        said = refused(Session().load, "http://me:secret@host/v1", kind=OptionError)
        assert said.startswith("The address of the server at host holds a user name or password.")
        assert API_KEY in said
        assert "secret" not in said
        assert "me:" not in said


class TestConnecting:
    def test_the_only_model_is_taken(self, session, server):
        info = session.status().info
        assert (info.model, info.server) == ("m", server.url)
        unknown = (info.context, info.parameters, info.image_size, info.visual_tokens)
        assert unknown == (None, None, None, None)

    def test_of_several_one_must_be_chosen(self, server):
        server.answer(MODELS, models("a", "b"))
        said = refused(glm4v_magic.load, server.url, kind=OptionError)
        assert said == f'{server.url} serves a, b. Choose one: served_model="NAME".'
        session = glm4v_magic.load(server.url, served_model="b")
        session.ask("Q?")
        assert server.bodies[0]["model"] == session.status().info.model == "b"

    def test_a_name_that_is_not_listed_is_left_to_the_server(self, server, caplog):
        session = glm4v_magic.load(server.url, served_model="lora")
        note = f"{server.url} does not list lora, but m"
        assert session.status().info.notes == (note,)
        assert [record.getMessage() for record in caplog.records] == [f"{note}."]
        assert session.ask("Q?").model == "lora"
        server.answer(MODELS, models("m", "lora"))
        assert glm4v_magic.load(server.url, served_model="lora").status().info.notes == ()

    @pytest.mark.parametrize(
        ("there", "advice"),
        [
            (models("m", "n"), "It serves m, n."),
            (models(), "Does it know a model of that name?"),
            (response(status="404 Not Found"), "Does it know a model of that name?"),
        ],
    )
    def test_a_name_that_it_does_not_know(self, server, there, advice):
        server.answer(MODELS, there)
        session = glm4v_magic.load(server.url, served_model="x")
        unknown = {"error": {"message": "The model `x` does not exist."}}
        server.answer(CHAT, response(unknown, "404 Not Found"))
        said = refused(session.ask, "Q?")
        assert said.endswith(f"answers 404 Not Found: The model `x` does not exist. {advice}")

    def test_our_own_server_serves_what_it_lists_and_no_other(self, session, server):
        server.answer(MODELS, models("m", glm4v_magic={"max_images": 1}))
        said = refused(session.load, server.url, served_model="lora", kind=OptionError)
        assert said == f'{server.url} serves m, not lora. Choose one: served_model="NAME".'
        assert session.ask("Q?").model == "m"

    @pytest.mark.parametrize("status", ["404 Not Found", "500 Internal Server Error"])
    def test_a_server_without_a_list_can_be_asked_by_name(self, server, status):
        server.answer(MODELS, response(status=status))
        assert glm4v_magic.load(server.url, served_model="m").ask("Q?").text == "Hello."
        assert f"/models answers {status}. " in refused(glm4v_magic.load, server.url)

    @pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
    def test_a_server_that_wants_a_key_says_so_at_once(self, server, status):
        server.answer(MODELS, response(status=status))
        said = refused(glm4v_magic.load, server.url, served_model="m")
        assert said.endswith("into the environment variable GLM4V_API_KEY.")

    def test_what_a_server_tells_of_its_model(self, server):
        own = {"notice": "A demo.", "max_images": 1, "image_size": [112, 112], "visual_tokens": 18}
        own |= {"largest_image": 500}
        server.answer(MODELS, models("m", max_model_len=1024, glm4v_magic=own))
        info = glm4v_magic.load(server.url).status().info
        assert (info.context, info.notice, info.max_images) == (1024, "A demo.", 1)
        assert (info.image_size, info.visual_tokens) == ((112, 112), 18)
        assert (info.largest_image, info.tells_images) == (500, True)
        server.answer(MODELS, models("m"))
        assert glm4v_magic.load(server.url).status().info.tells_images is False

    def test_what_it_tells_wrongly_is_left_out(self, server):
        own = {"notice": 7, "max_images": "1", "image_size": [0, "x"], "visual_tokens": -1}
        server.answer(MODELS, models("m", max_model_len=True, glm4v_magic=own))
        info = glm4v_magic.load(server.url).status().info
        assert (info.context, info.notice, info.max_images) == (None, "", None)
        assert (info.image_size, info.visual_tokens) == (None, None)

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (models(), "lists no model. Start the server with one, or name one"),
            (response(b"<p>Hi", kind="text/html"), "answers with text/html that is not a list of"),
            (response({"models": []}), "answers with application/json that is not a list"),
            (response(b"{"), "that is not a list of models. The address .* usually ends in /v1"),
            (response(b"[" * 100_000), "that is not a list of models"),
            (response(status="404 Not Found"), "/models answers 404 Not Found. The address .*/v1"),
            (b"SSH-2.0-OpenSSH_9\r\n", "The connection to .* broke: .* Is the server still"),
            (b"", "The connection to .* broke: Server disconnected"),
        ],
    )
    def test_what_is_no_such_server(self, server, answer, said):
        server.answer(MODELS, answer)
        assert re.search(said, refused(glm4v_magic.load, server.url))

    def test_nobody_is_there(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        said = refused(glm4v_magic.load, url)
        refused_by_system = os.strerror(errno.ECONNREFUSED)
        assert said == (
            f"No server answers at {url}: {refused_by_system}. Start it, or check host and port."
        )

    @pytest.mark.parametrize(
        ("host", "said"),
        [("nobody.invalid", "[A-Z][a-z ]+"), ("localhost", os.strerror(errno.ECONNREFUSED))],
    )
    def test_no_class_of_an_error_is_in_what_is_said(self, host, said):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            url = f"http://{host}:{taken.getsockname()[1]}/v1"
        told = refused(glm4v_magic.load, url)
        assert re.fullmatch(
            rf"No server answers at {url}: {said}\. Start it, or check host and port\.", told
        )

    def test_one_that_takes_no_connection(self):
        with deaf() as url:
            told = refused(glm4v_magic.load, url, timeout=0.3)
        assert told.startswith(f"No server answers at {url}: not connected within 0.3 s. ")

    def test_a_list_that_does_not_come(self, server):
        server.answer(MODELS, silence)
        said = refused(glm4v_magic.load, server.url, timeout=0.2)
        assert said.startswith(f"{server.url} was silent for 0.2 s. If it is only slow, ")

    def test_a_list_that_comes_a_byte_at_a_time(self, server):
        server.answer(MODELS, response(b"["), *[0.05, b" "] * 40, silence)
        said = refused(glm4v_magic.load, server.url, timeout=1)
        assert said.startswith(
            f"{server.url} has not sent its whole list of models within 1 s. If it is only slow, "
        )

    def test_a_refusal_that_comes_a_byte_at_a_time(self, server):
        server.answer(MODELS, response(b"[", "400 Bad Request"), *[0.05, b" "] * 40, silence)
        said = refused(glm4v_magic.load, server.url, timeout=0.9)
        assert said.startswith(f"{server.url}/models answers 400 Bad Request.")

    def test_a_server_that_serves_another_model_now(self, session, server):
        server.answer(MODELS, models("n"))
        assert session.load(server.url).status().info.model == "n"
        session.ask("Q?")
        assert server.bodies[-1]["model"] == "n"
        server.answer(MODELS, response(status="500 Internal Server Error"))
        assert "answers 500" in refused(session.load, server.url)

    def test_no_proxy_stands_before_this_computer(self, server, monkeypatch):
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        assert glm4v_magic.load(server.url).ask("Q?").text == "Hello."

    def test_a_proxy_that_cannot_be_used(self, monkeypatch):
        monkeypatch.setenv("ALL_PROXY", "gopher://proxy")
        for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        said = refused(glm4v_magic.load, "http://example.invalid/v1")
        assert "cannot be asked: ValueError: " in said
        assert "the proxy in the environment" in said

    @pytest.mark.parametrize(
        "options",
        [{"gpus": "cpu"}, {"dtype": "float32"}, {"revision": "main"}, {"device_map": {"": "cpu"}}],
    )
    def test_options_of_a_load_are_refused(self, server, options):
        said = refused(Session().load, server.url, kind=OptionError, **options)
        assert said.startswith(f"{server.url} is a server: it has loaded its model")

    @pytest.mark.parametrize("options", [{"served_model": "m"}, {"timeout": 1.0}])
    def test_options_of_a_server_are_refused_elsewhere(self, options):
        (name,) = options
        said = refused(Session().load, "demo", kind=OptionError, **options)
        assert said == f"{name} is about a server, and demo is none."

    @pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
    def test_an_impossible_timeout(self, server, timeout):
        said = refused(Session().load, server.url, kind=OptionError, timeout=timeout)
        assert said.endswith("but must be a number of seconds above 0.")

    def test_the_model_before_stays_if_a_server_cannot_be_used(self, session, server):
        server.answer((MODELS[0], "/other/models"), models())
        other = server.url.replace("/v1", "/other")
        refused(session.load, other)
        assert session.status().info.server == server.url
        assert session.ask("Q?").text == "Hello."

    def test_unload_disconnects_and_a_question_connects_again(self, session, server):
        assert session.unload()
        assert session.status().info is None
        assert session.ask("Q?").text == "Hello."

    def test_the_first_question_may_name_it(self, server):
        assert Session().ask("Q?", model=server.url).text == "Hello."

    def test_files_of_a_checkpoint_it_has_not(self, server):
        from glm4v_magic.checkpoints import resolve
        from glm4v_magic.checkpoints.architecture import architecture

        for function in (resolve, architecture):
            said = refused(function, server.url, kind=CheckpointError)
            assert said.startswith(f"{server.url} is a server: prompt, plan and memory are its own")


class TestWhatIsSent:
    def test_a_question_alone(self, session, server):
        session.ask("Q?")
        assert server.bodies == [
            {
                "model": "m",
                "messages": [{"role": "user", "content": "Q?"}],
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": 512,
            }
        ]

    def test_sampling_options(self, session, server):
        session.ask(
            "Q?",
            max_tokens=9,
            temperature=0.5,
            top_p=0.9,
            top_k=3,
            min_p=0.05,
            repetition_penalty=1.5,
            seed=4,
        )
        sent = server.bodies[0]
        assert {
            key: sent[key] for key in sent.keys() - {"messages", "model", "stream_options"}
        } == {
            "stream": True,
            "max_tokens": 9,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 3,
            "min_p": 0.05,
            "repetition_penalty": 1.5,
            "repeat_penalty": 1.5,
            "seed": 4,
        }

    def test_images_go_before_the_text_and_without_loss(self, session, server):
        photo = Image.linear_gradient("L").convert("RGB")
        session.ask("Q?", [photo, photo.rotate(90)], system="Be brief.")
        system, user = server.bodies[0]["messages"]
        assert system == {"role": "system", "content": "Be brief."}
        assert [part["type"] for part in user["content"]] == ["image_url", "image_url", "text"]
        assert user["content"][2]["text"] == "Q?"
        for part, image in zip(user["content"], (photo, photo.rotate(90)), strict=False):
            head, _, data = part["image_url"]["url"].partition(",")
            assert head == "data:image/png;base64"
            with Image.open(io.BytesIO(base64.b64decode(data))) as arrived:
                assert arrived.tobytes() == image.tobytes()

    @pytest.mark.parametrize(("kind", "size"), [("jpeg", None), ("png", [32, 32])])
    def test_a_file_is_sent_as_it_is(self, server, tmp_path, kind, size):
        server.answer(MODELS, models("m", glm4v_magic={"image_size": size}))
        path = tmp_path / f"photo.{kind}"
        Image.linear_gradient("L").save(path)
        (url,) = self.urls(server, path)
        head, _, data = url.partition(",")
        assert head == f"data:image/{kind};base64"
        assert base64.b64decode(data) == path.read_bytes()

    def test_what_is_large_has_the_size_that_the_server_sees(self, server, tmp_path):
        server.answer(MODELS, models("m", glm4v_magic={"image_size": [30, 20]}))
        noise = Image.effect_noise((64, 48), 90).convert("RGB")
        noise.save(tmp_path / "noise.png")
        small = Image.new("RGB", (20, 20), "red")
        urls = self.urls(server, [tmp_path / "noise.png", noise, small])
        seen = []
        for url in urls:
            with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as arrived:
                seen.append(arrived.convert("RGB"))
        resized = noise.resize((30, 20), Image.Resampling.BICUBIC)
        assert [each.tobytes() for each in seen] == [
            each.tobytes() for each in (resized, resized, small)
        ]

    def urls(self, server, images):
        glm4v_magic.load(server.url).ask("Q?", images)
        *parts, _ = server.bodies[-1]["messages"][0]["content"]
        return [part["image_url"]["url"] for part in parts]

    def test_an_unfinished_answer_is_to_be_carried_on(self, server):
        engine = returned(connect(ServerAddress(server.url)))
        turns = (Message("user", "Q?"), Message("assistant", "The", complete=False))
        generation_of(engine, Request(Conversation(turns)))
        sent = server.bodies[0]
        assert sent["messages"][1] == {"role": "assistant", "content": "The"}
        assert sent["continue_final_message"] is True
        assert sent["add_generation_prompt"] is False
        server.answer(CHAT, stream(piece(" end "), END))
        carried_on = Request(Conversation(turns))
        fresh = Request(Conversation(turns[:1]))
        assert generation_of(engine, carried_on).text == " end"
        assert generation_of(engine, fresh).text == "end"
        engine.close()

    def test_too_many_images_for_it_are_not_sent(self, server):
        server.answer(MODELS, models("m", glm4v_magic={"max_images": 1}))
        photo = Image.new("RGB", (8, 8))
        session = glm4v_magic.load(server.url)
        with pytest.raises(glm4v_magic.Glm4vError, match="m takes one image"):
            session.ask("Q?", [photo, photo])
        assert server.bodies == []


class TestWhatComesBack:
    def test_pieces_are_streamed_and_joined(self, session):
        pieces = []
        answer = follow(session.stream("Q?"), text=pieces.append)
        assert pieces == ["Hel", "lo."]
        assert (answer.text, answer.finish_reason, answer.model) == ("Hello.", "stop", "m")
        assert answer.usage.time_to_first_token > 0

    def test_usage(self, session, server):
        usage = {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 4}}
        server.answer(CHAT, stream(piece("A"), END, usage))
        photo = Image.new("RGB", (8, 8))
        assert counts(session.ask("Q?")) == (30, 0, 4)
        # With an image the server does not tell how many of the 30 are its own.
        assert counts(session.ask("Q?", photo)) == (30, None, 4)
        assert session.ask("Q?", photo).usage.prompt_tokens == 30
        usage["usage"]["prompt_tokens_details"] = {"image_tokens": 18}
        server.answer(CHAT, stream(piece("A"), END, usage))
        assert counts(session.ask("Q?", photo)) == (12, 18, 4)

    @pytest.mark.parametrize(
        "usage",
        [
            None,
            {},
            {"prompt_tokens": -1, "completion_tokens": "4"},
            {"prompt_tokens": 2**63, "completion_tokens": 10**30},
            [],
            "x",
        ],
    )
    def test_usage_that_is_not_told_is_not_invented(self, session, server, usage):
        server.answer(CHAT, stream(piece("A"), piece("B"), {**END, "usage": usage}))
        answer = session.ask("Q?", Image.new("RGB", (8, 8)))
        assert counts(answer) == (None, None, None)
        assert answer.usage.prompt_tokens is answer.usage.tokens_per_second is None

    @pytest.mark.parametrize(("count", "pause"), [(16, 0), (4, 0.1), (16, 0.1)])
    def test_no_rate_is_told_of_few_tokens_or_of_one_packet(self, session, server, count, pause):
        heard = threading.Event()
        head = stream(piece("A"), done=False)
        _, _, rest = stream(piece("B"), {**END, "usage": {"completion_tokens": count}}).partition(
            b"\r\n\r\n"
        )
        wait = (lambda _: heard.wait(SECONDS), pause) if pause else ()
        server.answer(CHAT, head, *wait, rest)
        usage = follow(session.stream("Q?"), text=lambda _: heard.set()).usage
        assert (usage.tokens_per_second is None) is not (count == 16 and pause > 0)

    @pytest.mark.parametrize(("ending", "read"), [("length", "length"), ("eos", "stop")])
    def test_why_it_ended(self, session, server, ending, read):
        server.answer(CHAT, stream(piece("A", ending), done=False))
        assert session.ask("Q?").finish_reason == read

    def test_the_end_may_be_told_by_done_alone(self, session, server):
        server.answer(CHAT, stream(piece("A")))
        assert session.ask("Q?").finish_reason == "unknown"

    def test_the_seed_is_the_one_that_was_sent(self, session):
        assert session.ask("Q?", temperature=1.0, seed=5).seed == 5
        assert session.ask("Q?", temperature=1.0).seed is None
        assert session.ask("Q?", temperature=0, seed=5).seed is None

    @pytest.mark.parametrize(
        "event",
        [
            b": keep-alive\n\n",
            b"event: message\nid: 1\nretry: 5\n\n",
            b'data: {"choices": []}\n\n',
            b'data: {"choices": [null]}\n\n',
            b'data: {"choices": [{"delta": null}]}\n\n',
            b'data: {"choices": [{"delta": {"content": null}}]}\n\n',
            b'data: {"choices": [{"delta": {"content": 7}}]}\n\n',
            b"\n\n\n",
        ],
    )
    def test_what_is_no_text_is_passed_over(self, session, server, event):
        server.answer(CHAT, stream(event, piece("A"), event, END, event))
        assert session.ask("Q?").text == "A"

    @pytest.mark.parametrize(
        "text", ["a\u2028b", "a\x85b", "a\\nb", "猫 🐱", "a\u2029\x0b\x1cb", 'say "hi"']
    )
    def test_any_text_arrives_however_it_is_cut(self, session, server, text):
        whole = json.dumps(piece(text), ensure_ascii=False).encode()
        parts = stream(b"data:" + whole + b"\r\n\r\n", END)
        server.answer(CHAT, *(parts[at : at + 7] for at in range(0, len(parts), 7)))
        assert session.ask("Q?").text == text

    def test_an_event_of_several_lines(self, session, server):
        event = b'data: {"choices": [{"delta":\ndata: {"content": "A"}}]}\n\n'
        server.answer(CHAT, stream(event, END))
        assert session.ask("Q?").text == "A"

    def test_the_last_event_may_lack_its_empty_line(self, session, server):
        server.answer(CHAT, stream(piece("A"), b"data: [DONE]", done=False))
        assert session.ask("Q?").text == "A"


def counts(answer):
    usage = answer.usage
    return usage.text_tokens, usage.visual_tokens, usage.new_tokens


class TestWhatGoesWrong:
    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (
                response({"error": {"message": "No such key.", "code": 401}}, "401 Unauthorized"),
                "answers 401 Unauthorized: No such key. Put its key into the environment "
                "variable GLM4V_API_KEY.",
            ),
            (
                response({"error": "The model `m` does not exist."}, "404 Not Found"),
                "answers 404 Not Found: The model `m` does not exist. It serves m.",
            ),
            (
                response({"detail": "Slow down"}, "429 Too Many Requests", Retry_After="7"),
                "answers 429 Too Many Requests: Slow down. It is busy; ask again in 7 s.",
            ),
            (
                response({"message": "busy"}, "429 Too Many Requests", Retry_After="<b>"),
                "answers 429 Too Many Requests: busy. It is busy; ask again later.",
            ),
            (
                response(b"boom\n\x1b[31m", "500 Internal Server Error", kind="text/plain"),
                "answers 500 Internal Server Error: boom [31m. Its log may tell more.",
            ),
            (
                response(b"<html>boom", "502 Bad Gateway", kind="text/html"),
                "answers 502 Bad Gateway. It may still be starting; ask again later.",
            ),
            (
                response({"detail": [{"msg": "too long"}]}, "422 Unprocessable Entity"),
                "answers 422 Unprocessable Entity: too long.",
            ),
            (
                response(status="413 Content Too Large"),
                "answers 413 Content Too Large. Ask about a smaller image, or a part of it: "
                "image.crop((left, top, right, bottom)).",
            ),
            (
                response(status="307 Temporary Redirect", Location="https://evil/v1"),
                "answers 307 Temporary Redirect. It is at https://evil/v1; give that address.",
            ),
            (response({"error": {"message": "x" * 9999}}, "400 Bad Request"), "xxx..."),
        ],
    )
    def test_a_status(self, session, server, answer, said):
        server.answer(CHAT, answer)
        message = refused(session.ask, "Q?")
        assert message.startswith(f"{server.url}/chat/completions answers ")
        assert message.endswith(said)
        assert len(message) < 500

    def test_a_sampling_value_that_not_every_server_takes(self, session, server):
        server.answer(CHAT, response({"detail": "Unexpected: top_k"}, "422 Unprocessable Entity"))
        assert refused(session.ask, "Q?", top_k=3).endswith(
            "Unexpected: top_k. Not every server takes top_k; leave it out."
        )
        assert "Not every" not in refused(session.ask, "Q?", top_p=0.5)

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (response({"choices": []}), "answers with application/json where a stream of events"),
            (response(b"<p>", kind="text/html"), "answers with text/html where a stream of"),
            (response(b"", kind=None), "answers with no content type where a stream of events"),
            (stream(b"data: {oops\n\n"), "sent an event that is not a JSON object: '{oops'"),
            (stream(b"data: \xff\n\n"), "sent an event that is not a JSON object"),
            (stream(b"data: [1]\n\n"), "sent an event that is not a JSON object"),
            (stream(b"data: " + b"[" * 100_000 + b"\n\n"), "is not a JSON object: '[[["),
            (stream(b"data: " + b"x" * 2**21), "sent an event of more than 1,048,576 bytes"),
            (stream(b"data: xxx\n" * 2**18), "sent an event of more than 1,048,576 bytes"),
            (stream({"error": {"message": "CUDA out of memory"}}), "an error: CUDA out of memory"),
            (stream({"error": 7}), "stopped with an error: it does not say which"),
            (stream(done=False), "in the middle of the answer (after 0 pieces)"),
            (stream(piece("A"), done=False), "in the middle of the answer (after 1 piece)."),
            (stream(piece("A", "content_filter")), "holds the answer back (content_filter)"),
            (stream(piece("A", "abort")), "gave the answer up (abort)"),
            (
                response(b"", kind="text/event-stream", Content_Length="50"),
                "broke: peer closed connection",
            ),
        ],
    )
    def test_an_answer_that_is_none(self, session, server, answer, said):
        server.answer(CHAT, answer)
        assert said in refused(session.ask, "Q?")
        assert not session.status().busy
        server.answer(CHAT, stream(piece("Yes."), END))
        assert session.ask("And now?").text == "Yes."

    def test_silence(self, server):
        session = glm4v_magic.load(server.url, timeout=2)  # a slow computer is silent for a while
        server.answer(CHAT, stream(piece("A"), done=False), silence)
        pieces = []
        said = refused(follow, session.stream("Q?"), text=pieces.append)
        assert said.startswith(f"{server.url} was silent for 2 s.")
        assert pieces == ["A"]

    def test_the_server_is_gone(self, server):
        with scripted_server() as other:
            other.answer(MODELS, models("m"))
            session = glm4v_magic.load(other.url)
        assert refused(session.ask, "Q?").startswith(f"No server answers at {other.url}: ")

    def test_an_error_of_a_reader_closes_the_connection(self, session, server):
        server.answer(CHAT, stream(piece("A"), done=False), silence)
        with pytest.raises(ZeroDivisionError):
            follow(session.stream("Q?"), text=lambda _: 1 / 0)
        assert server.closed_by_client.wait(SECONDS)


def heard(events):
    """What is told while an answer is made, in order; and the answer."""
    told = []
    for event in events:
        match event:
            case Text() | Thinking():
                told.append((type(event).__name__.lower(), event.text))
            case Reclassified():
                told.append("reclassified")
    return told, event.answer


def interrupted(told, server, interrupt, *pieces):
    """Interrupt a stream that waits for more after `pieces`; return the answer that is kept."""
    heard = threading.Event()
    rest = iter(pieces)

    def hear(_):
        next(rest)
        if operator.length_hint(rest) == 0:
            heard.set()

    interrupted = while_the_client_waits(interrupt, heard)
    server.answer(CHAT, stream(*pieces, done=False), interrupted, silence)
    with pytest.raises(GenerationInterrupted) as caught:
        follow(told, text=hear, thinking=hear)
    return caught.value.answer


def thinking(*pieces, name="reasoning_content"):
    return [piece(**{name: each}) for each in pieces]


class TestThinking:
    @pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
    def test_what_the_server_takes_out(self, session, server, name):
        pieces = [*thinking("\nHm", " so.\n", name=name), piece("\n\nA"), piece("."), END]
        server.answer(CHAT, stream(*pieces))
        told, answer = heard(session.stream("Q?"))
        assert (answer.thinking, answer.text) == ("Hm so.", "A.")
        assert told == [("thinking", "Hm"), ("thinking", " so.\n"), ("text", "A"), ("text", ".")]

    def test_what_it_leaves_in_the_text(self, session, server):
        server.answer(
            CHAT,
            stream(*map(piece, ("<thi", "nk>Hm", ".</think><answ", "er>A", ".</answer>")), END),
        )
        told, answer = heard(session.stream("Q?"))
        assert (answer.thinking, answer.text) == ("Hm.", "A.")
        assert told == [("thinking", "Hm"), ("thinking", "."), ("text", "A"), ("text", ".")]

    def test_what_turns_out_to_have_been_thinking(self, session, server):
        server.answer(CHAT, stream(piece("\nHm"), piece(" so</think>"), piece("A."), END))
        told, answer = heard(session.stream("Q?"))
        assert (answer.thinking, answer.text) == ("Hm so", "A.")
        assert told == [("text", "Hm"), ("text", " so"), "reclassified", ("text", "A.")]

    def test_a_tag_that_was_none_is_told_too(self, session, server):
        server.answer(CHAT, stream(piece("x <"), piece("/th"), END))
        told, answer = heard(session.stream("Q?"))
        assert answer.text == "x </th"
        assert "".join(text for _, text in told) == "x </th"

    def test_an_answer_that_never_begins(self, session, server):
        for pieces in (thinking("Hm"), [piece("<think>Hm")]):
            server.answer(CHAT, stream(*pieces, piece(ending="length")))
            answer = session.ask("Q?")
            assert (answer.thinking, answer.text) == ("Hm", "")
            assert (answer.finish_reason, session.conversation().partial.thinking) == (
                "length",
                "Hm",
            )

    def test_thinking_after_the_answer_takes_nothing_back(self, session, server):
        server.answer(
            CHAT, stream(*thinking("Hm"), piece("A"), *thinking(" more"), piece("."), END)
        )
        told, answer = heard(session.stream("Q?"))
        assert (answer.thinking, answer.text) == ("Hm more", "A.")
        assert told == [("thinking", "Hm"), ("text", "A"), ("text", ".")]

    @pytest.mark.parametrize(
        ("usage", "tokens"),
        [
            ({"completion_tokens_details": {"reasoning_tokens": 3}}, 3),  # OpenAI's place
            ({"reasoning_tokens": 3}, 3),  # SGLang's
            ({"completion_tokens_details": {"reasoning_tokens": "3"}}, None),
            ({}, None),
        ],
    )
    def test_how_much_and_how_long(self, session, server, usage, tokens):
        head = stream(*thinking("H"), done=False)
        *_, more = stream(*thinking("m"), piece("A"), {**END, "usage": usage}).split(b"\r\n\r\n")
        heard = threading.Event()
        server.answer(CHAT, head, lambda _: heard.wait(SECONDS), 0.1, more)
        usage = follow(session.stream("Q?"), thinking=lambda _: heard.set()).usage
        assert usage.thinking_tokens == tokens
        assert 0.04 < usage.thinking_seconds <= usage.decode_seconds
        server.answer(CHAT, stream(piece("A"), END))
        plain = session.ask("Q?").usage
        assert (plain.thinking_tokens, plain.thinking_seconds) == (None, 0)

    def test_it_stays_in_the_chat_and_is_not_sent_back(self, session, server):
        server.answer(CHAT, stream(*thinking("Hm"), piece("A."), END))
        session.ask("Q?")
        assert session.conversation().messages[-1].thinking == "Hm"
        session.ask("And?", follow_up=True)
        assert server.bodies[-1]["messages"] == [
            {"role": "user", "content": "Q?"},
            {"role": "assistant", "content": "A."},
            {"role": "user", "content": "And?"},
        ]

    def test_it_can_be_turned_on_and_off(self, session, server):
        for value in (True, False, None):
            session.ask("Q?", thinking=value)
        session.map("{{item}}?", ["a"], thinking=False)
        sent = [body.get("chat_template_kwargs") for body in server.bodies]
        assert sent == [
            {"enable_thinking": True},
            {"enable_thinking": False},
            None,
            {"enable_thinking": False},
        ]
        said = refused(session.ask, "Q?", kind=OptionError, thinking="on")
        assert said == "thinking is 'on', but must be True, False or None."

    def test_a_server_that_refuses_it_is_understood(self, session, server):
        server.answer(CHAT, response({"error": "extra fields"}, "400 Bad Request"))
        said = refused(session.ask, "Q?", thinking=False, top_k=3)
        assert said.endswith(
            "extra fields. Not every server takes top_k and thinking; leave it out."
        )

    def test_its_limit_is_sent_and_a_server_that_keeps_no_limit_is_told_of(self, session, server):
        said = "does not limit thinking: it went on beyond 2 tokens."
        server.answer(CHAT, stream(*thinking("a", "b"), piece("A."), END))
        assert session.ask("Q?", max_thinking=2).notice == ""
        assert server.bodies[-1]["thinking_token_budget"] == 2
        server.answer(CHAT, stream(*thinking(*"abcdefg"), piece("A."), END))
        assert session.ask("Q?", max_thinking=2).notice.endswith(said)
        assert session.ask("Q?").notice == ""
        assert "thinking_token_budget" not in server.bodies[-1]
        for tokens, has_kept in ((6, True), (7, False)):
            details = {"completion_tokens_details": {"reasoning_tokens": tokens}}
            usage = {"prompt_tokens": 3, "completion_tokens": 9, **details}
            server.answer(CHAT, stream(*thinking("a"), piece("A."), {**END, "usage": usage}))
            assert (session.ask("Q?", max_thinking=2).notice == "") == has_kept
        # Our own keeps it, and counts all tags, those around the answer included.
        server.answer(MODELS, models("m", glm4v_magic={"thinks": True}))
        assert glm4v_magic.load(server.url).ask("Q?", max_thinking=2).notice == ""

    def test_thinking_that_comes_in_one_piece_is_counted_by_its_words(self, session, server):
        def notice(thought, text="A.", usage=None):
            message = {"role": "assistant", "content": text, "reasoning_content": thought}
            whole = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            server.answer(CHAT, response(whole | ({"usage": usage} if usage else {})))
            return session.ask("Q?", max_thinking=5).notice

        beyond = "does not limit thinking: it went on beyond 5 tokens."
        assert notice("long " * 200).endswith(beyond)
        assert notice("long " * 9) == ""
        untold = {"completion_tokens_details": {"reasoning_tokens": 0}}
        for details in ({}, untold):  # of Chinese, that has no words between spaces
            usage = {"prompt_tokens": 3, "completion_tokens": 100, **details}
            assert notice("long " * 50, "A.", usage).endswith(beyond)
            assert notice("想" * 80, "好" * 20, usage).endswith(
                "seems not to limit thinking: it went on for about 80 tokens, where 5 were the "
                "most."
            )
            assert notice("想" * 15, "好" * 85, usage) == ""
        told = {"completion_tokens_details": {"reasoning_tokens": 9}}
        usage = {"prompt_tokens": 3, "completion_tokens": 100, **told}
        assert notice("想" * 80, "好" * 20, usage) == ""

    def test_a_server_that_thinks_though_it_was_asked_not_to_is_told_of(self, session, server):
        said = f"{server.url} has thought, though it was asked not to."
        for events in (thinking("Hm."), [piece("<think>Hm.</think>")], [piece("Hm.</think>")]):
            server.answer(CHAT, stream(*events, piece("A."), END))
            assert session.ask("Q?", thinking=False).notice == said
            assert session.ask("Q?", thinking=True).notice == ""
        late = stream(piece("A."), *thinking("Hm."), END)
        server.answer(CHAT, late)
        assert session.ask("Q?", thinking=False).notice == said
        for events in ([], thinking("\n"), [piece("<think>\n</think>\n")]):
            server.answer(CHAT, stream(*events, piece("A."), END))
            assert session.ask("Q?", thinking=False).notice == ""

    def test_an_answer_without_a_word_says_so(self, session, server):
        def notice(*events, **options):
            server.answer(CHAT, stream(*events))
            return session.ask("Q?", **options).notice

        message = {"role": "assistant", "content": None}
        assert notice({"choices": [{"message": message, "finish_reason": "stop"}]}) == (
            "Empty answer: not a word came."
        )
        assert notice(piece(" "), END) == "Empty answer: not a word came."
        assert notice(*thinking("Hm."), END) == "Empty answer: only thinking came."
        assert "Empty" not in notice(*thinking("Hm."), piece(ending="length"))
        assert notice(piece("A"), END) == ""
        server.answer(CHAT, stream(END))
        rows = session.map("{{item}}?", ["a", "b"])
        assert [row.answer.notice for row in rows] == ["Empty answer: not a word came."] * 2
        assert Totals.of(rows).notice == "Empty answer: not a word came."

    def test_a_server_that_refuses_its_limit_is_understood(self, session, server):
        server.answer(CHAT, response({"error": "no reasoning_config"}, "400 Bad Request"))
        said = refused(session.ask, "Q?", max_thinking=3)
        assert said.endswith("Not every server takes max_thinking; leave it out.")

    def test_a_corrected_answer_has_its_own(self, session, server):
        server.answer(CHAT, stream(*thinking("Hm"), piece("{}"), END))
        better = stream(*thinking("Oh"), piece('{"cats": 2}'), END)
        answer = follow(
            session.stream("Q?", schema={"required": ["cats"]}),
            correcting=lambda _: server.answer(CHAT, better),
        )
        assert (answer.thinking, answer.value) == ("Oh", {"cats": 2})
        assert session.conversation().messages[-1].thinking == "Oh"
        assert "<think>" not in str(server.bodies[-1]["messages"])

    def test_rows_keep_theirs_and_are_asked_anew_without(self, session, server):
        server.answer(CHAT, stream(*thinking("Hm"), piece("A."), END))
        (row,) = session.map("{{item}}?", ["a"])
        assert (row.answer.thinking, row.text) == ("Hm", "A.")
        session.map("{{item}}?", ["a"])
        assert len(server.bodies) == 1
        session.map("{{item}}?", ["a"], thinking=False)
        assert len(server.bodies) == 2

    def test_an_interrupt_keeps_it(self, session, server, interrupt):
        answer = interrupted(
            session.stream("Q?", chat="cats"), server, interrupt, *thinking("So", " Hm", " Hm")
        )
        assert answer.thinking == "So Hm Hm"
        assert (answer.text, answer.finish_reason) == ("", "interrupted")
        partial = session.conversation("cats").partial
        assert (partial.thinking, partial.text) == (answer.thinking, "")

    def test_a_listener_that_interrupts_is_told_no_more(self, session, server):
        """The Stop button raises at every piece once it is pressed."""

        def stop(_):
            raise KeyboardInterrupt

        server.answer(CHAT, stream(piece("<think>Hm"), piece(" 1 <"), END))
        told = iter([None, stop])
        with pytest.raises(GenerationInterrupted) as caught:
            follow(
                session.stream("Q?"),
                thinking=lambda text: (next(told) or (lambda _: None))(text),
            )
        assert caught.value.answer.thinking == "Hm 1 <"

    def stopped(self, session, server, *pieces):
        server.answer(CHAT, stream(*pieces, piece(ending="length")))
        session.ask("Q?")

    @pytest.mark.parametrize(
        "rest", [[piece(" is.</thi"), piece("nk>A.")], [*thinking(" is."), piece("\nA.")]]
    )
    def test_stopped_while_thinking_it_goes_on_thinking(self, session, server, rest):
        self.stopped(session, server, *thinking("Hm, it"))
        server.answer(CHAT, stream(*rest, END))
        told, answer = heard(session.stream_carry_on())
        assert (answer.thinking, answer.text) == ("Hm, it is.", "A.")
        assert told == [("thinking", " is."), ("text", "A.")]
        sent = server.bodies[-1]
        assert sent["messages"][-1] == {"role": "assistant", "content": "<think>Hm, it"}
        assert sent["continue_final_message"] is True
        assert session.conversation().messages[-1].thinking == "Hm, it is."

    def test_stopped_while_answering_it_goes_on_answering(self, session, server):
        self.stopped(session, server, piece("<think>Hm.</think><answer>It"))
        server.answer(CHAT, stream(piece(" is.</answer>"), END))
        answer = session.carry_on()
        assert (answer.thinking, answer.text) == ("Hm.", "It is.")
        assert server.bodies[-1]["messages"][-1]["content"] == "<think>Hm.</think>It"

    def test_a_server_that_does_not_carry_it_on_is_understood(self, session, server):
        self.stopped(session, server, *thinking("Hm"))
        server.answer(CHAT, response({"error": "prefill"}, "400 Bad Request"))
        said = refused(session.carry_on)
        assert said.endswith(
            "prefill. Not every server carries on what a model was thinking: "
            "session.retry() asks anew."
        )
        assert session.conversation().partial.thinking == "Hm"
        server.answer(CHAT, stream(piece("A dog"), END))
        assert session.retry().text == "A dog"

    def test_neither_does_every_server_carry_on_an_answer_without_thinking(self, session, server):
        server.answer(CHAT, stream(piece("The cat"), piece(ending="length")))
        session.ask("Q?")
        server.answer(CHAT, response({"error": "extra fields"}, "422 Unprocessable Entity"))
        assert refused(session.carry_on).endswith(
            "extra fields. Not every server carries an answer on: session.retry() asks anew."
        )
        assert session.conversation().partial.text == "The cat"
        server.answer(CHAT, stream(piece("A dog"), END))
        assert session.retry().text == "A dog"

    def test_a_model_that_does_not_think(self, session, server):
        self.stopped(session, server, *thinking("Hm"))
        server.answer(MODELS, models("m", glm4v_magic={"thinks": False}))
        session.load(server.url, timeout=9)
        on = "m does not think before it answers. Leave thinking out."
        assert refused(session.ask, "Q?", kind=OptionError, thinking=True).startswith(on)
        said = refused(session.map, "{{item}}", ["a"], kind=OptionError, thinking=True)
        assert said.startswith(on)
        assert refused(session.carry_on, kind=ConversationError) == (
            "The answer was stopped while its model was thinking, and m does not think. "
            "To ask again: session.retry()."
        )
        server.answer(CHAT, stream(piece("A dog"), END))
        assert session.retry().text == "A dog"
        server.answer(CHAT, stream(piece("A"), piece(ending="length")))
        assert session.ask("Q?", thinking=False).finish_reason == "length"


class TestThinkingInCells:
    HM = (*thinking("Hm, a cat\n", "or <b>two</b>?\n"), piece("A "), piece("**cat**."), END)

    @pytest.fixture
    def cells(self, server, run, shell):
        """A shell whose magics ask the server; it answers `HM`."""
        run(f"%glm4v load {server.url}")
        server.requests.clear()
        server.answer(CHAT, stream(*self.HM))
        yield run
        run("%glm4v reset --all\n%glm4v unload")

    def test_a_terminal_shows_it_with_a_mark(self, cells, shell):
        screen = cells("%%glm4v -o a\nQ?")
        assert screen.startswith("| Hm, a cat\n| or <b>two</b>?\nA **cat**.\n[Thought")
        assert " 24 characters]\n[m · " in screen
        assert shell.user_ns["a"].thinking == "Hm, a cat\nor <b>two</b>?"
        assert str(shell.user_ns["a"]) == "A **cat**."
        assert "Hm" not in cells("%%glm4v -q\nQ?")

    def test_escape_codes_of_names_reach_neither_terminal_nor_page(self, cells, server, shell):
        name = "\x1b[31mred\x1b[0m\u202e<script>"
        own = {"notice": "A \x1b[2J demo.", "efforts": ["low", "\x1b[1mhigh"], "thinks": True}
        server.answer(MODELS, models(name, glm4v_magic=own))
        line = f"%glm4v load {server.url}"
        with capture_output() as captured:
            for each in (
                line, line, "%%glm4v -o a\nQ?", "a", "%%glm4v -c -q --effort max\nMore?",
                "%glm4v", "%glm4v history", "%glm4v memory", "%glm4v plan",
                f"{line} --served-model \x1b[31mother",
                "%glm4v unload",
            ):  # fmt: skip
                shell.run_cell(each)
        html = [str(output.data.get("text/html", "")) for output in captured.outputs]
        plain = [str(output.data.get("text/plain", "")) for output in captured.outputs]
        shown = [captured.stdout, captured.stderr, *html, *plain, repr(shell.user_ns["a"])]
        assert sum("red" in each for each in shown) > 5
        for each in shown:
            assert not {"\x1b", "\u202e"} & set(each)
        assert not any("<script>" in each for each in html)
        assert server.bodies[-1]["model"] == name
        assert shell.user_ns["a"].model == "[31mred [0m <script>"

    def test_a_terminal_says_what_was_thinking(self, cells, server):
        server.answer(CHAT, stream(piece("Hm,\n"), piece("so </think>"), piece("A."), END))
        screen = cells("%%glm4v\nQ?")
        assert screen.startswith("Hm,\nso \n[That was thinking.]\nA.\n[Thought")

    def test_a_notebook_shows_its_last_lines_and_folds_it(self, cells, shell):
        with capture_output() as captured:
            shell.run_cell("%%glm4v\nQ?", store_history=True).raise_error()
        first, last = captured.outputs[0].data, captured.outputs[-1].data
        assert ">Hm, a cat</small>" in first["text/markdown"]
        fold, answer = last["text/markdown"].split("\n\n", 1)
        assert '<summary style="user-select:none"><small>Thought for ' in fold
        assert fold.endswith("</summary>Hm, a cat<br>or &#60;b>two&#60;/b>?</details>")
        assert answer.startswith("A **cat**.")
        assert captured.outputs[0].transient == captured.outputs[-1].transient
        # Shown again later, it looks as it did.
        assert shell.display_formatter.format(shell.user_ns["_"])[0] == last

    def test_forms_look_at_the_answer_alone(self, cells, server, shell):
        hm = thinking('{"no": 1}\n```python\nno\n```')
        server.answer(CHAT, stream(*hm, piece('{"cats": 2}'), END))
        cells("%%glm4v --format json -o a\nQ?")
        assert shell.user_ns["a"].value == {"cats": 2}
        server.answer(CHAT, stream(*hm, piece("```python\nyes\n```"), END))
        cells("%%glm4v --format code\nQ?")
        assert shell.user_ns["_"].value == "yes"
        shell.rl_next_input = None
        server.answer(CHAT, stream(*hm, piece("No."), END))
        assert "The answer holds no JSON" in cells("%%glm4v --format json\nQ?", fails=True)
        assert shell.user_ns["_"].thinking.startswith('{"no": 1}')

    def test_a_terminal_shows_that_of_a_correction_too(self, cells, server, shell):
        shell.user_ns["schema"] = {"required": ["cats"]}
        screen = cells("%%glm4v --schema schema\nQ?", fails=True)
        assert screen.count("| Hm, a cat") == 2
        assert "That was thinking" not in screen

    def test_on_and_off(self, cells, server, shell):
        shell.user_ns["two"] = [1, 2]
        for line in ("%%glm4v --thinking on\nQ?", "%glm4v retry --thinking off"):
            cells(line)
        cells("%%glm4v --over two --thinking off\n{{item}}?")
        cells("%config Glm4v.thinking = False")
        cells("%%glm4v\nQ?")
        cells("%%glm4v --thinking on\nQ?")
        cells("%config Glm4v.thinking = None")
        cells("%%glm4v\nQ?")
        sent = [body.get("chat_template_kwargs") for body in server.bodies]
        on, off = {"enable_thinking": True}, {"enable_thinking": False}
        assert sent == [on, off, off, off, off, on, None]

    def test_an_interrupt_while_it_thinks(self, cells, server, shell, monkeypatch, interrupt):
        server.answer(CHAT, stream(*thinking("Hm, a cat"), done=False), 1.0, b": x\n\n")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", InterruptingStream(sys.stdout, "Hm, a cat", interrupt))
            result = shell.run_cell("%%glm4v --chat cats -o part\nQ?", store_history=True)
        assert isinstance(result.error_in_exec, KeyboardInterrupt)
        part = shell.user_ns["part"]
        assert (part.thinking, part.text) == ("Hm, a cat", "")
        assert part is shell.user_ns["_"]
        assert "Hm, a cat\nm · " in shell.display_formatter.format(part)[0]["text/plain"]
        assert "Model (unfinished):\n[Thought, 9 characters]" in cells("%glm4v history")
        server.answer(CHAT, stream(*thinking(", or two?"), piece("Two."), END))
        screen = cells("%glm4v continue")
        assert screen.startswith("| Hm, a cat, or two?\nTwo.\n")
        assert (shell.user_ns["_"].thinking, shell.user_ns["_"].text) == (
            "Hm, a cat, or two?",
            "Two.",
        )
        cells("%glm4v export cats cats.json\n%glm4v reset --all\n%glm4v import cats.json")
        assert "[Thought, 18 characters]\nTwo." in cells("%glm4v history")

    def test_the_stop_button_stops_the_thinking(self):
        """Once it is pressed, the screen raises at the next piece of either kind."""
        pressed = SimpleNamespace(stop_pressed=True)
        for kind in ("thinking", "piece"):
            screen = NotebookScreen("m", head=pressed)
            with capture_output(), pytest.raises(KeyboardInterrupt):
                getattr(screen, kind)("Hm")


class TestInterrupts:
    def test_an_interrupt_keeps_the_text_and_closes_the_connection(
        self, session, server, interrupt
    ):
        pieces = [piece(text) for text in ("So ", "A ", "A ")]
        answer = interrupted(
            session.stream("Q?", Image.new("RGB", (8, 8))), server, interrupt, *pieces
        )
        assert answer.text == "So A A"
        assert answer.finish_reason == "interrupted"
        assert counts(answer) == (None, None, None)
        assert server.closed_by_client.wait(SECONDS)
        assert session.status().last is answer
        server.answer(CHAT, stream(piece("Yes."), END))
        assert session.ask("Q?").text == "Yes."

    def test_before_the_first_token(self, session, server, interrupt):
        server.answer(CHAT, while_the_client_waits(interrupt), silence)
        with pytest.raises(GenerationInterrupted) as caught:
            session.ask("Q?")
        assert caught.value.answer.text == ""

    def test_while_connecting(self, server, interrupt):
        server.answer(MODELS, while_the_client_waits(interrupt), silence)
        session = Session()
        with pytest.raises(KeyboardInterrupt):
            session.load(server.url)
        assert session.status().info is None
        assert not session.status().busy


def all_parts(value, depth=4):
    """The attributes of an object, those of its attributes, and so on."""
    for part in getattr(value, "__dict__", {}).values() if depth else ():
        yield part
        yield from all_parts(part, depth - 1)


class TestTheKey:
    @pytest.fixture
    def key(self, monkeypatch):
        monkeypatch.setenv(API_KEY, f" {KEY}\n")

    def test_it_is_sent_if_there_is_one(self, session, server, key):
        session.ask("Q?")
        (_, _, first, _), (_, _, second, _) = server.requests
        assert "authorization" not in first
        assert second["authorization"] == f"Bearer {KEY}"

    def test_it_is_nowhere_shown(self, server, key, caplog):
        caplog.set_level(logging.DEBUG)
        session = glm4v_magic.load(server.url)
        session.ask("Q?")
        engine = session.engine
        shown = [
            repr(session),
            repr(session.status()),
            repr(engine),
            repr(engine.info),
            caplog.text,
        ]
        shown += [repr(each) for each in all_parts(engine)]
        echo = {"error": {"message": f"Bad key {KEY}."}}
        for answer in (response(echo, "401 Unauthorized"), stream(echo), stream(KEY.encode())):
            server.answer(CHAT, answer)
            shown.append(refused(session.ask, "Q?"))
        server.answer(CHAT, stream(b"data: " + KEY.encode() + b"\n\n"))
        shown.append(refused(session.ask, "Q?"))
        assert (
            "Bad key ***. The key in GLM4V_API_KEY was sent; put the right one there." in shown[-4]
        )
        assert not [text for text in shown if KEY in text]

    @pytest.mark.parametrize("bad", ["two words", "schlüssel", "a\x00b"])
    def test_one_that_cannot_be_sent_is_not_shown_either(self, session, monkeypatch, bad):
        if "\x00" in bad:
            monkeypatch.setattr(os, "environ", {**os.environ, API_KEY: bad})
        else:
            monkeypatch.setenv(API_KEY, bad)
        said = refused(session.ask, "Q?")
        assert said.startswith(f"The key in {API_KEY} holds a space or a character outside of")
        assert bad not in said


def test_an_engine_of_a_server_needs_no_torch(server):
    code = (
        "import sys, glm4v_magic\n"
        f"print(glm4v_magic.load({server.url!r}).ask('Q?'))\n"
        "print(sorted({'torch', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["Hello.", "[]"], done.stderr


def test_sampling_has_nothing_that_is_not_sent(session, server):
    values = {"max_tokens": 1, "temperature": 1.0, "top_p": 0.5, "top_k": 2, "min_p": 0.1}
    values |= {"repetition_penalty": 1.5, "seed": 1}
    assert {*values, "thinking", "effort", "max_thinking", "logprobs"} == set(
        Sampling.__dataclass_fields__
    )
    session.ask("Q?", **values)
    assert values.items() <= server.bodies[0].items()
    session.ask("Q?", effort="high")
    assert server.bodies[1]["reasoning_effort"] == "high"


def test_what_a_server_said_before_it_was_gone_is_kept_and_can_be_carried_on(session, server):
    server.answer(CHAT, stream(piece("A green"), done=False))
    with pytest.raises(EngineError, match="is kept, and can be carried on") as caught:
        session.ask("Q?", chat="a")
    assert caught.value.answer.text == session.conversation("a").unfinished == "A green"
    server.answer(CHAT, stream(piece("A red", "content_filter")))
    with pytest.raises(EngineError) as caught:
        session.ask("Q?", chat="b")
    assert caught.value.answer is None
