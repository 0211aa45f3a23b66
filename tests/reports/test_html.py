import errno
import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.errors import RunFolderUnusable
from reports import html, records, view

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"{{ 7*7 }}\u2028"


class Outline(HTMLParser):
    """Start tags with their attributes, ids, and the text of the page outside of scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.ids, self.words, self._open = [], set(), [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._open = tag
        self.tags.append((tag, dict(attrs)))
        self.ids |= {value for name, value in attrs if name == "id"}

    def handle_data(self, data):
        if self._open not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def page(study_folder):
    return html.render(records.read(study_folder))


@pytest.fixture(scope="module")
def figures(page):
    return json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL).group(1))


def test_the_file_is_written_whole_with_everybody_able_to_read_it(study_folder):
    path = html.write(study_folder)

    assert path == study_folder / "report.html"
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert path.stat().st_mode & 0o777 == 0o644
    assert not list(study_folder.glob(".report-*"))


def test_a_full_disk_keeps_the_old_report_and_leaves_nothing_behind(study_folder, monkeypatch):
    before = html.write(study_folder).read_bytes()

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunFolderUnusable, match="disk is full"):
        html.write(study_folder)
    assert (study_folder / "report.html").read_bytes() == before
    assert not list(study_folder.glob(".report-*"))


def test_nothing_in_the_page_points_outside(page):
    outline = Outline(page)
    links = [v for _, attrs in outline.tags for name, v in attrs.items() if name in {"src", "href", "action", "srcset"}]

    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    policies = [attrs["content"] for tag, attrs in outline.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0].startswith("default-src 'none'; script-src 'sha256-")
    assert "url(" not in page[: page.index("</style>")]


def test_every_plot_has_a_place_and_every_place_a_plot(page, figures):
    places = {attrs["data-figure"] for _, attrs in Outline(page).tags if "data-figure" in attrs}
    assert places == set(figures)
    assert len(figures) >= 12


def test_every_contents_link_leads_somewhere(page):
    outline = Outline(page)
    wanted = {attrs["href"][1:] for tag, attrs in outline.tags if tag == "a"}
    assert wanted <= outline.ids


def test_plotly_knows_every_attribute_and_the_style_sheet_every_colour(page, figures):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import plotly.graph_objects as go
    named = set(re.findall(r'"(--[a-z0-9-]+)"', json.dumps(figures)))
    assert named
    assert all(f"{name}:" in page for name in named)
    for figure in figures.values():
        go.Figure(json.loads(re.sub(r'"--[a-z0-9-]+"', '"#123456"', json.dumps(figure))))


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("tuned", ["× the defaults’ goodput, every target certified.", "Deploy this", "Certified at"]),
        ("keep_defaults", ["Keep the defaults: nothing tried is proven better.", "within the noise", "Not certified."]),
        ("none_feasible", ["No configuration meets the targets.", "Trial 004 came nearest: it missed ttft by 30%."]),
    ],
)
def test_each_outcome_is_told_in_its_own_words(synthetic, tmp_path, outcome, words):
    text = Outline(html.render(records.read(synthetic.make_study(tmp_path / "s", outcome=outcome)))).text

    for expected in words:
        assert expected in text
    assert ("Deploy this" in text) == (outcome != "none_feasible")


def test_an_unfinished_study_says_so(synthetic, tmp_path):
    study = records.read(synthetic.make_study(tmp_path / "s", until="trials"))
    text = Outline(html.render(study)).text

    assert "Not finished: 5 of 10 configurations tried so far." in text
    assert "not certified" in text
    assert "Deploy this" not in text
    assert view.answer(study).outcome == "unfinished"


def test_a_study_that_has_just_begun_can_be_told(synthetic, tmp_path):
    folder = synthetic.make_study(tmp_path / "s", until="trials")
    first = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)[0]
    (folder / "ledger.jsonl").write_text(first)
    assert "Not finished: 0 of 10" in html.render(records.read(folder))


def test_uncertified_winners_do_not_claim_to_be(synthetic, tmp_path):
    answer = view.answer(records.read(synthetic.make_study(tmp_path / "s", certify=False)))
    assert answer.headline.endswith("targets not certified.")
    assert (answer.certification, answer.certified) == ("Not certified.", "open")


def test_hostile_text_stays_text(synthetic, tmp_path):
    page = html.render(records.read(synthetic.make_study(tmp_path / "s", hostile=ATTACK)))
    outline = Outline(page)

    assert [tag for tag, _ in outline.tags].count("script") == 3
    assert "img" not in [tag for tag, _ in outline.tags]
    assert "onerror" not in {name for _, attrs in outline.tags for name in attrs}
    assert "alert(1)" in outline.text
    assert "{{ 7*7 }}" in outline.text
    data = re.search(r'id="figures">(.*?)</script>', page, re.DOTALL).group(1)
    assert "<" not in data
    json.loads(data)


def test_hostile_knob_values_do_not_become_markup_in_plots(synthetic, tmp_path):
    folder = synthetic.make_study(tmp_path / "s")
    ledger = folder / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"q8_0"', '"<a href=http://x>q8</a>"'))
    page = html.render(records.read(folder))
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL).group(1))

    assert "<a href" not in json.dumps(figures)
    assert "&lt;a href" in json.dumps(figures)
