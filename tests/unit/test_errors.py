"""A mistake is told in one line, whatever the names in it."""

import pytest

from base.errors import UserError


@pytest.mark.parametrize(
    "name", ["a\nb", "a\r\x1b[2Jb", "a\u2028b", "a\u0085b", "a\ud800b", "a\tb"]
)
def test_names_that_cannot_be_printed_are_escaped(name):
    told = str(UserError(f"no such file: {name}"))
    assert len(told.splitlines()) == 1
    assert told.isprintable()
    assert told.encode("utf-8")
    assert told.startswith("no such file: a\\")


def test_what_can_be_printed_stays():
    told = "λ_cap 的 “ä” is\\n 1"
    assert str(UserError(told)) == told
