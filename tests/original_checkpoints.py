"""Pipelines of diffusers written as one file, under the names of the original repositories: the inverse of reading."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def write(pipe: Any, path: Path, **more: torch.Tensor) -> Path:
    """Write a pipeline as its original repository would; `more` are further tensors."""
    kind = type(pipe).__name__
    tensors = more | _prefixed("first_stage_model.", vae(pipe.vae))
    if kind == "StableDiffusionPipeline":
        tensors |= _prefixed("model.diffusion_model.", unet(pipe.unet))
        tensors |= _prefixed("cond_stage_model.transformer.", clip(pipe.text_encoder))
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    elif kind == "StableDiffusionXLPipeline":
        tensors |= _prefixed("model.diffusion_model.", unet(pipe.unet))
        tensors |= _prefixed("conditioner.embedders.0.transformer.", clip(pipe.text_encoder))
        tensors |= _prefixed("conditioner.embedders.1.model.", open_clip(pipe.text_encoder_2))
    else:
        tensors |= _prefixed("model.diffusion_model.", sd3(pipe.transformer))
        tensors |= _prefixed("text_encoders.clip_l.transformer.", clip(pipe.text_encoder))
        tensors |= _prefixed("text_encoders.clip_g.transformer.", clip(pipe.text_encoder_2))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def clip(encoder: Any) -> Tensors:
    """transformers' own names, which Stable Diffusion 1 and 3 keep; newer ones leave `text_model.` out."""
    state = encoder.state_dict()
    flat = not any(name.startswith("text_model.") for name in state)
    return {f"text_model.{name}" if flat else name: tensor.clone() for name, tensor in state.items()}


def open_clip(encoder: Any) -> Tensors:
    made: Tensors = {}
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names["self_attn.out_proj"] = "attn.out_proj"
    for name, tensor in encoder.state_dict().items():
        short = name.removeprefix("text_model.")
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", short):
            layer, part, kind = match.groups()
            place = f"transformer.resblocks.{layer}"
            if part in names:
                made[f"{place}.{names[part]}.{kind}"] = tensor
            elif part == "self_attn.q_proj":
                three = [encoder.state_dict()[name.replace("q_proj", f"{each}_proj")] for each in "qkv"]
                made[f"{place}.attn.in_proj_{kind}"] = torch.cat(three)
        elif short == "text_projection.weight":
            made["text_projection"] = tensor.T
        else:
            own = {"embeddings.token_embedding.weight": "token_embedding.weight"}
            own |= {"embeddings.position_embedding.weight": "positional_embedding"}
            made[own.get(short, short.replace("final_layer_norm", "ln_final"))] = tensor
    return made


def unet(network: Any) -> Tensors:
    """Names of latent diffusion's UNet: blocks numbered through, resnets and attentions side by side in each."""
    places = _unet_places(network)
    made: Tensors = {}
    for name, tensor in network.state_dict().items():
        module = next(place for place in sorted(places, key=len, reverse=True) if name.startswith(f"{place}."))
        rest = name.removeprefix(f"{module}.")
        if ".resnets." in module:
            part, _, kind = rest.rpartition(".")
            rest = f"{_RESNET[part]}.{kind}"
        made[f"{places[module]}.{rest}"] = tensor
    return made


def _unet_places(network: Any) -> dict[str, str]:
    layers = network.config.layers_per_block
    places = dict(_UNET)
    places |= {f"mid_block.resnets.{i}": f"middle_block.{2 * i}" for i in (0, 1)}
    places["mid_block.attentions.0"] = "middle_block.1"
    for block, module in enumerate(network.down_blocks):
        for layer in range(layers):
            at = (layers + 1) * block + layer + 1
            places[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{at}.0"
            places[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{at}.1"
        places[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{(layers + 1) * (block + 1)}.0.op"
        assert len(module.resnets) == layers
    for block, module in enumerate(network.up_blocks):
        for layer in range(layers + 1):
            at = (layers + 1) * block + layer
            places[f"up_blocks.{block}.resnets.{layer}"] = f"output_blocks.{at}.0"
            places[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{at}.1"
        after = 2 if hasattr(module, "attentions") else 1
        places[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{(layers + 1) * block + layers}.{after}.conv"
    return places


def controlnet(network: Any) -> Tensors:
    """Names of the original ControlNet, in front of which stands `control_model.`"""
    places = _unet_places_of_half(network)
    made: Tensors = {}
    for name, tensor in network.state_dict().items():
        module = next(place for place in sorted(places, key=len, reverse=True) if name.startswith(f"{place}."))
        rest = name.removeprefix(f"{module}.")
        if ".resnets." in module:
            part, _, kind = rest.rpartition(".")
            rest = f"{_RESNET[part]}.{kind}"
        made[f"control_model.{places[module]}.{rest}"] = tensor
    return made


def _unet_places_of_half(network: Any) -> dict[str, str]:
    layers = network.config.layers_per_block
    places = {key: value for key, value in _UNET.items() if not key.startswith(("conv_norm_out", "conv_out"))}
    places |= {f"mid_block.resnets.{i}": f"middle_block.{2 * i}" for i in (0, 1)}
    places["mid_block.attentions.0"] = "middle_block.1"
    for block in range(len(network.down_blocks)):
        for layer in range(layers):
            at = (layers + 1) * block + layer + 1
            places[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{at}.0"
            places[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{at}.1"
        places[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{(layers + 1) * (block + 1)}.0.op"
    places |= {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(len(network.controlnet_down_blocks))}
    places["controlnet_mid_block"] = "middle_block_out.0"
    hints = len(network.controlnet_cond_embedding.blocks)
    places["controlnet_cond_embedding.conv_in"] = "input_hint_block.0"
    places |= {f"controlnet_cond_embedding.blocks.{i}": f"input_hint_block.{2 * i + 2}" for i in range(hints)}
    places["controlnet_cond_embedding.conv_out"] = f"input_hint_block.{2 * hints + 2}"
    return places


def vae(network: Any) -> Tensors:
    levels = len(network.config.block_out_channels)
    made: Tensors = {}
    for name, tensor in network.state_dict().items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0" in new:
            new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            new = new.replace("to_out.0", "proj_out")
            new = re.sub(r"to_([qkv])", r"\1", new)
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        made[new] = tensor
    return made


def sd3(network: Any) -> Tensors:
    state, made = dict(network.state_dict()), {}
    last = network.config.num_layers - 1
    names = {
        "pos_embed.proj": "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_": "t_embedder.mlp.",
        "time_text_embed.text_embedder.linear_": "y_embedder.mlp.",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }
    blocks = {
        "attn.to_out.0": "x_block.attn.proj",
        "attn.to_add_out": "context_block.attn.proj",
        "norm1.linear": "x_block.adaLN_modulation.1",
        "norm1_context.linear": "context_block.adaLN_modulation.1",
        "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2",
    }
    for name, tensor in state.items():
        match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None:
            old = next((n for n in names if name.startswith(n)), None)
            new = name if old is None else name.replace(old, names[old])
            new = re.sub(r"mlp\.([12])\.", lambda m: f"mlp.{2 * int(m[1]) - 2}.", new)
            made["pos_embed" if name == "pos_embed.pos_embed" else new] = _swapped(tensor, "norm_out" in name)
            continue
        block, part, kind = match.groups()
        if part in ("attn.to_q", "attn.add_q_proj"):
            three = [state[name.replace("_q", f"_{each}")] for each in "qkv"]
            side = "x_block" if part == "attn.to_q" else "context_block"
            made[f"joint_blocks.{block}.{side}.attn.qkv.{kind}"] = torch.cat(three)
        elif part in blocks:
            swap = part == "norm1_context.linear" and int(block) == last
            made[f"joint_blocks.{block}.{blocks[part]}.{kind}"] = _swapped(tensor, swap)
    return made


def _swapped(tensor: torch.Tensor, swap: bool) -> torch.Tensor:
    """Scale and shift the other way round, as the original has them."""
    return torch.cat(tensor.chunk(2)[::-1]) if swap else tensor
