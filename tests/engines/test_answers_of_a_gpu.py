"""Answers of a real GPU: those of the CPU, alone and split between the GPU and the CPU.

    pytest -m gpu tests/engines/test_answers_of_a_gpu.py

In float32, with convolutions in float32, too: by default cuDNN computes them in TF32, which has ten
bits of precision.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from collections.abc import Iterator

import golden
import pytest
import tiny_native
import torch
from PIL import features

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import GenerationInterrupted, OutOfMemoryError
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.placement import Place
from glm4v_magic.engines import local
from glm4v_magic.hardware.gpus import find_gpus
from glm4v_magic.planning.decision import Placement
from glm4v_magic.session.session import Session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
MIB = 2**20
TEXT = "model.language_model."
UNITS = [
    "model.vision",
    f"{TEXT}embed_tokens",
    *(f"{TEXT}layers.{index}" for index in range(4)),
    f"{TEXT}norm",
    "lm_head",
]
MAPS: dict[str, dict[str, Place]] = {
    "one GPU": {"": 0},
    **{
        f"{unit} on the CPU": {
            f"{TEXT}rotary_emb": 0,
            **{name: "cpu" if name == unit else 0 for name in UNITS},
        }
        for unit in UNITS
    },
    "to and fro": {
        f"{TEXT}rotary_emb": "cpu",
        **{name: "cpu" if number % 2 else 0 for number, name in enumerate(UNITS)},
    },
}
NATIVE = Sampling(12, temperature=0)


@pytest.fixture(scope="module", autouse=True)
def _exact() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def resized_alike(case: str) -> bool:
    """Whether Pillow resizes the image of a case as it did for the reference: since Pillow 13."""
    turns = golden.CASES[case]["conversation"]
    return features.version("pil") >= "13" or all(t.get("image") != "image1.png" for t in turns)


def put(engine: local.LocalEngine) -> set[str]:
    return {str(weight.device) for weight in engine.model.parameters()}


def said(engine: local.LocalEngine, requests: list[Request], at_once: int) -> list[str]:
    events = engine.stream(requests, at_once)
    found = {event.row: event.generation.text for event in events if isinstance(event, Finished)}
    return [found[row] for row in range(len(requests))]


def chats(first, second) -> list[Conversation]:
    asked = Message("user", "What is there?", (first,))
    return [
        Conversation((Message("user", "What?"),)),
        Conversation((asked,)),
        Conversation((Message("user", "What is there, and how many?", (second,)),)),
        Conversation((asked, Message("assistant", "Red."), Message("user", "And its size?"))),
        Conversation((asked, Message("assistant", "It is a", complete=False))),
    ]


@pytest.mark.parametrize("name", MAPS)
def test_logits_and_ids_of_the_reference(name: str) -> None:
    loaded = resolve(golden.CHECKPOINT).load(dtype=torch.float32, device_map=MAPS[name])
    for case in golden.SINGLE_ROW:
        if not resized_alike(case):
            continue
        encoded = loaded.processor([golden.conversation(case)])
        inputs = {name: tensor.to("cuda:0") for name, tensor in encoded.items()}
        with torch.inference_mode():
            logits = loaded.model(**inputs).logits.cpu()
            output = loaded.model.generate(
                **inputs, max_new_tokens=16, max_length=None, do_sample=False, eos_token_id=None
            )
        expected = golden.tensors(case)["logits"]
        torch.testing.assert_close(logits.reshape(expected.shape), expected, rtol=1e-3, atol=1e-3)
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        assert ids == golden.CASES[case]["greedy_ids"]


@pytest.mark.parametrize("keep", [0, 16 * MIB])
@pytest.mark.parametrize("name", ["one GPU", "model.vision on the CPU", "to and fro"])
def test_what_the_cpu_says(name: str, keep: int) -> None:
    """Alone and in batches; parts that are offloaded run on the GPU.

    A seed draws other numbers on a GPU than on the CPU, so what is drawn is that of a row alone.
    """
    images = golden.photo("image0.png"), golden.photo("image1.png")
    requests = [
        Request(chat, Sampling(4 + row * 5 % 13, temperature=heat, top_k=9, seed=row))
        for heat in (0, 1.2)
        for row, chat in enumerate(chats(*images))
    ]
    greedy = len(requests) // 2
    expected = said(local.load(resolve(golden.CHECKPOINT), keep=0), requests[:greedy], 1)
    engine = local.load(resolve(golden.CHECKPOINT), Placement(device_map=MAPS[name]), keep=keep)
    assert put(engine) == ({"cuda:0"} if name == "one GPU" else {"cuda:0", "meta"})
    alone = said(engine, requests, 1)
    assert alone[:greedy] == expected
    for at_once in (3, 8, 1):
        assert said(engine, requests, at_once) == alone
    assert (engine.kept.facts.used_bytes > 0) == (keep > 0)
    engine.close()


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_what_the_cpu_says_of_the_newer_models(kind: str, tmp_path) -> None:
    folder = tiny_native.write(kind, tmp_path / kind)
    images = tiny_native.image(300, 200, 0), tiny_native.image(90, 260, 1)
    requests = [Request(chat, NATIVE) for chat in chats(*images)[:4]]
    expected = said(local.load(resolve(folder), keep=0), requests, 1)
    layers = [f"model.language_model.layers.{number}" for number in range(4)]
    rng = random.Random(kind)
    split: dict[str, Place] = {"": 0, **dict.fromkeys(rng.sample(layers, 2), "cpu")}
    for device_map in ({"": 0}, split, {**split, "model.visual": "cpu"}):
        engine = local.load(resolve(folder), Placement(device_map=device_map))
        for at_once in (1, 3):
            assert said(engine, requests, at_once) == expected
        engine.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["one GPU", "to and fro"])
def test_short_types_answer_one_and_all(dtype: str, name: str) -> None:
    images = golden.photo("image0.png"), golden.photo("image1.png")
    requests = [Request(chat, Sampling(6, temperature=0)) for chat in chats(*images)]
    engine = local.load(
        resolve(golden.CHECKPOINT), Placement(dtype=dtype, device_map=MAPS[name]), keep=0
    )
    alone = said(engine, requests, 1)
    engine.kept.budget = 16 * MIB
    assert said(engine, requests, 1) == alone  # what is kept is what would be computed
    assert said(engine, requests, 1) == alone
    engine.close()


def test_in_4bit_it_answers_as_generate_does() -> None:
    pytest.importorskip("bitsandbytes")
    session = Session().load("demo", quantize="4bit")
    image = golden.photo("image0.png").image
    texts = [session.ask("What shape is it?", image, temperature=0).text for _ in range(3)]
    assert len(set(texts)) == 1
    assert texts[0]
    session.unload()


class TestOutOfMemory:
    """A tensor takes all but little of the GPU: one error, and the next question is answered."""

    @staticmethod
    def crowded(left: int) -> torch.Tensor:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(0)
        # in whole pages of 2 MiB, as CUDA hands them out
        size = (free - left) // (32 * MIB) * (32 * MIB)
        return torch.empty(size, dtype=torch.uint8, device="cuda:0")

    def test_while_the_prompt_is_read(self) -> None:
        session = Session().load("demo-4.6v", keep=0)
        before = session.ask("Which colour?", temperature=0, max_tokens=4).text
        image = tiny_native.image(1100, 1100, 0).image
        room = self.crowded(4 * MIB)
        with pytest.raises(OutOfMemoryError, match="ran out of memory while the prompt"):
            session.ask("What is there?", [image] * 6)
        assert session.status().info is not None
        del room
        gc.collect()
        torch.cuda.empty_cache()
        assert session.ask("Which colour?", temperature=0, max_tokens=4).text == before
        session.unload()

    def test_while_it_is_loaded(self) -> None:
        room = self.crowded(1 * MIB)
        session = Session()
        with pytest.raises(OutOfMemoryError, match="cuda:0 ran out of memory while"):
            session.load(golden.CHECKPOINT, device_map={"": 0}, dtype="float32")
        assert session.status().info is None
        del room
        gc.collect()
        torch.cuda.empty_cache()
        session.load(golden.CHECKPOINT, device_map={"": 0}, dtype="float32")
        assert session.unload()


def test_memory_is_given_back() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(0)
    for _ in range(3):
        session = Session().load("demo")
        session.ask("What is it?", golden.photo("image0.png").image)
        assert torch.cuda.memory_allocated(0) > before
        session.unload()
        gc.collect()
    # cuBLAS keeps its workspaces for the life of the process.
    assert torch.cuda.memory_allocated(0) - before <= 64 * MIB


def test_an_interrupt_keeps_model_and_text() -> None:
    session = Session().load(golden.CHECKPOINT, device_map={"": 0}, dtype="float32")
    for seed in range(12):
        timer = threading.Timer(0.005 * seed, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            session.ask("What?", seed=seed, max_tokens=200)
        except (GenerationInterrupted, KeyboardInterrupt):
            pass
        finally:
            timer.join()
            time.sleep(0.01)
        assert not session.status().busy
    first = session.ask("What?", temperature=0, max_tokens=8).text
    assert first == Session().load(golden.CHECKPOINT, device_map={"": "cpu"}).ask(
        "What?", temperature=0, max_tokens=8
    ).text  # fmt: skip
    session.unload()


def test_the_driver_and_torch_agree() -> None:
    for gpu in find_gpus():
        index = gpu.index
        free, total = torch.cuda.mem_get_info(index)
        assert gpu.total_bytes == pytest.approx(total, rel=0.02)
        assert gpu.free_bytes == pytest.approx(free, rel=0.02)
        assert gpu.name == torch.cuda.get_device_name(index)
        assert gpu.bandwidth is None or gpu.bandwidth > 1e11
