"""What `generate` says, whatever the options, the rows beside, the split and what was kept."""

from __future__ import annotations

import itertools
import json
import random
import shutil

import golden
import pytest
import torch
from safetensors.torch import save_file
from transformers import GenerationConfig

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.glm4v_9b.layout import weight_shapes
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.placement import Place
from glm4v_magic.engines import local
from glm4v_magic.engines.sampling import checkpoint_config
from glm4v_magic.planning.decision import Placement
from glm4v_magic.virtual_gpus import VirtualGPUs

PHOTO, OTHER = golden.photo("image0.png"), golden.photo("image1.png")
TEXT = "model.language_model."
PLACES: dict[str, dict[str, Place] | None] = {
    "cpu": None,
    "split": golden.SPLIT,
    "offload": {**golden.SPLIT, f"{TEXT}layers.1": "cpu", "model.vision": "cpu"},
}
OPTIONS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0},
    "penalty": {"temperature": 0, "repetition_penalty": 1.7},
    "temperature": {"temperature": 1.5},
    "top_k": {"temperature": 1.5, "top_k": 5},
    "top_p": {"temperature": 1.0, "top_p": 0.7},
    "min_p": {"temperature": 1.5, "min_p": 0.3},
    "all": {"temperature": 1.2, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.3},
}
SHIPPED: dict[str, dict[str, float]] = {
    "no_repeat_ngram_size": {"temperature": 0.3, "no_repeat_ngram_size": 1},
    "typical_p": {"temperature": 1.5, "typical_p": 0.4},
    "epsilon_cutoff": {"temperature": 1.5, "epsilon_cutoff": 0.02},
    "eta_cutoff": {"temperature": 1.5, "eta_cutoff": 0.1},
    "several": {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.9},
    "penalties": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3, "temperature": 1.1},
    "nothing": {},
}
"""Settings of a ``generation_config.json``; some have no option of a call."""

ENDS = json.loads((golden.CHECKPOINT / "config.json").read_text())["eos_token_id"]
TOP_P = json.loads((golden.CHECKPOINT / "generation_config.json").read_text())["top_p"]
AT_ONCE = (1, 2, 3, 8)
KEPT = (0, 2**24)
ALL = list(itertools.product(PLACES, OPTIONS, AT_ONCE, KEPT))
DRAWN = random.Random(13).sample(ALL, len(ALL))
SAMPLE = [each for place in PLACES for each in [each for each in DRAWN if each[0] == place][:2]]
IN_4BIT = list(itertools.product(OPTIONS, AT_ONCE, KEPT))


def chats() -> list[Conversation]:
    """Texts, questions on two images, a system text, a second turn, an answer that goes on."""
    system = Message("system", "Be brief and exact, and say nothing twice.")
    first = Message("user", "What is there?", (PHOTO,))
    return [
        Conversation((Message("user", "What?"),)),
        Conversation((first,)),
        Conversation((system, Message("user", "How many shapes are there?", (PHOTO,)))),
        Conversation((system, Message("user", "Which colour?", (PHOTO,)))),
        Conversation((Message("user", "What is there?", (OTHER,)),)),
        Conversation((first, Message("assistant", "Red."), Message("user", "And its size?"))),
        Conversation((first, Message("assistant", "It is a", complete=False))),
    ]


def requests(option: str, told: int = 0) -> list[Request]:
    """Return a request for each chat: 2 to 14 tokens, each with a seed of its own.

    Args:
        option: name in `OPTIONS`; no option of the call for those in `SHIPPED`.
        told: 0 or 1: which half of the rows asks for the probabilities of its tokens, and so tells
            their ids; 2 for all.
    """
    own = OPTIONS.get(option, {})
    return [
        Request(
            chat,
            Sampling(
                limit(row),
                seed=row,
                logprobs=0 if told in (row % 2, 2) else None,
                **own,  # type: ignore[arg-type]
            ),
        )
        for row, chat in enumerate(chats())
    ]


def limit(row: int) -> int:
    return 2 + row * 5 % 13


class Oracle:
    """What `generate` says to the requests of an option: text and ids.

    Its configs are made here from transformers' own names alone; what `generate` does without a
    setting is its own affair.
    """

    def __init__(self, engine):
        self.engine = engine
        self._known: dict[str, list[tuple[str, list[int]]]] = {}

    def __call__(self, option: str) -> list[tuple[str, list[int]]]:
        if option not in self._known:
            self._known[option] = [self._said(option, row) for row in range(len(chats()))]
        return self._known[option]

    def _said(self, option: str, row: int) -> tuple[str, list[int]]:
        settings = {"top_p": TOP_P, **OPTIONS[option]} if option in OPTIONS else SHIPPED[option]
        is_sampled = option in SHIPPED or settings["temperature"] > 0
        if not is_sampled:  # it warns of what is without effect
            settings = {"repetition_penalty": settings.get("repetition_penalty", 1.0)}
        config = GenerationConfig(
            max_new_tokens=limit(row),
            do_sample=is_sampled,
            eos_token_id=ENDS,
            pad_token_id=ENDS[0],
            **settings,
        )
        engine, chat = self.engine, chats()[row]
        inputs = engine.processor([chat])
        torch.manual_seed(row)
        with torch.inference_mode():
            output = engine.model.generate(**inputs, generation_config=config)
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        text = engine.processor.decode(ids).rstrip("\ufffd")
        return text.rstrip() if chat.unfinished else text.strip(), ids


@pytest.fixture(scope="module")
def oracle():
    return Oracle(local.load(resolve(golden.CHECKPOINT), keep=0))


@pytest.fixture(scope="module")
def in_4bit(tmp_path_factory):
    """An oracle on the CPU in 4 bit, whose layers are whole blocks of 64 inputs."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("4bit") / "model"
    shutil.copytree(golden.CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text()) | {"ffn_hidden_size": 192}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.ones(shape) if "norm" in name else torch.randn(shape, generator=generator) / 8
        for name, shape in weight_shapes(config).items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return Oracle(local.load(resolve(folder), Placement(quantize="4bit"), keep=0))


def agree(oracle, place: str, option: str, at_once: int, keep: int) -> None:
    """Ask twice, in two orders: what the first call has kept must not change the second."""
    device_map = PLACES[place]
    runs = {f"{TEXT}layers.1": 1, "model.vision": 1} if place == "offload" else {}
    with VirtualGPUs("3x64MiB") as gpus:
        engine = local.load(
            resolve(golden.CHECKPOINT),
            Placement() if device_map is None else Placement(device_map=device_map,
                                                             execution_map=runs),
            keep=keep,
        )  # fmt: skip
        same_twice(engine, oracle, option, at_once)
        assert not gpus.problems
        engine.close()


def same_twice(engine, oracle, option: str, at_once: int) -> None:
    expected = oracle(option)
    for turn in range(2):
        asked = requests(option, told=turn)
        order = list(range(len(asked)))
        random.Random(turn).shuffle(order)
        found = {
            order[event.row]: event.generation
            for event in engine.stream([asked[row] for row in order], at_once)
            if isinstance(event, Finished)
        }
        for row, (text, ids) in enumerate(expected):
            assert found[row].text == text
            assert found[row].usage.new_tokens == len(ids)
            if asked[row].sampling.logprobs is not None:
                assert [token.id for token in found[row].tokens] == ids


def agree_in_4bit(oracle, option: str, at_once: int, keep: int) -> None:
    engine = oracle.engine
    assert any("4bit" in type(module).__name__ for module in engine.model.modules())
    engine.kept.clear()
    engine.kept.budget = keep
    same_twice(engine, oracle, option, at_once)
    engine.kept.budget = 0
    engine.kept.clear()


@pytest.mark.parametrize(("place", "option", "at_once", "keep"), SAMPLE, ids=str)
def test_a_sample_of_all_combinations(oracle, place, option, at_once, keep):
    agree(oracle, place, option, at_once, keep)


@pytest.mark.parametrize("option", [*OPTIONS, *SHIPPED])
def test_every_option_and_every_setting_of_a_file(oracle, option):
    engine = local.load(resolve(golden.CHECKPOINT), keep=0)
    shipped = SHIPPED.get(option, {"top_p": TOP_P})
    config = GenerationConfig(do_sample=True, eos_token_id=ENDS, **shipped)
    engine.defaults, left_out = checkpoint_config(config, (), 2**20)
    assert left_out == ()
    found = {
        event.row: [token.id for token in event.generation.tokens]
        for event in engine.stream(requests(option, told=2), at_once=3)
        if isinstance(event, Finished)
    }
    assert found == {row: ids for row, (_, ids) in enumerate(oracle(option))}


@pytest.mark.parametrize(
    ("option", "at_once", "keep"), random.Random(13).sample(IN_4BIT, 2), ids=str
)
def test_a_sample_in_4bit(in_4bit, option, at_once, keep):
    agree_in_4bit(in_4bit, option, at_once, keep)


@pytest.mark.nightly
@pytest.mark.parametrize(("option", "at_once", "keep"), IN_4BIT, ids=str)
def test_all_in_4bit(in_4bit, option, at_once, keep):
    agree_in_4bit(in_4bit, option, at_once, keep)


@pytest.fixture(scope="module")
def in_8bit():
    pytest.importorskip("bitsandbytes")
    return local.load(resolve(golden.CHECKPOINT), Placement(quantize="8bit"), keep=0)


def moved(engine, row: int, ids: list[int], logprobs: torch.Tensor) -> torch.Tensor:
    """How far log-probabilities of tokens, (N,), are from those of one forward of all of them."""
    inputs = engine.processor([chats()[row]])
    prompt = inputs.pop("input_ids")
    inputs.pop("attention_mask")
    whole = torch.cat((prompt, torch.tensor([ids])), dim=1)
    with torch.inference_mode():
        logits = engine.model(
            input_ids=whole, attention_mask=torch.ones_like(whole), **inputs
        ).logits[0, prompt.shape[1] - 1 : -1]
    return (
        logits.float().log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0] - logprobs
    ).abs()


@pytest.fixture(scope="module")
def moved_by_generate(in_8bit):
    """How far those of `generate` are, on average."""
    found = []
    for row, chat in enumerate(chats()):
        inputs = in_8bit.processor([chat])
        config = GenerationConfig(
            max_new_tokens=6 + row,
            eos_token_id=ENDS,
            pad_token_id=ENDS[0],
            output_logits=True,
            return_dict_in_generate=True,
        )
        with torch.inference_mode():
            output = in_8bit.model.generate(**inputs, generation_config=config)
        ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        told = torch.cat(output.logits).float().log_softmax(-1)
        found.append(moved(in_8bit, row, ids, told.gather(1, torch.tensor(ids)[:, None])[:, 0]))
    return float(torch.cat(found).mean())


EIGHT_BIT = pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast")
BESIDE = [
    Conversation((Message("user", text, images),))
    for text, images in (("What?", ()), ("Here it is", ()), ("What is it?", (OTHER,)))
]
"""Rows in the order in which they are read together: by length."""


def bits(engine, together: list[Conversation]) -> list[tuple[list[int], list[float]]]:
    """Ids of rows that `generate` is asked together, and the bits of their log-probabilities."""
    inputs = engine.processor(together)
    inputs["input_ids"][inputs["attention_mask"] == 0] = 0  # padding as here
    config = GenerationConfig(
        max_new_tokens=7,
        eos_token_id=None,
        pad_token_id=ENDS[0],
        output_logits=True,
        return_dict_in_generate=True,
    )
    with torch.inference_mode():
        output = engine.model.generate(**inputs, generation_config=config)
    ids = output.sequences[:, inputs["input_ids"].shape[1] :]
    told = torch.stack(output.logits, dim=1).float().log_softmax(-1)
    told = told.gather(2, ids[..., None])[..., 0]
    return list(zip(ids.tolist(), told.tolist(), strict=True))


@EIGHT_BIT
@pytest.mark.parametrize("together", [*([chat] for chat in chats()), BESIDE], ids=len)
def test_in_8bit_the_same_rows_together_have_the_bits_of_generate(in_8bit, together, monkeypatch):
    monkeypatch.setattr(in_8bit.defaults, "eos_token_id", [])
    in_8bit.kept.budget = 0
    asked = [Request(chat, Sampling(7, temperature=0, logprobs=0)) for chat in together]
    found = {
        event.row: (
            [token.id for token in event.generation.tokens],
            [token.logprob for token in event.generation.tokens],
        )
        for event in in_8bit.stream(asked, len(asked))
        if isinstance(event, Finished)
    }
    assert [found[row] for row in range(len(asked))] == bits(in_8bit, together)


@EIGHT_BIT
def test_in_8bit_a_layer_itself_mixes_the_rows_beside_each_other(in_8bit):
    """Columns that are large in any row, padding included, are computed otherwise for all rows."""
    layer = in_8bit.model.model.language_model.layers[0].mlp.down_proj
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 1, layer.in_features, generator=generator).clamp(-5, 5)
    with torch.inference_mode():
        together = layer(rows)
        assert all(torch.equal(layer(rows[at : at + 1])[0], together[at]) for at in range(4))
        rows[3, 0, 0] = 50
        assert not torch.equal(layer(rows)[:3], together[:3])


@EIGHT_BIT
@pytest.mark.parametrize("at_once", [1, 8])
def test_in_8bit_tokens_move_no_further_than_in_generate(in_8bit, moved_by_generate, at_once):
    """Activations are rounded to 8 bit: a change of 1e-7 becomes one of a step, in `generate`, too.

    Rows beside others and after a prefix that is kept are computed in other forwards than alone, so
    there are no same ids; but a wrong place or cache would be far more than such steps.
    """
    in_8bit.kept.budget = 2**24
    asked = [
        Request(chat, Sampling(6 + row, temperature=0, logprobs=0))
        for row, chat in enumerate(chats())
    ]
    for _ in range(2):  # the second time, what was read is kept
        apart = []
        for event in in_8bit.stream(asked, at_once):
            if isinstance(event, Finished):
                tokens = event.generation.tokens
                ids = [token.id for token in tokens]
                told = torch.tensor([token.logprob for token in tokens])
                apart.append(moved(in_8bit, event.row, ids, told))
        assert 0 < moved_by_generate < 0.1
        assert torch.cat(apart).mean() < 1.6 * moved_by_generate
    in_8bit.kept.clear()


@pytest.mark.nightly
@pytest.mark.parametrize(("place", "option", "at_once", "keep"), ALL, ids=str)
def test_all_combinations(oracle, place, option, at_once, keep):
    agree(oracle, place, option, at_once, keep)
