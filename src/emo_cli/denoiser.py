"""The Backbone as the sampler calls it: one clip's conditions, deep features kept between steps.

Shapes: G guidance branches, F frames, C latent channels, H W latent size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from emo_cli.errors import EmoError
from emo_cli.model.backbone import Backbone, ClipState, VideoState


class BackboneSteps:
    """The Backbone's three kinds of forward, eager or compiled.

    Eager is the reference. `compiled` uses torch.compile and not a captured graph: at 512x512 the
    launches hide behind the kernels, and what is left to gain is memory traffic, which fusing
    norms, activations and sums saves and a graph does not. Every shape (with and without guidance)
    is compiled at its first use.

    Calls raise: EmoError where this machine cannot compile.
    """

    def __init__(self, backbone: Backbone, *, compiled: bool = False, **compile_options: Any):
        def ready(forward: Callable[..., Any]) -> Callable[..., Any]:
            if not compiled:
                return forward
            return _saying_why(torch.compile(forward, dynamic=False, **compile_options))

        self.whole = ready(backbone.forward)
        self.keeping = ready(backbone.forward_keeping)
        self.reusing = ready(backbone.forward_reusing)


def _saying_why(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """The same, whose failure to compile is one line: a compiler may be missing."""
    from torch._dynamo.exc import TorchDynamoException

    @functools.wraps(compiled)
    def run(*arguments: Any) -> Any:
        try:
            return compiled(*arguments)
        except TorchDynamoException as error:
            why = " ".join(str(error).split("\n\n")[0].split())
            raise EmoError(
                f"the denoising step cannot be compiled here: {why}",
                "Leave --compile out; or install a C++ compiler, and on CUDA Triton.",
            ) from error

    return run


class ClipDenoiser:
    """Predicts the noise, or v, of one clip; a `sampler.Predictor`.

    layers: how many of the last layers run where deep features are reused; 0: they never are, and
    nothing is kept.
    """

    def __init__(
        self,
        steps: BackboneSteps,
        video: VideoState,
        clip: ClipState,
        *,
        branches: int,
        frames: int,
        layers: int = 0,
    ) -> None:
        self.steps = steps
        self.layers = layers
        self.frames = frames
        self.all = (video, clip)
        self.one = self.all if branches == 1 else (video.first(), clip.first(frames))
        self.branches = branches
        self.deep: Tensor | None = None

    def __call__(self, latents: Tensor, timesteps: Tensor, reuse: bool, /) -> Tensor:
        """Noisy latents [G, F, C, H, W], or of the first branch alone, at timesteps [G]."""
        state = self.all if len(latents) == self.branches else self.one
        if self.layers == 0:
            return self.steps.whole(latents, timesteps, *state)
        if not reuse:
            output, self.deep = self.steps.keeping(latents, timesteps, *state, self.layers)
            return output
        assert self.deep is not None
        deep = self.deep[: len(latents) * self.frames]
        return self.steps.reusing(latents, timesteps, *state, self.layers, deep)
