"""The documents of the repository: all README.md files, taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
FILE = re.compile(r"this\s+is\s+`([\w/]+\.(?:py|toml))`[^`]*\Z")
PROGRAMS = {"python", "pip", "pytest", "mlflow", "dask", "bash"}


def split(script: str) -> Iterator[str]:
    """Yield the commands of a shell script, without comments."""
    script = re.sub(r"(^|[ \t])#.*$", "", script.replace("\\\n", " "), flags=re.MULTILINE)
    for line in script.splitlines():
        yield from filter(None, (" ".join(part.split()) for part in line.split("&&")))


def is_command(text: str) -> bool:
    """Tell whether a text starts a program, perhaps with variables before it."""
    return re.sub(r"^([A-Z_]+=\S+ )*", "", text).partition(" ")[0] in PROGRAMS


class Document:
    """A document, and what it is made of."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.text = path, str(path.relative_to(ROOT)), path.read_text()
        self.is_record = re.fullmatch(r"results/[\w-]+/README.md", self.name) is not None
        self.blocks = list(FENCE.finditer(self.text))
        self.prose = FENCE.sub("", self.text)
        self.spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", self.prose)]
        scripts = [*self.written("sh"), *INDENTED.findall(self.prose)]
        typed = [*(c for script in scripts for c in split(script)), *self.spans]
        self.commands = [c for text in typed if is_command(c := text.removeprefix("exec "))]
        self.files = {
            match[1]: block[2]
            for block in self.blocks
            if (match := FILE.search(self.text[: block.start()]))
        }
        self.anchors = {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        }

    def written(self, language: str) -> list[str]:
        """Return the blocks in a language."""
        return [block[2] for block in self.blocks if block[1] == language]

    def tables(self) -> Iterator[list[list[str]]]:
        """Yield the tables as rows of cells, the header first."""
        for table in re.findall(r"(?:^\|.*\n)+", self.prose, re.MULTILINE):
            rows = (re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines())
            header, _, *cells = ([cell.strip() for cell in row] for row in rows)
            yield [header, *cells]


def _find() -> Iterator[Document]:
    for folder in ("", "bench", "flowvae", "tests", "experiments", "results"):
        pattern = "**/README.md" if folder else "README.md"
        for path in sorted((ROOT / folder).glob(pattern)):
            if not path.is_relative_to(ROOT / "results" / "local"):
                yield Document(path)


DOCUMENTS = list(_find())
GUIDES = [document for document in DOCUMENTS if not document.is_record]
RECORDS = [document for document in DOCUMENTS if document.is_record]
README = DOCUMENTS[0]
"""What a stranger reads first; guides are read to do something, records tell what was measured."""
