"""Many rows from Python: batches, planning, errors of rows, resuming. Real code, random weights."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace

import golden
import pandas as pd
import pytest
import torch
from following import follow, read
from PIL import Image
from scripted_server import CHAT, END, MODELS, models, piece, response, scripted_server, stream
from shells import TINY

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Request
from glm4v_magic.core.errors import (
    CheckpointError,
    ConversationError,
    EngineError,
    GenerationInterrupted,
    InputError,
    MapInterrupted,
    OptionError,
    OutOfMemoryError,
    PromptError,
)
from glm4v_magic.core.events import Failed, Text
from glm4v_magic.core.model import ModelChoice
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.rows import HALF, Rows
from glm4v_magic.engines import local
from glm4v_magic.mapping.answer_cache import AnswerStore, model_key
from glm4v_magic.notebook.render.rows import rows_bundle
from glm4v_magic.session.session import Session

GREEDY = {"temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def engine():
    return local.load(resolve(golden.CHECKPOINT))


@pytest.fixture(scope="module")
def session():
    session = Session()
    yield session
    session.unload()


@pytest.fixture
def loaded(session):
    """The module's session, its model loaded, without memory of answers."""
    session.forget_answers()
    return session.load(TINY)


@pytest.fixture(scope="module")
def photos():
    return [Image.linear_gradient("L").resize((30 + 5 * n, 40)).convert("RGB") for n in range(5)]


def test_a_list_gives_rows_with_answers_or_errors(loaded, photos):
    rows = loaded.map("What?", [*photos, "missing.png", 3], **GREEDY, batch_size=2)
    assert isinstance(rows, Rows)
    assert [row.text for row in rows[:5]] == [
        loaded.ask("What?", each, **GREEDY).text for each in photos
    ]
    assert all(max(row.answer.images[0].image.size) <= 64 for row in rows[:5])
    assert rows[1].answer.images[0].original_size == (35, 40)
    assert "no such file" in rows[5].error
    assert "is an int, not an image" in rows[6].error
    assert rows[5].answer is None
    assert str(rows[0]) == rows[0].text


def test_a_column_gives_a_dataframe(loaded, photos):
    frame = pd.DataFrame({"image": [*photos[:2], None], "name": list("abc")}, index=[7, 7, 1])
    found = loaded.map("A {{row.name}}?", frame, column="image", **GREEDY)
    assert list(found.index) == [7, 7, 1]
    assert list(found.columns) == [
        "image", "name", "answer", "error", "finish_reason", "new_tokens", "seed",
    ]  # fmt: skip
    assert found["answer"].iloc[1] == loaded.ask("A b?", photos[1], **GREEDY).text
    assert found["answer"].iloc[2] is None
    assert "is None, not an image" in found["error"].iloc[2]
    assert list(frame.columns) == ["image", "name"]
    again = loaded.map("A {{row.name}}?", found, column="image", **GREEDY)
    assert list(again.columns[-5:]) == [
        "answer_2", "error_2", "finish_reason_2", "new_tokens_2", "seed_2",
    ]  # fmt: skip


def test_a_series_of_values_asks_about_one_image(loaded, photos):
    found = loaded.map(
        "A {{item}}?", pd.Series(["cat", "dog"], name="animal"), images=photos[0], **GREEDY
    )
    assert list(found["animal"]) == ["cat", "dog"]
    assert found["answer"].iloc[1] == loaded.ask("A dog?", photos[0], **GREEDY).text


def test_done_rows_are_reused_until_something_changes(loaded, photos):
    def reused(prompt="What?", items=photos[:2], **options):
        return [row.reused for row in loaded.map(prompt, items, **{**GREEDY, **options})]

    assert reused() == [False, False]
    assert reused() == [True, True]
    assert reused(items=[photos[1].copy(), photos[2]]) == [True, False]
    assert reused(items=[photos[0].rotate(180), photos[1]]) == [False, True]
    assert reused(fresh=True) == [False, False]
    for changed in ({"prompt": "Who?"}, {"max_tokens": 5}, {"system": "Hi"}, {"temperature": 0.5}):
        assert reused(**changed) == [False, False]
    # Asked twice, a row is two rows: sampled ones may differ.
    assert reused(items=[photos[0]] * 2) == [True, False]
    loaded.load(golden.SHARDED)
    assert reused() == [False, False]


def test_a_model_whose_files_have_changed_is_another(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    choice = ModelChoice(str(tmp_path))
    before = model_key(choice)
    assert model_key(replace(choice, options=PlacementOptions(batch=4))) == before
    for seen in (PlacementOptions(context=64), PlacementOptions(image_size=560)):
        assert model_key(replace(choice, options=seen)) != before  # images may look different
    assert model_key(replace(choice, options=PlacementOptions(dtype="float16"))) != before
    os.utime(tmp_path / "config.json", (1, 1))
    assert model_key(choice) != before


def test_known_rows_need_no_model_and_carry_their_own_names(loaded, photos, tmp_path):
    loaded.map("What?", [photos[0]], **GREEDY)
    loaded.unload()
    photos[0].save(tmp_path / "same.png")
    rows = loaded.map("What?", [tmp_path / "same.png"], **GREEDY)
    assert rows[0].reused
    assert rows[0].answer.images[0].source == str(tmp_path / "same.png")
    assert loaded.status().info is None


def test_the_store_forgets_the_oldest(loaded, photos):
    answer = loaded.map("What?", photos[:1], **GREEDY)[0].answer
    store = AnswerStore(most=2)
    for key in "abc":
        store.keep(key, answer)
    assert [store.find(key) is None for key in "abc"] == [True, False, False]


def test_an_interrupt_keeps_what_is_done_and_the_next_run_goes_on(loaded, photos, interrupt):
    def stop(progress):
        if progress.answered == 3:
            interrupt()

    with pytest.raises(MapInterrupted) as caught:
        follow(loaded.stream_map("What?", photos, **GREEDY, batch_size=2), row=stop)
    rows = caught.value.result
    done = [row.index for row in rows if row.done]
    assert caught.value.answered == len(done) >= 3
    assert caught.value.total == 5
    assert rows[4].answer is None
    assert rows[4].error is None
    assert caught.value.__context__ is None
    assert str(caught.value).endswith("and asking the same again goes on")
    again = loaded.map("What?", photos, **GREEDY, batch_size=2)
    assert [row.index for row in again if row.reused] == done
    assert all(row.done for row in again)


def test_an_interrupt_inside_a_batch_keeps_the_open_rows_text(loaded, photos, interrupt):
    model, steps = loaded.engine.model, []

    def stop(*_args):
        steps.append(1)
        if len(steps) == 4:
            interrupt()

    handle = model.register_forward_hook(stop)
    try:
        with pytest.raises(MapInterrupted) as caught:
            loaded.map("What?", photos[:2], temperature=0, max_tokens=9)
    finally:
        handle.remove()
    stopped = [row for row in caught.value.result if row.finish_reason == "interrupted"]
    assert stopped
    assert all(0 < row.answer.usage.new_tokens < 5 for row in stopped)
    assert not any(
        row.reused for row in loaded.map("What?", [photos[row.index] for row in stopped], **GREEDY)
    )


def test_text_of_all_rows_comes_as_it_is_said_and_may_end_the_run(loaded, photos):
    said = {0: "", 1: ""}

    def stop(event):
        if isinstance(event, Text):
            assert event.text
            said[event.row] += event.text
            if len(said[0]) > 4 and len(said[1]) > 4:
                raise KeyboardInterrupt

    with pytest.raises(MapInterrupted) as caught:
        read(loaded.stream_map("What?", photos[:2], temperature=0, max_tokens=90), stop)
    rows = caught.value.result
    assert [row.finish_reason for row in rows] == ["interrupted"] * 2
    assert [row.error for row in rows] == [HALF] * 2
    assert not any(row.done or row.failure for row in rows)
    assert all(row.text.startswith(said[row.index].strip()) for row in rows)
    assert {row.answer.usage.new_tokens for row in rows} < set(range(2, 80))


def test_a_half_answer_is_marked_in_a_table(loaded, photos):
    def stop(event):
        if isinstance(event, Text):
            raise KeyboardInterrupt

    table = pd.Series(photos[:2], index=["x", "y"])
    with pytest.raises(MapInterrupted) as caught:
        read(loaded.stream_map("What?", table, temperature=0, max_tokens=90), stop)
    frame = caught.value.result
    halves = frame[frame["finish_reason"] == "interrupted"]
    assert len(halves) >= 1
    assert set(halves["error"]) == {HALF}


def test_a_batch_that_does_not_fit_is_halved(loaded, photos, monkeypatch):
    sizes = []
    loaded.engine.kept.clear()  # or what is kept would make room first
    monkeypatch.setattr(loaded.engine.kept, "budget", 0)

    def fail(_module, _args, options):
        if options["input_ids"].shape[1] > 1:
            sizes.append(len(options["input_ids"]))
            if sizes[-1] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    handle = loaded.engine.model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        rows = loaded.map("What?", photos, **GREEDY, batch_size=5)
    finally:
        handle.remove()
    assert sizes == [5, 2, 2, 1]
    assert all(row.done for row in rows)


def test_a_row_that_does_not_fit_alone_keeps_the_error(loaded, photos):
    def fail(_module, _args, options):
        if len(options["input_ids"]) > 1 or options.get("image_features") is None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    handle = loaded.engine.model.model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        rows = loaded.map("What?", photos[:2], **{**GREEDY, "max_tokens": 1})
        failed = loaded.map("{{item}}?", [1], **GREEDY)
    finally:
        handle.remove()
    assert all(row.done for row in rows)
    assert "ran out of memory while the prompt of" in failed[0].error
    assert loaded.ask("a", **GREEDY).text


def test_a_prompt_without_room_is_its_rows_error(loaded):
    rows = loaded.map("{{item}}", ["word " * 300, "a"], **GREEDY)
    assert "tokens long" in rows[0].error
    assert rows[1].done


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"batch_size": 0}, OptionError, "batch_size is 0"),
        ({"max_tokens": 0}, OptionError, "max_tokens is 0"),
        ({"images": Image.new("RGB", (8, 8))}, ConversationError, "and each row has 2"),
        ({"system": " "}, PromptError, "is empty"),
    ],
)
def test_what_concerns_every_row_is_refused(loaded, photos, options, error, said):
    seen = []
    with pytest.raises(error, match=said):
        follow(loaded.stream_map("What?", photos, **options), row=seen.append)
    assert seen == []


def test_a_model_that_cannot_be_loaded_is_refused(photos):
    seen = []
    with pytest.raises(CheckpointError, match="no checkpoint"):
        follow(Session().stream_map("What?", photos, model="nowhere"), row=seen.append)
    assert seen == []


class OneByOne:
    """An engine that answers one request after the other, at the edge of the world: a server."""

    batch_size = 1

    def __init__(self, engine, fail=None):
        self._engine, self.fail = engine, fail

    @property
    def info(self):
        return self._engine.info

    def require_room(self, request):
        return None

    def stream(self, requests, at_once=None, withdrawn=()):
        for row, request in enumerate(requests):
            if self.fail is not None and request.conversation.messages[-1].text == "b?":
                if isinstance(self.fail, InputError):
                    yield Failed(self.fail, row)
                    continue
                raise self.fail
            for event in self._engine.stream([request]):
                yield replace(event, row=row)

    def close(self):
        pass


def test_an_engine_without_batches_is_asked_row_by_row(engine):
    def run(fail):
        session = Session(OneByOne(engine, fail))
        return session, lambda: session.map("{{item}}?", ["a", "b", "c"], **GREEDY)

    _, call = run(ConversationError("Not this."))
    assert [row.error for row in call()] == [None, "Not this.", None]
    _, call = run(OutOfMemoryError("Full."))
    assert [row.error for row in call()] == [None, "Full.", None]
    *_, end = engine.stream([Request(golden.conversation("text_only"), Sampling(2))])
    _, call = run(GenerationInterrupted({0: end.generation}))
    with pytest.raises(MapInterrupted):
        call()
    _, call = run(EngineError("Too large."))
    assert [row.error for row in call()] == [None, "Too large.", None]


def test_an_engine_that_fails_twice_in_turn_ends_the_run_and_the_next_goes_on(engine):
    server = OneByOne(engine, EngineError("The server is gone."))
    session = Session(server)
    with pytest.raises(EngineError, match="is gone"):
        session.map("{{item}}?", ["a", "b", "b", "c"], **GREEDY)
    server.fail = None
    rows = session.map("{{item}}?", ["a", "b", "b", "c"], **GREEDY)
    assert [row.reused for row in rows] == [True, False, False, False]
    server.fail = EngineError("Not today.")
    rows = session.map("{{item}}?", ["b", "x", "b"], **GREEDY, fresh=True)
    assert [row.error for row in rows] == ["Not today.", None, "Not today."]


class Together(OneByOne):
    """A server that is asked several at once, and refuses sooner than it answers."""

    batch_size = 4

    def stream(self, requests, at_once=None, withdrawn=()):
        requests = enumerate(requests)
        while asked := list(itertools.islice(requests, self.batch_size)):
            asked.sort(key=lambda each: each[1].conversation.messages[-1].text != "b?")
            for row, request in asked:
                if request.conversation.messages[-1].text == "b?":
                    yield Failed(self.fail, row)
                    continue
                for event in self._engine.stream([request]):
                    yield replace(event, row=row)


def test_rows_that_are_refused_while_others_are_answered_are_no_end(engine):
    session = Session(Together(engine, EngineError("Not this.")))
    rows = session.map("{{item}}?", [*"abbbaba"], **GREEDY)
    assert [row.error for row in rows] == [None, *["Not this."] * 3, None, "Not this.", None]
    seen = []
    with pytest.raises(EngineError, match=r"Not this\."):
        follow(session.stream_map("{{item}}?", ["b"] * 20, **GREEDY, fresh=True), row=seen.append)
    assert len(seen) == 1


class ManyAtOnce(OneByOne):
    """A server that refuses at once what `refusal` says, and answers only what it has all of."""

    def stream(self, requests, at_once=None, withdrawn=()):
        rest, row, is_more = iter(requests), 0, True
        while is_more:
            held = []
            while len(held) < at_once:
                request = next(rest, "end")
                if request == "end":
                    is_more = False
                    break
                error = self.fail(request.conversation.messages[-1].text)
                if error is None:
                    held.append((row, request))
                else:
                    yield Failed(error, row)
                row += 1
            for number, request in held:
                for event in self._engine.stream([request]):
                    yield replace(event, row=number)


def refused(reach, *texts):
    def fail(text):
        if text not in texts:
            return None
        error = EngineError(f"Not {text}")
        error.reach = reach
        return error

    return fail


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("reach", ["request", "unknown"])
def test_refusals_that_come_before_answers_end_no_run(engine, reach, batch_size):
    texts = ("b", "c") if reach == "request" or batch_size > 1 else ("b", "d")
    session = Session(ManyAtOnce(engine, refused(reach, *texts)))
    rows = session.map("{{item}}", list("abcdefg"), batch_size=batch_size, **GREEDY)
    assert [row.item for row in rows if row.error] == list(texts)
    assert all(row.text for row in rows if not row.error)


def test_a_refused_key_ends_the_run_at_once(engine):
    session = Session(ManyAtOnce(engine, refused("all", "b")))
    with pytest.raises(EngineError, match="Not b"):
        session.map("{{item}}", list("abcdefg"), batch_size=4, **GREEDY)


class Said:
    """Answers of a scripted server by the question; others are whole."""

    def __init__(self, server, **said):
        self._server, self._said = server, said
        server.answer(MODELS, models("m"))
        server.answer(CHAT, self._answer)

    def _answer(self, connection):
        asked = json.loads(self._server.asked.body)["messages"][-1]["content"]
        connection.sendall(self._said.get(asked, stream(piece(asked.upper()), END)))


BROKEN = stream(piece("Only"), piece(" this"), done=False)


def test_what_a_stream_had_said_before_it_broke_stays_in_its_row():
    with scripted_server() as server:
        Said(server, b=BROKEN)
        session = Session().load(server.url)
        rows = session.map("{{item}}", ["a", "b", "c"])
        again = session.map("{{item}}", ["a", "b", "c"])
        seen = []
        with pytest.raises(EngineError, match="in the middle"):
            follow(session.stream_map("{{item}}", ["b", "b"]), row=seen.append)
        session.unload()
    assert [row.text for row in rows] == ["A", "Only this", "C"]
    assert [row.finish_reason for row in rows] == ["stop", "failed", "stop"]
    assert "in the middle of the answer (after 2 pieces)" in rows[1].error
    assert not rows[1].done
    assert [row.reused for row in again] == [True, False, True]
    text = rows_bundle(rows)["text/plain"]
    assert "Only this" in text
    assert "stopped by you" not in text
    assert [row.text for row in seen[-1].rows] == ["Only this"] * 2


def test_a_server_that_forbids_every_row_is_asked_no_more_than_it_takes_at_once():
    with scripted_server() as server:
        server.answer(MODELS, models("m"))
        server.answer(CHAT, response({"error": "Not for you."}, "403 Forbidden"))
        session = Session().load(server.url)
        with pytest.raises(EngineError, match="403 Forbidden: Not for you"):
            session.map("{{item}}", list(range(100)), batch_size=4)
        session.unload()
    assert len(server.bodies) <= 5


def test_rows_say_once_that_a_server_sends_no_log_probabilities():
    with scripted_server() as server:
        server.answer(MODELS, models("m"))
        server.answer(CHAT, stream(piece("Hello."), END))
        session = Session().load(server.url)
        asked = session.map("{{item}}?", ["a", "b", "c"], logprobs=2)
        silent = session.map("{{item}}?", ["a", "b", "c"])
        session.unload()
    for kind in ("text/plain", "text/html"):
        shown, other = (rows_bundle(rows)[kind].replace("<wbr>", "") for rows in (asked, silent))
        assert shown.count("The server sent no log-probabilities.") == 1
        assert "log-probabilities" not in other


def test_a_server_that_does_not_count_is_asked_for_as_many_rows_as_wanted():
    with scripted_server() as server:
        server.answer(MODELS, models("m"))
        server.answer(CHAT, stream(piece("Hello."), END))
        session = Session().load(server.url)
        progress, said = [], []
        rows = follow(
            session.stream_map("{{item}}?", ["a", "b"], batch_size=8),
            row=progress.append,
            text=said.append,
        )
        frame = session.map("{{item}}?", pd.Series(["a", "c"]))
        asked = [body["messages"][-1]["content"] for body in server.bodies]
        session.unload()
    assert [row.text for row in rows] == ["Hello.", "Hello."]
    assert said == ["Hello."] * 2
    assert [each.batch_size for each in progress] == [8, 8]
    assert sorted(asked) == ["a?", "b?", "c?"]
    assert frame["new_tokens"].isna().all()
    text = rows_bundle(rows)["text/plain"]
    assert text.splitlines()[-1] == "m"
