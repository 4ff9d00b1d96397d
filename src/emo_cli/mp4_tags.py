"""Tags of an mp4 file in the one place that players, iTunes and ffmpeg all read.

ffmpeg writes either the tags that players show (`udta/meta/ilst`) and drops all other keys, or,
with `use_metadata_tags`, every key at a place that many players do not read. So ffmpeg writes a
comment that only holds the room, and these functions put the real box there: nothing in the
file moves, and no offset changes. Box layouts: ISO/IEC 14496-12; `ilst` is Apple's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

PLAYER_TAGS = {"comment": b"\xa9cmt", "encoder": b"\xa9too"}
UTF8 = 1


def tag_box(tags: Mapping[str, str]) -> bytes:
    """The `udta` box: `comment` and `encoder` as players know them, all others by their names."""
    items = b"".join(_item(name, value) for name, value in tags.items())
    handler = _box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    return _box(b"udta", _box(b"meta", bytes(4), handler, _box(b"ilst", items)))


def room_for(box: bytes) -> str:
    """A comment for ffmpeg's `-metadata` that keeps at least as much room as `box` needs."""
    return "." * len(box)


def put_tags(path: Path, box: bytes) -> None:
    """Writes the box over the one that ffmpeg left; what is over becomes a `free` box.

    Raises: ValueError when the file has no such room.
    """
    with path.open("r+b") as file:
        file.seek(0, 2)
        moov, moov_size = _find_box(file, b"moov", 0, file.tell())
        start, size = _find_box(file, b"udta", moov + 8, moov + moov_size)
        if size < len(box) + 8:
            raise ValueError(f"{size} bytes are too few for tags of {len(box)}")
        file.seek(start)
        file.write(box + _box(b"free", bytes(size - len(box) - 8)))


def _find_box(file: BinaryIO, kind: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the first box of a kind between two offsets begins, and its size in bytes."""
    while start < end:
        file.seek(start)
        size, found = struct.unpack(">I4s", file.read(8))
        if size == 1:  # boxes above 4 GiB
            (size,) = struct.unpack(">Q", file.read(8))
        if found == kind:
            return start, size
        start += max(size, 8)
    raise ValueError(f"no {kind.decode()} box")


def _item(name: str, value: str) -> bytes:
    data = _box(b"data", struct.pack(">II", UTF8, 0), value.encode())
    if name in PLAYER_TAGS:
        return _box(PLAYER_TAGS[name], data)
    owner = _box(b"mean", bytes(4), b"com.apple.iTunes")
    return _box(b"----", owner, _box(b"name", bytes(4), name.encode()), data)


def _box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", len(body) + 8, kind) + body
