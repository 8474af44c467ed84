"""Where a setting comes from, and that its secrets stay there."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from batchscore.errors import UsageError
from batchscore.settings import Settings, load_settings, unknown_variables

CANARY = "canary-p4ssw0rd"
URL = f"postgresql://reader:{CANARY}@db/warehouse"
PLACES = (
    "warehouse_url",
    "source_url",
    "registry_url",
    "delta_url",
    "jobs_dir",
    "sql_dir",
    "pushgateway_url",
    "metrics_dir",
    "alert_webhook_url",
    "dask_scheduler",
    "ray_address",
)
KEYS = ("signing_key", "verify_keys", "allowed_modules")
PUBLIC = (*PLACES, *KEYS, "allow_unsigned", "lease_seconds", "retry_seconds", "log_format")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the surrounding process is seen."""
    for name in list(os.environ):
        if name.upper().startswith("BATCHSCORE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """What is /run/secrets in a container."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    return folder


class Levels:
    """Ways to give a setting, the strongest first; `give` returns the origin that `check` prints."""

    ORDER = ("flag", "environment", "file", "secret", "default")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secrets: Path) -> None:
        self.flags: dict[str, object] = {}
        self._patch, self._folder, self._secrets = monkeypatch, tmp_path, secrets

    def give(self, level: str, name: str, value: str) -> str:
        """Set a setting on one level."""
        variable = f"BATCHSCORE_{name.upper()}"
        match level:
            case "flag":
                self.flags[name] = value
                return f"--{name.replace('_', '-')}"
            case "environment":
                self._patch.setenv(variable, value)
                return variable
            case "file":
                path = self._folder / f"{name}.txt"
                path.write_text(f"{value}\n")
                self._patch.setenv(f"{variable}_FILE", str(path))
                return f"{variable}_FILE"
            case "secret":
                path = self._secrets / f"batchscore_{name}"
                path.write_text(f"{value}\n")
                return str(path)
            case _:
                return "default"

    def load(self) -> Settings:
        """The settings in force."""
        return load_settings(self.flags, self._secrets)


@pytest.fixture
def levels(monkeypatch, tmp_path, secrets) -> Levels:
    """Nothing given yet."""
    return Levels(monkeypatch, tmp_path, secrets)


def told(settings: Settings, name: str) -> str:
    """A setting's value as text, secrets and all."""
    value: Any = getattr(settings, name)
    return value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)


PAIRS = [
    (high, low)
    for i, high in enumerate(Levels.ORDER)
    for low in Levels.ORDER[i + 1 :]
    if (high, low) != ("environment", "file")
]


class TestPrecedence:
    """Flag, environment, named file, secrets folder, default."""

    @pytest.mark.parametrize(("high", "low"), PAIRS)
    @pytest.mark.parametrize("name", ["warehouse_url", "registry_url"])
    def test_the_higher_level_wins(self, levels, high, low, name):
        """Of two levels the higher gives the value, and its origin says so."""
        levels.give(low, name, "sqlite:///low")
        origin = levels.give(high, name, "sqlite:///high")

        settings = levels.load()

        assert told(settings, name) == "sqlite:///high"
        assert settings.origins[name] == origin

    @pytest.mark.parametrize("level", Levels.ORDER[:-1])
    @pytest.mark.parametrize("name", PUBLIC)
    def test_every_setting_can_be_given_on_every_level(self, levels, level, name):
        """A value given on one level alone is in force, and only its own origin changes."""
        special = {"log_format": "json", "lease_seconds": "7.5", "retry_seconds": "7.5", "allow_unsigned": "True"}
        special["alert_webhook_url"] = "https://hooks/x"
        value = special.get(name, "sqlite:///x")
        origin = levels.give(level, name, value)

        settings = levels.load()

        assert Path(told(settings, name)) == Path(value)
        assert settings.origins == dict.fromkeys(PUBLIC, "default") | {name: origin}

    def test_levels_mix(self, levels):
        """Each setting has a level of its own."""
        given = {name: levels.give(level, name, "x") for level, name in zip(Levels.ORDER, PUBLIC, strict=False)}

        assert levels.load().origins == dict.fromkeys(PUBLIC, "default") | given

    def test_defaults(self, secrets):
        """Without anything given, folders are those of a checkout and no database is set."""
        settings = load_settings(None, secrets)

        assert (settings.registry_url, settings.jobs_dir, settings.sql_dir) == (
            "var/registry",
            Path("jobs"),
            Path("sql"),
        )
        assert (settings.warehouse_url, settings.source_url, settings.log_format) == (None, None, "auto")
        assert (settings.lease_seconds, settings.retry_seconds) == (60.0, 300.0)
        assert set(settings.origins.values()) == {"default"}

    def test_a_flag_that_was_not_given_is_none(self, levels):
        """None is what the CLI passes for an absent flag, and hides nothing below it."""
        levels.give("environment", "jobs_dir", "elsewhere")
        levels.flags["jobs_dir"] = None

        assert levels.load().jobs_dir == Path("elsewhere")

    def test_where_containers_keep_secrets(self):
        """Without another folder, secrets are looked for where Docker and Kubernetes mount them."""
        assert inspect.signature(load_settings).parameters["secrets_dir"].default == Path("/run/secrets")

    def test_no_secrets_folder(self, levels, secrets):
        """A machine without /run/secrets has one level fewer, and no warning."""
        levels.give("environment", "jobs_dir", "elsewhere")
        secrets.rmdir()

        assert levels.load().jobs_dir == Path("elsewhere")


class TestFiles:
    """Values in files."""

    @pytest.mark.parametrize(
        ("content", "value"),
        [("a", "a"), ("a\n", "a"), ("a\n\n", "a\n"), (" a \n", " a "), ("\na\n", "\na"), ("é\n", "é")],
    )
    def test_one_newline_is_taken_off(self, monkeypatch, tmp_path, secrets, content, value):
        """The newline that an editor leaves at the end goes, and nothing else: a secret may end with a space."""
        (tmp_path / "url").write_text(content, "utf-8")
        monkeypatch.setenv("BATCHSCORE_WAREHOUSE_URL_FILE", str(tmp_path / "url"))

        assert load_settings(None, secrets).warehouse() == value

    def test_both_a_value_and_a_file_are_refused(self, levels):
        """A value given twice on one level is an error that names both variables, not the values."""
        levels.give("environment", "warehouse_url", URL)
        levels.give("file", "warehouse_url", URL)

        with pytest.raises(UsageError) as caught:
            levels.load()

        assert str(caught.value) == (
            "both BATCHSCORE_WAREHOUSE_URL and BATCHSCORE_WAREHOUSE_URL_FILE are set. Unset one."
        )

    def test_both_are_refused_under_a_flag_too(self, levels):
        """A flag does not hide that two of one level disagree."""
        levels.give("flag", "warehouse_url", URL)
        levels.give("environment", "warehouse_url", URL)
        levels.give("file", "warehouse_url", URL)

        with pytest.raises(UsageError, match="Unset one"):
            levels.load()

    @pytest.mark.parametrize(("path", "why"), [("nowhere", "No such file"), ("", "Is a directory")])
    def test_a_file_that_cannot_be_read(self, monkeypatch, tmp_path, secrets, path, why):
        """A named file that is not there, or is a folder, is named with the variable and the reason."""
        monkeypatch.setenv("BATCHSCORE_WAREHOUSE_URL_FILE", str(tmp_path / path))

        with pytest.raises(UsageError, match=why) as caught:
            load_settings(None, secrets)

        assert f"BATCHSCORE_WAREHOUSE_URL_FILE: {tmp_path / path} cannot be read" in str(caught.value)

    def test_a_named_file_that_is_no_text(self, monkeypatch, tmp_path, secrets):
        """A named file of bytes that are not UTF-8 is an error of use that shows none of them."""
        (tmp_path / "url").write_bytes(CANARY.encode() + b"\xff")
        monkeypatch.setenv("BATCHSCORE_WAREHOUSE_URL_FILE", str(tmp_path / "url"))

        with pytest.raises(UsageError, match="cannot be read: it is not UTF-8") as caught:
            load_settings(None, secrets)

        assert CANARY not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_a_secret_that_is_no_text(self, secrets):
        """A file in the secrets folder that is not UTF-8 is an error of use that names folder and setting."""
        (secrets / "batchscore_warehouse_url").write_bytes(CANARY.encode() + b"\xff")

        with pytest.raises(UsageError, match="warehouse_url") as caught:
            load_settings(None, secrets)

        assert str(secrets) in str(caught.value)
        assert CANARY not in str(caught.value)

    def test_other_secrets_are_left_alone(self, secrets):
        """Files of others in the secrets folder are no settings, readable or not."""
        (secrets / "warehouse_url").write_text(URL)
        (secrets / "token").write_bytes(b"\xff")
        (secrets / "batchscore_other").mkdir()

        assert load_settings(None, secrets).warehouse_url is None


class TestSecrets:
    """A URL with its password is seen by nobody but the driver."""

    @pytest.mark.parametrize("level", Levels.ORDER[:-1])
    @pytest.mark.parametrize("name", ["warehouse_url", "source_url"])
    def test_masked_wherever_settings_are_shown(self, levels, level, name):
        """Neither str, repr, a dump nor the origins show any part of a database URL."""
        levels.give(level, name, URL)

        settings = levels.load()

        for shown in (str(settings), repr(settings), str(settings.model_dump()), settings.model_dump_json()):
            assert CANARY not in shown
            assert "reader" not in shown
        assert told(settings, name) == URL

    @pytest.mark.parametrize("level", Levels.ORDER[:-1])
    def test_masked_in_errors(self, levels, level):
        """An error about another setting, or about the type of this one, does not repeat it."""
        levels.give(level, "warehouse_url", URL)
        origin = levels.give(level, "log_format", CANARY)

        with pytest.raises(UsageError) as caught:
            levels.load()

        assert CANARY not in str(caught.value)
        assert f"{origin}: log_format: Input should be 'auto', 'json', 'ecs' or 'console'" in str(caught.value)

    def test_urls_are_for_those_who_connect(self, levels):
        """Warehouse, source and the list of all URLs give them whole."""
        levels.give("environment", "warehouse_url", URL)
        assert levels.load().warehouse() == levels.load().source() == URL
        assert levels.load().urls() == [URL]

        levels.give("environment", "source_url", "sqlite:///rows.db")
        assert levels.load().warehouse() == URL
        assert levels.load().source() == "sqlite:///rows.db"
        assert levels.load().urls() == [URL, "sqlite:///rows.db"]

    @pytest.mark.parametrize(
        "url",
        ["hooks/canary", "ftp://hooks/canary", "https:///canary", "https://me:canary@hooks/", "https://hooks/canary ä",
         "https://[canary", "https://hooks:canary/"],
    )  # fmt: skip
    def test_a_webhook_that_cannot_be_posted_to(self, levels, url):
        """It is refused when it is read, and nothing of it is repeated."""
        levels.give("environment", "alert_webhook_url", url)

        with pytest.raises(
            UsageError, match=r"BATCHSCORE_ALERT_WEBHOOK_URL: alert_webhook_url: .*want https://"
        ) as caught:
            levels.load()

        assert "canary" not in str(caught.value)

    def test_no_warehouse(self, secrets):
        """Without a warehouse the error says how to set one; the source without one of its own is missing the same way."""
        settings = load_settings(None, secrets)

        for ask in (settings.warehouse, settings.source):
            with pytest.raises(UsageError, match=r"BATCHSCORE_WAREHOUSE_URL.*BATCHSCORE_WAREHOUSE_URL_FILE"):
                ask()
        assert settings.urls() == []

    def test_settings_are_frozen(self, secrets):
        """What was read once does not change."""
        with pytest.raises(ValidationError, match="frozen"):
            load_settings(None, secrets).log_format = "json"


class TestSeconds:
    """`lease_seconds` and `retry_seconds`."""

    @pytest.mark.parametrize(("lease", "retry"), [("1", "0"), ("86400", "1e6"), ("2.5", "0.5")])
    def test_given(self, levels, lease, retry):
        """Any number within the bounds will do, whole or not; no retry at all is one."""
        levels.give("environment", "lease_seconds", lease)
        levels.give("environment", "retry_seconds", retry)
        settings = levels.load()

        assert (settings.lease_seconds, settings.retry_seconds) == (float(lease), float(retry))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("lease_seconds", value) for value in ("0.9", "0", "-1", "86401", "1e12", "inf", "nan", "a minute", "")),
            *(("retry_seconds", value) for value in ("-0.1", "inf", "nan", "forever")),
        ],
    )
    def test_wrong(self, levels, name, value):
        """A lease that no clock could tell, or one that nobody could wait for, is refused with its origin."""
        levels.give("environment", name, value)

        with pytest.raises(UsageError, match=f"BATCHSCORE_{name.upper()}: {name}: "):
            levels.load()


class TestVariables:
    """What else lies in the environment."""

    def test_unknown_variables_are_told(self, monkeypatch):
        """A variable with our prefix that nobody reads is told; settings, their files and others' variables are not."""
        for name in PUBLIC:
            monkeypatch.setenv(f"BATCHSCORE_{name.upper()}", "x")
            monkeypatch.setenv(f"BATCHSCORE_{name.upper()}_FILE", "x")
        monkeypatch.setenv("BATCHSCORES_URL", "x")
        monkeypatch.setenv("BATCHSCORE_WAREHOUSE_ULR", "x")
        monkeypatch.setenv("BATCHSCORE_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv("BATCHSCORE_FAULT", "after_stage:0:kill")
        monkeypatch.setenv("BATCHSCORE_FAULTS", "x")

        assert unknown_variables() == ["BATCHSCORE_FAULTS", "BATCHSCORE_SERVICE_HOST", "BATCHSCORE_WAREHOUSE_ULR"]

    def test_origins_are_no_setting(self, monkeypatch, secrets):
        """Where values come from cannot itself be set, and nonsense there is an error of use like any other."""
        monkeypatch.setenv("BATCHSCORE_ORIGINS", '{"warehouse_url": "mine"}')
        assert unknown_variables() == ["BATCHSCORE_ORIGINS"]
        assert load_settings(None, secrets).origins["warehouse_url"] == "default"

        monkeypatch.setenv("BATCHSCORE_ORIGINS", "not JSON")
        with pytest.raises(UsageError, match="origins"):
            load_settings(None, secrets)

    def test_a_flag_that_is_no_setting_is_left_alone(self, secrets):
        """Flags of the CLI that are no settings do not trouble it."""
        assert load_settings({"format": "json", "origins": {}}, secrets).origins == dict.fromkeys(PUBLIC, "default")
