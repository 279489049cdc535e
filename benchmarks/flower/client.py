"""A site of work W1 as a Flower ClientApp: `work.py`'s own data, local step and scores, with Fedrounds' seeds.

Kept a module of its own, so that Ray's workers import it once and keep its rows.
"""

from __future__ import annotations

import os
from hashlib import sha256

import numpy as np
import work  # ../shared/bench
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

task = work.Task(os.environ["BENCH_TASK"])
app = ClientApp()


def seeded(number: int, site: int) -> np.random.Generator:
    """What a Fedrounds site draws from in a round, so that the same weights come out."""
    words = "\0".join((os.environ["BENCH_DIGEST"], str(number), f"site{site:04}"))
    return np.random.default_rng(np.random.SeedSequence(int.from_bytes(sha256(words.encode()).digest(), "big")))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Five local epochs."""
    site, number = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
    X, y = task.rows(site)
    learned = task.model.step(message.content["arrays"].to_numpy_ndarrays(), X, y, seeded(number, site))
    content = {"arrays": ArrayRecord(learned), "metrics": MetricRecord({"num-examples": len(y)})}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Loss and AUC on all rows of the site."""
    found, rows = task.evaluate(message.content["arrays"].to_numpy_ndarrays(), int(context.node_config["partition-id"]))
    return Message(RecordDict({"metrics": MetricRecord({**found, "num-examples": rows})}), reply_to=message)
