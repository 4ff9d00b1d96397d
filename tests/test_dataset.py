"""Shards as a map-style dataset: made clips whose pictures and labels say their frame."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from made_faces import made_labels
from made_video import SIZE, numbered_frames, read_number
from torch.utils.data import DataLoader

from emo_cli.errors import EmoError
from emo_cli.training.dataset import ClipDataset, Needs
from emo_cli.training.draws import Draw
from emo_cli.training.face_parts import union_mask
from emo_cli.training.precompute import add_latents, add_sound_features
from emo_cli.training.samples import (
    Labels,
    PackedSample,
    decode_frames,
    encode_frames,
    pack_labels,
    pack_sample,
    unpack_labels,
)
from emo_cli.training.shard_reader import ShardReader
from emo_cli.training.shards import ShardWriter

CLIP = Needs(motion_frames=4, clip_frames=12, window=2, size=SIZE)
ONE = Needs(motion_frames=0, clip_frames=1, window=2, size=SIZE)
ABOUT = {"size": SIZE, "fps": 25, "sample_rate_hz": 16_000}
LENGTHS = {"b-1": 40, "a-1": 30, "c-1": 16, "v-1": 30}


def made_clip(key: str, num_frames: int, *, sound: bool = True) -> PackedSample:
    hum = np.sin(np.arange(num_frames * 640) * 0.1).astype(np.float32) / 2
    return pack_sample(
        key=key,
        identity=key,
        split="val" if key.startswith("v") else "train",
        frames=numbered_frames(0, num_frames),
        labels=made_labels(num_frames),
        sound=hum if sound else None,
        source={"made": True},
    )


@pytest.fixture(scope="module")
def clips() -> list[PackedSample]:
    return [made_clip(key, count, sound=key != "c-1") for key, count in LENGTHS.items()]


def written(folder: Path, clips: list[PackedSample], **options: int) -> Path:
    with ShardWriter(folder, ABOUT, **options) as writer:
        for clip in clips:
            writer.add(clip)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, clips: list[PackedSample]) -> Path:
    return written(tmp_path_factory.mktemp("data") / "set", clips)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory, clips: list[PackedSample],
             small_model: Path) -> tuple[Path, str, str]:  # fmt: skip
    """A dataset with sound features and latents by a small model."""
    folder = written(tmp_path_factory.mktemp("data") / "set", clips)
    return folder, add_sound_features(folder, small_model), add_latents(folder, small_model)


def train(folder: Path | str, needs: Needs = CLIP) -> ClipDataset:
    return ClipDataset(str(folder), split="train", needs=needs)


def numbers(frames: torch.Tensor) -> list[int]:
    return [read_number(frame) for frame in frames.numpy()]


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# --- samples


def test_a_sample_is_consecutive_frames_their_labels_and_another_frame(dataset: Path) -> None:
    data = train(dataset)
    for seed in range(12):
        sample = data[Draw(seed % len(data), seed)]
        shown = numbers(sample["frames"])
        assert shown == list(range(shown[0], shown[0] + 16))
        assert sample["frames"].dtype == torch.uint8
        assert sample["boxes"][:, 0].tolist() == [10 + number for number in shown]
        assert sample["rotation"] == pytest.approx(np.array(shown) / 10)
        reference = read_number(sample["reference"].numpy())
        total = LENGTHS[data.key(seed % len(data))]
        assert reference not in shown or total == 16
        assert sample["reference_landmarks"][0, 0] == pytest.approx(10 + reference, abs=0.05)


def test_samples_are_pure_functions_of_their_draw_in_any_process(dataset: Path) -> None:
    data = train(dataset)
    draws = [Draw(i % len(data), 7 * i) for i in range(6)]
    copy = pickle.loads(pickle.dumps(data))
    for drawn in draws:
        assert_equal(data[drawn], copy[drawn])
    loader = DataLoader(
        data, batch_size=None, sampler=draws, num_workers=2, multiprocessing_context="fork"
    )
    for drawn, sample in zip(draws, loader, strict=True):
        assert_equal(sample, data[drawn])


def test_draws_reach_every_start_and_differ(dataset: Path) -> None:
    data = train(dataset)
    starts = {numbers(data[Draw(0, seed)]["frames"][:1])[0] for seed in range(120)}
    assert starts == set(range(30 - 16 + 1))


def test_speed_windows_lie_around_the_clip_frames_and_repeat_the_ends(dataset: Path) -> None:
    data = train(dataset)
    longest = [data.key(i) for i in range(len(data))].index("b-1")
    seen = set()
    for seed in range(60):
        sample = data[Draw(longest, seed)]
        first = numbers(sample["frames"][:1])[0]
        around = np.arange(first + 4 - 2, first + 16 + 2).clip(0, 39)
        assert sample["speed"] == pytest.approx(around / 10)
        seen.add(first)
    assert max(seen) == 24  # the end was among them
    assert sample["mean_speed"] == pytest.approx(1.95)


def test_the_mask_is_the_union_of_the_whole_clips_boxes_grown_by_a_twentieth() -> None:
    mask = union_mask(np.array([[10, 20, 30, 40], [20, 20, 50, 40]], np.float32), 64)
    assert mask.sum() == (52 - 8) * (41 - 19)
    assert mask[19:41, 8:52].all()


def test_the_image_stage_gets_one_frame_with_the_mask_of_the_whole_clip(dataset: Path) -> None:
    sample = train(dataset, ONE)[Draw(0, 3)]
    assert sample["frames"].shape == (1, SIZE, SIZE, 3)
    assert torch.equal(sample["mask"], torch.from_numpy(union_mask(made_labels(30).boxes, SIZE)))


def test_only_the_wanted_split_and_clips_that_are_long_enough_count(dataset: Path) -> None:
    assert [train(dataset).key(i) for i in range(3)] == ["a-1", "b-1", "c-1"]
    held_out = ClipDataset(str(dataset), split="val", needs=CLIP)
    assert [held_out.key(0)] == ["v-1"]
    longer = Needs(motion_frames=4, clip_frames=16, window=2, size=SIZE)
    assert len(train(dataset, longer)) == 2


def test_the_order_does_not_depend_on_which_worker_finished_first(
    tmp_path: Path, dataset: Path, clips: list[PackedSample]
) -> None:
    other = train(written(tmp_path / "set", clips[::-1], shard_bytes=100_000))
    assert len(list((tmp_path / "set").glob("*.tar"))) > 1
    assert other.digest == train(dataset).digest
    assert_equal(other[Draw(1, 5)], train(dataset)[Draw(1, 5)])


def test_a_smaller_size_scales_pictures_and_coordinates(dataset: Path) -> None:
    needs = Needs(motion_frames=4, clip_frames=12, window=2, size=SIZE // 2)
    small, whole = train(dataset, needs)[Draw(0, 1)], train(dataset)[Draw(0, 1)]
    assert small["frames"].shape == (16, SIZE // 2, SIZE // 2, 3)
    assert torch.equal(small["boxes"], whole["boxes"] / 2)
    assert torch.equal(small["landmarks"], whole["landmarks"] / 2)
    assert small["mask"].shape == (SIZE // 2, SIZE // 2)
    with pytest.raises(EmoError, match="have 64 px, the model wants 128"):
        train(dataset, Needs(motion_frames=4, clip_frames=12, window=2, size=128))


# --- storage


def test_object_storage_gives_what_the_disk_gives(dataset: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(dataset), "/bucket/set", recursive=True)
    remote = train("memory://bucket/set")
    assert_equal(remote[Draw(1, 9)], train(dataset)[Draw(1, 9)])
    memory.rm("/bucket", recursive=True)


def test_a_shard_cut_short_is_named(tmp_path: Path, clips: list[PackedSample]) -> None:
    folder = written(tmp_path / "set", clips)
    shard = folder / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:-3000])
    with pytest.raises(EmoError, match=r"the shard .*00000.tar is cut short"):
        train(folder)
    with pytest.raises(EmoError, match="cut short"), ShardWriter(folder, ABOUT):
        pass
    shard.unlink()
    with pytest.raises(EmoError, match=r"is cut short: 0 of"):
        train(folder)


def test_an_index_cut_short_is_named(tmp_path: Path, clips: list[PackedSample]) -> None:
    folder = written(tmp_path / "set", clips)
    index = folder / "index.jsonl"
    whole = index.read_bytes()
    index.write_bytes(whole[:-10])
    with pytest.raises(EmoError, match="line 4 of .* cut short"):
        train(folder)
    index.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(EmoError, match="cut short: 3 of 4 samples"):
        train(folder)
    with pytest.raises(EmoError, match="cut short: 3 of 4 samples"), ShardWriter(folder, ABOUT):
        pass


def test_a_folder_keeps_what_each_maker_of_its_samples_said(tmp_path: Path) -> None:
    for about in ({"size": 64, "list_rows": "a"}, {"size": 64, "rotation": 1.0}):
        with ShardWriter(tmp_path, about):
            pass
    about = json.loads((tmp_path / "dataset.json").read_text())
    assert (about["list_rows"], about["rotation"]) == ("a", 1)
    other = ShardWriter(tmp_path, {"size": 64, "list_rows": "b"})
    with pytest.raises(EmoError, match="list_rows is 'a', not 'b'"), other:
        pass


@pytest.mark.parametrize("name", ["dataset.json", "index.jsonl", "00000.tar"])
def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, clips: list[PackedSample], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = written(tmp_path / "set", clips)

    def refuse(real):  # type: ignore[no-untyped-def]
        def call(self, path, *more, **options):  # type: ignore[no-untyped-def]
            if str(path).endswith(name):
                raise PermissionError(13, "Permission denied", path)
            return real(self, path, *more, **options)

        return call

    for method in ("_open", "info"):
        monkeypatch.setattr(LocalFileSystem, method, refuse(getattr(LocalFileSystem, method)))
    with pytest.raises(EmoError, match="cannot read .*: Permission denied"):
        train(folder)


@pytest.mark.parametrize("part", ["mp4", "npz"])
def test_a_damaged_sample_is_named(tmp_path: Path, clips: list[PackedSample], part: str) -> None:
    folder = written(tmp_path / "set", clips[1:2])
    [line] = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    offset, length = line["parts"][part]
    with (folder / "00000.tar").open("r+b") as shard:
        shard.seek(offset)
        shard.write(bytes(length))
    with pytest.raises(EmoError, match="a-1 in .*00000.tar is damaged"):
        train(folder)[Draw(0, 1)]


def test_a_storage_that_cannot_be_reached_is_one_line_and_a_hint(monkeypatch) -> None:
    def lacking(*_: object) -> None:
        raise ImportError("Install s3fs to access S3")

    with pytest.raises(EmoError, match="cannot open nowhere://bucket/clips: Protocol not known"):
        ShardReader("nowhere://bucket/clips")
    monkeypatch.setattr("fsspec.core.url_to_fs", lacking)
    with pytest.raises(EmoError, match="cannot open s3://bucket/clips: Install s3fs") as problem:
        ShardReader("s3://bucket/clips")
    assert "emo-cli[storage]" in problem.value.hint


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmoError, match="is no dataset"):
        train(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(EmoError, match="cannot read .*/file: Not a directory"):
        train(tmp_path / "file")
    (tmp_path / "00000.tar").write_bytes(b"mine")
    with pytest.raises(EmoError, match="holds tar files"), ShardWriter(tmp_path, ABOUT):
        pass
    assert (tmp_path / "00000.tar").read_bytes() == b"mine"


def test_a_stage_that_needs_sound_takes_only_clips_with_sound(
    tmp_path: Path, dataset: Path, clips: list[PackedSample]
) -> None:
    needs = Needs(motion_frames=4, clip_frames=12, window=2, size=SIZE, sound=True)
    assert len(train(dataset, needs)) == 2
    mute = written(tmp_path / "set", clips[2:3])
    assert not train(mute)[Draw(0, 0)]["has_sound"]
    with pytest.raises(EmoError, match="has sound, which this stage needs"):
        train(mute, needs)


def test_clips_that_are_too_short_are_an_error(tmp_path: Path, clips: list[PackedSample]) -> None:
    folder = written(tmp_path / "set", clips[2:3])
    with pytest.raises(EmoError, match="no clip of .* has 17 frames"):
        train(folder, Needs(motion_frames=4, clip_frames=13, window=2, size=SIZE))


# --- what networks add


def test_sound_features_and_latents_belong_to_the_frames(computed: tuple[Path, str, str]) -> None:
    folder, features, latents = computed
    needs = Needs(motion_frames=4, clip_frames=12, window=2, size=SIZE, features=features,
                  latents=latents)  # fmt: skip
    data, side = train(folder, needs), ShardReader(f"{folder}/{features}")
    row = side.keys.index("a-1")
    with np.load(io.BytesIO(side.read(row, "npz"))) as arrays:
        whole = arrays["features"]
    assert whole.shape == (30, side.about["width"]) and whole.dtype == np.float16
    sample = data[Draw(0, 4)]
    first = numbers(sample["frames"][:1])[0]
    around = np.arange(first + 2, first + 18).clip(0, 29)
    assert np.array_equal(sample["audio"].numpy(), whole[around])
    assert sample["latents"].shape == (16, 16, 8, 8)
    assert sample["reference_latents"].shape == (16, 8, 8)
    alone = Needs(motion_frames=4, clip_frames=12, window=2, size=SIZE, latents=latents,
                  pictures=False)  # fmt: skip
    quick = train(folder, alone)[Draw(0, 4)]
    assert torch.equal(quick["latents"], sample["latents"]) and "frames" not in quick
    assert "reference" not in quick
    drawn = train(folder, dataclasses.replace(alone, reference_picture=True))[Draw(0, 4)]
    assert torch.equal(drawn["reference"], sample["reference"]) and "frames" not in drawn


def test_features_are_those_of_inference(
    computed: tuple[Path, str, str], small_model: Path, tmp_path: Path
) -> None:
    import soundfile

    from emo_cli.audio import AudioFeatures
    from emo_cli.model.load import load_model
    from emo_cli.sound import decode_sound

    folder, features, _ = computed
    data = train(folder, Needs(motion_frames=0, clip_frames=30, window=0, size=SIZE,
                               features=features))  # fmt: skip
    samples = data.sound(0)
    soundfile.write(tmp_path / "x.wav", samples, 16_000)
    model = load_model(small_model)
    made = AudioFeatures(
        decode_sound(tmp_path / "x.wav", tmp_path), model.audio_encoder,
        config=model.config.audio, fps=25,
    )  # fmt: skip
    stored = data[Draw(0, 0)]["audio"].float()
    assert torch.allclose(stored, made.features(0, 30), atol=2e-3, rtol=2e-3)


def test_a_clip_without_sound_hears_zeros(computed: tuple[Path, str, str]) -> None:
    folder, features, _ = computed
    data = train(folder, Needs(motion_frames=4, clip_frames=12, window=2, size=SIZE,
                               features=features))  # fmt: skip
    sample = data[Draw(2, 0)]
    assert not sample["has_sound"] and sample["audio"].shape[0] == 16 and not sample["audio"].any()


def test_the_passes_do_only_what_is_missing(
    tmp_path: Path, clips: list[PackedSample], small_model: Path
) -> None:
    folder = written(tmp_path / "set", clips[:1])
    name = add_sound_features(folder, small_model)
    before = (folder / name / "00000.tar").read_bytes()
    written(folder, clips[1:2])
    with pytest.raises(EmoError, match="1 of 2 clips have no features yet"):
        train(folder, Needs(motion_frames=4, clip_frames=12, window=2, size=SIZE, features=name))
    assert add_sound_features(folder, small_model) == name
    after = (folder / name / "00000.tar").read_bytes()
    assert after.startswith(before[:-1024]) and len(ShardReader(f"{folder}/{name}").keys) == 2


# --- files of a sample


def test_pictures_lose_next_to_nothing_and_keep_their_brightness() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(40, 220, (6, 8, 8, 3))
    frames = coarse.repeat(16, 1).repeat(16, 2).round().astype(np.uint8)
    back = decode_frames(encode_frames(frames), list(range(6)), "x").astype(float)
    inside = np.s_[:, 4:12, 4:12]  # away from the edges, where chroma is halved
    assert np.abs((back - frames)[inside]).mean() < 2
    assert abs((back - frames).mean()) < 0.5


def test_frames_come_in_any_order_and_missing_ones_are_an_error() -> None:
    data = encode_frames(numbered_frames(0, 40))
    wanted = [39, 0, 17, 18, 3]
    assert [read_number(f) for f in decode_frames(data, wanted, "x")] == wanted
    with pytest.raises(EmoError, match="x is damaged"):
        decode_frames(data, [40], "x")


def test_labels_keep_a_sixteenth_of_a_pixel() -> None:
    rng = np.random.default_rng(1)
    landmarks = rng.uniform(0, 512, (20, 478, 3)).astype(np.float32)
    labels = made_labels(20)
    labels = Labels(boxes=labels.boxes, poses=labels.poses, rotation=labels.rotation,
                    landmarks=landmarks, opening=labels.opening)  # fmt: skip
    back = unpack_labels(pack_labels(labels, 512), 512, "x")
    assert np.abs(back.landmarks - landmarks)[..., :2].max() <= 1 / 16
    assert np.array_equal(back.rotation, labels.rotation)
    assert np.array_equal(back.boxes, labels.boxes)
