"""Every number of the reference data, from prompt ids to generated tokens."""

from __future__ import annotations

import golden
import pytest
import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.glm4v_9b import modeling
from glm4v_magic.core.conversation import Conversation, Message

ATOL = 2e-3  # on logits, as the reference data recommends; |logits| go up to about 15


@pytest.fixture(scope="module", params=["checkpoint", "checkpoint_sharded"])
def loaded(request):
    return resolve(golden.FOLDER / request.param).load(dtype=torch.float32)


def greedy(model, inputs, new_tokens=16, **options):
    options = {"do_sample": False, "eos_token_id": None, "max_length": None} | options
    output = model.generate(**inputs, max_new_tokens=new_tokens, **options)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("case", golden.SINGLE_ROW)
def test_prompt_ids_are_exact(loaded, case):
    ids = loaded.processor.prompt_ids(golden.conversation(case))
    assert ids == golden.CASES[case]["input_ids"]
    assert ids == golden.tensors(case)["in.input_ids"][0].tolist()


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_turn_without_text_is_left_out_as_in_the_published_tokenizer(loaded, role):
    question, following = Message("user", "What is it?"), Message("user", "And now?")
    chat = Conversation((question, Message(role, ""), following))
    ids = loaded.processor.prompt_ids(chat)
    assert ids == loaded.processor.prompt_ids(Conversation((question, following)))
    blank = Conversation((question, Message(role, " "), following))
    assert len(loaded.processor.prompt_ids(blank)) > len(ids)
    begun = Conversation((question, Message("assistant", "", complete=False)))
    newline = loaded.processor.text_ids("\n")
    assert loaded.processor.prompt_ids(begun)[-2:] == [
        loaded.processor.token_id("<|assistant|>"),
        *newline,
    ]


@pytest.mark.parametrize("case", golden.SINGLE_ROW)
def test_positions_are_the_published_rule(loaded, case):
    reference = golden.tensors(case)["in.position_ids"][0].tolist()
    ids = golden.CASES[case]["input_ids"]
    inputs = loaded.processor([golden.conversation(case)])
    config = loaded.model.config
    visual = config.vision_config.num_visual_tokens
    span = modeling.visual_span(inputs["input_ids"], config.boi_token_id, visual)
    expected = list(reference)
    if config.boi_token_id in ids:
        patch = ids.index(config.boi_token_id) + 1
        expected[patch : patch + 1] = [reference[patch]] * (visual - 2)
    assert modeling.positions(span)[0].tolist() == expected


@pytest.mark.parametrize("case", [c for c in golden.SINGLE_ROW if c.startswith("image")])
def test_pixels_are_equal(loaded, case):
    pixels = loaded.processor([golden.conversation(case)])["pixel_values"]
    torch.testing.assert_close(pixels, golden.tensors(case)["in.images"], atol=1e-6, rtol=0)


def capture(model):
    """Record the output of every module that the reference data holds; returns (records, undo)."""
    vision, text = model.model.vision, model.model.language_model
    modules = {
        "vision.patch_embedding": vision.patch_embedding,
        "vision.conv": vision.conv,
        "vision.linear_proj": vision.linear_proj,
        "vision.out": vision,
        "text.final_norm": text.norm,
        **{f"vision.layer.{i}": layer for i, layer in enumerate(vision.transformer.layers)},
        **{f"text.layer.{i}": layer for i, layer in enumerate(text.layers)},
    }
    records = {}
    handles = [
        module.register_forward_hook(
            lambda _module, _args, output, name=name: records.__setitem__(name, output)
        )
        for name, module in modules.items()
    ]
    return records, lambda: [handle.remove() for handle in handles]


@pytest.mark.parametrize("case", golden.SINGLE_ROW)
def test_states_cache_and_logits(loaded, case):
    reference = golden.tensors(case)
    records, undo = capture(loaded.model)
    with torch.no_grad():
        output = loaded.model(**loaded.processor([golden.conversation(case)]), use_cache=True)
    undo()
    compared = 0
    for name, expected in reference.items():
        if name.startswith(("in.", "greedy")):
            continue
        if name == "logits":
            actual = output.logits
        elif name.startswith("kv."):
            _, layer, kind = name.split(".")
            cached = output.past_key_values.layers[int(layer)]
            actual = cached.keys if kind == "key" else cached.values
        else:
            actual = records[name]
        torch.testing.assert_close(
            actual.reshape(expected.shape), expected, atol=ATOL, rtol=0, msg=lambda m, n=name: n + m
        )
        compared += 1
    assert compared == len([k for k in reference if not k.startswith(("in.", "greedy"))]) > 5


@pytest.mark.parametrize("case", golden.SINGLE_ROW)
@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}],
    ids=["cached", "uncached", "static", "assisted"],
)
def test_greedy_ids_are_exact(loaded, case, options):
    inputs = loaded.processor([golden.conversation(case)])
    assert greedy(loaded.model, inputs, **options) == [golden.CASES[case]["greedy_ids"]]


@pytest.mark.parametrize("case", golden.SINGLE_ROW)
def test_scores_of_every_generated_token(loaded, case):
    inputs = loaded.processor([golden.conversation(case)])
    output = loaded.model.generate(
        **inputs,
        max_new_tokens=16,
        max_length=None,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected = golden.tensors(case)["greedy_step_logits"]
    torch.testing.assert_close(torch.stack(output.logits, 1), expected, atol=ATOL, rtol=0)


def test_left_padded_batch(loaded):
    reference = golden.tensors("batch_left_padded")
    cases = ["image_text", "image_second_turn"]
    inputs = loaded.processor([golden.conversation(case) for case in cases])
    mask = inputs["attention_mask"]
    assert mask.tolist() == reference["expanded_attention_mask"].tolist()
    with torch.no_grad():
        logits = loaded.model(**inputs).logits
    torch.testing.assert_close(
        logits[mask.bool()], reference["logits"][mask.bool()], atol=ATOL, rtol=0
    )
    assert greedy(loaded.model, inputs) == [golden.CASES[case]["greedy_ids"] for case in cases]


def test_rows_with_and_without_an_image_in_one_batch(loaded):
    cases = ["image_text", "text_only", "unicode_text", "image_no_text"]
    inputs = loaded.processor([golden.conversation(case) for case in cases])
    assert len(inputs["pixel_values"]) == 2
    assert greedy(loaded.model, inputs) == [golden.CASES[case]["greedy_ids"] for case in cases]
