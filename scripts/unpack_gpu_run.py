"""What `pack_gpu_run.py` packed, as a dataset of latents for `gpu_run.py`."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

Say = Callable[[str], None]


def unpack(options: argparse.Namespace, folder: Path, say: Say) -> Path:
    """The pack as a dataset: labels, sound features, and latents of every look of every clip."""
    from emo_cli.training.compact import unpack_clips
    from emo_cli.training.precompute import features_name, latents_name
    from emo_cli.training.samples import PackedSample, pack_arrays, pack_labels
    from emo_cli.training.shards import ShardWriter

    about = json.loads((folder / "about.json").read_text())
    if about["features"] != features_name(options.init):
        raise SystemExit(f"the pack has {about['features']}, --init {features_name(options.init)}")
    entries, size, data = about["clips"], about["size"], options.work / "data"
    shutil.rmtree(data, ignore_errors=True)  # half a dataset of another run
    unpacked = unpack_clips((folder / "arrays.xz").read_bytes(), entries, size)
    split_video(folder, entries)
    looks = [(n, v) for n, e in enumerate(entries) for v in variants(e, options.variants)]
    jobs = [(folder / f"{n}.mp4", entries[n], unpacked[n][1], size, v) for n, v in looks]
    kinds = {"size": size, "fps": 25}
    with (
        ProcessPoolExecutor(max(1, options.workers)) as pool,
        ShardWriter(data, kinds) as clips,
        ShardWriter(data / about["features"], {"width": unpacked_width(unpacked)}) as sounds,
        ShardWriter(data / latents_name(options.init), {}) as pictures,
    ):
        looked = pool.map(look_at, jobs)  # before the device is touched: processes are forked
        encode = latents_maker(options)
        for (n, variant), (frames, labels) in zip(looks, looked, strict=True):
            entry = {name: entries[n][name] for name in ("identity", "split", "frames")}
            key = f"{entries[n]['key']}-{variant}"
            parts = {"npz": pack_labels(labels, size), "flac": b""}  # it has sound: its features
            clips.add(PackedSample(key=key, parts=parts, entry=entry))
            heard = pack_arrays(features=unpacked[n][0].astype("float16"))
            sounds.add(PackedSample(key=key, parts={"npz": heard}, entry=entry))
            seen = pack_arrays(latents=encode(frames))
            pictures.add(PackedSample(key=key, parts={"npz": seen}, entry=entry))
    say(f"{len(looks)} clips unpacked and encoded")
    return data


def variants(entry: dict[str, Any], count: int) -> range:
    """Held-out clips are seen as they are."""
    return range(count if entry["split"] == "train" else 1)


def unpacked_width(unpacked: list[Any]) -> int:
    return unpacked[0][0].shape[1]


def split_video(folder: Path, entries: list[dict[str, Any]]) -> None:
    with (folder / "video.bin").open("rb") as stream:
        for number, entry in enumerate(entries):
            (folder / f"{number}.mp4").write_bytes(stream.read(entry["bytes"]))


def look_at(job: tuple[Path, dict[str, Any], Any, int, int]) -> tuple[Any, Any]:
    """Frames and labels of one look of one clip; look 0 is the clip as it is."""
    from emo_cli.training.compact import decode_video
    from emo_cli.training.draws import derive_seed
    from emo_cli.training.variation import draw_look, vary_frames, vary_labels

    mp4, entry, labels, size, variant = job
    frames = decode_video(mp4, entry)
    if variant == 0:
        return frames, labels
    look = draw_look(derive_seed("variant", entry["key"], variant))
    return vary_frames(frames, look), vary_labels(labels, size, look)


def latents_maker(options: argparse.Namespace) -> Any:
    """The frozen autoencoder's encoder: uint8 frames [T, S, S, 3] -> fp16 [T, C, h, w]."""
    import torch

    from emo_cli.config import read_model_config
    from emo_cli.model.autoencoder import build_autoencoder
    from emo_cli.model.load import load_part
    from emo_cli.training.precompute import CPU_PICTURES, GPU_PICTURES

    network = build_autoencoder(read_model_config(options.init / "config.json").autoencoder)
    load_part(options.init, "autoencoder", network)
    network.to(options.device).eval().requires_grad_(False)
    at_once = CPU_PICTURES if options.device == "cpu" else GPU_PICTURES

    @torch.inference_mode()
    def encode(frames: Any) -> Any:
        parts = torch.from_numpy(frames).permute(0, 3, 1, 2).split(at_once)
        ready = (part.to(options.device).float() / 127.5 - 1 for part in parts)
        return torch.cat([network.encode(part).half().cpu() for part in ready]).numpy()

    return encode
