"""PT-DiT (arXiv 2409.04005): a PixArt transformer whose tokens see the whole picture through a few proxies.

Self-attention between N tokens costs N x N products. Here the tokens of each small window are averaged to a proxy; the
proxies attend to each other, every token attends to the proxies, and, for what is near, to the tokens of its window and
of a window shifted by half. Departing from the paper, whose attentions each have projections of their own, all three
share one projection of the tokens, and how much of each a head takes is learned: a block then has as many products of
matrices as PixArt's, starts from its weights, and saves nearly all that attention between all tokens costs.
"""

from functools import lru_cache
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import PatchEmbed, PixArtAlphaTextProjection
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.normalization import AdaLayerNormSingle
from torch import nn

from diffaccel.config.checks import check
from diffaccel.reuse.tokens import TokenGrid, pool

WAYS = 3  # to attend: to the proxies, within windows, within shifted windows
SAME = (
    "activation_fn",
    "attention_bias",
    "attention_head_dim",
    "caption_channels",
    "cross_attention_dim",
    "in_channels",
    "interpolation_scale",
    "norm_eps",
    "num_attention_heads",
    "num_layers",
    "patch_size",
    "sample_size",
    "use_additional_conditions",
)


def to_windows(x: torch.Tensor, grid: TokenGrid, side: int, shift: int) -> torch.Tensor:
    """Tokens ``(rows, heads, tokens, features)`` as windows, ``(rows * windows, heads, side * side, features)``.

    The picture is rolled by ``shift`` up and to the left, and filled up to whole windows with zeros.
    """
    rows, heads, _, features = x.shape
    below, right = -grid.height % side, -grid.width % side
    picture = F.pad(x.view(rows, heads, *grid, features), (0, 0, 0, right, 0, below)).roll((-shift, -shift), (2, 3))
    cut = picture.view(rows, heads, picture.shape[2] // side, side, picture.shape[3] // side, side, features)
    windows: torch.Tensor = cut.permute(0, 2, 4, 1, 3, 5, 6).reshape(-1, heads, side * side, features)
    return windows


def from_windows(windows: torch.Tensor, grid: TokenGrid, side: int, shift: int) -> torch.Tensor:
    """The inverse of `to_windows`."""
    heads, features = windows.shape[1], windows.shape[-1]
    down, across = -(-grid.height // side), -(-grid.width // side)
    cut = windows.view(-1, down, across, heads, side, side, features).permute(0, 3, 1, 4, 2, 5, 6)
    picture = cut.reshape(-1, heads, down * side, across * side, features).roll((shift, shift), (2, 3))
    tokens: torch.Tensor = picture[:, :, : grid.height, : grid.width].flatten(2, 3)
    return tokens


@lru_cache(maxsize=64)
def window_mask(grid: TokenGrid, side: int, shift: int, device: torch.device) -> torch.Tensor | None:
    """Which tokens of a window see each other, ``(windows, 1, side * side, side * side)``; None where all do.

    Tokens that rolling brought together from opposite edges do not, nor do tokens see what fills windows up.
    """
    if shift == 0 and grid.height % side == 0 and grid.width % side == 0:
        return None
    region = torch.zeros(-(-grid.height // side) * side, -(-grid.width // side) * side, device=device)
    region[:shift] += 1  # will be rolled to the far edge
    region[:, :shift] += 2
    region[grid.height :] = region[:, grid.width :] = 4
    whole = TokenGrid(*region.shape)
    ids = to_windows(region.view(1, 1, -1, 1), whole, side, shift).squeeze(-1)  # (windows, 1, side * side)
    return ids[..., :, None] == ids[..., None, :]


class ProxyAttention(nn.Module):
    """Attention of every token to proxies of the whole picture, and to tokens near it.

    Args:
        dim: channels.
        heads: of attention.
        head_dim: channels of each head.
        bias: whether projections have one.
        window: side of the windows, in tokens.
        compression: side of the windows that a proxy stands for, in tokens.

    Attributes:
        mix: how much of each way a head takes, ``(3, heads)``.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, bias: bool, window: int, compression: int) -> None:
        super().__init__()
        self.heads, self.window, self.compression = heads, window, compression
        inner = heads * head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, inner, bias=bias) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])
        self.proxy_norm = nn.LayerNorm(dim)
        self.proxy_attn = Attention(dim, heads=heads, dim_head=head_dim, bias=bias)
        self.mix = nn.Parameter(torch.full((WAYS, heads), 1 / WAYS))

    def start_as_pooled(self) -> None:
        """Be, until trained, attention of all tokens to means of windows: what ToDo (arXiv 2402.13573) makes of it."""
        out: Any = self.proxy_attn.to_out[0]
        for parameter in (out.weight, out.bias):
            nn.init.zeros_(parameter)
        with torch.no_grad():
            self.mix.copy_(torch.tensor([[1.0], [0.0], [0.0]]).expand_as(self.mix))

    def forward(self, hidden_states: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
        """Tokens of a picture, ``(rows, tokens, dim)``, to the same."""
        proxies = pool(hidden_states, grid, self.compression, "mean")  # (rows, proxies, dim)
        proxies = proxies + self.proxy_attn(self.proxy_norm(proxies))
        query, key, value = (self._heads(to(hidden_states)) for to in (self.to_q, self.to_k, self.to_v))
        ways = [
            F.scaled_dot_product_attention(query, self._heads(self.to_k(proxies)), self._heads(self.to_v(proxies))),
            self._within_windows(query, key, value, grid, 0),
            self._within_windows(query, key, value, grid, self.window // 2),
        ]  # (rows, heads, tokens, features) each
        mixed = sum(way * share[:, None, None] for way, share in zip(ways, self.mix, strict=True))
        result: torch.Tensor = self.to_out[0](mixed.transpose(1, 2).flatten(2))
        return result

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """``(rows, heads, tokens, features)``."""
        rows, tokens, _ = x.shape
        return x.view(rows, tokens, self.heads, -1).transpose(1, 2)

    def _within_windows(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: TokenGrid, shift: int
    ) -> torch.Tensor:
        """Attention of tokens to those of their windows."""
        q, k, v = (to_windows(x, grid, self.window, shift) for x in (query, key, value))
        mask = window_mask(grid, self.window, shift, query.device)
        if mask is not None:
            mask = mask.repeat(len(query), 1, 1, 1)
        return from_windows(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), grid, self.window, shift)


class ProxyBlock(nn.Module):
    """A block of PixArt with proxy attention: modulated by the timestep, attention, the prompt, and a feed-forward."""

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        prompt_dim: int,
        activation: str,
        bias: bool,
        eps: float,
        window: int,
        compression: int,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=eps, elementwise_affine=False) for _ in range(2))
        self.attn1 = ProxyAttention(dim, heads, head_dim, bias, window, compression)
        self.attn2 = Attention(dim, cross_attention_dim=prompt_dim, heads=heads, dim_head=head_dim, bias=bias)
        self.ff = FeedForward(dim, activation_fn=activation)
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None,
        grid: TokenGrid,
    ) -> torch.Tensor:
        """``(rows, tokens, dim)`` under six modulations, ``(rows, 6 dim)``, and a prompt, ``(rows, tokens, dim)``."""
        modulation = self.scale_shift_table + timestep.view(len(hidden_states), 6, -1)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = modulation.chunk(6, dim=1)  # (rows, 1, dim) each
        hidden_states = hidden_states + gate * self.attn1(self.norm1(hidden_states) * (1 + scale) + shift, grid)
        hidden_states = hidden_states + self.attn2(hidden_states, encoder_hidden_states, encoder_attention_mask)
        fed: torch.Tensor = self.ff(self.norm2(hidden_states) * (1 + scale_ff) + shift_ff)
        return hidden_states + gate_ff * fed


class PTDiTTransformer2DModel(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """PixArt's transformer with proxy attention; in a PixArt pipeline it stands where the transformer did.

    Args:
        window: side of the windows within which tokens see each other, in tokens; even.
        compression: side of the windows that a proxy stands for, in tokens.
        num_attention_heads, attention_head_dim, in_channels, out_channels, num_layers, cross_attention_dim,
            attention_bias, sample_size, patch_size, activation_fn, norm_eps, interpolation_scale,
            use_additional_conditions, caption_channels: as of `PixArtTransformer2DModel`.

    Raises:
        ValueError: window or compression make no windows.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ("ProxyBlock", "PatchEmbed")
    _skip_layerwise_casting_patterns = ("pos_embed", "norm", "adaln_single")

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int = 8,
        num_layers: int = 28,
        cross_attention_dim: int = 1152,
        attention_bias: bool = True,
        sample_size: int = 128,
        patch_size: int = 2,
        activation_fn: str = "gelu-approximate",
        norm_eps: float = 1e-6,
        interpolation_scale: float | None = None,
        use_additional_conditions: bool | None = None,
        caption_channels: int | None = None,
        window: int = 8,
        compression: int = 4,
    ) -> None:
        super().__init__()
        check(window >= 2 and window % 2 == 0, f"window must be an even number of tokens, >= 2; got {window!r}")
        check(compression >= 1, f"compression must be a number of tokens, >= 1; got {compression!r}")
        dim = num_attention_heads * attention_head_dim
        self.use_additional_conditions = (
            sample_size == 128 if use_additional_conditions is None else use_additional_conditions
        )
        scale = interpolation_scale if interpolation_scale is not None else max(sample_size // 64, 1)
        self.pos_embed = PatchEmbed(
            sample_size, sample_size, patch_size, in_channels, embed_dim=dim, interpolation_scale=scale
        )
        heads = (num_attention_heads, attention_head_dim)
        self.transformer_blocks = nn.ModuleList(
            ProxyBlock(dim, *heads, cross_attention_dim, activation_fn, attention_bias, norm_eps, window, compression)
            for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.proj_out = nn.Linear(dim, patch_size * patch_size * out_channels)
        self.adaln_single = AdaLayerNormSingle(dim, use_additional_conditions=self.use_additional_conditions)
        self.caption_projection = (
            None if caption_channels is None else PixArtAlphaTextProjection(caption_channels, hidden_size=dim)
        )

    @classmethod
    def from_transformer(cls, transformer: Any, window: int = 8, compression: int = 4) -> Self:
        """The network that a PixArtTransformer2DModel becomes, with its weights; to be trained further.

        Until then its self-attentions read means of windows in place of single tokens.
        """
        settings = {name: transformer.config[name] for name in SAME} | {"out_channels": transformer.out_channels}
        made: Self = cls(**settings, window=window, compression=compression)
        missing, unknown = made.load_state_dict(transformer.state_dict(), strict=False)
        ours = ("proxy_norm", "proxy_attn", "mix")
        strange = [*unknown, *(name for name in missing if not any(part in name for part in ours))]
        check(not strange, f"{type(transformer).__name__} is not laid out like PixArt: {', '.join(strange[:3])}")
        for block in made.transformer_blocks:
            block.attn1.start_as_pooled()  # type: ignore[operator, union-attr]
        nn.Module.to(made, transformer.dtype)  # diffusers' own remarks on modules that no network of this class has
        return made

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """The prediction for latents.

        Args:
            hidden_states: latents, ``(rows, channels, height, width)``.
            encoder_hidden_states: of the prompt, ``(rows, tokens, features)``.
            timestep: ``(rows,)``.
            added_cond_kwargs: resolution and aspect_ratio, where the network was made for them.
            encoder_attention_mask: which tokens of the prompt count, ``(rows, tokens)`` of 0 and 1.
            return_dict: whether to return a named output.
        """
        rows, patch = len(hidden_states), self.config.patch_size
        grid = TokenGrid(hidden_states.shape[-2] // patch, hidden_states.shape[-1] // patch)
        x = self.pos_embed(hidden_states)  # (rows, tokens, dim)
        added: dict[str, Any] = {"resolution": None, "aspect_ratio": None} | (added_cond_kwargs or {})
        modulation, embedded = self.adaln_single(timestep, added, batch_size=rows, hidden_dtype=x.dtype)
        prompt = encoder_hidden_states
        if self.caption_projection is not None:
            prompt = self.caption_projection(prompt).view(rows, -1, x.shape[-1])
        bias = None
        if encoder_attention_mask is not None:
            bias = (1 - encoder_attention_mask.to(x.dtype))[:, None] * -10000.0
        for block in self.transformer_blocks:
            x = block(x, timestep=modulation, encoder_hidden_states=prompt, encoder_attention_mask=bias, grid=grid)
        shift, scale = (self.scale_shift_table + embedded[:, None]).chunk(2, dim=1)  # (rows, 1, dim) each
        x = self.proj_out(self.norm_out(x) * (1 + scale) + shift)
        pictures = x.view(rows, *grid, patch, patch, self.config.out_channels).permute(0, 5, 1, 3, 2, 4)
        output = pictures.reshape(rows, -1, grid.height * patch, grid.width * patch)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)
