"""The stage `distill`: segments, targets, what changes, resume, and a student that generates."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from small_models import SMALL_FULL, SMALL_MINI, randomised, save_small
from test_denoising import PLAIN, batch_of

from emo_cli import Engine, GenerateOptions
from emo_cli.config import read_model_config
from emo_cli.errors import EmoError
from emo_cli.files import sha256_of
from emo_cli.model.emo_model import EmoModel
from emo_cli.model.load import load_parts
from emo_cli.presets import FULL, MINI
from emo_cli.sampler import build_scheduler, denoise, guidance_branches
from emo_cli.training import loop
from emo_cli.training.distillation import (
    DistillationLoss,
    DistillationTask,
    Teaching,
    check_steps,
    ddim_step,
    distilled,
    v_that_reaches,
    without,
)
from emo_cli.training.pack import write_checkpoint
from emo_cli.training.stages import RunOptions, stage_row

STAGE = dataclasses.replace(
    stage_row("distill", "mini"),
    steps=4,
    batch=2,
    report_every=1,
    checkpoint_every=1,
    warmup_steps=1,
)


def loss_of(config=SMALL_MINI, guidance=(1.0, 1.0), teacher_steps=40, student_steps=4):
    torch.manual_seed(0)
    model = EmoModel(config)
    randomised(model.backbone, 1)
    randomised(model.reference_net, 2)
    return DistillationLoss(model, PLAIN, Teaching(*guidance, teacher_steps, student_steps))


def at(*places):
    return torch.tensor(places)


# ------------------------------------------------------------------------------- trajectories


@pytest.mark.parametrize("place", [0, 7, 39])
def test_a_turn_is_a_ddim_step_of_diffusers(place):
    even = dataclasses.replace(SMALL_MINI.diffusion, shift=1.0)
    module = loss_of(dataclasses.replace(SMALL_MINI, diffusion=even))
    scheduler = build_scheduler(distilled(even, 40), "ddim", 40)
    assert scheduler.timesteps.tolist() == module.grid.tolist()
    z, v = torch.randn(1, 12, 16, 8, 8), torch.randn(1, 12, 16, 8, 8)
    expected = scheduler.step(v, module.grid[place].item(), z).prev_sample
    turn = module.angles[at(place)] - module.angles[at(place + 1)]
    torch.testing.assert_close(ddim_step(z, v, turn), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("steps", "student"), [(4, 4), (20, 4), (40, 4), (4, 2), (2, 2), (3, 1)])
def test_the_students_own_steps_end_each_segment(steps, student):
    scheduler = build_scheduler(distilled(MINI.diffusion, student), "ddim", student)
    module = loss_of(teacher_steps=steps, student_steps=student)
    assert module.segment == steps // student
    assert scheduler.timesteps.tolist() == module.grid[:: module.segment].tolist()


def test_the_v_that_reaches_an_end_reaches_it():
    z, end, turn = (
        torch.randn(2, 12, 16, 8, 8),
        torch.randn(2, 12, 16, 8, 8),
        torch.tensor([0.1, 1.2]),
    )
    v = v_that_reaches(end, z, turn)
    torch.testing.assert_close(ddim_step(z, v, turn), end, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [SMALL_MINI, SMALL_FULL], ids=["v", "epsilon"])
def test_who_always_knows_the_picture_has_nothing_to_learn(config, monkeypatch):
    """All on one straight trajectory: teacher, target and student agree at every place."""
    module, batch = loss_of(config), batch_of(config)
    answer = batch["latents"][:, 4:]

    def knows(backbone, batch, conditions, noisy, place):
        angle = module.angles[place].view(-1, 1, 1, 1, 1)
        return (angle.cos() * noisy - answer) / angle.sin()

    monkeypatch.setattr(module, "predict_v", knows)
    for place in (0, 5, 9, 10, 39):
        monkeypatch.setattr(module, "_places", lambda seeds, p=place: at(p, p))
        assert module(batch)["plain"].item() < 1e-6


def test_one_step_before_a_segments_end_the_target_is_the_teacher():
    module, batch = loss_of(), batch_of()
    randomised(module.target, 9)  # what it says must not matter there
    noisy, place = torch.randn(2, 12, 16, 8, 8), at(9, 39)
    with torch.no_grad():
        conditions = module._conditions(batch, noisy, batch["latents"][:, :4])
        target = module._target(batch, conditions, noisy, place)
        teacher = module.teacher_v(batch, conditions, noisy, place)
    torch.testing.assert_close(target, teacher, atol=2e-4, rtol=1e-3)


def test_a_teacher_of_four_steps_hands_on_what_it_says_itself():
    module, batch = loss_of(guidance=(1.0, 3.0), teacher_steps=4), batch_of()
    randomised(module.target, 9)
    noisy, place = torch.randn(2, 12, 16, 8, 8), at(0, 2)
    with torch.no_grad():
        conditions = module._conditions(batch, noisy, batch["latents"][:, :4])
        target = module._target(batch, conditions, noisy, place)
        assert torch.equal(target, module.teacher_v(batch, conditions, noisy, place))
        theirs, ours = (module.sample(batch, teacher=who) for who in (True, False))
    assert not torch.allclose(theirs, ours)  # four steps each: only the guidance differs


@pytest.mark.parametrize(
    ("teacher", "student", "config", "message"),
    [
        (6, 4, MINI, "a student of 4 steps cannot learn from a teacher of 6"),
        (6, 3, FULL, "cannot take 6 steps"),  # even ones have to divide 1000
        (400, 4, MINI, "cannot take 400 steps"),  # shifted ones would fall together
    ],
)
def test_steps_that_cannot_be_taught_are_refused(teacher, student, config, message):
    with pytest.raises(EmoError, match=message):
        check_steps(teacher, student, config.diffusion)
    check_steps(6, 3, MINI.diffusion)
    check_steps(8, 4, FULL.diffusion)


@torch.no_grad()
def test_prediction_of_noise_is_turned_into_v():
    module, batch = loss_of(SMALL_FULL), batch_of(SMALL_FULL)
    noisy, place = torch.randn(2, 12, 4, 8, 8), at(3, 30)
    conditions = module._conditions(batch, noisy, batch["latents"][:, :4])
    noise = module._run(module.backbone, noisy, module.grid[place], batch, conditions)
    v = module.predict_v(module.backbone, batch, conditions, noisy, place)
    angle = module.angles[place].view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(angle.sin() * noisy + angle.cos() * v, noise, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_teachers_guidance_goes_in():
    plain, guided, batch = loss_of(), loss_of(guidance=(3.0, 3.0)), batch_of()
    noisy, place = torch.randn(2, 12, 16, 8, 8), at(3, 30)
    conditions = plain._conditions(batch, noisy, batch["latents"][:, :4])
    one, three = (m.teacher_v(batch, conditions, noisy, place) for m in (plain, guided))
    twice = loss_of(guidance=(2.0, 2.0)).teacher_v(batch, conditions, noisy, place)
    torch.testing.assert_close(three - one, 2 * (twice - one), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(one, three)
    heard = loss_of(guidance=(1.0, 3.0)).teacher_v(batch, conditions, noisy, place)
    silent = plain.teacher_v(batch, without(conditions, reference=False, audio=True), noisy, place)
    torch.testing.assert_close(heard - silent, 3 * (one - silent), atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_student_is_sampled_as_the_engine_does_it():
    module, batch = loss_of(), batch_of(clips=1)
    clean = batch["latents"][:, 4:]
    noise = module._noise(batch["seed"], clean)
    conditions = module._conditions(batch, noise, batch["latents"][:, :4])

    def predict(latents, timesteps, reuse):
        return module._run(module.backbone, latents, timesteps, batch, conditions)

    scheduler = build_scheduler(distilled(SMALL_MINI.diffusion, 4), "ddim", 4)
    expected = denoise(predict, noise, scheduler, guidance_branches(1, 1), torch.float32)
    torch.testing.assert_close(module.sample(batch, teacher=False), expected, atol=1e-3, rtol=1e-3)


# ----------------------------------------------------------------------------------- the stage


class Batches:
    """Samples of one made batch."""

    def __init__(self):
        self.rows = batch_of(clips=4)

    def __len__(self):
        return 4

    def spread(self, count):
        return list(range(count))

    def __getitem__(self, drawn):
        return {name: rows[drawn.index] for name, rows in self.rows.items() if name != "seed"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("teacher"))


def distil(teacher, out, stop=None):
    model = EmoModel(read_model_config(teacher / "config.json"))
    load_parts(model, teacher)
    task = DistillationTask(model, STAGE, PLAIN, Batches(), Batches(), [teacher])

    def report(step, values):
        if step == stop:
            raise KeyboardInterrupt

    return loop.train(task, STAGE, RunOptions(out=out, device="cpu"), report=report)


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    return distil(teacher, tmp_path_factory.mktemp("run"))


def test_a_student_says_in_its_config_how_it_is_sampled(student):
    diffusion = json.loads((student / "config.json").read_text())["diffusion"]
    assert (diffusion["steps"], diffusion["guidance"]) == (4, 1.0)
    assert (diffusion["solver"], diffusion["spacing"]) == ("ddim", "trailing")


def test_only_the_backbone_changes(teacher, student):
    for part in ("reference_net", "autoencoder", "audio_encoder", "lip_reader"):
        file = f"{part}.safetensors"
        assert sha256_of(teacher / file) == sha256_of(student / file)
    for part in ("backbone", "temporal"):
        file = f"{part}.safetensors"
        assert sha256_of(teacher / file) != sha256_of(student / file)


def test_a_student_generates_in_four_steps(student, portrait, speech):
    engine = Engine(student, device="cpu")
    options = GenerateOptions(face_region="100,50,400,450", duration_s=0.4)
    assert sum(len(clip.frames) for clip in engine.generate(portrait, speech, options)) == 10


def test_a_distillation_that_was_stopped_ends_as_the_one_that_was_not(teacher, student, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        distil(teacher, tmp_path, stop=2)
    resumed = distil(teacher, tmp_path)
    for part in ("backbone", "temporal"):
        ours, theirs = (load_file(f / f"{part}.safetensors") for f in (resumed, student))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_students_checkpoint_is_brought_home_without_the_target_that_it_follows(
    student, tmp_path
):
    checkpoint = max((student.parent / "checkpoints").glob("step-*"))
    config = read_model_config(student / "config.json")
    parts = write_checkpoint(checkpoint, config, tmp_path)
    assert parts == {"backbone", "reference_net", "temporal"}
    for part in ("backbone", "temporal"):
        ours, exported = (load_file(f / f"{part}.safetensors") for f in (tmp_path, student))
        assert ours.keys() == exported.keys()
        assert all(torch.equal(ours[name], exported[name]) for name in ours)


def test_the_distance_to_the_teachers_clips_is_measured(student):
    lines = (student.parent / "metrics.jsonl").read_text().splitlines()
    measured = [json.loads(line) for line in lines]
    assert measured[-1]["val_teacher"] > 0
