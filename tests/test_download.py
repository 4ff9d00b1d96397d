"""Weights from a hub on 127.0.0.1 that truncates, corrupts, stalls and is busy."""

from __future__ import annotations

import hashlib
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from download_makers import (
    BIG,
    SMALL,
    TOKEN,
    hub_manifest,
    hub_source,
    loadable_files,
    manifest_of,
    only_big,
    weight_file,
)
from hub_imitation import REPOSITORY

from emo_cli.download import download, status
from emo_cli.errors import EmoError
from emo_cli.fetch import web
from emo_cli.weights import (
    read_lock,
    weights_path,
)

pytest_plugins = ("hub_fixtures",)


def test_first_download_records_commit_and_digest_that_later_loads_verify(hub, tmp_path):
    folder, manifest = tmp_path / "emo", hub_manifest()
    assert [entry.pinned for entry in status([], manifest=manifest, folder=folder)] == ["no", "no"]
    found = download(["full"], manifest=manifest, folder=folder)
    assert {entry.state for entry in found} == {"present"}
    assert {entry.pinned for entry in found} == {"lock"}
    lock = read_lock(folder)["full/net/big.safetensors"]
    assert lock.commit == hub.commit
    assert lock.sha256 == hashlib.sha256(BIG).hexdigest()
    net = weights_path("full/net", manifest=manifest, folder=folder)
    assert (net / "big.safetensors").read_bytes() == BIG
    assert (net / "config.json").read_bytes() == SMALL
    assert net.is_relative_to(tmp_path / "hf")


def test_what_is_here_is_not_fetched_again(hub, tmp_path):
    for _ in range(2):
        download(["full"], manifest=hub_manifest(), folder=tmp_path)
    assert len(hub.gets("net/config.json")) == 1


def test_weights_that_are_missing_name_the_command(tmp_path):
    with pytest.raises(EmoError) as failure:
        weights_path("full/big.safetensors", manifest=only_big(), folder=tmp_path)
    assert "emo download full" in failure.value.hint


def test_a_damaged_file_is_not_loaded_and_the_next_download_repairs_it(hub, tmp_path):
    manifest = only_big()
    download([], manifest=manifest, folder=tmp_path)
    path = weights_path("full/big.safetensors", manifest=manifest, folder=tmp_path)
    path.resolve().write_bytes(BIG[:-1] + b"?")
    with pytest.raises(EmoError, match="damaged"):
        weights_path("full/big.safetensors", manifest=manifest, folder=tmp_path)
    assert status([], verify=True, manifest=manifest, folder=tmp_path)[0].state == "damaged"
    download([], manifest=manifest, folder=tmp_path)
    path = weights_path("full/big.safetensors", manifest=manifest, folder=tmp_path)
    assert path.read_bytes() == BIG


@pytest.mark.parametrize("fault", ["truncate:100000", "stall:100000"])
def test_a_transfer_that_breaks_or_stalls_goes_on_where_it_was(hub, tmp_path, fault, monkeypatch):
    monkeypatch.setattr(web, "TIMEOUT_S", 1.0)
    hub.misbehave("net/big.safetensors", fault)
    download([], manifest=only_big(), folder=tmp_path)
    storage = [r for r in hub.requests if r.path.startswith("/storage/")]
    assert [r.range for r in storage] == [None, "bytes=100000-"]
    path = weights_path("full/big.safetensors", manifest=only_big(), folder=tmp_path)
    assert path.read_bytes() == BIG


def test_a_line_that_breaks_often_but_brings_something_each_time_is_not_given_up(hub, tmp_path):
    hub.misbehave("net/big.safetensors", *["truncate:30000"] * (web.ATTEMPTS + 3))
    assert download([], manifest=only_big(), folder=tmp_path)[0].state == "present"


def test_an_interrupted_download_is_resumed_by_the_next_run(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    hub.misbehave("net/big.safetensors", "truncate:120000")
    with pytest.raises(EmoError, match="did not arrive"):
        download([], manifest=only_big(), folder=tmp_path)
    assert loadable_files(tmp_path) == []
    download([], manifest=only_big(), folder=tmp_path)
    ranges = [r.range for r in hub.requests if r.path.startswith("/storage/")]
    assert ranges == [None, "bytes=120000-"]
    path = weights_path("full/big.safetensors", manifest=only_big(), folder=tmp_path)
    assert path.read_bytes() == BIG


def test_wrong_content_is_never_left_where_it_could_be_loaded(hub, tmp_path):
    hub.misbehave("net/big.safetensors", "corrupt")
    with pytest.raises(EmoError, match="wrong digest"):
        download([], manifest=only_big(), folder=tmp_path)
    assert loadable_files(tmp_path) == []
    assert not list(tmp_path.rglob("*.part"))
    assert read_lock(tmp_path) == {}


def test_wrong_content_of_a_small_file_is_seen_too(hub, tmp_path):
    hub.misbehave("net/config.json", "corrupt")
    manifest = manifest_of(weight_file("full/config.json", hub_source("net/config.json")))
    with pytest.raises(EmoError, match="wrong digest"):
        download([], manifest=manifest, folder=tmp_path)
    assert read_lock(tmp_path) == {}


def test_wrong_content_that_another_program_left_in_the_hub_cache_is_replaced(hub, tmp_path):
    from huggingface_hub import hf_hub_download

    other = Path(hf_hub_download(REPOSITORY, "net/big.safetensors", revision=hub.commit))
    other.resolve().write_bytes(b"half")
    download([], manifest=only_big(), folder=tmp_path)
    path = weights_path("full/big.safetensors", manifest=only_big(), folder=tmp_path)
    assert path.read_bytes() == BIG


def test_what_another_program_left_in_the_hub_cache_is_used(hub, tmp_path):
    from huggingface_hub import hf_hub_download

    hf_hub_download(REPOSITORY, "net/big.safetensors", revision=hub.commit)
    before = len([r for r in hub.requests if r.path.startswith("/storage/")])
    download([], manifest=only_big(), folder=tmp_path)
    assert len([r for r in hub.requests if r.path.startswith("/storage/")]) == before
    assert weights_path("full/big.safetensors", manifest=only_big(), folder=tmp_path).exists()


def test_a_busy_hub_is_asked_again(hub, tmp_path):
    hub.misbehave("HEAD net/big.safetensors", "503", "503")
    hub.misbehave("net/big.safetensors", "503", "429")
    assert download([], manifest=only_big(), folder=tmp_path)[0].state == "present"


def test_a_hub_that_stays_busy_is_given_up(hub, tmp_path):
    hub.misbehave("HEAD net/big.safetensors", *["503"] * 20)
    with pytest.raises(EmoError, match="HTTP 503"):
        download([], manifest=only_big(), folder=tmp_path)
    assert len(hub.requests) == web.ATTEMPTS


@pytest.mark.parametrize("path", ["net/gone.safetensors", "big.safetensors"])
def test_a_file_that_the_hub_does_not_have_is_asked_for_once(hub, tmp_path, path):
    manifest = manifest_of(weight_file("full/x.safetensors", hub_source(path)))
    with pytest.raises(EmoError, match="404"):
        download([], manifest=manifest, folder=tmp_path)
    assert len(hub.requests) == 1


def test_the_recorded_commit_is_kept_when_the_branch_moves_on(hub, tmp_path):
    manifest = hub_manifest()
    small_only = manifest_of(manifest.files[0])
    download([], manifest=small_only, folder=tmp_path)
    hub.history[hub.commit] = dict(hub.files)
    hub.files["net/big.safetensors"] = b"?" * 5000
    hub.commit, old = "d" * 40, hub.commit
    download([], manifest=manifest, folder=tmp_path)
    assert {entry.commit for entry in read_lock(tmp_path).values()} == {old}
    net = weights_path("full/net", manifest=manifest, folder=tmp_path)
    assert (net / "big.safetensors").read_bytes() == BIG


def test_a_hub_that_states_another_digest_than_the_pinned_one_is_refused(hub, tmp_path):
    manifest = only_big(sha256="a" * 64)
    with pytest.raises(EmoError, match="another file"):
        download([], manifest=manifest, folder=tmp_path)
    assert not any(r.method == "GET" for r in hub.requests)


def test_a_hub_whose_statement_and_file_differ_is_refused(hub, tmp_path):
    hub.stated_digest = "b" * 64
    with pytest.raises(EmoError, match="wrong digest"):
        download([], manifest=only_big(), folder=tmp_path)
    assert loadable_files(tmp_path) == []


def test_the_token_goes_to_the_hub_and_not_to_its_storage(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    download([], manifest=only_big(), folder=tmp_path)
    for request in hub.requests:
        expected = None if request.path.startswith("/storage/") else f"Bearer {TOKEN}"
        assert request.authorization == expected, request


def test_offline_mode_asks_nobody_and_says_what_is_missing(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    download([], manifest=manifest_of(hub_manifest().files[0]), folder=tmp_path)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EmoError, match="offline mode.*full/net/big.safetensors") as failure:
        download([], manifest=hub_manifest(), folder=tmp_path)
    assert "full/net/config.json" not in failure.value.message
    found = download([], dry_run=True, manifest=hub_manifest(), folder=tmp_path)
    assert [entry.state for entry in found] == ["present", "missing"]
    assert hub.requests == []


def test_a_full_disk_is_seen_before_the_first_byte(hub, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, len(BIG) - 1))
    with pytest.raises(EmoError, match="free, and 300 kB are to come"):
        download([], manifest=only_big(), folder=tmp_path)
    assert not any(r.method == "GET" for r in hub.requests)


def test_what_an_earlier_run_brought_counts_for_the_disk(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    hub.misbehave("net/big.safetensors", "truncate:120000")
    with pytest.raises(EmoError):
        download([], manifest=only_big(), folder=tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, len(BIG) - 120_000))
    assert download([], manifest=only_big(), folder=tmp_path)[0].state == "present"


def test_dry_run_states_sizes_and_writes_nothing(hub, tmp_path):
    folder = tmp_path / "emo"
    found = download([], dry_run=True, manifest=hub_manifest(), folder=folder)
    assert [entry.bytes for entry in found] == [len(SMALL), len(BIG)]
    assert list(tmp_path.iterdir()) == []
    assert not any(r.method == "GET" for r in hub.requests)


def test_two_downloads_at_once_do_not_mix(hub, tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(EmoError, match="another `emo download`"):
        download([], manifest=only_big(), folder=tmp_path)


def test_a_weights_folder_that_cannot_be_written_is_one_line(hub, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EmoError, match="cannot write the weights"):
        download([], manifest=only_big(), folder=tmp_path / "file" / "emo")
