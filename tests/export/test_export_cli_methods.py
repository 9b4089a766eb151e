"""The commands of the published methods: what they read, write and refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from export import canet_family, cli
from export.configs import from_text
from export.repository import CONFIG_FILE
from tests.helpers.checkpoints import GOLDENS, official_content, official_state

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "export.md"


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(autouse=True)
def stub_export(monkeypatch):
    """Leaves the graphs out of the files: what is under test is the command."""
    real = cli.write_family

    def write(family, out, *, force):
        return real(family, out, force=force, export=lambda graph: graph.role.encode())

    monkeypatch.setattr(cli, "write_family", write)


def checkpoint(folder: Path, method: str, model: str = "") -> Path:
    """A file of the official layout whose tensors are one number each."""
    path = folder / f"{method}.pth"
    torch.save(official_content(method, official_state(method, model)), path)
    return path


def parameters(repository: Path) -> dict[str, str]:
    (folder,) = repository.glob("*_decode")
    config = from_text((folder / CONFIG_FILE).read_text())
    return {key: value.string_value for key, value in config.parameters.items()}


@pytest.mark.parametrize(
    ("method", "model", "options", "expected"),
    [
        (
            "revolver",
            "cofeat-late-lite-unshared",
            ("--max-pixels", 300000),
            {"fewseg.input_size": "native", "fewseg.max_pixels": "300000"},
        ),
        ("sgone", "", (), {"fewseg.decision": "margin", "fewseg.min_side": "33"}),
        ("sgone", "", ("--merge", "any", "--channels", "rgb"), {"fewseg.decision": "any_shot"}),
        ("canet", "", ("--size", "97x65"), {"fewseg.input_size": "97x65"}),
        (
            "repri",
            "resnet50",
            ("--size", "97"),
            {"fewseg.image_resize": "cv2_letterbox", "fewseg.extent": "decode"},
        ),
        (
            "hsnet",
            "resnet50",
            ("--size", "104"),
            {"fewseg.decision": "vote", "fewseg.mask_resize": "torch_nearest"},
        ),
        ("canet", "", ("--merge", "probability"), {"fewseg.score": "linear"}),
        (
            "canet",
            "",
            ("--size", "native", "--multi-scale", "--max-pixels", 300000),
            {
                "fewseg.input_size": "native",
                "fewseg.extent": "decode",
                "fewseg.max_pixels": "300000",
            },
        ),
        (
            "pfenet",
            "vgg16_bn",
            ("--size", "641", "--bins", "1.0,0.5,0.25,0.125"),
            {"fewseg.input_dtype": "uint16_8.8", "fewseg.shot_buckets": "1,2,3,4,5,8,16,32"},
        ),
        ("cyctr", "", (), {"fewseg.extent": "decode,guide", "fewseg.input_size": "473x473"}),
        ("asgnet", "resnet50_pyramid", (), {"fewseg.image_resize": "cv2_letterbox"}),
        (
            "scl-canet",
            "",
            ("--single-scale", "--passes", 1),
            {"fewseg.input_size": "native", "fewseg.merge_judged": '["features", "planes"]'},
        ),
        ("scl-pfenet", "", ("--size", "113"), {"fewseg.input_size": "113x113"}),
        ("pmms", "PMMs_resnet50", (), {"fewseg.input_size": "481x481", "fewseg.score": "sigmoid"}),
        ("pmms", "RPMMs_resnet50", ("--stages", "mean"), {"fewseg.score": "linear"}),
    ],
)
def test_methods_are_exported_as_asked(tmp_path, method, model, options, expected):
    path, out = checkpoint(tmp_path, method, model), tmp_path / "repository"
    status, output = run(method, "--checkpoint", path, "--out", out, "--name", "mine", *options)
    assert status == 0, output
    found = parameters(out)
    assert found["fewseg.method"] == method
    assert found["fewseg.alias"] == "mine"
    assert found.items() >= expected.items()
    provenance = json.loads(found["fewseg.provenance"])
    assert provenance["weights"] == path.name
    assert "code_licence" in provenance


@pytest.mark.parametrize(
    ("method", "model", "options", "expected"),
    [
        ("canet", "", ("--iterations", 2), {"iterations": "2", "scales": "1"}),
        ("canet", "", ("--size", "native", "--multi-scale"), {"scales": "0.7,1,1.3"}),
        ("cyctr", "", (), {"token_labels": "by-number", "sample_seed": "0"}),
        ("repri", "resnet50", ("--size", "97", "--updates", 50), {"updates": "50"}),
        ("mmformer", "v1", ("--size", "64", "--merge", "object"), {"merge": "object"}),
        ("pfenet", "vgg16_bn", ("--masking", "output"), {"masking": "output"}),
        (
            "asgnet",
            "resnet50_pyramid",
            ("--association", "square"),
            {"association": "square", "bins": "60.0,30.0,15.0,8.0"},
        ),
        ("cyctr", "", ("--token-labels", "own"), {"token_labels": "own"}),
        ("revolver", "cofeat-late-lite-unshared", (), {"mean": "all"}),
        (
            "revolver",
            "cofeat-late-lite-unshared",
            ("--mean", "annotating"),
            {"mean": "annotating"},
        ),
    ],
)
def test_settings_of_the_graphs_are_in_the_provenance(tmp_path, method, model, options, expected):
    path, out = checkpoint(tmp_path, method, model), tmp_path / "repository"
    status, output = run(method, "--checkpoint", path, "--out", out, *options)
    assert status == 0, output
    assert json.loads(parameters(out)["fewseg.provenance"]).items() >= expected.items()


COMMON = {"out", "checkpoint", "name", "size", "max_batch", "force", "prune"}
METHODS = {
    name: {option.name: option for option in command.params}
    for name, command in typer.main.get_command(cli.app).commands.items()
    if {"checkpoint", "max_batch"} <= {option.name for option in command.params}
}


@pytest.mark.parametrize("method", METHODS)
def test_the_documentation_names_every_option_and_its_default(method):
    section = DOCUMENTATION.read_text().split("## Options")[1].split("## ")[0]
    (row,) = (line for line in section.splitlines() if line.startswith(f"| `{method}` |"))
    _, _, size, max_batch, own, _ = row.split("|")
    options = METHODS[method]
    assert size.strip() == (options["size"].default if "size" in options else "each image's")
    by_size = f"{canet_family.MAX_BATCH} (`native`: {canet_family.NATIVE_MAX_BATCH})"
    assert max_batch.strip() == str(options["max_batch"].default or by_size)
    named = set()
    for name in options.keys() - COMMON:
        option = options[name]
        if isinstance(option.default, bool):
            wanted = f"`{(option.opts if option.default else option.secondary_opts)[0]}`"
        elif option.default is None:
            wanted = f"`{option.opts[0]}` ("
        else:
            value = str(option.default)
            kept = value if value[0].isdigit() else f"`{value}`"
            wanted = f"`{option.opts[0]}` {kept}"
        assert wanted in own
        named.add(wanted.split("`")[1])
    assert named == set(re.findall(r"`(--[a-z-]+)`", own))


def test_a_checkpoint_of_another_method_writes_nothing(tmp_path):
    path, out = checkpoint(tmp_path, "sgone"), tmp_path / "repository"
    status, output = run("canet", "--checkpoint", path, "--out", out)
    assert status == 1
    assert "looks like an SG-One checkpoint, not a CANet checkpoint" in output
    assert not out.exists()


def test_a_command_without_a_checkpoint_says_so(tmp_path):
    for method in (
        "revolver",
        "sgone",
        "canet",
        "hsnet",
        "mmformer",
        "repri",
        "pmms",
        "asgnet",
        "cyctr",
    ):
        status, output = run(method, "--out", tmp_path)
        assert status == 2
        assert "--checkpoint" in output


def test_a_triton_to_verify_on_must_serve_a_repository_that_is_named():
    status, output = run("verify", "sgone", "--goldens", GOLDENS / "sgone", "--engine", "triton")
    assert status == 1
    assert "--engine triton needs --repository" in output


def test_the_variant_of_asgnet_that_was_never_published_is_named(tmp_path):
    path = checkpoint(tmp_path, "asgnet", "resnet50_aspp")
    status, output = run("asgnet", "--checkpoint", path, "--out", tmp_path / "repository")
    assert status == 1
    assert "variant with ASPP" in output
