"""What a request to our own server may hold, and who may send it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import socket

import pytest
from PIL import Image
from served import CHAT, JSON, ask, assert_error, data_of, question, send, uri

import glm4v_magic
from glm4v_magic.core.errors import ConversationError
from glm4v_magic.core.options import EFFORTS
from glm4v_magic.core.server_address import API_KEY
from glm4v_magic.server.protocol import ChatRequest, Only
from glm4v_magic.server.questions import read_question


class TestFields:
    @pytest.mark.parametrize(
        ("body", "status", "said"),
        [
            (b"{", 400, "The request is not valid JSON"),
            (b"\xff", 400, "not valid JSON"),
            (b"[" * 100_000, 400, "not valid JSON"),
            ([], 400, "The request is []: it should be an object."),
            (question(model="other"), 404, "no model 'other' here. This is tiny."),
            (question(zeal=[]), 400, "does not know 'zeal'. It takes add_generation_prompt, "),
            (question(chat_template_kwargs=[]), 400, "'chat_template_kwargs': it should be an obj"),
            (question(chat_template_kwargs={"x": 1}), 400, "entry 'chat_template_kwargs.x'"),
            (
                question(chat_template_kwargs={"enable_thinking": True}),
                400,
                "tiny does not think before it answers. Leave enable_thinking out of chat_templ",
            ),
            (question(thinking_token_budget=2), 400, "so there is no thinking to limit. Leave max"),
            (question(reasoning_effort="low"), 400, "no choice of it. Leave reasoning_effort out."),
            (question(top_p=-0.1), 400, "top_p is -0.1"),
            (question(seed=-(2**63) - 1), 400, "seed is -9223372036854775809, but must be a whole"),
            (question(seed=2**63), 400, "a whole number from -2**63 to 2**63 - 1."),
            (question(seed=1.5), 400, "seed is 1.5, but must be a whole number from -2**63 to 2"),
            (question([{"type": "refusal"}]), 400, "of the type refusal, but has no refusal"),
            (
                question([{"type": "refusal", "refusal": "No."}]),
                400,
                "only an assistant's message has a refusal",
            ),
            (question(max_thinking=-1), 400, "max_thinking is -1, but must be"),
            (question(temperature=-1), 400, "temperature is -1, but must be"),
            (question(max_tokens="9"), 400, "max_tokens is '9', but must be"),
            (
                question(max_tokens=None, max_completion_tokens=0),
                400,
                "max_completion_tokens is 0, but must",
            ),
            (question(repeat_penalty=0), 400, "repeat_penalty is 0, but must be"),
            (question(thinking_token_budget=-1), 400, "thinking_token_budget is -1, but must be"),
            (question(top_k=-2), 400, "top_k is -2, but must be"),
            (question(top_k=False), 400, "top_k is False, but must be"),
            (question(stop=5), 400, "has 5 for 'stop': it should be a string or a list"),
            (question(5), 400, "'messages[0].content': it should be a string or a list"),
            (question(stream="yes"), 400, "has 'yes' for 'stream': it should be a valid boolean"),
            (question(n="2"), 400, "has '2' for 'n': it should be"),
            (question(messages=None), 400, "'messages': it should be a list"),
            (question(messages=[]), 400, "no messages"),
            ({}, 400, "The request lacks 'messages'."),
            (question(messages=["x"]), 400, "'messages[0]': it should be an object"),
            (question(messages=[{"role": "tool"}]), 400, "'tool' for 'messages[0].role': it shou"),
            (question(messages=[{"role": "user"}]), 400, "The prompt is empty"),
            (question(" "), 400, "The prompt is empty"),
            (question("\ud800"), 400, "half a character"),
            (question([{"type": "audio"}]), 400, "'messages[0].content[0].type': it should be"),
            (
                question([{"type": "audio_url"}]),
                400,
                "takes text, images and clips (video_url), and no audio_url",
            ),
            (question([{"type": "video_url"}]), 400, "tiny takes no video. Ask about single"),
            (
                question([{"type": "video_url", "video_url": {"url": "", "fps": 1}}]),
                400,
                "'messages[0].content[0].video_url.fps'",
            ),
            (question([{"type": "text", "text": 1}]), 400, "it should be a valid string"),
            (question([{"type": "text"}]), 400, "of the type text, but has no text"),
            (question(messages=[{"role": "assistant", "content": "x"}]), 400, "last message is of"),
            (question(continue_final_message=True), 400, "last message is of the role 'user'"),
            (question("x" * 20_000), 400, "tokens long, but"),
        ],
    )
    def test_what_cannot_be_answered(self, server, body, status, said):
        assert_error(ask(server, body), status, said)

    @pytest.mark.parametrize("off", [-1, 0])
    def test_no_limit_of_the_likeliest_tokens_as_vllm_has_it(self, server, off):
        hot = {"temperature": 1e6, "seed": 1}
        texts = [
            ask(server, question(top_k=k, **hot))[1]["choices"][0]["message"]["content"]
            for k in (off, 10**9, 1)
        ]
        assert texts[0] == texts[1] != texts[2]

    def test_every_field_at_a_value_that_asks_for_nothing(self, server):
        """So that clients that send all they know can ask this server."""
        plain = ask(server, question())[1]["choices"]
        body = question()
        for name, field in ChatRequest.model_fields.items():
            kinds = [kind for kind in field.metadata if isinstance(kind, Only)]
            if kinds:
                body[name] = (*kinds[0].values, None)[0]
            elif "ignored" in field.metadata:
                body[name] = {"whatever": 1}
        body["response_format"] = {"type": "text"}
        assert {"tools", "store", "user"} <= body.keys()
        body |= {"n": 1, "stop": []}
        assert ask(server, body)[1]["choices"] == plain
        assert ask(server, question(**dict.fromkeys(body.keys() - question().keys())))[0] == 200

    @pytest.mark.parametrize(
        ("name", "value", "takes"),
        [
            ("tools", [{"function": {"strict": True}, "type": None}], "[]"),
            ("tool_choice", "required", '"none" or "auto"'),
            ("frequency_penalty", 0.5, "0"),
            ("verbosity", "low", '"medium"'),
            (
                "reasoning_effort",
                "much",
                '"none" or "minimal" or "low" or "medium" or "high" or "xhigh" or "max"',
            ),
        ],
    )
    def test_what_it_cannot_do(self, server, name, value, takes):
        shown = f"'{value}'" if isinstance(value, str) else json.dumps(value)
        said = f"has {shown} for '{name}': this server takes only {takes}."
        assert_error(ask(server, question(**{name: value})), 400, said)

    @pytest.mark.parametrize("name", ["audio", "moderation", "web_search_options"])
    def test_what_it_never_does(self, server, name):
        said = f"for '{name}': this server cannot do that; leave it out."
        assert_error(ask(server, question(**{name: {}})), 400, said)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"logprobs": "yes please"}, "logprobs"),
            ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21, but must be"),
            ({"logprobs": True, "top_logprobs": -1}, "top_logprobs is -1, but must be"),
            ({"top_logprobs": 2}, "top_logprobs is for requests with logprobs"),
        ],
    )
    def test_log_probabilities_that_are_not_possible(self, server, given, said):
        assert_error(ask(server, question(**given)), 400, said)

    def test_log_probabilities_that_nobody_wants(self, server):
        plain = ask(server, question())[1]["choices"]
        assert ask(server, question(logprobs=False, top_logprobs=0))[1]["choices"] == plain

    @pytest.mark.parametrize(
        ("name", "value"), [("n", 0), ("n", 129), ("n", "x"), ("stop", 1), ("stop", ["a", ""])]
    )
    def test_answers_and_stop_texts_that_are_not_possible(self, server, name, value):
        assert_error(ask(server, question(**{name: value})), 400, f"'{name}")

    def test_several_answers(self, server):
        sampled = {"n": 3, "temperature": 1, "seed": 5}
        whole = ask(server, question(**sampled))[1]
        texts = [each["message"]["content"] for each in whole["choices"]]
        assert [each["index"] for each in whole["choices"]] == [0, 1, 2]
        assert len({*texts}) > 1
        assert whole["usage"]["completion_tokens"] > 8  # those of all
        alone = ask(server, question(temperature=1, seed=6))[1]
        assert alone["choices"][0]["message"]["content"] == texts[1]
        assert alone["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
        events = data_of(ask(server, question(**sampled, stream=True))[1])
        said = ["", "", ""]
        for each in (choice for event in events for choice in event["choices"]):
            said[each["index"]] += each["delta"].get("content", "")
        assert [each.strip() for each in said] == texts

    @pytest.mark.parametrize("stream", [False, True])
    def test_stop_texts(self, server, stream):
        whole = ask(server, question())[1]["choices"][0]["message"]["content"]
        asked = question(stop=whole[2], stream=stream)
        if stream:
            choices = [e["choices"][0] for e in data_of(ask(server, asked)[1])]
            said = "".join(each["delta"].get("content", "") for each in choices)
            assert choices[-1]["finish_reason"] == "stop"
        else:
            (choice,) = ask(server, asked)[1]["choices"]
            said = choice["message"]["content"]
            assert choice["finish_reason"] == "stop"
        assert said.strip() == whole[: whole.index(whole[2])].strip()

    def test_max_tokens_by_its_newer_name(self, server):
        body = question(max_completion_tokens=3)
        del body["max_tokens"]
        assert ask(server, body)[1]["usage"]["completion_tokens"] == 3

    def test_the_newer_name_wins_over_the_deprecated_one(self, server):
        body = question(max_tokens=5, max_completion_tokens=3)
        assert ask(server, body)[1]["usage"]["completion_tokens"] == 3

    def test_developer_is_another_name_of_system(self, server):
        def answer(role):
            messages = [{"role": role, "content": "Be brief."}, *question()["messages"]]
            return ask(server, question(messages=messages))[1]["choices"]

        assert answer("developer") == answer("system")
        assert answer("system") != ask(server, question())[1]["choices"]

    def test_an_answer_sent_back_as_it_came(self, server):
        """The openai client copies a whole message, keys and all."""
        answer = ask(server, question())[1]["choices"][0]["message"]
        copied = {**answer, "refusal": None, "tool_calls": None, "audio": None, "annotations": []}
        before, after = question()["messages"], [{"role": "user", "content": "And?"}]
        plain = ask(server, question(messages=[*before, answer, *after]))
        assert plain[0] == 200
        full = ask(server, question(messages=[*before, copied, *after]))
        assert full[1]["choices"] == plain[1]["choices"]
        empty = {"role": "assistant", "content": None}
        assert ask(server, question(messages=[*before, empty, *after]))[0] == 200

    def test_a_refusal_sent_back_in_either_form(self, server):
        def answer(**said):
            messages = [*question()["messages"], {"role": "assistant", **said}]
            messages.append({"role": "user", "content": "And?"})
            return ask(server, question(messages=messages))[1]["choices"]

        part = answer(content=[{"type": "refusal", "refusal": "I will not."}])
        assert part == answer(content=None, refusal="I will not.") == answer(content="I will not.")
        assert part != answer(content=None)

    def test_a_nucleus_of_nothing_is_the_likeliest_token(self, server):
        def text(**said):
            return ask(server, question(seed=3, **said))[1]["choices"][0]["message"]["content"]

        assert text(top_p=0, temperature=2.0) == text(temperature=0) != text(temperature=2.0)

    def test_seeds_below_zero(self, server):
        def text(seed):
            reply = ask(server, question(temperature=1e6, seed=seed))[1]
            return reply["choices"][0]["message"]["content"]

        assert text(-5) == text(-5) == text(2**63 - 5) != text(5)

    def test_an_effort_by_the_names_of_the_protocol(self, server):
        efforts = {}
        for name in ("none", "minimal", "low", "medium", "high", "xhigh", "max"):
            asked = read_question(
                question(reasoning_effort=name), "m", thinks=True, efforts=EFFORTS
            )
            sampling = asked.requests[0].sampling
            efforts[name] = sampling.thinking if sampling.effort is None else sampling.effort
        assert efforts == {
            "none": False,
            "minimal": "low",
            "low": "low",
            "medium": None,
            "high": "high",
            "xhigh": "max",
            "max": "max",
        }
        assert ask(server, question(reasoning_effort="medium"))[0] == 200


class TestImages:
    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("http://127.0.0.1:1/cat.png", "image of message 1 is not a data: URI. This server"),
            ("file:///etc/passwd", "fetches nothing"),
            ("/etc/passwd", "fetches nothing"),
            (None, "fetches nothing"),
            ("data:image/png;base64,@@", "not valid base64"),
            ("data:text/html,<p>", "not an image"),
            ("data:image/png,hello", "is not an image"),
        ],
    )
    def test_images_it_does_not_take(self, server, url, said):
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
        assert_error(ask(server, question(content)), 400, said)
        message = {"role": "user", "content": "?", "image": url or "null"}
        assert_error(ask(server, question(messages=[message])), 400, said)

    def test_of_several_images_the_one_that_is_meant_is_named(self, server):
        urls = [uri(Image.new("RGB", size)) for size in ((8, 8), (2, 402))]
        parts = [{"type": "image_url", "image_url": url} for url in urls]
        body = question([*parts, {"type": "text", "text": "?"}])
        assert_error(ask(server, body), 400, "takes one image in a conversation")
        body = question([parts[0], {"type": "image_url", "image_url": "x"}])
        assert_error(ask(server, body), 400, "image 2 of message 1 is not a data: URI")

    def test_an_image_that_would_be_huge(self, server):
        buffer = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(buffer, format="png")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "?"}]
        assert_error(ask(server, question(content)), 400, "megapixels")

    def test_more_images_than_a_question_may_have(self):
        photo = {"type": "image_url", "image_url": {"url": uri(Image.new("RGB", (8, 8)))}}
        text = {"type": "text", "text": "?"}
        asked = read_question(question([*[photo] * 100, text]), "m")
        assert len(asked.requests[0].conversation.images) == 100
        said = r"has 101 images, and a question may have 100\. Ask about fewer images at once\."
        with pytest.raises(ConversationError, match=said):
            read_question(question([*[photo] * 101, text]), "m")

    def test_two_images_for_a_model_that_takes_one(self, server):
        photo = {"type": "image_url", "image_url": {"url": uri(Image.new("RGB", (8, 8)))}}
        content = [photo, photo, {"type": "text", "text": "?"}]
        said = "tiny takes one image in a conversation, and this one has 2."
        assert_error(ask(server, question(content, stream=True)), 400, said)

    def test_an_image_in_the_form_of_the_published_model(self, server):
        url = uri(Image.linear_gradient("L"))
        content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": url}]
        expected = ask(server, question(content))[1]
        message = {"role": "user", "content": "What?", "image": url}
        given = ask(server, question(messages=[message]))[1]
        assert given["choices"] == expected["choices"]
        assert given["usage"] == expected["usage"]
        assert given["usage"]["prompt_tokens_details"]["image_tokens"] > 0


class TestForms:
    def test_a_body_that_is_too_long(self, server):
        assert_error(ask(server, b"x" * (64 * 2**20 + 1)), 413, "may have 64 MiB; send less")
        pieces = (b"x" * 2**20 for _ in range(65))
        assert_error(send(server, "POST", CHAT, pieces, JSON), 413, "may have 64 MiB; send less")

    def test_a_body_in_chunks(self, server):
        body = json.dumps(question()).encode()
        pieces = (body[at : at + 9] for at in range(0, len(body), 9))
        status, content = send(server, "POST", CHAT, pieces, JSON)
        assert (status, content["usage"]["completion_tokens"]) == (200, 8)

    def test_requests_of_another_form(self, server):
        plain = {"Content-Type": "text/plain"}
        packed = {**JSON, "Content-Encoding": "gzip"}
        for answer, status, said in (
            (send(server, "GET", "/v1"), 404, "There is no /v1 here"),
            (send(server, "GET", "/v1/models/"), 404, "There is no "),
            (send(server, "POST", "/v1/completions", b"{}"), 404, "no /v1/completions here"),
            (send(server, "PUT", CHAT), 405, f"{CHAT} does not take PUT"),
            (send(server, "POST", CHAT, b"{}", plain), 415, "application/json, not text/plain"),
            (send(server, "POST", CHAT, b"{}"), 415, "application/json, not nothing"),
            (send(server, "POST", CHAT, b"x", packed), 415, "the body uncompressed, not as gzip"),
            (ask(server, b""), 411, "Content-Length"),
        ):
            assert_error(answer, status, said)

    def test_what_is_no_http(self, server):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b'GET "x"\0 / / /\r\n\r\n')
            assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
        assert ask(server, question())[0] == 200


class TestAccess:
    def test_a_page_that_points_its_own_name_here(self, server):
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
            assert_error(ask(server, question(), Host=host), 403, "its own computer only")
            assert send(server, "GET", "/health", headers={"Host": host})[0] == 403
        for host in ("localhost", "127.0.0.1:99", "[::1]:99", "[::1]"):
            assert ask(server, question(), Host=host)[0] == 200

    def test_the_key(self, server, monkeypatch):
        monkeypatch.setenv(API_KEY, "sesame")
        assert_error(ask(server, question()), 401, "A key is needed (Authorization: Bearer KEY).")
        for wrong in ("Bearer x", "Bearer", "Basic sesame", "sesame", "Bearer sesam\xe9"):
            assert_error(ask(server, question(), Authorization=wrong), 401, "Wrong key.")
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as plain:
            plain.request("GET", "/v1/models")
            reply = plain.getresponse()
            assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert send(server, "GET", "/nothing")[0] == 401
        assert send(server, "GET", "/health")[0] == 200  # tells nothing but that it runs
        for right in ("Bearer sesame", "bearer  sesame"):
            assert ask(server, question(), Authorization=right)[0] == 200
        assert glm4v_magic.load(server.url).ask("What?", temperature=0, max_tokens=4).text
        monkeypatch.setenv(API_KEY, "other")
        # The server runs in this process, so it has the same key; a wrong one is sent by hand.
        assert ask(server, question(), Authorization="Bearer sesame")[0] == 401


ONE_OR_TWO = {"enum": ["one", "two"]}


class TestAnswerForms:
    @pytest.mark.parametrize(
        "form",
        [
            {"response_format": {"type": "json_schema", "json_schema": {"schema": ONE_OR_TWO}}},
            {"structured_outputs": {"json": ONE_OR_TWO}},
            {"structured_outputs": {"choice": ['"one"', '"two"']}},
            {"structured_outputs": {"regex": '"(one|two)"'}},
            {"guided_json": ONE_OR_TWO},
            {"guided_choice": ['"one"', '"two"']},
            {"guided_regex": '"(one|two)"', "response_format": {"type": "text"}},
        ],
    )
    def test_the_answer_is_of_the_form(self, server, form):
        status, answer = ask(server, question(max_tokens=40, **form))
        assert status == 200
        assert answer["choices"][0]["message"]["content"] in ('"one"', '"two"')
        status, events = ask(server, question(max_tokens=40, stream=True, **form))
        assert status == 200
        assert "[DONE]" in "".join(events)

    def test_a_json_object(self, server):
        form = {"type": "json_object"}
        answer = ask(server, question(max_tokens=3, response_format=form))[1]
        assert answer["choices"][0]["message"]["content"].startswith("{")

    @pytest.mark.parametrize(
        ("form", "said"),
        [
            ({"response_format": {"type": "json_schema"}}, "has none"),
            ({"response_format": {"type": "xml"}}, "response_format"),
            ({"structured_outputs": {"grammar": "x"}}, "grammar"),
            ({"guided_regex": "("}, "unclosed group"),
            ({"guided_json": {"enum": []}}, "it allows no value"),
            ({"guided_json": {"type": "<script>"}}, "is not a JSON Schema"),
            ({"guided_choice": ["a", "a"]}, "at least two different texts"),
            ({"guided_choice": ["a", "b"], "guided_regex": "a"}, "more than once"),
        ],
    )
    def test_a_form_that_cannot_be_is_refused(self, server, form, said):
        assert_error(ask(server, question(**form)), 400, said)

    def test_a_schema_that_cannot_be_enforced_in_full_is_refused_if_strict(self, server):
        one = {"type": "array", "items": {"const": 1}, "maxItems": 1}
        schema = {"anyOf": [one, {"not": one}]}
        for strict, status in ((True, 400), (False, 200), (None, 200)):
            form = {"type": "json_schema", "json_schema": {"schema": schema, "strict": strict}}
            reply = ask(server, question(max_tokens=8, response_format=form))
            assert reply[0] == status
            if strict:
                assert_error(reply, 400, "The schema says not, which cannot be followed")
        form["json_schema"] = {"schema": one, "strict": True}
        assert ask(server, question(max_tokens=8, response_format=form))[0] == 200

    def test_without_the_package(self, server, without_llguidance):
        asked = question(response_format={"type": "json_object"})
        assert_error(ask(server, asked), 400, "pip install llguidance")
        assert ask(server, question(guided_choice=["a", "b"]))[0] == 200
