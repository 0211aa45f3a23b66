"""Two measurements side by side: which of their figures differ beyond luck.

Knows nothing of what was changed between them. The statistics are those of stats/compare.py.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from harness.load.records import AUDIT_FILE, RECORDS_FILE, LoadResult
from harness.measurement import HostReading, Measurement
from harness.observe import Observed, RunContext, Target, summarise
from harness.stats.compare import Change, batches, holm, percentile_change, rate_change, share_change

ALPHA = 0.05
MEASUREMENT_FILE = "measurement.json"


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both. ``p_value``: corrected for all figures that are compared (Holm); None: too short to tell.

    ``ratio``: the change is second / first (percentiles); otherwise it is second - first.
    """

    name: str
    change: Change
    p_value: float | None
    significant: bool
    ratio: bool


def differences(first: Observed, second: Observed, alpha: float = ALPHA) -> tuple[Difference, ...]:
    """The percentile of every target that both have, the share of requests that missed any, and the goodput.

    Where nothing has changed, the chance that any of them is called significant is ``alpha``.
    """
    changes = dict(_changes(first, second))
    p_values = holm([change.p_value for change in changes.values()])
    return tuple(
        Difference(name, change, p, p is not None and p < alpha, ratio=name.endswith("_ms"))
        for (name, change), p in zip(changes.items(), p_values, strict=True)
    )


def reread(folder: Path) -> Observed | None:
    """What was seen in a run, again, from its files: raw records, measurement, the generator's audit.

    None where one of them is gone, and where the run was cut short: one that its own misses have ended has more of
    them than others.
    """
    if not all((folder / name).exists() for name in (MEASUREMENT_FILE, AUDIT_FILE, RECORDS_FILE)):
        return None
    measurement = Measurement.model_validate_json((folder / MEASUREMENT_FILE).read_text(encoding="utf-8"))
    told = json.loads((folder / AUDIT_FILE).read_text(encoding="utf-8"))
    known = {f.name for f in fields(LoadResult)}
    load = LoadResult(**{k: v for k, v in told.items() if k in known} | {"records_path": folder / RECORDS_FILE})
    if load.stopped_early == "misses":
        return None
    start_s, end_s = measurement.window_s
    context = RunContext(
        kind=measurement.kind,
        rate_rps=measurement.rate_rps,
        seed=measurement.seed,
        warmup_s=start_s,
        window_end_s=end_s,
        targets=tuple(Target(slo.metric, slo.percentile, slo.target_ms) for slo in measurement.slo),
        load=load,
        host=HostReading.model_validate(measurement.audit.model_dump(include=set(HostReading.model_fields))),
        telemetry=measurement.telemetry,
        workload_digest=measurement.workload_digest,
        started_at=measurement.started_at,
        records_path=measurement.records_path,
        command=measurement.command,
        stream=any(name.startswith("icg") for name in measurement.metrics),
    )
    return summarise(folder / RECORDS_FILE, context)


def _changes(first: Observed, second: Observed) -> Iterator[tuple[str, Change]]:
    percentiles = {slo.metric: slo.percentile for slo in first.measurement.slo}
    for metric, a in first.series.items():
        b = second.series.get(metric)
        if b is not None and a.size and b.size:
            q = percentiles[metric]
            yield f"{metric}_p{q:g}_ms", percentile_change(a, b, q)
    if first.missed.size and second.missed.size:
        count = min((batches(o.series[m]) for o in (first, second) for m in o.series), default=0)
        yield "missed", share_change(first.missed, second.missed, count)
        good = [o.t_int_s[~o.missed] for o in (first, second)]
        windows = [o.measurement.window_s for o in (first, second)]
        yield "goodput_rps", rate_change(good[0], good[1], windows, count)
