from __future__ import annotations

import errno
from pathlib import Path

import pytest

from export import repository as writer
from export.configs import from_text
from export.errors import RepositoryWriteError
from export.repository import (
    list_families,
    publication_order,
    remove_other_families,
    write_family,
)
from service.engines.config_files import model_folders, read_config
from service.engines.manifest import read_catalog


def stub_graph(graph) -> bytes:
    """Stands in for the export, which these tests are not about."""
    return graph.role.encode()


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def full_disk(graph) -> bytes:
    if graph.role == "decode":
        raise OSError(errno.ENOSPC, "No space left on device")
    return b""


def test_a_family_is_laid_out_as_the_contract_says(family, tmp_path):
    written = write_family(family, tmp_path / "repo", export=stub_graph)
    files = snapshot(tmp_path / "repo")
    assert written.changed
    assert written.nbytes == sum(map(len, files.values()))
    for role in ("features", "guide", "decode"):
        assert files[f"{family.name}_{role}/1/model.onnx"] == role.encode()
    for role in family.roles:
        config = from_text(files[f"{family.name}_{role}/config.pbtxt"].decode())
        assert config.name == f"{family.name}_{role}"
        assert (tmp_path / "repo" / config.name / "1").is_dir()
    assert not [path for path in (tmp_path / "repo").iterdir() if path.name.startswith(".")]


def test_the_gateway_reads_what_the_exporter_writes(family, repository):
    configs = {folder.name: read_config(folder) for folder in model_folders(repository)}
    catalog = read_catalog(configs)
    assert catalog.problems == []
    found = catalog.families[family.name].family
    assert found.digest == family.digest
    assert found.created == family.created.replace(microsecond=0)
    assert found.input_size is not None
    assert (found.input_size.height, found.input_size.width) == family.serving.input_size


def test_features_appear_last(family, tmp_path, monkeypatch):
    renamed: list[str] = []
    rename = Path.rename

    def recorded(source: Path, target: Path) -> Path:
        renamed.append(target.name)
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", recorded)
    write_family(family, tmp_path, export=stub_graph)
    assert renamed == publication_order(family)
    assert renamed[-1] == f"{family.name}_features"


def test_exporting_again_changes_nothing(family, tmp_path):
    write_family(family, tmp_path, export=stub_graph)
    before = snapshot(tmp_path)
    again = write_family(family, tmp_path, export=full_disk)
    assert not again.changed
    assert snapshot(tmp_path) == before


def test_force_replaces_the_family(family, tmp_path):
    write_family(family, tmp_path, export=stub_graph)
    again = write_family(family, tmp_path, force=True, export=lambda _: b"new")
    assert again.changed
    assert snapshot(tmp_path)[f"{family.name}_guide/1/model.onnx"] == b"new"
    assert len(list(tmp_path.iterdir())) == len(family.roles)


@pytest.mark.parametrize("lost", ["features/1/model.onnx", "guide/config.pbtxt"])
def test_a_family_that_is_not_whole_is_written_again(family, tmp_path, lost):
    write_family(family, tmp_path, export=stub_graph)
    (tmp_path / f"{family.name}_{lost}").unlink()
    assert not list_families(tmp_path)[0].complete
    assert write_family(family, tmp_path, export=stub_graph).changed
    assert list_families(tmp_path)[0].complete


@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_leaves_the_repository_as_it_was(family, tmp_path, force):
    if force:
        write_family(family, tmp_path, export=stub_graph)
    before = snapshot(tmp_path)
    with pytest.raises(RepositoryWriteError, match="No space left on device"):
        write_family(family, tmp_path, force=force, export=full_disk)
    assert snapshot(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == (len(family.roles) if force else 0)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("broken", [0, 2, 4])
def test_a_rename_that_fails_is_taken_back(family, tmp_path, monkeypatch, broken, force):
    if force:
        write_family(family, tmp_path, export=stub_graph)
    before = snapshot(tmp_path)
    refused = publication_order(family)[broken]
    rename = Path.rename

    def failing(source: Path, target: Path) -> Path:
        staged = source.parent.name.startswith(".")
        if staged and target.parent == tmp_path and target.name == refused:
            raise OSError(errno.EIO, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(RepositoryWriteError, match="Input/output error"):
        write_family(family, tmp_path, force=force, export=lambda _: b"new")
    assert snapshot(tmp_path) == before


def test_an_error_of_the_export_leaves_no_staging_folder(family, tmp_path):
    def broken(graph) -> bytes:
        raise ValueError(graph.role)

    with pytest.raises(ValueError, match="features"):
        write_family(family, tmp_path, export=broken)
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_a_file_is_refused(family, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryWriteError, match="--out"):
        write_family(family, tmp_path / "file", export=stub_graph)


def test_pruning_removes_the_other_families_of_the_alias_only(make_family, tmp_path):
    old, new, other = make_family(seed=1), make_family(seed=2), make_family("other")
    for family in (old, new, other):
        write_family(family, tmp_path, export=stub_graph)
    assert remove_other_families(tmp_path, new) == [old.name]
    assert {listed.family for listed in list_families(tmp_path)} == {new.name, other.name}
    assert len(list(tmp_path.iterdir())) == 10


def test_a_listing_ignores_what_is_no_family(family, tmp_path):
    write_family(family, tmp_path, export=stub_graph)
    (tmp_path / ".staged_features").mkdir()
    (tmp_path / "README.md").write_text("not a model")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / writer.CONFIG_FILE).write_text('name: "foreign"')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / writer.CONFIG_FILE).write_text("{{{")
    (listed,) = list_families(tmp_path)
    assert (listed.family, listed.alias, listed.method) == (family.name, "tiny", "panet")
    assert listed.input_size == "40x32"
    assert listed.complete


def test_a_family_with_a_broken_config_is_not_complete(family, tmp_path):
    write_family(family, tmp_path, export=stub_graph)
    (tmp_path / f"{family.name}_guide" / writer.CONFIG_FILE).write_text("{{{")
    assert not list_families(tmp_path)[0].complete


def test_listing_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(RepositoryWriteError, match="not a folder"):
        list_families(tmp_path / "none")
