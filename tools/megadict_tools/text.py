"""Text to documents to windows of tokens, streamed in a fixed order.

A document never shares a window with another one, and all of it is held out or none of it.
"""

import codecs
import hashlib
import json
import random
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np

from .errors import BAD_DATA, ERROR, USAGE, ToolError, one_line

SEPARATOR = "<|endoftext|>"
READ_BYTES = 1 << 20
PIECE_CHARACTERS = 1 << 20  # longer documents are tokenised piece by piece
REPEATED_PARAGRAPH_CHARACTERS = 40
SECTION_CHARACTERS = 2000
TOKEN_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
TOKEN_BLOCK = 1 << 20
# A document: its text, or the tokens that somebody else made of it.
Document = str | np.ndarray
HEADING = re.compile(r"(?m)^(?=\S.*\n([=*\-~^\"])\1{2,}$)")


class TextSource:
    """An ordered list of documents that can be read again from the start."""

    name: str
    bytes: int

    def documents(self) -> Iterator[Document]:
        raise NotImplementedError

    def use_tokenizer(self, tokenizer) -> None:
        """For files of tokens: which of them ends a document."""

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
    """Files by their suffix: *.jsonl, *.parquet and *.arrow with a document in each line or row, as
    text or as a list of tokens; *.bin, tokens one after the other, cut at the separator's; all
    others are UTF-8, cut at the separator, and are one document where it does not occur."""

    def __init__(self, paths: list[str], separator: str = SEPARATOR, column: str = "text",
                 token_dtype: str = "uint16"):
        self.paths, self.separator, self.column = [Path(p) for p in paths], separator, column
        self.token_dtype, self.separator_token = TOKEN_DTYPES[token_dtype], None
        for path in self.paths:
            if not path.is_file():
                raise ToolError(BAD_DATA, f"--text '{path}' is not a file")
        self.bytes = sum(text_bytes(path, column) for path in self.paths)
        self.name = ", ".join(path.name for path in self.paths)
        if self.bytes == 0:
            raise ToolError(BAD_DATA, f"--text '{self.name}' is empty")

    def documents(self) -> Iterator[Document]:
        readers = {".jsonl": self._json_lines, ".parquet": self._parquet, ".arrow": self._arrow,
                   ".bin": self._tokens}
        for path in self.paths:
            for document in readers.get(path.suffix, self._separated)(path):
                if document.strip() if isinstance(document, str) else len(document):
                    yield document

    def use_tokenizer(self, tokenizer) -> None:
        if not any(path.suffix == ".bin" for path in self.paths):
            return
        if self.separator not in tokenizer.get_vocab():
            raise ToolError(USAGE, f"--separator '{self.separator}' is no token of the model, and "
                            "must be one to cut a file of tokens",
                            f"--separator '{tokenizer.eos_token}'")
        self.separator_token = tokenizer.convert_tokens_to_ids(self.separator)

    def _tokens(self, path: Path) -> Iterator[np.ndarray]:
        size = self.token_dtype.itemsize
        if path.stat().st_size % size:
            raise ToolError(BAD_DATA, f"'{path}' has {path.stat().st_size} bytes, no multiple of "
                            f"the {size} of a token", "--token_dtype")
        open_parts: list[np.ndarray] = []
        with open(path, "rb") as file:
            while len(block := np.frombuffer(file.read(TOKEN_BLOCK * size), self.token_dtype)):
                start = 0
                for end in np.flatnonzero(block == self.separator_token):
                    yield np.concatenate([*open_parts, block[start:end]])
                    open_parts, start = [], end + 1
                open_parts.append(block[start:])
        if open_parts:
            yield np.concatenate(open_parts)

    def _parquet(self, path: Path) -> Iterator[Document]:
        from pyarrow import parquet

        with _arrow_errors(path):
            file = parquet.ParquetFile(path)
            self._check_column(path, file.schema_arrow)
            for batch in file.iter_batches(1024, columns=[self.column]):
                yield from self._column(path, batch)

    def _arrow(self, path: Path) -> Iterator[Document]:
        """Both kinds of Arrow file: with an index at its end, and a stream (Hugging Face's)."""
        import pyarrow

        with _arrow_errors(path), pyarrow.memory_map(str(path)) as file:
            try:
                reader = pyarrow.ipc.open_file(file)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            except pyarrow.ArrowInvalid:
                file.seek(0)
                batches = reader = pyarrow.ipc.open_stream(file)
            self._check_column(path, reader.schema)
            for batch in batches:
                yield from self._column(path, batch)

    def _check_column(self, path: Path, schema) -> None:
        if self.column not in schema.names:
            raise ToolError(BAD_DATA, f"'{path}' has no column '{self.column}', it has "
                            f"{', '.join(schema.names)}", "--text_column")

    def _column(self, path: Path, batch) -> Iterator[Document]:
        for value in batch.column(batch.schema.names.index(self.column)).to_pylist():
            yield _document(value, f"'{path}', column '{self.column}'")

    def _separated(self, path: Path) -> Iterator[str]:
        rest = ""
        for text in _decoded(path):
            *whole, rest = (rest + text).split(self.separator)
            yield from (document.strip("\n") for document in whole)
        yield rest.strip("\n")

    def _json_lines(self, path: Path) -> Iterator[Document]:
        rest, number = "", 0
        for text in [*_decoded(path), "\n"]:
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                number += 1
                if line.strip():
                    yield _json_document(path, number, line, self.column)

    def fingerprint(self) -> str:
        """Names, sizes, and the first and last MiB of each file."""
        how = (self.separator, *[part for part, default in (
            (self.column, "text"), (self.token_dtype.name, "uint16")) if part != default])
        digest = hashlib.sha256("\0".join(how).encode())
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


def _json_document(path: Path, number: int, line: str, column: str) -> Document:
    try:
        value = json.loads(line)[column]
    except (ValueError, KeyError, TypeError) as error:
        raise ToolError(BAD_DATA, f"'{path}' line {number} is not a JSON object with \"{column}\"",
                        "--text_column names another") from error
    return _document(value, f"'{path}' line {number}: \"{column}\"")


def _document(value, where: str) -> Document:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(token) is int and 0 <= token < 2**32 for token in value):
        return np.array(value, np.uint32)
    raise ToolError(BAD_DATA, f"{where} is neither a string nor a list of tokens")


@contextmanager
def _arrow_errors(path: Path):
    """What a broken file raises, as one line."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise ToolError(BAD_DATA, f"cannot read '{path}': {one_line(error)}") from error


def text_bytes(path: Path, column: str) -> int:
    """About how much text there is; looks for what reading it needs."""
    if path.suffix in (".parquet", ".arrow") and find_spec("pyarrow") is None:
        raise ToolError(ERROR, f"--text '{path}' needs pyarrow, which {sys.executable} has not",
                        "pip install -c tools/constraints.txt pyarrow")
    if path.suffix != ".parquet" or path.stat().st_size == 0:
        return path.stat().st_size
    from pyarrow import parquet

    with _arrow_errors(path):
        facts = parquet.ParquetFile(path).metadata
    groups = [facts.row_group(i) for i in range(facts.num_row_groups)]
    columns = [group.column(c) for group in groups for c in range(group.num_columns)]
    return sum(part.total_uncompressed_size for part in columns
               if part.path_in_schema.split(".")[0] == column) or path.stat().st_size


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


def document_tokens(tokenizer, text: Document) -> Iterator[int]:
    if not isinstance(text, str):
        yield from text.tolist()
        return
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
