"""A LoRA file, whatever its spelling, as low-rank factors by component and module, with their scale in them.

Spellings are those of kohya's scripts, of PEFT and of diffusers. LoHa and LoKr are LoRAs of a larger rank, and are read
as such: with `w1 = a b` and `w2 = c d`, `(w1 * w2)_ij = sum_pq (a_ip c_iq) (b_pj d_qj)` (FedPara,
https://arxiv.org/abs/2108.06098, equation 3), and `kron(w1, c d) = kron(w1, c) kron(1, d)`.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaccel.config.words import with_article
from diffaccel.models.mistaken import told
from diffaccel.models.source import ModelError

if TYPE_CHECKING:
    import torch

_PEFT = "base_model.model."
_PAIRS = tuple(
    (f".{a}.weight", f".{b}.weight")
    for a, b in (("lora_down", "lora_up"), ("lora_A", "lora_B"), ("lora.down", "lora.up"))
)
_READ = re.compile(
    r"(lora_(down|up|A|B)|[._]lora\w*\.(down|up))\.weight$|\.alpha$|\.hada_(w[12]_[ab]|t[12])$|\.lokr_(w[12](_[ab])?|t2)$"
)
"""Ends of names of what is read."""
_BARE = re.compile(r"((down|up)_blocks|mid_block|(single_)?transformer_blocks)\..*(lora_[AB]\.|\.processor\.)")
"""Names of the denoiser's own modules, without its name before them."""
_KOHYAS_ENCODER = re.compile(r"lora_te(\d?)_(.+)\.lora_(down|up)\.weight")
Tensors = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Factors:
    """The change of one module's weight: `up @ down`, of shapes `(out, rank)` and `(rank, in)`; 4D of convolutions."""

    down: "torch.Tensor"
    up: "torch.Tensor"


Parts = dict[str, dict[str, Factors]]
"""Factors by component of the pipeline and name of the module in it."""


def read_parts(file: Path, pipeline: Any, unet_config: Any, denoiser: str) -> Parts:
    """The factors in a LoRA file.

    Args:
        pipeline: class of the pipeline, whose spellings diffusers knows.
        unet_config: configuration of its UNet if it has one, by which SDXL's blocks are numbered.
        denoiser: name of the component that samples, `"unet"` or `"transformer"`.

    Raises:
        ModelError: it is of a kind that cannot be read; the message says which.
    """
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        tensors = {name: _computable(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        metadata = opened.metadata() or {}
    tensors = {name.replace(".default.", "."): tensor for name, tensor in tensors.items()}  # PEFT's name of one adapter
    _require_read(tensors, file)
    tensors = _low_rank({name: tensor for name, tensor in tensors.items() if _READ.search(name)}, file)
    scales = _scales_beside(file) if any(name.startswith(_PEFT) for name in tensors) else {}
    tensors = {_full_name(name, denoiser): tensor for name, tensor in tensors.items()}
    converted = _converted(_with_alphas(tensors), pipeline, unet_config, file)
    return _parts(converted, _saved_scales(metadata) | scales, file)


def _computable(tensor: "torch.Tensor") -> "torch.Tensor":
    """The tensor in a format that there is arithmetic for, which 8 bits are not."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _low_rank(tensors: Tensors, file: Path) -> Tensors:
    """LoHa and LoKr in the spelling of kohya's LoRAs."""
    import torch

    made: Tensors = dict(tensors)
    for name in {key.rpartition(".")[0] for key in tensors if ".hada_" in key or ".lokr_" in key}:
        own = {key.removeprefix(f"{name}."): made.pop(key) for key in tensors if key.startswith(f"{name}.")}
        if any("_t" in key for key in own) or any(tensor.ndim > 2 for tensor in own.values()):
            raise ModelError(f"{file} has LoHa or LoKr weights of convolutions ({name}), which are not read")
        down, up, rank = _loha(own) if "hada_w1_a" in own else _lokr(own)
        alpha = float(own["alpha"]) if "alpha" in own and rank else float(rank or 1)
        made[f"{name}.lora_down.weight"], made[f"{name}.lora_up.weight"] = down, up
        made[f"{name}.alpha"] = torch.tensor(alpha / (rank or 1) * down.shape[0])
    return made


def _loha(own: Tensors) -> "tuple[torch.Tensor, torch.Tensor, int]":
    a, b, c, d = (own[f"hada_{name}"].float() for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    up = (a[:, :, None] * c[:, None, :]).flatten(1)  # (out, rank * rank)
    down = (b[:, None, :] * d[None, :, :]).flatten(0, 1)  # (rank * rank, in)
    return down, up, b.shape[0]


def _lokr(own: Tensors) -> "tuple[torch.Tensor, torch.Tensor, int]":
    """Factors, and the rank that alpha is divided by: 0 where both weights are whole, and alpha does not count."""
    import torch

    def whole(name: str) -> "torch.Tensor":
        known = own.get(f"lokr_{name}")
        return known.float() if known is not None else own[f"lokr_{name}_a"].float() @ own[f"lokr_{name}_b"].float()

    rank = next((own[f"lokr_{name}_b"].shape[0] for name in ("w1", "w2") if f"lokr_{name}_b" in own), 0)
    w1 = whole("w1")
    if "lokr_w2_b" in own:
        c, d = own["lokr_w2_a"].float(), own["lokr_w2_b"].float()
        return torch.kron(torch.eye(w1.shape[1]), d), torch.kron(w1, c), rank
    w2 = whole("w2")
    return torch.eye(w1.shape[1] * w2.shape[1]), torch.kron(w1, w2), rank


def _require_read(tensors: Tensors, file: Path) -> None:
    """Raise `ModelError` for what is no LoRA, and for one that changes more of a network than can be read of it."""
    kinds = {"dora_scale": "DoRA", "magnitude_vector": "DoRA", "lora_mid": "Tucker LoCon", "oft_": "OFT", "ia3": "IA3"}
    kinds |= {".on_input": "IA3", ".a1.weight": "GLoRA"}
    remedy = "merge it into the model it was trained on"
    for mark, kind in kinds.items():
        if any(mark in name for name in tensors):
            raise ModelError(f"{file} is {with_article(kind)} adapter, which is not read: {remedy}")
    if not any(mark in name for name in tensors for mark in ("lora", "hada_", "lokr_")):
        raise ModelError(f"{file} is not a LoRA: {told(tensors)}")
    odd = next((name for name, tensor in tensors.items() if not _READ.search(name) and tensor.any()), None)
    if odd is not None:
        raise ModelError(f"{file} has more than low-rank factors ({odd[-80:]}), which is not read: {remedy}")


def _full_name(name: str, denoiser: str) -> str:
    """A name that was saved for the denoiser alone, by PEFT or under its own, as diffusers writes it."""
    own = name.removeprefix(_PEFT)
    return f"{denoiser}.{own}" if own != name or _BARE.match(name) else name


def _scales_beside(file: Path) -> dict[str, float]:
    """PEFT's alpha, which lies beside its weights: `{"": alpha, "rslora": 1.0}`."""
    beside = file.with_name("adapter_config.json")
    try:
        config = json.loads(beside.read_text(encoding="utf-8"))
        if config.get("alpha_pattern") or config.get("use_dora"):
            raise ModelError(f"{beside} has alpha_pattern or DoRA, which are not read for a file of PEFT's own names")
        return {"": float(config["lora_alpha"]), **({"rslora": 1.0} if config.get("use_rslora") else {})}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{file} has PEFT's names and needs {beside.name} beside it, which holds its alpha") from error


def _saved_scales(metadata: Mapping[str, str]) -> dict[str, float]:
    """Alphas by component ("unet"), and by component and pattern of modules' names, that diffusers saves inside."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        found = {key.removesuffix(".lora_alpha"): float(v) for key, v in config.items() if key.endswith(".lora_alpha")}
        for key, pattern in config.items():
            if key.endswith(".alpha_pattern") and pattern:
                component = key.removesuffix(".alpha_pattern")
                found |= {f"{component}.{re.compile(name).pattern}": float(v) for name, v in pattern.items()}
        return found | ({"rslora": 1.0} if any(k.endswith(".use_rslora") and v for k, v in config.items()) else {})
    except (ValueError, AttributeError, TypeError, re.error) as error:
        raise ModelError(f"the LoRA's own metadata is damaged: {error}") from error


def _with_alphas(tensors: Tensors) -> Tensors:
    """The same change of weights, every `alpha / rank` multiplied into the second factor, and every alpha the rank."""
    import torch

    made = dict(tensors)
    for name in [key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")]:
        for down, up in _PAIRS:
            if f"{name}{down}" in tensors and f"{name}{up}" in tensors:
                rank = tensors[f"{name}{down}"].shape[0]
                made[f"{name}{up}"] = tensors[f"{name}{up}"].float() * (float(tensors[f"{name}.alpha"]) / rank)
                made[f"{name}.alpha"] = torch.tensor(float(rank))
    return made


def _converted(tensors: Tensors, pipeline: Any, unet_config: Any, file: Path) -> Tensors:
    """The tensors under the names that diffusers gives them."""
    if not hasattr(pipeline, "lora_state_dict"):
        raise ModelError(f"{pipeline.__name__} takes no LoRA")
    known = {"unet_config": unet_config} if unet_config is not None else {}
    state: Tensors = tensors
    if not any(name.startswith(("unet.", "transformer.", "text_encoder")) for name in tensors):
        try:
            found = pipeline.lora_state_dict(dict(tensors), **known)
        except (ValueError, LookupError, NotImplementedError, AttributeError, AssertionError) as error:
            blamed = [name for name in tensors if name in str(error)]
            raise ModelError(_foreign(file, blamed or tensors, pipeline)) from error
        state = found[0] if isinstance(found, tuple) else found
        state = {**state, **_passed_over(tensors, state)}
    if not state or not all(name.startswith(("unet.", "transformer", "text_encoder")) for name in state):
        raise ModelError(_foreign(file, tensors, pipeline))
    return {name: tensor for name, tensor in state.items() if not name.endswith(".alpha")}


def _passed_over(tensors: Tensors, state: Tensors) -> Tensors:
    """Factors of text encoders that diffusers has no names for, as T5, under names by which they can be told."""
    made = {}
    for name, tensor in tensors.items():
        if match := _KOHYAS_ENCODER.fullmatch(name):
            component = f"text_encoder_{match[1]}" if match[1] not in ("", "1") else "text_encoder"
            if not any(known.startswith(f"{component}.") for known in state):
                made[f"{component}.{match[2]}.lora_{'A' if match[3] == 'down' else 'B'}.weight"] = tensor
    return made


def _foreign(file: Path, names: Iterable[str], pipeline: Any) -> str:
    first = next(iter(names), "nothing")
    return f"{file} is not a LoRA for {pipeline.__name__} that diffusers can read (it has {first[:80]})"


def _parts(tensors: Tensors, saved: Mapping[str, float], file: Path) -> Parts:
    """Pairs of factors, with the scale that is saved beside them in the second."""
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    parts: Parts = {}
    for component in dict.fromkeys(name.partition(".")[0] for name in tensors):
        own = {n.removeprefix(f"{component}."): t for n, t in tensors.items() if n.startswith(f"{component}.")}
        if "text_encoder" in component:
            own = {_of_text_encoder(name): tensor for name, tensor in own.items()}
        elif not any("lora_A" in name for name in own):
            own = convert_unet_state_dict_to_peft(own)
        modules = [name.removesuffix(".lora_A.weight") for name in own if name.endswith(".lora_A.weight")]
        pairs = {name: (own.pop(f"{name}.lora_A.weight"), own.pop(f"{name}.lora_B.weight", None)) for name in modules}
        odd = [*own, *(name for name, (_, up) in pairs.items() if up is None)]
        if odd:
            raise ModelError(f"{file} is not a LoRA that can be read: {odd[0][:80]} has no counterpart in it")
        torn = next((name for name, (down, up) in pairs.items() if up is None or down.shape[0] != up.shape[1]), None)
        if torn is not None:
            raise ModelError(f"{file} is damaged: the two factors of {torn[:80]} have different ranks")
        parts[component] = {
            name: Factors(down, up * _scale(f"{component}.{name}", down.shape[0], saved))
            for name, (down, up) in pairs.items()
            if up is not None
        }
    return parts


def _of_text_encoder(name: str) -> str:
    """A name in a text encoder as PEFT writes it: `self_attn.q_proj.lora_A.weight`."""
    name = re.sub(r"\.to_(q|k|v|out)_lora\.(down|up)\.", r".\1_proj.lora.\2.", name)
    name = name.replace(".lora_linear_layer.", ".lora.")
    return name.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")


@cache
def _ending(pattern: str) -> re.Pattern[str]:
    """A pattern of a module's name as PEFT reads it: "to_q" and "attn1.to_q" are for every module so called."""
    return re.compile(rf"(.*\.)?({pattern})$")


def _scale(module: str, rank: int, saved: Mapping[str, float]) -> float:
    component, _, name = module.partition(".")
    patterns = ((key.removeprefix(f"{component}."), v) for key, v in saved.items() if key.startswith(f"{component}."))
    own = next((alpha for pattern, alpha in patterns if _ending(pattern).match(name)), None)
    candidates = (own, saved.get(component), saved.get(""))
    alpha = next((alpha for alpha in candidates if alpha is not None), None)
    return 1.0 if alpha is None else alpha / (math.sqrt(rank) if "rslora" in saved else rank)
