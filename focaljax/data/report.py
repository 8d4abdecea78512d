"""What was repaired or left out while a data set was read: counted, and named by file and id."""

import collections
import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault in the data.

    Attributes:
        kind: the fault in a few words, the same for all faults of its kind, with what was done about it
            (`'box outside the image: clipped'`).
        file_name: the image or annotation file.
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
        return f"{self.file_name} ({', '.join(ids)})" if ids else self.file_name


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
        lines = []
        for kind, count in self.counts().items():
            places = [str(finding) for finding in self.findings if finding.kind == kind]
            more = ", ..." if count > examples else ""
            lines.append(f"{count} x {kind}: {', '.join(places[:examples])}{more}")
        return lines
