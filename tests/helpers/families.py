"""Families that exist on paper only."""

from __future__ import annotations

from datetime import UTC, datetime

from service.core.family import (
    ClassHandling,
    Decision,
    GraphRole,
    GuidanceTensor,
    ImageResize,
    InputDtype,
    MaskResize,
    MergeRule,
    ModelFamily,
    PostOp,
    PostStep,
    PostTarget,
    ResizeMode,
    ScoreMeaning,
    VoidRule,
    WayAxis,
)
from service.core.types import Size


def panet_like(side: int = 417) -> ModelFamily:
    """What docs/repository.md says of PANet."""
    return ModelFamily(
        name="panet-00000000",
        alias="panet",
        method="panet",
        digest="0" * 64,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        graphs=frozenset(
            {
                GraphRole.FEATURES,
                GraphRole.GUIDE,
                GraphRole.DECODE,
                GraphRole.SUPPORT_ENCODER,
                GraphRole.QUERY_DECODER,
            }
        ),
        input_size=Size(side, side),
        input_dtype=InputDtype.UINT8,
        image_resize=ImageResize.PIL_BILINEAR,
        mask_resize=MaskResize.PIL_NEAREST,
        class_handling=ClassHandling.MULTIWAY,
        needs_background=True,
        void=VoidRule.BACKGROUND,
        guidance=(
            GuidanceTensor(
                "prototypes", MergeRule.WEIGHTED_MEAN, WayAxis.BACKGROUND_AND_WAYS, "weights"
            ),
        ),
        post_chain=(
            PostStep(PostOp.RESIZE, PostTarget.INPUT, ResizeMode.HALF_PIXEL),
            PostStep(PostOp.RESIZE, PostTarget.OUTPUT, ResizeMode.HALF_PIXEL),
        ),
        decision=Decision.ARGMAX,
        threshold=0.0,
        score=ScoreMeaning.SOFTMAX,
        way_buckets=(1, 2, 4, 8),
        shot_buckets=(1, 5, 10),
    )
