"""The contact sheet shows everything, needs nothing from outside, and treats prompts as text."""

import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from diffaccel.batch import sheet
from diffaccel.batch.store import Record

EVIL = """<script>alert("1")</script><img src=x onerror='alert(2)'> & "quotes" """


class Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def record(folder: Path, identifier: str, **settings: object) -> Record:
    Image.new("RGB", (32, 24), "red").save(folder / f"{identifier}.png")
    return Record(identifier, "done", "f", f"{identifier}.png", 1, 0.5, settings={"steps": 4, **settings})


def tags(path: Path) -> list[tuple[str, dict[str, str | None]]]:
    collector = Collector()
    collector.feed(path.read_text())
    return collector.tags


def test_every_picture_is_shown_with_what_is_its_own(tmp_path: Path) -> None:
    records = [record(tmp_path, "a", prompt="heart", seed=1), record(tmp_path, "b", prompt="panda", seed=2)]
    page = sheet.write_sheet(tmp_path, records).read_text()
    assert "2 pictures" in page
    assert page.count("<figure data-text") == 2
    assert "<span>seed 1</span>" in page
    assert "<p>steps 4</p>" in page
    assert "<span>steps 4</span>" not in page


def test_prompts_are_text(tmp_path: Path) -> None:
    path = sheet.write_sheet(tmp_path, [record(tmp_path, "a", prompt=EVIL), Record("b", "failed", error=EVIL)])
    found = tags(path)
    assert [tag for tag, _ in found].count("script") == 1
    assert not any("onerror" in attributes for _, attributes in found)
    assert any(attributes.get("alt") == EVIL for _, attributes in found)


def test_page_needs_no_other_file(tmp_path: Path) -> None:
    path = sheet.write_sheet(tmp_path, [record(tmp_path, "a", prompt="p")])
    sources = [attributes["src"] or "" for _, attributes in tags(path) if attributes.get("src")]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?://|@import|url\(", path.read_text())


def test_failures_are_shown_with_their_reason(tmp_path: Path) -> None:
    page = sheet.write_sheet(tmp_path, [Record("p.csv:3", "failed", error="no such colour")]).read_text()
    assert "0 pictures, 1 failed" in page
    assert "no such colour" in page


def test_damaged_pictures_are_said_and_the_others_shown(tmp_path: Path) -> None:
    records = [record(tmp_path, name, prompt="p") for name in "abcd"]
    whole = (tmp_path / "a.png").read_bytes()
    for name, content in {"a": b"", "b": b"nonsense", "c": whole[:60]}.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    page = sheet.write_sheet(tmp_path, records).read_text()
    assert page.count("The file is damaged") == 3
    assert page.count("data:image/webp") == 1


def test_missing_pictures_are_left_out(tmp_path: Path) -> None:
    kept, gone = record(tmp_path, "a", prompt="p"), record(tmp_path, "b", prompt="q")
    (tmp_path / "b.png").unlink()
    assert "1 picture<" in sheet.write_sheet(tmp_path, [kept, gone]).read_text()


def test_long_runs_show_the_first_pictures(tmp_path: Path, monkeypatch: object) -> None:
    first = record(tmp_path, "a", prompt="p")
    path = sheet.write_sheet(tmp_path, [first] * (sheet.MAX_PICTURES + 1))
    assert path.read_text().count("<figure data-text") == sheet.MAX_PICTURES
    assert "The first 1,000 of 1,001 pictures." in path.read_text()
