"""Where compiled code is kept for the next start."""

import os
from pathlib import Path

import pytest

from diffaccel.models import multiplies_bfloat16
from diffaccel.models.placement import CACHE_VARIABLE, _keep_on_disk


def test_compiled_code_is_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _keep_on_disk()
    place = tmp_path / "diffaccel" / "compiled"
    assert place.is_dir()
    assert os.environ[CACHE_VARIABLE] == str(place)
    monkeypatch.setenv(CACHE_VARIABLE, "elsewhere")
    _keep_on_disk()
    assert os.environ[CACHE_VARIABLE] == "elsewhere"


def test_a_cache_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _keep_on_disk()
    assert CACHE_VARIABLE not in os.environ
    assert "not kept for the next start" in caplog.text


def test_only_cpus_are_asked_for_bfloat16() -> None:
    torch = pytest.importorskip("torch")
    assert not multiplies_bfloat16(torch.device("meta"))
    assert multiplies_bfloat16(torch.device("cpu")) in (True, False)
