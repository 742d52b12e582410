"""Metrics and logs. Names and labels are part of the public interface; see `docs/guides/metrics.md`."""

import logging
import sys

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from structlog.typing import Processor

_PREFIX = "internal_transfer_"
_DURATIONS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8189)


class Telemetry:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            _PREFIX + "requests", "HTTP requests answered.", ("route", "outcome", "code"), registry=self.registry
        )
        self.stage_duration = Histogram(
            _PREFIX + "stage_duration_seconds",
            "How long a stage took for one batch.",
            ("stage",),
            buckets=_DURATIONS,
            registry=self.registry,
        )
        self.batch_size = Histogram(
            _PREFIX + "batch_size", "Items in one batch of a stage.", ("stage",), buckets=_SIZES, registry=self.registry
        )
        self.queue_depth = Gauge(
            _PREFIX + "queue_depth", "Items waiting in a bounded queue.", ("queue",), registry=self.registry
        )
        self.open_transfers = Gauge(
            _PREFIX + "open_transfers",
            "Transfers that are not final, at the last scan, by status and age (fresh, stuck, alert, critical).",
            ("status", "age"),
            registry=self.registry,
        )
        self.ledger_operation = Histogram(
            _PREFIX + "ledger_operation_duration_seconds",
            "How long one call of the ledger took.",
            ("operation",),
            buckets=_DURATIONS,
            registry=self.registry,
        )
        self.port_call = Histogram(
            _PREFIX + "port_call_duration_seconds",
            "How long one call of a port took, by port and method.",
            ("port", "method"),
            buckets=_DURATIONS,
            registry=self.registry,
        )
        self.scanner_runs = Counter(_PREFIX + "scanner_runs", "Scans that ended.", registry=self.registry)
        self.recoveries = Counter(
            _PREFIX + "recoveries",
            "Transfers that a scan took up, by what became of them.",
            ("action",),
            registry=self.registry,
        )
        self.sheds = Counter(
            _PREFIX + "sheds", "Requests refused before anything was recorded.", ("reason",), registry=self.registry
        )
        self.needs_person = Gauge(
            _PREFIX + "needs_person", "Open transfers that no rule may decide.", ("reason",), registry=self.registry
        )
        self.failures = Counter(
            _PREFIX + "operating_failures", "Calls of a system that failed.", ("system", "kind"), registry=self.registry
        )
        self.unexpected = Counter(
            _PREFIX + "unexpected_answers",
            "Answers that a system should not give.",
            ("system", "answer"),
            registry=self.registry,
        )
        self.reconciliation_items = Gauge(
            _PREFIX + "reconciliation_items", "Differences found by the last reconciliation.", registry=self.registry
        )
        self.reconciliation_at = Gauge(
            _PREFIX + "reconciliation_timestamp_seconds", "When the last reconciliation ended.", registry=self.registry
        )

    def request_counts(self) -> dict[tuple[str, str, str], float]:
        """Returns how many requests were answered, by (route, outcome, code)."""
        return {
            (sample.labels["route"], sample.labels["outcome"], sample.labels["code"]): sample.value
            for metric in self.requests.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }


def configure_logging(*, level: str = "info") -> None:
    """Sends JSON logs, one object per line, to standard error.

    The logs of libraries go there too, from level `warning` on.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    render = structlog.processors.JSONRenderer()
    libraries = logging.StreamHandler(sys.stderr)
    libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render]
        )
    )
    logging.basicConfig(handlers=[libraries], level=logging.WARNING, force=True)
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
