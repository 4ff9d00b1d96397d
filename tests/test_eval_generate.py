"""`emo eval --model`: the videos to be judged are made first, by a small random model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_video import tone, write_sound

from emo_cli.errors import EmoError
from emo_cli.metrics.generated_set import Pair, generate_set, pairs_of


def names(portraits: list[str], sounds: list[str]) -> list[str]:
    found = pairs_of({n: Path(n) for n in portraits}, {n: Path(n) for n in sounds})
    return [pair.key for pair in found]


def test_equal_names_pair_and_without_any_every_portrait_gets_every_sound() -> None:
    assert names(["a", "b/c", "d"], ["b/c", "a", "x"]) == ["a", "b/c"]
    assert names(["a", "b"], ["x/y", "z"]) == ["a_x_y", "a_z", "b_x_y", "b_z"]


def test_a_pair_keeps_its_files() -> None:
    [pair] = pairs_of({"a": Path("p/a.png")}, {"a": Path("s/a.wav")})
    assert pair == Pair(key="a", portrait=Path("p/a.png"), sound=Path("s/a.wav"))


def test_videos_are_made_once_and_those_of_another_origin_refused(
    small_model: Path, portrait: Path, tmp_path: Path
) -> None:
    for folder in ("portraits", "sounds/deep", "out"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(portrait, tmp_path / "portraits" / "anna.jpg")
    write_sound(tmp_path / "sounds" / "deep" / "hum.wav", tone(0.2), 44_100)
    (tmp_path / "sounds" / "nothing.wav").touch()

    def make() -> int:
        return generate_set(
            tmp_path / "out",
            model=str(small_model),
            portraits=tmp_path / "portraits",
            sounds=tmp_path / "sounds",
            quiet=True,
        )

    assert make() == 1  # the empty sound
    video = tmp_path / "out" / "anna_deep_hum.mp4"
    made = video.stat().st_mtime_ns
    assert make() == 1
    assert video.stat().st_mtime_ns == made
    report = video.with_suffix(".json")
    report.write_text(report.read_text().replace("hum.wav", "other.wav"))
    with pytest.raises(EmoError, match="was not made by this model of anna.jpg and hum.wav"):
        make()
    report.unlink()
    with pytest.raises(EmoError, match="was not made by this model"):
        make()


def test_a_folder_without_sounds_is_an_error(portrait: Path, tmp_path: Path) -> None:
    with pytest.raises(EmoError, match="there is no sound in"):
        generate_set(tmp_path, model="mini", portraits=portrait.parent, sounds=tmp_path, quiet=True)
