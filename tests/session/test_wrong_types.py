"""Values of a wrong type in Python: refused in one line that names the type."""

from __future__ import annotations

import numpy as np
import pytest
from standins.speaker import Speaker

import glm4v_magic
from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import Glm4vError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.doctor import gather
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.planning.plan import plan
from glm4v_magic.session.session import Session

NINE_B = architecture("GLM-4V-9B")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda session: session.ask(5), "The prompt is text, not of type int."),
        (lambda session: session.ask(None, []), "The prompt is text, not of type NoneType."),
        (lambda session: session.ask(5, task="text"), "The prompt is text, not of type int."),
        (lambda session: session.draft(b"What?"), "The prompt is text, not of type bytes."),
        (lambda session: session.map(5, ["a"]), "The prompt is text, not of type int."),
        (lambda session: session.map("{{a}}", ["a"], names=5), "names is of type int, but must"),
        (lambda session: session.retry(5), "chat is 5, but must be a name"),
        (lambda session: session.carry_on([]), r"chat is \[\], but must be a name"),
        (lambda session: session.reset(5), "chat is 5, but must be a name"),
        (lambda session: session.import_chat(5), "The file of a chat is named by a string or a"),
        (lambda session: session.export_chat(5), "The file of a chat is named by a string or a"),
        (lambda session: session.load(5), "The model is named by a string or a path, not by type"),
        (lambda _: glm4v_magic.load(5), "The model is named by a string or a path, not by type"),
        (lambda _: architecture(5), "The model is named by a string or a path, not by type int"),
        (lambda _: architecture("demo", lora=5), "The adapter is named by a string or a path, not"),
        (lambda _: resolve(5), "The model is named by a string or a path, not by type int"),
        (lambda _: plan(NINE_B.shape(), 5), "GPUs are a description or a sequence of GPU, not of"),
        (lambda _: plan(NINE_B.shape(), ["a"]), "GPUs are a description or a sequence of GPU, not"),
        (lambda _: dry_run(NINE_B, 5), "GPUs are a description or a sequence of GPU, not of type"),
        (lambda _: gather(5), "GPUs are a description or a sequence of GPU, not of type int"),
        (lambda _: plan(NINE_B.shape(), "cpu").save(5), "The plan cannot be written to 5: "),
    ],
)
def test_a_wrong_type_is_refused_in_one_line(call, said):
    session = Session(Speaker(("Yes.", "stop")))
    session.ask("What?")
    before = session.chats
    with pytest.raises(Glm4vError, match=said) as caught:
        call(session)
    assert "\n" not in str(caught.value)
    assert session.chats == before


def test_numbers_of_numpy_are_numbers():
    session = Session(Speaker(("Yes.", "stop"), ("No.", "stop")))
    numbers = {"max_tokens": np.int64(5), "temperature": np.float32(0.5), "seed": np.array(7)}
    assert session.ask("What?", **numbers, thinking=np.bool_(False)).text == "Yes."
    with pytest.raises(Glm4vError, match=r"max_tokens is 5\.0, but must be a whole number"):
        session.ask("What?", max_tokens=np.float64(5))
    with pytest.raises(Glm4vError, match=r"max_tokens is array\(\[5\]\), but must be"):
        session.ask("What?", max_tokens=np.array([5]))


def test_gpus_are_described_wherever_they_are_taken():
    gpus = parse_gpus("2x16GiB")
    assert plan(NINE_B.shape(), "2x16GiB") == plan(NINE_B.shape(), gpus)
    assert gather("2x16GiB").described == gpus
