"""Advice about chats, tables, folders of images and servers of others: each is followed, and works.

`test_advice` names these tests for the codes that they take.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scripted_server import CHAT, END, MODELS, models, piece, response, scripted_server, stream

from glm4v_magic.core.errors import Glm4vError
from glm4v_magic.core.image import Limits
from glm4v_magic.images import resolve_images
from glm4v_magic.session.session import Session

GREEDY = {"temperature": 0, "max_tokens": 2}
SQUARE = np.zeros((56, 56, 3), np.uint8)


def refused(advice: str, act: Callable[[], Any]) -> str:
    """Return the message of an act, in which the advice is."""
    with pytest.raises(Glm4vError) as caught:
        act()
    said = str(caught.value)
    assert advice in said, said
    return said


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
