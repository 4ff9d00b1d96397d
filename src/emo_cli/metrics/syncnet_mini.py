"""SyncNet-mini: SyncNet's two streams at a small size, trained by us with `emo train sync`.

What the embedded weights have seen: 303 clips of 3 s of one man, speaker s1 of the GRID corpus
(Cooke and others 2006, CC BY 4.0: 51 words, one camera), and 204 puppets, stills of the London,
Canada and faker sets whose mouths follow GRID's or synthesised speech (`emo train prepare
--stills`). So they know one real speaker, frontal faces and English; take figures of other people
as a comparison between systems, not as absolute values. They are the averages at step 900 of 1600
of `emo train sync`, with a frame's features, then 128 wide, projected onto the 56 directions that
matter.

On GRID clips held out from training (40, same speaker): 97.5 % of shifts of the sound by -10 ... 10
frames found within one frame; mean confidence 0.41 with a clip's own sound, 0.16 with the same
sound in shuffled pieces of 0.4 s, 0.02 with noise or a frozen face. On held-out puppets (24):
99.8 %; 0.22, 0.10, 0.02.

Legend: `B` batch, `T` frames, `N = T - 4` windows of five frames, `P = 4 T` steps of 10 ms (the
last ones may be missing: N windows need 4 N + 16), `K` mel bands, `C` width of a frame's features,
`D` of a window's, `H W` a crop's size.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from emo_cli.errors import EmoError
from emo_cli.metrics.sync_audio import STEPS_PER_FRAME
from emo_cli.metrics.sync_crops import MOUTH_HEIGHT, MOUTH_WIDTH

WEIGHTS = Path(__file__).parent.parent / "assets" / "syncnet_mini.safetensors"
SHA256 = "17d582c8064bacd6c9650884df93286a7811fe3aa0eb2d66e365e0745ef0cf59"

WINDOW = 5  # frames
NUM_BANDS = 40
WIDTHS = (24, 48, 48, 96, 96, 128)
STRIDES = (2, 2, 1, 2, 1, 2)
FRAME_WIDTH, HIDDEN, EMBEDDED = 56, 256, 128
GROUPS = 8
QUIETEST = 0.0  # recorded pauses lie above; the logarithm of digital silence is far below
MEL_MEAN, MEL_STD = 8.0, 4.5  # of speech at the loudness that all is brought to


class SyncNetMini(nn.Module):
    """Embeds five frames of a mouth and 0.2 s of sound on one sphere: near means in time."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width, stride in zip((1, *WIDTHS), WIDTHS, STRIDES, strict=False):
            layers.append(nn.Conv2d(before, width, 3, stride, padding=1))
            layers += [nn.GroupNorm(GROUPS, width), nn.ReLU()]
        self.frame = nn.Sequential(*layers, nn.Flatten())
        shrink = 16
        flat = WIDTHS[-1] * (MOUTH_HEIGHT // shrink) * (MOUTH_WIDTH // shrink)
        self.frame_out = nn.Linear(flat, FRAME_WIDTH)
        self.lips = nn.Sequential(
            nn.Conv1d(FRAME_WIDTH, HIDDEN, WINDOW), nn.ReLU(), nn.Conv1d(HIDDEN, EMBEDDED, 1)
        )
        # 20 steps -> 16 -> 4 -> 1: a window's embedding depends on its own steps alone.
        self.sound = nn.Sequential(
            nn.Conv1d(NUM_BANDS, HIDDEN // 2, 5),
            nn.ReLU(),
            nn.Conv1d(HIDDEN // 2, HIDDEN, STEPS_PER_FRAME, STEPS_PER_FRAME),
            nn.ReLU(),
            nn.Conv1d(HIDDEN, HIDDEN, WINDOW - 1),
            nn.ReLU(),
            nn.Conv1d(HIDDEN, EMBEDDED, 1),
        )

    def embed_frames(self, crops: Tensor) -> Tensor:
        """Grey crops [T, H, W], 0..255 -> features [T, C]; light and contrast do not matter."""
        flat = crops.float().flatten(1)
        mean, std = flat.mean(dim=1), flat.std(dim=1)
        picture = (crops.float() - mean[:, None, None]) / (std[:, None, None] + 1)
        return self.frame_out(self.frame(picture[:, None]))  # [T, C]

    def embed_lips(self, frames: Tensor) -> Tensor:
        """Features of frames [B, T, C] -> windows [B, N, D] of length 1."""
        return functional.normalize(self.lips(frames.mT).mT.float(), dim=-1)

    def embed_sound(self, mel: Tensor) -> Tensor:
        """Log mel bands [B, P, K] -> windows [B, N, D] of length 1."""
        bands = (mel.clamp(min=QUIETEST) - MEL_MEAN) / MEL_STD
        return functional.normalize(self.sound(bands.mT).mT.float(), dim=-1)


def load_syncnet_mini(path: Path = WEIGHTS, sha256: str = SHA256) -> SyncNetMini:
    """The embedded network, verified and strict, in evaluation mode.

    Raises: EmoError when the file is absent, damaged, or of another network.
    """
    from safetensors.torch import load_file

    from emo_cli.files import sha256_of
    from emo_cli.model.load import check_keys

    if not path.is_file() or sha256_of(path) != sha256:
        raise EmoError(
            f"SyncNet-mini's weights are damaged or missing: {path.name}", "Install emo-cli again."
        )
    network = SyncNetMini()
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    check_keys(network.state_dict(), tensors, path)
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)
