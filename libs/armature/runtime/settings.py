"""Settings: one frozen dataclass a service, filled from flags, environment, a TOML file and defaults, in that order.

Values are checked, never repaired; whatever is wrong is told with its key, its source, the value and what is expected.
Nothing else in the code base reads flags, environment or configuration files.
"""

import argparse
import dataclasses
import inspect
import os
import re
import sys
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from armature.runtime.addresses import is_loopback
from armature.runtime.channels import MAX_MESSAGE_BYTES
from armature.runtime.connection_age import ConnectionAge
from armature.runtime.tls import TlsFiles, etcd_tls
from armature.runtime.values import Kind, kind_of

T = TypeVar("T")

ENV_PREFIX = "ARMATURE_"
CONFIG_ENV = f"{ENV_PREFIX}CONFIG"


class SettingsError(Exception):
    """A setting is wrong, unknown or missing; the message is one line that says which, where and what to write."""


def option(default: Any = dataclasses.MISSING, *, help: str, secret: bool = False) -> Any:
    """A dataclass field that is a setting; without a default it is required.

    `help` says when to change it. A `secret` is shown in no help text, no error and no repr.
    """
    return dataclasses.field(default=default, metadata={"help": help, "secret": secret}, repr=not secret)


@dataclass(frozen=True, slots=True)
class _Option:
    key: str
    kind: Kind
    default: Any
    help: str
    secret: bool
    owner: str

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.key.upper()

    def show(self, value: object) -> str:
        return "***" if self.secret else repr(value)


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as someone wrote it, and where."""

    raw: Any
    source: str
    is_text: bool


def load(cls: type[T], argv: Sequence[str] | None = None, *, prog: str, env: Mapping[str, str] | None = None) -> T:
    """Fill `cls` from `argv` (default: the process's), `env` (likewise), the file of `--config`, and defaults.

    `--help` prints every option with its environment name and exits.

    Raises:
        SettingsError: a value is wrong, unknown or missing.
    """
    environment = os.environ if env is None else env
    options = {known.key: known for known in _options(cls)}
    flags = _from_flags(options, sys.argv[1:] if argv is None else argv, prog, _summary(cls))
    config = flags.pop("config", None) or environment.get(CONFIG_ENV, "")
    given = _from_file(options, Path(config)) if config else {}
    given |= {
        known.key: _Given(environment[known.env], f"environment variable {known.env}", is_text=True)
        for known in options.values()
        if known.env in environment
    }
    given |= {key: _Given(raw, f"flag {options[key].flag}", is_text=True) for key, raw in flags.items()}
    values = {key: _convert(options[key], value) for key, value in given.items()}
    for known in options.values():
        if known.default is dataclasses.MISSING and known.key not in values:
            raise SettingsError(f"{known.key} is required: set {known.flag} or {known.env} ({known.kind.expected})")
    try:
        return cls(**values)
    except ValueError as error:
        raise SettingsError(_explain(str(error), options, given, values)) from error


def _options(cls: type) -> list[_Option]:
    hints = typing.get_type_hints(cls)
    owners = {name: base for base in reversed(cls.__mro__) for name in inspect.get_annotations(base)}
    return [
        _Option(
            key=field.name,
            kind=kind_of(hints[field.name]),
            default=field.default,
            help=field.metadata.get("help", ""),
            secret=field.metadata.get("secret", False),
            owner=owners[field.name].__name__,
        )
        for field in dataclasses.fields(cls)  # pyright: ignore[reportArgumentType] -- T is a dataclass by contract
    ]


def _summary(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n\n")[0]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} (see {self.prog} --help)")


def _from_flags(options: Mapping[str, _Option], argv: Sequence[str], prog: str, summary: str) -> dict[str, str]:
    usage = f"{prog} [--config FILE] [options]"
    parser = _Parser(
        prog=prog, usage=usage, description=summary, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    # A service's own options before those that all have.
    owners = reversed({known.owner: None for known in options.values()})
    titles = {owner: parser.add_argument_group(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", owner).lower()) for owner in owners}
    parser.add_argument("--config", metavar="FILE", help=f"TOML file with any of these keys [env: {CONFIG_ENV}]")
    for known in options.values():
        group, text = titles[known.owner], _help(known)
        if known.kind.is_switch:
            group.add_argument(known.flag, dest=known.key, action=argparse.BooleanOptionalAction, help=text)
        else:
            group.add_argument(known.flag, dest=known.key, metavar=_metavar(known), help=text)
    parsed, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = ["--config", *(known.flag for known in options.values())]
        name = unknown[0].split("=")[0]
        what = "flag" if name.startswith("--") else "argument"
        parser.error(f"unknown {what} {name!r}{_suggest(name, flags)}")
    return {key: str(raw) for key, raw in vars(parsed).items()}


def _help(known: _Option) -> str:
    if known.default is dataclasses.MISSING:
        default = "required"
    elif known.secret:
        default = "default: not shown"
    else:
        default = f"default: {known.kind.to_text(known.default) or 'none'}"
    return f"{known.help} [{default}; env: {known.env}]".replace("%", "%%")


def _metavar(known: _Option) -> str:
    expected = known.kind.expected
    if expected.startswith("one of "):
        return "{" + expected.removeprefix("one of ").replace(", ", ",") + "}"
    return known.key.rsplit("_", 1)[-1].upper()


def _from_file(options: Mapping[str, _Option], path: Path) -> dict[str, _Given]:
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"can't read the file {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the file {path} is not TOML: {error}") from error
    for key in table:
        if key not in options:
            raise SettingsError(f"unknown key {key!r} in file {path}{_suggest(key, options)}")
    return {key: _Given(raw, f"file {path}", is_text=False) for key, raw in table.items()}


def _suggest(name: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    close = get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _convert(known: _Option, given: _Given) -> Any:
    try:
        return known.kind.from_text(given.raw) if given.is_text else known.kind.from_toml(given.raw)
    except ValueError:
        raise SettingsError(
            f"{known.key} is {known.show(given.raw)} in {given.source}; expected {known.kind.expected}"
        ) from None


def _explain(
    message: str, options: Mapping[str, _Option], given: Mapping[str, _Given], values: Mapping[str, Any]
) -> str:
    """A class's complaint, with where the values of the keys that it names come from."""
    named = [known for known in options.values() if re.search(rf"\b{known.key}\b", message)]
    origins = [f"{known.key} is {_value(known, values)} in {_source(known, given)}" for known in named]
    return f"{message} ({'; '.join(origins)})" if origins else message


def _value(known: _Option, values: Mapping[str, Any]) -> str:
    text = known.kind.to_text(values.get(known.key, known.default))
    return "***" if known.secret else text or "not set"


def _source(known: _Option, given: Mapping[str, _Given]) -> str:
    return given[known.key].source if known.key in given else "the defaults"


_KNOWN_SECRET = "armature"


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """What every service can be told."""

    id: str = option("", help="member id; set it where a restarted process must keep its name, else it is made up")
    namespace: str = option("default", help="cell that this process belongs to; cells sharing an etcd don't meet")
    etcd: str = option("127.0.0.1:2379", help="etcd endpoints, a comma list of host:port; https:// in front for TLS")
    etcd_user: str = option("", help="etcd user, if its authentication is on")
    etcd_password: str = option("", help="password of the etcd user", secret=True)
    etcd_timeout_s: float = option(10.0, help="how long to try to reach etcd at the start before giving up")
    lease_ttl_s: float = option(10.0, help="a dead process is noticed after this long; lower costs more etcd traffic")
    host: str = option("127.0.0.1", help="address to listen on; 0.0.0.0 to be reached from other machines")
    port: int = option(0, help="gRPC port; 0 takes a free one, which suits everything that clients find through etcd")
    metrics_port: int = option(0, help="port of /metrics; 0 takes a free one, -1 turns it off")
    node: str = option("", help="name of this machine, whose members reach each other's memory; empty: its host name")
    advertise_host: str = option("", help="host that others reach this process by, if it differs from --host")
    otlp_endpoint: str = option("", help="host:port of an OTLP gRPC collector; empty turns tracing off")
    trace_ratio: float = option(1.0, help="share of new traces that are recorded; lower it when spans cost too much")
    log_level: typing.Literal["debug", "info", "warning", "error"] = option("info", help="least severity to log")
    log_format: typing.Literal["text", "json"] = option("text", help="json for machines: one object a line")
    drain_timeout_s: float = option(30.0, help="how long a stopping process waits for its requests to end")
    tls_cert: Path | None = option(None, help="PEM certificate chain; with key and ca it turns on mutual TLS")
    tls_key: Path | None = option(None, help="PEM private key of tls_cert")
    tls_ca: Path | None = option(None, help="PEM certificates that the other members' certificates are signed by")
    tls_name: str = option("", help="name in every member's certificate, if they don't carry their addresses")
    cluster_secret: str = option(_KNOWN_SECRET, help="key of block digests, the same in the whole cell", secret=True)

    @property
    def etcd_endpoints(self) -> list[str]:
        """The endpoints one by one, `host:port`."""
        endpoints = [endpoint.strip().rpartition("://")[2].rstrip("/") for endpoint in self.etcd.split(",")]
        return [endpoint for endpoint in endpoints if endpoint]

    @property
    def etcd_tls(self) -> TlsFiles | None:
        """The files for etcd; None: it is spoken to without TLS."""
        return etcd_tls(self.tls, self.etcd)

    @property
    def tls(self) -> TlsFiles | None:
        """The files of mutual TLS; None when it is off."""
        if self.tls_cert is None or self.tls_key is None or self.tls_ca is None:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_ca, self.tls_name)

    @property
    def max_request_bytes(self) -> int:
        """The largest gRPC message that this process takes."""
        return MAX_MESSAGE_BYTES

    @property
    def connection_age(self) -> ConnectionAge | None:
        """How old connections to this process's gRPC port become; None: as old as their clients like."""
        return None

    @property
    def risks(self) -> list[str]:
        """What these settings leave open to others on the network; fine on one machine or behind a wall."""
        if is_loopback(self.host):
            return []
        found: list[str] = []
        if self.tls is None:
            found.append(f"whoever reaches {self.host} may use this process: set tls_cert, tls_key and tls_ca")
        if self.cluster_secret == _KNOWN_SECRET:
            found.append("everybody knows the default cluster_secret and can forge block digests: set another one")
        return found

    def __post_init__(self) -> None:
        # Both are parts of a key in etcd.
        for key, pattern in (("id", r"[\w.-]*"), ("namespace", r"[\w.-]+")):
            if not re.fullmatch(pattern, getattr(self, key)):
                raise ValueError(f"{key} must consist of letters, digits, dots, dashes and underscores")
        for key, lowest in (("port", 0), ("metrics_port", -1)):
            if not lowest <= getattr(self, key) <= 65535:
                raise ValueError(f"{key} must be a port number")
        for key in ("etcd_timeout_s", "lease_ttl_s", "drain_timeout_s"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key} must be above 0")
        if not 0 <= self.trace_ratio <= 1:
            raise ValueError("trace_ratio must be from 0 to 1")
        if len({self.tls_cert is None, self.tls_key is None, self.tls_ca is None}) > 1:
            raise ValueError("tls_cert, tls_key and tls_ca must be set together")
        if not self.etcd_endpoints:
            raise ValueError("etcd must name an endpoint")
        if "https://" in self.etcd and self.tls is None:
            raise ValueError("etcd over https needs tls_cert, tls_key and tls_ca")
        if len(self.cluster_secret.encode()) > 64:
            raise ValueError("cluster_secret must have at most 64 bytes")
