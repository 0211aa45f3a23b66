"""A study in Weights & Biases: one run for the study and one per trial, in one group; the winner as an artifact.

The only file that imports wandb. Offline unless the person sets WANDB_MODE=online; knows nothing of how a
study is made.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifecycle.registry.base import Mirrored, TrackerUnavailable, environment
from lifecycle.registry.recorded import Flat, Recorded
from tuners.results import Winner

ID_CHARACTERS = 16  # of the study's digest; W&B allows 64 characters, trials append their number
ANSWER_SECONDS = 5.0  # online: how long the first request may take


class WandbTracker:
    """Runs go to `wandb/` in the run folder; the same study always has the same run ids."""

    name = "wandb"

    def mirror(self, run: Path) -> Mirrored:
        study = Recorded.read(run)
        folder = run.resolve() / "wandb"
        defaults = {
            "WANDB_MODE": "offline",
            "WANDB_PROJECT": study.title,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_SILENT": "true",
            "WANDB_DATA_DIR": str(folder / "data"),
            "WANDB_CACHE_DIR": str(folder / "cache"),
            "WANDB_CONFIG_DIR": str(folder / "config"),
        }
        with environment(defaults):
            try:
                import wandb  # noqa: PLC0415 - an extra
            except ModuleNotFoundError as err:
                problem = "wandb is not installed: pip install 'autotune-serving[wandb]'"
                raise TrackerUnavailable(self.name, run, problem) from err
            try:
                url = _Group(wandb, study, folder).write()
            except (wandb.errors.Error, OSError) as err:
                raise TrackerUnavailable(self.name, run, f"cannot record: {err}") from err
            finally:
                wandb.teardown()
        recorded = study.count
        if url is None:
            return Mirrored(self.name, str(folder), f"{recorded}; upload it with: wandb sync {folder}/offline-run-*")
        return Mirrored(self.name, url, recorded)


@dataclass(frozen=True, slots=True)
class _Group:
    """The W&B runs of one study, all in one group."""

    wandb: Any
    study: Recorded
    folder: Path

    def write(self) -> str | None:
        """The URL of the study's run; None offline. Offline files of an earlier mirror are replaced."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir()
        study = self.study
        run_id = study.digest[:ID_CHARACTERS]
        for result in (*study.trials, *study.arm):
            number = f"{result.trial.number:03d}"
            told: Flat = {**result.trial.knobs, **study.trial_tags(result)}
            with self._run(f"{run_id}-{number}", f"trial {number}", "trial", told) as run:
                run.summary.update(study.trial_metrics(result))
        told = {**study.study_params(), **study.study_tags()}
        with self._run(run_id, study.run.resolve().name, "study", told) as run:
            run.summary.update(study.study_metrics())
            if study.winner is not None:
                run.summary["reason"] = study.winner.reason
                self._log_answer(run, study.winner)
            return None if run.offline else str(run.url)

    def _log_answer(self, run: Any, winner: Winner) -> None:
        artifact = self.wandb.Artifact(self.study.title, type="serving-config", metadata=self.study.version_tags())
        with artifact.new_file("winner.json") as file:
            file.write(winner.model_dump_json(indent=2) + "\n")
        report = self.study.run / "report.html"
        if report.exists():
            artifact.add_file(str(report))
        run.log_artifact(artifact, aliases=["candidate"] if self.study.deployable else [])

    @contextmanager
    def _run(self, run_id: str, name: str, job_type: str, config: Flat) -> Iterator[Any]:
        settings = self.wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            init_timeout=ANSWER_SECONDS,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        group = self.study.run.resolve().name
        told = {"name": name, "group": group, "job_type": job_type, "config": config}
        noted = {"simulated": self.study.simulated, "dummy weights": bool(self.study.noise)}
        if tags := [tag for tag, true in noted.items() if true]:
            told["tags"] = tags
        with self.wandb.init(dir=str(self.folder.parent), id=run_id, resume="allow", settings=settings, **told) as run:
            yield run
