from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core import records
from service.core.types import (
    Annotation,
    BackgroundEvidence,
    Box,
    ClassAgreement,
    IndexMask,
    Mark,
    Points,
    Polygon,
    RunLengthMask,
    Scribble,
    ShotFusion,
    Size,
    Support,
    SupportSummary,
    TaskHeader,
    TaskName,
    TaskReport,
)

numbers = st.floats(allow_nan=False)
vertices = st.tuples(numbers, numbers)
vertex_lists = st.lists(vertices, max_size=4).map(tuple)
sizes = st.builds(Size, st.integers(1, 50_000), st.integers(1, 50_000))
geometries = st.one_of(
    st.builds(
        IndexMask,
        st.binary(max_size=20),
        st.dictionaries(st.integers(0, 65_535), st.text(max_size=5), max_size=3),
        st.lists(st.integers(0, 65_535), max_size=3).map(tuple),
    ),
    st.builds(RunLengthMask, sizes, st.binary(max_size=20)),
    st.builds(Polygon, st.lists(vertex_lists, max_size=3).map(tuple)),
    st.builds(Points, vertex_lists, numbers),
    st.builds(Scribble, vertex_lists, numbers),
    st.builds(Box, numbers, numbers, numbers, numbers),
)
names = st.text(max_size=8)
name_lists = st.lists(names, max_size=3).map(tuple)
marks = st.builds(Mark, geometries, st.none() | names)
annotations = st.builds(
    Annotation, st.lists(marks, max_size=3).map(tuple), st.booleans(), name_lists
)
supports = st.builds(Support, names, names, sizes, annotations, names)
moments = st.datetimes(
    min_value=datetime(1970, 1, 1), max_value=datetime(2500, 1, 1), timezones=st.just(UTC)
)
headers = st.builds(
    TaskHeader,
    st.builds(TaskName, names, names),
    names,
    names,
    names,
    name_lists,
    st.integers(1, 2**53),
    st.integers(0, 5000),
    moments,
    moments,
    st.none() | moments,
    st.sampled_from(BackgroundEvidence),
    st.sampled_from(ShotFusion),
)
reports = st.builds(
    TaskReport,
    headers,
    st.lists(st.builds(SupportSummary.of, supports, name_lists), max_size=3).map(tuple),
    names,
    st.integers(0, 2**40),
    st.dictionaries(
        names, st.lists(st.builds(ClassAgreement, names, numbers), max_size=2).map(tuple)
    ),
)


@given(supports)
@settings(deadline=None, max_examples=100)
def test_a_support_comes_back_as_it_was(support: Support) -> None:
    assert records.decode_support(records.encode_support(support)) == support


@given(headers)
@settings(deadline=None, max_examples=60)
def test_a_header_comes_back_as_it_was_with_times_in_utc(header: TaskHeader) -> None:
    decoded = records.decode_header(records.encode_header(header))
    assert decoded == header
    assert decoded.create_time.utcoffset() == timedelta(0)
    assert decoded.etag == header.etag


@given(reports)
@settings(deadline=None, max_examples=60)
def test_a_report_comes_back_as_it_was(report: TaskReport) -> None:
    decoded = records.decode_report(records.encode_report(report))
    assert decoded == report
    assert isinstance(decoded.background, BackgroundEvidence)


def test_a_time_of_another_zone_comes_back_as_the_same_moment_in_utc() -> None:
    moment = datetime(2030, 1, 1, 1, 30, 0, 1, tzinfo=timezone(timedelta(hours=2)))
    header = TaskHeader(TaskName("a", "b"), "u", "", "m", (), 1, 0, moment, moment)
    decoded = records.decode_header(records.encode_header(header))
    assert decoded.create_time == moment
    assert decoded.create_time.tzinfo is UTC


def test_a_task_of_an_earlier_release_merges_its_shots() -> None:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    header = TaskHeader(TaskName("a", "b"), "u", "", "m", (), 1, 0, moment, moment)
    fields = msgspec.msgpack.decode(records.encode_header(header))
    assert fields.pop("fusion") == "merged"
    assert records.decode_header(msgspec.msgpack.encode(fields)) == header


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"not a record"])
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    with pytest.raises(records.RecordError):
        records.decode_support(data)
