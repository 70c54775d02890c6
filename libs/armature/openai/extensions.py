"""What a request may say besides OpenAI's fields: whose turn it is and how it wants to be served.

Our own object, `"armature": {"session_id", "hints": {...}}`, and the names under which clients of other servers say
the same: Dynamo's `nvext.agent_hints`, `nvext.cache_control` and `nvext.session_control`, OpenAI's `prompt_cache_key`.
A key that is not known inside one of these objects is refused: a hint with a typing error would do nothing unnoticed.
"""

from typing import Any

import msgspec

from armature.openai.errors import ApiError, invalid
from armature.routing.hints import NO_HINTS, Hints

MAX_SESSION_BYTES = 256

_CACHE_TTL_S = {"5m": 300.0, "1h": 3600.0}


class HintOptions(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of `Hints`."""

    priority: int | None = None
    latency_sensitivity: float | None = None
    ttft_target_s: float | None = None
    expected_output_tokens: int | None = None
    cache_ttl_s: float | None = None
    speculative_prefill: bool | None = None


class ArmatureOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Our extension: `"armature": {"include_info": true}` asks how the request was served."""

    include_info: bool = False
    session_id: str | None = None
    hints: HintOptions | None = None


class AgentHints(msgspec.Struct, forbid_unknown_fields=True):
    priority: int | None = None
    osl: int | None = None
    latency_sensitivity: float | None = None
    speculative_prefill: bool | None = None


class NvCacheControl(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    ttl: str = "5m"


class SessionControl(msgspec.Struct, forbid_unknown_fields=True):
    session_id: str


class NvExt(msgspec.Struct, forbid_unknown_fields=True):
    agent_hints: AgentHints | None = None
    cache_control: NvCacheControl | None = None
    session_control: SessionControl | None = None


def hints_from(armature: ArmatureOptions | None, nvext: NvExt | None) -> Hints:
    """The hints of a body.

    Raises:
        ApiError: 400 that names the field: a number is out of its range, or both objects have hints.
    """
    said = _own(armature.hints) if armature is not None and armature.hints is not None else {}
    theirs = _theirs(nvext) if nvext is not None else {}
    if said and theirs:
        raise invalid(next(iter(theirs.values()))[0], "give hints in 'armature' or in 'nvext', not in both")
    said = said or theirs
    for name, (field, value) in said.items():
        try:
            Hints(**{name: value})
        except ValueError as error:
            raise invalid(field, str(error)) from None
    return Hints(**{name: value for name, (_, value) in said.items()}) if said else NO_HINTS


def session_from(
    armature: ArmatureOptions | None, nvext: NvExt | None, prompt_cache_key: str | None, header: str = ""
) -> str:
    """Which conversation a request belongs to, by the most particular of the fields that say so; empty if none does.

    Raises:
        ApiError: 400 that names the field: the name is too long.
    """
    control = nvext.session_control if nvext is not None else None
    for field, value in (
        ("armature.session_id", armature.session_id if armature is not None else None),
        ("nvext.session_control.session_id", control.session_id if control is not None else None),
        ("prompt_cache_key", prompt_cache_key),
        ("x-armature-session-id", header),
    ):
        if value:
            return check_session(field, value)
    return ""


def check_session(field: str, session_id: str) -> str:
    """The name of a conversation, if it is short enough to travel with every query.

    Raises:
        ApiError: 400.
    """
    size_bytes = len(session_id.encode())
    if size_bytes > MAX_SESSION_BYTES:
        raise invalid(field, f"has at most {MAX_SESSION_BYTES} bytes, not {size_bytes}")
    return session_id


_Said = dict[str, tuple[str, Any]]
"""By name of the hint: what the client calls it, and its value."""


def _own(options: HintOptions) -> _Said:
    values = ((name, getattr(options, name)) for name in options.__struct_fields__)
    return {name: (f"armature.hints.{name}", value) for name, value in values if value is not None}


def _theirs(nvext: NvExt) -> _Said:
    said: _Said = {}
    if (hints := nvext.agent_hints) is not None:
        # Theirs says by how much a request is more urgent than usual, and is 0 for the usual one; ours is 1 for that.
        weight = None if hints.latency_sensitivity is None else 1.0 + hints.latency_sensitivity
        for name, alias, value in (
            ("priority", "priority", hints.priority),
            ("expected_output_tokens", "osl", hints.osl),
            ("latency_sensitivity", "latency_sensitivity", weight),
            ("speculative_prefill", "speculative_prefill", hints.speculative_prefill),
        ):
            if value is not None:
                said[name] = f"nvext.agent_hints.{alias}", value
    if (control := nvext.cache_control) is not None:
        said["cache_ttl_s"] = "nvext.cache_control.ttl", _ttl_s(control)
    return said


def _ttl_s(control: NvCacheControl) -> float:
    if control.type != "ephemeral":
        raise invalid("nvext.cache_control.type", f"must be 'ephemeral', not '{control.type[:40]}'")
    ttl_s = _CACHE_TTL_S.get(control.ttl)
    if ttl_s is None:
        raise invalid("nvext.cache_control.ttl", f"must be one of {', '.join(_CACHE_TTL_S)}, not '{control.ttl[:40]}'")
    return ttl_s


def unknown_key(field: str) -> ApiError:
    return ApiError(400, f"Unknown parameter: '{field}'; remove it", param=field, code="unknown_parameter")
