"""Chats and forms of answers in a shell, on a tiny model that knows a few answers by heart."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
from by_heart import learn, roomy
from following import follow
from IPython.core.completer import provisionalcompleter
from IPython.utils.capture import capture_output
from shells import InterruptingStream

from glm4v_magic.calls.forms import correction
from glm4v_magic.core.errors import FormatError, GenerationInterrupted, OptionError
from glm4v_magic.notebook.magics import Glm4vMagics

SCHEMA = {"properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
WRONG = "The answer's JSON does not follow the schema: at colour: 'green' is not one of"
GREEN = 'Sure: {"colour": "green"}'
NONE = "The answer holds no JSON"
WORDS = "I see:\n  a cat, an owl"

LESSONS = (
    ("Which shape?", '{"shape": "circle"}'),
    ("Which colour?", GREEN),
    ("Which colour?", GREEN, correction(f"{WRONG} ['red', 'blue']"), '{"colour": "blue"}'),
    ("Never?", "No."),
    ("Never?", "No.", correction(NONE), "No!"),
    ("Python?", "Try:\n```python\nx = 41 + 1\n```"),
    ("Bash?", "```bash\necho hi\n```"),
    ("Bold?", "**bold** `code`"),
    ("Words?", WORDS),
    ("One?", "First."),
    ("One?", "First.", "Two?", "Second."),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return roomy(tmp_path_factory.mktemp("by_heart") / "model")


@pytest.fixture(scope="module")
def session(module_shell, folder):
    """The session behind the magics of the module's shell; its model has learnt `LESSONS`."""
    module_shell.run_line_magic("glm4v", f"load {folder}")
    session = module_shell.magics_manager.registry[Glm4vMagics.__name__].context.session
    learn(session.engine, *LESSONS)
    return session


@pytest.fixture(autouse=True)
def _greedy_and_without_chats(shell, session):
    session.reset(everything=True)
    shell.run_line_magic("config", "Glm4v.temperature = 0")


@pytest.fixture
def ask(run, shell):
    """Ask in a cell; returns the answer."""

    def ask_cell(text, options="", *, fails=False):
        screen = run(f"%%glm4v {options}\n{text}", fails=fails)
        ask_cell.screen = screen
        return shell.user_ns["_"]

    return ask_cell


@pytest.mark.usefixtures("without_llguidance")
class TestJson:
    def test_it_is_parsed_and_set_out(self, ask, shell):
        answer = ask("Which shape?", "--format json -o answer")
        assert answer is shell.user_ns["answer"]
        assert answer.value == {"shape": "circle"}
        assert answer.text == '{"shape": "circle"}'
        assert ask("Which shape?").value is None

    def test_it_is_asked_for_by_a_schema_alone(self, ask, session, shell):
        shell.user_ns["shape"] = {"required": ["shape"]}
        answer = ask("Which shape?", "--schema shape")
        assert (answer.value, answer.corrected) == ({"shape": "circle"}, "")
        with pytest.raises(OptionError, match="for the format json, not text"):
            session.ask("Which shape?", format="text", schema={})

    def test_an_answer_that_breaks_the_schema_is_corrected_once(self, ask, shell, session):
        once = session.ask("Which colour?", temperature=0)
        shell.user_ns["schema"] = SCHEMA
        answer = ask("Which colour?", "--format json --schema schema -o answer")
        assert (answer.text, answer.value) == ('{"colour": "blue"}', {"colour": "blue"})
        assert answer.corrected.startswith(WRONG)
        assert f"[{WRONG}" in ask.screen
        assert answer.usage.new_tokens > once.usage.new_tokens + len(answer.text)
        assert answer.usage.text_tokens > 2 * once.usage.text_tokens
        # The correction is not part of the chat.
        texts = [message.text for message in session.conversation().messages]
        assert texts == ["Which colour?", '{"colour": "blue"}']

    def test_without_a_schema_any_json_is_right(self, ask):
        assert ask("Which colour?", "--format json").value == {"colour": "green"}

    @pytest.mark.parametrize(("options", "text"), [("", "No."), ("--schema schema", "No!")])
    def test_an_answer_in_another_form_is_kept(self, ask, shell, session, options, text):
        shell.user_ns["schema"] = SCHEMA
        answer = ask("Never?", f"--format json {options} -o answer", fails=True)
        assert f"UsageError: {NONE}. Say in the question" in ask.screen
        assert "Traceback" not in ask.screen
        assert text in ask.screen
        assert (answer.text, answer.value) == (text, None)
        assert answer is shell.user_ns["answer"]
        assert answer is shell.user_ns["Out"][shell.execution_count - 1]
        assert [message.text for message in session.conversation().messages] == ["Never?", text]

    @pytest.mark.parametrize("soon", [True, False])
    def test_an_interrupted_correction_keeps_the_first_answer(self, session, interrupt, soon):
        with pytest.raises(GenerationInterrupted) as caught:
            follow(
                session.stream("Which colour?", schema=SCHEMA, temperature=0),
                correcting=lambda _: interrupt() if soon else None,
                text=_after_a_complete_answer(GREEN, interrupt),
            )
        assert caught.value.answer.text == GREEN
        assert session.conversation().messages[-1].text == GREEN
        assert session.conversation().unfinished is None

    def test_a_correction_that_does_not_fit_is_said(self, session):
        options = {"max_tokens": 10, "temperature": 0, "schema": SCHEMA}
        empty, one = (session.ask(text, max_tokens=1).usage.text_tokens for text in ("w", "w word"))
        words = (session.status().info.context - empty - 10) // (one - empty)
        with pytest.raises(FormatError, match="Asking again failed: The prompt is") as caught:
            session.ask("w" + " word" * words, **options)
        answer = caught.value.answer
        assert 0 < answer.usage.new_tokens <= 10  # of the one call that was possible
        assert session.conversation().messages[-1].text == answer.text.rstrip("\ufffd")

    def test_a_schema_from_a_file(self, ask, tmp_path):
        (tmp_path / "my schema.json").write_text(json.dumps(SCHEMA))
        assert ask("Which colour?", '--schema "my schema.json"').value == {"colour": "blue"}

    @pytest.mark.parametrize(
        ("schema", "said"),
        [
            ("shcema", "--schema shcema is neither a variable nor a file. Did you mean schema?"),
            ("number", "A JSON Schema is an object, not int."),
            ("bad", "The schema is not a JSON Schema: at type"),
            ("text.json", "--schema text.json is not valid JSON: "),
            ("deep.json", "--schema deep.json is not valid JSON: "),
            ("bytes.json", "--schema bytes.json is not a text file in UTF-8."),
            ("x" * 300, f"--schema {'x' * 80}"),
            (".", "--schema . cannot be read: Is a directory."),
        ],
    )
    def test_a_schema_that_is_none(self, run, shell, session, tmp_path, schema, said):
        (tmp_path / "text.json").write_text("colour")
        (tmp_path / "deep.json").write_text("[" * 100_000)
        (tmp_path / "bytes.json").write_bytes(b"\xff")
        shell.user_ns.update(schema=SCHEMA, number=7, bad={"type": "colour"})
        screen = run(f"%%glm4v --schema {schema}\nWhich colour?", fails=True)
        assert f"UsageError: {said}" in screen
        assert session.chats == {}

    def test_a_reference_to_elsewhere_loses_no_answer(self, session):
        with pytest.raises(FormatError, match="which is not in it") as caught:
            session.ask("Which shape?", temperature=0, schema={"$ref": "https://example.org/s"})
        assert caught.value.answer.text == '{"shape": "circle"}'


def _after_a_complete_answer(text, interrupt):
    said = ""

    def take(piece):
        nonlocal said
        said += piece
        if len(said) > len(text) + 3:
            interrupt()

    return take


class TestCode:
    def test_it_goes_into_the_next_cell(self, ask, shell):
        answer = ask("Python?", "--format code")
        assert answer.value == shell.rl_next_input == "x = 41 + 1"
        shell.rl_next_input = None
        ask("Python?")
        assert shell.rl_next_input is None

    def test_another_language_gets_its_magic(self, ask, shell):
        assert ask("Bash?", "--format code").value == "echo hi"
        assert shell.rl_next_input == "%%bash\necho hi"
        shell.rl_next_input = None

    def test_no_code_is_said_and_nothing_offered(self, ask, shell):
        shell.rl_next_input = None
        assert ask("One?", "--format code", fails=True).text == "First."
        assert "UsageError: The answer holds no code block." in ask.screen
        assert shell.rl_next_input is None


def test_text_is_shown_as_it_is(shell):
    shown = {}
    for form in ("text", "markdown"):
        with capture_output() as captured:
            shell.run_cell(f"%%glm4v --format {form}\nBold?", store_history=True).raise_error()
        shown[form] = captured.outputs[-1].data
    assert set(shown["text"]) == {"text/plain"}
    assert shown["text"]["text/plain"].startswith("**bold** `code`\n")
    assert shown["markdown"]["text/markdown"].startswith("**bold** `code`\n")
    # Shown again later, an answer looks as it did.
    for form, answer in zip(shown, list(shell.user_ns["Out"].values())[-2:], strict=True):
        assert shell.display_formatter.format(answer)[0].keys() == shown[form].keys()


class TestChats:
    def test_continue_goes_on_and_a_cell_is_fresh(self, ask):
        ask("One?")
        assert ask("Two?", "-c").text == "Second."
        assert ask("One?").text == "First."
        assert ask("Two?", "--continue").text == "Second."

    def test_a_named_chat(self, ask, session):
        ask("One?", "--chat cats")
        ask("Never?")
        assert ask("Two?", "--chat cats").text == "Second."
        assert ask("Two?", "--chat cats -c").prompt == "Two?"
        assert len(session.conversation("cats").messages) == 6

    def test_the_image_stays_and_a_second_one_is_refused(self, ask, run, photo, session):
        first = ask("One?", "cat.png --max-tokens 3")
        again = ask("Two?", "-c --max-tokens 3")
        assert [image.source for image in again.images] == ["cat.png"]
        assert again.usage.visual_tokens == first.usage.visual_tokens > 0
        assert "cat.png, 320 x 240 px" in ask.screen
        before = session.chats
        line = run("%%glm4v cat.png -c\nThree?", fails=True).strip().splitlines()[-1]
        assert "takes one image in a conversation, and this one has 2. The images" in line
        assert session.chats == before

    def test_ask_on_a_line_with_all_of_it(self, run, shell):
        run('x = %glm4v ask "One?" --chat cats')
        run('y = %glm4v ask "Two?" -c -q -o z')
        assert shell.user_ns["x"].text == "First."
        assert shell.user_ns["y"].text == "Second."
        assert shell.user_ns["z"] is shell.user_ns["y"]
        run('w = %glm4v ask "Which shape?" --format json')
        assert shell.user_ns["w"].value == {"shape": "circle"}

    def test_what_does_not_go_on(self, run, ask):
        assert "no conversation to go on with" in run("%%glm4v -c\nTwo?", fails=True)
        ask("One?", "--chat cats")
        assert "Did you mean cats?" in run("%%glm4v -c --chat cat\nTwo?", fails=True)
        for command in ("history", "retry", "continue", "export"):
            line = f"%glm4v {command} cat{' x.md' if command == 'export' else ''}"
            assert "There is no chat 'cat'. Did you mean cats?" in run(line, fails=True)
        assert "%glm4v continue" in run("%%glm4v -c\n  ", fails=True)

    def test_the_system_setting_is_for_chats_that_begin(self, ask, run, session):
        run("%config Glm4v.system = 'Be brief.'")
        ask("One?", "--chat cats")
        run("%config Glm4v.system = 'Rhyme.'")
        ask("Two?", "--chat cats")
        ask("Two?", "-c")
        assert session.conversation().messages[0].text == "Be brief."
        ask("Two?", "-c --system Sing.")
        assert session.conversation().messages[0].text == "Sing."
        run("%config Glm4v.system = None")

    def test_preview_shows_the_whole_conversation(self, ask, run, session):
        ask("One?", "--chat cats")
        screen = run("%%glm4v --chat cats --preview\nTwo?")
        assert "First." in screen
        assert "Two?" in screen
        assert "First." not in run("%%glm4v --preview\nTwo?")
        assert len(session.conversation().messages) == 2


class TestCommands:
    def test_history(self, ask, run):
        ask("One?", "--chat cats")
        ask("Never?")
        assert "You:\nNever?\n\nModel:\nNo." in run("%glm4v history")
        assert "You:\nOne?\n\nModel:\nFirst." in run("%glm4v history cats")

    def test_chats(self, ask, run):
        assert "There is no chat yet" in run("%glm4v chats")
        ask("One?", "--chat cats")
        ask("Never?")
        lines = run("%glm4v chats").splitlines()
        assert any(line.split()[:3] == ["cats", "1", "question"] for line in lines)
        assert any(line.split()[:2] == ["->", "(unnamed)"] for line in lines)

    def test_reset(self, ask, run, session):
        assert "There was nothing to forget." in run("%glm4v reset")
        for name in ("cats", "dogs", "owls"):
            ask("One?", f"--chat {name}")
        assert "There was no chat cat. Did you mean cats?" in run("%glm4v reset cat")
        assert "%glm4v reset --all" in run("%glm4v reset all")
        assert "Forgotten: owls." in run("%glm4v reset")
        assert "Forgotten: cats." in run("%glm4v reset cats")
        assert "not both" in run("%glm4v reset dogs --all", fails=True)
        assert "Forgotten: dogs." in run("%glm4v reset --all")
        assert session.chats == {}

    def test_export_and_import(self, ask, run, photo, tmp_path, session):
        ask("One?", "cat.png --chat cats")
        before = session.conversation()
        assert "cats is in cats.json." in run("%glm4v export cats.json")
        ask("Never?")
        assert "(unnamed) is in my chat.md." in run("%glm4v export 'my chat.md'")
        assert "No." in (tmp_path / "my chat.md").read_text()
        run("%glm4v export cats cats.md")
        assert (tmp_path / "cats.md").read_text().startswith("# cats\n")
        run("%glm4v reset --all")
        assert "cats is there" in run("%glm4v import cats.json")
        assert session.conversation() == before
        assert "felines is there" in run("%glm4v import cats.json felines")
        assert session.conversation("felines") == before
        assert "Did you mean cats.json?" in run("%glm4v import cat.json", fails=True)
        assert "must end in .json" in run("%glm4v export cats.txt", fails=True)
        run("%config Glm4v.megapixels = 0.05")
        assert "cat.png" in (refused := run("%glm4v import cats.json small", fails=True))
        assert "megapixels" in refused
        run("%config Glm4v.megapixels = 128.0")

    def test_retry(self, ask, run, shell, session):
        ask("One?", "--chat cats")
        ask("Two?", "-c")
        run("%glm4v retry --temperature 50 --seed 3 --max-tokens 9 -o other")
        other = shell.user_ns["other"]
        assert (other.prompt, other.seed) == ("Two?", 3)
        assert other.usage.new_tokens <= 9
        assert other.text != "Second."
        assert other is shell.user_ns["_"]
        ask("Never?")
        run("x = %glm4v retry cats -q")
        assert shell.user_ns["x"].text == "Second."
        assert [m.text for m in session.conversation("cats").messages] == [
            "One?", "First.", "Two?", "Second.",
        ]  # fmt: skip
        ask("Which shape?")
        run("%glm4v retry --format json")
        assert shell.user_ns["_"].value == {"shape": "circle"}

    @pytest.mark.parametrize("command", ["retry", "continue"])
    @pytest.mark.parametrize("option", ["--fps 2", "--from 1:00", "--crop 0,0,9,9", "--page 2"])
    def test_what_a_question_is_about_is_not_changed_by_asking_again(
        self, ask, run, command, option
    ):
        ask("One?")
        said = run(f"%glm4v {command} {option}", fails=True)
        assert f"%glm4v {command} has no option {option.split()[0]}." in said
        assert "to change them, ask with %%glm4v." in said

    def test_an_option_of_no_question_is_not_said_to_change_one(self, ask, run):
        ask("One?")
        said = run("%glm4v retry --objective balance", fails=True)
        assert "%glm4v retry has no option --objective. It is one of %glm4v plan, " in said

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("retry --preview", "%glm4v retry has no option --preview. It is one of %%glm4v."),
            (
                "check --save x",
                "%glm4v check has no option --save. It is one of %%glm4v, %glm4v plan.",
            ),
            ("load demo --lora a --lora=b", "--lora is given twice. Give it once: one "),
            (
                "ask x --over a --evaluate l --by a --by b",
                "--by is given twice. Give it once: one ",
            ),
            (
                "ask x --compare a --compare b",
                "--compare is given twice. Give it once: its values ",
            ),
            ("status -o x", "%glm4v status has no option -o. It is one of %%glm4v."),
            (
                "devices --json",
                "%glm4v devices has no option --json. It is one of %glm4v plan, %glm4v ",
            ),
            ("chats --all", "%glm4v chats has no option --all. It is one of %glm4v reset."),
            ("ask --dry-run x", "%glm4v ask has no option --dry-run. It is one of %glm4v patch."),
            ("retry --chat c", "The chat is named without an option: %glm4v retry NAME."),
            ("retry --no-such", "There is no option --no-such. There are "),
        ],
    )
    def test_an_option_of_another_command_is_said_to_be_one(self, run, line, said):
        assert said in run(f"%glm4v {line}", fails=True)

    def test_continue_after_the_token_limit(self, ask, run, shell, session):
        part = ask("Which shape?", "--max-tokens 8")
        assert part.text.startswith('{"s')
        assert len(part.text) < len('{"shape": "circle"}')
        screen = run("%glm4v continue --format json -o whole")
        whole = shell.user_ns["whole"]
        assert whole.text == '{"shape": "circle"}'
        assert whole.value == {"shape": "circle"}
        assert whole.text in screen
        assert session.conversation().messages[-1].text == whole.text
        assert len(session.conversation().messages) == 2
        assert "nothing to carry on" in run("%glm4v continue", fails=True)

    def test_continue_keeps_the_form(self, run, shell):
        cut = "%glm4v ask 'Which shape?' --format json --max-tokens 8"
        assert "carry it on (%glm4v continue)" in run(cut, fails=True)
        run("whole = %glm4v continue")
        assert shell.user_ns["whole"].value == {"shape": "circle"}

    def test_wherever_it_was_cut_off_no_space_is_lost(self, session):
        whole = session.ask("Words?", temperature=0)
        assert whole.text == WORDS
        for tokens in range(1, whole.usage.new_tokens):
            part = session.ask("Words?", temperature=0, max_tokens=tokens)
            pieces = []
            done = follow(session.stream_carry_on(temperature=0), text=pieces.append)
            assert done.text == part.text + "".join(pieces) == WORDS

    def test_continue_after_an_interrupt(self, run, shell, session, monkeypatch, interrupt):
        stream = InterruptingStream(sys.stdout, "*", interrupt)
        monkeypatch.setattr(sys, "stdout", stream)
        result = shell.run_cell("%%glm4v --chat cats -o part\nBold?", store_history=True)
        monkeypatch.undo()
        assert isinstance(result.error_in_exec, KeyboardInterrupt)
        part = shell.user_ns["part"]
        assert part.finish_reason == "interrupted"
        assert session.conversation("cats").unfinished == part.text != "**bold** `code`"
        assert "Model (unfinished):" in run("%glm4v history")
        run("x = %glm4v continue cats")
        assert shell.user_ns["x"].text == "**bold** `code`"
        assert session.conversation().unfinished is None


def test_tab_offers_chats(ask, shell):
    ask("One?", "--chat cats")
    ask("One?", "--chat 'two words'")

    def completions(line):
        with provisionalcompleter():
            return {item.text for item in shell.Completer.completions(line, len(line))}

    for line in ("%glm4v history ", "%glm4v retry c", "%%glm4v --chat ", "%glm4v ask --chat c"):
        assert "cats" in completions(line), line
        assert "two words" not in completions(line), line


class TestAnswersAreData:
    @pytest.fixture
    def answer(self, session, photo):
        return replace(session.ask("One?", photo, temperature=0, max_tokens=3), value={"a": [1]})

    def test_copies_are_equal_and_others_are_not(self, answer):
        for same in (copy.copy(answer), copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):
            assert same == answer
            assert str(same) == answer.text
        assert replace(answer, seed=4) != answer
        assert replace(answer, images=()) != answer

    def test_it_is_unpickled_without_a_model_and_without_torch(self, answer, tmp_path):
        from glm4v_magic.checkpoints.architecture import architecture
        from glm4v_magic.core.gpu_spec import parse_gpus
        from glm4v_magic.planning.plan import plan

        plan = plan(architecture("demo").shape(), parse_gpus("2x16GiB"))
        file = tmp_path / "answer.pickle"
        file.write_bytes(pickle.dumps(replace(answer, plan=plan)))
        code = (
            "import pickle, sys\n"
            f"answer = pickle.load(open({str(file)!r}, 'rb'))\n"
            "again = pickle.loads(pickle.dumps(answer))\n"
            "assert again == answer and again.plan.stages[0].device == 'cuda:0'\n"
            "from glm4v_magic.notebook.render.answers.answer import answer_bundle\n"
            "answer_bundle(answer)\n"
            "print(ascii([answer.text, answer.images[0].image.size, answer.value]))\n"
            "heavy = {'torch', 'transformers', 'accelerate', 'IPython'} & sys.modules.keys()\n"
            "assert not heavy, heavy\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == ascii([answer.text, (320, 240), {"a": [1]}])
