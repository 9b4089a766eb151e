import io
import json
import logging

import pytest
import structlog

from service import logs


@pytest.fixture
def restored():
    """Gives the root logger back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()


def configured(level="INFO", log_format="json"):
    stream = io.StringIO()
    logs.configure(level, log_format, stream)
    return stream


def test_a_line_is_a_json_object_with_what_belongs_to_it(restored):
    stream = configured()
    structlog.contextvars.bind_contextvars(request_id="r1")
    logs.get_logger("service.test").info("served", port=1)
    line = json.loads(stream.getvalue())
    assert line["event"] == "served"
    assert (line["port"], line["request_id"], line["level"]) == (1, "r1", "info")
    assert line["logger"] == "service.test"
    assert line["timestamp"].endswith("Z")


def test_loggers_of_the_standard_library_are_written_alike(restored):
    stream = configured()
    logging.getLogger("other").warning("hello %s", "there")
    assert json.loads(stream.getvalue())["event"] == "hello there"


def test_a_traceback_stays_on_its_line(restored):
    stream = configured()
    try:
        raise ValueError("broken")
    except ValueError as error:
        logs.get_logger("service.test").error("failed", exc_info=error)
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["exception"][0]["exc_value"] == "broken"


def test_what_is_below_the_level_is_not_written(restored):
    stream = configured("WARNING")
    logs.get_logger("service.test").info("quiet")
    assert stream.getvalue() == ""


def test_text_for_people_has_no_colours_outside_a_terminal(restored):
    stream = configured(log_format="console")
    logs.get_logger("service.test").info("served", port=1)
    assert "served" in stream.getvalue()
    assert "port=1" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_without_a_handler_of_ours_the_application_hears_ordinary_records(caplog):
    with caplog.at_level(logging.INFO):
        logs.get_logger("service.test").info("served", port=1)
    assert caplog.records[-1].message == "served"
    assert caplog.records[-1].port == 1
