"""Tables of pages are those of their CSV files."""

from pathlib import Path

import pytest

from reports.published import PublishedError, main, published

ROOT = Path(__file__).parents[2]
PAGES = [page.relative_to(ROOT) for page in (ROOT / "docs/results").glob("*.md")]
PAGES = sorted(str(page) for page in PAGES if page.name != "README.md")  # it lists the others
TABLE = """method,seeds,mean,interval_low,interval_high,episodes_to_0.9,note
student,5,0.9914,0.98,1.004,14,a|b
no_context,1,-0.0004,,,,
"""
PAGE = """# Results

<!-- table: table.csv
rows: no_context, student
columns: seeds, mean, interval, episodes_to_0.9, note
-->
| old |
<!-- end of table -->

After.
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path / "page.md"


def test_a_table_is_made_of_its_file(page: Path) -> None:
    with pytest.raises(SystemExit, match="2"):  # before: an old table
        main([str(page), "--check"])
    main([str(page)])
    text = page.read_text()
    assert "| no context | 1 | 0.000 | – | never | – |" in text
    assert "| student | 5 | 0.991 | 0.98 … 1.00 | 14 | a\\|b |" in text
    assert "| old |" not in text
    assert text.endswith("<!-- end of table -->\n\nAfter.\n")
    assert published(page) == text
    main([str(page), "--check"])


def test_rows_come_in_the_order_asked_for_or_as_they_stand(page: Path) -> None:
    text = published(page)
    assert text.index("| no context") < text.index("| student")
    page.write_text(PAGE.replace("rows: no_context, student\n", ""))
    text = published(page)
    assert text.index("| student") < text.index("| no context")


def test_rows_of_equal_names_all_stand_there(page: Path) -> None:
    """A sweep of two axes: the first column alone names no row."""
    (page.parent / "table.csv").write_text("memory,m,mean\none,1,0.5\none,8,0.7\n")
    page.write_text("<!-- table: table.csv\n-->\n<!-- end of table -->\n")
    assert "| one | 1.000 | 0.500 |\n| one | 8.000 | 0.700 |" in published(page)


def test_a_changed_file_is_noticed(page: Path) -> None:
    main([str(page)])
    csv = page.parent / "table.csv"
    csv.write_text(TABLE.replace("0.9914", "0.9814"))
    with pytest.raises(SystemExit, match="2"):
        main([str(page), "--check"])
    assert "| 0.991 |" in page.read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("no_context, student", "teacher", "no row 'teacher'"),
        ("seeds, mean", "median", "no column 'median'"),
        ("table.csv", "absent.csv", "there is no file"),
        ("rows:", "lines:", "expected one of rows, columns"),
    ],
)
def test_what_a_file_does_not_hold_is_refused(page: Path, old: str, new: str, said: str) -> None:
    page.write_text(PAGE.replace(old, new))
    with pytest.raises(PublishedError, match=said):
        published(page)


@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_published_pages_agree_with_their_files(name: str) -> None:
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert published(page) == text, f"run python -m reports.published {name}"
