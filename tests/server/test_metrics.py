"""What our server tells about itself: counts and times for Prometheus, and its OpenAPI document."""

from __future__ import annotations

import contextlib
import json
import threading

import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from served import CHAT, SECONDS, ask, begun, data_of, question, send, serving, uri

from glm4v_magic.core.server_address import API_KEY
from glm4v_magic.server import worker


@pytest.fixture
def server(engine):
    with serving(engine) as server:
        yield server


def metrics(server):
    """Samples by name, or by name and outcome."""
    status, (text,) = send(server, "GET", "/metrics")
    assert status == 200
    found = {}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            name = each.name.removeprefix("glm4v_magic_")
            if not name.endswith("_created"):
                found[each.labels.get("outcome", name)] = each.value
    return found


@contextlib.contextmanager
def held(engine):
    """The model waits at its next step until the context ends."""
    holding, go_on = threading.Event(), threading.Event()

    def wait(*_):
        holding.set()
        assert go_on.wait(SECONDS)

    handle = engine.model.lm_head.register_forward_hook(wait)
    try:
        yield holding
    finally:
        go_on.set()
        handle.remove()


class TestMetrics:
    @pytest.mark.parametrize("stream", [False, True])
    def test_an_answer(self, server, stream):
        photo = {"type": "image_url", "image_url": uri(Image.linear_gradient("L"))}
        asked = question([photo, {"type": "text", "text": "What?"}], n=2)
        usage = ask(server, asked)[1]["usage"]
        before = metrics(server)
        ask(server, asked | {"stream": stream})
        # A stream is over for its client a moment before it is for the server.
        after = _until(server, lambda now: now["answered"] == before["answered"] + 1)
        new = {name: after[name] - before[name] for name in before}
        assert new["prompt_tokens_total"] == usage["prompt_tokens"]
        assert new["image_tokens_total"] == usage["prompt_tokens_details"]["image_tokens"] > 0
        assert new["answer_tokens_total"] == usage["completion_tokens"] == 16
        assert new["first_token_seconds_count"] == new["answer_seconds_count"] == 1
        assert 0 < new["first_token_seconds_sum"] <= new["answer_seconds_sum"]

    def test_what_became_of_the_others(self, server, engine, monkeypatch):
        assert ask(server, question(max_tokens=0))[0] == 400
        assert send(server, "POST", CHAT, b"{}")[0] == 415
        assert ask(server, question(model="other"))[0] == 404
        assert metrics(server)["refused"] == 3
        monkeypatch.setattr(worker, "MOST_REQUESTS", 0)
        assert ask(server, question())[0] == 429
        assert metrics(server)["busy"] == 1

        def fail(*_):
            raise RuntimeError("expected scalar type Half")

        handle = engine.model.lm_head.register_forward_hook(fail)
        monkeypatch.undo()
        assert ask(server, question())[0] == 500
        assert ask(server, question(stream=True))[0] == 500
        handle.remove()
        assert metrics(server)["failed"] == 2
        assert "answered" not in metrics(server)

    @pytest.mark.parametrize("stream", [False, True])
    def test_who_runs_waits_and_leaves(self, engine, stream):
        with serving(engine, at_once=1) as server, held(engine) as holding:
            with begun(server, question(stream=stream)) as first:
                assert holding.wait(SECONDS)
                with begun(server, question(stream=stream)):
                    _until(server, lambda now: now["requests_waiting"] == 1)
                    assert metrics(server)["requests_running"] == 1
                    assert metrics(server)["requests_at_once"] == 1
                first.close()
            _until(server, lambda now: now.get("left") == 2)

    def test_a_stream_that_fails_in_the_middle(self, server, engine):
        steps = []

        def fail(*_):
            steps.append(1)
            if len(steps) == 4:
                raise RuntimeError("expected scalar type Half")

        handle = engine.model.lm_head.register_forward_hook(fail)
        events = data_of(ask(server, question(stream=True))[1])
        handle.remove()
        assert "choices" in events[0]
        assert "error" in events[-1]
        now = _until(server, lambda now: now.get("failed"))
        assert now["failed"] == now["first_token_seconds_count"] == 1
        assert now["answer_seconds_count"] == 0

    def test_they_need_the_key(self, server, monkeypatch):
        monkeypatch.setenv(API_KEY, "sesame")
        for path in ("/metrics", "/openapi.json"):
            assert send(server, "GET", path)[0] == 401
            assert send(server, "GET", path, headers={"Authorization": "Bearer sesame"})[0] == 200


def _until(server, holds):
    ticks = threading.Event()
    for _ in range(SECONDS * 20):
        if holds(now := metrics(server)):
            return now
        ticks.wait(0.05)
    raise AssertionError(metrics(server))


@pytest.fixture(scope="module")
def document(engine):
    with serving(engine) as server:
        return send(server, "GET", "/openapi.json")[1]


def check(document, name, content):
    """Check content against a schema of the document."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(content)


class TestOpenAPI:
    def test_it_is_whole(self, document):
        assert document["openapi"] == "3.1.0"
        text = json.dumps(document)
        names = {each.partition('"')[0] for each in text.split('"#/components/schemas/')[1:]}
        assert names <= document["components"]["schemas"].keys()
        assert document["components"]["schemas"].keys() <= {*names, "Chunk"}

    def test_its_paths_are_the_servers(self, server, document):
        for path, methods in document["paths"].items():
            for method in methods:
                if method != "parameters":
                    status, _ = send(server, method.upper(), path.replace("{name}", "tiny"))
                    assert status in (200, 415), path

    @pytest.mark.parametrize(
        "more",
        [
            {},
            {"stop": "x", "n": 2, "seed": 1, "top_p": None},
            {"stop": ["x", "y"], "tools": [], "logit_bias": {}, "temperature": 0.5},
            {"response_format": {"type": "json_object"}, "max_completion_tokens": 9},
            {"logprobs": True, "top_logprobs": 2, "frequency_penalty": 0},
        ],
    )
    def test_requests_and_answers_are_of_its_schemas(self, server, document, more):
        asked = question(**more)
        check(document, "ChatRequest", asked)
        status, answer = ask(server, asked)
        assert status == 200
        check(document, "Completion", answer)
        for each in data_of(ask(server, asked | {"stream": True})[1]):
            check(document, "Chunk", each)
        content = [{"type": "image_url", "image_url": {"url": "data:,"}}]
        check(document, "ChatRequest", question(content))

    def test_the_rest(self, server, document):
        check(document, "Models", send(server, "GET", "/v1/models")[1])
        check(document, "Model", send(server, "GET", "/v1/models/tiny")[1])
        check(document, "ErrorBody", send(server, "GET", "/nothing")[1])

    @pytest.mark.parametrize(
        "wrong",
        [{"zeal": 1}, {"messages": "x"}, {"n": 129}, {"top_k": "x"}, {"tools": [{}]}, {"stop": 1}],
    )
    def test_what_is_refused_is_not_of_its_schema(self, server, document, wrong):
        asked = question(**wrong)
        assert ask(server, asked)[0] == 400
        with pytest.raises(Exception, match="schema"):
            check(document, "ChatRequest", asked)
