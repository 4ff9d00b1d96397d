"""Few-step distillation: a student makes in few unguided steps what its teacher makes in more.

After "Multistep Consistency Models" (Heek, Hoogeboom, Salimans 2024): the trajectory is cut into as
many segments as the student will take steps; from anywhere in a segment the student learns to
reach its end in one DDIM step. The student starts as the teacher; its target is, as in
"Consistency Models" (Song et al. 2023), a moving average of itself, one teacher step further on.
Sampling needs nothing new: trailing DDIM with as many steps. A teacher of no more steps hands on
its guidance alone, as in "On Distillation of Guided Diffusion Models" (Meng et al. 2023).

Everything is computed with angles: a noisy latent is cos(a) x + sin(a) noise, and a DDIM step from
angle a to b is z_b = cos(a - b) z_a - sin(a - b) v. No vanishing signal or noise is divided by.

Shapes: B clips, F frames, C latent channels, H W latent size.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from emo_cli.config import DiffusionConfig
from emo_cli.errors import EmoError
from emo_cli.model.backbone import Backbone
from emo_cli.model.emo_model import EmoModel
from emo_cli.sampler import build_scheduler, guidance_branches, trailing_timesteps
from emo_cli.training.clip_samples import ClipSamples
from emo_cli.training.denoising import Conditions, DenoisingLoss, DenoisingOptions
from emo_cli.training.denoising_stage import DenoisingTask
from emo_cli.training.draws import derive_seed
from emo_cli.training.stages import Stage

TARGET_DECAY = 0.95  # of the moving average, a forward
COMPARED_CLIPS = 2  # held-out ones that are sampled to the end, by both


class Teaching(NamedTuple):
    """How the teacher samples what the student learns."""

    guidance: float  # of reference and sound; 1 is none
    audio_guidance: float  # of the sound alone
    steps: int = 40
    student_steps: int = 4  # divides the teacher's: segments end on its grid


def check_steps(teacher: int, student: int, diffusion: DiffusionConfig) -> None:
    """Raises: EmoError when a teacher of so many steps has no whole segments for its student, or
    when DDIM cannot take as many."""
    hint = "Take --student-steps 1, 2 or 4, and a multiple of it as --teacher-steps: 4, 8, 40."
    if teacher % student:
        problem = f"a student of {student} steps cannot learn from a teacher of {teacher}"
        raise EmoError(problem, hint, exit_code=2)
    for steps in (teacher, student):
        try:
            build_scheduler(distilled(diffusion, steps), "ddim", steps)
        except EmoError as error:
            raise EmoError(str(error), hint, exit_code=2) from error


def distilled(diffusion: DiffusionConfig, steps: int) -> DiffusionConfig:
    """What a student is sampled with: trailing DDIM steps without guidance."""
    return dataclasses.replace(
        diffusion,
        solver="ddim",
        spacing="trailing",
        steps=steps,
        guidance=1.0,
        audio_guidance=1.0,
    )


def ddim_step(latents: Tensor, v: Tensor, turn: Tensor) -> Tensor:
    """Latents and v [B, F, C, H, W], turned towards the picture by angles [B]."""
    turn = turn.view(-1, 1, 1, 1, 1)
    return turn.cos() * latents - turn.sin() * v


def v_that_reaches(end: Tensor, latents: Tensor, turn: Tensor) -> Tensor:
    """The v with which one DDIM step by angles [B] > 0 leads from the latents to their `end`."""
    turn = turn.view(-1, 1, 1, 1, 1)
    return (turn.cos() * latents - end) / turn.sin()


class DistillationLoss(DenoisingLoss):
    """A student (`backbone`), its moving average (`target`) and a frozen teacher."""

    grid: Tensor  # [teaching.steps] timesteps
    angles: Tensor  # [teaching.steps + 1] of the grid and, last, of the picture itself

    def __init__(self, model: EmoModel, options: DenoisingOptions, teaching: Teaching) -> None:
        super().__init__(model, options)
        self.teaching = teaching
        self.segment = teaching.steps // teaching.student_steps  # teacher's steps in a student's
        self.target = copy.deepcopy(model.backbone).requires_grad_(False)
        # In a list, as the autoencoder: neither saved nor averaged.
        self.teacher = [copy.deepcopy(model.backbone).requires_grad_(False)]
        shift = model.config.diffusion.shift
        grid = torch.tensor(trailing_timesteps(teaching.steps, shift))
        alphas = self.alphas[grid]
        angles = torch.atan2((1 - alphas).sqrt(), alphas.sqrt())
        self.register_buffer("grid", grid, persistent=False)
        self.register_buffer("angles", torch.cat([angles, angles.new_zeros(1)]), persistent=False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One pair of neighbouring points of a teacher's trajectory -> {"loss", "plain", "mouth"}.

        batch: as `DenoisingLoss.forward` takes it.
        """
        latents = self._latents(batch, "latents", "frames")
        count = self.config.motion_frames
        motion, clean = latents[:, :count], latents[:, count:]
        place = self._places(batch["seed"])
        noisy = self._noisy(clean, self._noise(batch["seed"], clean), place)
        with torch.no_grad():
            conditions = self._conditions(batch, noisy, motion)
            if self.training:
                self.follow()
            target = self._target(batch, conditions, noisy, place)
        prediction = self.predict_v(self.backbone, batch, conditions, noisy, place)
        return self._losses(prediction.float(), target, self.grid[place], batch)

    def _target(
        self, batch: dict[str, Tensor], conditions: Conditions, noisy: Tensor, place: Tensor
    ) -> Tensor:
        """The v that leads to where the target arrives from one teacher step further on."""
        v = self.teacher_v(batch, conditions, noisy, place)
        if self.segment == 1:
            return v
        end = (place // self.segment + 1) * self.segment
        further = ddim_step(noisy, v, self.angles[place] - self.angles[place + 1])
        # Where that step is the segment's last one, `further` is the end itself: a turn by zero.
        there = (place + 1).clamp(max=self.teaching.steps - 1)
        v = self.predict_v(self.target, batch, conditions, further, there)
        arrived = ddim_step(further, v, self.angles[place + 1] - self.angles[end])
        return v_that_reaches(arrived, noisy, self.angles[place] - self.angles[end])

    def predict_v(
        self,
        backbone: Backbone,
        batch: dict[str, Tensor],
        conditions: Conditions,
        noisy: Tensor,
        place: Tensor,
    ) -> Tensor:
        """A Backbone's prediction at places [B] of the teacher's grid, as v, in fp32."""
        output = self._run(backbone, noisy, self.grid[place], batch, conditions).float()
        if self.config.diffusion.prediction == "v_prediction":
            return output
        angle = self.angles[place].view(-1, 1, 1, 1, 1)
        return (output - angle.sin() * noisy) / angle.cos()

    def teacher_v(
        self, batch: dict[str, Tensor], conditions: Conditions, noisy: Tensor, place: Tensor
    ) -> Tensor:
        """The teacher's v, with its guidance, which so becomes part of the student."""
        teacher = self.teacher[0].to(noisy.device)
        v = torch.zeros_like(noisy)
        for branch in guidance_branches(self.teaching.guidance, self.teaching.audio_guidance):
            seen = without(conditions, reference=not branch.reference, audio=not branch.audio)
            v += branch.weight * self.predict_v(teacher, batch, seen, noisy, place)
        return v

    @torch.no_grad()
    def sample(self, batch: dict[str, Tensor], *, teacher: bool) -> Tensor:
        """Latents [B, F, C, H, W] made from the batch's noise, by teacher or student."""
        latents = self._latents(batch, "latents", "frames")
        motion, clean = latents.split([self.config.motion_frames, self.config.clip_frames], 1)
        z = self._noise(batch["seed"], clean)
        conditions = self._conditions(batch, z, motion)
        stride = 1 if teacher else self.segment
        for first in range(0, self.teaching.steps, stride):
            place = torch.full((len(z),), first, device=z.device)
            if teacher:
                v = self.teacher_v(batch, conditions, z, place)
            else:
                v = self.predict_v(self.backbone, batch, conditions, z, place)
            z = ddim_step(z, v, self.angles[place] - self.angles[place + stride])
        return z

    def _places(self, seeds: Tensor) -> Tensor:
        """[B]: places on the teacher's grid, uniform."""
        count = self.teaching.steps
        places = [derive_seed(seed, "place") % count for seed in seeds.tolist()]
        return torch.tensor(places, device=self.grid.device)

    def _noisy(self, clean: Tensor, noise: Tensor, place: Tensor) -> Tensor:
        angle = self.angles[place].view(-1, 1, 1, 1, 1)
        return angle.cos() * clean + angle.sin() * noise

    def follow(self) -> None:
        """The target takes in the student's weights as they are now."""
        student = [parameter.detach() for parameter in self.backbone.parameters()]
        torch._foreach_lerp_(list(self.target.parameters()), student, 1 - TARGET_DECAY)


def without(conditions: Conditions, *, reference: bool, audio: bool) -> Conditions:
    """The null condition in place of the reference, of the sound or of both."""
    if audio:
        conditions = conditions._replace(audio=torch.zeros_like(conditions.audio))
    if not reference:
        return conditions
    gestures = conditions.gestures
    if gestures.head is not None:
        moved, told = (torch.zeros_like(x) for x in gestures.head[1:])
        head = gestures.head._replace(moved=moved, told=told)
        gestures = gestures._replace(head=head)
    return conditions._replace(
        features=[torch.zeros_like(x) for x in conditions.features],
        portrait=torch.zeros_like(conditions.portrait),
        gestures=gestures,
    )


class DistillationTask(DenoisingTask):
    """What the stage `distill` brings to the loop; its result samples in the student's steps."""

    module: DistillationLoss

    def __init__(
        self,
        model: EmoModel,
        stage: Stage,
        options: DenoisingOptions,
        samples: ClipSamples,
        validation: ClipSamples | None,
        inits: list[Path],
        teaching: Teaching | None = None,
    ) -> None:
        diffusion = model.config.diffusion
        teaching = teaching or Teaching(diffusion.guidance, diffusion.audio_guidance)
        diffusion = distilled(diffusion, teaching.student_steps)
        model.config = dataclasses.replace(model.config, diffusion=diffusion)
        super().__init__(model, stage, options, samples, validation, inits)
        self.module = DistillationLoss(model, options, teaching)
        self.teachers: Tensor | None = None  # what the teacher made of the compared clips

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Also how far the student's clips are from the teacher's, from the same noise."""
        assert isinstance(module, DistillationLoss)
        measures = super().evaluate(module)
        if self.validation is None:
            return measures
        device = next(module.parameters()).device
        batch = self._validation_batch(0, min(COMPARED_CLIPS, len(self.validation)), device)
        if self.teachers is None:
            self.teachers = module.sample(batch, teacher=True)
        ours = module.sample(batch, teacher=False)
        return measures | {"val_teacher": (ours - self.teachers).square().mean().item()}
