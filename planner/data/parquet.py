"""Column names and row count of a parquet file from its footer alone, without any library.

The footer is a Thrift compact-protocol struct (apache/parquet-format, parquet.thrift: FileMetaData fields 2, the
schema, and 3, num_rows; apache/thrift, thrift-compact-protocol.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import InputError

_MAGIC = b"PAR1"
_LARGEST_FOOTER_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Footer:
    """Top-level column names, each with the leaf names under it, and the number of rows."""

    columns: dict[str, tuple[str, ...]]
    rows: int


def read_footer(path: Path) -> Footer:
    """The footer of ``path``. Raises InputError where the file is no parquet."""
    try:
        fields = _Compact(_footer_bytes(path)).struct()
        columns = _columns(fields[2])
        return Footer(columns=columns, rows=int(fields[3]))
    except (KeyError, IndexError, ValueError, TypeError):
        raise InputError(f"--data {str(path)!r} is not a readable parquet file") from None


def _footer_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 12:
            raise ValueError("too short")
        file.seek(size - 8)
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or not 0 < length <= min(size - 8, _LARGEST_FOOTER_BYTES):
            raise ValueError("no footer")
        file.seek(size - 8 - length)
        return file.read(length)


def _columns(schema: list[dict[int, Any]]) -> dict[str, tuple[str, ...]]:
    """The schema is a tree in depth-first order; field 4 is the name, field 5 the number of children."""
    position = 1
    columns: dict[str, tuple[str, ...]] = {}

    def leaves() -> list[str]:
        nonlocal position
        element = schema[position]
        position += 1
        children = element.get(5, 0)
        names = [name for _ in range(children) for name in leaves()]
        return names or [_text(element[4])]

    for _ in range(schema[0].get(5, 0)):
        name = _text(schema[position][4])
        columns[name] = tuple(leaves())
    return columns


def _text(raw: bytes) -> str:
    return raw.decode("utf-8")


class _Compact:
    """A reader of Thrift's compact protocol: structs become dicts by field number."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _byte(self) -> int:
        value = self._data[self._at]
        self._at += 1
        return value

    def _varint(self) -> int:
        result = shift = 0
        while True:
            byte = self._byte()
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result
            shift += 7

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise ValueError("past the end")
        start, self._at = self._at, self._at + count
        return self._data[start : self._at]

    def struct(self) -> dict[int, Any]:
        """Fields of one struct up to its stop byte."""
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            delta, kind = head >> 4, head & 0x0F
            number = number + delta if delta else self._zigzag()
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):  # booleans inside lists are one byte each
            return self._byte() == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return self._take(8)
        if kind == 8:
            return self._take(self._varint())
        if kind in (9, 10):
            return self._list()
        if kind == 11:
            return self._map()
        if kind == 12:
            return self.struct()
        raise ValueError(f"type {kind}")

    def _list(self) -> list[Any]:
        head = self._byte()
        count = head >> 4
        if count == 15:
            count = self._varint()
        if count > len(self._data):
            raise ValueError("impossible length")
        return [self._value(head & 0x0F) for _ in range(count)]

    def _map(self) -> dict[Any, Any]:
        count = self._varint()
        if not count:
            return {}
        kinds = self._byte()
        return {self._value(kinds >> 4): self._value(kinds & 0x0F) for _ in range(min(count, len(self._data)))}
