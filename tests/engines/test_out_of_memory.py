"""A GPU that runs out: while loading, while reading the prompt, in the middle of an answer.

On virtual GPUs. What takes the room is a tensor that stands for another user's program; it stays
until the end of each test, so that what works afterwards works on the same crowded GPU.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import golden
import pytest
import torch
from following import follow
from PIL import Image

from glm4v_magic.checkpoints.glm4v_9b.weights import SplitQueryKeyValue
from glm4v_magic.core.errors import CheckpointError, OutOfMemoryError
from glm4v_magic.core.events import Loading
from glm4v_magic.core.remarks import remark
from glm4v_magic.engines import out_of_memory as messages
from glm4v_magic.hardware.gpus import FoundGPU
from glm4v_magic.hardware.processes import GPUUser, other_users
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

GPUS = 3
CAPACITY = 2**30  # with room for what a plan keeps free for CUDA
TEXT = "model.language_model."
MAP: dict[str, int] = {
    "model.vision": 0,
    f"{TEXT}embed_tokens": 0,
    f"{TEXT}rotary_emb": 0,
    f"{TEXT}layers.0": 0,
    f"{TEXT}layers.1": 1,
    f"{TEXT}layers.2": 1,
    f"{TEXT}layers.3": 2,
    f"{TEXT}norm": 2,
    "lm_head": 2,
}
SMALL: dict[str, Any] = {"text": "a", "temperature": 0, "max_tokens": 2}
LARGE: dict[str, Any] = {"text": "word " * 40, "temperature": 0, "max_tokens": 4}


class TestMessage:
    CUDA = (
        "CUDA out of memory. Tried to allocate 188.00 MiB. GPU 1 has a total capacity of 15.89 GiB "
        "of which 96.00 MiB is free. Process 7 has 9.00 GiB memory in use."
    )
    GPU = FoundGPU(1, "T4", "GPU-b", 16 * 2**30, 96 * 2**20, 6 * 2**30, 9 * 2**30)

    @pytest.fixture
    def on_gpus(self, monkeypatch):
        def install(gpu, *users):
            monkeypatch.setattr("glm4v_magic.hardware.gpus.find_gpus", lambda: (gpu,))
            monkeypatch.setattr(
                "glm4v_magic.hardware.processes.other_users", lambda gpu: tuple(users)
            )

        return install

    def test_other_processes_are_named(self, on_gpus):
        on_gpus(
            self.GPU,
            GPUUser(7, "/usr/bin/python3", 9 * 2**30),
            GPUUser(8, "", None),
            GPUUser(9, "x", 2**30),
            GPUUser(10, "y", 2**30),
        )
        error = messages.out_of_memory(self.CUDA, "here", remark("more_gpus"))
        assert str(error) == (
            "cuda:1 ran out of memory here: 188.00 MiB were asked for and 96.00 MiB are free. "
            "Also on this GPU: process 7 (python3, 9.0 GiB), process 8, process 9 (x, 1.0 GiB) "
            "and 1 more. use more GPUs"
        )

    def test_without_a_list_of_processes_their_sum_is_told(self, on_gpus):
        on_gpus(self.GPU)
        error = messages.out_of_memory(self.CUDA, "here", remark("more_gpus"))
        assert "Other programs and the driver hold 9.0 GiB of it." in str(error)

    def test_a_gpu_that_nobody_knows(self, on_gpus):
        on_gpus(FoundGPU(0, "T4"))
        error = messages.out_of_memory(self.CUDA, "here", remark("more_gpus"))
        assert str(error).endswith("96.00 MiB are free. use more GPUs")

    @pytest.mark.parametrize(
        ("error", "where"),
        [
            (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."), "A GPU"),
            (RuntimeError("CUDA error: out of memory"), "A GPU"),
            (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), "A GPU"),
            (
                RuntimeError(
                    "Expected mha_graph.execute(handle, variant_pack, workspace_ptr.get())"
                    ".is_good() to be true, but got false."
                ),
                "A GPU",
            ),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), "The host"),
            (MemoryError(), "The host"),
        ],
    )
    def test_what_counts_as_out_of_memory(self, error, where):
        assert messages.is_out_of_memory(error)
        said = str(messages.out_of_memory(str(error), "here", remark("more_gpus")))
        assert said.startswith(f"{where} ran out of memory here")

    @pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory")])
    def test_what_does_not(self, error):
        assert not messages.is_out_of_memory(error)


def test_processes_come_from_the_driver(monkeypatch):
    import os
    from types import SimpleNamespace

    import pynvml

    def process(pid, size):
        return SimpleNamespace(pid=pid, usedGpuMemory=size)

    def failing(*_args):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    replacements = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetComputeRunningProcesses": lambda _: [
            process(os.getpid(), 5),
            process(7, 10),
            process(8, None),
        ],
        "nvmlDeviceGetGraphicsRunningProcesses": lambda _: [process(9, 20), process(7, 10)],
        "nvmlSystemGetProcessName": lambda pid: failing() if pid == 8 else f"/bin/p{pid}",
    }
    for name, function in replacements.items():
        monkeypatch.setattr(pynvml, name, function)
    assert other_users(FoundGPU(0, "T4", "GPU-a")) == (
        GPUUser(9, "/bin/p9", 20),
        GPUUser(7, "/bin/p7", 10),
        GPUUser(8, "", None),
    )
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", failing)
    assert other_users(FoundGPU(0, "T4", "GPU-a")) == ()
    assert other_users(FoundGPU(0, "T4")) == ()


@dataclass
class Loaded:
    gpus: VirtualGPUs
    session: Session
    before: str
    small_bytes: list[int]
    large_bytes: list[int]

    def room(self, gpu: int, size: int) -> torch.Tensor:
        """Take all of a GPU's memory but `size` bytes."""
        free = CAPACITY - self.gpus.live_bytes[gpu]
        return torch.empty(free - size, dtype=torch.uint8, device=f"cuda:{gpu}")

    def needs(self, question: dict[str, Any]) -> list[int]:
        """What a question takes of each GPU at the worst moment."""
        weights = self.gpus.live_bytes
        self.gpus.reset()
        self.session.ask(**question)
        peaks = [0] * GPUS
        for peak in self.gpus.peaks:
            peaks[peak.device] = max(peaks[peak.device], peak.peak_bytes)
        return [peak - held for peak, held in zip(peaks, weights, strict=True)]


@pytest.fixture(scope="module")
def loaded():
    with VirtualGPUs([CAPACITY] * GPUS) as gpus:
        session = Session().load(golden.CHECKPOINT, device_map=MAP)
        session.engine.kept.budget = 0
        state = Loaded(gpus, session, session.ask(**SMALL).text, [], [])
        state.small_bytes, state.large_bytes = state.needs(SMALL), state.needs(LARGE)
        yield state
        session.unload()


@pytest.fixture(autouse=True)
def _free_gpus():
    """An exception that was caught holds its test's frame, and with it what took the room."""
    gc.collect()


def still_answers(loaded: Loaded, weights: tuple[int, ...], last: object) -> None:
    assert loaded.gpus.live_bytes == weights
    assert loaded.session.status().last is last
    assert not loaded.session.status().busy
    engine = loaded.session.engine
    assert loaded.session.ask(**SMALL).text == loaded.before
    assert loaded.session.engine is engine


@pytest.mark.parametrize("gpu", range(GPUS))
def test_a_gpu_too_small_for_the_prompt(loaded, gpu):
    room = (loaded.small_bytes[gpu] + loaded.large_bytes[gpu]) // 2
    others = loaded.room(gpu, room)
    weights, last = loaded.gpus.live_bytes, loaded.session.status().last
    with pytest.raises(OutOfMemoryError) as caught:
        loaded.session.ask(**LARGE)
    said = str(caught.value)
    assert said.startswith(f"cuda:{gpu} ran out of memory while the prompt of ")
    assert "KiB were asked for and" in said
    assert "are free. The model is still loaded and can be asked again: shorten the prompt" in said
    assert "\n" not in said
    assert caught.value.__context__ is None  # its frames would hold the cache
    still_answers(loaded, weights, last)
    del others


@pytest.mark.parametrize("gpu", range(GPUS))
def test_a_gpu_that_fills_up_in_the_middle_of_an_answer(loaded, gpu):
    others, pieces = [], []

    def another_program_starts(text):
        pieces.append(text)
        if len(others) == 0:
            others.append(loaded.room(gpu, 64))

    whole = loaded.session.ask(**LARGE)
    weights = list(loaded.gpus.live_bytes)
    with pytest.raises(OutOfMemoryError) as caught:
        follow(loaded.session.stream(**LARGE), text=another_program_starts)
    said = str(caught.value)
    assert said.startswith(f"cuda:{gpu} ran out of memory after ")
    assert "tokens of the answer" in said
    assert "ask for fewer tokens (max_tokens)" in said
    assert "in the exception's answer, and session.carry_on() carries it on" in said
    assert pieces
    weights[gpu] += others[0].nbytes
    until_then = loaded.session.status().last
    assert caught.value.answer is until_then
    assert 0 < len(until_then.text) < len(whole.text)
    others[0].set_()
    goes_on = {name: value for name, value in LARGE.items() if name != "text"}
    carried_on = loaded.session.carry_on(**goes_on).text
    assert len(carried_on) > len(until_then.text)
    assert carried_on.startswith(until_then.text.rstrip("\ufffd"))
    others[0] = loaded.room(gpu, 4 * max(loaded.small_bytes))
    still_answers(loaded, loaded.gpus.live_bytes, loaded.session.status().last)


def load_beside(session, begin):
    """Load while another program begins: what is held before a load is known to its plan."""
    has_begun = False
    for event in session.stream_load(golden.CHECKPOINT, device_map=MAP):
        if isinstance(event, Loading) and not has_begun:  # the plan is made, nothing is read yet
            has_begun = True
            begin()


@pytest.mark.parametrize("gpu", range(GPUS))
def test_a_gpu_too_small_for_its_weights(loaded, gpu):
    others = []
    before = loaded.gpus.live_bytes
    session = Session()
    with pytest.raises(OutOfMemoryError) as caught:
        load_beside(session, lambda: others.append(loaded.room(gpu, 50_000)))
    assert str(caught.value).startswith(
        f"cuda:{gpu} ran out of memory while {golden.CHECKPOINT} was loaded: "
    )
    assert "Nothing is loaded now" in str(caught.value)
    assert session.status().info is None
    others.clear()
    gc.collect()
    assert loaded.gpus.live_bytes == before
    session.load(golden.CHECKPOINT, device_map=MAP)
    assert session.unload()


def test_another_error_in_the_model_is_not_disguised(loaded):
    def fail(*_args):
        raise RuntimeError("shape mismatch")

    handle = loaded.session.engine.model.model.vision.register_forward_hook(fail)
    photo = Image.new("RGB", (8, 8))
    try:
        with pytest.raises(RuntimeError, match="shape mismatch"):
            loaded.session.ask("a", photo)
    finally:
        handle.remove()


def test_a_gpu_that_fills_up_while_a_weight_is_converted(loaded, monkeypatch, caplog):
    def run_out(*_args, **_options):
        return torch.empty(2 * CAPACITY, dtype=torch.uint8, device="cuda:1")

    monkeypatch.setattr(SplitQueryKeyValue, "convert", run_out)
    before = loaded.gpus.live_bytes
    said = r"^cuda:1 ran out of memory while .* was loaded: 2.00 GiB were asked for and "
    with pytest.raises(OutOfMemoryError, match=said):
        Session().load(golden.CHECKPOINT, device_map=MAP)
    assert loaded.gpus.live_bytes == before
    assert caplog.text == ""  # transformers would have logged a page


def test_a_fault_in_a_conversion_is_not_called_a_lack_of_memory(loaded, monkeypatch):
    def fail(*_args, **_options):
        raise ZeroDivisionError

    monkeypatch.setattr(SplitQueryKeyValue, "convert", fail)
    with pytest.raises(CheckpointError, match=r"could not be loaded: .*ZeroDivisionError"):
        Session().load(golden.CHECKPOINT, device_map=MAP)
