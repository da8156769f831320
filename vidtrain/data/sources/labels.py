"""Maps a listing's labels to class numbers."""

import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from vidtrain.data.manifest.columns import Columns
from vidtrain.data.manifest.manifest import NO_UTF8, spelled, spelled_list
from vidtrain.data.sources.tables import open_text, read_json
from vidtrain.errors import UserError
from vidtrain.files.escaping import is_utf8

KINDS = ("names", "integers")
SEPARATORS = (";", "|", ",", " ")  # usual separators of labels
GAPS = ("", "nan")  # usual texts for a missing number
NAMED = 8
_DECIMAL = re.compile(r"[0-9]+\.[0-9]*(?:[eE][+-]?[0-9]+)?")
Complain = Callable[[int, str], None]  # (index of the text, fault)


def class_list(classes: str | Sequence[str]) -> tuple[str, ...]:
    """Class names in order: as given, or from the file `classes`: a .json file of a list of names or of numbers by name
    (perhaps as "categories"), else of one name a line."""
    if not isinstance(classes, str):
        return spelled_list([str(name) for name in classes], "the list of classes")
    if not classes.endswith(".json"):
        with open_text(classes) as file:
            return spelled_list([line for line in file.read().splitlines() if line.strip()], classes)
    content = read_json(classes)
    if isinstance(content, dict):
        nested = content.get("categories")
        return in_order(nested if isinstance(nested, dict) else content, classes)
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{classes} must hold a list of class names, or an object of numbers by name")
    return spelled_list(content, classes)


def in_order(numbers: dict[str, object], path: Path | str) -> tuple[str, ...]:
    """The names that `path` numbers, sorted by number. Raises `UserError` unless those are 0, 1, 2 ..."""
    by_number = {}
    for name, number in numbers.items():
        if isinstance(number, bool) or not is_integer(str(number).strip()):
            raise UserError(f"{path}: the numbers of classes must be integers: {name!r} has {number!r}")
        by_number[int(float(str(number)))] = name
    if sorted(by_number) != list(range(len(numbers))):
        raise UserError(f"{path}: its classes must be numbered 0 to {len(numbers) - 1}, each once")
    return spelled_list([by_number[number] for number in range(len(numbers))], path)


class LabelReader:
    """Turns the label texts of a dataset's listings into numbers.

    `kind` is the kind of labels: "names", or "integers", which are class numbers; None takes the kind of the first
    label (a name if it is in `classes`). The classes are `classes` (`class_list`), else the sorted names of train, or
    the integers from 0 to the largest of train. `separator` separates the labels of a record; `splits` is whether the
    source supports it. Without it, a label that looks like several, such as "1;2", is a fault.

    Train must be read and settled first; the other splits may then contain only known labels.
    """

    def __init__(
        self,
        kind: str | None,
        classes: str | Sequence[str] | None,
        separator: str | None,
        splits: bool = False,
    ):
        if kind is not None and kind not in KINDS:
            raise UserError(f"dataset.source.label_kind={kind}: choose one of {', '.join(KINDS)}, or null")
        if separator == "":
            raise UserError("dataset.source.label_separator must hold a character, or be null")
        self._kind = kind
        self._classes = () if classes is None else class_list(classes)
        self._separator = separator
        self._splits = splits
        self._settled = self._given = classes is not None
        self._codes = {name: code for code, name in enumerate(self._classes)}
        self._seen: set[int] = set()

    @property
    def multi_label(self) -> bool:
        return self._separator is not None

    def read(self, texts: Sequence[str], complain: Complain) -> tuple[list[int], list[int] | None]:
        """The numbers of all labels and, if there may be several, the number of labels of each text. The values of
        faulty texts are meaningless."""
        texts = spelled(texts)
        if self._separator is None:
            return self._read_single(texts, complain), None
        parts = [text.split(self._separator) for text in texts]
        owners = [place for place, labels in enumerate(parts) for _ in labels]
        flat = spelled([label for labels in parts for label in labels])
        numbers = self._read_single(flat, lambda place, why: complain(owners[place], why))
        remaining = iter(numbers)
        for place, labels in enumerate(parts):
            if len(set(islice(remaining, len(labels)))) < len(labels):
                complain(place, f"a label twice: {texts[place]!r}")
        return numbers, list(map(len, parts))

    def _read_single(self, texts: list[str], complain: Complain) -> list[int]:
        if not texts:
            return []
        if self._kind is None:
            # tables with missing values store integers as floats
            stated = [text for text in texts if text.lower() not in GAPS]
            whole = _is_plain(texts[0]) or (bool(stated) and all(map(is_integer, stated)))
            self._kind = "integers" if whole and texts[0] not in self._codes else "names"
        return (self._integers if self._kind == "integers" else self._names)(texts, complain)

    def _integers(self, texts: list[str], complain: Complain) -> list[int]:
        together = "".join(texts)
        if together.isascii() and together.isdecimal() and all(texts):
            numbers = list(map(int, texts))
        else:
            numbers = [int(float(text)) if is_integer(text) else 0 for text in texts]
            for place, text in enumerate(texts):
                if not is_integer(text):
                    why = f"label {text!r} is not an integer, as others are (dataset.source.label_kind)"
                    complain(place, (self._several(text) or why) if text else "no label")
        self._seen.update(numbers)
        largest = len(self._classes) - 1 if self._settled else np.iinfo(np.int32).max
        if max(numbers) > largest:
            for place, number in enumerate(numbers):
                if number > largest:
                    complain(place, f"label {number} is outside 0..{largest}")
            numbers = [min(number, largest) for number in numbers]
        return numbers

    def _names(self, texts: list[str], complain: Complain) -> list[int]:
        codes = self._codes
        if not self._settled:
            numbers = [codes.setdefault(text, len(codes)) for text in texts]
            bad = {text for text in codes if not text or not is_utf8(text) or self._several(text)}
        else:
            bad = {text for text in set(texts) if text not in codes}
            numbers = [codes[text] if text in codes else 0 for text in texts]
        if bad:
            known = "the classes given" if self._given else "the labels of train"
            why = {text: self._several(text) or f"label {text!r} is not among {known}" for text in bad}
            why |= {text: f"label {text!r} {NO_UTF8}" for text in bad if not is_utf8(text)}
            for place, text in enumerate(texts):
                if text in bad:
                    complain(place, why[text] if text else "no label")
        return numbers

    def _several(self, text: str) -> str:
        """The fault of a label that looks like several."""
        separator = None if self._separator is not None else _separator_in(text)
        if separator is None:
            return ""
        way = "this source takes one label a video, and dataset=listing several"
        if self._splits:
            way = f"set 'dataset.source.label_separator=\"{separator}\"'"  # in both quotes, as a shell needs
        looks = "is not among the classes given" if self._given else "looks like several"
        return f"label {text!r} {looks}: {way}, or, if it is one name, list it in dataset.source.classes"

    def settle(self, columns: Columns) -> tuple[Columns, tuple[str, ...]]:
        """The records with the final numbers of their labels, and the classes, which train determines. Raises
        `UserError` if train lacks an integer below its largest and no classes are given."""
        if self._settled:
            return columns, self._classes
        self._settled = True
        if self._kind == "names":
            first_seen, self._classes = list(self._codes), tuple(sorted(self._codes))
            self._codes = {name: code for code, name in enumerate(self._classes)}
            order = np.array([self._codes[name] for name in first_seen], dtype=np.int32)
            return columns.relabeled(order), self._classes
        largest = max(self._seen, default=-1)
        if len(self._seen) <= largest:
            absent = (str(number) for number in range(largest) if number not in self._seen)
            raise UserError(
                f"train has labels up to {largest}, but none of {largest + 1 - len(self._seen)} below it, such as "
                f"{', '.join(islice(absent, NAMED))}: name all classes (dataset.source.classes), or set "
                "dataset.source.label_kind=names"
            )
        self._classes = tuple(str(number) for number in range(largest + 1))
        return columns, self._classes


def is_integer(text: str) -> bool:
    """Whether `text` is a class number, also if it is written as a float: 3, 3.0 or 3.000e+00."""
    return _is_plain(text) or (_DECIMAL.fullmatch(text) is not None and float(text).is_integer())


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _separator_in(text: str) -> str | None:
    """The separator of several labels in `text`, if it looks like that."""
    for separator in SEPARATORS:
        parts = [part.strip() for part in text.split(separator)]
        # commas and spaces are common in names, but not between numbers
        if len(parts) > 1 and all(parts) and (separator in (";", "|") or all(map(is_integer, parts))):
            return separator
    return None
