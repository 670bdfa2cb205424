"""The transformer of sequence models: GPT-2 blocks over the interleaved tokens (return-to-go, state, action) of a window.

Windows are padded on the left. A token attends to itself and to earlier tokens of real steps, so padding does not affect real steps; values
at padding are finite but meaningless. Predictions are read at the state tokens. Two parts of the textbook form are therefore never
computed: the last action token, which no prediction can attend to, and in the last block everything but keys and values at tokens that are
not read (a fifth of a forward pass of three blocks).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from offrl.errors import InvalidInput
from offrld.nets import encoders
from offrld.nets.encoders import Encoder, Params
from offrld.nets.encoders.layers import activate, dropout
from offrld.nets.linear import layers, linear, uniform_init
from offrld.settings import setting

EPSILON = 0.003  # epsilon of the layer norms inside and after the blocks
DEVIATION = 0.02  # standard deviation of the initial weights
LAST_STATE_TOKEN = slice(-1, None)

_UNIT = "fraction dropped in training"


@dataclass(frozen=True)
class Transformer:
    """Shape and regularisation of the blocks; their width is the encoder's feature size."""

    heads: int = setting(1, "number of attention heads; must divide the encoder's feature size", low=1, high=1024, probe=2)
    layers: int = setting(3, "number of blocks", low=1, high=1000)
    attention_dropout: float = setting(0.1, "dropout of attention weights", unit=_UNIT, low=0.0, high=0.95)
    residual_dropout: float = setting(0.1, "dropout of the output of attention and of the MLP", unit=_UNIT, low=0.0, high=0.95)
    embedding_dropout: float = setting(0.1, "dropout of the tokens", unit=_UNIT, low=0.0, high=0.95)
    activation: str = setting("relu", "activation inside the blocks", choices=("relu", "tanh", "swish", "gelu"))
    position_encoding: str = setting(
        "simple",
        "simple: each step's time step; global: the window's last time step and the position in the window",
        choices=("simple", "global"),
    )


class Window(Protocol):
    """The fields of ``B`` windows of ``L`` steps that a sequence model reads.

    observation ``[B, L, ...]`` (or a dict of such tensors); action ``[B, L, A]`` or int64 ``[B, L]``; returns_to_go ``[B, L]``; timesteps
    int64 ``[B, L]``, counted from 1, 0 at padding; mask ``[B, L]``, 1 at real steps.
    """

    @property
    def observation(self) -> Any: ...

    @property
    def action(self) -> Tensor: ...

    @property
    def returns_to_go(self) -> Tensor: ...

    @property
    def timesteps(self) -> Tensor: ...

    @property
    def mask(self) -> Tensor: ...


class Blocks:
    """Pre-norm blocks ``x + attention(LN(x))``, ``x + mlp(LN(x))`` and a last layer norm (Radford et al. 2019, GPT-2)."""

    def __init__(self, name: str, width: int, settings: Transformer) -> None:
        self.name, self.width, self.settings = name, width, settings

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params: Params = {}
        width = self.width
        shapes = {
            "query": (width, width),
            "key_value": (2 * width, width),
            "projection": (width, width),
            "up": (4 * width, width),
            "down": (width, 4 * width),
        }
        for i in range(self.settings.layers):
            for part, shape in shapes.items():
                params |= normal_linear(f"{self.name}.{i}.{part}", shape, generator, dtype)
            for part in ("attention_norm", "mlp_norm"):
                params |= layer_norm_parameters(f"{self.name}.{i}.{part}", width, dtype)
        return params | layer_norm_parameters(f"{self.name}.norm", width, dtype)

    def __call__(self, params: Params, x: Tensor, mask: Tensor, read: slice) -> Tensor:
        """Return features of the tokens ``read`` of ``x [B, T, N]``; ``mask [B, T]`` is true at tokens of real steps."""
        spec = self.settings
        bias = attention_bias(mask, x.dtype)  # [B, 1, T, T]
        x = _dropped(params, x, spec.embedding_dropout, f"{self.name}.embedding")
        for i in range(spec.layers):
            name = f"{self.name}.{i}"
            last = i == spec.layers - 1
            normed = layer_norm(params, f"{name}.attention_norm", x)
            if last:
                x, bias = x[:, read], bias[:, :, read]
            x = x + self._attention(params, name, normed[:, read] if last else normed, normed, bias)
            update = self._mlp(params, name, layer_norm(params, f"{name}.mlp_norm", x))
            x = x + _dropped(params, update, spec.residual_dropout, f"{name}.mlp")
        return layer_norm(params, f"{self.name}.norm", x)

    def _mlp(self, params: Params, name: str, x: Tensor) -> Tensor:
        """Apply two linear layers with the activation between them, at ``[B, T, 4N]``."""
        if self.settings.activation == "relu":
            return layers((x,), (_pair(params, f"{name}.up"), _pair(params, f"{name}.down")))
        return _linear(params, f"{name}.down", activate(self.settings.activation, _linear(params, f"{name}.up", x)))

    def _attention(self, params: Params, name: str, queries: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        heads, size = self.settings.heads, self.width // self.settings.heads
        query = _split(_linear(params, f"{name}.query", queries), heads)  # [B, H, Q, N/H]
        key, value = (_split(part, heads) for part in _linear(params, f"{name}.key_value", x).chunk(2, dim=-1))  # [B, H, T, N/H]
        # Dropout on the weights rules out torch's fused attention, whose random numbers are not a function of (seed, update).
        weights = torch.softmax(query @ key.transpose(-1, -2) * (1.0 / math.sqrt(size)) + bias, dim=-1)  # [B, H, Q, T]
        weights = _dropped(params, weights, self.settings.attention_dropout, f"{name}.attention")
        mixed = (weights @ value).transpose(1, 2).flatten(2)  # [B, Q, N]
        return _dropped(params, _linear(params, f"{name}.projection", mixed), self.settings.residual_dropout, f"{name}.projection")


class SequenceModel:
    """A decision transformer: embeddings of a window's tokens, blocks, and a head at the state tokens.

    Continuous actions (Chen et al. 2021): the position is added to each embedding, a layer norm follows, and the head is tanh(linear).
    Discrete actions (the paper's Atari form): ``embedding_activation`` precedes the addition of the position; the head outputs logits.

    Args:
        view: shape of an observation as networks see it (`Space.view`).
        action_size: dimensions of an action, or the number of discrete actions.
        max_timestep: later time steps count as this one.
        returns: whether there are return tokens; without them the model clones the data's behaviour (BCT).
    """

    def __init__(
        self,
        name: str,
        view: Any,
        action_size: int,
        *,
        discrete: bool,
        context_size: int,
        max_timestep: int,
        encoder: Encoder,
        transformer: Transformer,
        embedding_activation: str | None = None,
        returns: bool = True,
    ) -> None:
        self.name, self.discrete, self._returns = name, discrete, returns
        self._action_size, self._context_size, self._max_timestep = action_size, context_size, max_timestep
        self._encoder = encoders.build(f"{name}.state", view, encoder)
        self._width = self._encoder.feature_size
        self._position = transformer.position_encoding
        self._embedding_activation = embedding_activation
        self._blocks = Blocks(f"{name}.blocks", self._width, transformer)
        check_heads(transformer, self._width)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        name, width, size = self.name, self._width, self._action_size
        params = self._encoder.init(generator, dtype)
        if self._returns:
            params |= uniform_linear(f"{name}.return", (width, 1), generator, dtype)
        params[f"{name}.time_embedding.weight"] = normal((self._max_timestep + 1, width), generator, dtype)
        if self._position == "global":
            params[f"{name}.place_embedding.weight"] = torch.zeros(self._context_size, width, dtype=dtype)
        if self.discrete:
            params[f"{name}.action_embedding.weight"] = normal((size, width), generator, dtype)
            params[f"{name}.head.weight"] = normal((size, width), generator, dtype)
        else:
            params |= uniform_linear(f"{name}.action", (width, size), generator, dtype)
            params |= layer_norm_parameters(f"{name}.norm", width, dtype)
            params |= uniform_linear(f"{name}.head", (size, width), generator, dtype)
        return params | self._blocks.init(generator, dtype)

    def __call__(self, params: Params, window: Window) -> Tensor:
        """Return predictions at every step: actions in [-1, 1] ``[B, L, A]``, or logits ``[B, L, n]``."""
        return self._predict(params, window, slice(1, None, 3) if self._returns else slice(0, None, 2))

    def last(self, params: Params, window: Window) -> Tensor:
        """Return the prediction at the last step of the window, ``[B, A]`` or ``[B, n]``. The window's last action is not read."""
        return self._predict(params, window, LAST_STATE_TOKEN)[:, 0]

    def _predict(self, params: Params, window: Window, read: slice) -> Tensor:
        tokens, mask = self._tokens(params, window)
        features = self._blocks(params, tokens, mask, read)
        name = self.name
        if self.discrete:
            return linear(features, params[f"{name}.head.weight"], None)
        return torch.tanh(_linear(params, f"{name}.head", features))

    def _tokens(self, params: Params, window: Window) -> tuple[Tensor, Tensor]:
        """Return interleaved embeddings ``[B, 3L - 1, N]`` and whether their steps are real ``[B, 3L - 1]``; ``2L - 1`` without returns."""
        name = self.name
        batch, length = window.mask.shape
        state = self._encoder(params, flattened(window.observation)).unflatten(0, (batch, length))  # [B, L, N]
        if self.discrete:
            action = F.embedding(window.action, params[f"{name}.action_embedding.weight"])  # [B, L, N]
        else:
            action = _linear(params, f"{name}.action", window.action)  # [B, L, N]
        parts = [state, action]
        if self._returns:
            parts.insert(0, window.returns_to_go.unsqueeze(-1) * params[f"{name}.return.weight"][:, 0] + params[f"{name}.return.bias"])
        tokens = torch.stack(parts, dim=2)  # [B, L, 3 or 2, N]
        if self._embedding_activation is not None:
            tokens = activate(self._embedding_activation, tokens)
        tokens = (tokens + self._positions(params, window.timesteps).unsqueeze(2)).flatten(1, 2)[:, :-1]
        if not self.discrete:
            tokens = F.layer_norm(tokens, tokens.shape[-1:], params[f"{name}.norm.weight"], params[f"{name}.norm.bias"])
        mask = (window.mask > 0).unsqueeze(-1).expand(batch, length, len(parts)).flatten(1)[:, :-1]
        return tokens, mask

    def _positions(self, params: Params, timesteps: Tensor) -> Tensor:
        table = params[f"{self.name}.time_embedding.weight"]
        timesteps = timesteps.clamp(max=self._max_timestep)
        if self._position == "simple":
            return F.embedding(timesteps, table)  # [B, L, N]
        return F.embedding(timesteps[:, -1:], table) + params[f"{self.name}.place_embedding.weight"]


def check_heads(settings: Transformer, width: int) -> None:
    """Raise `InvalidInput` if the heads do not divide the width."""
    if width % settings.heads:
        raise InvalidInput(
            f"setting 'transformer.heads' is {settings.heads}, which does not divide the encoder's {width} features",
            hint="choose a number of heads that divides the width of the encoder's last layer",
        )


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bias ``[B, 1, T, T]`` of attention logits: 0 where a token may attend, minus infinity elsewhere.

    Every token attends to itself, because a row of only minus infinity would give NaN at padding.
    """
    size = mask.shape[-1]
    index = torch.arange(size, device=mask.device)
    earlier, itself = index.unsqueeze(0) <= index.unsqueeze(1), index.unsqueeze(0) == index.unsqueeze(1)  # [T, T]
    allowed = (mask.unsqueeze(-2) & earlier) | itself  # [B, T, T]
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, -math.inf).unsqueeze(-3)


# ------------------------------------------------------------------------------------------------------- parameters and layers
def normal(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    # Draw in float64, so that float32 and float64 runs start from the same numbers.
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * DEVIATION).to(dtype)


def normal_linear(name: str, shape: tuple[int, int], generator: torch.Generator, dtype: torch.dtype) -> Params:
    """Initialise a linear layer ``(outputs, inputs)`` with small normal weights and zero bias."""
    return {f"{name}.weight": normal(shape, generator, dtype), f"{name}.bias": torch.zeros(shape[0], dtype=dtype)}


def uniform_linear(name: str, shape: tuple[int, int], generator: torch.Generator, dtype: torch.dtype) -> Params:
    """Initialise a linear layer ``(outputs, inputs)`` as torch does."""
    return uniform_init({f"{name}.weight": shape, f"{name}.bias": shape[:1]}, shape[1], generator, dtype)


def layer_norm_parameters(name: str, width: int, dtype: torch.dtype) -> Params:
    return {f"{name}.weight": torch.ones(width, dtype=dtype), f"{name}.bias": torch.zeros(width, dtype=dtype)}


def layer_norm(params: Params, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], params[f"{name}.weight"], params[f"{name}.bias"], EPSILON)


def _linear(params: Params, name: str, x: Tensor) -> Tensor:
    return linear(x, *_pair(params, name))


def _pair(params: Params, name: str) -> tuple[Tensor, Tensor]:
    return params[f"{name}.weight"], params[f"{name}.bias"]


def _dropped(params: Params, x: Tensor, rate: float, name: str) -> Tensor:
    return dropout(params, name, x, rate) if rate else x


def _split(x: Tensor, heads: int) -> Tensor:
    """Split ``[B, T, N]`` into heads, ``[B, H, T, N/H]``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def flattened(observation: Any) -> Any:
    """Flatten windows of observations ``[B, L, ...]`` to one batch ``[B*L, ...]``."""
    if isinstance(observation, dict):
        return {name: value.flatten(0, 1) for name, value in observation.items()}
    return observation.flatten(0, 1)
