"""Errors by blame: who has to change something so that it works.

Shells raise these; `armature.runtime.statuses` maps them to what a client sees. Anything else that escapes a handler is
our own bug.
"""


class ArmatureError(Exception):
    """Base of every error that names who is to blame."""


class CallerError(ArmatureError):
    """The request itself is wrong; sending it again changes nothing."""


class UnauthenticatedError(CallerError):
    """Nobody knows who is calling."""


class ForbiddenError(CallerError):
    """The caller is known, and may not."""


class NotFoundError(CallerError):
    """The request names something that does not exist here."""


class PeerError(ArmatureError):
    """Another service answered with something that its contract forbids."""


class UnavailableError(ArmatureError):
    """Not now, or not here; the same request may succeed later or elsewhere.

    `retry_after_s` is a guess at when; 0 means unknown.
    """

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(UnavailableError):
    """A bounded queue is full."""


class StartError(ArmatureError):
    """The process can't start here and now; the message is one line that says what to do about it."""
