"""An Argo Rollouts AnalysisTemplate: the certified promises, asked of Prometheus while a release is rolled out.

vLLM's histograms begin when the server has the request, ours when the client was due to send: a promise that holds here
is weaker by the way between. Knows nothing of how the engine is deployed.
"""

import re
from typing import Any

from lifecycle.export import yaml_text
from lifecycle.export.base import Deployment, only_for
from lifecycle.export.containers import ANNOTATION
from scenarios.errors import UserError
from tuners.results import Winner

HISTOGRAMS = {
    "ttft": "vllm:time_to_first_token_seconds",
    "tpot": "vllm:request_time_per_output_token_seconds",
    "e2e": "vllm:e2e_request_latency_seconds",
}
DIGEST = "autotune/digest"
WINDOW = "5m"
INTERVAL = "60s"
LOOKS = 10


class ArgoAnalysis:
    name = "argo-analysis"
    file_name = "analysis-template.yaml"

    def render(self, deployment: Deployment) -> str:
        only_for(deployment, self.name, "vllm", "vllm-cpu")
        promises, left_out = _promises(deployment.winner)
        if "{{" in deployment.served_model:
            raise UserError(f"Argo would take {deployment.served_model!r} for a template of its own")
        head = [*deployment.told, *(f"Not here, as the server does not know of it: {name}" for name in left_out)]
        document = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "AnalysisTemplate",
            "metadata": {
                "name": deployment.name,
                "annotations": {
                    ANNOTATION: deployment.canonical.config_digest,
                    DIGEST: deployment.canonical.digest,
                },
            },
            "spec": {
                "args": [{"name": "prometheus", "value": "http://prometheus.monitoring:9090"}],
                "metrics": [_metric(deployment, *promise) for promise in promises],
            },
        }
        return yaml_text.dump([document], head)

    def digest(self, text: str) -> str:
        (document,) = yaml_text.read(text)
        if document.get("kind") != "AnalysisTemplate":
            raise UserError("not an AnalysisTemplate")
        return str(document["metadata"]["annotations"][DIGEST])

    def targets_ms(self, text: str) -> dict[tuple[str, float], float]:
        """The promises in ``text``: (metric, percentile) -> target."""
        (document,) = yaml_text.read(text)
        names = {histogram: metric for metric, histogram in HISTOGRAMS.items()}
        found = {}
        for metric in document["spec"]["metrics"]:
            query = metric["provider"]["prometheus"]["query"]
            asked = re.match(r"1000 \* histogram_quantile\(([\d.]+), .*rate\(([\w:]+)_bucket", query)
            limit = re.search(r"result\[0\] <= ([\d.e+-]+)", metric["successCondition"])
            assert asked is not None
            assert limit is not None
            found[names[asked[2]], round(float(asked[1]) * 100, 6)] = float(limit[1])
        return found


def _promises(winner: Winner) -> tuple[list[tuple[str, float, float]], list[str]]:
    """What was certified of all requests together, as (metric, percentile, target in ms); and the rest, by name."""
    certification = winner.certification
    if certification is None or certification.outcome != "PASS":
        raise UserError("--format argo-analysis guards certified targets; this study certified none")
    promises = [(s.metric, s.percentile, s.target_ms) for s in certification.slo if s.metric in HISTOGRAMS]
    left_out = [s.metric for s in certification.slo if s.metric not in HISTOGRAMS]
    if not promises:
        raise UserError(
            "--format argo-analysis: every target is of one class of requests; the server's histograms do not know them"
        )
    return promises, left_out


def _metric(deployment: Deployment, metric: str, percentile: float, target_ms: float) -> dict[str, Any]:
    model = deployment.served_model.replace("\\", "\\\\").replace('"', '\\"')
    rate = f'rate({HISTOGRAMS[metric]}_bucket{{model_name="{model}"}}[{WINDOW}])'
    limit = _decimal(target_ms)
    return {
        "name": f"{metric}-p{percentile:g}".replace(".", "-"),
        "interval": INTERVAL,
        "initialDelay": WINDOW,
        "count": LOOKS,
        "failureLimit": 1,
        "inconclusiveLimit": LOOKS,  # no traffic, no verdict
        "successCondition": f"len(result) > 0 && !isNaN(result[0]) && result[0] <= {limit}",
        "failureCondition": f"len(result) > 0 && !isNaN(result[0]) && result[0] > {limit}",
        "provider": {
            "prometheus": {
                "address": "{{args.prometheus}}",
                "query": f"1000 * histogram_quantile({percentile / 100:g}, sum by (le) ({rate}))",
            }
        },
    }


def _decimal(value: float) -> str:
    """Without an exponent: not every expression language reads one."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
