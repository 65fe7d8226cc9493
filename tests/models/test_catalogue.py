"""The bundled models: their files are where the table says, loadable, small, and described."""

import json
from pathlib import Path

import pytest

from diffaccel import models
from diffaccel.batch.settings import PictureSettings
from diffaccel.models import catalogue


def test_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match="not a bundled model"):
        models.path("emoji-xl")


def test_names_are_those_with_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "_FOLDER", tmp_path)
    assert models.names() == ()
    (tmp_path / "emoji-sd").mkdir()
    (tmp_path / "emoji-clip").mkdir()
    assert models.names() == ("emoji-sd", "emoji-clip")
    assert models.names("classifier") == ("emoji-clip",)
    assert models.path("emoji-sd") == tmp_path / "emoji-sd"


def test_figures_are_read_from_beside_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "_FOLDER", tmp_path)
    (tmp_path / "emoji-sd").mkdir()
    assert models.figures("emoji-sd") == {}
    (tmp_path / "emoji-sd" / "figures.json").write_text(json.dumps({"top1": 0.5}))
    assert models.figures("emoji-sd") == {"top1": 0.5}


def test_a_classifier_is_not_a_pipeline() -> None:
    with pytest.raises(models.ModelError, match="emoji-clip is a classifier, not a pipeline"):
        models.resolve("emoji-clip")


@pytest.mark.parametrize("row", models.BUNDLED.values(), ids=lambda row: row.name)
def test_defaults_are_valid_settings(row: models.Bundled) -> None:
    assert PictureSettings(**row.defaults).given() == dict(row.defaults)
    assert models.defaults(row.name) == row.defaults


def test_other_models_have_no_defaults() -> None:
    assert models.defaults("some/other") == {}
