"""The only file that imports names diffusers keeps private, and the only one that reads its private attributes.

Checked against diffusers 0.42; a version that moves a name fails here, at import, and nowhere else.
"""

import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, NamedTuple

import torch
from diffusers import BaseGuidance, DiffusionPipeline, ModularPipeline
from diffusers import hooks as stock_hooks
from diffusers.hooks import FirstBlockCacheConfig, HookRegistry, ModelHook
from diffusers.hooks.group_offloading import _GROUP_OFFLOADING
from diffusers.hooks.hooks import CacheContext, HookFunctionReference, StateManager, _set_cache_context

REGISTRY_ATTRIBUTE = "_diffusers_hook"
RESET_ATTRIBUTE = "_reset_stateful_cache"
SINGLE_FILES = {  # kinds of checkpoints, as diffusers tells them apart, by how their names start
    "xl_": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
}


_LENT = threading.Lock()


@contextmanager
def text_model_of(encoder: Any) -> Iterator[None]:
    """Within, a CLIP encoder has the ``text_model`` by which Stable Diffusion's ``clip_skip`` finds its last norm.

    In transformers 5 the encoder is that model itself.
    """
    if hasattr(encoder, "text_model") or not hasattr(encoder, "final_layer_norm"):
        yield
        return
    with _LENT:
        vars(encoder)["text_model"] = encoder  # no module of it: what walks over modules must not go round
        try:
            yield
        finally:
            del vars(encoder)["text_model"]


class _Reference(HookFunctionReference):  # type: ignore[misc]
    """What a hook of ours runs, and what lies beneath.

    diffusers takes a hook out of the middle of a chain by giving the hook above the forward from beneath in place of
    its own, so that it would stay listed and do nothing.
    """

    own: Any

    @property
    def forward(self) -> Any:
        """The hook's own forward, whatever came or went beneath."""
        return self.own

    @forward.setter
    def forward(self, beneath: Any) -> None:
        self.original_forward = beneath


class Hook(ModelHook):  # type: ignore[misc]
    """A typed `ModelHook`. Subclasses define `new_forward(module, *args, **kwargs)` and call `original` in it.

    Attributes:
        group: beneath it, the hook that moves this module and others to the device together; None where none does.
        hooked: the module's forward with it.
    """

    group: Any = None
    hooked: Any = None

    def put_on(self, module: torch.nn.Module, name: str) -> None:
        """Register it on a module, above all that is there; it goes on working when something goes from beneath."""
        registry = registry_of(module)
        found = registry.get_hook(_GROUP_OFFLOADING)
        self.group = found if found is not None and len(found.group.modules) > 1 else None
        registry.register_hook(self, name)
        self.fn_ref.own = self.fn_ref.__dict__.pop("forward")
        self.fn_ref.__class__, self.hooked = _Reference, module.forward

    @property
    def beneath(self) -> Any:
        """The forward that it wraps."""
        return self.fn_ref.original_forward

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward that this hook wraps."""
        return self.fn_ref.original_forward(*args, **kwargs)

    def wrap(self, forward: Any) -> None:
        """Have `original` run another forward. Only after the hook was registered."""
        self.fn_ref.original_forward = forward

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be copied or pickled: the forward of a copied module would go on to run the first one's weights."""
        raise RuntimeError(
            "a network with hooks of diffaccel on it cannot be copied or pickled: call detach() on its handle, or "
            "close() on the streams that use it, first"
        )


class ContextName(StateManager):  # type: ignore[misc]
    """Learns the name that a pipeline gives its current call through `model.cache_context(name)`; None outside one."""

    def __init__(self) -> None:
        super().__init__(state_cls=None)

    @property
    def name(self) -> str | None:
        """The current context's name."""
        return None if self._context is None else str(self._context.name)

    def reset(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Forget the context."""
        self._context = None


def registry_of(module: torch.nn.Module) -> Any:
    """The module's hook registry, made on first use."""
    return HookRegistry.check_if_exists_or_initialize(module)


def wraps_forward(module: torch.nn.Module, name: str) -> bool:
    """Whether a hook runs something in place of the module's forward; nothing can be taken from beneath such a one."""
    registry = registry_of(module)
    return registry._fn_refs[registry._hook_order.index(name)].original_forward is not None


def hooks_of(module: torch.nn.Module) -> list[str]:
    """Names of the hooks in the module's registry, innermost first."""
    registry = module.__dict__.get(REGISTRY_ATTRIBUTE)
    return [] if registry is None else list(registry._hook_order)


def _chain(forward: Any) -> Iterator[Any]:
    """A forward, and what it wraps: hooks of diffusers and accelerate, and compiled code, tell what lies beneath."""
    while forward is not None:
        yield forward
        forward = getattr(forward, "__wrapped__", None)


def is_bypassed(module: torch.nn.Module, hook: Hook) -> bool:
    """Whether a module runs something that lay beneath a hook of ours, instead of that.

    accelerate takes a hook off by giving the module the forward from before it, without what others put on top.
    """
    beneath = list(_chain(hook.hooked))[1:]
    chain = _chain(module.forward)
    found = next((forward for forward in chain if forward is hook.hooked or forward in beneath), hook.hooked)
    return found is not hook.hooked


# How names of the hooks of diffusers' caches begin, and of its guiders that change blocks for one prediction.
STOCK_CACHES = "faster_cache|fbc_|mag_cache|pyramid_|sea_cache|taylorseer_|text_kv_cache"
GUIDERS = r"[A-Za-z]+Guidance_\d"


def hook_on(model: torch.nn.Module, pattern: str) -> str | None:
    """The first name of hooks on a network and its modules that begins with a pattern; None for none."""
    names = (name for module in model.modules() for name in hooks_of(module))
    return next((name for name in names if re.match(pattern, name)), None)


def first_block_cache(model: torch.nn.Module, threshold: float) -> AbstractContextManager[None]:
    """diffusers' FirstBlockCache on a transformer, as `stock_cache`."""
    return stock_cache(model, FirstBlockCacheConfig(threshold=threshold))


@contextmanager
def stock_cache(model: torch.nn.Module, config: Any) -> Iterator[None]:
    """A cache of diffusers on a network, by its configuration, in a context of its own: some pipelines set none.

    Pipelines forget the states of caches at the end of a run if the network has a method for it, which not all have.
    """
    before = {name: hooks_of(module) for name, module in model.named_modules()}
    words = re.findall("[A-Z][a-z]+", type(config).__name__.removesuffix("Config").replace("TaylorSeer", "Taylorseer"))
    getattr(stock_hooks, f"apply_{'_'.join(words).lower()}")(model, config)

    registry_of(model).invalidate_child_registries_cache()  # this cache may sit on other modules than the last one did

    def forget() -> None:
        registry_of(model).reset_stateful_hooks(recurse=True)
        _set_cache_context(model, CacheContext("diffaccel"))

    model.__dict__[RESET_ATTRIBUTE] = forget
    forget()
    try:
        yield
    finally:
        del model.__dict__[RESET_ATTRIBUTE]
        _set_cache_context(model, None)
        for name, module in model.named_modules():
            for hook in [hook for hook in hooks_of(module) if hook not in before[name]]:
                registry_of(module).remove_hook(hook, recurse=False)
        registry_of(model).invalidate_child_registries_cache()


def num_timesteps(pipe: Any) -> int | None:
    """Length of the timesteps that the running pipeline announced, where it does."""
    announced = getattr(pipe, "_num_timesteps", None)
    return announced if isinstance(announced, int) else None


def task_class(pipeline: str, task: str, *, controlnet: bool = False) -> Any:
    """The class that does a task with the parts of a pipeline of the class with this name; None where there is none.

    Args:
        task: `"text"`, from a text alone; `"image"`, from a picture; or `"inpaint"`, within a picture.
        controlnet: with a ControlNet.
    """
    from diffusers.pipelines import auto_pipeline

    mappings = {
        "text": auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
        "image": auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        "inpaint": auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING,
    }
    found = auto_pipeline._get_task_class(mappings[task], pipeline, throw_error_if_not_exist=False)
    if found is None or not controlnet or "ControlNet" in found.__name__:
        return found
    ending = {"text": "Pipeline", "image": "Img2ImgPipeline", "inpaint": "InpaintPipeline"}[task]
    name = found.__name__.replace(ending, f"ControlNet{ending}")
    return next((kind for kind in mappings[task].values() if kind.__name__ == name), None)


PREPARED = "guider_state_batch"  # what modular pipelines call the inputs that a guider has prepared
GUIDANCE_SCALES = ("guidance_scale", "guidance_scale_2", "image_guidance_scale", "pag_scale", "true_cfg_scale")


class RunningCall(NamedTuple):
    """A pipeline's call that is under way.

    Attributes:
        pipe: the pipeline.
        frame: of its `__call__`, whose variables are read where nothing else tells a fact.
        prepared: what a modular pipeline's guider calls the prediction that is under way, as "pred_uncond"; None
            without one.
    """

    pipe: Any
    frame: FrameType
    prepared: str | None = None

    @property
    def embeddings(self) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Variables that hold embeddings of the negative prompt, however their names end, each with the prompt's."""
        values = {name: value for name, value in self.frame.f_locals.items() if isinstance(value, torch.Tensor)}
        negatives = [name for name in values if name.startswith("negative_prompt_embeds")]
        return [(values[name], values.get(name.removeprefix("negative_"))) for name in negatives]

    @property
    def guided(self) -> bool | None:
        """What the call says in a variable of guidance with a negative prompt; None where it has none."""
        values = [self.frame.f_locals.get(name) for name in ("do_classifier_free_guidance", "do_true_cfg")]
        return next((value for value in values if isinstance(value, bool)), None)

    @property
    def guidance_scales(self) -> tuple[tuple[str, float], ...]:
        """The scales of guidance that the call was given, or that the pipeline's guider has, by name."""
        guider = vars(getattr(self.pipe, "guider", None) or object)
        values = {name: self.frame.f_locals.get(name, guider.get(name)) for name in GUIDANCE_SCALES}
        return tuple((name, float(value)) for name, value in values.items() if isinstance(value, int | float))


def running_call() -> RunningCall | None:
    """The innermost pipeline's call on this thread's stack, whichever pipeline object was accelerated."""
    frame, prepared = sys._getframe(1), None
    while frame is not None:
        if prepared is None and PREPARED in (*frame.f_code.co_varnames, *frame.f_code.co_cellvars):
            prepared = getattr(frame.f_locals.get(PREPARED), BaseGuidance._identifier_key, None)
        if frame.f_code.co_name == "__call__" and frame.f_code.co_varnames[:1] == ("self",):
            owner = frame.f_locals.get("self")
            if isinstance(owner, DiffusionPipeline | ModularPipeline):
                return RunningCall(owner, frame, prepared)
        frame = frame.f_back  # type: ignore[assignment]
    return None


class Origin(NamedTuple):
    """What a pipeline is being made from, further up the stack.

    Attributes:
        name: class name of the pipeline that the parts were saved with, or belong to.
        components: of that pipeline, where it is another object and no folder.
    """

    name: str | None = None
    components: Mapping[str, Any] = {}


def pipeline_being_built() -> Origin:
    """What diffusers is making a pipeline from, if it is making one."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "from_pipe" and "pipeline" in frame.f_code.co_varnames:
            pipeline = frame.f_locals["pipeline"]
            return Origin(type(pipeline).__name__, pipeline.components)
        if frame.f_code.co_name == "from_pretrained" and "config_dict" in frame.f_code.co_varnames:
            config = frame.f_locals.get("config_dict")
            return Origin(config.get("_class_name")) if isinstance(config, dict) else Origin()
        frame = frame.f_back
    return Origin()


def pipeline_of_folder(folder: str | os.PathLike[str]) -> str:
    """Class name of the pipeline that a folder, or a repository on the Hub, holds."""
    name = DiffusionPipeline.load_config(folder)["_class_name"]
    return str(name[1] if isinstance(name, list) else name)


def pipeline_of_file(file: str | os.PathLike[str]) -> str:
    """Class name of the text-to-image pipeline that one file of weights is for.

    Raises:
        ValueError: where it is not known.
    """
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type, load_single_file_checkpoint

    kind = infer_diffusers_model_type(load_single_file_checkpoint(file))
    for start, name in SINGLE_FILES.items():
        if kind.startswith(start):
            return name
    raise ValueError(f"{file} is a checkpoint of kind {kind!r}: give config=FOLDER, the folder of its pipeline")


def is_same_model(pipeline: str, other: str) -> bool:
    """Whether pipelines of two class names are for one model: a text-to-image one and its image-to-image one."""
    from diffusers.pipelines import auto_pipeline

    tables = [
        getattr(auto_pipeline, f"AUTO_{kind}_PIPELINES_MAPPING") for kind in ("TEXT2IMAGE", "IMAGE2IMAGE", "INPAINT")
    ]
    models = [
        {model for table in tables for model, cls in table.items() if cls.__name__ == name}
        for name in (pipeline, other)
    ]
    return pipeline == other or bool(models[0] & models[1])
