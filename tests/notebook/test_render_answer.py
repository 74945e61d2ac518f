"""Answers while they are written and when they are done."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from itertools import pairwise
from typing import ClassVar

import pytest
from markdown_it import MarkdownIt
from PIL import Image

from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.stage import Stage
from glm4v_magic.images import SourcedImage
from glm4v_magic.notebook.render.answers.answer import (
    LiveAnswer,
    answer_bundle,
    draft_bundle,
    usage_line,
)
from glm4v_magic.notebook.render.pace import LONGEST_SECONDS, MOST_OF_THE_TIME, UPDATE_SECONDS, Pace

ANSWER = Answer(
    text="A **cat** for $5 and <b>$6</b>.",
    prompt="What?",
    model="demo",
    usage=Usage(
        text_tokens=12,
        visual_tokens=1602,
        new_tokens=11,
        time_to_first_token=0.5,
        decode_seconds=2.0,
        peak_bytes={"cuda:0": 3 * 2**30},
    ),
    finish_reason="stop",
    seed=7,
    notice="This is the demo model.",
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def live():
    shown, clock = [], Clock()
    return LiveAnswer(shown.append, Pace(clock=clock)), shown, clock


def test_half_a_character_in_json_can_be_shown():
    bundle = answer_bundle(replace(ANSWER, format="json", value={"a": "\ud800猫"}))
    assert all("\ufffd猫" in text for text in bundle.values())
    assert all(text.encode() for text in bundle.values())


def test_usage_line_tells_tokens_times_memory_and_seed():
    assert usage_line(ANSWER) == (
        "demo · 12 text + 1,602 visual tokens in · 11 tokens out · first token after 0.50 s"
        " · 5.0 tokens/s · cuda:0 peak 3.00 GiB · seed 7"
    )
    short = replace(ANSWER.usage, new_tokens=33, decode_seconds=0.049)
    assert "tokens/s" not in usage_line(replace(ANSWER, usage=short))


def test_usage_line_leaves_out_what_is_not_known():
    usage = Usage(text_tokens=5, visual_tokens=0, new_tokens=1)
    line = usage_line(replace(ANSWER, usage=usage, seed=None))
    assert line == "demo · 5 text + 0 visual tokens in · 1 token out"


def test_usage_line_invents_nothing_that_a_server_did_not_tell():
    usage = Usage(text_tokens=1640, visual_tokens=None, new_tokens=1)
    line = usage_line(replace(ANSWER, usage=usage, seed=None))
    assert line == "demo · 1,640 tokens in, images included · 1 token out"
    for usage in (Usage(None, None, 3), Usage(3, 0, None)):
        line = usage_line(replace(ANSWER, usage=usage, seed=None))
        assert line == "demo · tokens not counted by the server"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("length", "token limit"),
        ("interrupted", "stopped by you"),
        ("failed", "broken off by an error"),
        ("stop", None),
        ("unknown", None),
    ],
)
def test_usage_line_says_why_an_answer_is_incomplete(reason, said):
    line = usage_line(replace(ANSWER, finish_reason=reason))
    others = {"token limit", "stopped by you", "broken off"} - {said and said[:10]}
    assert (said in line) if said else not [each for each in others if each in line]
    assert ("stopped by you" in line) is (reason == "interrupted")


def test_the_details_say_what_a_server_did_not_tell():
    details = answer_bundle(replace(ANSWER, finish_reason="unknown"))["text/markdown"]
    assert "not told by the server" in details


def test_bundle_holds_text_usage_and_notice_in_both_forms():
    bundle = answer_bundle(ANSWER)
    assert set(bundle) == {"text/plain", "text/markdown"}
    for text in bundle.values():
        assert "1,602 visual tokens in" in text
        assert "This is the demo model." in text
    assert bundle["text/plain"].startswith(ANSWER.text)
    assert "<b>" not in bundle["text/markdown"]
    assert "$5" not in bundle["text/markdown"]


def test_no_notice_no_line():
    assert len(answer_bundle(replace(ANSWER, notice=""))["text/plain"].splitlines()) == 2


def test_footnotes_stand_outside_of_code_that_never_ended():
    markdown = answer_bundle(replace(ANSWER, text="```python\nx = 1"))["text/markdown"]
    assert markdown.index("\n```\n") < markdown.index("<small>")


def test_footnotes_show_a_name_character_for_character():
    markdown = answer_bundle(replace(ANSWER, model="*a*_<b>"))["text/markdown"]
    assert "<b>" not in markdown
    assert "*a*" not in markdown


def test_details_are_folded_behind_the_usage():
    stages = tuple(Stage(n, "GPU", 100, ("layer",), weight_bytes=63 - n) for n in range(2))
    plan = Plan("demo", Workload(), "balance", (*stages, Stage(2, "idle", 100)))
    photo = SourcedImage(Image.new("RGB", (2, 2)), "<b>$1.png", (20, 10))
    answer = replace(ANSWER, prompt="What\n\nis <b>?", images=(photo,), plan=plan)
    markdown = answer_bundle(replace(answer, corrected="too *many*"))["text/markdown"]
    before, _, folded = markdown.partition(
        '<details><summary style="user-select:none"><small>demo · '
    )
    assert "This is the demo model." in before
    assert "\n" not in folded  # a blank line would end the HTML
    assert folded.endswith("</table></a></div></details>")
    assert "<b>" not in folded
    assert "$1" not in folded
    rows = dict(re.findall(r"<th[^>]*>(.*?)</th><td[^>]*>(.*?)</td>", folded))
    assert rows["question"] == "What is &#60;b>?"
    assert rows["image"].endswith(".png, 20 x 10 px")
    assert (rows["tokens in"], rows["tokens out"]) == ("1,614", "11")
    assert (rows["ended by"], rows["seed"]) == ("stop", "7")
    assert rows["corrected"] == "too &#42;many&#42;"
    assert rows["plan"] == "cuda:0, cuda:1; the fullest 63% full"
    assert ">plan<" not in answer_bundle(replace(answer, plan=None))["text/markdown"]


def test_the_details_are_html_to_a_markdown_parser():
    html = MarkdownIt("js-default", {"html": True}).render(answer_bundle(ANSWER)["text/markdown"])
    assert '<details><summary style="user-select:none"><small>demo' in html
    assert "<p><details>" not in html
    assert "&lt;details" not in html


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_markdown_is_seen_in_text_and_json(form):
    answer = replace(ANSWER, text="**a** ```b```", format=form)
    for bundle in (draft_bundle(answer.text, form), answer_bundle(answer)):
        assert bundle["text/plain"].startswith("**a** ```b```")
        if form == "text":
            assert set(bundle) == {"text/plain"}
        else:
            assert bundle["text/markdown"].startswith("````json\n**a** ```b```\n````")


def test_json_is_set_out_on_lines():
    answer = replace(ANSWER, text='Here: {"a":[1,"é"]}', format="json", value={"a": [1, "é"]})
    bundle = answer_bundle(answer)
    assert bundle["text/plain"].startswith('{\n  "a": [\n    1,\n    "é"\n  ]\n}\ndemo · ')
    assert bundle["text/markdown"].startswith('```json\n{\n  "a": [')


def test_a_live_answer_has_the_form_from_the_beginning():
    shown = []
    answer = LiveAnswer(shown.append, form="text")
    answer.add("**a**")
    assert shown == [{"text/plain": "**a**"}]


THOUGHT = replace(
    ANSWER,
    thinking="A cat?\n\n  Or $2 and <b>two</b>.",
    usage=replace(ANSWER.usage, thinking_seconds=3.2, thinking_tokens=214),
)


def test_thinking_is_folded_above_the_answer():
    bundle = answer_bundle(THOUGHT)
    fold, blank, rest = bundle["text/markdown"].split("\n", 2)
    line = "Thought for 3.2 s, 214 tokens"
    assert fold.startswith(
        '<details style="margin-bottom:0.6em"><summary style="user-select:none">'
        f"<small>{line}</small></summary>A cat?<br><br>"
    )
    assert fold.endswith("</details>")
    assert "<br>\xa0\xa0Or " in fold
    assert "<b>" not in fold
    assert "$2" not in fold
    assert (blank, rest) == ("", answer_bundle(ANSWER)["text/markdown"])
    assert bundle["text/plain"] == f"[{line}]\n{answer_bundle(ANSWER)['text/plain']}"


@pytest.mark.parametrize(
    ("seconds", "tokens", "said"),
    [
        (0.0, None, "Thought, 31 characters"),
        (75, 1, "Thought for 1 min 15 s, 1 token"),
        (0.5, None, "Thought for 0.50 s, 31 characters"),
    ],
)
def test_how_much_was_thought_and_for_how_long(seconds, tokens, said):
    usage = replace(ANSWER.usage, thinking_seconds=seconds, thinking_tokens=tokens)
    assert answer_bundle(replace(THOUGHT, usage=usage))["text/plain"].startswith(f"[{said}]\n")


@pytest.mark.parametrize(
    ("reason", "said"),
    [("length", "cut off at the token limit while"), ("interrupted", "stopped by you while")],
)
def test_thinking_without_an_answer_is_open(reason, said):
    answer = replace(THOUGHT, text="", finish_reason=reason)
    bundle = answer_bundle(answer)
    assert bundle["text/markdown"].startswith("<details open ")
    assert f"[Thought for 3.2 s, 214 tokens]\n{THOUGHT.thinking}\ndemo · " in bundle["text/plain"]
    assert f"{said} it was thinking" in usage_line(answer)
    assert "thinking" not in usage_line(replace(answer, text="A"))


@pytest.mark.parametrize("form", ["text", "json"])
def test_thinking_in_other_forms(form):
    answer = replace(THOUGHT, text="[1]", format=form, value=[1] if form == "json" else None)
    bundle = answer_bundle(answer)
    assert bundle["text/plain"].startswith("[Thought for 3.2 s, 214 tokens]\n[")
    if form == "text":
        assert set(bundle) == {"text/plain"}
    else:
        assert "</details>\n\n```json\n" in bundle["text/markdown"]
        empty = answer_bundle(replace(answer, text="", value=None))["text/markdown"]
        assert "```" not in empty


def test_a_live_answer_shows_the_last_lines_of_the_thinking_and_then_folds_it():
    answer, shown, clock = live()

    def last():
        clock.now += 1
        return shown[-1]["text/markdown"], shown[-1]["text/plain"]

    answer.think("One\n\n")
    heights = set()
    for piece in ("two", " <b>three", "\nfour\n", "word " * 40):
        last()
        answer.think(piece)
        markdown, plain = last()
        assert "\n" not in markdown
        assert "<b>" not in markdown
        heights.add(markdown.count("<br>"))
        assert len(plain.split("\n")) <= 3
    assert heights == {3}
    assert markdown.startswith("<div><small>Thinking: 223 characters</small><br>")
    assert plain.split("\n")[-1] == ("word " * 40)[2 * 85 :].strip()
    answer.add("A **cat**.")
    markdown, plain = last()
    assert plain == "[Thought, 223 characters]\nA **cat**."
    assert markdown.startswith(
        '<details style="margin-bottom:0.6em"><summary style="user-select:none">'
        "<small>Thought, 223 characters</small>"
    )
    assert markdown.endswith("</details>\n\nA **cat**.")
    answer.finish(THOUGHT)
    assert shown[-1] == answer_bundle(THOUGHT)


def test_the_lines_of_the_thinking_break_where_they_broke_before():
    answer, shown, clock = live()
    seen = []
    for word in (f"word{number} " for number in range(100)):
        answer.think(word)
        clock.now += 1
        seen.append(shown[-1]["text/plain"].split("\n"))
    lines = {line for lines in seen for line in lines[:-1]}
    assert 6 < len(lines) < 12


def test_text_that_was_thinking_is_no_answer():
    answer, shown, clock = live()
    answer.add("Hm")
    clock.now += 1
    answer.reclassify()
    assert shown[-1]["text/plain"] == "Hm"
    answer.think(", so")
    clock.now += 1
    answer.add("Yes.")
    assert shown[-1]["text/plain"] == "[Thought, 6 characters]\nYes."


def test_what_stands_before_an_answer_stays():
    answer, shown, clock = live()
    answer.begin("The cat", "Hm.")
    clock.now += 1
    answer.add(" is")
    assert shown[-1]["text/plain"] == "[Thought, 3 characters]\nThe cat is"
    answer.begin("\n\n[Wrong.]\n\n")
    clock.now += 1
    answer.think("Oh")
    clock.now += 1
    assert shown[-1]["text/plain"] == "Oh\nThe cat is\n\n[Wrong.]"
    answer.add("is asleep")
    assert shown[-1]["text/plain"] == (
        "[Thought, 2 characters]\nThe cat is\n\n[Wrong.]\n\nis asleep"
    )


def test_plain_text_cannot_steer_a_terminal():
    assert draft_bundle("a\x1b[31mb\x07\r\nc")["text/plain"] == "a[31mb\nc"


def test_updates_come_at_most_ten_times_a_second():
    answer, shown, clock = live()
    for _ in range(1000):
        answer.add("x")
        clock.now += 0.01
    assert 95 <= len(shown) <= 101
    assert shown[0]["text/plain"] == "x"


@pytest.mark.parametrize("cost", [0.0005, 0.003, 0.02])
def test_costly_updates_come_less_often(cost):
    clock, shown = Clock(), []

    def show(bundle):
        shown.append(clock.now)
        clock.now += cost

    answer = LiveAnswer(show, Pace(clock=clock))
    for _ in range(3000):
        answer.add("x")
        clock.now += 0.01
    wait = min(max(UPDATE_SECONDS, cost / MOST_OF_THE_TIME), LONGEST_SECONDS)
    gaps = [after - before for before, after in pairwise(shown[2:])]
    assert len(gaps) > 20
    assert all(wait <= gap < wait + 0.01 + cost for gap in gaps)


def test_one_slow_update_changes_nothing():
    clock = Clock()
    pace = Pace(clock=clock)
    for cost in (0.0, 0.05, 0.0, 0.05):
        assert pace.due()
        clock.now += cost
        pace.done()
        clock.now += UPDATE_SECONDS * 1.01


def test_the_last_update_holds_everything():
    answer, shown, _ = live()
    for piece in ("A ", "c", "at"):
        answer.add(piece)
    assert [bundle["text/plain"] for bundle in shown] == ["A"]
    answer.finish(ANSWER)
    assert shown[-1] == answer_bundle(ANSWER)
    answer.close()
    assert len(shown) == 2


def test_closing_without_an_answer_shows_what_was_held_back():
    answer, shown, _ = live()
    answer.add("one")
    answer.add(" two")
    answer.close()
    assert shown[-1]["text/plain"] == "one two"
    answer.close()
    assert len(shown) == 2


def test_nothing_is_shown_for_whitespace():
    answer, shown, _ = live()
    answer.add("\n")
    answer.close()
    assert shown == []


def test_pace_is_due_at_once_and_then_after_its_seconds():
    clock = Clock()
    pace = Pace(clock=clock)
    assert pace.due()
    clock.now += UPDATE_SECONDS * 0.9
    assert not pace.due()
    clock.now += UPDATE_SECONDS * 0.2
    assert pace.due()
    assert not pace.due()


class TestChoices:
    CHOICES: ClassVar = {"*yes*": 0.625, "<script>alert(1)</script>": 0.3, "no\nnever": 0.075}

    def bundle(self, **changes):
        return answer_bundle(replace(ANSWER, text="*yes*", choices=self.CHOICES, **changes))

    def test_as_text(self):
        said, *lines = self.bundle()["text/plain"].splitlines()
        assert said == "*yes*"
        assert lines[0] == "*yes*                      62.5% ############"
        assert lines[1] == "<script>alert(1)</script>  30.0% ######"
        assert lines[2] == "no never                    7.5% #"

    def test_as_markdown_every_choice_is_literal_text(self):
        html = MarkdownIt().enable("table").render(self.bundle()["text/markdown"])
        assert "<script>" not in html
        assert "<em>" not in html
        shown = unescape(re.sub(r"<[^>]+>", " ", html))
        assert "62.5%" in shown
        assert shown.count("*yes*") == 2
        assert "width:62%" in html

    def test_of_many_the_likeliest_are_shown(self):
        many = {f"c{number}": number / 4_498_500 for number in range(3000)}
        bundle = answer_bundle(replace(ANSWER, text="c2999", choices=many))
        _, *lines = bundle["text/plain"].splitlines()
        assert [line.split()[0] for line in lines[:20]] == [f"c{n}" for n in range(2999, 2979, -1)]
        assert lines[20] == "2,980 more: answer.choices"
        assert bundle["text/markdown"].count('<div style="width:') == 20
        assert "2,980 more: answer.choices" in bundle["text/markdown"]

    def test_in_plain_text_there_is_no_markdown(self):
        bundle = self.bundle(format="text")
        assert set(bundle) == {"text/plain"}
        assert "62.5%" in bundle["text/plain"]
