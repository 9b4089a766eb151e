"""Generates the Python stubs of protos/ into fewseg/v1/, or checks that they are current.

``--check`` also lints the API with buf, through a descriptor image that protoc
makes, so that no schema registry has to be reached.
"""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

import google.api
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = Path("fewseg") / "v1"
#: googleapis-common-protos ships the .proto sources beside its stubs.
GOOGLEAPIS = Path(next(iter(google.api.__path__))).parent.parent
PROTOBUF = Path(protoc.__file__).parent / "_proto"


def run_protoc(*outputs: str) -> None:
    """Runs protoc over all files of the API."""
    sources = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    includes = [f"-I{PROTOS}", f"-I{GOOGLEAPIS}", f"-I{PROTOBUF}"]
    if protoc.main(["protoc", *includes, *outputs, *sources]) != 0:
        sys.exit("protoc failed")


def generate(into: Path) -> None:
    """Writes the stubs below ``into``."""
    run_protoc(f"--python_out={into}", f"--pyi_out={into}", f"--grpc_python_out={into}")


def lint() -> None:
    """Lints the API by buf.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "api.binpb"
        run_protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={image}")
        buf = Path(sys.executable).parent / "buf"
        subprocess.run([buf, "lint", image, "--config", ROOT / "buf.yaml"], check=True)


def check() -> None:
    """Fails if the committed stubs are not what protoc makes."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = Path(folder) / STUBS
        names = sorted(path.name for path in fresh.iterdir())
        committed = sorted(p.name for p in (ROOT / STUBS).glob("*_pb2*.py*"))
        _, different, missing = filecmp.cmpfiles(fresh, ROOT / STUBS, names, shallow=False)
    if different or missing or committed != names:
        sys.exit(f"stale stubs, run `make proto`: {sorted({*different, *missing}) or committed}")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="check and lint, write nothing")
    if parser.parse_args().check:
        lint()
        check()
    else:
        generate(ROOT)


if __name__ == "__main__":
    main()
