"""Advice outside of the rooms that place a model: taken here, or listed with the reason why not.

Each scene runs into a message, finds its advice in it, and does what it says. `test_advice` is
about placement, and about advice that front ends word themselves; `test_advice_asked` about
questions, clips, forms, servers and checkpoints.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_advice
import test_advice_asked
import torch
from PIL import Image

import glm4v_magic
from glm4v_magic.calls.prompt import require_text
from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import Glm4vError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.server_address import read_address
from glm4v_magic.engines.replicas.cluster import read_cluster
from glm4v_magic.engines.replicas.layout import Machine, seats
from glm4v_magic.images import to_image, to_images
from glm4v_magic.images.crop import parse_crop
from glm4v_magic.images.video import to_video
from glm4v_magic.mapping.items import items_of
from glm4v_magic.mapping.row_media import media_of
from glm4v_magic.remote_code.copies import code_folders
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

PACKAGE = Path(glm4v_magic.__file__).parent
TESTS = Path(__file__).parents[1]
IN_FOLDERS = "Give one of them."
SQUARE = np.zeros((4, 4, 3), np.uint8)
SCENES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}
CELLS: dict[str, tuple[str, str]] = {}


def image(value: object) -> object:
    return to_image(value, "x")


def limits(**given: Any) -> PlacementOptions:
    return PlacementOptions(**given)


def gone() -> torch.Tensor:
    with VirtualGPUs("1x1GiB"):
        return torch.ones(2, device="cuda:0")


def kept() -> torch.Tensor:
    with VirtualGPUs("1x1GiB"):
        return torch.ones(2, device="cuda:0").cpu() + 1


def nested() -> None:
    with VirtualGPUs("1x1GiB"), VirtualGPUs("1x1GiB"):
        pass


def one_after_the_other() -> None:
    for _ in range(2):
        with VirtualGPUs("1x1GiB"):
            pass


def twice(make: Callable[[], VirtualGPUs]) -> None:
    for _ in range(2):
        with make():
            pass


class OnRealGPU(torch.Tensor):
    """Stands in for a tensor on a real GPU: says that it is on one."""

    is_cuda = True
    device = torch.device("cuda", 0)

    def cpu(self) -> torch.Tensor:
        return torch.ones(2)


def several() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(4, 4)] * 2, layout=torch.jagged)


def real_among_virtual() -> None:
    real = torch.ones(2).as_subclass(OnRealGPU)
    with VirtualGPUs("1x1GiB"):
        torch.add(torch.ones(2, device="cuda:0"), real)


def moved_before() -> None:
    moved = torch.ones(2).as_subclass(OnRealGPU).cpu()
    with VirtualGPUs("1x1GiB"):
        assert (torch.ones(2, device="cuda:0") + moved.to("cuda:0")).tolist() == [2, 2]


ONE = VirtualGPUs("1x1GiB")


def seats_of(wanted: int | str, gpus: str, cores: int = 8, gib: float = 20) -> list[Any]:
    machine = Machine("id", "10.0.0.5", cores, parse_gpus(gpus) if gpus else ())
    found = seats(
        "GLM", wanted, [machine], lambda some: sum(each.total_bytes for each in some) >= gib * 2**30
    )
    assert found
    return list(found)


def replicas(**options: Any) -> None:
    Session().load("demo", replicas=2, **options)


def replicas_on_the_cpu() -> None:
    """They are refused for the address alone, which is looked at after the GPUs and before Ray."""
    for options in ({"gpus": "cpu"}, {}):
        with pytest.raises(Glm4vError, match="is not the address of a Ray cluster"):
            replicas(cluster="nowhere", **options)


def of_one_iterator() -> None:
    once = iter(["a", "b"])
    assert list(once) == ["a", "b"]
    items_of(once, "once")


SCENES |= {
    "An iterator gives its items only once; make a list of them.": (
        of_one_iterator, lambda: items_of(list(iter(["a", "b"])), "kept")),
    "Load it in 4 bit, or with a shorter context.": (
        lambda: seats_of(1, "1x16GiB"), lambda: seats_of(1, "1x16GiB", gib=12)),
    "Ask for fewer, or for max.": (
        lambda: seats_of(3, "2x24GiB"),
        lambda: (seats_of(2, "2x24GiB"), seats_of("max", "2x24GiB"))),
    "Ask for fewer.": (lambda: seats_of(9, ""), lambda: seats_of(8, "")),
    "Wait for its other jobs.": (
        lambda: seats_of("max", "", cores=0), lambda: seats_of("max", "", cores=2)),
    "Leave one of them out; cpu alone can be given.": (
        lambda: replicas(gpus="2x16GiB"), replicas_on_the_cpu),
    "Give its host and port, such as 10.0.0.5:6379, from a machine of the cluster; auto is the one "
    "that runs on this machine.": (
        lambda: read_cluster("nowhere"),
        lambda: (read_cluster("10.0.0.5:6379"), read_cluster("auto"))),
    'Write "{}GiB" for as many GiB.': (
        lambda: limits(max_memory={0: 10}), lambda: limits(max_memory={0: "10GiB"})),
    "Pin each unit to one GPU.": (
        lambda: limits(pin=[("vision", 0), ("vision", 1)]), lambda: limits(pin={"vision": 0})),
    "Use cpu.": (
        lambda: limits(max_memory={"disk": "1GiB"}), lambda: limits(max_memory={"cpu": "1GiB"})),
    'Name GPUs by number, and "cpu": {0: "10GiB", "cpu": "30GiB"}.': (
        lambda: limits(max_memory={"gpu": "1GiB"}),
        lambda: limits(max_memory={0: "10GiB", "cpu": "30GiB"})),
    'A size is a text such as "10GiB", or a whole number of bytes.': (
        lambda: limits(max_memory={0: "much"}),
        lambda: (limits(max_memory={0: "10GiB"}), limits(max_memory={0: 10 * 2**30}))),
    "Write it as http://127.0.0.1:8000/v1.": (
        lambda: read_address("http://"), lambda: read_address("http://127.0.0.1:8000/v1")),
    "Leave it out, and put a key into the environment variable {}.": (
        lambda: read_address("http://me:secret@127.0.0.1:8000/v1"),
        lambda: read_address("http://127.0.0.1:8000/v1")),
    "The address of a server begins with http://.": (
        lambda: resolve("127.0.0.1:8000"), lambda: read_address("http://127.0.0.1:8000")),
    "Give the folder that the checkpoint is in.": (
        lambda: resolve(PACKAGE / "checkpoints/demo/config.json"),
        lambda: resolve(PACKAGE / "checkpoints/demo")),
    "Choose one: {}[0].": (
        lambda: image(np.stack([SQUARE] * 2)), lambda: image(np.stack([SQUARE] * 2)[0])),
    "Save it as a PNG first.": (
        lambda: image(b"%!PS-Adobe-3.0" + bytes(99)), lambda: image(png(8))),
    "Choose one: {}[{}].": (
        lambda: image({"a": Image.new("RGB", (4, 4)), "b": Image.new("RGB", (4, 4))}),
        lambda: image({"a": Image.new("RGB", (4, 4)), "b": Image.new("RGB", (4, 4))}["a"])),
    "Images are height x width, or that with 1, 3 or 4 channels last or first.": (
        lambda: image(np.zeros((5, 6, 7), np.uint8)),
        lambda: [image(np.zeros(shape, np.uint8)) for shape in (
            (5, 6), (5, 6, 1), (5, 6, 3), (5, 6, 4), (1, 5, 6), (3, 5, 6), (4, 5, 6))]),
    "Images are uint8 of 0 to 255 or floats of 0 to 1.": (
        lambda: image(SQUARE.astype(np.complex64)),
        lambda: (image(SQUARE), image(SQUARE.astype(np.float32)))),
    "Integers must be from 0 to 255, or uint16.": (
        lambda: image(SQUARE.astype(np.int32) - 1),
        lambda: (image(SQUARE.astype(np.int32)), image(SQUARE.astype(np.uint16)))),
    "Give it as an array, as it is outside of what traces or transforms it.": (
        lambda: torch.vmap(image)(torch.ones(2, 4, 4)),
        lambda: [image(each) for each in torch.ones(2, 4, 4).numpy()]),
    "Make it on the CPU or a GPU.": (
        lambda: image(torch.ones(4, 4, device="meta")), lambda: image(torch.ones(4, 4))),
    "Give its parts: {}.unbind()": (
        lambda: image(several()),
        lambda: image(several().unbind()[0])),
    "Give all of its values: {}.to_dense()": (
        lambda: image(torch.ones(4, 4).to_sparse()),
        lambda: image(torch.ones(4, 4).to_sparse().to_dense())),
    "Replace them: np.nan_to_num.": (
        lambda: image(np.full((4, 4), np.nan)),
        lambda: image(np.nan_to_num(np.full((4, 4), np.nan)))),
    "Write x,y,width,height: 10,10,50,50 (pixels), 0.5,0,0.5,1.0 or 50%,0,50%,100%.": (
        lambda: parse_crop("10,10"),
        lambda: [parse_crop(each) for each in ("10,10,50,50", "0.5,0,0.5,1.0", "50%,0,50%,100%")]),
    'Open the file in binary mode: open(path, "rb").': (
        lambda: image(io.StringIO("text")), lambda: image(io.BytesIO(png()))),
    "Take the first of them: list(itertools.islice({}, 100)).": (
        lambda: items_of(count(), "x"), lambda: items_of(list(islice(count(), 100)), "x")),
    "Copy what you need with .cpu() inside the block.": (lambda: gone() + 1, kept),
    "End the `with VirtualGPUs(...)` block around this one first.": (nested, one_after_the_other),
    "Move it to the CPU before the `with VirtualGPUs(...)` block.": (
        real_among_virtual, moved_before),
    'Replace such halves: text.encode(errors="replace").decode().': (
        lambda: require_text("half \ud83d"),
        lambda: require_text("half \ud83d".encode(errors="replace").decode())),
    "Make new ones for each `with` block.": (
        lambda: twice(lambda: ONE), lambda: twice(lambda: VirtualGPUs("1x1GiB"))),
    'Write for example VirtualGPUs("4x16GiB").': (
        lambda: VirtualGPUs("cpu"), lambda: VirtualGPUs("4x16GiB")),
}  # fmt: skip

CELLS |= {
    "Define {} first. {}": (
        '%glm4v preview cat.png "Is it {{ zzz }}?"',
        "zzz = 'red'\n%glm4v preview cat.png \"Is it {{ zzz }}?\""),
    "There are model, {}.": (
        "ways = [{'qqqqqq': 1}, {'model': 'demo'}]\n%glm4v ask \"What?\" --compare ways",
        "ways = [{'max_tokens': 1}, {'model': 'demo'}]\n"
        "%glm4v ask \"What?\" --compare ways --max-tokens 2"),
    "Models stand between commas, the settings of each behind it.": (
        '%%glm4v cat --compare "demo qqqqqq"\nWhat?',
        '%%glm4v cat --compare "demo temperature=0,demo temperature=1" --max-tokens 2\nWhat?'),
    'Quotes within it are of the other kind: "What\'s this?"': (
        "%glm4v preview cat.png 'What's this?'", "%glm4v preview cat.png \"What's this?\""),
    "Leave --offload out, or take --engine own.": (
        "%glm4v serve GLM-4V-9B --engine vllm --gpus 1x16GiB --context 2048 --offload --print",
        "%glm4v serve GLM-4V-9B --engine vllm --gpus 1x40GiB --context 2048 --print\n"
        "%glm4v serve GLM-4V-9B --engine own --gpus 1x16GiB --context 2048 --offload --print"),
    "Take --quantize 4bit, or --engine own.": (
        "%glm4v serve GLM-4V-9B --engine vllm --gpus 1x24GiB --quantize 8bit --print",
        "%glm4v serve GLM-4V-9B --engine vllm --gpus 1x24GiB --quantize 4bit --print\n"
        "%glm4v serve GLM-4V-9B --engine own --gpus 1x24GiB --quantize 8bit --print"),
    "Leave --quantize out, or take --engine vllm or own.": (
        "%glm4v serve GLM-4.6V-Flash --engine sglang --gpus 1x80GiB --quantize 4bit --print",
        "%glm4v serve GLM-4.6V-Flash --engine sglang --gpus 1x80GiB --print\n"
        "%glm4v serve GLM-4.6V-Flash --engine vllm --gpus 1x80GiB --quantize 4bit --print\n"
        "%glm4v serve GLM-4.6V-Flash --engine own --gpus 1x80GiB --quantize 4bit --print"),
    "Take --engine vllm or own, or a newer model.": (
        "%glm4v serve GLM-4V-9B --engine sglang --gpus 1x80GiB --print",
        "%glm4v serve GLM-4V-9B --engine vllm --gpus 1x80GiB --print\n"
        "%glm4v serve GLM-4V-9B --engine own --gpus 1x80GiB --print\n"
        "%glm4v serve GLM-4.6V-Flash --engine sglang --gpus 1x80GiB --print"),
    "Leave it out, or take --engine own.": (
        "%glm4v serve GLM-4V-9B --engine vllm --gpus 1x40GiB --keep 1 --print",
        "%glm4v serve GLM-4V-9B --engine vllm --gpus 1x40GiB --print\n"
        "%glm4v serve GLM-4V-9B --engine own --gpus 1x40GiB --keep 1 --print"),
    "Describe fewer GPUs (--gpus), or take --engine own.": (
        "%glm4v serve GLM-4V-9B --engine vllm --gpus 10GiB+24GiB --print",
        "%glm4v serve GLM-4V-9B --engine vllm --gpus 1x40GiB --print\n"
        "%glm4v serve GLM-4V-9B --engine own --gpus 10GiB+24GiB --print"),
    "Leave --compare out to see what the model in use would be sent.": (
        "%%glm4v cat --compare demo --preview\nWhat?", "%%glm4v cat --preview\nWhat?"),
    "Name one, such as 8001.": (
        "%glm4v serve demo --port 0 --print", "%glm4v serve demo --port 8001 --print"),
    "127.0.0.1 is this computer alone, and 0.0.0.0 stands for all addresses of it.": (
        "%glm4v serve demo --host 999.1.1.1 --print",
        "%glm4v serve demo --host 127.0.0.1 --print\n%glm4v serve demo --host 0.0.0.0 --print"),
    "For example --compare demo,http://127.0.0.1:8000/v1.": (
        "%%glm4v cat --compare demo,\nWhat?",
        "%%glm4v cat --compare demo,http://127.0.0.1:8000/v1 --max-tokens 2\nWhat?"),
    "Empty the cell below its first line, or leave --file out.": (
        "%%glm4v -f q.txt --preview\nWhat?", "%%glm4v -f q.txt --preview\n"),
    "Use letters, digits and underscores, for example -o answer.": (
        "%%glm4v -o 1x --preview\nWhat?", "%%glm4v -o answer --preview\nWhat?"),
    "Use another one, for example -o answer.": (
        "%%glm4v -o In --preview\nWhat?", "%%glm4v -o answer --preview\nWhat?"),
    "Describe the GPUs to check for: --gpus 4x16GiB.": (
        "%glm4v check demo", "%glm4v check demo --gpus 4x16GiB"),
    "A device map on a line goes in quotes: --map '{\"\": 0}'": (
        '%glm4v check demo --gpus 1x1GiB --map {"": 0}',
        "%glm4v check demo --gpus 1x1GiB --map '{\"\": 0}'"),
    'A name that holds an apostrophe goes in double quotes: "it\'s.png".': (
        "%glm4v preview \"it's.png What?", '%glm4v preview "it\'s.png" "What?"'),
    "Give it once: {}.": (
        "%glm4v plan GLM-4V-9B --gpus 2x24GiB --pin vision=0 --pin head=1",
        "%glm4v plan GLM-4V-9B --gpus 2x24GiB --pin vision=0,head=1"),
    "Options begin with hyphens: {}.": (
        "%%glm4v \u2013\u2013preview\nWhat?", "%%glm4v --preview\nWhat?"),
    "The variable is written {}.": (
        "%%glm4v $cat --preview\nWhat?", "%%glm4v cat --preview\nWhat?"),
    "Name a file: {} plan.json": (
        "%glm4v plan demo --gpus 1x8GiB --save ''",
        "%glm4v plan demo --gpus 1x8GiB --save plan.json"),
    "Ask a question first.": (
        "%%glm4v --continue\nAnd?", '%glm4v ask "Hello?"\n%glm4v retry'),
    "Write an expression in it. {}": (
        "%%glm4v --preview\nWhat {{ }}?", "%%glm4v --preview\nWhat {{ 1 + 1 }}?"),
    "For literal braces write \\{{.": (
        "%%glm4v --preview\nWhat {{ x?", "%%glm4v --preview\nWhat \\{{ x?"),
    'For example: %glm4v {} cat.png "What is the cat doing?"': (
        "%glm4v ask cat.png", '%glm4v ask cat.png "What is the cat doing?" --max-tokens 2'),
}  # fmt: skip


OUTSIDE = re.compile(
    "[Dd]ownload|pip install|Install it|git lfs|nvidia-smi|log may tell|peft|Make an environment|"
    "owner has to|zero_to_fp32|Save a copy|[Uu]pload|PyTorch for|proxy|browser|"
    "without quotes around"
)
"""Steps outside of this program: pip, a download, a shell, a server of others."""

IN_OTHER_TESTS = {
    "End them (close()) before that block ends.": "virtual_gpus/test_virtual_gpus_context.py",
    "All of them as a DataFrame are .read(), which has columns.": "mapping/test_row_file.py",
    "Ask about fewer images at once.": "notebook/test_video_cell.py",
    "Is the file damaged? Save the adapter again.": "checkpoints/test_adapters.py",
    "Save the adapter with the embedding of its tokens: save_embedding_layers=True.": (
        "checkpoints/test_added_tokens.py"
    ),
    "Give a copy that was made before: image.copy().": "images/test_images_values.py",
    "Its training went astray: take an earlier step of it.": "checkpoints/test_adapters.py",
    "Its training went astray, or its files are damaged: take an earlier step of it, or another "
    "copy.": "engines/test_not_finite.py",
    "Load it in another dtype: bfloat16 or float32.": "checkpoints/test_adapters.py",
    "Name one of them.": "images/test_video.py",
    "None was offered: start the server without tools.": "engines/test_server_flight.py",
    "Start the server again.": "server/test_command.py",
    "FSDP has them in parts: {}{}": "checkpoints/test_foreign.py",
    "Name the folder that it is in.": "checkpoints/test_foreign.py",
    "Unpack it, and give the folder.": "checkpoints/test_foreign.py",
    "The files are damaged, or were saved in part; download or save them again.":
        "checkpoints/test_quantised_before.py",
}  # fmt: skip
"""Sentences that are followed where everything for it is at hand."""


def png(side: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((side, side), 9).save(stream, "PNG")
    return stream.getvalue()


SCENES['Name its folder, "." for this one, or its id.'] = (
    lambda: code_folders(""),
    lambda: code_folders("."),
)
SCENES["Leave the revision out."] = (
    lambda: resolve(PACKAGE / "checkpoints/demo", revision="v2"),
    lambda: resolve(PACKAGE / "checkpoints/demo"),
)
MASKED = np.ma.masked_array(np.zeros((4, 4), np.uint8), mask=True)
SCENES["Say what they are: {}.filled(0)."] = (
    lambda: image(MASKED),
    lambda: image(MASKED.filled(0)),
)
SCENES["Put each into a row of its own."] = (
    lambda: media_of(["a.mp4", "b.mp4"], "x", to_images, to_video),
    lambda: items_of(["a.mp4", "b.mp4"], "x"),
)
SCENES["Give the page of a model, or its name: owner/name."] = (
    lambda: architecture("hf.co/zai-org"),
    lambda: architecture("hf.co/zai-org/GLM-4V-9B"),
)


@pytest.mark.parametrize("advice", SCENES)
def test_what_is_said_to_callers_can_be_done(advice):
    bad, good = SCENES[advice]
    with pytest.raises(Glm4vError) as caught:
        bad()
    said = str(caught.value)
    assert all(part in said for part in advice.split("{}"))
    good()


@pytest.mark.parametrize("advice", CELLS)
def test_what_is_said_in_a_cell_can_be_typed(run, shell, tmp_path, advice):
    (tmp_path / "q.txt").write_text("What is it?")
    for name in ("it's.png", "cat.png"):
        (tmp_path / name).write_bytes(png())
    shell.user_ns["cat"] = Image.new("RGB", (4, 4))
    bad, good = CELLS[advice]
    said = run(bad, fails=True)
    assert all(part in said for part in advice.split("{}")), said
    run(good)


def test_every_sentence_of_the_package_is_taken_or_listed(monkeypatch):
    monkeypatch.setattr(test_advice, "ROOMS", ("",))
    found = {text for _, text in test_advice.sentences()}
    here = {*SCENES, *CELLS, IN_FOLDERS, *test_advice_asked.TAKEN}
    taken = {*test_advice.TAKEN, *test_advice.SENTENCES_OF_OTHERS, *here}
    asked = {text for text in found if text.endswith("?")}
    outside = {text for text in found if OUTSIDE.search(text)}
    assert found - taken - asked - outside - IN_OTHER_TESTS.keys() == set(), "no test takes it"
    assert here | IN_OTHER_TESTS.keys() <= found, "nobody says it any more"
    for sentence, file in IN_OTHER_TESTS.items():
        assert sentence.partition("{")[0] in (TESTS / file).read_text(encoding="utf-8")


def test_a_trainers_folder_of_folders(tmp_path):
    shutil.copytree(PACKAGE / "checkpoints/demo", tmp_path / "checkpoint-500")
    with pytest.raises(Glm4vError, match=re.escape(IN_FOLDERS)):
        resolve(tmp_path)
    assert resolve(tmp_path / "checkpoint-500").tensors
