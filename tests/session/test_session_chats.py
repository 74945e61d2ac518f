"""Conversations of a session, on the tiny reference checkpoint: real code, random weights."""

from __future__ import annotations

import resource
import threading
from dataclasses import replace

import pytest
from following import follow, read
from PIL import Image
from shells import TINY
from standins.speaker import Speaker

from glm4v_magic.core.errors import (
    BusyError,
    ConversationError,
    FormatError,
    GenerationInterrupted,
    OptionError,
    PromptError,
)
from glm4v_magic.core.events import Correcting, Text
from glm4v_magic.images import SourcedImage
from glm4v_magic.session.chat_file import write_chat
from glm4v_magic.session.chats import UNNAMED
from glm4v_magic.session.session import Session

GREEDY = {"temperature": 0, "max_tokens": 4}
DOT = Image.linear_gradient("L").convert("RGB")


@pytest.fixture(scope="module")
def loaded(talkative):
    session = Session().load(talkative)
    yield session
    session.unload()


@pytest.fixture
def session(loaded):
    """The module's session without a chat."""
    loaded.reset(everything=True)
    return loaded


def said(session, chat=None):
    return [(m.role, m.text, m.complete) for m in session.conversation(chat).messages]


def sent(session, **options):
    """What the engine is given for a call, as tokens of text and of images."""
    usage = session.ask("And this?", **GREEDY, **options).usage
    return usage.text_tokens, usage.visual_tokens


def test_questions_are_fresh_unless_they_go_on(session):
    fresh = sent(session)
    assert sent(session) == fresh
    assert [m.role for m in session.conversation().messages] == ["user", "assistant"]
    assert sent(session, follow_up=True)[0] > fresh[0]
    assert [m.role for m in session.conversation().messages] == ["user", "assistant"] * 2
    assert sent(session) == fresh


def test_a_chat_is_begun_and_gone_on_with_by_its_name(session):
    first = session.ask("One?", DOT, chat="cats", **GREEDY)
    fresh = session.ask("Two?", **GREEDY)
    third = session.ask("Three?", chat="cats", **GREEDY)
    assert list(session.chats) == ["cats", UNNAMED]
    assert session.current_chat == "cats"
    assert [text for role, text, _ in said(session) if role == "user"] == ["One?", "Three?"]
    assert [text for role, text, _ in said(session, UNNAMED) if role == "user"] == ["Two?"]
    assert third.images == first.images
    assert third.usage.visual_tokens == first.usage.visual_tokens > 0
    assert third.usage.text_tokens > first.usage.text_tokens
    assert fresh.images == ()


def test_a_follow_up_goes_on_with_the_latest_answer(session):
    session.ask("One?", chat="cats", **GREEDY)
    session.ask("Two?", follow_up=True, **GREEDY)
    assert len(session.conversation("cats").messages) == 4
    session.ask("Three?", **GREEDY)
    session.ask("Four?", follow_up=True, chat="cats", **GREEDY)
    assert len(session.conversation("cats").messages) == 6


def test_a_second_image_is_refused_in_one_line(session):
    session.ask("What?", DOT, **GREEDY)
    before = session.chats
    with pytest.raises(ConversationError, match=r"and this one has 2\. The images before are"):
        session.ask("And this?", DOT, follow_up=True, **GREEDY)
    assert session.chats == before


def test_chats_that_are_not_there(session):
    for call in (
        lambda: session.ask("And?", follow_up=True),
        session.retry,
        session.carry_on,
        session.conversation,
        lambda: session.export_chat("chat.json"),
    ):
        with pytest.raises(ConversationError, match="There is no conversation to go on with"):
            call()
    session.ask("What?", chat="cats", **GREEDY)
    session.ask("What?", chat="dogs", **GREEDY)
    session.reset("dogs")
    with pytest.raises(ConversationError, match=r"no conversation to go on with\. There is cats\."):
        session.conversation()
    for call in (
        lambda: session.ask("And?", follow_up=True, chat="cat"),
        lambda: session.retry("cat"),
        lambda: session.carry_on("cat"),
        lambda: session.conversation("cat"),
    ):
        with pytest.raises(ConversationError, match=r"no chat 'cat'\. Did you mean cats\?"):
            call()
    assert list(session.chats) == ["cats"]
    with pytest.raises(OptionError, match="chat is 3, but must be a name"):
        session.ask("And?", chat=3)


def test_the_system_message_is_that_of_the_whole_chat(session):
    session.ask("One?", chat="cats", system="Be brief.", **GREEDY)
    session.ask("Two?", chat="cats", **GREEDY)
    assert [m.text for m in session.conversation().messages if m.role == "system"] == ["Be brief."]
    session.ask("Three?", chat="cats", system="Rhyme.", **GREEDY)
    roles = [m.role for m in session.conversation().messages]
    assert roles == ["system", *["user", "assistant"] * 3]
    assert session.conversation().messages[0].text == "Rhyme."
    session.ask("Four?", chat="cats", system="", **GREEDY)
    assert session.conversation().messages[0].role == "user"


def test_draft_is_what_ask_sends(session):
    session.ask("One?", DOT, chat="cats", **GREEDY)
    draft = session.draft("Two?", chat="cats", system="Rhyme.")
    assert len(session.conversation().messages) == 2
    session.ask("Two?", chat="cats", system="Rhyme.", **GREEDY)
    assert session.conversation().messages[:-1] == draft.messages


def stop_after(pieces, interrupt):
    """Return a callback that interrupts as soon as so many pieces of text have come."""
    seen = []

    def take(text):
        seen.append(text)
        if len(seen) == pieces:
            interrupt()

    return take


@pytest.fixture
def stopped(session, interrupt):
    """A session whose question was interrupted; the partial answer."""

    def stop(pieces=5, **options):
        with pytest.raises(GenerationInterrupted) as caught:
            follow(
                session.stream("What?", temperature=0, max_tokens=4000, **options),
                text=stop_after(pieces, interrupt),
            )
        return caught.value.answer

    return stop


def test_an_interrupted_answer_stays_in_its_chat(session, stopped):
    part = stopped(chat="cats")
    text = part.text.rstrip("\ufffd")
    assert said(session, "cats") == [("user", "What?", True), ("assistant", text, False)]
    assert session.conversation().unfinished == text


def test_carrying_on_says_what_would_have_been_said(session, stopped):
    whole = session.ask("What?", temperature=0, max_tokens=40)
    part = stopped(20)
    assert whole.text.startswith(part.text.rstrip("\ufffd"))
    pieces = []
    done = follow(session.stream_carry_on(temperature=0, max_tokens=20), text=pieces.append)
    before = part.text.rstrip("\ufffd")
    assert done.text == (before + "".join(pieces)).rstrip()
    assert done.prompt == "What?"
    assert done.usage.new_tokens == 20
    assert done.finish_reason == "length"
    # A token limit leaves it unfinished too, so it can be carried on again.
    assert said(session)[-1] == ("assistant", done.text.rstrip("\ufffd"), False)
    assert len(session.conversation().messages) == 2
    again = session.carry_on(temperature=0, max_tokens=5)
    assert again.text.startswith(done.text.rstrip("\ufffd"))


def test_carrying_on_can_be_interrupted_again(session, stopped, interrupt):
    part = stopped().text.rstrip("\ufffd")
    with pytest.raises(GenerationInterrupted) as caught:
        follow(
            session.stream_carry_on(seed=1, temperature=1.5, max_tokens=4000),
            text=stop_after(5, interrupt),
        )
    longer = caught.value.answer.text
    assert longer.startswith(part)
    assert len(longer) > len(part)
    assert session.conversation().unfinished == longer.rstrip("\ufffd")


def test_a_question_after_an_interrupted_answer_goes_on(session, stopped):
    stopped()
    session.ask("And?", follow_up=True, **GREEDY)
    assert [complete for _, _, complete in said(session)] == [True, False, True, False]


def test_a_finished_answer_is_not_carried_on():
    session = Session().load(TINY)
    for seed in range(50):  # random weights end an answer now and then
        if session.ask("What?", temperature=2.0, max_tokens=200, seed=seed).finish_reason == "stop":
            break
    assert said(session)[-1][2]
    with pytest.raises(ConversationError, match="finished, so there is nothing to carry on"):
        session.carry_on()
    session.unload()


def test_retry_replaces_the_answer(session):
    session.ask("One?", DOT, chat="cats", **GREEDY)
    second = session.ask("Two?", chat="cats", **GREEDY)
    session.ask("Other?", **GREEDY)
    again = session.retry("cats", **GREEDY)
    assert replace(again, usage=second.usage) == second
    other = session.retry(temperature=1.5, max_tokens=12, seed=3)
    assert session.current_chat == "cats"
    assert other.prompt == "Two?"
    assert (other.seed, other.usage.visual_tokens) == (3, second.usage.visual_tokens)
    assert other.text != second.text
    assert [text for role, text, _ in said(session) if role == "user"] == ["One?", "Two?"]
    assert said(session)[-1][1] == other.text.rstrip("\ufffd")


def test_an_interrupted_retry_leaves_the_old_answer(session, interrupt):
    session.ask("One?", **GREEDY)
    before = session.chats
    with pytest.raises(GenerationInterrupted) as caught:
        follow(session.stream_retry(temperature=0, max_tokens=4000), text=stop_after(5, interrupt))
    assert caught.value.answer.text
    assert session.status().last is caught.value.answer
    assert session.chats == before
    assert caught.value.code == "retry_interrupted"
    assert "carry_on" not in str(caught.value)


def test_where_an_interrupt_leaves_an_answer_is_said(tmp_path):
    """Carrying on is advised where it works, and only there."""

    def stopped(session, stream, kind):
        def stop(event):
            if isinstance(event, kind):
                raise KeyboardInterrupt

        with pytest.raises(GenerationInterrupted) as caught:
            read(stream, stop)
        if caught.value.code == "answer_interrupted":
            assert session.carry_on().text.startswith("A ")
        else:
            assert session.conversation().partial is None
        return caught.value.code

    def asked(*answers):
        session = Session(Speaker(*answers))
        return session, session.stream("What?", regex="A cat|A dog")

    cat, dog, none = ("A cat", "stop"), ("A dog", "stop"), ("B", "stop")
    assert stopped(*asked(cat, (" dog", "stop")), Text) == "answer_interrupted"
    # The correction is stopped, and the first answer stays, though not in its form.
    assert stopped(*asked(none, cat), Correcting) == "interrupted_after_the_answer"
    session = Session(Speaker(cat, dog, dog))
    session.ask("What?")
    assert stopped(session, session.stream_retry(), Text) == "retry_interrupted"
    assert session.conversation().messages[-1].text == "A cat"
    # Without an old answer, the new one is kept.
    session = Session(Speaker(cat, (" dog", "stop")))
    session.import_chat(write_chat(tmp_path / "asked.json", session.draft("What?"), "asked"))
    assert stopped(session, session.stream_retry(), Text) == "answer_interrupted"


def test_retry_needs_a_question(session, tmp_path):
    session.ask("One?", chat="cats", **GREEDY)
    file = session.export_chat(tmp_path / "cats.json")
    text = file.read_text().replace('"role": "user"', '"role": "assistant"')
    file.write_text(text)
    session.import_chat(file, "answers")
    with pytest.raises(ConversationError, match="no question in this chat"):
        session.retry()


def test_a_call_that_fails_leaves_all_chats_as_they_were(session):
    session.ask("One?", chat="cats", **GREEDY)
    session.ask("Two?", **GREEDY)
    before, current = session.chats, session.current_chat

    def fail(*_):
        raise ZeroDivisionError

    for chat in (None, "cats", "new"):
        with pytest.raises(ZeroDivisionError):
            follow(session.stream("And?", chat=chat), started=fail)
        for error, text, options in (
            (PromptError, " ", {}),
            (ConversationError, "word " * 9000, {}),
            (OptionError, "And?", {"top_p": 2}),
            (OptionError, "And?", {"format": "poem"}),
        ):
            with pytest.raises(error):
                session.ask(text, chat=chat, **options)
    with pytest.raises(ZeroDivisionError):
        follow(session.stream_retry(**GREEDY), started=fail)
    with pytest.raises(OptionError, match=r"temprature.*temperature"):
        session.retry(temprature=0)
    assert (session.chats, session.current_chat) == (before, current)


def test_a_file_brings_a_chat_back_whole(session, tmp_path):
    session.ask("Ж?", DOT, chat="cats", system="Be brief.", **GREEDY)
    before = session.conversation()
    following = session.ask("And?", follow_up=True, **GREEDY)
    session.retry(**GREEDY)
    file = session.export_chat(tmp_path / "cats.json", "cats")
    other = Session()
    assert other.import_chat(file) == other.current_chat == "cats"
    assert other.conversation() == session.conversation()
    assert other.conversation().messages[:3] == before.messages
    other.load(TINY)
    again = other.retry(**GREEDY)
    assert (again.text, again.images) == (following.text, following.images)
    other.unload()


def test_an_import_never_replaces_another_chat(session, tmp_path):
    session.ask("One?", chat="cats", **GREEDY)
    file = session.export_chat(tmp_path / "cats.json")
    assert session.import_chat(file) == "cats"
    session.ask("Two?", chat="cats", **GREEDY)
    before = session.chats
    with pytest.raises(ConversationError, match="a chat 'cats' already, and it is another one"):
        session.import_chat(file)
    session.ask("Three?", **GREEDY)
    with pytest.raises(ConversationError, match="an unnamed conversation already"):
        session.import_chat(file, UNNAMED)
    assert session.chats["cats"] == before["cats"]
    assert session.import_chat(file, "old cats") == session.current_chat == "old cats"
    assert len(session.conversation().messages) == 2


def test_markdown_is_written_for_people(session, tmp_path):
    session.ask("One?", DOT, chat="cats", **GREEDY)
    text = session.export_chat(tmp_path / "cats.md").read_text(encoding="utf-8")
    assert text.startswith("# cats\n\n**Question**\n\n*images, 256 x 256 px*\n\nOne?\n")


def test_files_that_cannot_be_written_or_read(session, tmp_path):
    session.ask("One?", **GREEDY)
    with pytest.raises(ConversationError, match=r"must end in \.json"):
        session.export_chat(tmp_path / "cats.txt")
    with pytest.raises(ConversationError, match=r"cannot be written to .*No such file"):
        session.export_chat(tmp_path / "nowhere" / "cats.json")
    (tmp_path / "chat.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConversationError, match=r"There is no file .*Did you mean chat\.json\?"):
        session.import_chat(tmp_path / "caht.json")
    with pytest.raises(ConversationError, match="is not a text file in UTF-8"):
        session.import_chat(tmp_path / "chat.json")
    with pytest.raises(ConversationError, match="cannot be read: Is a directory"):
        session.import_chat(tmp_path)


def test_half_a_character_in_a_file_is_refused_where_it_is(session, tmp_path):
    session.ask("What?", **GREEDY)
    file = session.export_chat(tmp_path / "chat.json")
    file.write_text(file.read_text().replace("What?", "What \\ud800?"))
    with pytest.raises(ConversationError, match=r"text.* half a character, '\\ud800'"):
        session.import_chat(file, "half")
    assert "half" not in session.chats


def test_a_failed_export_leaves_the_old_file(session, tmp_path):
    session.ask("One?", **GREEDY)
    file = session.export_chat(tmp_path / "chat.json")
    before = file.read_bytes()
    session.ask("Two?", **GREEDY)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))  # as a disk that becomes full
    try:
        with pytest.raises(ConversationError, match=r"cannot be written to .*File too large"):
            session.export_chat(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_name_that_is_no_unicode_survives_a_file(session, tmp_path):
    # What os.fsdecode makes of a file name in another encoding.
    session.ask("What?", SourcedImage(DOT, "\udcff.png", DOT.size), chat="odd", **GREEDY)
    file = session.export_chat(tmp_path / "odd.json")
    other = Session()
    other.import_chat(file)
    assert other.conversation() == session.conversation()
    session.export_chat(tmp_path / "odd.md")


def test_forgetting(session):
    assert session.reset() == session.reset("cats") == session.reset(everything=True) == ()
    for name in ("cats", "dogs", "owls"):
        session.ask("What?", chat=name, **GREEDY)
    assert session.reset() == ("owls",)
    assert session.reset("cats") == ("cats",)
    with pytest.raises(OptionError, match="either 'dogs' or everything"):
        session.reset("dogs", everything=True)
    assert session.reset(everything=True) == ("dogs",)
    assert session.chats == {}


class TestWhileAnotherCallRuns:
    """The other call is held at a piece of text, as a slow reader or a slow model would."""

    @pytest.fixture
    def held(self, session, tmp_path):
        session.ask("One?", chat="cats", **GREEDY)
        session.export_chat(tmp_path / "cats.json")
        inside, leave = threading.Event(), threading.Event()

        def hold(_text):
            inside.set()
            assert leave.wait(60)

        thread = threading.Thread(
            target=lambda: follow(session.stream("Two?", chat="cats", **GREEDY), text=hold)
        )
        thread.start()
        assert inside.wait(60)
        yield session
        leave.set()
        thread.join()
        assert len(session.conversation("cats").messages) == 4

    def test_what_changes_a_chat_is_refused(self, held, tmp_path):
        for call in (
            lambda: held.ask("And?", chat="cats"),
            lambda: held.retry("cats"),
            lambda: held.carry_on("cats"),
            lambda: held.reset("cats"),
            lambda: held.reset(everything=True),
            lambda: held.import_chat(tmp_path / "cats.json"),
        ):
            with pytest.raises(BusyError, match="Another call is running"):
                call()

    def test_what_was_said_before_can_be_read(self, held, tmp_path):
        assert len(held.conversation("cats").messages) == 2
        assert list(held.chats) == ["cats"]
        assert held.export_chat(tmp_path / "cats.md", "cats").exists()


def test_an_answer_tells_the_plan_it_was_made_by(session):
    assert session.ask("What?", **GREEDY).plan is None
    assert session.ask("What?", **GREEDY).format == "markdown"


@pytest.mark.usefixtures("without_llguidance")
def test_an_answer_that_is_no_json_stays_in_the_chat(session):
    with pytest.raises(FormatError, match=r"holds no JSON\. It was cut off") as caught:
        session.ask("What?", format="json", **GREEDY)
    answer = caught.value.answer
    assert answer is session.status().last
    assert (answer.format, answer.value) == ("json", None)
    assert said(session)[-1][1] == answer.text.rstrip("\ufffd")
