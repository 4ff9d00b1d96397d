"""What puppets to make: whose still, whose speech, and what is drawn for each.

A driver is a video of one person who talks, or synthesised speech: NAME.wav beside NAME.phones.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emo_cli.errors import EmoError
from emo_cli.files import find_files
from emo_cli.raw_video import FPS, VIDEO_SUFFIXES
from emo_cli.sound import SAMPLE_RATE_HZ
from emo_cli.training.draws import epoch_order
from emo_cli.training.pictures import IMAGE_SUFFIXES
from emo_cli.training.prepare_records import Records
from emo_cli.training.puppets.clip import Plan, make_plan
from emo_cli.training.samples import Split
from emo_cli.training.shards import INDEX, read_lines
from emo_cli.training.splits import HELD_OUT_SHARE, is_held_out, name_hash

SPEECH = ".wav"
PUPPETS = "puppets"  # the folder of their records


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip to make: who, who lends the speech, and what is drawn."""

    key: str
    still: Path
    driver: Path
    shapes: Path | None  # ICT-FaceKit's, for synthesised speech
    split: Split
    plan: Plan
    size: int

    @property
    def files(self) -> str:
        """Still and driver, as people are told of them."""
        return f"{self.still.name}, {self.driver.name}"

    @property
    def record(self) -> str:
        """The name of its record; where its files change, it is another one."""
        files = [self.still, self.driver]
        if self.shapes is not None and self.driver.suffix == SPEECH:
            files += [phones_of(self.driver), self.shapes]
        sizes = [file.stat().st_size if file.exists() else -1 for file in files]
        told = [f"{x.parent.name}/{x.name} {size}" for x, size in zip(files, sizes, strict=True)]
        return f"{self.key}-{name_hash(', '.join(told))[:10]}"


@dataclass(frozen=True, kw_only=True)
class Puppets:
    """A dataset of puppets: `count` clips of side `size` in the folder `out`.

    stills, drivers: files and folders; `shapes` is needed where drivers are speech.
    """

    stills: tuple[Path, ...]
    drivers: tuple[Path, ...]
    shapes: Path | None
    out: Path
    count: int
    size: int
    seed: int
    held_out_share: float = HELD_OUT_SHARE  # of identities
    rotation: float | None = None  # degrees a frame; None: drawn for each clip

    def about(self) -> dict[str, Any]:
        """What all clips share, as of videos: puppets and people may be in one dataset."""
        return {
            "size": self.size,
            "fps": FPS,
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "split_by": None,
            "held_out_share": self.held_out_share,
            "rotation": self.rotation,
        }


def missing_jobs(puppets: Puppets) -> list[Job]:
    """The clips that are still to be made; last those that have failed before."""
    jobs, records = plan_jobs(puppets), Records(puppets.out, PUPPETS)
    known = set()
    if (puppets.out / INDEX).exists():
        known = {line["key"] for line in read_lines(puppets.out)}
    found = [(job, records.read(job.record, job.files)) for job in jobs if job.key not in known]
    found.sort(key=lambda each: each[1].failed is not None)
    return [job for job, record in found if not record.finished]


def plan_jobs(puppets: Puppets) -> list[Job]:
    """All clips of a dataset, in order: every still comes once before any comes twice.

    A held-out still speaks with a held-out driver's motion and belongs to the split "val", the
    others with the others'; a still without a driver on its side is left out. Raises: EmoError
    when a folder holds nothing of use, or speech comes without shapes.
    """
    pictures = _files(puppets.stills, IMAGE_SUFFIXES, "picture", "--stills")
    found = _files(puppets.drivers, VIDEO_SUFFIXES | {SPEECH}, "clip", "--drivers")
    clips = [clip for clip in found if clip.suffix != SPEECH or phones_of(clip).exists()]
    if puppets.shapes is None and any(clip.suffix == SPEECH for clip in clips):
        raise EmoError(
            "synthesised speech needs mouth shapes", "Name ICT-FaceKit's file with --shapes."
        )
    if not clips:
        raise EmoError("no speech has phonemes", "--drivers takes videos and `emo train speech`'s.")
    share, seed, jobs = puppets.held_out_share, puppets.seed, []
    lent = {side: [c for c in clips if is_held_out(c, share) == side] for side in (False, True)}
    for index in range(puppets.count):
        still = _deal(pictures, seed, index)
        held_out = is_held_out(still, share)
        if not lent[held_out]:
            continue
        driver = _deal(lent[held_out], seed + 1, index)
        jobs.append(
            Job(
                key=f"puppet-{seed}-{index:06d}",
                still=still,
                driver=driver,
                shapes=puppets.shapes,
                split="val" if held_out else "train",
                plan=make_plan(seed, index, puppets.rotation),
                size=puppets.size,
            )
        )
    return jobs


def _deal(files: list[Path], seed: int, index: int) -> Path:
    """File `index` of an endless, shuffled pack."""
    turn, place = divmod(index, len(files))
    return files[epoch_order(seed, turn, len(files))[place]]


def phones_of(sound: Path) -> Path:
    """Where the phonemes of synthesised speech lie."""
    return sound.with_suffix(".phones")


def _files(sources: tuple[Path, ...], suffixes: Set[str], what: str, option: str) -> list[Path]:
    return [
        file
        for source in sources
        for file in find_files(source, suffixes, what=what, option=option)
    ]
