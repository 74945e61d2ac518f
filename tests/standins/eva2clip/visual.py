"""A small vision tower with the names and the post-norm form of the EVA2CLIP family.

Written for the tests: nothing in it takes care of devices, so that each place where two GPUs can
meet fails as it does in the checkpoints' own code.
"""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu


class PatchEmbedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        size, width = config.patch_size, config.vision_hidden_size
        self.proj = nn.Conv2d(3, width, size, stride=size)
        self.cls_embedding = nn.Parameter(torch.zeros(1, width))
        self.position_embedding = nn.Embedding(config.grid**2 + 1, width)

    def forward(self, pixels):
        # [batch, 3, side, side] -> [batch, 1 + patches, width]
        patches = self.proj(pixels).flatten(start_dim=2).mT
        first = self.cls_embedding.expand(len(patches), -1, -1)
        patches = torch.cat((first, patches), dim=1)
        patches += self.position_embedding.weight.unsqueeze(0)  # one row per patch
        return patches


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.vision_hidden_size
        self.num_heads = config.vision_heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)

    def forward(self, tokens):
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.query_key_value(tokens).chunk(3, dim=-1)
        )
        mixed = scaled_dot_product_attention(query, key, value)
        return self.dense(mixed.transpose(1, 2).flatten(start_dim=2))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.vision_hidden_size
        self.activation_fn = nn.GELU()
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, tokens):
        return self.fc2(self.activation_fn(self.fc1(tokens)))


class TransformerLayer(nn.Module):
    """Both norms stand after their branch, so the adds are all that is left to the layer."""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.vision_hidden_size)
        self.attention = Attention(config)
        self.mlp = MLP(config)
        self.post_attention_layernorm = nn.LayerNorm(config.vision_hidden_size)

    def forward(self, tokens):
        seen = self.input_layernorm(self.attention(tokens))
        middle = tokens + seen
        thought = self.post_attention_layernorm(self.mlp(middle))
        return middle + thought


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.vision_layers))

    def forward(self, tokens):
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens


class GLU(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, wide = config.hidden_size, 2 * config.hidden_size
        self.linear_proj = nn.Linear(width, width, bias=False)
        self.norm1 = nn.LayerNorm(width)
        self.act1 = nn.GELU()
        self.act2 = silu
        self.dense_h_to_4h = nn.Linear(width, wide, bias=False)
        self.gate_proj = nn.Linear(width, wide, bias=False)
        self.dense_4h_to_h = nn.Linear(wide, width, bias=False)

    def forward(self, features):
        features = self.act1(self.norm1(self.linear_proj(features)))
        product = self.act2(self.gate_proj(features)) * self.dense_h_to_4h(features)
        return self.dense_4h_to_h(product)


class EVA2CLIPModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch_embedding = PatchEmbedding(config)
        self.transformer = Transformer(config)
        self.linear_proj = GLU(config)
        self.conv = nn.Conv2d(config.vision_hidden_size, config.hidden_size, 2, stride=2)
        self.boi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.eoi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.scaling_factor = 8

    def forward(self, pixels):
        tokens = self.transformer(self.patch_embedding(pixels))[:, 1:]
        side = int(tokens.shape[1] ** 0.5)
        features = self.conv(tokens.mT.unflatten(2, (side, side)))
        features = self.linear_proj(features.flatten(start_dim=2).mT)
        start = self.boi.expand(len(features), -1, -1)
        end = self.eoi.expand(len(features), -1, -1)
        return torch.cat((start, features, end), dim=1) / self.scaling_factor
