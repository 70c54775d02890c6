"""What can go wrong with etcd, told apart by what to do about it, and the one place where gRPC's errors become ours."""

import grpc

from armature.runtime.errors import ArmatureError, UnavailableError


class EtcdError(ArmatureError):
    """etcd refused the request, or the settings for etcd are wrong; trying again changes nothing."""


class EtcdUnavailableError(EtcdError, UnavailableError):
    """No endpoint answered in time. A write may have been done all the same."""


class OutcomeUnknownError(EtcdUnavailableError):
    """The connection was lost after a transaction was sent; whether it was done must be read from the keys."""


class EtcdAuthError(EtcdError):
    """etcd doesn't know who we are: no user, a wrong password or a token that has ended."""


class PermissionDeniedError(EtcdError):
    """etcd knows the user, who lacks the rights."""


class LeaseNotFoundError(EtcdError):
    """The lease has ended; its keys are gone."""


class CompactedError(EtcdError):
    """The revision asked for has been compacted away: list again."""


class FutureRevisionError(EtcdError):
    """The store has not reached the revision asked for: it was wiped or restored."""


# etcd's own words (api/v3rpc/rpctypes/error.go) decide where the status code alone does not.
_BY_WORDS: tuple[tuple[str, type[EtcdError]], ...] = (
    ("requested lease not found", LeaseNotFoundError),
    ("required revision has been compacted", CompactedError),
    ("required revision is a future revision", FutureRevisionError),
    ("invalid auth token", EtcdAuthError),
    ("user name is empty", EtcdAuthError),
    ("authentication failed", EtcdAuthError),
    ("revision of auth store is old", EtcdAuthError),
    ("permission denied", PermissionDeniedError),
)
_BY_CODE: dict[grpc.StatusCode, type[EtcdError]] = {
    grpc.StatusCode.UNAVAILABLE: EtcdUnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: EtcdUnavailableError,
    grpc.StatusCode.UNAUTHENTICATED: EtcdAuthError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    # The call was cut off from our side, by closing the client.
    grpc.StatusCode.CANCELLED: EtcdUnavailableError,
}
_ADVICE: dict[type[EtcdError], str] = {
    EtcdUnavailableError: "check that etcd runs there and that `etcd` names it",
    EtcdAuthError: "check `etcd_user` and `etcd_password`",
    PermissionDeniedError: "grant the user of `etcd_user` the keys under /armature/",
}


def translate(error: grpc.aio.AioRpcError, endpoint: str, doing: str) -> EtcdError:
    """Our error for gRPC's: it names the endpoint, what was being done, what etcd said and what to try."""
    said = error.details() or error.code().name
    return explain(said, _BY_CODE.get(error.code(), EtcdError), endpoint, doing)


def explain(said: str, otherwise: type[EtcdError], endpoint: str, doing: str) -> EtcdError:
    """The error for what etcd said, which is of the class `otherwise` unless its words tell more."""
    kind = next((kind for words, kind in _BY_WORDS if words in said), otherwise)
    advice = _ADVICE.get(kind)
    return kind(f"etcd at {endpoint}: {doing}: {said}" + (f"; {advice}" if advice else ""))
