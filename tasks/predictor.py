"""What predicts from a registered PyTorch module without Fedrounds: MLflow copies this file into the model's folder, and runs it there."""

import mlflow
import numpy as np


class Predictor(mlflow.pyfunc.PythonModel):
    """Raw rows by the study's dictionary -> the mean (n,), or the probability of every class (n, k)."""

    def load_context(self, context):
        """Read the preprocessing steps and the program of PyTorch's own operations; nothing is unpickled."""
        import skops.io
        import torch

        self.steps = skops.io.load(context.artifacts["preprocessing"], trusted=["numpy.dtype"])
        self.program = torch.export.load(context.artifacts["program"]).module()

    def predict(self, context, model_input, params=None):  # MLflow takes type hints here for a schema of its own
        """Predict of a data frame with the dictionary's columns, one row at least."""
        import torch

        del context, params
        X = np.ascontiguousarray(self.steps.transform(model_input), np.float64)
        with torch.no_grad():
            return self.program(torch.from_numpy(X)).numpy()


mlflow.models.set_model(Predictor())
