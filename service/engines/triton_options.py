# SPDX-License-Identifier: Apache-2.0
"""How the gateway talks to Triton."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class TritonOptions:
    """Connections, bounds and shared memory of the Triton engine.

    Attributes:
        tls: Whether to speak TLS.
        tls_ca: PEM file of the authority that signed Triton's certificate; None for the system's.
        tls_certificate, tls_key: PEM files of the gateway's own certificate, for mutual TLS.
        model_control: Whether to load and unload models. Without it the gateway serves what Triton
            has loaded, as it must where several gateways of different settings share one Triton.
        shared_memory: Whether large guidance is handed over in system shared memory: ``auto`` for
            Triton on a loopback address or unix socket, ``on`` for every address, ``off`` for none.
        shared_bytes: Guidance smaller than this goes with each request.
        run_seconds: The longest that a run without a deadline takes.
        control_seconds: The longest that a question about models takes.
        load_seconds: The longest that loading one model takes; TensorRT builds engines in it.
        wait_seconds: How long the first question waits for a server that is not there yet.
        repair_seconds: The longest that a run waits for models that Triton has lost.
        backoff_seconds, max_backoff_seconds: How long an address that failed is left out: doubled
            with each failure in a row.
        reload_seconds: The least time between two reloads of a family that fails at an address.
        keepalive_seconds, keepalive_timeout_seconds: While calls run, a connection that is silent
            for the first is asked, and given up when it does not answer within the second.
    """

    tls: bool = False
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    model_control: bool = True
    shared_memory: Literal["auto", "on", "off"] = "auto"
    shared_bytes: int = 64 * 1024
    run_seconds: float = 30.0
    control_seconds: float = 10.0
    load_seconds: float = 900.0
    wait_seconds: float = 0.0
    repair_seconds: float = 5.0
    backoff_seconds: float = 0.25
    max_backoff_seconds: float = 10.0
    reload_seconds: float = 30.0
    keepalive_seconds: float = 5.0
    keepalive_timeout_seconds: float = 5.0
