"""Rows out of every kind of input; what cannot be used is named and costs only itself."""

import datetime
import io
import json
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from diffaccel.batch.jobs import row_id
from diffaccel.batch.picture_sets import PictureSets
from diffaccel.batch.readers import BadRow, InputError, PlacedRow, read_rows
from diffaccel.batch.settings import PictureSettings, PromptRow
from diffaccel.cli.help import HomePath
from diffaccel.models import ModelError, find_lora, located


def read(*arguments: str | Path, stdin: str = "") -> list[PromptRow | BadRow]:
    found = read_rows([str(argument) for argument in arguments], io.StringIO(stdin))
    return [each if isinstance(each, BadRow) else each.row for each in found]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_arguments_are_prompts() -> None:
    assert read("a red heart", " a panda ") == [PromptRow(prompt="a red heart"), PromptRow(prompt="a panda")]


def test_text_file_has_one_prompt_a_line(tmp_path: Path) -> None:
    file = write(tmp_path / "prompts.txt", "\ufeffa red heart\r\n\n  a panda  \n")
    assert read(file) == [PromptRow(prompt="a red heart"), PromptRow(prompt="a panda")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize(
    ("name", "text"),
    [("p.txt", "café\r\n猫\r\n"), ("p.csv", "prompt\ncafé\n猫\n"), ("p.yaml", "prompt: [café, 猫]\n")],
)
def test_utf_16_with_its_mark_is_read(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    file = write(tmp_path / name, (mark + text).encode(encoding))
    assert read(file) == [PromptRow(prompt="café"), PromptRow(prompt="猫")]


def test_utf_16_that_is_cut_short_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "p.txt", "a heart\n".encode("utf-16")[:-1])
    with pytest.raises(InputError, match=r"cannot read .*p\.txt: .*utf-16"):
        read(file)


def test_csv_columns_are_settings_and_empty_ones_are_absent(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", 'prompt,seed,size,custom_id\n"heart, red",7,64x32,one\npanda,,,\n')
    assert read(file) == [
        PromptRow(prompt="heart, red", seed=7, width=64, height=32, custom_id="one"),
        PromptRow(prompt="panda"),
    ]


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"prompt": "heart", "steps": 4, "guidance_scale": 1.5}, {"prompt": "panda", "cache": "none"}]
    file = write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)))
    assert read(file) == [
        PromptRow(prompt="heart", steps=4, guidance_scale=1.5),
        PromptRow(prompt="panda", cache="none"),
    ]


def test_parquet(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": ["heart", "panda"], "seed": [1, None]}), tmp_path / "p.parquet"
    )
    assert read(tmp_path / "p.parquet") == [PromptRow(prompt="heart", seed=1), PromptRow(prompt="panda")]


def test_parquet_of_a_database(tmp_path: Path) -> None:
    numbers = pyarrow.array([Decimal("7.00"), None], pyarrow.decimal128(10, 2))
    columns = dict.fromkeys(("seed", "guidance_scale", "custom_id"), numbers)
    table = pyarrow.table(
        {"prompt": pyarrow.array(["a", "b"]).dictionary_encode(), "size": pyarrow.nulls(2), **columns}
    )
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    first = PromptRow(prompt="a", seed=7, guidance_scale=7.0, custom_id="7")
    assert read(tmp_path / "p.parquet") == [first, PromptRow(prompt="b")]


def test_yaml_grid_is_every_combination(tmp_path: Path) -> None:
    file = write(tmp_path / "p.yaml", "prompt: [heart, panda]\nseed: [1, 2, 3]\nsteps: 4\n")
    rows = read(file)
    assert len(rows) == 6
    assert rows[1] == PromptRow(prompt="heart", seed=2, steps=4)


def test_several_grids(tmp_path: Path) -> None:
    file = write(tmp_path / "p.yml", "- {prompt: heart, cache: [none, 'deepcache:interval=2']}\n- {prompt: panda}\n")
    assert [row.cache for row in read(file) if isinstance(row, PromptRow)] == ["none", "deepcache:interval=2", None]


def test_files_that_a_row_names_are_looked_for_beside_its_own(tmp_path: Path) -> None:
    (tmp_path / "start.png").touch()
    file = write(tmp_path / "p.csv", "prompt,init_image,lora\na,start.png,\nb,elsewhere.png,emoji-lcm-lora\n")
    beside, other = read(file)
    assert beside == PromptRow(prompt="a", init_image=str(tmp_path / "start.png"))
    assert other == PromptRow(prompt="b", init_image="elsewhere.png", lora="emoji-lcm-lora")


def test_standard_input_takes_prompts_and_json() -> None:
    assert read("-", stdin='heart\n\n{"prompt": "panda", "seed": 3}\n') == [
        PromptRow(prompt="heart"),
        PromptRow(prompt="panda", seed=3),
    ]


def test_bytes_on_standard_input_that_are_no_text() -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfheart\n\xff\xfe\ncaf\xc3\xa9\n"), encoding="ascii")
    first, bad, last = read_rows(["-"], stdin)
    assert (first, last) == (PlacedRow("-:1", PromptRow(prompt="heart")), PlacedRow("-:3", PromptRow(prompt="café")))
    assert isinstance(bad, BadRow)
    assert bad.where == "-:2"


def test_parquet_values_that_python_has_not(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["a"], "seed": pyarrow.array([10**18], pyarrow.timestamp("us"))})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "a"', "not JSON"),
        (b"[1, 2]", "not an object"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "prompt: is missing"),
        (b'{"prompt": "  "}', "must not be empty"),
        (b'{"prompt": 3}', "must be text"),
        (b'{"prompt": "a\\u0000b"}', "NUL"),
        (b'{"prompt": "\xff\xfe"}', "UTF-8"),
        (b'{"prompt": "\\ud800"}', "UTF-8"),
        (b'{"prompt": "a", "steps": 0}', "steps: must be at least 1"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "guidance_scale: must be a finite number"),
        (b'{"prompt": "a", "guidance_scale": 1e999}', "finite"),
        (b'{"prompt": "a", "size": "12y"}', "WIDTHxHEIGHT"),
        (b'{"prompt": "a", "width": 12}', "multiple of 8"),
        (b'{"prompt": "a", "scheduler": "magic"}', "unknown scheduler 'magic'; one of default, ddim"),
        (b'{"prompt": "a", "cache": "magic"}', "unknown method 'magic'"),
        (b'{"prompt": "a", "cache": "deepcache:interval=0"}', "interval must be an integer >= 1"),
        (b'{"prompt": "a", "guidance": "3"}', "unknown guidance '3'; one of full, one-time, self"),
        (b'{"prompt": "a", "guidance": "self:beta=1"}', "no field 'beta'"),
        (b'{"prompt": "a", "colour": "red"}', "colour: no such setting; settings are size, negative_prompt, seed"),
        (b'{"prompt": "a", "custom_id": "../../etc/passwd"}', "custom_id"),
        (b'{"prompt": "a", "custom_id": ".hidden"}', "custom_id"),
        (b'{"prompt": "a", "custom_id": "a\\nb"}', "custom_id"),
        (b'{"prompt": "' + b"x" * 100_000 + b'"}', "at most 10000 characters"),
        (b'{"prompt": "a", "seed": -2}', "seed"),
        (b'{"prompt": "a", "seed": 18446744073709551616}', "seed"),
        (b'{"prompt": "a", "Prompt": "b"}', "prompt is given twice"),
        (b'{"prompt": "a", "custom_id": true}', "custom_id"),
        (b'{"prompt": "a", "background": "reddish"}', "unknown colour 'reddish'"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_bad_row_is_named_and_the_next_one_read(tmp_path: Path, line: bytes, reason: str) -> None:
    file = write(tmp_path / "p.jsonl", line + b'\n{"prompt": "good"}\n')
    bad, good = read(file)
    assert isinstance(bad, BadRow)
    assert reason in bad.error
    assert len(bad.error) < 400
    assert bad.where == f"{file}:1"
    assert good == PromptRow(prompt="good")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    bad, good = read(write(tmp_path / "p.txt", b"\xf0\xfe\n caf\xc3\xa9\n"))
    assert isinstance(bad, BadRow)
    assert good == PromptRow(prompt="café")


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl", "parquet", "yaml"])
def test_missing_file(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match="no such prompt file"):
        read(tmp_path / f"p.{suffix}")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("p.csv", "text\nheart\n", "no column named prompt; columns: text"),
        ("p.csv", "", "no column named prompt"),
        ("p.csv", "Prompt, prompt\na,b", "has the column prompt twice"),
        ("p.csv", "prompt,colour,seeed\na,b,c", r"colour: no such setting; .* --keep-columns .* \(so are seeed\)"),
        ("p.csv", ",prompt\n0,a", "a column without a name"),
        ("p.json", "heart", "not JSON"),
        ("p.parquet", "heart", "cannot read"),
        ("p.yaml", "- heart", "not a grid"),
        ("p.yaml", "prompt: [", "cannot read"),
        ("p.yaml", "seed: 1\nprompt: [{red|blue} heart]", r"p\.yaml: line 2: .*'<scalar>'; put text with .* in quotes"),
        ("p.yaml", "prompt: a: b", r"p\.yaml: line 1: mapping values .*; put text with .* in quotes"),
        ("p.yaml", "prompt: " + "[" * 5000, "cannot read"),
        ("p.yaml", "!!python/object/apply:os.system [ls]", "cannot read"),
    ],
)
def test_file_of_another_kind(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read(write(tmp_path / name, text))


def test_directory_is_not_a_prompt_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").mkdir()
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "p.txt")


def test_a_file_or_folder_is_not_taken_for_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "p.xml").touch()
    with pytest.raises(InputError, match=r"p\.xml is a file, and prompts are read from \.txt, \.csv, "):
        read(tmp_path / "p.xml")
    with pytest.raises(InputError, match=r"is a folder: .* --init-image"):
        read(tmp_path)
    with pytest.raises(InputError, match=r"no such file: photo\.JPG"):
        read("photo.JPG")
    (tmp_path / "cat").touch()
    long = "a.b " * 2000
    assert read(tmp_path / "cat", "v1.5", long, "a\0.b")[1:3] == [PromptRow(prompt="v1.5"), PromptRow(prompt=long)]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_headers_are_read_as_people_write_them(tmp_path: Path, mark: str) -> None:
    header = mark.join(["Prompt", " Negative Prompt", "GUIDANCE-scale", "Custom Id"])
    file = write(tmp_path / "p.csv", f"{header}\n{mark.join(['a', 'b', '2', '7'])}\n{mark * 3}\n\n")
    row = PromptRow(prompt="a", negative_prompt="b", guidance_scale=2, custom_id="7")
    assert read(file) == [row]
    (tmp_path / "excel.csv").write_text(f"sep={mark}\nprompt{mark}seed\na{mark}1")
    assert read(tmp_path / "excel.csv") == [PromptRow(prompt="a", seed=1)]
    assert read("-", stdin=file.read_text()) == [row]
    assert read(write(tmp_path / "p.txt", file.read_text())) == [row]


def test_a_stray_quotation_mark_costs_its_row(tmp_path: Path) -> None:
    lines = ["prompt,seed", "a,1", '"b,2', "c,3", '"d, e",4', '"f "g"",5', 'h "i",6', '"j\nk",7', '"l', "m,8", "n,9,10"]
    file = write(tmp_path / "p.csv", "\n".join(lines))
    rows = list(read_rows([str(file)], io.StringIO()))
    bad = {int(row.where.rpartition(":")[2]): row.error for row in rows if isinstance(row, BadRow)}
    assert set(bad) == {3, 6, 10, 12}
    assert "stray quotation mark" in bad[3]
    assert bad[12].startswith("3 cells where the header has 2")
    prompts = [row.row.prompt for row in rows if isinstance(row, PlacedRow)]
    assert prompts == ["a", "c", "d, e", 'h "i"', "j\nk", "m"]


def test_a_stray_quotation_mark_in_a_large_table_takes_no_time(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", "prompt\n" + '"a\n' + "b\n" * 20_000)
    rows = list(read_rows([str(file)], io.StringIO()))
    assert [isinstance(row, BadRow) for row in rows[:3]] == [True, False, False]
    assert len(rows) == 20_001


def test_columns_are_kept_where_asked(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", "prompt,Colour,n\na,red,\n")
    assert list(read_rows([str(file)], io.StringIO(), keep_columns=True)) == [
        PlacedRow(f"{file}:2", PromptRow(prompt="a"), (("Colour", "red"), ("n", "")))
    ]


@pytest.mark.parametrize(
    "text", ['[{"prompt": "a", "custom_id": 7},\n "b"]', '[\n{"Prompt": "a", "custom_id": 7.0},\n"b"\n]\n']
)
def test_json_documents(tmp_path: Path, text: str) -> None:
    rows = [PromptRow(prompt="a", custom_id="7"), PromptRow(prompt="b")]
    assert read(write(tmp_path / "p.json", text)) == rows
    assert read("-", stdin=text) == rows


def test_json_objects_over_several_lines_are_no_prompts(tmp_path: Path) -> None:
    assert read("-", stdin='{\n  "prompt": "a"\n}\n') == [PromptRow(prompt="a")]
    assert read(write(tmp_path / "p.json", '{"prompt": "a"}\n{"prompt": "b"}\n')) == [
        PromptRow(prompt="a"),
        PromptRow(prompt="b"),
    ]
    assert read("-", stdin="{red|blue} heart\n[soft] light\n") == [
        PromptRow(prompt="{red|blue} heart"),
        PromptRow(prompt="[soft] light"),
    ]
    with pytest.raises(InputError, match="not JSON"):
        read("-", stdin='[{"prompt": "a"}')


def test_lines_with_options(tmp_path: Path) -> None:
    lines = [
        "# a comment",
        "a cat, it's late --n blurry, bad --s 30 --d 7 --l 1.5 --w 64 --h 32",
        '--prompt "a cat" --negative_prompt "bad, worse" --steps 30 --cfg_scale 2 --custom-id=one',
        "a man -- tall --",
    ]
    cat = PromptRow(
        prompt="a cat, it's late",
        negative_prompt="blurry, bad",
        steps=30,
        seed=7,
        guidance_scale=1.5,
        width=64,
        height=32,
    )
    web = PromptRow(prompt="a cat", negative_prompt="bad, worse", steps=30, guidance_scale=2, custom_id="one")
    rows = [cat, web, PromptRow(prompt="a man -- tall --")]
    assert read(write(tmp_path / "p.txt", "\n".join(lines))) == rows
    assert read("-", stdin="\n".join(lines)) == rows
    assert read(lines[1]) == [cat]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a cat --ar 16:9", "--ar: no such option of a line of text; there are --n, --w"),
        ("a cat --step 3", "did you mean steps?"),
        ("a cat --n", "--n needs a value"),
        ('--prompt "a cat" --negative_prompt', "--negative_prompt needs a value"),
        ('--prompt "a cat" --steps ""', "--steps needs a value"),
        ("a cat --l 3 --g 4", "--g: guidance_scale is given twice"),
        ('--prompt "a cat', "a quotation mark is not closed"),
        ("--steps 3", "prompt: is missing"),
        ("a cat --s many", "steps: must be a whole number"),
    ],
)
def test_lines_with_options_that_are_not_understood(line: str, reason: str) -> None:
    (row,) = read(line)
    assert isinstance(row, BadRow)
    assert reason in row.error


def test_an_empty_negative_prompt_of_a_web_uis_line_is_none() -> None:
    assert read('--prompt "a cat" --negative_prompt "" --steps 4') == [
        PromptRow(prompt="a cat", negative_prompt="", steps=4)
    ]


def test_a_header_of_one_column_is_no_prompt(tmp_path: Path) -> None:
    rows = [PromptRow(prompt="a, b"), PromptRow(prompt="prompt")]
    assert read("-", stdin="Prompt\na, b\nprompt\n") == rows
    assert read(write(tmp_path / "p.txt", "\nprompt\na, b\nprompt\n")) == rows


def test_what_is_wrong_is_said_in_our_words(tmp_path: Path) -> None:
    (size,) = read("-", stdin='{"prompt": "a", "size": "64*64"}')
    assert isinstance(size, BadRow)
    assert size.error == "size: '64*64' is neither a number of pixels nor WIDTHxHEIGHT, as in 128x96"
    (both,) = read("-", stdin='{"prompt": "a", "size": "64", "width": 128}')
    assert isinstance(both, BadRow)
    assert both.error == "size: width or height is given, too: leave one of them out"
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (encoded,) = read(tmp_path / "latin.txt")
    assert isinstance(encoded, BadRow)
    assert "prompt: is not written in UTF-8: save it so" in encoded.error


JOINED = ("\u0645\u06cc\u200c\u062e", "\U0001f468\u200d\U0001f469 1")  # of Persian, and an emoji of two


@pytest.mark.parametrize("name", ["猫 7", "été", *JOINED, "#1", "a", "x" * 120, 7])
def test_ids_in_any_script(name: object) -> None:
    (row,) = read("-", stdin=json.dumps({"prompt": "a", "custom_id": name}))
    assert row == PromptRow(prompt="a", custom_id=str(name))


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", ".a", "-a", " a", "a ", "a.", "x" * 121, "a\nb", "a\u200bb", "c:d"]
)
def test_names_that_cannot_be_ids(name: str) -> None:
    (row,) = read("-", stdin=json.dumps({"prompt": "a", "custom_id": name}))
    assert isinstance(row, BadRow)
    assert "custom_id: write up to 120" in row.error


def test_nothing_is_given_twice(tmp_path: Path) -> None:
    twice = '{"prompt": "a", "seed": 1, "seed": 2}'
    rows = [read(write(tmp_path / "p.jsonl", f'{twice}\n{{"prompt": "b"}}\n')), read("-", stdin=f"{twice}\nb\n")]
    rows.append(read(write(tmp_path / "p.json", f'[{twice}, {{"prompt": "b"}}]')))
    for bad, good in rows:
        assert isinstance(bad, BadRow)
        assert bad.error == "seed is given twice"
        assert good == PromptRow(prompt="b")
    with pytest.raises(InputError, match=r"prompt is given twice.* line 1"):
        read(write(tmp_path / "p.yaml", "prompt: [a]\nprompt: [b]\n"))


def test_numbers_are_what_they_look_like(tmp_path: Path) -> None:
    grid = write(tmp_path / "p.yaml", "prompt: a\nseed: [010, 7]\n")
    assert read(grid) == [PromptRow(prompt="a", seed=10), PromptRow(prompt="a", seed=7)]
    for text in ("steps: yes", "steps: 1:30", "seed: 0x10", "guidance_scale: true"):
        (row,) = read(write(tmp_path / "p.yaml", f"prompt: a\n{text}\n"))
        assert isinstance(row, BadRow), text
        assert "must be a" in row.error
    (row,) = read("-", stdin='{"prompt": "a", "seed": 9007199254740993.0}')
    assert isinstance(row, BadRow)
    assert "has lost its last digits" in row.error


def test_an_empty_negative_prompt_is_one_but_in_tables(tmp_path: Path) -> None:
    """It stands against the command line's; in a table it may just be a column that other rows fill."""
    row = {"prompt": "a", "negative_prompt": "", "seed": ""}
    own = PromptRow(prompt="a", negative_prompt="")
    assert read("-", stdin=json.dumps(row)) == [own]
    assert own.given() == {"prompt": "a", "negative_prompt": ""}
    assert row_id(own) == row_id(PromptRow(prompt="a"))
    (cell,) = read(write(tmp_path / "p.csv", "prompt,Negative Prompt,seed\na,,\n"))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "p.parquet")
    for found in (cell, *read(tmp_path / "p.parquet")):
        assert isinstance(found, PromptRow)
        assert found.given() == {"prompt": "a"}


def test_blank_lines_before_a_header(tmp_path: Path) -> None:
    for name in ("p.csv", "p.txt"):
        file = write(tmp_path / name, "\n\nprompt,seed\na,x\n")
        (row,) = read(file)
        assert isinstance(row, BadRow)
        assert row.where.endswith(f"{name}:4")


@pytest.mark.parametrize("name", ["data:image/png;base64," + "A" * 5000, "a**b.png", "a\0*.png", "x/" * 3000])
def test_a_name_that_no_file_can_have_costs_its_row_at_most(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": "a", "init_image": name, "lora": name}, {"prompt": "b"}]
    found = read(write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows))))
    assert [each.prompt for each in found if isinstance(each, PromptRow)] == ["a", "b"]
    place = located(name)
    assert place == name
    with pytest.raises(ModelError, match="no LoRA at"):
        find_lora(name)
    with pytest.raises(ValueError, match=r"a picture itself|cannot read|no pictures in"):
        PictureSets(PictureSettings(init_image=name)).check()


def test_what_goes_along_is_text_that_files_can_hold(tmp_path: Path) -> None:
    day = datetime.date(2024, 2, 29)
    values = {"prompt": ["a"], "day": [day], "tags": [["x", "y"]], "size_kb": [Decimal("1.50")]}
    pyarrow.parquet.write_table(pyarrow.table(values), tmp_path / "p.parquet")
    (row,) = read_rows([str(tmp_path / "p.parquet")], io.StringIO(), keep_columns=True)
    assert isinstance(row, PlacedRow)
    assert dict(row.columns) == {"day": "2024-02-29", "tags": '["x", "y"]', "size_kb": "1.50"}
    file = write(tmp_path / "p.csv", b"prompt,note\na,caf\xe9\nb,x\n")
    bad, good = read_rows([str(file)], io.StringIO(), keep_columns=True)
    assert bad == BadRow(f"{file}:2", "note: is not written in UTF-8: save it so")
    assert isinstance(good, PlacedRow)
    with pytest.raises(InputError, match="its header is not written in UTF-8"):
        list(read_rows([str(write(tmp_path / "q.csv", b"prompt,caf\xe9\na,b\n"))], io.StringIO(), keep_columns=True))


def test_a_size_in_a_table_with_gaps(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "p.csv", "prompt,size\na,64.0\nb,\nc,64.5\n"))
    assert rows[:2] == [PromptRow(prompt="a", width=64, height=64), PromptRow(prompt="b")]
    assert isinstance(rows[2], BadRow)


def test_a_file_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "p.txt", "a\n")
    assert read("~/p.txt") == [PromptRow(prompt="a")]
    assert HomePath(path_type=Path).convert("~/out", None, None) == tmp_path / "out"
    assert HomePath(path_type=Path).convert("out", None, None) == Path("out")
