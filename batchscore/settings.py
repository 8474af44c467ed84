"""Where things are: the warehouse, the source, the registry, the job folders. Read once, by the CLI.

Precedence: flag, `BATCHSCORE_<NAME>`, the file named by `BATCHSCORE_<NAME>_FILE`, `/run/secrets/batchscore_<name>`,
default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from batchscore import faults
from batchscore.errors import UsageError

__all__ = ["PREFIX", "Settings", "load_settings", "unknown_variables"]

PREFIX = "BATCHSCORE_"
SECRETS = Path("/run/secrets")


class Settings(BaseSettings):
    """The settings of one process.

    Attributes:
        warehouse_url: SQLAlchemy URL of the database that takes predictions and ledger.
        source_url: SQLAlchemy URL of the database that the job's SQL reads; the warehouse's when unset.
        registry_url: The folder of bundles; or `s3://bucket/prefix`, which needs the extra `s3`, with credentials,
            region and endpoint as the variables `AWS_…` say; or `mlflow+http://host:port`, which needs the extra
            `mlflow`, with credentials as the variables `MLFLOW_TRACKING_…` say.
        delta_url: The folder in which output tables are Delta tables; or `s3://bucket/prefix`, with credentials, region
            and endpoint as the variables `AWS_…` say. It needs the extra `delta`. Not set: they are tables of the
            warehouse, where ledger, stages and rejects always are.
        signing_key: The private key, in PEM, that signs each bundle that `train` registers; `models keygen` makes one.
        verify_keys: The public keys, in PEM and one behind the other, of which one must have signed a bundle.
        allow_unsigned: Whether bundles without a signature are loaded. Not set: as long as `verify_keys` is not set.
            A signature that is wrong, or by another key, is never let in.
        allowed_modules: Packages, modules or single names of them, with commas between, whose classes and functions a
            pipeline may be made of, beside scikit-learn, numpy, scipy, LightGBM, XGBoost and the features module.
        jobs_dir: The folder of `<job>.toml` and `<job>.py`.
        sql_dir: The folder that the job's SQL paths are relative to.
        lease_seconds: How long an interval stays taken when its process dies and another machine wants it.
        retry_seconds: How long to go on trying, without any progress, when a database or network fails.
        pushgateway_url: The Prometheus Pushgateway that gets metrics of each `score` and `backfill`, for instance
            `http://user:password@host:9091`; it needs the extra `prometheus`.
        metrics_dir: The folder in which each `score` and `backfill` leaves the same metrics, as a file for the textfile
            collector of node-exporter; it needs the extra `prometheus`.
        alert_webhook_url: Where `[alerts]` are posted to as JSON, with a `text` that Slack and those like it show. The
            whole of it is a secret.
        dask_scheduler: The scheduler whose workers `--backend dask` uses, such as `tcp://scheduler:8786`; without it
            there is a cluster on this machine for as long as the command runs. Every worker needs the same image and
            settings.
        ray_address: The same for `--backend ray`: `ray://head:10001`, or `auto`.
        log_format: `json` (one object a line), `ecs` (the same with the names of the Elastic Common Schema), `console`,
            or `auto`: JSON; on a terminal, warnings and errors in words.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    warehouse_url: SecretStr | None = None
    source_url: SecretStr | None = None
    registry_url: str = "var/registry"
    delta_url: str | None = None
    signing_key: SecretStr | None = None
    verify_keys: str | None = None
    allow_unsigned: bool | None = None
    allowed_modules: str | None = None
    jobs_dir: Path = Path("jobs")
    sql_dir: Path = Path("sql")
    lease_seconds: float = Field(60.0, ge=1.0, le=86_400.0)
    retry_seconds: float = Field(300.0, ge=0.0, allow_inf_nan=False)
    pushgateway_url: SecretStr | None = None
    metrics_dir: Path | None = None
    alert_webhook_url: SecretStr | None = None
    dask_scheduler: str | None = None
    ray_address: str | None = None
    log_format: Literal["auto", "json", "ecs", "console"] = "auto"
    origins: Mapping[str, str] = Field(default_factory=dict)

    @field_validator("alert_webhook_url")
    @classmethod
    def _can_be_posted_to(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            try:
                parts = urlsplit(url.get_secret_value())
                printable = re.fullmatch("[!-~]+", url.get_secret_value())
                known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
                good = bool(printable and known and parts.username is None)
            except ValueError:
                good = False
            if not good:
                raise ValueError("want https://host/path, of ASCII characters only and without a name and password")
        return url

    def warehouse(self) -> str:
        """The warehouse's URL, secrets and all.

        Raises:
            UsageError: It is not set.
        """
        if self.warehouse_url is None:
            raise UsageError(
                f"no warehouse is set. Set {PREFIX}WAREHOUSE_URL (or {PREFIX}WAREHOUSE_URL_FILE), for instance "
                "duckdb:///var/warehouse.duckdb or postgresql://user@host/database."
            )
        return self.warehouse_url.get_secret_value()

    def source(self) -> str:
        """The source's URL, secrets and all; the warehouse's where none is set."""
        return self.source_url.get_secret_value() if self.source_url else self.warehouse()

    def urls(self) -> list[str]:
        """Every URL that is set and may hold a password, secrets and all."""
        given = (self.warehouse_url, self.source_url, self.pushgateway_url)
        return [url.get_secret_value() for url in given if url]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings passes all five by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_settings` collected: it asks the others one by one, to tell where a value came from."""
        return (init_settings,)


class _NamedFiles(PydanticBaseSettingsSource):
    """Values from the files that `BATCHSCORE_<NAME>_FILE` name."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        variable = f"{PREFIX}{field_name.upper()}"
        path = os.environ.get(f"{variable}_FILE")
        if path is None:
            return None, field_name, False
        if variable in os.environ:
            raise UsageError(f"both {variable} and {variable}_FILE are set. Unset one.")
        try:
            return Path(path).read_text("utf-8").removesuffix("\n"), field_name, False
        except OSError as error:
            raise UsageError(f"{variable}_FILE: {path} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError:
            raise UsageError(f"{variable}_FILE: {path} cannot be read: it is not UTF-8.") from None

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(field, name)[0] for name, field in Settings.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


def load_settings(flags: Mapping[str, object] | None = None, secrets_dir: Path = SECRETS) -> Settings:
    """The settings in force, each with its origin in `origins`.

    Args:
        flags: Values given on the command line; None means not given.
        secrets_dir: The folder of secret files, one a setting, named `batchscore_<name>`.

    Raises:
        UsageError: A value is not of its kind, a named file cannot be read, or a value is given twice at one level.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    layers: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("flag", lambda: given),
        ("environment", EnvSettingsSource(Settings)),
        ("file", _NamedFiles(Settings)),
    ]
    if secrets_dir.is_dir():
        layers.append((str(secrets_dir), SecretsSettingsSource(Settings, secrets_dir=secrets_dir)))
    values: dict[str, Any] = {}
    origins = dict.fromkeys(_public_fields(), "default")
    for origin, layer in layers:
        try:
            found = layer()
        except SettingsError as error:
            if isinstance(error.__cause__, OSError):
                file = error.__cause__.filename
                raise UsageError(f"{file} cannot be read: {error.__cause__.strerror}. Let this user read it.") from None
            raise UsageError(f"{origin}: {error}. Mend it there.") from None
        for name, value in found.items():
            if name not in values and name in origins:
                values[name] = value
                origins[name] = _name_origin(origin, name)
    try:
        return Settings(**values, origins=origins)
    except ValidationError as error:
        faults = "\n".join(f"  {origins.get(str(e['loc'][0]))}: {e['loc'][0]}: {e['msg']}" for e in error.errors())
        raise UsageError(f"the settings are wrong:\n{faults}") from None


def unknown_variables() -> list[str]:
    """Variables with our prefix that name no setting: a typing error, or a service of that name in the cluster."""
    known = {f"{PREFIX}{name.upper()}{suffix}" for name in _public_fields() for suffix in ("", "_FILE")} | {
        faults.VARIABLE
    }
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def _public_fields() -> list[str]:
    return [name for name in Settings.model_fields if name != "origins"]


def _name_origin(origin: str, name: str) -> str:
    match origin:
        case "flag":
            return f"--{name.replace('_', '-')}"
        case "environment":
            return f"{PREFIX}{name.upper()}"
        case "file":
            return f"{PREFIX}{name.upper()}_FILE"
        case _:
            return f"{origin}/{PREFIX.lower()}{name}"
