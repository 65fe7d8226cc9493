"""The folder: whole files only, one run at a time, and a manifest that survives being cut short."""

import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffaccel.batch import store
from diffaccel.batch.jobs import Job
from diffaccel.batch.store import (
    PARQUET,
    TARS,
    OutputFolder,
    Record,
    StoreError,
    check_output,
    check_writable,
    read_manifest,
    to_render,
    with_other_columns,
)
from diffaccel.config.files import write_atomically

JOB = Job(id="a", prompt="p", seed=1, model="m", dtype="float32")
DONE = Record("a", "done", JOB.fingerprint, "a.png", 3, 0.5, settings={"prompt": "p"})


def test_write_replaces_whole_files(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"one")
    write_atomically(tmp_path / "a", b"two")
    with pytest.raises(FileNotFoundError) as missing:
        write_atomically(tmp_path / "none" / "b", b"one")
    assert missing.value.filename == str(tmp_path / "none" / "b")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"two")]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "a", b"one")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a", b"two")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"one")]


def test_manifest_keeps_the_latest_record_of_each_job(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out") as folder:
        folder.append([Record("a", "failed", error="no")])
        folder.append([Record("b", "failed", error="no")])
        folder.append([DONE])
    assert list(read_manifest(tmp_path / "out").values()) == [Record("b", "failed", error="no"), DONE]


def test_torn_line_is_passed_over_and_closed(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as folder:
        folder.append([DONE])
        folder.append([Record("b", "failed", error="no")])
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    with OutputFolder(tmp_path) as folder:
        folder.append([Record("c", "failed", error="no")])
    assert list(read_manifest(tmp_path)) == ["a", "c"]


def test_lines_of_others_in_a_manifest_are_passed_over(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as folder:
        folder.append([DONE])
    with (tmp_path / "manifest.jsonl").open("a") as manifest:
        for line in (
            "[1]",
            '{"id": [], "status": "done"}',
            '{"id": "b", "status": "done", "time": "now"}',
            "[" * 99_999,
        ):
            manifest.write(line + "\n")
    assert list(read_manifest(tmp_path)) == ["a"]


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest-1-of-2.jsonl").mkdir()
    with pytest.raises(StoreError, match=r"cannot read .*manifest-1-of-2.jsonl: Is a directory"):
        read_manifest(tmp_path)


def test_links_are_replaced_and_what_they_point_at_is_kept(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    for target in ("precious", "a.png", "nowhere"):
        (tmp_path / "a.png").symlink_to(target)
        with OutputFolder(tmp_path) as folder:
            folder.append([DONE])
            assert to_render([JOB], tmp_path) == (JOB,)
            folder.write("a.png", b"png")
        assert to_render([JOB], tmp_path) == ()
        (tmp_path / "a.png").unlink()
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compare").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # as of a process that is gone
        patch.setattr(store.os, "fsync", lambda _: 1 / 0)
        for name in ("a.png", "compare/a.png"):
            with pytest.raises(ZeroDivisionError):
                write_atomically(tmp_path / name, b"half")
    assert len(list(tmp_path.rglob(".*.tmp"))) == 2
    with OutputFolder(tmp_path):
        assert not list(tmp_path.rglob(".*.tmp"))


def test_leftovers_of_killed_processes_are_removed_at_the_end_of_their_run(tmp_path: Path) -> None:
    leftover = tmp_path / f".a.png.{'a' * 32}.tmp"
    with OutputFolder(tmp_path):
        leftover.write_bytes(b"half")
        with OutputFolder(tmp_path, guarded=False):
            pass
        assert leftover.exists()
    assert not leftover.exists()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    names = (".editor.tmp", ".a.png.123.tmp", "notes/.draft.tmp", f"notes/.b.{'a' * 32}.tmp")
    (tmp_path / "notes").mkdir()
    for name in names:
        (tmp_path / name).touch()
    with OutputFolder(tmp_path):
        pass
    assert all((tmp_path / name).exists() for name in names)


def test_a_page_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("my site")
    with pytest.raises(StoreError, match=r"holds index.html, which is not of an earlier run: use another folder"):
        check_output(tmp_path)
    (tmp_path / "manifest-1-of-2.jsonl").touch()
    check_output(tmp_path)


@pytest.mark.parametrize("name", [PARQUET, TARS])
def test_packed_pictures_of_somebody_else_are_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    check_output(tmp_path)
    with pytest.raises(StoreError, match=rf"holds {re.escape(name)}, which is not of an earlier run"):
        check_output(tmp_path, [name])


@pytest.mark.parametrize("text", ['{"audio": "a.wav"}\n', "[\n", "1\n"])
def test_nothing_is_added_to_a_manifest_of_somebody_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.jsonl").write_text(text)
    with pytest.raises(StoreError, match=r"holds manifest.jsonl, which is not of an earlier run"):
        check_output(tmp_path)


@pytest.mark.parametrize("line", ["", '{"i', '{"id": "a", "st', Record("a", "failed").line()])
def test_a_manifest_of_an_earlier_run_may_be_cut_short(tmp_path: Path, line: str) -> None:
    (tmp_path / "manifest.jsonl").write_text(line)
    check_output(tmp_path)


def test_processes_of_a_run_share_its_manifest_and_mend_a_line_that_one_left_torn(tmp_path: Path) -> None:
    ids = [f"j{k}" for k in range(6)]
    with OutputFolder(tmp_path, (1, 2)):
        workers = [OutputFolder(tmp_path, (1, 2), guarded=False) for _ in range(2)]
        with workers[0], workers[1]:
            for k, name in enumerate(ids):
                workers[k % 2].append([Record(name, "failed", {})])
                if k == 2:
                    with (tmp_path / "manifest-1-of-2.jsonl").open("ab") as torn:
                        torn.write(b'{"id": "j')
    assert list(read_manifest(tmp_path)) == ids
    assert {path.name for path in tmp_path.iterdir()} <= {"manifest-1-of-2.jsonl", ".lock-1-of-2", ".lock"}


@pytest.mark.parametrize("step", [0.01, 0.0, -3600.0])
def test_the_latest_record_counts_in_whatever_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """A run in shards after one over the whole folder, and the other way round, whatever the clocks say."""
    monkeypatch.setattr(store, "time", SimpleNamespace(time=itertools.count(1e9, step).__next__))
    for shard, status in [(None, "failed"), ((1, 2), "done"), ((1, 4), "failed"), (None, "done"), ((1, 2), "failed")]:
        with OutputFolder(tmp_path, shard) as folder:
            folder.append([Record("a", status)])  # type: ignore[arg-type]
        assert read_manifest(tmp_path)["a"].status == status


def test_shards_that_start_together_do_not_stand_in_each_others_way(tmp_path: Path) -> None:
    def enter(index: int) -> None:
        for _ in range(30):
            with OutputFolder(tmp_path, (index, 8)):
                pass

    with ThreadPoolExecutor(8) as shards:
        list(shards.map(enter, range(1, 9)))


def test_second_run_is_refused(tmp_path: Path) -> None:
    with OutputFolder(tmp_path), pytest.raises(StoreError, match="another run holds"), OutputFolder(tmp_path):
        pass
    with OutputFolder(tmp_path):
        pass


@pytest.mark.slow
def test_shards_share_a_folder_but_not_with_a_whole_run(tmp_path: Path) -> None:
    with OutputFolder(tmp_path, (1, 2)) as first, OutputFolder(tmp_path, (2, 2)) as second:
        first.append([DONE])
        second.append([Record("b", "failed", error="no")])
        with pytest.raises(StoreError, match="another run holds"), OutputFolder(tmp_path):
            pass
        with pytest.raises(StoreError, match="another run holds"), OutputFolder(tmp_path, (2, 2)):
            pass
    assert set(read_manifest(tmp_path)) == {"a", "b"}
    with OutputFolder(tmp_path), pytest.raises(StoreError, match="another run holds"), OutputFolder(tmp_path, (1, 2)):
        pass


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    for place in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(StoreError, match="out is a file"):
            check_writable(place)
        with pytest.raises(StoreError, match="cannot write to"), OutputFolder(place):
            pass


def test_check_creates_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deeper")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("record", "content", "done"),
    [
        (DONE, b"png", True),
        (DONE, b"pn", False),
        (DONE, None, False),
        (Record("a", "done", "other", "a.png", 3), b"png", False),
        (Record("a", "failed", JOB.fingerprint, error="no"), b"png", False),
    ],
)
def test_only_whole_pictures_of_these_settings_count(
    tmp_path: Path, record: Record, content: bytes | None, done: bool
) -> None:
    with OutputFolder(tmp_path) as folder:
        folder.append([record])
        if content is not None:
            folder.write("a.png", content)
    assert to_render([JOB], tmp_path) == (() if done else (JOB,))
    assert to_render([JOB], tmp_path, suffix="jpg") == (JOB,)
    assert to_render([JOB], tmp_path, overwrite=True) == (JOB,)
    assert to_render([JOB], tmp_path, retry_failed=True) == ((JOB,) if record.status == "failed" else ())


def test_what_failed_is_tried_again_in_a_run_that_starts_over(tmp_path: Path) -> None:
    other = Job(id="b", prompt="p", seed=1, model="m", dtype="float32")
    with OutputFolder(tmp_path) as folder:
        folder.append([Record("b", "failed", other.fingerprint, error="no")])
    assert to_render([JOB, other], tmp_path, overwrite=True, retry_failed=True) == (other,)


def test_columns_that_changed_are_recorded_anew(tmp_path: Path) -> None:
    job = replace(JOB, columns=(("label", "new"),))
    with OutputFolder(tmp_path) as folder:
        folder.write("a.png", b"abc")
        folder.append([replace(DONE, columns={"label": "old"})])
        changed = with_other_columns([job, replace(job, id="b")], read_manifest(tmp_path), tmp_path, "png")
        assert changed == [replace(DONE, columns={"label": "new"})]
        folder.append(changed)
    assert not with_other_columns([job], read_manifest(tmp_path), tmp_path, "png")


def test_a_name_that_is_too_long_is_told(tmp_path: Path) -> None:
    check_writable(tmp_path / ("a" * 300))
    with pytest.raises(StoreError, match="File name too long"), OutputFolder(tmp_path / ("a" * 300)):
        pass


def test_blackened_pictures_count_where_they_are_allowed(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as folder:
        folder.write("a.png", b"abc")
        folder.append([replace(DONE, flagged=True)])
    assert to_render([JOB], tmp_path) == ()
    assert to_render([JOB], tmp_path, allow_flagged=False) == (JOB,)
