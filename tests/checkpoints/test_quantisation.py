"""Quantisation of the text part goes through transformers' own integration."""

from __future__ import annotations

import golden
import pytest
import tiny_native
import torch
from transformers import BitsAndBytesConfig

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.errors import OptionError

bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast")
def test_eight_bit_text_part_and_an_unquantised_tower():
    loaded = resolve(golden.CHECKPOINT).load(
        dtype=torch.float32,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_skip_modules=["lm_head", "model.vision"]
        ),
    )
    model = loaded.model.model
    eight_bit = bitsandbytes.nn.Linear8bitLt
    in_text = [m for m in model.language_model.modules() if isinstance(m, torch.nn.Linear)]
    assert len(in_text) == 4 * 6
    assert all(isinstance(module, eight_bit) for module in in_text)
    assert all(module.weight.dtype == torch.int8 for module in in_text)
    assert not any(isinstance(module, eight_bit) for module in model.vision.modules())

    reference = golden.tensors("image_text")["logits"]
    with torch.no_grad():
        logits = loaded.model(**loaded.processor([golden.conversation("image_text")])).logits
    similarity = torch.nn.functional.cosine_similarity(logits, reference, dim=-1)
    assert similarity.min() > 0.98
    assert not torch.equal(logits, reference)


@pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast")
@pytest.mark.parametrize("kind", tiny_native.KINDS)
def test_the_text_parts_of_newer_models(native, kind):
    loaded = resolve(native(kind)).load(dtype=torch.float32, quantize="8bit")
    model, eight_bit = loaded.model.model, bitsandbytes.nn.Linear8bitLt
    in_text = [m for m in model.language_model.modules() if isinstance(m, torch.nn.Linear)]
    assert in_text
    assert all(isinstance(module, eight_bit) for module in in_text)
    assert not any(isinstance(module, eight_bit) for module in model.visual.modules())
    assert not isinstance(loaded.model.lm_head, eight_bit)
    if kind == "glm5_next":
        return  # its layers are of other sizes
    with pytest.raises(OptionError, match=f"{kind}0 has layers with 96 inputs, and 4bit"):
        resolve(native(kind)).load(dtype=torch.float32, quantize="4bit")
