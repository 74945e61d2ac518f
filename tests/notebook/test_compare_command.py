"""``--compare`` in a real shell, and the table that it shows."""

from __future__ import annotations

import re
import shutil
from html import unescape

import pytest
from attacks import ATTACKS
from html_tree import Tree

from glm4v_magic.calls.compared import Column, ComparedAnswers
from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.core.events import Text
from glm4v_magic.core.tokens import Token
from glm4v_magic.notebook.live.columns import Columns
from glm4v_magic.notebook.live.screen import screen_for
from glm4v_magic.notebook.render.compared import compared_bundle

GREEDY = "--temperature 0 --max-tokens 4"


def answer(text="yes", reason="stop", **more):
    return Answer(text, "?", "m", Usage(7, None, 2, 0.5, 0.5), reason, **more)


def made(text="yes", name="m"):
    tokens = (Token("y", -0.5, 0, 1), Token("es", -1.5, 1, 3))
    return ComparedAnswers(
        "Is it?",
        (
            Column(f"{name} a", answer=answer(text, choices={text: 0.75, "no": 0.25})),
            Column(f"{name} b", answer=answer(text, "interrupted", tokens=tokens)),
            Column(f"{name} c", answer=answer("no", choices={text: 0.4, "no": 0.6}, seed=5)),
            Column(f"{name} d", failure="It broke."),
            Column(f"{name} e"),
        ),
    )


def rows(html):
    """Return the text of every cell of a table, by rows."""
    return [
        [
            " ".join(unescape(re.sub("<[^>]*>", " ", cell)).split())
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in re.findall("<tr>(.*?)</tr>", html, re.DOTALL)
    ]


def test_every_number_is_in_its_column():
    bundle = compared_bundle(made())
    assert rows(bundle["text/html"]) == [
        ["asked", "m a", "m b", "m c", "m d", "m e"],
        ["answer", "yes", "yes stopped by you", "no", "error It broke.", "not asked yet"],
        ["yes", "75.0%", "", "40.0%", "", ""],
        ["no", "25.0%", "", "60.0%", "", ""],
        ["mean log-probability", "", "-1.000 (36.8% a token)", "", "", ""],
        ["tokens", "2 tokens, 1.0 s", "2 tokens, 1.0 s", "2 tokens, 1.0 s", "", ""],
        ["seed", "", "", "5", "", ""],
    ]
    bold = re.findall("<strong>([^<]*%)</strong>", bundle["text/html"])
    assert bold == ["75.0%", "60.0%"]  # of the answers themselves
    text = bundle["text/plain"]
    assert text.startswith("2 of 5 answered, 1 failed.\nm a:\n  yes\n  yes 75.0%, no 25.0%\n")
    assert "  mean log-probability -1.000 (36.8% a token); tokens 2 tokens" in text
    assert "  error: It broke." in text


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_that_is_said_is_markup(attack):
    bundle = compared_bundle(made(attack.strip() or "x", attack))
    tree = Tree(bundle["text/html"])
    assert {tag for tag, _ in tree.found} <= {
        *("div", "table", "thead", "tbody", "tr", "th", "td", "pre", "strong", "small")
    }
    assert not any(name.startswith("on") for _, found in tree.found for name in found)
    assert "\x1b" not in bundle["text/plain"]


def ask(run, options, question="What?", **kwargs):
    return run(f'%glm4v ask "{question}" {GREEDY} {options}', **kwargs)


def test_a_line_compares_settings(tiny, run, shell):
    said = ask(run, "--compare 'temperature=1,max-tokens=1 temperature=0' --seed 3 -o found")
    found = shell.user_ns["found"]
    assert found is shell.user_ns["_"]
    assert [each.name for each in found.columns] == ["temperature=1", "max_tokens=1 temperature=0"]
    assert [each.answer.seed for each in found.columns] == [3, None]
    assert [each.answer.usage.new_tokens for each in found.columns] == [4, 1]
    assert "2 of 2 answered." in said
    assert "mean log-probability -" in said
    assert "as yet" not in run("%glm4v chats")
    assert "<table>" in shell.display_formatter.format(found)[0]["text/html"]
    assert ask(run, "--compare temperature=1,temperature=0 --quiet").strip("…\n ") == ""


def test_a_variable_holds_what_is_compared(tiny, run, shell):
    shell.user_ns["ways"] = [{"model": str(tiny)}, {"choices": ["ja", "no"]}]
    said = ask(run, "--compare ways")
    assert str(tiny) in said
    assert [*shell.user_ns["_"].columns[1].choices] == ["ja", "no"]
    shell.user_ns["ways"] += [{"temperature": 0}]
    ask(run, "--compare ways[1:]")
    assert [each.name for each in shell.user_ns["_"].columns][1:] == ["temperature=0"]


@pytest.mark.parametrize(
    "given",
    [
        ["temperature=1", "temperature=0 max-tokens=3"],
        ("temperature=1", {"temperature": 0, "max_tokens": 3}),
        "temperature=1, temperature=0 max_tokens=3",
    ],
)
def test_texts_in_a_variable_are_read_as_on_the_line(tiny, run, shell, given):
    shell.user_ns["sets"] = given
    typed = ["sets", "{{sets}}"]
    if isinstance(given, list):
        typed += ["{{sets[:]}}", '["temperature=1","temperature=0 max-tokens=3"]']
    for word in typed:
        ask(run, f"--compare {word}")
        names = [each.name for each in shell.user_ns["_"].columns]
        assert names == ["temperature=1", "max_tokens=3 temperature=0"]


def test_a_folder_with_an_odd_name_is_a_model_in_a_list(tiny, run, shell, tmp_path):
    odd = shutil.copytree(tiny, tmp_path / "it has=a space, too")
    shell.user_ns["both"] = [str(odd), {"model": str(odd), "seed": 1}]
    ask(run, "--compare both")
    assert all(each.failure is None for each in shell.user_ns["_"].columns)


def test_quotes_hold_a_value_together(tiny, run, shell):
    ask(run, """--compare "temperature=1 system='Be very brief.', seed=1" """)
    first, _ = shell.user_ns["_"].columns
    assert first.settings == {"temperature": 1, "system": "Be very brief."}


def test_settings_stand_between_the_commas_of_any_keyboard(tiny, run, shell):
    for comma in ",，、":
        ask(run, f"--compare 'temperature=1{comma}max-tokens=1' --seed 3")
        names = [each.name for each in shell.user_ns["_"].columns]
        assert names == ["temperature=1", "max_tokens=1"]


def test_a_cell_whose_columns_all_failed_fails(tiny, run, shell):
    said = ask(run, "--compare nowhere,neither -o found", fails=True)
    assert "Each of the 2 failed; the first: There is no checkpoint 'nowhere'" in said
    assert [each.answer for each in shell.user_ns["found"].columns] == [None, None]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--compare demo", "there is no such variable. Models stand between commas"),
        ("--compare {{'a' * 10**6}}", "--compare names aaa"),
        ("--compare nosuch", "--compare names nosuch alone, and there is no such variable."),
        ("--compare [1,2]", "1 is neither a model nor a dict of options."),
        ("--compare [{[]:1}]", "1 cannot be compared"),
        ("--compare []", "0 cannot be compared"),
        ("--compare [nowhere]", "1 cannot be compared: give from 2 to 50 models or settings."),
        ("--compare demo,", "--compare names nothing between two commas."),
        ("--compare 'demo x,demo'", "--compare: 'x' is not a setting, such as temperature=1."),
        ("--compare demo,hot=1", "--compare: there is no setting 'hot'."),
        ("--compare demo,temprature=1", "Did you mean temperature?"),
        ("--compare demo,temperature=hot", "temperature is 'hot', but must be a number"),
        ("--compare demo,temperature=-1", "temperature is -1"),
        ("""--compare "demo,'x" """, "cannot be read: No closing quotation."),
        ("--compare ''", "--compare is '', but must be models or settings."),
        ("--compare a,b --over [1]", "--over does not go with --compare. It asks about one thing."),
        ("--compare a,b --chat x", "--chat does not go with --compare."),
        ("--compare a,b --continue", "--continue does not go with --compare."),
    ],
)
def test_what_cannot_be_compared(tiny, run, options, said):
    assert said in ask(run, options, fails=True)


def test_a_list_that_cannot_be_read_is_named(tiny, run, shell):
    class Evil(list):
        def __iter__(self):
            raise RuntimeError("boom")

    shell.user_ns["evil"] = Evil(["demo", "demo"])
    said = ask(run, "--compare evil", fails=True)
    assert "settings is a list that cannot be read: RuntimeError: boom." in said


def test_an_interrupt_keeps_what_was_said(tiny, run, shell, monkeypatch):
    show = Columns.show

    def stopping(self, event):
        if isinstance(event, Text) and event.row == 1:
            raise KeyboardInterrupt
        show(self, event)

    monkeypatch.setattr(Columns, "show", stopping)
    said = ask(run, "--compare temperature=1,temperature=0,seed=1 --quiet -o found", fails=True)
    assert "Stopped: 1 of 3 models or settings have answered; what they said is in _." in said
    found = shell.user_ns["found"]
    assert found is shell.user_ns["_"]
    assert [each.answer is not None for each in found.columns] == [True, True, False]
    assert found.columns[1].answer.finish_reason == "interrupted"


def test_an_interrupt_after_the_last_answer_keeps_the_whole_table(tiny, run, shell, monkeypatch):
    finish, calls = Columns.finish, []

    def stopping(self, comparison):
        calls.append(comparison)
        if len(calls) == 1:
            raise KeyboardInterrupt
        finish(self, comparison)

    monkeypatch.setattr(Columns, "finish", stopping)
    said = ask(run, "--compare temperature=1,temperature=0 --quiet -o found", fails=True)
    assert "Stopped: 2 of 2 models or settings have answered; what they said is in _." in said
    found = shell.user_ns["found"]
    assert found is shell.user_ns["_"]
    assert all(each.done for each in found.columns)


def test_what_is_loaded_again_at_the_end_has_its_own_name(tiny, run, tmp_path, monkeypatch):
    monkeypatch.setattr("glm4v_magic.session.room.fits_beside", lambda *_: False)
    other = tmp_path / "other"
    other.symlink_to(tiny)
    run(f"%glm4v load {tiny}")
    began = []
    monkeypatch.setattr(
        "glm4v_magic.notebook.live.columns.screen_for",
        lambda shell, model, **more: began.append(model) or screen_for(shell, model, **more),
    )
    said = ask(run, f"--compare 'temperature=0,{other}'")
    assert began[-1] == str(tiny)
    assert "not finished" not in said
    assert f"Loaded {other} in" in said
    assert said.count(f"Loaded {tiny} in") == 1


def test_what_an_error_broke_off_is_marked():
    broken = Column("a", answer=answer("Half of", "failed"), failure="It broke.")
    text = compared_bundle(ComparedAnswers("Is it?", (broken,)))["text/plain"]
    assert "  Half of [broken off by an error]" in text
