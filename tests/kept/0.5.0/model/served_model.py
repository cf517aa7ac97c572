"""The file that MLflow runs to make the served model; it travels inside every logged model."""

from mlflow.models import set_model

from segpipe.serving import ServedModel

set_model(ServedModel())
