"""What the server has done so far, as Prometheus reads it.

in:  counts and seconds as they happen
out: the text of GET /metrics

Read serve/worker.py first.
Agrees with: the text format 0.0.4 of Prometheus; names as llama-server has them.
"""

import threading
from collections import Counter

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
COUNTERS = {
    "prompt_tokens_total": "Tokens of prompts.",
    "cached_tokens_total": "Tokens of prompts that were not computed again.",
    "tokens_predicted_total": "Tokens of answers.",
    "media_bytes_total": "Bytes of pictures and videos in requests.",
}
GAUGES = {
    "requests_processing": "Questions that have a slot.",
    "requests_deferred": "Questions that wait for a slot.",
    "slots": "Questions that can be answered at a time.",
}
HISTOGRAMS = {
    "time_to_first_token_seconds": "From a request to the first token of its answer.",
    "time_between_tokens_seconds": "From one token of an answer to the next.",
    "request_seconds": "From a request to the end of its answer.",
}


class Histogram:
    """How often a number of seconds was at most each bound."""

    def __init__(self) -> None:
        self.buckets, self.count, self.sum = [0] * len(BOUNDS), 0, 0.0

    def add(self, seconds: float) -> None:
        """Count one time."""
        self.count += 1
        self.sum += seconds
        for index, bound in enumerate(BOUNDS):
            self.buckets[index] += seconds <= bound

    def lines(self, name: str) -> list[str]:
        """The buckets, the count and the sum as Prometheus writes them."""
        parts = [(f'{name}_bucket{{le="{b:g}"}}', n) for b, n in zip(BOUNDS, self.buckets)]
        parts += [(f'{name}_bucket{{le="+Inf"}}', self.count), (f"{name}_count", self.count)]
        return [f"{key} {value}" for key, value in parts] + [f"{name}_sum {self.sum:.6f}"]


class Metrics:
    """Counters and histograms; any thread may add to them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self.histograms = {name: Histogram() for name in HISTOGRAMS}
        self.outcomes: Counter[int] = Counter()  # by HTTP status; 499: the client left

    def count(self, name: str, amount: int) -> None:
        """Add to one of COUNTERS."""
        with self.lock:
            self.counters[name] += amount

    def observe(self, name: str, seconds: float) -> None:
        """Add a time to one of HISTOGRAMS."""
        with self.lock:
            self.histograms[name].add(seconds)

    def outcome(self, status: int) -> None:
        """Count a request by the HTTP status that it ended with."""
        with self.lock:
            self.outcomes[status] += 1

    def text(self, gauges: dict[str, int]) -> str:
        """Everything, as text. gauges: a value for each of GAUGES."""
        lines = []
        with self.lock:
            for name, about in COUNTERS.items():
                lines += described(name, about, "counter", [f"{name} {self.counters[name]}"])
            for name, about in GAUGES.items():
                lines += described(name, about, "gauge", [f"{name} {gauges[name]}"])
            for name, about in HISTOGRAMS.items():
                lines += described(name, about, "histogram", self.histograms[name].lines(name))
            rows = [
                f'requests_total{{status="{status}"}} {count}'
                for status, count in sorted(self.outcomes.items())
            ]
            lines += described("requests_total", "Requests by HTTP status.", "counter", rows)
        return "".join(f"llava_min:{line}\n" if line[0] != "#" else f"{line}\n" for line in lines)


def described(name: str, about: str, kind: str, rows: list[str]) -> list[str]:
    """The lines of one metric."""
    return [f"# HELP llava_min:{name} {about}", f"# TYPE llava_min:{name} {kind}", *rows]
