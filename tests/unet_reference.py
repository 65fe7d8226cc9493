"""DeepCache written out as a forward pass of the UNet, without hooks: the reference that replays are compared with."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel


class ReferenceDeepCache:
    """Calls a UNet, computing everything at the calls in `steps` and only the shallow path at others."""

    def __init__(self, unet: UNet2DConditionModel, steps: Any, block: int, layer: int) -> None:
        self.unet = unet
        self.steps = set(steps)
        self.block = block
        self.layer = layer
        self.call = 0
        self.feature: torch.Tensor | None = None

    def __call__(self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        unet, text = self.unet, {"encoder_hidden_states": encoder_hidden_states, "return_dict": False}
        emb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))
        hidden = unet.conv_in(sample)
        skips = [hidden]
        full = self.call in self.steps
        self.call += 1

        for b, block in enumerate(unet.down_blocks):
            if not full and b > self.block:
                break
            for i, resnet in enumerate(block.resnets):
                if not full and b == self.block and i >= self.layer:
                    break
                hidden = resnet(hidden, emb)
                if hasattr(block, "attentions"):
                    hidden = block.attentions[i](hidden, **text)[0]
                skips.append(hidden)
            else:
                last = not full and b == self.block and self.layer <= len(block.resnets)
                if block.downsamplers is not None and not last:
                    hidden = block.downsamplers[0](hidden)
                    skips.append(hidden)
                continue
            break
        if full:
            hidden = unet.mid_block(hidden, emb, encoder_hidden_states=encoder_hidden_states)

        for u, block in enumerate(unet.up_blocks):
            from_end, layers = len(unet.up_blocks) - 1 - u, len(block.resnets)
            if not full and from_end > self.block:
                continue
            for i, resnet in enumerate(block.resnets):
                reverse = layers - 1 - i
                if not full and from_end == self.block and reverse > self.layer:
                    continue
                if (from_end, reverse) == (self.block, self.layer):
                    if full:
                        self.feature = hidden
                    else:
                        hidden = self.feature
                hidden = resnet(torch.cat([hidden, skips.pop()], dim=1), emb)
                if hasattr(block, "attentions"):
                    hidden = block.attentions[i](hidden, **text)[0]
            if block.upsamplers is not None:
                hidden = block.upsamplers[0](hidden)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
