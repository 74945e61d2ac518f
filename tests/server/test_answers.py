"""The same answers from our own server as from the model in this process."""

from __future__ import annotations

import base64

import golden
import pytest
import tiny_native
from clips import write_clip
from following import returned
from PIL import Image
from served import ask, assert_error, data_of, question, send, serving, uri

from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.events import Finished, Text
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.server_address import ServerAddress
from glm4v_magic.engines.server import connect
from glm4v_magic.session.session import Session

GREEDY = Sampling(temperature=0, max_tokens=16)


@pytest.fixture(scope="module")
def remote(server):
    engine = returned(connect(ServerAddress(server.url)))
    yield engine
    engine.close()


def generated(engine, request):
    """The generation, and the pieces of its text."""
    *pieces, last = engine.stream([request])
    assert isinstance(last, Finished)
    assert all(isinstance(piece, Text) for piece in pieces)
    return last.generation, [piece.text for piece in pieces]


@pytest.mark.parametrize("case", golden.SINGLE_ROW)
def test_greedy_answers_of_the_reference_cases(local, remote, case):
    request = Request(golden.conversation(case), GREEDY)
    expected, here = generated(local.engine, request)
    given, there = generated(remote, request)
    assert given.text == expected.text
    assert given.finish_reason == expected.finish_reason
    for name in ("text_tokens", "visual_tokens", "new_tokens"):
        assert getattr(given.usage, name) == getattr(expected.usage, name)
    assert there == here


def test_an_answer_that_goes_on(local, remote):
    turns = (Message("user", "What?"), Message("assistant", "It is a", complete=False))
    request = Request(Conversation(turns), GREEDY)
    expected, _ = generated(local.engine, request)
    assert generated(remote, request)[0].text == expected.text
    fresh = Request(Conversation(turns[:1]), GREEDY)
    assert generated(local.engine, fresh)[0].text != expected.text


def test_an_answer_that_goes_on_is_not_taken_for_a_new_one(remote):
    question = Message("user", "What?")
    begun, _ = generated(remote, Request(Conversation((question,)), GREEDY))
    turns = (question, Message("assistant", begun.text, complete=False))
    assert generated(remote, Request(Conversation(turns), GREEDY))[0].notice == ""


def test_sampled_answers_with_a_seed(local, remote):
    changes = (
        {},
        {"seed": 2},
        {"top_k": 1},
        {"top_p": 0.0001},
        {"min_p": 1.0},
        {"repetition_penalty": 50},  # as JSON has it: a whole number
        {"max_tokens": 3},
    )
    conversation = Conversation((Message("user", "What?"),))
    texts = []
    for change in changes:
        values = {"max_tokens": 12, "temperature": 1.5, "seed": 1, **change}
        request = Request(conversation, Sampling(**values))
        expected, _ = generated(local.engine, request)
        texts.append(generated(remote, request)[0].text)
        assert texts[-1] == expected.text, change
    assert len(set(texts)) == len(texts) - 2  # three of them are greedy


def test_the_facts_of_the_model(local, remote):
    here, there = local.engine.info, remote.info
    assert there.model == "tiny"
    for name in (
        "notice",
        "max_images",
        "image_size",
        "visual_tokens",
        "largest_image",
        "tells_images",
        "context",
        "thinks",
        "efforts",
    ):
        assert getattr(there, name) == getattr(here, name)


def test_the_model_by_its_name(server):
    (entry,) = send(server, "GET", "/v1/models")[1]["data"]
    assert send(server, "GET", "/v1/models/tiny") == (200, entry)
    status, content = send(server, "GET", "/v1/models/a/b")
    assert status == 404
    assert content["error"]["message"] == "There is no model 'a/b' here. This is tiny."


@pytest.mark.parametrize("given", [None, {}, {"enable_thinking": False}])
def test_a_client_may_say_that_it_is_not_to_think(server, given):
    plain = ask(server, question())[1]["choices"]
    assert ask(server, question(chat_template_kwargs=given))[1]["choices"] == plain


def placed(tokens):
    """Tokens in the text with their probabilities; a server tells no others, and no ids."""
    return [
        (
            each.text,
            round(each.logprob, 3),
            each.start,
            each.end,
            [(one.text, round(one.logprob, 3)) for one in each.alternatives],
        )
        for each in tokens
        if each.start < each.end
    ]


def test_the_thinking_of_a_model_that_thinks(native):
    session = Session().load(native("glm46v"))
    asked = {"temperature": 0, "repetition_penalty": 1.0, "max_tokens": 60, "logprobs": 2}
    with serving(session.engine, "m") as server:
        for options in ({}, {"thinking": True}, {"thinking": False}, {"max_thinking": 3}):
            with tiny_native.Says(session.engine, "\n<think>\nOne or two?</think>\nTwo."):
                here = session.ask("What?", **asked, **options)
            remote = Session().load(server.url)
            with tiny_native.Says(session.engine, "\n<think>\nOne or two?</think>\nTwo."):
                there = remote.ask("What?", **asked, **options)
            assert (there.thinking, there.text) == (here.thinking, here.text)
            assert placed(there.tokens) == placed(here.tokens)
            assert placed(there.thinking_tokens) == placed(here.thinking_tokens)
            assert bool(placed(there.thinking_tokens)) == bool(there.thinking)
            remote.unload()
        for given, budget in ((True, None), (None, 3)):
            body = question(
                **asked | {"logprobs": True},
                chat_template_kwargs={"enable_thinking": given},
                thinking_token_budget=budget,
            )
            with tiny_native.Says(session.engine, "\n<think>\nOne or two?</think>\nTwo."):
                (choice,) = ask(server, body)[1]["choices"]
            assert choice["message"]["reasoning_content"].startswith("On")
            assert (choice["message"]["reasoning_content"] == "One or two?") == (budget is None)
    session.unload()


@pytest.mark.parametrize("first", [4, 24])
def test_thinking_that_goes_on(native, first):
    """The answer is stopped in its thinking, or behind it."""
    said = "\n<think>\nOne or two?</think>\nTwo, or three, or four of them."
    session = Session().load(native("glm46v"))
    asked = {"temperature": 0, "repetition_penalty": 1.0}
    with serving(session.engine, "m") as server:
        remote = Session().load(server.url)
        answers = []
        for each in (session, remote):
            with tiny_native.Says(session.engine, said):
                begun = each.ask("What?", **asked, max_tokens=first)
            assert bool(begun.text) == (first == 24)
            answers.append(each.carry_on(**asked, max_tokens=8))
        remote.unload()
    session.unload()
    here, there = answers
    assert (there.thinking, there.text) == (here.thinking, here.text)


def test_the_effort_of_a_model_that_has_the_choice(native):
    session = Session().load(native("glm5_next"))
    asked = {"temperature": 0, "repetition_penalty": 1.0, "max_tokens": 8}
    with serving(session.engine, "m") as server:
        remote = Session().load(server.url)
        for effort in (None, "low", "max"):
            here = session.ask("What?", **asked, effort=effort)
            there = remote.ask("What?", **asked, effort=effort)
            assert (there.thinking, there.text) == (here.thinking, here.text)
        status, content = ask(server, question(**asked, reasoning_effort="none"))
        assert (status, "always thinks" in content["error"]["message"]) == (400, True)
        remote.unload()
    session.unload()


def test_in_one_piece(local, server):
    status, content = ask(server, question())
    assert status == 200
    expected = local.ask("What?", temperature=0, max_tokens=8)
    (choice,) = content["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    assert choice["finish_reason"] == "length"
    assert content["usage"]["completion_tokens"] == 8
    assert content["usage"]["prompt_tokens"] == expected.usage.text_tokens


def test_in_pieces(server):
    plain = ask(server, question(stream=True))[1]
    with_usage = ask(server, question(stream=True, stream_options={"include_usage": True}))[1]
    assert plain[-2:] == with_usage[-2:] == ["data: [DONE]", ""]
    first, second, *_, last = data_of(plain)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert first["choices"][0]["finish_reason"] is None
    assert second["choices"][0]["delta"].keys() == {"content"}
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "length"
    assert not [event for event in data_of(plain) if "usage" in event]
    usage = data_of(with_usage)[-1]
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 8)


class TestLogProbabilities:
    def test_they_come_back_as_from_the_model_in_this_process(self, local, remote):
        for case in golden.SINGLE_ROW:
            sampling = Sampling(temperature=0, max_tokens=16, logprobs=3)
            request = Request(golden.conversation(case), sampling)
            expected, _ = generated(local.engine, request)
            given, _ = generated(remote, request)
            mine = [token for token in expected.tokens if token.start < token.end]
            assert len(given.tokens) == len(mine)
            for one, other in zip(given.tokens, mine, strict=True):
                assert one.id is None
                assert (one.text, one.utf8, one.start, one.end) == (
                    other.text,
                    other.utf8,
                    other.start,
                    other.end,
                )
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
                assert [each.text for each in one.alternatives] == [
                    each.text for each in other.alternatives
                ]

    def test_in_pieces_as_in_one(self, server):
        asked = {"logprobs": True, "top_logprobs": 2}
        _, whole = ask(server, question(**asked))
        _, events = ask(server, question(stream=True, **asked))
        (choice,) = whole["choices"]
        tokens = choice["logprobs"]["content"]
        joined = b"".join(bytes(token["bytes"]) for token in tokens).decode(errors="replace")
        assert joined.strip() == choice["message"]["content"]
        assert {len(token["top_logprobs"]) for token in tokens} == {2}
        assert tokens[0]["top_logprobs"][0].keys() == {"token", "logprob", "bytes"}
        pieces = [data["choices"][0].get("logprobs") for data in data_of(events)]
        streamed = [token for piece in pieces if piece for token in piece["content"]]
        # Whitespace at the end is a piece, and stripped from the whole.
        for one, other in zip(streamed, tokens, strict=False):
            assert one["bytes"] == other["bytes"]
            assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)
        assert len(streamed) >= len(tokens)

    def test_nobody_gets_them_who_does_not_ask(self, server):
        (choice,) = ask(server, question())[1]["choices"]
        assert choice["logprobs"] is None

    def test_of_a_model_that_thinks_they_come_at_the_end(self, native):
        """Its text is told in other pieces than those that its tokens make."""
        session = Session().load(native("glm46v"))
        with serving(session.engine, "m") as server:
            remote = returned(connect(ServerAddress(server.url)))
            request = Request(
                Conversation((Message("user", "What?"),)),
                Sampling(temperature=0, max_tokens=16, logprobs=1),
            )
            expected, _ = generated(session.engine, request)
            given, _ = generated(remote, request)
            remote.close()
        mine = [token.text for token in expected.tokens if token.start < token.end]
        assert [token.text for token in given.tokens] == mine != []


CHOICES = ("yes", "no", "perhaps")


class TestProbabilitiesOfChoices:
    def test_they_come_back_as_from_the_model_in_this_process(self, local, remote):
        for case in golden.SINGLE_ROW:
            form = Constraint(choices=CHOICES)
            request = Request(golden.conversation(case), GREEDY, form)
            expected, _ = generated(local.engine, request)
            given, _ = generated(remote, request)
            assert given.text == expected.text
            assert tuple(given.choices) == CHOICES
            assert given.choices == pytest.approx(expected.choices, rel=1e-3)

    def test_in_pieces_as_in_one(self, server):
        asked = {"structured_outputs": {"choice": list(CHOICES)}, "max_tokens": 16}
        (whole,) = ask(server, question(**asked))[1]["choices"]
        *before, last = data_of(ask(server, question(stream=True, **asked))[1])
        told = last["choices"][0]["glm4v_magic"]["choices"]
        assert told == pytest.approx(whole["glm4v_magic"]["choices"], rel=1e-4)
        assert sum(told.values()) == pytest.approx(1)
        assert not any("glm4v_magic" in piece["choices"][0] for piece in before)

    def test_nobody_gets_them_who_gives_no_choices(self, server):
        assert "glm4v_magic" not in ask(server, question())[1]["choices"][0]
        pieces = data_of(ask(server, question(stream=True))[1])
        assert not any("glm4v_magic" in piece["choices"][0] for piece in pieces)


@pytest.fixture(scope="module")
def seeing():
    session = Session().load("demo-4.6v")
    yield session
    session.unload()


@pytest.fixture(scope="module")
def of_clips(seeing):
    with serving(seeing.engine) as server:
        yield server


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "grey.mp4")


def asked_about(url, *more):
    parts = [*more, {"type": "video_url", "video_url": {"url": url}}]
    return question([*parts, {"type": "text", "text": "What moves?"}], max_tokens=12)


def test_an_answer_is_that_about_the_file(seeing, of_clips, clip):
    encoded = base64.b64encode(clip.read_bytes()).decode()
    image = Image.new("RGB", (112, 112), "red")
    expected = seeing.ask("What moves?", [image], video=clip, max_tokens=12, temperature=0)
    _, content = ask(
        of_clips,
        asked_about(
            f"data:video/mp4;base64,{encoded}",
            {"type": "image_url", "image_url": {"url": uri(image)}},
        ),
    )
    assert content["choices"][0]["message"]["content"] == expected.text
    assert content["usage"]["prompt_tokens"] == expected.usage.prompt_tokens


def test_a_clip_sent_as_an_image(of_clips, clip):
    """The advice is followed by the test above."""
    url = f"data:video/mp4;base64,{base64.b64encode(clip.read_bytes()).decode()}"
    said = "is video/mp4, not an image. Send it as a video_url, or one of its frames as a PNG."
    for sent in (url, url.replace("video/mp4", "image/png")):
        part = {"type": "image_url", "image_url": {"url": sent}}
        answer = ask(of_clips, question([part, {"type": "text", "text": "What?"}]))
        assert_error(answer, 400, said if sent == url else said.partition("image. ")[2])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.com/clip.mp4", "The clip of message 1 is not a data: URI. This"),
        ("data:video/mp4", "no comma. Write data:video/mp4;base64"),
        ("data:image/png;base64,AA==", "is image/png, not a clip. Clips are video/mp4, "),
        ("data:;base64,AA==", "is of no media type, not a clip"),
        ("data:video/mp4;base64,AA==", "clip of message 1 is damaged or no video"),
        ("data:video/mp4,%23EXTM3U%0A/etc/passwd", "damaged or no video"),
        (None, "is not a data: URI"),
    ],
)
def test_what_is_no_clip(of_clips, url, said):
    assert_error(ask(of_clips, asked_about(url)), 400, said)
