"""Names in any script, seeds to the last, columns that go along, faults told once, and rows that come slowly."""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from diffaccel.batch.arrivals import arriving
from diffaccel.batch.drawn_seeds import DrawnSeeds
from diffaccel.batch.ledger import Ledger
from diffaccel.batch.names import MAX_STEM, as_id, check_id, file_stem
from diffaccel.batch.store import read_manifest
from diffaccel.cli import main
from diffaccel.cli.said import Said, told_once
from diffaccel.cli.summary import print_survey
from diffaccel.cli.survey import Survey


def generate(folder: Path, *arguments: object, model: Path, stdin: str | None = None) -> Result:
    command = ["generate", "--model", model, "--output", folder / "out", "--steps", 2, *arguments]
    return CliRunner().invoke(main, [str(argument) for argument in command], input=stdin)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a-b_c.d", "a-b_c.d"),
        ("猫 1", "%E7%8C%AB%201"),
        ("50%", "50%25"),
        ("a%20b", "a%2520b"),
        ("Con", "%43on"),
        ("aux.2", "%61ux.2"),
        ("console", "console"),
    ],
)
def test_file_names_are_percent_encoded(name: str, stem: str) -> None:
    assert (check_id(name), file_stem(name)) == (name, stem)


def test_long_file_names_are_cut_and_stay_apart() -> None:
    names = ["猫" * 100, "猫" * 101, "é" * 120]
    stems = {file_stem(name) for name in names}
    assert len(stems) == 3
    assert all(len(stem) <= MAX_STEM and stem.isascii() for stem in stems)
    assert check_id(as_id("../a: b? ")) == "a- b"
    assert as_id("\u0915\u093f") != as_id("\u0915\u0940")
    assert as_id("cafe\u0301 \u2764\ufe0f") == "caf\u00e9"


def test_ids_of_any_script_and_whole_numbers(tiny_sd: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "custom_id": "猫 é"}, {"prompt": "b", "custom_id": 7}, {"prompt": "c", "seed": 2**64 - 1}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for skipped in (0, 3):
        result = generate(tmp_path, tmp_path / "p.jsonl", "--format", "json", "--parquet", "--tar", 9, model=tiny_sd)
        assert (result.exit_code, json.loads(result.stdout)["skipped"]) == (0, skipped)
    assert {path.name for path in (tmp_path / "out").glob("*.png")} >= {"%E7%8C%AB%20%C3%A9.png", "7.png"}
    assert "%25E7%258C%25AB%2520%25C3%25A9.png" in (tmp_path / "out" / "index.html").read_text()
    table = pyarrow.parquet.read_table(tmp_path / "out" / "pictures.parquet").to_pylist()
    assert [row["id"] for row in table[:2]] == ["猫 é", "7"]
    assert table[2]["seed"] == 2**64 - 1
    again = generate(tmp_path, "--from", tmp_path / "out" / "%E7%8C%AB%20%C3%A9.png", "--overwrite", model=tiny_sd)
    assert again.exit_code == 0, again.output


def test_a_seed_is_drawn_recorded_and_kept_by_a_run_that_goes_on(tiny_sd: Path, tmp_path: Path) -> None:
    arguments = ("a", "b", "a", "--seed", -1, "--format", "json")
    seeds = []
    for more, done in (((), 2), ((), 0), (("--overwrite",), 2)):
        result = generate(tmp_path, *arguments, *more, model=tiny_sd)
        assert json.loads(result.stdout)["done"] == done
        seeds.append({name: record.settings["seed"] for name, record in read_manifest(tmp_path / "out").items()})
    assert seeds[0] == seeds[1]
    assert len({*seeds[0].values(), *seeds[2].values()}) == 4


def test_a_repeated_row_and_all_shards_draw_one_seed(tmp_path: Path) -> None:
    alone, parts = DrawnSeeds(tmp_path, anew=False), [DrawnSeeds(tmp_path, anew=False, part=(k, 2)) for k in (1, 2)]
    assert alone("a") == alone("a")
    assert not list(tmp_path.iterdir())
    assert parts[0]("a") == parts[1]("a")
    assert len({alone("a"), alone("b"), parts[0]("a"), parts[0]("b")}) == 4


def test_parts_that_begin_anew_draw_one_seed_too_each_time_another(tmp_path: Path) -> None:
    def seed(index: int, count: int = 2, anew: bool = True) -> int:
        return DrawnSeeds(tmp_path, anew=anew, part=(index, count))("a")

    first, again = seed(1, anew=False), [seed(1), seed(2), seed(2, anew=False)]
    later, of_three = [seed(2), seed(1)], [seed(2, 3), seed(1, 3), seed(3, 3)]
    assert [len(set(each)) for each in (again, later, of_three)] == [1, 1, 1]
    assert len({first, again[0], later[0], of_three[0]}) == 4


@pytest.mark.slow
def test_shards_that_begin_anew_are_packed_together(tiny_sd: Path, tmp_path: Path) -> None:
    command = ("a", "b", "--seed", -1, "--batch-size", 1, "--tar", 9, "--overwrite", "--shard")
    for _ in range(2):
        for shard in ("1/2", "2/2"):
            result = generate(tmp_path, *command, shard, model=tiny_sd)
            assert result.exit_code == 0, result.output
        assert "not there yet" not in result.stderr
        assert (tmp_path / "out" / "tars" / "00000.tar").exists()


def test_columns_go_along_to_manifest_and_parquet(tiny_sd: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,Animal,Id\na,cat,x\na,dog,y\n")
    refused = generate(tmp_path, tmp_path / "p.csv", model=tiny_sd)
    assert (refused.exit_code, refused.stderr.count("no such setting")) == (2, 1)
    assert "--keep-columns" in refused.stderr
    assert generate(tmp_path, tmp_path / "p.csv", "--keep-columns", "--parquet", model=tiny_sd).exit_code == 0
    records = read_manifest(tmp_path / "out").values()
    assert sorted(record.columns["Animal"] for record in records) == ["cat", "dog"]
    table = pyarrow.parquet.read_table(tmp_path / "out" / "pictures.parquet")
    assert table.column("Animal").to_pylist() == ["cat", "dog"]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == table.column_names
    rows = [{"prompt": "a", "n": 1, "flag": True, "image": "x.jpg", "more": {"b": [1]}}, {"prompt": "b", "n": 2.5}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = generate(tmp_path, tmp_path / "p.jsonl", "--keep-columns", "--parquet", model=tiny_sd)
    assert result.exit_code == 0, result.output
    table = pyarrow.parquet.read_table(tmp_path / "out" / "pictures.parquet").select(
        ["n", "flag", "column_image", "more"]
    )
    assert table.to_pylist() == [
        {"n": 1.0, "flag": True, "column_image": "x.jpg", "more": '{"b": [1]}'},
        {"n": 2.5, "flag": None, "column_image": None, "more": None},
    ]


@pytest.mark.parametrize("mode", [[], ["--dry-run"]])
def test_one_fault_of_many_rows_is_told_once(tiny_sd: Path, tmp_path: Path, mode: list[str]) -> None:
    rows = [json.dumps({"prompt": f"p{row}", "colour": "red"}) for row in range(300)]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    result = generate(tmp_path, tmp_path / "p.jsonl", *mode, model=tiny_sd)
    assert result.exit_code == 2
    assert result.stderr.count("no such setting") == 1
    assert "p.jsonl:1 and 299 more rows: colour: no such setting" in result.stderr
    (tmp_path / "p.jsonl").write_text("\n".join([*rows, '{"prompt": "good"}']))
    result = generate(tmp_path, tmp_path / "p.jsonl", *mode, model=tiny_sd)
    assert (result.exit_code, result.stderr.count("no such setting")) == (3, 1)


def test_what_rows_share_that_come_one_by_one_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    told: set[str] = set()
    tell = sys.modules["diffaccel.cli.generate"]._tell
    tell([("-:1", "a fault")], told)
    tell([("-:2", "a fault"), ("-:3", "another"), ("-:4", "another")], told)
    assert capsys.readouterr().err == "-:1: a fault\n-:3 and 1 more row: another\n"


def test_what_there_is_to_say_lies_in_a_file_and_is_told_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffaccel.cli.said.BLOCK", 2)
    said, pairs = Said(), [(f"f:{row // 2}", f"fault {row % 3}") for row in range(7)]
    for number, (where, text) in enumerate(pairs):
        said.add(number, where, text)
    assert list(said) == list(said) == pairs
    assert list(told_once(said)) == list(told_once(pairs))
    assert next(told_once(said)) == "f:0 and 2 more rows: fault 0"
    said.dealt = [0, 1, 0, 0, 0, 0, 1]
    assert list(said) == [pairs[1], pairs[6]]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_what_a_dry_run_says_in_json_is_one_object(
    count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diffaccel.cli.summary.LINES", 2)
    said = Said()
    for number in range(count):
        said.add(number, f"f:{number}", "a note")
    survey = Survey(pictures=7, todo=5, duplicates=1, bad=[("f:9", "a fault")], notes=said)
    assert print_survey(SimpleNamespace(layout="json"), survey) == 1  # type: ignore[arg-type]
    found = json.loads(capsys.readouterr().out)
    assert found["notes"] == [{"where": f"f:{number}", "note": "a note"} for number in range(count)]
    assert (found["jobs"], found["bad"], found["bad_rows"]) == (7, 1, [{"where": "f:9", "error": "a fault"}])


@pytest.mark.slow
def test_a_dry_run_counts_as_a_run_does_in_every_shard(tiny_sd: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{row}", "steps": 1 + row % 3, "custom_id": str(row % 13)} for row in range(17)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    total = 0
    for index in (1, 2, 3):
        options = (tmp_path / "p.jsonl", "--shard", f"{index}/3", "--batch-size", 2, "--format", "json")
        dry = json.loads(generate(tmp_path, *options, "--dry-run", model=tiny_sd).stdout)
        ran = json.loads(generate(tmp_path, *options, model=tiny_sd).stdout)
        assert (dry["todo"], dry["bad"]) == (ran["done"], ran["failed"])
        again = json.loads(generate(tmp_path, *options, "--dry-run", model=tiny_sd).stdout)
        assert (again["jobs"], again["todo"]) == (dry["jobs"], 0)
        total += dry["jobs"]
    assert total == 13


def test_the_ledger_tells_new_from_repeated_from_other() -> None:
    ledger = Ledger()
    entries = [("a", 1, "p:1"), ("A", 1, "p:2"), ("a", 2, "q:3"), ("b", 1, "command line")]
    assert [ledger.enter(*entry) for entry in entries] == ["new", "again", "other", "new"]
    assert (ledger.place("A"), ledger.place("b"), len(ledger)) == ("p:1", "command line", 2)
    files = [
        (name, 1, f"p:{k}")
        for k, name in enumerate(["Stra\u00dfe", "Strasse", "\u00c9", "\u00e9", "e\u0301", "E\u0301"])
    ]
    assert [ledger.enter(*entry) for entry in files] == [*["new"] * 5, "again"]
    assert ledger.place("e\u0301") == "p:4"


def test_rows_may_come_from_more_files_than_sixteen_bits_count() -> None:
    ledger = Ledger()
    for number in range(2**16 + 2):  # captions, one in a file of its own
        assert ledger.enter(f"p{number}", 1, f"{number}.txt:1") == "new"
    assert (ledger.place("p0"), ledger.place("p65537")) == ("0.txt:1", "65537.txt:1")


def test_rows_that_come_together_are_taken_together() -> None:
    gate = threading.Event()

    def rows() -> Iterator[int]:
        yield from (1, 2, 3)
        gate.wait(10)
        yield 4
        raise ValueError("a fault")

    found = arriving(rows(), linger=0.05)
    assert next(found) == [1, 2, 3]
    gate.set()
    assert next(found) == [4]
    with pytest.raises(ValueError, match="a fault"):
        next(found)
    assert list(arriving(iter(range(5)), linger=1, most=2)) == [[0, 1], [2, 3], [4]]


def test_rows_that_follow_steadily_do_not_keep_the_first_waiting() -> None:
    gate = threading.Event()

    def rows() -> Iterator[int]:
        for row in itertools.count():
            yield row
            if gate.wait(0.01):
                return

    found = arriving(rows(), linger=10, longest=0.1)
    first = next(found)
    gate.set()
    assert first == list(range(len(first)))
    assert len(first) < 100
    rest = [row for rows in found for row in rows]
    assert rest == list(range(len(first), len(first) + len(rest)))


@pytest.mark.slow
def test_standard_input_is_drawn_as_it_comes(tiny_sd: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-m", "diffaccel", "generate", "-", "--model", str(tiny_sd), "-o", str(out)]
    process = subprocess.Popen([*words, "--steps", "1"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdin is not None
    try:
        for count, line in enumerate(["a red heart", '{"prompt": "a panda", "custom_id": 7}'], 1):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            deadline = time.monotonic() + 120
            while len(list(out.glob("*.png"))) < count:
                assert time.monotonic() < deadline, "what was written is not drawn before the input ends"
                time.sleep(0.05)
        process.stdin.write("a cat --zz 3\n")
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 3
    assert "-:3: --zz: no such option" in errors
    assert {path.name for path in out.iterdir()} >= {"7.png", "index.html", "manifest.jsonl"}
