"""What `mini_quality.py` films: a set of videos for each question."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from quality_material import Material, joined, silence, voices
from quality_measures import Word, read_alignment
from quality_videos import THUMBNAIL, Studio, Watched, thumbnail, write_sheet

from emo_cli.engine import Engine
from emo_cli.model.temporal import TemporalBlock
from emo_cli.picture import read_picture

SPEEDS = (0.1, 0.7, 1.3, 1.9)  # the paper's Table 2
REGIONS = ("box", "wide", "tall", "all")  # its figure 7
VOICE_S = 4.0
SHORT_S = 2.0  # of the videos for speed, region and silence
LONG_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Talk:
    """A held-out portrait that speaks a held-out GRID sound, beside the man who spoke it."""

    video: Watched
    real: Watched
    words: list[Word]


@dataclass(kw_only=True)
class Footage:
    """All videos; what was not asked for is empty."""

    clip_frames: int
    talks: list[Talk] = field(default_factory=list)
    silent: list[Watched] = field(default_factory=list)
    voices: dict[str, Watched] = field(default_factory=dict)
    speeds: dict[float | None, list[Watched]] = field(default_factory=dict)  # None: no layers
    regions: dict[str, list[Watched]] = field(default_factory=dict)
    long: Watched | None = None

    @property
    def everyday(self) -> list[Watched]:
        """Videos made with the default options."""
        return [*(talk.video for talk in self.talks), *self.silent, *self.voices.values()]


@dataclass(frozen=True, kw_only=True)
class Shooting:
    """Where and with what is filmed."""

    studio: Studio
    material: Material
    count: int  # portraits
    sheets: Path
    without_speed: Engine | None

    def portrait(self, number: int) -> Path:
        return self.material.portraits[number % len(self.material.portraits)]

    def clip(self, number: int) -> Path:
        return self.material.clips[number % len(self.material.clips)]

    @property
    def few(self) -> int:
        """Portraits where each is filmed several times over."""
        return max(2, self.count // 3)

    def sheet(self, name: str, rows: Sequence[tuple[Path | None, Watched]]) -> None:
        """A contact sheet: the portrait first in each row, nothing where there is none."""
        white = np.full((THUMBNAIL, THUMBNAIL, 3), 255, np.uint8)
        cells = [
            [thumbnail(read_picture(portrait)) if portrait else white, *watched.thumbnails]
            for portrait, watched in rows
        ]
        write_sheet(self.sheets / f"{name}.png", cells)


def film_talks(shooting: Shooting, footage: Footage) -> None:
    """GRID's sounds, and silence."""
    rows: list[tuple[Path | None, Watched]] = []
    for number in range(shooting.count):
        portrait, clip = shooting.portrait(number), shooting.clip(number)
        name = f"talk-{number:02d}-{portrait.stem}-{clip.stem}"
        video = shooting.studio.video(name, portrait, clip)
        real = shooting.studio.watcher.real(clip)
        words = read_alignment(clip.with_suffix(".align"))
        footage.talks.append(Talk(video=video, real=real, words=words))
        rows += [(portrait, video), (None, real)]
    shooting.sheet("talk", rows)
    quiet = silence(shooting.studio.folder, SHORT_S)
    portrait = shooting.portrait(0)
    footage.silent = [shooting.studio.video(f"silence-{portrait.stem}", portrait, quiet)]
    shooting.sheet("silence", [(portrait, footage.silent[0])])


def film_voices(shooting: Shooting, footage: Footage) -> None:
    """Other people, a song, another language, a machine."""
    rows = []
    for number, voice in enumerate(voices(shooting.material, VOICE_S)):
        portrait = shooting.portrait(shooting.count + number)
        footage.voices[voice.name] = shooting.studio.video(
            f"voice-{voice.name}-{portrait.stem}",
            portrait,
            voice.path,
            start_s=voice.start_s,
            duration_s=VOICE_S,
        )
        rows.append((portrait, footage.voices[voice.name]))
    shooting.sheet("voices", rows)


def film_speeds(shooting: Shooting, footage: Footage) -> None:
    """The same portraits and sounds at every speed, and without speed layers."""
    rows = []
    for speed in (None, *SPEEDS):
        footage.speeds[speed] = []
        with speed_of(shooting, speed) as (studio, options):
            for number in range(shooting.few):
                portrait, clip = shooting.portrait(number), shooting.clip(number)
                name = f"speed-{'none' if speed is None else speed}-{portrait.stem}"
                video = studio.video(name, portrait, clip, duration_s=SHORT_S, **options)
                footage.speeds[speed].append(video)
                rows.append((portrait, video))
    shooting.sheet("speed", rows)


@contextlib.contextmanager
def speed_of(shooting: Shooting, speed: float | None) -> Iterator[tuple[Studio, dict]]:
    """The studio and the options for this speed; None: another model, or the layers silenced."""
    studio = shooting.studio
    if speed is not None:
        yield studio, {"speed": speed}
    elif shooting.without_speed is not None:
        yield studio.with_engine(shooting.without_speed), {}
    else:
        with silenced_speed_layers(studio.engine):
            yield studio, {"variant": " without speed layers"}


@contextlib.contextmanager
def silenced_speed_layers(engine: Engine) -> Iterator[None]:
    """The model as it would be without its speed layers: their last projection is zero."""
    blocks = [m for m in engine.model.modules() if isinstance(m, TemporalBlock)]
    parameters = [p for block in blocks for p in block.attn_speed.to_out.parameters()]
    kept = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        try:
            for parameter in parameters:
                parameter.zero_()
            yield
        finally:
            for parameter, values in zip(parameters, kept, strict=True):
                parameter.copy_(values)


def film_regions(shooting: Shooting, footage: Footage) -> None:
    """The face regions of figure 7."""
    rows = []
    for region in REGIONS:
        footage.regions[region] = []
        for number in range(max(1, shooting.few // 2)):
            portrait, clip = shooting.portrait(number), shooting.clip(number)
            video = shooting.studio.video(
                f"region-{region}-{portrait.stem}",
                portrait,
                clip,
                duration_s=SHORT_S,
                face_region=region,
            )
            footage.regions[region].append(video)
            rows.append((portrait, video))
    shooting.sheet("region", rows)


def film_long(shooting: Shooting, footage: Footage) -> None:
    """A minute without a break: the sounds one after the other."""
    sound = joined(shooting.studio.folder, shooting.material.sounds, LONG_S)
    portrait = shooting.portrait(0)
    name = f"long-{portrait.stem}"
    footage.long = shooting.studio.video(name, portrait, sound, duration_s=LONG_S)
    shooting.sheet("long", [(portrait, footage.long)])


FILMS = {
    "talk": film_talks,
    "voices": film_voices,
    "speed": film_speeds,
    "region": film_regions,
    "long": film_long,
}
