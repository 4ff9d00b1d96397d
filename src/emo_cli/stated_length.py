"""How long a sound file says it is, to tell a file that was cut short from a short one."""

from __future__ import annotations

import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container import InputContainer

# Containers that state their length, and mean it; others estimate it from the bit rate.
STATING = ("flac", "mov", "matroska", "aiff", "w64", "caf", "ape", "tta", "wv")
UNKNOWN_WAV_SIZE = 0x7FFF0000  # a stream's wav header carries a size from here on, or 0
LARGEST_OGG_PAGE = 65_307  # bytes


def stated_length_s(path: Path, container: InputContainer) -> Fraction:
    """Length in seconds that the file states for its first sound track; 0 where it does not."""
    track = container.streams.audio[0]
    name = container.format.name.partition(",")[0]
    if name == "wav" and track.codec_context.name.startswith("pcm_"):
        return Fraction(_wav_data_bytes(path) * 8, track.codec_context.bit_rate or 1)
    # An mp3 whose header counts its frames carries the encoder's delay too.
    if name not in STATING and not (name == "mp3" and track.start_time):
        return Fraction(0)
    if track.duration is not None and track.time_base is not None:
        return track.duration * track.time_base
    if len(container.streams) == 1:  # else it may be the picture that lasts so long
        return Fraction(container.duration or 0, 1_000_000)
    return Fraction(0)


def ends_inside_a_page(path: Path) -> bool:
    """Whether an Ogg file breaks off within a page, the one trace that a cut leaves in it."""
    with path.open("rb") as stream:
        if stream.read(4) != b"OggS":
            return False
        stream.seek(-min(path.stat().st_size, LARGEST_OGG_PAGE), os.SEEK_END)
        tail = stream.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27:
        return True
    lengths = page[27 : 27 + page[26]]  # of the page's segments
    return len(page) < 27 + page[26] + sum(lengths)


def _wav_data_bytes(path: Path) -> int:
    """Size of the samples as the header states it: ffmpeg corrects it to what is there."""
    with path.open("rb") as stream:
        if stream.read(4) != b"RIFF":
            return 0
        stream.seek(12)
        while len(header := stream.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                return size if size < UNKNOWN_WAV_SIZE else 0
            stream.seek(size + size % 2, os.SEEK_CUR)
    return 0
