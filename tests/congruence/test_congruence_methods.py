# SPDX-License-Identifier: Apache-2.0
"""Every exported method answers the same with both engines, through the whole API.

The networks are the methods' own, with random weights and small inputs; ``exported_methods`` lists
them. One method is in memory and on disk at a time.
"""

import shutil

import pytest
import typer
from congruence_script import ENGINES, carry_out_all, compare
from exported_methods import EXPORTED, exported

from export.check import check
from export.cli import app
from export.repository import write_family
from fewseg.results import SegmentResult, Task
from triton_local import LocalTriton


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    yield folder
    # Up to some hundred megabytes, which pytest would keep until the next but one run.
    shutil.rmtree(folder)


def test_no_method_is_left_out():
    commands = typer.main.get_command(app).commands
    readers = {
        name
        for name, command in commands.items()
        if "checkpoint" in {parameter.name for parameter in command.params}
    }
    # `compact` is PANet's graphs on another trunk.
    assert EXPORTED.keys() == readers - {"compact"}


@pytest.mark.parametrize("method", EXPORTED)
def test_every_operation_answers_the_same_for_every_method(method, repository, triton_environment):
    write_family(exported(method), repository)
    assert check(repository) == []
    with LocalTriton(repository, environment=triton_environment) as triton:
        embedded, served = (
            carry_out_all(engine, repository, triton, [method])[method] for engine in ENGINES
        )
    assert isinstance(served["register"], Task)
    for step in ("segment 0", "segment cross-guided"):
        assert isinstance(served[step], SegmentResult)
    compare(embedded, served)
