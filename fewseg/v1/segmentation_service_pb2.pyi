from fewseg.v1 import types_pb2 as _types_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.api import resource_pb2 as _resource_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RevisionPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REVISION_POLICY_UNSPECIFIED: _ClassVar[RevisionPolicy]
    REVISION_POLICY_LATEST: _ClassVar[RevisionPolicy]
    REVISION_POLICY_PINNED: _ClassVar[RevisionPolicy]
REVISION_POLICY_UNSPECIFIED: RevisionPolicy
REVISION_POLICY_LATEST: RevisionPolicy
REVISION_POLICY_PINNED: RevisionPolicy

class SegmentOptions(_message.Message):
    __slots__ = ("format", "network_size", "given_size", "probabilities")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    NETWORK_SIZE_FIELD_NUMBER: _ClassVar[int]
    GIVEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    format: _types_pb2.MaskFormat
    network_size: bool
    given_size: OutputSize
    probabilities: bool
    def __init__(self, format: _Optional[_Union[_types_pb2.MaskFormat, str]] = ..., network_size: _Optional[bool] = ..., given_size: _Optional[_Union[OutputSize, _Mapping]] = ..., probabilities: _Optional[bool] = ...) -> None: ...

class OutputSize(_message.Message):
    __slots__ = ("height", "width")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class SegmentRequest(_message.Message):
    __slots__ = ("name", "image", "support_id", "options", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SUPPORT_ID_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    image: _types_pb2.Image
    support_id: str
    options: SegmentOptions
    etag: str
    def __init__(self, name: _Optional[str] = ..., image: _Optional[_Union[_types_pb2.Image, _Mapping]] = ..., support_id: _Optional[str] = ..., options: _Optional[_Union[SegmentOptions, _Mapping]] = ..., etag: _Optional[str] = ...) -> None: ...

class SegmentResponse(_message.Message):
    __slots__ = ("mask", "classes", "probabilities", "family", "etag", "background_evidence", "timings", "reuse")
    MASK_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    REUSE_FIELD_NUMBER: _ClassVar[int]
    mask: _types_pb2.Mask
    classes: _containers.RepeatedCompositeFieldContainer[_types_pb2.ClassResult]
    probabilities: _types_pb2.Probabilities
    family: str
    etag: str
    background_evidence: _types_pb2.BackgroundEvidence
    timings: _types_pb2.Timings
    reuse: _types_pb2.Reuse
    def __init__(self, mask: _Optional[_Union[_types_pb2.Mask, _Mapping]] = ..., classes: _Optional[_Iterable[_Union[_types_pb2.ClassResult, _Mapping]]] = ..., probabilities: _Optional[_Union[_types_pb2.Probabilities, _Mapping]] = ..., family: _Optional[str] = ..., etag: _Optional[str] = ..., background_evidence: _Optional[_Union[_types_pb2.BackgroundEvidence, str]] = ..., timings: _Optional[_Union[_types_pb2.Timings, _Mapping]] = ..., reuse: _Optional[_Union[_types_pb2.Reuse, _Mapping]] = ...) -> None: ...

class SegmentStreamRequest(_message.Message):
    __slots__ = ("opening", "frame")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    opening: SegmentStreamOpening
    frame: SegmentStreamFrame
    def __init__(self, opening: _Optional[_Union[SegmentStreamOpening, _Mapping]] = ..., frame: _Optional[_Union[SegmentStreamFrame, _Mapping]] = ...) -> None: ...

class SegmentStreamOpening(_message.Message):
    __slots__ = ("name", "options", "revision_policy", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    REVISION_POLICY_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    options: SegmentOptions
    revision_policy: RevisionPolicy
    etag: str
    def __init__(self, name: _Optional[str] = ..., options: _Optional[_Union[SegmentOptions, _Mapping]] = ..., revision_policy: _Optional[_Union[RevisionPolicy, str]] = ..., etag: _Optional[str] = ...) -> None: ...

class SegmentStreamFrame(_message.Message):
    __slots__ = ("sequence_id", "image")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    image: _types_pb2.Image
    def __init__(self, sequence_id: _Optional[int] = ..., image: _Optional[_Union[_types_pb2.Image, _Mapping]] = ...) -> None: ...

class SegmentStreamResponse(_message.Message):
    __slots__ = ("sequence_id", "segmentation", "error")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    SEGMENTATION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    segmentation: SegmentResponse
    error: _status_pb2.Status
    def __init__(self, sequence_id: _Optional[int] = ..., segmentation: _Optional[_Union[SegmentResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...
