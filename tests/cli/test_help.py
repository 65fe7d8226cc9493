"""Help is in groups, every option in one of them, each group with an example that parses."""

import re
import shlex
import sys

import click
import pytest
from click.testing import CliRunner

from diffaccel.cli import main
from diffaccel.cli.help import Grouped
from diffaccel.cli.live import START
from diffaccel.cli.model_options import ModelChoice
from diffaccel.realtime.controls import Controls


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_option_is_in_a_group_with_an_example(name: str) -> None:
    command = main.commands[name]
    assert isinstance(command, Grouped)
    text = CliRunner().invoke(main, [name, "--help"], terminal_width=120).output
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert "More options" not in text
    assert "None" not in text
    assert all(f"\n{title}:\n" in text for title in command.groups)
    named = [each for names in command.groups.values() for each in names]
    assert len(named) == len(set(named))
    assert {"--help", *(max(option.opts, key=len) for option in options)} == set(named)
    assert list(command.groups) == list(command.examples)
    for example in command.examples.values():
        program, own, *rest = shlex.split(example)
        assert (program, own) == ("diffaccel", name)
        own_prompts = "--model" not in rest or "emoji-dit" in rest or "--prompts" not in named
        assert own_prompts or "--prompts" in rest, example
        assert name != "relevance" or "--control-image" in rest, example
        command.make_parser(click.Context(command)).parse_args(rest)


@pytest.mark.parametrize(("name", "start"), [("live", START), ("video", {"similarity": False, "cache": 1})])
def test_defaults_are_those_of_the_controls(name: str, start: dict[str, object]) -> None:
    fields = {each: field.default for each, field in Controls.model_fields.items()} | start
    told = {
        option.name: match.group(1)
        for option in main.commands[name].params
        if isinstance(option, click.Option) and (match := re.search(r"\[default: ([^;,\]]+)", option.help or ""))
    }
    shared = told.keys() & fields.keys()
    assert {"strength", "steps", "guidance", "guidance_scale", "seed", "cache"} <= shared
    for each in shared - {"model"}:
        assert told[each] == ("no" if fields[each] is False else str(fields[each]))


def test_too_few_steps_to_tune_are_told_while_parsing() -> None:
    result = CliRunner().invoke(main, ["tune", "--max-macs", "0.5", "--steps", "2"])
    assert (result.exit_code, "--steps: there is nothing to tune in fewer than 3 (got 2)" in result.stderr) == (2, True)


def test_a_trace_needs_a_method() -> None:
    result = CliRunner().invoke(main, ["bench", "--methods", "none", "--trace"])
    assert (result.exit_code, "--trace is of the first method, and there is none" in result.stderr) == (2, True)


def test_errors_name_options_as_they_are_typed() -> None:
    result = CliRunner().invoke(main, ["tune", "--min-psnr", "30", "--max-macs", "0.5"])
    assert result.exit_code == 2
    assert "exactly one of --min-psnr, --min-ssim, --max-macs, --max-time; got --min-psnr, --max-macs" in result.stderr


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_option_says_what_it_is(name: str) -> None:
    told = {each.name: each.help or "" for each in main.commands[name].params if isinstance(each, click.Option)}
    assert [option for option, words in told.items() if re.match(r"(\[|Of |Its |$)", words)] == []


def test_no_command_is_cut_off_in_the_list() -> None:
    assert "..." not in CliRunner().invoke(main, ["--help"], terminal_width=80).output.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("command", "module", "words"),
    [
        ("live --osc 9000", "pythonosc", "--osc needs pythonosc: pip install 'diffaccel[osc]'"),
        ("live --webrtc", "aiortc", "--webrtc needs aiortc: pip install 'diffaccel[webrtc]'"),
        ("live --smoothing 0.5", "cv2", "--smoothing needs cv2: pip install 'diffaccel[camera]'"),
        ("live --controlnet emoji-control --control canny", "cv2", "--control canny needs cv2"),
        ("live --source screen --sink mjpeg", "mss", "--source screen needs mss"),
        ("live --source rtmp://host/x --sink mjpeg", "av", "rtmp:// needs av: pip install 'diffaccel[video]'"),
        ("live --source screen --sink udp://host:1", "av", "udp:// needs av: pip install 'diffaccel[video]'"),
        ("live --source screen --sink x.mp4", "av", "a video file needs av: pip install 'diffaccel[video]'"),
        ("video in.mp4 out.mp4 --prompt x --smoothing 0.5", "cv2", "--smoothing needs cv2"),
        ("video -o out.mp4 --prompt x", "av", "a video file needs av: pip install 'diffaccel[video]'"),
    ],
)
def test_what_is_not_installed_is_told_before_a_model_loads(
    command: str, module: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(ModelChoice, "find", lambda *_, **__: pytest.fail("a model is looked for"))
    result = CliRunner().invoke(main, command.split(), catch_exceptions=False)
    assert (result.exit_code, words in result.stderr, result.stdout) == (2, True, "")


def test_a_profile_that_is_not_there_is_told_in_words() -> None:
    result = CliRunner().invoke(main, ["generate", "a cat", "--profile", "no.json"])
    assert (result.exit_code, "--profile: cannot read no.json: No such file" in result.stderr) == (2, True)
