"""GLM-4V-9B in plain torch, batched for training, with the checkpoint's own weight names.

The shipped model (`glm4v_magic.checkpoints.glm4v_9b`) is made for placement, caches and every
decoding option; this one runs whole batches of equal layout and nothing else. Both must give
the same logits: `tests/project/test_training_scenes.py` compares them.

Shapes: B images or rows, N patches, M merged cells (visual tokens without begin and end),
T text tokens, L = T - 3 + M + 2 vectors, H hidden size, V vocabulary size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm4v_magic.checkpoints.glm4v_9b.processing import MEAN, STD

__all__ = ["Network", "initialise", "normalised"]

BOI_INDEX = 4
"""Where the begin-of-image id stands in a fresh prompt: after [gMASK] <sop> <|user|> newline."""


class Network(nn.Module):
    """The whole model; `state_dict()` has the names of a published checkpoint."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.transformer = _Transformer(config)

    def visual_tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels ``[B, 3, S, S]`` -> merged cells ``[B, M, H]`` (unscaled) and patches."""
        tower: _Vision = self.transformer.vision
        return tower(pixels)

    def forward(self, ids: Tensor, cells: Tensor | None) -> Tensor:
        """Text ids ``[B, T]`` and merged cells -> normalised last hidden states ``[B, L, H]``.

        With `cells`, the three placeholder ids must stand at `BOI_INDEX` in every row.
        """
        t = self.transformer
        x = t.embedding.word_embeddings(ids)
        merged = 0
        if cells is not None:
            image = t.vision.framed(cells).to(x.dtype)
            x = torch.cat((x[:, :BOI_INDEX], image, x[:, BOI_INDEX + 3 :]), dim=1)
            merged = cells.shape[1]
        return t.encoder(x, *t.rotary(_positions(x.shape[1], merged), x.dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[..., H]`` -> logits ``[..., V]``."""
        return self.transformer.output_layer(hidden)


def initialise(network: Network, generator: torch.Generator) -> None:
    """Fill the weights for training from scratch.

    The usual 0.02 is meant for a width of 4096; narrow layers need about 1 / sqrt(width).
    """
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            nn.init.constant_(parameter, _gain(name))
        else:
            nn.init.normal_(parameter, std=_deviation(name, parameter), generator=generator)
    with torch.no_grad():
        transformer = network.transformer
        transformer.output_layer.weight.copy_(transformer.embedding.word_embeddings.weight)
        embedding = transformer.vision.patch_embedding.position_embedding.weight
        embedding[1:] = 0.7 * _waves(transformer.vision.grid, embedding.shape[1])
        for edge in (transformer.vision.boi, transformer.vision.eoi):
            nn.init.normal_(edge, std=0.1 * transformer.vision.scaling_factor, generator=generator)


def _gain(name: str) -> float:
    if "norm" not in name or not name.endswith("weight"):
        return 0.0
    # The tower's norms end its residual branches. At gain 1 six random branches would drown the
    # image; Swin v2, which has the same order, starts at 0.
    return 0.2 if "vision.transformer" in name else 1.0


def _deviation(name: str, parameter: Tensor) -> float:
    if "patch_embedding.proj" in name:
        return 0.02  # neighbouring pixels are alike and add up: patches come out at about 1
    if "attention.query_key_value" in name:
        return 0.05  # no norm stands before the tower's attention: keep it soft at the start
    if "word_embeddings" in name:
        return 0.09
    return min(0.09, 1 / math.sqrt(parameter[0].numel()))


def _waves(grid: int, width: int) -> Tensor:
    """Sines and cosines of row and column, ``[grid * grid, width]``.

    From such a start, attending to a neighbour is one matrix away; from random vectors each
    pair of positions has to be learnt by itself.
    """
    steps = torch.arange(width // 4) / (width // 4)
    frequencies = math.pi * (2 / grid / math.pi) ** steps
    angles = torch.arange(grid)[:, None] * frequencies
    line = torch.cat((angles.sin(), angles.cos()), dim=-1)
    rows = line[:, None].expand(-1, grid, -1)
    columns = line[None].expand(grid, -1, -1)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1)


def normalised(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes ``[B, S, S, 3]`` -> what the tower reads, ``[B, 3, S, S]``."""
    mean = torch.tensor(MEAN, device=images.device)
    std = torch.tensor(STD, device=images.device)
    return ((images.float() / 255 - mean) / std).to(dtype).permute(0, 3, 1, 2)


def _positions(length: int, merged: int) -> Tensor:
    """Return position ids ``[L]``: patches share the one after begin-of-image, text goes on."""
    positions = torch.arange(length)
    if merged:
        first = BOI_INDEX + 1
        positions[first : first + merged] = first
        positions[first + merged :] -= merged - 1
    return positions


class _Transformer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, vocabulary = config["hidden_size"], config["padded_vocab_size"]
        self.rotary_dim = config["kv_channels"] // 2
        self.embedding = _Embedding(vocabulary, hidden)
        self.encoder = _Encoder(config)
        self.output_layer = nn.Linear(hidden, vocabulary, bias=False)
        self.vision = _Vision(config)

    def rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[L, rotary_dim]``, each frequency twice in a row (interleaved)."""
        exponents = torch.arange(0, self.rotary_dim, 2).float() / self.rotary_dim
        angles = positions.float()[:, None] * 10000.0**-exponents
        angles = angles.repeat_interleave(2, dim=-1).to(self.output_layer.weight.device)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class _Embedding(nn.Module):
    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, hidden)


class _Encoder(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_TextLayer(config) for _ in range(config["num_layers"]))
        self.final_layernorm = _RMSNorm(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        length = x.shape[1]
        hidden_keys = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        mask = torch.zeros(length, length, dtype=x.dtype, device=x.device)
        mask = mask.masked_fill(hidden_keys, -1e4)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.final_layernorm(x)


class _RMSNorm(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config["hidden_size"]))
        self.eps = config["layernorm_epsilon"]

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _TextLayer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.input_layernorm = _RMSNorm(config)
        self.self_attention = _TextAttention(config)
        self.post_attention_layernorm = _RMSNorm(config)
        self.mlp = _TextMLP(config["hidden_size"], config["ffn_hidden_size"])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attention(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class _TextMLP(nn.Module):
    def __init__(self, hidden: int, wide: int) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(hidden, 2 * wide, bias=False)
        self.dense_4h_to_h = nn.Linear(wide, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.dense_h_to_4h(x).chunk(2, dim=-1)
        return self.dense_4h_to_h(F.silu(gate) * up)


class _TextAttention(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.heads, self.size = config["num_attention_heads"], config["kv_channels"]
        self.groups = config["multi_query_group_num"]
        hidden, rows = config["hidden_size"], (self.heads + 2 * self.groups) * self.size
        self.query_key_value = nn.Linear(hidden, rows)
        self.dense = nn.Linear(self.heads * self.size, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = x.shape
        fused = self.query_key_value(x).view(rows, length, -1, self.size)
        fused = fused.transpose(1, 2)
        turned, value = fused[:, : self.heads + self.groups], fused[:, self.heads + self.groups :]
        turned = _rotate(turned, cos, sin)
        repeats = self.heads // self.groups
        query = turned[:, : self.heads] * self.size**-0.5
        key = turned[:, self.heads :].repeat_interleave(repeats, dim=1)
        scores = query @ key.transpose(-1, -2) + mask
        mixed = scores.softmax(dim=-1) @ value.repeat_interleave(repeats, dim=1)
        return self.dense(mixed.transpose(1, 2).reshape(rows, length, -1))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding to the first half of each head's dimensions, in pairs."""
    turned, rest = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), dim=-1)
    even, odd = turned[..., 0::2], turned[..., 1::2]
    swapped = torch.stack((-odd, even), dim=-1).flatten(-2)
    return torch.cat((turned * cos + swapped * sin, rest), dim=-1)


class _Vision(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        vision = config["vision_config"]
        width, hidden = vision["hidden_size"], config["hidden_size"]
        self.scaling_factor = vision["scaling_factor"]
        self.grid = vision["image_size"] // vision["patch_size"]
        self.patch_embedding = _PatchEmbedding(vision)
        self.transformer = _VisionLayers(vision)
        self.conv = nn.Conv2d(width, hidden, kernel_size=2, stride=2)
        self.linear_proj = _GatedProjection(hidden, config["ffn_hidden_size"])
        self.boi = nn.Parameter(torch.zeros(1, 1, hidden))
        self.eoi = nn.Parameter(torch.zeros(1, 1, hidden))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patch_embedding(pixels)
        patches = self.transformer(x)[:, 1:]
        grid = patches.unflatten(1, (self.grid // 2, 2, self.grid // 2, 2))
        blocks = grid.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
        kernel = self.conv.weight.permute(0, 2, 3, 1).flatten(1)
        return self.linear_proj(F.linear(blocks, kernel, self.conv.bias)), patches

    def framed(self, cells: Tensor) -> Tensor:
        """Put begin and end vectors around the cells and divide all by the scaling factor."""
        edge = (cells.shape[0], -1, -1)
        parts = (self.boi.expand(edge), cells, self.eoi.expand(edge))
        return torch.cat(parts, dim=1) / self.scaling_factor


class _PatchEmbedding(nn.Module):
    def __init__(self, vision: Mapping[str, Any]) -> None:
        super().__init__()
        width, patch = vision["hidden_size"], vision["patch_size"]
        self.proj = nn.Conv2d(vision["in_channels"], width, kernel_size=patch, stride=patch)
        self.cls_embedding = nn.Parameter(torch.zeros(1, width))
        self.position_embedding = nn.Embedding(vision["num_positions"], width)

    def forward(self, pixels: Tensor) -> Tensor:
        # Patches never overlap, so the convolution is one matrix product, faster on a CPU.
        side = self.proj.kernel_size[0]
        patches = F.unfold(pixels, side, stride=side).transpose(1, 2)
        x = F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
        cls = self.cls_embedding.expand(x.shape[0], 1, -1)
        return torch.cat((cls, x), dim=1) + self.position_embedding.weight


class _VisionLayers(nn.Module):
    def __init__(self, vision: Mapping[str, Any]) -> None:
        super().__init__()
        layers = (_VisionLayer(vision) for _ in range(vision["num_hidden_layers"]))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class _VisionLayer(nn.Module):
    """Post-norm residuals: the norm acts on the branch, not on the stream."""

    def __init__(self, vision: Mapping[str, Any]) -> None:
        super().__init__()
        width, eps = vision["hidden_size"], vision["layer_norm_eps"]
        self.input_layernorm = nn.LayerNorm(width, eps=eps)
        self.attention = _VisionAttention(width, vision["num_heads"])
        self.mlp = _VisionMLP(width, vision["intermediate_size"])
        self.post_attention_layernorm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.input_layernorm(self.attention(x))
        return x + self.post_attention_layernorm(self.mlp(x))


class _VisionMLP(nn.Module):
    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, wide)
        self.fc2 = nn.Linear(wide, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _VisionAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        fused = self.query_key_value(x).view(rows, length, 3, self.heads, -1)
        query, key, value = fused.permute(2, 0, 3, 1, 4)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        mixed = scores.softmax(dim=-1) @ value
        return self.dense(mixed.transpose(1, 2).reshape(rows, length, width))


class _GatedProjection(nn.Module):
    def __init__(self, hidden: int, wide: int) -> None:
        super().__init__()
        self.linear_proj = nn.Linear(hidden, hidden, bias=False)
        self.norm1 = nn.LayerNorm(hidden)
        self.dense_h_to_4h = nn.Linear(hidden, wide, bias=False)
        self.gate_proj = nn.Linear(hidden, wide, bias=False)
        self.dense_4h_to_h = nn.Linear(wide, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.linear_proj(x)))
        return self.dense_4h_to_h(F.silu(self.gate_proj(x)) * self.dense_h_to_4h(x))
