"""The fenced blocks of the README and of the pages of docs/."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str, page: Path | None = None) -> list[tuple[Path, str]]:
    """Return the blocks of a language in one page, or in all, as pairs of page and content."""
    return [
        (path, content)
        for path in ([page] if page else PAGES)
        for content in re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    ]


def commands(page: Path | None = None) -> list[str]:
    """Return the commands of one page, or of all, in their order and without repetition."""
    lines = [line for _, content in blocks("bash", page) for line in content.replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#")))
