"""What predictions of cached tokens have come to, and how far each worker is believed, as metrics."""

from prometheus_client import Counter, Gauge

from armature.index.trust import Accuracy, Trust

_checked = Counter("armature_router_checked_requests_total", "Requests of which prediction and cache were compared.")
_predicted = Counter("armature_router_predicted_cached_tokens_total", "Prompt tokens predicted to be cached.")
_actual = Counter("armature_router_actual_cached_tokens_total", "Prompt tokens that were cached.")
_wrong = Counter(
    "armature_router_prediction_error_tokens_total",
    "Tokens predicted to be cached that were not (missing), and the other way round (unforeseen).",
    ["kind"],
)
_trust = Gauge("armature_router_trust", "Share of its predicted overlap that a worker is believed to hold.", ["worker"])


class TrustMeter:
    """Reads one `Trust`; a worker that is forgotten goes from the metrics, too."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._counted = Accuracy()
        self._shown: set[str] = set()

    def read(self, now_s: float) -> None:
        counted, self._counted = self._counted, self._trust.accuracy
        requests, predicted, actual, missing, unforeseen = map(int.__sub__, self._counted, counted)
        _checked.inc(requests)
        _predicted.inc(predicted)
        _actual.inc(actual)
        _wrong.labels("missing").inc(missing)
        _wrong.labels("unforeseen").inc(unforeseen)
        shown, self._shown = self._shown, set(self._trust.worker_ids)
        for worker_id in shown - self._shown:
            _trust.remove(worker_id)
        for worker_id in self._shown:
            _trust.labels(worker_id).set(self._trust.factor(worker_id, now_s))
