"""A record that tells a planner's observer what it records."""

from armature.planning.observer import Observer
from armature.sim.record import Record


class ObservedRecord(Record):
    """Everything that `Record` keeps, and word of it to the observer."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer

    def arrive(self, now_s: float, prompt_tokens: int) -> int:
        self._observer.arrive(now_s, prompt_tokens)
        return super().arrive(now_s, prompt_tokens)

    def first_token(self, position: int, now_s: float, cached_tokens: int) -> None:
        super().first_token(position, now_s, cached_tokens)
        self._observer.first_token(now_s - self._times["arrival_s"][position], self._counts["prompt_tokens"][position])

    def finish(self, position: int, now_s: float, output_tokens: int, error: str = "") -> None:
        super().finish(position, now_s, output_tokens, error)
        prompt_tokens, first_s = self._counts["prompt_tokens"][position], self._times["first_token_s"][position]
        if error:
            self._observer.fail(prompt_tokens, has_token=first_s >= 0)
        else:
            self._observer.finish(
                prompt_tokens, self._counts["cached_tokens"][position], output_tokens, now_s - first_s
            )  # fmt: skip
