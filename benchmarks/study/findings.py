"""All that the study says in words: its paragraphs, computed from the kept runs and wrapped as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.study import readme_notes
from benchmarks.study.figures import PartFigures, StaleFindingError
from benchmarks.study.notes import NOTES
from benchmarks.study.record import Record


@dataclass
class Findings:
    """Markdown about the parts that are finished.

    Attributes:
        above_table: In the README, above its table; empty while a part that it is about is not finished.
        below_table: In the README, below it, likewise.
        notes: Part -> what is above its tables on the page.
        stale: What the sentences say and the kept runs do not show; the paragraphs with these sentences are left out.
    """

    above_table: str = ""
    below_table: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)


def find(records: Mapping[str, Record]) -> Findings:
    """Write the paragraphs about everything that is finished.

    Args:
        records: What was measured of each part.
    """
    found = Findings()
    finished = {name: PartFigures(record) for name, record in records.items() if record.is_finished()}

    def text(needed: Iterable[str], write: Callable[[Mapping[str, PartFigures]], Sequence[str]]) -> str:
        if not finished.keys() >= {*needed}:
            return ""
        try:
            return wrapped(write(finished))
        except StaleFindingError as error:
            found.stale.append(str(error))
            return ""

    for name, (needed, write) in NOTES.items():
        if note := text(needed, write):
            found.notes[name] = note
    found.above_table = text(readme_notes.NEEDED, readme_notes.above_the_table)
    found.below_table = text(readme_notes.NEEDED, readme_notes.below_the_table)
    return found


def wrapped(paragraphs: Sequence[str]) -> str:
    """Paragraphs as lines of at most 120 characters; one that begins with a dash is an item of a list.

    Code and per cent signs stay on the line they begin on.
    """
    text = ""
    for number, paragraph in enumerate(paragraphs):
        is_item = paragraph.startswith("- ")
        follows_item = number > 0 and paragraphs[number - 1].startswith("- ")
        bound = re.sub(r"`[^`]*`| %", lambda found: found[0].replace(" ", "\0"), paragraph)
        filled = textwrap.fill(
            bound, 120, subsequent_indent="  " * is_item, break_long_words=False, break_on_hyphens=False
        )
        text += ("" if not number else "\n" if is_item and follows_item else "\n\n") + filled.replace("\0", " ")
    return text
