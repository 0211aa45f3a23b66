"""What is settled once, before anything is compared: the words of the prompts, the targets in milliseconds.

Knows nothing of searching: `bench` settles the same things for a single configuration.
"""

from collections.abc import Mapping
from dataclasses import replace

from harness.bench import Loaded, Session
from harness.observe import Target
from harness.subject import Subject
from harness.token_counts import words_for
from scenarios.errors import UserError
from scenarios.spec import Scenario
from scenarios.words import Words
from tuners.results import Reference


def resolved(subject: Subject, reference: Reference) -> Subject:
    """``subject`` with the targets in milliseconds and the words that ``reference`` settled."""
    targets = tuple(
        Target(metric, target.percentile, reference.targets_ms[metric])
        for metric, target in subject.scenario.targets.items()
    )
    return replace(subject, targets=targets, words=Words.from_dict(reference.words))


def build_words(s: Session) -> Words:
    """What prompts are made of: words that the server's own tokenizer sees as one token each."""
    return words_for(s.subject.engine, s.running.endpoint, s.workload)


def resolve_targets(scenario: Scenario, unloaded_ms: Mapping[str, float]) -> dict[str, float]:
    """Every SLO target in milliseconds; relative ones are multiples of the unloaded median."""
    targets: dict[str, float] = {}
    for metric, target in scenario.targets.items():
        if target.target_ms is not None:
            targets[metric] = target.target_ms
        else:
            assert target.times_unloaded is not None
            targets[metric] = round(target.times_unloaded * unloaded_ms[metric], 3)
    return targets


def median_ms(loaded: Loaded, metric: str) -> float:
    value = loaded.measurement.metrics[f"{metric}_p50_ms"].value
    if value is None:
        raise UserError(f"the unloaded engine answers too few requests to know its {metric}: see {loaded.folder}")
    return value
