"""One round of Flower's own SecAgg+ in memory: a worker that `benchmarks/privacy_masks.py` talks to, in Flower's environment.

Each line in is `sites size drops`, each line out JSON: seconds at all sites, at the server, bytes of a masked vector, largest error of the mean.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, ConfigRecord, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
from flwr.compat.common.recorddict_compat import fitres_to_recorddict
from flwr.server import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.supercore.task_identity import TaskIdentity

logging.disable(logging.CRITICAL)


STAGES_LOST = ("collect_masked_vectors", "unmask")


class Memory:
    """The grid: it hands each message to the site's mod, at once."""

    def __init__(self, updates: list[np.ndarray], lost: set[int]) -> None:
        self.updates, self.lost = updates, lost
        self.contexts: dict[int, Context] = {}
        self.seconds, self.copying, self.wire = 0.0, 0.0, 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:  # noqa: ARG002
        """What the sites answer; of those that are lost nothing, from the masked vectors on."""
        found: list[Message] = []
        for sent in messages:
            started = time.perf_counter()
            message = deepcopy(sent)  # a real grid writes it as bytes; the mod takes words out of it
            self.copying += time.perf_counter() - started
            node = message.metadata.dst_node_id
            stage = message.content.config_records[RECORD_KEY_CONFIGS]["stage"]
            if node in self.lost and stage in STAGES_LOST:
                continue
            context = self.contexts.setdefault(node, Context(0, node, {}, RecordDict(), {}))
            started = time.perf_counter()
            reply = secaggplus_mod(message, context, self.trained(node))
            self.seconds += time.perf_counter() - started
            if stage == "collect_masked_vectors":
                vectors = reply.content.config_records[RECORD_KEY_CONFIGS]["masked_params"]
                self.wire = sum(map(len, vectors))
            found.append(reply)
        return found

    def trained(self, node: int) -> Callable[[Message, Context], Message]:
        """The site's training: its update, ready."""

        def app(message: Message, context: Context) -> Message:  # noqa: ARG001  Flower calls it so
            parameters = ndarrays_to_parameters([self.updates[node - 1]])
            done = FitRes(Status(Code.OK, ""), parameters, 1, {})
            return Message(fitres_to_recorddict(done, False), reply_to=message)

        return app


def measure(sites: int, size: int, drops: int) -> dict[str, float]:
    """One round."""
    rng = np.random.default_rng(0)
    updates = [rng.normal(0, 0.01, size) for _ in range(sites)]
    grid = Memory(updates, set(range(sites - drops + 1, sites + 1)))
    zeros = ndarrays_to_parameters([np.zeros(1)])
    proxies = [SimpleNamespace(node_id=node) for node in range(1, sites + 1)]
    summed: list[np.ndarray] = []

    def aggregated(_round: int, results: list, _failures: list) -> tuple[None, dict]:
        summed.extend(parameters_to_ndarrays(results[0][1].parameters))
        return None, {}

    strategy = SimpleNamespace(
        configure_fit=lambda *_: [(proxy, FitIns(zeros, {})) for proxy in proxies], aggregate_fit=aggregated
    )
    context = LegacyContext(
        Context(0, 0, {}, RecordDict(), {}), None, strategy, SimpleNamespace(num_available=lambda: sites)
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord([np.zeros(1)])
    workflow = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=2 * sites // 3 + 1, max_weight=1.0)
    started = time.perf_counter()
    workflow(grid, context)
    total = time.perf_counter() - started
    if not summed:
        raise SystemExit("Flower's round was halted")
    error = float(np.abs(summed[0] - np.mean(updates[: sites - drops], axis=0)).max())
    return {"sites": grid.seconds, "server": total - grid.seconds - grid.copying, "wire": grid.wire, "error": error}


if __name__ == "__main__":
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
    for line in sys.stdin:
        print(json.dumps(measure(*map(int, line.split()))), flush=True)
