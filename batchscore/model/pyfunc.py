"""A bundle as a model of MLflow's: a folder that `mlflow models serve` takes, with the bundle in it as it is.

No class is pickled and no code is copied: `MLmodel` names `batchscore.model.serving`, which is installed where the
model is served, and which verifies the bundle before anything of it is loaded.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from batchscore.model.bundle import MANIFEST, Manifest
from batchscore.model.serving import REJECT
from batchscore.schema import Schema, TypeName

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature

__all__ = ["BUNDLE", "example", "save", "signature"]

# Where in the folder the bundle's files are; MLflow chooses `data`.
BUNDLE = "data/bundle"
_EXAMPLES = 2


def save(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the folder of a model.

    Args:
        files: Every file of the bundle.
        folder: Where to; it is not there yet.
    """
    manifest = Manifest.model_validate_json(files[MANIFEST])
    bundle = folder.with_name("bundle")
    bundle.mkdir()
    for name, data in files.items():
        (bundle / name).write_bytes(data)
    libraries = [f"{name}=={version}" for name, version in manifest.libraries.items() if name != "python"]
    with warnings.catch_warnings():
        # Of its own type hints, and of all that it might have inferred and was told.
        warnings.simplefilter("ignore")
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(
            folder,
            loader_module="batchscore.model.serving",
            data_path=str(bundle),
            signature=signature(manifest),
            input_example=example(files),
            pip_requirements=[f"batchscore=={manifest.batchscore}", *libraries, "pandas"],
            metadata={
                "columns": Schema.from_dicts(manifest.columns).types,
                "bundle": {"name": manifest.name, "version": manifest.version, "digest": manifest.digest},
            },
        )


def signature(manifest: Manifest) -> ModelSignature:
    """What the model takes and gives, as MLflow tells and checks it.

    Floats and text have their type. All others are `Any`, and the bundle checks them: MLflow would cast them first, so
    that 1.5 became 1, a NULL among booleans True, and an integer beside a NULL or a time zone an error. What may be
    NULL is not required.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, TensorSpec
    from mlflow.types import Schema as Columns
    from mlflow.types.schema import AnyType

    taken = {"float": DataType.double, "string": DataType.string}
    given: dict[TypeName, DataType] = {
        "boolean": DataType.boolean,
        "integer": DataType.long,
        "float": DataType.double,
        "string": DataType.string,
    }
    unchecked = AnyType()  # type: ignore[no-untyped-call]
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(taken.get(column.type, unchecked), column.name, required=not column.nullable)
        for column in Schema.from_dicts(manifest.columns)
    ]
    types: dict[str, TypeName] = {**manifest.output_types, REJECT: "string"}
    outputs: list[ColSpec | TensorSpec] = [ColSpec(given[type_], name, required=False) for name, type_ in types.items()]
    return ModelSignature(Columns(inputs), Columns(outputs))


def example(files: Mapping[str, bytes]) -> pd.DataFrame:
    """Golden rows as one would send them: dates and timestamps as ISO text, NULL as None."""
    import pandas as pd

    rows = pl.read_parquet(io.BytesIO(files["golden_rows.parquet"])).head(_EXAMPLES)
    texts = {
        name: pl.col(name).dt.to_string("iso:strict") for name, dtype in rows.schema.items() if dtype.is_temporal()
    }
    rows = rows.with_columns(**texts)
    return pd.DataFrame({series.name: pd.Series(series.to_list(), dtype=object) for series in rows.iter_columns()})
