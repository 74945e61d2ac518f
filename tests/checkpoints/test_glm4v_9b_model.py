"""What the reference data does not hold: the full-size layout, saving, and decoding options."""

from __future__ import annotations

import json
import shutil

import golden
import pytest
import torch
from safetensors import safe_open

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.glm4v_9b import layout, weights
from glm4v_magic.checkpoints.glm4v_9b.config_file import validate_config
from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig
from glm4v_magic.checkpoints.glm4v_9b.modeling import (
    Glm4v9bForConditionalGeneration,
    positions,
    visual_span,
)


@pytest.fixture(scope="module")
def loaded():
    return resolve(golden.CHECKPOINT).load(dtype=torch.float32)


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        return Glm4v9bForConditionalGeneration(Glm4v9bConfig())


def test_full_size_has_the_published_number_of_parameters(full_size):
    assert sum(p.numel() for p in full_size.parameters()) == 13_906_320_896
    vision = sum(p.numel() for p in full_size.model.vision.parameters())
    assert vision == 4_279_387_392 + 12_527_872 + 185_081_856 + 29_364_224 + 8_192


def test_every_published_name_maps_onto_one_parameter(full_size):
    config = json.loads(Glm4v9bConfig().to_json_string())
    validate_config(config, "defaults")
    published = layout.weight_shapes(config)
    assert sum(torch.Size(shape).numel() for shape in published.values()) == 13_906_320_896

    transforms = weights.conversions()
    targets = []
    for name in published:
        renamed = name
        for transform in transforms:
            renamed, _ = transform.rename_source_key(renamed)
        targets += (
            [renamed.replace("q_proj", f"{part}_proj") for part in "qkv"]
            if "self_attention.query_key_value" in name
            else [renamed]
        )
    expected = {name for name, _ in full_size.named_parameters()}
    assert len(targets) == len(set(targets))
    assert set(targets) == expected


def test_text_is_transformers_glm_with_the_published_values(full_size):
    text = full_size.config.get_text_config()
    assert (text.num_hidden_layers, text.num_key_value_heads, text.head_dim) == (40, 2, 128)
    assert text.rms_norm_eps == 1.5625e-07
    assert text.rope_parameters["partial_rotary_factor"] == 0.5
    assert full_size.config.vision_config.num_visual_tokens == 1602


def test_saving_writes_published_names_and_values(loaded, tmp_path):
    loaded.model.save_pretrained(tmp_path)
    original = {}
    with safe_open(golden.CHECKPOINT / "model.safetensors", "pt") as file:
        original = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del original["transformer.rotary_pos_emb.inv_freq"]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(original)
        for name, tensor in original.items():
            assert torch.equal(file.get_tensor(name), tensor), name


def test_saved_config_keeps_the_published_layout(loaded, tmp_path):
    loaded.model.save_pretrained(tmp_path)
    shutil.copy(golden.CHECKPOINT / "tokenizer.model", tmp_path)
    published = json.loads((golden.CHECKPOINT / "config.json").read_text())
    saved = json.loads((tmp_path / "config.json").read_text())
    # Written under other names or not at all by transformers 5.
    renamed = {
        "torch_dtype",
        "transformers_version",
        "architectures",
        "_name_or_path",
        "auto_map",
        "attn_implementation",
    }
    assert {k: saved[k] for k in published if k not in renamed and k != "vision_config"} == {
        k: published[k] for k in published if k not in renamed and k != "vision_config"
    }
    assert published["vision_config"].items() <= saved["vision_config"].items()
    again = resolve(tmp_path).load(dtype=torch.float32)
    inputs = again.processor([golden.conversation("image_text")])
    with torch.no_grad():
        assert torch.equal(again.model(**inputs).logits, loaded.model(**inputs).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_dtype_everywhere(dtype):
    model = resolve(golden.CHECKPOINT).load(dtype=dtype).model
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    inputs = (
        resolve(golden.CHECKPOINT).load(dtype=dtype).processor([golden.conversation("image_text")])
    )
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def generate(loaded, cases, **options):
    inputs = loaded.processor([golden.conversation(case) for case in cases])
    options = {"do_sample": False, "eos_token_id": None, "max_length": None} | options
    output = loaded.model.generate(**inputs, max_new_tokens=8, **options)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def test_beams_of_a_batch_are_those_of_its_rows(loaded):
    cases = ["image_text", "image_second_turn", "text_only"]
    rows = [generate(loaded, [case], num_beams=3)[0] for case in cases]
    assert generate(loaded, cases, num_beams=3) == rows
    assert rows != [golden.CASES[case]["greedy_ids"][:8] for case in cases]


def test_beams_encode_an_image_once(loaded):
    sizes = []
    handle = loaded.model.model.vision.register_forward_hook(
        lambda _module, args, _output: sizes.append(len(args[0]))
    )
    generate(loaded, ["image_text", "image_second_turn"], num_beams=3)
    handle.remove()
    assert sizes == [2]


def test_sampling_is_reproducible_and_seeded(loaded):
    def sample(seed):
        torch.manual_seed(seed)
        return generate(
            loaded, ["image_text"], do_sample=True, temperature=1.0, top_p=0.95, top_k=50
        )

    assert sample(3) == sample(3)
    assert sample(3) != sample(4)


def test_several_samples_of_one_prompt(loaded):
    torch.manual_seed(0)
    rows = generate(loaded, ["image_text"], do_sample=True, num_return_sequences=3)
    assert len(rows) == 3
    assert rows[0] != rows[1]


def test_a_second_turn_can_reuse_the_cache_of_the_first(loaded):
    inputs = loaded.processor([golden.conversation("image_text")])
    first = loaded.model.generate(
        **inputs,
        max_new_tokens=4,
        max_length=None,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
    )
    continued = torch.cat([first.sequences, torch.tensor([[307, 10, 285, 308]])], dim=1)
    mask = torch.ones_like(continued)
    options = {"max_new_tokens": 8, "max_length": None, "do_sample": False, "eos_token_id": None}
    cached = loaded.model.generate(
        input_ids=continued,
        attention_mask=mask,
        past_key_values=first.past_key_values,
        **options,
    )
    fresh = loaded.model.generate(
        input_ids=continued, attention_mask=mask, pixel_values=inputs["pixel_values"], **options
    )
    assert cached.tolist() == fresh.tolist()


def test_mismatch_of_images_and_ids_is_explained(loaded):
    inputs = loaded.processor([golden.conversation("image_text")])
    with pytest.raises(ValueError, match="2 images with 6 visual tokens each"):
        loaded.model(
            input_ids=inputs["input_ids"],
            pixel_values=inputs["pixel_values"].repeat(2, 1, 1, 1),
        )
    short = loaded.processor.prompt_ids(golden.conversation("image_text"))  # three ids only
    with pytest.raises(ValueError, match="let the processor write them"):
        loaded.model(input_ids=torch.tensor([short]), pixel_values=inputs["pixel_values"])


def test_positions_are_asked_for_when_something_is_cached(loaded):
    inputs = loaded.processor([golden.conversation("image_text")])
    with torch.no_grad():
        cache = loaded.model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="position_ids"):
            loaded.model(input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_a_generated_begin_of_image_starts_no_second_image():
    ids = torch.tensor([[9, 310, 300, 300, 311, 5, 310, 5, 5, 5]])
    span = visual_span(ids, boi_token_id=310, num_visual_tokens=4)
    assert span.tolist() == [[False, True, True, True, True] + [False] * 5]
    assert positions(span).tolist() == [[0, 1, 2, 2, 3, 4, 5, 6, 7, 8]]


def test_loss_ignores_unlabelled_positions(loaded):
    inputs = loaded.processor([golden.conversation("image_text")])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]
    with torch.no_grad():
        output = loaded.model(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[0, -3:-1], labels[0, -2:])
    torch.testing.assert_close(output.loss, expected)


def test_compiled_decoding_gives_the_same_ids(loaded):
    model = resolve(golden.CHECKPOINT).load(dtype=torch.float32).model
    explained = torch._dynamo.explain(model.forward)(
        input_ids=torch.tensor([[5, 6]]),
        attention_mask=torch.ones(1, 2, dtype=torch.long),
        position_ids=torch.tensor([[0, 1]]),
    )
    assert explained.graph_break_count == 0
