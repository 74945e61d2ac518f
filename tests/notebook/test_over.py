"""``--over`` in a real shell: words, tables, errors, interrupts. Real code, random weights."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import IPython
import pandas as pd
import pytest
from IPython.utils.capture import capture_output
from PIL import Image
from scripted_server import CHAT, END, MODELS, models, piece, response, scripted_server, stream
from shells import InterruptingStream
from test_magics import shown
from wide_text import wide

from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.core.errors import ImageError
from glm4v_magic.core.rows import AnsweredRow, Progress, Rows
from glm4v_magic.images import SourcedImage
from glm4v_magic.notebook.render.rows import rows_bundle, rows_progress_bundle, rows_progress_line

GREEDY = "--temperature 0 --max-tokens 4"


def answered(index, text, reason="stop", images=()):
    answer = Answer(text, "What?", "tiny", Usage(10, 6, 4), reason, images=images)
    return AnsweredRow(index, f"row {index}", f"item {index}", "What?", answer)


@pytest.fixture
def photos(shell, tmp_path):
    (tmp_path / "photos").mkdir()
    photos = [Image.linear_gradient("L").resize((30 + 5 * n, 40)).convert("RGB") for n in range(3)]
    for number, photo in zip((1, 2, 10), photos, strict=True):
        photo.save(tmp_path / "photos" / f"{number}.png")
    frame = pd.DataFrame(
        {"image": photos, "two words": list("abc"), "n": [1, 2, 3]}, index=["x", "y", "z"]
    )
    shell.user_ns.update(images=photos, df=frame)
    return photos


def over(run, word, text="What?", options=GREEDY, **kwargs):
    return run(f"%%glm4v --over {word} -o rows {options}\n{text}", **kwargs)


def test_a_list_on_the_line_may_be_longer_than_the_name_of_a_file(photos, run, shell):
    over(run, str([*range(100)]).replace(" ", ""), "What is {{item}}?")
    assert len(shell.user_ns["rows"]) == 100


class TestTable:
    HOSTILE = "<script>alert(1)</script>\x1b[2J $x$ & more"

    def test_what_a_model_says_is_escaped(self):
        image = SourcedImage(Image.new("RGB", (8, 4)), '"><b>', (80, 40))
        row = answered(0, self.HOSTILE, images=(image,))
        bundle = rows_bundle([row])
        for text in bundle.values():
            assert "\x1b" not in text
        html = bundle["text/html"]
        assert "<script>" not in html
        told = "&lt;script&gt;alert(1)&lt;/script&gt;[2J $x$ &amp; more</pre>"
        assert told in html.replace("<wbr>", "")
        assert 'alt="&#34;&gt;&lt;b&gt;" width="8" height="4"' in html

    def test_the_item_and_an_error_are_escaped_too(self):
        row = AnsweredRow(0, "n", "<i>item</i>", "", failure="<u>no</u>")
        html = rows_bundle([row])["text/html"]
        assert "&lt;i&gt;item" in html
        assert "<strong>error</strong>" in html
        assert "&lt;u&gt;no" in html

    def test_chinese_names_keep_the_columns(self):
        rows = [replace(answered(0, "said"), item=name) for name in ("图 片", "a.png")]
        lines = rows_bundle(rows)["text/plain"].splitlines()
        starts = {wide(line[: line.index("said")]) for line in lines if "said" in line}
        assert len(starts) == 1

    def test_twenty_rows_are_shown_and_the_others_counted(self):
        bundle = rows_bundle([answered(index, f"say {index}") for index in range(23)])
        assert bundle["text/html"].count('scope="row"') == 20
        for text in bundle.values():
            assert "say 19" in text
            assert "say 20" not in text
            assert "and 3 more rows" in text
            assert "23 of 23 rows answered." in text
            assert "368 tokens in · 92 tokens out" in text

    def test_what_a_server_did_not_count_is_left_out(self):
        known = answered(0, "a")
        unknown = replace(known, answer=replace(known.answer, usage=Usage(None, None, None)))
        last = [
            rows_bundle(rows)["text/plain"].splitlines()[-1] for rows in ([known], [known, unknown])
        ]
        assert last == ["tiny · 16 tokens in · 4 tokens out", "tiny"]

    def test_endings_are_told(self):
        rows = [answered(0, "long", "length"), answered(1, "cut", "interrupted")]
        bundle = rows_bundle(rows, 5)
        for text in bundle.values():
            assert "cut off at the token limit" in text
            assert "stopped by you" in text
            assert "1 of 5 rows answered, 4 not finished; run the cell again to go on." in text

    def test_a_long_answer_is_cut(self):
        html = rows_bundle([answered(0, "a" * 1000)])["text/html"].replace("<wbr>", "")
        assert "a" * 299 + "…" in html
        assert "a" * 300 not in html

    def test_a_failure_is_worded_for_a_cell(self):
        failure = ImageError("x is a folder.", code="folder_of_images", kinds="It holds *.png.")
        row = AnsweredRow(0, "x", "x", "", failure=failure.text)
        for text in rows_bundle([row]).values():
            assert "x is a folder. It holds *.png. The option --over asks about each." in text
        assert row.error == "x is a folder. It holds *.png. session.map asks about each."

    def test_progress(self):
        failed = AnsweredRow(1, "b", "b", "", failure="no")
        reused = AnsweredRow(2, "c", "c", "", answered(2, "c").answer, reused=True)
        progress = Progress([answered(0, "a"), failed, reused], 10, 2.0, 8, list)
        line = "3 of 10 rows, 1 failed, 1 reused, 0.5 rows/s, 14.0 s left, 8 at once"
        assert rows_progress_line(progress) == line
        assert '<progress value="3" max="10"' in rows_progress_bundle(progress)["text/html"]


@pytest.mark.parametrize(
    ("word", "prompts"),
    [
        ("photos", ["What?"] * 3),
        ("photos/*.png", ["What?"] * 3),
        ("'photos/*.png'", ["What?"] * 3),
        ("images", ["What?"] * 3),
        ("images[:2]", ["What?"] * 2),
        ("df.image", ["What?"] * 3),
        ('df["image"]', ["What?"] * 3),
        ("df[df.n>1].image", ["What?"] * 2),
        ("df.image.head(1)", ["What?"]),
        ("df[1:]", ["What?"] * 2),
        ("df[1:3].image", ["What?"] * 2),
        ("df.loc[df.index[1]:,['image','n']]", ["What?"] * 2),
    ],
)
def test_words_that_stand_for_images(run, shell, tiny, photos, word, prompts):
    over(run, word)
    rows = shell.user_ns["rows"]
    assert rows is shell.user_ns["_"]
    assert rows is shell.user_ns["Out"][shell.execution_count - 1]
    if word.startswith("df"):
        assert list(rows["error"]) == [None] * len(prompts)
        assert (
            list(rows.index) == list(shell.user_ns["df"].index)[-len(prompts) :] or len(rows) == 1
        )
    else:
        assert isinstance(rows, Rows)
        assert [row.prompt for row in rows] == prompts
        assert all(row.done and row.answer.usage.visual_tokens == 6 for row in rows)


def test_other_columns_in_the_prompt(run, shell, tiny, photos):
    over(run, "df.image", 'A {{row["two words"]}}{{row.n}}?')
    row = shell.user_ns["rows"].iloc[1]
    run(f"image = df.image.iloc[1]\nx = %glm4v ask image 'A b2?' {GREEDY}")
    assert row["answer"] == shell.user_ns["x"].text
    over(run, "'df[\"two words\"]'", "A {{item}}?")
    assert shell.user_ns["rows"]["error"].isna().all()


def test_the_column_that_a_refusal_names_is_asked_about(run, shell, tiny, photos):
    rows = [{"left": each, "two words": each, "n": 1} for each in photos]
    shell.user_ns.update(both=pd.DataFrame(rows), records=rows)
    for name in ("both", "records"):
        said = over(run, name, "A {{row.n}}?", fails=True)
        (word,) = re.findall(
            r"several columns of images: left, two words\..* --over (\S+)\.$", said
        )
        for column in (word, f"""{name}['two words']"""):
            over(run, column, "A {{row.n}}?")
            rows = shell.user_ns["rows"]
            rows = rows.answer if name == "both" else [row.text for row in rows]
            assert len(rows) == 3
            assert all(rows)


def test_one_image_many_questions(run, shell, tiny, photos):
    shell.user_ns["things"] = ["hat", "cup"]
    options = f"photos/1.png --fresh -o rows {GREEDY}"
    table = shown(shell, f"%%glm4v --over things {options}\nA {{{{item}}}}?")[-1]["text/html"]
    assert table.count("<img") == 1
    assert table.index("<img") < table.index("<table")
    assert ">image</th>" not in table
    assert [row.prompt for row in shell.user_ns["rows"]] == ["A hat?", "A cup?"]
    assert all(row.answer.usage.visual_tokens == 6 for row in shell.user_ns["rows"])


def test_a_terminal_prints_progress_and_table_once(run, shell, tiny, photos):
    screen = over(run, "photos", options=f"--fresh {GREEDY}")
    assert "1 of 3 rows" in screen
    assert screen.count("3 of 3 rows answered.") == 1
    assert "photos/10.png" in screen
    assert screen.index("photos/2.png") < screen.index("photos/10.png")
    assert "Rows" not in screen


@pytest.mark.parametrize("word", ["photos", "df.image"])
def test_a_notebook_has_one_output_that_becomes_the_table(shell, tiny, photos, word):
    code = f"%%glm4v --over {word} {GREEDY}\nWhat?"
    with capture_output() as captured:
        shell.run_cell(code, store_history=True).raise_error()
    assert "<progress" in captured.outputs[0].data["text/html"]
    (table,) = shown(shell, code)
    assert "<progress" not in table["text/html"]
    assert table["text/html"].count("<img ") == 3
    assert "3 of 3 rows answered, 3 of them from before." in table["text/plain"]


def test_rows_are_a_table_when_shown_later_and_frames_are_themselves(shell, tiny, photos):
    shown(shell, f"%%glm4v --over photos -o rows {GREEDY}\nWhat?")
    shown(shell, f"%%glm4v --over df.image -o frame {GREEDY}\nWhat?")
    later = shell.display_formatter.format(shell.user_ns["rows"])[0]
    assert "<table>" in later["text/html"]
    assert later["text/plain"].startswith("3 of 3 rows answered")
    assert "finish_reason" in shell.display_formatter.format(shell.user_ns["frame"])[0]["text/html"]


def test_saved_rows_are_the_result_and_their_own_table(shell, tiny, photos):
    line = f"%%glm4v --over photos -o rows --save rows.parquet {GREEDY}\nSaved?"
    (table,) = shown(shell, line)
    assert "3 of 3 rows answered." in table["text/plain"]
    assert "tokens in" in table["text/plain"]
    rows = shell.user_ns["rows"]
    assert shell.user_ns["_"] is rows
    assert [row.done for row in rows] == [True] * 3
    assert list(pd.read_parquet("rows.parquet").answer) == [row.text for row in rows]
    assert "<table>" in shell.display_formatter.format(rows)[0]["text/html"]
    assert "3 of 3 rows answered, 3 of them from before." in shown(shell, line)[0]["text/plain"]
    sorted(Path("photos").iterdir())[0].unlink()
    said = shown(shell, line)[0]["text/plain"]
    assert "2 of 2 rows answered, 2 of them from before." in said
    assert "The file keeps 1 answer of earlier runs to other rows, at its end." in said


def test_rows_that_cannot_be_saved_stay_in_the_result(run, shell, tiny, photos):
    begun = []

    def lose_the_file(module, _args, options):
        if options["input_ids"].shape[1] > 1:
            begun.append(1)
            if len(begun) == 2:
                os.unlink("rows.parquet.journal")

    session = shell.magics_manager.registry["Glm4vMagics"].context.session
    handle = session.engine.model.register_forward_pre_hook(lose_the_file, with_kwargs=True)
    options = f"--save rows.parquet --batch-size 1 {GREEDY}"
    try:
        screen = over(run, "photos", "Lost?", options, fails=True)
    finally:
        handle.remove()
    rows = shell.user_ns["_"]
    assert 0 < sum(row.done for row in rows) < 3
    assert shell.user_ns["rows"] is rows
    assert (
        "rows.parquet cannot be written: the folder or the file is gone. What was answered is in _"
    ) in screen
    assert screen.count("run the cell again") == 2  # below the rows, and in the error
    assert "Traceback" not in screen
    assert "3 of 3 rows answered" in over(run, "photos", "Lost?", options)


def test_quiet_shows_nothing(run, shell, tiny, photos):
    assert re.fullmatch(r"\s*(Out\[\d+\]: )?\s*", over(run, "photos", options=f"-q {GREEDY}"))
    assert len(shell.user_ns["rows"]) == 3


def test_a_line_gives_the_rows(run, shell, tiny, photos):
    run(f"x = %glm4v ask --over df.image 'What?' {GREEDY}")
    assert list(shell.user_ns["x"].columns[-5:-3]) == ["answer", "error"]


def test_fresh_and_batch_size(run, shell, tiny, photos):
    over(run, "photos", "Fresh?")
    assert "3 of them from before" in over(run, "photos", "Fresh?")
    assert "from before" not in over(run, "photos", "Fresh?", f"--fresh --batch-size 2 {GREEDY}")
    with capture_output() as captured:
        shell.run_cell(f"%%glm4v --over photos --fresh --batch-size 2 {GREEDY}\nFresh?")
    assert captured.outputs[0].data["text/plain"].endswith("2 at once")


def test_crop_and_page_are_about_each_image(run, shell, tiny, photos):
    over(run, "photos", options=f"--crop 0,0,10,20 {GREEDY}")
    assert {row.answer.images[0].original_size for row in shell.user_ns["rows"]} == {(10, 20)}
    over(run, "photos", options=f"--page 2 {GREEDY}", fails=True)
    assert "page" in shell.user_ns["rows"][0].error


def test_preview_shows_the_first_row(run, shell, tiny, photos):
    screen = over(run, "df.image", "A {{row.n}}?", "--preview")
    assert "A 1?" in screen
    assert "nothing was sent" in screen
    assert "rows" not in shell.user_ns


def test_a_prompt_from_a_file_and_raw(run, shell, tiny, photos, tmp_path):
    (tmp_path / "q.txt").write_text("Number {{index}}?")
    over(run, "photos", "\n ", f"-f q.txt {GREEDY}")
    assert [row.prompt for row in shell.user_ns["rows"]] == [f"Number {n}?" for n in range(3)]
    over(run, "photos", "Number {{item}}?", f"--raw {GREEDY}")
    assert shell.user_ns["rows"][0].prompt == "Number {{item}}?"


def test_a_broken_image_stays_in_its_row(run, shell, tiny, photos, tmp_path):
    (tmp_path / "photos" / "3.png").write_bytes(b"\x89PNG broken")
    screen = over(run, "photos", options=f"--fresh {GREEDY}")
    errors = [row.error is not None for row in shell.user_ns["rows"]]
    assert errors == [False, False, True, False]
    assert "3 of 4 rows answered, 1 failed." in screen
    assert "error: photos/3.png" in screen


def test_all_rows_failing_fails_the_cell_and_keeps_the_errors(run, shell, tiny):
    shell.user_ns["names"] = ["a.png", "b.png"]
    screen = over(run, "names", fails=True)
    assert "0 of 2 rows answered, 2 failed." in screen
    assert "Each of the 2 rows failed; the first: a.png: no such file" in screen
    assert [row.done for row in shell.user_ns["rows"]] == [False, False]
    assert shell.user_ns["_"] is shell.user_ns["rows"]


@pytest.mark.parametrize(
    ("fresh", "again"),
    [("", "Run the cell again to go on."), (" --fresh", "Run the cell without --fresh to go on.")],
)
def test_an_interrupt_keeps_rows_and_the_cell_goes_on(
    run, shell, tiny, photos, interrupt, fresh, again
):
    def stop(module, _args, options):
        if options["input_ids"].shape[1] > 1 and len(shell.user_ns["seen"]) == 1:
            interrupt()
        shell.user_ns["seen"].append(1)

    shell.user_ns["seen"] = []
    session = shell.magics_manager.registry["Glm4vMagics"].context.session
    handle = session.engine.model.register_forward_pre_hook(stop, with_kwargs=True)
    question = f"Stop{fresh}?"  # asked by neither before
    options = "--batch-size 1 --temperature 0 --max-tokens 1"
    try:
        screen = over(run, "photos", question, options + fresh, fails=True)
    finally:
        handle.remove()
    rows = shell.user_ns["rows"]
    assert [row.done for row in rows] == [True, False, False]
    assert shell.user_ns["_"] is rows
    assert f"1 of 3 rows are answered; they are in _. {again}" in screen
    assert "Traceback" not in screen
    told = f"1 of 3 rows answered, 2 not finished; {again[0].lower()}{again[1:]}"
    assert told in screen
    assert "3 of 3 rows answered, 1 of them from before." in over(run, "photos", question, options)


def test_an_interrupt_while_the_table_is_printed_loses_nothing(
    run, shell, tiny, photos, interrupt, monkeypatch
):
    stream = InterruptingStream(sys.stdout, "3 of 3 rows answered.", interrupt)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        screen = over(run, "photos", "Late?", fails=True)
    assert "all 3 rows are answered; they are in _." in screen
    assert all(row.done for row in shell.user_ns["_"])
    assert shell.user_ns["rows"] is not None


@pytest.mark.parametrize(
    ("line", "text", "said"),
    [
        ("--over nothing", "What?", "neither a variable nor a folder"),
        ("--over imaged", "What?", "imaged: neither a variable nor a folder. Did you mean images"),
        ("--over df.imag", "What?", "There is no column 'imag'. Did you mean image?"),
        ("--over df['n2']", "What?", "There is no column 'n2'"),
        ("--over images[9:]", "What?", "images[9:] is empty"),
        ("--over []", "What?", "[] is empty: there is nothing to ask about."),
        ("--over {}", "What?", "{} is empty"),
        ("--over ''", "What?", "An empty name names no folder."),
        ("--over ['a', 'b']", "{{item}}?", "A list with spaces goes in quotes"),
        ("--over range(3)", "{{item}}?", "Put it into a variable, and give its name."),
        ("--over images[9]", "What?", "images[9] failed: IndexError"),
        ("--over df[['n']]", "What?", "Every row of df[['n']] would be asked the same"),
        ("--over photos", "{{nothing}}", "uses nothing, which is not defined"),
        ("--over photos --batch-size 0", "What?", "--batch-size is 0"),
        ("--over photos --temperature -1", "What?", "--temperature is -1"),
        ("--over photos --crop x", "What?", "crop"),
        ("--over df.n --crop 0,0,1,1", "{{item}}", "--crop is about an image"),
        ("--over photos photos/1.png", "What?", "takes one image in a conversation"),
        ("--over photos --ovr", "What?", "There is no option --ovr. Did you mean --over"),
        ("--over photos -o 2x", "What?", "is not the name of a variable"),
        ("--over photos --chat c", "What?", "--chat does not go with --over"),
        ("--over photos -c", "What?", "--continue does not go with --over"),
        ("--over photos --format yaml", "What?", "--format"),
        ("--over photos --schema shcema", "What?", "shcema is neither a variable nor a file"),
        ("--over photos --schema df", "What?", "A JSON Schema is an object, not DataFrame"),
        ("--over photos --format text --schema df", "What?", "for the format json, not text"),
        ("--over photos -f q.txt", "What?", "another in --file"),
        ("photos/1.png --fresh", "What?", "--fresh is about the rows of --over"),
        ("photos/1.png --batch-size 2", "What?", "--batch-size is about the rows of --over"),
    ],
)
def test_what_concerns_every_row_is_refused_before_anything_runs(
    run, shell, tiny, photos, line, text, said
):
    screen = run(f"%%glm4v {line}\n{text}", fails=True)
    assert said in screen
    assert "Traceback" not in screen
    assert "rows answered" not in screen


def test_a_fault_in_the_middle_keeps_and_shows_what_is_done(shell, tiny, photos):
    prefills = []

    def fail(_module, _args, options):
        if options["input_ids"].shape[1] > 1:
            prefills.append(1)
            if len(prefills) > 1:
                raise RuntimeError("shape mismatch")

    session = shell.magics_manager.registry["Glm4vMagics"].context.session
    handle = session.engine.model.register_forward_pre_hook(fail, with_kwargs=True)
    code = f"%%glm4v --over photos -o rows --batch-size 1 {GREEDY}\nFault?"
    try:
        with capture_output() as captured:
            result = shell.run_cell(code, store_history=True)
    finally:
        handle.remove()
    assert "shape mismatch" in str(result.error_in_exec)
    on = "One row is answered and in _; run the cell again to go on."
    assert result.error_in_exec.__notes__ == [on]
    if IPython.version_info >= (9,):  # earlier ones may not show what is noted of an error
        assert on in captured.stdout
    table = captured.outputs[-1].data["text/plain"]
    assert table.startswith("1 of 3 rows answered, 2 not finished; run the cell again to go on.")
    rows = shell.user_ns["rows"]
    assert [row.done for row in rows] == [True, False, False]
    assert rows is shell.user_ns["_"]
    assert rows is shell.user_ns["Out"][shell.execution_count - 1]
    assert "1 of them from before" in shown(shell, code)[-1]["text/plain"]


def test_a_fault_before_the_first_row_changes_no_variable(shell, tiny, photos):
    def fail(*_args):
        raise RuntimeError("shape mismatch")

    shell.user_ns["rows"] = "before"
    session = shell.magics_manager.registry["Glm4vMagics"].context.session
    handle = session.engine.model.register_forward_pre_hook(fail)
    try:
        with capture_output() as captured:
            result = shell.run_cell(f"%%glm4v --over photos -o rows {GREEDY}\nAt once?")
    finally:
        handle.remove()
    assert "shape mismatch" in str(result.error_in_exec)
    assert "run the cell again" not in captured.stdout
    assert captured.outputs == []
    assert shell.user_ns["rows"] == "before"


def test_an_engine_that_is_gone_says_how_to_go_on(run, shell, tmp_path):
    with scripted_server() as server:
        server.answer(MODELS, models("m"))
        server.answer(CHAT, stream(piece("Hello."), END))
        shell.user_ns["things"] = ["a", "b", "c"]
        run(f"%glm4v load {server.url}")
        over(run, "things[:1]", "{{item}}", "")
        first = shell.user_ns["rows"]
        server.answer(CHAT, response(status="500 Internal Server Error"))
        screen = over(run, "things", "{{item}}", "", fails=True)
        rows = shell.user_ns["rows"]
        run("%glm4v unload")
    assert rows is not first
    assert [row.text for row in rows] == ["Hello.", None, None]
    failed, unfinished = sorted(rows[1:], key=lambda row: row.error is None)
    assert "500" in failed.error
    assert unfinished.error is None
    assert "1 of 3 rows answered, 1 of them from before, 1 failed, 1 not finished" in screen
    assert "One row is answered and in _; run the cell again to go on." in screen
    assert "Traceback" not in screen


def test_an_interrupt_before_the_first_word_changes_no_variable(
    run, shell, tiny, photos, interrupt
):
    session = shell.magics_manager.registry["Glm4vMagics"].context.session
    shell.user_ns["rows"] = "before"
    handle = session.engine.model.register_forward_pre_hook(lambda *_args: interrupt())
    try:
        screen = over(run, "photos", "First?", fails=True)
    finally:
        handle.remove()
    assert "Stopped: no row is answered. Run the cell again to go on." in screen
    assert shell.user_ns["rows"] == "before"
    assert "3 of 3 rows answered." in over(run, "photos", "First?")


def test_a_list_may_be_spelled_out(run, shell, tiny, photos):
    over(run, "'[1, 2]'", "{{item}}?")
    assert [row.prompt for row in shell.user_ns["rows"]] == ["1?", "2?"]
    (Path.cwd() / "[1]").mkdir()
    assert "The folder [1] holds no images and no clips." in over(run, "[1]", fails=True)


def test_a_bar_moves_ten_times_a_second_at_most(shell, tiny, photos):
    shell.user_ns["many"] = [photos[0]] * 300
    shell.run_cell("%%glm4v --over many -q --temperature 0 --max-tokens 1 --batch-size 64\nMany?")
    start = time.monotonic()
    with capture_output() as captured:
        shell.run_cell("%%glm4v --over many --temperature 0 --max-tokens 1\nMany?").raise_error()
    seconds = time.monotonic() - start
    assert "300 of them from before" in captured.outputs[-1].data["text/plain"]
    assert len(captured.outputs) <= 2 + seconds / 0.1


def test_another_ones_way_to_show_frames_is_given_back(run, shell, tiny, photos):
    drawn = []
    shows = drawn.append

    formatter = shell.display_formatter.ipython_display_formatter
    formatter.for_type(pd.DataFrame, shows)
    over(run, "df.image")
    assert drawn == []
    run("rows")
    assert len(drawn) == 1
    assert drawn[0] is shell.user_ns["rows"]
    assert formatter.type_printers.pop(pd.DataFrame) == shows


def test_each_page_of_a_document(run, shell, tiny, tmp_path, monkeypatch):
    pypdfium2 = pytest.importorskip("pypdfium2")
    monkeypatch.chdir(tmp_path)
    document = pypdfium2.PdfDocument.new()
    for _ in range(3):
        document.new_page(90, 60)
    document.save("paper.pdf")
    run("%%glm4v --over paper.pdf --max-tokens 2 --temperature 0\nWhat?")
    pages = [f"paper.pdf, page {n}" for n in (1, 2, 3)]
    assert [row.name for row in shell.user_ns["_"]] == pages
    table = rows_bundle(shell.user_ns["_"])
    for drawn in (table["text/plain"], table["text/html"]):
        assert all(page in drawn for page in pages)
        assert "#page=" not in drawn
    for one in (
        "paper.pdf --page 3",
        "paper.pdf#page=3",
        "paper.pdf#page=3 --page 3",
        ". --page 3",
    ):
        said = run(f"%%glm4v --over {one} --max-tokens 2 --temperature 0\nWhat?")
        assert "1 of 1 row answered" in said
        (row,) = shell.user_ns["_"]
        assert row.name.removeprefix("./") == "paper.pdf, page 3"
    said = run("%%glm4v --over paper.pdf --page 4\nWhat?", fails=True)
    assert "paper.pdf has 3 pages, and no page 4." in said
    assert "neither a variable nor a folder" in run("%%glm4v --over b.pdf#page=3\nIt?", fails=True)
    said = run("%%glm4v paper.pdf --page 2 --max-tokens 2 --temperature 0\nWhat?")
    assert "paper.pdf, page 2, 250 x 167 px" in said
    said = run("%%glm4v paper.pdf --page 4\nWhat?", fails=True)
    assert "paper.pdf has 3 pages, and no page 4." in said
