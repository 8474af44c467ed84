"""Run the commands that a page shows, in order, and compare what they print with what it says.

python docs/replay.py docs/tutorial.md           exits with 1 where a command does something else
python docs/replay.py --write docs/tutorial.md   puts what the commands print in the place of what does not match

How a page is read:

- In a `console` block a line `$ …` is a command, `> …` goes on with it, and what follows is its output. A line `…` in
  the output stands for any lines.
- A command ends with 0, unless the next one is `echo $?` and shows another number.
- A `toml`, `sql` or `python` block below a line that ends in `` `path`: `` is that file. TOML without a table `[job]`
  takes the place of those tables in the file.
- In a `bash` block each line is a command, whatever it prints.
- `make`, `docker` and `kubectl` are not run, and neither is any other block.

Whatever the clock, a digest or the machine decides is not compared: see `loosely`. docs/howto.md goes on from the
tutorial's folder; tests/test_docs.py runs it there.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from batchscore.cli import main as batchscore

NOT_RUN = ("make", "docker", "kubectl")
WIDTH = 240
ANYTHING = "…"
_STATUS = "echo $?"
# What would change what a command does, or put colours into what it prints.
_NOT_KEPT = re.compile("^BATCHSCORE_|^PYTEST_|COLOR|^TTY_")
# A run's id, or the beginning of one where it is told what to type, or where a table of runs shows it.
_ID = re.compile(
    r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"
    r"|(?<=runs show )[0-9a-f]{8}\b|(?<=runs publish )[0-9a-f]{8}\b|(?<=run )[0-9a-f]{8}\b|(?m:^)[0-9a-f]{8}(?= )"
)
_CLOCK = r"[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?"
_LOOSE = (
    (re.compile(r"(?<![-\w])(?=[a-f]*\d)[0-9a-f]{12,64}\b"), "<digest>"),
    # The data of the pages end in 2025: what is later is the clock's.
    (re.compile(rf"\b20(?:2[6-9]|[3-9]\d)-\d\d-\d\d(?:{_CLOCK})?"), "<time>"),
    (re.compile(r"\b\d+(?= (?:more|complete) interval)"), "<count>"),
    (re.compile(r"\b\d+\.\d+\.\d+\b"), "<version>"),
    (re.compile(r'(?<="seconds": )[\d.]+|\b\d+ s\b'), "<seconds>"),
    (re.compile(r"[\d.,]+(?= µs a row)"), "<latency>"),
    # Who moved an alias, and where.
    (re.compile(r"(?<=\s)[\w.-]+@[\w.-]+(?=\s+(?:promote|rollback)\b)"), "<who>"),
    (re.compile(r"[ \t─━]+"), " "),
)


@dataclass(frozen=True)
class Step:
    """A command of a page with the output it shows, or a file to write.

    Attributes:
        section: The heading above it, of the second level.
        line: Where its output, or the file's text, begins; from 0.
        text: The lines of it.
        command: What is typed; None for a file.
        file: The file's path; None for a command.
        tables: The text is tables of the file, not the whole of it.
    """

    section: str
    line: int
    text: tuple[str, ...]
    command: str | None = None
    file: str | None = None
    tables: bool = False


@dataclass(frozen=True)
class Difference:
    """A command that does something else than the page says."""

    step: Step
    printed: tuple[str, ...]
    status: int

    def __str__(self) -> str:
        shown, printed = ("\n".join(f"    {line}" for line in lines) for lines in (self.step.text, self.printed))
        return f"line {self.step.line}: $ {self.step.command}\n  shown:\n{shown}\n  exit {self.status}:\n{printed}"


def steps(page: str) -> list[Step]:
    """What a page has a reader do, in order."""
    return list(_steps(page.splitlines()))


def _steps(lines: Sequence[str]) -> Iterator[Step]:
    section, above, number = "", "", 0
    while number < len(lines):
        line = lines[number]
        if fence := re.fullmatch(r"```(\w+)", line):
            end = lines.index("```", number)
            yield from _block(fence[1], lines[number + 1 : end], number + 1, section, above)
            number = end
        elif line.startswith("## "):
            section = line.removeprefix("## ")
        above = lines[number] or above
        number += 1


def _block(language: str, lines: Sequence[str], first: int, section: str, above: str) -> Iterator[Step]:
    named = re.search(r"`([\w./-]+)`:$", above)
    if language in ("toml", "sql", "python") and named:
        yield Step(section, first, tuple(lines), file=named[1], tables=language == "toml" and "[job]" not in lines)
    if language == "bash":
        for command in "\n".join(lines).replace("\\\n", "").splitlines():
            if command.strip() and not command.startswith("#"):
                yield Step(section, first, (ANYTHING,), command=command)
    if language == "console":
        starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
        for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
            output = start + 1
            while output < stop and lines[output].startswith("> "):
                output += 1
            command = "\n".join(line[2:] for line in lines[start:output])
            yield Step(section, first + output, tuple(lines[output:stop]), command=command)


def loosely(lines: Sequence[str]) -> list[str]:
    """Lines without what another day or machine prints otherwise; blank lines and progress bars are left out."""
    kept = []
    for line in lines:
        if "━" not in line and line.strip():
            for pattern, replacement in _LOOSE:
                line = pattern.sub(replacement, line)  # noqa: PLW2901
            kept.append(line.strip())
    return kept


def matched(shown: Sequence[str], printed: Sequence[str]) -> dict[str, str] | None:
    """The run ids that were printed in the places of those shown; None where the rest differs, loosely."""
    pattern, ids = "", []
    for line in loosely(shown):
        if line == ANYTHING:
            pattern += r"(?:.*\n)*?"
            continue
        ids += _ID.findall(line)
        pattern += f"({_ID.pattern})".join(re.escape(part) for part in _ID.split(line)) + r"\n"
    found = re.fullmatch(pattern, "".join(f"{line}\n" for line in loosely(printed)))
    return None if found is None else dict(zip(ids, found.groups(), strict=True))


class _Screen(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        return True


@dataclass
class Shell:
    """A terminal in a folder. `batchscore` runs in this process, which spares it a second of imports each time.

    Attributes:
        folder: Where commands run.
        stand_ins: Texts of the page and what to type instead, such as the address of a database.
        lenient: A command below which the page shows nothing may print something.
        variables: Environment variables.
        status: What the last command ended with.
    """

    folder: Path
    stand_ins: dict[str, str] = field(default_factory=dict)
    lenient: bool = False
    variables: dict[str, str] = field(default_factory=dict)
    status: int = 0

    def __post_init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not _NOT_KEPT.search(name)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
        self.variables = kept | {"PATH": path, "TERM": "dumb", "COLUMNS": str(WIDTH), "LINES": "50"} | self.variables

    def replay(self, todo: Sequence[Step]) -> list[Difference]:
        """Do the steps and give those that went otherwise."""
        differences = []
        for step, following in zip(todo, [*todo[1:], None], strict=True):
            if step.command is None:
                self._write(step)
            elif step.command.split()[0] not in NOT_RUN:
                printed = tuple(self.run(step.command).splitlines())
                told = following is not None and following.command == _STATUS
                ids = matched(step.text or (ANYTHING,) * self.lenient, printed)
                if ids is None or (self.status and not told):
                    differences.append(Difference(step, printed, self.status))
                # From now on, type the ids of today where the page has those of another day.
                for old, new in (ids or {}).items():
                    self.stand_ins |= {old: new, old[:8]: new[:8]}
        return differences

    def run(self, command: str) -> str:
        """What a command prints, on either stream."""
        for shown, real in self.stand_ins.items():
            command = command.replace(shown, real)
        before, self.status = self.status, 0
        match _plain_words(command):
            case ["export", *assignments]:
                self.variables |= dict(word.split("=", 1) for word in assignments)
                return ""
            case ["unset", *names]:
                self.variables = {name: value for name, value in self.variables.items() if name not in names}
                return ""
            case ["cd", folder]:
                self.folder /= folder
                return ""
            case ["echo", "$?"]:
                return f"{before}\n"
            case ["batchscore", *arguments]:
                return self._batchscore(arguments)
        done = subprocess.run(  # noqa: S603 - the commands of our own pages
            ["/bin/bash", "-c", command],
            cwd=self.folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.status = done.returncode
        return done.stdout

    def _batchscore(self, arguments: Sequence[str]) -> str:
        screen = _Screen()
        before, handler = Path.cwd(), signal.getsignal(signal.SIGTERM)
        with (
            mock.patch.dict(os.environ, self.variables, clear=True),
            mock.patch.object(sys, "argv", ["batchscore", *arguments]),
            contextlib.redirect_stdout(screen),
            contextlib.redirect_stderr(screen),
        ):
            os.chdir(self.folder)
            try:
                # What it binds to its log lines ends with it.
                contextvars.copy_context().run(batchscore)
            except SystemExit as ended:
                self.status = int(ended.code or 0)
            finally:
                os.chdir(before)
                signal.signal(signal.SIGTERM, handler)
        return screen.getvalue()

    def _write(self, step: Step) -> None:
        path = self.folder / str(step.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(step.text) + "\n"
        for shown, real in self.stand_ins.items():
            text = text.replace(shown, real)
        path.write_text(_with_tables(path.read_text("utf-8"), text) if step.tables else text, "utf-8")


def _plain_words(command: str) -> list[str]:
    """The words of a command that needs no shell; none of one that does."""
    if command == _STATUS:
        return command.split()
    try:
        words = shlex.split(command)
    except ValueError:
        return []
    return [] if re.search(r"[|<>;&$`*\n]", re.sub(r'"[^"$`]*"|\'[^\']*\'', "", command)) else words


def _with_tables(toml: str, tables: str) -> str:
    """A TOML text with those tables in place of the ones of their names, or behind them all."""
    parts: dict[str, str] = {}
    for text in (toml, tables):
        for part in re.split(r"^(?=\[)", text, flags=re.MULTILINE):
            if part.strip():
                parts[part.partition("]")[0]] = part.rstrip() + "\n\n"
    return "".join(parts.values())


def rewritten(page: str, differences: Sequence[Difference]) -> str:
    """The page with what was printed in the place of what does not match."""
    lines = page.splitlines()
    for each in reversed(differences):
        output = [line.rstrip() for line in each.printed if "━" not in line]
        while output and not output[0]:
            del output[0]
        lines[each.step.line : each.step.line + len(each.step.text)] = output
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> int:
    """Replay pages, and compare or write them."""
    failed = False
    for page in [Path(argument) for argument in arguments if argument != "--write"]:
        text = page.read_text("utf-8")
        with tempfile.TemporaryDirectory() as folder:
            differences = Shell(Path(folder), variables=dict(variables or {})).replay(steps(text))
        failed = failed or bool(differences)
        print("\n\n".join(f"{page}, {each}" for each in differences) or f"{page}: as shown")
        if "--write" in arguments:
            page.write_text(rewritten(text, differences), "utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
