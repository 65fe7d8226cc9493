"""What is stored holds as long as weights, inputs and networks are those that it was made of."""

from typing import Any

import diffusers
import pytest
import torch
from runtime_calls import EVERY_SECOND
from tiny_networks import generate, pipeline, sd_unet, unet_inputs
from tiny_transformers import TRANSFORMERS
from walk_unets import SMALL

from diffaccel.attach.handle import accelerate
from diffaccel.methods import DeepCache, EasyCache, Method, ResidualGuidance, TextKVCache
from diffaccel.networks import layout_of
from diffaccel.reuse.schedule import Threshold


class TestTextKV:
    def test_a_lora_scale_that_changes_in_mid_run(self) -> None:
        from peft import LoraConfig

        pipe = pipeline(sd_unet(**SMALL))
        pipe.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_k", "to_v"]), "a")

        def weaker(p: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            p.unet.set_adapters(["a"], [1.0 - 0.2 * step])
            return kwargs

        plain = generate(pipe, 4, callback_on_step_end=weaker)
        pipe.unet.set_adapters(["a"], [1.0])
        with accelerate(pipe, TextKVCache()):
            assert torch.equal(generate(pipe, 4, callback_on_step_end=weaker), plain)

    def test_inference_tensors_written_in_place(self) -> None:
        unet = sd_unet(**SMALL)
        with torch.inference_mode():
            inputs = unet_inputs(unet)
            prompt = inputs["encoder_hidden_states"].clone()
            inputs["encoder_hidden_states"] = prompt
            with accelerate(unet, TextKVCache()):
                for t in (900, 600):
                    found = unet(**inputs, timestep=t).sample
                    prompt.mul_(0.5)
            prompt.mul_(2.0)
            assert torch.equal(found, unet(**inputs, timestep=600).sample)

    def test_weights_written_in_inference_mode(self) -> None:
        with torch.inference_mode():
            unet = sd_unet(**SMALL)
            inputs, name = unet_inputs(unet), layout_of(unet).conditioning_only[0]
            with accelerate(unet, TextKVCache()):
                unet(**inputs, timestep=900)
                unet.get_submodule(name).weight.mul_(2.0)
                found = unet(**inputs, timestep=600).sample
            assert torch.equal(found, unet(**inputs, timestep=600).sample)


@pytest.mark.parametrize("method", [DeepCache(2), DeepCache(schedule=Threshold(9.0)), EasyCache(9.0)], ids=repr)
def test_stored_features_do_not_keep_the_graph(method: Method) -> None:
    unet = sd_unet(**SMALL)
    inputs = unet_inputs(unet)
    with accelerate(unet, method) as handle:
        for t in (900, 700, 500, 300):
            sample = (inputs["sample"] * t / 1000).requires_grad_()
            scaled = sample.exp()  # a graph before the network, which is gone in the next call
            found = unet(**{**inputs, "sample": scaled}, timestep=t).sample
            found.square().mean().backward()
            assert sample.grad is not None
            assert sample.grad.abs().sum() > 0
        assert handle.report().replayed > 0


@pytest.mark.parametrize("held", ["estimate", "difference"])
def test_nor_does_a_negative_that_is_kept(held: str) -> None:
    pipe = pipeline(sd_unet(**SMALL))
    prompts = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(4)
    with accelerate(pipe, ResidualGuidance(renew=2, held=held), guided=True):
        for t in pipe.scheduler.timesteps:
            latents = torch.ones(1, 4, 16, 16).requires_grad_()
            negative, positive = pipe.unet(torch.cat([latents.exp()] * 2), t, prompts).sample.chunk(2)
            (3 * positive - 2 * negative).square().mean().backward()
            assert latents.grad is not None
            assert latents.grad.abs().sum() > 0
            pipe.scheduler.step(positive.detach(), t, latents.detach())


def test_a_replaced_network_is_noticed() -> None:
    pipe = pipeline(sd_unet(**SMALL))
    handle = accelerate(pipe, DeepCache(interval=2))
    own = pipe.unet
    pipe.unet = sd_unet(**SMALL)
    with pytest.raises(RuntimeError, match="was replaced after accelerate"):
        generate(pipe, 2)
    pipe.unet = own
    assert torch.isfinite(generate(pipe, 2)).all()
    handle.detach()
    pipe.unet = sd_unet(**SMALL)
    assert torch.isfinite(generate(pipe, 2)).all()


def test_a_cache_of_diffusers_beside_ours_is_refused() -> None:
    model = TRANSFORMERS["FluxTransformer2DModel"].build("FluxTransformer2DModel")
    inputs = TRANSFORMERS["FluxTransformer2DModel"].inputs(1, torch.Generator().manual_seed(0))
    with accelerate(model, EVERY_SECOND):
        model.enable_cache(diffusers.FirstBlockCacheConfig())
        with pytest.raises(RuntimeError, match="enable_cache"):
            model(**inputs, timestep=torch.tensor([0.5]))
        model.disable_cache()


def test_blocks_that_would_run_again_in_the_backward_pass_are_refused() -> None:
    unet = sd_unet(**SMALL)
    inputs = unet_inputs(unet)
    unet.enable_gradient_checkpointing()
    with accelerate(unet, DeepCache(2)):
        with pytest.raises(RuntimeError, match=r"again in the backward pass.*call disable_gradient_checkpointing\(\)"):
            unet(**inputs, timestep=900)
        with torch.no_grad():
            found = unet(**inputs, timestep=900).sample
    with torch.no_grad():
        assert torch.equal(found, unet(**inputs, timestep=900).sample)
