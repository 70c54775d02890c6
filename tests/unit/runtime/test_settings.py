"""Where a setting's value comes from, and how each mistake is told."""

from dataclasses import FrozenInstanceError, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from armature.engines.host.settings import WorkerSettings
from armature.runtime.settings import CommonSettings, SettingsError, load, option


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A service that exists for its settings."""

    model: str = option(help="directory of the model")
    max_num_seqs: int = option(8, help="more for throughput, fewer for latency")
    ratio: float = option(0.5, help="50% of something")
    eager: bool = option(True, help="compute at once")
    mode: Literal["fast", "exact"] = option("fast", help="how")
    color: Color = option(Color.RED, help="which")
    names: tuple[str, ...] = option((), help="who")
    sizes: tuple[int, ...] = option((1, 2), help="how large")
    folder: Path = option(Path("/data"), help="where")
    limit: int | None = option(None, help="at most")
    password: str = option("hunter2", help="of the user", secret=True)

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise ValueError("max_num_seqs must be at least 1")
        if self.password == "wrong":
            raise ValueError("password must be another")


def demo(*argv: str, **env: str) -> Demo:
    return load(Demo, argv, prog="demo", env={f"ARMATURE_{key.upper()}": value for key, value in env.items()})


def complaint(*argv: str, **env: str) -> str:
    with pytest.raises(SettingsError) as caught:
        demo(*argv, **env)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def config(folder: Path, text: str) -> str:
    path = folder / "demo.toml"
    path.write_text(text)
    return str(path)


def test_defaults_hold_where_nothing_is_said() -> None:
    assert demo("--model", "m") == Demo(model="m")


def test_flags_beat_the_environment_which_beats_the_file_which_beats_defaults(tmp_path: Path) -> None:
    path = config(tmp_path, 'model = "file"\nmax_num_seqs = 1\nratio = 0.1\nmode = "exact"')
    settings = demo("--config", path, "--max-num-seqs", "3", max_num_seqs="2", ratio="0.2")
    assert (settings.max_num_seqs, settings.ratio, settings.mode, settings.model) == (3, 0.2, "exact", "file")


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    assert demo(config=config(tmp_path, 'model = "file"')).model == "file"


TEXTS: list[tuple[str, str, Any]] = [
    ("max_num_seqs", "-3", -3),
    ("ratio", "1e-3", 0.001),
    ("mode", "exact", "exact"),
    ("color", "blue", Color.BLUE),
    ("names", "a, b", ("a", "b")),
    ("names", "", ()),
    ("sizes", "3,4", (3, 4)),
    ("folder", "x/y", Path("x/y")),
    ("limit", "7", 7),
    ("limit", "", None),
    ("model", "", ""),
]


@dataclass(frozen=True, kw_only=True)
class Unchecked(Demo):
    def __post_init__(self) -> None:
        pass


@pytest.mark.parametrize(("key", "text", "value"), TEXTS)
def test_flags_and_environment_are_read_alike(key: str, text: str, value: object) -> None:
    base = {"ARMATURE_MODEL": "m"}
    flagged = load(Unchecked, [f"--{key.replace('_', '-')}={text}"], prog="demo", env=base)
    from_env = load(Unchecked, [], prog="demo", env=base | {f"ARMATURE_{key.upper()}": text})
    assert getattr(flagged, key) == getattr(from_env, key) == value


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("max_num_seqs", "4", 4),
        ("ratio", "2", 2.0),
        ("eager", "false", False),
        ("color", '"blue"', Color.BLUE),
        ("names", '["a", "b"]', ("a", "b")),
        ("sizes", "[3]", (3,)),
        ("folder", '"x"', Path("x")),
        ("limit", "7", 7),
    ],
)
def test_the_file_speaks_toml(tmp_path: Path, key: str, text: str, value: object) -> None:
    settings = demo("--config", config(tmp_path, f'model = "m"\n{key} = {text}'))
    assert getattr(settings, key) == value
    assert type(getattr(settings, key)) is type(value)


@pytest.mark.parametrize(("flag", "value"), [("--eager", True), ("--no-eager", False)])
def test_a_switch_has_a_flag_for_on_and_one_for_off(flag: str, value: bool) -> None:
    assert demo("--model", "m", flag, eager=str(not value)).eager is value


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("max_num_seqs", "many", "an integer"),
        ("max_num_seqs", "", "an integer"),
        ("max_num_seqs", "1.5", "an integer"),
        ("ratio", "nan", "a number"),
        ("ratio", "half", "a number"),
        ("mode", "slow", "one of fast, exact"),
        ("color", "RED", "one of red, blue"),
        ("sizes", "1,x", "a comma list, each an integer"),
        ("limit", "none", "an integer, or nothing"),
    ],
)
def test_a_wrong_value_is_told_with_key_source_value_and_what_is_expected(key: str, text: str, expected: str) -> None:
    flag = f"--{key.replace('_', '-')}"
    assert complaint("--model=m", f"{flag}={text}") == f"{key} is {text!r} in flag {flag}; expected {expected}"
    variable = f"environment variable ARMATURE_{key.upper()}"
    assert complaint("--model=m", **{key: text}) == f"{key} is {text!r} in {variable}; expected {expected}"


def test_a_switch_in_the_environment_is_a_word_for_on_or_off() -> None:
    assert not demo("--model=m", eager="off").eager
    assert complaint("--model=m", eager="2") == (
        "eager is '2' in environment variable ARMATURE_EAGER; expected true or false"
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('max_num_seqs = "8"', "max_num_seqs is '8'"),
        ("max_num_seqs = true", "max_num_seqs is True"),
        ("ratio = inf", "ratio is inf"),
        ("eager = 1", "eager is 1"),
        ('names = "a,b"', "names is 'a,b'"),
        ("names = [1]", "names is [1]"),
        ("model = 3", "model is 3"),
    ],
)
def test_the_file_must_use_the_right_type(tmp_path: Path, line: str, told: str) -> None:
    path = config(tmp_path, f"{line}\n")
    said = complaint("--config", path, "--model=m") if not line.startswith("model") else complaint("--config", path)
    assert said.startswith(f"{told} in file {path}; expected ")


def test_an_unknown_key_in_the_file_is_told_with_the_likeliest_one(tmp_path: Path) -> None:
    path = config(tmp_path, "max-num-seqs = 3")
    assert complaint("--config", path) == f"unknown key 'max-num-seqs' in file {path}; did you mean 'max_num_seqs'?"


def test_a_file_that_is_absent_or_no_toml_is_told(tmp_path: Path) -> None:
    absent = tmp_path / "absent.toml"
    assert complaint("--config", str(absent)) == f"can't read the file {absent}: No such file or directory"
    path = config(tmp_path, "model = \n")
    assert complaint("--config", path).startswith(f"the file {path} is not TOML: ")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--max-num-seq", "3"], "unknown flag '--max-num-seq'; did you mean '--max-num-seqs'?"),
        (["--model", "m", "stray"], "unknown argument 'stray'"),
        (["--model"], "argument --model: expected one argument"),
    ],
)
def test_an_unknown_flag_is_told(argv: list[str], told: str) -> None:
    assert complaint(*argv).startswith(told)


def test_flags_are_not_guessed_from_their_beginnings() -> None:
    assert "unknown flag '--mod'" in complaint("--mod", "m")


def test_a_missing_required_option_is_told_with_both_ways_to_set_it() -> None:
    assert complaint() == "model is required: set --model or ARMATURE_MODEL (text)"


def test_what_the_class_finds_wrong_is_told_with_the_origin_of_the_value() -> None:
    said = complaint("--model=m", max_num_seqs="0")
    assert said == "max_num_seqs must be at least 1 (max_num_seqs is 0 in environment variable ARMATURE_MAX_NUM_SEQS)"


def test_help_shows_help_default_and_environment_name_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        demo("--help")
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--max-num-seqs SEQS more for throughput, fewer for latency [default: 8; env: ARMATURE_MAX_NUM_SEQS]" in said
    assert "--model MODEL directory of the model [required; env: ARMATURE_MODEL]" in said
    assert "--eager, --no-eager compute at once [default: true; env: ARMATURE_EAGER]" in said
    assert "--color {red,blue} which [default: red; env: ARMATURE_COLOR]" in said
    assert "50% of something" in said
    assert "--config FILE" in said


def test_secrets_are_shown_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo("--help")
    settings = demo("--model=m", password="s3cret")
    assert settings.password == "s3cret"
    shown = capsys.readouterr().out + repr(settings) + complaint("--model=m", "--password=wrong")
    assert "hunter2" not in shown
    assert "s3cret" not in shown
    assert "password is *** in flag --password" in shown


def test_settings_do_not_change() -> None:
    settings: Any = demo("--model=m")
    with pytest.raises(FrozenInstanceError):
        settings.model = "other"


def common(*argv: str) -> CommonSettings:
    return load(CommonSettings, argv, prog="demo", env={})


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--id", "a/b"), "id must consist of letters"),
        (("--namespace", ""), "namespace must consist of letters"),
        (("--port", "70000"), "port must be a port number"),
        (("--metrics-port", "-2"), "metrics_port must be"),
        (("--drain-timeout-s", "0"), "drain_timeout_s must be above 0"),
        (("--trace-ratio", "1.5"), "trace_ratio must be from 0 to 1"),
        (("--tls-cert", "c.pem"), "tls_cert, tls_key and tls_ca must be set together"),
        (("--cluster-secret", "x" * 65), "cluster_secret must have at most 64 bytes"),
        (("--etcd", " , "), "etcd must name an endpoint"),
        (("--etcd", "https://a:1"), "etcd over https needs"),
    ],
)
def test_the_settings_that_all_services_share_are_checked(argv: tuple[str, ...], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        common(*argv)
    assert str(caught.value).startswith(told)


def test_tls_is_on_when_all_three_files_are_named() -> None:
    assert common().tls is None
    tls = common("--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a", "--tls-name", "cell").tls
    assert tls is not None
    assert (tls.cert, tls.key, tls.ca, tls.name) == (Path("c"), Path("k"), Path("a"), "cell")


def test_etcd_endpoints_are_a_comma_list() -> None:
    assert common("--etcd", "a:1, b:2").etcd_endpoints == ["a:1", "b:2"]


def test_etcd_speaks_tls_where_its_endpoints_say_https() -> None:
    tls = ("--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a", "--tls-name", "cell")
    assert common("--etcd", "a:1", *tls).etcd_tls is None
    settings = common("--etcd", "https://a:1/,https://b:2", *tls)
    assert settings.etcd_endpoints == ["a:1", "b:2"]
    assert settings.etcd_tls is not None
    assert settings.etcd_tls.name == ""


TLS = ("--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a")


@pytest.mark.parametrize(
    ("argv", "about"),
    [
        ((), []),
        (("--host", "localhost"), []),
        (("--host", "::1"), []),
        (("--host", "0.0.0.0"), ["tls_cert", "cluster_secret"]),
        (("--host", "10.0.0.7", "--cluster-secret", "s"), ["tls_cert"]),
        (("--host", "node-7", *TLS), ["cluster_secret"]),
        (("--host", "node-7", "--cluster-secret", "s", *TLS), []),
    ],
)
def test_what_is_open_to_the_network_is_known(argv: tuple[str, ...], about: list[str]) -> None:
    risks = common(*argv).risks
    assert len(risks) == len(about)
    assert all(key in risk for key, risk in zip(about, risks, strict=True))


def test_a_worker_knows_that_tls_does_not_cover_nixl() -> None:
    closed = ["--host", "node-7", "--cluster-secret", "s", *TLS]
    (risk,) = load(WorkerSettings, closed, prog="worker", env={}).risks
    assert "NIXL" in risk
    assert not load(WorkerSettings, [*closed, "--transport", "grpc"], prog="worker", env={}).risks
