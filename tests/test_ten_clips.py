"""Ten raw clips go through the lines of docs/training.md, as they stand there, to a video."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from pathlib import Path

import av
import pytest
import torch
from small_models import SMALL_MINI
from transformers import WhisperConfig, WhisperModel

from emo_cli import cli, presets
from emo_cli.training.splits import is_held_out

ROOT = Path(__file__).resolve().parent.parent
CLIPS = 10
TINY = {  # what the guide leaves to the rows of stages.py
    "autoencoder": ["--steps", "2", "--batch", "2", "--device", "cpu"],
    "speech": ["--utterances", "6"],
    "audio": ["--steps", "2", "--batch", "2", "--device", "cpu"],
    "lips": ["--steps", "2", "--batch", "2", "--device", "cpu"],
    "image": ["--steps", "2", "--batch", "2", "--device", "cpu"],
    "video": ["--steps", "2", "--batch", "2", "--device", "cpu"],
    "speed": ["--steps", "2", "--batch", "2", "--device", "cpu"],
    "generate": ["--steps", "2", "--duration", "0.6", "-o"],
}


def guide() -> list[list[str]]:
    """The commands of the section `mini`."""
    section = (ROOT / "docs" / "training.md").read_text().partition("\n## `mini`")[2]
    block = re.search(r"(?:\n {4}emo .*)+", section)
    assert block is not None
    return [shlex.split(line)[1:] for line in block[0].strip().splitlines()]


def test_the_guide_names_every_stage_in_order() -> None:
    names = [command[1] for command in guide() if command[0] == "train"]
    assert names == [
        *("prepare", "autoencoder", "speech", "audio", "prepare"),
        *("lips", "image", "video", "speed", "pack"),
    ]


@pytest.fixture
def places(tmp_path: Path, shared_data: Path, portrait: Path, speech: Path) -> dict[str, Path]:
    """The guide's words, and what they stand for here."""
    for program in ("flite", "espeak-ng"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here")
    raw = tmp_path / "grid_s1"
    raw.mkdir()
    clips = sorted((shared_data / "grid_s1").glob("*.mp4"))
    held_out = next(clip for clip in clips if is_held_out(clip))
    others = [clip for clip in clips if not is_held_out(clip)]
    for clip in (held_out, *others[: CLIPS - 1]):
        shutil.copyfile(clip, raw / clip.name)
    teacher = WhisperModel(
        WhisperConfig(
            d_model=16, encoder_layers=4, encoder_attention_heads=2, encoder_ffn_dim=32,
            decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=8,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )
    )  # fmt: skip
    teacher.save_pretrained(tmp_path / "whisper")
    words = {"RAW": raw, "WHISPER": tmp_path / "whisper", "RUNS": tmp_path / "runs"}
    words |= {"DATASET": tmp_path / "dataset", "SPEECH": tmp_path / "speech"}
    words |= {"MODEL": tmp_path / "model", "portrait.png": portrait, "song.wav": speech}
    return words


@pytest.mark.slow
def test_ten_raw_clips_of_shared_data_go_through_all_stages_to_a_video(
    tmp_path: Path, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = dataclasses.replace(SMALL_MINI, name="mini", picture_size=256, frame_size=512)
    monkeypatch.setattr(presets, "MINI", tiny)
    monkeypatch.setitem(presets.PRESETS, "mini", tiny)
    torch.set_num_threads(1)
    video = tmp_path / "talks.mp4"
    for command in guide():
        # RUNS/audio/model begins with a word, too.
        parts = [part.partition("/") for part in command]
        words = [f"{places.get(word, word)}{slash}{rest}" for word, slash, rest in parts]
        stage = command[1] if command[0] == "train" else command[0]
        words += TINY.get(stage, [])
        words += [str(video)] if stage == "generate" else []
        assert cli.run(words) == 0, shlex.join(words)
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (512, 512)
        assert sum(1 for _ in container.decode(stream)) == 15
    for stage in ("image", "video", "speed"):
        assert list((tmp_path / "runs" / stage / "previews").glob("*.png"))
