"""A model that answers every row with the same text: what is left is MLflow's own server."""

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Constant(PythonModel):
    """Answers a picture's row with as many characters as a mask has."""

    def predict(  # type: ignore[override]  # MLflow leaves out a context that the signature does not name
        self,
        model_input: pd.DataFrame,
        params: dict[str, object] | None = None,  # noqa: ARG002  # MLflow passes those of the signature
    ) -> pd.DataFrame:
        return pd.DataFrame({"mask": ["0" * 4096] * len(model_input)})


set_model(Constant())
