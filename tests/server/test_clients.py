"""The clients that people have, as they are installed, ask our own server.

LiteLLM and others that need an environment of their own: tests/engines/test_real_servers.py.
"""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from PIL import Image
from served import SECONDS, uri

from glm4v_magic.core.options import of_requests
from glm4v_magic.core.server_address import API_KEY
from glm4v_magic.server import worker
from glm4v_magic.server.protocol import ChatRequest

GREEDY = {"temperature": 0, "max_tokens": 8}
ASKED = [{"role": "user", "content": "What?"}]
KINDS = {"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}}, "required": ["kind"]}
KINDS["additionalProperties"] = False


@pytest.fixture(scope="module", autouse=True)
def surroundings():
    """A key, and no proxy and nothing else that these clients look for."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "http_proxy", "HTTP_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        patch.setenv("LANGSMITH_TRACING", "false")
        patch.setenv(API_KEY, "sesame")
        yield


@pytest.fixture(autouse=True)
def no_key():
    """These clients have one."""


@pytest.fixture(scope="module")
def openai():
    """The package; imported late, for every process collects this file."""
    import openai

    return openai


@pytest.fixture(scope="module")
def langchain_openai():
    import langchain_openai

    return langchain_openai


@pytest.fixture(scope="module")
def client(server, openai):
    with openai.OpenAI(base_url=server.url, api_key="sesame", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def answer(client):
    """The answer to `ASKED`, greedily."""
    whole = client.chat.completions.create(model="tiny", messages=ASKED, **GREEDY)
    return whole.choices[0].message.content


@pytest.fixture(scope="module")
def chat(server, langchain_openai):
    return langchain_openai.ChatOpenAI(
        base_url=server.url, api_key="sesame", model="tiny", **GREEDY
    )


def photo():
    return {"type": "image_url", "image_url": {"url": uri(Image.linear_gradient("L"))}}


class TestOpenAI:
    def test_every_field_of_the_client_is_known(self, openai):
        fields = openai.types.chat.completion_create_params
        named = {
            name
            for kind in (
                fields.CompletionCreateParamsNonStreaming,
                fields.CompletionCreateParamsStreaming,
            )
            for name in kind.__annotations__
        }
        assert {"messages", "stop", "n", "seed", "stream"} <= named
        assert named <= {*ChatRequest.model_fields, *(each.name for each in of_requests())}

    def test_an_answer(self, client, answer):
        whole = client.chat.completions.create(model="tiny", messages=ASKED, **GREEDY)
        assert whole.object == "chat.completion"
        assert whole.choices[0].finish_reason == "length"
        assert whole.choices[0].message.content == answer
        assert whole.usage.completion_tokens == 8
        assert whole.usage.completion_tokens_details.reasoning_tokens == 0
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + 8

    def test_a_stream(self, client, answer):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        pieces = [
            *client.chat.completions.create(model="tiny", messages=ASKED, **GREEDY, **options)
        ]
        said = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
        assert said.strip() == answer
        assert pieces[0].choices[0].delta.role == "assistant"
        assert [p.usage.completion_tokens for p in pieces if p.usage] == [8]
        stop = {"stop": answer[2]}  # this helper refuses an answer that is cut off
        with client.chat.completions.stream(
            model="tiny", messages=ASKED, **GREEDY, **stop
        ) as stream:
            final = stream.get_final_completion()
        assert final.choices[0].message.content.strip() == answer[: answer.index(answer[2])]

    def test_an_image_and_a_conversation(self, client):
        content = [{"type": "text", "text": "What?"}, photo()]
        first = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": content}], **GREEDY
        )
        # The message as the client has it, with all its keys.
        messages = [{"role": "user", "content": content}, first.choices[0].message, *ASKED]
        second = client.chat.completions.create(model="tiny", messages=messages, **GREEDY)
        assert second.usage.prompt_tokens > first.usage.total_tokens

    def test_several_answers_stop_texts_and_log_probabilities(self, client, answer):
        whole = client.chat.completions.create(
            model="tiny", messages=ASKED, n=2, stop=[answer[2]], logprobs=True, top_logprobs=2,
            **GREEDY,
        )  # fmt: skip
        first, second = whole.choices
        assert first.message.content == second.message.content == answer[: answer.index(answer[2])]
        assert first.finish_reason == "stop"
        for token in first.logprobs.content:
            assert token.logprob <= 0
            assert len(token.top_logprobs) == 2

    def test_a_form_as_a_class(self, client):
        from typing import Literal

        from pydantic import BaseModel

        class Animal(BaseModel):
            kind: Literal["cat", "dog"]

        whole = client.chat.completions.parse(
            model="tiny", messages=ASKED, response_format=Animal, temperature=0, max_tokens=60
        )
        assert whole.choices[0].message.parsed.kind in ("cat", "dog")

    def test_models(self, client):
        assert [each.id for each in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").owned_by == "glm4v_magic"

    def test_errors_are_of_the_clients_own_kinds(self, openai, client, monkeypatch):
        create = client.chat.completions.create
        with pytest.raises(openai.NotFoundError, match="no model 'gpt-7' here"):
            create(model="gpt-7", messages=ASKED)
        with pytest.raises(openai.BadRequestError, match="this server takes only"):
            create(model="tiny", messages=ASKED, frequency_penalty=1)
        with pytest.raises(openai.BadRequestError, match="does not know 'zeal'"):
            create(model="tiny", messages=ASKED, extra_body={"zeal": 1})
        with pytest.raises(openai.AuthenticationError, match="Wrong key"):
            client.with_options(api_key="wrong").models.list()
        monkeypatch.setattr(worker, "MOST_REQUESTS", 0)
        with pytest.raises(openai.RateLimitError, match="Ask again later") as busy:
            create(model="tiny", messages=ASKED)
        assert busy.value.response.headers["Retry-After"] == "1"

    def test_an_error_in_the_middle_of_a_stream(self, openai, client, engine):
        steps = []

        def fail(*_):
            steps.append(1)
            if len(steps) == 4:
                raise RuntimeError("expected scalar type Half")

        handle = engine.model.lm_head.register_forward_hook(fail)
        pieces = client.chat.completions.create(model="tiny", messages=ASKED, stream=True, **GREEDY)
        with pytest.raises(openai.APIError, match="expected scalar type Half"):
            list(pieces)
        handle.remove()

    def test_many_at_once(self, openai, server, answer):
        async def ask_all():
            async with openai.AsyncOpenAI(base_url=server.url, api_key="sesame") as client:
                asked = client.chat.completions.create
                tasks = [asked(model="tiny", messages=ASKED, **GREEDY) for _ in range(16)]
                return await asyncio.gather(*tasks)

        answers = asyncio.run(ask_all())
        assert {each.choices[0].message.content for each in answers} == {answer}

    def test_a_stream_that_is_closed_is_given_up(self, client, engine, monkeypatch):
        """`close` is all that a user of this client does to stop."""
        steps, go_on = [], threading.Event()

        def count(*_):
            steps.append(1)
            if len(steps) == 3:
                assert go_on.wait(SECONDS)

        left = threading.Event()
        leave = worker.Worker.leave

        def leave_noted(self, turn):
            leave(self, turn)
            left.set()

        monkeypatch.setattr(worker.Worker, "leave", leave_noted)
        handle = engine.model.lm_head.register_forward_hook(count)
        stream = client.chat.completions.create(
            model="tiny", messages=ASKED, stream=True, temperature=0, max_tokens=60
        )
        next(iter(stream))
        stream.close()
        assert left.wait(SECONDS)
        go_on.set()
        client.chat.completions.create(model="tiny", messages=ASKED, temperature=0, max_tokens=1)
        handle.remove()
        assert len(steps) <= 6


class TestLangChain:
    def test_an_answer(self, chat, answer):
        given = chat.invoke("What?")
        assert given.content == answer
        assert given.usage_metadata["output_tokens"] == 8
        assert given.response_metadata["finish_reason"] == "length"

    def test_a_stream(self, chat, answer):
        pieces = [*chat.stream("What?")]
        assert len(pieces) > 3
        assert "".join(each.content for each in pieces).strip() == answer

    def test_many_and_an_image_and_stop_texts(self, chat, answer):
        assert [each.content for each in chat.batch(["What?"] * 3)] == [answer] * 3
        content = [{"type": "text", "text": "What?"}, photo()]
        plain = chat.invoke("What?").usage_metadata["input_tokens"]
        seen = chat.invoke([{"role": "user", "content": content}])
        assert seen.usage_metadata["input_tokens"] > plain
        stopped = chat.invoke("What?", stop=[answer[2]])
        assert stopped.content == answer[: answer.index(answer[2])]

    @pytest.mark.parametrize("method", ["json_schema", "json_mode"])
    def test_a_form(self, langchain_openai, server, method):
        chat = langchain_openai.ChatOpenAI(
            base_url=server.url, api_key="sesame", model="tiny", temperature=0, max_tokens=60
        )
        if method == "json_mode":  # any object: a model of random weights does not end it
            given = chat.bind(response_format={"type": "json_object"}).invoke("What?")
            assert given.content.startswith("{")
        else:
            schema = {"title": "Animal", "description": "An animal.", **KINDS}
            given = chat.with_structured_output(schema, method=method).invoke("What?")
            assert json.dumps(given) in ('{"kind": "cat"}', '{"kind": "dog"}')
