from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from export import cli, sources
from export.cli import app, parse_size
from export.errors import ExportError
from export.methods.compact import CompactModel
from export.methods.panet import PanetTrunk
from export.repository import list_families
from export.torchvision_compat import import_torchvision


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def stub_export(monkeypatch):
    """Leaves the graphs out of the files: what is under test is the command."""
    real = cli.write_family

    def write(family, out, *, force):
        return real(family, out, force=force, export=lambda graph: graph.role.encode())

    monkeypatch.setattr(cli, "write_family", write)


@pytest.mark.parametrize(
    ("text", "size"), [("417", (417, 417)), ("321x417", (321, 417)), ("32X48", (32, 48))]
)
def test_sizes_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "3x", "-3", "3x4x5", "3.5", "big"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ExportError, match="no size"):
        parse_size(text)


def test_compact_is_exported_listed_and_kept(tmp_path, stub_export):
    save_file(CompactModel().state_dict(), tmp_path / "net.safetensors")
    arguments = ("compact", "--out", tmp_path / "repo", "--size", 64)
    arguments += ("--checkpoint", tmp_path / "net.safetensors")
    status, output = run(*arguments)
    assert status == 0
    assert "written to" in output
    assert "unchanged" in run(*arguments)[1]
    assert "written to" in run(*arguments, "--force")[1]
    status, output = run("list", tmp_path / "repo")
    assert status == 0
    assert "64x64" in output


def test_compact_takes_sides_that_halve_four_times(tmp_path):
    save_file(CompactModel().state_dict(), tmp_path / "net.safetensors")
    status, output = run(
        *("compact", "--out", tmp_path, "--checkpoint", tmp_path / "net.safetensors"),
        *("--size", "320x330"),
    )
    assert status == 1
    assert "multiples of 16" in output


def test_prune_keeps_the_new_family_only(tmp_path, stub_export):
    for number in (1, 2):
        torch.manual_seed(number)
        save_file(CompactModel().state_dict(), tmp_path / "net.safetensors")
        run(
            *("compact", "--out", tmp_path / "repo", "--size", 64, "--prune"),
            *("--checkpoint", tmp_path / "net.safetensors"),
        )
        (listed,) = list_families(tmp_path / "repo")
        assert listed.complete


def test_an_official_panet_checkpoint_is_exported(tmp_path, stub_export):
    state = {f"module.{key}": value for key, value in PanetTrunk().state_dict().items()}
    torch.save(state, tmp_path / "30000.pth", _use_new_zipfile_serialization=False)
    status, output = run(
        *("panet", "--checkpoint", tmp_path / "30000.pth"),
        *("--out", tmp_path / "repo", "--name", "panet-voc", "--size", "49x65"),
    )
    assert status == 0, output
    (listed,) = list_families(tmp_path / "repo")
    assert (listed.alias, listed.method, listed.input_size) == ("panet-voc", "panet", "49x65")


def test_imagenet_weights_are_taken_from_a_file(tmp_path, stub_export):
    vgg16 = import_torchvision().models.vgg16(weights=None)
    # The classifier's real weights (half a gigabyte) are never looked at.
    state = {
        key: value if key.startswith("features.") else torch.zeros(1)
        for key, value in vgg16.state_dict().items()
    }
    torch.save(state, tmp_path / "vgg16-397923af.pth")
    arguments = ("panet", "--checkpoint", tmp_path / "vgg16-397923af.pth", "--out", tmp_path / "r")
    status, output = run(*arguments, "--size", 64)
    assert status == 1
    assert "--weights imagenet" in output
    status, output = run(*arguments, "--size", 64, "--weights", "imagenet")
    assert status == 0, output
    assert list_families(tmp_path / "r")[0].complete


def test_without_a_network_the_way_to_imagenet_weights_is_told(tmp_path, monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    status, output = run("panet", "--weights", "imagenet", "--out", tmp_path / "repo")
    assert status == 1
    assert "vgg16-397923af.pth cannot be downloaded" in output
    assert "TORCH_HOME" in output


def test_another_networks_file_is_named(tmp_path):
    save_file(CompactModel().state_dict(), tmp_path / "net.safetensors")
    for weights in ([], ["--weights", "imagenet"]):
        status, output = run(
            "panet", "--checkpoint", tmp_path / "net.safetensors", "--out", tmp_path, *weights
        )
        assert status == 1
        assert "looks like a `compact` checkpoint" in output


@pytest.mark.parametrize("extra", [[], ["--weights", "seeded", "--checkpoint", "net.pth"]])
def test_panet_wants_exactly_one_source(tmp_path, extra):
    status, output = run("panet", "--out", tmp_path, *extra)
    assert status == 1
    assert "Give --checkpoint FILE or --weights imagenet" in output


def test_missing_default_weights_are_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "COMPACT_CHECKPOINT", tmp_path / "compact.safetensors")
    status, output = run("compact", "--out", tmp_path / "repo")
    assert status == 1
    assert "training/README.md" in output


def test_listing_a_broken_repository_fails(tmp_path, stub_export):
    assert run("panet", "--weights", "seeded", "--size", 64, "--out", tmp_path)[0] == 0
    next(tmp_path.glob("*_guide/1/model.onnx")).unlink()
    status, output = run("list", tmp_path)
    assert status == 1
    assert "not complete" in output


def test_verify_without_goldens_fails(tmp_path: Path):
    status, output = run("verify", "panet", "--goldens", tmp_path)
    assert status == 1
    assert "cases.json" in output
