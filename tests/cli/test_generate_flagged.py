"""What a pipeline says about a row reaches its record: safety checkers, warnings of libraries, errors in a line."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from diffusers import StableDiffusionPipeline

from diffaccel.batch.store import read_manifest
from diffaccel.cli import main


@pytest.fixture
def generate(tiny_sd: Path, tmp_path: Path):
    def call(*arguments: object) -> Result:
        command = ["generate", "--model", tiny_sd, "--output", tmp_path / "out", "--steps", 2, *arguments]
        return CliRunner().invoke(main, [str(argument) for argument in command])

    return call


@pytest.fixture
def checker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A safety checker that finds every first picture of a batch unsuitable."""

    def check(self: Any, image: Any, *_: Any) -> Any:
        flags = [index == 0 for index in range(len(image))]
        image[0] = -1
        return image, flags

    monkeypatch.setattr(StableDiffusionPipeline, "run_safety_checker", check)


@pytest.mark.slow
def test_a_blackened_picture_fails_or_is_marked(generate, checker: None, tmp_path: Path) -> None:
    result = generate("a", "b")
    assert result.exit_code == 3
    assert "the model's safety checker found the picture unsuitable" in result.stderr
    flagged, good = read_manifest(tmp_path / "out").values()
    assert (flagged.status, good.status, good.flagged) == ("failed", "done", None)
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    assert generate("a", "b", "--allow-flagged").exit_code == 0
    records = read_manifest(tmp_path / "out").values()
    assert [record.flagged for record in records if record.id == flagged.id] == [True]
    assert 'class="mark" title="The model&#39;s safety checker' in (tmp_path / "out" / "index.html").read_text()


def test_what_libraries_say_is_in_the_record_and_not_on_the_terminal(
    generate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    call = StableDiffusionPipeline.encode_prompt

    def talkative(self: Any, *args: Any, **kwargs: Any) -> Any:
        logging.getLogger("diffusers.pipelines").warning("the  prompt\nis odd")
        return call(self, *args, **kwargs)

    monkeypatch.setattr(StableDiffusionPipeline, "encode_prompt", talkative)
    result = generate("a", "-q")
    assert (result.exit_code, result.output) == (0, "")
    assert "odd" not in capfd.readouterr().err
    (record,) = read_manifest(tmp_path / "out").values()
    assert record.remarks == ["the prompt is odd"]
    assert "<p>the prompt is odd</p>" in (tmp_path / "out" / "index.html").read_text()


def test_an_error_is_a_line_with_the_librarys_words_behind_a_fold(
    generate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("shapes " + "do not match " * 50 + "\n\nadvice")

    monkeypatch.setattr(StableDiffusionPipeline, "encode_prompt", broken)
    result = generate("a")
    assert result.exit_code == 3
    (record,) = read_manifest(tmp_path / "out").values()
    assert record.error.startswith("could not be rendered: shapes do not match")
    assert (len(record.error) < 230, record.detail[-6:]) == (True, "advice")
    page = (tmp_path / "out" / "index.html").read_text()
    assert (
        "<summary>In the library&#39;s words</summary>" in page or "<summary>In the library's words</summary>" in page
    )
    assert json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[-1])["detail"] == record.detail


def test_a_picture_of_earlier_settings_is_marked(generate, tmp_path: Path) -> None:
    rows = tmp_path / "p.jsonl"
    rows.write_text('{"prompt": "a", "custom_id": "x"}\n{"prompt": "b", "custom_id": "y"}\n')
    generate(rows)
    rows.write_text('{"prompt": "c", "custom_id": "x"}\n{"prompt": "b", "custom_id": "y"}\n')
    generate(rows, "--retry-failed")
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count('class="mark"') == 1
    assert "shows earlier settings" in page
