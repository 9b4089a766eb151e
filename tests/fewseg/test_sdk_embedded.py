"""The clients and the command against the real service inside this process."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fewseg import (
    BACKGROUND,
    Aborted,
    Annotation,
    AsyncClient,
    Box,
    Client,
    FailedPrecondition,
    IndexMask,
    InvalidArgument,
    NotFound,
    Points,
    Polygon,
    RunLengthMask,
    Scribble,
    SegmentResult,
    Support,
)
from fewseg.cli import app
from tests.helpers.tiny_repository import write_tiny_repository


def scene(top, left):
    """A red square on green, uint8 [64, 64, 3], and where it is."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :, 1] = 200
    where = np.zeros((64, 64), bool)
    where[top : top + 32, left : left + 32] = True
    image[where] = (220, 20, 20)
    return image, where


def iou(mask, where):
    return (mask & where).sum() / (mask | where).sum()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    write_tiny_repository(root)
    return root


@pytest.fixture(scope="module")
def client(repository):
    with Client(":embedded:", repository=repository) as opened:
        yield opened


@pytest.fixture
def task(client):
    image, where = scene(0, 0)
    registered = client.register(["red"], [Support(image, where, id="a")])
    yield registered
    client.delete_task(registered)


def test_what_a_support_shows_is_found_elsewhere(client, task):
    image, where = scene(32, 16)
    for format in ("png", "rle", "raw"):
        result = client.segment(task, image, format=format, probabilities=True)
        assert iou(result.mask_of("red"), where) > 0.85
        assert result.classes[0].area == result.mask_of("red").sum()
        assert result.probabilities.shape == (2, 64, 64)
        assert result.etag == task.etag
    assert client.segment(task, image, size="network").mask.shape == (32, 32)
    assert client.segment(task, image, size=(20, 30)).mask.shape == (20, 30)


def test_every_kind_of_mark_is_understood(client, tmp_path):
    image, where = scene(16, 16)
    labels = where.astype(np.uint8)
    Image.fromarray(labels * 7).save(tmp_path / "mask.png")
    annotations = {
        "array": where,
        "file": tmp_path / "mask.png",
        "index": IndexMask(labels.astype(np.uint16), {1: "red"}),
        "runs": RunLengthMask(where, "red"),
        "polygon": Annotation([Polygon([(16, 16), (48, 16), (48, 48), (16, 48)], "red")], True),
        "box": Annotation([Box(16, 16, 48, 48, "red")], exhaustive=True),
        "strokes": [
            Scribble([(20, 20), (44, 44)], "red", width=4),
            Scribble([(2, 2), (60, 2)], BACKGROUND, width=4),
        ],
        "clicks": [Points([(30, 30)], "red", radius=6), Points([(5, 5)], BACKGROUND, radius=4)],
    }
    supports = [Support(image, given, id=name) for name, given in annotations.items()]
    task = client.register(["red"], supports, task_id="marks", display_name="Marks", ttl=600)
    try:
        assert [s.id for s in task.supports] == list(annotations)
        assert all(s.leave_one_out["red"] > 0.7 for s in task.supports)
        assert task.expire_time is not None
        other, there = scene(0, 32)
        assert iou(client.segment(task, other).mask_of("red"), there) > 0.8
    finally:
        client.delete_task("marks")


def test_one_click_is_enough_and_the_answer_says_what_it_lacked(client):
    image, _ = scene(16, 16)
    task = client.register(["red"], [Support(image, Points([(30, 30)], "red"))])
    assert task.background_inferred
    assert client.segment(task, image).background_inferred
    client.delete_task(task)


def test_interactive_use_sends_the_image_once(client, task):
    before = client.segment(task, support_id="a")
    changed = client.annotate(task, "a", Points([(60, 60)], BACKGROUND, radius=2), extend=True)
    after = client.segment(changed, support_id="a")
    assert before.etag != after.etag == changed.etag
    assert after.reuse.features
    with pytest.raises(Aborted):
        client.annotate(task, "a", Points([(1, 1)], "red"), etag=task.etag)


def test_supports_are_added_by_stream_and_removed(client, task):
    image, where = scene(8, 8)
    sent = []
    grown = client.add_supports(
        task, (Support(image, where, id=f"s{n}") for n in range(12)), progress=sent.append
    )
    assert grown.support_count == 13
    assert sent[-1] == 12
    assert client.remove_support(task, "s3").support_count == 12
    with pytest.raises(NotFound):
        client.remove_support(task, "s3")


def test_the_same_request_twice_is_carried_out_once(client):
    image, where = scene(0, 0)
    request_id = "5a4c7f0e-3b1d-4c5e-9f60-718293a4b5c6"
    first, second = (
        client.register(["red"], [Support(image, where)], task_id="once", request_id=request_id)
        for _ in range(2)
    )
    assert first.uid == second.uid
    client.delete_task("once")


def test_a_stream_keeps_order_and_errors_apart(client, task):
    images = [scene(0, 8 * n)[0] for n in range(4)]
    answers = list(client.segment_stream(task, [*images, b"no image", images[0]], pinned=True))
    kinds = [type(answer) for answer in answers]
    assert kinds == [SegmentResult] * 4 + [InvalidArgument, SegmentResult]
    assert answers[4].reason == "NOT_AN_IMAGE"
    lefts = [answer.classes[0].box[0] for answer in answers[:4]]
    assert lefts == sorted(lefts)
    assert len(client.segment_many(task, images)) == 4


def test_errors_name_the_field(client):
    image, where = scene(0, 0)
    with pytest.raises(InvalidArgument) as caught:
        client.register(["red"], [Support(image, where), Support(image, where[:9])])
    assert caught.value.field.startswith("supports[1].annotation")
    with pytest.raises(NotFound):
        client.segment("nowhere", image)


def test_tasks_are_listed(client, task):
    assert task.name in [listed.name for listed in client.tasks(page_size=1)]


def test_a_missing_repository_is_told_at_the_start(tmp_path):
    with pytest.raises(FailedPrecondition, match="does not start"):
        Client(":embedded:", repository=tmp_path / "nothing")
    with pytest.raises(TypeError, match="colour"):
        Client(":embedded:", colour="red")


async def test_the_asyncio_client_does_the_same(repository):
    image, where = scene(0, 0)
    async with AsyncClient(":embedded:", repository=repository) as client:
        task = await client.register(["red"], [Support(image, where, id="a")])
        await client.add_supports(task, [Support(image, where) for _ in range(3)])
        other, there = scene(32, 32)
        results = await client.segment_many(task, [other] * 5)
        assert all(iou(result.mask_of("red"), there) > 0.85 for result in results)
        assert [listed.name async for listed in client.tasks()] == [task.name]
        await client.delete_task(task)


def test_the_command_does_the_same(repository, tmp_path):
    image, where = scene(0, 0)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(where.astype(np.uint8) * 255).save(tmp_path / "a_mask.png")
    Image.fromarray(scene(32, 32)[0]).save(tmp_path / "b.png")

    def fewseg(*arguments):
        options = ["--server", ":embedded:", "--repository", str(repository)]
        options += ["--store-path", str(tmp_path / "tasks.db"), "--json"]
        result = CliRunner().invoke(app, [*options, *map(str, arguments)])
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    support = f"{tmp_path}/a.png mask={tmp_path}/a_mask.png id=a"
    fewseg("register", "red-things", "--class", "red", "--support", support)
    assert fewseg("tasks")[0]["support_count"] == 1
    fewseg("annotate", "red-things", "a", "points=background:60,60@2", "--extend")
    (told,) = fewseg("segment", "red-things", tmp_path / "b.png", "--out", tmp_path, "--overlay")
    assert told["classes"][0]["area"] > 800
    assert Image.open(tmp_path / "b_overlay.png").size == (64, 64)


async def test_shots_guide_each_other_through_clients_and_command(repository, tmp_path):
    image, where = scene(16, 16)
    query, there = scene(0, 32)
    other, elsewhere = scene(32, 0)
    supports = [Support(image, where, id="a"), Support(other, elsewhere, id="b")]
    for name, array in (("a.png", image), ("m.png", where.astype(np.uint8) * 255)):
        Image.fromarray(array).save(tmp_path / name)
    async with AsyncClient(":embedded:", repository=repository) as client:
        task = await client.register(["red"], supports, fusion="cross_guided", task_id="crossed")
        assert task.fusion == (await client.get_task("crossed")).fusion == "cross_guided"
        assert [listed.fusion async for listed in client.tasks()] == ["cross_guided"]
        assert all(support.leave_one_out["red"] > 0.7 for support in task.supports)
        result = await client.segment("crossed", query)
        assert iou(result.mask_of("red"), there) > 0.8
        assert (await client.server_info()).limits["cross_guided_supports"] == 16
    arguments = ["register", "by-hand", "--class", "red", "--fusion", "cross-guided", "--json"]
    arguments += ["--support", f"{tmp_path}/a.png mask={tmp_path}/m.png"]
    said = CliRunner().invoke(
        app, ["--server", ":embedded:", "--repository", str(repository), *arguments]
    )
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["fusion"] == "cross_guided"
