"""Pipelines around video networks: what is driven, what is refused because a chunk would not show it, and offload."""

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import stream_pipelines
import torch
from causal_reference import FAMILIES, seeded
from test_pushed_frames import wan_vae
from test_video_engine import CHUNK, engine_of

from diffaccel import FullGuidance, VideoEngine
from diffaccel.networks.causal import causal_layout_of
from diffaccel.networks.layout import UnsupportedModelError
from diffaccel.networks.video_calls import video_network_for
from diffaccel.pipelines import CausalVideoPipeline
from diffaccel.video.codec import WanCodec


def animatediff_xl() -> Any:
    parts = dict(stream_pipelines.sdxl().components)
    torch.manual_seed(2)
    adapter = diffusers.MotionAdapter(
        block_out_channels=(16, 32), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2
    )
    kept = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    return diffusers.AnimateDiffSDXLPipeline(**{name: parts[name] for name in kept}, motion_adapter=adapter.eval())


def test_animatediff_on_sdxl_is_told_what_its_pipeline_tells() -> None:
    pipe = animatediff_xl()
    settings: dict[str, Any] = {"height": 32, "width": 32, "num_steps": 2, "chunk": 2, "output_type": "latent"}
    with VideoEngine(pipe, prompt="a cat", guidance=FullGuidance(2.0), **settings) as engine:
        told = engine._video.settings[0].positive.tensors
        embeds, _, pooled, _ = pipe.encode_prompt("a cat", device="cpu", do_classifier_free_guidance=False)
        assert torch.equal(told["encoder_hidden_states"], embeds)
        assert torch.equal(told["text_embeds"], pooled)
        assert told["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]]
        assert engine.next().latents.isfinite().all()


def test_a_frame_of_animatediff_on_sdxl_is_the_stock_pipelines() -> None:
    stock = animatediff_xl()
    stock.scheduler = diffusers.DDIMScheduler(clip_sample=False)
    stock.set_progress_bar_config(disable=True)
    pipe = CausalVideoPipeline.from_pipe(stock)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe, diffusers.AnimateDiffSDXLPipeline)
    call = {"num_frames": 1, "num_inference_steps": 2, "guidance_scale": 2.0, "height": 32, "width": 32}
    call |= {"prompt": "a cat", "negative_prompt": "blurry", "output_type": "latent"}
    with pipe.stream("a cat", height=32, width=32, chunk=1) as engine:
        noise = engine._video.noise(0, 1).transpose(0, 1)[None]
    found, expected = pipe(**call, chunk_size=1).frames, stock(**call, latents=noise).frames
    assert type(pipe(**call)) is type(stock(**call))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def controlled(pipe: Any) -> None:
    config = pipe.unet.config
    pipe.vae_scale_factor = 8
    pipe.controlnet = diffusers.ControlNetModel(
        in_channels=4, block_out_channels=config.block_out_channels, layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=2,
    )  # fmt: skip


def with_adapter(pipe: Any) -> None:
    pipe.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    pipe.unet.encoder_hid_proj = SimpleNamespace(image_projection_layers=[torch.nn.Linear(1, 1)])


UNFIT = [
    ("motion", lambda pipe: pipe.unet.register_to_config(in_channels=9), "takes 9 channels for 4 of latents"),
    ("motion", controlled, "ControlNets show nothing to a video that is made chunk by chunk"),
    ("motion", with_adapter, "IP-Adapters show nothing"),
    ("wan", lambda pipe: pipe.transformer.register_to_config(in_channels=12), "image-to-video transformers need"),
    ("skyreels", lambda pipe: pipe.transformer.register_to_config(num_frame_per_block=3), "hides blocks of 3 frames"),
]


@pytest.mark.parametrize(("name", "change", "words"), UNFIT, ids=range(len(UNFIT)))
def test_what_a_chunk_would_not_show_is_refused(name: str, change: Any, words: str) -> None:
    pipe = FAMILIES[name].pipe(FAMILIES[name].build())
    change(pipe)
    with pytest.raises(ValueError, match=words):
        video_network_for(pipe, 64, 64)


def test_an_offloaded_autoencoder_is_brought_to_where_it_runs() -> None:
    vae, brought = wan_vae(), []
    vae._hf_hook = SimpleNamespace(pre_forward=brought.append)
    codec = WanCodec(vae)
    latents = codec.encode(torch.zeros(1, 3, 32, 32))
    assert len(brought) == 1
    codec.decode(latents)
    assert len(brought) == 2


def test_a_long_clip_is_encoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    encode = diffusers.AutoencoderTiny.encode

    def counted(self: Any, pixels: torch.Tensor, *args: Any) -> Any:
        sizes.append(len(pixels))
        return encode(self, pixels, *args)

    clip = torch.rand(3 * CHUNK + 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(diffusers.AutoencoderTiny, "encode", counted)
    engine = engine_of("motion", given=clip)
    assert sizes == [CHUNK] * 3 + [1]
    assert engine._video.history.length == len(clip)


def test_attentions_that_were_compiled_are_refused() -> None:
    family = FAMILIES["wan"]
    pipe = family.pipe(family.build())
    pipe.transformer.blocks[1]._compiled_call_impl = lambda *_: None
    with pytest.raises(UnsupportedModelError, match=r"'blocks\.1' was compiled"):
        causal_layout_of(pipe.transformer)
    whole = family.pipe(family.build())
    whole.transformer.forward = lambda *_: None
    whole.transformer.forward._torchdynamo_orig_callable = None
    with pytest.raises(TypeError, match="the transformer was compiled as a whole"):
        video_network_for(whole, 64, 64)


def test_wan_22s_autoencoder_of_patches_and_residuals_works_in_pieces() -> None:
    vae = seeded(
        lambda: diffusers.AutoencoderKLWan(
            base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, is_residual=True,
            temperal_downsample=[False, True, True], in_channels=12, out_channels=12, patch_size=2,
            scale_factor_spatial=16, latents_mean=[0.1] * 4, latents_std=[0.8] * 4,
        )
    )  # fmt: skip
    clip, codec = torch.rand(13, 3, 32, 32) * 2 - 1, WanCodec(vae)
    with torch.no_grad():
        mode = vae.encode(clip.transpose(0, 1)[None]).latent_dist.mode()
        shown = vae.decode(mode).sample[0].transpose(0, 1)
    expected = ((mode - 0.1) / 0.8)[0].transpose(0, 1)
    latents = torch.cat([codec.encode(part) for part in clip.split([1, 8, 4])])
    assert torch.allclose(latents, expected, atol=1e-5)
    found = torch.cat([codec.decode(part) for part in expected.split([1, 2, 1])])
    assert torch.allclose(found.clamp(-1, 1), shown, atol=1e-5)


def test_who_writes_into_a_chunk_changes_no_later_one() -> None:
    engines = [engine_of("wan"), engine_of("wan")]
    for engine, factor in zip(engines, (1.0, 0.0), strict=True):
        chunk = engine.next()
        chunk.latents.mul_(factor)
        chunk.frames[-1].mul_(factor)
    assert torch.equal(*(engine.next().latents for engine in engines))
