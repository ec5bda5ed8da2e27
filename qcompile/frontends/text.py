"""Text as data for a language model: a file, the model's tokenizer, and windows of its tokens.

    Text("news.txt")                                   tokenizer.json lies beside the model
    Text("folder/", "tokenizer.json", window=512)      every text file below the folder, in the order of the paths
    Text("dialogues.jsonl")                            one text a line, as a string or under the key "text"

What the tokenizer puts around a text (a first token, [CLS] and [SEP]) is put around every window.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.errors import DataError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Array = np.ndarray[Any, Any]

SUFFIXES = (".txt", ".md", ".jsonl")
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Text:
    """A text and how to cut it.

    Attributes:
        path: a .txt, .md or .jsonl file in UTF-8, or a folder of them.
        tokenizer: the model's tokenizer.json; left out, the one beside the model.
        window: tokens of a sample, special ones included; left out, what is usual for the purpose.
        windows: how many of them at most; left out, likewise.
    """

    path: str | Path
    tokenizer: str | Path | None = None
    window: int | None = None
    windows: int | None = None

    def __post_init__(self) -> None:
        for name in ("window", "windows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class Tokens:
    """A text as token ids, and those that the tokenizer puts before and behind one."""

    ids: Array
    before: Array
    behind: Array

    @staticmethod
    def of(text: Text, models: Sequence[Path], most: int | None = None) -> Tokens:
        """Read and tokenize.

        Args:
            models: beside one of them the tokenizer lies, if the text does not say where.
            most: characters after which the rest of the text is left out.

        Raises:
            UsageError: no text, no tokenizer, or the package `tokenizers` is not installed.
            DataError: a file cannot be read as what it is called.
        """
        tokenizer, words = _tokenizer(text.tokenizer, models), _read(Path(text.path), most)
        around = tokenizer.encode("a")
        special = np.array(around.special_tokens_mask, bool)
        first = int(np.argmin(special)) if not special.all() else len(special)
        last = len(special) - int(np.argmin(special[::-1])) if not special.all() else len(special)
        ids = np.array(tokenizer.encode(words, add_special_tokens=False).ids, np.int64)
        extra = np.array(around.ids, np.int64)
        return Tokens(ids, extra[:first], extra[last:])

    def check_window(self, text: Text, window: int) -> None:
        """Refuse a text that does not fill one window."""
        if window <= len(self.before) + len(self.behind) + 1:
            raise UsageError(f"a window of {window} tokens leaves no room for text", hint="give a larger --window")
        if len(self.ids) + len(self.before) + len(self.behind) < window:
            raise DataError(
                f"the text has {len(self.ids)} tokens, fewer than a window of {window}",
                where=str(text.path),
                hint="give more text, or a smaller --window",
            )

    def check_vocabulary(self, size: int, where: str) -> None:
        """Refuse tokens that the model does not know."""
        highest = max((int(part.max()) for part in (self.ids, self.before, self.behind) if len(part)), default=0)
        if highest >= size:
            raise DataError(
                f"token {highest} is beyond the model's vocabulary of {size}",
                where=where,
                hint="the tokenizer belongs to another model",
            )

    def cut(self, window: int, starts: Sequence[int]) -> list[Array]:
        """Windows of `window` tokens with the special ones around them, beginning at `starts`."""
        inner = window - len(self.before) - len(self.behind)
        return [np.concatenate([self.before, self.ids[s : s + inner], self.behind]) for s in starts]


def is_text(path: Path) -> bool:
    """Whether a path is a text, or a folder with texts in it."""
    if path.is_dir():
        return any(_files(path))
    return path.suffix.lower() in SUFFIXES


def _files(folder: Path) -> list[Path]:
    from qcompile.frontends.samples.files import below

    return below(folder, SUFFIXES)


def _read(path: Path, most: int | None) -> str:
    if not path.exists():
        raise UsageError("no such text", where=str(path), hint="give a .txt or .jsonl file, or a folder of them")
    parts, length = [], 0
    for file in _files(path) if path.is_dir() else [path]:
        parts.append(_document(file))
        length += len(parts[-1])
        if most is not None and length >= most:
            break
    words = "\n".join(parts)[:most]
    if not words.strip():
        raise DataError("there is no text", where=str(path), hint="give a .txt or .jsonl file, or a folder of them")
    return words


def _document(file: Path) -> str:
    try:
        words = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the text cannot be read: {error}", where=str(file), hint="is it plain text in UTF-8?"
        ) from None
    if file.suffix.lower() != ".jsonl":
        return words
    lines = []
    for number, line in enumerate(words.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"this line is no JSON: {error}", where=f"{file}:{number}") from None
        found = entry.get("text") if isinstance(entry, dict) else entry
        if not isinstance(found, str):
            raise DataError('this line holds no text under the key "text"', where=f"{file}:{number}")
        lines.append(found)
    return "\n".join(lines)


def _tokenizer(given: str | Path | None, models: Sequence[Path]) -> Tokenizer:
    tried = [model.with_name(TOKENIZER) for model in models] if given is None else [Path(given)]
    path = next((file for file in tried if file.is_file()), None)
    if path is None:
        raise UsageError(
            "text needs the model's tokenizer" if given is None else "no such tokenizer file",
            where=str(tried[0]),
            hint="give its tokenizer.json with --tokenizer FILE, or lay it beside the model",
        )
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UsageError("reading text needs the package tokenizers", hint="pip install 'qcompile[text]'") from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise DataError(
            f"not a tokenizer file: {error}",
            where=str(path),
            hint="a tokenizer.json of the tokenizers library is needed, not a vocabulary or a configuration",
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
