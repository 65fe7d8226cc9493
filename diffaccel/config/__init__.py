"""Configurations are frozen dataclasses that travel as dictionaries and as short strings.

A dictionary serves manifests and tuned profiles, `{"type": "deepcache", "interval": 3}`; a string serves the command
line, `deepcache:interval=3,schedule=steps(0,4,9)`. Both name a configuration by its lower-case class name.
"""

import ast
import json
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from diffaccel.config.checks import check, require_once
from diffaccel.config.files import read_json, write_atomically
from diffaccel.config.words import did_you_mean, with_article

_WORD = re.compile(r"[^\W\d][\w./-]*")
"""What needs no quotation marks: names of models and relative paths, too, which Python reads as differences."""


class Config:
    """Base of every configuration: subclasses are frozen dataclasses and register themselves by name."""

    _known: ClassVar[dict[str, type["Config"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = Config._known.setdefault(cls.__name__.lower(), cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"{cls.__module__}.{cls.__qualname__} bears the name of {known.__module__}.{known.__qualname__}, by "
                "which text and files know it: give it another one"
            )
        Config._known[cls.__name__.lower()] = cls  # the same class again, as when its module is loaded anew

    @classmethod
    def names(cls) -> list[str]:
        """Names of the concrete configurations of this kind, sorted."""
        return sorted(name for name, known in Config._known.items() if issubclass(known, cls) and _is_concrete(known))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary that `from_dict` turns back into an equal configuration."""
        values = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return {"type": type(self).__name__.lower(), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that `to_dict` wrote.

        Raises:
            ValueError: if the type is missing, unknown or not of this kind, or a field is unknown or invalid.
        """
        rest = dict(values)
        if "type" not in rest and cls.__name__.lower() not in cls.names():
            raise ValueError(
                f'{rest} does not say which {cls.__name__.lower()} it is: add "type", such as "{cls.names()[0]}"'
            )
        return cls._build(str(rest.pop("type", cls.__name__)), (), {k: _revive(v) for k, v in rest.items()})

    def to_text(self) -> str:
        """The short string that `parse` turns back into an equal configuration."""
        name, arguments = _called(self)
        return f"{name}:{arguments}" if arguments else name

    @classmethod
    def parse(cls, text: str) -> Self:
        """The configuration written as `name` or `name:field=value,...`; a value may be another one, as `name(...)`.

        Raises:
            ValueError: if the text does not follow this form, naming what is wrong and what is valid.
        """
        name, _, arguments = text.strip().partition(":")
        source = f"f({arguments})"
        try:
            call: ast.expr | None = ast.parse(source, mode="eval").body
        except SyntaxError:
            call = None
        if not isinstance(call, ast.Call) or "(" in name:
            raise ValueError(f"cannot read {text!r}: write name:field=value,field=value, and what is no word in quotes")
        return cls._build(name.strip(), *_arguments(call, source))

    @classmethod
    def _build(cls, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Self:
        """An instance of the configuration called `name`, which must be of kind `cls`."""
        if name.lower() not in cls.names():
            hint = did_you_mean(name, cls.names())
            raise ValueError(f"unknown {cls.__name__.lower()} {name!r}{hint}: choose from {', '.join(cls.names())}")
        known = Config._known[name.lower()]
        valid = [field.name for field in ordered_fields(known)]
        if unknown := sorted(set(kwargs) - set(valid)):
            hint = did_you_mean(unknown[0], valid)
            raise ValueError(f"{name} has no field {unknown[0]!r}{hint}: its fields are {', '.join(valid) or 'none'}")
        if len(valid) == 1 and len(args) > 1:
            args = (args,)
        try:
            built = known(**_by_field(name, known, args, kwargs))
        except TypeError as error:
            raise ValueError(f"cannot build {name}: {error}; its fields are {', '.join(valid)}") from error
        assert isinstance(built, cls)
        return built


class StoredConfig(Config):
    """A configuration that travels as a JSON file; `_origin` says what it is and what writes it."""

    _origin: ClassVar[str]

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        write_atomically(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds something else; the message names the file.
        """
        try:
            values = read_json(path)
            check(isinstance(values, dict), f"expected an object, found {type(values).__name__}")
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path} is not {cls._origin}: {error}") from error

    @classmethod
    def read(cls, given: str | Self) -> Self:
        """What a field that `stored` has checked holds, read from its file where it is a path."""
        return cls.load(given) if isinstance(given, str) else given


def stored(owner: Config, name: str, cls: type[StoredConfig], words: str, *, optional: bool = False) -> None:
    """Check that a field holds a stored configuration or the path of its file, which becomes text.

    Args:
        words: what the field may hold, for the message.
        optional: None will do, too.
    """
    value = getattr(owner, name)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
        object.__setattr__(owner, name, value)
    fits = isinstance(value, cls) or (isinstance(value, str) and value != "") or (optional and value is None)
    check(fits, f"{name} must be {words}; got {value!r}")


def ordered_fields(config: type[Config]) -> list[Field[Any]]:
    """Fields of a configuration, in the order in which text takes them; those that text must name come last."""
    return sorted(fields(config), key=lambda field: field.kw_only is True)  # type: ignore[arg-type]


def _by_field(name: str, cls: type[Config], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Values by the names of their fields; `args` are those of the first ones."""
    places = [field.name for field in fields(cls) if field.kw_only is not True]  # type: ignore[arg-type]
    if len(args) > len(places):
        raise ValueError(f"{name} takes {', '.join(places) or 'no value'} in this order, and got {len(args)} values")
    require_once([*places[: len(args)], *kwargs])
    values = {**dict(zip(places, args, strict=False)), **kwargs}
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} needs a value for its field {field.name!r}")
    return values


def _is_concrete(cls: type[Config]) -> bool:
    """Whether `cls` is offered by name: neither a base class of a kind, nor private."""
    concrete = hasattr(cls, "__dataclass_fields__") and not getattr(cls, "__abstractmethods__", None)
    return concrete and not cls.__name__.startswith("_")


def _plain(value: Any) -> Any:
    """`value` in JSON's types."""
    if isinstance(value, Config):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _called(config: Config) -> tuple[str, str]:
    """Name and arguments of a configuration; arguments that have their default are left out."""
    given = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}  # type: ignore[arg-type]
    return type(config).__name__.lower(), ",".join(f"{name}={_written(value)}" for name, value in given.items())


def _written(value: Any) -> str:
    """`value` as `_value` reads it."""
    if isinstance(value, Config):
        name, arguments = _called(value)
        return f"{name}({arguments})"
    if isinstance(value, tuple):
        return f"[{','.join(_written(item) for item in value)}]"
    if isinstance(value, float | str):  # of NumPy, too, whose own text has its type beside the value
        return float.__repr__(value) if isinstance(value, float) else str.__repr__(value)
    return repr(value)


def _revive(value: Any) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, Mapping):
        return Config.from_dict(value)
    return tuple(_revive(item) for item in value) if isinstance(value, list | tuple) else value


def _arguments(call: ast.Call, source: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call that was parsed from `source`."""
    names = [keyword.arg for keyword in call.keywords]
    if None in names:
        raise ValueError("** is not allowed in a configuration")
    require_once(filter(None, names))
    named = {str(keyword.arg): _value(keyword.value, source) for keyword in call.keywords}
    return tuple(_value(arg, source) for arg in call.args), named


def _value(node: ast.expr, source: str) -> Any:
    """A literal, a bare word or path (a string), or a nested configuration."""
    written = ast.get_source_segment(source, node) or ""
    if isinstance(node, ast.Name) and written.lower() in Config.names():
        return Config._build(written, (), {})
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return Config._build(node.func.id, *_arguments(node, source))
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_value(item, source) for item in node.elts)
    if _WORD.fullmatch(written) and not isinstance(node, ast.Constant):
        return {"true": True, "false": False}.get(written, written)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(
            f"cannot read the value {written!r}: use a number, a word, 'text in quotes' or name(...)"
        ) from error


def kind(name: str, value: object, cls: type[Config]) -> None:
    """Check that `value` is None or a configuration of kind `cls`."""
    fits = value is None or isinstance(value, cls)
    hint = did_you_mean(value, cls.names()) if isinstance(value, str) else ""
    check(fits, f"{name} must be a {cls.__name__.lower()} ({', '.join(cls.names())}); got {value!r}{hint}")


C = TypeVar("C", bound=Config)


def as_config(value: Config | str | Mapping[str, Any], kind: type[C]) -> C:
    """A configuration given as itself, as text (`"deepcache:interval=3"`), or as its dictionary.

    Raises:
        TypeError: where it is none of these, or of another kind.
        ValueError: where a name or a value is not valid; the message names what is.
    """
    config = kind.parse(value) if isinstance(value, str) else value
    config = kind.from_dict(config) if isinstance(config, Mapping) else config
    if not isinstance(config, kind):
        raise TypeError(f"expected {with_article(kind.__name__)}, its text or its dictionary, not {value!r}")
    return config
