"""Who hears of a missed, failed or held tick: Prefect automations that call webhooks. Each is found by its name before it is made."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from fedrounds.core.errors import StudyError
from fedrounds.core.operations import Schedule

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

WATCHED = {  # what an automation is called -> the states it waits for
    "missed": ("Late",),
    "failed": ("Failed", "Crashed"),
    "held": ("Held",),
}
PAYLOAD = """{{ {
  "text": "Fedrounds, %(study)s: " ~ flow_run.name ~ " is " ~ flow_run.state.name ~ " — " ~ (flow_run.state.message or ""),
  "study": "%(study)s", "state": flow_run.state.name, "message": flow_run.state.message or "",
  "flow_run": flow_run.id|string, "name": flow_run.name, "at": flow_run.state.timestamp|string
} | tojson }}"""


def addresses(schedule: Schedule) -> tuple[str, ...]:
    """Every webhook, each once. Raises StudyError if the variable that `notify_env` names holds none."""
    secret = ()
    if schedule.notify_env is not None:
        value = os.environ.get(schedule.notify_env, "")
        if not re.match(r"https?://\S+$", value):
            raise StudyError(
                f"expected a webhook's address in the variable {schedule.notify_env} that `notify_env` of operations.toml names,"
                " found none: set it where you deploy"
            )
        secret = (value,)
    return tuple(dict.fromkeys((*schedule.notify, *secret)))


async def notify(client: PrefectClient, study: str, deployment: str, webhooks: Sequence[str]) -> list[str]:
    """Make the automations and their webhooks as asked for, take away what is not; gives the names of what is there."""
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    made = []
    blocks = [await _webhook(client, study, address) for address in webhooks]
    for what, states in WATCHED.items():
        name = f"{study} · {what}"
        there = await client.read_automations_by_name(name)
        for extra in there if not blocks else there[1:]:
            await client.delete_automation(extra.id)
        if not blocks:
            continue
        wanted = AutomationCore(
            name=name,
            description=f"Tells whoever operations.toml names when a run of {study} is {' or '.join(states).lower()}",
            trigger=EventTrigger(
                expect={f"prefect.flow-run.{state}" for state in states},
                match={"prefect.resource.id": "prefect.flow-run.*"},  # type: ignore[arg-type]
                match_related={
                    "prefect.resource.role": "deployment",
                    "prefect.resource.id": f"prefect.deployment.{deployment}",
                },  # type: ignore[arg-type]
                posture="Reactive",  # type: ignore[arg-type]
                threshold=1,
                within=timedelta(0),
            ),
            actions=[
                {"type": "call-webhook", "block_document_id": block, "payload": PAYLOAD % {"study": study}}  # type: ignore[list-item]
                for block in blocks
            ],
        )
        if there:
            await client.update_automation(there[0].id, wanted)
        else:
            await client.create_automation(wanted)
        made.append(name)
    await _drop_webhooks(client, study, blocks)
    return made


def _prefix(study: str) -> str:
    """How the names of a study's webhooks begin: small letters, digits and dashes, and its own whatever was replaced."""
    plain = re.sub("[^a-z0-9]+", "-", study.lower()).strip("-")
    return f"fedrounds-{plain}-{hashlib.sha256(study.encode()).hexdigest()[:6]}-"


async def _webhook(client: PrefectClient, study: str, address: str) -> str:
    """The block that holds the address, which Prefect encrypts; its name does not tell it."""
    from prefect.blocks.webhook import Webhook

    block = Webhook(method="POST", url=address, headers={"Content-Type": "application/json"})  # type: ignore[arg-type]
    name = _prefix(study) + hashlib.sha256(address.encode()).hexdigest()[:8]
    return str(await block.save(name, overwrite=True, client=client))


async def _drop_webhooks(client: PrefectClient, study: str, kept: Sequence[str]) -> None:
    from prefect.exceptions import ObjectNotFound

    try:
        found = await client.read_block_documents_by_type("webhook", include_secrets=False)
    except ObjectNotFound:  # no webhook was ever made here
        return
    for block in found:
        if (block.name or "").startswith(_prefix(study)) and str(block.id) not in kept:
            await client.delete_block_document(block.id)
