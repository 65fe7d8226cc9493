"""Whether settings fit a model, told from its configuration files: networks are built without their weights."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any

from diffaccel.attach.plan import Plan, plan, plans_of
from diffaccel.batch.jobs import Job
from diffaccel.batch.settings import parse_cache
from diffaccel.methods import Method, Profile
from diffaccel.models import Lora, ModelError, ModelSource, find_lora
from diffaccel.models.loader import our_class
from diffaccel.models.lora import without_misfits
from diffaccel.models.lora_file import read_parts
from diffaccel.models.quiet import quiet_loading
from diffaccel.networks import UnsupportedModelError, layout_of
from diffaccel.runtime.host import Host
from diffaccel.runtime.run import Run
from diffaccel.sampling.schedulers import sampler_named

DENOISERS = ("unet", "transformer")


Finder = Callable[[str, str, int | None], str | None]


def misfit_finder(source: ModelSource) -> Finder:
    """What speaks against caching with a sampler in so many steps, if anything; the model is read once."""
    return lru_cache(maxsize=None)(_HollowModel(source).problem)


def misfits(jobs: Iterable[Job], source: ModelSource, find: Finder | None = None) -> dict[str, str]:
    """Why caching cannot work, by the ids of the jobs for which it cannot.

    Checked are the network's kind and configuration and, where the sampler and the number of steps are given, the
    number of network calls and the sampler that a profile or calibration is for.

    Args:
        find: of `misfit_finder`, where jobs are looked at in several calls.

    Raises `ModelError` where a configuration file of the model is damaged.
    """
    problem, found = find or misfit_finder(source), {}
    for job in jobs:
        if not job.control_image and (name := _of_controlnets(job.cache)):
            found[job.id] = f"{name} needs a ControlNet and a control image: give --control-image, or leave it out"
            continue
        steps = None if job.init_image else job.steps  # from a picture, a run goes through a part of the steps
        if job.cache != "none" and (reason := problem(job.cache, job.scheduler, steps)):
            found[job.id] = reason
    return found


def _of_controlnets(cache: str) -> str | None:
    """The name of the first method that works on ControlNets alone, if there is one."""
    return next((type(method).__name__ for method in parse_cache(cache) if method.needs_controlnet), None)


def require_loras(loras: Iterable[Lora], source: ModelSource, *, partial: bool) -> None:
    """Raise `ModelError` where a LoRA does not fit a model's networks, with ``partial`` where no part of it does."""
    import diffusers

    pipeline = getattr(diffusers, str(source.index["_class_name"]), None)
    if pipeline is None:  # one of diffaccel's own, which knows when it is loaded
        return
    if not hasattr(pipeline, "lora_state_dict"):
        raise ModelError(f"{pipeline.__name__} takes no LoRA")
    model = _HollowModel(source)
    for lora in loras:
        unet = model.component("unet") if source.denoiser == "unet" else None
        parts = read_parts(
            find_lora(lora.name), pipeline, getattr(unet, "config", None), source.denoiser or "transformer"
        )
        networks = {name: model.component(name) for name in parts if (source.index.get(name) or [None])[0]}
        without_misfits(parts, networks, lora.name, partial=partial)


class _HollowModel:
    """The denoisers of a model without weights, and its scheduler."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self._built: dict[str, Any] = {}

    @cached_property
    def denoisers(self) -> list[Any]:
        """The networks that caching is put on."""
        return [self._part(name) for name in self._source.index if name.startswith(DENOISERS) and self._has(name)]

    @cached_property
    def scheduler(self) -> Any:
        """The model's own sampler."""
        return self._part("scheduler")

    def problem(self, cache: str, scheduler: str, steps: int | None) -> str | None:
        """What speaks against caching with this sampler in this many steps, if anything."""
        methods = parse_cache(cache)
        if not self.denoisers:
            return f"{self._source.name} has no denoiser that features could be reused in: use none"
        try:
            run = _SchedulerOnly(sampler_named(scheduler, self.scheduler))
            plans = [found for model in self.denoisers for found in plans_of(model, methods)]
            self._check_run(plans, methods, run, steps)
        except UnsupportedModelError as error:
            return f"{error}; methods that fit it: {', '.join(self._fitting()) or 'none'}"
        except ValueError as error:
            return str(error)
        return None

    def _check_run(
        self, plans: Sequence[Plan], methods: Sequence[Method], run: "_SchedulerOnly", steps: int | None
    ) -> None:
        """Raise `ValueError` where methods refuse runs in this many steps, or with this sampler."""
        host, total = Host(run), run.calls(steps)
        for part in (part for each in plans for part in each.parts):
            part.schedule.validate(total)
        for turns in (stage.turns for method in methods for stage in method.stages()):
            if total is not None:
                turns.validate(total)
        for method in methods:
            if isinstance(method, Profile):
                method.wrapper(layout_of(self.denoisers[0]), host).start_run(Run(host, None, waits=False), total)
            for substitute in filter(None, (method.substitute(model, host) for model in self.denoisers)):
                if total is not None:
                    substitute.turns.validate(total)

    def _fitting(self) -> list[str]:
        """Names of the methods that need no file and work on these networks."""
        return [name for name in Method.names() if self._fits(name)]

    def _fits(self, name: str) -> bool:
        try:
            methods = parse_cache(name)
            return all(plan(model, methods).methods for model in self.denoisers) and not methods[0].needs_controlnet
        except (UnsupportedModelError, ValueError):
            return False

    def component(self, name: str) -> Any:
        """A network by its name, of diffusers or transformers, built once."""
        if name not in self._built:
            self._built[name] = self._part(name)
        return self._built[name]

    def _has(self, name: str) -> bool:
        return (self._source.folder / name / "config.json").is_file()

    def _part(self, name: str) -> Any:
        """A network or scheduler, built from its configuration."""
        with quiet_loading():
            import diffusers
            import transformers
            from accelerate import init_empty_weights

            library, class_name = self._source.index[name]
            try:
                if library == "transformers":
                    kind = getattr(transformers, class_name)
                    config = kind.config_class.from_pretrained(self._source.folder / name, local_files_only=True)
                    with init_empty_weights():
                        return kind(config)
                kind = our_class(class_name) or getattr(diffusers, class_name)
                with init_empty_weights():
                    return kind.from_config(kind.load_config(self._source.folder / name, local_files_only=True))
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise ModelError(f"cannot read the {name} of {self._source.name}: {error}") from error


class _SchedulerOnly:
    """Stands in for a pipeline in front of methods that ask for its scheduler."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def calls(self, steps: int | None) -> int | None:
        """Network calls of a run of this many steps; None where that depends on more than the number."""
        if steps is None:
            return None
        try:
            self.scheduler.set_timesteps(steps)
        except ValueError:  # flow matching may need the picture's size, too
            return None
        return len(self.scheduler.timesteps)
