"""Advice outside of the rooms that place a model: taken here, or listed with the test that does.

Each scene runs into a message, finds its advice in it, and does what it says. `test_advice` is
about placement, and about advice that front ends word themselves; `test_advice_asked` about
questions, clips, forms, servers and checkpoints, as is `test_advice_followed`. What is said is
found by `hints`, also where a hint is a question, a variable, or returned by a function.
"""

from __future__ import annotations

import io
import re
import shutil
import tomllib
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_advice
import test_advice_asked  # noqa: F401, what it takes
import test_advice_followed  # noqa: F401, what it takes
import test_advice_outside
import torch
from advice import TAKEN
from hints import hints
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
ROOT = Path(__file__).parents[2]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8").replace("-", "_")
OF_OTHERS = {
    "{}", "astropy", "h5py", "kaleido", "opencv_python_headless", "OpenEXR", "pydicom", "rawpy",
    "resvg_py", "tifffile", "vl_convert_python",
}  # fmt: skip
"""Names that are known at run time only, or of no package that is used here."""
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
    "Give each device one size.": (
        lambda: limits(max_memory={0: "9GiB", "cuda:0": "8GiB"}),
        lambda: limits(max_memory={0: "9GiB", "cuda:1": "8GiB"})),
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
    "Leave it out, and put a key into the environment variable GLM4V_API_KEY.": (
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
    '{} Write for example "4x16GiB", "24+16+12GiB", "2xT4", "24GiB@936GB/s" or "cpu".': (
        lambda: parse_gpus("A101"), lambda: [parse_gpus(each) for each in (
            "A10", "A101-16GiB", "4x16GiB", "24+16+12GiB", "2xT4", "24GiB@936GB/s", "cpu")]),
    'Add its memory, as in "{}-16GiB".': (
        lambda: parse_gpus("2xBR100"), lambda: parse_gpus("2xBR100-16GiB")),
    'Add the unit, as in "{}GiB".': (
        lambda: parse_gpus("L4-16"), lambda: parse_gpus("L4-16GiB")),
    'Replace such halves: text.encode(errors="replace").decode().': (
        lambda: require_text("half \ud83d"),
        lambda: require_text("half \ud83d".encode(errors="replace").decode())),
    "Make new ones for each `with` block.": (
        lambda: twice(lambda: ONE), lambda: twice(lambda: VirtualGPUs("1x1GiB"))),
    'Write for example VirtualGPUs("4x16GiB").': (
        lambda: VirtualGPUs("cpu"), lambda: VirtualGPUs("4x16GiB")),
}  # fmt: skip

COMPARED = '--compare "demo temperature=0,demo temperature=1" --max-tokens 2'
CELLS |= {
    "It asks about one thing.": (
        f"%%glm4v --over cat {COMPARED}\nWhat?", f"%%glm4v cat {COMPARED}\nWhat?"),
    "Each of its answers is one to a fresh question.": (
        f"%%glm4v cat {COMPARED} --chat cats\nWhat?", f"%%glm4v cat {COMPARED}\nWhat?"),
    "Define {} first. For literal braces write \\{{.": (
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
    "The images before are still in it: leave the new one out, or ask a fresh question.": (
        '%glm4v ask cat "What?" --max-tokens 2\n%glm4v ask cat "And?" --continue',
        '%glm4v ask "And?" --continue --max-tokens 2\n%glm4v ask cat "What?" --max-tokens 2'),
    "See %{}.": ("%glm4v plan demo demo", "%glm4v plan -h"),
    "Question and images stay as they were; to change them, ask with {}.": (
        '%glm4v ask cat "What?" --max-tokens 2\n%glm4v retry --crop 0,0,1,1',
        '%glm4v ask cat --crop 0,0,1,1 "What?" --max-tokens 2'),
    "The chat is named without an option: %{} NAME.": (
        "%glm4v retry --chat cats", '%glm4v ask "What?" --chat cats --max-tokens 2\n'
        "%glm4v retry cats"),
    "To ask about an image: a cell \"%%glm4v {}\" with the question on the next line, or "
    '%glm4v ask {} "the question".': (
        "%glm4v cat", '%glm4v ask cat "the question" --max-tokens 2'),
    'To ask on one line: %glm4v ask "{}", with an image before the question.': (
        '%glm4v "What is it here"',
        '%glm4v ask "What is it here" --max-tokens 2\n'
        '%glm4v ask cat "What is it here" --max-tokens 2'),
    "For example: {} {}.json": (
        "%glm4v plan demo --gpus 1x8GiB --save plan",
        "%glm4v plan demo --gpus 1x8GiB --save plan.json"),
    "To name a model, put it before the option: {} {}.": (
        "%glm4v plan --gpus 1x8GiB --json demo", "%glm4v plan demo --gpus 1x8GiB --json"),
    "There {} {}.": (
        '%glm4v ask "What?" --chat cats --max-tokens 2\n'
        '%glm4v ask "And?" --continue --chat zebra',
        '%glm4v ask "And?" --continue --chat cats --max-tokens 2'),
    "Ask a question first.": (
        '%glm4v reset --all\n%glm4v ask "And?" --continue',
        '%glm4v ask "Hello?"\n%glm4v retry'),
    "Write an expression in it. For literal braces write \\{{.": (
        "%%glm4v --preview\nWhat {{ }}?", "%%glm4v --preview\nWhat {{ 1 + 1 }}?"),
    "For literal braces write \\{{.": (
        "%%glm4v --preview\nWhat {{ x?", "%%glm4v --preview\nWhat \\{{ x?"),
    'For example: %glm4v {} cat.png "What is the cat doing?"': (
        "%glm4v ask cat.png", '%glm4v ask cat.png "What is the cat doing?" --max-tokens 2'),
}  # fmt: skip


RIGHT_FILE = "checkpoints/test_files_put_right.py::test_the_right_file_puts_it_right"
AS_SAVED = "checkpoints/test_adapters.py::test_an_adapter_as_it_was_saved_is_merged"
IN_OTHER_TESTS = {
    "A load goes on with it.": (
        "checkpoints/test_hub.py::test_the_download_of_an_adapter_that_was_stopped_goes_on"
    ),
    **dict.fromkeys((
        "Are all files of the same checkpoint?",
        "Config and weights do not belong together; download them again.",
        "Download it again.",
        "{}Download the safetensors files of the checkpoint.",
        "Download them again.",
        "Every checkpoint of this kind has a preprocessor_config.json; download it again.",
        "Every checkpoint of this kind has a tokenizer.json; download it again.",
        "Every checkpoint of this kind has a tokenizer.model; download it again.",
        "Index and shards are of different versions; download them again.",
        "Is it a file of a trainer's own state?",
        "Is this the config.json of a GLM-4.1V, GLM-4.5V, GLM-4.6V, GLM-5.3 or GLM-OCR checkpoint?",
        "Is this the config.json of a GLM-4V-9B checkpoint?",
        "Is this the folder of a checkpoint?",
        "It comes with the checkpoint; download it again.",
        "It is damaged; download or save it again.",
        "It is in chat_template.jinja or tokenizer_config.json; download it again.",
        "Run git lfs pull in its folder, or download the file again.",
        "The download was cut short or damaged; download this file again.",
        "The file is damaged or of another kind; download it again.",
        "The file is damaged; download it again.",
        "The file is of another kind, or damaged; download it again.",
        "The files do not belong together; download them again.",
        "The tokenizer is of another model; download it again.",
    ), RIGHT_FILE),
    **dict.fromkeys((
        "Are its lora_alpha and its weights as they were trained?",
        "Do its adapter_config.json and its weights belong together?",
        "Is it an adapter of another model?",
        "Is this the folder of an adapter that peft has saved?",
        "It comes with the adapter; copy or download it again.",
        "Was it saved as a whole?",
    ), AS_SAVED),
    **dict.fromkeys((
        "Accept them on its page and log in with: hf auth login.",
        "Check the spelling; a private repository needs a login.",
    ), "checkpoints/test_hub.py::test_who_has_logged_in_is_given_what_is_not_for_all"),
    "Install the versions that it asks for, or uninstall that package.":
        "checkpoints/test_adapters.py::test_a_package_that_peft_does_not_take",
    "Give another name.":
        "core/test_text_files.py::test_a_file_of_another_kind_is_not_replaced",
    "Install Chrome, or run plotly_get_chrome in a terminal.":
        "project/test_advice_outside.py::"
        "test_what_is_said_to_be_installed_is_all_that_is_needed",
    "Run pip install nvidia-ml-py.":
        "project/test_advice_outside.py::"
        "test_what_tells_which_gpus_there_are_is_installed",
    'Run "pip install ." in its folder.':
        "project/test_advice_outside.py::test_the_folder_of_the_package_is_installed",
    "Install it if you need that: {}.":
        "project/test_advice_outside.py::"
        "test_what_the_doctor_says_to_install_is_what_it_asks_for",
    "The line for another machine, where it is, is printed with --print.":
        "notebook/test_serve_command.py::"
        "test_a_map_that_is_nowhere_is_said_before_a_server_starts",
    "All of them as a DataFrame are .read(), which has columns.":
        "mapping/test_row_file.py::test_each_row_is_in_the_file",
    "Are they as they were trained?":
        "engines/test_not_finite.py::test_weights_as_they_were_trained_compute_finite_numbers",
    "DeepSpeed has them in parts: cd {} && python zero_to_fp32.py . . --safe_serialization{}":
        "checkpoints/test_foreign.py::test_the_parts_of_deepspeed_are_merged_as_it_is_said",
    "Download it where there is a network and give its folder, or start Python with HF_HOME set to "
    "the folder that its cache (hub) is in.":
        "checkpoints/test_hub.py::"
        "test_without_a_network_the_folder_is_given_or_the_cache_of_another_machine",
    "Ask about fewer images at once.":
        "notebook/test_video_cell.py::test_a_clip_that_is_too_long_is_looked_at_less_often",
    "End them (close()) before that block ends.":
        "virtual_gpus/test_virtual_gpus_context.py::"
        "test_a_pause_does_not_wait_for_what_its_thread_has_not_ended",
    "FSDP has them in parts: {}{}":
        "checkpoints/test_foreign.py::test_the_parts_of_fsdp_are_merged_as_it_is_said",
    "Give a copy that was made before: image.copy().":
        "images/test_images_values.py::test_a_pillow_image_that_was_closed",
    "Give another name, or ask all rows again.":
        "mapping/test_row_file.py::test_rows_of_a_file_that_was_changed_are_asked_again",
    "Give the folder that peft has saved the adapter in.":
        "checkpoints/test_adapters.py::test_the_folder_of_an_adapter_is_given",
    "Install it with: pip install {}. For another machine: --print.":
        "project/test_advice_followed.py::test_another_engine_is_installed_or_its_line_printed",
    "Is the file damaged? Save the adapter again.":
        "checkpoints/test_adapters.py::test_an_earlier_step_is_taken_and_an_adapter_saved_again",
    "Is this machine very busy, or short of memory?":
        "engines/test_replicas.py::"
        "test_where_ray_is_not_there_or_not_in_time_it_is_had_in_another_way",
    "Its training went astray, or its files are damaged: take an earlier step of it, or another "
    "copy.":
        "engines/test_not_finite.py::"
        "test_a_weight_that_is_not_finite_is_named_and_is_told",
    "Its training went astray: take an earlier step of it.":
        "checkpoints/test_adapters.py::test_an_earlier_step_is_taken_and_an_adapter_saved_again",
    "Load it in another dtype: bfloat16 or float32.":
        "checkpoints/test_adapters.py::test_an_adapter_with_which_float16_is_too_small",
    "Take --engine own, or merge it into its base (merge_and_unload of peft) and serve the folder "
    "of the result, with the other files of the base.":
        "checkpoints/test_adapters.py::test_other_engines_take_no_adapter_for_a_model",
    "Take the original checkpoint in bfloat16, quantised as it is loaded if need be.":
        "checkpoints/test_files_put_right.py::test_the_checkpoint_in_bfloat16_is_quantised",
    "Is glm4v_magic installed there, in the same version?":
        "engines/test_replicas_followed.py::test_a_machine_without_the_package_gets_it",
    "Is there something wrong with this request, or too little memory?":
        "engines/test_replicas_followed.py::"
        "test_a_question_that_ends_processes_is_left_or_given_memory",
    "Its log may tell more.":
        "server/test_command.py::"
        "test_the_log_tells_the_cause_of_an_error_and_without_it_answers_come",
    "Use PyTorch for Linux or macOS, or a CUDA build on a computer without a GPU.":
        "virtual_gpus/test_virtual_gpus_context.py::"
        "test_a_build_of_pytorch_that_is_named_has_virtual_gpus",
    **dict.fromkeys((
        "Export it as a PNG first.",
        "Fetch it with git lfs pull.",
        "Give the address of the image itself.",
        "Load it: numpy.load(path).",
        "Unpack the image.",
    ), "images/test_formats_followed.py::test_what_is_no_image_is_made_one"),
    **dict.fromkeys((
        "Read it with OpenCV, and scale its values to 0 to 1: "
        "cv2.imread(path, cv2.IMREAD_UNCHANGED)[..., ::-1]. pip install opencv-python-headless",
        'Read it with OpenEXR, and scale its values to 0 to 1: '
        'OpenEXR.File(path).channels()["RGB"].pixels. pip install OpenEXR',
        "Read it with pydicom: pydicom.dcmread(path).pixel_array is an array. pip install pydicom",
        "Read it with astropy: astropy.io.fits.getdata(path). pip install astropy",
        "Develop it: rawpy.imread(path).postprocess() gives an array. pip install rawpy",
        "Draw its values, and give the figure.",
        'Read it with xarray: xarray.open_dataset(path, engine="cfgrib") has arrays; scale one '
        "to 0 to 1. pip install xarray cfgrib",
        "Read the image with h5py: h5py.File(path)[name][()] is an array, and its names are "
        "list(h5py.File(path)). pip install h5py",
        "Save it as JPEG, or install pillow-heif and call pillow_heif.register_heif_opener().",
        "Save it as PNG, or install pillow-jxl-plugin and import pillow_jxl.",
        "Save it as a PNG first, or draw it: resvg_py.svg_to_bytes(svg_path=path) is a PNG. "
        "pip install resvg-py",
    ), "images/test_formats_followed.py::test_a_package_that_is_named_reads_it"),
    "Install pillow-avif-plugin and import pillow_avif.":
        "images/test_formats_followed.py::test_an_older_pillow_reads_avif_with_a_plugin",
    "Integers must be from 0 to 255, or uint16. Or scale their range to 0 to 1: {}.":
        "images/test_images_advice.py::test_integers_of_any_range_are_scaled",
    "Merge it with peft where it was trained (merge_and_unload), and save the result.":
        "checkpoints/test_adapters.py::test_adapters_that_peft_alone_merges_are_merged_there",
    "Merge them one after the other with peft (merge_and_unload).":
        "checkpoints/test_adapters.py::test_two_adapters_are_merged_one_after_the_other",
    "Look for other processes with nvidia-smi and stop those you do not need.":
        "doctor/test_doctor_followed.py::test_processes_that_are_not_needed_are_stopped",
    "Make an environment with a newer Python.":
        "doctor/test_doctor_followed.py::test_an_environment_with_a_newer_python_is_made",
    "Run nvidia-smi: if it lists no GPU, give one to this machine, container or job; if one is in "
    "MIG mode without an instance, end that mode with nvidia-smi -mig 0.":
        "doctor/test_doctor_followed.py::"
        "test_a_gpu_in_mig_mode_without_an_instance_leaves_it",
    "Update the driver; restart the computer.":
        "doctor/test_doctor_followed.py::test_the_driver_is_updated",
    "Name the folder that it is in.":
        "checkpoints/test_foreign.py::"
        "test_of_a_config_alone_the_doctor_says_that_a_load_takes_its_folder",
    "Unpack it, and give the folder.":
        "checkpoints/test_foreign.py::test_a_file_instead_of_a_folder",
    "Name one of them.": "images/test_video.py::test_a_pattern_is_the_one_clip_that_matches",
    "None was offered: start the server without tools.":
        "engines/test_server_flight.py::test_a_server_that_is_started_without_tools",
    "Ray is started and joined with `ray start`; without an address it runs here.":
        "engines/test_replicas.py::"
        "test_where_ray_is_not_there_or_not_in_time_it_is_had_in_another_way",
    "Read it with tifffile, and give three of its bands as an array. pip install tifffile":
        "images/test_images_decode.py::"
        "test_bands_of_a_tiff_that_pillow_does_not_read_are_given_as_an_array",
    "Save a copy without one.": "images/test_pdf.py::test_a_copy_without_the_password_is_read",
    "Save the adapter by itself (save_pretrained of peft), or merge it first.":
        "checkpoints/test_adapters.py::"
        "test_weights_that_are_not_merged_are_saved_apart_or_merged",
    "Save the adapter with the embedding of its tokens: save_embedding_layers=True.":
        "checkpoints/test_added_tokens.py::test_tokens_of_an_adapter_that_has_no_embedding_for_them",
    "Start the server again.":
        "server/test_command.py::"
        "test_a_server_whose_replicas_are_all_lost_ends_and_can_be_started_again",
    "The files are damaged, or were saved in part; download or save them again.":
        "checkpoints/test_quantised_before.py::"
        "test_damaged_descriptions_of_4_bits_are_found_by_all",
}  # fmt: skip
"""Sentences that are followed where everything for it is at hand, and the test that does."""

INSTALLING = re.compile(
    r"pip install (?:--upgrade )?['\"]?([\w{}][\w{}-]*(?:\[(\w+)\])?)|"
    r'Install it if you need|"pip install \."'
)
"""What is installed; `test_what_is_to_be_installed_is_what_the_project_names` looks at it."""


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


SAID = {text for _, text in hints()}
HERE = {*SCENES, *CELLS, IN_FOLDERS}


def test_every_sentence_of_the_package_is_taken_or_listed():
    taken = {*TAKEN, *test_advice.SENTENCES_OF_OTHERS, *HERE}
    listed = IN_OTHER_TESTS.keys()
    installed = {*test_advice_outside.INSTALLED.values()}
    assert SAID - taken - listed - installed == set(), "no test takes it"
    assert installed <= SAID, "nobody says it any more"
    assert HERE | listed | {text for text in TAKEN if " " in text} <= SAID, (
        "nobody says it any more"
    )
    assert not listed & (HERE | TAKEN)
    assert len(SAID) > 300


@pytest.mark.parametrize("advice", IN_OTHER_TESTS)
def test_the_tests_of_other_rooms_hold_what_they_take(advice):
    assert test_advice.is_taken_in(advice, IN_OTHER_TESTS[advice])


def test_what_is_to_be_installed_is_what_the_project_names():
    """Its extras, and packages of these or of `constraints.txt`, under their names on PyPI."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    known = {re.split(r"[\W]", line)[0].lower() for each in extras.values() for line in each}
    known |= {each.partition("==")[0].lower() for each in CONSTRAINTS.splitlines()}
    named = [found for text in SAID for found in INSTALLING.finditer(text) if found[1]]
    assert len(named) > 8
    for found in named:
        package, extra = found[1], found[2]
        assert extra in extras if extra else package.replace("-", "_") in known | OF_OTHERS, found


def test_a_trainers_folder_of_folders(tmp_path):
    shutil.copytree(PACKAGE / "checkpoints/demo", tmp_path / "checkpoint-500")
    with pytest.raises(Glm4vError, match=re.escape(IN_FOLDERS)):
        resolve(tmp_path)
    assert resolve(tmp_path / "checkpoint-500").tensors
