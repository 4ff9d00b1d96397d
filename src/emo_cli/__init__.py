"""emo-cli: one portrait and one sound file in, one talking or singing video out."""

__version__ = "0.1.0"
__all__ = ["EmoError", "Engine", "GenerateOptions", "__version__"]


def __getattr__(name: str):
    # Lazy, so that `emo --help` and `emo --version` never pay for importing torch.
    if name == "Engine":
        from emo_cli.engine import Engine

        return Engine
    if name == "GenerateOptions":
        from emo_cli.config import GenerateOptions

        return GenerateOptions
    if name == "EmoError":
        from emo_cli.errors import EmoError

        return EmoError
    raise AttributeError(f"module 'emo_cli' has no attribute {name!r}")
