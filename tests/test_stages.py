"""The three stages by their commands, one after the other, to a model that generates."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made_clips import FRAMES, write_clips
from PIL import Image
from safetensors.torch import load_file
from small_models import SMALL_FULL, SMALL_MINI, save_small

from emo_cli import Engine, GenerateOptions, cli, presets
from emo_cli.files import sha256_of
from emo_cli.model.backbone import GATE_SCALE
from emo_cli.model.load import load_model, model_digest
from emo_cli.training import pack, precompute
from emo_cli.training import stages as rows
from emo_cli.training.preview import _stills

ONE_STEP = ["--steps", "1", "--batch", "2", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def small_mini():
    """`mini` is small in this file: the same commands, fewer numbers."""
    patch = pytest.MonkeyPatch()
    patch.setitem(presets.PRESETS, "mini", SMALL_MINI)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def encoders(tmp_path_factory, small_mini) -> Path:
    """A folder with autoencoder, audio encoder and lips' reader alone, as if of their stages."""
    folder = save_small(tmp_path_factory.mktemp("encoders"), trained_stages=("autoencoder",))
    for part in ("backbone", "reference_net", "temporal"):
        (folder / f"{part}.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, encoders) -> Path:
    return write_clips(tmp_path_factory.mktemp("dataset"), encoders, size=256)


def train(stage, out, dataset, *inits, options=()):
    named = [argument for folder in inits for argument in ("--init", str(folder))]
    command = ["train", stage, "--data", str(dataset), *named, "--out", str(out), *ONE_STEP]
    assert cli.run([*command, *options]) == 0
    return out / "model"


@pytest.fixture(scope="module")
def stages(tmp_path_factory, dataset, encoders):
    """Results of image, video and speed, each from the one before."""
    runs = tmp_path_factory.mktemp("runs")
    image = train("image", runs / "image", dataset, encoders)
    video = train("video", runs / "video", dataset, image)
    return {"image": image, "video": video, "speed": train("speed", runs / "speed", dataset, video)}


def test_the_three_stages_end_in_a_model_that_generates(stages, portrait, speech):
    engine = Engine(stages["speed"], device="cpu")
    assert engine.note == ""
    options = GenerateOptions(steps=1, face_region="100,50,400,450", duration_s=0.6)
    assert sum(len(clip.frames) for clip in engine.generate(portrait, speech, options)) == 15


def test_every_stage_is_written_down_in_the_models_config(stages):
    expected = ["autoencoder", "audio", "lips", "image", "video", "speed"]
    for number, stage in enumerate(("image", "video", "speed")):
        values = json.loads((stages[stage] / "config.json").read_text())
        assert values["trained_stages"] == expected[: 4 + number]


def test_stage_three_leaves_every_other_file_bit_identical(stages):
    before, after = stages["video"], stages["speed"]
    assert sha256_of(before / "temporal.safetensors") != sha256_of(after / "temporal.safetensors")
    for part in ("backbone", "reference_net", "autoencoder", "audio_encoder", "lip_reader"):
        assert sha256_of(before / f"{part}.safetensors") == sha256_of(after / f"{part}.safetensors")


def test_latents_of_another_picture_size_are_refused(
    dataset, encoders, tmp_path, capsys, small_mini
):
    """The clips have 256 px, the small model's pictures 64: latents cannot be scaled."""
    prepared = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    precompute.add_latents(prepared, encoders)
    command = ["train", "image", "--data", str(prepared), "--init", str(encoders)]
    assert cli.run([*command, "--out", str(tmp_path / "run"), *ONE_STEP]) == 1
    assert "256 px, the model wants 64" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["audio_encoder", "lip_reader", "backbone"])
def test_a_stage_without_what_it_starts_from_is_refused(
    stages, dataset, tmp_path, capsys, missing, small_mini
):
    folder = Path(shutil.copytree(stages["image"], tmp_path / "model"))
    (folder / f"{missing}.safetensors").unlink()
    command = ["train", "video", "--data", str(dataset), "--init", str(folder)]
    assert cli.run([*command, "--out", str(tmp_path / "run"), *ONE_STEP]) == 1
    err = capsys.readouterr().err
    assert "stage 'video' needs" in err and "emo train" in err and "Traceback" not in err


def test_the_same_command_again_changes_nothing(stages, dataset, encoders, small_mini):
    digest = model_digest(stages["image"])
    assert train("image", stages["image"].parent, dataset, encoders) == stages["image"]
    assert model_digest(stages["image"]) == digest


def test_previews_show_reference_real_and_generated_frames(stages):
    for stage in ("image", "video"):
        sheet = np.asarray(Image.open(stages[stage].parent / "previews" / "step-000001.png"))
        assert sheet.shape == (4 * 64, 9 * 64, 3)  # two clips; SMALL_MINI's pictures have 64 px
        reference, below = sheet[:64, :64], sheet[64:128, :64]
        assert reference.std() > 5 and below.std() == 0  # nothing lies under the reference
        real, made = sheet[:64, 64:], sheet[64:128, 64:]
        assert made.std() > 1 and not np.array_equal(real, made)


def test_previews_change_nothing_that_is_learnt(stages, dataset, tmp_path, monkeypatch, small_mini):
    often = dataclasses.replace(rows.MINI_STAGES["video"], evaluate_every=1)
    monkeypatch.setitem(rows.MINI_STAGES, "video", often)
    two = ("--steps", "2")
    shown = train("video", tmp_path / "a", dataset, stages["image"], options=two)
    blind = train("video", tmp_path / "b", dataset, stages["image"], options=(*two, "--no-preview"))
    assert len(list((tmp_path / "a" / "previews").glob("*.png"))) == 2
    assert not (tmp_path / "b" / "previews").exists()
    assert model_digest(shown) == model_digest(blind)


def test_a_preview_of_latents_alone_shows_what_the_decoder_makes_of_them(stages):
    """As on a machine that got no pictures: the decoder's frames stand for the real ones."""
    model = load_model(stages["video"])
    latents = torch.randn(FRAMES, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    engine = Engine.of_model(model, device=torch.device("cpu"))
    dataset = LatentsAlone(latents)
    stills = _stills(engine, dataset, 0, [3, 19])
    assert [still.shape for still in stills] == [(64, 64, 3)] * 2
    assert np.array_equal(stills[1], engine.decode(latents[None, [19]], 1)[0])


class LatentsAlone:
    def __init__(self, latents):
        self.latents = latents

    def has_pictures(self, index):
        return False

    def all_latents(self, index):
        return self.latents


def test_pack_copies_finished_parts_and_names_every_stage(stages, encoders, tmp_path):
    out = tmp_path / "packed"
    assert cli.run(["train", "pack", str(encoders), str(stages["image"].parent),
                    str(stages["video"].parent), "--out", str(out)]) == 0  # fmt: skip
    assert model_digest(out) == model_digest(stages["video"])


def test_pack_takes_a_stopped_runs_averages_from_its_newest_checkpoint(
    stages, encoders, tmp_path, small_mini
):
    """The checkpoint of the last step holds what the finished run exported."""
    run = Path(shutil.copytree(stages["video"].parent, tmp_path / "run"))
    shutil.rmtree(run / "model")
    out = tmp_path / "packed"
    command = ["train", "pack", str(encoders), str(run), "--out", str(out), "--unfinished"]
    assert cli.run(command) == 0
    for part in ("backbone", "temporal", "reference_net"):
        made, expected = (load_file(f / f"{part}.safetensors") for f in (out, stages["video"]))
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[name], expected[name]) for name in made)
    values = json.loads((out / "config.json").read_text())
    assert values["untrained"] and values["trained_stages"][-1] == "video"


def test_pack_averages_what_two_sources_have(stages, encoders, tmp_path, capsys):
    names = ("backbone", "reference_net", "temporal")
    image, video = (stages[name].parent for name in ("image", "video"))
    out = tmp_path / "blend"
    command = ["train", "pack", str(encoders), str(image), str(video), "--out", str(out)]
    assert cli.run([*command, "--blend", "0.25"]) == 0
    for name in names:
        folders = (image / "model", video / "model", out)
        old, new, mixed = (load_file(folder / f"{name}.safetensors") for folder in folders)
        for key, tensor in mixed.items():
            expected = 0.75 * old[key].float() + 0.25 * new[key].float()
            torch.testing.assert_close(tensor.float(), expected, atol=2e-3, rtol=2e-3)
    # What both have alike is copied: latents and features made with it still fit.
    assert (out / "autoencoder.safetensors").read_bytes() == (
        encoders / "autoencoder.safetensors"
    ).read_bytes()
    run = tmp_path / "stopped"
    shutil.copytree(video, run)
    shutil.rmtree(run / "model")
    command = ["train", "pack", str(encoders), str(run), "--out", str(tmp_path / "no")]
    assert cli.run([*command, "--blend", "0.5"]) == 2
    assert "--blend" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_pack_leans_on_the_portrait_that_is_copied(stages, tmp_path, capsys):
    out = tmp_path / "leans"
    assert cli.run(["train", "pack", str(stages["video"]), "--out", str(out), "--lean", "2"]) == 0
    old, new = (load_file(f / "backbone.safetensors") for f in (stages["video"], out))
    expected = old["conv_out.bias"].clone()
    expected[-1] += 2 / GATE_SCALE  # the gate's; the network's own channels stay
    assert torch.equal(new.pop("conv_out.bias"), expected)
    assert all(torch.equal(tensor, old[name]) for name, tensor in new.items())
    full = save_small(tmp_path / "full", SMALL_FULL)
    command = ["train", "pack", str(full), "--out", str(tmp_path / "no"), "--lean", "1"]
    assert cli.run(command) == 2
    assert "--lean" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_pack_names_what_no_source_holds(stages, encoders, tmp_path, capsys):
    assert cli.run(["train", "pack", str(encoders), "--out", str(tmp_path / "a")]) == 1
    assert "no source holds ReferenceNet" in capsys.readouterr().err
    lacking = Path(shutil.copytree(stages["image"], tmp_path / "lacking"))
    (lacking / "temporal.safetensors").unlink()
    assert cli.run(["train", "pack", str(lacking), "--out", str(tmp_path / "b")]) == 1
    assert "temporal.safetensors" in capsys.readouterr().err
    assert cli.run(["train", "pack", str(stages["image"]), "--out", str(stages["image"])]) == 2
    assert "is itself a source" in capsys.readouterr().err


def test_pack_refuses_a_mini_that_is_too_large_to_ship(stages, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pack, "SHIPPED_BYTES", 1000)
    assert cli.run(["train", "pack", str(stages["video"]), "--out", str(tmp_path / "out")]) == 1
    assert "too much to ship" in capsys.readouterr().err


def test_a_stopped_run_of_an_encoder_is_to_be_finished_first(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints" / "step-00000020").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text('{"name": "autoencoder"}')
    assert cli.run(["train", "pack", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 1
    assert "is not finished" in capsys.readouterr().err


def test_sound_features_take_the_run_of_an_encoder_too(dataset, encoders, tmp_path, small_mini):
    """`emo train audio` leaves no config.json: only `mini` trains encoders of its own."""
    run = Path(shutil.copytree(encoders, tmp_path / "run"))
    (run / "config.json").unlink()
    assert precompute.add_sound_features(dataset, run) == precompute.features_name(encoders)
