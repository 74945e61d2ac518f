"""A session from Python, on the tiny reference checkpoint: real code, random weights."""

from __future__ import annotations

import inspect
import shutil
import threading
from pathlib import Path

import pytest
from following import follow
from PIL import Image
from shells import TINY

import glm4v_magic
from glm4v_magic.core.errors import (
    BusyError,
    CheckpointError,
    ConversationError,
    GenerationInterrupted,
    ImageError,
    OptionError,
    PromptError,
)
from glm4v_magic.core.options import Sampling
from glm4v_magic.session.session import Session

GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def loaded():
    session = Session().load(TINY)
    yield session
    session.unload()


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "cat.png"
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(path)
    return path


def test_load_and_ask_as_the_package_says(photo):
    answer = glm4v_magic.load(TINY).ask("What is this?", images=[photo], **GREEDY)
    assert str(answer) == answer.text
    assert answer.prompt == "What is this?"
    assert answer.images[0].original_size == (64, 48)
    assert answer.usage.new_tokens == 8
    assert answer.finish_reason == "length"


def test_one_image_needs_no_list(loaded, photo):
    with Image.open(photo) as opened:
        several = [photo, str(photo), photo.read_bytes(), opened.copy(), [photo]]
    answers = {loaded.ask("What?", images, **GREEDY).text for images in several}
    assert len(answers) == 1
    assert loaded.ask("What?", **GREEDY).text not in answers
    assert loaded.ask("What?", None, **GREEDY).images == ()


def test_the_answer_is_streamed_after_the_start_is_told(loaded, photo):
    news = []
    answer = follow(
        loaded.stream("What?", photo, **GREEDY),
        started=lambda info, photos: news.append((info.model, len(photos))),
        text=news.append,
    )
    assert news[0] == (str(TINY), 1)
    assert answer.text.startswith("".join(news[1:]).strip())
    assert len(news) > 2


def test_a_question_loads_the_model_and_unload_releases_it(tmp_path):
    session = Session().load(TINY)
    assert session.unload()
    assert not session.unload()
    assert session.status().info is None
    progress = []
    follow(session.stream("What?", **GREEDY), loading=progress.append)
    assert progress[0].done_bytes == 0
    assert progress[-1].done_bytes > 0.99 * progress[-1].total_bytes
    assert session.status().info.model == str(TINY)
    session.unload()


def test_a_loaded_model_is_kept(loaded):
    progress = []
    follow(loaded.stream_load(TINY), loading=progress.append)
    assert progress == []


def test_status_tells_the_model_and_the_latest_answer(loaded):
    answer = loaded.ask("What?", **GREEDY)
    status = loaded.status()
    assert status.last is answer
    assert status.choice.model == str(TINY)
    assert status.info.dtype == "float32"
    assert not status.busy


def test_sampling_options_reach_the_model(loaded):
    def text(**options):
        return loaded.ask(
            "What?", **{"max_tokens": 12, "temperature": 1.5, "seed": 1, **options}
        ).text

    assert text() == text()
    greedy = text(temperature=0)
    changed = {
        "seed": 2,
        "top_k": 1,
        "top_p": 0.0001,
        "min_p": 1.0,
        "repetition_penalty": 50.0,
        "max_tokens": 3,
    }
    for name, value in changed.items():
        assert text(**{name: value}) != text(), name
    assert text(top_k=1) == text(top_p=0.0001) == text(min_p=1.0) == greedy


def test_a_drawn_seed_is_told_and_repeats_the_answer(loaded):
    first = loaded.ask("What?", temperature=1.5, max_tokens=12)
    again = loaded.ask("What?", temperature=1.5, max_tokens=12, seed=first.seed)
    assert again.text == first.text
    assert loaded.ask("What?", **GREEDY).seed is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": None}, "max_tokens is None"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_k": 0}, "top_k is 0"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
    ],
)
def test_impossible_sampling_is_refused_by_name(options, said):
    with pytest.raises(OptionError, match=f"^{said}, but must be"):
        Session().ask("What?", **options)


def test_the_limits_themselves_are_fine(loaded):
    loaded.ask("What?", max_tokens=1, temperature=0.5, top_p=1, top_k=1, seed=2**63 - 1)


@pytest.mark.parametrize("text", ["", "  \n\t", "\u200b"])
def test_an_empty_question_is_refused_before_anything_is_loaded(text):
    session = Session()
    with pytest.raises(PromptError):
        session.ask(text)
    assert session.status().info is None


def test_a_bad_image_is_refused_before_anything_is_loaded(tmp_path):
    session = Session()
    for image in (tmp_path / "missing.png", b"nonsense", 7, ["missing.png"]):
        with pytest.raises(ImageError):
            session.ask("What?", image)
    assert session.status().info is None


def test_a_model_in_this_process_does_not_think(loaded):
    said = "does not think before it answers. Leave thinking out"
    for session in (loaded, Session()):  # known before it is loaded
        with pytest.raises(OptionError, match=said):
            session.ask("What?", thinking=True, model="demo")
        with pytest.raises(OptionError, match=said):
            session.map("{{item}}?", [1], thinking=True, model="demo")
    assert session.status().info is None
    plain = loaded.ask("What?", **GREEDY)
    assert loaded.ask("What?", **GREEDY, thinking=False).text == plain.text
    assert plain.thinking == ""


def test_two_images_are_refused_before_the_model_begins(loaded, photo):
    begun = []
    with pytest.raises(ConversationError, match=r"takes one image .* has 2"):
        follow(loaded.stream("What?", [photo, photo]), started=lambda *_: begun.append(1))
    assert begun == []


def test_an_unknown_dtype_is_refused():
    with pytest.raises(OptionError, match="bfloat16, float16, float32"):
        Session().load(TINY, dtype="float64")


def test_dtype_reaches_the_model():
    session = Session().load(TINY, dtype="bfloat16")
    assert session.status().info.dtype == "bfloat16"
    session.unload()


def test_a_bad_checkpoint_leaves_the_model_loaded(loaded, tmp_path):
    before = loaded.ask("What?", **GREEDY).text
    broken = tmp_path / "broken"
    shutil.copytree(TINY, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for folder in (tmp_path / "missing", tmp_path, broken):
        with pytest.raises(CheckpointError):
            loaded.load(folder)
        assert loaded.status().info.model == str(TINY)
    progress = []
    assert follow(loaded.stream("What?", **GREEDY), loading=progress.append).text == before
    assert progress == []


class TestWhileAnotherCallRuns:
    """The other call is held at a piece of text, as a slow reader or a slow model would."""

    @pytest.fixture
    def held(self, loaded):
        inside, leave = threading.Event(), threading.Event()
        answers = []

        def hold(_text):
            inside.set()
            assert leave.wait(60)

        thread = threading.Thread(
            target=lambda: answers.append(follow(loaded.stream("What?", **GREEDY), text=hold))
        )
        thread.start()
        assert inside.wait(60)
        yield loaded
        leave.set()
        thread.join()
        assert len(answers) == 1
        assert not loaded.status().busy
        loaded.ask("What?", **GREEDY)

    def test_a_second_call_is_refused(self, held):
        for call in (lambda: held.ask("What?"), lambda: held.load(TINY), held.unload):
            with pytest.raises(BusyError, match="Another call is running"):
                call()

    def test_status_answers(self, held):
        assert held.status().busy
        assert held.status().info is not None

    def test_so_it_is_from_within(self, loaded):
        with pytest.raises(BusyError):
            follow(loaded.stream("What?", **GREEDY), text=lambda _: loaded.ask("And this?"))
        assert not loaded.status().busy


def test_an_error_in_a_callback_frees_the_session(loaded):
    def fail(_text):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        follow(loaded.stream("What?", **GREEDY), text=fail)
    assert not loaded.status().busy
    assert loaded.ask("What?", **GREEDY).text


def test_an_interrupt_carries_the_partial_answer(loaded, interrupt):
    whole = loaded.ask("What?", **GREEDY)
    pieces = []

    def stop_at_third(text):
        pieces.append(text)
        if len(pieces) == 3:
            interrupt()

    with pytest.raises(GenerationInterrupted) as caught:
        follow(loaded.stream("What?", temperature=0, max_tokens=100), text=stop_at_third)
    answer = caught.value.answer
    assert answer is loaded.status().last
    assert answer.finish_reason == "interrupted"
    assert answer.text == caught.value.generation.text
    assert answer.prompt == "What?"
    assert 0 < answer.usage.new_tokens < 100
    assert not loaded.status().busy
    assert loaded.ask("What?", **GREEDY).text == whole.text


def test_an_interrupt_while_loading_leaves_nothing_loaded(interrupt):
    session = Session()
    with pytest.raises(KeyboardInterrupt):
        follow(session.stream_load(TINY), loading=lambda _: interrupt())
    status = session.status()
    assert status.info is None
    assert not status.busy
    assert status.choice.model is None


def test_the_defaults_are_those_of_sampling(loaded):
    shown = inspect.signature(loaded.ask).parameters
    assert shown["max_tokens"].default == Sampling().max_tokens


def test_a_relative_path_is_taken_from_the_current_folder(loaded, photo, monkeypatch):
    monkeypatch.chdir(photo.parent)
    assert loaded.ask("What?", Path("cat.png"), **GREEDY).images[0].source == "cat.png"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 999_999}, "999,999 tokens is longer"),
        ({"images": 7}, "takes 1 image, not 7"),
    ],
)
def test_options_of_a_plan_make_sense_on_the_cpu_too(options, message):
    with pytest.raises(OptionError, match=message):
        Session().load(TINY, gpus="cpu", **options)
