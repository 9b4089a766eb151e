"""What the server answers, as plain values with numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fewseg.annotations import CocoRunLengths

#: How the shots of a task become one answer; see ``Client.register``.
Fusion = Literal["merged", "cross_guided"]


@dataclass(frozen=True, slots=True)
class TaskSupport:
    """A support as the task keeps it.

    Attributes:
        id: Unique in the task.
        height: Rows of the image.
        width: Columns of the image.
        shot_classes: The classes that it is a shot of.
        mark_count: Marks of its annotation.
        leave_one_out: By class, the intersection over union, in [0, 1], of its annotation with what
            the other supports predict for it. Filled in the answers of calls that change the task;
            a class that no other support shows is missing.
        classes_without_pixels: Those of ``shot_classes`` of which the model gets no pixel, because
            no mark labels them, other marks cover them or the size of its input loses them: the
            support shows nothing of them. Filled in the answers of calls that change the task.
    """

    id: str
    height: int
    width: int
    shot_classes: tuple[str, ...]
    mark_count: int
    leave_one_out: Mapping[str, float]
    classes_without_pixels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """A registered task.

    Attributes:
        name: ``tenants/{tenant}/tasks/{task}``.
        uid: Differs for a task that was deleted and registered again.
        display_name: Free text.
        model: Alias of the model that serves it.
        classes: Mask value i is the i-th of them, counted from one.
        supports: The support set; empty in listings.
        support_count: Its size, in listings too.
        etag: Changes with every change of the task.
        create_time: When it was registered, UTC.
        update_time: When it last changed, UTC.
        expire_time: When it ends by itself, UTC; None for never.
        background_inferred: No annotation labels background, so that the surroundings of the
            labelled pixels stand in for it.
        family: The model family behind the alias.
        guidance_bytes: What the guidance of the task takes.
        fusion: How its shots become one answer, see ``Client.register``.
        timings: Seconds by stage of the call that changed the task; empty otherwise.
    """

    name: str
    uid: str
    display_name: str
    model: str
    classes: tuple[str, ...]
    supports: tuple[TaskSupport, ...]
    support_count: int
    etag: str
    create_time: datetime
    update_time: datetime
    expire_time: datetime | None
    background_inferred: bool
    family: str
    guidance_bytes: int
    fusion: Fusion = "merged"
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Last part of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class ClassResult:
    """What a mask says of one class.

    Attributes:
        class_name: The class.
        value: Its number in the mask.
        area: Its pixels.
        box: (x_min, y_min, x_max, y_max), half-open, in pixels of the mask; None without pixels.
        mean_score: Mean probability over its pixels, in [0, 1]; 0 without pixels.
    """

    class_name: str
    value: int
    area: int
    box: tuple[int, int, int, int] | None
    mean_score: float


@dataclass(frozen=True, slots=True)
class Reuse:
    """What the server did not have to compute.

    Attributes:
        features: The image's feature maps were at hand.
        guidance: The task's guidance was at hand.
    """

    features: bool
    guidance: bool


@dataclass(frozen=True, slots=True, eq=False)
class SegmentResult:
    """A segmented image.

    Attributes:
        mask: uint8 [H, W]; 0 is background, i is the i-th class of the task.
        classes: One per class of the task, in order.
        probabilities: float16 [planes, H, W] if they were asked for: background first and then the
            classes if the model weighs them against each other, the classes alone if not.
        family: The model family that made the answer.
        etag: The revision of the task that made the answer.
        background_inferred: See ``Task``.
        timings: Seconds by stage of the server's work; ``total`` is all of it.
        reuse: What was at hand.
        png: The mask as the server wrote it, for ``format="png"``.
        run_lengths: The mask of each class as the COCO tools write it, for ``format="rle"``.
    """

    mask: NDArray[np.uint8]
    classes: tuple[ClassResult, ...]
    probabilities: NDArray[np.float16] | None
    family: str
    etag: str
    background_inferred: bool
    timings: Mapping[str, float]
    reuse: Reuse
    png: bytes | None = None
    run_lengths: tuple[CocoRunLengths, ...] | None = None

    def mask_of(self, class_name: str) -> NDArray[np.bool_]:
        """Booleans [H, W]: where the class is.

        Raises:
            KeyError: The task has no such class.
        """
        for result in self.classes:
            if result.class_name == class_name:
                return np.equal(self.mask, result.value)
        raise KeyError(class_name)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that tasks can be registered under.

    Attributes:
        alias: What tasks name.
        family: What the alias stands for.
        method: Such as "panet".
        input_size: (rows, columns) of the network's input; None for the image's own size.
        class_handling: "multiway": classes and background are weighed against each other;
            "binary": every class is weighed against its own background.
        decision: How logits become a mask.
        score: What a score means.
        create_time: When the family was exported, UTC; None if that is not known.
        provenance: Where the weights come from, for people.
        default: Whether tasks that name no model get this one.
    """

    alias: str
    family: str
    method: str
    input_size: tuple[int, int] | None
    class_handling: str
    decision: str
    score: str
    create_time: datetime | None
    provenance: Mapping[str, str]
    default: bool


@dataclass(frozen=True, slots=True)
class ModelRefresh:
    """What the model repository holds.

    Attributes:
        models: What is served, by alias.
        problems: What was found and cannot be served, a line each.
    """

    models: tuple[ModelInfo, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Versions and limits of a server.

    Attributes:
        version: Of the server.
        api_version: Of the API, "v1".
        engine: "embedded" or "triton".
        store: "memory" or "sqlite".
        limits: What a request may hold, by name: ``message_bytes``, ``image_pixels``, ``supports``,
            ``classes``, ``marks``, ``vertices``, ``tasks``, ``in_flight``, ``stream_frames``,
            ``annotation_bytes``, ``output_pixels``, ``image_side``, ``mask_pixels``,
            ``mask_values``, ``output_values``, ``cross_guided_supports``.
    """

    version: str
    api_version: str
    engine: str
    store: str
    limits: Mapping[str, int]
