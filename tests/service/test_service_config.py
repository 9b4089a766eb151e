import tomllib
from datetime import timedelta
from pathlib import Path

import pytest

from service.config import Settings, as_toml, load
from service.core.limits import Limits
from service.core.settings import CoreSettings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    import os

    for name in [name for name in os.environ if name.startswith("FEWSEG_")]:
        monkeypatch.delenv(name)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        load(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_the_defaults_are_those_of_the_core_and_stay_on_this_machine():
    settings = load([]).settings()
    assert (settings.host, settings.port, settings.metrics_host) == (
        "127.0.0.1",
        50051,
        "127.0.0.1",
    )
    assert settings.store == "sqlite"
    assert settings.store_path == Path("fewseg-data/fewseg.db")
    assert settings.bounds() == Limits()
    assert settings.core() == CoreSettings()


def test_flags_win_over_the_environment_and_the_environment_over_the_file(monkeypatch, tmp_path):
    file = tmp_path / "fewseg.toml"
    file.write_text('port = 1\nlog_level = "ERROR"\nqueue_seconds = 3.5\n[limits]\nmarks = 5\n')
    monkeypatch.setenv("FEWSEG_PORT", "2")
    monkeypatch.setenv("FEWSEG_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("FEWSEG_LIMITS__CLASSES", "6")
    settings = load(["--config", str(file), "--port", "3", "--limits.supports", "7"]).settings()
    assert (settings.port, settings.log_level, settings.queue_seconds) == (3, "DEBUG", 3.5)
    assert (settings.limits.marks, settings.limits.classes, settings.limits.supports) == (5, 6, 7)


def test_the_file_may_be_named_by_the_environment(monkeypatch, tmp_path):
    file = tmp_path / "fewseg.toml"
    file.write_text('host = "::1"')
    monkeypatch.setenv("FEWSEG_CONFIG", str(file))
    assert load([]).host == "::1"


def test_sizes_are_written_with_units():
    settings = load(["--guidance-bytes", "1GiB", "--limits.message-bytes", "8MiB"]).settings()
    assert settings.core().guidance_bytes == 2**30
    assert settings.bounds().message_bytes == 8 * 2**20


def test_lists_and_tables_are_written_as_flags_too():
    settings = load(
        ["--tenants", "acme,default", "--pins", "compact=compact-1f2e3d4c", "--providers", "A,B"]
    ).settings()
    assert settings.core().tenants == frozenset({"acme", "default"})
    assert settings.core().pins == {"compact": "compact-1f2e3d4c"}
    assert settings.providers == ("A", "B")


def test_seconds_become_times_and_zero_means_as_the_machine_is():
    core = load(["--request-memory-seconds", "60", "--codec-threads", "3"]).settings().core()
    assert core.request_memory == timedelta(minutes=1)
    assert (core.codec_threads, core.slots) == (3, CoreSettings().slots)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--port", "x"], "port: Input should be a valid integer"),
        (["--port", "65536"], "port: must be at most 65535"),
        (["--limits.classes", "0"], "limits.classes: Input should be greater than 0"),
        (["--guidance-bytes", "lots"], "guidance_bytes:"),
        (["--guidance-bytes", "0"], "guidance_bytes: must be above 0"),
        (["--store", "redis"], "store: Input should be 'sqlite' or 'memory'"),
        (["--tls-key", "key.pem"], "tls_certificate and tls_key belong together"),
        (["--tls-client-ca", "ca.pem"], "tls_client_ca needs tls_certificate"),
        (["--host", ""], "set host or unix_socket"),
        (["--unix-socket", "/" + "x" * 120], "unix_socket is longer than 103 bytes"),
        (["--config", "nowhere.toml"], "there is no file nowhere.toml"),
        (["--nonsense", "1"], "--nonsense"),
    ],
)
def test_wrong_flags_are_refused_with_a_line_each(capsys, arguments, line):
    assert line in refused(capsys, *arguments)


def test_several_wrong_settings_are_told_at_once(capsys):
    lines = refused(capsys, "--port", "x", "--limits.marks", "0").splitlines()
    assert [line.split(": ")[1] for line in lines] == ["port", "limits.marks"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("prot = 1", "prot: there is no such setting"),
        ("[limits]\nshots = 1", "limits.shots: there is no such setting"),
        ("port = ", "Invalid value"),
    ],
)
def test_a_wrong_file_is_refused(capsys, tmp_path, text, line):
    file = tmp_path / "fewseg.toml"
    file.write_text(text)
    assert line in refused(capsys, "--config", str(file))


def test_a_wrong_variable_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("FEWSEG_PORT", "x")
    assert "port:" in refused(capsys)


def test_what_is_printed_can_be_read_back(tmp_path):
    given = load(
        [
            *("--unix-socket", "/run/a b.sock", "--pins", "compact=compact-1f2e3d4c"),
            *("--tenants", "b,a", "--limits.marks", "9", "--default-model", 'we"ird\\'),
        ]
    ).settings()
    text = as_toml(given)
    assert tomllib.loads(text)["tenants"] == ["a", "b"]
    assert "# tls_key is unset" in text
    file = tmp_path / "printed.toml"
    file.write_text(text)
    assert load(["--config", str(file)]).settings() == given


def test_every_setting_says_what_it_is_for(capsys):
    with pytest.raises(SystemExit) as caught:
        load(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"--{name.replace('_', '-')}" in shown
