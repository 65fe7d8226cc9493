"""Pictures to start from are opened with care, and what is wrong with one is said in words."""

from pathlib import Path

import pytest
from PIL import Image

from diffaccel.batch.pictures import PictureError, check_picture, open_picture


def test_a_picture_is_rgb_in_the_asked_size(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 30), "red").save(tmp_path / "a.webp")
    check_picture(str(tmp_path / "a.webp"))
    for size, expected in (((None, None), (40, 30)), ((16, 24), (16, 24)), ((16, None), (40, 30))):
        picture = open_picture(str(tmp_path / "a.webp"), size)
        assert (picture.mode, picture.size) == ("RGB", expected)


@pytest.mark.parametrize("open_", [check_picture, lambda path: open_picture(path, (None, None))])
def test_what_is_no_picture_is_named(tmp_path: Path, open_, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.effect_noise((40, 30), 99).save(tmp_path / "a.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "a.gif")
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    (tmp_path / "empty.png").touch()
    cases = {"nowhere.png": "No such file", "a.gif": "not a PNG, JPEG or WebP", "torn.png": "torn.png: "}
    cases |= {"empty.png": "not a PNG", ".": "Is a directory"}
    for name, words in cases.items():
        with pytest.raises(PictureError, match=words):
            open_(str(tmp_path / name))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PictureError, match="decompression bomb"):
        open_(str(tmp_path / "a.png"))
