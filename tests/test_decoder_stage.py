"""Stage `critic`: what the decoder and its critic learn from each other."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from emo_cli.model.autoencoder import PatchAutoencoder
from emo_cli.presets import MINI
from emo_cli.training import decoder_stage
from emo_cli.training.autoencoder_stage import noisy_latents
from emo_cli.training.decoder_stage import CriticLoss
from emo_cli.training.stages import CRITIC
from emo_cli.training.start import freeze_others

SMALL = dataclasses.replace(MINI.autoencoder, encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8))


@pytest.fixture
def batch():
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {"picture": F.avg_pool2d(pictures, 3, 1, 1), "seed": torch.tensor([1, 2])}


@pytest.fixture
def module(batch):
    torch.manual_seed(0)
    autoencoder = PatchAutoencoder(SMALL)
    for parameter in autoencoder.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    loss = CriticLoss(autoencoder)
    freeze_others(loss, CRITIC.trains, CRITIC.freezes)
    return loss


def gradients(module, value):
    names, parameters = zip(
        *((n, p) for n, p in module.named_parameters() if p.requires_grad), strict=True
    )
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return dict(zip(names, found, strict=True))


def drawn(module, batch):
    autoencoder = module.autoencoder
    with torch.no_grad():
        latents = noisy_latents(autoencoder.encode(batch["picture"]), batch["seed"])
    return autoencoder.decode(latents)


def test_the_critic_learns_to_tell_and_nothing_else(module, batch):
    found = gradients(module, module(batch)["loss"])
    real, fake = (module.critic(x)[0] for x in (batch["picture"], drawn(module, batch).detach()))
    hinge = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    for name, gradient in gradients(module, hinge).items():
        if name.startswith("critic."):
            torch.testing.assert_close(found[name], gradient)


def test_the_decoder_learns_to_be_near_and_to_be_taken_for_real(module, batch):
    picture, fake = batch["picture"], drawn(module, batch)
    verdict, features = module.critic(fake)
    _, real = module.critic(picture)
    error = fake - picture
    steps = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    apart = [(x - y).abs().mean() / y.abs().mean() for x, y in zip(features, real, strict=True)]
    value = error.abs().mean() + 0.5 * steps
    value = value + decoder_stage.FEATURES_WEIGHT * sum(apart) / len(apart)
    value = value - decoder_stage.CRITIC_WEIGHT * verdict.mean()
    found, expected = gradients(module, module(batch)["loss"]), gradients(module, value)
    for name in expected:
        if name.startswith("autoencoder."):
            torch.testing.assert_close(found[name], expected[name], msg=name)


def test_the_encoder_rests(module, batch):
    module(batch)["loss"].backward()
    for name, parameter in module.named_parameters():
        rests = name.startswith(("autoencoder.encoder.", "autoencoder.linear_encoder."))
        assert (parameter.grad is None) == rests, name
