import math
import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from fake_fewseg_server import status
from PIL import Image

from fewseg import (
    BACKGROUND,
    Annotation,
    Client,
    DeadlineExceeded,
    FewSegError,
    InvalidArgument,
    NotFound,
    Points,
    ResourceExhausted,
    SegmentResult,
    Support,
    Unavailable,
)
from fewseg.v1 import task_service_pb2 as task_pb2


def test_a_task_is_registered_with_its_supports(client, server, photo, coin):
    task = client.register(["coin"], [Support(photo, coin, id="a")], task_id="coins", ttl=60)

    assert (task.name, task.id, task.classes) == ("tenants/default/tasks/coins", "coins", ("coin",))
    assert task.supports[0].leave_one_out == {"coin": 0.75}
    assert task.background_inferred
    assert task.timings == {"total": 0.25}
    request = server.requests["RegisterTask"][0]
    assert request.task.ttl.seconds == 60
    assert request.supports[0].image.raw.rgb == photo.tobytes()
    assert request.supports[0].annotation.marks[0].class_name == "coin"


def test_shots_are_merged_unless_they_are_to_guide_each_other(client, server, photo, coin):
    supports = [Support(photo, coin)]
    for fusion in ("merged", "cross_guided"):
        assert client.register(["coin"], supports, fusion=fusion).fusion == fusion
    asked = [request.task.shot_fusion for request in server.requests["RegisterTask"]]
    assert asked == [task_pb2.SHOT_FUSION_MERGED, task_pb2.SHOT_FUSION_CROSS_GUIDED]
    with pytest.raises(ValueError, match="merged or cross_guided"):
        client.register(["coin"], supports, fusion="cross-guided")


def test_what_is_no_list_is_told_before_anything_is_sent(client, server, photo, coin):
    for classes in ("coin", [1]):
        with pytest.raises(TypeError, match="list of names"):
            client.register(classes, [Support(photo, coin)])
    with pytest.raises(TypeError, match="supports of a task are a list"):
        client.register(["coin"], Support(photo, coin))
    assert not server.requests["RegisterTask"]


def test_expiration_is_a_time_span_or_a_moment_but_not_both(client, server, photo, coin):
    supports = [Support(photo, coin)]
    moment = datetime(2031, 5, 1, tzinfo=UTC)

    client.register(["coin"], supports, ttl=timedelta(hours=1), task_id="a")
    assert (
        client.register(["coin"], supports, expire_time=moment, task_id="b").expire_time == moment
    )
    assert server.requests["RegisterTask"][0].task.ttl.seconds == 3600
    with pytest.raises(ValueError, match="not both"):
        client.register(["coin"], supports, ttl=1, expire_time=moment)
    with pytest.raises(ValueError, match="time zone"):
        client.register(["coin"], supports, expire_time=datetime(2031, 5, 1))


def test_a_task_is_named_by_value_id_or_full_name(client, server, photo, coin):
    task = client.register(["coin"], [Support(photo, coin)], task_id="coins")

    for reference in (task, "coins", "tenants/default/tasks/coins"):
        assert client.get_task(reference).name == task.name
    with pytest.raises(NotFound) as caught:
        client.get_task("tenants/other/tasks/coins")
    assert caught.value.reason == "TASK_NOT_FOUND"
    with pytest.raises(ValueError, match="empty"):
        client.get_task("")


def test_tasks_are_listed_page_by_page_as_they_are_read(client, server, photo, coin):
    for name in "abcde":
        client.register(["coin"], [Support(photo, coin)], task_id=name)

    listing = client.tasks(page_size=2)
    assert next(listing).id == "a"
    assert len(server.requests["ListTasks"]) == 1
    assert [task.id for task in listing] == list("bcde")
    assert len(server.requests["ListTasks"]) == 3


def test_a_call_that_finds_the_server_unavailable_is_sent_again_with_the_same_request_id(
    client, server, coin
):
    server.failures["RegisterTask"] = [status("UNAVAILABLE")] * 2
    large = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    mask = np.zeros(large.shape[:2], bool)
    mask[:9, :9] = True

    client.register(["coin"], [Support(large, mask)], task_id="coins")

    ids = [request.request_id for request in server.requests["RegisterTask"]]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert len(ids[0]) == 36


def test_a_stream_of_supports_is_not_sent_again(client, server, photo, coin):
    task = client.register(["coin"], [Support(photo, coin)], task_id="coins")
    server.failures["AddSupports"] = [status("UNAVAILABLE")]

    with pytest.raises(Unavailable):
        client.add_supports(task, [Support(photo, coin) for _ in range(3)], request_id="r")

    assert [header.request_id for header in server.requests["AddSupports"]] == ["r"]


def test_attempts_end_with_the_deadline(client, server, photo):
    server.failures["Segment"] = [status("UNAVAILABLE", retry_after=60)]
    started = time.monotonic()

    with pytest.raises(Unavailable):
        client.segment("coins", photo, timeout=1)

    assert time.monotonic() - started < 1
    assert len(server.requests["Segment"]) == 1


def test_calls_that_cannot_be_repeated_safely_are_not(client, server):
    server.failures["DeleteTask"] = [status("UNAVAILABLE", retry_after=1.5)]

    with pytest.raises(Unavailable) as caught:
        client.delete_task("coins")

    assert caught.value.retry_after == 1.5
    assert len(server.requests["DeleteTask"]) == 1


def test_a_full_server_is_told_and_not_tried_again(client, server, photo):
    server.failures["Segment"] = [status("RESOURCE_EXHAUSTED", retry_after=0.25)]

    with pytest.raises(ResourceExhausted) as caught:
        client.segment("coins", photo)

    assert caught.value.retry_after == 0.25
    assert len(server.requests["Segment"]) == 1


def test_no_retries_means_none(server, photo):
    server.failures["Segment"] = [status("UNAVAILABLE")]
    with Client(server.target, retries=0) as client, pytest.raises(Unavailable):
        client.segment("coins", photo)


@pytest.mark.parametrize("format", ["png", "rle", "raw"])
def test_every_format_gives_the_same_mask(client, photo, format):
    result = client.segment("coins", photo, format=format, probabilities=True)

    expected = np.zeros((24, 40), np.uint8)
    expected[:, :20] = 1
    np.testing.assert_array_equal(result.mask, expected)
    assert result.mask.dtype == np.uint8
    assert result.classes[0].box == (0, 0, 20, 24)
    assert result.probabilities.shape == (2, 24, 40)
    np.testing.assert_array_equal(result.probabilities[1], expected)
    assert result.timings == {"total": 0.0015}
    assert (result.reuse.features, result.reuse.guidance) == (False, True)
    assert result.mask_of("coin").sum() == result.classes[0].area == 480
    assert (result.png is not None) == (format == "png")
    assert (result.run_lengths is not None) == (format == "rle")


def test_sizes_travel_as_they_are_asked_for(client, server, photo):
    client.segment("coins", photo)
    client.segment("coins", photo, size="network")
    client.segment("coins", photo, size=(10, 20))

    sizes = [r.options.WhichOneof("size") for r in server.requests["Segment"]]
    assert sizes == [None, "network_size", "given_size"]
    assert server.requests["Segment"][2].options.given_size.width == 20
    with pytest.raises(ValueError, match="size must be"):
        client.segment("coins", photo, size="huge")
    with pytest.raises(ValueError, match="format must be"):
        client.segment("coins", photo, format="gif")


def test_a_query_is_an_image_or_a_support_but_not_both(client, photo):
    with pytest.raises(TypeError, match="one of the two"):
        client.segment("coins")
    with pytest.raises(TypeError, match="one of the two"):
        client.segment("coins", photo, support_id="a")


def test_annotations_are_replaced_or_extended(client, server, photo, coin):
    task = client.register(["coin"], [Support(photo, coin, id="a")], task_id="coins")

    client.annotate(task, "a", Points([(3, 4)], BACKGROUND), extend=True, etag=task.etag)
    client.annotate("coins", "a", [Points((3, 4), "coin", radius=2)])

    extended, replaced = server.requests["AnnotateSupport"]
    assert (extended.mode, replaced.mode) == (2, 1)
    assert extended.etag == "u-1"
    assert extended.annotation.marks[0].background
    assert extended.request_id != replaced.request_id
    with pytest.raises(ValueError, match="only class"):
        client.annotate("coins", "a", coin)


def test_supports_are_read_as_they_are_sent(client, server, photo, coin):
    task = client.register(["coin"], [Support(photo, coin)], task_id="coins")
    caller, sent = threading.get_ident(), []

    def supports():
        for number in range(20):
            assert threading.get_ident() == caller
            yield Support(photo, coin, id=f"s{number}")

    changed = client.add_supports(task, supports(), progress=sent.append)

    assert changed.support_count == 21
    assert sent == list(range(1, 21))
    received = [s.support_id for s in server.requests["AddSupports.support"]]
    assert received == [f"s{number}" for number in range(20)]


def test_a_support_that_cannot_be_sent_ends_the_call_before_anything_is_added(
    client, server, photo, coin
):
    task = client.register(["coin"], [Support(photo, coin)], task_id="coins")

    with pytest.raises(ValueError, match="uint8") as caught:
        client.add_supports(task, [Support(photo, coin), Support(photo.astype(float), coin)])

    assert caught.value.__notes__ == ["supports[1]"]


def test_a_refused_support_ends_the_reading_of_more(client, photo, coin):
    task = client.register(["coin"], [Support(photo, coin)], task_id="coins")
    read = []

    def supports():
        for number in range(100_000):
            read.append(number)
            yield Support(photo, coin, id="refused" if number == 5 else "")

    with pytest.raises(InvalidArgument):
        client.add_supports(task, supports())
    assert len(read) < 100_000


def test_a_stream_answers_in_order_and_keeps_errors_to_their_images(client, server, photo):
    server.bad_frames = {2}
    images = [photo, "/nowhere.png", photo[:10], photo, b"", photo.astype(float)]
    images[4] = photo[:5]

    answers = list(client.segment_stream("coins", images, pinned=True, window=2))

    kinds = [type(answer) for answer in answers]
    assert kinds == [
        SegmentResult, InvalidArgument, InvalidArgument, SegmentResult, SegmentResult,
        InvalidArgument,
    ]  # fmt: skip
    assert [a.reason for a in answers if isinstance(a, FewSegError)] == [
        "IMAGE_UNREADABLE", "IMAGE_BROKEN", "IMAGE_UNREADABLE",
    ]  # fmt: skip
    assert answers[4].mask.shape == (5, 40)
    assert server.requests["SegmentStream"][0].revision_policy == 2


def test_no_more_than_the_window_is_without_an_answer(client, photo):
    read = []

    def images():
        for number in range(50):
            read.append(number)
            yield photo

    for count, _ in enumerate(client.segment_stream("coins", images(), window=3)):
        time.sleep(0.002)
        assert len(read) <= count + 1 + 3 + 1
    assert len(read) == 50


def test_an_answer_does_not_wait_for_the_next_image(client, photo):
    answered = threading.Semaphore(0)

    def images():
        for _ in range(3):
            yield photo
            assert answered.acquire(timeout=5), "the answer to the last image never came"

    for _ in client.segment_stream("coins", images()):
        answered.release()


def test_an_error_of_the_images_reaches_the_caller_after_the_answers(client, photo):
    def images():
        yield photo
        raise RuntimeError("the camera is gone")

    stream = client.segment_stream("coins", images())
    assert isinstance(next(stream), SegmentResult)
    with pytest.raises(RuntimeError, match="camera"):
        next(stream)


def test_a_stream_that_is_left_early_ends_its_thread(client, photo):
    readers = set()

    def images():
        while True:
            readers.add(threading.current_thread())
            yield photo

    stream = client.segment_stream("coins", images(), window=2)
    next(stream)
    stream.close()

    (reader,) = readers
    reader.join(timeout=5)
    assert not reader.is_alive()


def test_an_error_of_the_whole_stream_is_raised(client, server, photo):
    server.failures["SegmentStream"] = [status("NOT_FOUND", reason="TASK_NOT_FOUND")]
    with pytest.raises(NotFound):
        list(client.segment_stream("coins", [photo] * 30))


def test_many_images_give_all_results_or_the_first_error(client, server, photo):
    stack = np.stack([photo, photo, photo])
    assert [r.mask.shape for r in client.segment_many("coins", stack)] == [(24, 40)] * 3

    server.bad_frames = {1}
    with pytest.raises(InvalidArgument) as caught:
        client.segment_many("coins", stack)
    assert caught.value.__notes__ == ["images[1]"]
    with pytest.raises(TypeError, match="list of images"):
        client.segment_many("coins", "photo.png")


def test_models_and_limits_are_told(client):
    compact, panet = client.models()
    assert (compact.input_size, compact.default) == (None, True)
    assert (panet.input_size, panet.default) == ((417, 417), False)
    refresh = client.refresh_models()
    assert refresh.problems == ("broken-1 lacks decode",)
    info = client.server_info()
    assert (info.engine, info.limits["supports"]) == ("embedded", 5)


def test_supports_that_do_not_fit_in_a_message_are_refused_before_they_are_sent(server, coin):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    mask = np.ones((200, 200), bool)
    with (
        Client(server.target, max_message_bytes=200_000) as client,
        pytest.raises(ValueError, match="add_supports"),
    ):
        client.register(["coin"], [Support(noise, mask)] * 2)
    assert not server.requests["RegisterTask"]


def test_pixels_go_raw_as_long_as_they_fit(server, coin):
    flat = np.zeros((300, 300, 3), np.uint8)
    with Client(server.target, max_message_bytes=300_000) as client:
        client.segment("coins", flat[:200, :200])
        client.segment("coins", flat)
        client.segment("coins", Image.fromarray(flat[:10]))
    kinds = [r.image.WhichOneof("source") for r in server.requests["Segment"]]
    assert kinds == ["raw", "encoded", "raw"]


def test_a_server_that_is_not_there_is_unavailable():
    with Client("127.0.0.1:1", retries=0, timeout=5) as client, pytest.raises(Unavailable):
        client.server_info()


def test_no_time_at_all_is_not_the_default_time(client, server, photo):
    with pytest.raises(DeadlineExceeded):
        client.segment("coins", photo, timeout=0)
    assert not server.requests["Segment"]


def test_a_call_may_have_no_deadline_though_its_client_has_one(client, server):
    client.refresh_models(timeout=math.inf)
    client.refresh_models()
    endless, usual = server.remaining["RefreshModels"]
    assert endless > 1e6
    assert 0 < usual < 11


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="retries"):
        Client("x:1", retries=-1)
    with pytest.raises(ValueError, match="timeout"):
        Client("x:1", timeout=0)
    with pytest.raises(TypeError, match="repository"):
        Client("x:1", repository="models")


def test_closing_twice_is_harmless(server):
    client = Client(server.target)
    client.close()
    client.close()


def test_an_annotation_of_many_marks_travels_whole(client, server, photo):
    marks = [Points([(1, 1), (2, 2)], "coin"), Points([(9, 9)], BACKGROUND)]
    annotation = Annotation(marks, exhaustive=False, shot_classes=["coin"])
    client.register(["coin", "note"], [Support(photo, annotation)])

    sent = server.requests["RegisterTask"][0].supports[0].annotation
    assert sent.exhaustive is False
    assert sent.HasField("exhaustive")
    assert list(sent.shot_classes) == ["coin"]
    assert [(p.x, p.y) for p in sent.marks[0].points.points] == [(1, 1), (2, 2)]
