"""Fewer tokens: the functions against tomesd and formulas written out, and what the method does around a network."""

from typing import Any

import pytest
import tomesd.merge
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import PAGCFGIdentitySelfAttnProcessor2_0
from peft import LoraConfig
from tiny_networks import generate, network_inputs, picture_unet, pipeline, unet_inputs
from tiny_transformers import TRANSFORMERS
from token_reference import means, pooled

from diffaccel import DeepCache, Staged, TextKVCache, TGate, TokenReduction, UnsupportedModelError, accelerate
from diffaccel.methods import parse
from diffaccel.reuse.tokens import (
    Pooling,
    TokenGrid,
    attention_received,
    draw_destinations,
    match,
    merging,
    pool,
    pool_rotary,
    spread,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width", "ratio"), [(8, 8, 0.5), (7, 5, 0.3), (6, 4, 0.75), (4, 4, 0.0)])
def test_merging_is_tomesd_at_equal_draws(height: int, width: int, ratio: float, dtype: torch.dtype) -> None:
    tokens = height * width
    x, y = normal(3, tokens, 6), normal(3, tokens, 6, seed=1).to(dtype)
    theirs, undo = tomesd.merge.bipartite_soft_matching_random2d(
        x, width, height, 2, 2, int(tokens * ratio), generator=torch.Generator().manual_seed(5)
    )
    grid = TokenGrid(height, width)
    merge, unmerge = merging(match(x, grid, draw_destinations(grid, 5), ratio))
    assert merge(y).shape == theirs(y).shape
    torch.testing.assert_close(unmerge(merge(y)), undo(theirs(y)))
    torch.testing.assert_close(
        unmerge(merge(y) * 2 + merge(y).sum(1, True)), undo(theirs(y) * 2 + theirs(y).sum(1, True))
    )


def test_what_receives_attention_is_merged_last() -> None:
    grid, x = TokenGrid(4, 4), normal(1, 16, 6)
    drawn = draw_destinations(grid, 0)
    value = torch.zeros(1, 16)
    alone = match(x, grid, drawn, 0.25).place[0]
    gone = next(
        i for i in range(16) if (alone == alone[i]).sum() > 1 and alone[i] >= 8 and not is_destination(i, drawn)
    )
    value[0, gone] = 9.0
    place = match(x, grid, drawn, 0.25, value).place[0]
    assert (place == place[gone]).sum() == 1


def is_destination(token: int, drawn: torch.Tensor) -> bool:
    row, column = divmod(token, 4)
    return int(drawn[row // 2, column // 2]) == row % 2 * 2 + column % 2


def test_attention_received_is_the_mean_column_of_the_weights() -> None:
    q, k = normal(2, 3, 16, 4), normal(2, 3, 16, 4, seed=1)
    weights = torch.stack([torch.stack([F.softmax(q[b, h] @ k[b, h].T / 2, -1) for h in range(3)]) for b in range(2)])
    received = attention_received(q, k, 0.5)
    torch.testing.assert_close(received, weights.mean(1).mean(1) * 16)
    torch.testing.assert_close(received.mean(1), torch.ones(2))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 64), (96, 40), (30, 128), (5, 3)])
def test_attention_is_told_from_all_over_the_picture(height: int, width: int) -> None:
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    some = spread(places[None].float(), TokenGrid(height, width))[0]
    for axis, size in enumerate((height, width)):
        found = some[:, axis].unique()
        assert len(found) >= min(size, (16, 4)[axis])
        assert found.diff().unique().numel() == 1
        assert size - found[-1] <= found[1] - found[0] + size // 4
    assert len(some) <= 2 * 64


@pytest.mark.parametrize(("side", "height", "width"), [(2, 4, 6), (3, 7, 5), (4, 8, 8), (8, 16, 11), (10, 30, 9)])
@pytest.mark.parametrize("how", ["mean", "nearest"])
def test_angles_are_those_of_pooled_positions(how: Pooling, side: int, height: int, width: int) -> None:
    grid, speed = TokenGrid(height, width), torch.tensor([1.0, 1.0, 0.8, 0.01])
    axes = torch.tensor([0, 1, 0, 1])

    def turned(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = places[:, axes] * speed
        return angles.cos(), angles.sin()

    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
    expected = turned(pool(places[None], grid, side, how)[0])
    torch.testing.assert_close(pool_rotary(turned(places), grid, side, how), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 7)])
def test_pooling_is_means_of_windows(height: int, width: int) -> None:
    x = normal(2, height * width, 5)
    torch.testing.assert_close(pool(x, TokenGrid(height, width), 2, "mean"), means(x))


@pytest.mark.parametrize(("height", "width", "side"), [(8, 8, 2), (9, 6, 2), (8, 8, 4), (9, 7, 3)])
def test_the_nearest_token_is_that_of_torchs_exact_resampling(height: int, width: int, side: int) -> None:
    x = normal(2, height * width, 5)
    picture = x.transpose(1, 2).reshape(2, 5, height, width)
    expected = F.interpolate(picture, scale_factor=1 / side, mode="nearest-exact", recompute_scale_factor=False)
    assert torch.equal(pool(x, TokenGrid(height, width), side, "nearest"), expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("height", "width", "side"), [(1, 8, 2), (3, 3, 4), (4, 4, 10), (5, 30, 10)])
def test_of_a_grid_narrower_than_a_window_one_token_is_left(height: int, width: int, side: int) -> None:
    x, grid = normal(2, height * width, 5), TokenGrid(height, width)
    left = max(1, width // side)
    assert pool(x, grid, side, "nearest").shape[1] == left
    middle = height // 2 * width + min(side, width) // 2
    assert torch.equal(pool(x, grid, side, "nearest")[:, 0], x[:, middle])


@pytest.mark.parametrize(("height", "width"), [(1, 8), (8, 1)])
def test_a_single_row_of_tokens_is_not_merged(height: int, width: int) -> None:
    x, grid = normal(2, 8, 5), TokenGrid(height, width)
    merge, unmerge = merging(match(x, grid, draw_destinations(grid, 0), 0.5))
    assert torch.equal(merge(x), x)
    assert torch.equal(unmerge(merge(x)), x)


def run(model: Any, inputs: dict[str, Any], times: tuple[float, ...] = (900.0, 500.0, 300.0, 100.0)) -> Any:
    with torch.no_grad():
        return [model(timestep=torch.tensor(t), **inputs).sample for t in times]


@pytest.mark.parametrize("name", ["PixArtTransformer2DModel", "SD3Transformer2DModel", "DiTTransformer2DModel"])
def test_in_transformers_keys_of_the_picture_alone_are_pooled(name: str) -> None:
    tiny = TRANSFORMERS[name]
    model, inputs = tiny.build(name), tiny.inputs(2, torch.Generator().manual_seed(0))
    times = {tiny.timestep: torch.full((2,), 300.0)}
    own = ("attn", "attn2") if name.startswith("SD3") else ("attn1",)
    names = [n for n, _ in model.named_modules() if n.rpartition(".")[2] in own]
    with torch.no_grad():
        with pooled(model, names):
            expected = model(**inputs, **times).sample
        plain = model(**inputs, **times).sample
        with accelerate(model, TokenReduction("pool", min_tokens=16)):
            ours = model(**inputs, **times).sample
        with accelerate(model, TokenReduction(ratio=0.5, min_tokens=16)):
            short = model(**inputs, **times).sample
        assert torch.equal(model(**inputs, **times).sample, plain)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    for reduced in (ours, short):
        assert 1e-5 < (reduced - plain).abs().max() < 2 * plain.abs().max()


def flux() -> tuple[Any, dict[str, Any]]:
    tiny = TRANSFORMERS["FluxTransformer2DModel"]
    ids = torch.tensor([[0.0, y, z] for y in range(4) for z in range(4)])
    inputs = tiny.inputs(2, torch.Generator().manual_seed(0)) | {"img_ids": ids, "txt_ids": torch.zeros(6, 3)}
    return tiny.build("FluxTransformer2DModel"), inputs | {tiny.timestep: torch.full((2,), 0.3)}


def attention_at(positions: torch.Tensor, model: Any) -> Any:
    """A FLUX processor written out: keys and values are means of 2 x 2 tokens, at the means of their positions."""

    def turned(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        angles = torch.cat(
            [
                ids[:, axis, None] / 10000 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
                for axis, dim in enumerate(model.config.axes_dims_rope)
            ],
            dim=1,
        )  # (tokens, pairs)
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.exp(1j * angles)[None, :, None]).flatten(-2).float()

    def attend(attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, mask: Any = None, rotary: Any = None):
        image, text = hidden_states, encoder_hidden_states
        prompt = 6
        few = torch.cat([torch.zeros(prompt, 3), means(positions[None])[0]])
        every = torch.cat([torch.zeros(prompt, 3), positions])
        before = image[:, :0] if text is not None else image[:, :prompt]
        short = torch.cat([before, means(image[:, before.shape[1] :])], dim=1)
        q, k, v = (
            to(x).unflatten(-1, (attn.heads, -1))
            for to, x in ((attn.to_q, image), (attn.to_k, short), (attn.to_v, short))
        )
        q, k = attn.norm_q(q), attn.norm_k(k)
        if text is not None:
            more = [
                p(text).unflatten(-1, (attn.heads, -1)) for p in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            ]
            q = torch.cat([attn.norm_added_q(more[0]), q], 1)
            k = torch.cat([attn.norm_added_k(more[1]), k], 1)
            v = torch.cat([more[2], v], 1)
        q, k = turned(q, every), turned(k, few)
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
        out = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
        if text is None:
            return out
        return attn.to_out[0](out[:, prompt:]), attn.to_add_out(out[:, :prompt])

    return attend


def test_rotary_keys_are_pooled_before_they_are_turned_by_pooled_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    model, inputs = flux()
    with torch.no_grad():
        plain = model(**inputs).sample
        with accelerate(model, TokenReduction("pool", min_tokens=16)) as handle:
            ours = model(**inputs).sample
            assert handle.report().macs_saved > 0
        assert torch.equal(model(**inputs).sample, plain)
        attend = attention_at(inputs["img_ids"], model)
        monkeypatch.setattr(FluxAttnProcessor, "__call__", lambda self, *args, **kwargs: attend(*args, **kwargs))
        expected = model(**inputs).sample
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert (ours - plain).abs().max() > 1e-5


def test_what_has_no_one_position_is_not_merged() -> None:
    with pytest.raises(UnsupportedModelError, match=r'rotary positions.*use TokenReduction\("pool"\)'):
        accelerate(flux()[0], TokenReduction())


def test_several_packed_pictures_are_left_alone() -> None:
    model, inputs = flux()
    tall, wide = (torch.cartesian_prod(*map(torch.arange, (1, *size))) for size in ((4, 2), (2, 4)))
    for ids in (torch.cat([inputs["img_ids"][:8]] * 2), torch.cat([tall, wide])):  # these two look like one of 4 x 4
        inputs["img_ids"] = ids.float()
        with torch.no_grad(), accelerate(model, TokenReduction("pool", min_tokens=4)) as handle:
            model(**inputs)
        assert "found no picture in the" in str(handle.report())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["merge", "pool"])
def test_ratio_0_is_the_plain_network(kind: Any, dtype: torch.dtype) -> None:
    unet = picture_unet().to(dtype)
    inputs = {name: value.to(dtype) for name, value in unet_inputs(unet).items()}
    plain = run(unet, inputs)
    with accelerate(unet, TokenReduction(kind, ratio=0, min_tokens=16)) as handle:
        assert all(torch.equal(a, b) for a, b in zip(run(unet, inputs), plain, strict=True))
    assert handle.report().computed == 4


@pytest.mark.slow
def test_matchings_are_kept_between_calls_and_forgotten_with_the_run() -> None:
    unet = picture_unet()
    inputs = network_inputs(unet)
    drawn: list[Any] = []
    with accelerate(unet, TokenReduction(min_tokens=64)), watched(drawn):
        every = run(unet, inputs)
    calls = len(drawn)
    with accelerate(unet, TokenReduction(min_tokens=64, interval=2)) as handle, watched(drawn):
        other = run(unet, inputs)
        assert len(drawn) - calls == calls // 2
        again = run(unet, inputs)
        assert handle.report().macs < handle.report().macs_plain
        assert handle.report().cache_bytes > 0
        handle.reset()
        assert handle.report().cache_bytes == 0
    assert torch.equal(every[0], other[0])
    assert not torch.equal(every[1], other[1])
    assert all(torch.equal(a, b) for a, b in zip(other, again, strict=True))


class watched:
    """Notes every matching that is made."""

    def __init__(self, into: list[Any]) -> None:
        self.into = into

    def __enter__(self) -> None:
        from diffaccel.runtime import merge_act

        self.module, self.before = merge_act, merge_act.match
        merge_act.match = lambda *args: (self.into.append(args), self.before(*args))[1]  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        self.module.match = self.before  # type: ignore[assignment]


def test_rows_that_join_later_are_matched_alone() -> None:
    """A row's result does not depend on its company, not even where it has matchings of its own to keep."""
    unet, method = picture_unet(), TokenReduction(min_tokens=64, interval=4, score="informativity")
    inputs = network_inputs(unet)
    with accelerate(unet, method):
        both = run(unet, inputs)
    one = {name: value[1:] for name, value in inputs.items()}
    with accelerate(unet, method):
        alone = run(unet, one)
    for a, b in zip(both, alone, strict=True):
        torch.testing.assert_close(a[1:], b, rtol=0, atol=1e-5)


def test_the_report_says_where_nothing_is_done() -> None:
    unet = picture_unet()
    with accelerate(unet, TokenReduction()) as handle:
        plain = run(unet, unet_inputs(unet))
    report = handle.report()
    assert (report.computed, report.macs_saved) == (4, 0)
    assert "did nothing, as attention reads 256 tokens: min_tokens is 1,024" in str(report)
    assert all(torch.equal(a, b) for a, b in zip(run(unet, unet_inputs(unet)), plain, strict=True))


def test_fused_projections_are_not_pooled_in_silence() -> None:
    unet = picture_unet()
    unet.fuse_qkv_projections()
    with accelerate(unet, TokenReduction("pool", min_tokens=64)) as handle:
        run(unet, unet_inputs(unet))
    assert "unfuse_qkv_projections" in str(handle.report())


def test_keys_are_not_pooled_beneath_an_adapter_that_came_since() -> None:
    unet = picture_unet()
    inputs = {**unet_inputs(unet, rows=1, size=8), "timestep": torch.tensor(500)}
    method = TokenReduction("pool", min_tokens=16)
    with torch.no_grad(), accelerate(unet, method) as handle:
        unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_k"]))
        whole = unet(**inputs).sample
        assert "adds that came since: detach() and accelerate() again" in next(iter(handle.report().full))
        unet.disable_adapters()
        pooled = unet(**inputs).sample
        assert handle.report().replayed == 1
    unet.enable_adapters()
    with torch.no_grad():
        assert torch.equal(whole, unet(**inputs).sample)
        unet.delete_adapters("default")
        with accelerate(unet, method):
            assert torch.equal(pooled, unet(**inputs).sample)


def test_perturbed_attention_reads_all_tokens() -> None:
    unet = picture_unet()
    unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.processor = PAGCFGIdentitySelfAttnProcessor2_0()
    inputs = unet_inputs(unet, rows=3)
    with accelerate(unet, TokenReduction("pool", min_tokens=64)) as handle:
        pooled = run(unet, inputs)
    assert not handle.report().full  # others of its attentions are pooled
    assert not torch.equal(pooled[0], run(unet, inputs)[0])


def test_calls_are_a_part_of_the_run() -> None:
    pipe = pipeline(picture_unet())
    with accelerate(pipe, TokenReduction("pool", min_tokens=64, calls=(0.5, 1.0))) as handle:
        latents = generate(pipe, steps=6)
    assert (handle.report().computed, handle.report().replayed) == (3, 3)
    assert not torch.equal(latents, generate(pipe, steps=6))
    with (
        pytest.raises(ValueError, match="number of network calls"),
        accelerate(pipe.unet, TokenReduction(calls=(0, 0.5))),
    ):
        run(pipe.unet, unet_inputs(pipe.unet))


@pytest.mark.parametrize("kind", ["merge", "pool"])
def test_with_other_methods(kind: Any) -> None:
    """What TGate replays is what left the attention, whatever the order in which the two are given."""
    pipe = pipeline(picture_unet())
    reduction = TokenReduction(kind, min_tokens=64)
    others = (DeepCache(interval=2), TGate(gate=3), TextKVCache())
    with accelerate(pipe, reduction, *others) as handle:
        one, again = generate(pipe), generate(pipe)
        assert handle.report().methods["TokenReduction"][1] > 0
    with accelerate(pipe, *others, reduction):
        other = generate(pipe)
    assert torch.equal(one, again)
    assert torch.equal(one, other)


def test_two_reductions_do_not_share_an_attention() -> None:
    both = TokenReduction(ratio=0.75, min_tokens=16), TokenReduction("pool", min_tokens=16)  # keys of what grid?
    for methods in (both, both[::-1]):
        with pytest.raises(
            ValueError, match=r"TokenReduction and TokenReduction cannot work together: both claim '.*attn1'"
        ):
            accelerate(picture_unet(), *methods)
    accelerate(picture_unet(), Staged(both, at=2)).detach()


def test_a_masked_attention_reads_all_tokens() -> None:
    tiny = TRANSFORMERS["PixArtTransformer2DModel"]
    model = tiny.build("PixArtTransformer2DModel")
    inputs = {**tiny.inputs(2, torch.Generator().manual_seed(0)), "attention_mask": torch.ones(2, 16)}
    with torch.no_grad(), accelerate(model, TokenReduction(min_tokens=16)) as handle:
        model(**inputs, timestep=torch.full((2,), 300.0))
    assert "with a mask" in str(handle.report())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"ratio": 0.8}, "ratio must be a number in"),
        ({"kind": "pool", "ratio": 0.6}, "whole windows"),
        ({"kind": "melt"}, "kind must be one of"),
        ({"calls": 0.5}, "calls must be two numbers"),
        ({"calls": (0.6, 0.5)}, "the end of calls"),
        ({"alpha": float("nan")}, "alpha"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TokenReduction(**settings)


def test_as_text() -> None:
    method = TokenReduction("pool", ratio=0.75, calls=(0.0, 0.8))
    assert parse("tokenreduction:kind=pool,ratio=0.75,calls=[0,0.8]") == method == parse(method.to_text())
