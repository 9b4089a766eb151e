"""Settings: flags over environment over file over defaults.

Every setting has three spellings: the flag ``--store-path``, the variable
``FEWSEG_STORE_PATH`` and the key ``store_path`` of a TOML file. Those of a
group are written ``--limits.supports``, ``FEWSEG_LIMITS__SUPPORTS`` and
``[limits] supports``.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import tomllib
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliImplicitFlag,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from service.core.family import FeatureReuse
from service.core.limits import Limits
from service.core.settings import CoreSettings

PROGRAM: Final = "fewseg-serve"
#: Version of the server.
VERSION: Final = version("fewseg")
_PREFIX: Final = "FEWSEG_"
_CORE: Final = CoreSettings()
_LIMITS: Final = Limits()
#: Bytes of a socket's path; Linux keeps 108 with the closing zero, other kernels 104.
LONGEST_SOCKET_PATH: Final = 103
#: Exit status of a command that was called wrongly.
_USAGE: Final = 2


def _positive(size: ByteSize) -> ByteSize:
    if size <= 0:
        raise ValueError("must be above 0")
    return size


Bytes = Annotated[ByteSize, AfterValidator(_positive)]
Niceness = Annotated[NonNegativeInt, AfterValidator(lambda niceness: _within(niceness, 19))]
Port = Annotated[NonNegativeInt, AfterValidator(lambda port: _within(port, 65_535))]


def _within(number: int, highest: int) -> int:
    if number > highest:
        raise ValueError(f"must be at most {highest}")
    return number


def _default_repository() -> Path:
    """The repository beside an installed checkout, else the one in the working directory."""
    beside = Path(__file__).resolve().parent.parent / "model_repository"
    return beside if beside.is_dir() else Path("model_repository")


class LimitSettings(BaseModel):
    """What a request may hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    message_bytes: Bytes = ByteSize(_LIMITS.message_bytes)
    """Bytes of one message; sizes may be written as 256MiB."""
    image_pixels: PositiveInt = _LIMITS.image_pixels
    """Pixels of one image, read from its header before decoding."""
    image_side: PositiveInt = _LIMITS.image_side
    """Rows, and columns, of one image or mask."""
    supports: PositiveInt = _LIMITS.supports
    """Supports of one task."""
    cross_guided_supports: PositiveInt = _LIMITS.cross_guided_supports
    """Supports of one cross-guided task: all their pairs are judged when it changes."""
    classes: PositiveInt = _LIMITS.classes
    """Classes of one task."""
    marks: PositiveInt = _LIMITS.marks
    """Marks of one annotation."""
    vertices: PositiveInt = _LIMITS.vertices
    """Vertices and points of one annotation."""
    mask_pixels: PositiveInt = _LIMITS.mask_pixels
    """Pixels of all dense masks of one annotation together."""
    mask_values: PositiveInt = _LIMITS.mask_values
    """Numbers that the index masks of one annotation name, as classes or void."""
    annotation_bytes: Bytes = ByteSize(_LIMITS.annotation_bytes)
    """Bytes of all annotations of one task together."""
    tasks: PositiveInt = _LIMITS.tasks
    """Tasks of the server."""
    in_flight: PositiveInt = _LIMITS.in_flight
    """Requests that run or wait for a slot; one more is refused."""
    stream_frames: PositiveInt = _LIMITS.stream_frames
    """Frames of one stream that run or wait."""
    output_pixels: PositiveInt = _LIMITS.output_pixels
    """Pixels of a mask whose size the caller chooses."""
    output_values: PositiveInt = _LIMITS.output_values
    """Pixels of a mask times classes; a core weighs some 400 million of them a second."""


class Settings(BaseModel):
    """How a server is set up."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every network, empty for no TCP at all."""
    port: Port = 50051
    """Port to listen on; 0 for any free one."""
    unix_socket: Path | None = None
    """Unix domain socket to listen on as well."""
    tls_certificate: Path | None = None
    """PEM file of the server's certificate chain; unset: no TLS."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key."""
    tls_client_ca: Path | None = None
    """PEM file of the authority whose clients are let in; unset: no client certificates."""
    metrics_host: str = "127.0.0.1"
    """Address of the Prometheus endpoint; empty for none."""
    metrics_port: Port = 9464
    """Port of the Prometheus endpoint; 0 for any free one."""

    repository: Path = _default_repository()
    """Folder of the model repository."""
    engine: Literal["embedded", "triton"] = "embedded"
    """What runs the graphs: this process, or Triton Inference Servers."""
    engine_threads: NonNegativeInt = 0
    """Threads of one graph run; 0: one per core, a single one while requests fill the cores."""
    engine_workers: NonNegativeInt = 0
    """Threads that run graphs and decode and encode around them; 0: one per core, at least two."""
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """Execution providers of ONNX Runtime, best first."""
    triton_address: tuple[str, ...] = ("127.0.0.1:8001",)
    """gRPC addresses of Triton, host:port or unix:path; all hold the same repository."""
    triton_tls: bool = False
    """Whether to speak TLS to Triton."""
    triton_tls_ca: Path | None = None
    """PEM file of the authority that signed Triton's certificate; unset: the system's."""
    triton_tls_certificate: Path | None = None
    """PEM file of the gateway's own certificate, where Triton asks for one."""
    triton_tls_key: Path | None = None
    """PEM file of that certificate's private key."""
    triton_model_control: bool = True
    """Whether to load and unload models; else what Triton has loaded is served."""
    triton_shared_memory: Literal["auto", "on", "off"] = "auto"
    """Whether large guidance goes through system shared memory; auto: at loopback addresses."""
    triton_run_seconds: PositiveFloat = 30.0
    """The longest run of a graph whose caller set no deadline."""
    triton_load_seconds: PositiveFloat = 900.0
    """The longest that loading one model takes; TensorRT may build engines in it."""
    triton_wait_seconds: NonNegativeFloat = 60.0
    """How long a server that starts waits for Triton before it gives up."""
    store: Literal["sqlite", "memory"] = "sqlite"
    """Where tasks are kept; memory forgets them when the server ends."""
    store_path: Path = Path("fewseg-data/fewseg.db")
    """Database file of the sqlite store, made if missing."""
    store_bytes: Bytes | None = None
    """The most that the database file may take; tasks beyond are refused. None: the disk's room."""
    orphan_seconds: PositiveFloat = 3600.0
    """How long an image waits for a task that uses it, before a sweep removes it."""

    default_model: str = _CORE.default_model
    """Alias for tasks that name no model; empty: the first by name."""
    pins: dict[str, str] = {}
    """Family by alias, where the newest is not wanted."""
    tenants: frozenset[str] = _CORE.tenants
    """The tenants that exist."""
    guidance_bytes: Bytes = ByteSize(_CORE.guidance_bytes)
    """Budget of the guidance cache."""
    feature_bytes: Bytes = ByteSize(_CORE.feature_bytes)
    """Budget of the feature-map cache."""
    feature_reuse: Literal["auto", "always", "second_use", "never"] = "auto"
    """Which query images' feature maps are kept; auto: embedded always, triton from second use."""
    codec_threads: NonNegativeInt = 0
    """Threads that decode, resize and encode; 0: as many as the machine has cores."""
    niceness: Niceness = _CORE.niceness
    """How much threads that compute stand back, so that calls are taken and refused promptly while
    the cores are full; 0: not at all. On Linux."""
    slots: NonNegativeInt = 0
    """Requests that run at once, the rest waits; 0: twice as many as the machine has cores."""
    queue_seconds: PositiveFloat = _CORE.queue_seconds
    """The longest that a request waits for a slot."""
    open_calls: NonNegativeInt = 0
    """Calls that are open at once, streams included; 0: eight times limits.in_flight."""
    rebuilds: PositiveInt = _CORE.rebuilds
    """Rebuilds of guidance that run at once."""
    request_memory_seconds: PositiveFloat = _CORE.request_memory.total_seconds()
    """How long a request id is remembered."""
    sweep_seconds: PositiveFloat = _CORE.sweep_seconds
    """Time between two sweeps of expired tasks."""
    leave_one_out_limit: NonNegativeInt = _CORE.leave_one_out_limit
    """The most supports that are judged by leave-one-out in one answer."""
    drain_seconds: NonNegativeFloat = _CORE.drain_seconds
    """The longest that a stop waits for calls in flight."""
    ready_seconds: PositiveFloat = 10.0
    """Time between two checks that the models answer."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least level that is logged; DEBUG adds a line for each good call."""
    log_format: Literal["json", "console"] = "json"
    """JSON objects for machines, or text for people."""

    limits: LimitSettings = LimitSettings()
    """What a request may hold."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key belong together")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("tls_client_ca needs tls_certificate")
        if bool(self.triton_tls_certificate) != bool(self.triton_tls_key):
            raise ValueError("triton_tls_certificate and triton_tls_key belong together")
        if (self.triton_tls_ca or self.triton_tls_key) and not self.triton_tls:
            raise ValueError("triton_tls_ca and triton_tls_certificate need triton_tls")
        if not self.host and self.unix_socket is None:
            raise ValueError("set host or unix_socket: there is nothing to listen on")
        if self.unix_socket and len(os.fsencode(self.unix_socket)) > LONGEST_SOCKET_PATH:
            raise ValueError(f"unix_socket is longer than {LONGEST_SOCKET_PATH} bytes")
        return self

    def core(self) -> CoreSettings:
        """The part that tunes the core."""
        return CoreSettings(
            guidance_bytes=int(self.guidance_bytes),
            feature_bytes=int(self.feature_bytes),
            feature_reuse=self._feature_reuse(),
            codec_threads=self.codec_threads or _CORE.codec_threads,
            niceness=self.niceness,
            slots=self.slots or _CORE.slots,
            queue_seconds=self.queue_seconds,
            rebuilds=self.rebuilds,
            default_model=self.default_model,
            pins=self.pins,
            tenants=self.tenants,
            request_memory=timedelta(seconds=self.request_memory_seconds),
            sweep_seconds=self.sweep_seconds,
            leave_one_out_limit=self.leave_one_out_limit,
            drain_seconds=self.drain_seconds,
        )

    def _feature_reuse(self) -> FeatureReuse:
        if self.feature_reuse != "auto":
            return FeatureReuse(self.feature_reuse)
        return FeatureReuse.SECOND_USE if self.engine == "triton" else FeatureReuse.ALWAYS

    def bounds(self) -> Limits:
        """The part that bounds requests."""
        return Limits(**{name: int(value) for name, value in self.limits})


class CommandLine(BaseSettings, Settings):
    """Serves few-shot segmentation over gRPC.

    Every flag has a twin in the environment (FEWSEG_PORT for --port,
    FEWSEG_LIMITS__SUPPORTS for --limits.supports) and in the TOML file of
    --config. Flags win over the environment, the environment over the file.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        cli_prog_name=PROGRAM,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    config: Path | None = None
    """TOML file with settings."""
    print_config: CliImplicitFlag[bool] = False
    """Prints the settings in effect as TOML, and exits."""
    version: CliImplicitFlag[bool] = False
    """Prints the version, and exits."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Orders the sources; flags come before all of them."""
        return init_settings, env_settings

    def settings(self) -> Settings:
        """The settings without what belongs to the command line alone."""
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields})


def load(arguments: Sequence[str]) -> CommandLine:
    """Reads the settings from flags, environment and file.

    Args:
        arguments: The flags, without the program's name.

    Raises:
        SystemExit: 2 when something is wrong with them, after a line on standard error for
            each; 0 after ``--help``.
    """
    try:
        return _from_sources(arguments)
    except ValidationError as error:
        _refuse(problems_of(error))
    except (SettingsError, OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        _refuse([str(error)])


def _from_sources(arguments: Sequence[str]) -> CommandLine:
    path = _config_path(arguments)

    class FromFile(CommandLine):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *sources: Any, **named: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            above = super().settings_customise_sources(settings_cls, *sources, **named)
            return (*above, TomlConfigSettingsSource(settings_cls, path)) if path else above

    FromFile.__doc__ = inspect.getdoc(CommandLine)
    return CliApp.run(FromFile, cli_args=list(arguments))


def _config_path(arguments: Sequence[str]) -> Path | None:
    """Finds the file before anything else is read, as it is a source itself."""
    finder = ArgumentParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    named = finder.parse_known_args(list(arguments))[0].config or os.environ.get(f"{_PREFIX}CONFIG")
    if not named:
        return None
    path = Path(named)
    if not path.is_file():
        raise FileNotFoundError(f"config: there is no file {path}")
    return path


def problems_of(error: ValidationError) -> list[str]:
    """A line for each setting that is wrong."""
    return [_line(dict(one)) for one in error.errors()]


def _line(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    what = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        what = "there is no such setting"
    return f"{where}: {what}" if where else what


def _refuse(lines: list[str]) -> NoReturn:
    for line in lines:
        sys.stderr.write(f"{PROGRAM}: {line}\n")
    raise SystemExit(_USAGE)


def as_toml(settings: Settings) -> str:
    """Writes settings so that ``--config`` reads them back; unset ones become comments."""
    own, groups = [], []
    for name, value in settings:
        if isinstance(value, BaseModel):
            body = "".join(f"{key} = {_toml(one)}\n" for key, one in value)
            groups.append(f"\n[{name}]\n{body}")
        elif isinstance(value, dict):
            body = "".join(f"{_toml(key)} = {_toml(one)}\n" for key, one in value.items())
            groups.append(f"\n[{name}]\n{body}")
        elif value is None:
            own.append(f"# {name} is unset\n")
        else:
            own.append(f"{name} = {_toml(value)}\n")
    return "".join([*own, *groups])


def _toml(value: Any) -> str:
    if isinstance(value, bool | int | float | str):
        # JSON's numbers, booleans and strings are TOML's.
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Path):
        return json.dumps(str(value), ensure_ascii=False)
    # Sets get an order, so that the same settings print the same.
    items = sorted(value) if isinstance(value, frozenset) else value
    return f"[{', '.join(_toml(item) for item in items)}]"
