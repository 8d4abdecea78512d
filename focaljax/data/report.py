"""What was repaired or left out while a data set was read: counted, and named by file and id."""

import collections
import dataclasses
import re
from collections.abc import Iterable

# Control characters, among them those that steer a terminal; line separators; what turns the direction of writing, so
# that a name reads as another; and halves of surrogate pairs, which no encoding can write.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def printable(text: str) -> str:
    r"""Returns the text as one line that can be shown and written anywhere, with escapes for what could not.

    For names that come from files: a line break in one would forge a line of a report, and an escape character would
    steer the terminal. All other characters stay as they are.

    Example:
        >>> print(printable("chat\x1b[2J\n日本"))
        chat\x1b[2J\x0a日本
    """
    return _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault in the data.

    Attributes:
        kind: the fault in a few words, the same for all faults of its kind, with what was done about it
            (`'box outside the image: clipped'`).
        file_name: the image or annotation file, as the data names it; `str` of a finding shows it by `printable`.
        image_id: the image's id, or None where there is none.
        annotation_id: the annotation's id, or None.
    """

    kind: str
    file_name: str
    image_id: int | None = None
    annotation_id: int | None = None

    def __str__(self) -> str:
        ids = [
            f"{name} {value}"
            for name, value in (("image", self.image_id), ("annotation", self.annotation_id))
            if value is not None
        ]
        return printable(f"{self.file_name} ({', '.join(ids)})" if ids else self.file_name)


class DataReport:
    """Collects findings in the order in which they are met."""

    def __init__(self, findings: Iterable[Finding] = ()) -> None:
        self.findings: list[Finding] = list(findings)

    def add(self, kind: str, file_name: str, *, image_id: int | None = None, annotation_id: int | None = None) -> None:
        """Adds one finding; see `Finding` for the arguments."""
        self.findings.append(Finding(kind, file_name, image_id, annotation_id))

    def counts(self) -> dict[str, int]:
        """Returns how many findings there are of each kind, the most frequent first."""
        return dict(collections.Counter(finding.kind for finding in self.findings).most_common())

    def lines(self, examples: int = 3) -> list[str]:
        """Returns one line a kind, with its count and its first `examples` places; no lines if nothing was found."""
        first: dict[str, list[str]] = {}
        for finding in self.findings:
            places = first.setdefault(finding.kind, [])
            if len(places) < examples:
                places.append(str(finding))
        return [
            printable(f"{count} x {kind}: {', '.join(first[kind])}{', ...' if count > examples else ''}")
            for kind, count in self.counts().items()
        ]
