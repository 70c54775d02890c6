"""How fast an engine computes, fitted to the steps it has made."""

# A step counts half after about seven further ones: long enough to smooth, short enough to follow a change of load.
_KEEP = 0.9
# In a mixed step at least this share is taken to be prefill's, however slow decode steps have been.
_LEAST_PREFILL_SHARE = 0.1
# A step of fewer prompt tokens takes as long as one of a single token: it says nothing about the rate.
_LEAST_PREFILL_TOKENS = 64


class Pace:
    """Moving averages of decode step time and prefill rate; 0 until measured.

    Steps without prefill give the decode step time. A step with both is prefill's after a decode step's time is taken
    off. The rate is summed tokens over summed time, so large chunks weigh more than small ones, and
    the tails of prompts, which are too short to tell, are left out.
    """

    def __init__(self) -> None:
        self.decode_step_s = 0.0
        self._prefill_tokens = 0.0
        self._prefill_s = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        return self._prefill_tokens / self._prefill_s if self._prefill_s else 0.0

    def observe(self, *, num_decodes: int, prefill_tokens: int, elapsed_s: float) -> None:
        """Take in one step."""
        if 0 < prefill_tokens < _LEAST_PREFILL_TOKENS:
            return
        if prefill_tokens:
            prefill_s = elapsed_s - self.decode_step_s if num_decodes else elapsed_s
            self._prefill_tokens = _KEEP * self._prefill_tokens + prefill_tokens
            self._prefill_s = _KEEP * self._prefill_s + max(prefill_s, _LEAST_PREFILL_SHARE * elapsed_s)
        elif num_decodes:
            weight = 1 - _KEEP if self.decode_step_s else 1.0
            self.decode_step_s += weight * (elapsed_s - self.decode_step_s)
