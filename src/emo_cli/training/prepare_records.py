"""What is known of each raw video: one small file each, so that memory does not grow with them.

    DATASET/videos/d1/NAME-3f02b6c9d1.json
    DATASET/puppets/8a/puppet-0-000123-88ab01c28a.json

A record is replaced in one step after each finished clip. A second run reads it to do only what is
missing; the report is counted from all of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emo_cli.training.prepare_video import Dropped, Shots
from emo_cli.training.samples import PackedSample
from emo_cli.training.shards import INDEX, disk_errors, read_lines, write_json
from emo_cli.training.shots import Stretch
from emo_cli.video_workers import Failed, Finished

KEPT = "kept"
EXAMPLES = 3  # names of videos beside each reason


@dataclass(kw_only=True)
class Record:
    """One video: its shots once found, each clip's outcome, and whether all has been done."""

    video: str
    shots: list[tuple[int, int]] | None = None
    clips: dict[str, str] = field(default_factory=dict)  # key: "kept", or "step: reason"
    dropped: str | None = None  # the whole video, "step: reason"
    failed: str | None = None  # tried again by the next run
    finished: bool = False

    @property
    def state(self) -> str:
        """finished | failed | left out (by a list or rule) | unfinished"""
        if self.finished:
            return "finished"
        return "failed" if self.failed else "left out" if self.dropped else "unfinished"

    def note(self, event: Any) -> None:
        """Take in what a worker says."""
        if isinstance(event, Shots):
            self.shots = [(shot.first, shot.count) for shot in event.shots]
        elif isinstance(event, PackedSample):
            self.clips[event.key] = KEPT
        elif isinstance(event, Dropped) and event.key is not None:
            self.clips[event.key] = f"{event.step}: {event.reason}"
        elif isinstance(event, Dropped):
            self.dropped = f"{event.step}: {event.reason}"
        elif isinstance(event, Failed):
            self.failed = event.reason
        else:
            assert isinstance(event, Finished)
            self.finished, self.failed = True, None

    def stretches(self) -> tuple[Stretch, ...] | None:
        """The shots as a task takes them."""
        if self.shots is None:
            return None
        return tuple(Stretch(first=first, count=count) for first, count in self.shots)


class Records:
    """The records of a dataset's raw videos, or of its puppets."""

    def __init__(self, dataset: Path, kind: str = "videos") -> None:
        self._dataset = dataset
        self._folder = dataset / kind

    def read(self, name: str, video: str) -> Record:
        """The record of a video, a new one where there is none."""
        path = self._path(name)
        if not path.exists():
            return Record(video=video)
        return Record(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, name: str, record: Record) -> None:
        """Replace a record in one step."""
        path = self._path(name)
        with disk_errors(self._dataset):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(record))

    def all(self) -> Iterator[Record]:
        """Every record, one at a time."""
        for path in self._folder.glob("*/*.json"):
            yield Record(**json.loads(path.read_text(encoding="utf-8")))

    def catch_up(self) -> None:
        """Note the last clip of the index, which a kill may have kept out of its record."""
        last = None
        if (self._dataset / INDEX).exists():
            for line in read_lines(self._dataset):
                last = line
        if last is None:
            return
        name = video_name_of(last["key"])
        if not self._path(name).exists():  # some other maker's clip
            return
        record = self.read(name, "")
        if last["key"] not in record.clips:
            record.clips[last["key"]] = KEPT
            self.write(name, record)

    def _path(self, name: str) -> Path:
        return self._folder / name[-2:] / f"{name}.json"


def video_name(video: str, num_bytes: int) -> str:
    """A name for a raw video that is unique and fit for a key: its own, and ten hex digits.

    video: its folder's name and its path in that folder, so that data may be moved as a whole.
    """
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", Path(video).stem)[:40]
    digest = hashlib.sha256(f"{video}\n{num_bytes}".encode("utf-8", "surrogateescape"))
    return f"{plain}-{digest.hexdigest()[:10]}"


def video_name_of(key: str) -> str:
    """The video's name within a clip's key."""
    return key.rpartition("-")[0]


def count_up(records: Iterator[Record], dataset: Path) -> dict[str, Any]:
    """The report: what was kept, and what was dropped at which step, why, and where."""
    videos, clips = Counter[str](), Counter[str]()
    reasons: dict[str, dict[str, Any]] = {}
    for record in records:
        videos[record.state] += 1
        why = [(record.dropped, "videos"), (record.failed and f"failed: {record.failed}", "videos")]
        why += [(outcome, "clips") for outcome in record.clips.values()]
        for reason, kind in why:
            if reason == KEPT:
                clips[KEPT] += 1
            elif reason:
                row = reasons.setdefault(reason, {"videos": 0, "clips": 0, "examples": []})
                row[kind] += 1
                if len(row["examples"]) < EXAMPLES and record.video not in row["examples"]:
                    row["examples"].append(record.video)
                clips["dropped"] += kind == "clips"
    kept: dict[str, Counter[str]] = {"clips": Counter(), "frames": Counter(), "sounding": Counter()}
    if (dataset / INDEX).exists():
        for line in read_lines(dataset):
            kept["clips"][line["split"]] += 1
            kept["frames"][line["split"]] += line["frames"]
            kept["sounding"][line["split"]] += "flac" in line["parts"]
    return {
        "videos": dict(videos),
        "kept": {name: dict(counts) for name, counts in kept.items()},
        "dropped_clips": clips["dropped"],
        "reasons": dict(sorted(reasons.items())),
    }
