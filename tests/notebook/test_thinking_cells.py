"""Thinking of a model in the notebook: live, folded, kept apart, limited and carried on."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import tiny_native
from IPython.utils.capture import capture_output
from shells import ipython_shell
from torch.nn.modules.module import register_module_forward_hook

from glm4v_magic.checkpoints import resolve

SAID = "\n<think>\nOne or two?</think>\nTwo."
GREEDY = "--temperature 0 --repetition-penalty 1"


@pytest.fixture(scope="module")
def shell(native, tmp_path_factory):
    with ipython_shell(tmp_path_factory.mktemp("cells")) as shell:
        shell.run_line_magic("load_ext", "glm4v_magic")
        run(shell, f"%glm4v load {native('glm46v')}")
        yield shell


def run(shell, cell):
    with capture_output() as captured:
        shell.run_cell(cell)
    outputs = [str(each.data.get("text/plain")) for each in captured.outputs]
    return "\n".join([captured.stdout, captured.stderr, *outputs])


@pytest.fixture(scope="module")
def says(native):
    """Makes whatever model there is say a text."""

    def everywhere(hook, **options):
        def say(module, args, given, output):
            return hook(module, args, given, output) if hasattr(output, "logits") else None

        return register_module_forward_hook(say, **options)

    model = SimpleNamespace(register_forward_hook=everywhere)
    engine = SimpleNamespace(processor=resolve(native("glm46v")).processor(), model=model)
    return functools.partial(tiny_native.Says, engine)


def test_thinking_is_folded_and_kept_apart(shell, says):
    with says(SAID):
        shown = run(shell, f"%%glm4v {GREEDY} --chat a\nHow many?")
    assert "[Thought for" in shown
    answer = shell.user_ns["_"]
    assert (answer.thinking, answer.text) == ("One or two?", "Two.")
    assert "[Thought, 11 characters]\nTwo." in run(shell, "%glm4v history a")


def test_an_answer_that_was_cut_off_thinking_is_carried_on(shell, says):
    with says(SAID):
        shown = run(shell, f"%%glm4v {GREEDY} --chat b --max-tokens 5\nHow many?")
    assert "while it was thinking" in shown
    begun = shell.user_ns["_"].thinking
    assert begun
    assert "One or two?".startswith(begun)
    with says("One or two?".removeprefix(begun) + "</think>\nTwo."):
        run(shell, f"%glm4v continue b {GREEDY}")
    answer = shell.user_ns["_"]
    assert (answer.thinking, answer.text) == ("One or two?", "Two.")


def test_a_limit(shell, says):
    with says(SAID):
        run(shell, f"%%glm4v {GREEDY} --max-thinking 0\nHow many?")
    answer = shell.user_ns["_"]
    assert answer.thinking == ""
    assert answer.text.endswith("Two.")
    assert "must be a whole number of at least 0" in run(shell, "%%glm4v --max-thinking -1\nWhat?")


@pytest.mark.parametrize("option", ["--thinking on", "--max-thinking 9"])
def test_a_model_that_does_not_think_says_so(native, tmp_path, option):
    with ipython_shell(tmp_path) as shell:
        shell.run_line_magic("load_ext", "glm4v_magic")
        run(shell, f"%glm4v load {native('glm_ocr')}")
        said = run(shell, f"%%glm4v {option}\nWhat?")
    assert "does not think before it answers" in said
    assert option.split()[0] in said
    assert "Traceback" not in said
