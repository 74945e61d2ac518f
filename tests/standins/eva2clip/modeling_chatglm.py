"""A small text model around the vision tower, with the names of GLM-4V-9B's own code.

Written for the tests: nothing in it takes care of devices.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from .visual import EVA2CLIPModel

IMAGE_TOKEN = 1


@dataclass(frozen=True)
class ChatGLMConfig:
    hidden_size: int = 16
    num_layers: int = 2
    padded_vocab_size: int = 32
    seq_length: int = 64
    patch_size: int = 2
    grid: int = 4
    vision_hidden_size: int = 12
    vision_heads: int = 2
    vision_layers: int = 3


class RotaryEmbedding(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** -torch.linspace(0, 1, width // 2))

    def forward(self, length):
        steps = torch.arange(length, device=self.inv_freq.device)
        angles = torch.outer(steps, self.inv_freq)
        return torch.stack((angles.cos(), angles.sin()), dim=-1)  # [length, width / 2, 2]


class Embedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)

    def forward(self, input_ids):
        return self.word_embeddings(input_ids)


class GLMBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states, rotary_pos_emb):
        query, key, value = self.query_key_value(self.input_layernorm(states)).chunk(3, dim=-1)
        query, key = turned(query, rotary_pos_emb), turned(key, rotary_pos_emb)
        return states + self.dense(scaled_dot_product_attention(query, key, value, is_causal=True))


def turned(vectors, rotary_pos_emb):
    even, odd = vectors[..., ::2], vectors[..., 1::2]
    cos, sin = rotary_pos_emb.unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(2)


class GLMTransformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(GLMBlock(config) for _ in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size)

    def forward(self, states, rotary_pos_emb):
        for layer in self.layers:
            states = layer(states, rotary_pos_emb)
        return self.final_layernorm(states)


class ChatGLMModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.seq_length = config.seq_length
        self.embedding = Embedding(config)
        self.rotary_pos_emb = RotaryEmbedding(config.hidden_size)
        self.encoder = GLMTransformer(config)
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.vision = EVA2CLIPModel(config)

    def forward(self, input_ids, images=None, position_ids=None):
        words = self.embedding(input_ids)
        if images is not None:
            pictures = self.vision(images)
            rows = []
            for row, ids in enumerate(input_ids.tolist()):
                at = ids.index(IMAGE_TOKEN)
                rows.append(torch.cat((words[row, :at], pictures[row], words[row, at + 1 :])))
            words = torch.stack(rows)
        if position_ids is None:
            position_ids = torch.arange(words.shape[1], device=words.device).unsqueeze(0)
        rotary = self.rotary_pos_emb(self.seq_length)
        rotary = rotary[position_ids]
        return self.output_layer(self.encoder(words, rotary_pos_emb=rotary))


class ChatGLMForConditionalGeneration(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transformer = ChatGLMModel(config)

    def forward(self, input_ids, images=None, position_ids=None):
        return self.transformer(input_ids, images=images, position_ids=position_ids)
