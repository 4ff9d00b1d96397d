"""Pack prepared datasets for a rented GPU: one file of some 20 MB that `gpu_run.py` unpacks there.

    python scripts/pack_gpu_run.py --data DATASET --data DATASET --model MODEL --out gpu_run.pack

The weights do not travel in it: they are in the repository, or named to `gpu_run.py`. The datasets
must have sound features of MODEL's encoder (`emo train prepare --audio-model MODEL`). --site takes
wheels of pure Python packages which that machine lacks (here: diffusers).
"""

from __future__ import annotations

import argparse
import io
import json
import math
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from emo_cli.config import read_model_config
from emo_cli.errors import EmoError
from emo_cli.model.load import model_folder
from emo_cli.training.compact import CompactClip, decode_video, pack_clips
from emo_cli.training.dataset import ClipDataset, Needs
from emo_cli.training.precompute import features_name
from emo_cli.training.samples import H264, encode_frames
from emo_cli.training.shard_reader import ShardReader

TRIAL_CRF, TRIAL_CLIPS = 24, 8
CRF_PER_HALVING = 5.0  # measured on faces at 256 px: 20 -> 26 takes 57 % of the bytes away
WORST_CRF = 34
# BT.601: OpenCV 4 takes every video for that, whatever it says of itself; OpenCV 5 reads the tag.
BT601 = "range=tv:color_primaries=smpte170m:color_trc=smpte170m:colorspace=smpte170m"
PACKED_H264 = H264 | {
    "vf": "scale=out_color_matrix=smpte170m:out_range=tv"
    f":flags=bicubic+accurate_rnd+full_chroma_int,format=yuv420p,setparams={BT601}",
    "g": 250,
    "bf": 3,
}
SPARE = 0.97  # of the limit is aimed at


def main() -> None:
    options = parse()
    limit = int(options.megabytes * 2**20)
    config = read_model_config(model_folder(options.model) / "config.json")
    size, name = config.picture_size, features_name(options.model)
    clips = [clip for path in options.data for clip in read(path, name, size, options)]
    arrays, site = pack_clips([clip for _, clip in clips], size), pack_site(options.site)
    room = limit - len(arrays) - len(site)
    print(f"{len(clips)} clips; labels and features {len(arrays) / 2**20:.1f} MiB", flush=True)
    videos, entries = fit_videos(clips, room)
    about = {"format": 1, "size": size, "features": name, "clips": entries}
    with tarfile.open(options.out, "w") as tar:
        add(tar, "about.json", json.dumps(about).encode())
        add(tar, "video.bin", b"".join(videos))
        add(tar, "arrays.xz", arrays)
        add(tar, "site.tar.xz", site)
    made = options.out.stat().st_size
    if made > limit:
        raise SystemExit(f"{options.out} has {made} bytes, more than {limit}: fewer --clips")
    print(f"{options.out}: {made / 2**20:.1f} MiB")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--model", default="mini", help="whose sound features the datasets hold")
    parser.add_argument("--out", type=Path, default=Path("gpu_run.pack"))
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--clips", type=int, help="of each dataset and split, at most")
    parser.add_argument("--site", type=Path, nargs="*", default=[], help="wheels to carry")
    return parser.parse_args()


def read(
    path: str, features: str, size: int, options: argparse.Namespace
) -> Iterator[tuple[ClipDataset, CompactClip]]:
    """Clips without their pictures yet, each with the dataset that has them."""
    number = options.data.index(path)
    for split in ("train", "val"):
        if split not in ShardReader(path).splits:
            continue
        needs = Needs(
            motion_frames=0, clip_frames=1, window=0, size=size, sound=True, features=features
        )
        dataset = ClipDataset(path, split=split, needs=needs)
        count = min(len(dataset), options.clips or len(dataset))
        for turn in range(count):
            index = turn * len(dataset) // count
            labels = dataset.all_labels(index)
            entry = {"key": f"{number}-{dataset.key(index)}", "index": index, "split": split}
            entry |= {"frames": labels.num_frames, "sound": True, "identity": dataset.key(index)}
            values = dataset.all_features(index).float().numpy()
            yield dataset, CompactClip(entry=entry, mp4=b"", features=values, labels=labels)


def fit_videos(
    clips: list[tuple[ClipDataset, CompactClip]], room: int
) -> tuple[list[bytes], list[dict[str, Any]]]:
    """All clips at the best quality that fits into `room` bytes, and their lines of about.json."""
    trial = clips[:: max(1, len(clips) // TRIAL_CLIPS)]
    at_trial = sum(len(encode(*clip, TRIAL_CRF)) for clip in trial)
    frames = [sum(c.labels.num_frames for _, c in part) for part in (trial, clips)]
    expected = at_trial * frames[1] / frames[0]
    first = math.ceil(TRIAL_CRF + CRF_PER_HALVING * math.log2(expected / (room * SPARE)))
    for crf in range(max(12, first), WORST_CRF + 1):
        videos = [encode(*clip, crf) for clip in clips]
        total = sum(map(len, videos))
        print(f"crf {crf}: {total / frames[1]:.0f} bytes a frame", flush=True)
        if total <= room:
            return videos, [line(*pair) for pair in zip(clips, videos, strict=True)]
    raise EmoError("the clips do not fit at any quality", "Name fewer --clips.")


def encode(dataset: ClipDataset, clip: CompactClip, crf: int) -> bytes:
    frames = dataset.all_frames(clip.entry["index"]).numpy()
    return encode_frames(frames, PACKED_H264 | {"crf": crf})


def line(clip: tuple[ClipDataset, CompactClip], mp4: bytes) -> dict[str, Any]:
    """The clip's line, with what OpenCV's colours are off by."""
    dataset, compact = clip
    entry = compact.entry | {"bytes": len(mp4), "bias": [0.0, 0.0, 0.0]}
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(mp4)
        file.flush()
        seen = decode_video(Path(file.name), entry)
    meant = dataset.all_frames(entry.pop("index")).numpy()
    bias = np.subtract(seen, meant, dtype=np.float32).mean((0, 1, 2))
    return entry | {"bias": bias.round(3).tolist()}


def pack_site(wheels: list[Path]) -> bytes:
    """The files of wheels, compressed together: a third of what they take."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as files:
                for name in files.namelist():
                    add(tar, name, files.read(name))
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    main()
