"""Fixtures shared by all tests: example inputs, a small real model folder, the data folder."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real faces and real speech beside the repository; tests that use it are skipped without."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data here")
    return folder


@pytest.fixture(scope="session")
def portrait() -> Path:
    return ROOT / "examples" / "portrait.jpg"


@pytest.fixture(scope="session")
def speech() -> Path:
    return ROOT / "examples" / "speech.wav"


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small `mini` with random weights, saved as the real files of a model folder."""
    from small_models import save_small

    return save_small(tmp_path_factory.mktemp("model"))
