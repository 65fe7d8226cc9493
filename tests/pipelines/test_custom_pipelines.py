"""Every custom pipeline is its stock pipeline, bit for bit, until it is asked to reuse; and then it is `accelerate`."""

from typing import Any

import pytest
import torch
from stock_cases import CASES, EVERY, Case

from diffaccel import accelerate
from diffaccel._diffusers import hooks_of
from diffaccel.config import Config
from diffaccel.methods import Method


@pytest.fixture(scope="module", params=EVERY)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def stock(case: Case) -> Any:
    return case.build()


@pytest.fixture(scope="module")
def custom(case: Case, stock: Any) -> Any:
    rest = {"requires_safety_checker": False} if "requires_safety_checker" in stock.config else {}
    return case.custom(**stock.components, **rest)


def hooked(pipe: Any) -> list[str]:
    modules = (m for c in pipe.components.values() if isinstance(c, torch.nn.Module) for m in c.modules())
    return [name for module in modules for name in hooks_of(module)]


def test_is_the_stock_pipeline(case: Case, stock: Any, custom: Any) -> None:
    assert isinstance(custom, type(stock))
    assert isinstance(custom, case.custom)
    assert custom.components.keys() == stock.components.keys()
    assert torch.equal(case.run(custom), case.run(stock))


@pytest.mark.slow
def test_reuse_in_every_notation(case: Case, stock: Any, custom: Any) -> None:
    method = Method.from_dict(case.cache)
    with accelerate(stock, method):
        expected = case.run(stock)
    plain = case.run(stock)
    assert not torch.equal(plain, expected)
    for notation in (method, method.to_dict(), method.to_text(), [method]):
        assert torch.equal(case.run(custom, cache=notation), expected)
    report = custom.report()
    assert report.replayed + (report.controlnet or (0, 0))[1] > 0
    assert not hooked(custom)
    assert torch.equal(case.run(custom), plain)


def test_a_failed_call_leaves_nothing(case: Case, stock: Any, custom: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = getattr(custom, "unet", None) or custom.transformer
    original, calls = denoiser.forward, []

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(denoiser, "forward", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            case.run(custom, cache=case.cache)
    assert not hooked(custom)
    assert torch.equal(case.run(custom), case.run(stock))


@pytest.mark.slow
def test_switches(case: Case, stock: Any, custom: Any) -> None:
    expected = case.run(custom, cache=case.cache)
    custom.enable_feature_cache(case.cache)
    with pytest.raises(RuntimeError, match=r"call disable_feature_cache\(\) first"):
        custom.enable_feature_cache(case.cache)
    with pytest.raises(RuntimeError, match="enabled for all calls"):
        case.run(custom, cache=case.cache)
    assert torch.equal(case.run(custom), expected)
    assert torch.equal(case.run(custom), expected)
    custom.disable_feature_cache()
    custom.disable_feature_cache()
    assert not hooked(custom)
    assert torch.equal(case.run(custom), case.run(stock))


@pytest.mark.slow
def test_from_pipe_both_ways(case: Case, stock: Any, custom: Any) -> None:
    made = case.custom.from_pipe(stock)
    assert isinstance(made, type(stock))
    assert torch.equal(case.run(made), case.run(stock))
    back = type(stock).from_pipe(custom)
    assert type(back) is type(stock)
    assert torch.equal(case.run(back), case.run(stock))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("deepcash:interval=2", ValueError, r"unknown method 'deepcash' \(did you mean deepcache\?\): choose from"),
        ({"type": "deepcache", "interval": 0}, ValueError, "interval must be an integer >= 1; got 0"),
        (3, TypeError, "expected a Method, its text or its dictionary, not 3"),
    ],
)
def test_bad_values(case: Case, custom: Any, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        case.run(custom, cache=value)


def test_methods_are_known_by_name() -> None:
    assert {case.cache["type"] for case in CASES} <= set(Config.names())
