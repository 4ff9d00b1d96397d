"""Which metrics and extractors there are; each is imported when it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from emo_cli.errors import EmoError
from emo_cli.metrics.contract import Extractor, Metric


def _fid() -> Metric:
    from emo_cli.metrics.fid import FID

    return FID


def _fvd() -> Metric:
    from emo_cli.metrics.fvd import FVD

    return FVD


def _efid() -> Metric:
    from emo_cli.metrics.expression import EFID

    return EFID


def _efid_deep3d() -> Metric:
    from emo_cli.metrics.expression import EFID_DEEP3D

    return EFID_DEEP3D


def _sync() -> Metric:
    from emo_cli.metrics.sync import SyncMetric

    return SyncMetric()


def _syncnet() -> Metric:
    from emo_cli.metrics.sync import PUBLISHED, SyncMetric

    return SyncMetric(PUBLISHED)


def _fsim() -> Metric:
    from emo_cli.metrics.identity import FSim

    return FSim()


def _fsim_arcface() -> Metric:
    from emo_cli.metrics.identity import ARCFACE

    return ARCFACE


def _motion() -> Metric:
    from emo_cli.metrics.motion import HeadMotion

    return HeadMotion()


def _region() -> Metric:
    from emo_cli.metrics.region import FaceRegion

    return FaceRegion()


def _inception() -> Extractor:
    from emo_cli.metrics.fid import InceptionExtractor

    return InceptionExtractor()


def _i3d() -> Extractor:
    from emo_cli.metrics.fvd import I3DExtractor

    return I3DExtractor()


def _expression() -> Extractor:
    from emo_cli.metrics.expression import ExpressionExtractor

    return ExpressionExtractor()


def _deep3d() -> Extractor:
    from emo_cli.metrics.expression import Deep3DExtractor

    return Deep3DExtractor()


def _sync_features() -> Extractor:
    from emo_cli.metrics.sync import SyncExtractor

    return SyncExtractor()


def _syncnet_features() -> Extractor:
    from emo_cli.metrics.sync import PUBLISHED, SyncExtractor

    return SyncExtractor(PUBLISHED)


def _identity() -> Extractor:
    from emo_cli.metrics.identity import IdentityExtractor

    return IdentityExtractor()


def _arcface() -> Extractor:
    from emo_cli.metrics.face_embedding import ArcFaceEmbedding
    from emo_cli.metrics.identity import IdentityExtractor

    return IdentityExtractor(ArcFaceEmbedding(), name="arcface")


def _motion_features() -> Extractor:
    from emo_cli.metrics.motion import MotionExtractor

    return MotionExtractor()


def _region_features() -> Extractor:
    from emo_cli.metrics.region import RegionExtractor

    return RegionExtractor()


# In the order in which they are computed and shown; the names are those of --metrics.
METRICS: dict[str, Callable[[], Metric]] = {
    "fid": _fid,
    "sync": _sync,
    "syncnet": _syncnet,
    "fsim": _fsim,
    "fsim-arcface": _fsim_arcface,
    "fvd": _fvd,
    "efid": _efid,
    "efid-deep3d": _efid_deep3d,
    "motion": _motion,
    "region": _region,
}
# Without --metrics: all but those whose networks no command can fetch everywhere.
DEFAULT_METRICS = ("fid", "sync", "fsim", "fvd", "efid", "motion", "region")
EXTRACTORS: dict[str, Callable[[], Extractor]] = {
    "inception": _inception,
    "sync": _sync_features,
    "syncnet": _syncnet_features,
    "identity": _identity,
    "arcface": _arcface,
    "i3d": _i3d,
    "expression": _expression,
    "deep3d": _deep3d,
    "motion": _motion_features,
    "region": _region_features,
}


def build_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics of these names, in the order of the tables.

    Raises: EmoError for a name that is not known.
    """
    for name in names:
        if name not in METRICS:
            raise EmoError(f"no metric '{name}'", f"Metrics: {', '.join(METRICS)}.", exit_code=2)
    return tuple(make() for name, make in METRICS.items() if name in names)


def build_extractors(names: Sequence[str]) -> list[Extractor]:
    """The extractors of these names; their networks are not loaded yet."""
    return [EXTRACTORS[name]() for name in names]
