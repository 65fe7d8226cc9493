"""An output folder that others use, too: what they keep there is neither replaced nor taken for the run's own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from diffaccel.batch import sheet
from diffaccel.batch.guests import require_own
from diffaccel.batch.jobs import Job
from diffaccel.batch.metadata import encode
from diffaccel.batch.store import Record, StoreError, is_done, read_manifest
from diffaccel.cli import main

Generate = Callable[..., Result]
JOB = Job(id="a", prompt="p", seed=7, model="m", dtype="float32", guidance_scale=2.0)
PAINTED = Image.effect_mandelbrot((32, 24), (-2, -1, 1, 1), 20).convert("RGB")


@pytest.fixture
def generate(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        command = ["generate", "--model", tiny_sd, "--steps", 2, "--size", 32, *arguments]
        return CliRunner().invoke(main, [str(argument) for argument in command])

    return call


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_pictures_of_others_are_in_the_way_and_our_own_are_not_though_cut_short(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"{JOB.file_stem}.{suffix}"
    require_own([JOB], tmp_path, suffix, ())
    file.write_bytes(encode(PAINTED, JOB, suffix)[: None if suffix == "webp" else -3])
    require_own([JOB], tmp_path, suffix, ())
    PAINTED.save(file)
    with pytest.raises(StoreError, match="is there, and no picture of an earlier run"):
        require_own([JOB], tmp_path, suffix, ())
    require_own([JOB], tmp_path, suffix, (JOB.id,))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_that_was_changed_in_its_place_stays(tmp_path: Path, suffix: str) -> None:
    file, data = tmp_path / f"{JOB.file_stem}.{suffix}", encode(PAINTED, JOB, suffix)
    record = Record(JOB.id, "done", JOB.fingerprint, file.name, len(data), settings=JOB.settings)

    def done(content: bytes) -> bool:
        file.write_bytes(content)
        return is_done(JOB, record, tmp_path, suffix)

    assert done(data)
    assert done(encode(PAINTED.rotate(180), JOB, suffix))
    assert not done(encode(PAINTED, replace(JOB, seed=8, prompt="longer"), suffix))
    assert not done(data[:-1])
    assert not done(data[: len(data) // 2])
    PAINTED.rotate(90).save(file)
    assert done(file.read_bytes())
    file.unlink()
    assert not is_done(JOB, record, tmp_path, suffix)


def picture(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), "red").save(path)
    return path.read_bytes()


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--overwrite",)])
def test_a_picture_of_somebody_else_is_not_replaced(generate: Generate, tmp_path: Path, more: tuple[str, ...]) -> None:
    before = picture(tmp_path / "cat.png")
    row = {"prompt": "x", "custom_id": "cat", "init_image": "cat.png", "strength": 0.9}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    result = generate("rows.jsonl", "-o", ".", *more)
    words = "cat.png is there, and no picture of an earlier run: use another folder, or another custom_id"
    assert (result.exit_code, words in result.stderr) == (1, True), result.output
    assert (tmp_path / "cat.png").read_bytes() == before
    assert not (tmp_path / "manifest.jsonl").exists()


@pytest.mark.slow
def test_a_picture_whose_run_was_killed_before_it_was_recorded_is_rendered_again(
    generate: Generate, tmp_path: Path
) -> None:
    assert generate("x").exit_code == 0
    (tmp_path / "out" / "manifest.jsonl").unlink()
    (tmp_path / "out" / "index.html").unlink()
    (file,) = (tmp_path / "out").glob("*.png")
    file.write_bytes(file.read_bytes()[:-100])
    assert generate("x").exit_code == 0
    assert len(read_manifest(tmp_path / "out")) == 1


@pytest.mark.parametrize("name", ["in", "in/*.png"])
def test_a_set_of_pictures_does_not_grow_by_the_run(generate: Generate, tmp_path: Path, name: str) -> None:
    picture(tmp_path / "in" / "cat.png")
    words = f"{name} has pictures of the output folder, where each run adds its own: use another folder"
    result = generate("x", "--init-image", name, "-o", "in", "--dry-run")
    assert (result.exit_code, f"--init-image: {words}" in result.stderr) == (2, True), result.output
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "x", "init_image": name}))
    result = generate("rows.jsonl", "y", "-o", "in", "--dry-run")
    assert (result.exit_code, words in result.stderr) == (3, True), result.output
    assert generate("x", "--init-image", name, "-o", "out", "--dry-run").exit_code == 0
    assert generate("x", "--init-image", "in/cat.png", "-o", "in", "--dry-run").exit_code == 0


def test_a_pattern_leaves_the_output_folder_out(generate: Generate, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "cat.png")
    picture(tmp_path / "in" / "out" / "dog.png")
    for folder, count in (("in/out", 1), ("out", 2)):
        result = generate("x", "--init-image", "in/**/*.png", "-o", folder, "--dry-run", "--format", "json")
        assert (result.exit_code, json.loads(result.stdout)["jobs"]) == (0, count), result.output


@pytest.mark.slow
def test_a_picture_rendered_from_itself_is_there_already(generate: Generate, tmp_path: Path) -> None:
    assert generate("x", "y").exit_code == 0
    (file, _) = sorted((tmp_path / "out").glob("*.png"))
    for command in (["--from", str(file)], ["--from", str(file), "--seed", "7"], ["--from", str(file)]):
        result = CliRunner().invoke(main, ["generate", *command, "--format", "json"])
        assert (result.exit_code, json.loads(result.stdout)["skipped"]) == (0, "--seed" not in command)


@pytest.mark.slow
def test_a_full_contact_sheet_shows_what_was_asked_for(
    generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheet, "MAX_PICTURES", 1)
    for prompt in ("x", "y"):
        assert generate(prompt).exit_code == 0
        page = (tmp_path / "out" / "index.html").read_text()
        assert f'data-text="{prompt}"' in page
    assert 'data-text="x"' not in page
    assert "The first 1 of 2 pictures." in page
