"""Many requests to one server: at the same time, again while it is busy, and in other words."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
from collections import Counter

import pytest
from following import returned
from PIL import Image
from scripted_server import CHAT, END, MODELS, SECONDS, models, piece, response, stream

from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.events import Failed, Finished
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.server_address import ServerAddress
from glm4v_magic.engines.server import connect, patience
from glm4v_magic.engines.server.background import Background
from glm4v_magic.engines.server.connection import Connection, read


def asking(*texts, **sampling):
    return [Request(Conversation((Message("user", text),)), Sampling(**sampling)) for text in texts]


class Hall:
    """What a server does with the requests it gets: counts them, and lets them wait for others.

    Attributes:
        most: most requests that were there at the same time.
        asked: number of requests with each text.
    """

    def __init__(self, server, together=1, reply=None):
        self._server, self._reply = server, reply or (lambda text, count: None)
        self._together = together
        self._happened = threading.Condition()
        self.here = self.most = 0
        self.asked = Counter()
        server.answer(CHAT, self._answer)

    def _answer(self, connection):
        with self._happened:
            text = json.loads(self._server.asked.body)["messages"][-1]["content"]
            self.asked[text] += 1
            refusal = self._reply(text, self.asked[text])
            self.here += 1
            self.most = max(self.most, self.here)
            self._happened.notify_all()
            if refusal is None:
                assert self._happened.wait_for(lambda: self.most >= self._together, SECONDS)
            self.here -= 1
        connection.sendall(stream(piece(f"A {text}"), END) if refusal is None else refusal)


@pytest.fixture
def engine(server):
    return returned(connect(ServerAddress(server.url, timeout=SECONDS)))


def answers(engine, requests, at_once=None):
    found = {}
    for event in engine.stream(requests, at_once):
        if isinstance(event, Failed):
            found[event.row] = event.error
        elif isinstance(event, Finished):
            found[event.row] = event.generation.text
    return [found[row] for row in range(len(found))]


TEXTS = [f"Q{number}" for number in range(32)]
ANSWERS = [f"A {text}" for text in TEXTS]


@pytest.fixture
def patient(monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE", SECONDS)


@pytest.mark.parametrize("at_once", [None, 3, 1])
def test_as_many_as_wanted_are_in_flight(server, engine, at_once):
    hall = Hall(server, together=at_once or 16)
    assert answers(engine, asking(*TEXTS), at_once) == ANSWERS
    assert hall.most == (at_once or 16)


def test_a_server_that_cuts_answers_off_for_others_is_asked_one_by_one(server):
    server.answer(MODELS, models("m", object="model", owned_by="me", permissions=[]))
    hall = Hall(server)
    engine = returned(connect(ServerAddress(server.url, timeout=SECONDS)))
    assert engine.batch_size == 1
    assert answers(engine, asking(*TEXTS[:5]), 16) == ANSWERS[:5]
    assert hall.most == 1


SLOW_DOWN = response(status="429 Too Many Requests")
REFUSALS = [
    SLOW_DOWN,
    response(status="503 Service Unavailable", Retry_After="0"),
    response(status="502 Bad Gateway"),
    response(status="504 Gateway Timeout"),
    b"",
]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_server_that_refuses_every_second_request_loses_none(server, engine, patient, refusal):
    def reply(text, count):
        return refusal if count == 1 and int(text[1:]) % 2 else None

    hall = Hall(server, reply=reply)
    assert answers(engine, asking(*TEXTS)) == ANSWERS
    assert sum(hall.asked.values()) == 48


def test_a_server_that_stays_busy_is_given_up(server, engine):
    Hall(server, reply=lambda *_: SLOW_DOWN)
    (error,) = answers(engine, asking("Q"))
    assert isinstance(error, EngineError)
    assert "429 Too Many Requests" in str(error)
    assert len(server.bodies) == 1


def test_a_connection_that_always_breaks_is_given_up_soon(server, engine, patient):
    hall = Hall(server, reply=lambda *_: b"")
    (error,) = answers(engine, asking("Q"))
    assert "broke" in str(error)
    assert hall.asked["Q"] == 4


@pytest.mark.parametrize(
    ("refusal", "reach"),
    [
        (response(status="400 Bad Request"), "request"),
        (response(status="413 Content Too Large"), "request"),
        (response(status="422 Unprocessable Entity"), "request"),
        (response(status="401 Unauthorized"), "all"),
        (response(status="500 Internal Server Error"), "unknown"),
        (stream(piece("A", "content_filter")), "request"),
        (stream(piece("A"), {"error": {"message": "No.", "code": 400}}), "request"),
        (stream(piece("A"), {"error": {"message": "No.", "code": 500}}), "unknown"),
    ],
)
def test_an_error_tells_whether_others_may_be_answered(server, engine, refusal, reach):
    server.answer(CHAT, refusal)
    (error,) = answers(engine, asking("Q"))
    assert error.reach == reach


def test_less_is_in_flight_after_a_refusal_and_more_after_answers():
    allowance = patience.Allowance(16)
    allowance.refused(1e9)
    assert allowance.count == 12
    allowance.refused(0)  # sent before that
    assert allowance.count == 12
    for _ in range(9):
        allowance.answered()
    assert allowance.count == 16
    for _ in range(99):
        allowance.refused(1e9)
    assert allowance.count == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0.5", 0.5),
        ("", None),
        ("soon", None),
        ("9" * 400, None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
    ],
)
def test_what_a_server_says_about_when_to_ask_again(header, seconds):
    assert patience.retry_after({"retry-after": header}) == seconds
    assert patience.retry_after({"retry-after": header, "retry-after-ms": "250"}) == 0.25


def test_a_quota_that_is_used_up_is_not_waited_for(server, engine, patient):
    error = {"message": "You exceeded your quota.", "code": "insufficient_quota"}
    hall = Hall(server, reply=lambda *_: response({"error": error}, "429 Too Many Requests"))
    (failed,) = answers(engine, asking("Q"))
    assert str(failed).endswith("You exceeded your quota.")
    assert hall.asked["Q"] == 1


def test_one_that_says_longer_than_anybody_waits_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE", 60)
    assert patience.Patience().wait(3600) is None
    assert patience.Patience().wait(5) == 5


def test_a_server_that_names_no_pause_is_not_asked_ever_faster(monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE", 60)
    pauses = patience.Patience()
    waits = [pauses.wait(0.0) for _ in range(8)]
    assert waits[0] > 0.05
    assert waits[-1] > 5


def test_a_request_that_is_withdrawn_leaves_the_others_alone(server, engine):
    withdrawn = set()
    Hall(server, together=2)
    events = engine.stream(asking("Q0", "Q1"), 2, withdrawn)
    first = next(events)
    withdrawn.add(1 - first.row)
    assert [each.row for each in events if isinstance(each, Finished)] == [first.row]


def test_requests_that_have_not_arrived_are_waited_for(server, engine):
    Hall(server)
    (asked,) = asking("Q")
    assert answers(engine, [None, asked, None, None, asked]) == ["A Q", "A Q"]


class TestDialects:
    """Servers that do not take what others do."""

    @pytest.mark.parametrize(
        ("said", "sent"),
        [
            ("Unknown parameter: stream_options", {"max_tokens", "stream"}),
            (
                "Unsupported parameter: use 'max_completion_tokens' instead",
                {"max_completion_tokens", "stream", "stream_options"},
            ),
        ],
    )
    def test_fields_in_another_way(self, server, engine, said, sent):
        def reply(_text, _count):
            wrong = said.split()[2] in server.bodies[-1] or "max_tokens" in server.bodies[-1]
            wrong = "stream_options" in server.bodies[-1] if "stream_" in said else wrong
            return response({"error": {"message": said}}, "400 Bad Request") if wrong else None

        Hall(server, reply=reply)
        assert answers(engine, asking("Q", max_tokens=9)) == ["A Q"]
        assert answers(engine, asking("R", max_tokens=9)) == ["A R"]
        assert len(server.bodies) == 3  # it is known by then
        last = server.bodies[-1].keys()
        assert last & {"max_tokens", "max_completion_tokens", "stream", "stream_options"} == sent

    def test_all_that_are_in_flight_when_it_is_learnt_are_asked_again(self, server, engine):
        def reply(_text, _count):
            is_wrong = b"stream_options" in server.asked.body  # of this connection
            return response({"error": "stream_options"}, "400 Bad Request") if is_wrong else None

        Hall(server, reply=reply)
        assert answers(engine, asking(*TEXTS[:8])) == ANSWERS[:8]

    @pytest.mark.parametrize(
        ("said", "times"), [("invalid: upstream says no", 1), ("The stream of images is bad.", 2)]
    )
    def test_a_refusal_for_something_else_teaches_nothing(self, server, engine, said, times):
        refusal = response({"error": {"message": said}}, "400 Bad Request")
        hall = Hall(server, reply=lambda text, _count: refusal if text == "Q" else None)
        (error,) = answers(engine, asking("Q"))
        assert said.rstrip(".") in str(error)
        assert hall.asked["Q"] == times
        assert answers(engine, asking("R")) == ["A R"]
        assert server.bodies[-1]["stream"]
        assert server.bodies[-1]["stream_options"]

    def test_an_answer_in_one_piece(self, server, engine):
        message = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
        whole = {"choices": [{"index": 0, "message": message, "finish_reason": "length"}]}
        server.answer(CHAT, response(whole | {"usage": {"completion_tokens": 4}}))
        *_, finished = engine.stream(asking("Q"))
        generation = finished.generation
        assert (generation.thinking, generation.text) == ("Hm.", "Yes.")
        assert (generation.finish_reason, generation.usage.new_tokens) == ("length", 4)


class TestWhatIsSaid:
    """What is no plain answer is handled, or said."""

    @pytest.mark.parametrize(
        ("deltas", "said"),
        [
            ([{"refusal": "I cannot "}, {"refusal": "do that."}], "refuses to answer: I cannot do"),
            ([{"tool_calls": [{"function": {"name": "look"}}]}], "calls a tool (look) in place of"),
            ([{"images": [{"image_url": {}}]}], "answers with what is not read here: images."),
            ([{"content": 5}, {"content": {}}], "content that is a number, content that is an ob"),
            ([{"content": [{"type": "audio"}]}], "answers with what is not read here: audio."),
        ],
    )
    def test_in_place_of_an_answer(self, server, engine, deltas, said):
        server.answer(CHAT, stream(*[piece(**each) for each in deltas], END))
        (error,) = answers(engine, asking("Q"))
        assert said in str(error)

    def test_beside_an_answer(self, server, engine):
        server.answer(CHAT, stream(piece("This.", audio={"data": "x"}), END))
        said = f"{server.url} sends further what is not read here: audio."
        assert notice(engine, asking("Q")[0]) == said

    @pytest.mark.parametrize(
        ("ending", "reason", "said"),
        [
            ("eos_token", "stop", ""),
            ("model_length", "length", ""),
            ("MAX_TOKENS", "length", ""),
            ("RECITATION", "unknown", "ends the answer with the word 'RECITATION': it may be cut"),
        ],
    )
    def test_the_word_for_the_end(self, server, engine, ending, reason, said):
        server.answer(CHAT, stream(piece("This."), piece(ending=ending)))
        *_, last = engine.stream(asking("Q"))
        assert last.generation.finish_reason == reason
        assert said in last.generation.notice
        assert bool(said) == bool(last.generation.notice)

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (response({"error": {"message": "Too long.", "code": 413}}), "answers 413: Too long."),
            (response({"detail": "No."}), "answers with an error: No."),
            (stream(b'event: error\ndata: {"message": "boom"}\n\n'), "with an error: boom."),
            (stream(b"event: error\ndata: boom\n\n"), "stopped with an error: boom."),
        ],
    )
    def test_an_error_with_the_status_200(self, server, engine, answer, said):
        server.answer(CHAT, answer)
        (error,) = answers(engine, asking("Q"))
        assert said in str(error)

    def test_one_that_is_busy_with_the_status_200_is_asked_again(self, server, engine, patient):
        busy = response({"error": {"message": "overloaded", "code": 529}})
        hall = Hall(server, reply=lambda _text, count: busy if count == 1 else None)
        assert answers(engine, asking("Q")) == ["A Q"]
        assert hall.asked["Q"] == 2

    @pytest.mark.parametrize(
        ("events", "text"),
        [
            ([rb"a\ud83d", rb"\ude00!"], "a\U0001f600!"),
            ([rb"a\ud83d", b"b"], "a\ufffdb"),
            ([rb"a\ude00"], "a\ufffd"),
            ([rb"a\ud83d"], "a\ufffd"),
        ],
    )
    def test_halves_of_characters(self, server, engine, events, text):
        sent = [b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % each for each in events]
        server.answer(CHAT, stream(*sent, END))
        assert answers(engine, asking("Q")) == [text]

    @pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", None])
    def test_a_stream_with_a_byte_order_mark_and_another_type(self, server, engine, kind):
        events = stream(piece("This."), END).partition(b"\r\n\r\n")[2]
        server.answer(CHAT, response(b"\xef\xbb\xbf" + events, kind=kind))
        assert answers(engine, asking("Q")) == ["This."]

    def test_the_text_of_a_completion(self, server, engine):
        server.answer(CHAT, stream({"choices": [{"index": 0, "text": "This."}]}, END))
        assert answers(engine, asking("Q")) == ["This."]

    def test_a_server_that_is_started_without_tools(self, server, engine):
        tool = {"tool_calls": [{"function": {"name": "look"}}]}
        server.answer(CHAT, stream(piece(**tool), END))
        (error,) = answers(engine, asking("Q"))
        assert str(error).endswith("None was offered: start the server without tools.")
        server.answer(CHAT, stream(piece("Yes."), END))
        assert answers(engine, asking("Q")) == ["Yes."]

    def test_content_as_a_list_of_parts(self, server, engine):
        parts = [{"type": "text", "text": "Two "}, {"type": "text", "text": "parts."}]
        server.answer(CHAT, stream(piece(parts), END))
        assert answers(engine, asking("Q")) == ["Two parts."]

    def test_choices_that_nobody_asked_for_are_left_out(self, server, engine):
        other = json.loads(json.dumps(piece("Other.")))
        other["choices"][0]["index"] = 1
        server.answer(CHAT, stream(piece("This"), other, piece("."), END))
        assert answers(engine, asking("Q")) == ["This."]
        said = f"{server.url} sends further answers, which are left out."
        assert notice(engine, asking("Q")[0]) == said

    def test_an_answer_that_ends_without_a_reason(self, server, engine):
        server.answer(CHAT, stream(piece("This")))
        assert notice(engine, asking("Q")[0]) == (
            f"{server.url} does not say why the answer ends here: it may be cut off."
        )
        (*_, last) = engine.stream(asking("Q"))
        assert last.generation.finish_reason == "unknown"


def notice(engine, request):
    *_, last = engine.stream([request])
    assert isinstance(last, Finished)
    return last.generation.notice


def counted(text, prompt, new, ending="length"):
    usage = {"usage": {"prompt_tokens": prompt, "completion_tokens": new}, "choices": []}
    return stream(piece(text), piece(ending=ending), usage)


class TestImages:
    """A server whose counts tell that it has left images out, without telling those of images."""

    UNREAD = "seems not to have read the image: it counts"

    @staticmethod
    def of(text, count=1):
        image = SourcedImage(Image.new("RGB", (9, 9)), "a.png", (9, 9))
        return Request(Conversation((Message("user", text, (image,) * count),)))

    @pytest.mark.parametrize(("prompt", "is_said"), [(17, True), (18, False)])
    def test_too_few_tokens_for_one(self, server, engine, prompt, is_said):
        server.answer(CHAT, counted("Red.", prompt, 2, "stop"))
        assert (self.UNREAD in notice(engine, self.of("What colour?"))) == is_said
        said = notice(engine, self.of("What colour?", 2))
        assert "seems not to have read any of the images" in said

    @pytest.mark.parametrize(("prompt", "is_said"), [(90, True), (91, False)])
    def test_as_many_tokens_as_without(self, server, engine, prompt, is_said):
        server.answer(CHAT, counted("Red.", 90, 2, "stop"))
        assert notice(engine, self.of("What colour?", 0)) == ""
        server.answer(CHAT, counted("Red.", prompt, 2, "stop"))
        assert (self.UNREAD in notice(engine, self.of("What colour?"))) == is_said
        assert notice(engine, self.of("What shape?")) == ""  # nothing is known of it

    def test_many_rows_of_one_question(self, server, engine):
        server.answer(CHAT, counted("Red.", 90, 2, "stop"))
        assert [notice(engine, self.of("What colour?")) for _ in range(3)] == [""] * 3


class TestCarryingOn:
    """A server that ignores the wish begins a new answer, by a prompt that is too long for it."""

    BEGUN = Conversation((Message("user", "Q?"), Message("assistant", "The cat", complete=False)))

    @pytest.fixture
    def begun(self, server, engine):
        server.answer(CHAT, counted("The cat", 10, 2))
        assert notice(engine, Request(Conversation(self.BEGUN.messages[:1]))) == ""

    @pytest.mark.parametrize(("prompt", "is_said"), [(11, False), (13, False), (14, True)])
    def test_the_length_of_the_prompt_tells(self, server, engine, begun, prompt, is_said):
        server.answer(CHAT, counted(" sleeps.", prompt, 3, "stop"))
        said = notice(engine, Request(self.BEGUN))
        assert (f"{server.url} seems to have begun a new answer" in said) == is_said
        assert server.bodies[-1]["continue_final_message"] is True

    def test_again_and_again(self, server, engine, begun):
        server.answer(CHAT, counted(" sleeps", 12, 3))
        assert notice(engine, Request(self.BEGUN)) == ""
        longer = Message("assistant", "The cat sleeps", complete=False)
        again = Request(Conversation((self.BEGUN.messages[0], longer)))
        server.answer(CHAT, counted(" now.", 15, 3))
        assert notice(engine, again) == ""

    @pytest.mark.parametrize("text_begun", ["The cat is sleeping on a mat", "The cat sits"])
    def test_where_nothing_is_counted_the_same_words_tell(self, server, engine, text_begun):
        text = text_begun
        turns = (Message("user", "Q?"), Message("assistant", text, complete=False))
        server.answer(CHAT, stream(piece(f" {text}, and dreams."), END))
        assert "seems to have begun a new answer" in notice(engine, Request(Conversation(turns)))
        server.answer(CHAT, stream(piece(", and dreams."), END))
        assert notice(engine, Request(Conversation(turns))) == ""

    def test_bytes_that_are_no_text_are_other_tokens_when_they_are_sent_back(self, server, engine):
        server.answer(CHAT, counted("The \ufffd", 10, 2))
        notice(engine, Request(Conversation(self.BEGUN.messages[:1])))
        odd = Message("assistant", "The \ufffd", complete=False)
        server.answer(CHAT, counted(" sleeps.", 14, 3, "stop"))
        assert notice(engine, Request(Conversation((self.BEGUN.messages[0], odd)))) == ""

    def test_a_chat_that_is_not_known_is_not_judged(self, server, engine):
        server.answer(CHAT, counted(" sleeps.", 99, 3, "stop"))
        assert notice(engine, Request(self.BEGUN)) == ""


def test_a_server_that_is_still_starting_is_waited_for(server, patient):
    starting = threading.Event()

    def answer(connection):
        is_first = not starting.is_set()
        starting.set()
        connection.sendall(response(status="503 Starting") if is_first else models("m"))

    server.answer(MODELS, answer)
    assert returned(connect(ServerAddress(server.url))).info.model == "m"


def test_a_request_that_is_cancelled_at_any_step_leaves_no_connection_open(server, caplog):
    connection = Connection(ServerAddress(server.url))
    caplog.set_level(logging.DEBUG, "httpcore")  # its log is the list of the steps

    async def ask():
        async with connection.open("GET", "/models") as response:
            await read(response)

    async def cancelled_at(step):
        """Cancel a request at a step; returns whether there is that step."""
        before = len(caplog.records)
        task = asyncio.create_task(ask())

        def is_there(_):
            if len(caplog.records) - before == step:
                task.cancel()
            return True

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(caplog.handler, "filters", [is_there])
            await asyncio.wait([task])
        return task.cancelled()

    with Background() as background:
        steps = [n for n in range(40) if returned(background.result(cancelled_at(n), "m"))]
    assert len(steps) > 5
    gc.collect()  # Python warns of what is open, and a warning is an error here
