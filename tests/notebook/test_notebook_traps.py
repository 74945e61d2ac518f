"""What notebooks and IPython do to a magic, one test per trap.

In shells here; in real kernels, driven as a browser or nbclient drives them, further below.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import nbformat
import pytest
from IPython.core.error import UsageError
from IPython.utils.capture import capture_output
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter, MarkdownExporter
from PIL import Image
from shells import TINY, ipython_shell

from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.core.errors import OptionError
from glm4v_magic.images import to_image
from glm4v_magic.notebook.command_line import Quoted, split
from glm4v_magic.notebook.live.output import Output

GREEDY = "--temperature 0 --max-tokens 8"


@pytest.mark.parametrize(
    "prompt",
    ["What is this;", "An odd ''' quote", '"""', "f(x) = (", "# only a comment", "x = 1;  # end;"],
)
def test_a_prompt_is_not_read_as_python(run, shell, tiny, prompt):
    """IPython's output_can_be_silenced would tokenise it, after the answer has been made."""
    run(f"%%glm4v {GREEDY}\n{prompt}")
    assert shell.user_ns["_"].prompt == prompt


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("'a b.png' c.png", ["a b.png", "c.png"]),
        ('"it\'s.png"', ["it's.png"]),
        ("it's.png", ["it's.png"]),
        (r"C:\new\table.png", [r"C:\new\table.png"]),
        (r'"C:\my files\x.png"', [r"C:\my files\x.png"]),
        ("--out='x'", ["--out='x'"]),
        ("a#b.png?c=1&d=2", ["a#b.png?c=1&d=2"]),
        ("", []),
    ],
)
def test_quotes_are_taken_off_and_backslashes_stay(line, words):
    assert split(line) == words


def test_a_word_remembers_that_it_was_quoted():
    assert [isinstance(word, Quoted) for word in split("a 'b' \"c d\"")] == [False, True, True]
    with pytest.raises(OptionError, match="A quote is not closed"):
        split("'a")


def test_paths_with_spaces_and_apostrophes(run, shell, tiny, photo):
    for name in ("my cat.png", "it's.png"):
        photo.rename(name)
        run(f'%%glm4v "{name}" {GREEDY}\nWhat?')
        assert shell.user_ns["_"].images[0].source == name
        photo = Path(name)


def test_an_empty_cell_is_explained(run, shell):
    said = run("%%glm4v", fails=True)
    assert "Write the question below the first line of the cell." in said
    assert "percent sign: %glm4v ask" in said


def test_the_first_line_is_not_expanded_by_ipython(run, shell, tiny, photo):
    run("x = 'cat'")
    photo.rename("{x}-$x-.png")
    run(f"%%glm4v {{x}}-$x-.png {GREEDY}\nWhat?")
    assert shell.user_ns["_"].images[0].source == "{x}-$x-.png"


def test_a_call_leaves_no_thread_behind(run, tiny):
    before = threading.active_count()
    run(f"%%glm4v {GREEDY}\nWhat?")
    assert threading.active_count() == before


def test_an_answer_is_shown_once_by_its_cell_and_again_when_asked_for(shell, tiny):
    def times_shown(code):
        with capture_output() as captured:
            shell.run_cell(code, store_history=True).raise_error()
        # An output that is updated counts once; what a cell evaluates to is printed.
        places = {
            output.transient["display_id"]
            for output in captured.outputs
            if "text/markdown" in output.data
        }
        return len(places) + captured.stdout.count("tokens out")

    assert times_shown(f"%%glm4v {GREEDY} -o first\nWhat?") == 1
    assert times_shown("first") == 1
    assert times_shown("_") == 1
    assert times_shown("first; 1") == 0
    assert times_shown(f'%glm4v ask "What?" {GREEDY}') == 1
    assert times_shown(f'x = %glm4v ask "What?" {GREEDY}') == 1
    assert times_shown("x") == 1
    assert times_shown(f"%%glm4v {GREEDY} -q\nWhat?") == 0
    assert times_shown("_") == 1


def footprint(shell):
    """Everything an extension can leave in a shell."""
    formatters = [
        shell.display_formatter.ipython_display_formatter,
        shell.display_formatter.mimebundle_formatter,
        *shell.display_formatter.formatters.values(),
    ]
    return {
        "magics": {kind: set(names) for kind, names in shell.magics_manager.magics.items()},
        "registry": set(shell.magics_manager.registry),
        "configurables": [type(configurable) for configurable in shell.configurables],
        "callbacks": {name: list(calls) for name, calls in shell.events.callbacks.items()},
        "formatters": [set(formatter.type_printers) for formatter in formatters],
        "deferred": [set(formatter.deferred_printers) for formatter in formatters],
        "hooks": {name: str(hook) for name, hook in shell.hooks.items()},
        "transformers": list(shell.input_transformers_cleanup),
        "names": set(shell.user_ns),
        "threads": threading.active_count(),
    }


def test_unloading_leaves_nothing_and_reloading_adds_nothing(plain_shell):
    plain_shell.find_line_magic("load_ext")  # IPython registers its own magics when first used
    before = footprint(plain_shell)
    plain_shell.run_line_magic("load_ext", "glm4v_magic")
    loaded = footprint(plain_shell)
    assert loaded != before
    plain_shell.run_line_magic("reload_ext", "glm4v_magic")
    plain_shell.run_line_magic("reload_ext", "glm4v_magic")
    reloaded = footprint(plain_shell)
    del loaded["callbacks"], reloaded["callbacks"]
    assert reloaded == loaded
    plain_shell.run_line_magic("unload_ext", "glm4v_magic")
    assert footprint(plain_shell) == before


def test_reloading_with_a_wrong_setting_leaves_what_is_there(plain_shell, monkeypatch):
    plain_shell.run_line_magic("load_ext", "glm4v_magic")
    for _ in range(2):
        before = footprint(plain_shell)
        monkeypatch.setenv("GLM4V_TEMPERATURE", "hot")
        with pytest.raises(UsageError, match=r"'hot', but must .*%glm4v works as before\.$"):
            plain_shell.run_line_magic("reload_ext", "glm4v_magic")
        assert footprint(plain_shell) == before
        monkeypatch.delenv("GLM4V_TEMPERATURE")
        plain_shell.run_line_magic("reload_ext", "glm4v_magic")
    plain_shell.run_line_magic("unload_ext", "glm4v_magic")
    monkeypatch.setenv("GLM4V_TEMPERATURE", "hot")
    with pytest.raises(UsageError, match=r"greedy\)\. glm4v_magic was not loaded\."):
        plain_shell.run_line_magic("load_ext", "glm4v_magic")


def test_a_notice_is_told_once_in_a_kernel_however_often_the_extension_is_loaded(plain_shell):
    usage = Usage(1, 0, 1)
    answer = Answer("A", "Q?", "demo", usage, "stop", notice="This is the demo model.")
    told = []
    for how in ("load_ext", "reload_ext", "unload_ext", "load_ext"):
        plain_shell.run_line_magic(how, "glm4v_magic")
        if how != "unload_ext":
            data, _ = plain_shell.display_formatter.format(answer)
            told.append("This is the demo model." in data["text/plain"])
            magics = plain_shell.magics_manager.registry["Glm4vMagics"]
            magics.context.told.add(answer.notice)
    plain_shell.run_line_magic("unload_ext", "glm4v_magic")
    assert told == [True, False, False]


def test_reloading_keeps_model_and_chats_and_unloading_releases_them(tmp_path):
    with ipython_shell(tmp_path) as shell:
        shell.run_line_magic("load_ext", "glm4v_magic")
        session = shell.magics_manager.registry["Glm4vMagics"].context.session
        with capture_output():
            shell.run_line_magic("glm4v", f"load {TINY}")
            shell.run_line_magic("glm4v", f"ask 'What?' --chat cats {GREEDY}")
        with capture_output() as reloading:
            shell.run_line_magic("reload_ext", "glm4v_magic")
        assert (str(reloading), reloading.outputs) == ("", [])
        kept = shell.magics_manager.registry["Glm4vMagics"].context.session
        assert (kept.status().info is not None, list(kept.chats)) == (True, ["cats"])
        with capture_output() as unloading:
            shell.run_line_magic("unload_ext", "glm4v_magic")
        assert session.status().info is None
        (said,) = unloading.outputs
        assert said.data["text/plain"] == f"{TINY} was unloaded. Forgotten: cats."


# Real kernels. A notebook is executed in each, so that what is tested is what is saved.


def notebook(*cells):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


def client(cells, folder, **options):
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook(*cells), timeout=300, resources=resources, **options)


def bundles(cell):
    return [output["data"] for output in cell.outputs if "data" in output]


def test_an_executed_notebook_holds_each_answer_once(kernel_folder):
    executed = client(
        [
            "%load_ext glm4v_magic",
            f"%glm4v load {TINY}",
            f"%%glm4v cat.png -o answer {GREEDY}\nWhat costs $5?",
            "answer is _ is Out[3], answer.prompt",
            "answer",
            "%unload_ext glm4v_magic",
        ],
        kernel_folder,
    ).execute()
    _, load, ask, same, again, _ = executed.cells
    (loaded,) = bundles(load)
    assert loaded["text/plain"].startswith(f"Loaded {TINY}")
    strip, answer = bundles(ask)
    assert 'alt="cat.png, 320 x 240 px"' in strip["text/html"]
    assert "8 tokens out" in answer["text/markdown"]
    assert all(output.output_type == "display_data" for output in ask.outputs)
    assert bundles(same)[0]["text/plain"] == "(True, 'What costs $5?')"
    assert again.outputs[0].output_type == "execute_result"
    assert bundles(again) == [answer]
    assert "widgets" not in executed.metadata
    for exporter in (HTMLExporter(), MarkdownExporter()):
        page, _ = exporter.from_notebook_node(executed)
        assert 'alt="cat.png, 320 x 240 px"' in page
        assert page.count("8 tokens out") == 2  # its cell, and the cell that shows it again
        assert 'role="status"' not in page


def test_an_error_fails_the_notebook_with_one_line(kernel_folder):
    running = client(
        ["%load_ext glm4v_magic", "%%glm4v missing.png\nWhat?", "print('reached')"], kernel_folder
    )
    with pytest.raises(CellExecutionError):
        running.execute()
    _, failed, never = running.nb.cells
    assert never.outputs == []
    (line,) = [output for output in failed.outputs if output.output_type == "stream"]
    assert line.name == "stderr"
    assert line.text.startswith("UsageError: missing.png")
    assert len(line.text.strip().splitlines()) == 1


def test_the_stop_button_keeps_the_partial_answer_and_stops_run_all(kernel_folder, talkative):
    stopped_after = []

    class StoppingClient(NotebookClient):
        def process_message(self, msg, cell, cell_index):
            content = msg["content"]
            if "text/markdown" in content.get("data", {}) and not stopped_after:
                stopped_after.append(content["data"]["text/plain"])
                os.kill(self.km.provisioner.pid, signal.SIGINT)
            return super().process_message(msg, cell, cell_index)

    running = StoppingClient(
        notebook(
            "%load_ext glm4v_magic",
            f"%glm4v load {talkative}",
            "%%glm4v -o part --temperature 0 --max-tokens 8000\nWhat is this?",
            "reached = True",
        ),
        timeout=300,
        resources={"metadata": {"path": str(kernel_folder)}},
    )
    with pytest.raises(CellExecutionError, match="Stopped: what was said until then is in _"):
        running.execute()
    asked, never = running.nb.cells[2:]
    assert never.execution_count is None
    answer, error = asked.outputs
    assert "stopped by you" in answer["data"]["text/markdown"]
    assert answer["data"]["text/plain"].startswith(stopped_after[0])
    assert error.ename == "Stopped"
    assert error.traceback == [
        "Stopped: what was said until then is in _; %glm4v continue carries it on."
    ]


def test_an_interrupt_while_an_output_is_sent_makes_no_second_one(shell, interrupt, monkeypatch):
    """What a busy computer did by chance: the interrupt came before the handle was kept."""
    output = Output()
    with capture_output() as captured:
        publish = shell.display_pub.publish

        def interrupted(*arguments, **options):
            publish(*arguments, **options)
            interrupt()

        monkeypatch.setattr(shell.display_pub, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            output.show({"text/plain": "first"})
        monkeypatch.undo()
        output.show({"text/plain": "second"})
    first, second = captured.outputs
    assert not first.update
    assert second.update
    assert first.transient == second.transient


@pytest.mark.parametrize(
    "cell",
    [
        "%glm4v ask cat.png 'What?'",
        "%%glm4v --over photos\nWhat?",
        "%glm4v preview cat.png 'x'",
        "%glm4v load demo",  # PyTorch would end the kernel there
        "%glm4v check demo --gpus 1x8GiB",
    ],
)
def test_the_current_folder_is_gone(run, tmp_path, monkeypatch, cell):
    gone = tmp_path / "gone"
    gone.mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    run("%glm4v unload")
    with monkeypatch.context() as patch:
        patch.chdir(gone)
        gone.rmdir()
        screen = run(cell, fails=True)
        assert to_image(f"{tmp_path}/a.png", "it").image.size == (8, 8)  # a whole path needs none
    assert "UsageError: The current folder is no longer there. Go to one" in screen
    assert "Traceback" not in screen
