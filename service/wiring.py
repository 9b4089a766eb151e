"""The one place where settings become a server: engine, store, core, edge."""

from __future__ import annotations

from datetime import timedelta

from service.api.models import Identity
from service.config import VERSION, Settings
from service.core.gateway import Gateway
from service.core.ports import Engine, Store, Telemetry
from service.engines.embedded import EmbeddedEngine
from service.engines.triton import TritonEngine
from service.engines.triton_options import TritonOptions
from service.metrics import Metrics
from service.server import Server
from service.stores.memory import MemoryStore
from service.stores.sqlite import SqliteStore


class SetupError(Exception):
    """The settings ask for something that this machine does not have."""


def build(settings: Settings) -> Server:
    """Makes a server that only has to be started.

    Args:
        settings: How it is set up.

    Raises:
        SetupError: The settings ask for something that this machine does not have.
    """
    identity = Identity(version=VERSION, engine=settings.engine, store=settings.store)
    metrics = Metrics(version=VERSION, engine=settings.engine, store=settings.store)
    store = _store(settings)
    gateway = Gateway(
        engine=_engine(settings, metrics),
        store=store,
        limits=settings.bounds(),
        telemetry=metrics,
        settings=settings.core(),
    )
    return Server(gateway, settings, metrics, identity)


def _engine(settings: Settings, telemetry: Telemetry) -> Engine:
    if settings.engine == "triton":
        return _triton_engine(settings, telemetry)
    if not settings.repository.is_dir():
        raise SetupError(
            f"repository: there is no folder {settings.repository}; fewseg-export makes one"
        )
    try:
        return EmbeddedEngine(
            settings.repository,
            telemetry=telemetry,
            threads=settings.engine_threads,
            workers=settings.engine_workers,
            niceness=settings.niceness,
            providers=settings.providers,
        )
    except ValueError as error:
        raise SetupError(f"providers: {error}") from error


def _triton_engine(settings: Settings, telemetry: Telemetry) -> TritonEngine:
    options = TritonOptions(
        tls=settings.triton_tls,
        tls_ca=settings.triton_tls_ca,
        tls_certificate=settings.triton_tls_certificate,
        tls_key=settings.triton_tls_key,
        model_control=settings.triton_model_control,
        shared_memory=settings.triton_shared_memory,
        run_seconds=settings.triton_run_seconds,
        load_seconds=settings.triton_load_seconds,
        wait_seconds=settings.triton_wait_seconds,
    )
    try:
        return TritonEngine(settings.triton_address, telemetry=telemetry, options=options)
    except ValueError as error:
        raise SetupError(f"triton_address: {error}") from error
    except OSError as error:
        raise SetupError(f"triton_tls: {error.filename}: {error.strerror}") from error


def _store(settings: Settings) -> Store:
    orphan_age = timedelta(seconds=settings.orphan_seconds)
    if settings.store == "memory":
        return MemoryStore(max_tasks=settings.limits.tasks, orphan_age=orphan_age)
    return SqliteStore(
        settings.store_path,
        max_tasks=settings.limits.tasks,
        orphan_age=orphan_age,
        max_bytes=settings.store_bytes,
    )
