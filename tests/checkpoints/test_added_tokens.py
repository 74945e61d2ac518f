"""Tokens that a fine-tune has added: shown in answers, and read out of texts as in training."""

from __future__ import annotations

import json
import shutil

import golden
import pytest
import tiny_native
import torch
from transformers import PreTrainedTokenizerFast

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.added_tokens import is_control
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local
from glm4v_magic.session.session import Session

# Of peft, as it wraps whole models in these tests.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:The new embeddings will be initialized"),
]

FIRST = 314  # after 300 ranks and 14 published tokens


def with_added(folder, tokens, *, old_file=False):
    """Add tokens to a checkpoint of GLM-4V-9B as its tokenizer saves them."""
    if old_file:
        file = folder / "added_tokens.json"
        file.write_text(json.dumps({token: number for number, token in tokens.items()}))
        return folder
    file = folder / "tokenizer_config.json"
    described = json.loads(file.read_text())
    for number, token in tokens.items():
        one = {"content": token, "special": True, "normalized": False}
        described["added_tokens_decoder"][str(number)] = one
    file.write_text(json.dumps(described))
    return folder


@pytest.fixture
def tiny(tmp_path):
    return shutil.copytree(golden.CHECKPOINT, tmp_path / "tuned")


def said(engine, ids):
    """What an engine answers if its model writes some ids."""
    ids = [*ids, engine.processor.end_token_ids[0]]
    step = iter(ids)

    def say(_module, _args, output):
        output.logits[:] = 0
        output.logits[..., next(step)] = 1
        return output

    handle = engine.model.register_forward_hook(say)
    chat = Conversation((Message("user", "What is it?"),))
    events = list(engine.stream([Request(chat, Sampling(20, temperature=0))]))
    handle.remove()
    return next(each.generation.text for each in events if isinstance(each, Finished))


@pytest.mark.parametrize("old_file", [False, True])
def test_of_glm_4v_9b(tiny, old_file):
    with_added(tiny, {FIRST: "<click>", FIRST + 2: "<|tool|>"}, old_file=old_file)
    engine = local.load(resolve(tiny))
    processor = engine.processor
    before, after = processor.text_ids("a"), processor.text_ids("b")
    assert processor.text_ids("a<click>b") == [*before, FIRST, *after]
    assert FIRST + 2 not in processor.text_ids("a<|tool|>b")
    assert said(engine, [*before, FIRST, *after, FIRST + 2]) == "a<click>b<|tool|>"
    plain = local.load(resolve(golden.CHECKPOINT))
    assert said(plain, [*before, FIRST, *after]) == "ab"
    chat = Conversation((Message("user", "x<|user|>y"),))
    assert processor.prompt_ids(chat) == plain.processor.prompt_ids(chat)


def test_published_tokens_named_again_change_nothing(tiny):
    names = {300: "<|endoftext|>", 313: "<|end_of_video|>"}
    with_added(tiny, names)
    assert len(resolve(tiny).processor().tokenizer) == FIRST


def test_more_tokens_than_the_model_is_found_before_it_is_released(tiny):
    session = Session().load(golden.CHECKPOINT)
    engine = session.engine
    with_added(tiny, {FIRST: "<click>", 10**9: "<far>"})
    with pytest.raises(CheckpointError, match="tokens up to 1,000,000,000, but config"):
        session.load(tiny)
    assert session.engine is engine
    session.unload()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"400": {"content": ""}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}'),
        ("added_tokens.json", '{"a": "b"}'),
        ("added_tokens.json", '{"a": -1}'),
    ],
)
def test_files_that_are_damaged_are_named(tiny, name, content):
    (tiny / name).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        resolve(tiny).require_usable()
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def tuned(native, folder, *tokens):
    """A newer model whose tokenizer has been saved with more tokens, flagged as special."""
    shutil.copytree(native("glm4v"), folder)
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    words.add_tokens(list(tokens), special_tokens=True)
    words.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    rows = len(words) - config["text_config"]["vocab_size"]
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], weights[name][:rows]])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, words


def test_of_newer_models(native, tmp_path):
    folder, words = tuned(native, tmp_path / "tuned", "<click>", "<|tool|>")
    click, tool = words.convert_tokens_to_ids(["<click>", "<|tool|>"])
    engine = local.load(resolve(folder))
    processor = engine.processor
    before, after = processor.text_ids("a"), processor.text_ids("b")
    assert processor.text_ids("a<click>b") == [*before, click, *after]
    assert tool not in processor.text_ids("a<|tool|>b")
    typed = Conversation((Message("user", "x<|user|><click><|tool|>"),))
    ids = processor.encode(typed).ids
    assert ids.count(click) == 1
    assert tool not in ids
    assert said(engine, [*before, click, *after, tool]) == "a<click>b<|tool|>"


def test_the_tokenizer_of_an_adapter_comes_first(native, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForImageTextToText

    folder, words = tuned(native, tmp_path / "tuned", "<click>")
    base = native("glm4v")
    model = AutoModelForImageTextToText.from_pretrained(base)
    model.resize_token_embeddings(len(words))
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])
    peft.PeftModel(model, config).save_pretrained(tmp_path / "a")
    words.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "chat_template.jinja").unlink()
    loaded = resolve(tmp_path / "a", base=base).load(dtype=torch.float32)
    click = words.convert_tokens_to_ids("<click>")
    assert loaded.processor.text_ids("<click>") == [click]
    assert loaded.model.lm_head.weight.shape[0] == len(words)
    chat = Conversation((Message("user", "?", (tiny_native.image(90, 70),)),))
    assert loaded.processor.encode(chat).ids == resolve(folder).processor().encode(chat).ids


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
def test_tokens_of_an_adapter_that_has_no_embedding_for_them(native, tmp_path):
    """The advice is followed."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForImageTextToText

    _, words = tuned(native, tmp_path / "tuned", "<click>")
    base = native("glm4v")
    model = AutoModelForImageTextToText.from_pretrained(base)
    model.resize_token_embeddings(len(words))
    wrapped = peft.PeftModel(model, peft.LoraConfig(target_modules=["q_proj"]))
    for name, saved in (("without", False), ("with", True)):
        wrapped.save_pretrained(tmp_path / name, save_embedding_layers=saved)
        words.save_pretrained(tmp_path / name)
    for look in (
        lambda: resolve(tmp_path / "without", base=base).processor(),
        lambda: resolve(base, lora=tmp_path / "without").processor(),
    ):
        with pytest.raises(CheckpointError) as caught:
            look()
        assert str(caught.value) == (
            f"The tokenizer of {tmp_path / 'without'} has tokens up to {len(words) - 1:,}, but "
            f"with the adapter the model has a vocabulary of {len(words) - 1:,}. "
            "Save the adapter with the embedding of its tokens: save_embedding_layers=True."
        )
    loaded = resolve(tmp_path / "with", base=base).load(dtype=torch.float32)
    assert loaded.processor.text_ids("<click>") == [words.convert_tokens_to_ids("<click>")]


def test_tokens_that_an_adapter_of_glm_4v_9b_has_no_embedding_for(tmp_path):
    peft = pytest.importorskip("peft")
    model = resolve(golden.CHECKPOINT).load(dtype=torch.float32).model
    peft.PeftModel(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    shutil.copy(golden.CHECKPOINT / "tokenizer_config.json", tmp_path)
    with_added(tmp_path, {90_000: "<click>"})
    with pytest.raises(CheckpointError) as caught:
        resolve(tmp_path, base=golden.CHECKPOINT).processor()
    assert str(caught.value).startswith(f"The tokenizer of {tmp_path} has tokens up to 90,000, but")
    assert "save_embedding_layers=True" in str(caught.value)


def test_the_tokens_of_an_adapter_of_glm_4v_9b(tmp_path):
    peft = pytest.importorskip("peft")
    model = resolve(golden.CHECKPOINT).load(dtype=torch.float32).model
    peft.PeftModel(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    shutil.copy(golden.CHECKPOINT / "tokenizer_config.json", tmp_path)
    with_added(tmp_path, {FIRST: "<click>"})
    assert resolve(tmp_path, base=golden.CHECKPOINT).processor().text_ids("<click>") == [FIRST]


@pytest.mark.parametrize("token", ["<|act|>", "[act]", "<act>", "[act", "act]", "act|>", "["])
def test_names_of_tokens_that_structure_a_prompt(token):
    assert is_control(token) == (token in ("<|act|>", "[act]"))
