"""The weights that ship are a mean of runs, with a part of what the reading learned to add."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.methods.compact import CompactModel
from training.__main__ import main
from training.blend import blend_files, blended
from training.runs import save_weights


def made(seed: int) -> CompactModel:
    torch.manual_seed(seed)
    model = CompactModel().eval()
    for parameter in model.decode.correction.parameters():
        torch.nn.init.normal_(parameter)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))
    return model


def test_shares_weigh_runs():
    one, other = made(0), made(1)
    mean = blended([(one, 3), (other, 1)], 1.0)
    assert set(mean) == set(one.state_dict())
    for name, value in one.state_dict().items():
        expected = 0.75 * value + 0.25 * other.state_dict()[name]
        assert mean[name].dtype == value.dtype
        torch.testing.assert_close(mean[name], expected.to(value.dtype))


@torch.no_grad()
def test_a_correction_of_a_half_lies_halfway_between_cosines_and_reading(tmp_path: Path):
    path = tmp_path / "run.safetensors"
    save_weights(made(0).state_dict(), path)
    blend_files([(path, 1.0)], 0.5, tmp_path / "half.safetensors")
    whole, half = (
        CompactModel.from_file(path),
        CompactModel.from_file(tmp_path / "half.safetensors"),
    )
    semantic, fine = whole.trunk(torch.randn(1, 3, 64, 64))
    prototypes = torch.randn(1, 3, 192)
    cosines, corrected = whole.decode.margins(semantic, fine, prototypes)
    assert (corrected - cosines).abs().max() > 0.1
    same, weaker = half.decode.margins(semantic, fine, prototypes)
    torch.testing.assert_close(same, cosines)
    torch.testing.assert_close(weaker, (cosines + corrected) / 2)


def test_the_command_takes_shares_and_paths_with_equal_signs(tmp_path: Path, monkeypatch):
    paths = [tmp_path / "lr=3" / name for name in ("a.safetensors", "b.safetensors")]
    for seed, path in enumerate(paths):
        save_weights(made(seed).state_dict(), path)
    out = tmp_path / "out.safetensors"
    arguments = ["--runs", f"{paths[0]}=3", f"{paths[1]}=1", "--weights", str(out)]
    monkeypatch.setattr("sys.argv", ["training", "blend", *arguments])
    main()
    expected = blended([(made(0), 3), (made(1), 1)], 1.0)
    for name, value in CompactModel.from_file(out).state_dict().items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize(
    ("shares", "correction"),
    [
        *(((), 1.0), ((1.0, 0.0), 1.0), ((float("nan"),), 1.0), ((float("inf"),), 1.0)),
        *(((1.0,), -0.1), ((1.0,), 1.1), ((1.0,), float("nan"))),
    ],
)
def test_shares_and_correction_are_checked(shares, correction):
    with pytest.raises(ValueError, match=r"shares above zero|in \[0, 1\]"):
        blended([(made(0), share) for share in shares], correction)
