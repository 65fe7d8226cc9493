"""The command itself: quick to start, and the smaller commands."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from diffaccel import __version__, models
from diffaccel.batch.jobs import Job
from diffaccel.batch.metadata import encode
from diffaccel.cli import main
from diffaccel.models import catalogue


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    "command", [["--help"], ["generate", "--help"], ["live", "--help"], ["models", "--help"], ["--version"]]
)
def test_help_does_not_wait_for_torch(command: list[str]) -> None:
    code = f"import sys; sys.argv = ['diffaccel', *{command}]\ntry:\n    from diffaccel.cli import main; main()\n"
    code += "except SystemExit as end:\n    assert not end.code\n"
    code += "assert not {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_version_is_the_packages() -> None:
    assert invoke("--version") == f"diffaccel, version {__version__}\n"


def test_module_runs_too() -> None:
    done = subprocess.run([sys.executable, "-m", "diffaccel", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"diffaccel, version {__version__}\n"


def test_models_are_listed_with_their_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "_FOLDER", tmp_path)
    (tmp_path / "emoji-sd").mkdir()
    (tmp_path / "emoji-sd" / "figures.json").write_text('{"top1": 0.925, "seconds_per_picture": 0.84, "steps": 20.0}')
    head, first, second, *rest = invoke("models").splitlines()
    assert head.split() == ["name", "size", "use", "what", "it", "is"]
    assert first.startswith("emoji-sd  0.0 MB  --model  Stable Diffusion architecture")
    assert first.index("Stable") == head.index("what")
    words = " ".join(line.strip() for line in [second, *rest])
    assert "92% of captions drawn recognisably; 0.8 s a picture in 20 steps" in words
    listed = json.loads(invoke("models", "--format", "json"))
    assert [model["name"] for model in listed] == ["emoji-sd"]
    assert listed[0]["figures"]["steps"] == 20


def test_every_kind_of_model_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    output = invoke("models")
    assert all(len(line) <= 120 for line in output.splitlines())
    for name, words in {
        "emoji-lcm-lora": " LCM-LoRA for emoji-sd",
        "emoji-video": "of frames recognised from words alone",
        "emoji-vae-small": "drawings come back at a PSNR of ",
        "emoji-sd-small": "multiply-accumulates, 93% of captions drawn recognisably; alone 80% of captions drawn",
        "emoji-clip": "of drawings recognised at the first guess",
    }.items():
        assert name in output
        assert words in " ".join(output.split())


def test_models_says_when_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "_FOLDER", tmp_path)
    assert models.names() == ()
    assert invoke("models") == "No bundled models in this installation.\n"


def test_inspect_prints_the_settings(tmp_path: Path) -> None:
    job = Job(id="a", prompt="a red heart", seed=7, model="m", dtype="float32")
    (tmp_path / "a.png").write_bytes(encode(Image.new("RGB", (8, 8)), job))
    words = "  id: a\n  prompt: a red heart\n  seed: 7\n  model: m\n  dtype: float32\n"
    more = "  scheduler: default\n  cache: none\n  guidance: full\n"
    assert invoke("inspect", tmp_path / "a.png") == f"{tmp_path / 'a.png'}\n{words}{more}"
    assert json.loads(invoke("inspect", tmp_path / "a.png", "--format", "json"))["seed"] == 7
    (tmp_path / "b.PNG").write_bytes(encode(Image.new("RGB", (8, 8)), replace(job, seed=8)))
    (tmp_path / "c.jfif").write_bytes(encode(Image.new("RGB", (8, 8)), replace(job, seed=9), "jpg"))
    for name in ("index.html", "._a.png"):
        (tmp_path / name).touch()
    lines = invoke("inspect", tmp_path, "--format", "json").splitlines()  # more than a command line could name
    assert [json.loads(line)["seed"] for line in lines] == [7, 8, 9]


def test_inspect_shows_control_characters_and_does_not_obey_them(tmp_path: Path) -> None:
    job = Job(id="a", prompt="red\x1b[2J\nheart é", seed=7, model="m", dtype="float32")
    (tmp_path / "a.png").write_bytes(encode(Image.new("RGB", (8, 8)), job))
    assert r"  prompt: red\x1b[2J\nheart é" in invoke("inspect", tmp_path / "a.png")


def test_a_report_or_profile_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("loaded a model"))
    (tmp_path / "file").touch()
    for command in (["bench"], ["tune", "--min-psnr", "30"]):
        result = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "file" / "x"), "--prompts", "p"])
        assert (result.exit_code, "file is a file" in result.stderr) == (1, True), result.output
    result = CliRunner().invoke(main, ["tune", "--min-psnr", "30", "-o", str(tmp_path), "--prompts", "p"])
    assert (result.exit_code, "is a folder" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("command", "option", "value", "words"),
    [
        ("tune --max-macs 0.5", "-o", "prompts.txt", "--output: prompts.txt is there and no earlier result"),
        ("tune --max-macs 0.5", "-o", "package.json", "--output: package.json is there and no earlier result"),
        ("train-cache", "-o", "picture.png", "--output: picture.png is there and no earlier result"),
        ("train-cache -o r.json", "--picture", "r.json", "--picture: r.json is the file of --output, too"),
        ("bench", "-o", ".", ". holds report.html, which is not of an earlier report: use another folder"),
        ("train-cache", "--beta", "nan", "'--beta': 'nan' is not a finite number"),
        ("train-cache", "--threshold", "nan", "'--threshold': 'nan' is not a finite number"),
        ("train-cache", "--learning-rate", "inf", "'--learning-rate': 'inf' is not a finite number"),
    ],
)
def test_files_of_others_and_odd_numbers_are_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, option: str, value: str, words: str
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("loaded a model"))
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("prompts.txt", "a cat"),
        ("package.json", '{"name": "x", "type": "module"}'),
        ("report.html", "<p>"),
        ("old", ""),
    ):
        (tmp_path / name).write_text(text)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    result = CliRunner().invoke(main, [*command.split(), option, value, "--prompts", "a cat"])
    assert result.exit_code in (1, 2)
    assert words in result.output


def test_earlier_results_are_replaced(tmp_path: Path) -> None:
    from diffaccel.cli.bench import _check_folder
    from diffaccel.cli.result_files import check_result

    for name, text in (("p.json", '{"type": "recipe"}'), ("m.json", '{"methods": []}'), ("d.svg", "<svg/>"), ("e", "")):
        (tmp_path / name).write_text(text)
        check_result("-o", tmp_path / name, "p.json")
    for name, text in (("report.html", "<p>"), ("report.json", '{"different_seed_floor": {}}')):
        (tmp_path / name).write_text(text)
    _check_folder(tmp_path)


def test_columns_that_generate_takes_along_are_told_and_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffaccel.cli.model_options import ModelChoice
    from diffaccel.cli.subject import Subject

    table = tmp_path / "p.csv"
    table.write_text("prompt,mood,steps\nred heart,glad,3\n")
    choice = ModelChoice(**dict.fromkeys((each.name for each in fields(ModelChoice)), None) | {"model": "emoji-sd"})
    subject = Subject(choice, (str(table),), None, None, None, None, 0, quiet=False)
    assert subject.texts() == ("red heart",)
    assert "not used: mood, steps of single rows" in capsys.readouterr().err


def test_an_interrupt_ends_with_130_and_says_what_becomes_of_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("diffaccel.batch.store.check_output", interrupted)
    monkeypatch.setattr("diffaccel.batch.metadata.read_settings", interrupted)
    words = {"generate": "; the same command goes on where this one stopped", "inspect": ""}
    for command, goes_on in words.items():
        result = CliRunner().invoke(main, [command, "p"])
        assert (result.exit_code, result.output) == (130, f"Interrupted{goes_on}.\n")


@pytest.mark.parametrize("command", [["bench"], ["tune", "--min-psnr", "30"]])
@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--guidance-scale", "nan", "--guidance-scale: must be a finite number (got nan)"),
        ("--guidance-scale", "inf", "--guidance-scale: must be a finite number (got inf)"),
        ("--guidance-scale", "-1", "--guidance-scale: must be at least 0"),
        ("--size", "0", "--size: must be at least 8"),
        ("--size", "33", "--size: must be a multiple of 8"),
        ("--size", "wide", "--size: 'wide' is neither a number of pixels nor WIDTHxHEIGHT"),
        ("--seed", str(2**64), "--seed: must be less than"),
        ("--seed", "-1", "'--seed'"),
        ("--steps", "1000000", "--steps: must be at most 1000"),
        ("--scheduler", "magic", "--scheduler: unknown scheduler 'magic'"),
    ],
)
def test_settings_out_of_range_are_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], option: str, value: str, words: str
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("loaded a model"))
    result = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "x"), "--prompts", "p", option, value])
    assert (result.exit_code, words in result.stderr) == (2, True), result.output


def test_methods_and_profiles_that_are_none_are_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("loaded a model"))
    (tmp_path / "empty.json").touch()
    for option, value, words in (
        ("--methods", "nothing", "--methods: unknown method 'nothing'"),
        ("--methods", "profile:recipe='gone.json'", "--methods: cache: cannot read gone.json: No such file"),
        ("--profile", tmp_path / "empty.json", "--profile: "),
    ):
        result = CliRunner().invoke(main, ["bench", "-o", str(tmp_path / "x"), "--prompts", "p", option, str(value)])
        assert (result.exit_code, words in result.stderr) == (2, True), result.output


def test_profiles_of_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    from diffaccel.cli.bench import _tuned

    paths = [str(tmp_path / name) for name in ("a/p.json", "b/p.json", "q.json", "q.json")]
    for path in paths:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text('{"methods": [{"type": "TextKVCache"}]}')
    assert list(_tuned(tuple(paths))) == [f"profile {paths[0]}", f"profile {paths[1]}", "profile q"]


def test_a_file_without_prompts_is_not_replaced_by_the_models_own(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,seed\n")
    result = CliRunner().invoke(main, ["bench", "-o", str(tmp_path / "x"), "--prompts", str(tmp_path / "p.csv")])
    assert result.exit_code == 2
    assert "p.csv; try: --prompts" in result.stderr


@pytest.mark.parametrize("option", ["--min-psnr", "--min-ssim", "--max-time", "--max-macs"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_budgets_that_are_no_budget(tmp_path: Path, option: str, value: str) -> None:
    result = CliRunner().invoke(main, ["tune", "-o", str(tmp_path / "x"), "--prompts", "p", option, value])
    assert (result.exit_code, "must be a number in" in result.stderr) == (2, True), result.output


def test_inspect_of_something_else(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "a.png")])
    assert result.exit_code == 2
    assert "no such picture" in result.stderr
