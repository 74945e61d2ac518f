"""Advice about chats, images, tables and servers of others: each is followed, and works.

`test_advice` names these tests for the codes that they take.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pandas as pd
import pytest
from advice import refused, takes
from clips import write_clip
from huggingface_hub import constants
from image_server import Server
from PIL import Image, ImageGrab
from scripted_server import CHAT, END, MODELS, models, piece, response, scripted_server, stream
from standins import eva2clip_splits as splits

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import Glm4vError
from glm4v_magic.core.events import Loading
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.image import Limits
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.server_address import API_KEY
from glm4v_magic.engines.server import patience
from glm4v_magic.images import resolve_images, to_image
from glm4v_magic.images.video import to_video
from glm4v_magic.mapping.items import items_of
from glm4v_magic.outside.paths import SHUT
from glm4v_magic.planning.decision import decide
from glm4v_magic.remote_code.copies import code_folders
from glm4v_magic.remote_code.source_patch import plan_patch
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

GREEDY = {"temperature": 0, "max_tokens": 2}
SQUARE = np.zeros((56, 56, 3), np.uint8)


@pytest.fixture(scope="module")
def loaded():
    session = Session().load(golden.CHECKPOINT)
    yield session
    session.unload()


@pytest.fixture
def server():
    """A server that says "Red."."""
    with scripted_server() as server:
        server.answer(CHAT, stream(piece("Red."), END))
        yield server


def test_a_chat_that_was_not_begun_is_begun(loaded, run):
    follow_up = {"chat": "cats", "follow_up": True, **GREEDY}
    refused("chat='cats' begins one.", lambda: loaded.ask("And?", **follow_up))
    assert loaded.ask("What?", chat="cats", **GREEDY).usage.new_tokens
    assert loaded.ask("And?", **follow_up).usage.new_tokens
    run(f"%glm4v load {golden.CHECKPOINT}")
    options = "--temperature 0 --max-tokens 2"
    said = run(f"%%glm4v --continue --chat dogs {options}\nAnd?", fails=True)
    (begun,) = re.findall(r"(--chat dogs) begins one\.", said)
    run(f"%%glm4v {begun} {options}\nWhat?")
    run(f"%%glm4v --continue {begun} {options}\nAnd?")


def test_a_folder_and_many_images_are_asked_about_one_by_one(loaded, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.fromarray(SQUARE).save(f"photos/{name}")
    refused("session.map asks about each.", lambda: loaded.ask("What?", "photos", **GREEDY))
    assert [row.done for row in loaded.map("What?", "photos", **GREEDY)] == [True] * 2
    several = [SQUARE] * 3
    asked = "session.map asks the same about each."
    limits = Limits(images=2)
    refused(asked, lambda: resolve_images(["x"], {"x": several}, limits=limits))
    assert [row.done for row in loaded.map("What?", several, **GREEDY)] == [True] * 3
    run(f"%glm4v load {golden.CHECKPOINT}")
    options = "--temperature 0 --max-tokens 2"
    said = run(f"%%glm4v photos {options}\nWhat?", fails=True)
    assert "The option --over asks about each." in said
    assert "2 of 2 rows answered" in run(f"%%glm4v --over photos {options}\nWhat?")
    Path("many").mkdir()
    for number in range(101):
        Image.fromarray(SQUARE[:2, :2]).save(f"many/{number}.png")
    run("%glm4v load demo-4.6v")  # which takes several images
    said = run("%%glm4v many/*.png --preview\nWhat?", fails=True)
    assert "The option --over asks the same about each." in said
    run(f"%glm4v load {golden.CHECKPOINT}")
    asked = run(f"%%glm4v --over many/*.png {options}\nWhat?")
    assert "101 of 101 rows answered" in asked


def test_one_of_several_columns_of_images_is_named(loaded, run):
    frame = pd.DataFrame({"front": [SQUARE], "back": [SQUARE]})
    said = refused("Name the one to ask about", lambda: loaded.map("What?", frame, **GREEDY))
    (column,) = re.findall(r"column='(\w+)'\.$", said)
    assert loaded.map("What?", frame, column=column, **GREEDY).error.isna().all()
    run(f"%glm4v load {golden.CHECKPOINT}")
    run("import numpy, pandas\nsquare = numpy.zeros((56, 56, 3), 'uint8')")
    run("df = pandas.DataFrame({'front': [square], 'back': [square]})")
    options = "--temperature 0 --max-tokens 2"
    said = run(f"%%glm4v --over df {options}\nWhat?", fails=True)
    (over,) = re.findall(r"Name the one to ask about: (--over .*)\.", said)
    assert "1 of 1 row answered" in run(f"%%glm4v {over} {options}\nWhat?")


def test_a_smaller_image_or_a_part_of_it_is_sent_to_a_server(server, run, tmp_path, monkeypatch):
    def answer(connection):
        is_large = len(server.asked.body) > 20_000
        too_large = response(status="413 Content Too Large")
        connection.sendall(too_large if is_large else stream(piece("Red."), END))

    server.answer(MODELS, models("m"))
    server.answer(CHAT, answer)
    session = Session().load(server.url)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    image = Image.fromarray(noise)
    advice = "Ask about a smaller image, or a part of it: image.crop((left, top, right, bottom))."
    refused(advice, lambda: session.ask("What?", image))
    for smaller in (image.resize((50, 50)), image.crop((0, 0, 50, 50))):
        assert session.ask("What?", smaller).text == "Red."
    monkeypatch.chdir(tmp_path)
    Image.fromarray(noise).save("noise.png")
    run(f"%glm4v load {server.url}")
    said = run("%%glm4v noise.png\nWhat?", fails=True)
    assert "Ask about a smaller image, or a part of it (--crop)." in said
    assert "Red." in run("%%glm4v noise.png --crop 0,0,50,50\nWhat?")
    run("%glm4v unload")


def test_a_slow_server_is_given_longer(server, run):
    server.answer(MODELS, 0.5, models("m"))
    session = Session()
    longer = "If it is only slow, give it longer: timeout=SECONDS."
    refused(longer, lambda: session.load(server.url, timeout=0.1))
    assert session.load(server.url, timeout=30).ask("What?").text == "Red."
    said = run(f"%glm4v load {server.url} --timeout 0.1", fails=True)
    assert "give it longer: %glm4v load ... --timeout SECONDS." in said
    run(f"%glm4v load {server.url} --timeout 30")
    run("%glm4v unload")


def test_a_model_of_a_server_is_named_or_started(server, run):
    session = Session()
    server.answer(MODELS, models())
    name_one = 'Start the server with one, or name one it can load: served_model="NAME".'
    refused(name_one, lambda: session.load(server.url))
    assert session.load(server.url, served_model="m").ask("What?").text == "Red."
    said = run(f"%glm4v load {server.url}", fails=True)
    assert "name one it can load: --served-model NAME." in said
    run(f"%glm4v load {server.url} --served-model m")
    server.answer(MODELS, models("m"))
    assert session.load(server.url).ask("What?").text == "Red."
    for named in (models("m", "n"), models("m", "n", glm4v_magic={"max_images": 1})):
        server.answer(MODELS, named)
        for options in ({}, {"served_model": "other"})[: 1 + (b"glm4v_magic" in named)]:
            choose = 'Choose one: served_model="NAME".'
            refused(choose, lambda options=options: session.load(server.url, **options))
        assert session.load(server.url, served_model="n").ask("What?").model == "n"
    assert "Choose one: --served-model NAME." in run(f"%glm4v load {server.url}", fails=True)
    run(f"%glm4v load {server.url} --served-model n")
    run("%glm4v unload")


BUSY = response({"error": "busy"}, "429 Too Many Requests", Retry_After="99999")
STARTING = response(status="502 Bad Gateway")
NO_OBJECT = stream(b"data: hello\n\n")
CUT_OFF = stream(piece("Re"), done=False)

LATER = {
    "It is busy; ask again in 99999 s.": BUSY,
    "It may still be starting; ask again later.": STARTING,
    "Is it an OpenAI-compatible API?": NO_OBJECT,
    "Its log may tell more; ask again.": CUT_OFF,
    "Is the server still running? Its log may tell more.": b"",
}


@takes(
    "It is busy; ask again {}.",
    "It may still be starting; ask again later.",
    "Is it an OpenAI-compatible API?",
    "Its log may tell more; ask again.",
    "Is the server still running? Its log may tell more.",
)
@pytest.mark.parametrize("advice", LATER)
def test_a_server_that_answers_when_it_is_asked_again(server, monkeypatch, advice):
    monkeypatch.setattr(patience, "PATIENCE", 0.1)  # it is asked again by itself, too
    server.answer(MODELS, models("m"))
    session = Session().load(server.url)
    server.answer(CHAT, LATER[advice])
    refused(advice, lambda: session.ask("What?"))
    server.answer(CHAT, stream(piece("Red."), END))
    assert session.ask("What?").text == "Red."


@takes(
    "Put its key into the environment variable GLM4V_API_KEY.",
    "If it wants a key, put it into the environment variable GLM4V_API_KEY.",
    "The key in GLM4V_API_KEY was sent; put the right one there.",
    "Set it anew, without quotes around it.",
)
@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
def test_a_server_that_wants_a_key(server, monkeypatch, status):
    def answer(connection):
        is_right = server.requests[-1][2].get("authorization") == "Bearer sk-right"
        connection.sendall(stream(piece("Red."), END) if is_right else response(status=status))

    monkeypatch.delenv(API_KEY, raising=False)
    server.answer(MODELS, models("m"))
    server.answer(CHAT, answer)
    session = Session().load(server.url)
    into = f"into the environment variable {API_KEY}."
    said = refused(into, lambda: session.ask("What?"))
    assert ("If it wants a key" in said) == status.startswith("403")
    for key, advice in (
        ("sk-wrong", f"The key in {API_KEY} was sent; put the right one there."),
        ("“sk-right”", "Set it anew, without quotes around it."),
    ):
        monkeypatch.setenv(API_KEY, key)
        refused(advice, lambda: session.ask("What?"))
    monkeypatch.setenv(API_KEY, "sk-right")
    assert session.ask("What?").text == "Red."


@takes(
    "It is at {}; give that address.",
    "Does it know a model of that name?",
    "It serves {}.",
    "Not every server takes {}; leave it out.",
    "Check the address, and the proxy in the environment if there is one.",
)
def test_a_server_asked_for_what_it_has(server, monkeypatch):
    session = Session()
    with scripted_server() as moved:
        moved.answer(MODELS, response(status="308 Permanent Redirect", Location=server.url))
        server.answer(MODELS, models("m"))
        said = refused("; give that address.", lambda: session.load(moved.url))
        (address,) = re.findall(r"It is at (\S+); give", said)
        assert session.load(address).ask("What?").text == "Red."

    def answer(connection):
        body = json.loads(server.asked.body)
        known = response({"error": "no such model"}, "404 Not Found")
        if body["model"] == "m":
            known = stream(piece("Red."), END)
        if "top_k" in body:
            known = response({"error": "extra fields"}, "400 Bad Request")
        connection.sendall(known)

    server.answer(CHAT, answer)
    refused("Not every server takes top_k; leave it out.", lambda: session.ask("What?", top_k=3))
    assert session.ask("What?").text == "Red."
    session.load(server.url, served_model="n")
    said = refused("It serves m.", lambda: session.ask("What?"))
    (name,) = re.findall(r"It serves (\w+)\.", said)
    assert session.load(server.url, served_model=name).ask("What?").text == "Red."
    server.answer(MODELS, models())
    session.load(server.url, served_model="n")
    refused("Does it know a model of that name?", lambda: session.ask("What?"))
    assert session.load(server.url, served_model="m").ask("What?").text == "Red."
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:9")
    proxy = "Check the address, and the proxy in the environment if there is one."
    elsewhere = "http://glm.invalid/v1"
    refused(proxy, lambda: session.load(elsewhere))
    monkeypatch.delenv("ALL_PROXY")
    refused("No server answers", lambda: session.load(elsewhere))
    assert session.load(server.url, served_model="m").ask("What?").text == "Red."


ACCEPTED = "Give a path, URL, PIL image, array, bytes, open file, figure, or a list of these."


@takes(
    ACCEPTED,
    "It holds {}.",
    "A web address begins with https://.",
    "Check the address and the network, or download the image and give its path.",
    "Check the address; it must open in a browser without signing in.",
    "Download the image and give its path.",
    "Upload the image, or give its path or URL.",
)
def test_images_that_are_given_in_another_way(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    photo = Image.effect_noise((40, 40), 90)
    photo.save("a.png")
    content = Path("a.png").read_bytes()
    limits = Limits(allow_private=True, download_bytes=1000)

    def taken(word, **names):
        return resolve_images([word], names, limits=limits)

    there = Server()
    try:
        for path, body in (("/large.png", content), ("/small.png", tiny_png())):
            there.answer(path, body)
        refused("Download the image and give its path.", lambda: taken(f"{there.url}/large.png"))
        said = "Check the address; it must open in a browser without signing in."
        refused(said, lambda: taken(f"{there.url}/smal.png"))
        url = f"{there.url}/small.png"
        assert taken(url)
    finally:
        there.close()
    said = "Check the address and the network, or download the image and give its path."
    refused(said, lambda: taken(url))
    assert taken("a.png")
    refused(ACCEPTED, lambda: taken(""))
    from matplotlib.figure import Figure

    with open("a.png", "rb") as stream:
        forms = {"pil": photo, "array": SQUARE, "content": content, "file": stream}
        forms |= {"figure": Figure(), "several": [photo, SQUARE]}
        for name in forms:
            assert taken(name, **forms)
    said = refused("It holds ", lambda: taken("*.tif"))
    (pattern,) = re.findall(r"It holds (\*\.\w+)", said)
    assert taken(pattern)

    monkeypatch.setattr("glm4v_magic.images.names.from_uri", lambda *_: to_image(photo, "x"))
    refused("A web address begins with https://.", lambda: taken("example.com/photos/a.png"))
    assert taken("https://example.com/photos/a.png")

    def no_display():
        raise OSError("no display")

    monkeypatch.setattr(ImageGrab, "grabclipboard", no_display)
    refused("Upload the image, or give its path or URL.", lambda: taken("clipboard"))


def tiny_png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


FLOATS = np.linspace(0, 1, 75, dtype=np.float32).reshape(5, 5, 3)


@takes(
    "Divide by 255.",
    "Scale it to 0 to {}.",
    "Scale its range to 0 to 1: {}.",
    "If it was normalised, undo that: values * std + mean.",
)
def test_floats_that_are_no_image(tmp_path):
    expected = np.asarray(to_image(FLOATS, "x").image)
    for values, advice, undone in (
        (FLOATS * 255, "Divide by 255.", lambda values, _: values / 255),
        (FLOATS * 9 + 2, "Scale its range to 0 to 1: (values - 2) / 9.", written),
        ((FLOATS - 0.5) / 0.2, "values * std + mean.", lambda v, _: v * np.float32(0.2) + 0.5),
        (FLOATS - 99, "Scale it to 0 to 1.", lambda values, _: values + 99),
    ):
        said = refused(advice, lambda values=values: to_image(values, "x"))
        found = np.asarray(to_image(undone(values, said), "x").image)
        assert np.abs(found.astype(int) - expected).max() <= 1


def written(values: np.ndarray, said: str) -> np.ndarray:
    formula = re.findall(r"\(values - .*\) / [\d.]*\d", said)[0]
    return eval(formula, {"__builtins__": {}}, {"values": values})


@takes(
    "Give a folder, the id of a downloaded repository, or 'demo'.",
    "Download it and give its folder; {} has the same sizes in bfloat16, which is what it takes "
    "where FP8 is restored.",
    "Did you mean {}?",
    "It is one of {}.",
    "For its values write {}.values().",
    "It is {}.",
)
def test_what_is_given_in_python(tmp_path, loaded, monkeypatch):
    place = "Give a folder, the id of a downloaded repository, or 'demo'."
    refused(place, lambda: resolve(str(tmp_path / "q/w")))
    hub = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    snapshot = hub / "models--me--tiny/snapshots/1"
    shutil.copytree(golden.CHECKPOINT, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("1")
    for name in (golden.CHECKPOINT, "me/tiny", "demo"):
        assert resolve(name).tensors
    said = refused("has the same sizes in bfloat16", lambda: architecture("zai-org/GLM-4.5V-FP8"))
    assert "Download it and give its folder" in said
    assert architecture(re.findall(r"folder; (\S+) has", said)[0]).shape()
    said = refused("Did you mean ", lambda: architecture("GLM-4V-9"))
    assert architecture(re.findall(r"Did you mean ([\w.-]+)", said)[0]).shape()
    said = refused("It is one of ", lambda: loaded.load(golden.CHECKPOINT, max_tokens=2))
    methods = re.findall(r"It is one of (.*)\.$", said)[0].split(", ")
    assert "ask" in methods
    assert loaded.ask("What?", max_tokens=2, temperature=0).usage.new_tokens
    assert {"max_tokens"} <= set.intersection(
        *({*inspect.signature(getattr(loaded, each)).parameters} for each in methods)
    )
    values = {"a": "red", "b": "blue"}
    said = refused("For its values write values.values().", lambda: items_of(values, "values"))
    assert items_of(values.values(), "values").values
    gpus = parse_gpus("4x24GiB")
    demo = architecture("demo")
    less = {"max_memory": (8.0, 24.0, 24.0, 24.0)}
    for way, advice, options in (
        (
            "sequential",
            'Leave device_map out, and take objective="fewest".',
            {"objective": "fewest"},
        ),
        ("balanced_low_0", "Leave device_map out, and give GPU 0 less by max_memory.", less),
    ):
        with pytest.raises(Glm4vError) as caught:
            decide(demo, PlacementOptions(), gpus, way)
        assert str(caught.value).endswith(advice)
        assert decide(demo, PlacementOptions(**options), gpus).device_map
    said = refused("It is ", lambda: VirtualGPUs("1x1GiB", values="some"))
    for choice in re.findall(r"'(\w+)'", said.rpartition("It is ")[2]):
        assert VirtualGPUs("1x1GiB", values=choice)


@takes("Download or write it again.", "Download this file again.")
def test_files_that_are_whole_again(tmp_path):
    whole = write_clip(tmp_path / "a.mp4")
    damaged = shutil.copy(whole, tmp_path / "b.mp4")
    os.truncate(damaged, 900)
    refused("Download or write it again.", lambda: to_video(str(damaged), "x").count)
    assert to_video(str(shutil.copy(whole, damaged)), "x").count
    folder = shutil.copytree(golden.CHECKPOINT, tmp_path / "c")
    session, file = Session(), "model.safetensors"

    def cut_while_it_is_read():
        for event in session.stream_load(folder):
            if isinstance(event, Loading) and event.progress.total_bytes:
                os.truncate(folder / file, 1000)

    refused("Download this file again.", cut_while_it_is_read)
    shutil.copy(golden.CHECKPOINT / file, folder)
    assert session.load(folder).ask("What?", **GREEDY).usage.new_tokens
    session.unload()


CODE = "Name the folder that GLM-4V-9B was downloaded to, with its own code."


@takes(
    CODE,
    "Name the folder that the checkpoint was downloaded to, with its own code.",
    "Is this the code of GLM-4V-9B?",
    "Download the file again.",
    SHUT,
)
def test_the_published_code_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "code"
    folder.mkdir()
    refused(CODE, lambda: plan_patch(folder))
    for name in ("visual.py", "modeling_chatglm.py"):
        shutil.copy(splits.FOLDER / name, folder)
    assert plan_patch(folder).files
    downloaded = "Name the folder that the checkpoint was downloaded to, with its own code."
    refused(downloaded, lambda: code_folders("me/not-here"))
    assert code_folders(str(folder))
    for content, advice in (
        ("x = 1\n", "Is this the code of GLM-4V-9B?"),
        ("def (:\n", "Download the file again."),
    ):
        (folder / "visual.py").write_text(content)
        refused(advice, lambda: plan_patch(folder))
        shutil.copy(splits.FOLDER / "visual.py", folder)
        assert plan_patch(folder).files
    with tempfile.TemporaryDirectory() as name:  # where others may go
        shut = Path(name) / "shut"
        shutil.copytree(folder, shut)
        os.chmod(name, 0o755)
        is_root = os.geteuid() == 0
        for mode, is_open in ((0o700 if is_root else 0o000, False), (0o755, True)):
            shut.chmod(mode)
            try:
                os.seteuid(65534 if is_root else os.geteuid())
                if is_open:
                    assert plan_patch(shut).files
                else:
                    refused(SHUT, lambda: plan_patch(shut))
            finally:
                os.seteuid(os.getuid())


def test_another_engine_is_installed_or_its_line_printed(run, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    line = "%glm4v serve GLM-4V-9B --engine vllm --gpus 1x40GiB"
    said = run(line, fails=True)
    (option,) = re.findall(r"For another machine: (--print)\.", said)
    assert "vllm serve" in run(f"{line} {option}")


DEMO = architecture("demo")
PLACED = PlacementOptions(), parse_gpus("1x8GiB")
WITHIN: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "put it into a list.": (lambda: items_of(SQUARE, "x"), lambda: items_of([SQUARE], "x")),
    "use cpu": (
        lambda: decide(DEMO, *PLACED, {"": "disk"}), lambda: decide(DEMO, *PLACED, {"": "cpu"})),
    "of frames, give those you mean.": (
        lambda: to_video([SQUARE] * 3, "x", start=1), lambda: to_video(([SQUARE] * 3)[1:], "x")),
}  # fmt: skip


@pytest.mark.parametrize("advice", WITHIN)
def test_what_is_advised_before_the_end_of_a_message(advice):
    bad, good = WITHIN[advice]
    with pytest.raises(Exception, match=re.escape(advice)):
        bad()
    good()


def test_from_two_settings_on_are_compared(loaded):
    refused("give from 2 to", lambda: loaded.compare("What?", settings=[{}], **GREEDY))
    found = loaded.compare("What?", settings=[{}, {"seed": 1}], **GREEDY)
    assert all(each.done for each in found.columns)
