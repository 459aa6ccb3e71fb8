"""Tables of a Markdown page made from the CSV files of reports, so that page and files agree.

    <!-- table: darkroom/table.csv
    rows: student, teacher, none
    columns: seeds, mean, interval, worst_task
    -->
    (the table, made anew)
    <!-- end of table -->

The path is relative to the page. `rows` names what the file's first column holds, in the order
wanted; without it all rows stand there. Lines of one name, such as one for each group of tasks,
stay together. `columns` are columns of the file, and `interval`, which joins its bounds. Titles and
decimals are those of `reports.columns`.

`python -m reports.published README.md docs/results/*.md` writes the tables, and with `--check`
it only says which pages disagree with their files, and exits with 2.
"""

import argparse
import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from base.errors import UserError
from reports.column import INTERVAL, number
from reports.columns import BY_NAME
from reports.tables import MISSING

BLOCK = re.compile(
    r"<!-- table: (?P<path>\S+)\n(?P<settings>.*?)-->\n.*?<!-- end of table -->", re.DOTALL
)
SETTINGS = ("rows", "columns")
PLAIN_DECIMALS = 3


class PublishedError(UserError):
    """A page asks for a table that its file does not hold."""


def published(page: Path) -> str:
    """A page with every table made anew.

    Raises:
        PublishedError: a file, row or column is missing, or a setting is not known.
    """
    return BLOCK.sub(lambda block: _block(block, page), _text(page))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PublishedError(f"{path} cannot be read as text: {error}") from error


def _block(block: re.Match[str], page: Path) -> str:
    where = f"{page}: table {block['path']}"
    settings = _settings(block["settings"], where)
    path = page.parent / block["path"]
    if not path.is_file():
        raise PublishedError(f"{where}: there is no file {path}")
    try:
        reader = csv.DictReader(_text(path).splitlines(keepends=True), strict=True)
        rows, names = list(reader), list(reader.fieldnames or ())
    except csv.Error as error:
        raise PublishedError(f"{where}: {path} is no CSV file: {error}") from error
    if not names or any(None in row or None in row.values() for row in rows):
        raise PublishedError(f"{where}: {path} has rows of more or fewer columns than its first")
    key = names[0]
    by_key: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_key.setdefault(row[key], []).append(row)
    wanted = settings.get("rows", [])
    columns = settings.get("columns", names[1:])
    known = {*names, *([INTERVAL] if {"interval_low", "interval_high"} <= set(names) else [])}
    for kind, asked, held in (("row", wanted, by_key), ("column", columns, known)):
        missing = [name for name in asked if name not in held]
        if missing:
            raise PublishedError(f"{where}: no {kind} {missing[0]!r}; there are {', '.join(held)}")
    lines = _markdown(key, columns, [row for name in wanted for row in by_key[name]] or rows)
    opening = block[0][: block[0].index("-->") + len("-->")]
    return "\n".join([opening, *lines, "<!-- end of table -->"])


def _settings(text: str, where: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in filter(str.strip, text.splitlines()):
        name, _, value = line.partition(":")
        if name.strip() not in SETTINGS:
            raise PublishedError(f"{where}: expected one of {', '.join(SETTINGS)}, got {line!r}")
        found[name.strip()] = [part.strip() for part in value.split(",")]
    return found


def _markdown(key: str, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> list[str]:
    titles = [BY_NAME[name].title if name in BY_NAME else name for name in (key, *columns)]
    cells = [[row[key].replace("_", " "), *(_cell(row, name) for name in columns)] for row in rows]
    alignment = ["---", *("--:" for _ in columns)]
    return ["| " + " | ".join(line) + " |" for line in (titles, alignment, *cells)]


def _cell(row: Mapping[str, str], name: str) -> str:
    decimals = BY_NAME[name].decimals if name in BY_NAME else PLAIN_DECIMALS
    if name == INTERVAL:
        if not row["interval_low"]:
            return MISSING
        low, high = (_shown(row[f"interval_{end}"], decimals or 0) for end in ("low", "high"))
        return f"{low} … {high}"
    text = row[name]
    if not text:
        return "never" if name == "episodes_to_0.9" else MISSING
    return _shown(text, decimals)


def _shown(text: str, decimals: int | None) -> str:
    """A number with its decimals; what is none, as it is."""
    try:
        value = float(text)
    except ValueError:
        return text.replace("|", "\\|")
    if decimals is None:
        decimals = 0 if value.is_integer() else 1
    return number(value, decimals)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables of pages, or check them."""
    parser = argparse.ArgumentParser(prog="python -m reports.published", description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    try:
        made = {page: published(page) for page in options.pages}
    except UserError as error:
        parser.exit(2, f"{error}\n")
    stale = [page for page, text in made.items() if _text(page) != text]
    if options.check and stale:
        names = " ".join(map(str, stale))
        parser.exit(2, f"not as their CSV files: run python -m reports.published {names}\n")
    for page in stale:
        page.write_text(made[page], encoding="utf-8")


if __name__ == "__main__":
    main()
