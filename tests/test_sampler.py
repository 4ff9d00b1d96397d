"""Noise, schedules, guidance and denoising of one clip."""

import dataclasses
import functools

import pytest
import torch

from emo_cli.errors import EmoError
from emo_cli.presets import FULL, MINI
from emo_cli.sampler import (
    Branch,
    alphas_cumprod,
    build_scheduler,
    clip_generator,
    clip_noise,
    denoise,
    ease_in,
    guidance_branches,
    guide,
    plan_steps,
    trailing_timesteps,
)

SHAPE = (1, 12, 4, 8, 8)
EVEN = dataclasses.replace(MINI.diffusion, shift=1.0)


def knows_the_answer(scheduler, answer, prediction):
    """A predictor that is always right: what it says follows from the clean latents."""

    def predict(latents, timesteps, reuse=False):
        alpha = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1, 1)
        noise = (latents - alpha.sqrt() * answer) / (1 - alpha).sqrt()
        if prediction == "epsilon":
            return noise
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * answer

    return predict


@pytest.mark.parametrize("solver", ["ddim", "dpm++", "unipc"])
@pytest.mark.parametrize("steps", [4, 8, 20])
def test_a_perfect_predictor_is_sampled_to_its_answer(solver, steps):
    scheduler = build_scheduler(MINI.diffusion, solver, steps)
    answer, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    branches = guidance_branches(1.0, 1.0)
    predict = knows_the_answer(scheduler, answer, "v_prediction")
    result = denoise(predict, noise, scheduler, branches, torch.float32)
    torch.testing.assert_close(result, answer, atol=2e-3, rtol=1e-3)


def test_the_papers_forty_ddim_steps_end_at_the_answer_of_an_epsilon_model():
    scheduler = build_scheduler(FULL.diffusion, "ddim", 40)
    answer = torch.randn(SHAPE)
    predict = knows_the_answer(scheduler, answer, "epsilon")
    result = denoise(predict, torch.randn(SHAPE), scheduler, guidance_branches(1, 1), torch.float32)
    # SD 1.5's schedule ends at timestep 0's small noise, not at none.
    assert (result - answer).abs().mean() < 0.05


def test_sampling_is_repeatable_with_one_scheduler():
    scheduler = build_scheduler(MINI.diffusion, "dpm++", 6)
    predict = knows_the_answer(scheduler, torch.randn(SHAPE), "v_prediction")
    noise = torch.randn(SHAPE)
    one, two = (
        denoise(predict, noise, scheduler, guidance_branches(1, 1), torch.float32) for _ in "12"
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("steps", [6, 7, 12, 30])
def test_ddim_refuses_steps_that_do_not_end_exactly(steps):
    with pytest.raises(EmoError, match=f"DDIM cannot take {steps} steps"):
        build_scheduler(EVEN, "ddim", steps)
    assert len(build_scheduler(EVEN, "unipc", steps).timesteps) == steps
    assert len(build_scheduler(MINI.diffusion, "ddim", steps).timesteps) == steps


def test_schedule_of_training_and_inference_is_the_configs():
    scheduler = build_scheduler(MINI.diffusion, "ddim", 8)
    assert scheduler.timesteps[0] == 999
    alphas = alphas_cumprod(MINI.diffusion)
    assert alphas[-1] == 0  # zero-terminal SNR: the last step is pure noise
    torch.testing.assert_close(scheduler.alphas_cumprod, alphas, atol=1e-7, rtol=0)
    plain = dataclasses.replace(MINI.diffusion, zero_terminal_snr=False)
    assert alphas_cumprod(plain)[-1] > 0


# --------------------------------------------------------------------------- shifted timesteps


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 40])
def test_even_timesteps_are_those_of_diffusers(steps):
    scheduler = build_scheduler(EVEN, "ddim", steps)
    assert trailing_timesteps(steps) == scheduler.timesteps.tolist()


def test_shifted_timesteps_lie_nearer_to_noise():
    assert trailing_timesteps(2, 3.0) == [999, 749]
    assert trailing_timesteps(4, 3.0) == [999, 899, 749, 499]
    for solver in ("ddim", "dpm++"):
        scheduler = build_scheduler(MINI.diffusion, solver, 4)
        assert scheduler.timesteps.tolist() == [999, 899, 749, 499]


def test_ddim_with_shifted_timesteps_is_ddim():
    """As angles have it: from a to b, z_b = cos(a - b) z_a - sin(a - b) v."""
    scheduler = build_scheduler(MINI.diffusion, "ddim", 3)
    noise, outputs = torch.randn(SHAPE), [torch.randn(SHAPE) for _ in range(3)]
    alphas = alphas_cumprod(MINI.diffusion)[scheduler.timesteps]
    angles = [*torch.atan2((1 - alphas).sqrt(), alphas.sqrt()), torch.tensor(0.0)]
    expected = noise
    for index, v in enumerate(outputs):
        turn = angles[index] - angles[index + 1]
        expected = turn.cos() * expected - turn.sin() * v
    says = iter(outputs)
    result = denoise(
        lambda *_: next(says), noise, scheduler, guidance_branches(1, 1), torch.float32
    )
    torch.testing.assert_close(result, expected, atol=2e-3, rtol=1e-3)


def test_three_steps_of_dpm_differ_from_ddim_and_two_do_not():
    """Its first and its last step are of first order."""

    def run(solver, steps):
        scheduler = build_scheduler(MINI.diffusion, solver, steps)
        branches = guidance_branches(1, 1)
        return denoise(lambda x, *_: x.sin(), torch.ones(SHAPE), scheduler, branches, torch.float32)

    assert torch.equal(run("ddim", 2), run("dpm++", 2))
    assert not torch.allclose(run("ddim", 3), run("dpm++", 3), atol=1e-3)


def test_more_steps_than_shifted_timesteps_are_refused():
    assert len(build_scheduler(MINI.diffusion, "ddim", 333).timesteps) == 333
    with pytest.raises(EmoError, match="cannot take 400 steps"):
        build_scheduler(MINI.diffusion, "ddim", 400)


def test_guidance_one_needs_one_forward_and_equal_scales_two():
    assert guidance_branches(1.0, 1.0) == (Branch(True, True, 1.0),)
    assert guidance_branches(3.0, 3.0) == (Branch(True, True, 3.0), Branch(False, False, -2.0))
    assert len(guidance_branches(2.0, 7.5)) == 3


@pytest.mark.parametrize("scales", [(1.0, 1.0), (2.0, 7.5), (3.5, 3.5), (1.0, 4.0), (0.0, 2.0)])
def test_guidance_weights_sum_to_one_and_follow_the_formula(scales):
    reference, audio = scales
    branches = guidance_branches(reference, audio)
    assert sum(b.weight for b in branches) == pytest.approx(1)
    outputs = {(True, True): 5.0, (True, False): 3.0, (False, False): 2.0}
    expected = 2 + reference * (3 - 2) + audio * (5 - 3)
    assert sum(b.weight * outputs[b.reference, b.audio] for b in branches) == (
        pytest.approx(expected)
    )


def test_guidance_runs_its_branches_as_one_batch():
    scheduler, seen = build_scheduler(MINI.diffusion, "ddim", 2), []

    def predict(latents, timesteps, reuse=False):
        seen.append((latents.shape[0], timesteps.shape[0]))
        return latents * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1, 1)

    branches = guidance_branches(2.0, 2.0)
    result = denoise(predict, torch.ones(SHAPE), scheduler, branches, torch.float32)
    assert seen == [(2, 2), (2, 2)] and result.shape == SHAPE


def test_noise_is_a_function_of_seed_and_clip():
    def draw(seed, clip):
        return clip_noise(SHAPE, clip_generator(seed, clip), 0.5)

    assert torch.equal(draw(0, 3), draw(0, 3))
    assert not torch.equal(draw(0, 3), draw(0, 4))
    assert not torch.equal(draw(0, 3), draw(1, 3))


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
def test_frames_share_the_stated_part_of_unit_noise(shared):
    noise = clip_noise((1, 12, 16, 64, 64), clip_generator(0, 0), shared)[0]
    frames = noise.flatten(1)
    assert frames.var().item() == pytest.approx(1, abs=0.02)
    correlation = torch.corrcoef(frames)[0, 1:].mean().item()
    assert correlation == pytest.approx(shared, abs=0.02)


def test_a_lower_temperature_weakens_what_frames_share_and_nothing_else():
    def draw(temperature):
        return clip_noise((1, 12, 16, 32, 32), clip_generator(0, 0), 0.5, temperature)[0]

    warm, calm = draw(1.0), draw(0.4)
    assert torch.allclose(warm - warm[:1], calm - calm[:1], atol=1e-5)  # each frame's own part
    assert calm.var().item() == pytest.approx(0.5 + 0.5 * 0.4**2, abs=0.02)


# ------------------------------------------------------------ guidance interval, rescale, cache


def test_a_plan_guides_inside_the_interval_only():
    steps = plan_steps([999, 800, 500, 200, 100], guided=True, interval=(200, 800))
    assert [step.guided for step in steps] == [False, True, True, True, False]
    assert not any(step.guided for step in plan_steps([999, 500], guided=False, interval=(0, 999)))


def test_a_plan_makes_deep_features_every_so_many_steps():
    steps = plan_steps(list(range(70, 0, -10)), guided=False, cache_interval=3)
    assert [step.reuse for step in steps] == [False, True, True, False, True, True, False]
    assert not any(step.reuse for step in plan_steps([9, 5, 1], guided=True, cache_interval=1))


def test_deep_features_are_made_anew_where_guidance_begins():
    """One branch's features cannot serve two; two branches' can serve the first of them."""
    steps = plan_steps(
        [900, 700, 500, 300, 100], guided=True, interval=(200, 800), cache_interval=5
    )
    assert [(s.guided, s.reuse) for s in steps] == [
        (False, False), (True, False), (True, True), (True, True), (False, True),
    ]  # fmt: skip


def test_outside_of_the_interval_one_branch_runs_and_decides_alone():
    scheduler, seen = build_scheduler(EVEN, "ddim", 5), []

    def predict(latents, timesteps, reuse):
        seen.append((timesteps[0].item(), len(latents)))
        return latents * torch.tensor([1.0, 2.0])[: len(latents)].view(-1, 1, 1, 1, 1)

    branches, noise = guidance_branches(2.0, 2.0), torch.randn(SHAPE)
    run = functools.partial(denoise, predict, noise, scheduler, branches, torch.float32)
    result = run(guidance_interval=(300, 700))
    assert seen == [(999, 1), (799, 1), (599, 2), (399, 2), (199, 1)]
    seen.clear()
    everywhere = run(guidance_interval=(0, 999))
    assert {count for _, count in seen} == {2} and torch.equal(everywhere, run())
    assert not torch.equal(result, everywhere)
    nowhere = run(guidance_interval=(0, 0))
    alone = denoise(predict, noise, scheduler, guidance_branches(1, 1), torch.float32)
    assert torch.equal(nowhere, alone)


def test_the_conditional_branch_stands_first_where_it_is_needed():
    assert guidance_branches(3.0, 0.0, conditional=True) == (
        Branch(True, True, 0.0), Branch(True, False, 3.0), Branch(False, False, -2.0),
    )  # fmt: skip
    for scales in [(1.0, 1.0), (3.0, 3.0), (2.0, 7.5), (0.0, 0.0)]:
        branches = guidance_branches(*scales, conditional=True)
        assert branches[0][:2] == (True, True)
        assert sum(branch.weight for branch in branches) == pytest.approx(1)


def test_rescaled_guidance_follows_lin_et_al():
    outputs, weights = torch.randn(2, 3, 4, 8, 8), torch.tensor([7.0, -6.0])
    plain = guide(outputs, weights)
    torch.testing.assert_close(plain, outputs[1:] + 7 * (outputs[:1] - outputs[1:]))
    whole = guide(outputs, weights, 1.0)
    assert whole.std().item() == pytest.approx(outputs[0].std().item(), rel=1e-4)
    torch.testing.assert_close(guide(outputs, weights, 0.7), 0.7 * whole + 0.3 * plain)
    assert torch.equal(guide(outputs, weights, 0.0), plain)


@pytest.mark.parametrize("solver", ["ddim", "dpm++", "unipc"])
def test_rescale_leaves_a_right_prediction_alone(solver):
    """Where the branches agree there is nothing to rescale."""
    scheduler = build_scheduler(MINI.diffusion, solver, 8)
    answer = torch.randn(SHAPE)
    predict = knows_the_answer(scheduler, answer, "v_prediction")
    branches = guidance_branches(4.0, 4.0)
    result = denoise(
        predict, torch.randn(SHAPE), scheduler, branches, torch.float32, guidance_rescale=0.7
    )
    torch.testing.assert_close(result, answer, atol=2e-3, rtol=1e-3)


def test_half_of_the_step_between_clips_fades_over_the_first_frames():
    latents, before = torch.randn(SHAPE), torch.randn(1, 1, 4, 8, 8)
    eased = ease_in(latents, before, 3)
    step = latents[:, 0] - before[:, 0]
    assert torch.equal(eased[:, 3:], latents[:, 3:])
    for frame, share in enumerate((1 / 2, 1 / 3, 1 / 6)):
        torch.testing.assert_close(eased[:, frame], latents[:, frame] - share * step)
    still = ease_in(before.expand(SHAPE), before, 3)
    torch.testing.assert_close(still, before.expand(SHAPE))


def test_what_a_clip_was_told_to_move_is_not_taken_back():
    before, told = torch.randn(2, 1, 1, 4, 8, 8)
    obeyed = (before + told).expand(SHAPE)
    torch.testing.assert_close(ease_in(obeyed, before, 3, told), obeyed)
    beside = torch.randn(1, 1, 4, 8, 8)
    eased = ease_in(obeyed + beside, before, 3, told)
    torch.testing.assert_close(eased[:, 0], (obeyed + beside / 2)[:, 0])
