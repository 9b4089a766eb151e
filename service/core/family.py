"""What the core knows about a model family: the contract of docs/repository.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from service.core.letterbox import letterboxed
from service.core.types import Size


class GraphRole(StrEnum):
    """The graphs of a family, and the two ensembles over them."""

    FEATURES = "features"
    QUERY_FEATURES = "query_features"
    GUIDE = "guide"
    MERGE = "merge"
    DECODE = "decode"
    SUPPORT_ENCODER = "support_encoder"
    QUERY_DECODER = "query_decoder"


class InputDtype(StrEnum):
    """How the image tensor holds a pixel."""

    UINT8 = "uint8"
    #: value x 256, for methods that resize floats.
    UINT16_FIXED = "uint16_8.8"


class ImageResize(StrEnum):
    """How a photograph becomes the network's input."""

    #: Pillow's bilinear (triangle filter, antialiased when shrinking), aspect not kept.
    PIL_BILINEAR = "pil_bilinear"
    #: OpenCV's INTER_LINEAR on floats, aspect kept, on the top left of a square black canvas.
    CV2_LETTERBOX = "cv2_letterbox"
    #: The network takes the image's own size.
    NONE = "none"


class MaskResize(StrEnum):
    """How a dense mask becomes an annotation plane."""

    #: Pillow's nearest: source index floor((i + 0.5) * in / out).
    PIL_NEAREST = "pil_nearest"
    #: Torch's "nearest": source index floor(i * in / out), the product in float32.
    TORCH_NEAREST = "torch_nearest"
    #: OpenCV's INTER_NEAREST, to the part of the canvas that the image covers.
    CV2_LETTERBOX_NEAREST = "cv2_letterbox_nearest"
    NONE = "none"


class ClassHandling(StrEnum):
    """Whether ways compete in one network run."""

    #: Plane 0 of the logits is background, plane i is way i.
    MULTIWAY = "multiway"
    #: One foreground-minus-background margin plane per way.
    BINARY = "binary"


class VoidRule(StrEnum):
    """What void pixels of a support are to the method."""

    BACKGROUND = "background"
    UNKNOWN = "unknown"


class MergeRule(StrEnum):
    """How the guidance of shots becomes that of a task (DESIGN, merge rules)."""

    MEAN = "mean"
    WEIGHTED_MEAN = "weighted_mean"
    STACK = "stack"
    #: An output of the ``merge`` graph.
    GRAPH = "graph"


class WayAxis(StrEnum):
    """What the first inner axis of a guidance tensor counts."""

    #: Row 0 background, row i way i.
    BACKGROUND_AND_WAYS = "background_and_ways"
    WAYS = "ways"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class GuidanceTensor:
    """One tensor of guidance.

    Attributes:
        name: Output of ``guide`` (of ``merge`` for the rule ``graph``) and input of ``decode``.
        merge: How shots are merged.
        ways: What its first inner axis counts.
        weight: For ``weighted_mean``: the output of ``guide`` that weighs its rows.
        validity: For ``stack`` and for ``graph`` with an axis of shots: the input of
            ``decode`` that marks real shots among padded ones, float32 [shots].
        positions: For ``stack``: whether the axis after the ways counts stored positions,
            as many as the busiest way needs; rows of zeros follow where a way needs fewer.
    """

    name: str
    merge: MergeRule
    ways: WayAxis
    weight: str | None = None
    validity: str | None = None
    positions: bool = False

    @property
    def positions_axis(self) -> int:
        """The axis of a shot's tensor that counts stored positions, if one does."""
        return 0 if self.ways is WayAxis.NONE else 1


class PostOp(StrEnum):
    """A linear step from logits to the output size."""

    RESIZE = "resize"
    DECONVOLVE = "deconvolve"
    CROP = "crop"


class ResizeMode(StrEnum):
    """Where the samples of a resize lie."""

    HALF_PIXEL = "half_pixel"
    ALIGN_CORNERS = "align_corners"


class PostTarget(StrEnum):
    """A size that is known once the image is."""

    #: The network's input.
    INPUT = "input"
    #: The photograph.
    ORIGINAL = "original"
    #: What of the network's input the photograph covers.
    EXTENT = "extent"
    #: A square of the photograph's longer side.
    LONGEST_SQUARE = "longest_square"
    #: What the caller asked for. Always the last step, and only there.
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class PostStep:
    """One linear step of the post chain.

    Attributes:
        op: ``resize`` (to ``target``), ``deconvolve`` (revolver: stride
            ``factor``, kernel 2 * factor, triangle not normalised) or ``crop``
            (keep rows and columns [0, target)).
        mode: For ``resize``.
        target: For ``resize`` and ``crop``.
        factor: For ``deconvolve``.
    """

    op: PostOp
    target: PostTarget | None = None
    mode: ResizeMode = ResizeMode.HALF_PIXEL
    factor: int = 0


class Decision(StrEnum):
    """How logits at the output size become labels."""

    #: Highest plane wins, ties to the lower one.
    ARGMAX = "argmax"
    #: Highest margin wins; all at or below the threshold is background.
    MARGIN = "margin"
    #: Foreground where any shot's margin is above the threshold (SG-One's OR).
    ANY_SHOT = "any_shot"
    #: HSNet: votes / max(1, highest vote in the image) >= 0.5.
    VOTE = "vote"


class ScoreMeaning(StrEnum):
    """What a probability of a class is."""

    #: Soft-max over background and ways.
    SOFTMAX = "softmax"
    #: Logistic function of the margin.
    SIGMOID = "sigmoid"
    #: (1 + margin) / 2, of margins that are differences of probabilities.
    LINEAR = "linear"


class FeatureReuse(StrEnum):
    """Whether feature maps of queries are kept for other tasks and further clicks."""

    ALWAYS = "always"
    #: From the second time on that an image is asked for.
    SECOND_USE = "second_use"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """Five to seven graphs that belong together, and how to use them.

    Attributes:
        name: ``<alias>-<digest8>``.
        alias: What tasks name.
        method: Such as "panet".
        digest: Hexadecimal digest of checkpoint and export settings.
        created: When it was exported, UTC.
        graphs: What it consists of.
        input_size: The network's input; None for the image's own size.
        input_dtype, image_resize, mask_resize: Preprocessing.
        class_handling: Whether ways compete.
        needs_background: Whether the method cannot do without background evidence.
        void: What void pixels are.
        guidance: The tensors from ``guide`` to ``decode``.
        post_chain: From logits to the output size.
        decision, threshold, score: From logits to labels and probabilities.
        way_buckets, shot_buckets, position_buckets: Padded lengths of inner axes, ascending.
        feature_reuse: Policy.
        provenance: For people.
        min_side: Fewest rows and columns of an image that goes in at its own size.
        max_pixels: Most pixels of such an image; None for as many as the server takes.
        extent_roles: Graphs that are told which part of the input the image covers.
        merge_inputs: What ``merge`` takes of every shot, stacked.
        merge_judged: What ``merge`` takes of the one shot that a run judges; if there is
            none, one run merges the whole set.
    """

    name: str
    alias: str
    method: str
    digest: str
    created: datetime
    graphs: frozenset[GraphRole]
    input_size: Size | None
    input_dtype: InputDtype
    image_resize: ImageResize
    mask_resize: MaskResize
    class_handling: ClassHandling
    needs_background: bool
    void: VoidRule
    guidance: tuple[GuidanceTensor, ...]
    post_chain: tuple[PostStep, ...]
    decision: Decision
    threshold: float
    score: ScoreMeaning
    way_buckets: tuple[int, ...]
    shot_buckets: tuple[int, ...]
    feature_reuse: FeatureReuse = FeatureReuse.ALWAYS
    provenance: Mapping[str, str] = field(default_factory=dict)
    min_side: int = 1
    max_pixels: int | None = None
    position_buckets: tuple[int, ...] = ()
    extent_roles: frozenset[GraphRole] = frozenset()
    merge_inputs: tuple[str, ...] = ()
    merge_judged: tuple[str, ...] = ()

    @property
    def background_planes(self) -> int:
        """How many logit planes come before those of the ways."""
        return 1 if self.class_handling is ClassHandling.MULTIWAY else 0

    @property
    def most_shots(self) -> int | None:
        """The most shots of a task; None where their number leaves no axis in any tensor."""
        bounded = (MergeRule.STACK, MergeRule.GRAPH)
        if any(tensor.merge in bounded for tensor in self.guidance):
            return self.shot_buckets[-1]
        return None

    def network_size(self, image: Size) -> Size:
        """Size of the network's input for an image of that size."""
        return self.input_size or image

    def extent(self, image: Size) -> Size:
        """Rows and columns of the network's input, from the top left, that an image covers."""
        if self.image_resize is ImageResize.CV2_LETTERBOX:
            return letterboxed(image, self.network_size(image).height)
        return self.network_size(image)

    def takes_extent(self, role: GraphRole) -> bool:
        """Whether a graph, or a step of an ensemble, has the input ``extent``."""
        return not self.extent_roles.isdisjoint(_STEPS.get(role, (role,)))


#: The steps of the ensembles that can take more than the step before them makes.
_STEPS: Final[Mapping[GraphRole, tuple[GraphRole, ...]]] = {
    GraphRole.SUPPORT_ENCODER: (GraphRole.GUIDE,),
    GraphRole.QUERY_DECODER: (GraphRole.QUERY_FEATURES, GraphRole.DECODE),
}
