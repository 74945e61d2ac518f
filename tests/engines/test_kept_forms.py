"""A chat is answered with the same ids whether or not anything is kept, in whatever form it is."""

from __future__ import annotations

import json
from dataclasses import replace

import golden
import numpy as np
import pytest
import tiny_native
import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local
from glm4v_magic.images.video import to_video
from glm4v_magic.planning.decision import Placement

KEEP = 2**26
SAMPLED = Sampling(9, temperature=1.3, top_k=30, repetition_penalty=1.2, seed=3, logprobs=0)
GREEDY = Sampling(9, temperature=0, logprobs=0)
WORDS = Message("user", "What is it?")


def answer(engine, chat, sampling):
    (found,) = [
        event.generation
        for event in engine.stream([Request(chat, sampling)])
        if isinstance(event, Finished)
    ]
    return found


def ids(generation):
    return [token.id for token in (*generation.thinking_tokens, *generation.tokens)]


class Both:
    """An engine that keeps what it reads and one that keeps nothing."""

    def __init__(self, folder, placement=None):
        self.engine, self.plain = (
            local.load(resolve(folder), placement, keep=keep) for keep in (KEEP, 0)
        )
        self.read: list[int] = []
        self.engine.model.register_forward_pre_hook(self._read, with_kwargs=True)

    def _read(self, _module, _args, options):
        self.read.append(options["input_ids"].shape[1])

    def say(self, chat, sampling, *, is_known=True):
        """Ask both; if the images and videos are known, they must not be read again."""
        self.read.clear()
        found, expected = (answer(each, chat, sampling) for each in (self.engine, self.plain))
        assert ids(found) == ids(expected)
        assert found.text == expected.text
        if is_known:
            encoded = self.engine.processor.encode(chat)
            assert encoded.visual_tokens
            assert self.read[0] <= encoded.length - encoded.visual_tokens
        return found.text


def talk_through(both, first, sampling):
    """A question, a follow-up, a retry, an edited question, an edited answer, a continuation."""
    chat = Conversation((first,))
    said = both.say(chat, sampling, is_known=False)
    again = replace(sampling, seed=8) if sampling.seed is not None else sampling
    begun = chat.with_answer("It is a", complete=False)

    def later(text, question="And its size?"):
        return chat.with_answer(text, complete=True).add(Message("user", question))

    for changed, how in (
        (later(said), sampling),
        (chat, again),  # retried
        (Conversation((replace(first, text=f"{first.text} Say."),)), again),
        (later(f"{said} No, two."), again),
        (begun, again),
        (begun, sampling),
        (later(said, "Why?"), sampling),
    ):
        both.say(changed, how)


@pytest.fixture(scope="module")
def in_4bit(tmp_path_factory):
    """Engines of a native model in 4 bit, whose layers are whole blocks of 64 inputs."""
    pytest.importorskip("bitsandbytes")
    folder = tiny_native.write(
        "glm46v", tmp_path_factory.mktemp("4bit"), text={"intermediate_size": 128}
    )
    return Both(folder, Placement(quantize="4bit"))


def with_adapter(folder, base, modules):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForImageTextToText

    whole = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    model = peft.get_peft_model(whole, peft.LoraConfig(target_modules=modules))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape) * 0.2
    model.save_pretrained(folder)
    file = folder / "adapter_config.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({**described, "base_model_name_or_path": str(base)}))
    return folder


def photographed():
    return Message("user", WORDS.text, (tiny_native.image(120, 90, 4),))


def clip():
    frames = np.random.default_rng(5).integers(0, 255, (4, 84, 112, 3), dtype="uint8")
    return Message("user", WORDS.text, videos=(to_video(frames, "array", fps=2),))


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_native_model_in_4bit(in_4bit, sampling):
    assert any("4bit" in type(each).__name__ for each in in_4bit.engine.model.modules())
    talk_through(in_4bit, photographed(), sampling)


def test_video_in_4bit(in_4bit):
    talk_through(in_4bit, clip(), SAMPLED)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("kind", ["glm46v", "glm4v_moe"])
def test_a_native_model_with_an_adapter(native, tmp_path, kind):
    both = Both(with_adapter(tmp_path, native(kind), ["q_proj", "k_proj", "o_proj"]))
    base = local.load(resolve(native(kind)), keep=0)
    chat = Conversation((photographed(),))
    assert ids(answer(base, chat, GREEDY)) != ids(answer(both.engine, chat, GREEDY))
    talk_through(both, photographed(), SAMPLED)


@pytest.mark.parametrize("kind", ["glm4v", "glm46v", "glmga", "glm4v_moe"])
def test_videos(native, kind):
    talk_through(Both(native(kind)), clip(), SAMPLED)


def test_glm_4v_9b():
    both = Both(golden.CHECKPOINT)
    talk_through(both, Message("user", WORDS.text, (golden.photo("image0.png"),)), SAMPLED)
