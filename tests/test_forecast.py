"""Taylor forecasts: exact for polynomials, and on a network equal to the expansion written out."""

import pytest
import torch
from tiny_networks import picture_unet, unet_inputs

from diffaccel.attach.handle import accelerate
from diffaccel.methods import DeepCache
from diffaccel.reuse.forecast import Newton, Taylor
from diffaccel.reuse.schedule import Steps


@pytest.mark.parametrize(("order", "exact"), [(0, 0), (1, 1)])
def test_exact_for_polynomials(order: int, exact: int) -> None:
    forecast, slope = Taylor(order), torch.randn(3)

    def feature(step: int) -> torch.Tensor:
        return torch.ones(3) + slope * step**exact

    history = None
    for step in (0, 2, 5):
        history = forecast.update(history, feature(step), step)
    for step in (5, 6, 8):
        torch.testing.assert_close(forecast.predict(history, step), feature(step))


def test_differences_are_the_papers() -> None:
    forecast, f = Taylor(2), [torch.tensor([float(v)]) for v in (1.0, 4.0, 2.0)]
    history = None
    for step, value in zip((0, 2, 3), f, strict=True):
        history = forecast.update(history, value, step)
    first = (f[2] - f[1]) / 1
    second = (first - (f[1] - f[0]) / 2) / 1
    torch.testing.assert_close(forecast.predict(history, 5), f[2] + 2 * first + 2 * second)


@pytest.mark.slow
@pytest.mark.parametrize("order", [0, 1, 2])
def test_deepcache_with_a_forecast(order: int) -> None:
    unet, computed = picture_unet(), (0, 1, 3)
    inputs, times = unet_inputs(unet), torch.linspace(900, 100, 6)
    with accelerate(unet, DeepCache(branch=1, schedule=Steps(computed), forecast=Taylor(order))), torch.no_grad():
        ours = [unet(timestep=t, **inputs).sample for t in times]

    boundary = unet.up_blocks[1].attentions[0]
    features: dict[int, torch.Tensor] = {}
    call = [0]

    def replace(module: torch.nn.Module, args: object, output: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        i = call[0]
        if i in computed:
            features[i] = output[0]
            return output
        if i == 2:
            first, second = (features[1] - features[0]) / 1, 0  # no second difference after two computed calls
            ahead, last = 1, features[1]
        else:
            first = (features[3] - features[1]) / 2
            second = (first - (features[1] - features[0]) / 1) / 2
            ahead, last = i - 3, features[3]
        terms = [last, first * ahead, second * ahead**2 / 2]
        return (sum(terms[: order + 1]),)

    hook = boundary.register_forward_hook(replace)
    with torch.no_grad():
        for i, t in enumerate(times):
            call[0] = i
            torch.testing.assert_close(unet(timestep=t, **inputs).sample, ours[i], rtol=0, atol=1e-5)
    hook.remove()


@pytest.mark.parametrize("order", [-1, 5, 1.5])
def test_bad_order(order: float) -> None:
    with pytest.raises(ValueError, match=r"order must be an integer in 0\.\.4"):
        Taylor(order)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_newton_goes_through_uneven_calls(order: int) -> None:
    """A polynomial of the same degree is forecast exactly, however the computed calls are spaced."""
    forecast, history = Newton(order), None
    curve = lambda t: torch.tensor([float(t**order), 2.0 - t, 1.0])  # noqa: E731
    for step in (0, 1, 4, 6, 11):
        history = forecast.update(history, (curve(step),), step)
    for step in (12, 15):
        torch.testing.assert_close(forecast.predict(history, step)[0], curve(step), rtol=1e-4, atol=1e-2)


def test_newton_agrees_with_taylor_where_calls_are_even() -> None:
    newton, taylor, past, other = Newton(1), Taylor(1), None, None
    for step in (0, 3, 6):
        feature = torch.tensor([float(step) ** 2])
        past, other = newton.update(past, feature, step), taylor.update(other, feature, step)
    torch.testing.assert_close(newton.predict(past, 8), taylor.predict(other, 8))
