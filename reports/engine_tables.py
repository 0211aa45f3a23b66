"""What the engine's own /metrics and its GPUs tell of every run, as tables of text.

Pure. Knows nothing of HTML.
"""

from harness.measurement import GpuReading, ServerView
from reports.quantity import ABSENT, number
from reports.records import StudyRecords
from reports.tables import Table

GIB = 1 << 30


def server(records: StudyRecords) -> Table | None:
    """One row per run whose server told something; where server and client disagree is flagged, and said last."""
    told = [(p.run.folder, p.run.measurement.server) for p in records.runs() if p.run.measurement.server]
    rows = [(folder, *(text for _, text in server_facts(view)), "; ".join(view.disagreements)) for folder, view in told]
    flags = {place: "bad" for place, (_, view) in enumerate(told) if view.disagreements}
    head = ("Run", *(label for label, _ in server_facts(told[0][1])), "Beyond what lies between them") if told else ()
    return Table(head, tuple(rows), words=1, flags=flags) if told else None


def server_facts(view: ServerView) -> tuple[tuple[str, str], ...]:
    """Label, value as text: what the server says, beside the client's where both can know it."""
    return (
        ("Requests, server / client", f"{_count(view.requests)} / {view.client_requests:,}"),
        ("TTFT mean, ms", _both(view.ttft_mean_ms, view.client_ttft_mean_ms)),
        ("TPOT mean, ms", _both(view.tpot_mean_ms, view.client_tpot_mean_ms)),
        ("End to end mean, ms", _both(view.e2e_mean_ms, view.client_e2e_mean_ms)),
        ("Running mean / peak", _both(view.running_mean, view.running_peak)),
        ("Waiting mean / peak", _both(view.waiting_mean, view.waiting_peak)),
        ("KV cache in use, peak", _percent(view.kv_usage_peak)),
        ("Preemptions", _count(view.preemptions)),
        ("Prefix hits, of tokens", _percent(view.prefix_hit_share)),
        ("Drafts accepted", _percent(view.accepted_share)),
    )


def gpus(records: StudyRecords) -> Table | None:
    """One row per run with what NVML told; a slowed or shared GPU is flagged."""
    told = [(p.run.folder, p.run.measurement.telemetry.gpu) for p in records.runs() if p.run.measurement.telemetry.gpu]
    rows = [(folder, *(text for _, text in gpu_facts(reading))) for folder, reading in told]
    flags = {place: "bad" for place, (_, reading) in enumerate(told) if reading.slowed or reading.neighbours}
    head = ("Run", *(label for label, _ in gpu_facts(told[0][1]))) if told else ()
    return Table(head, tuple(rows), words=1, flags=flags) if told else None


def gpu_facts(reading: GpuReading) -> tuple[tuple[str, str], ...]:
    """Label, value as text."""
    memory = reading.memory_peak_bytes
    return (
        ("GPUs", str(reading.gpus)),
        ("Energy, J per output token", number(reading.energy_per_output_token_j)),
        ("Power mean, W", number(reading.power_mean_w)),
        ("Memory peak, GiB", number(None if memory is None else memory / GIB)),
        ("Busy", _percent(reading.utilisation_mean)),
        ("SM clock mean / lowest, MHz", _both(reading.sm_clock_mean_mhz, reading.sm_clock_min_mhz)),
        ("Clocks held back by", ", ".join(reading.held_back_by) or ABSENT),
        ("Processes of others", str(reading.neighbours)),
    )


def _both(first: float | None, second: float | None) -> str:
    return ABSENT if first is None and second is None else f"{number(first)} / {number(second)}"


def _count(value: int | None) -> str:
    return ABSENT if value is None else f"{value:,}"


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{share:.1%}"
