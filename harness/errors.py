"""What can end a trial or a command, and what happens then.

    UserError (exit 2)
    ├── ConfigurationImpossible    cannot be planned, with the reason; a study counts it as infeasible unlaunched
    ├── ModelNotFound, ModelCorrupt
    └── EngineNotInstalled         with the command that installs it
    Infrastructure (exit 3)
    ├── DownloadFailed
    └── RunFolderUnusable          disk full, not writable: says how to go on
    TrialInfeasible                trial is completed as infeasible, so that the sampler learns
    ├── EngineStartError           bad flag, unsupported quantisation, port taken, start timeout …
    ├── EngineOutOfMemory
    ├── EngineCrashed
    └── EngineHung
    TrialVoid                      trial is repeated, never told to the tuner
    ├── LoadGeneratorSaturated
    └── HostDisturbed

`CONSEQUENCES` has one row for every class; a test holds it complete.
"""

from typing import Literal

from scenarios.errors import AutotuneError, Infrastructure, UserError


class ConfigurationImpossible(UserError):
    """These knobs cannot work together, or not with this model on this machine."""


class ModelNotFound(UserError):
    pass


class ModelCorrupt(UserError):
    """The file's content is not what it must be (digest, magic, truncated)."""


class EngineNotInstalled(UserError):
    pass


class DownloadFailed(Infrastructure):
    pass


class RunFolderUnusable(Infrastructure):
    pass


FailureClass = Literal[
    "out_of_memory",
    "bad_flag",
    "bad_model",
    "unsupported",
    "port_taken",
    "start_timeout",
    "start_failed",
    "crashed",
    "hung",
]


class TrialInfeasible(AutotuneError):
    """The configuration does not work. ``log_lines``: the engine's own decisive words."""

    failure: FailureClass = "start_failed"

    def __init__(self, message: str, *, failure: FailureClass | None = None, log_lines: tuple[str, ...] = ()) -> None:
        self.failure = failure or self.failure
        self.log_lines = log_lines
        super().__init__("\n".join([message, *(f"    | {line}" for line in log_lines)]))


class EngineStartError(TrialInfeasible):
    pass


class EngineOutOfMemory(TrialInfeasible):
    failure: FailureClass = "out_of_memory"


class EngineCrashed(TrialInfeasible):
    failure: FailureClass = "crashed"


class EngineHung(TrialInfeasible):
    failure: FailureClass = "hung"


class TrialVoid(AutotuneError):
    """Not the engine's fault: what was measured is not the engine."""


class LoadGeneratorSaturated(TrialVoid):
    """The client was the limit: it was late, or out of CPU, connections or descriptors."""


class HostDisturbed(TrialVoid):
    """Something else on this machine was: its hypervisor, other programs, heat, a quota, its clock."""


Consequence = Literal["stop", "infeasible", "void"]

CONSEQUENCES: dict[type[AutotuneError], Consequence] = {
    ConfigurationImpossible: "infeasible",
    ModelNotFound: "stop",
    ModelCorrupt: "stop",
    EngineNotInstalled: "stop",
    DownloadFailed: "stop",
    RunFolderUnusable: "stop",
    TrialInfeasible: "infeasible",
    EngineStartError: "infeasible",
    EngineOutOfMemory: "infeasible",
    EngineCrashed: "infeasible",
    EngineHung: "infeasible",
    TrialVoid: "void",
    LoadGeneratorSaturated: "void",
    HostDisturbed: "void",
}
