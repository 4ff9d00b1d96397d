"""`full` from its published parents: files of their layout with small widths, as users get them."""

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.unets.unet_motion_model import MotionAdapter
from safetensors.torch import save_file
from small_models import SMALL_FULL, SMALL_UNET, randomised
from test_networks import conditions, run, sd_unet

from emo_cli.audio import build_wav2vec
from emo_cli.errors import EmoError
from emo_cli.model.pretrained import Parents, downloaded_parents, model_from_parents

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_vae(vae):
    """sd-vae-ft-mse's names of the attention in the middle."""
    tensors = {}
    for name, tensor in vae.state_dict().items():
        for new, old in OLD_NAMES.items():
            if ".mid_block.attentions." in name:
                name = name.replace(f".{new}.", f".{old}.")
        tensors[name] = tensor
    return tensors


def published_wav2vec(encoder):
    """wav2vec2-base-960h's names: the CTC model's prefix and head, weight norm of old."""
    tensors = {"lm_head.weight": torch.zeros(32, 16), "lm_head.bias": torch.zeros(32)}
    for name, tensor in encoder.state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        tensors["wav2vec2." + name.replace("parametrizations.weight.original1", "weight_v")] = (
            tensor
        )
    return tensors


@pytest.fixture(scope="module")
def published():
    widths = SMALL_UNET.widths
    adapter = MotionAdapter(
        block_out_channels=widths,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
        use_motion_mid_block=False,
    )
    vae = AutoencoderKL(
        block_out_channels=SMALL_FULL.autoencoder.encoder_widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
    )
    modules = [sd_unet(), adapter, vae, build_wav2vec(SMALL_FULL.audio)]
    return [randomised(module, seed) for seed, module in enumerate(modules)]


@pytest.fixture
def parents(published, tmp_path):
    unet, adapter, vae, wav2vec = published
    files = {
        "unet": unet.state_dict(),
        "motion": adapter.state_dict(),
        "vae": old_vae(vae),
        "wav2vec": published_wav2vec(wav2vec),
    }
    for name, tensors in files.items():
        copies = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
        save_file(copies, tmp_path / f"{name}.safetensors")
    return Parents(**{name: tmp_path / f"{name}.safetensors" for name in files})


@torch.no_grad()
def test_the_newborn_model_has_its_parents_outputs(published, parents):
    unet, _, vae, wav2vec = published
    model = model_from_parents(SMALL_FULL, parents)
    pictures = torch.rand(1, 3, 64, 64) * 2 - 1
    latents = model.autoencoder.encode(pictures) / 0.18215
    torch.testing.assert_close(latents, vae.encode(pictures).latent_dist.mode())
    sound = torch.randn(1, 16_000)
    torch.testing.assert_close(
        model.audio_encoder(sound).last_hidden_state, wav2vec(sound).last_hidden_state
    )
    # AnimateDiff is not silent, so the new-born Backbone does depend on the motion frames ...
    c = conditions(model.backbone, SMALL_FULL)
    other = conditions(model.backbone, SMALL_FULL, seed=2)
    before = run(model.backbone, model.reference_net, c)
    after = run(model.backbone, model.reference_net, c | {"motion": other["motion"]})
    assert (before - after).abs().max() > 1e-5
    # ... but on none of the layers that nobody has trained yet.
    silent = {name: other[name] for name in ("portrait", "audio", "speed", "mask")}
    assert torch.equal(run(model.backbone, model.reference_net, c | silent), before)


@pytest.mark.parametrize("part", ["unet", "vae", "motion", "wav2vec"])
def test_an_incomplete_parent_is_refused_by_name(parents, part):
    from safetensors.torch import load_file

    file = getattr(parents, part)
    tensors = load_file(file)
    gone = next(n for n in sorted(tensors) if n.endswith("proj.weight") or "conv_in" in n
                or "conv_layers.0.conv.weight" in n or n.endswith("proj_in.weight"))  # fmt: skip
    tensors.pop(gone)
    save_file(tensors, file)
    with pytest.raises(EmoError, match="is missing"):
        model_from_parents(SMALL_FULL, parents)


def test_a_damaged_parent_is_refused(parents):
    parents.unet.write_bytes(parents.unet.read_bytes()[:100])
    with pytest.raises(EmoError, match="cannot read"):
        model_from_parents(SMALL_FULL, parents)


def test_parents_that_were_not_downloaded_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("EMO_HOME", str(tmp_path))
    with pytest.raises(EmoError) as caught:
        downloaded_parents()
    assert "emo download full" in caught.value.hint
