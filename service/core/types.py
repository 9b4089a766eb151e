"""The domain's nouns. Plain values: no wire types, no engine, no database."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

#: Names the label of a negative mark; no class may be called so.
BACKGROUND: Final = ""


@dataclass(frozen=True, slots=True)
class Size:
    """Rows and columns, in pixels or grid cells."""

    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Rows times columns."""
        return self.height * self.width

    def __str__(self) -> str:
        """Rows x columns."""
        return f"{self.height}x{self.width}"


@dataclass(frozen=True, slots=True)
class SourceImage:
    """A picture whose header was checked and whose pixels were not decoded yet.

    Attributes:
        data: The file's bytes, or raw RGB bytes when ``raw``.
        size: Rows and columns after EXIF orientation.
        raw: Whether ``data`` is height * width * 3 bytes of RGB.
        digest: Hexadecimal SHA-256 of what ``data`` means (the raw form counts its size in).
        opened: At most one thing: a JPEG file as its inspection left it open. Who decodes the image
            takes it out; whoever comes later opens the file again.
    """

    data: bytes
    size: Size
    raw: bool
    digest: str
    opened: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)


class IndexMask(msgspec.Struct, frozen=True, tag=True):
    """A dense mask: one stored number per pixel.

    Attributes:
        png: Grey or palette PNG of the image's size.
        class_of_value: Class named by a stored number.
        void_values: Numbers that are neither class nor background.
    """

    png: bytes
    class_of_value: dict[int, str]
    void_values: tuple[int, ...] = ()


class RunLengthMask(msgspec.Struct, frozen=True, tag=True):
    """A binary mask as a compressed COCO run-length string (column-major, zeros first)."""

    size: Size
    counts: bytes


class Polygon(msgspec.Struct, frozen=True, tag=True):
    """United rings of (x, y) vertices in image pixels, three or more each."""

    rings: tuple[tuple[tuple[float, float], ...], ...]


class Points(msgspec.Struct, frozen=True, tag=True):
    """Clicks at (x, y), each labelling what lies within ``radius`` image pixels."""

    points: tuple[tuple[float, float], ...]
    radius: float = 0.0


class Scribble(msgspec.Struct, frozen=True, tag=True):
    """A stroke along (x, y) vertices with a round brush of ``width`` image pixels (0 means 1)."""

    vertices: tuple[tuple[float, float], ...]
    width: float = 0.0


class Box(msgspec.Struct, frozen=True, tag=True):
    """The half-open rectangle [x_min, x_max) x [y_min, y_max) in image pixels."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


Geometry = IndexMask | RunLengthMask | Polygon | Points | Scribble | Box


@dataclass(frozen=True, slots=True)
class Mark:
    """What one geometry says of the pixels it covers.

    Attributes:
        geometry: The pixels.
        class_name: The class of a positive mark, ``BACKGROUND`` for a negative
            one, None for an index mask, which names its own classes.
    """

    geometry: Geometry
    class_name: str | None


@dataclass(frozen=True, slots=True)
class Annotation:
    """What is known about the pixels of one support image.

    Attributes:
        marks: Painted in order on an unlabelled plane.
        exhaustive: Whether the unlabelled rest is background.
        shot_classes: The classes that the image is a shot of; labelled pixels of
            other classes are neither foreground nor background.
    """

    marks: tuple[Mark, ...]
    exhaustive: bool
    shot_classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnnotationInput:
    """An annotation as a caller gives it, before it is checked against a task.

    Attributes:
        marks: At least one.
        exhaustive: None for the rule: yes if a mark is dense (index mask, run lengths).
        shot_classes: Empty for every class that a mark labels.
    """

    marks: tuple[Mark, ...]
    exhaustive: bool | None = None
    shot_classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SupportInput:
    """A support as a caller gives it; an empty id asks for one."""

    support_id: str
    image: SourceImage
    annotation: AnnotationInput


@dataclass(frozen=True, slots=True)
class Support:
    """A support as a task keeps it: its image lives in the store under the digest."""

    support_id: str
    image_digest: str
    image_size: Size
    annotation: Annotation
    annotation_digest: str


@dataclass(frozen=True, slots=True, order=True)
class TaskName:
    """tenants/{tenant}/tasks/{task}."""

    tenant: str
    task: str

    def __str__(self) -> str:
        """The resource name."""
        return f"tenants/{self.tenant}/tasks/{self.task}"


class BackgroundEvidence(StrEnum):
    """Where a task's background evidence comes from (DESIGN: no background evidence)."""

    GIVEN = "given"
    INFERRED = "inferred"


class ShotFusion(StrEnum):
    """How the shots of a task become one answer."""

    #: By the rules of the model's family; a query decodes once.
    MERGED = "merged"
    #: Each shot decodes alone, weighed by how well it finds all of them; see ``fusing``.
    CROSS_GUIDED = "cross_guided"


@dataclass(frozen=True, slots=True)
class TaskHeader:
    """Everything about a task but its supports.

    Attributes:
        name: Resource name.
        uid: Random, 16 hexadecimal digits; differs for a re-registered name.
        display_name: Free text.
        model: Alias of a model.
        classes: Ways, in mask order (value 1 first).
        revision: 1 when registered, plus 1 with every change.
        support_count: Number of supports.
        create_time, update_time: UTC.
        expire_time: UTC, or None for never.
        background: Where the background evidence of this revision came from.
        fusion: How the shots become one answer.
    """

    name: TaskName
    uid: str
    display_name: str
    model: str
    classes: tuple[str, ...]
    revision: int
    support_count: int
    create_time: datetime
    update_time: datetime
    expire_time: datetime | None = None
    background: BackgroundEvidence = BackgroundEvidence.GIVEN
    fusion: ShotFusion = ShotFusion.MERGED

    @property
    def etag(self) -> str:
        """Identifies this revision of this incarnation of the task."""
        return f"{self.uid}-{self.revision}"

    def expired(self, now: datetime) -> bool:
        """Whether the task has ended by itself."""
        return self.expire_time is not None and self.expire_time <= now


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task with its support set: the truth from which guidance is derived."""

    header: TaskHeader
    supports: tuple[Support, ...]

    def support(self, support_id: str) -> Support | None:
        """The support of that id, or None."""
        return next((s for s in self.supports if s.support_id == support_id), None)


@dataclass(frozen=True, slots=True)
class Registration:
    """A task to register.

    Attributes:
        tenant: Who owns it.
        task_id: Last part of its name; empty asks for one.
        display_name: Free text.
        model: Alias; empty for the default.
        classes: Ways, in mask order.
        supports: The first supports; together they show every class.
        expiration: A moment (UTC), a time from now, or None for never.
        request_id: UUID, or empty.
        fusion: How the shots become one answer.
    """

    tenant: str
    task_id: str
    display_name: str
    model: str
    classes: tuple[str, ...]
    supports: tuple[SupportInput, ...]
    expiration: datetime | timedelta | None = None
    request_id: str = ""
    fusion: ShotFusion = ShotFusion.MERGED


@dataclass(frozen=True, slots=True)
class ClassAgreement:
    """Intersection over union of a prediction with an annotation on its labelled pixels."""

    class_name: str
    iou: float


@dataclass(frozen=True, slots=True)
class SupportSummary:
    """A support as an answer shows it: its pixels and marks stay in the store.

    Attributes:
        support_id: Unique in the task.
        image_size: Of the image.
        shot_classes: See ``Annotation``.
        mark_count: Of its annotation.
        classes_without_pixels: Those of the shot classes of which the network gets no pixel;
            known when a task changes.
    """

    support_id: str
    image_size: Size
    shot_classes: tuple[str, ...]
    mark_count: int
    classes_without_pixels: tuple[str, ...] = ()

    @classmethod
    def of(cls, support: Support, classes_without_pixels: tuple[str, ...] = ()) -> SupportSummary:
        """The summary of a support."""
        annotation = support.annotation
        return cls(
            support.support_id,
            support.image_size,
            annotation.shot_classes,
            len(annotation.marks),
            classes_without_pixels,
        )


@dataclass(frozen=True, slots=True)
class TaskReport:
    """A task as an answer shows it.

    Attributes:
        header: Everything but the supports.
        supports: In the order of the set.
        family: Family that the alias stands for.
        guidance_bytes: Size of the merged guidance in memory; 0 when it was let go.
        leave_one_out: Agreement by support id, where it was computed.
    """

    header: TaskHeader
    supports: tuple[SupportSummary, ...]
    family: str
    guidance_bytes: int
    leave_one_out: dict[str, tuple[ClassAgreement, ...]] = field(default_factory=dict)

    @property
    def background(self) -> BackgroundEvidence:
        """Where the background evidence comes from."""
        return self.header.background


class MaskFormat(StrEnum):
    """How a mask is written."""

    PNG = "png"
    COCO_RLE = "coco_rle"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How an answer is to look.

    Attributes:
        format: Of the mask.
        size: "original", "network", or a size.
        probabilities: Whether to return them per pixel.
    """

    format: MaskFormat = MaskFormat.PNG
    size: Size | str = "original"
    probabilities: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """An image to segment.

    Attributes:
        task: Under which task.
        image: The image, or the id of a support of the task whose image it is.
        options: How the answer is to look.
        etag: If not empty, only this revision answers.
    """

    task: TaskName
    image: SourceImage | str
    options: OutputOptions
    etag: str = ""


@dataclass(frozen=True, slots=True)
class ClassResult:
    """What a mask says of one class.

    Attributes:
        class_name: The class.
        value: Its number in the mask, from 1.
        area: Pixels.
        box: (x_min, y_min, x_max, y_max), half-open; None when the area is 0.
        mean_score: Mean probability over its pixels, in [0, 1]; 0 when the area is 0.
    """

    class_name: str
    value: int
    area: int
    box: tuple[int, int, int, int] | None
    mean_score: float


@dataclass(frozen=True, slots=True)
class DecidedMask:
    """The outcome of the decision, before it is written in a format.

    Attributes:
        labels: uint8 [height, width]; 0 background, i the i-th way.
        areas: int64 [ways].
        boxes: One per way; None where the area is 0.
        mean_scores: float64 [ways].
        probabilities: float16 [planes, height, width] if asked for.
    """

    labels: NDArray[np.uint8]
    areas: NDArray[np.int64]
    boxes: tuple[tuple[int, int, int, int] | None, ...]
    mean_scores: NDArray[np.float64]
    probabilities: NDArray[np.float16] | None = None


@dataclass(frozen=True, slots=True)
class EncodedMask:
    """A mask as it leaves: PNG or raw bytes, or one run-length mask per class."""

    size: Size
    format: MaskFormat
    content: bytes | tuple[RunLengthMask, ...]


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The answer to a query.

    Attributes:
        mask: In the format asked for.
        classes: One per way, in order.
        probabilities: float16 [planes, height, width] if asked for.
        family, etag: What made the answer.
        background: Where the task's background evidence came from.
        features_reused, guidance_reused: What was at hand.
    """

    mask: EncodedMask
    classes: tuple[ClassResult, ...]
    probabilities: NDArray[np.float16] | None
    family: str
    etag: str
    background: BackgroundEvidence
    features_reused: bool
    guidance_reused: bool
