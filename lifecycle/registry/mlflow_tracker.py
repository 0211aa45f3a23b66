"""A study in MLflow: a parent run, a nested run per trial, raw samples as artifacts, a registered version.

The only file that imports mlflow, and only when something is mirrored. Knows nothing of how a study is made.
"""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from lifecycle.registry.base import Mirrored, TrackerUnavailable, environment
from lifecycle.registry.recorded import Flat, Metrics, Recorded, Tags
from scenarios.errors import UserError
from tuners.results import TrialResult

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# MLflow's own defaults retry for minutes. The first request finds out whether anybody is there.
FIRST_REQUEST = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}
LATER_REQUESTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
BATCH = 100  # most parameters or tags that one log_batch takes
MOST_RUNS = 50_000  # the largest page MLflow gives
CANDIDATE = "candidate"
SQLITE = "sqlite:///"


class MlflowTracker:
    """``uri``: of the tracking server or database; default MLFLOW_TRACKING_URI, then SQLite beside the runs."""

    name = "mlflow"

    def __init__(self, uri: str | None = None) -> None:
        self._uri = uri

    def mirror(self, run: Path) -> Mirrored:
        study = Recorded.read(run)
        runs_root = run.resolve().parent
        uri = self._uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{runs_root / 'mlflow.db'}"
        with environment(QUIET):
            try:
                from mlflow import MlflowClient  # noqa: PLC0415 - seconds to import, and an extra
                from mlflow.exceptions import MlflowException  # noqa: PLC0415
                from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415
            except ModuleNotFoundError as err:
                problem = f"{err.name} is not installed: pip install 'autotune-serving[mlflow]'"
                raise TrackerUnavailable(self.name, run, problem) from err
            try:
                if uri.startswith(SQLITE):
                    _prepare_database(Path(uri.removeprefix(SQLITE)), MlflowClient)
                with environment(FIRST_REQUEST):
                    client = MlflowClient(tracking_uri=uri)
                    experiment_id = _experiment(client, study.title, None if _remote(uri) else runs_root)
                with environment(LATER_REQUESTS):
                    return _Projection(client, experiment_id, study).write(uri)
            except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as err:
                reason = str(err).splitlines()[0] if str(err) else type(err).__name__
                raise TrackerUnavailable(self.name, run, f"cannot record at {uri}: {reason}") from err


def ledger_from(run_id: str, into: Path, uri: str | None = None) -> Path:
    """The ledger that a study's MLflow run holds, fetched to ``into``: RUN FOLDER/earlier/ID.

    ``uri`` as of `MlflowTracker`. Raises UserError where there is no such run or it holds no ledger.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{into.resolve().parents[2] / 'mlflow.db'}"
    with environment({**QUIET, **FIRST_REQUEST}):
        try:
            from mlflow import MlflowClient  # noqa: PLC0415 - seconds to import, and an extra
            from mlflow.exceptions import MlflowException  # noqa: PLC0415
        except ModuleNotFoundError as err:
            raise UserError(f"{err.name} is not installed: pip install 'autotune-serving[mlflow]'") from err
        try:
            into.mkdir(parents=True, exist_ok=True)
            return Path(MlflowClient(tracking_uri=uri).download_artifacts(run_id, "ledger.jsonl", str(into)))
        except (MlflowException, OSError) as err:
            reason = str(err).splitlines()[0] if str(err) else type(err).__name__
            raise UserError(f"mlflow:{run_id}: no ledger can be fetched from {uri}: {reason}") from err


class _Times(NamedTuple):
    start_ms: int
    end_ms: int


class _Projection:
    """One study, written through one client. Finds what an earlier mirror left, and adds the rest."""

    def __init__(self, client: Any, experiment_id: str, study: Recorded) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._study = study

    def write(self, uri: str) -> Mirrored:
        study = self._study
        parent = self._parent()
        children = self._children(parent.info.run_id)
        for result in (*study.trials, *study.arm):
            self._trial(parent.info.run_id, children.get(f"{result.trial.number:03d}"), result)
        version = self._version(parent)
        recorded = study.count
        if version is not None:
            recorded += f", registered as {study.title} version {version}"
        run_path = f"#/experiments/{self._experiment_id}/runs/{parent.info.run_id}"
        if _remote(uri):
            return Mirrored("mlflow", f"{uri.rstrip('/')}/{run_path}", recorded)
        return Mirrored("mlflow", uri, f"{recorded}; look at it with: mlflow ui --backend-store-uri '{uri}'")

    def _parent(self) -> Any:
        study = self._study
        last_s = study.stamps.get("winner", max(study.stamps.values()))  # `tracked/…` steps may follow
        times = _Times(_ms(study.stamps["study"]), _ms(last_s))
        found = self._runs(f"tags.`autotune.study_digest` = '{study.digest}' and tags.`autotune.role` = 'study'")
        parent = next(iter(found), None)
        if parent is None:
            name = study.run.resolve().name
            parent = self._client.create_run(
                self._experiment_id, start_time=times.start_ms, run_name=name, tags=study.study_tags()
            )
        tags = study.study_tags()
        if study.winner is not None:
            tags["mlflow.note.content"] = f"{study.noise}{study.winner.reason}"
        run_id = parent.info.run_id
        self._log(run_id, study.study_params(), study.study_metrics(), tags, times.end_ms)
        for file in ("scenario.yaml", "ledger.jsonl", "report.html"):
            if (study.run / file).exists():
                self._client.log_artifact(run_id, str(study.run / file))
        if (study.run / "trials" / "ref").is_dir():
            self._client.log_artifacts(run_id, str(study.run / "trials" / "ref"), "reference")
        if study.winner is not None:
            self._client.log_text(run_id, study.winner.model_dump_json(indent=2) + "\n", "winner/winner.json")
            self._client.set_terminated(run_id, "FINISHED", times.end_ms)
        return parent

    def _children(self, parent_id: str) -> dict[str, Any]:
        found = self._runs(f"tags.`mlflow.parentRunId` = '{parent_id}'")
        return {child.data.tags["autotune.trial"]: child for child in found}

    def _trial(self, parent_id: str, child: Any, result: TrialResult) -> None:
        study, trial = self._study, result.trial
        end_s = study.ended_s(trial.number)
        times = _Times(_ms(end_s - trial.seconds), _ms(end_s))
        tags = {**study.trial_tags(result), "mlflow.parentRunId": parent_id}
        if child is None:
            name = f"trial {trial.number:03d}"
            child = self._client.create_run(self._experiment_id, start_time=times.start_ms, run_name=name, tags=tags)
        run_id = child.info.run_id
        self._log(run_id, dict(trial.knobs), study.trial_metrics(result), tags, times.end_ms)
        if (study.run / result.folder).is_dir():
            self._client.log_artifacts(run_id, str(study.run / result.folder))
        self._client.set_terminated(run_id, "FAILED" if trial.state == "infeasible" else "FINISHED", times.end_ms)

    def _version(self, parent: Any) -> str | None:
        """The registered version of the winner; None where no configuration is fit to be one."""
        study, client = self._study, self._client
        if study.winner is None or not study.deployable:
            return None
        if not client.search_registered_models(filter_string=f"name = '{study.title}'"):
            client.create_registered_model(study.title)
        known = client.search_model_versions(f"name = '{study.title}'", max_results=10_000)
        mine = next((v for v in known if v.run_id == parent.info.run_id), None)
        if mine is None:
            mine = client.create_model_version(
                study.title,
                source=f"{parent.info.artifact_uri}/winner",
                run_id=parent.info.run_id,
                tags=study.version_tags(),
                description=study.winner.reason,
            )
        # A study that is synced late must not take the alias from a newer one.
        newest = max((v.tags["started_at"] for v in known), default="")
        if study.start.started_at >= newest:
            client.set_registered_model_alias(study.title, CANDIDATE, mine.version)
        return str(mine.version)

    def _runs(self, filter_string: str) -> list[Any]:
        return list(self._client.search_runs([self._experiment_id], filter_string, max_results=MOST_RUNS))

    def _log(self, run_id: str, params: Flat, metrics: Metrics, tags: Tags, at_ms: int) -> None:
        """``at_ms`` comes from the ledger, so that logging again repeats the same points, not new ones."""
        from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415

        all_params = [Param(name, str(value)) for name, value in params.items()]
        all_tags = [RunTag(name, value) for name, value in tags.items()]
        all_metrics = [Metric(name, value, at_ms, 0) for name, value in metrics.items()]
        for i in range(0, max(len(all_params), len(all_tags), len(all_metrics)), BATCH):
            part = slice(i, i + BATCH)
            self._client.log_batch(run_id, all_metrics[part], all_params[part], all_tags[part])


def _experiment(client: Any, title: str, runs_root: Path | None) -> str:
    """The id of the experiment. ``runs_root`` None: the server knows where its artifacts go."""
    experiment = client.get_experiment_by_name(title)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = (runs_root / "mlartifacts").as_uri() if runs_root else None
    return str(client.create_experiment(title, artifact_location=location))


def _remote(uri: str) -> bool:
    return uri.startswith(("http://", "https://", "databricks"))


def _prepare_database(path: Path, client_at: Callable[..., Any]) -> None:
    """Make the tables beside ``path`` and move them there, so that a kill leaves no half-made database.

    One that exists must be writable now: MLflow itself would try for a hundred seconds.
    """
    if path.exists() and path.stat().st_size > 0:
        with closing(sqlite3.connect(path, timeout=5)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as folder:
        made = Path(folder) / path.name
        client_at(tracking_uri=f"{SQLITE}{made}").search_experiments()
        made.replace(path)


def _ms(unix_s: float) -> int:
    return round(unix_s * 1000)
