"""From sound to what the networks hear: windowed wav2vec features at the frame rate (EMO sec. 3.2).

Legend: `S` samples at 16 kHz, `T` hidden time steps of a window, `L` layers, `D` their width,
`n` frames.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from emo_cli.config import AudioConfig
from emo_cli.sound import SAMPLE_RATE_HZ, Sound, decode_sound, let_go

if TYPE_CHECKING:
    import torch
    from transformers import Wav2Vec2Model

    AtWork = Callable[[Wav2Vec2Model], contextlib.AbstractContextManager[object]]

__all__ = ["AudioFeatures", "Sound", "build_wav2vec", "decode_sound"]

EPSILON = 1e-7  # in Wav2Vec2FeatureExtractor's variance
KEPT_WINDOWS = 2  # a clip lies in two windows at most


def build_wav2vec(config: AudioConfig) -> Wav2Vec2Model:
    """A Wav2Vec2Model of this shape with random weights, in eval mode, that never masks or drops.

    `full` is wav2vec2-base-960h, parameter for parameter.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    from emo_cli.model.feature_encoder import FeatureEncoder

    shape = Wav2Vec2Config(
        conv_dim=config.conv_dim,
        conv_kernel=config.conv_kernel,
        conv_stride=config.conv_stride,
        conv_bias=config.conv_bias,
        feat_extract_norm=config.feature_norm,
        do_stable_layer_norm=config.stable_layer_norm,
        hidden_size=config.hidden_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.feed_forward_width,
        num_conv_pos_embeddings=config.position_kernel,
        num_conv_pos_embedding_groups=config.position_groups,
        # The mask's embedding stays, as in the published weights; it is never used.
        apply_spec_augment=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
    )
    model = Wav2Vec2Model(shape)
    stride, field = _reach(config)
    model.feature_extractor = FeatureEncoder(  # type: ignore[assignment]
        model.feature_extractor.conv_layers,
        stride=stride,
        field=field,
        whole=config.feature_norm == "group",
    )
    return model.eval()


class AudioFeatures:
    """A(f): the outputs of all wav2vec layers side by side at each frame's centre (f + 0.5) / fps.

    Windows are the definition, not an approximation: wav2vec normalises and attends over all it is
    given. Window k is seconds [20 k - 3, 20 k + 23) of the sound; it gives the frames whose centre
    lies in [20 k, 20 k + 20). Two windows are kept, whatever the length of the sound.

    at_work: around each window that is heard, such as what brings the encoder to its device.
    """

    def __init__(
        self,
        sound: Sound,
        encoder: Wav2Vec2Model,
        *,
        config: AudioConfig,
        fps: int,
        at_work: AtWork = contextlib.nullcontext,
    ) -> None:
        self.num_frames = sound.num_frames(fps)
        self.width = config.num_layers * config.hidden_width
        self._samples = sound.samples
        self._encoder = encoder
        self._at_work = at_work
        self._fps = fps
        self._window_s = Fraction(config.window_s).limit_denominator(1000)
        self._context_s = Fraction(config.context_s).limit_denominator(1000)
        self._stride, self._field = _reach(config)
        window = self._window_s * SAMPLE_RATE_HZ
        self._num_windows = math.ceil(len(self._samples) / window)
        self._kept: dict[int, torch.Tensor] = {}

    def features(self, start_frame: int, stop_frame: int) -> torch.Tensor:
        """Features [n, L*D] float32 of frames start..stop-1, on the encoder's device.

        Frames before the sound or behind it repeat its first or last one.
        """
        import torch

        from emo_cli.device import upload

        frames = np.arange(start_frame, stop_frame).clip(0, self.num_frames - 1)
        parts = []
        while len(frames):
            index = self._window_of(int(frames[0]))
            first, last = self._frames_of(index)
            count = int(np.searchsorted(frames, last))
            rows = torch.from_numpy(frames[:count] - first)
            window = self._window(index)
            parts.append(window[upload(rows, window.device)])
            frames = frames[count:]
        return torch.cat(parts)  # [n, L*D]

    def _window_of(self, frame: int) -> int:
        centre_s = Fraction(2 * frame + 1, 2 * self._fps)
        # The last frame's centre may lie behind the last sample, and so behind the last window.
        return min(math.floor(centre_s / self._window_s), self._num_windows - 1)

    def _frames_of(self, index: int) -> tuple[int, int]:
        """First frame of a window, and the first one behind it."""
        first, last = (
            math.ceil(k * self._window_s * self._fps - Fraction(1, 2)) for k in (index, index + 1)
        )
        return first, self.num_frames if index == self._num_windows - 1 else last

    def _window(self, index: int) -> torch.Tensor:
        if index not in self._kept:
            if len(self._kept) == KEPT_WINDOWS:
                del self._kept[next(iter(self._kept))]
            self._kept[index] = self._encode(index)
        return self._kept[index]

    def _encode(self, index: int) -> torch.Tensor:
        import torch

        from emo_cli.device import upload

        start_s = self._window_s * index - self._context_s
        start = max(0, math.floor(start_s * SAMPLE_RATE_HZ))
        length_s = self._window_s * (index + 1) + self._context_s
        window = normalised(self._samples[start : math.floor(length_s * SAMPLE_RATE_HZ)])
        let_go(self._samples)
        padded = np.pad(window, (0, max(0, self._field - len(window))))
        with self._at_work(self._encoder), torch.no_grad():
            weight = next(self._encoder.parameters())
            heard = upload(torch.from_numpy(padded), weight.device).to(weight.dtype)
            output = self._encoder(heard[None], output_hidden_states=True)
            # transformers 4 and 5 disagree whether the last hidden state is the normalised one
            # where `stable_layer_norm` is set; `last_hidden_state` is, in both.
            layers = (*output.hidden_states[1:-1], output.last_hidden_state)
            return self._at_frames(layers, start, *self._frames_of(index))

    def _at_frames(
        self, layers: tuple[torch.Tensor, ...], start: int, first: int, last: int
    ) -> torch.Tensor:
        """Layers [1, T, D] of a window that begins at sample `start`, at frames first..last-1."""
        import torch

        from emo_cli.device import upload

        num_steps = layers[0].shape[1]
        centres = (np.arange(first, last) + 0.5) / self._fps * SAMPLE_RATE_HZ
        # Hidden step i hears `field` samples from i * stride on: its centre is field / 2 later.
        position = ((centres - start - self._field / 2) / self._stride).clip(0, num_steps - 1)
        before = position.astype(np.int64)
        device = layers[0].device
        share = upload(torch.from_numpy((position - before).astype(np.float32)), device)[:, None]
        left = upload(torch.from_numpy(before), device)
        right = (left + 1).clamp(max=num_steps - 1)
        return torch.cat(
            [
                torch.lerp(layer[0, left].float(), layer[0, right].float(), share)
                for layer in layers
            ],
            dim=-1,
        )  # [n, L*D]


def _reach(config: AudioConfig) -> tuple[int, int]:
    """Stride and receptive field of the convolutions in samples: 320 and 400 for wav2vec2."""
    stride, field = 1, 1
    for kernel, step in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * stride
        stride *= step
    return stride, field


def normalised(window: np.ndarray) -> np.ndarray:
    """Zero mean, unit variance, as Wav2Vec2FeatureExtractor does it for one sound."""
    wide = window.astype(np.float64)
    wide -= wide.mean()
    wide /= np.sqrt(wide.var() + EPSILON)
    return wide.astype(np.float32)
