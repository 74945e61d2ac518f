"""The same question to several models or settings: each alone in its column, nothing is changed."""

from __future__ import annotations

import pytest
from PIL import Image
from scripted_engine import ScriptedEngine
from shells import TINY

from glm4v_magic.core.errors import (
    CheckpointError,
    ComparisonInterrupted,
    EngineError,
    OptionError,
)
from glm4v_magic.core.events import ColumnBegun, ColumnDone, Done, Loading, Started, Text
from glm4v_magic.session.comparing import Setting, Steps, compared
from glm4v_magic.session.model_in_use import ModelInUse
from glm4v_magic.session.session import Session, load

PHOTO = Image.linear_gradient("L").convert("RGB")
HERE = str(TINY)
HALF = {"model": HERE, "dtype": "bfloat16"}
SHORT = {"max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def session():
    return load(TINY)


@pytest.fixture(autouse=True)
def loaded_again(session):
    """Every test finds and leaves the model loaded."""
    yield
    assert session.engine is not None
    session.reset(everything=True)


def read(stream):
    """Return the events of a stream, and its result."""
    with stream:
        events = [*stream]
    return events, stream.result


def test_a_question_that_one_model_does_not_take_is_an_error_in_its_column():
    session = load("demo")
    compared = session.compare(
        "What?",
        [Image.new("RGB", (60, 60), "red")] * 2,
        settings=["demo", "demo-4.6v"],
        max_tokens=2,
    )
    assert "demo takes one image" in compared.columns[0].error
    assert compared.columns[1].done


def test_answers_are_those_of_ask_and_nothing_is_changed(session):
    engine = session.engine
    settings = [{}, {"temperature": 1, "seed": 3}, {"max_tokens": 2}, HERE]
    events, found = read(session.stream_compare("What?", PHOTO, settings=settings, **SHORT))
    assert session.engine is engine
    assert session.chats == {}
    assert not any(isinstance(event, Loading | Done) for event in events)
    assert [each.name for each in found.columns] == [
        "as it is",
        "temperature=1 seed=3",
        "max_tokens=2",
        HERE,
    ]
    for column, own in zip(found.columns, [{}, {"temperature": 1, "seed": 3}], strict=False):
        alone = session.ask("What?", PHOTO, logprobs=0, **(SHORT | own))
        assert column.answer.text == alone.text
        assert column.answer.seed == alone.seed
        assert column.logprob == pytest.approx(
            sum(each.logprob for each in alone.tokens) / len(alone.tokens), abs=1e-4
        )
    assert found.columns[2].answer.usage.new_tokens == 2
    assert found.columns[3].text == found.columns[0].text
    assert found.columns[0].answer.inspect().tokens  # an ordinary answer
    assert [*found.to_dataframe()["answer"]] == [each.text for each in found.columns]


def test_another_model_is_loaded_beside_once_and_released(session):
    engine = session.engine
    settings = [HALF, {}, {**HALF, "max_tokens": 1}]
    events, found = read(session.stream_compare("What?", PHOTO, settings=settings, **SHORT))
    assert session.engine is engine
    assert [each.column for each in events if isinstance(each, ColumnBegun)] == [0, 2, 1]
    infos = [each.info for each in events if isinstance(each, Started)]
    assert [each.dtype for each in infos] == ["bfloat16", "bfloat16", "float32"]
    loads = [each for each in events if isinstance(each, Loading) and not each.progress.done_bytes]
    assert len(loads) == 1
    assert not any(each.progress.released for each in loads)
    assert all(each.done for each in found.columns)
    with pytest.raises(EngineError, match="no longer loaded"):
        found.columns[0].answer.inspect().tokens  # noqa: B018


def test_without_room_what_is_loaded_makes_room_and_comes_back(session, monkeypatch):
    engine = session.engine
    monkeypatch.setattr("glm4v_magic.session.room.fits_beside", lambda *_: False)
    events, found = read(session.stream_compare("What?", PHOTO, settings=[HALF, {}], **SHORT))
    released = {each.progress.released for each in events if isinstance(each, Loading)}
    assert HERE in released
    assert session.engine is not None
    assert session.engine is not engine
    assert session.status().info.dtype == "float32"
    assert [each.answer.plan for each in found.columns] == [None, None]
    assert all(each.done for each in found.columns)


def test_an_error_stays_in_its_column(session):
    settings = ["nowhere", {}, "http://127.0.0.1:9/v1", {"thinking": True}, {"max_tokens": 2}]
    events, found = read(session.stream_compare("What?", PHOTO, settings=settings, **SHORT))
    assert [each.done for each in found.columns] == [False, True, False, False, True]
    errors = [each.error for each in found.columns]
    assert "There is no checkpoint 'nowhere'" in errors[0]
    assert "127.0.0.1:9" in errors[2]
    assert "does not think" in errors[3]
    assert all("\n" not in each for each in errors if each)
    results = [event.result for event in events if isinstance(event, ColumnDone)]
    # Those of the model that is loaded are asked in a row.
    assert [sum(each.answer is not None for each in one.columns) for one in results] == [
        0,
        1,
        1,
        2,
        2,
    ]


def test_choices_have_probabilities_of_each(session):
    found = session.compare("What?", PHOTO, settings=[{}, HALF], choices=["ja", "no"])
    for each in found.columns:
        assert [*each.choices] == ["ja", "no"]
        assert sum(each.choices.values()) == pytest.approx(1)
        assert each.logprob is None
    frame = found.to_dataframe()
    assert [*frame["ja"]] == [each.choices["ja"] for each in found.columns]


def test_the_form_of_a_setting_takes_the_place_of_that_of_all(session):
    settings = [{}, {"choices": ["ja", "no"]}]
    found = session.compare("What?", PHOTO, settings=settings, regex="[0-9]{3}", **SHORT)
    assert found.columns[0].text.isdigit()
    assert found.columns[1].text in ("ja", "no")


def stopped_within(stream, column):
    with stream:
        for event in stream:
            if isinstance(event, Text) and event.row == column:
                raise KeyboardInterrupt


def test_an_interrupt_ends_all_and_keeps_what_was_said(session):
    settings = [{"max_tokens": 2}, {}, HALF]
    stream = session.stream_compare("What?", PHOTO, settings=settings, max_tokens=8, temperature=0)
    with pytest.raises(ComparisonInterrupted) as stopped:
        stopped_within(stream, 1)
    first, second, third = stopped.value.result.columns
    assert first.done
    assert second.answer.finish_reason == "interrupted"
    assert (third.answer, third.failure) == (None, None)
    assert str(stopped.value) == (
        "1 of 3 models or settings have answered; what they said is in the exception's result"
    )
    assert session.ask("What?", PHOTO, **SHORT).text  # free again


def test_an_interrupt_within_another_model_releases_it(session):
    engine = session.engine
    stream = session.stream_compare("What?", PHOTO, settings=[HALF, {}], **SHORT)
    with pytest.raises(ComparisonInterrupted) as stopped:
        stopped_within(stream, 0)
    assert stopped.value.result.columns[0].answer.text is not None
    assert session.engine is engine


def stop_at(stream, is_there):
    """Interrupt the reader at the first event for which `is_there` holds."""
    with stream:
        for event in stream:
            if is_there(event):
                raise KeyboardInterrupt


def test_an_interrupt_while_the_last_model_is_released_keeps_all(session, monkeypatch):
    engine, unload = session.engine, ModelInUse.unload

    def interrupted(self):
        unload(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelInUse, "unload", interrupted)
    with pytest.raises(ComparisonInterrupted) as stopped:
        session.compare("What?", PHOTO, settings=[HALF, {}], **SHORT)
    monkeypatch.undo()
    assert [each.done for each in stopped.value.result.columns] == [True, True]
    assert str(stopped.value).startswith("2 of 2 models or settings have answered;")
    assert stopped.value.released == ""
    assert session.engine is engine


@pytest.mark.parametrize("moment", ["loading the next", "between two", "loading again"])
def test_an_interrupt_without_room_says_what_is_away(session, monkeypatch, moment):
    monkeypatch.setattr("glm4v_magic.session.room.fits_beside", lambda *_: False)
    settings = [{}, HALF, {**HALF, "max_tokens": 1}]
    ended = []

    def is_there(event):
        if isinstance(event, ColumnDone):
            ended.append(event)
        if moment == "between two":
            return len(ended) == 2
        column = {"loading the next": 1, "loading again": 3}[moment]
        is_away = isinstance(event, Loading) and session.engine is None
        return len(ended) == column and is_away

    stream = session.stream_compare("What?", PHOTO, settings=settings, **SHORT)
    with pytest.raises(ComparisonInterrupted) as caught:
        stop_at(stream, is_there)
    stopped = caught.value
    assert [each.done for each in stopped.result.columns] == [
        index < len(ended) for index in range(3)
    ]
    assert stopped.released == HERE
    assert str(stopped) == (
        f"{len(ended)} of 3 models or settings have answered; what they said is in the "
        f"exception's result. {HERE} was released to make room, and the next question loads it "
        "again"
    )
    assert session.ask("What?", PHOTO, **SHORT).text


def test_an_interrupt_just_after_an_answer_keeps_it():
    def ask(at):
        with Session(ScriptedEngine()).stream("What?") as events:
            yield from events
        raise KeyboardInterrupt

    steps = Steps(ask, lambda: None, lambda: iter(()), str)
    with pytest.raises(ComparisonInterrupted) as stopped:
        [*compared("What?", (Setting("a"), Setting("b")), (0, 1), steps)]
    assert [each.done for each in stopped.value.result.columns] == [True, False]


def test_the_first_question_loads_what_stays_loaded():
    fresh = Session()
    settings = [HERE, {"max_tokens": 1}]
    events, found = read(
        fresh.stream_compare("What?", PHOTO, settings=settings, model=HERE, **SHORT)
    )
    assert all(each.done for each in found.columns)
    loads = [each for each in events if isinstance(each, Loading) and not each.progress.done_bytes]
    assert len(loads) == 1
    assert fresh.engine is not None
    fresh.unload()


def test_a_failure_of_the_engine_is_that_of_one_question():
    def said(prompt):
        if not engine.asked % 2:
            raise EngineError("It broke.")
        return "fine"

    engine = ScriptedEngine(said)
    found = Session(engine).compare("What?", settings=[{}, {"seed": 1}, {"seed": 2}])
    assert [(each.text, each.error) for each in found.columns] == [
        ("fine", None),
        (None, "It broke."),
        ("fine", None),
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("demo", "settings is 'demo', but must be a list of models or dicts of options."),
        ([], "0 cannot be compared: give from 2 to 50 models or settings."),
        (["demo"], "1 cannot be compared"),
        ([{}] * 51, "51 cannot be compared"),
        ([{}, 5], "5 is neither a model nor a dict of options."),
        (
            [{}, {"temprature": 1}],
            "no option 'temprature'. Did you mean temperature?",
        ),
        (["demo", "demo temperature=1"], "'demo temperature=1' is a model and its settings in one"),
        ([{}, "temperature=1"], "'temperature=1' is a model and its settings in one text. For ex"),
        ([{}, {"chat": "x"}], "A setting has no option 'chat'."),
        ([{}, {"temperature": -1}], "temperature is -1, but must be"),
        ([{}, {"model": 5}], "The model"),
        ([{}, {"choices": ["a"]}], "choices is ['a'], but must be"),
        ([{}, {"gpus": "many", "context": 0}], "context is 0"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_asked(settings, said):
    engine = ScriptedEngine()
    with pytest.raises(OptionError) as refused:
        Session(engine).compare("What?", settings=settings)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert engine.asked == 0


def test_equal_names_are_told_apart():
    found = Session(ScriptedEngine()).compare("What?", settings=[{}, {}, {"seed": 1}])
    assert [each.name for each in found.columns] == ["as it is", "as it is (2)", "seed=1"]


def test_a_model_that_does_not_come_back_is_said_by_the_next_question(session, monkeypatch):
    monkeypatch.setattr("glm4v_magic.session.room.fits_beside", lambda *_: False)
    found = None
    with session.stream_compare("What?", PHOTO, settings=[{}, HALF], **SHORT) as stream:
        for event in stream:
            if isinstance(event, ColumnDone) and all(each.done for each in event.result.columns):
                monkeypatch.setattr("glm4v_magic.session.model_in_use.find", _refuse, raising=True)
        found = stream.result
    assert all(each.done for each in found.columns)
    with pytest.raises(CheckpointError, match="gone"):
        session.ask("What?", PHOTO)
    monkeypatch.undo()
    session.ask("What?", PHOTO, **SHORT)


def _refuse(choice):
    raise CheckpointError("It is gone.")
