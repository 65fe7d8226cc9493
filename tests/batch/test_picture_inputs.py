"""Pictures, folders of them, masks and control images as input of a run, on a tiny model."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from PIL import Image

from diffaccel.batch.fit import misfits
from diffaccel.batch.jobs import Ingredients, Planner, plan_jobs
from diffaccel.batch.picture_sets import pictures_of
from diffaccel.batch.rows import BadRow, PlacedRow
from diffaccel.batch.settings import PictureSettings, PromptRow
from diffaccel.batch.store import Record, read_manifest
from diffaccel.cli import main

Generate = Callable[..., Result]


@pytest.fixture
def generate(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, model: object = tiny_sd) -> Result:
        command = ["generate", "--model", model, "--output", "out", "--steps", 4, "--seed", 1, "-q", *arguments]
        return CliRunner().invoke(main, [str(argument) for argument in command])

    return call


@pytest.fixture(scope="module")
def controlnet(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet of the tiny UNet's shape that adds something."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_pretrained(tiny_sd / "unet")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 4))
    for zero in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(zero.weight, std=0.5)
    torch.nn.init.normal_(net.controlnet_cond_embedding.conv_in.weight, std=2.0)
    folder = tmp_path_factory.mktemp("controlnet")
    net.save_pretrained(folder)
    return folder


def records(folder: Path) -> dict[str, Record]:
    return read_manifest(folder / "out")


def painted(folder: Path) -> dict[str, Any]:
    """Pixels of every picture in the output folder, by its name."""
    return {path.stem: np.asarray(Image.open(path), dtype=int) for path in sorted((folder / "out").glob("*.png"))}


def scene(path: Path, size: tuple[int, int] = (64, 32), seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(path)


@pytest.mark.slow
def test_how_pictures_are_brought_to_size_is_asked_and_recorded(generate: Generate, tmp_path: Path) -> None:
    scene(tmp_path / "a.png")
    for resize in (None, "crop", "pad", "stretch"):
        more = ["--resize", resize] if resize else []
        assert generate("p", "--init-image", "a.png", "--size", 32, "--overwrite", *more).exit_code == 0
        (record,) = records(tmp_path).values()
        assert (record.settings["resize"], record.settings["background"]) == (resize or "crop", "white")
        assert (record.settings["width"], record.settings["height"]) == (32, 32)
    assert generate("p", "--background", "nothing").exit_code == 2


@pytest.mark.slow
def test_a_folder_a_pattern_and_a_column_are_rows(generate: Generate, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index, name in enumerate(["a.png", "b.jpg", "ü c.png"]):
        scene(tmp_path / "in" / name, (32, 32), index)
    (tmp_path / "in" / "notes.txt").touch()
    assert generate("p", "q", "--init-image", "in").exit_code == 0
    assert len(painted(tmp_path)) == 6
    names = {record.id.rpartition("-")[0] for record in records(tmp_path).values()}
    assert names == {f"{prompt}-{name}" for prompt in "pq" for name in ("a", "b", "u-c")}
    (tmp_path / "p.csv").write_text("prompt,init_image,custom_id\np,in/*.png,one\n")
    assert generate("p.csv", "-o", "other").exit_code == 0
    assert set(read_manifest(tmp_path / "other")) == {"one-a", "one-ü c"}
    assert (tmp_path / "other" / "one-%C3%BC%20c.png").exists()
    alone = [record.settings for record in records(tmp_path).values() if record.id.startswith("p-a-")]
    beside = read_manifest(tmp_path / "other")["one-a"].settings
    assert {**alone[0], "init_image": ""} == {**beside, "init_image": ""}


def test_sets_without_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice").mkdir()
    for name in ("a.png", "a.jpg"):
        scene(tmp_path / "twice" / name)
    for place, words in (("empty", "no pictures in"), ("*.gif", "no pictures in"), ("twice", "two pictures named a")):
        with pytest.raises(ValueError, match=words):
            pictures_of(str(tmp_path / place))
    assert pictures_of(str(tmp_path / "nowhere.png")) is None


def test_what_lies_in_a_folder_beside_its_pictures(tmp_path: Path) -> None:
    """Hidden files are none, pictures that cannot be read are told one by one, and brackets in a folder's name stay."""
    folder = tmp_path / "holiday [1]"
    folder.mkdir()
    for name in ("a.JPG", "b.jfif"):
        scene(folder / "x.jpg")
        (folder / "x.jpg").rename(folder / name)
    for name in ("._a.JPG", ".DS_Store", "Thumbs.db", "a.heic", "c.HEIC", "notes.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "more").mkdir()
    scene(folder / "more" / "d.png")
    names = {"a": "a.JPG", "b": "b.jfif", "c": "c.HEIC"}
    assert pictures_of(str(folder)) == {stem: str(folder / name) for stem, name in names.items()}
    assert list(pictures_of(str(folder / "*.JPG")) or ()) == ["a"]
    assert list(pictures_of(str(folder / "**" / "*.png")) or ()) == ["d"]


@pytest.mark.slow
def test_a_large_set_is_looked_through_once(tmp_path: Path) -> None:
    for number in range(20_000):
        (tmp_path / f"{number}.png").touch()
    begin = time.process_time()
    assert len(pictures_of(str(tmp_path)) or ()) == 20_000
    assert time.process_time() - begin < 3  # seconds; each name beside every other took more than ten


def test_masks_go_with_their_pictures_by_name(tmp_path: Path) -> None:
    for folder, names in {"in": ("a.png", "b.png"), "masks": ("a.jpg",)}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            scene(tmp_path / folder / name)
    options = PictureSettings(init_image=str(tmp_path / "in"), mask_image=str(tmp_path / "masks"))
    planner = Planner(options, Ingredients("tiny", "float32"))
    plan = plan_jobs([PlacedRow("p:1", PromptRow(prompt="p"))], planner)
    assert [(Path(str(job.init_image)).name, Path(str(job.mask_image)).name) for job in plan.jobs] == [
        ("a.png", "a.jpg")
    ]
    assert plan.bad == (BadRow("p:1, b", f"mask_image: {tmp_path / 'masks'} has no picture named b"),)


def test_a_mask_keeps_what_is_black(generate: Generate, tmp_path: Path, tiny_sd: Path) -> None:
    scene(tmp_path / "a.png", (32, 32))
    Image.new("L", (64, 64)).save(tmp_path / "none.png")
    half = Image.new("L", (32, 32))
    half.paste(255, (0, 0, 16, 32))
    half.save(tmp_path / "half.png")
    (tmp_path / "p.csv").write_text("prompt,custom_id,init_image,mask_image\np,n,a.png,none.png\np,h,a.png,half.png\n")
    assert generate("p.csv").exit_code == 0
    vae = AutoencoderTiny.from_pretrained(tiny_sd / "vae")
    with torch.inference_mode():
        pixels = torch.from_numpy(np.array(Image.open("a.png"))).permute(2, 0, 1)[None] / 127.5 - 1  # (1, 3, 32, 32)
        kept = vae.decode(vae.encode(pixels).latents).sample[0].permute(1, 2, 0)
    kept = ((kept / 2 + 0.5).clamp(0, 1) * 255).round().numpy().astype(int)
    assert np.abs(painted(tmp_path)["n"] - kept).max() <= 1
    different = np.abs(painted(tmp_path)["h"] - kept).max(-1)
    assert different[:, :8].mean() > 5
    assert different[:, 24:].mean() < different[:, :8].mean() / 2
    settings = records(tmp_path)["h"].settings
    assert (settings["mask_image"], settings["strength"]) == (str(tmp_path / "half.png"), 1.0)
    said = [remark for remark in records(tmp_path)["n"].remarks if "nowhere white" in remark]
    nothing = "is nowhere white, so nothing is painted anew (its brightest is 0 of 255)"
    assert said == [f"the mask {tmp_path / 'none.png'} {nothing}"]


def test_a_mask_needs_its_picture_and_its_shape(generate: Generate, tmp_path: Path) -> None:
    scene(tmp_path / "a.png", (64, 32))
    Image.new("L", (32, 32)).save(tmp_path / "m.png")
    (tmp_path / "p.csv").write_text(
        "prompt,init_image,mask_image,control_image\np,a.png,m.png,\np,,m.png,\np,,,a.png\n"
    )
    for mode in (["--dry-run"], []):
        result = generate("p.csv", *mode)
        assert result.exit_code == 3
        for words in ("it is 32x32, and its picture 64x32", "it needs the picture that it is a mask", "--controlnet"):
            assert words in result.stderr
    result = generate("p", "--mask-image", "m.png")
    assert (result.exit_code, "--mask-image: it needs the picture" in result.stderr) == (2, True)


@pytest.mark.slow
def test_a_control_image_is_followed(generate: Generate, tmp_path: Path, controlnet: Path) -> None:
    scene(tmp_path / "0.png", (32, 32))
    Image.new("RGB", (32, 32), "white").save(tmp_path / "1.png")
    (tmp_path / "p.jsonl").write_text(
        "\n".join(
            json.dumps({"prompt": "p", "custom_id": name, **row})
            for name, row in {
                "plain": {},
                "one": {"control_image": "0.png"},
                "other": {"control_image": "1.png"},
                "off": {"control_image": "0.png", "control_scale": 0},
                "from": {"control_image": "0.png", "init_image": "1.png"},
                "within": {"control_image": "0.png", "init_image": "1.png", "mask_image": "0.png"},
            }.items()
        )
    )
    result = generate("p.jsonl", "--controlnet", controlnet)
    assert result.exit_code == 0, result.output
    found = painted(tmp_path)
    difference = lambda one, two: np.abs(found[one] - found[two]).max()  # noqa: E731
    assert min(difference("one", "plain"), difference("one", "other"), difference("from", "within")) > 5
    assert difference("off", "plain") <= 1
    assert records(tmp_path)["one"].settings["control_scale"] == 1.0
    assert "controlnet" not in records(tmp_path)["plain"].settings
    assert records(tmp_path)["plain"].notes == ["control_image: there is none, so this is drawn without the ControlNet"]
    again = generate("--from", "out/one.png", "-o", "again", model=records(tmp_path)["one"].settings["model"])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / "one.png").read_bytes() == (tmp_path / "out" / "one.png").read_bytes()


def test_a_model_that_cannot_is_named_before_it_is_loaded(
    generate: Generate, tmp_path: Path, controlnet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffaccel.batch.distribute.open_pipeline", lambda *_: pytest.fail("loaded the model"))
    scene(tmp_path / "a.png", (32, 32))
    cases = {
        "--init-image: PixArtAlphaPipeline cannot start from a picture": ["--init-image", "a.png"],
        "--mask-image: PixArtAlphaPipeline cannot paint within": ["--init-image", "a.png", "--mask-image", "a.png"],
        "there is no pipeline for PixArtAlpha": ["--control-image", "a.png", "--controlnet", controlnet],
        "no ControlNet at 'nowhere'": ["--controlnet", "nowhere"],
    }
    for words, arguments in cases.items():
        for mode in ([], ["--dry-run"]):
            result = generate("p", *arguments, *mode, model="emoji-dit")
            assert (result.exit_code, words in result.stderr) == (2, True), result.output


def test_animations_are_said(generate: Generate, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    result = CliRunner().invoke(main, ["generate", "p", "--init-image", "a.gif", "--dry-run"])
    assert "a.gif has 2 pictures, of which the first is used" in result.stderr
    assert generate("p", "--init-image", "a.gif").exit_code == 0
    (record,) = records(tmp_path).values()
    assert record.notes == [f"{tmp_path / 'a.gif'} has 2 pictures, of which the first is used"]


def test_a_cache_of_controlnets_needs_a_control_image() -> None:
    """Told for each row before the model is loaded; other methods are asked of the network alone."""
    rows = [
        ("controlcache", None),
        ("deepcache + controlcache:interval=3", None),
        ("controlcache", "l.png"),
        ("none", None),
    ]
    jobs = [SimpleNamespace(id=i, cache=c, control_image=p, init_image=None, steps=4, scheduler="default")
            for i, (c, p) in enumerate(rows)]  # fmt: skip
    found = misfits(jobs, None, lambda cache, scheduler, steps: None)  # type: ignore[arg-type]
    words = "ControlCache needs a ControlNet and a control image: give --control-image, or leave it out"
    assert found == {0: words, 1: words}


def test_names_that_two_systems_write_otherwise_go_together(tmp_path: Path) -> None:
    found = []
    for number, (folder, stem) in enumerate({"pictures": "cafe\u0301", "masks": "caf\u00e9"}.items()):
        (tmp_path / folder).mkdir()
        scene(tmp_path / folder / f"{stem}.png", seed=number)
        found.append(pictures_of(str(tmp_path / folder)) or {})
    assert found[0].keys() == found[1].keys()
    assert [Path(path).exists() for each in found for path in each.values()] == [True, True]
