"""T-GATE in a guided pipeline: the mean of both halves is replayed, and guidance stops."""

from typing import Any

import pytest
import torch
from tiny_networks import generate, picture_unet, pipeline

from diffaccel.attach.handle import accelerate
from diffaccel.methods import TGate


class ReferenceGate:
    """T-GATE as a change of attention processors: no hooks, one call of the network at a time."""

    def __init__(self, unet: Any, gate: int, self_interval: int, fidelity_interval: int, warmup: int) -> None:
        self.gate, self.intervals, self.warmup, self.call = gate, (self_interval, fidelity_interval), warmup, -1
        self.kept: dict[int, torch.Tensor] = {}
        names = dict(unet.named_modules())
        self.attentions = {id(m): n for n, m in names.items() if n.rpartition(".")[2] in ("attn1", "attn2")}

    def wrap(self, processor: Any) -> Any:
        def process(attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            cross = self.attentions[id(attn)].endswith("attn2")
            if self.computes(cross):
                self.kept[id(attn)] = processor(attn, hidden_states, *args, **kwargs)
            output = self.kept[id(attn)]
            if output.shape[0] == 2 * hidden_states.shape[0]:
                negative, positive = output.chunk(2)
                output = self.kept[id(attn)] = (negative + positive) / 2 if cross else positive
            return output

        return process

    def computes(self, cross: bool) -> bool:
        if cross:
            return self.call < self.gate
        interval = self.intervals[self.call >= self.gate]
        return self.call < self.warmup or self.call % interval == 0


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(3, 1, 1, 0), (3, 2, 1, 2), (4, 2, 3, 1), (1, 5, 1, 1)])
def test_equals_a_reference_of_attention_processors(settings: tuple[int, int, int, int]) -> None:
    pipe = pipeline(picture_unet())
    with accelerate(pipe, TGate(*settings[:3], warmup=settings[3])):
        ours = generate(pipe, steps=7)

    unet = pipe.unet
    reference, forward = ReferenceGate(unet, *settings), unet.forward
    processors = {name: reference.wrap(p) for name, p in unet.attn_processors.items()}

    def gated(sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        reference.call += 1
        if reference.call < reference.gate:
            return forward(sample, timestep, encoder_hidden_states, **kwargs)
        half = forward(sample.chunk(2)[1], timestep, encoder_hidden_states.chunk(2)[1], **kwargs)[0]
        return (torch.cat([half, half]),)

    for name, module in unet.named_modules():
        if f"{name}.processor" in processors:
            module.processor = processors[f"{name}.processor"]
    unet.forward = gated
    theirs = generate(pipe, steps=7)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_rows_are_halved_from_the_gate_on() -> None:
    pipe = pipeline(picture_unet())
    rows: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda module, args, output: rows.append(output.shape[0]))
    with accelerate(pipe, TGate(gate=2)):
        generate(pipe)
    assert rows == [2, 2, 1, 1, 1, 1]


def test_without_guidance_only_attention_is_replayed() -> None:
    pipe = pipeline(picture_unet())
    rows: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda module, args, output: rows.append(output.shape[0]))
    with accelerate(pipe, TGate(gate=2)) as handle:
        generate(pipe, guidance_scale=1.0)
        assert handle.report().methods["TGate"] == (2, 4)
    assert rows == [1] * 6


def test_a_gate_beyond_the_run_is_refused() -> None:
    pipe = pipeline(picture_unet())
    with accelerate(pipe, TGate(gate=10)), pytest.raises(ValueError, match=r"gate must be <= 6.*got 10"):
        generate(pipe)
