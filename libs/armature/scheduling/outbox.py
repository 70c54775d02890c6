"""What the scheduler has to tell since it was last asked."""

from armature.scheduling.job import Job
from armature.scheduling.request import FinishReason, Request, Reserved, SeenPrompt, Staged, TokenOutput


class Outbox:
    """Collects news; the owner of the scheduler takes and clears them."""

    def __init__(self) -> None:
        self.tokens: list[TokenOutput] = []
        self.reserved: list[Reserved] = []
        self.staged: list[Staged] = []
        self.seen: list[SeenPrompt] = []
        self.opened: list[int] = []
        """Blocks that a transport will write as soon as `reserved` is told: their digests must be zeroed before."""
        self.left: list[str] = []
        """Requests that the scheduler has forgotten."""

    def refuse(self, request: Request, error: str) -> None:
        """Answer a request that was never taken."""
        index = max(0, len(request.token_ids) - request.prompt_tokens)
        self.tokens.append(TokenOutput(request.request_id, index, (), FinishReason.ERROR, error=error))

    def end(self, job: Job, reason: FinishReason, error: str = "") -> None:
        """Tell a request's end without a further token."""
        index = max(0, len(job.token_ids) - job.prompt_tokens)
        cached = max(0, job.cached_tokens)
        self.tokens.append(TokenOutput(job.request_id, index, (), reason, cached, error=error))
