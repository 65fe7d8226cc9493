"""The figures on a comparison are right, and equal pictures show no difference."""

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio

from diffaccel.batch.compare import AMPLIFICATION, Comparison, difference, side_by_side

PICTURE = Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 20).convert("RGB")
NOISY = Image.fromarray(np.asarray(PICTURE) // 2 + 30)


def test_psnr_equals_torchmetrics() -> None:
    one, other = (torch.from_numpy(np.array(image)).double() for image in (PICTURE, NOISY))
    expected = float(peak_signal_noise_ratio(one, other, data_range=255.0))
    assert Comparison(PICTURE, NOISY, 1.0, 1.0).psnr == round(expected, 2)
    assert Comparison(PICTURE, PICTURE, 1.0, 1.0).psnr == 100


def test_difference_is_amplified_and_white_where_equal() -> None:
    assert np.asarray(difference(PICTURE, PICTURE)).min() == 255
    black, grey = (Image.new("RGB", (4, 4), (level,) * 3) for level in (0, 5))
    assert (np.asarray(difference(black, grey)) == 255 - 5 * AMPLIFICATION).all()
    assert (np.asarray(difference(grey, Image.new("RGB", (4, 4), "white"))) == 0).all()


def test_side_by_side_holds_both_pictures_unchanged() -> None:
    sheet = side_by_side(Comparison(PICTURE, NOISY, 2.0, 1.0), "deepcache:interval=3")
    scale = 4
    for index, picture in enumerate((PICTURE, NOISY)):
        left = 8 + index * (picture.width * scale + 8)
        panel = sheet.crop((left, 8, left + picture.width * scale, 8 + picture.height * scale))
        assert panel.resize(picture.size, Image.Resampling.NEAREST).tobytes() == picture.tobytes()
