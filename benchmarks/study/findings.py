"""The study's paragraphs: computed from the kept runs and wrapped as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.study import readme_notes, readme_picture
from benchmarks.study.figures import PartFigures, StaleFindingError
from benchmarks.study.notes import NOTES
from benchmarks.study.record import Record


@dataclass
class Findings:
    """Markdown about the finished parts.

    Attributes:
        above_table: Text above the page's first table; empty until every part that it describes is finished.
        below_table: Text below that table, under the same condition.
        in_readme: Text below the README's table, under the same condition.
        picture: The README's picture as SVG; empty until the part that it shows is finished.
        notes: Part -> text above its tables on the page.
        stale: Claims that the kept runs do not show; the paragraphs with these claims are left out.
    """

    above_table: str = ""
    below_table: str = ""
    in_readme: str = ""
    picture: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)


def find(records: Mapping[str, Record]) -> Findings:
    """Write the paragraphs about all finished parts.

    Args:
        records: The record of each part.
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
    found.in_readme = text(readme_notes.NEEDED, readme_notes.below_the_readme_table)
    shown = finished.get(readme_picture.PART)
    if shown is not None and shown.record.costs() is not None:
        found.picture = readme_picture.picture(shown)
    return found


def wrapped(paragraphs: Sequence[str]) -> str:
    """Wrap paragraphs into lines of at most 120 characters; a paragraph that begins with a dash is a list item.

    Code and per cent signs are not split across lines.
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
