"""What people bring from other programs and other countries, and what they are told."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image, PngImagePlugin

from diffaccel.batch.readers import BadRow, read_rows
from diffaccel.batch.rows import make_row
from diffaccel.cli import main
from diffaccel.models import ModelError, find_lora


def dry(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["generate", *map(str, arguments), "--dry-run"])


def rows_of(path: Path, text: str, encoding: str = "utf-8") -> list[Any]:
    path.write_bytes(text.encode(encoding))
    return list(read_rows((str(path),), None))


def test_a_spreadsheet_of_a_country_with_decimal_commas(tmp_path: Path) -> None:
    text = "\ufeffprompt;guidance scale;Strength;seed\r\n1,5 litres, please;2,5;;1\r\n3,5;3;0,25;2\r\n"
    first, second = (each.row.given() for each in rows_of(tmp_path / "a.csv", text))
    assert first == {"prompt": "1,5 litres, please", "guidance_scale": 2.5, "seed": 1}
    assert second == {"prompt": "3,5", "guidance_scale": 3.0, "strength": 0.25, "seed": 2}
    (bad,) = rows_of(tmp_path / "b.csv", 'prompt,guidance_scale\na,"2,5"\n')
    assert isinstance(bad, BadRow)
    assert bad.error == "guidance_scale: must be a number (got '2,5')"


def test_a_text_file_of_notepad(tmp_path: Path) -> None:
    assert [each.row.prompt for each in rows_of(tmp_path / "a.txt", "ein Häuschen\r\n猫\r\n", "utf-16")] == [
        "ein Häuschen",
        "猫",
    ]


@pytest.mark.parametrize("column", ["CFG scale", "cfg_scale", "Sampler"])
def test_columns_of_the_web_ui_are_told_their_names_here(tmp_path: Path, column: str) -> None:
    (tmp_path / "a.csv").write_text(f"prompt,{column}\na,1\n")
    called = "scheduler" if column == "Sampler" else "guidance_scale"
    result = dry(tmp_path / "a.csv")
    assert (result.exit_code, f"{column}: no such setting, it is called {called} here" in result.output) == (2, True)


def test_pictures_are_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,init_image\na,https://example.com/a.png\n")
    result = dry(tmp_path / "a.csv")
    assert "a.csv:2: init_image: https://example.com/a.png is an address, and nothing is fetched" in result.output


@pytest.mark.parametrize("name", ["emoji-lcm-lora:0.5", "<lora:emoji-lcm-lora:0.5>", "C:/loras/style.safetensors:1"])
def test_the_web_uis_weight_of_a_lora_is_told_as_it_is_written_here(name: str) -> None:
    with pytest.raises(ModelError, match="give a .safetensors" if name[0] == "C" else "as in emoji-lcm-lora=0.5"):
        find_lora(name)


def test_a_picture_whose_tool_does_not_name_the_model(tmp_path: Path) -> None:
    said = PngImagePlugin.PngInfo()
    said.add_text("parameters", "a cat\nSteps: 4, Sampler: Euler a, CFG scale: 1, Seed: 1, Size: 128x128")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=said)
    assert (
        "is of AUTOMATIC1111, which does not name its model: give --model" in dry("--from", tmp_path / "a.png").output
    )


def test_a_folder_without_pictures_to_inspect_is_told_as_such_and_the_rest_is_read(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(tmp_path), str(tmp_path / "none.png")])
    assert f"{tmp_path} is a folder without pictures of these kinds: .png, .jpg" in result.output
    assert f"no such picture: {tmp_path / 'none.png'}" in result.output


@pytest.mark.parametrize(
    ("sampler", "spacing", "expected"),
    [
        ("DPM++ 2M", "Automatic", "dpm++ 2m karras"),
        ("DPM++ 2M SDE", "Automatic", "dpm++ 2m sde exponential"),
        ("Euler a", "Automatic", "euler-a"),
        ("DPM++ 2M", "Exponential", "dpm++ 2m exponential"),
        ("DPM++ 2M Karras", "", "dpm++ 2m karras"),
    ],
)
def test_what_is_automatic_in_the_web_ui(tmp_path: Path, sampler: str, spacing: str, expected: str) -> None:
    said = PngImagePlugin.PngInfo()
    kind = f", Schedule type: {spacing}" if spacing else ""
    said.add_text("parameters", f"a cat\nSteps: 4, Sampler: {sampler}{kind}, CFG scale: 1, Seed: 1, Size: 128x128")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=said)
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "a.png")])
    assert f"scheduler: {expected}\n" in result.output


def test_a_table_that_was_typed_with_spaces_behind_its_commas(tmp_path: Path) -> None:
    text = 'prompt, negative prompt, seed\n"a cat, red", "blurry, ""old""", 5\na dog, blurry, 6\n "a", "", 7\n'
    first, second, third = (each.row.given() for each in rows_of(tmp_path / "a.csv", text))
    (row,) = rows_of(tmp_path / "b.csv", "prompt, custom id\na, b\n")
    assert row.row.custom_id == "b"
    assert first == {"prompt": "a cat, red", "negative_prompt": 'blurry, "old"', "seed": 5}
    assert second == {"prompt": "a dog", "negative_prompt": "blurry", "seed": 6}
    assert third == {"prompt": "a", "seed": 7}


def test_empty_columns_behind_those_of_a_spreadsheet(tmp_path: Path) -> None:
    row, bad = rows_of(tmp_path / "a.csv", "prompt;seed;;\na;1;;\nb;2;x;\n;;;\n")
    assert row.row.given() == {"prompt": "a", "seed": 1}
    assert bad.error.startswith("4 cells where the header has 2")


def test_words_that_the_output_has_no_letters_for(tmp_path: Path) -> None:
    said = PngImagePlugin.PngInfo()
    said.add_itxt("parameters", "\u732b\nSteps: 4, Sampler: Euler a, CFG scale: 1, Seed: 1, Size: 128x128")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=said)
    result = CliRunner(charset="latin-1").invoke(main, ["inspect", str(tmp_path / "a.png")])
    assert (result.exit_code, "  prompt: \\u732b\n" in result.output) == (0, True), result.output


def test_decimal_commas_between_tabs(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "a.tsv", "prompt\tguidance scale\na, b\t2,5\n", "utf-16")
    assert row.row.given() == {"prompt": "a, b", "guidance_scale": 2.5}


def test_the_numbers_that_pandas_puts_before_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",prompt\n0,a\n")
    assert (
        "a column without a name, such as a row's number: --keep-columns takes it along"
        in dry(tmp_path / "a.csv").output
    )


def test_what_no_manifest_can_hold_does_not_go_along(tmp_path: Path) -> None:
    text = '{"prompt": "a", "x": NaN, "y": -Infinity}\n{"prompt": "a", "meta": [{"k": 1, "k": 2}]}\n'
    (tmp_path / "a.jsonl").write_text(text)
    numbers, twice = read_rows((str(tmp_path / "a.jsonl"),), None, keep_columns=True)  # type: ignore[arg-type]
    assert dict(numbers.columns) == {"x": None, "y": "-inf"}  # type: ignore[union-attr]
    assert twice == BadRow(f"{tmp_path / 'a.jsonl'}:2", "meta: k is given twice")
    for value in (b"\xff", {"bytes": b"\xff"}):
        row = make_row({"prompt": "a", "image": value}, "here", keep=True)
        assert row == BadRow("here", "image: bytes cannot go along: leave the column out")
