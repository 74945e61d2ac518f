"""The vision tower of GLM-4V-9B: pixels -> visual tokens in the text part's width.

Shapes: B images, P = (image_size / patch_size)^2 patches, D vision width, n = P / 4 merged
patches, H text width.

Every operation on tensors from two modules brings them to one device first, so the tower can be
split anywhere: the residual adds, the gate of the projection, the learned begin and end vectors,
the class token and the position table. ``.to`` returns a tensor unchanged that is already on the
device, so a whole tower pays nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bVisionConfig

__all__ = ["VisionTower"]


class PatchEmbedding(nn.Module):
    """Cut images into patches: (B, 3, S, S) -> (B, 1 + P, D), class token first."""

    def __init__(self, config: Glm4v9bVisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            config.in_channels, config.hidden_size, config.patch_size, stride=config.patch_size
        )
        self.cls_embedding = nn.Parameter(torch.zeros(1, config.hidden_size))
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.proj(pixel_values).flatten(2).transpose(1, 2)
        cls = self.cls_embedding.to(x.device).expand(len(x), -1, -1)
        x = torch.cat((cls, x), dim=1)
        # Looked up rather than read from `.weight`: an offloaded table exists only in its forward.
        rows = torch.arange(self.position_embedding.num_embeddings, device=x.device)
        positions: Tensor = self.position_embedding(rows)
        return x + positions.to(x.device)


class VisionAttention(nn.Module):
    """Full self-attention over the patches of an image, query, key and value in one matrix."""

    def __init__(self, config: Glm4v9bVisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.query_key_value(x).view(batch, length, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, 1 + P, D / heads)
        x = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.dense(x.transpose(1, 2).reshape(batch, length, -1))
        return out


class VisionMLP(nn.Module):
    """Two matrices with an exact (erf) GELU between them."""

    def __init__(self, config: Glm4v9bVisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class VisionLayer(nn.Module):
    """Attention and MLP, each normalised *after* its branch and then added to the residual."""

    def __init__(self, config: Glm4v9bVisionConfig) -> None:
        super().__init__()
        self.attention = VisionAttention(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.input_layernorm(self.attention(x)).to(x.device)
        return x + self.post_attention_layernorm(self.mlp(x)).to(x.device)


class VisionEncoder(nn.Module):
    """The stack of layers; there is no final norm."""

    def __init__(self, config: Glm4v9bVisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class GatedProjection(nn.Module):
    """Project merged patches and pass them through a gated MLP of the text part's width."""

    def __init__(self, hidden_size: int, ffn_hidden_size: int) -> None:
        super().__init__()
        self.linear_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm1 = nn.LayerNorm(hidden_size)
        self.dense_h_to_4h = nn.Linear(hidden_size, ffn_hidden_size, bias=False)
        self.gate_proj = nn.Linear(hidden_size, ffn_hidden_size, bias=False)
        self.dense_4h_to_h = nn.Linear(ffn_hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.linear_proj(x)))
        gate = F.silu(self.gate_proj(x))
        out: Tensor = self.dense_4h_to_h(gate * self.dense_h_to_4h(x).to(gate.device))
        return out


class VisionTower(nn.Module):
    """Images -> visual tokens: (B, 3, S, S) -> (B, n + 2, H), begin vector first, end last."""

    def __init__(self, config: Glm4v9bVisionConfig, hidden_size: int, ffn_hidden_size: int) -> None:
        super().__init__()
        self.scaling_factor = config.scaling_factor
        self.boi = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.eoi = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.patch_embedding = PatchEmbedding(config)
        self.transformer = VisionEncoder(config)
        self.conv = nn.Conv2d(config.hidden_size, hidden_size, kernel_size=2, stride=2)
        self.linear_proj = GatedProjection(hidden_size, ffn_hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.transformer(self.patch_embedding(pixel_values))
        x = x[:, 1:]  # the class token has done its work
        batch, patches, width = x.shape
        side = int(patches**0.5)
        x = x.view(batch, side, side, width).permute(0, 3, 1, 2)
        x = self.conv(x).flatten(2).transpose(1, 2)
        x = self.linear_proj(x)
        boi = self.boi.to(x.device).expand(batch, -1, -1)
        eoi = self.eoi.to(x.device).expand(batch, -1, -1)
        return torch.cat((boi, x, eoi), dim=1) / self.scaling_factor
