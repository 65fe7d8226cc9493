"""Figures that pages tell in their own words and tables are those of the published measurements."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffaccel.cli.planning import DEFAULT_CACHE
from diffaccel.methods import parse

ROOT = Path(__file__).parents[1]


def measured(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())


def batches() -> Iterator[str]:
    m = measured("batch")

    def accuracy(name: str) -> str:
        return f"{100 * m[f'{name} top-1']:.1f} % | {100 * m[f'{name} top-5']:.1f} % |"

    yield f"| without caching | {m['plain ratio']:.2f} | {accuracy('plain')}"
    yield f"| `--cache deepcache:interval=3,forecast=taylor(1)` | {m['DeepCache ratio']:.2f} |"
    yield f"held=difference` | {m['cached ratio']:.2f} | {accuracy('cached')}"
    yield f"| without caching, `--dtype bfloat16` | {m['bfloat16 ratio']:.2f} | {accuracy('bfloat16')}"
    yield f"| both, `--dtype bfloat16` | {m['cached bfloat16 ratio']:.2f} | {accuracy('cached bfloat16')}"
    yield f"first call of the network pass {m['start-up seconds']:.1f} seconds"


def live() -> Iterator[str]:
    bundled, stub = (measured("live")[name] for name in ("bundled", "stub"))
    yield f"| pictures a second | {bundled['fps']:.1f} | {stub['fps']:.1f} |"
    for label, name in (("showing its picture", "latency"), ("the network takes no part", "added")):
        cells = (f"{part[f'{name} median ms']:.0f} / {part[f'{name} p95 ms']:.0f} ms" for part in (bundled, stub))
        yield f"{label}, median / p95 | {' | '.join(cells)} |"
    for cache, words in (("cache 1", "no cache"), ("cache 4", "cache interval 4")):
        rows = measured("tick")[cache]
        for name, label in (("before", f"float32, before, {words}"), ("here", f"bfloat16, {words}")):
            row = rows[name]
            times = " | ".join(
                f"{row[f'{part} ms']:.1f}" for part in ("network", "autoencoder", "JPEG", "rest", "tick")
            )
            faster = f" ({rows['before']['tick ms'] / row['tick ms']:.2f} x)" if name == "here" else ""
            yield f"| {label} | {times} | {row['frames/s']:.1f}{faster} | {100 * row['of ceiling']:.0f} % |"


def streaming() -> Iterator[str]:
    stream, sd15 = measured("stream"), measured("stream-sd15")["sd15"]
    tables = [*(stream["guidance"][f"frame buffer {n}"] for n in (1, 8)), *(sd15[f"frame buffer {n}"] for n in (1, 4))]
    for name, label in (("one-time", "one-time negative"), ("self", "self-negative")):
        cells = (f"{table[name]['ratio']:.2f} ({table[name]['ceiling']:.2f})" for table in tables)
        yield f"| {label} | {' | '.join(cells)} |"
    two, four = (f"{stream['batch'][f'{n} stages']['ratio']:.1f}" for n in (2, 4))
    yield f"{four} times the frame rate at four stages, {two} at two"
    alone, *together = (f"{stream['buffer'][f'{n} frames']['ms']:.0f}" for n in (1, 2, 4, 8, 16))
    yield f"{alone} ms a frame alone, {', '.join(together[:-1])} and {together[-1]} ms in buffers of 2, 4, 8 and 16"
    small, large = (measured("streams-batches")[part] for part in ("batches", "sd15"))
    for rows in (2, 4, 8):
        one, other = small[f"{rows} rows"], large[f"{rows} rows"]
        own = f"{one['ms a row']:.1f} ms | {100 * one['of ceiling']:.0f} %"
        yield f"| {rows} | {own} | {other['ms a row'] / 1000:.2f} s | {100 * other['of ceiling']:.0f} % |"
    shares = (f"{100 * part['8 rows']['ms a row'] / part['1 rows']['ms a row']:.0f} %" for part in (small, large))
    yield "costs {} of one alone where networks are small, and {} where they are large".format(*shares)
    for label, speed in CACHES.items():
        own = stream["cache"]["speed"][speed]
        yield f"{label} | {own['network ratio']:.2f} | {own['ratio']:.2f} |"


CACHES = {
    "| stage | 2 | 0 |": "stage, interval 2, branch 0",
    "| stage | 3 | 2 | Taylor(2)": "stage, interval 3, branch 2, Taylor(2)",
    "| stage | 4 | 3 | Taylor(2)": "stage, interval 4, branch 3, Taylor(2)",
    "| stage | by motion, 3 at most | 2 | Taylor(2)": "stage, by motion, branch 2, Taylor(2)",
    "| frame | 2 | 2 |": "frame, interval 2, branch 2",
}


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (page, words)
        for page, told in (("batch", batches), ("live", live), ("streaming", streaming))
        for words in told()
    ],
    ids=lambda value: value[:30],
)
def test_figures_are_those_that_were_measured(page: str, words: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text().replace("**", "")
    assert words in " ".join(text.split())


def test_token_reduction_on_emoji_sd() -> None:
    (table,) = measured("tokens-emoji")["emoji-sd"].values()
    found = {parse(name): row for name, row in table.items() if name.startswith("tokenreduction")}
    page = (ROOT / "docs" / "methods.md").read_text()
    rows = re.findall(
        r"^\| emoji-sd \| `(tokenreduction\S*)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE
    )
    assert len(rows) == len(found)
    for text, *told in rows:
        row = found[replace(parse(text), min_tokens=256)]
        assert told == [f"{1 / (1 - row['MACs saved']):.2f}", f"{row['PSNR']:.1f}", f"{row['SSIM']:.3f}"], text


FIRST = {
    "| `deepcache:interval=3,forecast=taylor(1)`, the default of `generate`": "deepcache:interval=3,forecast=taylor(1)",
    "| a profile that `diffaccel tune` found": "profile emoji-sd-dpm++-3",
    "| a cheaper one": "profile emoji-sd-dpm++-5",
    "| *6 steps instead of 20*": "6 steps",
    "| *the package DeepCache, every third call*": "DeepCache 1:3",
}


def test_the_first_table_is_that_of_the_report() -> None:
    text, report = (ROOT / "README.md").read_text(), measured("emoji-sd/report")
    rows = {row["name"]: row for row in report["rows"]}
    for label, name in FIRST.items():
        assert f"{label} | {rows[name]['speedup']:.2f} | {rows[name]['quality']['psnr']:.1f} |" in text
    assert f"| *another seed* | | {report['different_seed_floor']['psnr']:.1f} |" in text
    assert report["settings"]["num_inference_steps"] == 20
    assert parse(DEFAULT_CACHE) == parse("deepcache:interval=3,forecast=taylor(1)")
