"""Every key of a configuration: its type, range, default and meaning, as tables in a page.

`python -m pipelines.describe docs/configuration.md` writes them between the page's two markers,
from the dataclasses and the `Attributes` of their docstrings; with `--check` it only compares.
"""

import argparse
import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from base.errors import UserError
from base.ranges import describe_range, describe_type
from pipelines.cli import USER_ERROR

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
HEADER = ("key", "type", "range", "default", "meaning")


class DescribeError(UserError):
    """A page without its markers, one that is not current, or a field without a meaning."""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables into a page, or compare them with those it has.

    Raises:
        SystemExit: 1 where `--check` finds other tables, 2 after any other mistake.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.describe",
        description=inspect.cleandoc(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("page", type=Path, help="a Markdown file with the two markers")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if not current")
    arguments = parser.parse_args(argv)
    try:
        page = arguments.page.read_text(encoding="utf-8")
        wanted = _with_tables(page, arguments.page)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(USER_ERROR) from None
    if page == wanted:
        return
    if arguments.check:
        print(  # noqa: T201
            f"error: {arguments.page} is not what the configuration's dataclasses say; run "
            f"`python -m pipelines.describe {arguments.page}`.",
            file=sys.stderr,
        )
        raise SystemExit(1)
    arguments.page.write_text(wanted, encoding="utf-8")


def _with_tables(page: str, name: Path) -> str:
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DescribeError(f"{name} lacks the markers {BEGIN} and {END}; put them in.")
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def tables() -> str:
    """A Markdown table per section; sections of one class share one."""
    lines: list[str] = []
    for title, cls, sections in _classes():
        lines += ["", f"## {title}", "", _row(HEADER), "|" + "---|" * len(HEADER)]
        hints, meanings = typing.get_type_hints(cls, include_extras=True), _meanings(cls)
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            if dataclasses.is_dataclass(hint):
                continue
            if field.name not in meanings:
                raise DescribeError(
                    f"{cls.__module__}.{cls.__name__}: the Attributes of its docstring lack "
                    f"{field.name}; say what it is."
                )
            defaults = _defaults(cls, sections, field.name)
            known = (describe_type(hint), describe_range(hint), defaults, meanings[field.name])
            lines.append(_row((f"`{field.name}`", *known)))
    return "\n".join([*lines, ""])


def _classes() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(title, dataclass, its instances by dotted key) in the order in which a run has them."""
    from pipelines.config import RunConfig  # late, so that --help is quick
    from pipelines.experiments import Entry, ExperimentsConfig
    from pipelines.sweep import SweepConfig

    yield "The top level", RunConfig, {}
    together: dict[type, dict[str, Any]] = {}
    for name, section in _sections(RunConfig()):
        together.setdefault(type(section), {})[name] = section
    for cls, sections in together.items():
        # one that several training stages have is theirs together
        shared = len(sections) > 1
        titles = [re.sub(r"^\w+\.", "<stage>.", name) if shared else name for name in sections]
        yield ", ".join(f"`{title}`" for title in dict.fromkeys(titles)), cls, sections
    yield "A sweep file", SweepConfig, {}
    yield "A list of experiments", ExperimentsConfig, {}
    yield "An entry of `experiments`", Entry, {}


def _sections(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield f"{prefix}{field.name}", value
            yield from _sections(value, f"{prefix}{field.name}.")


def _defaults(cls: Any, sections: dict[str, Any], key: str) -> str:
    """The default of a key, and those of the sections that have another one."""
    own = _yaml(getattr(cls(), key))
    others = {name: _yaml(getattr(section, key)) for name, section in sections.items()}
    differing = [f"`{name}`: `{value}`" for name, value in others.items() if value != own]
    return "; ".join([f"`{own}`", *differing])


def _yaml(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).replace("\n...", "").strip()


def _meanings(cls: type) -> dict[str, str]:
    """What the docstring says of each attribute, inherited ones included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        part = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", part, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    main()
