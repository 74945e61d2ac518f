"""Interventions with nnsight: states are read and changed in an answer, on any split."""

from __future__ import annotations

import linecache
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from scripted_engine import ScriptedEngine

from glm4v_magic.core.errors import (
    BusyError,
    ConversationError,
    EngineError,
    GenerationInterrupted,
    OptionError,
)
from glm4v_magic.notebook.command_line import parse
from glm4v_magic.notebook.magics import Glm4vMagics
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

pytest.importorskip("nnsight")

PAGE = (Path(__file__).parents[2] / "docs" / "interventions.md").read_text(encoding="utf-8")
QUESTION = "What colour is the circle?"
KINDS = ("demo", "demo-4.6v")


def circle(colour="red"):
    image = Image.new("RGB", (224, 224), "white")
    ImageDraw.Draw(image).ellipse((40, 40, 120, 120), fill=colour)
    return image


@pytest.fixture(scope="module")
def sessions():
    return {kind: Session().load(kind) for kind in KINDS}


def state_of(session):
    """Everything on the modules that a trace could leave behind."""
    return [
        (dict(vars(module)), dict(module._modules), len(module._forward_hooks))
        for module in session.engine.model.modules()
    ]


@pytest.mark.parametrize("by", ["import nnsight", "glm4v_magic.load('demo').trace('?')"])
def test_servers_are_asked_after_nnsight_was_imported(by):
    """In a process of its own: in this one the classes of servers are there already."""
    program = (
        f"import glm4v_magic\n{by}\n"
        "try:\n"
        "    glm4v_magic.load('http://127.0.0.1:9/v1')\n"
        "except glm4v_magic.core.errors.EngineError as error:\n"
        "    assert 'No server answers' in str(error), error\n"
        "assert hasattr(object, 'save')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def interventions(session):
    """What traces read, and what they make of the answer."""
    with session.trace(QUESTION, circle()) as trace:
        hidden = trace.layers[2].output.save()
    plain = trace.answer.text
    with session.trace(QUESTION, circle("blue")) as trace:
        blue = trace.layers[0].input[:, trace.images[0].positions].save()
        trace.stop()
    with session.trace(QUESTION, circle()) as trace:
        trace.layers[0].input[:, trace.images[0].positions] = blue
    patched = trace.answer.text
    with session.trace(QUESTION, circle(), max_tokens=8) as trace:
        trace.layers[1].output[:] = 0
    return hidden.cpu(), plain, patched, trace.answer.text


def test_what_a_cache_has_found_and_the_prompt_are_read_after_the_block(sessions):
    session = sessions["demo"]
    with session.trace(QUESTION, circle(), max_tokens=3) as trace:
        found = trace.cache()
        state = trace.layers[1].output.save()
    of_layer = found.model.model.language_model.layers[1].output
    assert torch.equal(of_layer[0], state)
    assert [each.shape[1] for each in of_layer[1:]] == [1] * (len(of_layer) - 1)
    assert len(trace.prompt) == state.shape[1]
    assert trace.images[0].box(0, 0)[:2] == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_patched_layer_changes_the_answer_alike_on_one_device_and_on_three(sessions, kind):
    session = sessions[kind]
    before = state_of(session)
    hidden, plain, patched, broken = interventions(session)
    assert state_of(session) == before
    look = session.ask(QUESTION, circle()).inspect()
    same = torch.tensor(look.hidden(3).values)[: hidden.shape[1]]
    assert torch.allclose(hidden[0], same, atol=1e-4)
    assert plain == look.answer.text == "The circle is red."
    assert patched == "The circle is blue."
    assert broken not in (plain, patched)
    text, vision = "model.language_model", "vision" if kind == "demo" else "visual"
    spread = {f"model.{vision}": 0, f"{text}.embed_tokens": 0, f"{text}.rotary_emb": 0}
    spread |= {f"{text}.layers.{at}": at % 3 for at in range(4)}
    spread |= {f"{text}.norm": 1, "lm_head": 2}
    if kind != "demo":  # offloaded, too
        spread |= {f"{text}.layers.2": "cpu"}
    with VirtualGPUs("3x1GiB") as gpus:
        there = Session().load(kind, device_map=spread, dtype="float32")
        before = state_of(there)
        found = interventions(there)
        assert torch.allclose(found[0], hidden, atol=1e-4)
        assert found[1:] == (plain, patched, broken)
        assert state_of(there) == before
    assert gpus.problems == ()


def test_a_quantised_model_is_traced():
    session = Session().load("demo", quantize="4bit")
    before = state_of(session)
    _, plain, patched, broken = interventions(session)
    assert (plain, patched) == ("The circle is red.", "The circle is blue.")
    assert broken != plain
    assert state_of(session) == before


def test_nothing_patched_is_kept_and_the_chats_stay(sessions):
    session = sessions["demo"]
    session.ask(QUESTION, circle(), chat="circles")
    before, kept = session.chats, session.status().kept
    with session.trace("And now?", chat="circles", follow_up=True, max_tokens=3) as trace:
        trace.model.model.vision.output[:] = 0
        steps = [].save()
        for _ in trace.iter[:3]:
            steps.append(trace.layers[0].output.shape[1])
    assert steps[0] > 20
    assert steps[1:] == [1, 1]
    assert session.chats == before
    assert session.status().kept == kept
    assert session.ask(QUESTION, circle()).text == "The circle is red."
    with pytest.raises(ConversationError, match="imported or traced"):
        trace.answer.inspect()


def test_the_prompt_and_its_images_are_filled_in(sessions):
    session = sessions["demo-4.6v"]
    trace = session.trace("What?", [circle(), Image.new("RGB", (300, 200), "blue")])
    first, second = trace.images
    assert second.rows < second.columns
    places = range(len(trace.prompt))
    assert [at for at in places if trace.prompt[at].image == 1] == [*places[second.positions]]
    assert first.positions.stop <= second.positions.start
    assert "What?" in "".join(each.text for each in trace.prompt)
    with session.trace("What?", circle(), max_tokens=1, temperature=0) as trace:
        logits = trace.model.lm_head.output.save()
    assert session.engine.vocabulary.text_and_bytes(int(logits[0, -1].argmax()))[0] == (
        trace.answer.text or "\n"
    )
    logits += 1  # no tensor of inference mode


def divided(session):
    with session.trace(QUESTION, circle()) as trace:
        trace.layers[1].output[:] = 0
        1 / 0  # noqa: B018


def interrupted(session):
    with session.trace(QUESTION, circle()) as trace:
        trace.layers[1].output[:] = 0
        os.kill(os.getpid(), signal.SIGINT)
        trace.layers[2].output[:] = 0


def asked_within(session):
    with session.trace(QUESTION, circle()) as trace:
        trace.layers[1].output[:] = 0
        session.ask("?")


def test_the_model_is_as_before_whatever_ends_the_block(sessions):
    session = sessions["demo"]
    before = state_of(session)
    with pytest.raises(ZeroDivisionError) as caught:
        divided(session)
    assert "modeling" not in {each.path.stem for each in caught.traceback}
    assert state_of(session) == before
    with pytest.raises(GenerationInterrupted) as stopped:
        interrupted(session)
    assert stopped.value.code == "trace_interrupted"
    assert state_of(session) == before
    with pytest.raises(BusyError):
        asked_within(session)
    with session.trace(QUESTION, circle()) as trace:
        trace.layers[0].added = torch.nn.Linear(1, 1)
        trace.stop()
    assert state_of(session) == before
    assert session.ask(QUESTION, circle()).text == "The circle is red."
    with pytest.raises(ConversationError, match="There is no answer"):
        trace.answer  # noqa: B018
    with pytest.raises(ConversationError, match="within the `with` block"):
        trace.layers  # noqa: B018
    with trace:  # the same question once more
        trace.layers[0].output.save()
    assert trace.answer.text == "The circle is red."


def test_what_cannot_be_traced(sessions, monkeypatch):
    with pytest.raises(EngineError, match="No model is loaded"):
        Session().trace("?")
    session = Session(ScriptedEngine())
    with pytest.raises(EngineError, match="in other processes"):
        session.trace("?")
    server = ScriptedEngine()
    server.info = replace(server.info, server="http://127.0.0.1:8000/v1")
    with pytest.raises(EngineError, match="is on a server, which tells the log-probabilities"):
        Session(server).trace("?")
    # nnsight gives every object an attribute "save", which argparse takes for a value.
    assert hasattr(object(), "save")
    assert parse(Glm4vMagics.glm4v, []).save is None
    session = sessions["demo"]
    with pytest.raises(OptionError, match="trace has no option 'schema'"):
        session.trace("?", schema={})
    with session.stream(QUESTION, circle()) as events:
        next(events)
        with pytest.raises(BusyError):
            session.trace("?")
    monkeypatch.setitem(sys.modules, "nnsight", None)
    monkeypatch.delitem(sys.modules, "glm4v_magic.inspect.tracing")
    with pytest.raises(OptionError, match=r"nnsight is not installed.*glm4v_magic\[nnsight\]"):
        session.trace("?")


def test_a_model_that_was_unloaded_since():
    session = Session().load("demo")
    with session.trace(QUESTION, circle(), max_tokens=1) as trace:
        trace.layers[0].output.save()
    answer = trace.answer
    session.unload()
    session.load("demo")
    refusal = "demo is no longer loaded, or was loaded anew"
    with pytest.raises(EngineError, match=refusal) as caught, trace:
        trace.stop()
    # The block was not run: what it made of the model before is still there.
    assert {each.path.name for each in caught.traceback} == {Path(__file__).name, "tracing.py"}
    assert trace.answer is answer


def test_the_page_runs_as_it_says(capsys):
    code = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (said,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    # nnsight reads the source of a block from its file.
    lines = "\n".join(code)
    linecache.cache["<page>"] = (len(lines), None, lines.splitlines(keepends=True), "<page>")
    exec(compile(lines, "<page>", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.endswith(said)
    assert "torch.Size([1, " in printed


@pytest.mark.parametrize("kind", KINDS)
def test_the_names_of_other_libraries_are_those_of_the_table(sessions, kind):
    rows = re.findall(r"^\| (.*?) \| `(trace\..*?)` \| `(trace\..*?)` \|$", PAGE, re.MULTILINE)
    names = [(row[0], row[1 + KINDS.index(kind)]) for row in rows]
    assert len(names) == 16
    found = {}
    with sessions[kind].trace(QUESTION, circle(), max_tokens=1) as trace:
        for name, path in names:
            found[name] = eval(path, {"trace": trace, "l": 1})
        found.save()
    assert all(isinstance(each, torch.Tensor) for each in found.values())
    get = {name.strip("`").removeprefix("blocks.l."): value for name, value in found.items()}
    middle = get["hook_resid_pre"] + get["hook_attn_out"]
    assert torch.allclose(middle, get["hook_resid_mid"], atol=1e-4)
    end = middle + get["hook_mlp_out"]
    assert torch.allclose(end, get["hook_resid_post"], atol=1e-4)
