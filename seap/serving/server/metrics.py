"""What /metrics tells Prometheus: requests, tokens, queue, latency by task, and drift of the router's prompts."""

from collections import deque
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from seap.serving.routing.router import Route
from seap.serving.scheduling.scheduler import Scheduler

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
RECENT = 256  # routed prompts that drift is measured over


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("seap_requests", "Requests by task and outcome", ["task", "outcome"], **of)
        self.prompt_tokens = Counter("seap_prompt_tokens", "Tokens read", ["task"], **of)
        self.tokens = Counter("seap_tokens", "Tokens written", ["task"], **of)
        self.latency = Histogram("seap_request_seconds", "Until the last token", ["task"], buckets=SECONDS, **of)
        self.first = Histogram("seap_first_token_seconds", "Until the first token", ["task"], buckets=SECONDS, **of)
        self.refused = Counter("seap_refused", "Requests refused, by HTTP status", ["status"], **of)
        self.routed = Counter("seap_routed", "Prompts that the router read", **of)
        self.abstained = Counter("seap_abstained", "Prompts that it gave to no task", **of)
        Gauge("seap_waiting", "Requests that wait", **of).set_function(lambda: scheduler.num_waiting)
        Gauge("seap_running", "Rows that are decoded", **of).set_function(lambda: sum(scheduler.num_running.values()))
        drift = "Mean distance of recent prompts over that of held-out prompts of the tasks; 1 is no drift"
        Gauge("seap_router_drift", drift, **of).set_function(self.drift)
        about = scheduler.router.about if scheduler.router else {}
        self.usual = float(about.get("held_distance", 0) or 0)
        self.recent: deque[float] = deque(maxlen=RECENT)

    def saw(self, route: Route | None) -> None:
        if route is not None:
            self.routed.inc()
            self.abstained.inc(route.task is None)
            self.recent.append(route.distance)

    def drift(self) -> float:
        return sum(self.recent) / len(self.recent) / self.usual if self.recent and self.usual else 1.0

    def text(self) -> bytes:
        return generate_latest(self.registry)
