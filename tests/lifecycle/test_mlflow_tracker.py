"""The MLflow mirror on a real MLflow: SQLite, a real tracking server, and a server that is not there."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lifecycle.registry.base import TrackerUnavailable
from lifecycle.registry.mlflow_tracker import MlflowTracker, ledger_from
from lifecycle.registry.recorded import Recorded
from lifecycle.registry.sync import Attempt, attempts_of, mirror_all
from scenarios.errors import UserError

mlflow = pytest.importorskip("mlflow")
# MLflow's own models use what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)


@pytest.fixture(autouse=True)
def _no_settings_of_the_person(monkeypatch):
    for name in [n for n in os.environ if n.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """Creating MLflow's tables takes a second: once is enough for most tests."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").get_experiment_by_name("none")
    return path


@pytest.fixture(autouse=True)
def _database(request, empty_database, tmp_path):
    if "fresh_database" not in request.fixturenames:
        (tmp_path / "my rüns").mkdir()
        shutil.copy(empty_database, tmp_path / "my rüns" / "mlflow.db")


@pytest.fixture
def fresh_database():
    """No database yet: the tracker makes it."""


def client_of(run):
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{run.parent}/mlflow.db")


def runs_of(client, run):
    """(parent, children by trial) of the only study in the experiment."""
    experiment = client.get_experiment_by_name("autotune-tiny")
    found = client.search_runs([experiment.experiment_id])
    mine = [r for r in found if r.data.tags["autotune.role"] == "study" and r.info.run_name == run.name]
    assert len(mine) == 1
    children = [r for r in found if r.data.tags.get("mlflow.parentRunId") == mine[0].info.run_id]
    return mine[0], {c.data.tags["autotune.trial"]: c for c in children}


def artifacts_of(run):
    root = Path(urllib.parse.unquote(urllib.parse.urlsplit(run.info.artifact_uri).path))
    return {str(p.relative_to(root)): p for p in root.rglob("*") if p.is_file()}


def test_a_study_becomes_a_parent_run_with_parameters_metrics_tags_and_artifacts(finished_study):
    run = finished_study()
    mirrored = MlflowTracker().mirror(run)
    parent, children = runs_of(client_of(run), run)

    assert mirrored.where == f"sqlite:///{run.parent}/mlflow.db"
    assert sorted(children) == ["000", "001", "002"]
    assert parent.info.status == "FINISHED"
    params = parent.data.params
    assert params["model.name"] == "smollm2-135m-instruct"
    assert params["search.knobs.slots"] == "4, 8, 16"
    assert params["quality.tasks.0.margin"] == "0.03"
    assert params["resolved_target_ms.ttft"] == "180.0"
    assert params["objective"] == "goodput"
    assert params["host.cpu"] == "test cpu"
    assert "None" not in params.values()
    metrics = parent.data.metrics
    assert (metrics["gain"], metrics["gain_low"], metrics["gain_high"]) == (1.55, 1.4, 1.7)
    assert (metrics["winner_score"], metrics["default_score"]) == (3.15, 2.05)
    assert metrics["certified_rate_rps"] == 2.7
    assert metrics["certified/ttft_p95_ms_high"] == 330.0
    assert parent.data.tags["autotune.study_digest"] == Recorded.read(run).digest
    assert parent.data.tags["autotune.outcome"] == "tuned"
    files = artifacts_of(parent)
    assert {"scenario.yaml", "ledger.jsonl", "report.html", "winner/winner.json"} <= set(files)
    assert json.loads(files["winner/winner.json"].read_text())["trial"] == 1
    assert "reference/unloaded/requests.parquet" in files


def test_a_trial_becomes_a_nested_run_with_knobs_intervals_and_raw_samples(finished_study):
    run = finished_study()
    MlflowTracker().mirror(run)
    _, children = runs_of(client_of(run), run)
    winner = children["001"]

    assert winner.data.params == {"slots": "8"}
    metrics = winner.data.metrics
    # The passing hold at 3.0/s stands for the trial, not the failed one at 4.0/s nor the ramp.
    assert (metrics["rate_rps"], metrics["ttft_p95_ms"]) == (3.0, 300.0)
    assert (metrics["ttft_p95_ms_low"], metrics["ttft_p95_ms_high"]) == (90.0, 330.0)
    assert "tpot_p95_ms_low" not in metrics  # too few requests to say: absent, not zero
    assert "e2e_p99_ms" not in metrics
    assert metrics["constraint/slo"] == -0.1
    assert metrics["quality/cloze_accuracy"] == 0.61  # of the full set, not the screen's 0.59
    assert (metrics["final_score/0"], metrics["final_score/1"]) == (3.1, 3.2)
    assert metrics["certify/0_rate_rps"] == 2.7
    assert winner.data.tags["autotune.certify.0"] == "PASS"
    assert winner.data.tags["autotune.winner"] == "true"
    # trial/001 is the fourth step, stamped 40 s into 2026, and took 4 s.
    assert (winner.info.start_time, winner.info.end_time) == (1_767_225_636_000, 1_767_225_640_000)
    files = artifacts_of(winner)
    assert pq.read_table(files["hold-0/requests.parquet"]).num_rows == 1
    assert {"engine.log", "hold-0/measurement.json", "hold-0/verdict.json"} <= set(files)
    assert "certify-0/requests.parquet" in files


def test_a_crashed_trial_is_a_failed_run_that_says_why(finished_study):
    run = finished_study()
    MlflowTracker().mirror(run)
    crashed = runs_of(client_of(run), run)[1]["002"]

    assert crashed.info.status == "FAILED"
    assert crashed.data.tags["autotune.state"] == "infeasible"
    assert crashed.data.tags["autotune.failure"] == "out_of_memory"
    assert "score" not in crashed.data.metrics
    assert "engine.log" in artifacts_of(crashed)


def test_the_control_arm_is_recorded_beside_the_trials_and_told_apart(begin_study):
    writer = begin_study()
    writer.search_again()
    writer.finish()
    mirrored = MlflowTracker().mirror(writer.folder)
    children = runs_of(client_of(writer.folder), writer.folder)[1]

    assert "1 study, 3 trials and 1 of its control arm" in mirrored.message
    assert {n: c.data.tags["autotune.role"] for n, c in children.items()} == {
        "000": "trial", "001": "trial", "002": "trial", "003": "control arm",
    }  # fmt: skip
    assert children["003"].data.metrics["score"] == 2.5
    # control/003 is the sixth step, stamped 60 s into 2026, and took 4 s.
    assert children["003"].info.start_time == 1_767_225_656_000


def test_the_winner_becomes_the_candidate_version(finished_study):
    run = finished_study()
    MlflowTracker().mirror(run)
    client = client_of(run)
    parent, _ = runs_of(client, run)
    version = client.get_model_version_by_alias("autotune-tiny", "candidate")
    study = Recorded.read(run)

    assert version.run_id == parent.info.run_id
    assert version.source == f"{parent.info.artifact_uri}/winner"
    assert version.tags == {
        "config_digest": study.winner.identity.config_digest,
        "model_digest": "d" * 64,
        "engine": "llamacpp",
        "engine_version": "b1234",
        "host": "ab12",
        "outcome": "tuned",
        "scenario_digest": study.scenario.digest,
        "workload_digest": study.scenario.workload.digest,
        "started_at": "2026-01-02T03:04:05+00:00",
        "study_digest": study.digest,
        "simulated": "false",
        "weights": "real",
    }


def test_keeping_the_defaults_is_a_version_and_no_feasible_configuration_is_none(finished_study):
    client = None
    for name, outcome in (("none", "none_feasible"), ("keep", "keep_defaults")):
        run = finished_study(name, outcome=outcome, started_at=f"2026-01-02T03:04:05+00:0{len(name) - 4}")
        MlflowTracker().mirror(run)
        client = client_of(run)
        if outcome == "none_feasible":
            assert client.search_registered_models() == []
    assert client.get_model_version_by_alias("autotune-tiny", "candidate").tags["outcome"] == "keep_defaults"


def test_noise_is_recorded_and_never_a_candidate(finished_study):
    run = finished_study(dummy=True)
    assert "registered" not in MlflowTracker().mirror(run).message
    assert not client_of(run).search_registered_models()
    assert runs_of(client_of(run), run)[0].data.tags["mlflow.note.content"].startswith("Dummy weights")


def test_mirroring_twice_adds_nothing(begin_study):
    writer = begin_study()
    writer.finish()
    run = writer.folder
    first = MlflowTracker().mirror(run)
    writer.append("tracked/mlflow", Attempt(name="mlflow", ok=True, at="", where=first.where, message=""))
    client = client_of(run)
    parent, children = runs_of(client, run)
    second = MlflowTracker().mirror(run)
    parent_again, children_again = runs_of(client, run)

    assert second == first
    assert parent_again.info.run_id == parent.info.run_id
    assert parent_again.info.end_time == parent.info.end_time
    assert {t: c.info.run_id for t, c in children_again.items()} == {t: c.info.run_id for t, c in children.items()}
    assert len(client.search_model_versions("name = 'autotune-tiny'")) == 1
    assert len(client.get_metric_history(parent.info.run_id, "gain")) == 1
    assert len(client.get_metric_history(children["001"].info.run_id, "ttft_p95_ms")) == 1
    assert set(artifacts_of(parent_again)) == set(artifacts_of(parent))


def test_a_study_mirrored_half_way_is_completed_in_place(begin_study):
    writer = begin_study()
    run = writer.folder
    MlflowTracker().mirror(run)
    client = client_of(run)
    half, children = runs_of(client, run)
    assert half.info.status == "RUNNING"
    assert client.search_registered_models() == []

    writer.finish()
    MlflowTracker().mirror(run)
    whole, children_again = runs_of(client, run)
    assert whole.info.run_id == half.info.run_id
    assert whole.info.status == "FINISHED"
    assert children_again["001"].info.run_id == children["001"].info.run_id
    assert children_again["001"].data.metrics["final_score/1"] == 3.2
    assert client.get_model_version_by_alias("autotune-tiny", "candidate").run_id == half.info.run_id


def test_an_older_study_synced_late_does_not_take_the_alias(finished_study):
    older = finished_study("older", started_at="2026-01-01T00:00:00+00:00")
    newer = finished_study("newer", started_at="2026-02-01T00:00:00+00:00")
    MlflowTracker().mirror(newer)
    MlflowTracker().mirror(older)
    client = client_of(newer)

    assert len(client.search_model_versions("name = 'autotune-tiny'")) == 2
    candidate = client.get_model_version_by_alias("autotune-tiny", "candidate")
    assert candidate.run_id == runs_of(client, newer)[0].info.run_id


def test_more_than_a_batch_of_parameters_is_recorded(begin_study):
    writer = begin_study()
    knobs = {f"knob{i}": [i] for i in range(250)}
    writer.folder = writer.folder.with_name("wide")
    writer.scenario = writer.scenario.model_validate(
        {**writer.scenario.to_dict(), "search": {**writer.scenario.to_dict()["search"], "knobs": knobs}}
    )
    writer.search()
    MlflowTracker().mirror(writer.folder)
    parent, _ = runs_of(client_of(writer.folder), writer.folder)
    assert sum(name.startswith("search.knobs.") for name in parent.data.params) == 250


def test_the_ledger_of_a_mirrored_study_can_be_fetched_for_the_next(finished_study):
    run = finished_study()
    MlflowTracker().mirror(run)
    client = client_of(run)
    experiment = client.get_experiment_by_name(Recorded.read(run).title)
    parents = client.search_runs([experiment.experiment_id], "tags.`autotune.role` = 'study'")
    into = run.parent / "next" / "earlier" / "one"
    fetched = ledger_from(parents[0].info.run_id, into)
    assert fetched.read_bytes() == (run / "ledger.jsonl").read_bytes()
    assert Recorded.read(fetched.parent).digest == Recorded.read(run).digest
    with pytest.raises(UserError, match="mlflow:nowhere: no ledger can be fetched"):
        ledger_from("nowhere", into, f"sqlite:///{run.parent}/mlflow.db")


def test_a_folder_that_is_not_a_study_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not the folder of a study"):
        MlflowTracker().mirror(tmp_path)


@pytest.mark.alone
def test_an_unreachable_server_fails_fast_and_says_how_to_catch_up(finished_study, free_port):
    run = finished_study()
    started = time.monotonic()
    with pytest.raises(TrackerUnavailable, match=f"127.0.0.1:{free_port}.*refused") as refused:
        MlflowTracker(f"http://127.0.0.1:{free_port}").mirror(run)
    assert time.monotonic() - started < 5
    assert f"autotune sync {run}" in str(refused.value)
    assert refused.value.exit_code == 3


@pytest.mark.alone
def test_a_server_that_never_answers_fails_within_seconds(finished_study):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(TrackerUnavailable, match=r"(?i)timed out"):
            MlflowTracker(f"http://127.0.0.1:{silent.getsockname()[1]}").mirror(finished_study())
        assert time.monotonic() - started < 10


@pytest.mark.alone
def test_a_damaged_database_fails_fast(finished_study):
    run = finished_study()
    (run.parent / "mlflow.db").write_text("not a database" * 100)
    started = time.monotonic()
    with pytest.raises(TrackerUnavailable, match="file is not a database"):
        MlflowTracker().mirror(run)
    assert time.monotonic() - started < 5


@pytest.mark.alone
def test_a_kill_while_the_database_is_made_leaves_none_behind(finished_study, fresh_database):
    run = finished_study()
    script = (
        "import sys; from pathlib import Path; from lifecycle.registry.mlflow_tracker import MlflowTracker\n"
        "MlflowTracker().mirror(Path(sys.argv[1]))\n"
    )
    mirror = subprocess.Popen([sys.executable, "-c", script, str(run)])
    while not list(run.parent.rglob("mlflow.db")):
        assert mirror.poll() is None
        time.sleep(0.001)
    while mirror.poll() is None and sum(p.stat().st_size for p in run.parent.rglob("mlflow.db")) < 300_000:
        time.sleep(0.001)  # some tables, not all: a whole one has a megabyte
    mirror.kill()
    mirror.wait()
    assert not (run.parent / "mlflow.db").exists()
    assert MlflowTracker().mirror(run).message.startswith("1 study, 3 trials")


def test_without_the_package_the_extra_is_named(finished_study, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrackerUnavailable, match=r"pip install 'autotune-serving\[mlflow\]'"):
        MlflowTracker().mirror(finished_study())


def test_the_environment_is_left_as_it_was(finished_study):
    before = dict(os.environ)
    MlflowTracker().mirror(finished_study())
    assert dict(os.environ) == before


def test_nothing_is_said_or_sent_and_importing_the_tracker_does_not_import_mlflow(
    finished_study, fresh_database, tmp_path
):
    script = (
        "import sys; from pathlib import Path; from lifecycle.registry.mlflow_tracker import MlflowTracker\n"
        "assert 'mlflow' not in sys.modules\n"
        "MlflowTracker().mirror(Path(sys.argv[1]))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST", "DO_NOT_TRACK")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(finished_study())],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**environment, "XDG_CONFIG_HOME": str(tmp_path / "config")},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # MLflow's telemetry begins by giving the installation an id.
    assert not (tmp_path / "config").exists()


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture
def start_server(tmp_path, free_port):
    """A real tracking server; its whole process group is ended afterwards."""
    started = []

    def start():
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(free_port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
        command += ["--artifacts-destination", str(tmp_path / "server-artifacts")]
        with (tmp_path / "server.log").open("wb") as log:
            server = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=tmp_path,
                start_new_session=True,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        started.append(server)
        wait_until_healthy(f"http://127.0.0.1:{free_port}/health", server, tmp_path / "server.log")

    yield start
    for server in started:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_until_healthy(url, server, log):
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(log.read_text())


@pytest.mark.alone
def test_a_server_that_was_down_is_caught_up_with(finished_study, free_port, start_server, monkeypatch):
    run = finished_study()
    uri = f"http://127.0.0.1:{free_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    ledger_before = (run / "ledger.jsonl").read_bytes()
    [down] = mirror_all(run, ["mlflow"])
    assert not down.ok
    assert not attempts_of(run)["mlflow"].ok

    start_server()
    [up] = mirror_all(run, ["mlflow"])
    assert up.ok, up.message
    assert attempts_of(run) == {"mlflow": up}
    assert (run / "ledger.jsonl").read_bytes() == ledger_before
    client = mlflow.MlflowClient(tracking_uri=uri)
    parent, children = runs_of(client, run)
    assert up.where == f"{uri}/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
    assert sorted(children) == ["000", "001", "002"]
    assert "hold-0/requests.parquet" in {f.path for f in client.list_artifacts(children["001"].info.run_id, "hold-0")}
    version = client.get_model_version_by_alias("autotune-tiny", "candidate")
    assert version.source == f"{parent.info.artifact_uri}/winner"
