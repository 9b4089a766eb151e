# SPDX-License-Identifier: Apache-2.0
"""The files in deploy/ say what the code says: flags, ports, probes, volumes, labels, metrics."""

import json
import re
import tomllib
import urllib.request

import pytest
import typer
import yaml
from tritonclient.grpc import InferenceServerClient

from fewseg.cli import app as fewseg_app
from loadtests.cli import app as loadtest_app
from service.config import Settings, load
from service.core.family import GraphRole
from service.core.timing import Stage
from service.metrics import Metrics
from tests.conftest import ROOT
from tests.helpers.tiny_repository import write_tiny_repository
from triton_local import LocalTriton

DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
PORTS = {"grpc": Settings().port, "metrics": Settings().metrics_port}
#: Triton's own defaults.
TRITON_PORTS = {"triton-http": 8000, "triton-metrics": 8002}


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def resource(kind):
    (found,) = [
        document
        for path in BASE.glob("*.yaml")
        for document in documents(path)
        if document["kind"] == kind
    ]
    return found


@pytest.fixture(scope="module")
def pod():
    return resource("StatefulSet")["spec"]["template"]


@pytest.fixture(scope="module")
def containers(pod):
    return {one["name"]: one for one in pod["spec"]["containers"]}


@pytest.fixture(scope="module")
def compose():
    (content,) = documents(DEPLOY / "compose.yaml")
    return content["services"]


@pytest.fixture(scope="module")
def dockerfile():
    text = (DEPLOY / "gateway" / "Dockerfile").read_text()
    return text.replace("\\\n", " ")


def options_of(command):
    return {argument.partition("=")[0] for argument in command if argument.startswith("--")}


def test_every_file_can_be_read_and_every_kustomization_finds_its_parts():
    paths = sorted(DEPLOY.rglob("*.yaml"))
    assert all(documents(path) for path in paths)
    for path in paths:
        if path.name == "kustomization.yaml":
            for part in documents(path)[0]["resources"]:
                assert (path.parent / part).exists()


def test_the_gateway_takes_the_flags_that_it_is_given(containers, compose):
    for command in (containers["gateway"]["args"], compose["gateway"]["command"]):
        assert command[0] == "fewseg-serve"
        assert load(command[1:]).settings().engine == "triton"


def test_the_image_sets_what_the_gateway_knows(dockerfile, monkeypatch):
    variables = dict(re.findall(r"\b(FEWSEG_\w+)=(\S+)", dockerfile))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = load([]).settings()
    for name, value in variables.items():
        assert str(getattr(settings, name.removeprefix("FEWSEG_").lower())) == value
    exposed = re.search(r"^EXPOSE (.*)$", dockerfile, re.MULTILINE)[1]
    assert {int(port) for port in exposed.split()} == set(PORTS.values())


def test_the_image_holds_what_is_installed(dockerfile):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = set(re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE))
    sources = {name for group in copied if "--from" not in group for name in group.split()}
    assert all((ROOT / name).exists() for name in sources)
    assert {package.rstrip("*") for package in packages} <= sources
    ignored = (DEPLOY / "gateway" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == sources
    extras = {*re.findall(r"EXTRA=(\w+)", dockerfile)}
    assert extras <= project["project"]["optional-dependencies"].keys()


def test_ports_and_probes_are_those_of_the_processes(containers, compose):
    for name, ports in (("gateway", PORTS), ("triton", TRITON_PORTS)):
        container = containers[name]
        named = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert named == ports
        assert container["livenessProbe"]
        for probe in (value for key, value in container.items() if key.endswith("Probe")):
            (port,) = [value["port"] for value in probe.values() if isinstance(value, dict)]
            assert port in named or port in named.values()
    service = resource("Service")["spec"]["ports"]
    assert [(one["port"], one["targetPort"]) for one in service] == [(PORTS["grpc"], "grpc")]
    published = {int(one.rpartition(":")[2]) for one in compose["gateway"]["ports"]}
    assert published == set(PORTS.values())


def test_calls_have_time_to_end(pod, compose):
    drain = Settings().drain_seconds
    assert pod["spec"]["terminationGracePeriodSeconds"] > drain
    assert int(compose["gateway"]["stop_grace_period"].removesuffix("s")) > drain


def test_every_mount_has_its_volume_and_both_processes_share_memory(containers, pod):
    spec = resource("StatefulSet")["spec"]
    volumes = {one["name"] for one in pod["spec"]["volumes"]}
    volumes |= {one["metadata"]["name"] for one in spec["volumeClaimTemplates"]}
    shared = set()
    for container in [*containers.values(), *pod["spec"]["initContainers"]]:
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        assert set(mounts.values()) <= volumes
        assert container["resources"]["limits"]["memory"]
        shared |= {mounts["/dev/shm"]} if "/dev/shm" in mounts else set()
    assert len(shared) == 1
    assert all("/dev/shm" in str(containers[name]["volumeMounts"]) for name in containers)


def test_selectors_find_the_pod_and_clients_may_come_in(pod):
    labels = pod["metadata"]["labels"].items()
    policy = resource("NetworkPolicy")["spec"]
    selectors = [
        resource("StatefulSet")["spec"]["selector"]["matchLabels"],
        resource("Service")["spec"]["selector"],
        resource("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        policy["podSelector"]["matchLabels"],
        documents(DEPLOY / "kubernetes" / "monitoring" / "podmonitor.yaml")[0]["spec"]["selector"][
            "matchLabels"
        ],
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)
    wanted = policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items()
    for job in ("batch", "loadtest"):
        template = documents(DEPLOY / job / "job.yaml")[0]["spec"]["template"]
        assert wanted <= template["metadata"]["labels"].items()


@pytest.mark.parametrize(("job", "app"), [("batch", fewseg_app), ("loadtest", loadtest_app)])
def test_jobs_call_the_commands_as_they_are(job, app):
    template = documents(DEPLOY / job / "job.yaml")[0]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    name, *arguments = [*container.get("command", []), *container["args"]]
    group = typer.main.get_command(app)
    context = group.make_context(name, arguments)
    called, command, rest = group.resolve_command(context, context._protected_args + context.args)
    # Raises unless every argument and option is one of the command.
    command.make_context(called, rest, parent=context)


def test_triton_is_started_as_the_tests_start_it(containers, compose, tmp_path, triton_environment):
    server = LocalTriton(tmp_path, environment=triton_environment)
    known = options_of(server._command())
    server.close()
    images = set()
    for triton in (containers["triton"], compose["triton"]):
        command = triton.get("args") or triton["command"]
        assert options_of(command) <= known
        assert "--model-control-mode=explicit" in command
        images.add(triton["image"])
    assert len(images) == 1
    assert images.pop() in (ROOT / "docs" / "triton.md").read_text()


@pytest.fixture(scope="module")
def panels():
    return json.loads((DEPLOY / "grafana" / "fewseg.json").read_text())["panels"]


def queries(panels, prefix):
    return [
        (target["expr"], target["legendFormat"])
        for panel in panels
        for target in panel["targets"]
        if prefix in target["expr"]
    ]


def labels_used(expression, legend):
    grouped = re.findall(r"\bby \(([^)]*)\)", expression)
    names = {name.strip() for group in grouped for name in group.split(",")}
    return (names | set(re.findall(r"{{(\w+)}}", legend))) - {"le", "instance"}


def gateway_metrics():
    """Labels by sample of a gateway in which everything has happened once."""
    metrics = Metrics(version="1", engine="triton", store="memory")
    metrics.watch_calls("Segment", lambda: 1)
    metrics.call_ended("Segment", "OK", 0.1)
    metrics.stage(Stage.DECODE, 0.1)
    metrics.graph_run(GraphRole.DECODE)
    metrics.cache_hit("features")
    metrics.cache_miss("features")
    metrics.cache_evicted("features", 1)
    metrics.watch_cache_bytes("features", lambda: 1)
    return {
        sample.name: set(sample.labels)
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def test_the_dashboard_shows_all_metrics_of_the_gateway_and_no_others(panels):
    labels = gateway_metrics()
    shown = set()
    for expression, legend in queries(panels, "fewseg_"):
        names = set(re.findall(r"fewseg_\w+", expression))
        assert names
        assert names <= labels.keys()
        assert all(labels_used(expression, legend) <= labels[name] for name in names)
        shown |= names
    hidden = {name for name in labels if not name.endswith(("_created", "_sum", "_count", "_info"))}
    assert hidden <= shown


def test_the_dashboard_asks_for_metrics_that_triton_has(panels, tmp_path, serve_triton):
    family = write_tiny_repository(tmp_path)
    triton = serve_triton(tmp_path)
    with InferenceServerClient(triton.grpc_address) as client:
        client.load_model(f"{family}_features")
    with urllib.request.urlopen(f"http://{triton.metrics_address}/metrics", timeout=10) as answer:
        told = answer.read().decode()
    for expression, legend in queries(panels, "nv_"):
        names = re.findall(r"nv_\w+", expression)
        assert names
        for name in names:
            found = re.search(rf"^{name}{{(.*)}}", told, re.MULTILINE)
            assert found, name
            assert labels_used(expression, legend) <= set(re.findall(r"(\w+)=", found[1]))
