"""The magics in a real shell, on the tiny reference checkpoint: real code, random weights."""

from __future__ import annotations

import re
import shutil
import sys

import pytest
from IPython.utils.capture import capture_output
from PIL import Image
from shells import TINY, InterruptingStream

from glm4v_magic.core.conversation import Answer
from glm4v_magic.core.errors import ComparisonInterrupted, Glm4vError
from glm4v_magic.core.options import Sampling
from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.magics import Glm4vMagics
from glm4v_magic.session.session import Session

GREEDY = "--temperature 0 --max-tokens 8"


def ask(run, line="cat.png", text="What is this?", options=GREEDY, **kwargs):
    return run(f"%%glm4v {line} {options}\n{text}", **kwargs)


def shown(shell, code):
    """Run a cell as a notebook would; returns its outputs, updates in place of what they update."""
    with capture_output() as captured:
        shell.run_cell(code, store_history=True).raise_error()
    outputs = []
    places = {}
    for output in captured.outputs:
        place = (output.transient or {}).get("display_id")
        if output.update:
            outputs[places[place]] = output.data
        else:
            places[place] = len(outputs)
            outputs.append(output.data)
    return outputs


def test_an_answer_lands_in_out_name_and_underscore(run, shell, tiny, photo):
    ask(run, "cat.png -o first")
    answer = shell.user_ns["first"]
    assert isinstance(answer, Answer)
    assert answer is shell.user_ns["_"]
    assert answer is shell.user_ns["Out"][shell.execution_count - 1]
    assert answer.prompt == "What is this?"
    assert [image.source for image in answer.images] == ["cat.png"]
    assert answer.model == str(TINY)
    assert answer.usage.new_tokens == 8
    assert answer.finish_reason == "length"


def test_a_terminal_shows_image_text_and_usage_once(run, shell, tiny, photo):
    screen = ask(run)
    answer = shell.user_ns["_"]
    assert "cat.png, 320 x 240 px · the model sees 56 x 56 px" in screen
    assert "8 tokens out" in screen
    printable = "".join(filter(str.isprintable, answer.text))
    assert screen.count(printable) == 1


def test_a_notebook_shows_strip_and_answer(shell, tiny, photo):
    strip, answer = shown(shell, f"%%glm4v cat.png {GREEDY}\nWhat is this?")
    assert re.search(
        r'<img src="data:image/\w+;base64,[^"]+" alt="cat.png, 320 x 240 px"', strip["text/html"]
    )
    assert "visual token" in strip["text/html"]
    assert set(answer) == {"text/plain", "text/markdown"}
    assert "8 tokens out" in answer["text/markdown"]


def test_a_model_is_loaded_with_the_first_question(run, shell, tiny, photo):
    run("%glm4v unload")
    bar, _strip, _answer = shown(shell, f"%%glm4v cat.png {GREEDY}\nWhat is this?")
    assert re.match(r"Loaded .*checkpoint in .*: .* parameters, float32, cpu\.", bar["text/plain"])
    assert len(shown(shell, f"%%glm4v cat.png {GREEDY}\nAgain?")) == 2


def test_loading_shows_its_progress(run, shell, tiny):
    assert "is loaded already." in run(f"%glm4v load {TINY}")
    run("%glm4v unload")
    with capture_output() as captured:
        shell.run_cell(f"%glm4v load {TINY}")
    first, *_, last = captured.outputs
    assert "<progress" in first.data["text/html"]
    assert "0 B of 1.5 MiB (0 %)" in first.data["text/plain"]
    assert "<progress" not in last.data["text/html"]
    assert last.data["text/plain"].startswith("Loaded ")


def test_a_bar_that_never_became_full_says_so(shell, tiny, tmp_path):
    shutil.copytree(TINY, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.model").write_bytes(b"no ranks in here\n")
    with capture_output() as captured:
        result = shell.run_cell("%glm4v load broken")
    assert not result.success
    last = captured.outputs[-1].data
    assert "<progress" not in last["text/html"]
    assert last["text/plain"].endswith("not finished.")
    assert "is not a base64 token" in str(result.error_in_exec)


def test_without_an_image(run, shell, tiny):
    ask(run, "")
    assert shell.user_ns["_"].images == ()
    assert shell.user_ns["_"].usage.visual_tokens == 0


def test_images_from_variables(run, shell, tiny, photo):
    with Image.open(photo) as pil:
        shell.user_ns.update(pil=pil.copy(), raw=photo.read_bytes())
    texts = set()
    for word in ("pil", "raw", "cat.png", '"cat.png"'):
        ask(run, word)
        texts.add(shell.user_ns["_"].text)
    assert len(texts) == 1


def test_expressions_are_expanded_unless_raw(run, shell, tiny):
    run("thing = 'hat'")
    ask(run, "", "A {{thing.upper()}}? {thing} $thing")
    assert shell.user_ns["_"].prompt == "A HAT? {thing} $thing"
    ask(run, "--raw", "A {{thing}}?")
    assert shell.user_ns["_"].prompt == "A {{thing}}?"


def test_expressions_see_the_function_around_a_line_magic(run, shell, tiny):
    run(
        "def f(local):\n"
        f"    return get_ipython().run_line_magic('glm4v', 'ask \"A {{{{local}}}}?\" {GREEDY}')\n"
        "x = f('cap')"
    )
    assert shell.user_ns["x"].prompt == "A cap?"


def test_seed_repeats_and_changes_a_sampled_answer(run, shell, tiny):
    texts = []
    for seed in (1, 1, 2):
        ask(run, "", options=f"--temperature 1.5 --max-tokens 12 --seed {seed}")
        assert shell.user_ns["_"].seed == seed
        texts.append(shell.user_ns["_"].text)
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("options", ["--top-k 1", "--top-p 0.0001"])
def test_narrow_sampling_is_greedy(run, shell, tiny, options):
    ask(run, "")
    greedy = shell.user_ns["_"].text
    ask(run, "", options=f"--temperature 1.5 --max-tokens 8 --seed 3 {options}")
    assert shell.user_ns["_"].text == greedy
    ask(run, "", options="--temperature 1.5 --max-tokens 8 --seed 3")
    assert shell.user_ns["_"].text != greedy


def test_system_message_and_repetition_penalty_reach_the_model(run, shell, tiny):
    ask(run, "", options=GREEDY)
    plain = shell.user_ns["_"]
    ask(run, "", options=f"{GREEDY} --system Hello")
    assert shell.user_ns["_"].usage.text_tokens > plain.usage.text_tokens
    ask(run, "", options=f"{GREEDY} --repetition-penalty 50")
    assert shell.user_ns["_"].text != plain.text
    ask(run, "", options=f"{GREEDY} --repetition-penalty 1")
    assert shell.user_ns["_"].text == plain.text


def test_a_model_that_does_not_think_may_be_told_not_to(run, shell, tiny):
    ask(run, "-o plain")
    ask(run, "--thinking off")
    assert shell.user_ns["_"].text == shell.user_ns["plain"].text
    assert shell.user_ns["_"].thinking == ""


def test_settings_are_the_defaults_of_options(run, shell, tiny):
    run("%config Glm4v.max_tokens = 3\n%config Glm4v.temperature = 0")
    ask(run, "", options="")
    assert (shell.user_ns["_"].usage.new_tokens, shell.user_ns["_"].seed) == (3, None)
    ask(run, "", options="--max-tokens 2 --temperature 1 --seed 7")
    assert (shell.user_ns["_"].usage.new_tokens, shell.user_ns["_"].seed) == (2, 7)
    run("%unload_ext glm4v_magic\n%load_ext glm4v_magic")
    run(f"%config Glm4v.model = {str(TINY)!r}")
    ask(run, "")
    assert shell.user_ns["_"].model == str(TINY)
    run("%config Glm4v.model = None")


def test_a_load_that_names_none_takes_the_setting_unless_a_model_was_chosen(run):
    run("%unload_ext glm4v_magic\n%load_ext glm4v_magic")
    run('%glm4v ask "What?" --max-tokens 1')  # of the demo, which nobody has named
    assert "demo is loaded already." in run("%glm4v load")
    run(f"%config Glm4v.model = {str(TINY)!r}")
    assert f"Loaded {TINY}" in run("%glm4v load")
    run("%config Glm4v.model = None")
    assert f"{TINY} is loaded already." in run("%glm4v load")


def test_max_tokens_bounds_the_answer(run, shell, tiny):
    ask(run, "", options="--temperature 0 --max-tokens 3")
    assert shell.user_ns["_"].usage.new_tokens == 3


def test_quiet_shows_nothing_and_keeps_the_answer(run, shell, tiny, photo):
    assert shown(shell, f"%%glm4v cat.png -q -o quiet {GREEDY}\nWhat?") == []
    assert shell.user_ns["quiet"] is shell.user_ns["_"]


def test_options_and_images_in_any_order(run, shell, tiny, photo):
    ask(run, "-o a cat.png", options="--max-tokens 2 --temperature=0")
    assert len(shell.user_ns["a"].images) == 1
    assert shell.user_ns["a"].usage.new_tokens == 2


def test_a_value_in_quotes_may_begin_with_a_dash(run, shell, tiny):
    run('%%glm4v --max-tokens 2 --system "- brief" -o answer\nWhat?')
    assert "- brief" in run("%glm4v history")


def test_ask_on_one_line(run, shell, tiny, photo):
    run(f'x = %glm4v ask cat.png "What is this?" {GREEDY}')
    assert shell.user_ns["x"].prompt == "What is this?"
    run(f"%glm4v ask 'Hello?' {GREEDY}")
    assert shell.user_ns["_"].images == ()


@pytest.mark.parametrize("line", ["ask", "ask cat.png", "ask cat.png What is this"])
def test_ask_needs_a_question_in_quotes(run, line):
    assert "needs a question in quotes" in run(f"%glm4v {line}", fails=True)


def test_status_before_and_after(run, tiny):
    run("%unload_ext glm4v_magic\n%load_ext glm4v_magic")
    assert "demo, not loaded: the next question loads it" in run("%glm4v")
    run(f"%glm4v load {TINY}")
    loaded = run("%glm4v")
    assert "float32" in loaded
    assert "cpu" in loaded
    assert "at most 1, seen at 56 x 56 px" in loaded
    assert "last answer" not in loaded
    ask(run, "")
    assert "8 tokens out" in run("%glm4v status")
    run("%glm4v unload")
    assert "not loaded" in run("%glm4v")


def test_unload_says_whether_something_was_loaded(run, tiny):
    assert f"{TINY} was unloaded." in run("%glm4v unload")
    assert f"{TINY} was not loaded." in run("%glm4v unload")


def test_load_with_another_dtype(run, tiny):
    assert "bfloat16" in run(f"%glm4v load {TINY} --dtype bfloat16")
    assert "bfloat16" in run("%glm4v")


def test_load_without_a_name_stays_with_the_model(run, tiny):
    run("%glm4v unload")
    assert str(TINY) in run("%glm4v load")


def test_help_is_the_docstring_and_lists_every_command(run, shell):
    page = run("%glm4v help")
    assert page.strip() == Glm4vMagics.glm4v.__doc__.strip()
    for command in COMMANDS:
        if command not in ("status", "help"):
            assert f"%glm4v {command}" in page
        assert f"%glm4v {command}" in run(f"%glm4v help {command}")
    assert shell.find_line_magic("glm4v").__doc__ == Glm4vMagics.glm4v.__doc__


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_an_option_asks_for_help(run, option):
    page = run("%glm4v help")
    assert run(f"%glm4v {option}") == page
    assert run(f"%%glm4v missing.png {option}\nWhat is it?") == page
    assert run(f"%glm4v plan GLM-4V-9B {option}") == run("%glm4v help plan")


def test_a_question_mark_asks_for_help(run):
    assert run("%glm4v ?") == run("%glm4v help")


def test_help_in_quotes_is_a_value(run):
    shown = run('%glm4v preview "Hi" --system "-h"')
    assert "Hi" in shown
    assert "%glm4v preview" not in shown


def test_the_help_tells_the_default():
    assert f"{Sampling().max_tokens} unless given" in Glm4vMagics.glm4v.__doc__
    assert f"{Sampling().max_tokens} unless given" in Session.ask.__doc__


ERRORS = [
    ("%%glm4v missing.png\nWhat?", "missing.png"),
    ("%%glm4v cat.pgn\nWhat?", "cat.png"),
    ("%%glm4v notes.txt\nWhat?", "notes.txt"),
    ("%%glm4v half.png\nWhat?", "half.png"),
    ("%%glm4v catt\nWhat?", "cats"),
    ("%%glm4v number\nWhat?", "number"),
    ("%%glm4v cat.png\n   ", "empty"),
    ("%%glm4v cat.png\n\n\n", "empty"),
    ("%%glm4v cat.png\n{{nothing}}", "nothing"),
    ("%%glm4v cat.png\n{{1/0}}", "division"),
    ("%%glm4v cat.png cat.png\nWhat?", "takes one image in a conversation, and this one has 2"),
    (
        "%%glm4v cat.png --temprature 1\nWhat?",
        "There is no option --temprature. Did you mean --temperature?",
    ),
    ("%%glm4v cat.png --temp 1\nWhat?", "There is no option --temp. Did you mean --temperature?"),
    ("%%glm4v cat.png --xyzzy\nWhat?", "There is no option --xyzzy."),
    ("%%glm4v cat.png --temperature hot\nWhat?", "--temperature is 'hot', but must be a number"),
    ("%%glm4v cat.png --temperature -1\nWhat?", "--temperature is -1.0, but must be"),
    ("%%glm4v cat.png --temperature nan\nWhat?", "--temperature is nan, but must be"),
    ("%%glm4v cat.png --max-tokens 0\nWhat?", "--max-tokens is 0, but must be"),
    ("%%glm4v cat.png --top-p 1.5\nWhat?", "--top-p is 1.5, but must be"),
    ("%%glm4v cat.png --top-k 0\nWhat?", "--top-k is 0, but must be"),
    ("%%glm4v cat.png --repetition-penalty 0\nWhat?", "--repetition-penalty is 0.0, but must be"),
    ("%%glm4v cat.png --seed -1\nWhat?", "--seed is -1, but must be"),
    ("%%glm4v cat.png --seed\nWhat?", "--seed needs a value: --seed N."),
    ("%%glm4v cat.png --format jsn\nWhat?", "--format is 'jsn', but must be markdown"),
    ("%%glm4v cat.png --thinking yes\nWhat?", "--thinking is 'yes', but must be on or off"),
    ("%%glm4v cat.png --thinking on\nWhat?", "does not think before it answers. Leave"),
    ("%%glm4v cat.png --format text --schema {}\nWhat?", "--schema {} is neither a variable"),
    ("%%glm4v chats\nWhat?", "chats is a command for one line"),
    ("%%glm4v cat.png --chat ' '\nWhat?", "--chat is ' ', but must be a name"),
    ("%%glm4v cat.png —seed 3\nWhat?", "—seed begins with a dash. Options begin with hyphens: --s"),
    ("%%glm4v cat.png –-seed=3\nWhat?", "Options begin with hyphens: --seed=3."),
    ("%%glm4v cat.png –q\nWhat?", "Options begin with hyphens: -q."),
    ("%%glm4v '—q'\nWhat?", "—q: neither a variable nor a file"),
    ("%glm4v ask cat.png What is it?", "needs a question in quotes behind the images."),
    ("%glm4v ask cat.png “What is it?”", "needs a question in straight quotes behind the images."),
    ("%glm4v ask cat.png 'What's this?'", "Quotes within it are of the other kind"),
    ("%glm4v nothing?", "has no command 'nothing?'"),
    ("%glm4v hitsory", "Did you mean history?"),
    ("%glm4v retry a b", "does not take 'b'"),
    ("%glm4v export", "%glm4v export needs FILE"),
    ("%%glm4v cat.png -o 1a\nWhat?", "--out '1a' is not the name of a variable"),
    ("%%glm4v cat.png -o class\nWhat?", "--out 'class' is not the name of a variable"),
    ("%%glm4v 'cat.png\nWhat?", "A quote is not closed"),
    ("%%glm4v it's.png\nWhat?", "it's.png"),
    ("%%glm4v load x\nWhat?", "load is a command for one line"),
    ("%%glm4v cat.png", "The prompt is empty. Write the question below the first line of the"),
    ("%%glm4v cat.png\n", "The prompt is empty. Write the question below the first line of the"),
    ("%%glm4v --over [1]", "The prompt is empty. Write the question below the first line of the"),
    ("%%glm4v -c", "The prompt is empty. To carry on an unfinished answer: %glm4v continue."),
    ("%%glm4v load demo", "load is a command for one line"),
    ("%%glm4v2 cat.png", "not found"),
    ("%glm4v lod", "Did you mean load or unload?"),
    ("%glm4v cat.png", '%glm4v ask cat.png "the question"'),
    ('%glm4v "Is it a cat?"', 'To ask on one line: %glm4v ask "Is it a cat?"'),
    ("%glm4v --seed 3", "needs a command before its options"),
    ("%glm4v load no/such/folder", "no/such/folder"),
    ("%glm4v load empty_folder", "config.json"),
    *(
        (f"%glm4v {command} ''", "The model has an empty name.")
        for command in ("load", "plan --gpus 1x8GiB", "check --gpus 1x8GiB", "devices", "doctor")
    ),
    ("%glm4v load {{''}}", "The model has an empty name."),
    ("%glm4v load demo --lora ''", "--lora is '', but must be a folder or a name."),
    ("%glm4v load no_weights", "no weights"),
    ("%glm4v load half", "model.safetensors"),
    ("%glm4v load wrong_config", "config.json"),
    ("%glm4v load cat.png", "is a file"),
    ("%glm4v load a b", "does not take 'b'"),
    ("%glm4v load 127.0.0.1:8000", "The address of a server begins with http://."),
    ("%glm4v config temperature 0", "does not take '0'. See %glm4v help config."),
    ("%glm4v load --dtype int3", "Unknown dtype 'int3'"),
    ("%glm4v unload now", "does not take 'now'"),
    ("%glm4v help hlp", "Did you mean help?"),
]


@pytest.fixture
def clutter(photo, tmp_path, shell):
    """Files and variables that go wrong, each in its own way."""
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "half.png").write_bytes(photo.read_bytes()[:-200])
    (tmp_path / "empty_folder").mkdir()
    for name in ("no_weights", "half", "wrong_config"):
        folder = tmp_path / name
        folder.mkdir()
        for file in TINY.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    (tmp_path / "no_weights" / "model.safetensors").unlink()
    weights = tmp_path / "half" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    (tmp_path / "wrong_config" / "config.json").write_text('{"model_type": "bert"}')
    shell.user_ns.update(cats=photo.read_bytes(), number=7)


def test_bad_input_is_one_line_and_loses_nothing(run, shell, tiny, clutter):
    ask(run, "-o kept")
    kept = shell.user_ns["kept"]
    for code, part in ERRORS:
        screen = run(code, fails=True)
        line = screen.strip().splitlines()[-1]
        assert line.startswith("UsageError: "), code
        assert part in line, code
        assert "Traceback" not in screen, code
    assert shell.user_ns["kept"] is kept
    assert str(TINY) in run("%glm4v")
    ask(run, "-o again")
    assert shell.user_ns["again"].text == kept.text


def test_a_cell_of_one_line_may_have_its_question_in_a_file(run, shell, tiny, photo, tmp_path):
    (tmp_path / "question.txt").write_text("What?")
    run("%%glm4v cat.png -f question.txt -o answer --temperature 0 --max-tokens 2")
    assert shell.user_ns["answer"].prompt == "What?"
    assert "%%glm4v" in run("%%glm4v --help")


def test_a_question_mark_behind_a_command_shows_its_help(run):
    for line in ("%glm4v plan?", "%glm4v plan ?", "%glm4v plan??"):
        assert run(line) == run("%glm4v plan --help")


def test_the_least_temperature_is_greedy(run, shell, tiny, photo):
    ask(run, "-o answer --temperature 1e-300")
    ask(run, "-o greedy --temperature 0")
    answer, greedy = (shell.user_ns[name] for name in ("answer", "greedy"))
    assert (answer.text, answer.seed) == (greedy.text, None)


def test_a_terminal_still_waits_for_the_question(shell):
    complete = shell.input_transformer_manager.check_complete
    assert complete("%%glm4v cat.png\n")[0] == "incomplete"
    assert complete("%%glm4v cat.png\nWhat?\n\n")[0] == "complete"


def test_debug_shows_the_traceback(run, tiny):
    screen = run("%%glm4v missing.png --debug\nWhat?", fails=True)
    assert "Traceback" in screen
    assert "ImageError" in screen
    assert "Traceback" in run("%glm4v load no/such/folder --debug", fails=True)


def test_an_error_holds_on_to_no_frames(shell, tiny):
    result = shell.run_cell("%glm4v load no/such/folder")
    assert result.error_in_exec.__context__ is None
    assert result.error_in_exec.__cause__ is None


def test_an_interrupt_keeps_the_partial_answer_and_stops(
    run, shell, talkative, monkeypatch, interrupt, capsys
):
    run(f"%glm4v load {talkative}")
    run("%%glm4v --temperature 0 --max-tokens 8 -o whole -q\nWhat is this?")
    first = shell.user_ns["whole"].text[0]
    with monkeypatch.context() as patch:  # what ends the shell prints, and outlives this stream
        patch.setattr(sys, "stdout", InterruptingStream(sys.stdout, first, interrupt))
        result = shell.run_cell(
            "%%glm4v --temperature 0 --max-tokens 4000 -o part\nWhat is this?", store_history=True
        )
    assert isinstance(result.error_in_exec, KeyboardInterrupt)
    screen = capsys.readouterr().out
    part = shell.user_ns["part"]
    assert part.finish_reason == "interrupted"
    assert part.text
    assert part.usage.new_tokens < 4000
    assert part is shell.user_ns["_"]
    assert part is shell.user_ns["Out"][shell.execution_count - 1]
    assert "stopped by you" in screen
    assert (
        screen.strip().splitlines()[-1]
        == "Stopped: what was said until then is in _; %glm4v continue carries it on."
    )
    assert "Traceback" not in screen
    run("%%glm4v --temperature 0 --max-tokens 8 -o after\nWhat is this?")
    assert shell.user_ns["after"].text == shell.user_ns["whole"].text


def test_an_interrupt_while_loading_leaves_nothing_behind(
    run, shell, tiny, monkeypatch, interrupt, capsys
):
    run("%glm4v unload")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", InterruptingStream(sys.stdout, "Loading", interrupt))
        result = shell.run_cell(f"%glm4v load {TINY} --dtype bfloat16")
    assert isinstance(result.error_in_exec, KeyboardInterrupt)
    assert "Stopped: %glm4v load did not finish." in "".join(capsys.readouterr())
    assert "not loaded" in run("%glm4v")
    ask(run, "")


@pytest.mark.parametrize(
    ("line", "printed", "told", "after"),
    [
        ("load demo", "Loaded", "demo is loaded all the same: it was ready when", "demo"),
        ("unload", "was unloaded", f"{TINY} was unloaded all the same.", "not loaded"),
    ],
)
def test_an_interrupt_that_comes_too_late_says_so(
    run, shell, tiny, monkeypatch, interrupt, capsys, line, printed, told, after
):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", InterruptingStream(sys.stdout, printed, interrupt))
        result = shell.run_cell(f"%glm4v {line}")
    assert isinstance(result.error_in_exec, KeyboardInterrupt)
    screen = "".join(capsys.readouterr())
    assert f"Stopped: {told}" in screen
    assert "not finish" not in screen
    assert after in run("%glm4v")
    run(f"%glm4v load {TINY}")


def traceback_of(shell, capsys, code, kind=Glm4vError):
    capsys.readouterr()
    result = shell.run_cell(code)
    assert isinstance(result.error_in_exec, kind)
    return re.sub(r"\x1b\[[\d;]*m", "", "".join(capsys.readouterr()))


def test_an_error_of_ours_in_a_cell_of_python_is_one_line(run, shell, tiny, capsys, tmp_path):
    ask(run, "-o answer")
    shown = traceback_of(shell, capsys, "x = 1\nanswer.crop(0)")
    assert re.fullmatch(
        r"OptionError: There is no box 0: the answer has no boxes\. \(Cell .*, line 2\)\s*", shown
    )
    code = "import glm4v_magic\nglm4v_magic.load(gpus='banana')"  # through what a dataclass writes
    shown = traceback_of(shell, capsys, code)
    assert re.fullmatch(
        r"GPUDescriptionError: Cannot read 'banana'.* \(Cell .*, line 2\)\s*", shown
    )
    # Options and calls are named as they are in Python, whose call this is.
    shown = traceback_of(
        shell, capsys,
        "from glm4v_magic.core.errors import ConversationError, OptionError\n"
        "raise OptionError('bins is -1.', option='bins', code='thinking_cannot_go_on')",
    )  # fmt: skip
    assert shown.startswith("OptionError: bins is -1. To ask again: session.retry(). (Cell ")
    shown = traceback_of(
        shell, capsys,
        "raise OptionError('It is old.', code='install', command='pip install it')",
    )  # fmt: skip
    assert "then restart the kernel" in shown
    # Out of a context manager of ours, and of what is computed once, too.
    run("look = answer.inspect()")
    run("%glm4v unload")
    for code in ("answer.inspect()", "look.prompt"):
        shown = traceback_of(shell, capsys, code)
        assert re.fullmatch(r"EngineError: .* is no longer loaded.* \(Cell .*, line 1\)\s*", shown)
    run("%config Glm4v.debug = True")
    assert "Traceback" in traceback_of(shell, capsys, "answer.crop(0)")
    run("%config Glm4v.debug = False")
    (tmp_path / "own.py").write_text("def cut(answer):\n    return answer.crop(0)\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport own\nown.cut(answer)"
    assert "own.py" in traceback_of(shell, capsys, code)
    shell.run_line_magic("unload_ext", "glm4v_magic")
    assert "Traceback" in traceback_of(shell, capsys, "answer.crop(0)")
    shell.run_line_magic("load_ext", "glm4v_magic")


def test_an_interrupt_of_a_call_of_python_is_one_line_with_what_there_is(run, shell, tiny, capsys):
    shell.user_ns["session"] = shell.magics_manager.registry["Glm4vMagics"].context.session
    run(
        "from glm4v_magic.core.events import ColumnDone\n"
        "def compare():\n"
        "    settings = [{}, {'seed': 1}]\n"
        "    with session.stream_compare('What?', settings=settings, max_tokens=1) as stream:\n"
        "        for event in stream:\n"
        "            if isinstance(event, ColumnDone):\n"
        "                raise KeyboardInterrupt"
    )
    shown = traceback_of(shell, capsys, "compare()", ComparisonInterrupted)
    assert re.fullmatch(
        r"ComparisonInterrupted: 1 of 2 models or settings have answered; what they said is in "
        r"sys\.last_value\.result \(Cell .*, line 4\)\s*", shown,
    )  # fmt: skip
    run("import sys; kept = sys.last_value.result")
    assert [each.done for each in shell.user_ns["kept"].columns] == [True, False]


@pytest.mark.parametrize("line", ["plan GLM-4V-9B --gpus 2x16GiB", "check demo --gpus 1x16GiB"])
def test_what_was_stopped_is_named(shell, monkeypatch, capsys, line):
    command = line.split()[0]

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, command, interrupted)
    monkeypatch.setattr("glm4v_magic.notebook.commands.parse", lambda *given: None)
    shell.run_cell(f"%glm4v {line}")
    assert f"Stopped: %glm4v {command} did not finish." in "".join(capsys.readouterr())


def test_a_folder_is_named_that_holds_no_checkpoint(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path}/config.json cannot be read" in run("%glm4v load ./", fails=True)
