"""Custom pipelines that are stock pipelines with a few abilities more.

A custom pipeline names the stock pipelines it can be. Built from components, it becomes an instance of the first one
that fits them: a UNet with SDXL's conditioning makes a StableDiffusionXLPipeline, a ControlNet its ControlNet variant.
Everything of the stock class works - offload, LoRA, IP-Adapter, callbacks - because it *is* that class; no line of its
call is copied. Custom pipeline files use this module as `diffaccel.pipelines.base`: diffusers takes any second pipeline
class among a file's names for a mistake.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

import diffusers
from diffusers import DiffusionPipeline

from diffaccel import models
from diffaccel._diffusers import is_same_model, pipeline_being_built, pipeline_of_file, pipeline_of_folder
from diffaccel.attach.handle import Handle, accelerate
from diffaccel.attach.report import Report
from diffaccel.methods import Method
from diffaccel.methods.spelled import MethodLike, as_methods
from diffaccel.models.source import check_weights
from diffaccel.pipelines.stock import (
    AnyType,
    at_work,
    check_arguments,
    fits,
    is_component,
    parameters_of,
    resolved,
    told_apart,
    union_of,
)

OWN = ("cache", "guidance", "gate")
SHOWN = 8  # stock pipelines that a message names


class FastPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Base of the custom pipelines: `class Mine(FastPipeline, stock=(StableDiffusionPipeline, ...))`."""

    stock: ClassVar[tuple[type[DiffusionPipeline], ...]] = ()
    stock_class: ClassVar[type[DiffusionPipeline] | None] = None
    _optional_components: ClassVar[list[str]] = []
    _feature_cache: Handle | None = None
    _last_report: Report | None = None

    def __init_subclass__(cls, stock: tuple[type[DiffusionPipeline], ...] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if stock:
            _forget_earlier_files(cls.__module__)
            cls.stock = stock
            cls.__init__, cls._optional_components = union_of(stock)  # type: ignore[method-assign]

    def __new__(cls, *args: Any, **components: Any) -> Self:
        """An instance of this class and of the stock pipeline that fits the components."""
        if args:
            raise TypeError(f"{cls.__name__} takes its components by name, not by position")
        kind: type = cls
        if cls.stock_class is None:
            found = cls._follow(resolved(components), pipeline_being_built().name)
            kind = _specialised(cls, found)  # type: ignore[arg-type]
        instance: Self = object.__new__(kind)
        return instance

    @classmethod
    def _follow(cls, components: Mapping[str, Any], name: str | None) -> type[DiffusionPipeline]:
        """The stock pipeline of that name, if the components make one; else the one that is chosen for them."""
        for stock in cls.stock:
            if stock.__name__ == name and fits(stock, components):
                return stock
        return cls.choose(components)

    @classmethod
    def choose(cls, components: Mapping[str, Any]) -> type[DiffusionPipeline]:
        """The first stock pipeline that takes all components and lacks none.

        Raises:
            TypeError: where there is none; the message names the stock pipelines.
        """
        for stock in cls.stock:
            if fits(stock, components):
                return told_apart(stock, components)
        given = ", ".join(f"{k}: {type(v).__name__}" for k, v in components.items() if is_component(v))
        raise TypeError(
            f"{cls.__name__} cannot be built of {given or 'nothing'}: it needs the components of {_listed(cls.stock)}"
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load as diffusers does, from a bundled name, a local folder or a Hub id; weights only as safetensors.

        Raises:
            ModelError: for a folder whose weights are pickled only or damaged, or which names components outside of
                diffusers, transformers and diffaccel, unless `trust_remote_code=True` consents to those.
        """
        name = os.fspath(pretrained_model_name_or_path)
        if kwargs.setdefault("use_safetensors", True) is False:
            raise models.ModelError("weights are read as safetensors only: leave use_safetensors out")
        if name in models.names("pipeline"):
            name = str(models.path(name))
        folder = Path(name) if Path(name).is_dir() else Path(cls.download(name, **kwargs))
        if not kwargs.get("trust_remote_code"):
            models.resolve(folder)
        check_weights(folder)
        return super().from_pretrained(name, **kwargs)

    def register_to_config(self, **kwargs: Any) -> None:
        """As in diffusers, which tells here where it loaded from; so pickles are refused on every road to a pipeline.

        Raises:
            ModelError: where weights in that folder are pickled only.
        """
        source = Path(kwargs.get("_name_or_path") or "")
        if kwargs.get("_name_or_path") and source.is_dir():
            check_weights(source)
        super().register_to_config(**kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """This pipeline on the components of another one, which it shares; `kwargs` replace or add some.

        Raises:
            TypeError: where they fit none of the stock pipelines.
        """
        if cls.stock_class is not None:
            return super().from_pipe(pipeline, **kwargs)
        options = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
        components = pipeline.components | kwargs
        stock = cls._follow(components, type(pipeline).__name__)
        accepted = parameters_of(stock)
        kept = {name: value for name, value in components.items() if name in accepted or name in kwargs}
        return _specialised(cls, stock).from_pipe(pipeline, **kept, **options)  # type: ignore[arg-type]

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load one file of weights as the stock pipeline of its kind does; offline with `config=FOLDER`.

        Raises:
            ValueError: where no stock pipeline of this class is for such a file.
        """
        if cls.stock_class is not None:
            return super().from_single_file(pretrained_model_link_or_path, **kwargs)
        config = kwargs.get("config")
        name = pipeline_of_folder(config) if config else pipeline_of_file(pretrained_model_link_or_path)
        for stock in cls.stock:
            if hasattr(stock, "from_single_file") and is_same_model(stock.__name__, name):
                return _specialised(cls, stock).from_single_file(pretrained_model_link_or_path, **kwargs)  # type: ignore[arg-type]
        raise ValueError(
            f"{cls.__name__} cannot read {pretrained_model_link_or_path}, which is for a {name}: it can be "
            f"{_listed(cls.stock)}"
        )

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[type, ...]]:
        """Any type for any component, as long as it is not known which stock pipeline they make: `choose` decides."""
        if cls.stock_class is not None:
            return super()._get_signature_types()  # type: ignore[no-any-return]
        return dict.fromkeys(inspect.signature(cls.__init__).parameters, AnyType((Any,)))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled and copied as an instance of the file's class, of which this one was made for its components."""
        if self.stock_class is None:
            return super().__reduce_ex__(protocol)
        base = type(self).__mro__[1]
        return _blank, (base, self.stock_class), *object.__reduce_ex__(self, 2)[2:3]  # type: ignore[return-value]

    def enable_feature_cache(
        self,
        cache: MethodLike | Sequence[MethodLike] | None = None,
        *,
        guidance: MethodLike | None = None,
        gate: MethodLike | int | None = None,
    ) -> Handle:
        """Accelerate every call from now on, until `disable_feature_cache`; arguments as in a call.

        Raises:
            RuntimeError: where it is enabled already.
            ValueError, TypeError, UnsupportedModelError: where a method is not valid or does not fit the network.
        """
        if self._feature_cache is not None:
            raise RuntimeError("a feature cache is enabled already: call disable_feature_cache() first")
        self._feature_cache = accelerate(self, *as_methods(cache, guidance, gate))
        return self._feature_cache

    def disable_feature_cache(self) -> None:
        """Go back to the stock pipeline; harmless where nothing was enabled."""
        if self._feature_cache is not None:
            self._feature_cache.detach()
            self._last_report, self._feature_cache = self._feature_cache.report(), None

    def report(self) -> Report | None:
        """What was saved: since `enable_feature_cache`, or in the last accelerated call; None before any."""
        return self._last_report if self._feature_cache is None else self._feature_cache.report()

    @contextmanager
    def accelerated(self, methods: Sequence[Method]) -> Iterator[None]:
        """Put methods on for one call; none leaves everything as it is."""
        if not methods:
            yield
            return
        if self._feature_cache is not None:
            raise RuntimeError(
                "a feature cache is enabled for all calls: call disable_feature_cache() first, or leave cache, "
                "guidance and gate out"
            )
        with accelerate(self, *methods) as handle:
            handle.only_here()
            yield
            self._last_report = handle.report()

    def __call__(
        self,
        *args: Any,
        cache: MethodLike | Sequence[MethodLike] | None = None,
        guidance: MethodLike | None = None,
        gate: MethodLike | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """The stock call, accelerated: see `as_methods` for `cache`, `guidance` and `gate`.

        Raises:
            TypeError: for an argument that the stock call does not know, which some of them would ignore in silence.
            RuntimeError: where another thread's call uses the same network meanwhile, and one of the two reuses
                features.
        """
        if self.stock_class is not None:
            check_arguments(self.stock_class, kwargs, OWN)
        methods = as_methods(cache, guidance, gate)
        with at_work(self, accelerating=bool(methods)), self.accelerated(methods):
            return super().__call__(*args, **kwargs)


def named(names: Sequence[str]) -> tuple[type[DiffusionPipeline], ...]:
    """Stock pipelines by their names without `Pipeline`.

    The first of those that have the same parts is what bare parts become; a model, or another pipeline, says which one
    it is.
    """
    return tuple(getattr(diffusers, f"{name}Pipeline") for name in names)


def _listed(stock: Sequence[type]) -> str:
    """The names of the first stock pipelines, and how many there are besides."""
    shown = ", ".join(each.__name__ for each in stock[:SHOWN])
    return shown + (f" or {len(stock) - SHOWN} others, see its attribute stock" if len(stock) > SHOWN else "")


def _forget_earlier_files(module: str) -> None:
    """Let a second local folder be loaded: diffusers runs its `pipeline.py` in the module of the first one's.

    It would find the pipelines of both there, and refuse.
    """
    if module.startswith("diffusers_modules."):
        names = vars(sys.modules[module])
        for name in [n for n, value in names.items() if isinstance(value, type) and issubclass(value, FastPipeline)]:
            del names[name]


@cache
def _specialised(cls: type[FastPipeline], stock: type[DiffusionPipeline]) -> type[FastPipeline]:
    """A class that is both: ours first, the stock pipeline behind it, under whose name it is known to diffusers.

    So a saved folder needs nothing of ours to load, and AutoPipeline finds what belongs to it.
    """
    parameters = parameters_of(stock)

    def __init__(self: FastPipeline, **components: Any) -> None:
        components = resolved(components)
        unknown = sorted(n for n, value in components.items() if value is not None and n not in parameters)
        if unknown:
            raise TypeError(f"{stock.__name__} has no {unknown[0]!r}: it takes {', '.join(parameters)}")
        kept = {
            name: components.get(name)
            for name, p in parameters.items()
            if components.get(name) is not None or p.default is p.empty
        }
        stock.__init__(self, **kept)

    def __call__(self: FastPipeline, *args: Any, **kwargs: Any) -> Any:
        return cls.__call__(self, *args, **kwargs)

    __init__.__signature__ = inspect.signature(stock.__init__)  # type: ignore[attr-defined]
    __init__.__annotations__ = get_type_hints(stock.__init__)
    if _passes_on(cls):
        ours = _own_arguments(cls)
        theirs = [p for p in inspect.signature(stock.__call__).parameters.values() if p.kind is not p.VAR_KEYWORD]
        rest = [p for p in inspect.signature(stock.__call__).parameters.values() if p.kind is p.VAR_KEYWORD]
        __call__.__signature__ = inspect.Signature([*theirs, *ours, *rest])  # type: ignore[attr-defined]
        __call__.__doc__ = (stock if cls.__call__ is FastPipeline.__call__ else cls).__call__.__doc__
    else:
        __call__.__signature__ = inspect.signature(cls.__call__)  # type: ignore[attr-defined]
        __call__.__doc__ = cls.__call__.__doc__
    body = {
        "__init__": __init__,
        "__call__": __call__,
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
        "_optional_components": stock._optional_components,
        "stock_class": stock,
    }
    return type(stock.__name__, (cls, stock), body)


def _passes_on(cls: type[FastPipeline]) -> bool:
    """Whether a class's call takes whatever the stock call does."""
    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(cls.__call__).parameters.values())


def _own_arguments(cls: type[FastPipeline]) -> list[inspect.Parameter]:
    """What a class's call takes beside that."""
    own = {**inspect.signature(FastPipeline.__call__).parameters, **inspect.signature(cls.__call__).parameters}
    return [p for p in own.values() if p.kind is p.KEYWORD_ONLY]


def _blank(cls: type[FastPipeline], stock: type[DiffusionPipeline]) -> FastPipeline:
    """An instance without components, for copies and pickles to fill."""
    kind = _specialised(cls, stock)
    return kind.__new__(kind)
