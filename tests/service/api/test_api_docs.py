"""docs/api.md keeps up with the code."""

import ast
import re
from pathlib import Path

from service.core import errors

ROOT = Path(__file__).parents[3]
#: What only a model repository causes is told by the server's log, not by a table for clients.
FOR_OPERATORS = {"RepositoryError"}


def raised_reasons():
    """Reasons of the errors that api, core, engines and stores make."""
    kinds = {name for name in vars(errors) if name.endswith("Error")} - FOR_OPERATORS
    for package in ("api", "core", "engines", "stores"):
        for path in (ROOT / "service" / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", None) in kinds:
                    reason = node.args[0] if node.args else None
                    if isinstance(reason, ast.Constant):
                        yield str(reason.value)


def test_every_reason_that_a_client_can_meet_is_documented():
    documented = set(re.findall(r"`([A-Z][A-Z_]+)`", (ROOT / "docs" / "api.md").read_text()))
    raised = set(raised_reasons())
    assert len(raised) > 40
    assert raised - documented == set()
