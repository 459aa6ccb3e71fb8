"""What a check has found, one line each, for commands that look before work begins."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failure"]
WIDTH, INDENT = 80, 23


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        status: `ok`, `warning` or `failure`.
        subject: What was looked at, a word or two.
        text: What was found.
    """

    status: Status
    subject: str
    text: str


def as_line(finding: Finding) -> str:
    """A finding in one line of 80 columns; one with more to say goes on below its text."""
    return textwrap.fill(
        " ".join(finding.text.split()),
        WIDTH,
        initial_indent=f"{finding.status:<8}{finding.subject:<{INDENT - 8}}",
        subsequent_indent=" " * INDENT,
        break_on_hyphens=False,
    )


def counted(findings: Sequence[Finding]) -> str:
    """The last line: how many findings there were, and of what status."""
    parts = []
    for status in ("failure", "warning"):
        if n := sum(finding.status == status for finding in findings):
            parts.append(f"{n} {status}{'s' if n > 1 else ''}")
    return f"{len(findings)} findings: {', '.join(parts) or 'all ok'}"


def any_failed(findings: Sequence[Finding]) -> bool:
    """Whether one is a failure."""
    return any(finding.status == "failure" for finding in findings)
