"""The model card: what it says of each kind of model, that nothing in it acts or is fetched, and how it looks."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import cards
import pytest
from cards import CASES, Case
from playwright.sync_api import Browser, Page
from toy import Project

from batchscore.cli.found import findings
from batchscore.model.bundle import MANIFEST, File, Manifest, _sha256
from batchscore.model.card import card
from batchscore.model.evaluation import Evaluation, Importance, Measured
from batchscore.model.words import gap_told, verdict
from batchscore.problem import Success

HOSTILE = "<script>alert('1')</script>\"&\u202e"
VOID = {"meta", "wbr", "br", "link", "img", "input", "hr"}


class Tree(HTMLParser):
    """What a page holds; refuses an element that is not closed, or closed twice."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        """The words of the page, with single spaces."""
        return " ".join(" ".join(self.words).split())


def page_of(case: Case) -> str:
    """The case's card."""
    return card(case.manifest, case.evaluation)


def said(case: Case) -> str:
    """The words on the case's card."""
    return Tree(page_of(case)).text


def row(page: str, first: str) -> list[str]:
    """The cells of the table row that begins with these words."""
    for found in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL):
        cells = [
            " ".join(re.sub("<[^>]+>", "", cell).split()) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", found)
        ]
        if cells and cells[0] == first:
            return cells
    raise AssertionError(first)


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
class TestEveryTask:
    def test_well_formed(self, make: Any) -> None:
        """The page is whole HTML, and each picture in it whole XML."""
        page = page_of(make())

        assert Tree(page).tags[:2] == ["html", "head"]
        for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
            ET.fromstring(svg)

    def test_alone(self, make: Any) -> None:
        """It has no script, and nothing that a browser would fetch; its policy forbids both."""
        page = page_of(make())
        tree = Tree(page)

        assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(tree.tags)
        assert not {"src", "href", "srcset", "xlink:href"} & {name for name, _ in tree.attributes}
        assert not [name for name, _ in tree.attributes if name.startswith("on")]
        assert not re.search(r"https?://|@import|url\(", page)
        assert "default-src 'none'; style-src 'unsafe-inline'" in [value for _, value in tree.attributes]

    def test_no_empty_heading(self, make: Any) -> None:
        """What is not known has no heading, and no sentence with a hole in it."""
        page = page_of(make())

        assert not re.findall(r"</h2>\s*</section>", page)
        assert not re.findall(r"\bNone\b|\bnan\b|Undefined", page)


class TestContent:
    def test_everything_of_a_classifier(self) -> None:
        """The sections come in the order in which a reader decides."""
        assert Tree(page_of(cards.binary())).headings == [
            "Metrics", "Predictions", "Scores", "Importance", "Slices", "Cross-validation", "Search", "Curves",
            "Audit of the data", "Data", "Limits", "Libraries",
        ]  # fmt: skip

    def test_the_little_of_an_anomaly(self) -> None:
        """A model without labels has the sections that it can have."""
        case = cards.anomaly()

        assert Tree(page_of(case)).headings == ["Metrics", "Data", "Limits", "Libraries"]
        assert "Nobody has labelled what is odd" in said(case)

    def test_head(self) -> None:
        """It begins with the version, the job, the rows and the objective."""
        text = said(cards.binary())

        begins = "trips version 3 Trained by job trips on 2024-06-02 03:04 UTC, on rows from 2024-01-01 00:00 UTC to"
        assert begins in text
        assert text.index(begins) < text.index("Say which trips are slow") < text.index("0.7312")
        assert "54,321 rows" in text
        assert "train 37,800, validation 8,100, test 8,100." in text

    def test_bar(self) -> None:
        """It tells whether the bar was met, by the metric of the bar; without a bar it tells nothing of one."""
        assert "The bar, roc_auc at least 0.7, is met." in said(cards.binary())
        assert "The bar, mae at most 10.0, is not met: it is 12.34." in said(cards.regression())
        assert "The bar" not in said(cards.multiclass())

    def test_bar_without_its_metric(self) -> None:
        """A bar whose metric the test rows do not define is not met."""
        case = cards.binary(test={"brier": Measured(value=0.1)}, metric="roc_auc")

        text = said(case)

        assert "is not met: the test rows do not define the metric." in text
        assert "The test rows do not define roc_auc." in text

    def test_metrics(self) -> None:
        """A row of the table has a metric's value and interval, then other rows, then the baselines."""
        page = page_of(cards.binary())

        assert row(page, "metric")[1:] == ["test", "95&nbsp;% interval", "validation", "train", "dummy", "linear"]
        assert row(page, "brier lower is better")[1:] == [
            "0.1523", "0.1413 to 0.1643", "0.1510", "0.1410", "0.1722", "0.1544",
        ]  # fmt: skip
        assert row(page, "base_rate")[1:] == ["0.2211", "0.2101 to 0.2331", "", "", "", ""]

    def test_rates(self) -> None:
        """Recall is of the rows of a class, precision of those predicted to be of it."""
        page = page_of(cards.binary())

        assert row(page, "slow") == ["slow", "1,791", f"{1103 / 1791:.1%}", f"{1103 / (1103 + 1099):.1%}"]
        assert row(page, "on time") == ["on time", "6,309", f"{5210 / 6309:.1%}", f"{5210 / (5210 + 688):.1%}"]

    def test_threshold(self) -> None:
        """The threshold is told with who chose it and on what, and what it makes of a score."""
        text = said(cards.binary())

        assert "The threshold is 0.3141 , chosen by F1 on 8,100 validation rows; 27.2% of them reach it." in text
        assert "The prediction is slow from a score of 0.3141 on, and on time below it." in text

    def test_costs(self) -> None:
        """A threshold by cost is told with what it costs on test and validation rows, and what no model would."""
        text = said(cards.rare())

        assert (
            "On 1,200 test rows wrong predictions cost 394, or 0.3283 a row; predicting 1 of no row would cost 456, of "
            "every row 1,162."
        ) in text
        assert "On 1,200 validation rows wrong predictions cost 458.5, or 0.3821 a row; predicting 1 of no row" in text
        assert "wrong predictions cost" not in said(cards.binary())

    def test_many_classes(self) -> None:
        """Of more classes than a matrix can show there is a table, the least recalled first."""
        page = page_of(cards.multiclass(50))

        assert "Confusion matrix" not in page
        assert "The 40 least recalled of 50 classes." in page
        table = re.findall(r'<th scope="row">class \d+</th><td class="n">\d+</td><td class="n">([\d.]+)%', page)
        assert len(table) == 40
        assert table == sorted(table, key=float)

    @pytest.mark.parametrize(
        ("make", "order"), [(cards.binary, ["OO", "UA", "AA"]), (cards.regression, ["UA", "AA", "OO"])]
    )
    def test_slices(self, make: Any, order: list[str]) -> None:
        """The worst slice is first, whichever way is worse; one without the metric is last; few rows are marked."""
        page = page_of(make())

        assert re.findall(r'<td class="name">(\w\w)</td>', page) == order
        assert re.findall(r'<td class="n"><span class="faint">few</span> (\d+)</td>', page) in (["42"], ["9"])

    def test_what_slices_were_chosen_from(self) -> None:
        """A reader is told how many values a column has and which of them stand here."""
        text = said(cards.rare())

        assert "shift has 3 values, and 1 that 30 rows or more have are measured." in text
        assert (
            "machine_of_the_line has 80 values, and 60 that 30 rows or more have are measured; these are the 20 worst by "
            "average_precision."
        ) in text

    def test_folds(self) -> None:
        """Each metric has a row, with mean and deviation of the folds before them."""
        page = page_of(cards.binary()).partition("<h2>Cross-validation")[2]

        assert row(page, "metric")[1:5] == ["mean", "deviation", "1", "2"]
        assert [row(page, "roc_auc")[i] for i in (1, 2, 4)] == ["0.7326", "0.0066", "0.7420"]
        assert [row(page, "brier")[i] for i in (1, 2, 4)] == ["0.1514", "0.0023", "0.1490"]

    def test_folds_know_no_threshold(self) -> None:
        """Where the model has a threshold or a calibration, its folds are told to have none; else nothing is."""
        assert "measured there alone, without the calibration and threshold that validation" in said(cards.rare())
        assert "measured there alone, without the threshold that validation" in said(cards.binary())
        assert "measured there alone" not in said(cards.binary(threshold=None))

    def test_curves_by_folds(self) -> None:
        """What a curve is measured on has its name: folds where there are some, and else validation rows."""
        folds, rows = page_of(cards.binary()), page_of(cards.binary(cross_validation=None))

        assert (">folds</text>" in folds, ">validation</text>" in folds) == (True, False)
        assert (">folds</text>" in rows, ">validation</text>" in rows) == (False, True)

    def test_calibration_of_a_rare_class(self) -> None:
        """Where no score comes near 1 the bins fill the plot, with the same scale along both axes."""
        (svg,) = [
            each for each in re.findall(r"<svg.*?</svg>", page_of(cards.rare()), re.DOTALL) if "Calibration c" in each
        ]
        dots = [(float(x), float(y)) for x, y in re.findall(r'<circle[^>]*cx="([\d.]+)" cy="([\d.]+)"', svg)]

        assert dots[-1][0] - dots[0][0] > 300
        assert dots[0][1] - dots[-1][1] > 180

    def test_one_fold(self) -> None:
        """Leave-one-out has one value over all rows, and no mean of one."""
        case = cards.binary(cross_validation={"by": "leave-one-out", "folds": 8, "metrics": {"roc_auc": (0.75,)}})

        page = page_of(case).partition("<h2>Cross-validation")[2]

        assert row(page, "roc_auc")[1:] == ["0.7500"]
        assert "deviation</th>" not in page

    def test_suspects_first(self) -> None:
        """What the audit suspects stands before what it merely saw."""
        text = said(cards.binary())

        assert text.index("Suspect: arrived alone tells slow") < text.index("carrier: 12.0 % are missing")

    def test_search(self) -> None:
        """The search tells its choice, its best settings, and which failed."""
        page = page_of(cards.binary())

        assert "24 settings tried" in page
        assert row(page, "failed")[1] == "model__max_depth = -1, model__learning_rate = 0.1"

    def test_limits(self) -> None:
        """A reader is told what the score is, that it was not calibrated, and what the intervals take for granted."""
        text = said(cards.binary())

        assert "The score is the probability of slow" in text
        assert "Scores were not calibrated" in text
        assert "They take rows for independent" in text


class TestVerdict:
    @pytest.mark.parametrize(
        ("low", "high", "told"),
        [(-0.01, 0.02, "no better"), (0.001, 0.02, "better"), (-0.02, -0.001, "worse"), (0.0, 0.02, "no better")],
    )
    def test_paired(self, low: float, high: float, told: str) -> None:
        """The interval of the difference decides: over 0, with 0 in it, or under 0."""
        lead = {"linear": Measured(value=(low + high) / 2, low=low, high=high)}

        assert verdict(cards.binary(ahead=lead).evaluation, "linear").startswith(f"{told} than the linear model: ")

    def test_the_same(self) -> None:
        """Two that give the same predictions are told to be the same."""
        lead = {"linear": Measured(value=0.0, low=0.0, high=0.0)}

        assert verdict(cards.binary(ahead=lead).evaluation, "linear") == "the same as the linear model: roc_auc 0.7265"

    def test_figures(self) -> None:
        """What the baseline reaches is told, and how far the difference goes."""
        told = "no better than the linear model: roc_auc 0.7265 there, and -0.0011 to 0.0105 better here"

        assert verdict(cards.binary().evaluation, "linear") == told

    def test_too_few_rows(self) -> None:
        """Without an interval nothing is claimed, and nothing where a baseline lacks the metric."""
        few = cards.binary(ahead={"linear": Measured(value=0.1)}).evaluation
        lacking = cards.binary(ahead={}).evaluation

        assert verdict(few, "linear") == "too few rows to compare with the linear model"
        assert verdict(lacking, "linear") == "not comparable with the linear model"

    def test_gap(self) -> None:
        """The gap is told with both figures and its verdict; a task without labels has none."""
        assert gap_told(cards.binary().evaluation).startswith(
            "Overfits: roc_auc 0.7791 on training rows, 0.7330 on validation rows."
        )
        assert gap_told(cards.multiclass().evaluation).startswith("Fits: ")
        assert gap_told(cards.clustering().evaluation) == ""


def test_hostile_names() -> None:
    """Markup in the names and values of the data is shown as it is, wherever it stands, and never is markup."""
    case = cards.binary()
    content = json.loads(case.evaluation.model_dump_json().replace("on time", "@").replace("carrier", "@"))
    text = json.dumps(content | {"metric": "roc_auc"}).replace("lbfgs", "@").replace("halving", "@").replace("F1", "@")
    evaluation = Evaluation.model_validate_json(text.replace("@", json.dumps(HOSTILE)[1:-1]))
    problem = cards.problem(
        "binary", objective=HOSTILE, target=HOSTILE, success=Success(metric="roc_auc", at_least=0.7)
    )
    manifest = cards.manifest(
        problem, (HOSTILE, "slow"), name=HOSTILE, job=HOSTILE,
        columns=({"name": HOSTILE, "type": "integer", "nullable": False, "nan": False},), libraries={HOSTILE: "1"},
    )  # fmt: skip

    page = card(manifest, evaluation)

    assert "<script" not in page.lower()
    assert {"script"}.isdisjoint(Tree(page).tags)
    assert page.count("&lt;script&gt;") > 20
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(svg)


OVERLAPS = """
() => [...document.querySelectorAll("svg.chart")].flatMap(svg => {
  const boxes = [...svg.querySelectorAll("text")].map(e => [e.firstChild.data, e.getBoundingClientRect()]);
  return boxes.flatMap(([a, r], i) => boxes.slice(i + 1)
    .filter(([_, q]) => r.left + 1 < q.right && q.left + 1 < r.right && r.top + 2 < q.bottom && q.top + 2 < r.bottom)
    .map(([b]) => svg.querySelector("title").textContent + ": " + a + " / " + b));
})
"""
OUTSIDE = """
() => [...document.querySelectorAll("svg.chart")].flatMap(svg => {
  const all = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text, circle, rect, polyline")].filter(e => {
    const r = e.getBoundingClientRect();
    return r.left < all.left - 1 || r.right > all.right + 1 || r.top < all.top - 1 || r.bottom > all.bottom + 1;
  }).map(e => svg.querySelector("title").textContent + ": " + e.outerHTML);
})
"""


@pytest.mark.parametrize("width", [390, 1100])
@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_in_a_browser(browser: Browser, make: Any, width: int, tmp_path: Path) -> None:
    """Chromium complains of nothing and asks the network for nothing; nothing is cut off, overlaps or has no size."""
    (tmp_path / "card.html").write_text(page_of(make()), "utf-8")
    page: Page = browser.new_page(viewport={"width": width, "height": 800})
    told: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "card.html").as_uri())

    assert told == []
    assert asked == [(tmp_path / "card.html").as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [chart.bounding_box() for chart in page.locator("svg.chart").all()]
    assert boxes
    assert all(box and box["width"] > 200 and box["height"] > 60 for box in boxes)
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(OUTSIDE) == []
    page.close()


@pytest.mark.parametrize(("width", "media"), [(1100, "screen"), (688, "print")], ids=["screen", "A4"])
def test_slices_fit(browser: Browser, width: int, media: Any, tmp_path: Path) -> None:
    """Slices with every metric need no scrolling on a desk, and lose no column on paper of 182 mm between margins."""
    (tmp_path / "card.html").write_text(page_of(cards.rare()), "utf-8")
    page: Page = browser.new_page(viewport={"width": width, "height": 800})
    page.emulate_media(media=media)
    page.goto((tmp_path / "card.html").as_uri())

    table = page.locator("table.dense")
    assert len(table.locator("thead th").all()) == 15
    box, room = table.bounding_box(), page.locator("main").bounding_box()
    assert box
    assert room
    assert box["x"] + box["width"] <= room["x"] + room["width"] + 0.5
    page.close()


def test_confusion_says_actual() -> None:
    """Short names of classes leave room for the word that says what stands down."""
    assert ">actual</text>" in page_of(cards.rare())


def test_chromium_would_tell(browser: Browser, tmp_path: Path) -> None:
    """What a card forbids is refused by the browser too, and would be seen: a script and a picture from elsewhere."""
    page_with = page_of(cards.anomaly()).replace("</main>", '<script>1</script><img src="http://127.0.0.1:9/"></main>')
    (tmp_path / "card.html").write_text(page_with, "utf-8")
    page = browser.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.goto((tmp_path / "card.html").as_uri())

    assert len([text for text in told if "Content Security Policy" in text]) == 2
    page.close()


def test_overlaps_would_be_seen(browser: Browser) -> None:
    """What looks for texts over one another, and for what is cut off, finds them."""
    page = browser.new_page()
    page.set_content(
        "<svg class='chart' width='200' height='99'><title>t</title><text x='9' y='50'>abc</text>"
        "<text x='20' y='52'>def</text><text x='190' y='90'>outside</text></svg>"
    )

    assert page.evaluate(OVERLAPS) == ["t: abc / def"]
    assert len(page.evaluate(OUTSIDE)) == 1
    page.close()


@pytest.fixture
def carded(project: Project) -> Project:
    """The project, whose version 1 has a card and what it is made of."""
    folder = project.root / "var/registry/toy/1"
    case = cards.binary()
    more = {"card.html": page_of(case).encode(), "evaluation.json": case.evaluation.model_dump_json().encode()}
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    for name, content in more.items():
        (folder / name).write_bytes(content)
    files = {**manifest.files, **{name: File(sha256=_sha256(data), size=len(data)) for name, data in more.items()}}
    sealed = manifest.model_copy(update={"files": files}).sealed()
    (folder / MANIFEST).write_text(sealed.model_dump_json())
    return project


class TestCommands:
    def test_card(self, carded: Project) -> None:
        """`models card` writes the page beside the caller, or where it is told, and says where."""
        page = page_of(cards.binary())

        here = carded.call("models", "card", "toy")
        there = carded.call("models", "card", "toy", "1", "--to", "there.html")

        assert (here.code, here.out) == (0, "toy-1.html\n")
        assert (there.code, there.out) == (0, "there.html\n")
        assert (carded.root / "toy-1.html").read_text("utf-8") == page
        assert (carded.root / "there.html").read_text("utf-8") == page

    def test_to_standard_output(self, carded: Project) -> None:
        """`--to -` prints the page and nothing else."""
        assert carded.run("models", "card", "toy", "--to", "-").out == page_of(cards.binary())

    def test_to_nowhere(self, carded: Project) -> None:
        """A file that cannot be written is the caller's mistake."""
        result = carded.call("models", "card", "toy", "--to", "nowhere/card.html")

        assert result.code == 2
        assert "nowhere/card.html cannot be written: No such file or directory. Give another file" in result.error

    def test_changed_card(self, carded: Project) -> None:
        """A card that was changed since training is not given out."""
        path = carded.root / "var/registry/toy/1/card.html"
        path.write_text(path.read_text("utf-8").replace("0.7312", "0.9312"))

        result = carded.call("models", "card", "toy")

        assert result.code == 10
        assert "card.html was changed after it was written" in result.error
        assert not (carded.root / "toy-1.html").exists()

    def test_show(self, carded: Project) -> None:
        """`models show` has the metrics with intervals and baselines, the gap, the threshold and the suspects."""
        shown = carded.call("models", "show", "toy").out
        lines = [re.split(r"  +", line.strip()) for line in shown.splitlines()]

        assert ["metric", "test", "95 % interval", "train", "dummy", "linear"] in lines
        assert ["roc_auc", "0.7312", "0.7202 to 0.7432", "0.7791", "0.5000", "0.7265"] in lines
        assert ["base_rate", "0.2211", "0.2101 to 0.2331", "-", "-", "-"] in lines
        assert [
            "beside linear",
            "no better than the linear model: roc_auc 0.7265 there, and -0.0011 to 0.0105 better here",
        ] in lines
        # The gap tells it.
        assert not [line for line in lines if line[0] == "validation"]
        assert ["threshold", "0.3141, by F1 on 8,100 validation rows; 27.2% of them reach it"] in lines
        assert ["cross-validation", "roc_auc 0.7326 ± 0.0066 over 5 folds, stratified"] in lines
        assert ["search", "model__max_depth = 6: the best of 24 settings, halving, roc_auc 0.7342"] in lines
        assert ["learning curve", "roc_auc 0.6500 with 1,000 rows, 0.7220 with 37,800 rows, on folds"] in lines
        assert ["curve", "roc_auc 0.7200 with model__max_depth = 6, the best of 25 values on folds"] in lines
        assert ["latency", "12.35 µs a row"] in lines
        assert ["suspect", "arrived alone tells slow: AUC 0.990"] in lines
        assert "gap " in shown
        # What is worth less than nothing is not important.
        assert "distance 0.1123, speed 0.0721, carrier 0.0311, " in shown
        assert shown.count("_was 0.0112 (roc_auc lost without it)") == 1

    def test_validation_rows(self) -> None:
        """What the model is on validation rows is told by itself where the gap is not to them."""
        told = dict(findings(cards.binary(gap=None).evaluation))

        assert told["validation"] == "roc_auc 0.7330 on 8,100 validation rows"

    def test_nothing_important(self) -> None:
        """Columns without which the model is no worse are not called important."""
        nothing = [Importance(column="hour", mean=-0.01, deviation=0.02)]

        assert dict(findings(cards.binary(importance=nothing).evaluation))["most important"] == (
            "no column: roc_auc gets no worse without any"
        )

    def test_show_as_json(self, carded: Project) -> None:
        """`--format json` has the whole evaluation."""
        shown = json.loads(carded.call("models", "show", "toy", "--format", "json").out)

        assert Evaluation.model_validate(shown["evaluation"]) == cards.binary().evaluation
