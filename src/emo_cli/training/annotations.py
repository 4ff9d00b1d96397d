"""Which stretches of which videos to use, and whose faces they are: lists, patterns and CSVs.

The published lists of HDTF, VFHQ and CelebV-HQ name videos by their file names without suffix:
the whole videos as downloaded, or the clips as their scripts cut them.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emo_cli.errors import EmoError
from emo_cli.training.samples import Split
from emo_cli.training.splits import identity, is_held_out, name_hash
from emo_cli.training.tracks import Region

LIST_HINT = (
    "--list takes HDTF's *_annotion_time.txt, VFHQ's folder of Clip+*.txt, CelebV-HQ's "
    "celebvhq_info.json."
)


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of a video that a list names; `region` as shares of the picture."""

    start_s: float
    stop_s: float | None
    identity: str
    region: Region | None = None
    in_heights: bool = False  # `region` counts in heights of the picture, both ways

    def region_in(self, width: int, height: int) -> Region | None:
        """The region as shares of a picture of that shape."""
        if self.region is None or not self.in_heights:
            return self.region
        x0, y0, x1, y1 = self.region
        return (x0 * height / width, y0, x1 * height / width, y1)


Spans = dict[str, list[Span]]  # by file name without suffix
WhoIs = Callable[[Path, str], tuple[str, Split] | None]  # video, identity in the list ("": none)
Identities = dict[str, tuple[str, Split]]  # by file name, with or without suffix


def read_list(path: Path) -> Spans:
    """The annotation list of HDTF, VFHQ or CelebV-HQ, told apart by what the files look like.

    Raises: EmoError when it is none of these.
    """
    try:
        spans = _read_list(path)
    except OSError as error:
        raise EmoError(f"cannot read the list {path}: {error.strerror}", LIST_HINT) from error
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise EmoError(f"{path} is no list that emo knows: {error}", LIST_HINT) from error
    if not spans:
        raise EmoError(f"{path} names no video", LIST_HINT)
    return spans


def _read_list(path: Path) -> Spans:
    if path.is_dir():
        clips = sorted(path.glob("Clip+*.txt"))
        times = sorted(path.glob("*_annot*ion_time.txt"))
        return _merged(map(_vfhq_clip, clips)) if clips else _merged(map(_hdtf, times))
    if path.suffix == ".json":
        return _celebv(json.loads(path.read_text(encoding="utf-8")))
    return _vfhq_clip(path) if path.name.startswith("Clip+") else _hdtf(path)


def _merged(parts: Iterator[Spans]) -> Spans:
    merged: Spans = {}
    for part in parts:
        for name, spans in part.items():
            merged.setdefault(name, []).extend(spans)
    return merged


def _hdtf(path: Path) -> Spans:
    """Lines "Radio11.mp4 00:30-01:00 01:30-02:30"; crops and heights lie in files beside it."""
    prefix = re.sub(r"annot\w*_time\.txt$", "", path.name)
    crops = _table(path.with_name(f"{prefix}crop_wh.txt"))
    heights = _table(path.with_name(f"{prefix}resolution.txt"))
    spans: Spans = {}
    for file, times in _table(path).items():
        name = Path(file).stem
        who = re.sub(r"(_\d+)+$", "", name)  # WDA_BarackObama_000 and _001 are one man
        for number, time in enumerate(times):
            start, stop = (_seconds(text) for text in time.split("-"))
            cut = f"{name}_{number}"
            region = None
            if f"{cut}.mp4" in crops and file in heights:
                scale = 1 / float(heights[file][0])
                x, width, y, height = (scale * float(v) for v in crops[f"{cut}.mp4"][:4])
                region = (x, y, x + width, y + height)
            spans.setdefault(name, []).append(
                Span(start_s=start, stop_s=stop, identity=who, region=region, in_heights=True)
            )
            spans[cut] = [Span(start_s=0.0, stop_s=None, identity=who)]
    return spans


def _table(path: Path) -> dict[str, list[str]]:
    """Lines of words, by their first; empty where the file is absent."""
    if not path.exists():
        return {}
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {row[0]: row[1:] for row in rows if len(row) > 1}


def _seconds(text: str) -> float:
    value = 0.0
    for part in text.split(":"):
        value = 60 * value + float(part)
    return value


def _vfhq_clip(path: Path) -> Spans:
    """Clip+VIDEO+P0+C1+F100-260.txt, with lines H, W, FPS and CROP x0 y0 x1 y1 on top."""
    _, video, person, _, frames = path.stem.split("+")
    found: dict[str, list[float]] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            words = line.replace(":", " ").split()
            if words and words[0] in ("H", "W", "FPS", "CROP"):
                found[words[0]] = [float(word) for word in words[1:]]
            if len(found) == 4:
                break
    first, last = (float(text) / found["FPS"][-1] for text in frames.lstrip("F").split("-"))
    width, height = found["W"][-1], found["H"][-1]
    x0, y0, x1, y1 = found["CROP"][-4:]
    who = f"{video}+{person}"
    region = (x0 / width, y0 / height, x1 / width, y1 / height)
    return {
        video: [Span(start_s=first, stop_s=last, identity=who, region=region)],
        path.stem: [Span(start_s=0.0, stop_s=None, identity=who)],
    }


def _celebv(values: dict[str, Any]) -> Spans:
    """{"clips": {NAME: {"ytb_id", "duration": {...}, "bbox": {...}}}}."""
    spans: Spans = {}
    for name, clip in values["clips"].items():
        video, time, box = str(clip["ytb_id"]), clip["duration"], clip["bbox"]
        region = tuple(float(box[side]) for side in ("left", "top", "right", "bottom"))
        spans.setdefault(video, []).append(
            Span(
                start_s=float(time["start_sec"]),
                stop_s=float(time["end_sec"]),
                identity=video,
                region=region,  # type: ignore[arg-type]
            )
        )
        spans[name] = [Span(start_s=0.0, stop_s=None, identity=video)]
    return spans


def rows_digest(rows: Spans | Identities | None) -> str | None:
    """Ten hex digits that tell one list or CSV from another; None where there is none."""
    if rows is None:
        return None
    return name_hash(json.dumps(rows, sort_keys=True, default=asdict))[:10]


def split_rule(split_by: str | None, held_out_share: float) -> WhoIs:
    """The rule from a video to its identity and split; None: the rule does not know the video.

    split_by: a CSV with columns video, identity and, if wanted, split (train or val); or a regular
    expression whose first group, found in the path, is the identity; or None: the list's identity,
    else the rule of `splits.py`. Raises: EmoError for a CSV or expression that will not do.
    """
    if split_by is None:

        def by_name(video: Path, listed: str) -> tuple[str, Split]:
            if listed:
                return listed, _split_of(listed, held_out_share)
            return identity(video), "val" if is_held_out(video, held_out_share) else "train"

        return by_name
    rows = read_identities(split_by, held_out_share)
    if rows is not None:
        return lambda video, listed: rows.get(video.name) or rows.get(video.stem)
    try:
        pattern = re.compile(split_by)
    except re.error as error:
        raise EmoError(f"--split-by '{split_by}' is no pattern: {error}", exit_code=2) from error
    if pattern.groups == 0:
        raise EmoError(
            f"--split-by '{split_by}' has no group",
            "Put the identity's part in brackets: --split-by '([^/_]+)_[^/]*$'",
            exit_code=2,
        )

    def by_pattern(video: Path, listed: str) -> tuple[str, Split] | None:
        found = pattern.search(video.as_posix())
        return (found[1], _split_of(found[1], held_out_share)) if found and found[1] else None

    return by_pattern


def _split_of(name: str, held_out_share: float) -> Split:
    return "val" if int(name_hash(name), 16) < held_out_share * 2**256 else "train"


def read_identities(split_by: str | None, held_out_share: float) -> Identities | None:
    """The rows of --split-by; None where it is no CSV.

    Raises: EmoError for a CSV that will not do.
    """
    if split_by is None or not split_by.lower().endswith(".csv"):
        return None
    path = Path(split_by)
    hint = "It needs a first line 'video,identity' or 'video,identity,split'."
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found = {
            row["video"]: (
                row["identity"],
                row.get("split") or _split_of(row["identity"], held_out_share),
            )
            for row in rows
        }
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, AttributeError) as error:
        raise EmoError(f"cannot read --split-by {path}: {error}", hint) from error
    wrong = {split for _, split in found.values()} - {"train", "val"}
    if wrong:
        raise EmoError(f"{path}: '{min(wrong)}' is no split", "It is 'train' or 'val'.")
    sides: dict[str, str] = {}
    for who, split in found.values():
        if sides.setdefault(who, split) != split:
            raise EmoError(
                f"{path}: '{who}' is in both splits", "An identity belongs to one of them."
            )
    return found  # type: ignore[return-value]
