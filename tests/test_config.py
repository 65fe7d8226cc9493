"""Configurations survive the way through dictionaries and strings, and bad ones say what is valid."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from diffaccel.config import Config
from diffaccel.methods import (
    BlockCache,
    DeepCache,
    Method,
    NetworkSwitch,
    Profile,
    ResidualGuidance,
    Staged,
    TextKVCache,
    parse,
    parse_all,
)
from diffaccel.reuse.forecast import Taylor
from diffaccel.reuse.schedule import Quadratic, Schedule, Steps
from diffaccel.reuse.schedule import Uniform as BuiltIn

METHODS = [
    DeepCache(),
    DeepCache(5, 2, Steps((0, 3, 9)), Taylor(2)),
    DeepCache(schedule=Quadratic(5, 15, 1.4)),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_dictionaries(method: Method) -> None:
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("deepcache", DeepCache()),
        ("DeepCache:interval=2", DeepCache(2)),
        ("deepcache: interval=5, branch=1", DeepCache(5, 1)),
        ("deepcache:schedule=steps(0,3,9)", DeepCache(schedule=Steps((0, 3, 9)))),
        (
            "deepcache:schedule=quadratic(5,center=15),forecast=taylor(1)",
            DeepCache(schedule=Quadratic(5), forecast=Taylor()),
        ),
        ("deepcache:forecast=taylor", DeepCache(forecast=Taylor())),
        ("deepcache:offload=true", DeepCache(offload=True)),
        ("deepcache:offload=False", DeepCache()),
        ("residualguidance:negative=one-time", ResidualGuidance(negative="one-time")),
        ("networkswitch:small=emoji-sd-1.50,until=0.4", NetworkSwitch("emoji-sd-1.50", until=0.4)),
        ("networkswitch:small=out/small_é", NetworkSwitch("out/small_é")),
    ],
)
def test_strings(text: str, method: Method) -> None:
    assert parse(text) == method


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deepcash", r"unknown method 'deepcash' \(did you mean deepcache\?\): choose from blockcache, .*deepcache"),
        ("FirstBlockCache", r"unknown method 'FirstBlockCache' \(did you mean blockcache\?\)"),
        ("nothing", "unknown method 'nothing': choose from"),
        ("DeepCache(interval=3)", r"cannot read 'DeepCache\(interval=3\)': write name:field=value"),
        ("deepcache:intervall=3", r"no field 'intervall' \(did you mean interval\?\): its fields are interval, branch"),
        ("deepcache:schedule=unifrom(3)", r"unknown config 'unifrom' \(did you mean uniform\?\)"),
        (
            "deepcache:forecast=tailor",
            r"must be a forecast \(aligned, newton, taylor\); got 'tailor' \(did you mean taylor\?\)",
        ),
        ("featureinheritance:level=layers", r"one of block, layer, unit; got 'layers' \(did you mean layer\?\)"),
        (
            "residualguidance:negative=one - time",
            "cannot read the value 'one - time': use a number, a",
        ),
        ("deepcache:interval=", "cannot read 'deepcache:interval='"),
        ("deepcache:interval=0", r"interval must be an integer >= 1; got 0"),
        ("deepcache:interval=many", r"interval must be an integer >= 1; got 'many'"),
        ("deepcache:schedule=often(3)", r"unknown config 'often'"),
        ("deepcache:schedule=steps(3,1)", "must start with 0"),
        ("deepcache:schedule=7", r"schedule must be a schedule .*quadratic.*got 7"),
        ("deepcache:interval=1+1", r"cannot read the value '1\+1'"),
        ("deepcache:**x", r"\*\* is not allowed"),
        ("deepcache:branch=0,branch=1", "^branch is given twice$"),
        ("deepcache:2,interval=3", "^interval is given twice$"),
        ("tgate:1,2,3,4", "^tgate takes gate, self_interval, fidelity_interval in this order, and got 4 values$"),
        ("magcache", "^magcache needs a value for its field 'curve'$"),
        ("profile:recipe=/a/b.json", "cannot read 'profile:recipe=/a/b.json': .* and what is no word in quotes$"),
        ("deepcache:schedule=steps(2.5)", "^each of steps must be an integer >= 0; got 2.5$"),
        ("blockcache:threshold=1e400", r"^threshold must be a number in \[0.0, inf\); got inf$"),
        ("staged:methods=[deepcache,none]", "^methods must be methods such as .*; got 'none'$"),
        ("uniform:3", "unknown method 'uniform'"),
        ("out/p.json", "'out/p.json' is a file: write profile:recipe='out/p.json' if diffaccel tune wrote it"),
    ],
)
def test_bad_strings(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_numbers_and_words_of_numpy_are_written_as_those_of_python() -> None:
    method = BlockCache(threshold=np.float64(0.1))
    assert method.to_text() == "blockcache:threshold=0.1"
    assert parse(NetworkSwitch(np.str_("a b"), until=np.float64(0.5)).to_text()) == NetworkSwitch("a b", until=0.5)
    assert parse_all(f"{Staged((DeepCache(), DeepCache(2)), np.float64(0.4)).to_text()} + tgate")[0].at == (0.4,)


def test_a_plus_sign_within_quotes_joins_no_methods() -> None:
    for path in ("a+b+c.json", "it's + tgate", "'\\' + tgate: \".json"):
        methods = Profile(path), TextKVCache(), Profile(path)
        assert parse_all(" + ".join(method.to_text() for method in methods)) == methods


def test_what_only_the_package_asks_for_has_no_name_in_texts() -> None:
    assert not {"atmost", "planned", "curve"} & set(Config.names())


def test_kinds_do_not_mix() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'deepcache'"):
        Schedule.from_dict(DeepCache().to_dict())
    assert "steps" in Schedule.names()
    assert "schedule" not in Schedule.names()


def test_a_name_of_another_configuration_is_refused() -> None:
    with pytest.raises(TypeError, match=r"bears the name of diffaccel\.reuse\.schedule\.Uniform.*give it another one"):

        class Uniform(Config):
            """Another one."""

    assert Config.parse("uniform:3") == BuiltIn(3)


def test_a_configuration_whose_module_is_loaded_anew_is_taken() -> None:
    def define() -> type[Config]:
        @dataclass(frozen=True)
        class LoadedAgain(Config):
            size: int = 1

        return LoadedAgain

    try:
        define()
        again = define()
        assert type(Config.parse("loadedagain:size=2")) is again
    finally:
        Config._known.pop("loadedagain")


def test_a_dictionary_without_a_type_is_refused_by_what_it_lacks() -> None:
    with pytest.raises(
        ValueError, match=r"\{'interval': 3\} does not say which method it is: add \"type\", such as \"block"
    ):
        Method.from_dict({"interval": 3})
