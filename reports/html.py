"""The report: one self-contained HTML file, no network, written from a run folder.

Owns the page and its safety: every text is escaped, and the page's own policy lets no other script run and
nothing be loaded. Knows nothing of how a figure or a number came about.
"""

import base64
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.ledger import unusable
from reports import control_arm, engine_tables, load_charts, provenance, search_charts, tables
from reports.plots import Figure
from reports.records import StudyRecords, read
from reports.series import EFFECT_TRIALS
from reports.view import Answer, answer

REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure on the page. ``note``: one line of text below its title."""

    key: str
    title: str
    note: str
    figure: Figure


def write(run_folder: Path) -> Path:
    """Writes ``report.html`` of a study, finished or not; the old one stays until the new one is whole.

    Raises UserError where there is no study, RunFolderUnusable where it cannot be written.
    """
    page = render(read(run_folder)).encode()
    target = run_folder / REPORT
    try:
        handle, draft = tempfile.mkstemp(dir=run_folder, prefix=".report-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(page)
            Path(draft).chmod(0o644)
            Path(draft).replace(target)
        except OSError:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as err:
        raise unusable(target, err) from err
    return target


def render(records: StudyRecords) -> str:
    """The whole page as text."""
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - half a second, only for who writes a report

    found = answer(records)
    plots = _plots(records, found)
    templates = Environment(loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined)
    templates.trim_blocks = templates.lstrip_blocks = True
    templates.policies["json.dumps_kwargs"] = {"allow_nan": False}
    scripts = [_unix(get_plotlyjs()), _unix(_asset(templates, "page.js"))]
    return templates.get_template("report.html.j2").render(
        answer=found,
        plots=plots,
        figures={plot.key: plot.figure for group in plots.values() for plot in group},
        trials=tables.trials(records, found),
        rejections=tables.rejections(records, found),
        audit=tables.audit(records),
        server=engine_tables.server(records),
        gpus=engine_tables.gpus(records),
        latencies=tables.latencies(records),
        quality=tables.quality(records),
        changes=tables.changes(records, found),
        targets=tables.unloaded(records),
        against_random=control_arm.sentence(records),
        shrinkage=control_arm.shrinkage(records),
        provenance=provenance.facts(records),
        definitions=provenance.DEFINITIONS,
        description=records.start.scenario.get("description", ""),
        started_at=records.start.started_at,
        model=_model(records),
        engine=records.start.engine_version,
        scenario_yaml=records.scenario_yaml,
        effect_trials=EFFECT_TRIALS,
        style=Markup(_asset(templates, "page.css")),  # noqa: S704 - our own file
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - Plotly's and our own file
        policy=_policy(scripts),
    )


def _plots(records: StudyRecords, found: Answer) -> dict[str, list[Plot]]:
    """The plots of each section, by the section's name."""

    def several(key: str, drawn: list[tuple[str, str, Figure]]) -> list[Plot]:
        return [Plot(f"{key}-{i}", title, note, figure) for i, (title, note, figure) in enumerate(drawn)]

    def one(key: str, title: str, note: str, figure: Figure | None) -> list[Plot]:
        return [Plot(key, title, note, figure)] if figure else []

    return {
        "latency": several("latency", load_charts.latency_curves(records, found)),
        "finals": [
            *one("finals", "Block by block", "", search_charts.finals(records)),
            *one("gains", "Gain over the defaults", "", search_charts.gains(records)),
        ],
        "trials": one(
            "trials", "What each configuration gives, and what it costs", "", search_charts.trade_off(records, found)
        ),
        "control": one("control", "Best so far by seconds spent", "", search_charts.control_arm(records)),
        "knobs": several("knob", search_charts.knobs(records, found)),
        "probes": one("probes", "Rates tried", "", search_charts.probes(records)),
        "time": several("time", load_charts.over_time(records, found)),
        "evidence": several("evidence", load_charts.evidence(records, found)),
        "quality": one("quality", "Change of accuracy against the reference", "", search_charts.quality(records)),
        "offered": one("offered", "Offered and achieved rate", "", load_charts.offered(records)),
    }


def _model(records: StudyRecords) -> str:
    model = records.start.scenario["model"]
    simulated = f"{model['simulated']}-simulated" if model.get("simulated") else None
    return str(model.get("name") or model.get("served_as") or simulated or model.get("path"))


def _asset(templates: Environment, name: str) -> str:
    assert templates.loader is not None
    return templates.loader.get_source(templates, name)[0]


def _unix(script: str) -> str:
    """Browsers read CRLF as LF before they hash."""
    return script.replace("\r\n", "\n")


def _policy(scripts: list[str]) -> str:
    """Content security policy: these scripts by their digest, inline styles, images from the page; nothing else."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
