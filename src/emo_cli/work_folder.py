"""The hidden folder beside OUT that lets an interrupted video go on where it stopped.

    .OUT.mp4.emo-work/
        lock                held while a process writes OUT
        fingerprint.json    what the segments were made from
        00000.h264          a finished segment: SEGMENT_CLIPS clips of H.264
        00000.safetensors   the motion latents after it; its length and digest in the header

A segment counts once its safetensors file exists, which is written last, whole or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_cli.errors import EmoError
from emo_cli.ffmpeg_process import ffmpeg_version
from emo_cli.files import move_into_place, sha256_of, write_atomically

if TYPE_CHECKING:
    import torch

SEGMENT_CLIPS = 10
FORMAT = 1  # of this folder and of the encoder's settings: raise it when either changes
MOTION_LATENTS = "motion_latents"


def work_path(out: Path) -> Path:
    """The work folder of an output file."""
    return out.with_name(f".{out.name}.emo-work")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a disk's refusal into an EmoError that names the path."""
    try:
        yield
    except OSError as error:
        raise EmoError(
            f"cannot write {path}: {error.strerror}",
            "Free some space or choose another folder with -o; "
            "the same command goes on from the last finished part.",
        ) from error


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A finished stretch of the video."""

    path: Path
    num_clips: int
    num_frames: int


class WorkFolder:
    """Finished segments of one output, locked against other processes; use `open`.

    `note` is one line for the user when earlier work is gone on with or thrown away, else "".
    """

    def __init__(self, out: Path, lock: int) -> None:
        self.out = out
        self.path = work_path(out)
        self.segments: list[Segment] = []
        self.motion_latents: torch.Tensor | None = None
        self.note = ""
        self._lock: int | None = lock

    @classmethod
    def open(cls, out: Path, fingerprint: Mapping[str, Any], *, resume: bool = True) -> WorkFolder:
        """Locks the work folder of `out` and finds what an earlier run has finished there.

        fingerprint: all that the frames depend on, as JSON values (options, digests, version);
        segments of another fingerprint, or of another ffmpeg, are thrown away.

        Raises: EmoError when another process writes `out`, or the folder cannot be written.
        """
        out = Path(os.path.abspath(out))
        with writing(work_path(out)):
            work = cls(out, _lock(work_path(out)))
            try:
                work._take_stock(fingerprint, resume)
            except BaseException:
                work.close()
                raise
        return work

    @property
    def next_clip(self) -> int:
        """Index of the first clip that is not finished."""
        return sum(segment.num_clips for segment in self.segments)

    @property
    def frames_done(self) -> int:
        return sum(segment.num_frames for segment in self.segments)

    def part_path(self, name: str) -> Path:
        """A temporary path of this process: an orphaned ffmpeg of a killed run has another."""
        return self.path / f"{name}.{os.getpid()}.part"

    def commit(
        self, part: Path, *, num_clips: int, num_frames: int, motion_latents: torch.Tensor
    ) -> None:
        """Keeps an encoded segment, with the latents that the next clip starts from.

        Raises: EmoError when the disk refuses.
        """
        from safetensors.torch import save

        path = self.path / f"{len(self.segments):05d}.h264"
        with writing(path):
            facts = {
                "num_clips": str(num_clips),
                "num_frames": str(num_frames),
                "sha256": sha256_of(part),
            }
            latents = motion_latents.detach().cpu().contiguous()
            move_into_place(part, path)
            state = save({MOTION_LATENTS: latents}, metadata=facts)
            write_atomically(path.with_suffix(".safetensors"), state)
        self.segments.append(Segment(path=path, num_clips=num_clips, num_frames=num_frames))
        self.motion_latents = latents

    def remove(self) -> None:
        """Deletes the folder: the video is done."""
        self.segments = []
        with writing(self.path):
            self._delete_all_but_segments()
        self.close()

    def close(self) -> None:
        """Lets go of the lock; a folder without a finished segment is of no use and goes too."""
        if self._lock is None:
            return
        useless = not any(self.path.glob("*.safetensors"))
        # What cannot be deleted here does no harm: the next run starts over it.
        with contextlib.suppress(OSError):
            if useless:
                self._delete_all_but_segments()
                (self.path / "lock").unlink()
        os.close(self._lock)
        self._lock = None
        with contextlib.suppress(OSError):
            if useless:
                self.path.rmdir()  # after the lock is closed: NFS keeps open files

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_stock(self, fingerprint: Mapping[str, Any], resume: bool) -> None:
        ours = {
            **fingerprint,
            "work_format": FORMAT,
            "segment_clips": SEGMENT_CLIPS,
            "ffmpeg": ffmpeg_version(),
        }
        ours = json.loads(json.dumps(ours))  # tuples become lists, as they do in the file
        path = self.path / "fingerprint.json"
        theirs = _read_json(path)
        changed = sorted(
            name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
        )
        if resume and not changed:
            self._find_segments()
        elif resume and theirs:
            self.note = f"{', '.join(changed)} changed since the interrupted run: starting over"
        self._delete_all_but_segments()
        write_atomically(path, json.dumps(ours, indent=2).encode())

    def _find_segments(self) -> None:
        while found := _read_segment(self.path / f"{len(self.segments):05d}.h264"):
            segment, self.motion_latents = found
            self.segments.append(segment)
        if self.segments:
            self.note = f"going on after {self.frames_done} finished frames"

    def _delete_all_but_segments(self) -> None:
        keep = {"lock"}
        for segment in self.segments:
            keep |= {segment.path.name, segment.path.with_suffix(".safetensors").name}
        for entry in self.path.iterdir():
            if entry.name not in keep:
                entry.unlink()


def _lock(folder: Path) -> int:
    """The descriptor that holds the lock; the kernel frees it however this process ends."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # the run before us was just removing the folder
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(folder / "lock")):
                return descriptor
            os.close(descriptor)
        except FileNotFoundError:
            os.close(descriptor)  # locked the file of a folder that is gone: once more
        except BlockingIOError as error:
            os.close(descriptor)
            raise EmoError(
                f"another emo is writing {folder.name[1:].removesuffix('.emo-work')}",
                "Wait until it has ended, or choose another name with -o.",
            ) from error
        except BaseException:
            os.close(descriptor)
            raise


def _read_json(path: Path) -> dict[str, Any]:
    """The object in the file; {} where there is none, or not a whole one."""
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _read_segment(path: Path) -> tuple[Segment, torch.Tensor] | None:
    """A finished segment and its latents; None when it is absent or damaged."""
    from safetensors import SafetensorError, safe_open

    state_path = path.with_suffix(".safetensors")
    if not (path.exists() and state_path.exists()):
        return None
    try:
        with safe_open(state_path, framework="pt") as state:
            facts = state.metadata() or {}
            latents = state.get_tensor(MOTION_LATENTS)
        if facts["sha256"] != sha256_of(path):
            return None
        segment = Segment(
            path=path, num_clips=int(facts["num_clips"]), num_frames=int(facts["num_frames"])
        )
    except (SafetensorError, KeyError, ValueError):
        return None
    return segment, latents
