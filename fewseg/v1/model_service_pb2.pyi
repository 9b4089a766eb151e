import datetime

from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.api import resource_pb2 as _resource_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Model(_message.Message):
    __slots__ = ("name", "alias", "family", "method", "input_height", "input_width", "class_handling", "decision", "score", "create_time", "provenance", "default")
    class ProvenanceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    INPUT_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    INPUT_WIDTH_FIELD_NUMBER: _ClassVar[int]
    CLASS_HANDLING_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    alias: str
    family: str
    method: str
    input_height: int
    input_width: int
    class_handling: str
    decision: str
    score: str
    create_time: _timestamp_pb2.Timestamp
    provenance: _containers.ScalarMap[str, str]
    default: bool
    def __init__(self, name: _Optional[str] = ..., alias: _Optional[str] = ..., family: _Optional[str] = ..., method: _Optional[str] = ..., input_height: _Optional[int] = ..., input_width: _Optional[int] = ..., class_handling: _Optional[str] = ..., decision: _Optional[str] = ..., score: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., provenance: _Optional[_Mapping[str, str]] = ..., default: _Optional[bool] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RefreshModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RefreshModelsResponse(_message.Message):
    __slots__ = ("models", "problems")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerInfo(_message.Message):
    __slots__ = ("version", "api_version", "engine", "store", "limits")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    API_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    version: str
    api_version: str
    engine: str
    store: str
    limits: Limits
    def __init__(self, version: _Optional[str] = ..., api_version: _Optional[str] = ..., engine: _Optional[str] = ..., store: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("message_bytes", "image_pixels", "supports", "classes", "marks", "vertices", "tasks", "in_flight", "stream_frames", "annotation_bytes", "output_pixels", "image_side", "mask_pixels", "mask_values", "output_values", "cross_guided_supports")
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    SUPPORTS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    VERTICES_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    STREAM_FRAMES_FIELD_NUMBER: _ClassVar[int]
    ANNOTATION_BYTES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_PIXELS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIDE_FIELD_NUMBER: _ClassVar[int]
    MASK_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MASK_VALUES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_VALUES_FIELD_NUMBER: _ClassVar[int]
    CROSS_GUIDED_SUPPORTS_FIELD_NUMBER: _ClassVar[int]
    message_bytes: int
    image_pixels: int
    supports: int
    classes: int
    marks: int
    vertices: int
    tasks: int
    in_flight: int
    stream_frames: int
    annotation_bytes: int
    output_pixels: int
    image_side: int
    mask_pixels: int
    mask_values: int
    output_values: int
    cross_guided_supports: int
    def __init__(self, message_bytes: _Optional[int] = ..., image_pixels: _Optional[int] = ..., supports: _Optional[int] = ..., classes: _Optional[int] = ..., marks: _Optional[int] = ..., vertices: _Optional[int] = ..., tasks: _Optional[int] = ..., in_flight: _Optional[int] = ..., stream_frames: _Optional[int] = ..., annotation_bytes: _Optional[int] = ..., output_pixels: _Optional[int] = ..., image_side: _Optional[int] = ..., mask_pixels: _Optional[int] = ..., mask_values: _Optional[int] = ..., output_values: _Optional[int] = ..., cross_guided_supports: _Optional[int] = ...) -> None: ...
