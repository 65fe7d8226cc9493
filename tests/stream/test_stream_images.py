"""Fitting, encoding and finishing pictures."""

import numpy as np
import pytest
import stream_pipelines
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

from diffaccel.stream.control import given_images
from diffaccel.stream.images import Codec, finish, fit_to, to_frames, to_unit_frames
from diffaccel.stream.masks import unit_masks
from diffaccel.stream.work import WorkRunner


def halves(height: int, width: int) -> torch.Tensor:
    """Left half black, right half white."""
    image = torch.zeros(1, 3, height, width)
    image[..., width // 2 :] = 1
    return image


def test_crop_keeps_the_middle() -> None:
    image = torch.zeros(1, 3, 32, 96)
    image[..., 32:64] = 1
    assert fit_to(image, 32, 32, "crop").mean() > 0.999


def test_of_a_very_long_picture_only_the_middle_is_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    resize, asked = F.interpolate, []
    monkeypatch.setattr(F, "interpolate", lambda x, size, **how: asked.append(size) or resize(x, size, **how))
    image = torch.rand(1, 3, 2, 2048)
    fitted = fit_to(image, 64, 64, "crop")
    assert max(asked[0]) <= 4 * 64  # all of it would be 65,536 pixels long
    torch.testing.assert_close(fitted, fit_to(image[..., 1020:1028], 64, 64, "crop"))
    assert fit_to(image.mT, 64, 64, "crop").shape == fitted.shape
    assert max(asked[-1]) <= 4 * 64


def test_pad_shows_everything_on_black() -> None:
    fitted = fit_to(torch.ones(1, 3, 32, 64), 32, 32, "pad")
    assert fitted[:, :, :8].sum() == 0
    assert fitted[:, :, 24:].sum() == 0
    torch.testing.assert_close(fitted[:, :, 8:24], torch.ones(1, 3, 16, 32))


def test_stretch_changes_the_aspect() -> None:
    fitted = fit_to(halves(64, 16), 16, 64, "stretch")
    assert fitted.shape == (1, 3, 16, 64)
    assert fitted[..., :24].mean() < 0.02
    assert fitted[..., 40:].mean() > 0.98


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_in_pictures_and_kept_by_masks(mode: str) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :, 3], pixels[:, 4:] = 255, (255, 255, 255, 0)  # left black, right white that is not to be seen
    image = Image.fromarray(pixels).convert(mode)
    assert to_unit_frames(image, 8, 8, "crop").mean((0, 1, 2)).tolist() == [0.0] * 4 + [1.0] * 4
    assert unit_masks(image).max() == 0
    assert given_images(image, 1, 8, 8, "crop")[0].max() == 0


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_the_right_size_is_not_resampled(fit: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    frames = to_frames(Image.fromarray(pixels), 16, 24, fit)
    assert np.array_equal(((frames[0] / 2 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy(), pixels)


def test_input_is_copied() -> None:
    image = torch.rand(3, 8, 8)
    frames = to_frames(image, 8, 8, "crop")
    before = frames.clone()
    image.zero_()
    assert torch.equal(frames, before)


def test_codec_undoes_scale_and_shift() -> None:
    vae: AutoencoderKL = stream_pipelines._kl(4, scale=0.5, shift=0.25)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mode = vae.encode(pixels).latent_dist.mode()
        decoded = vae.decode(mode).sample
    codec = Codec(vae, WorkRunner())
    assert codec.factor == 4
    torch.testing.assert_close(codec.encode(pixels), (mode - 0.25) * 0.5)
    torch.testing.assert_close(codec.decode(codec.encode(pixels)), decoded, rtol=0, atol=1e-5)


def test_codec_knows_the_moments_of_each_channel() -> None:
    """As the stock pipelines of SDXL do with autoencoders that have them, such as Playground's."""
    vae = stream_pipelines._kl(4, scale=0.5)
    mean, std = [0.5, -1.0, 0.25, 2.0], [1.5, 0.5, 3.0, 1.0]
    vae.register_to_config(latents_mean=mean, latents_std=std)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mode = vae.encode(pixels).latent_dist.mode()
        decoded = vae.decode(mode).sample
    mean_of, std_of = (torch.tensor(x).view(1, 4, 1, 1) for x in (mean, std))
    codec = Codec(vae, WorkRunner())
    torch.testing.assert_close(codec.encode(pixels), (mode - mean_of) * 0.5 / std_of)
    torch.testing.assert_close(codec.decode(codec.encode(pixels)), decoded, rtol=0, atol=1e-5)


def test_codec_refuses_what_overflows_in_half() -> None:
    vae = stream_pipelines._kl(4).half()
    with pytest.raises(ValueError, match=r"AutoencoderKL overflows in float16 .*vae.to\(torch.float32\)"):
        Codec(vae, WorkRunner())
    with pytest.raises(TypeError, match="is not an image autoencoder"):
        Codec(stream_pipelines.sd().unet, WorkRunner())


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_pictures_with_nan_or_inf_are_withheld(kind: str) -> None:
    images = torch.zeros(4, 3, 8, 8)
    images[1, 0, 0, 0], images[3, 2, 7, 7] = float("nan"), float("-inf")
    assert [image is None for image in finish(images, kind)] == [False, True, False, True]
