"""A model family for tests of the core's pixel work."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from service.core.family import (
    ClassHandling,
    Decision,
    ImageResize,
    InputDtype,
    MaskResize,
    ModelFamily,
    PostOp,
    PostStep,
    PostTarget,
    ResizeMode,
    ScoreMeaning,
    VoidRule,
)
from service.core.types import Size

_MULTIWAY = ModelFamily(
    name="sample-00000000",
    alias="sample",
    method="panet",
    digest="0" * 64,
    created=datetime(2026, 1, 1, tzinfo=UTC),
    graphs=frozenset(),
    input_size=Size(33, 33),
    input_dtype=InputDtype.UINT8,
    image_resize=ImageResize.PIL_BILINEAR,
    mask_resize=MaskResize.PIL_NEAREST,
    class_handling=ClassHandling.MULTIWAY,
    needs_background=True,
    void=VoidRule.BACKGROUND,
    guidance=(),
    post_chain=(
        PostStep(PostOp.RESIZE, PostTarget.INPUT),
        PostStep(PostOp.RESIZE, PostTarget.OUTPUT),
    ),
    decision=Decision.ARGMAX,
    threshold=0.0,
    score=ScoreMeaning.SOFTMAX,
    way_buckets=(1, 2, 4),
    shot_buckets=(1, 5),
)


def multiway(**changes: Any) -> ModelFamily:
    """A family whose classes and background compete."""
    return replace(_MULTIWAY, **changes)


def binary(**changes: Any) -> ModelFamily:
    """A family of one margin per class."""
    settings = {
        "class_handling": ClassHandling.BINARY,
        "decision": Decision.MARGIN,
        "score": ScoreMeaning.SIGMOID,
    }
    return replace(_MULTIWAY, **(settings | changes))


def resize(target: PostTarget, mode: ResizeMode = ResizeMode.HALF_PIXEL) -> PostStep:
    return PostStep(PostOp.RESIZE, target, mode)
