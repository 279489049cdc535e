"""Work W1 on Flower's simulation: FedAvg by examples, every site trained and then scored in every round.

    BENCH_TASK=w1:10:20 BENCH_DIGEST=... python server.py

Prints the last round's loss and AUC as JSON on the last line. One Ray actor a core; `run_simulation` rather than `flwr run`, which
starts a SuperLink first and installs the app: the quicker way of the two.
"""

from __future__ import annotations

import json
import os

from client import app as client_app
from client import task
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

app = ServerApp()
last: dict[str, float] = {}


@app.main()
def main(grid: Grid, context: Context) -> None:  # noqa: ARG001  Flower calls it so
    """All rounds."""
    everyone = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), task.sites)
    result = FedAvg(**everyone).start(grid, ArrayRecord(task.init()), num_rounds=task.rounds)
    last.update(result.evaluate_metrics_clientapp[task.rounds])


if __name__ == "__main__":
    run_simulation(
        server_app=app,
        client_app=client_app,
        num_supernodes=task.sites,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count(), "log_to_driver": False, "logging_level": "WARNING"},
        },
    )
    print(json.dumps(last))
