"""Save a pipeline in MLflow's format, once, before anything is measured."""

import sys

import joblib
import mlflow

model, folder = sys.argv[1:]
mlflow.sklearn.save_model(
    joblib.load(model),
    folder,
    pyfunc_predict_fn="predict_proba",
    serialization_format="cloudpickle",
    input_example=None,
)
