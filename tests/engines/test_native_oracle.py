"""The newer models sampled, split and offloaded: the ids of transformers' `generate` for a seed."""

from __future__ import annotations

import itertools
import random

import pytest
import tiny_native
import torch
from transformers import GenerationConfig

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.placement import Place
from glm4v_magic.engines import local
from glm4v_magic.planning.decision import Placement
from glm4v_magic.virtual_gpus import VirtualGPUs

KINDS = tiny_native.KINDS
A, B, C = (tiny_native.image(*size) for size in ((300, 200, 0), (90, 260, 1), (5, 7, 2)))
OPTIONS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0, "repetition_penalty": 1.0},
    "penalty": {"temperature": 0, "repetition_penalty": 1.6},
    "temperature": {"temperature": 1.5},
    "top_k": {"temperature": 1.5, "top_k": 9, "top_p": 1.0},
    "top_p": {"temperature": 1.2, "top_k": 0, "top_p": 0.8},
    "min_p": {"temperature": 1.4, "top_k": 0, "top_p": 1.0, "min_p": 0.2},
    "all": {"temperature": 1.2, "top_k": 30, "top_p": 0.95, "min_p": 0.02,
            "repetition_penalty": 1.3},
    "of the file": {},
}  # fmt: skip
FILE = {"temperature": 0.8, "top_p": 0.6, "top_k": 2, "repetition_penalty": 1.1}
"""What the generation config of these checkpoints says (`tiny_native.write`)."""
AT_ONCE, KEPT = (1, 3), (0, 2**26)
ALL = list(itertools.product(KINDS, OPTIONS, AT_ONCE, KEPT))
FEW = [
    (kind, option, AT_ONCE[at % 2], KEPT[1 - at // 2 % 2])
    for at, (kind, option) in enumerate(
        zip(KINDS, ("all", "top_p", "min_p", "temperature", "top_k", "of the file"), strict=True)
    )
]


def chats() -> list[Conversation]:
    first = Message("user", "What is it?", (A,))
    return [
        Conversation((Message("user", "What do they show?"),)),
        Conversation((first,)),
        Conversation((Message("system", "Be brief."), Message("user", "Both?", (B, A)))),
        Conversation((first, Message("assistant", "A square."), Message("user", "And?", (C,)))),
    ]


def limit(row: int) -> int:
    return 4 + row * 7 % 11


@pytest.fixture(scope="module")
def engines(native):
    loaded = {}

    def engine(kind):
        if kind not in loaded:
            loaded[kind] = local.load(resolve(native(kind)), keep=0)
        loaded[kind].kept.clear()
        return loaded[kind]

    return engine


def generated(engine, folder, option) -> list[list[int]]:
    """Ids of each chat by `generate`, from inputs that transformers' own processor makes."""
    settings = FILE | OPTIONS[option]
    is_sampled = settings["temperature"] > 0
    if not is_sampled:
        settings = {"repetition_penalty": settings["repetition_penalty"]}
    ends = [
        *engine.model.config.get_text_config().eos_token_id,
        engine.processor.tokenizer.convert_tokens_to_ids("<|system|>"),  # no answer has it
    ]
    processor = tiny_native.oracle(folder)
    said = []
    for row, chat in enumerate(chats()):
        inputs = tiny_native.oracle_inputs(processor, [chat])
        config = GenerationConfig(
            max_new_tokens=limit(row),
            do_sample=is_sampled,
            eos_token_id=ends,
            pad_token_id=ends[0],
            **settings,
        )
        torch.manual_seed(row)
        with torch.inference_mode():
            output = engine.model.generate(**inputs, generation_config=config)
        said.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return said


def agree(engine, folder, option, at_once, keep):
    same_twice(engine, generated(engine, folder, option), option, at_once, keep)


def on_three_gpus(model, *, offload: bool) -> Placement:
    """Tower, layers and head on different GPUs; the last layer may stay in host memory."""
    text = "model.language_model."
    layers = range(len(model.model.language_model.layers))
    places: dict[str, Place] = {
        f"model.{name}": 2 for name, _ in model.model.named_children() if name != "language_model"
    }
    for name, _ in model.model.language_model.named_children():
        if name != "layers":
            places[f"{text}{name}"] = 0
    places |= {f"{text}layers.{at}": at * 3 // len(layers) for at in layers}
    last = f"{text}layers.{layers[-1]}"
    return Placement(
        device_map={**places, "lm_head": 1, **({last: "cpu"} if offload else {})},
        execution_map={last: 1} if offload else {},
    )


def same_twice(engine, expected, option, at_once, keep):
    """Ask twice, in two orders: what the first call has kept must not change the second."""
    assert len({tuple(ids) for ids in expected}) == len(expected)
    engine.kept.budget = keep
    requests = [
        Request(chat, Sampling(limit(row), seed=row, logprobs=0, **OPTIONS[option]))
        for row, chat in enumerate(chats())
    ]
    for turn in range(2):
        order = list(range(len(requests)))
        random.Random(turn).shuffle(order)
        for event in engine.stream([requests[row] for row in order], at_once):
            if isinstance(event, Finished):
                tokens = (*event.generation.thinking_tokens, *event.generation.tokens)
                assert [token.id for token in tokens] == expected[order[event.row]]


@pytest.mark.parametrize(("kind", "option", "at_once", "keep"), FEW, ids=str)
def test_each_model_type_with_other_options(engines, native, kind, option, at_once, keep):
    agree(engines(kind), native(kind), option, at_once, keep)


@pytest.mark.nightly
@pytest.mark.parametrize(("kind", "option", "at_once", "keep"), ALL, ids=str)
def test_every_model_type_with_every_option(engines, native, kind, option, at_once, keep):
    agree(engines(kind), native(kind), option, at_once, keep)


@pytest.mark.nightly
@pytest.mark.parametrize("offload", [False, True], ids=["split", "offloaded"])
@pytest.mark.parametrize(("kind", "option"), list(itertools.product(KINDS, OPTIONS)), ids=str)
def test_every_model_type_on_three_gpus(engines, native, kind, option, offload):
    one = engines(kind)
    expected = generated(one, native(kind), option)
    with VirtualGPUs("3x256MiB") as gpus:
        split = local.load(resolve(native(kind)), on_three_gpus(one.model, offload=offload))
        for at_once, keep in zip(AT_ONCE, reversed(KEPT), strict=True):
            same_twice(split, expected, option, at_once, keep)
        assert not gpus.problems
        split.close()
