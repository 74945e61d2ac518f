"""Speed of bfloat16 next to float32 on this CPU, in turn in one process.

    python benchmarks/cpu_dtype.py [MODEL] [--runs N] [--tokens N] [--patches N] [--layers N]

The model has the sizes of the published one (GLM-OCR by default) and random weights. Both sides
read the same image and the same text, then write the same number of tokens, each from the
likeliest of the one before. The lines:

read
    time of the vision tower and the prefill
decode
    time of the tokens after that

A ratio above 1 says that bfloat16 is faster. It depends on whether the CPU multiplies bfloat16
(avx512_bf16, amx_bf16 in /proc/cpuinfo): by these, `planning.precision` chooses the dtype.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping
from typing import Any

import torch
from ratios import describe
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

from glm4v_magic.checkpoints.architecture import architecture as architecture_of
from glm4v_magic.checkpoints.glm_native.architecture import NativeArchitecture

TEXT_TOKENS = 64
_TEXT_ID = 100


def build(architecture: NativeArchitecture, layers: int | None) -> dict[str, Any]:
    """Return the model in both dtypes, by name."""
    config = architecture.model_config()
    text = config.get_text_config()
    text.num_hidden_layers = layers or text.num_hidden_layers
    torch.manual_seed(0)
    full = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()
    return {"float32": full.float(), "bfloat16": copy.deepcopy(full).bfloat16()}


def question(config: Mapping[str, Any], patches: int) -> dict[str, Tensor]:
    """Return the inputs for an image of `patches` x `patches` and some text."""
    vision = config["vision_config"]
    visual = (patches // vision["spatial_merge_size"]) ** 2
    image = [
        config["image_start_token_id"],
        *[config["image_token_id"]] * visual,
        config["image_end_token_id"],
    ]
    ids = torch.tensor([[*image, *[_TEXT_ID] * TEXT_TOKENS]])
    values = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config["image_token_id"]).int(),
        "pixel_values": torch.randn(patches**2, values, generator=torch.manual_seed(1)),
        "image_grid_thw": torch.tensor([[1, patches, patches]]),
    }


@torch.inference_mode()
def answer(model: Any, inputs: Mapping[str, Tensor], tokens: int) -> tuple[float, float]:
    """Return the seconds of reading and of writing."""
    began = time.perf_counter()
    pixels = inputs["pixel_values"].to(model.dtype)
    given = model(**{**inputs, "pixel_values": pixels}, use_cache=True, logits_to_keep=1)
    read = time.perf_counter()
    cache, length = given.past_key_values, inputs["input_ids"].shape[1]
    for step in range(tokens):
        given = model(
            input_ids=given.logits[:, -1:].argmax(-1),
            attention_mask=torch.ones(1, length + step + 1, dtype=torch.long),
            position_ids=torch.full((3, 1, 1), length + step),  # in time, height and width
            past_key_values=cache,
            use_cache=True,
        )
    return read - began, time.perf_counter() - read


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default="GLM-OCR")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs")
    parser.add_argument("--tokens", type=int, default=16, help="tokens to write")
    parser.add_argument("--patches", type=int, default=40, help="patches on a side of the image")
    parser.add_argument("--layers", type=int, help="decoder layers; all of them by default")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    architecture = architecture_of(arguments.model)
    assert isinstance(architecture, NativeArchitecture)
    models = build(architecture, arguments.layers)
    inputs = question(architecture.config, arguments.patches)
    for model in models.values():
        answer(model, inputs, 1)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for run in range(arguments.runs):
        for name in list(models)[:: 1 if run % 2 else -1]:
            times[name].append(answer(models[name], inputs, arguments.tokens))
    print(f"{arguments.model}, {torch.get_num_threads()} threads; seconds of float32, bfloat16:")
    for at, what in enumerate(("read", "decode")):
        full, half = ([pair[at] for pair in times[name]] for name in ("float32", "bfloat16"))
        print(f"{what:<7} {min(full):.3f} {min(half):.3f}  {describe(full, half)}")


if __name__ == "__main__":
    main()
