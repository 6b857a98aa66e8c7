"""The names of a set's images in one array of bytes, which processes that read images share."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from operator import eq
from typing import SupportsIndex, overload

_HOW = ("utf-8", "surrogatepass")  # keeps the order of texts, and what no UTF-8 has: odd file names
_BLOCK = 2**12  # names that are read at once


class Names(Sequence[str]):
    """Texts in one array of bytes; to read, they are as a list of them.

    A million texts of their own are 120 MB, and to look at one writes how often it is used, so
    that each forked process ends with a copy. Here nothing is written by looking.
    """

    def __init__(self, names: Iterable[str] = ()):
        self.data = bytearray()
        self.ends = array("q", [0])  # (N + 1,) bytes before the end of each; the first is a start
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Adds a name at the end."""
        self.data += name.encode(*_HOW)
        self.ends.append(len(self.data))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self.data[self.ends[place] : self.ends[place + 1]].decode(*_HOW)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _BLOCK):
            start, *ends = self.ends[first : first + _BLOCK + 1]
            data = bytes(self.data[start : ends[-1]])
            begin = 0
            for end in ends:
                yield data[begin : end - start].decode(*_HOW)
                begin = end - start

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (list, Names)):
            return NotImplemented
        return len(self) == len(other) and all(map(eq, self, other))
