"""Where the figures come from and what they mean: facts of a study, definitions of its words.

Pure. Knows nothing of HTML.
"""

import shlex
from dataclasses import dataclass

from reports.records import StudyRecords

GIB = 1 << 30
DEFINITIONS = (
    ("TTFT", "Time to first token: first chunk with content − intended send time. Waiting in any queue counts."),
    ("TPOT", "Time per output token: (last chunk − first chunk) / (output tokens − 1), per request of two or more."),
    ("End to end", "Last chunk with content − intended send time."),
    ("P95", "The latency that 95 % of the judged requests stay at or below, exact from the raw records."),
    ("Failed request", "Error, timeout or cut-off answer: slower than every target, in every figure. Never left out."),
    ("Goodput", "Highest request rate at which every target still holds, on one running engine."),
    ("Gain", "Score / the default’s score in the same block, on arrivals and prompts the search never saw."),
    (
        "Interval",
        (
            "Percentiles: order statistics, counts deflated. Scores: Student’s t over blocks. "
            "Curves: a Dvoretzky–Kiefer–Wolfowitz band, good for the whole curve at once."
        ),
    ),
    (
        "Deflation",
        (
            "Latencies in a queue come in busy periods. Counts are divided by 3τ before they may pass, by 1.25τ "
            "before they may fail, by max(2, 2τ) in intervals; τ is the autocorrelation time of log latency."
        ),
    ),
    (
        "Evidence",
        (
            "E-value of “at most the allowed share of requests is late” and of its opposite. At 1/α the test stops; "
            "the error stays at most α however often one looks."
        ),
    ),
    ("Quality", "Share of right answers − the reference’s on the same items; the lower bound must be above −margin."),
    ("Void", "The load generator or the host was at fault: repeated, never counted for or against the engine."),
)


@dataclass(frozen=True, slots=True)
class Fact:
    label: str
    text: str
    code: bool = False


def facts(records: StudyRecords) -> tuple[Fact, ...]:
    """What it takes to believe the figures, and to get them again."""
    start, winner = records.start, records.winner
    identity = winner.identity if winner and winner.identity else records.reference and records.reference.identity
    host = start.host
    seeds = sorted({p.run.measurement.seed for p in records.runs()})
    methods = sorted({p.run.measurement.percentile_method for p in records.runs()})
    found = [
        Fact("Repeat the study", start.command, code=True),
        Fact("Started", start.started_at),
        Fact("Scenario", f"{start.scenario_file}, digest {start.scenario_digest}"),
        Fact("Host", f"{host.cpu}, {host.cores} cores, {host.memory_bytes / GIB:.1f} GiB, Linux {host.kernel}"),
        Fact("GPUs", ", ".join(host.gpus) or "none"),
        Fact("Frequency governor", host.governor or "not readable"),
        Fact("Machine", host.hostname_hash),
        Fact("Software", f"autotune {host.autotune_version}, Python {host.python}, {start.engine_version}"),
        Fact("Packages", ", ".join(f"{name} {version}" for name, version in sorted(host.packages.items()))),
        Fact("Model files", "\n".join(f"{v}  sha256 {d}" for v, d in start.model_digests.items()), code=True),
        Fact("Seeds of the runs", ", ".join(map(str, seeds))),
        Fact("Percentile method", ", ".join(f"numpy {m}" for m in methods)),
    ]
    if identity:
        found.append(Fact("Engine command", shlex.join(identity.argv) or "attached: not launched by us", code=True))
        found.append(Fact("Engine environment", "\n".join(f"{k}={v}" for k, v in identity.env.items()), code=True))
        found.append(Fact("Configuration digest", identity.config_digest))
    if winner:
        found.append(Fact("Workload digest", winner.workload_digest))
    for tracker, (ok, message) in records.tracked.items():
        found.append(Fact(f"Recorded in {tracker}", message if ok else f"not yet: {message}. Run `autotune sync`."))
    return tuple(fact for fact in found if fact.text)
