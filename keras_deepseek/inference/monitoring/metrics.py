"""Which numbers of an engine are shown, and under what names. `prometheus` writes them.

It reads counters that are kept anyway, when it is asked: a request costs nothing here.
"""

import os
import time
from pathlib import Path

from keras_deepseek import __version__
from keras_deepseek.inference.batching.batch_totals import BatchStatistics
from keras_deepseek.inference.monitoring.monitored_engine import MonitoredEngine
from keras_deepseek.inference.monitoring.prometheus import Family


def collect_metrics(engine: MonitoredEngine) -> list[Family]:
    """Returns all numbers of an engine, and those of its process.

    Args:
        engine: `ServingEngine`.
    """
    return [
        *_request_families(engine),
        *_batch_families(engine),
        *_version_families(engine),
        *_cache_families(engine),
        *_process_families(),
    ]


def _request_families(engine: MonitoredEngine) -> list[Family]:
    answered = Family("keras_deepseek_requests", "counter", "Requests that were answered.")
    took = Family(
        "keras_deepseek_request_duration_seconds",
        "histogram",
        "Seconds from when a request was read to when its answer was sent.",
    )
    names = ("model", "version", "protocol", "method")
    for (called, status), count in engine.monitor.answers().items():
        answered.add(count, {**dict(zip(names, called, strict=True)), "status": status})
    for called, latency in engine.monitor.latencies().items():
        took.add(latency, dict(zip(names, called, strict=True)))
    return [answered, took]


def _batch_families(engine: MonitoredEngine) -> list[Family]:
    start = "keras_deepseek_"
    reasons = Family(f"{start}batches", "counter", "Batches that ran, by why they left.")
    rows = Family(f"{start}rows", "counter", "Rows of requests that ran.")
    padded = Family(f"{start}padded_rows", "counter", "Rows that were added to fill batches.")
    busy = Family(f"{start}model_seconds", "counter", "Seconds in the model, of all replicas.")
    sizes = Family(f"{start}batch_rows", "histogram", "Rows of requests in a batch.")
    ages = Family(
        f"{start}batch_queue_age_seconds", "histogram", "Seconds that a batch's oldest row waited."
    )
    times = Family(f"{start}batch_duration_seconds", "histogram", "Seconds in the model, a batch.")
    waiting = Family(f"{start}queue_rows", "gauge", "Rows that wait now.")
    oldest = Family(f"{start}queue_age_seconds", "gauge", "Seconds that the oldest row waits now.")
    replicas = Family(f"{start}replicas", "gauge", "Threads that run the model.")
    for labels, found in _all_statistics(engine):
        for reason, count in sorted(found.reasons.items()):
            reasons.add(count, {**labels, "reason": reason})
        for family, value in (
            (rows, found.rows),
            (padded, found.padded_rows),
            (busy, found.busy_seconds),
            (sizes, found.batch_rows),
            (ages, found.queue_ages),
            (times, found.batch_seconds),
            (waiting, found.waiting_rows),
            (oldest, found.queue_age),
            (replicas, found.replicas),
        ):
            family.add(value, labels)
    return [reasons, rows, padded, busy, sizes, ages, times, waiting, oldest, replicas]


def _all_statistics(engine: MonitoredEngine) -> list[tuple[dict[str, str], BatchStatistics]]:
    return [
        ({"model": name, "version": str(number)}, version.statistics())
        for name, served in engine.models.items()
        for number, version in served.versions.items()
    ]


def _version_families(engine: MonitoredEngine) -> list[Family]:
    states = Family(
        "keras_deepseek_model_version_state", "gauge", "1 for the state that a version is in."
    )
    shares = Family(
        "keras_deepseek_trial_share", "gauge", "The part of requests for a version on trial."
    )
    for name, served in engine.models.items():
        for number, version in served.states.items():
            labels = {"model": name, "version": str(number)}
            states.add(1, {**labels, "state": version.state})
        for number, share in served.on_trial.items():
            shares.add(share, {"model": name, "version": str(number)})
    loads = Family("keras_deepseek_loads", "counter", "Versions that were loaded, or failed to.")
    for (name, result), count in engine.monitor.loads().items():
        loads.add(count, {"model": name, "result": result})
    took = Family(
        "keras_deepseek_last_load_seconds", "gauge", "Seconds that the last load and warm-up took."
    )
    for name, seconds in engine.monitor.load_seconds().items():
        took.add(seconds, {"model": name})
    ready = Family("keras_deepseek_ready", "gauge", "1 where requests are answered.")
    ready.add(int(engine.ready), {})
    build = Family("keras_deepseek_build_info", "gauge", "The version of keras_deepseek.")
    build.add(1, {"version": __version__})
    return [states, shares, loads, took, ready, build]


def _cache_families(engine: MonitoredEngine) -> list[Family]:
    hits = Family("keras_deepseek_cache_hits", "counter", "Requests answered from the cache.")
    misses = Family("keras_deepseek_cache_misses", "counter", "Requests that it could not answer.")
    entries = Family("keras_deepseek_cache_entries", "gauge", "Answers that it holds.")
    for name, served in engine.models.items():
        for number, version in served.versions.items():
            if version.cache is not None:
                labels = {"model": name, "version": str(number)}
                found = version.cache.counts()
                for family, value in zip((hits, misses, entries), found, strict=True):
                    family.add(value, labels)
    return [hits, misses, entries]


def _process_families() -> list[Family]:
    """The names are those of Prometheus's own clients, so that its dashboards fit."""
    cpu = Family("process_cpu_seconds", "counter", "CPU seconds of the process.")
    cpu.add(time.process_time(), {})
    families = [cpu]
    statm = Path("/proc/self/statm")
    if statm.exists():  # Linux alone has it.
        memory = Family("process_resident_memory_bytes", "gauge", "Memory of the process.")
        pages = int(statm.read_text(encoding="ascii").split()[1])
        memory.add(pages * os.sysconf("SC_PAGE_SIZE"), {})
        families.append(memory)
    return families
