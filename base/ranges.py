"""Ranges that stand beside a field's type, and how a type with its range is told to a user.

`n_layers: Annotated[int, AtLeast(1)] = 4` says once what the field may be. `training.config` checks
it when a file is read, `pipelines.describe` shows it. Ranges stand beside elements as well:
`Annotated[tuple[Annotated[int, AtLeast(0)], ...], NonEmpty()]`.
"""

import dataclasses
import os
import re
import types
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union


class Range:
    """What a value may be, besides of its type."""

    def allows(self, value: Any) -> bool:
        """Whether a value of the right type lies in the range."""
        raise NotImplementedError

    def describe(self) -> str:
        """The range in words, such as `at least 1`."""
        raise NotImplementedError

    def qualify(self, kind: str) -> str:
        """The type called `kind` and the range, such as `int of at least 1`."""
        return f"{kind} of {self.describe()}"

    def convert(self, value: Any) -> Any:
        """What is meant by a value in the range; itself unless said otherwise."""
        return value


@dataclass(frozen=True)
class AtLeast(Range):
    """Numbers from `low` on."""

    low: float

    def allows(self, value: float) -> bool:
        """Whether `value` is `low` or more."""
        return value >= self.low

    def describe(self) -> str:
        """`0 or more`, `at least 1`."""
        return f"at least {self.low}" if self.low else "0 or more"


@dataclass(frozen=True)
class Above(Range):
    """Numbers beyond `low`, itself excluded."""

    low: float

    def allows(self, value: float) -> bool:
        """Whether `value` is more than `low`."""
        return value > self.low

    def describe(self) -> str:
        """`more than 0`."""
        return f"more than {self.low}"


@dataclass(frozen=True)
class Between(Range):
    """Numbers from `low` to `high`; an open end is itself excluded."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def allows(self, value: float) -> bool:
        """Whether `value` lies between the ends, or on one that is not open."""
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def describe(self) -> str:
        """`0 ... 1`, `0 ... 1 without 1`."""
        ends = ((self.low, self.low_open), (self.high, self.high_open))
        without = " and ".join(str(end) for end, is_open in ends if is_open)
        return f"{self.low} ... {self.high}" + (f" without {without}" if without else "")


@dataclass(frozen=True)
class Choices(Range):
    """One of some words that code knows; words known when this is written make a `Literal`."""

    words: tuple[str, ...]

    def allows(self, value: str) -> bool:
        """Whether `value` is one of the words."""
        return value in self.words

    def describe(self) -> str:
        """`one of 'a', 'b'`."""
        return "one of " + ", ".join(repr(word) for word in self.words)

    def qualify(self, kind: str) -> str:
        """The words alone, as for a `Literal`."""
        return self.describe()


@dataclass(frozen=True)
class NonEmpty(Range):
    """Lists of at least one element."""

    def allows(self, value: Collection[Any]) -> bool:
        """Whether `value` has an element."""
        return len(value) > 0

    def describe(self) -> str:
        """`not empty`."""
        return "not empty"

    def qualify(self, kind: str) -> str:
        """`a list of int, not empty`."""
        return f"{kind}, {self.describe()}"


@dataclass(frozen=True)
class Distinct(Range):
    """Lists that hold nothing twice."""

    def allows(self, value: Sequence[Any]) -> bool:
        """Whether all elements differ."""
        return len(set(value)) == len(value)

    def describe(self) -> str:
        """`nothing twice`."""
        return "nothing twice"

    def qualify(self, kind: str) -> str:
        """`a list of int, nothing twice`."""
        return f"{kind}, {self.describe()}"


@dataclass(frozen=True)
class PathText(Range):
    """Paths a file system can hold; `~` at the start is the home folder."""

    def allows(self, value: str) -> bool:
        """Whether no part, nor the whole, is too long, and no character is impossible."""
        parts = os.fsencode(value).split(b"/") if "\0" not in value else []
        return bool(parts) and max(map(len, parts)) <= 255 and len(os.fsencode(value)) < 4096

    def describe(self) -> str:
        """`a path`."""
        return "a path"

    def qualify(self, kind: str) -> str:
        """`a path (str, each part of at most 255 bytes)`."""
        return f"{self.describe()} ({kind}, each part of at most 255 bytes)"

    def convert(self, value: str) -> str:
        """`~` expanded."""
        return os.path.expanduser(value)


@dataclass(frozen=True)
class PlainName(Range):
    """Names of files and folders that lead nowhere else, or empty."""

    def allows(self, value: str) -> bool:
        """Whether it is made of letters, digits and a few signs, the first none of these."""
        return not value or (re.fullmatch(r"\w[\w.,=+-]*", value) is not None and len(value) <= 100)

    def describe(self) -> str:
        """`a plain name`."""
        return "a plain name"

    def qualify(self, kind: str) -> str:
        """`a plain name (str of letters, digits and . , = + - _)`."""
        return f"{self.describe()} ({kind} of letters, digits and . , = + - _)"


def split_hint(hint: Any) -> tuple[Any, list[Range]]:
    """A type hint without `Annotated`, and the ranges that stood beside it."""
    if typing.get_origin(hint) is not Annotated:
        return hint, []
    bare, *beside = typing.get_args(hint)
    return bare, [each for each in beside if isinstance(each, Range)]


def options_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint itself."""
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def is_in_range(hint: Any, value: Any) -> bool:
    """Whether a value of the right type lies in the ranges beside it."""
    return all(each.allows(value) for each in split_hint(hint)[1])


def words_of(hint: Any) -> list[str]:
    """The words a hint allows: those of a `Literal` or of `Choices`."""
    words: list[str] = []
    for option in options_of(hint):
        bare, ranges = split_hint(option)
        if typing.get_origin(bare) is Literal:
            words += map(str, typing.get_args(bare))
        words += [word for each in ranges if isinstance(each, Choices) for word in each.words]
    return words


def describe(hint: Any) -> str:
    """Type and range as the user would say it: `int of at least 1`, `one of 'a', 'b'`."""
    bare, ranges = split_hint(hint)
    kind = _kind(bare, describe)
    for each in ranges:
        kind = each.qualify(kind)
    return kind


def describe_type(hint: Any) -> str:
    """The type alone: `int or null`, `a list of str`."""
    bare, _ = split_hint(hint)
    if typing.get_origin(bare) is Literal:
        return " or ".join(dict.fromkeys(type(word).__name__ for word in typing.get_args(bare)))
    return _kind(bare, describe_type)


def describe_range(hint: Any) -> str:
    """The range alone: `at least 1`, `not empty, each 0 or more`; empty if there is none."""
    bare, ranges = split_hint(hint)
    parts = [each.describe() for each in ranges]
    options = options_of(bare)
    if len(options) > 1:
        parts += [describe_range(option) for option in options]
    elif typing.get_origin(bare) is Literal:
        parts.append(_kind(bare, describe))
    elif typing.get_origin(bare) in (list, tuple, Sequence):
        elements = dict.fromkeys(map(describe_range, typing.get_args(bare)))
        parts += [f"each {element}" for element in elements if element]
    return ", ".join(part for part in parts if part)


def _kind(bare: Any, tell: typing.Callable[[Any], str]) -> str:
    """A type without ranges of its own; `tell` tells the types inside."""
    outer, inner = typing.get_origin(bare) or bare, typing.get_args(bare)
    if outer in (Union, types.UnionType):
        return " or ".join(tell(option) for option in inner)
    if outer is Literal:
        return "one of " + ", ".join(repr(word) for word in inner)
    if outer is tuple and inner and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)} values ({', '.join(tell(each) for each in inner)})"
    if outer in (list, tuple, Sequence):
        return f"a list of {tell(inner[0])}" if inner else "a list"
    if outer is dict:
        return "a mapping"
    if outer is type(None):
        return "null"
    if dataclasses.is_dataclass(outer):
        return "a section"
    return getattr(outer, "__name__", str(outer))
