"""Text to documents to windows of tokens, streamed in a fixed order.

A document never shares a window with another one, and all of it is held out or none of it.
"""

import codecs
import hashlib
import json
import random
import re
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Iterable, Iterator

from .errors import BAD_DATA, USAGE, ToolError

SEPARATOR = "<|endoftext|>"
READ_BYTES = 1 << 20
PIECE_CHARACTERS = 1 << 20  # longer documents are tokenised piece by piece
REPEATED_PARAGRAPH_CHARACTERS = 40
SECTION_CHARACTERS = 2000
HEADING = re.compile(r"(?m)^(?=\S.*\n([=*\-~^\"])\1{2,}$)")


class TextSource:
    """An ordered list of documents that can be read again from the start."""

    name: str
    bytes: int

    def documents(self) -> Iterator[str]:
        raise NotImplementedError

    def fingerprint(self) -> str:
        raise NotImplementedError


class PythonTopics(TextSource):
    """The language reference that every Python carries. A document is a topic, or a section of
    one where it is long.

    About a fifth of the text stands in more than one topic. Each paragraph is kept in the first
    topic only, so that held-out documents are new text.
    """

    name = "pydoc topics"

    def __init__(self):
        from pydoc_data.topics import topics

        unique = self._without_repeats(topics[name] for name in sorted(topics))
        self.texts = [section for text in unique for section in self._sections(text)]
        self.bytes = sum(len(text.encode()) for text in self.texts)

    @staticmethod
    def _without_repeats(texts: Iterable[str]) -> list[str]:
        seen, kept = set(), []
        for text in texts:
            paragraphs = []
            for paragraph in text.strip().split("\n\n"):
                key = " ".join(paragraph.split())
                if len(key) < REPEATED_PARAGRAPH_CHARACTERS or key not in seen:
                    paragraphs.append(paragraph)
                    seen.add(key)
            # What is left of a topic that was repeated whole is its title.
            if sum(map(len, paragraphs)) >= 4 * REPEATED_PARAGRAPH_CHARACTERS:
                kept.append("\n\n".join(paragraphs))
        return kept

    @staticmethod
    def _sections(text: str) -> list[str]:
        """Cuts before headings (a line underlined by punctuation), into parts long enough."""
        parts = [""]
        cuts = [0, *(match.start() for match in HEADING.finditer(text)), len(text)]
        for start, end in zip(cuts, cuts[1:]):
            if len(parts[-1]) >= SECTION_CHARACTERS:
                parts.append("")
            parts[-1] += text[start:end]
        if len(parts) > 1 and len(parts[-1]) < SECTION_CHARACTERS // 2:
            parts[-2:] = ["".join(parts[-2:])]
        return [part.strip("\n") for part in parts]

    def documents(self) -> Iterator[str]:
        return iter(self.texts)

    def fingerprint(self) -> str:
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()[:16]


class TextFiles(TextSource):
    """UTF-8 files: *.jsonl with one object a line and its "text" a document; others are cut at a
    separator, and are one document where it does not occur."""

    def __init__(self, paths: list[str], separator: str = SEPARATOR):
        self.paths, self.separator = [Path(p) for p in paths], separator
        for path in self.paths:
            if not path.is_file():
                raise ToolError(BAD_DATA, f"--text '{path}' is not a file")
        self.bytes = sum(path.stat().st_size for path in self.paths)
        self.name = ", ".join(path.name for path in self.paths)
        if self.bytes == 0:
            raise ToolError(BAD_DATA, f"--text '{self.name}' is empty")

    def documents(self) -> Iterator[str]:
        for path in self.paths:
            found = self._json_lines(path) if path.suffix == ".jsonl" else self._separated(path)
            yield from (text for text in found if text.strip())

    def _separated(self, path: Path) -> Iterator[str]:
        rest = ""
        for text in _decoded(path):
            *whole, rest = (rest + text).split(self.separator)
            yield from (document.strip("\n") for document in whole)
        yield rest.strip("\n")

    @staticmethod
    def _json_lines(path: Path) -> Iterator[str]:
        rest, number = "", 0
        for text in [*_decoded(path), "\n"]:
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                number += 1
                if line.strip():
                    yield _json_text(path, number, line)

    def fingerprint(self) -> str:
        """Names, sizes, and the first and last MiB of each file."""
        digest = hashlib.sha256(self.separator.encode())
        for path in self.paths:
            length = path.stat().st_size
            digest.update(f"\0{path.name} {length}\0".encode())
            with open(path, "rb") as file:
                digest.update(file.read(READ_BYTES))
                file.seek(max(0, length - READ_BYTES))
                digest.update(file.read(READ_BYTES))
        return digest.hexdigest()[:16]


def _decoded(path: Path) -> Iterator[str]:
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    with open(path, "rb") as file:
        while True:
            block = file.read(READ_BYTES)
            try:
                yield decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise ToolError(BAD_DATA, f"'{path}' is not UTF-8 near byte {done + error.start}",
                                "convert it with iconv") from error
            if not block:
                return
            done += len(block)


def _json_text(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise ToolError(BAD_DATA, f"'{path}' line {number} is not a JSON object with \"text\""
                        ) from error
    if not isinstance(text, str):
        raise ToolError(BAD_DATA, f"'{path}' line {number}: \"text\" is not a string")
    return text


@dataclass(frozen=True)
class Window:
    """`tokens` that the model sees together, from position 0."""

    document: int
    tokens: tuple[int, ...]


class HeldOut:
    """Which documents are held out: one, drawn by seed, of each run of 1/fraction documents.

    A function of (seed, fraction, document) alone, save that a text of fewer documents than the
    first run is one run, so that something is held out of every text.
    """

    def __init__(self, fraction: float, seed: int, documents_at_least: int):
        self.fraction = Fraction(fraction).limit_denominator(10**6)  # 0.7 is not 7/10 in binary
        self.seed = seed
        if fraction and documents_at_least < 2:
            raise ToolError(USAGE, "the text is one document, and held-out rows must come from "
                            "other documents than the training rows",
                            "--separator to cut it, or --eval_fraction 0")
        self.first_run = min(self._start(1), documents_at_least) if fraction else 0

    def _start(self, run: int) -> int:
        return ceil(run / self.fraction)

    def __contains__(self, document: int) -> bool:
        if not self.fraction:
            return False
        if document < self.first_run:
            run, start, end = 0, 0, self.first_run
        else:
            run = int(document * self.fraction)
            while self._start(run + 1) <= document:
                run += 1
            start, end = self._start(run), self._start(run + 1)
        drawn = random.Random(f"held out {self.seed} {run}").randrange(start, end)
        return document == drawn


def documents_up_to(source: TextSource, limit: int) -> int:
    """The number of documents, counted no further than `limit`."""
    count = 0
    for _ in source.documents():
        count += 1
        if count >= limit:
            break
    return count


def held_out_of(source: TextSource, fraction: float, seed: int) -> HeldOut:
    first_run = round(1 / fraction) + 1 if fraction else 1
    return HeldOut(fraction, seed, documents_up_to(source, first_run))


def pieces(text: str) -> Iterator[str]:
    """Cuts very long text behind a line end, or anywhere where there is none."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = text.rfind("\n", start, start + PIECE_CHARACTERS) + 1
        end = end if end > start else start + PIECE_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]


def document_tokens(tokenizer, text: str) -> Iterator[int]:
    for piece in pieces(text):
        yield from tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]


def windows_of(document: int, tokens: Iterator[int], context: int,
               bos: int | None) -> Iterator[Window]:
    """Windows of `context` tokens, the last one shorter; each starts with `bos` if that is set."""
    head = () if bos is None else (bos,)
    body: list[int] = []
    for token in tokens:
        body.append(token)
        if len(body) == context - len(head):
            yield Window(document, head + tuple(body))
            body = []
    if body:
        yield Window(document, head + tuple(body))
