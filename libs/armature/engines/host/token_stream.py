"""What one client of `Decode.Stream` is still to be told: bounded, and one frame for all that is ready.

A client that stops reading must not hold up the engine or fill the memory. Beyond `max_pending_tokens` the stream is
full, and whoever feeds it cancels its requests; their last deltas are still kept, one for each.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from armature.v1.common_pb2 import FINISH_REASON_UNSPECIFIED, FinishReason
from armature.v1.worker_pb2 import TokenDelta, TokenFrame

MAX_PENDING_TOKENS = 16384
"""Some seconds of all requests that a stream can have; under a megabyte without log probabilities."""


class TokenStream:
    """Builds the next frame while the last one is on its way. The deltas of one request are joined while they wait."""

    def __init__(self, max_pending_tokens: int = MAX_PENDING_TOKENS) -> None:
        self._max_pending_tokens = max_pending_tokens
        self._frame = TokenFrame()
        self._open: dict[int, TokenDelta] = {}  # in the frame, and not the last of its request
        self._pending_tokens = 0
        self._ready = asyncio.Event()
        self._is_complete = False

    @property
    def is_full(self) -> bool:
        return self._pending_tokens > self._max_pending_tokens

    def put(
        self,
        stream_id: int,
        output_index: int,
        token_ids: Sequence[int] = (),
        finish_reason: "FinishReason.ValueType" = FINISH_REASON_UNSPECIFIED,
    ) -> TokenDelta:
        """Add tokens, and the end if there is a reason; what else is to be told is set in the delta that comes back."""
        delta = self._open.get(stream_id)
        if delta is None:
            delta = self._frame.deltas.add(stream_id=stream_id, output_index=output_index, token_ids=token_ids)
            self._open[stream_id] = delta
        else:
            delta.token_ids.extend(token_ids)
        if finish_reason:
            delta.finish_reason = finish_reason
            del self._open[stream_id]  # the client may use the id again
        self._pending_tokens += len(token_ids)
        self._ready.set()
        return delta

    def complete(self) -> None:
        """End `frames` once everything has been given out."""
        self._is_complete = True
        self._ready.set()

    async def frames(self) -> AsyncGenerator[TokenFrame]:
        """Everything that is ready, again and again. One reader only."""
        while self._frame.deltas or not self._is_complete:
            await self._ready.wait()
            self._ready.clear()
            if self._frame.deltas:
                frame, self._frame = self._frame, TokenFrame()
                self._open.clear()
                self._pending_tokens = 0
                yield frame
