"""What a pipeline takes for arguments that are left open, read in its source: importing it takes seconds and 200 MB."""

import ast
import inspect
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffaccel.models import ModelSource
from diffaccel.models.quiet import quiet_loading


@lru_cache
def call_defaults(pipeline: str) -> dict[str, Any]:
    """Default values of the arguments of a call of the pipeline of the class with this name; of those that have one."""
    try:
        return _read(pipeline)
    except (LookupError, ValueError):  # it inherits its call, or has other defaults than literals
        return _imported(pipeline)


def has_guidance_built_in(source: ModelSource) -> bool:
    """Whether the network takes the guidance scale as an input, and its pipeline no negative prompt to heart."""
    true_scale = call_defaults(source.index["_class_name"]).get("true_cfg_scale")
    if isinstance(true_scale, int | float) and true_scale <= 1:  # as FLUX, whose guidance_scale is another thing
        return True
    unet = source.config_of("unet").get("time_cond_proj_dim")
    return unet is not None or bool(source.config_of("transformer").get("guidance_embeds"))


def _read(pipeline: str) -> dict[str, Any]:
    """Defaults as they are written. Raises `LookupError` where no call is, and `ValueError` for what is no literal."""
    library = find_spec("diffusers")
    assert library is not None, "diffusers is installed"
    for file in Path(str(library.origin)).parent.glob("pipelines/**/pipeline_*.py"):
        text = file.read_text(encoding="utf-8")
        if f"\nclass {pipeline}(" in text:
            (kind,) = (
                node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == pipeline
            )
            return _written(kind)
    raise LookupError(pipeline)


def _written(kind: ast.ClassDef) -> dict[str, Any]:
    for node in kind.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__call__":
            places, named = [*node.args.posonlyargs, *node.args.args], node.args.kwonlyargs
            found = [*zip(reversed(places), reversed(node.args.defaults), strict=False)]
            found += [(each, value) for each, value in zip(named, node.args.kw_defaults, strict=True) if value]
            return {each.arg: ast.literal_eval(value) for each, value in found}
    raise LookupError(kind.name)


def _imported(pipeline: str) -> dict[str, Any]:
    with quiet_loading():
        import diffusers

        kind = getattr(diffusers, pipeline, None)
    if kind is None:
        return {}
    given = inspect.signature(kind.__call__).parameters.values()
    return {each.name: each.default for each in given if each.default is not inspect.Parameter.empty}
