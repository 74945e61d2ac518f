"""A small text model around the vision tower, with the names of GLM-4V-9B's own code.

Written for the tests: nothing in it takes care of devices.
"""

import torch
from torch import nn
from torch.nn.functional import dropout, scaled_dot_product_attention, silu
from transformers import PretrainedConfig, PreTrainedModel

from .visual import EVA2CLIPModel

IMAGE_TOKEN = 1


class ChatGLMConfig(PretrainedConfig):
    model_type = "chatglm"

    def __init__(self, **kwargs):
        self.hidden_size = 16
        self.num_layers = 2
        self.padded_vocab_size = 32
        self.seq_length = 64
        self.patch_size = 2
        self.grid = 4
        self.vision_hidden_size = 12
        self.vision_heads = 2
        self.vision_layers = 3
        self.residual_after_norm = False
        super().__init__(**kwargs)


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


@torch.jit.script
def apply_rotary_pos_emb(vectors: torch.Tensor, rope_cache: torch.Tensor) -> torch.Tensor:
    even, odd = vectors[..., ::2], vectors[..., 1::2]
    cos, sin = rope_cache[..., 0], rope_cache[..., 1]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(2)


class CoreAttention(nn.Module):
    def forward(self, query, key, value, attention_mask):
        if attention_mask is None:
            return scaled_dot_product_attention(query, key, value, is_causal=len(query[0]) > 1)
        return scaled_dot_product_attention(query, key, value, attn_mask=~attention_mask)


class SelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.core_attention = CoreAttention()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states, attention_mask, rotary_pos_emb, kv_cache=None, use_cache=True):
        mixed = self.query_key_value(states)
        (query, key, value) = mixed.chunk(3, dim=-1)
        if rotary_pos_emb is not None:
            query = apply_rotary_pos_emb(query, rotary_pos_emb)
            key = apply_rotary_pos_emb(key, rotary_pos_emb)
        if kv_cache is not None:
            past_key, past_value = kv_cache
            key = torch.cat((past_key, key), dim=1)
            value = torch.cat((past_value, value), dim=1)
        kept = torch.stack((key, value)) if use_cache else None
        seen = self.core_attention(query, key, value, attention_mask)
        return self.dense(seen), kept


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 4 * config.hidden_size, bias=False)
        self.dense_4h_to_h = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)

    def forward(self, states):
        gate, up = self.dense_h_to_4h(states).chunk(2, dim=-1)
        return self.dense_4h_to_h(silu(gate) * up)


class GLMBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.residual_after_norm = config.residual_after_norm
        self.input_layernorm = nn.LayerNorm(config.hidden_size)
        self.self_attention = SelfAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size)
        self.mlp = MLP(config)

    def forward(self, states, attention_mask, rotary_pos_emb, kv_cache=None, use_cache=True):
        normed = self.input_layernorm(states)
        attended, kv_cache = self.self_attention(
            normed, attention_mask, rotary_pos_emb, kv_cache=kv_cache, use_cache=use_cache
        )
        if self.residual_after_norm:  # noqa: SIM108
            carried = normed
        else:
            carried = states
        middle = dropout(attended, p=0.0, training=self.training)
        middle = carried + middle
        normed = self.post_attention_layernorm(middle)
        thought = self.mlp(normed)
        if self.residual_after_norm:  # noqa: SIM108
            carried = normed
        else:
            carried = middle
        output = nn.functional.dropout(thought, p=0.0, training=self.training)
        output = carried + output
        return output, kv_cache


class GLMTransformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(GLMBlock(config) for _ in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size)

    def forward(self, states, attention_mask, rotary_pos_emb, kv_caches=None, use_cache=True):
        presents = []
        for number, layer in enumerate(self.layers):
            kv_cache = kv_caches[number] if kv_caches else None
            states, kept = layer(
                states, attention_mask, rotary_pos_emb, kv_cache=kv_cache, use_cache=use_cache
            )
            if use_cache:  # all on the device of the first, as published
                presents.append(kept if not presents else kept.to(presents[0].device))
        return self.final_layernorm(states), presents


class ChatGLMPreTrainedModel(PreTrainedModel):
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["GLMBlock"]  # noqa: RUF012

    def _init_weights(self, module):
        pass

    def get_masks(self, words, past_key_values, padding_mask=None):
        rows, length, _ = words.shape
        full_mask = torch.ones(rows, length, length, device=words.device)
        full_mask.tril_()
        past = past_key_values[0][0].shape[1] if past_key_values else 0
        if past:
            earlier = torch.ones(rows, length, past, device=words.device)
            full_mask = torch.cat((earlier, full_mask), dim=-1)
        if padding_mask is not None:
            full_mask = full_mask * padding_mask.unsqueeze(1)
        if not past and padding_mask is not None:
            full_mask -= padding_mask.unsqueeze(-1) - 1
        return full_mask < 0.5


class ChatGLMModel(ChatGLMPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.seq_length = config.seq_length
        self.embedding = Embedding(config)
        self.rotary_pos_emb = RotaryEmbedding(config.hidden_size)
        self.encoder = GLMTransformer(config)
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.vision = EVA2CLIPModel(config)

    def forward(
        self,
        input_ids,
        images=None,
        position_ids=None,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
    ):
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
        full_mask = None
        if attention_mask is not None and not attention_mask.all():
            full_mask = self.get_masks(words, past_key_values, padding_mask=attention_mask)
        rotary = self.rotary_pos_emb(self.seq_length)
        rotary = rotary[position_ids]
        states, presents = self.encoder(
            words, full_mask, rotary_pos_emb=rotary, kv_caches=past_key_values, use_cache=use_cache
        )
        return self.output_layer(states), presents


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.post_init()

    def forward(self, input_ids, use_cache=False, **kwargs):
        logits, presents = self.transformer(input_ids, use_cache=use_cache, **kwargs)
        return (logits, presents) if use_cache else logits
