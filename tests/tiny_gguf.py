"""Writes a tiny model with random weights for llama.cpp: ``python tiny_gguf.py FILE``.

Run by the Python of llama-cpp-python's environment, which has the package gguf.
"""

from __future__ import annotations

import sys

import gguf
import numpy as np

WIDTH, HEADS, LAYERS, INNER, CONTEXT = 64, 4, 2, 128, 512
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write(path: str) -> None:
    """Write a llama whose tokens are the bytes."""
    out = gguf.GGUFWriter(path, "llama")
    out.add_name("tiny")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(INNER)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // HEADS)
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{each:02X}>".encode() for each in range(256))]
    tokens.append("▁".encode())
    kinds = gguf.TokenType
    out.add_tokenizer_model("llama")
    out.add_token_list(tokens)
    out.add_token_scores([0.0] * len(tokens))
    out.add_token_types(
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, kinds.NORMAL]
    )
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    out.add_tensor("token_embd.weight", weight(len(tokens), WIDTH))
    out.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    head = weight(len(tokens), WIDTH)
    head[:3] = 0  # no token that ends an answer
    out.add_tensor("output.weight", head)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"{block}.{name}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            out.add_tensor(f"{block}.{name}.weight", weight(WIDTH, WIDTH))
        for name in ("ffn_gate", "ffn_up"):
            out.add_tensor(f"{block}.{name}.weight", weight(INNER, WIDTH))
        out.add_tensor(f"{block}.ffn_down.weight", weight(WIDTH, INNER))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    write(sys.argv[1])
