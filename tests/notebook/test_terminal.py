"""IPython in a real terminal: plain text as it comes, and Ctrl-C."""

from __future__ import annotations

import os
import sys

import pytest

pexpect = pytest.importorskip("pexpect", reason="there are no pseudo-terminals here")

SECONDS = 120


@pytest.fixture
def terminal(kernel_folder, talkative):
    arguments = ["-m", "IPython", "--simple-prompt", "--no-banner", "--colors=nocolor"]
    child = pexpect.spawn(
        sys.executable,
        arguments,
        cwd=str(kernel_folder),
        env=os.environ | {"TERM": "dumb", "PYTHON_COLORS": "0"},
        encoding="utf-8",
        codec_errors="replace",
        timeout=SECONDS,
        dimensions=(50, 200),
    )
    ask(child, "%load_ext glm4v_magic")
    ask(child, f"%glm4v load {talkative}")
    yield child
    child.sendline("exit")
    child.expect(pexpect.EOF)
    child.close()


def ask(terminal, line):
    """Run a line; return what it printed."""
    terminal.expect(r"In \[\d+\]: ")
    terminal.sendline(line)
    terminal.expect(r"(?s)(.*)(?=\r\nIn \[\d+\]: )")
    return terminal.match[1].replace("\r\n", "\n")


def test_an_answer_is_plain_text_and_ctrl_c_keeps_what_was_said(terminal):
    said = ask(terminal, "x = %glm4v ask cat.png 'What?' --temperature 0 --max-tokens 9")
    assert "cat.png, 320 x 240 px · the model sees 56 x 56 px · 6 visual tokens" in said
    assert said.count("9 tokens out") == 1
    assert "\x1b" not in said
    assert "role=" not in said  # that is for pages
    terminal.expect(r"In \[\d+\]: ")
    terminal.sendline("%glm4v ask cat.png 'What?' -o part --temperature 0 --max-tokens 30000")
    terminal.expect("6 visual tokens")
    terminal.expect(r"\w{3}")
    terminal.sendintr()
    terminal.expect(r"stopped by you\]")
    terminal.expect(r"Stopped: what was said until then is in _")
    assert "interrupted True True" in ask(
        terminal, "print(part.finish_reason, _ is part, 0 < part.usage.new_tokens < 30000)"
    )
    again = ask(terminal, "y = %glm4v ask cat.png 'What?' --temperature 0 --max-tokens 9 -q")
    assert "tokens" not in again.replace("--max-tokens", "")
    assert "True" in ask(terminal, "print(x.text == y.text)")


def test_tab_completes_in_a_terminal(kernel_folder):
    child = pexpect.spawn(
        sys.executable,
        ["-m", "IPython", "--no-banner", "--colors=nocolor"],
        cwd=str(kernel_folder),
        env=os.environ | {"TERM": "xterm", "PYTHON_COLORS": "0", "PROMPT_TOOLKIT_NO_CPR": "1"},
        encoding="utf-8",
        timeout=SECONDS,
        dimensions=(50, 200),
    )
    child.expect_exact("In [1]:")
    child.send("%load_ext glm4v_magic\r")
    child.expect_exact("In [2]:")
    child.send("%glm4v config temp\t")
    child.expect("erature")  # behind what is typed
    child.send("\r")
    child.expect("0 is greedy; higher values are more random")
    child.expect_exact("In [3]:")
    child.send("x = %glm4v ask ca\t")
    child.expect(r"t\.png")
    child.send("\x03")
    child.send("%glm4v help ch\t")
    child.expect(r"(?s)chats.*check")  # a menu
    child.send("\x03\x03")
    child.sendline("exit")
    child.expect(pexpect.EOF)
    child.close()
