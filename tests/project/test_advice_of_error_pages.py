"""What docs/errors says to do about each error, sentence by sentence: each is done, and helps.

`cures` names the sentences of a page that a test follows, or a test of another room is named; what
only says how it is, or where more is said, is listed. Options, commands and settings that a page
names are those there are.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import test_advice
from huggingface_hub import constants
from image_server import Server
from PIL import Image
from scripted_engine import ScriptedEngine
from scripted_server import CHAT, END, MODELS, models, piece, response, scripted_server, stream

import glm4v_magic
from glm4v_magic.core import errors
from glm4v_magic.core.events import ColumnDone, Loading, RowDone, Text
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.images import to_image
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import ANSWER_OPTIONS, options_in
from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.settings import Glm4v
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

PAGES = Path(__file__).parents[2] / "docs" / "errors"
SQUARE = np.zeros((56, 56, 3), np.uint8)
GREEDY = {"temperature": 0, "max_tokens": 4}
CURED: dict[str, set[str]] = {}


def cures(page: str, *sentences: str) -> Callable[[Any], Any]:
    """Mark a test as one that does what sentences of a page say."""
    CURED.setdefault(page, set()).update(sentences)
    return lambda test: test


def cure(page: Path) -> str:
    (found,) = re.findall(r"\n## Cure\n(.*?)\n## ", page.read_text(encoding="utf-8"), re.DOTALL)
    return found


def sentences(page: Path) -> list[str]:
    """Return the sentences of a cure, on one line each, links by their words, without its code."""
    found = []
    for part in re.split(r"```.*?```|\n\n", cure(page), flags=re.DOTALL):
        prose = " ".join(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", part).split())
        found += re.split(r"(?<=\.)\s+(?=[A-Z`])|(?<=[:;])\s+(?=- )", prose)
    return [each for each in found if each]


def block(page: str) -> str:
    """Return the Python code of a cure."""
    (found,) = re.findall(r"```text\n(try:.*?)```", cure(PAGES / f"{page}.md"), re.DOTALL)
    return found


def interrupted(monkeypatch: Any, method: str, kind: type) -> None:
    """Let the stream of a method be interrupted, as by Ctrl-C, behind its first event of a kind."""
    begin = getattr(Session, method)

    def begun(self: Session, *given: Any, **options: Any) -> Any:
        made = begin(self, *given, **options)
        follow = made.follow

        def followed() -> Any:
            interrupt(made, lambda event: isinstance(event, kind))
            return follow()

        made.follow = followed
        return made

    monkeypatch.setattr(Session, method, begun)


def interrupt(stream: Any, when: Callable[[Any], Any] = lambda event: True) -> None:
    """Read a stream, and press Ctrl-C behind an event."""
    with stream:
        for event in stream:
            if when(event):
                raise KeyboardInterrupt


@contextlib.contextmanager
def stopped_at(step: int, shell: Any, press: Callable[[], None]) -> Iterator[None]:
    """Press the stop button in a step of the model that is loaded in a shell."""
    mine = shell.magics_manager.registry["Glm4vMagics"].context.session
    steps = itertools.count(1)
    handle = mine.engine.model.register_forward_pre_hook(
        lambda *_: press() if next(steps) == step else None
    )
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(name="press")
def _press(request):
    """The stop button."""
    return request.getfixturevalue("interrupt")


@pytest.fixture
def session():
    session = Session().load("demo")
    yield session
    session.unload()


@cures(
    "BusyError",
    "Wait for the first to end, interrupt it, or close its stream.",
    "`status` always answers.",
    "For questions side by side, use a session for each, if the memory allows two models.",
)
def test_a_session_that_is_busy(session):
    def ask():
        return session.ask("What?", **GREEDY)

    def begun():
        stream = session.stream("What?", max_tokens=30)
        next(event for event in stream if isinstance(event, Text))
        with pytest.raises(errors.BusyError):
            ask()
        assert session.status().info.model == "demo"
        return stream

    for _ in begun():
        pass
    assert ask().text
    begun().close()
    assert ask().text
    with pytest.raises(errors.GenerationInterrupted):
        interrupt(begun())
    assert ask().text

    found = []
    other = Session().load("demo")
    with begun() as stream:
        thread = threading.Thread(target=lambda: found.append(other.ask("What?", **GREEDY)))
        thread.start()
        thread.join()
        assert found[0].text
        assert sum(1 for _ in stream) > 1
    other.unload()


@cures(
    "CheckpointError",
    "Give the folder itself, or the repository's id with the owner.",
    "A damaged shard: download that file again.",
)
def test_a_checkpoint_that_is_not_found_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub/models--me--tiny/snapshots" / ("a" * 40)
    shutil.copytree(golden.CHECKPOINT, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("a" * 40)
    with pytest.raises(errors.CheckpointError):
        Session().load("tiny")
    for name in (snapshot, "me/tiny"):
        assert Session().load(name).ask("What?", **GREEDY).usage.new_tokens
    for shard in snapshot.glob("*.safetensors"):
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-100])
        with pytest.raises(errors.CheckpointError, match=shard.name):
            Session().load(snapshot)
        shard.write_bytes(whole)
        assert Session().load(snapshot).status().info


@cures(
    "ComparisonInterrupted",
    "What was answered is in `_` and in the variable of `-o`; in Python it is in the attribute "
    "`result`, the half answer among it:",
)
def test_a_comparison_that_is_interrupted(run, shell, monkeypatch):
    run("%glm4v load demo")
    mine = Session().load("demo")
    with monkeypatch.context() as patch:
        interrupted(patch, "stream_compare", ColumnDone)
        names = {"session": mine, "photo": SQUARE, "glm4v_magic": glm4v_magic}
        exec(block("ComparisonInterrupted"), names)
    found = names["found"]
    assert [each.done for each in found.columns] == [True, False]
    assert found.columns[0].answer.text


@cures(
    "ConversationError",
    "Ask about the images one after the other, or join them into one.",
    "Shorten a long prompt, or start a new conversation; `--preview` shows how many tokens a "
    "question takes.",
    "The answer has what room is left, however large `--max-tokens` is.",
)
def test_messages_that_a_model_cannot_take(run, shell):
    run("%glm4v load demo")
    shell.user_ns |= {"one": SQUARE, "other": SQUARE + 9, "both": np.hstack([SQUARE] * 2)}
    short = "--max-tokens 2 --temperature 0"
    run(f"%%glm4v one other {short}\nWhat?", fails=True)
    run(f"%%glm4v one {short}\nWhat?")
    run(f"%%glm4v other {short}\nWhat?")
    run(f"%%glm4v both {short}\nWhat?")
    assert "The prompt is " in run(f'%%glm4v {short}\n{{{{"word " * 2000}}}}', fails=True)
    said = run('%%glm4v --preview\n{{"word " * 300}}')
    counted, *_ = re.findall(r"([\d,]+) (?:text )?tokens?", said)
    run('%%glm4v --max-tokens 1000 --temperature 0 -o long\n{{"word " * 300}}')
    usage = shell.user_ns["long"].usage
    assert usage.text_tokens == int(counted.replace(",", ""))
    run(f'%%glm4v --continue {short}\n{{{{"word " * 300}}}}', fails=True)
    run(f'%%glm4v {short}\n{{{{"word " * 300}}}}')


@cures(
    "DeviceMapError",
    "Make a map to start from with `made = %glm4v plan MODEL --gpus SPEC`: `made.device_map()` is "
    "a dict of modules that can be changed, and `--map` takes the variable that holds it.",
    "A plan itself is changed by its options, such as `--pin`, not in its file.",
    "Try a map before loading with `%glm4v check MODEL --gpus SPEC --map FILE`.",
)
def test_a_map_that_is_started_from_and_tried(run, shell, tmp_path):
    (tmp_path / "wrong.json").write_text('{"model.vision": 0}')
    assert "gives 'model.language_model'" in run(
        "%glm4v check demo --gpus 2x1GiB --map wrong.json", fails=True
    )
    run("made = %glm4v plan demo --gpus 2x1GiB --objective balance")
    run("changed = made.device_map()")
    before = shell.user_ns["changed"]["lm_head"]
    run(f"changed['lm_head'] = {1 - before}")
    assert "It would run" in run("%glm4v check demo --gpus 2x1GiB --map changed")
    (tmp_path / "map.json").write_text(json.dumps(shell.user_ns["changed"]))
    assert "It would run" in run("%glm4v check demo --gpus 2x1GiB --map map.json")
    run(f"made = %glm4v plan demo --gpus 2x1GiB --objective balance --pin head={1 - before}")
    assert "It would run" in run("%glm4v check --gpus 2x1GiB --map made")
    run("%glm4v load demo --map wrong.json", fails=True)


def ways(gpus: str, context: int | None) -> set[str]:
    given = {"gpus": gpus, "images": 1, **({"context": context} if context else {})}
    return test_advice.ways_work(test_advice.NINE_B, given)


@cures(
    "DoesNotFitError",
    "The message lists what would fit: a shorter context, 8-bit weights or, where those do not "
    "fit, 4-bit ones, or layers in host memory.",
)
def test_what_would_fit_fits():
    """Each way out of each message is taken, in a plan."""
    named = set()
    for gpus, context in (
        ("2x8GiB", None),
        ("1x24GiB", 8192),
        ("1x30GiB", 8192),
        ("1x32GiB", 8192),
    ):
        named |= ways(gpus, context)
    assert {"eight_bit_fits", "offloading_fits"} <= named
    assert named & {"four_bit_fits", "four_bit_and_offloading_fit"}
    tight = next(
        n for n in np.arange(26, 34, 0.25)
        if "shorter_context_fits" in ways(f"1x{n}GiB", 8192)
    )  # fmt: skip
    assert tight


@cures(
    "EngineError",
    "Check host, port and the end of the address: that of an OpenAI-compatible API usually ends in "
    "`/v1`.",
    "Then ask again: nothing has to be loaded anew.",
    "Where the message says so, load the model again, or another copy of it, and ask then.",
    "Rows of `--over` that were answered before are in `_` and in the variable of `-o`, and are "
    "not asked again.",
)
def test_a_server_that_is_elsewhere_or_fails(run, shell, tmp_path):
    with scripted_server() as server:
        server.answer(MODELS, models("m"))
        port = server.url.rpartition(":")[2].partition("/")[0]
        for wrong in ("http://127.0.0.1:9/v1", f"http://127.0.0.1:{port}/v2"):
            run(f"%glm4v load {wrong}", fails=True)
        run(f"%glm4v load http://127.0.0.1:{port}/v1")

        def answer(connection):
            is_down = b"red" in server.asked.body and down
            failed = response({"error": "down"}, "400 Bad Request")
            connection.sendall(failed if is_down else stream(piece("Yes."), END))

        down = True
        server.answer(CHAT, answer)
        run('%glm4v ask "Is it red?"', fails=True)
        shell.user_ns["colours"] = ["blue", "red"]
        rows = "%%glm4v --over colours -o rows --temperature 0\nIs it {{item}}?"
        assert "1 of 2 rows answered, 1 failed" in run(rows)
        assert shell.user_ns["_"] is shell.user_ns["rows"]
        assert [row.done for row in shell.user_ns["rows"]] == [True, False]
        down, before = False, len(server.requests)
        assert "Yes." in run('%glm4v ask "Is it red?"')
        assert "2 of 2 rows answered, 1 of them from before" in run(rows)
        assert len(server.requests) == before + 2
    folder = shutil.copytree(golden.CHECKPOINT, tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    run(f"%glm4v load {folder} --gpus cpu --dtype float32")
    (folder / "model.safetensors").write_bytes(weights[:-4] + bytes(4))
    assert "Load it again." in run('%glm4v ask "Is it red?" --max-tokens 2', fails=True)
    run("%glm4v load")
    run('%glm4v ask "Is it red?" --max-tokens 2')


@cures(
    "FormatError",
    "Say in the question which form you want, with a short example of it; lower the temperature; "
    "or take the text as it is.",
    "Of many rows (`--over`), it is the `error` of a row that keeps its `answer`; the others go "
    "on.",
)
def test_an_answer_in_another_form():
    """By an engine that keeps to a form that the question shows, as a model may."""

    def said(prompt):
        return '{"colour": "red"}' if '{"colour": ' in prompt else "It is red."

    session = Session(ScriptedEngine(said))
    with pytest.raises(errors.FormatError) as caught:
        session.ask("Which colour?", format="json")
    assert caught.value.answer.text == "It is red."
    assert session.ask("Which colour?", temperature=0).text == "It is red."
    example = 'Which colour? Answer like {"colour": "blue"}.'
    assert session.ask(example, format="json").value == {"colour": "red"}
    rows = session.map("{{item}}", ["Which colour?", example], format="json")
    assert isinstance(rows[0].error, str)
    assert rows[0].answer.text == "It is red."
    assert rows[1].answer.value == {"colour": "red"}


@cures(
    "GPUDescriptionError",
    "Write a count, `x`, a size and a unit; join different GPUs with `+`.",
    "`4x16GiB`, `24+16+12GiB` and `2xA100-40GB` are descriptions, and so are the names of common "
    "models alone, `2xT4`, and a bandwidth behind a size or a name, `24GiB@936GB/s`.",
    "Behind the name of a common model the size may be the nominal one (`T4-16GB` is a T4, `NVIDIA "
    "GH200 480GB` a GH200), or smaller as a limit.",
    "GiB are powers of 1024, GB of 1000.",
)
def test_descriptions_of_gpus():
    for wrong in ("4x16", "0x16GiB", "four GPUs", "24GiB 16GiB"):
        with pytest.raises(errors.GPUDescriptionError):
            parse_gpus(wrong)
    counts = {"4x16GiB": 4, "24+16+12GiB": 3, "2xA100-40GB": 2, "2xT4": 2, "24GiB@936GB/s": 1}
    assert {each: len(parse_gpus(each)) for each in counts} == counts
    sizes = {each: parse_gpus(each)[0].total_bytes for each in ("T4", "T4-16GB", "T4-8GiB")}
    assert sizes["T4"] == sizes["T4-16GB"] > sizes["T4-8GiB"]
    assert parse_gpus("NVIDIA GH200 480GB")[0].total_bytes == parse_gpus("GH200")[0].total_bytes
    assert parse_gpus("1x16GiB")[0].total_bytes > parse_gpus("1x16GB")[0].total_bytes


@cures(
    "GenerationInterrupted",
    "In a notebook the partial answer is shown and kept in `_` and in the variable of `-o`.",
    "In Python it is in the attribute `answer`:",
)
def test_an_answer_that_is_interrupted(run, shell, tmp_path, monkeypatch, press):
    run("%glm4v load demo")
    Image.fromarray(SQUARE).save(tmp_path / "cat.png")
    mine = Session().load("demo")
    with monkeypatch.context() as patch:
        interrupted(patch, "stream", Text)
        names = {"session": mine, "glm4v_magic": glm4v_magic}
        exec(block("GenerationInterrupted"), names)
        assert names["answer"].text
    with stopped_at(4, shell, press):
        said = run("%%glm4v cat.png -o half\nDescribe it.", fails=True)
    assert shell.user_ns["half"].text
    assert shell.user_ns["_"] is shell.user_ns["half"]
    assert shell.user_ns["half"].text.split()[0] in said


@cures(
    "Glm4vError",
    "Read the message.",
    "In a notebook, `--debug` on the line (or `%config Glm4v.debug = True`) shows the traceback "
    "instead of one line.",
    "In Python:",
)
def test_any_error(run, shell, capsys):
    assert "Traceback" not in run("%glm4v load nowhere", fails=True)
    assert "Traceback" in run("%glm4v load nowhere --debug", fails=True)
    run("%config Glm4v.debug = True")
    assert "Traceback" in run("%glm4v load nowhere", fails=True)
    run("%config Glm4v.debug = False")
    code = block("Glm4vError")
    exec(code, {"session": Session().load("demo"), "glm4v_magic": glm4v_magic})
    assert "cat.png: no such file" in capsys.readouterr().out


@cures(
    "ImageError",
    "The hint names files that look alike.",
    "- *too large*: raise the setting `megapixels`, or make the image smaller first;",
    "- *a private address*: images are not fetched from this computer or its network unless the "
    "setting `allow_private` says so, because a shared notebook could otherwise read what only you "
    "can reach;",
    "- *an array*: shapes are (height, width), (height, width, 3 or 4) or the same with the "
    "channels first.",
)
def test_images_that_are_not_taken(run, shell, tmp_path):
    large = tmp_path / "large.png"
    Image.new("RGB", (1500, 1000)).save(large)
    (name,) = re.findall(r"Did you mean (\S+)\?", run("%glm4v preview lage.png 'x'", fails=True))
    run("%config Glm4v.megapixels = 1")
    run(f"%glm4v preview {name} 'x'", fails=True)
    Image.open(large).resize((900, 600)).save(tmp_path / "smaller.png")
    run("%glm4v preview smaller.png 'x'")
    run("%config Glm4v.megapixels = 2")
    run(f"%glm4v preview {name} 'x'")
    server = Server()
    try:
        server.answer("/a.png", (tmp_path / "smaller.png").read_bytes())
        line = f"%glm4v preview {server.url}/a.png 'x'"
        run(line, fails=True)
        run("%config Glm4v.allow_private = True")
        run(line)
    finally:
        server.close()
        run("%config Glm4v.allow_private = False")
        run(f"%config Glm4v.megapixels = {Glm4v().megapixels}")
    for shape in ((5, 6), (5, 6, 3), (5, 6, 4), (3, 5, 6), (4, 5, 6)):
        assert to_image(np.zeros(shape, np.uint8), "x").image.size == (6, 5)
    with pytest.raises(errors.ImageError):
        to_image(np.zeros((5, 6, 7), np.uint8), "x")


@cures(
    "InputError",
    "Correct the line and run the cell again.",
    "A model that was loaded is still loaded.",
)
def test_a_line_that_is_corrected(run, shell):
    run("%glm4v load demo")
    mine = shell.magics_manager.registry["Glm4vMagics"].context.session
    engine = mine.engine
    run("%glm4v ask 'What?' --temperature hot", fails=True)
    assert mine.engine is engine
    run("%glm4v ask 'What?' --temperature 0 --max-tokens 2")
    assert mine.engine is engine


@cures(
    "LoadInterrupted",
    "Nothing needs to be done: the next question loads the model before again.",
    "Chats are kept.",
    "To go on with the other model, load it again.",
)
def test_a_load_that_is_interrupted():
    with VirtualGPUs("1x1GiB"):
        session = glm4v_magic.load("demo")
        session.ask("What?", chat="kept", **GREEDY)
        with pytest.raises(errors.LoadInterrupted):
            interrupt(
                session.stream_load("demo-4.6v", device_map="cuda:0"),
                lambda event: isinstance(event, Loading) and event.progress.released,
            )
        assert session.ask("And?", chat="kept", follow_up=True, **GREEDY).text
        assert session.status().info.model == "demo"
        assert len(session.conversation("kept").messages) == 4
        session.load("demo-4.6v", device_map="cuda:0")
        assert session.ask("What?", **GREEDY).model == "demo-4.6v"
        session.unload()


@cures(
    "MapInterrupted",
    "Run the same cell again, without `--fresh` if it has that: it goes on where it stopped, since "
    "rows that were answered are not asked again.",
    "What is done is in `_` and in the variable of `-o`; in Python it is in the attribute "
    "`result`:",
)
def test_rows_that_are_interrupted(run, shell, tmp_path, monkeypatch, press):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.fromarray(SQUARE + number).save(photos / f"{number}.png")
    run("%glm4v load demo")
    cell = "%%glm4v --over photos --batch-size 1 --max-tokens 2 --temperature 0 -o rows{}\nWhat?"
    with monkeypatch.context() as patch:
        interrupted(patch, "stream_map", RowDone)
        engine = ScriptedEngine()
        names = {"session": Session(engine), "glm4v_magic": glm4v_magic}
        exec(block("MapInterrupted"), names)
    with stopped_at(3, shell, press):
        run(cell.format(" --fresh"), fails=True)
    assert [row.done for row in names["rows"]].count(True) == engine.asked == 1
    assert all(row.done for row in names["session"].map("What is this?", "photos"))
    assert engine.asked == 3
    assert [row.done for row in shell.user_ns["rows"]] == [True, False, False]
    assert shell.user_ns["_"] is shell.user_ns["rows"]
    assert "3 of 3 rows answered, 1 of them from before." in run(cell.format(""))


@cures(
    "OptionError",
    "The hint names what comes closest, or all there is.",
)
def test_an_option_that_is_not_there(run):
    said = run("%glm4v plan demo --gpus 2x1GiB --quantise 4bit", fails=True)
    (option,) = re.findall(r"Did you mean (--\w+)", said)
    run(f"%glm4v plan GLM-4V-9B --gpus 2x16GiB {option} 4bit")
    said = run("%glm4v plan GLM-4V-9B --gpus 2x16GiB --quantize 3bit", fails=True)
    assert "4bit" in said
    assert "8bit" in said


@cures(
    "PlacementError",
    "Describe the GPUs with `--gpus`, or let a plan decide instead of a map.",
)
def test_gpus_that_are_described_and_a_plan_in_place_of_a_map(run):
    run("%glm4v check demo", fails=True)
    run("%glm4v check demo --gpus 2x1GiB")
    run("%glm4v check demo --gpus 2x1GiB --map '{\"\": 2}'", fails=True)
    run("%glm4v check demo --gpus 2x1GiB --map plan")


@cures(
    "PromptError",
    "Define the variable, or correct its name.",
    "If the braces are meant as they stand, as in a template, use `--raw`.",
)
def test_a_prompt_with_braces(run, shell):
    run("%%glm4v --preview\nIs it {{colur}}?", fails=True)
    run("colur = 'red'")
    assert "Is it red?" in run("%%glm4v --preview\nIs it {{colur}}?")
    run("del colur\ncolour = 'blue'")
    assert "Is it blue?" in run("%%glm4v --preview\nIs it {{colour}}?")
    assert "Is it {{colur}}?" in run("%%glm4v --preview --raw\nIs it {{colur}}?")


@cures(
    "SaveError",
    "Make room, or bring the folder back, and run the same cell again: it goes on where it "
    "stopped.",
    "All rows but the latest are in the journal beside the file; in a cell all of them are in `_`, "
    "too.",
)
def test_rows_whose_folder_is_gone_and_comes_back(tmp_path):
    folder, away = tmp_path / "there", tmp_path / "away"
    folder.mkdir()
    moved = []

    def said(prompt):
        if prompt == "c" and not moved:
            moved.append(folder.rename(away))
        return prompt.upper()

    engine = ScriptedEngine(said)
    session = Session(engine)
    ask = partial(session.map, "{{item}}", list("abcdef"), save=folder / "rows.parquet")
    with pytest.raises(errors.SaveError):
        ask()
    asked = engine.asked
    assert any(away.iterdir())  # the journal
    away.rename(folder)
    assert [row.text for row in ask()] == list("ABCDEF")
    assert engine.asked < asked + 6


IN_OTHER_TESTS = {
    ("CheckpointError", "On a machine without network, see Install."):
        "checkpoints/test_hub.py::"
        "test_what_the_page_of_installing_does_for_machines_without_a_network",
    ("ComparisonInterrupted",
     "If the model in use had made room for another one, the next question loads it again; "
     "`released` is its name."):
        "session/test_comparing.py::test_an_interrupt_without_room_says_what_is_away",
    ("EngineError",
     "A server that wants a key finds it in the environment variable `GLM4V_API_KEY`."):
        "project/test_advice_followed.py::test_a_server_that_wants_a_key",
    ("OutOfMemoryError",
     "While answering: what was kept of earlier prompts has been dropped already, and what failed "
     "was tried again."):
        "engines/test_out_of_memory.py::test_a_gpu_that_fills_up_in_the_middle_of_an_answer",
    ("OutOfMemoryError",
     "The model and the conversation are still there, and what was said of the answer until then "
     "(`_`; `%glm4v continue` carries it on); ask for less (`--max-tokens`, `--crop`), or load "
     "with `--context` for what you need."):
        "project/test_advice.py::test_a_prompt_that_has_no_room",
    ("OutOfMemoryError",
     "While loading: nothing is loaded; close the other program that the message names, leave more "
     "of a GPU alone with `--reserve` or `--max-memory`, or quantise."):
        "project/test_advice.py::test_memory_is_freed_or_idle_gpus_are_used",
}  # fmt: skip
"""Sentences that tests of other rooms follow."""

HOW_IT_IS = {
    "The example interrupts itself after the first answer.",
    "See How a plan is made.", "What a GPU really has is a little less than its name; see Install.",
    "The example interrupts itself with the first word.", "For the rest:",
    "The example loads by a device map, for which the model before makes room in any case, and "
    "interrupts itself as soon as that is gone.",
    "The example interrupts itself after the first row.",
    "Commands and options lists every option with an example, Settings every setting.",
    "The example fills a GPU once the model is loaded, with a virtual GPU.",
    "What was there before is planned for.",
    "Branches: GPUDescriptionError, DeviceMapError, DoesNotFitError.",
}  # fmt: skip
"""Sentences that say how it is, or where more is said."""


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_every_sentence_of_a_cure_is_followed(page):
    found = set(sentences(page))
    assert found
    followed = CURED.get(page.stem, set()) | {
        said for name, said in IN_OTHER_TESTS if name == page.stem
    }
    assert found - followed - HOW_IT_IS == set(), "no test follows it"
    assert followed <= found, "the page does not say it any more"


def test_what_is_listed_is_on_a_page():
    everything = {said for page in PAGES.glob("*.md") for said in sentences(page)}
    assert everything >= HOW_IT_IS


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_what_a_cure_names_is_there(page):
    text = cure(page)
    for name in re.findall(r"%glm4v (\w+)", text):
        assert name in COMMANDS, name
    for name in re.findall(r"Glm4v\.(\w+)|setting\]\([^)]*\) `(\w+)`|setting `(\w+)`", text):
        assert "".join(name) in Glm4v.class_trait_names(), name
    known = {flag for some in (ANSWER_OPTIONS, *ARGUMENTS.values()) for flag in options_in(some)}
    assert set(re.findall(r"(?<![\w-])--[a-z-]+", text)) <= known | {"--debug"}


@pytest.mark.parametrize("test", sorted(set(IN_OTHER_TESTS.values())))
def test_the_tests_of_other_rooms_are_there(test):
    assert test_advice.quoted_in(test)
