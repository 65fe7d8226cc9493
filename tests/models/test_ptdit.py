"""Proxy attention against a reference written token by token, and the network against PixArt where they must agree."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from tiny_transformers import TRANSFORMERS
from token_reference import pooled

from diffaccel import (
    BlockCache,
    IntervalCache,
    PTDiTTransformer2DModel,
    TextKVCache,
    TokenReduction,
    accelerate,
    models,
)
from diffaccel.attach.macs import count_macs
from diffaccel.batch.fit import misfit_finder
from diffaccel.networks import UnsupportedModelError
from diffaccel.networks.ptdit import ProxyAttention, from_windows, to_windows
from diffaccel.reuse.tokens import TokenGrid


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention of one query (features,) to keys and values (tokens, features), written out."""
    return torch.softmax(k @ q / q.shape[0] ** 0.5, 0) @ v


def reference(layer: ProxyAttention, x: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """Tokens (tokens, dim) of one picture, each looked at alone."""
    places = [divmod(token, grid.width) for token in range(grid.tokens)]
    side, window, shift, heads = layer.compression, layer.window, layer.window // 2, layer.heads

    def members(cell: Any) -> dict[Any, list[int]]:
        found: dict[Any, list[int]] = {}
        for token, place in enumerate(places):
            found.setdefault(cell(*place), []).append(token)
        return found

    proxies = torch.stack([x[some].mean(0) for some in members(lambda y, z: (y // side, z // side)).values()])
    normed = layer.proxy_norm(proxies)
    own = layer.proxy_attn
    mine = [to(normed).view(len(proxies), heads, -1) for to in (own.to_q, own.to_k, own.to_v)]
    seen = [
        torch.cat([attended(mine[0][p, h], mine[1][:, h], mine[2][:, h]) for h in range(heads)])
        for p in range(len(proxies))
    ]
    proxies = proxies + own.to_out[0](torch.stack(seen))
    q, k, v = (to(x).view(grid.tokens, heads, -1) for to in (layer.to_q, layer.to_k, layer.to_v))
    far = [to(proxies).view(len(proxies), heads, -1) for to in (layer.to_k, layer.to_v)]
    cells = [
        lambda y, z: (y // window, z // window),
        lambda y, z: ((y - shift) // window, (z - shift) // window),
    ]
    out = []
    for token, place in enumerate(places):
        parts = []
        for h in range(heads):
            total = layer.mix[0, h] * attended(q[token, h], far[0][:, h], far[1][:, h])
            for share, cell in zip(layer.mix[1:, h], cells, strict=True):
                near = members(cell)[cell(*place)]
                total = total + share * attended(q[token, h], k[near, h], v[near, h])
            parts.append(total)
        out.append(torch.cat(parts))
    return layer.to_out[0](torch.stack(out))


@pytest.mark.parametrize("grid", [TokenGrid(8, 8), TokenGrid(6, 5), TokenGrid(4, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_reference_token_by_token(grid: TokenGrid, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = ProxyAttention(8, 2, 4, True, 4, 2)
    torch.nn.init.normal_(layer.mix)
    x = normal(2, grid.tokens, 8)
    with torch.no_grad():
        expected = torch.stack([reference(layer, row, grid) for row in x])
        ours = layer.to(dtype)(x.to(dtype), grid)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(ours.float(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_windows_go_back_where_they_came_from(shift: int) -> None:
    grid, x = TokenGrid(7, 5), normal(2, 3, 35, 4)
    assert torch.equal(from_windows(to_windows(x, grid, 4, shift), grid, 4, shift), x)


def pixart() -> tuple[PixArtTransformer2DModel, dict[str, Any]]:
    tiny = TRANSFORMERS["PixArtTransformer2DModel"]
    inputs = tiny.inputs(2, torch.Generator().manual_seed(0)) | {"timestep": torch.tensor([300.0, 500.0])}
    return tiny.build("PixArtTransformer2DModel"), inputs | {"encoder_attention_mask": torch.ones(2, 6)}


def test_it_starts_as_pixart_with_pooled_keys_and_values() -> None:
    base, inputs = pixart()
    ours = PTDiTTransformer2DModel.from_transformer(base, window=2, compression=2).eval()
    with torch.no_grad():
        with pooled(base, [f"transformer_blocks.{i}.attn1" for i in range(4)]):
            expected = base(**inputs).sample
        torch.testing.assert_close(ours(**inputs).sample, expected, rtol=0, atol=1e-5)
        assert torch.equal(ours(**inputs, return_dict=False)[0], ours(**inputs).sample)


def test_proxies_of_single_tokens_are_pixart() -> None:
    base, inputs = pixart()
    ours = PTDiTTransformer2DModel.from_transformer(base, window=2, compression=1).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).sample, base(**inputs).sample, rtol=0, atol=1e-5)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    base, inputs = pixart()
    ours = PTDiTTransformer2DModel.from_transformer(base, window=2, compression=2).eval()
    ours.save_pretrained(tmp_path)
    with torch.no_grad():
        again = PTDiTTransformer2DModel.from_pretrained(tmp_path).eval()
        assert torch.equal(again(**inputs).sample, ours(**inputs).sample)


def test_a_pipeline_of_it_loads_where_its_module_was_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = models.load("emoji-dit")
    pipe.transformer = PTDiTTransformer2DModel.from_transformer(pipe.transformer, window=4, compression=2)
    pipe.save_pretrained(tmp_path)
    monkeypatch.delitem(sys.modules, "diffaccel.networks.ptdit")
    capfd.readouterr()
    again = models.load(tmp_path).transformer
    assert capfd.readouterr() == ("", "")
    assert type(again).__name__ == "PTDiTTransformer2DModel"
    assert all(map(torch.equal, again.parameters(), pipe.transformer.parameters()))
    problem = misfit_finder(models.resolve(tmp_path))
    assert problem("intervalcache:2", "default", 20) is None
    assert "TokenReduction needs self-attention" in str(problem("tokenreduction", "default", 20))


def test_it_costs_less_where_tokens_are_many() -> None:
    config = {**TRANSFORMERS["PixArtTransformer2DModel"].config, "num_layers": 1, "sample_size": 64}
    with torch.device("meta"):
        base = PixArtTransformer2DModel(**config)
        ours = PTDiTTransformer2DModel(**config)
        inputs = {
            "hidden_states": torch.empty(1, 4, 64, 64),
            "encoder_hidden_states": torch.empty(1, 6, 16),
            "timestep": torch.empty(1),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
    plain, less = (count_macs(lambda net=net: net(**inputs)) for net in (base, ours))
    assert less < 0.3 * plain


def test_gradients_reach_every_parameter() -> None:
    base, inputs = pixart()
    ours = PTDiTTransformer2DModel.from_transformer(base, window=2, compression=2).train()
    ours(**inputs).sample.square().mean().backward()
    assert all(p.grad is not None for p in ours.parameters())
    assert all(block.attn1.mix.grad.abs().min() > 0 for block in ours.transformer_blocks)


def test_it_takes_the_caches_that_pixart_takes_but_has_no_tokens_to_spare() -> None:
    base, inputs = pixart()
    ours = PTDiTTransformer2DModel.from_transformer(base, window=2, compression=2).eval()
    times = [torch.full((2,), t) for t in (900.0, 600.0, 300.0)]
    with torch.no_grad():
        plain = [ours(**{**inputs, "timestep": t}).sample for t in times]
        for method in (IntervalCache(1, total=3), BlockCache(threshold=0.0), TextKVCache()):
            with accelerate(ours, method):
                same = [ours(**{**inputs, "timestep": t}).sample for t in times]
            for a, b in zip(same, plain, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    with pytest.raises(UnsupportedModelError, match="PTDiTTransformer2DModel"):
        accelerate(ours, TokenReduction())


@pytest.mark.parametrize(("settings", "problem"), [({"window": 3}, "window"), ({"compression": 0}, "compression")])
def test_windows_that_are_none_are_refused(settings: dict[str, int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        PTDiTTransformer2DModel(**{**TRANSFORMERS["PTDiTTransformer2DModel"].config, **settings})
