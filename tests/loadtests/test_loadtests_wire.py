"""What a Segment exchanges with Triton, computed and in real calls."""

import numpy as np
import pytest

from loadtests.families import families_of
from loadtests.wire import call, table_of, weight
from tests.helpers.tiny_repository import write_tiny_repository

#: Names, shapes and types of the tensors go with them.
_OVERHEAD = 1024


@pytest.fixture
def repository(tmp_path):
    write_tiny_repository(tmp_path, "plain")
    write_tiny_repository(tmp_path, "rich", binary=True, stack=True, query_features=True)
    return tmp_path


def test_tensors_are_weighed_as_the_gateway_sends_them(repository):
    plain, rich = families_of(repository)
    episode = plain.episode((480, 640), ways=1, shots=1)
    assert episode.image.nbytes == 32 * 32 * 3
    assert weight(episode.guidance) == 2 * 8 * 4
    assert episode.logits.nbytes == 2 * 4 * 4 * 4
    assert weight(episode.query) == 8 * 4 * 4 * 4
    # Three ways and five shots are padded to buckets of four and eight.
    episode = rich.episode((480, 640), ways=3, shots=5)
    assert weight(episode.guidance) == 2 * 8 * 4 * 8 * 4 + 8 * 4
    assert weight(episode.maps) > weight(episode.query)


def test_a_real_call_carries_these_bytes_and_gives_these_logits(repository, serve_triton):
    address = serve_triton(repository).grpc_address
    families = list(families_of(repository))
    rows = []
    for family in families:
        episode = family.episode((480, 640), ways=2, shots=2)
        messages, logits = call(address, family.name, episode.asked)
        assert 0 <= messages.request - weight(episode.asked) < _OVERHEAD
        assert 0 <= messages.response - episode.logits.nbytes < _OVERHEAD
        np.testing.assert_allclose(logits, episode.logits, rtol=1e-4, atol=1e-4)
        rows.append((family, episode, messages))
    assert table_of(rows).row_count == len(families)


def test_families_that_onnx_runtime_does_not_run_are_left_out(repository):
    for path in repository.glob("plain-*_features/config.pbtxt"):
        path.write_text(path.read_text().replace('"onnxruntime"', '"tensorrt"'))
    assert [family.name.partition("-")[0] for family in families_of(repository)] == ["rich"]
