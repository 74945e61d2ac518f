"""GLM-4.6V in plain torch, batched for training, with the checkpoint's own weight names.

transformers' class walks through the images of a batch one by one; this one runs batches whose
images all have one size and stand at the same places. Both must give the same logits:
`tests/project/test_native_training.py` compares them.

Shapes: B rows, K images in each, N patches and M = N / 4 visual tokens of an image, T tokens of a
row, H hidden size, V vocabulary size, W width of the tower.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Layout", "Network", "Watch", "initialise", "patches_of"]

Watch = Callable[[Tensor, Tensor], None]
"""Takes a layer's queries ``[B, heads, T, size]`` and keys ``[B, keys, T, size]``."""

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_PATCH, _MERGE, _FRAMES = 14, 2, 2


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the images of a row stand.

    Attributes:
        starts: index of the first visual token of each image.
        rows: rows of an image in visual tokens.
        columns: likewise.
    """

    starts: tuple[int, ...]
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Visual tokens of an image."""
        return self.rows * self.columns

    def positions(self, length: int, device: torch.device | None = None) -> Tensor:
        """Place every token of a row in time, height and width: ``[3, length]``.

        Text counts on from the largest place before it, as `get_rope_index` does.
        """
        return _positions(self, length, device)


@functools.lru_cache(maxsize=4096)
def _positions(layout: Layout, length: int, device: torch.device | None) -> Tensor:
    places = torch.zeros(3, length, dtype=torch.long)
    at = place = 0
    down, across = torch.meshgrid(
        torch.arange(layout.rows), torch.arange(layout.columns), indexing="ij"
    )
    inside = torch.stack((torch.zeros_like(down), down, across)).flatten(1)
    for start in layout.starts:
        places[:, at:start] = place + torch.arange(start - at)
        place += start - at
        places[:, start : start + layout.tokens] = place + inside
        place += max(layout.rows, layout.columns)
        at = start + layout.tokens
    places[:, at:] = place + torch.arange(length - at)
    return places.to(device)


def patches_of(frames: Tensor) -> Tensor:
    """Bytes ``[B, F, height, width, 3]`` -> normalised patches ``[B, N, 3 * F * 14 * 14]``.

    F is 1 or 2; patches that become one visual token stand together.
    """
    mean, deviation = _normal(frames.device)
    x = (frames.float() / 255 - mean) / deviation
    images, number, height, width, _ = x.shape
    rows, columns = height // _PATCH, width // _PATCH
    x = x.view(images, number, rows // _MERGE, _MERGE, _PATCH, columns // _MERGE, _MERGE, _PATCH, 3)
    return x.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(images, rows * columns, -1)


@functools.cache
def _normal(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(_MEAN, device=device), torch.tensor(_STD, device=device)


class Network(nn.Module):
    """The whole model; `state_dict()` has the names of a published checkpoint."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        text = config["text_config"]
        self.model = _Model(config)
        self.lm_head = nn.Linear(text["hidden_size"], text["vocab_size"], bias=False)

    @property
    def widths(self) -> tuple[int, int]:
        """Return W and H."""
        kernel = self.model.visual.downsample.weight
        return kernel.shape[1], kernel.shape[0]

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.lm_head.weight.device

    def visual_tokens(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes ``[B * K, F, height, width, 3]`` -> visual tokens ``[B * K, M, H]`` and patches."""
        tower: _Tower = self.model.visual
        rows, columns = frames.shape[2] // _PATCH, frames.shape[3] // _PATCH
        patches = patches_of(frames).to(self.lm_head.weight.dtype)
        return tower(patches, rows, columns)

    def forward(
        self,
        ids: Tensor,
        visual: Tensor | None,
        layout: Layout,
        watched: Mapping[int, Watch] = MappingProxyType({}),
    ) -> Tensor:
        """Ids ``[B, T]``, visual tokens ``[B * K, M, H]`` -> last hidden states ``[B, T, H]``.

        `watched` has the indices of layers, and what takes their queries and keys.
        """
        language = self.model.language_model
        x = language.embed_tokens(ids)
        if visual is not None:
            images = visual.view(len(ids), len(layout.starts), layout.tokens, -1)
            parts, at = [], 0
            for index, start in enumerate(layout.starts):
                parts += [x[:, at:start], images[:, index]]
                at = start + layout.tokens
            x = torch.cat([*parts, x[:, at:]], dim=1)
        return language(x, layout.positions(ids.shape[1], ids.device), watched)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[..., H]`` -> logits ``[..., V]``."""
        return self.lm_head(hidden)


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
        network.lm_head.weight.copy_(network.model.language_model.embed_tokens.weight)
        embedding = network.model.visual.embeddings.position_embedding.weight
        embedding.copy_(0.5 * _waves(math.isqrt(len(embedding)), embedding.shape[1]))


def _gain(name: str) -> float:
    if "norm" not in name or not name.endswith("weight"):
        return 0.0
    # Norms behind a branch: at gain 1 they would drown embeddings of 0.09.
    return 0.2 if "post_self_attn" in name or "post_mlp" in name else 1.0


def _deviation(name: str, parameter: Tensor) -> float:
    if "patch_embed" in name:
        return 0.02  # neighbouring pixels are alike and add up: patches come out at about 1
    if "embed_tokens" in name:
        return 0.09
    return min(0.09, 1 / math.sqrt(parameter[0].numel()))


def _waves(grid: int, width: int) -> Tensor:
    """Sines and cosines of row and column, ``[grid * grid, width]``."""
    steps = torch.arange(width // 4) / (width // 4)
    frequencies = math.pi * (2 / grid / math.pi) ** steps
    angles = torch.arange(grid)[:, None] * frequencies
    line = torch.cat((angles.sin(), angles.cos()), dim=-1)
    down = line[:, None].expand(-1, grid, -1)
    across = line[None].expand(grid, -1, -1)
    return torch.cat((down, across), dim=-1).flatten(0, 1)


class _Model(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.visual = _Tower(config["vision_config"])
        self.language_model = _Text(config["text_config"])


class _RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _Tower(nn.Module):
    def __init__(self, vision: Mapping[str, Any]) -> None:
        super().__init__()
        width, hidden, eps = vision["hidden_size"], vision["out_hidden_size"], 1e-5
        self.head_size = width // vision["num_heads"]
        self.embeddings = _Positions((vision["image_size"] // _PATCH) ** 2, width)
        self.patch_embed = _PatchEmbedding(width)
        self.blocks = nn.ModuleList(_Block(vision, eps) for _ in range(vision["depth"]))
        self.merger = _Merger(hidden, vision["intermediate_size"])
        self.post_conv_layernorm = _RMSNorm(width, eps)
        self.downsample = nn.Conv2d(width, hidden, kernel_size=_MERGE, stride=_MERGE)
        self.post_layernorm = _RMSNorm(width, eps)

    def forward(self, patches: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        kernel = self.patch_embed.proj.weight
        if patches.shape[-1] != kernel[0].numel():
            kernel = kernel.sum(2)  # both frames are the same image
        x = F.linear(patches, kernel.flatten(1), self.patch_embed.proj.bias)
        places = _block_places(rows, columns, x.device)
        x = self.post_conv_layernorm(x) + self._position_embeddings(places, rows, columns)
        cos, sin = self._rotary(places, x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        patches = self.post_layernorm(x)
        joined = patches.unflatten(1, (-1, _MERGE * _MERGE)).flatten(2)
        kernel = self.downsample.weight.permute(0, 2, 3, 1).flatten(1)
        return self.merger(F.linear(joined, kernel, self.downsample.bias)), patches

    def _position_embeddings(self, places: Tensor, rows: int, columns: int) -> Tensor:
        """Sample the learned square at the centres of patches: ``[N, W]``."""
        learned = self.embeddings.position_embedding.weight
        side = math.isqrt(len(learned))
        square = learned.view(1, side, side, -1).permute(0, 3, 1, 2).float()
        down, across = places.float()
        at = torch.stack(((across + 0.5) / columns, (down + 0.5) / rows), dim=-1) * 2 - 1
        sampled = F.grid_sample(
            square, at[None, :, None], "bicubic", padding_mode="border", align_corners=False
        )
        return sampled[0, :, :, 0].T.to(learned.dtype)

    def _rotary(self, places: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        size = self.head_size // 2
        exponents = torch.arange(0, size, 2, device=places.device).float() / size
        angles = places[..., None].float() * 10000.0**-exponents
        turned = torch.cat((angles[0], angles[1]), dim=-1).repeat(1, 2)
        return turned.cos().to(dtype), turned.sin().to(dtype)


class _Positions(nn.Module):
    def __init__(self, number: int, width: int) -> None:
        super().__init__()
        self.position_embedding = nn.Embedding(number, width)


class _PatchEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        side = (_FRAMES, _PATCH, _PATCH)
        self.proj = nn.Conv3d(3, width, kernel_size=side, stride=side)


@functools.cache
def _block_places(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return row and column of every patch ``[2, N]``, patches of one visual token together."""
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    grid = torch.stack((down, across))
    grid = grid.view(2, rows // _MERGE, _MERGE, columns // _MERGE, _MERGE)
    return grid.permute(0, 1, 3, 2, 4).flatten(1).to(device)


class _Block(nn.Module):
    def __init__(self, vision: Mapping[str, Any], eps: float) -> None:
        super().__init__()
        width = vision["hidden_size"]
        self.norm1, self.norm2 = _RMSNorm(width, eps), _RMSNorm(width, eps)
        self.attn = _TowerAttention(width, vision["num_heads"])
        # As in transformers, where the hidden size of the text part sets the width of this one.
        self.mlp = _GatedMLP(width, vision["out_hidden_size"])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class _TowerAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        images, length, width = x.shape
        fused = self.qkv(x).view(images, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        turned = fused[:2] * cos + _halves_swapped(fused[:2]) * sin
        mixed = F.scaled_dot_product_attention(turned[0], turned[1], fused[2])
        return self.proj(mixed.transpose(1, 2).reshape(images, length, width))


def _halves_swapped(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class _GatedMLP(nn.Module):
    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, wide, bias=False)
        self.up_proj = nn.Linear(width, wide, bias=False)
        self.down_proj = nn.Linear(wide, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Merger(_GatedMLP):
    def __init__(self, hidden: int, wide: int) -> None:
        super().__init__(hidden, wide)
        self.proj = nn.Linear(hidden, hidden, bias=False)
        self.post_projection_norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.gelu(self.post_projection_norm(self.proj(x))))


class _Text(nn.Module):
    def __init__(self, text: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, eps = text["hidden_size"], text["rms_norm_eps"]
        self.embed_tokens = nn.Embedding(text["vocab_size"], hidden)
        self.layers = nn.ModuleList(_TextLayer(text, eps) for _ in range(text["num_hidden_layers"]))
        self.norm = _RMSNorm(hidden, eps)
        self.head_size = hidden // text["num_attention_heads"]
        self.rope: Mapping[str, Any] = text["rope_parameters"]

    def forward(self, x: Tensor, positions: Tensor, watched: Mapping[int, Watch]) -> Tensor:
        cos, sin = self._rotary(positions, x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, watched.get(index))
        return self.norm(x)

    def _rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[T, dim]``: some frequencies turn with time, some with height..."""
        dim = int(self.head_size * self.rope["partial_rotary_factor"])
        exponents = torch.arange(0, dim, 2, device=positions.device).float() / dim
        angles = positions[..., None].float() * self.rope["rope_theta"] ** -exponents
        sections: Sequence[int] = self.rope["mrope_section"]
        parts = [part[i % 3] for i, part in enumerate(angles.split(list(sections), dim=-1))]
        turned = torch.cat(parts, dim=-1).repeat_interleave(2, dim=-1)
        return turned.cos().to(dtype), turned.sin().to(dtype)


class _TextLayer(nn.Module):
    def __init__(self, text: Mapping[str, Any], eps: float) -> None:
        super().__init__()
        hidden = text["hidden_size"]
        self.self_attn = _TextAttention(text)
        self.mlp = _TextMLP(hidden, text["intermediate_size"])
        self.input_layernorm = _RMSNorm(hidden, eps)
        self.post_attention_layernorm = _RMSNorm(hidden, eps)
        self.post_self_attn_layernorm = _RMSNorm(hidden, eps)
        self.post_mlp_layernorm = _RMSNorm(hidden, eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, watch: Watch | None) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), cos, sin, watch)
        x = x + self.post_self_attn_layernorm(attended)
        return x + self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(x)))


class _TextMLP(nn.Module):
    def __init__(self, hidden: int, wide: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden, 2 * wide, bias=False)
        self.down_proj = nn.Linear(wide, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * F.silu(gate))


class _TextAttention(nn.Module):
    def __init__(self, text: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = text["hidden_size"]
        self.heads, self.groups = text["num_attention_heads"], text["num_key_value_heads"]
        self.size = hidden // self.heads
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, self.groups * self.size)
        self.v_proj = nn.Linear(hidden, self.groups * self.size)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, watch: Watch | None) -> Tensor:
        rows, length, hidden = x.shape
        query, key, value = (
            projection(x).view(rows, length, -1, self.size).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
        if watch is not None:
            watch(query, key)
        repeats = self.heads // self.groups
        key, value = (each.repeat_interleave(repeats, dim=1) for each in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, length, hidden))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding to the first dimensions of each head, in pairs."""
    turned, rest = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), dim=-1)
    even, odd = turned[..., 0::2], turned[..., 1::2]
    swapped = torch.stack((-odd, even), dim=-1).flatten(-2)
    return torch.cat((turned * cos + swapped * sin, rest), dim=-1)
