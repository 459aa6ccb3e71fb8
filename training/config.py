"""Frozen dataclasses out of YAML files and `key=value` overrides.

The only module that imports OmegaConf, which reads the YAML (`1e-4` is a number, duplicate keys are
refused), resolves `${other.key}` and parses overrides. The checking is ours, so that every mistake
ends in one sentence that names the file, the key, what was got and what is allowed.

Precedence, lowest first: the dataclasses' defaults, the file named by `base:` (and its own base),
the file itself, the overrides in the order given. Sections merge key by key; lists, and free-form
`dict[...]` fields, are values and are replaced whole (`kwargs.size=5` still changes one entry).
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from base.errors import UserError
from base.hashes import to_plain
from base.ranges import describe, is_in_range, options_of, split_hint, words_of

COMMAND_LINE = "command line"
MOST = 2**32 - 1
"""The largest number anybody counts to here, or seeds by."""

T = TypeVar("T")


class ConfigError(UserError):
    """A configuration that cannot be used; the message is one sentence."""


def load_config(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Build a configuration from a YAML file and overrides.

    Args:
        cls: a dataclass; its fields may be bool, int, float, str, `Literal`, `X | None`, lists and
            tuples, `dict[str, ...]`, `Any` and further dataclasses, each with ranges of
            `base.ranges` beside it in `Annotated`.
        path: the YAML file; its top-level key `base` may name a file to inherit from, by a path
            relative to it.
        overrides: `section.key=value`, the value written as in YAML.

    Returns:
        An instance of `cls`, every value checked against its field's type and range.

    Raises:
        ConfigError: anything missing, unknown, of the wrong type, out of range, or refused by a
            `__post_init__`, which checks what concerns several fields.
    """
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file, layer in _inheritance(Path(path).expanduser()):
        tree = _merge(cls, tree, layer)
        origins.update((key, str(file)) for key in _dotted_keys(layer))
    for override in overrides:
        _apply_override(cls, tree, override, origins)
    return _Builder(cls, str(path), origins).build(cls, _resolve(tree, path), "")


def load_config_for(cls: type[T], path: str | Path, overrides: Sequence[str], where: str) -> T:
    """As `load_config`, with overrides that come from a file; `where` says from which.

    Raises:
        ConfigError: As `load_config`, naming `where` instead of the command line.
    """
    try:
        return load_config(cls, path, overrides)
    except ConfigError as error:
        raise ConfigError(str(error).replace(COMMAND_LINE, where, 1)) from None


def config_of(cls: type[T], values: Any, where: str) -> T:
    """Build a configuration from plain values, such as those of a JSON file.

    Args:
        cls: As in `load_config`.
        values: Nested mappings.
        where: Names the file and the place in it, for the message.

    Raises:
        ConfigError: As in `load_config`.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a section, got {_show(values)}.")
    return _Builder(cls, where, {}).build(cls, values, "")


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal instance."""
    # OmegaConf's dumper quotes what its reader would take for a number, such as the string "1e-4"
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in one YAML file, without inheritance, interpolation or checking.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds something else than a mapping.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a YAML file.")
    if not path.is_file():
        others = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file{_nearest(path.name, others)}.")
    try:
        loaded = OmegaConf.load(path)
        content = OmegaConf.to_container(loaded, resolve=False)
    except RecursionError as error:
        raise ConfigError(f"{path}: not readable as YAML: it is nested too deeply.") from error
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {_one_line(error)}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, got a {type(content).__name__}.")
    return {str(key): value for key, value in content.items()}


def _inheritance(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The files from the farthest base to `path` itself, each with its own content."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    seen: list[Path] = []
    current: Path | None = path
    while current is not None:
        if current.resolve() in seen:
            route = " -> ".join(str(file) for file, _ in chain)
            raise ConfigError(f"{path}: 'base' goes round in a circle: {route} -> {current}.")
        seen.append(current.resolve())
        if chain and not current.is_file():
            raise ConfigError(f"{chain[-1][0]}: base: no such file: {current}.")
        layer = read_yaml(current)
        base = layer.pop("base", None)
        if base is not None and not isinstance(base, str):
            raise ConfigError(
                f"{current}: base: expected the path of a YAML file, got {_show(base)}."
            )
        chain.append((current, layer))
        current = None if base is None else current.parent / Path(base).expanduser()
    return chain[::-1]


def _merge(cls: Any, below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`: sections key by key, everything else replaced."""
    merged = dict(below)
    hints = _hints(cls)
    for key, value in above.items():
        section = _section(hints.get(key))
        if section is not None and isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = _merge(section, merged[key], value)
        merged[key] = value
    return merged


def _apply_override(cls: Any, tree: dict[str, Any], text: str, origins: dict[str, str]) -> None:
    """Write one `a.b=value` into `tree`, and where it came from into `origins`."""
    key, equals, written = text.partition("=")
    parts = key.split(".")
    if not equals or not all(parts) or key != key.strip():
        raise ConfigError(f"{COMMAND_LINE}: {text!r} is no override; expected section.key=value.")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={written}"]))["value"]  # type: ignore
    except RecursionError as error:
        raise ConfigError(f"{COMMAND_LINE}: {key}: it is nested too deeply.") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{COMMAND_LINE}: {text!r} is not YAML: {_one_line(error)}.") from error
    node, section = tree, cls
    for done, part in enumerate(parts[:-1]):
        hint = _hints(section).get(part)
        section = _section(hint)
        if hint is not None and section is None and dict not in _origins_of(hint):
            where = ".".join(parts[: done + 1])
            raise ConfigError(
                f"{COMMAND_LINE}: {key}: {where} is no section, it is {describe(hint)}."
            )
        own = _as_in(node, part)
        child = node.get(own)
        node[own] = dict(child) if isinstance(child, dict) else {}
        node = node[own]
    node.update(_merge(section, node, {_as_in(node, parts[-1]): value}))
    origins.update((name, COMMAND_LINE) for name in [key, *_dotted_keys(value, key)])
    for depth in range(1, len(parts)):  # a section no file mentions was opened by this override
        origins.setdefault(".".join(parts[:depth]), COMMAND_LINE)


def _as_in(node: Mapping[Any, Any], written: str) -> Any:
    """The key that is meant: among numbers, as a file may have them, the number."""
    numbers = bool(node) and all(type(key) is int for key in node)
    return int(written) if numbers and written.isascii() and written.isdigit() else written


def _resolve(tree: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Replace `${section.key}` by what it points to."""
    try:
        return OmegaConf.to_container(OmegaConf.create(tree), resolve=True)  # type: ignore[return-value]
    except RecursionError as error:
        raise ConfigError(f"{path}: it is nested too deeply, or goes round in a circle.") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_one_line(error)}.") from error


@dataclasses.dataclass(frozen=True)
class _Builder:
    """Turns plain values into typed ones; knows which file or override each key came from."""

    root: Any
    path: str
    origins: Mapping[str, str]

    def build(self, cls: type[T], values: Mapping[str, Any], prefix: str) -> T:
        hints = _hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore
        for name in values:
            if name not in fields:
                self._refuse_key(_join(prefix, name), name, list(fields), prefix)
        kwargs = {
            name: self.convert(hints[name], value, _join(prefix, name))
            for name, value in values.items()
        }
        for name, field in fields.items():
            if name not in values and _is_required(field):
                allowed = describe(hints[name])
                self._fail(_join(prefix, name), f"is missing and has no default; give {allowed}")
        try:
            return cls(**kwargs)
        except ConfigError:
            raise
        except ValueError as error:
            self._fail_section(prefix, str(error).rstrip("."))

    def convert(self, hint: Any, value: Any, key: str) -> Any:
        """`value` as the type `hint`, or a ConfigError that names `key`."""
        options = options_of(split_hint(hint)[0])
        if value is None and (type(None) in options or Any in options):
            return None
        if type(value) is int and abs(value) > MOST and {int, float} & set(_origins_of(hint)):
            self._fail(key, f"expected {describe(hint)}, and at most {MOST}, got {value}")
        if isinstance(value, float) and float in _origins_of(hint) and not math.isfinite(value):
            self._fail(key, f"expected a finite {describe(hint)}, got {value}")
        for option in options:
            section = _section(option)
            if section is not None and isinstance(value, dict):
                return self.build(section, value, key)
            matched, converted = self._match(split_hint(option)[0], value, key)
            if matched and is_in_range(option, converted) and is_in_range(hint, converted):
                return _meant(hint, _meant(option, converted))
        guess = _nearest(value, words_of(hint)) if isinstance(value, str) else ""
        self._fail(key, f"expected {describe(hint)}, got {_show(value)}{guess}")

    def _match(self, option: Any, value: Any, key: str) -> tuple[bool, Any]:
        outer, inner = typing.get_origin(option) or option, typing.get_args(option)
        if outer is Any:
            return True, value
        if outer is Literal:
            same = [a for a in inner if a == value and type(a) is type(value)]
            return bool(same), value
        if outer in (list, tuple, Sequence) and isinstance(value, list):
            return self._match_sequence(outer, inner, value, key)
        if outer is dict and isinstance(value, dict):
            of = inner[1] if inner else Any
            return True, {k: self.convert(of, v, _join(key, k)) for k, v in value.items()}
        if outer is float and type(value) is int:
            return True, float(value)
        # type() and not isinstance(): a bool is an int to Python, and never to a user
        return type(value) is outer, value

    def _match_sequence(self, outer: Any, inner: tuple[Any, ...], value: list[Any], key: str):
        if outer is tuple and inner and inner[-1] is not Ellipsis:
            if len(value) != len(inner):
                return False, None
            kinds: Iterable[Any] = inner
        else:
            kinds = [inner[0] if inner else Any] * len(value)
        items = [self.convert(kind, value[i], f"{key}[{i}]") for i, kind in enumerate(kinds)]
        return True, items if outer is list else tuple(items)

    def _refuse_key(self, key: str, name: str, siblings: list[str], prefix: str) -> NoReturn:
        elsewhere = [other for other in _schema_keys(self.root) if other.endswith(f".{name}")]
        guess = _nearest(name, siblings) or (
            f" (did you mean {elsewhere[0]!r}?)" if elsewhere else ""
        )
        where = f"section {prefix!r}" if prefix else "the top level"
        allowed = ", ".join(sorted(siblings)) or "no keys"
        self._fail(key, f"unknown key{guess}; {where} has {allowed}")

    def _fail(self, key: str, problem: str) -> NoReturn:
        origin, probe = None, key
        while origin is None and probe:
            origin = self.origins.get(probe)
            probe = probe.rpartition("[" if probe.endswith("]") else ".")[0]
        raise ConfigError(f"{origin or self.path}: {key}: {problem}.")

    def _fail_section(self, prefix: str, problem: str) -> NoReturn:
        """A `__post_init__` refused values that may come from several places: name them all."""
        start = f"{prefix}." if prefix else ""
        inside = [origin for key, origin in self.origins.items() if f"{key}.".startswith(start)]
        places = " and ".join(dict.fromkeys(inside)) or self.path
        raise ConfigError(f"{places}: {prefix or 'top level'}: {problem}.")


def _hints(cls: Any) -> dict[str, Any]:
    is_section = dataclasses.is_dataclass(cls)
    return typing.get_type_hints(cls, include_extras=True) if is_section else {}


def _schema_keys(cls: Any, prefix: str = "") -> Iterator[str]:
    for name, hint in _hints(cls).items():
        yield _join(prefix, name)
        yield from _schema_keys(_section(hint), _join(prefix, name))


def _origins_of(hint: Any) -> list[Any]:
    bare = [split_hint(option)[0] for option in options_of(split_hint(hint)[0])]
    return [typing.get_origin(option) or option for option in bare]


def _meant(hint: Any, value: Any) -> Any:
    for each in split_hint(hint)[1]:
        value = each.convert(value)
    return value


def _section(hint: Any) -> Any:
    """The dataclass in a type hint such as `Section` or `Section | None`; None if there is none."""
    return next((option for option in _origins_of(hint) if dataclasses.is_dataclass(option)), None)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _dotted_keys(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, child in value.items():
            yield _join(prefix, name)
            yield from _dotted_keys(child, _join(prefix, name))


def _join(prefix: str, name: Any) -> str:
    return f"{prefix}.{name}" if prefix else str(name)


def _show(value: Any) -> str:
    if value is None:
        return "null"
    name = "mapping" if isinstance(value, dict) else type(value).__name__
    return f"{value!r} ({name})"


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
