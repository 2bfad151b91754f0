"""The directory of a zip archive as torch writes it, read strictly.

Members are stored, never packed, so a member is a range of the file and nothing ever has to be
unpacked. Whatever a second reader could understand differently (two members of one name, names that
differ between the two places they are written, members that share bytes) is refused.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from tui_chat.checkpoint.files import Damaged, RegularFile

MAX_MEMBERS = 1_000_000
MAX_DIRECTORY = 128 * 1024 * 1024

_END = struct.Struct("<4s4H2LH")  # end of central directory
_LOCATOR = struct.Struct("<4sLQL")  # where its 64-bit twin lies
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the archive: `size` bytes; `header` is where its local header begins."""

    name: str
    header: int
    size: int
    crc32: int
    raw_name: bytes


class Directory:
    """The members of the archive in `file` by name. Raises Damaged.

    `base` and `length` select a part of the file (an archive within a file).
    """

    def __init__(self, file: RegularFile, base: int = 0, length: int | None = None) -> None:
        self.file = file
        self.base = base
        self.length = file.size - base if length is None else length
        begin, count, size = self._end()
        if count > MAX_MEMBERS or size > MAX_DIRECTORY or begin + size > self.length:
            raise Damaged("its list of members does not fit into the file")
        self.members = self._members(self._read(begin, size), count)
        self._check_ranges(begin)

    def _read(self, begin: int, count: int) -> bytes:
        if begin < 0 or begin + count > self.length:
            raise Damaged("a part of the archive lies outside the file")
        return self.file.read(self.base + begin, count)

    def _end(self) -> tuple[int, int, int]:
        """Where the directory begins, its number of entries and its bytes."""
        tail_size = min(self.length, 65535 + _END.size)
        # torch writes no comment, so the record is at the very end: look there before reading 64
        # KB.
        for size in (min(self.length, 256), tail_size):
            tail = self._read(self.length - size, size)
            at = tail.rfind(b"PK\x05\x06")
            if at >= 0 and len(tail) - at >= _END.size:
                break
        else:
            raise Damaged(
                "it is an archive whose end is missing: a copy cut short, or a save in progress"
            )
        _, disk, first, here, count, size, begin, comment = _END.unpack_from(tail, at)
        position = self.length - len(tail) + at
        if disk or first or here != count or position + _END.size + comment != self.length:
            raise Damaged("the end of the archive is damaged")
        if count == 0xFFFF or size == _32 or begin == _32:
            return self._end64(position)
        return int(begin), int(count), int(size)

    def _end64(self, position: int) -> tuple[int, int, int]:
        magic, _, at, _ = _LOCATOR.unpack(self._read(position - _LOCATOR.size, _LOCATOR.size))
        if magic != b"PK\x06\x07":
            raise Damaged("the end of the archive is damaged")
        fields = _END64.unpack(self._read(at, _END64.size))
        if fields[0] != b"PK\x06\x06" or fields[6] != fields[7]:
            raise Damaged("the end of the archive is damaged")
        return int(fields[9]), int(fields[7]), int(fields[8])

    def _members(self, data: bytes, count: int) -> dict[str, Member]:
        found: dict[str, Member] = {}
        at = 0
        for _ in range(count):
            if at + _ENTRY.size > len(data):
                raise Damaged("its list of members is cut short")
            (magic, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length,
             comment_length, _, _, _, header) = _ENTRY.unpack_from(data, at)  # fmt: skip
            at += _ENTRY.size
            if magic != b"PK\x01\x02":
                raise Damaged("its list of members is damaged")
            raw = data[at : at + name_length]
            extra = data[at + name_length : at + name_length + extra_length]
            at += name_length + extra_length + comment_length
            if at > len(data):
                raise Damaged("its list of members is cut short")
            if _32 in (packed, size, header):
                packed, size, header = _wide(extra, packed, size, header)
            try:
                name = raw.decode("utf-8")
            except UnicodeDecodeError:
                raise Damaged("a member's name is not UTF-8") from None
            if flags & 0x2041:
                raise Damaged(f"the member {name[:60]!r} is encrypted")
            if method or packed != size:
                raise Damaged(f"the member {name[:60]!r} is compressed, which torch never does")
            if name in found:
                raise Damaged(f"two members have the name {name[:60]!r}")
            found[name] = Member(name, header, size, crc, raw)
        return found

    def _check_ranges(self, end: int) -> None:
        """No two members share bytes: otherwise a small file could pose as a huge one."""
        previous = 0
        for member in sorted(self.members.values(), key=lambda m: m.header):
            if member.header < previous:
                raise Damaged("members of the archive share the same bytes")
            previous = member.header + _LOCAL.size + len(member.raw_name) + member.size
        if previous > end:
            raise Damaged("members of the archive reach beyond its end: a copy cut short?")

    def position(self, member: Member) -> int:
        """Where the member's bytes begin in the file, after its two headers were compared."""
        length = _LOCAL.size + len(member.raw_name)
        raw = self._read(member.header, length)
        magic, _, flags, method, _, _, crc, _, size, name_length, extra_length = _LOCAL.unpack_from(
            raw
        )
        begin = member.header + _LOCAL.size
        if (
            magic != b"PK\x03\x04"
            or name_length != len(member.raw_name)
            or raw[_LOCAL.size :] != member.raw_name
        ):
            raise Damaged(f"the member {member.name[:60]!r} has another name at its own place")
        begin += name_length + extra_length
        late = flags & 8  # size and checksum follow the data
        if (
            method
            or flags & 0x2041
            or not (late or (crc == member.crc32 and size in (member.size, _32)))
        ):
            raise Damaged(
                f"the member {member.name[:60]!r} is described differently at its own place"
            )
        if begin + member.size > self.length:
            raise Damaged(f"the member {member.name[:60]!r} reaches beyond the end of the file")
        return self.base + int(begin)

    def read(self, name: str) -> bytes:
        """The bytes of a member, checked against its checksum."""
        member = self.members[name]
        data = self.file.read(self.position(member), member.size)
        if zlib.crc32(data) != member.crc32:
            raise Damaged(f"the member {name[:60]!r} does not match its checksum")
        return data


def _wide(extra: bytes, packed: int, size: int, header: int) -> tuple[int, int, int]:
    """The 64-bit values that stand in for those that do not fit into 32 bits."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        at += 4
        if kind == 1:
            words = min(length, len(extra) - at) // 8
            wide = list(struct.unpack_from(f"<{words}Q", extra, at))
            try:
                size = wide.pop(0) if size == _32 else size
                packed = wide.pop(0) if packed == _32 else packed
                header = wide.pop(0) if header == _32 else header
            except IndexError:
                break
            return packed, size, header
        at += length
    raise Damaged("its list of members is damaged")
