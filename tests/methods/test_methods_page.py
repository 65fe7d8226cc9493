"""The page about methods names all of them, its text can be read, and its tables are those of the code."""

import re
from pathlib import Path

import make_method_docs
import pytest

import diffaccel
from diffaccel.batch.settings import parse_guidance
from diffaccel.config import Config
from diffaccel.methods import Method, parse, parse_all
from diffaccel.reuse.schedule import Schedule
from diffaccel.sampling.guidance import Guidance
from diffaccel.stream.slot_cache import SlotCache

PAGE = make_method_docs.PAGE.read_text(encoding="utf-8")
SPANS = sorted(set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))))
TEXTS = [span for span in SPANS if re.match(rf"({'|'.join(Config.names())}):", span)]
WITH_TEXT = (Method, Guidance, Schedule)


def section(name: str) -> str:
    """The text under the heading of that name."""
    parts = re.split(r"^#+ (.+)\n", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[name]


def exported(*kinds: type) -> list[str]:
    return [name for name in diffaccel.__all__ if isinstance(getattr(diffaccel, name), type)
            and issubclass(getattr(diffaccel, name), kinds)]  # fmt: skip


def test_the_tables_are_up_to_date() -> None:
    assert make_method_docs.filled(PAGE) == PAGE, "run python scripts/make_method_docs.py"


@pytest.mark.parametrize("name", exported(Method))
def test_every_method_has_a_section_with_its_text_parameters_and_figures(name: str) -> None:
    own = section(name)
    texts = [span for span in re.findall(r"`([^`\n]+)`", own) if re.match(rf"{name.lower()}\b", span)]
    assert any(type(parse(text)).__name__ == name for text in texts)
    assert "arxiv.org" in own or name in ("TextKVCache", "Profile")
    figures = re.findall(r"^\| emoji-(?:sd|dit) \| .+ \| \d+\.\d\d \| \d+\.\d \| \d\.\d{3} \|$", own, re.MULTILINE)
    counted = r"^\| emoji-(?:sd|dit), \d+ steps(?: of LCM)? \| `.+` \| \d\.\d\d \| \d+\.\d \| \d\.\d{3} \| \S.+ \|$"
    measured = figures or re.findall(counted, own, re.MULTILINE)
    # the reports' pipelines have no ControlNet, and what a switch gives is on the small network's card, too
    elsewhere = name == "ControlCache"
    on_card = name == "NetworkSwitch" and "emoji-sd-small's card" in own
    assert bool(measured) != elsewhere or on_card
    for field in make_method_docs.own_fields(getattr(diffaccel, name)):
        assert re.search(rf"^\| `{field.name}` \| (`.+`|required) \| \S.+ \|$", own, re.MULTILINE), field
    assert f"| [`{name.lower()}`](#{name.lower()}) |" in PAGE.partition("**To begin with**")[0]


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in exported(Config)
        if n not in ("Calibration", "MagCurve", "Recipe", "Routers", "RouterTraining", "TeaCurve")
    ],
)
def test_everything_that_has_text_is_on_the_page(name: str) -> None:
    assert f"`{name.lower()}" in PAGE or f"={name.lower()}(" in PAGE


def test_there_are_enough_texts() -> None:
    assert len(TEXTS) >= 30


@pytest.mark.parametrize("text", TEXTS)
def test_text_can_be_read_and_goes_back(text: str) -> None:
    if "+" in text:
        assert len(parse_all(text)) == 2
        return
    read = Config.parse(text)
    assert Config.parse(read.to_text()) == read
    assert Config.from_dict(read.to_dict()) == read


def test_the_table_of_text_says_what_it_is() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| `(\w+\(.*\))` \|$", PAGE, re.MULTILINE)
    assert len(rows) >= 6
    names = {name: getattr(diffaccel, name) for name in exported(Config)}
    for text, code in rows:
        assert parse_all(text) == eval(f"({code},)", names), text


def test_guidance_and_slot_caches_are_read_where_the_page_says() -> None:
    (guidance,) = parse_guidance("one-time:renew=3,held=difference")
    assert guidance == diffaccel.ResidualGuidance(renew=3, held="difference")
    assert all(isinstance(Config.parse(text), SlotCache) for text in TEXTS if text.startswith("slotcache"))
    pipelines = Path(make_method_docs.ROOT, "pipelines", "stream_diffusion.py").read_text()
    for word in ("none", "full", "self", "one-time"):
        assert f'`"{word}"`' in PAGE
        assert f'"{word}": ' in pipelines
