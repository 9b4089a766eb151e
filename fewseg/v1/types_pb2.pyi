import datetime

from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BackgroundEvidence(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKGROUND_EVIDENCE_UNSPECIFIED: _ClassVar[BackgroundEvidence]
    BACKGROUND_EVIDENCE_GIVEN: _ClassVar[BackgroundEvidence]
    BACKGROUND_EVIDENCE_INFERRED: _ClassVar[BackgroundEvidence]

class MaskFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MASK_FORMAT_UNSPECIFIED: _ClassVar[MaskFormat]
    MASK_FORMAT_PNG: _ClassVar[MaskFormat]
    MASK_FORMAT_COCO_RLE: _ClassVar[MaskFormat]
    MASK_FORMAT_RAW: _ClassVar[MaskFormat]
BACKGROUND_EVIDENCE_UNSPECIFIED: BackgroundEvidence
BACKGROUND_EVIDENCE_GIVEN: BackgroundEvidence
BACKGROUND_EVIDENCE_INFERRED: BackgroundEvidence
MASK_FORMAT_UNSPECIFIED: MaskFormat
MASK_FORMAT_PNG: MaskFormat
MASK_FORMAT_COCO_RLE: MaskFormat
MASK_FORMAT_RAW: MaskFormat

class Image(_message.Message):
    __slots__ = ("encoded", "raw")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    encoded: bytes
    raw: RawImage
    def __init__(self, encoded: _Optional[bytes] = ..., raw: _Optional[_Union[RawImage, _Mapping]] = ...) -> None: ...

class RawImage(_message.Message):
    __slots__ = ("rgb", "height", "width")
    RGB_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    rgb: bytes
    height: int
    width: int
    def __init__(self, rgb: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class Annotation(_message.Message):
    __slots__ = ("marks", "exhaustive", "shot_classes")
    MARKS_FIELD_NUMBER: _ClassVar[int]
    EXHAUSTIVE_FIELD_NUMBER: _ClassVar[int]
    SHOT_CLASSES_FIELD_NUMBER: _ClassVar[int]
    marks: _containers.RepeatedCompositeFieldContainer[Mark]
    exhaustive: bool
    shot_classes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, marks: _Optional[_Iterable[_Union[Mark, _Mapping]]] = ..., exhaustive: _Optional[bool] = ..., shot_classes: _Optional[_Iterable[str]] = ...) -> None: ...

class Mark(_message.Message):
    __slots__ = ("class_name", "background", "index_mask", "run_length_mask", "polygon", "points", "scribble", "box")
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    INDEX_MASK_FIELD_NUMBER: _ClassVar[int]
    RUN_LENGTH_MASK_FIELD_NUMBER: _ClassVar[int]
    POLYGON_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    SCRIBBLE_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    class_name: str
    background: bool
    index_mask: IndexMask
    run_length_mask: RunLengthMask
    polygon: Polygon
    points: Points
    scribble: Scribble
    box: Box
    def __init__(self, class_name: _Optional[str] = ..., background: _Optional[bool] = ..., index_mask: _Optional[_Union[IndexMask, _Mapping]] = ..., run_length_mask: _Optional[_Union[RunLengthMask, _Mapping]] = ..., polygon: _Optional[_Union[Polygon, _Mapping]] = ..., points: _Optional[_Union[Points, _Mapping]] = ..., scribble: _Optional[_Union[Scribble, _Mapping]] = ..., box: _Optional[_Union[Box, _Mapping]] = ...) -> None: ...

class IndexMask(_message.Message):
    __slots__ = ("png", "class_of_value", "void_values")
    class ClassOfValueEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    PNG_FIELD_NUMBER: _ClassVar[int]
    CLASS_OF_VALUE_FIELD_NUMBER: _ClassVar[int]
    VOID_VALUES_FIELD_NUMBER: _ClassVar[int]
    png: bytes
    class_of_value: _containers.ScalarMap[int, str]
    void_values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, png: _Optional[bytes] = ..., class_of_value: _Optional[_Mapping[int, str]] = ..., void_values: _Optional[_Iterable[int]] = ...) -> None: ...

class RunLengthMask(_message.Message):
    __slots__ = ("height", "width", "compressed", "lengths")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    compressed: str
    lengths: RunLengths
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., compressed: _Optional[str] = ..., lengths: _Optional[_Union[RunLengths, _Mapping]] = ...) -> None: ...

class RunLengths(_message.Message):
    __slots__ = ("counts",)
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, counts: _Optional[_Iterable[int]] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("x", "y")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ...) -> None: ...

class Polygon(_message.Message):
    __slots__ = ("rings",)
    RINGS_FIELD_NUMBER: _ClassVar[int]
    rings: _containers.RepeatedCompositeFieldContainer[Ring]
    def __init__(self, rings: _Optional[_Iterable[_Union[Ring, _Mapping]]] = ...) -> None: ...

class Ring(_message.Message):
    __slots__ = ("vertices",)
    VERTICES_FIELD_NUMBER: _ClassVar[int]
    vertices: _containers.RepeatedCompositeFieldContainer[Point]
    def __init__(self, vertices: _Optional[_Iterable[_Union[Point, _Mapping]]] = ...) -> None: ...

class Points(_message.Message):
    __slots__ = ("points", "radius")
    POINTS_FIELD_NUMBER: _ClassVar[int]
    RADIUS_FIELD_NUMBER: _ClassVar[int]
    points: _containers.RepeatedCompositeFieldContainer[Point]
    radius: float
    def __init__(self, points: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., radius: _Optional[float] = ...) -> None: ...

class Scribble(_message.Message):
    __slots__ = ("vertices", "width")
    VERTICES_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    vertices: _containers.RepeatedCompositeFieldContainer[Point]
    width: float
    def __init__(self, vertices: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., width: _Optional[float] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("x_min", "y_min", "x_max", "y_max")
    X_MIN_FIELD_NUMBER: _ClassVar[int]
    Y_MIN_FIELD_NUMBER: _ClassVar[int]
    X_MAX_FIELD_NUMBER: _ClassVar[int]
    Y_MAX_FIELD_NUMBER: _ClassVar[int]
    x_min: float
    y_min: float
    x_max: float
    y_max: float
    def __init__(self, x_min: _Optional[float] = ..., y_min: _Optional[float] = ..., x_max: _Optional[float] = ..., y_max: _Optional[float] = ...) -> None: ...

class Mask(_message.Message):
    __slots__ = ("height", "width", "png", "raw", "run_lengths")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    RUN_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    png: bytes
    raw: bytes
    run_lengths: ClassRunLengths
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., png: _Optional[bytes] = ..., raw: _Optional[bytes] = ..., run_lengths: _Optional[_Union[ClassRunLengths, _Mapping]] = ...) -> None: ...

class ClassRunLengths(_message.Message):
    __slots__ = ("masks",)
    MASKS_FIELD_NUMBER: _ClassVar[int]
    masks: _containers.RepeatedCompositeFieldContainer[RunLengthMask]
    def __init__(self, masks: _Optional[_Iterable[_Union[RunLengthMask, _Mapping]]] = ...) -> None: ...

class PixelBox(_message.Message):
    __slots__ = ("x_min", "y_min", "x_max", "y_max")
    X_MIN_FIELD_NUMBER: _ClassVar[int]
    Y_MIN_FIELD_NUMBER: _ClassVar[int]
    X_MAX_FIELD_NUMBER: _ClassVar[int]
    Y_MAX_FIELD_NUMBER: _ClassVar[int]
    x_min: int
    y_min: int
    x_max: int
    y_max: int
    def __init__(self, x_min: _Optional[int] = ..., y_min: _Optional[int] = ..., x_max: _Optional[int] = ..., y_max: _Optional[int] = ...) -> None: ...

class ClassResult(_message.Message):
    __slots__ = ("class_name", "value", "area", "box", "mean_score")
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    AREA_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    MEAN_SCORE_FIELD_NUMBER: _ClassVar[int]
    class_name: str
    value: int
    area: int
    box: PixelBox
    mean_score: float
    def __init__(self, class_name: _Optional[str] = ..., value: _Optional[int] = ..., area: _Optional[int] = ..., box: _Optional[_Union[PixelBox, _Mapping]] = ..., mean_score: _Optional[float] = ...) -> None: ...

class Probabilities(_message.Message):
    __slots__ = ("values", "planes", "height", "width")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PLANES_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    values: bytes
    planes: int
    height: int
    width: int
    def __init__(self, values: _Optional[bytes] = ..., planes: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue", "image_decode", "resize", "rasterise", "features", "guide", "merge", "decode", "upsample", "encode", "store", "total", "leave_one_out")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_DECODE_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    RASTERISE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    GUIDE_FIELD_NUMBER: _ClassVar[int]
    MERGE_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    UPSAMPLE_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    LEAVE_ONE_OUT_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    image_decode: _duration_pb2.Duration
    resize: _duration_pb2.Duration
    rasterise: _duration_pb2.Duration
    features: _duration_pb2.Duration
    guide: _duration_pb2.Duration
    merge: _duration_pb2.Duration
    decode: _duration_pb2.Duration
    upsample: _duration_pb2.Duration
    encode: _duration_pb2.Duration
    store: _duration_pb2.Duration
    total: _duration_pb2.Duration
    leave_one_out: _duration_pb2.Duration
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., image_decode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., resize: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., rasterise: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., features: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., guide: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., merge: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., decode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., upsample: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., encode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., store: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., leave_one_out: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Reuse(_message.Message):
    __slots__ = ("features", "guidance")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    features: bool
    guidance: bool
    def __init__(self, features: _Optional[bool] = ..., guidance: _Optional[bool] = ...) -> None: ...
