"""How the core is tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from service.core.family import FeatureReuse
from service.core.workers import core_count


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """How the core is tuned.

    Attributes:
        guidance_bytes: Budget of the guidance cache.
        feature_bytes: Budget of the feature-map cache.
        feature_reuse: When feature maps of queries are worth keeping; see ``FeatureReuse``.
        codec_threads: Threads that decode, resize, rasterise, upsample and encode.
        niceness: How much those threads stand back for others.
        slots: Requests that run at once; the rest waits.
        queue_seconds: The longest that a request waits for a slot.
        rebuilds: Rebuilds of guidance that run at once.
        default_model: Alias for tasks that name none; empty for the first by name.
        pins: Family by alias, where the newest is not wanted.
        tenants: The tenants that exist.
        request_memory: How long a request id is remembered.
        sweep_seconds: Time between two sweeps of expired tasks.
        leave_one_out_limit: The most supports judged in one answer.
        drain_seconds: The longest that a stop waits for requests in flight.
    """

    guidance_bytes: int = 256 * 1024 * 1024
    feature_bytes: int = 256 * 1024 * 1024
    feature_reuse: FeatureReuse = FeatureReuse.ALWAYS
    codec_threads: int = field(default_factory=core_count)
    niceness: int = 5
    slots: int = field(default_factory=lambda: 2 * core_count())
    queue_seconds: float = 10.0
    rebuilds: int = 4
    default_model: str = ""
    pins: Mapping[str, str] = field(default_factory=dict)
    tenants: frozenset[str] = frozenset({"default"})
    request_memory: timedelta = timedelta(days=1)
    sweep_seconds: float = 60.0
    leave_one_out_limit: int = 32
    drain_seconds: float = 20.0
