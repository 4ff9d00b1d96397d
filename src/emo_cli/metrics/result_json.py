"""An evaluation as plain values: what `emo eval --json` prints and the report keeps beside it."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from emo_cli import __version__
from emo_cli.metrics import decode
from emo_cli.metrics.contract import FPS
from emo_cli.metrics.evaluate import Evaluation, SetScore

LIBRARIES = ("torch", "mediapipe", "av", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Of Python and of the libraries that figures may depend on."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in LIBRARIES
    }


def as_json(result: Evaluation) -> dict[str, Any]:
    """The evaluation as plain values for one JSON object."""
    return {
        "format": 1,
        "emo_version": __version__,
        "libraries": library_versions(),
        "date": result.date,
        "protocol": {"decoding": decode.PROTOCOL, "faces": decode.FACES, "fps": FPS},
        "extractors": dict(result.digests),
        "metrics": {
            metric.name: {
                "extractor": metric.extractor,
                "columns": {
                    column.key: {
                        "heading": column.heading,
                        "better": column.better,
                        "unit": column.unit,
                    }
                    for column in metric.columns
                },
            }
            for metric in result.metrics
        },
        "methods": {one.name: _set_json(one) for one in result.methods},
        "real": _set_json(result.real) if result.real else None,
        "missing": {name: dict(keys) for name, keys in result.missing.items()},
        "notes": list(result.notes),
    }


def _set_json(one: SetScore) -> dict[str, Any]:
    return {
        "folder": str(one.videos.folder.folder),
        "videos": len(one.videos.items),
        "frames": one.num_frames,
        "frames_without_face": one.num_faceless,
        "skipped": dict(one.videos.skipped),
        "values": dict(one.values),
        "per_video": {column: dict(values) for column, values in one.per_video.items()},
        "notes": list(one.notes),
    }
