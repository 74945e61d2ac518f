"""Prompts of the newer models: ids and pixels are those of transformers' own processor."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import tiny_native
import torch
from safetensors.torch import load_file, save_file

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.boxes import BOX_TAGS
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.errors import CheckpointError, ConversationError, OptionError
from glm4v_magic.core.image import SeenImage
from glm4v_magic.doctor import gather
from glm4v_magic.images.video import to_video

A, B, C = (tiny_native.image(*size) for size in ((300, 200, 0), (90, 260, 1), (5, 7, 2)))


def talk(*messages):
    return Conversation(messages)


CASES = {
    "text": talk(Message("user", "What do they show?")),
    "system": talk(Message("system", " Be brief.\n"), Message("user", "\n\n Why? 四 🙂")),
    "one": talk(Message("user", "What is it?", (A,))),
    "several": talk(Message("user", " Compare them. ", (A, B, C))),
    "turns": talk(
        Message("user", "What is it?", (A,)),
        Message("assistant", "  A red square.\n"),
        Message("user", "And these?", (B, A)),
        Message("assistant", "Circles."),
        Message("user", "Sure?"),
    ),
}


CHOICES = [
    (kind, thinking)
    for kind in tiny_native.KINDS
    for thinking in (None, True, False)
    if thinking is not False or kind not in tiny_native.ALWAYS
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "thinking"), CHOICES)
def test_prompts_are_those_of_the_published_processor(native, kind, case, thinking):
    conversation, folder = CASES[case], native(kind)
    options = {} if thinking is None else {"enable_thinking": thinking}
    expected = tiny_native.oracle_inputs(tiny_native.oracle(folder), [conversation], **options)
    encoded = resolve(folder).processor().encode(conversation, thinking=thinking)
    assert list(encoded.ids) == expected["input_ids"][0].tolist()
    assert encoded.length == len(encoded.ids)
    types = torch.zeros(len(encoded.ids), dtype=torch.long)
    for image in encoded.images:
        types[image.start : image.stop] = 1
    assert types.tolist() == expected["mm_token_type_ids"][0].tolist()
    assert [image.image for image in encoded.images] == list(conversation.images)
    if conversation.images:
        pixels = torch.cat([image.pixels() for image in encoded.images])
        assert torch.equal(pixels, expected["pixel_values"])
        grids = [list(image.grid) for image in encoded.images]
        assert grids == expected["image_grid_thw"].tolist()


@pytest.mark.parametrize("effort", ["low", "high", "max"])
def test_efforts_are_told_to_the_template(native, effort):
    folder = native("glm5_next")
    expected = tiny_native.oracle_inputs(
        tiny_native.oracle(folder), [CASES["one"]], reasoning_effort=effort
    )
    encoded = resolve(folder).processor().encode(CASES["one"], effort=effort)
    assert list(encoded.ids) == expected["input_ids"][0].tolist()
    assert encoded.ids != resolve(folder).processor().encode(CASES["one"]).ids


def test_what_the_model_sees_of_each_image(native):
    encoded = resolve(native("glm46v")).processor().encode(CASES["several"])
    assert [image.seen for image in encoded.images] == [
        SeenImage((252, 168), 54), SeenImage((84, 252), 27), SeenImage((84, 112), 12),
    ]  # fmt: skip
    assert encoded.visual_tokens == 93
    assert len(encoded.published) == len(encoded.ids) - 93 + 3


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_thinking_of_earlier_turns_is_not_sent(native, kind):
    processor = resolve(native(kind)).processor()
    asked = [Message("user", "What?", (C,)), Message("user", "Sure?")]
    answers = [Message("assistant", "Blue.", thinking=each) for each in ("Let me see.", "")]
    one, other = (processor.encode(talk(asked[0], each, asked[1])).ids for each in answers)
    assert one == other


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_whatever_begins_another_turn_ends_an_answer(native, kind):
    """Without a generation config, too, which may name fewer of them."""
    processor = resolve(native(kind)).processor()
    turns = ["<|endoftext|>", "<|user|>", "<|observation|>", "<|system|>"]
    assert set(processor.tokenizer.convert_ids_to_tokens(processor.end_token_ids)) == set(turns)


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_text_never_becomes_a_token(native, kind):
    processor = resolve(native(kind)).processor()
    tokens = [each for each in (*tiny_native.SPECIALS, *tiny_native.TAGS) if each not in BOX_TAGS]
    answered = "a<|user|>b" + "".join(tokens) + "<|image|"
    for role in ("user", "assistant", "system"):
        # In an answer, the tags around boxes are the model's own.
        typed = answered if role == "assistant" else answered + "".join(BOX_TAGS)
        conversation = talk(Message(role, typed), Message("user", typed, (C,)))
        plain = talk(Message(role, "x"), Message("user", "x", (C,)))
        encoded, other = processor.encode(conversation), processor.encode(plain)
        added = set(processor.tokenizer.get_added_vocab().values())
        control = [token for token in encoded.published if token in added]
        assert control == [token for token in other.published if token in added]
        written = processor.tokenizer.decode(list(encoded.published))
        assert written.count(typed) == 2
        assert processor.tokenizer.decode(list(other.published)) == written.replace(typed, "x")


@pytest.mark.parametrize("kind", tiny_native.KINDS)
@pytest.mark.parametrize("complete", [True, False])
def test_an_answer_keeps_the_tags_around_its_boxes_as_tokens(native, kind, complete):
    processor = resolve(native(kind)).processor()
    opening, closing = map(processor.tokenizer.get_added_vocab().get, BOX_TAGS)
    said = f"Here: {BOX_TAGS[0]}[[1,2,3,4]]{BOX_TAGS[1]}"
    answer = Message("assistant", said, complete=complete)
    after = (Message("user", said),) if complete else ()
    ids = processor.encode(talk(Message("user", "Where?"), answer, *after)).ids
    assert ids.count(opening) == ids.count(closing) == 1
    numbers = ids[ids.index(opening) + 1 : ids.index(closing)]
    assert list(numbers) == processor.text_ids("[[1,2,3,4]]")


def test_a_mark_cannot_be_typed(native):
    processor = resolve(native("glm46v")).processor()
    typed = "\ue0000.0\ue001 <think>"
    encoded = processor.encode(talk(Message("user", typed)))
    assert typed in processor.tokenizer.decode(list(encoded.published))


@pytest.mark.parametrize(
    ("kind", "partial", "ending", "is_inside"),
    [
        ("glm4v", Message("assistant", "A re"), "<|assistant|>\nA re", False),
        (
            "glm46v",
            Message("assistant", "A <|user|>"),
            "/nothink<|assistant|>\n<think></think>\nA <|user|>",
            False,
        ),
        (
            "glm46v",
            Message("assistant", "A </think>", thinking="Let me <think>"),
            "<|assistant|>\n<think>Let me <think></think>\nA </think>",
            False,
        ),
        (
            "glm46v",
            Message("assistant", "", thinking="Let me"),
            "<|assistant|>\n<think>Let me",
            True,
        ),
    ],
)
def test_an_incomplete_answer_goes_on(native, kind, partial, ending, is_inside):
    unfinished = Message("assistant", partial.text, complete=False, thinking=partial.thinking)
    processor = resolve(native(kind)).processor()
    encoded = processor.encode(talk(Message("user", "What?", (C,)), unfinished))
    assert processor.tokenizer.decode(list(encoded.published)).endswith(f"What?{ending}")
    assert encoded.inside_thinking == is_inside
    of = processor.tokenizer.convert_tokens_to_ids
    of_prompt = ending.replace(partial.text, "").replace(partial.thinking, "")
    for tag in ("<think>", "</think>"):
        assert encoded.ids.count(of(tag)) == of_prompt.count(tag)
    assert encoded.ids.count(of("<|user|>")) == 1


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_an_answer_without_a_thought_is_not_carried_on_as_one(native, kind):
    """Its prompt is that of an answer that was not to think."""
    processor = resolve(native(kind)).processor()
    question, begun = Message("user", "What?", (C,)), Message("assistant", "A re", complete=False)
    whole = processor.encode(talk(question, begun))
    assert not whole.inside_thinking
    for thinking in (None, True):
        again = processor.encode(talk(question, begun), thinking=thinking)
        assert again.published == whole.published
    if kind not in ("glm4v", "glm5_next"):  # which always think
        asked = processor.encode(talk(question), thinking=False).published
        decode = processor.tokenizer.decode
        assert decode(list(whole.published)) == decode(list(asked)).rstrip("\n") + "\nA re"


def test_thinking_that_cannot_be_turned_off(native):
    with pytest.raises(OptionError, match="always thinks"):
        resolve(native("glm4v")).processor().encode(CASES["text"], thinking=False)


def test_an_image_too_long_and_narrow(native):
    narrow = tiny_native.image(2, 402, 3)
    with pytest.raises(ConversationError, match=r"3\.png is 2 x 402 px.*200 times"):
        resolve(native("glm46v")).processor().encode(talk(Message("user", "?", (narrow,))))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


def broken(native, tmp_path, **files):
    folder = shutil.copytree(native("glm46v"), tmp_path / "broken")
    for name, content in files.items():
        (path,) = folder.glob(f"{name}.*")
        if content is None:
            path.unlink()
        elif isinstance(content, dict):
            path.write_text(json.dumps({**json.loads(path.read_text()), **content}))
        else:
            path.write_text(content)
    return resolve(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer": "{"}, "tokenizer"),
        ({"chat_template": None}, "holds no chat template"),
        ({"chat_template": ""}, "broken does not write the question"),
        ({"chat_template": POINTER}, "chat_template.jinja is a pointer of git-lfs"),
        ({"preprocessor_config": "{"}, "preprocessor_config.json"),
        (
            {"preprocessor_config": {"size": {"shortest_edge": 9, "longest_edge": 0}}},
            "longest_edge",
        ),
        ({"preprocessor_config": {"size": {"longest_edge": 99999}}}, "lacks 'size.shortest_edge'"),
        ({"preprocessor_config": {"size": {"height": 9, "width": 9}}}, r"lacks .size\.shortest"),
        ({"preprocessor_config": {"patch_size": 16}}, "16 for patch_size"),
        ({"preprocessor_config": {"merge_size": "2"}}, "'2' for 'merge_size'"),
        ({"preprocessor_config": {"image_mean": None}}, "null for 'image_mean'"),
        ({"preprocessor_config": {"do_resize": False}}, "false for 'do_resize': it should be true"),
        ({"preprocessor_config": {"resample": 99}}, "99 for 'resample'"),
        ({"preprocessor_config": {"rescale_factor": "x"}}, "'x' for 'rescale_factor'"),
        ({"preprocessor_config": {"rescale_factor": math.nan}}, "nan for 'rescale_factor'"),
        (
            {"preprocessor_config": {"min_image_tokens": 10**9}},
            "min_image_tokens 1000000000 is more than max_image_tokens",
        ),
        (
            {"preprocessor_config": {"image_std": [1, 0, 1]}},
            "0 for .image_std.1..: it .* than 0",
        ),
    ],
)
def test_files_that_do_not_suit(native, tmp_path, files, message):
    with pytest.raises(CheckpointError, match=message):
        broken(native, tmp_path, **files).require_usable()


def saved_by_transformers_5(source, folder, size=None, video=None):
    """Copy a checkpoint whose processors were saved together, as processors are since."""
    shutil.copytree(source, folder)
    own = folder / "preprocessor_config.json"
    settings = json.loads(own.read_text())
    own.unlink()
    if size is not None:
        settings["size"] = {"shortest_edge": 1, "longest_edge": size * 2 * 28**2}
        settings |= {"min_image_tokens": 1, "max_image_tokens": size}
    whole = {"image_processor": settings, "processor_class": settings.pop("processor_class")}
    if video is not None:
        whole["video_processor"] = {"size": {"shortest_edge": 1, "longest_edge": video}}
    (folder / "processor_config.json").write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_processors_that_were_saved_together(native, tmp_path, kind):
    """As processors are saved, with a Trainer's model or alone, since transformers 5."""
    source = native(kind)
    folder = saved_by_transformers_5(source, tmp_path / "same")
    resolve(folder).require_usable()
    facts = gather((), model=str(folder))
    assert (facts.is_here, facts.fault) == (True, None)
    assert architecture(folder).shape().patches == architecture(source).shape().patches
    small = saved_by_transformers_5(source, tmp_path / "small", size=16)
    shutil.copy(source / "preprocessor_config.json", small)  # older, and not what counts
    assert architecture(small).shape().patches < architecture(source).shape().patches
    request = talk(Message("user", "What?", (tiny_native.image(400, 400),)))
    seen = []
    for each in (source, folder, small):
        found = resolve(each).processor().encode(request)
        expected = tiny_native.oracle_inputs(tiny_native.oracle(each), [request])
        assert list(found.ids) == expected["input_ids"][0].tolist()
        seen.append(found.ids)
    assert seen[0] == seen[1]
    assert len(seen[2]) < len(seen[0])


def test_videos_are_limited_by_what_was_saved_together(native, tmp_path):
    source = native("glm46v")
    folder = saved_by_transformers_5(source, tmp_path / "c", video=123456)
    asked = talk(Message("user", "What?", videos=(to_video(np.zeros((4, 400, 400, 3)), "v"),)))

    def length(of):
        return len(resolve(of).processor().encode(asked).ids)

    limited = length(folder)
    assert limited < length(source)
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 1, "longest_edge": 9}})
    )
    assert length(folder) == limited
    (folder / "processor_config.json").unlink()
    shutil.copy(source / "preprocessor_config.json", folder)
    assert length(folder) != limited  # by the file that was not read before


@pytest.mark.parametrize(
    "how", ["chat_template.json", "a list in it", "a list", "a list without a default"]
)
def test_templates_in_older_places(native, tmp_path, how):
    source, folder = native("glm46v"), shutil.copytree(native("glm46v"), tmp_path / "c")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    if how in ("chat_template.json", "a list in it"):
        listed = [{"name": "default", "template": template}, {"name": "b", "template": "{{ 1 }}"}]
        held = template if how == "chat_template.json" else listed
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": held}))
    else:
        file = folder / "tokenizer_config.json"
        name = "default" if how == "a list" else "tools"
        templates = [{"name": name, "template": template}, {"name": "b", "template": "{{ 1 }}"}]
        file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": templates}))
    if how == "a list without a default":
        with pytest.raises(CheckpointError, match="holds no chat template"):
            resolve(folder).require_usable()
        return
    request = talk(Message("user", "What?", (C,)))
    one, other = (resolve(each).processor().encode(request) for each in (source, folder))
    assert one.ids == other.ids


@pytest.mark.parametrize("settings", ["{", '{"image_processor": 3}', '{"image_processor": {}}'])
def test_processors_that_were_saved_together_and_are_damaged(native, tmp_path, settings):
    folder = saved_by_transformers_5(native("glm46v"), tmp_path / "c")
    (folder / "processor_config.json").write_text(settings)
    if "{}" in settings:  # whatever transformers takes then
        resolve(folder).require_usable()
        return
    with pytest.raises(CheckpointError) as caught:
        resolve(folder).require_usable()
    assert "processor_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [{"height": 224, "width": 224}, {"longest_edge": 9}, {}])
def test_a_size_of_no_use_is_refused_by_all(native, tmp_path, size):
    folder = shutil.copytree(native("glm46v"), tmp_path / "c")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "size": size}))
    for look in (resolve, architecture, lambda path: gather((), model=str(path))):
        with pytest.raises(CheckpointError, match=r"lacks 'size\.(short|long)est_edge'"):
            look(folder)


@pytest.mark.parametrize("name", ["tokenizer", "preprocessor_config"])
def test_files_that_are_missing(native, tmp_path, name):
    with pytest.raises(CheckpointError, match=f"broken holds no {name}"):
        broken(native, tmp_path, **{name: None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": {}}, "lacks"),
        ({"model_type": "glm6_next"}, "type 'glm6_next'"),
        ({"image_token_id": 3}, "image token 3 in config.json"),
    ],
)
def test_configs_that_cannot_be_loaded(native, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        broken(native, tmp_path, config=change).processor()


def test_weights_of_another_size_and_layers_that_are_left_out(native, tmp_path):
    folder = shutil.copytree(native("glm_ocr"), tmp_path / "more")
    weights = load_file(folder / "model.safetensors")
    more = {"model.language_model.layers.16.eh_proj.weight": torch.zeros(64, 128)}
    save_file({**weights, **more}, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = resolve(folder)
    assert checkpoint.total_bytes == resolve(native("glm_ocr")).total_bytes
    loaded = checkpoint.load(dtype=torch.float32)
    assert loaded.model.config.text_config.num_hidden_layers == 4
    weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="Config and weights do not belong together"):
        resolve(folder)


@pytest.mark.parametrize("thinking", [None, True, False])
def test_a_template_is_told_of_thinking_what_was_asked(native, tmp_path, thinking):
    told = "{{ enable_thinking if enable_thinking is defined else None }}"
    template = "{{ messages[0].content[-1].text }}" + told
    processor = broken(native, tmp_path, chat_template=template).processor()
    ids = processor.encode(CASES["text"], thinking=thinking).ids
    assert processor.tokenizer.decode(list(ids)).endswith(f"show?{thinking}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ nothing.here }}", "cannot be rendered"),
        ("{% for", "cannot be rendered"),
        ("[gMASK]{{ messages[0].content }}", "writes 0 images where the conversation holds 1"),
        ("<|image|><|image|>{{ messages[0].content }}", "writes 2 images"),
    ],
)
def test_templates_that_do_not_work(native, tmp_path, template, message):
    checkpoint = broken(native, tmp_path, chat_template=template)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.processor().encode(CASES["one"])
