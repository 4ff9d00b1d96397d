"""Fixtures for the download tests: a hub and a package index that lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from download_makers import BIG, SMALL
from hub_imitation import HubImitation

from emo_cli.fetch import web


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PAUSE_S", 0.0)
    monkeypatch.setattr(web, "TIMEOUT_S", 5.0)
    monkeypatch.setattr(web, "CHUNK_BYTES", 10_000)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def hub(impatient: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from huggingface_hub import constants

    with HubImitation(files={"net/big.safetensors": BIG, "net/config.json": SMALL}) as server:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


@pytest.fixture
def index(hub, monkeypatch):
    """pip configured, as a user would, for the index of the imitation."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{hub.endpoint}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    return hub
