import datetime

from fewseg.v1 import types_pb2 as _types_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.api import resource_pb2 as _resource_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ShotFusion(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SHOT_FUSION_UNSPECIFIED: _ClassVar[ShotFusion]
    SHOT_FUSION_MERGED: _ClassVar[ShotFusion]
    SHOT_FUSION_CROSS_GUIDED: _ClassVar[ShotFusion]

class AnnotationMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ANNOTATION_MODE_UNSPECIFIED: _ClassVar[AnnotationMode]
    ANNOTATION_MODE_REPLACE: _ClassVar[AnnotationMode]
    ANNOTATION_MODE_EXTEND: _ClassVar[AnnotationMode]
SHOT_FUSION_UNSPECIFIED: ShotFusion
SHOT_FUSION_MERGED: ShotFusion
SHOT_FUSION_CROSS_GUIDED: ShotFusion
ANNOTATION_MODE_UNSPECIFIED: AnnotationMode
ANNOTATION_MODE_REPLACE: AnnotationMode
ANNOTATION_MODE_EXTEND: AnnotationMode

class Task(_message.Message):
    __slots__ = ("name", "uid", "display_name", "model", "classes", "supports", "support_count", "etag", "create_time", "update_time", "expire_time", "ttl", "background_evidence", "family", "guidance_bytes", "shot_fusion")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    SUPPORTS_FIELD_NUMBER: _ClassVar[int]
    SUPPORT_COUNT_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHOT_FUSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    display_name: str
    model: str
    classes: _containers.RepeatedScalarFieldContainer[str]
    supports: _containers.RepeatedCompositeFieldContainer[Support]
    support_count: int
    etag: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    ttl: _duration_pb2.Duration
    background_evidence: _types_pb2.BackgroundEvidence
    family: str
    guidance_bytes: int
    shot_fusion: ShotFusion
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., display_name: _Optional[str] = ..., model: _Optional[str] = ..., classes: _Optional[_Iterable[str]] = ..., supports: _Optional[_Iterable[_Union[Support, _Mapping]]] = ..., support_count: _Optional[int] = ..., etag: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., background_evidence: _Optional[_Union[_types_pb2.BackgroundEvidence, str]] = ..., family: _Optional[str] = ..., guidance_bytes: _Optional[int] = ..., shot_fusion: _Optional[_Union[ShotFusion, str]] = ...) -> None: ...

class SupportInput(_message.Message):
    __slots__ = ("support_id", "image", "annotation")
    SUPPORT_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    ANNOTATION_FIELD_NUMBER: _ClassVar[int]
    support_id: str
    image: _types_pb2.Image
    annotation: _types_pb2.Annotation
    def __init__(self, support_id: _Optional[str] = ..., image: _Optional[_Union[_types_pb2.Image, _Mapping]] = ..., annotation: _Optional[_Union[_types_pb2.Annotation, _Mapping]] = ...) -> None: ...

class Support(_message.Message):
    __slots__ = ("support_id", "height", "width", "shot_classes", "mark_count", "leave_one_out", "classes_without_pixels")
    SUPPORT_ID_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    SHOT_CLASSES_FIELD_NUMBER: _ClassVar[int]
    MARK_COUNT_FIELD_NUMBER: _ClassVar[int]
    LEAVE_ONE_OUT_FIELD_NUMBER: _ClassVar[int]
    CLASSES_WITHOUT_PIXELS_FIELD_NUMBER: _ClassVar[int]
    support_id: str
    height: int
    width: int
    shot_classes: _containers.RepeatedScalarFieldContainer[str]
    mark_count: int
    leave_one_out: _containers.RepeatedCompositeFieldContainer[ClassAgreement]
    classes_without_pixels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, support_id: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., shot_classes: _Optional[_Iterable[str]] = ..., mark_count: _Optional[int] = ..., leave_one_out: _Optional[_Iterable[_Union[ClassAgreement, _Mapping]]] = ..., classes_without_pixels: _Optional[_Iterable[str]] = ...) -> None: ...

class ClassAgreement(_message.Message):
    __slots__ = ("class_name", "iou")
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    IOU_FIELD_NUMBER: _ClassVar[int]
    class_name: str
    iou: float
    def __init__(self, class_name: _Optional[str] = ..., iou: _Optional[float] = ...) -> None: ...

class RegisterTaskRequest(_message.Message):
    __slots__ = ("parent", "task_id", "task", "supports", "request_id")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    SUPPORTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    parent: str
    task_id: str
    task: Task
    supports: _containers.RepeatedCompositeFieldContainer[SupportInput]
    request_id: str
    def __init__(self, parent: _Optional[str] = ..., task_id: _Optional[str] = ..., task: _Optional[_Union[Task, _Mapping]] = ..., supports: _Optional[_Iterable[_Union[SupportInput, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class RegisterTaskResponse(_message.Message):
    __slots__ = ("task", "timings")
    TASK_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    task: Task
    timings: _types_pb2.Timings
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., timings: _Optional[_Union[_types_pb2.Timings, _Mapping]] = ...) -> None: ...

class GetTaskRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListTasksRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTasksResponse(_message.Message):
    __slots__ = ("tasks", "next_page_token")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    next_page_token: str
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteTaskRequest(_message.Message):
    __slots__ = ("name", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class AddSupportsRequest(_message.Message):
    __slots__ = ("header", "support")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SUPPORT_FIELD_NUMBER: _ClassVar[int]
    header: AddSupportsHeader
    support: SupportInput
    def __init__(self, header: _Optional[_Union[AddSupportsHeader, _Mapping]] = ..., support: _Optional[_Union[SupportInput, _Mapping]] = ...) -> None: ...

class AddSupportsHeader(_message.Message):
    __slots__ = ("name", "etag", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class AddSupportsResponse(_message.Message):
    __slots__ = ("task", "timings")
    TASK_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    task: Task
    timings: _types_pb2.Timings
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., timings: _Optional[_Union[_types_pb2.Timings, _Mapping]] = ...) -> None: ...

class AnnotateSupportRequest(_message.Message):
    __slots__ = ("name", "support_id", "annotation", "mode", "etag", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUPPORT_ID_FIELD_NUMBER: _ClassVar[int]
    ANNOTATION_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    support_id: str
    annotation: _types_pb2.Annotation
    mode: AnnotationMode
    etag: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., support_id: _Optional[str] = ..., annotation: _Optional[_Union[_types_pb2.Annotation, _Mapping]] = ..., mode: _Optional[_Union[AnnotationMode, str]] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class AnnotateSupportResponse(_message.Message):
    __slots__ = ("task", "timings")
    TASK_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    task: Task
    timings: _types_pb2.Timings
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., timings: _Optional[_Union[_types_pb2.Timings, _Mapping]] = ...) -> None: ...

class RemoveSupportRequest(_message.Message):
    __slots__ = ("name", "support_id", "etag", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUPPORT_ID_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    support_id: str
    etag: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., support_id: _Optional[str] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class RemoveSupportResponse(_message.Message):
    __slots__ = ("task", "timings")
    TASK_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    task: Task
    timings: _types_pb2.Timings
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., timings: _Optional[_Union[_types_pb2.Timings, _Mapping]] = ...) -> None: ...
