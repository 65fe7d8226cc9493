"""One function reads every JSON file that asks for methods, and its answer can be written out as text."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffaccel.batch.settings import parse_cache, without_files, write_cache
from diffaccel.methods import (
    CalibratedCache,
    ControlCache,
    DeepCache,
    KindSteps,
    Loss,
    NetworkSwitch,
    Profile,
    Relevance,
    Staged,
    TGate,
    load_methods,
)
from diffaccel.methods.calibrated_cache import Calibration
from diffaccel.methods.recipe import Evidence, Recipe, Reuse

CALIBRATION = Calibration("Net", "abc", 8, 0.1, (KindSteps("self_attention", (0, 3)), KindSteps("feed_forward", (0,))))
METHODS = (DeepCache(interval=5, branch=1), TGate())
MADE_FOR = {"model": "Net", "fingerprint": "abc", "sampler": "Sampler", "sampler_fingerprint": "def"}
RECIPE = {"type": "Recipe", "total": 5, **MADE_FOR}
ROUTERS = {"type": "Routers", "units": ["a"], "weights": [[1.0]], **MADE_FOR}
STAGED = Staged((METHODS[:1], METHODS))


def write(path: Path, values: object) -> Path:
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("values", "methods"),
    [
        (CALIBRATION.to_dict(), (CalibratedCache(CALIBRATION),)),
        (METHODS[0].to_dict(), METHODS[:1]),
        ([method.to_dict() for method in METHODS], METHODS),
        ({"methods": [method.to_dict() for method in METHODS]}, METHODS),
        (STAGED.to_dict(), (STAGED,)),
        ({"type": "Staged", "methods": [method.to_dict() for method in METHODS]}, (Staged(METHODS),)),  # type: ignore[arg-type]
    ],
    ids=["calibration", "method", "list", "methods", "stages", "stages of one method each"],
)
def test_methods_of_a_file_and_their_text(tmp_path: Path, values: object, methods: tuple[object, ...]) -> None:
    loaded = load_methods(write(tmp_path / "p.json", values))
    assert loaded == methods
    assert parse_cache(write_cache(loaded)) == methods


def test_a_recipe_is_written_out_without_its_evidence(tmp_path: Path) -> None:
    recipe = Recipe("Net", "abc", "Sampler", "def", 4, (Reuse(1, "output"), Reuse(2, "branch 0", (2.0, -1.0))))
    evidence = Evidence("min_psnr 30", True, 0.5, 31.0, 0.9, 32.0, account="tried a + b")
    replace(recipe, evidence=evidence).save(tmp_path / "p.json")
    assert parse_cache(write_cache(load_methods(tmp_path / "p.json"))) == (Profile(recipe),)


def test_what_methods_name_is_written_out(tmp_path: Path) -> None:
    relevance = Relevance("Net", "abc", 0.8, 0.2, (Loss("0", 30.0, 0.9, 0.7),), settings=(("steps", 4),))
    CALIBRATION.save(tmp_path / "c.json")
    relevance.save(tmp_path / "r.json")
    named = (CalibratedCache(str(tmp_path / "c.json")), ControlCache(relevance=str(tmp_path / "r.json")))
    assert parse_cache(write_cache(named)) == (CalibratedCache(CALIBRATION), ControlCache(relevance=relevance))


def test_text_of_methods_needs_neither_its_files_nor_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small").mkdir()
    CALIBRATION.save(tmp_path / "c.json")
    monkeypatch.chdir(tmp_path)
    written = without_files("calibratedcache:calibration='c.json' + networkswitch:small='small'")
    assert parse_cache(written) == (CalibratedCache(CALIBRATION), NetworkSwitch(str(tmp_path / "small")))
    assert without_files(written) == written
    assert (
        without_files("deepcache:3 + networkswitch:small='emoji-sd'") == "deepcache:3 + networkswitch:small='emoji-sd'"
    )
    with pytest.raises(ValueError, match=r"^cache: cannot read nowhere\.json: No such file or directory"):
        without_files("profile:recipe='nowhere.json'")


@pytest.mark.parametrize(
    "values",
    [
        3,
        {"type": "nothing"},
        {"interval": 3},
        {"type": "uniform"},
        [[]],
        [],
        {"methods": []},
        RECIPE | {"reuses": [{"type": "Reuse", "call": 1, "what": 5}]},
        ROUTERS | {"guidance": [["guidance_scale"]]},
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, values: object) -> None:
    with pytest.raises(ValueError, match=r"p\.json holds neither a calibration nor methods"):
        load_methods(write(tmp_path / "p.json", values))


@pytest.mark.parametrize("read", [load_methods, Calibration.load])
def test_a_value_that_is_given_twice_is_refused(tmp_path: Path, read: Any) -> None:
    text = json.dumps(CALIBRATION.to_dict()).replace('"alpha": 0.1', '"alpha": 0.1, "alpha": 0.2')
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=r"p\.json .*: alpha is given twice$"):
        read(tmp_path / "p.json")
