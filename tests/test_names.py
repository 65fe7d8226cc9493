"""Names that are not known, and what is offered in their place."""

import re
from pathlib import Path

import diffusers
import pytest
from pydantic import ValidationError

import diffaccel
from diffaccel import models
from diffaccel.batch.settings import PictureSettings
from diffaccel.config.words import did_you_mean
from diffaccel.methods import DeepCache, Profile, TextKVCache, TGate, parse_all


def test_the_closest_name_is_offered() -> None:
    assert did_you_mean("deep_cache", ["tgate", "deepcache", "deltacache"]) == " (did you mean deepcache?)"
    assert did_you_mean("TGATE2", ["TGate"]) == " (did you mean TGate?)"
    assert did_you_mean("fora", ["tgate", "deepcache"]) == ""
    assert did_you_mean("emoji-xl", ["emoji-sd"]) == ""
    assert did_you_mean("", ["tgate"]) == ""


def test_models_and_settings_offer_it() -> None:
    with pytest.raises(models.ModelError, match=r"unknown model 'emoji-ds' \(did you mean emoji-sd\?\); bundled"):
        models.resolve("emoji-ds")
    with pytest.raises(KeyError, match=r"not a bundled model \(did you mean emoji-lcm-lora\?\); bundled"):
        models.path("emoji-lcm")
    with pytest.raises(ValidationError, match=r"unknown scheduler 'eular' \(did you mean euler\?\); one of def"):
        PictureSettings(scheduler="eular")
    with pytest.raises(ValidationError, match=r"unknown guidance 'one-tme:renew=3' \(did you mean one-time\?\); one"):
        PictureSettings(guidance="one-tme:renew=3")
    with pytest.raises(ValidationError, match=r"unknown method 'tgat' \(did you mean tgate\?\)"):
        PictureSettings(cache="deepcache + tgat")


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        ("none", ()),
        ("deepcache", (DeepCache(),)),
        ("deepcache:interval=2+textkvcache", (DeepCache(2), TextKVCache())),
        ("DeepCache:branch=1 + TGate:gate=7 + TextKVCache", (DeepCache(branch=1), TGate(7), TextKVCache())),
        ("profile:recipe='my+profile.json' + textkvcache", (Profile("my+profile.json"), TextKVCache())),
    ],
)
def test_plus_signs_join_methods(text: str, methods: tuple[object, ...]) -> None:
    assert parse_all(text) == methods


def test_names_read_from_configurations_are_names_that_diffusers_gives() -> None:
    """`config.get` of a name that nothing has is its default for ever, and says nothing."""
    package, rooms = Path(diffusers.__file__).parent, ("networks", "runtime", "sampling", "stream", "video")
    source = [path.read_text() for room in rooms for path in (Path(diffaccel.__file__).parent / room).glob("*.py")]
    read = set(re.findall(r'config\.get\(\s*"(\w+)"', "\n".join(source))) - {"_class_name"}
    folders = ("models", "pipelines", "schedulers")
    known = "".join(path.read_text() for folder in folders for path in (package / folder).rglob("*.py"))
    assert len(read) > 10
    assert not [name for name in read if f" {name}: " not in known]
