"""Advice about questions, clips, forms, servers and checkpoints: each is followed, and works."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import re
import shutil
import socket
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import tiny_native
import torch
from advice import refused, takes
from clips import write_clip
from image_server import Server
from PIL import Image
from safetensors.torch import load_file, save_file
from scripted_engine import ScriptedEngine
from scripted_server import CHAT, END, MODELS, models, piece, scripted_server, stream
from served import ask as ask_server
from served import question, send, serving, uri
from standins import eva2clip_splits as splits

import glm4v_magic
from glm4v_magic.calls.forms import check_schema
from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import BusyError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.image import Limits
from glm4v_magic.core.options import OPTIONS
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.doctor import diagnose, gather
from glm4v_magic.images import resolve_images, to_image
from glm4v_magic.images.video import from_data, to_video
from glm4v_magic.mapping.items import files_of, items_of
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.plan import plan
from glm4v_magic.remote_code.source_patch import plan_patch, write_patch
from glm4v_magic.server import worker
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs, alone

GREEDY = {"temperature": 0, "max_tokens": 4}
SQUARE = np.zeros((56, 56, 3), np.uint8)


@pytest.fixture(scope="module")
def demo():
    session = Session().load("demo")
    yield session
    session.unload()


@pytest.fixture(scope="module")
def tiny():
    session = Session().load(golden.CHECKPOINT)
    yield session
    session.unload()


@pytest.fixture(scope="module")
def newer(native):
    """A model that takes video."""
    session = Session().load(native("glm46v"))
    yield session
    session.unload()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(write_clip(tmp_path_factory.mktemp("clip") / "a.mp4"))


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lasting")
    return str(write_clip(folder / "b.mp4", count=200, size=(256, 192)))


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny.engine) as opened:
        yield opened


JOIN = "Ask about them one after the other, or join them into one image."
SIDE_BY_SIDE = "Ask about one image at a time, or put them side by side into one."


@takes(JOIN, "Write what you want to know about the image.", "Ask the next question.")
def test_questions(tiny):
    two = [SQUARE, SQUARE + 9]
    refused(JOIN, lambda: tiny.ask("What?", images=two, **GREEDY))
    for images in ([two[0]], [two[1]], [np.hstack(two)]):
        assert tiny.ask("What?", images=images, **GREEDY).usage.new_tokens
    refused(
        "Write what you want to know about the image.",
        lambda: tiny.ask(" ", images=[SQUARE], **GREEDY),
    )
    tiny.ask("What?", images=[SQUARE], choices=["red", "blue"], temperature=0)
    refused("Ask the next question.", lambda: tiny.carry_on())
    assert tiny.ask("And?", follow_up=True, **GREEDY).usage.new_tokens


AGAIN = "Ask again, and inspect that answer."
BY_ITSELF = "Ask the question by itself, and inspect that answer."
OCCLUSION = "Ask for the occlusion instead, which needs none."
OF_A_SERVER = "Ask with log-probabilities, or load the model in this process."


@takes(
    AGAIN, BY_ITSELF, OCCLUSION, OF_A_SERVER, "Load it without replicas.", "Ask the question again."
)
def test_looking_into_a_model(tmp_path, monkeypatch):
    session = Session().load("demo")
    answer = session.ask("What?", SQUARE, max_tokens=2)
    refused(AGAIN, replace(answer, finish_reason="interrupted").inspect)
    (row,) = session.map("What?", [SQUARE], max_tokens=2)
    refused(BY_ITSELF, row.answer.inspect)
    look = answer.inspect()
    info = replace(session.engine.info, quantize="4bit")
    with monkeypatch.context() as patched:
        patched.setattr(type(session.engine), "info", info)
        refused(OCCLUSION, lambda: look.gradient(0))
        assert look.occlusion_of(0, [(0, 0, 9, 9)]).values.shape == (1,)
    session.import_chat(session.export_chat(tmp_path / "chat.json"), "read")
    refused("Ask the question again.", lambda: session.inspect("read"))
    session.ask("What?", chat="read", max_tokens=2)
    assert session.inspect("read").tokens
    for server, advice in ((None, "Load it without replicas."), ("http://x/v1", OF_A_SERVER)):
        engine = ScriptedEngine()
        engine.info = replace(engine.info, server=server)
        elsewhere = Session(engine)
        refused(advice, elsewhere.ask("What?").inspect)
    session.unload()
    refused(AGAIN, answer.inspect)
    assert session.ask("What?", SQUARE, max_tokens=2).inspect().tokens


ROWS = [{"q": "a", "label": "yes", "none": None}, {"q": "b", "label": "no", "none": None}]
ANSWERS = "Name the column with the answers that are expected."
CHOICES = "Add them to the choices, or leave these rows out."
TEXTS = "Give texts or numbers."
TABLES = "Give a DataFrame, another table, or a list of dictionaries."


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError("unreadable")


@takes(ANSWERS, CHOICES, TEXTS, TABLES)
def test_evaluations(tiny):
    def evaluate(rows=ROWS, answer="label", choices=("yes", "no")):
        found = tiny.evaluate(rows, "{{row.q}}?", answer=answer, choices=list(choices))
        assert found.score.rows == len(rows)

    refused(ANSWERS, lambda: evaluate(answer="none"))
    refused(CHOICES, lambda: evaluate(choices=("yes", "maybe")))
    refused(TEXTS, lambda: evaluate([{"q": "a", "label": Unreadable()}]))
    refused(TABLES, lambda: evaluate(["a", "b"]))
    evaluate()
    evaluate(ROWS[:1], choices=("yes", "maybe"))


COMPARED = 'For example ["demo", {"model": "demo", "temperature": 1}].'


@takes(COMPARED)
def test_comparisons():
    session = Session().load("demo")
    refused(COMPARED, lambda: session.compare("What?", settings="demo", max_tokens=1))
    settings = ["demo", {"model": "demo", "temperature": 1}]
    assert all(each.done for each in session.compare("?", settings=settings, max_tokens=1).columns)


@takes(
    "Load one: session.load().",
    "Keep what you read there with .save().",
    "Read the answer after a block that lets the model end.",
    "Take other.inspect().",
)
def test_traces_and_inspections_of_two():
    pytest.importorskip("nnsight")
    session = Session()
    refused("Load one: session.load().", lambda: session.trace("What?"))
    session.load("demo")
    with session.trace("What?", SQUARE, max_tokens=1) as trace:
        refused("Read the answer after a block that lets the model end.", lambda: trace.answer)
        kept = trace.layers[0].output.save()
    refused("Keep what you read there with .save().", lambda: trace.layers)
    assert kept.ndim == 3
    look, other = trace.answer, session.ask("And?", SQUARE, max_tokens=1)
    refused("Take other.inspect().", lambda: other.inspect().against(look))
    other.inspect().against(session.ask("What?", SQUARE, max_tokens=1).inspect())


@takes("Choose another method.")
def test_the_frames_of_a_clip_looked_at():
    session = Session().load("demo-4.6v")
    clip = np.stack([SQUARE, SQUARE + 9])
    look = session.ask("What moves?", video=clip, fps=2, max_tokens=1).inspect()
    refused("Choose another method.", lambda: look.on_image(0, 0, method="occlusion"))
    assert look.on_image(0, 0, method="rollout").values.shape


@takes(SIDE_BY_SIDE)
def test_images_of_the_processor(tiny):
    from glm4v_magic.core.conversation import Conversation, Message

    processor = tiny.engine.processor
    two = [to_image(SQUARE, "a"), to_image(SQUARE, "b")]

    def encoded(*images):
        return processor.encode(Conversation((Message("user", "What?", images),)))

    refused(SIDE_BY_SIDE, lambda: encoded(*two))
    for images in ([two[0]], [to_image(np.hstack([SQUARE, SQUARE]), "both")]):
        assert encoded(*images)


FRAMES = "Ask about single frames of it, as images."
FEWER = "Give fewer of its frames."
PART = "Ask about a part of it, or about fewer frames per second."
DOWNLOAD = "Download it, and give the path of the file."
CLIP = (
    "Give the path of a clip, a list of frames, or an array of frames x height x width x channels."
)
"""As the sentence is found; the code writes it in two pieces."""


@takes(FRAMES, DOWNLOAD, "Choose some of them.", CLIP, "Read it again.", PART, FEWER)
def test_clips(tiny, newer, clip, lasting):
    refused(FRAMES, lambda: tiny.ask("What?", video=clip, **GREEDY))
    for frame in to_video(clip, "clip").frames([0, 9], (56, 56)):
        assert tiny.ask("What?", images=[frame.image.image], **GREEDY).usage.new_tokens
    refused(DOWNLOAD, lambda: to_video("https://example.com/clip.mp4", "x"))
    refused(CLIP, lambda: to_video(5, "x"))
    for given in (clip, [SQUARE, SQUARE], np.stack([SQUARE, SQUARE])):
        assert to_video(given, "x").count
    many = [SQUARE[:1, :1]] * 2001
    refused("Choose some of them.", lambda: to_video(many, "x"))
    assert to_video(many[::2], "x").count == 1001
    copied = pickle.loads(pickle.dumps(to_video(clip, "clip")))
    refused("Read it again.", lambda: list(copied.frames([0], (56, 56))))
    assert list(to_video(clip, "clip").frames([0], (56, 56)))
    long = [np.zeros((224, 224, 3), np.uint8)] * 400
    refused(FEWER, lambda: newer.ask("What?", video=long, **GREEDY))
    assert newer.ask("What?", video=long[::50], **GREEDY).usage.new_tokens
    refused(PART, lambda: newer.ask("What?", video=lasting, fps=10, **GREEDY))
    for fewer in ({"fps": 0.5}, {"fps": 10, "start": 1, "end": 2}):
        assert newer.ask("What?", video=lasting, **fewer, **GREEDY).usage.new_tokens


@takes("Ask about it first.", "Give a name to the one that comes, or forget the one that is there.")
def test_chats(newer, tmp_path):
    first = newer.ask("What?", images=[SQUARE], chat="cats", **GREEDY)
    file = newer.export_chat(tmp_path / "cats.json", "cats")
    newer.ask("And?", chat="cats", follow_up=True, **GREEDY)
    advice = "Give a name to the one that comes, or forget the one that is there."
    refused(advice, lambda: newer.import_chat(file))
    assert newer.import_chat(file, "others") == "others"
    newer.reset("cats")
    assert newer.import_chat(file) == "cats"
    assert newer.chats["cats"].messages[-1].text == first.text


@takes(
    'For example: {"type": "object", "required": ["colour"]}.',
    "Put it under $defs.",
    'Let it end, for example with {"type": "null"} beside it, or minItems 0.',
)
def test_schemas():
    example = 'For example: {"type": "object", "required": ["colour"]}.'
    said = refused(example, lambda: check_schema(5))
    check_schema(json.loads(said.partition("For example: ")[2][:-1]))
    ends = 'Let it end, for example with {"type": "null"} beside it, or minItems 0.'
    own: dict[str, Any] = {"$ref": "#"}
    refused(
        ends, lambda: check_schema({"type": "object", "required": ["a"], "properties": {"a": own}})
    )
    beside = {"anyOf": [own, {"type": "null"}]}
    check_schema({"type": "object", "required": ["a"], "properties": {"a": beside}})
    listed = {"type": "array", "items": own}
    refused(ends, lambda: check_schema(listed | {"minItems": 1}))
    check_schema(listed | {"minItems": 0})


@takes(
    "Config and weights do not belong together.",
    "Save it in bfloat16, or take the original checkpoint.",
    "Config and weights do not belong together, or a shard is not in the index.",
    "Known are {}.",
    "Nothing else is read from such a file: save the model as safetensors.",
)
def test_checkpoints(tmp_path, native):
    folder = shutil.copytree(golden.CHECKPOINT, tmp_path / "c")
    config, weights = folder / "config.json", folder / "model.safetensors"
    right = json.loads(config.read_text())
    for layers, advice in (
        (right["num_layers"] - 1, "Config and weights do not belong together."),
        (
            right["num_layers"] + 1,
            "Config and weights do not belong together, or a shard is not in the index.",
        ),
    ):
        config.write_text(json.dumps(right | {"num_layers": layers}))
        refused(advice, lambda: resolve(folder))
    config.write_text(json.dumps(right))
    assert resolve(folder).tensors
    config.write_text(json.dumps(right | {"model_type": "llama"}))
    said = refused("Known are {}.", lambda: resolve(folder))
    kinds = re.sub(r" \(.*?\)", "", said.partition("Known are ")[2].rstrip(".")).split(", ")
    assert {*kinds} == {"chatglm", *tiny_native.KINDS}  # each is loaded by a test
    config.write_text(json.dumps(right))
    tensors = load_file(weights)
    weights.unlink()
    torch.save({"model": tensors, "code": Path}, folder / "pytorch_model.bin")
    pickled = "Nothing else is read from such a file: save the model as safetensors."
    refused(pickled, lambda: resolve(folder))
    (folder / "pytorch_model.bin").unlink()
    save_file(tensors, weights, metadata={"format": "pt"})
    assert resolve(folder).tensors
    newer = shutil.copytree(native("glm46v"), tmp_path / "n")
    full = load_file(newer / "model.safetensors")
    for dtype, is_read in ((torch.int16, False), (torch.bfloat16, True)):
        held = {name: each.to(dtype) for name, each in full.items()}
        save_file(held, newer / "model.safetensors", metadata={"format": "pt"})
        if is_read:
            assert resolve(newer).tensors
        else:
            refused("Save it in bfloat16, or take the original checkpoint.", lambda: resolve(newer))


NARROW = "Crop it, or load the model with a larger image_size."


@takes(NARROW, "Crop it.")
def test_images_of_odd_proportions(native):
    long = np.zeros((14, 14 * 150, 3), np.uint8)
    session = Session().load(native("glm46v"), image_size=84)
    refused(NARROW, lambda: session.ask("What?", images=[long], **GREEDY))
    assert session.ask("What?", images=[long[:, :28]], **GREEDY).usage.new_tokens
    session.load(native("glm46v"), image_size=2000)
    assert session.ask("What?", images=[long], **GREEDY).usage.new_tokens
    longer = np.zeros((14, 14 * 300, 3), np.uint8)
    refused("Crop it.", lambda: session.ask("What?", images=[longer], **GREEDY))
    assert session.ask("What?", images=[longer[:, : 14 * 100]], **GREEDY).usage.new_tokens
    session.unload()


@takes(
    "Ask it a question in your own words.",
    "Name one, before the task.",
    'For example: {"name": "", "items": [""]}',
    'Write the JSON to fill in as the question, {"name": ""}, or give a schema of it.',
)
def test_tasks(tiny, native):
    own_words = "Ask it a question in your own words."
    refused(own_words, lambda: tiny.ask("", images=[SQUARE], task="text", **GREEDY))
    assert tiny.ask("Read the text.", images=[SQUARE], **GREEDY).usage.new_tokens
    session = Session().load(native("glm_ocr"))

    def ask(text="", images=(SQUARE,), task="extract", **options):
        stream = session.stream(text, images=list(images), task=task, **options, **GREEDY)
        started = next(stream)
        stream.close()
        return started

    refused("Name one, before the task.", lambda: ask(images=(), task="text"))
    assert ask(task="text")
    example = 'For example: {"name": "", "items": [""]}'
    refused(example, lambda: ask("name"))
    said = refused(example, lambda: ask("[]"))
    assert ask(said.partition("For example: ")[2])
    refused('Write the JSON to fill in as the question, {"name": ""}, or give a schema of it.', ask)
    assert ask('{"name": ""}')
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    assert ask(schema=schema)
    session.unload()


PUBLIC = "Such URLs are not fetched; save the image and give its path."


@takes(
    "Make it smaller first: a model sees little more than one megapixel.",
    "Make it smaller first, or save it as JPEG or PNG.",
    "Make them smaller first: a model sees little more than one megapixel of each.",
    "Folders are separated by / here: {}",
    PUBLIC,
    "Give its path: {}",
    "Copy one first.",
    "Write data:{};base64,...",
    "Choose a file first.",
    "The current one is called '.'.",
    "An image is a file such as *.png or *.jpg, a clip one such as *.mp4.",
)
def test_images(tmp_path, monkeypatch):
    from ipywidgets import FileUpload

    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.fromarray(SQUARE).save("photos/a.png")
    small = Limits(megapixels=0.001)
    one = "Make it smaller first: a model sees little more than one megapixel."
    refused(one, lambda: to_image(SQUARE, "x", limits=small))
    assert to_image(SQUARE[:20, :20], "x", limits=small)
    large = Limits(megapixels=0.004)
    Path("large").mkdir()
    Image.fromarray(SQUARE).save("large/a.jp2")
    monkeypatch.setattr("glm4v_magic.images.decode.LITTLE", 0)  # or no small file is refused
    refused(
        "Make it smaller first, or save it as JPEG or PNG.",
        lambda: to_image("large/a.jp2", "x", limits=large),
    )
    for side, kind in ((40, "jp2"), (56, "jpg"), (56, "png")):
        Image.fromarray(SQUARE[:side, :side]).save(f"large/b.{kind}")
        assert to_image(f"large/b.{kind}", "x", limits=large)
    said = refused(
        "Folders are separated by / here: {}", lambda: resolve_images(["photos\\a.png"], {})
    )
    assert resolve_images([said.rpartition("here: ")[2]], {})
    refused(PUBLIC, lambda: resolve_images(["http://127.0.0.1:9/a.png"], {}))
    assert resolve_images(["photos/a.png"], {})
    address = (tmp_path / "photos/a.png").as_uri()
    said = refused("Give its path: {}", lambda: resolve_images([address], {}))
    assert resolve_images([said.rpartition("path: ")[2]], {})
    comma = "Write data:{};base64,..."
    refused(comma, lambda: resolve_images(["data:image/png;base64"], {}))
    assert resolve_images([uri(Image.fromarray(SQUARE))], {})
    upload = FileUpload()
    refused("Choose a file first.", lambda: resolve_images(["upload"], {"upload": upload}))
    content = Path("photos/a.png").read_bytes()
    upload.value = (
        {
            "name": "a.png",
            "type": "image/png",
            "size": len(content),
            "content": memoryview(content),
            "last_modified": datetime.now(UTC),
        },
    )
    assert resolve_images(["upload"], {"upload": upload})
    from PIL import ImageGrab

    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: None)  # the edge: a desktop
    refused("Copy one first.", lambda: resolve_images(["clipboard"], {}))
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: Image.fromarray(SQUARE))
    assert resolve_images(["clipboard"], {})
    refused("The current one is called '.'.", lambda: files_of(""))
    kinds = "An image is a file such as *.png or *.jpg, a clip one such as *.mp4."
    refused(kinds, lambda: files_of("."))
    for name in ("photos/a.png", "photos/a.jpg"):
        Image.fromarray(SQUARE).save(name)
    monkeypatch.chdir("photos")
    assert len(files_of(".").values) == 2


ITEMS = (
    "Give a list of images or values, a folder, a pattern such as photos/*.png, a pandas Series, "
    "or a column such as df.image."
)


@takes(ITEMS, "Write {{item}} where each of them goes.")
def test_items(tiny, tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.fromarray(SQUARE).save("photos/a.png")
    refused(ITEMS, lambda: items_of(5, "x"))
    column = pandas.Series([SQUARE, SQUARE])
    for given in (
        [SQUARE],
        ["a", "b"],
        "photos",
        "photos/*.png",
        column,
        pandas.DataFrame({"image": column}).image,
    ):
        assert items_of(given, "x").values
    numbers = "Write {{item}} where each of them goes."
    refused(numbers, lambda: tiny.map("What?", [1, 2], **GREEDY))
    assert len(tiny.map("What is {{item}}?", [1, 2], **GREEDY)) == 2


@takes("There are {}.")
def test_options_that_are_listed_are_taken():
    said = refused("There are {}.", lambda: glm4v_magic.load(golden.CHECKPOINT, nosuch=1))
    listed = said.partition("There are ")[2].rstrip(".").split(", ")
    usual = {name: OPTIONS[name].default for name in listed if name in OPTIONS}
    assert len(usual) > 15
    glm4v_magic.load(golden.CHECKPOINT, **usual).unload()


BUSY = "Wait for it to end, interrupt it, or close its stream."


@takes(BUSY, "Check when it has finished.")
def test_what_is_at_work(run, shell, talkative):
    run(f"%glm4v load {talkative}")
    session = shell.magics_manager.registry["Glm4vMagics"].context.session
    stream = session.stream("What?", temperature=0, max_tokens=5000)
    next(stream)
    said = run("%glm4v check --gpus 1x1GiB", fails=True)
    assert "Check when it has finished." in said
    with pytest.raises(BusyError, match=re.escape(BUSY)):
        session.ask("What?", **GREEDY)
    stream.close()
    assert session.ask("What?", **GREEDY).usage.new_tokens
    run("%glm4v check --gpus 1x1GiB")
    run("%glm4v unload")


@takes("Ask again instead.")
def test_an_answer_that_was_begun_is_asked_again(talkative):
    session = Session().load(talkative)
    session.ask("What?", **GREEDY)
    assert session.conversation().unfinished is not None
    refused("Ask again instead.", lambda: session.carry_on(choices=["red", "blue"]))
    assert session.ask("What?", choices=["red", "blue"]).text in ("red", "blue")
    session.unload()


@takes(
    "The address of an OpenAI-compatible API usually ends in /v1.",
    "It can be loaded and asked; for anything else name a checkpoint, or load one.",
)
def test_addresses(server, tiny):
    at = f"http://127.0.0.1:{server.port}"
    refused(
        "The address of an OpenAI-compatible API usually ends in /v1.",
        lambda: Session().load(f"{at}/api", served_model="tiny").ask("What?", **GREEDY),
    )
    session = Session().load(f"{at}/v1")
    assert session.ask("What?", **GREEDY).usage.new_tokens
    advice = "It can be loaded and asked; for anything else name a checkpoint, or load one."
    refused(advice, lambda: architecture(f"{at}/v1"))
    assert architecture("GLM-4V-9B").shape()


@takes("Start it, or check host and port.")
def test_a_server_that_is_started_then(tiny):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    session = Session()
    load = partial(session.load, f"http://127.0.0.1:{port}/v1")
    refused("Start it, or check host and port.", load)
    with serving(tiny.engine, port=port):
        assert load().status().info.model == "tiny"


def test_a_prompt_that_is_too_long(tiny):
    advice, half = (
        "Shorten it, or start a new conversation.",
        "a " * (tiny.status().info.context // 3),
    )
    refused(advice, lambda: tiny.ask(3 * half, **GREEDY))
    assert tiny.ask(half, chat="long", **GREEDY).usage.new_tokens
    follow_up = partial(tiny.ask, 2 * half, follow_up=True, **GREEDY)
    refused(advice, partial(follow_up, chat="long"))
    assert tiny.ask(2 * half, chat="new", **GREEDY).usage.new_tokens


@takes(
    "This is {}.",
    "It takes {}.",
    "This server fetches nothing; send the {} itself.",
    "It must be the user's question, or with continue_final_message an answer to go on with.",
    "Ask again later.",
)
def test_requests_to_our_server(server, monkeypatch):
    def said(body, status=400):
        found, answer = ask_server(server, body)
        assert found == status, answer
        return answer["error"]["message"] if status != 200 else answer

    _, answer = send(server, "GET", "/v1/models/other")
    name = re.search(r"This is (\w+)\.", answer["error"]["message"])[1]
    assert send(server, "GET", f"/v1/models/{name}")[0] == 200
    listed = said(question(zeal=1)).partition("It takes ")[2].rstrip(".").split(", ")
    listed = [name for name in listed if "..." not in name]  # a long line is cut in its middle
    said(dict.fromkeys(listed) | question(), 200)
    message = {
        "role": "user",
        "content": [
            {"type": "text", "text": "What?"},
            {"type": "image_url", "image_url": {"url": "a.png"}},
        ],
    }
    assert "send the image itself" in said(question(messages=[message]))
    message["content"][1]["image_url"]["url"] = uri(Image.fromarray(SQUARE))
    said(question(messages=[message]), 200)
    begun = [question()["messages"][0], {"role": "assistant", "content": "It is"}]
    assert "It must be the user's question, or with" in said(question(messages=begun))
    for more in ({"continue_final_message": True, "add_generation_prompt": False},):
        said(question(messages=begun, **more), 200)
    said(question(messages=[*begun, begun[0]]), 200)
    monkeypatch.setattr(worker, "MOST_REQUESTS", 0)
    assert "Ask again later." in said(question(), 429)
    monkeypatch.undo()
    said(question(), 200)


@takes("Load a local folder, or what is in the hub's cache: neither needs a network.")
def test_what_needs_no_network(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    facts = gather(hub=True)
    (found,) = (each for each in diagnose(facts) if each.subject == "hub")
    assert found.next_step.startswith("Load a local folder, or what is in the hub's cache")
    assert resolve(golden.CHECKPOINT).tensors


@takes('Use VirtualGPUs(..., values="none") for it.')
def test_a_model_without_data():
    model = architecture(golden.CHECKPOINT).build_meta("float32")
    with VirtualGPUs("1x1GiB") as gpus:
        refused('Use VirtualGPUs(..., values="none") for it.', lambda: gpus.without_data(model))
    with VirtualGPUs("1x1GiB", values="none") as gpus:
        gpus.without_data(model)


AS_CELLS = {
    "Leave it out; --json FILE writes the table.": (
        "%glm4v plan GLM-4V-9B --machines --gpus 1x80GiB",
        "%glm4v plan GLM-4V-9B --machines",
    ),
    "A cell begins with images; write ./{} for a file of that name.": (
        "%%glm4v plan --preview\nWhat?",
        "%%glm4v ./plan --preview\nWhat?",
    ),
    "Write the question below the first line of the cell. On one line, with one "
    'percent sign: %glm4v ask cat.png "What is the cat doing?"': (
        "%%glm4v cat.png --preview\n",
        "%%glm4v cat.png --preview\nWhat is the cat doing?",
    ),
}


@takes(*AS_CELLS)
@pytest.mark.parametrize("advice", AS_CELLS)
def test_cells(run, tmp_path, advice):
    for name in ("plan", "cat.png"):
        Image.fromarray(SQUARE).save(tmp_path / name, "PNG")
    bad, good = AS_CELLS[advice]
    said = run(bad, fails=True)
    assert all(part in said for part in advice.split("{}")), said
    run(good)


UNFINISHED = "To carry on an unfinished answer: %glm4v continue."
SHOWN = "%glm4v status shows the map, %glm4v memory what is on the GPUs."
NAMED = "Name a model to plan it here: %glm4v devices GLM-4V-9B."


@takes(UNFINISHED, SHOWN, NAMED)
def test_cells_with_a_model(run, server):
    with VirtualGPUs("2x1GiB"):
        run(f"%glm4v load {golden.CHECKPOINT} --map '{json.dumps({'model': 0, 'lm_head': 1})}'")
        run('%glm4v ask "What?" --temperature 0 --max-tokens 2')
        assert UNFINISHED in run("%%glm4v --continue\n", fails=True)
        run("%glm4v continue --max-tokens 2")
        assert SHOWN in run("%glm4v devices", fails=True)
        assert "lm_head" in run("%glm4v status")
        assert "cuda:1" in run("%glm4v memory")
        run("%glm4v unload")
    run(f"%glm4v load http://127.0.0.1:{server.port}/v1")
    assert NAMED in run("%glm4v devices", fails=True)
    run("%glm4v devices GLM-4V-9B --gpus 1x80GiB")
    run("%glm4v unload")


NO_VIDEO = "Leave it out, or ask about values of which none is a video."
OTHER = "Ask about the other in a follow-up."


@takes(NO_VIDEO, OTHER)
def test_cells_with_clips(run, native, clip, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(clip, tmp_path / name)
    run(f"%glm4v load {native('glm46v')}")
    end = "--temperature 0 --max-tokens 2 --fps 1\nWhat?"
    assert OTHER in run(f"%%glm4v a.mp4 b.mp4 {end}", fails=True)
    run(f"%%glm4v a.mp4 {end}")
    run(f"%%glm4v --continue b.mp4 {end}")
    assert NO_VIDEO in run(f"%%glm4v a.mp4 --over *.mp4 {end}", fails=True)
    run(f"%%glm4v --over *.mp4 {end}")
    run("values = [1, 2]")
    run(f"%%glm4v a.mp4 --over values {end} {{{{item}}}}")
    run("%glm4v unload")


PAGE = "Give the address of the image itself, not of a page that shows it."
TOGETHER = "Make them smaller first: a model sees little more than one megapixel of each."


@takes(PAGE, TOGETHER)
def test_images_of_the_web_and_many(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    content = to_png(SQUARE)
    there, limits = Server(), Limits(allow_private=True)
    try:
        there.answer("/page", b"<html></html>", kind="text/html")
        there.answer("/a.png", content)
        refused(PAGE, lambda: resolve_images([f"{there.url}/page"], {}, limits=limits))
        assert resolve_images([f"{there.url}/a.png"], {}, limits=limits)
    finally:
        there.close()
    few = Limits(total_megapixels=0.005)
    refused(TOGETHER, lambda: resolve_images(["a"], {"a": [SQUARE, SQUARE]}, limits=few))
    assert resolve_images(["a"], {"a": [SQUARE[::2], SQUARE[::2]]}, limits=few)


FENCED = "Ask for code in a fenced block."
WHICH = "Say in the question which JSON you want."


@takes(FENCED, WHICH)
def test_forms_of_a_server_that_follows_the_question():
    with scripted_server() as server:
        server.answer(MODELS, models("m"))
        session = Session().load(server.url)
        for form, advice, answer in (
            ("json", WHICH, '{"colour": "red"}'),
            ("code", FENCED, "```python\nprint(1)\n```"),
        ):
            server.answer(CHAT, stream(piece("Well."), END))
            refused(advice, lambda form=form: session.ask("What?", format=form))
            server.answer(CHAT, stream(piece(answer), END))
            assert session.ask("Write it so.", format=form).value


PUBLISHED = "Use the file as published with GLM-4V-9B, or load the model with this package."
COPY = "Copy the folder to a place of your own and patch the copy."


@takes(PUBLISHED, COPY)
def test_code_of_others(tmp_path):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = (splits.FOLDER / "visual.py").read_text()
        (folder / "visual.py").write_text(text.replace("tokens + seen", "torch.add(tokens, seen)"))
        shutil.copy(splits.FOLDER / "modeling_chatglm.py", folder)
        refused(PUBLISHED, lambda: plan_patch(folder))
        shutil.copy(splits.FOLDER / "visual.py", folder)
        assert resolve(golden.CHECKPOINT).tensors
        (folder / "visual.py").chmod(0o444)
        folder.chmod(0o555)
        is_root = os.geteuid() == 0
        patch = plan_patch(folder)
        try:
            os.seteuid(65534 if is_root else os.geteuid())
            refused(COPY, lambda: write_patch(patch))
        finally:
            os.seteuid(os.getuid())
            folder.chmod(0o755)
        copy = shutil.copytree(folder, tmp_path / "copy")
        (copy / "visual.py").chmod(0o644)
        assert write_patch(plan_patch(copy)).files


def to_png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


ALONE = 'Write for example "4x16GiB" or "24+16GiB".'
OF_PLANS = "That of a checkpoint is architecture(NAME), from glm4v_magic.checkpoints.architecture."
SIZES = (
    "The sizes of a checkpoint are architecture(NAME).shape(), from "
    "glm4v_magic.checkpoints.architecture."
)


@takes(ALONE, OF_PLANS, SIZES, "Clips are {}.")
def test_planners_and_clips_in_python(clip):
    with pytest.raises(alone.GPUDescriptionError, match="Write for example") as caught:
        alone.parse_gpus("4x")
    said = str(caught.value)
    assert ALONE in said
    for example in re.findall('"(.+?)"', said.partition("Write")[2]):
        assert alone.parse_gpus(example)
    refused(OF_PLANS, lambda: make_plan("GLM-4V-9B", PlacementOptions(gpus="4x16GiB")))
    refused(SIZES, lambda: plan("GLM-4V-9B", parse_gpus("4x16GiB")))
    known = architecture("GLM-4V-9B")
    assert make_plan(known, PlacementOptions(gpus="4x16GiB")).stages
    assert plan(known.shape(), parse_gpus("4x16GiB")).stages
    content = base64.b64encode(Path(clip).read_bytes()).decode()
    said = refused("Clips are {}.", lambda: from_data(f"data:image/png;base64,{content}", "x"))
    kinds = said.partition("Clips are ")[2].rstrip(".").split(", ")
    assert "video/mp4" in kinds
    assert from_data(f"data:video/mp4;base64,{content}", "x").count


@takes("Leave it out, or send strict as false and check the answer.")
def test_a_strict_schema(server):
    def ask(schema, strict):
        named = {"name": "a", "schema": schema, "strict": strict}
        form = {"type": "json_schema", "json_schema": named}
        return ask_server(server, question(response_format=form, max_tokens=60))

    free: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "boolean"}}}
    whole = free | {"additionalProperties": False, "not": {"const": {}}}
    status, answer = ask(whole, strict=True)
    assert (status, "Leave it out, or send strict as" in answer["error"]["message"]) == (400, True)
    assert ask(free | {"additionalProperties": False}, strict=True)[0] == 200
    assert ask(whole, strict=False)[0] == 200


@takes(
    "Make it first.",
    "Its name ends in .parquet.",
    "Name a file that is to be written.",
    "Move it elsewhere, or give another name.",
    "Give another name, or wait for its end.",
)
def test_rows_that_are_saved(tiny, tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)

    def saved(name):
        return tiny.map("What is {{item}}?", [1, 2], save=name, **GREEDY)

    refused("Make it first.", lambda: saved("no/a.parquet"))
    Path("no").mkdir()
    assert len(saved("no/a.parquet")) == 2
    refused("Its name ends in .parquet.", lambda: saved("a.csv"))
    Path("b.parquet").mkdir()
    refused("Name a file that is to be written.", lambda: saved("b.parquet"))
    parquet.write_table(arrow.table({"a": [1]}), "c.parquet")
    refused("Move it elsewhere, or give another name.", lambda: saved("c.parquet"))
    Path("c.parquet").rename("d.parquet")
    assert len(saved("c.parquet")) == 2
    other = "Give another name, or wait for its end."
    running = tiny.stream_map("What is {{item}}?", [1, 2], save="e.parquet", **GREEDY)
    next(running)
    second = Session().load(golden.CHECKPOINT)
    ask = {"save": "e.parquet", **GREEDY}
    refused(other, lambda: second.map("What is {{item}}?", [1, 2], **ask))
    running.close()
    assert len(second.map("What is {{item}}?", [1, 2], **ask)) == 2
    second.unload()
