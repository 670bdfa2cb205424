"""Decision transformers in plain torch.nn: all tokens in every block, additive masks, as the published code computes them."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "swish": nn.SiLU}


class Block(nn.Module):
    def __init__(self, width, heads, activation):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width, eps=0.003), nn.LayerNorm(width, eps=0.003)
        self.query, self.key, self.value, self.projection = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x, padding):
        size, width = x.shape[1], x.shape[2]
        h = self.attention_norm(x)
        heads = []
        for i in range(self.heads):
            part = slice(i * width // self.heads, (i + 1) * width // self.heads)
            q, k, v = self.query(h)[..., part], self.key(h)[..., part], self.value(h)[..., part]
            logits = torch.einsum("bqd,bkd->bqk", q, k) / math.sqrt(width // self.heads)
            logits = logits.masked_fill(torch.ones(size, size).triu(1).bool(), -10000.0) + padding[:, None, :] * -10000.0
            heads.append(torch.einsum("bqk,bkd->bqd", torch.softmax(logits, -1), v))
        x = x + self.projection(torch.cat(heads, -1))
        return x + self.down(self.activation(self.up(self.mlp_norm(x))))


class TorchDecisionTransformer(nn.Module):
    """``position``: simple or global. With ``actions`` discrete: ``embedding_activation`` before the position, no norm, logits."""

    def __init__(
        self,
        observation,
        actions,
        *,
        discrete,
        context,
        timesteps,
        units,
        heads,
        layers,
        activation,
        position,
        embedding_activation=None,
        with_returns=True,
    ):
        super().__init__()
        widths = [observation, *units]
        self.encoder = nn.Sequential(*(part for i, o in pairwise(widths) for part in (nn.Linear(i, o), nn.ReLU())))
        width = units[-1]
        self.discrete, self.position, self.timesteps, self.with_returns = discrete, position, timesteps, with_returns
        self.returns, self.time = nn.Linear(1, width), nn.Embedding(timesteps + 1, width)
        self.place = nn.Parameter(torch.zeros(context, width))
        self.action = nn.Embedding(actions, width) if discrete else nn.Linear(actions, width)
        self.head = nn.Linear(width, actions, bias=not discrete)
        self.norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width, eps=0.003)
        self.blocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))
        self.embedding_activation = nn.Identity() if embedding_activation is None else ACTIVATIONS[embedding_activation]()

    def forward(self, observation, action, returns_to_go, timesteps, mask):
        timesteps = timesteps.clamp(max=self.timesteps)
        position = self.time(timesteps) if self.position == "simple" else self.time(timesteps[:, -1:]) + self.place
        parts = (self.returns(returns_to_go[..., None]), self.encoder(observation), self.action(action))
        tokens = [self.embedding_activation(part) + position for part in (parts if self.with_returns else parts[1:])]
        x = torch.stack(tokens, 2).reshape(len(mask), len(tokens) * mask.shape[1], -1)
        x = x if self.discrete else self.norm(x)
        for block in self.blocks:
            x = block(x, 1 - mask.repeat_interleave(len(tokens), 1))
        out = self.head(self.last_norm(x)[:, len(tokens) - 2 :: len(tokens)])
        return out if self.discrete else torch.tanh(out)

    def load(self, params, name):
        """Take the weights of our parameters, whose names begin with ``name``."""

        def fill(module, source):
            module.weight.data.copy_(params[f"{name}.{source}.weight"])
            if getattr(module, "bias", None) is not None:
                module.bias.data.copy_(params[f"{name}.{source}.bias"])

        for i, layer in enumerate(m for m in self.encoder if isinstance(m, nn.Linear)):
            fill(layer, f"state.{i}")
        if self.with_returns:
            fill(self.returns, "return")
        fill(self.time, "time_embedding")
        fill(self.action, "action_embedding" if self.discrete else "action")
        fill(self.head, "head")
        if not self.discrete:
            fill(self.norm, "norm")
        if self.position == "global":
            self.place.data.copy_(params[f"{name}.place_embedding.weight"])
        fill(self.last_norm, "blocks.norm")
        for i, block in enumerate(self.blocks):
            for part in ("attention_norm", "mlp_norm", "query", "projection", "up", "down"):
                fill(getattr(block, part), f"blocks.{i}.{part}")
            for which, part in enumerate((block.key, block.value)):
                part.weight.data.copy_(params[f"{name}.blocks.{i}.key_value.weight"].chunk(2)[which])
                part.bias.data.copy_(params[f"{name}.blocks.{i}.key_value.bias"].chunk(2)[which])
        return self
