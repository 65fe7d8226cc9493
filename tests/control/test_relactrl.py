"""RelaCtrl's blocks against an element-by-element reference, and what putting them on a transformer promises."""

from pathlib import Path
from typing import Any

import pytest
import stream_pipelines
import torch
from diffusers import PixArtTransformer2DModel

from diffaccel import BlockCache, IntervalCache, PerPrompt, ResidualGuidance, TextKVCache, TGate, Uniform, accelerate
from diffaccel.control import RelaCtrlAdapter, attach, channel_groups, default_relevance, placed_blocks
from diffaccel.control.relactrl import SEGMENTS, ControlBlock, ShuffleAttention, ShuffleMixer

ROWS, TOKENS, DIM = 2, 16, 32


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(layers: int = 4) -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    return PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=layers,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=DIM,
        sample_size=8,
        caption_channels=12,
        use_additional_conditions=False,
    ).eval()


@pytest.fixture
def transformer() -> Any:
    return build()


def trained(transformer: Any, **options: Any) -> RelaCtrlAdapter:
    """An adapter whose zero projections are no longer zero."""
    adapter = RelaCtrlAdapter.from_transformer(transformer, **options)
    generator = torch.Generator().manual_seed(1)
    for block in adapter.blocks:
        for layer in (block.before, block.after):
            torch.nn.init.normal_(layer.weight, std=0.2, generator=generator)
    return adapter.eval()


def call(transformer: Any, rows: int = ROWS, positional: bool = True) -> torch.Tensor:
    latents, text = noise(rows, 4, 8, 8, seed=2), noise(rows, 5, 12, seed=3)
    given = {"encoder_hidden_states": text, "timestep": torch.full((rows,), 400), "return_dict": False}
    with torch.no_grad():
        return transformer(latents, **given)[0] if positional else transformer(hidden_states=latents, **given)[0]


def test_shuffled_attention_is_attention_over_the_elements_that_the_permutation_brings_together() -> None:
    torch.manual_seed(0)
    layer = ShuffleAttention(8, seed=5).eval()
    x = noise(1, TOKENS, 8)
    order, inverse = layer.permutation(TOKENS * 8, x.device)
    assert sorted(order.tolist()) == list(range(TOKENS * 8))
    assert torch.equal(order[inverse], torch.arange(TOKENS * 8))
    flat = x.flatten()
    out = torch.empty(TOKENS * 8)
    length = TOKENS * 8 // SEGMENTS
    with torch.no_grad():
        for start in range(0, TOKENS * 8, length):
            places = order[start : start + length]
            out[places] = layer.attn(flat[places].view(1, -1, 8)).flatten()
        torch.testing.assert_close(layer(x), out.view(1, TOKENS, 8))


def test_a_mixer_modulates_mixes_each_group_of_channels_and_puts_them_back() -> None:
    torch.manual_seed(0)
    mixer = ShuffleMixer(DIM, 3, seed=7).eval()
    x, timestep = noise(ROWS, TOKENS, DIM), noise(ROWS, 6 * DIM, seed=1)
    shift, scale, gate = (timestep.view(ROWS, 6, 1, DIM)[:, i] + mixer.scale_shift_table[i] for i in range(3))
    with torch.no_grad():
        normal = torch.nn.functional.layer_norm(x, (DIM,), eps=1e-6) * (1 + scale) + shift
        mixed, start = torch.empty_like(x), 0
        for attention in mixer.attentions:
            width = attention.attn.query_dim
            channels = mixer.channels[start : start + width]
            mixed[..., channels] = attention(normal[..., channels])
            start += width
        assert start == DIM
        torch.testing.assert_close(mixer(x, timestep), x + gate * mixed)


def test_the_first_block_projects_the_control_and_the_others_the_hidden_states() -> None:
    torch.manual_seed(0)
    x, c, t = noise(ROWS, TOKENS, DIM), noise(ROWS, TOKENS, DIM, seed=1), noise(ROWS, 6 * DIM, seed=2)
    for first in (True, False):
        block = ControlBlock(DIM, 2, first, 0).eval()
        with torch.no_grad():
            control, added = block(x, c, t)
            torch.testing.assert_close(control, block.mixer(x if first else c, t))  # before training
            assert torch.equal(added, torch.zeros_like(added))


def test_before_training_nothing_changes(transformer: Any) -> None:
    plain = call(transformer)
    handle = attach(transformer, RelaCtrlAdapter.from_transformer(transformer, blocks=2))
    handle.set_control(noise(1, 4, 8, 8))
    assert torch.equal(call(transformer), plain)


@pytest.mark.parametrize("positional", [True, False])
def test_attached_blocks_equal_a_plain_loop(transformer: Any, positional: bool) -> None:
    adapter, control = trained(transformer, blocks=2), noise(ROWS, 4, 8, 8, seed=9)
    assert adapter.positions == (0, 1)
    plain = call(transformer)
    handle = attach(transformer, adapter)
    handle.set_control(control, 0.7)
    got = call(transformer, positional=positional)
    handle.detach()
    assert not torch.allclose(got, plain, atol=1e-3)

    latents, text = noise(ROWS, 4, 8, 8, seed=2), noise(ROWS, 5, 12, seed=3)
    with torch.no_grad():
        x, c = transformer.pos_embed(latents), transformer.pos_embed(control)
        t, embedded = transformer.adaln_single(torch.full((ROWS,), 400), None, batch_size=ROWS, hidden_dtype=x.dtype)
        text = transformer.caption_projection(text)
        for i, block in enumerate(transformer.transformer_blocks):
            x = block(x, encoder_hidden_states=text, timestep=t)
            if i in adapter.positions:
                c, added = adapter.blocks[adapter.positions.index(i)](x, c, t)
                x = x + 0.7 * added
        shift, scale = (transformer.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
        x = transformer.proj_out(transformer.norm_out(x) * (1 + scale) + shift)
        expected = x.view(ROWS, 4, 4, 2, 2, 4).permute(0, 5, 1, 3, 2, 4).reshape(ROWS, 4, 8, 8)
    torch.testing.assert_close(got, expected)


def test_off_and_detached_compute_as_before(transformer: Any) -> None:
    plain = call(transformer)
    handle = attach(transformer, trained(transformer, blocks=2))
    assert torch.equal(call(transformer), plain)
    handle.set_control(noise(1, 4, 8, 8), 0.0)
    assert torch.equal(call(transformer), plain)
    handle.set_control(noise(1, 4, 8, 8))
    assert not torch.equal(call(transformer), plain)
    handle.detach()
    assert torch.equal(call(transformer), plain)


def test_one_control_image_is_for_all_rows_and_several_repeat(transformer: Any) -> None:
    handle = attach(transformer, trained(transformer, blocks=2))
    one, two = noise(1, 4, 8, 8, seed=4), noise(2, 4, 8, 8, seed=5)
    handle.set_control(one)
    shared = call(transformer, rows=4)
    handle.set_control(one.repeat(4, 1, 1, 1))
    assert torch.equal(call(transformer, rows=4), shared)
    handle.set_control(two)
    repeated = call(transformer, rows=4)
    handle.set_control(torch.cat([two, two]))
    assert torch.equal(call(transformer, rows=4), repeated)


def test_a_control_image_that_is_written_to_is_another(transformer: Any) -> None:
    handle, control = attach(transformer, trained(transformer, blocks=2)), noise(1, 4, 8, 8, seed=4)
    handle.set_control(control)
    call(transformer)
    control.neg_()
    changed = call(transformer)
    handle.set_control(-noise(1, 4, 8, 8, seed=4))
    assert torch.equal(call(transformer), changed)


@pytest.mark.parametrize(
    "method",
    [
        IntervalCache(schedule=PerPrompt(Uniform(2), Uniform(3))),
        BlockCache(threshold=0.05),
        ResidualGuidance(),
        TGate(gate=2),
    ],
)
def test_control_stays_with_its_row_where_a_call_goes_in_parts(method: Any) -> None:
    pipe: Any = stream_pipelines.pixart()
    pipe.set_progress_bar_config(disable=True)
    handle = attach(pipe.transformer, trained(pipe.transformer, blocks=1))
    prompts, control = ["a cat", "a very red heart"], noise(2, 4, 8, 8)

    def paint(*which: int) -> torch.Tensor:
        handle.set_control(control[list(which)])
        return pipe(
            prompt=[prompts[i] for i in which],
            generator=[torch.Generator().manual_seed(i) for i in which],
            num_inference_steps=4,
            output_type="latent",
            use_resolution_binning=False,
            clean_caption=False,
        ).images

    with accelerate(pipe, method) as accelerated:
        together, apart = paint(0, 1), torch.cat([paint(0), paint(1)])
    assert (together - apart).abs().max() < 1e-3 * (apart[0] - apart[1]).abs().max()
    rows = {kind.shapes[0][0] for kind in accelerated.tallies()[0].calls}
    assert {1, 2} & rows  # of the four of both pictures, or the two of one


def test_the_work_of_control_blocks_is_counted(transformer: Any) -> None:
    with accelerate(transformer, TextKVCache()) as accelerated:
        call(transformer)
    plain = accelerated.report().macs_plain
    handle = attach(transformer, trained(transformer, blocks=2))
    handle.set_control(noise(1, 4, 8, 8))
    with accelerate(transformer, TextKVCache()) as accelerated:
        call(transformer)
    mixers = sum(p.numel() for block in handle.blocks.blocks for p in block.parameters() if p.dim() == 2)  # type: ignore[attr-defined]
    assert accelerated.report().macs_plain > plain + 0.5 * ROWS * TOKENS * mixers


def test_saved_and_loaded_it_gives_the_same(transformer: Any, tmp_path: Path) -> None:
    adapter = trained(transformer, blocks=2, seed=3)
    adapter.save_pretrained(tmp_path)
    assert [file.suffix for file in sorted(tmp_path.iterdir())] == [".json", ".safetensors"]
    pictures = []
    for one in (adapter, RelaCtrlAdapter.from_pretrained(tmp_path)):
        handle = attach(transformer, one)
        handle.set_control(noise(1, 4, 8, 8))
        pictures.append(call(transformer))
        handle.detach()
    assert torch.equal(*pictures)
    other = trained(transformer, blocks=2, seed=4)
    other.load_state_dict(adapter.state_dict())
    handle = attach(transformer, other)
    handle.set_control(noise(1, 4, 8, 8))
    assert not torch.allclose(call(transformer), pictures[0], atol=1e-4), "the seed says nothing"


def test_it_costs_the_formula(transformer: Any) -> None:
    adapter = RelaCtrlAdapter.from_transformer(transformer, blocks=1)
    widths = channel_groups(DIM, adapter.config.groups[0])
    projections = 2 * (DIM * DIM + DIM)
    attentions = sum(4 * (width * width + width) for width in widths)
    assert sum(p.numel() for p in adapter.parameters()) == projections + attentions + 3 * DIM


@pytest.mark.parametrize(
    ("dim", "groups", "widths"), [(192, 6, (32,) * 6), (1152, 4, (288,) * 4), (32, 3, (12, 12, 8))]
)
def test_channels_are_cut_into_groups_of_whole_heads(dim: int, groups: int, widths: tuple[int, ...]) -> None:
    assert channel_groups(dim, groups) == widths


def test_the_more_relevant_places_get_fewer_and_wider_groups() -> None:
    assert placed_blocks((0.1, 0.9, 0.5, 0.7, 0.2), 3) == ((1, 2, 3), (2, 6, 4))
    positions, groups = placed_blocks(default_relevance(28), 11)
    assert (len(positions), sorted(groups)) == (11, [2, 2, 2, 4, 4, 4, 6, 6, 6, 6, 6])  # as in the paper
    assert 5 in positions
    assert 26 not in positions


def test_what_does_not_fit_is_named(transformer: Any) -> None:
    with pytest.raises(ValueError, match="relevance has 5 scores; this transformer of 4 blocks needs 3"):
        RelaCtrlAdapter.from_transformer(transformer, relevance=(1, 2, 3, 4, 5))
    for blocks in (0, 4):
        with pytest.raises(ValueError, match="blocks must be from 1 to 3"):
            RelaCtrlAdapter.from_transformer(transformer, blocks=blocks)
    with pytest.raises(ValueError, match="relevance must be finite numbers"):
        RelaCtrlAdapter.from_transformer(transformer, relevance=(0.5, float("nan"), 0.7))
    with pytest.raises(ValueError, match="positions must rise, from 0 to 2"):
        RelaCtrlAdapter(dim=DIM, num_layers=4, positions=(2, 1), groups=(2, 2))
    with pytest.raises(ValueError, match="as many groups"):
        RelaCtrlAdapter(dim=DIM, num_layers=4, positions=(0, 1), groups=(2,))
    with pytest.raises(ValueError, match="10 channels cannot be cut"):
        channel_groups(10, 2)
    with pytest.raises(ValueError, match="15 tokens cannot be cut into 4 segments"):
        ShuffleAttention(8, 0)(noise(1, 15, 8))
    with pytest.raises(ValueError, match="a transformer of 8 blocks, and this PixArtTransformer2DModel has 4"):
        attach(transformer, RelaCtrlAdapter(dim=DIM, num_layers=8, positions=(1,), groups=(2,)))
    with pytest.raises(ValueError, match="for a transformer of 64 channels, not 32"):
        attach(transformer, RelaCtrlAdapter(dim=64, num_layers=4, positions=(0,), groups=(2,)))
    with pytest.raises(ValueError, match="go on PixArt-like transformers"):
        attach(torch.nn.Linear(2, 2), RelaCtrlAdapter.from_transformer(transformer))
    handle = attach(transformer, RelaCtrlAdapter.from_transformer(transformer))
    with pytest.raises(ValueError, match="already: call detach"):
        attach(transformer, RelaCtrlAdapter.from_transformer(transformer))
    for control in (noise(3, 4, 8, 8), noise(1, 4, 16, 16)):
        handle.set_control(control)
        with pytest.raises(ValueError, match="do not fit latents"):
            call(transformer, rows=4)
    handle.set_control(noise(1, 4, 8, 8))
    transformer.enable_gradient_checkpointing()
    with pytest.raises(RuntimeError, match="runs blocks again in the backward pass"):
        transformer(noise(2, 4, 8, 8), noise(2, 5, 12), torch.tensor([4, 4]))
    handle.detach()
    attach(transformer, RelaCtrlAdapter.from_transformer(transformer)).detach()
