"""deployments/prefect.yaml says what a Prefect worker can do: modules to import, parameters that fit, a calendar."""

import inspect
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCUMENT = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())


def test_no_pull_step_stores_where_the_code_lay_when_it_was_deployed():
    assert DOCUMENT["pull"] == []


@pytest.mark.parametrize("deployment", DOCUMENT["deployments"], ids=lambda deployment: deployment["name"])
def test_a_deployment_names_a_flow_by_its_module_and_parameters_that_the_flow_takes(deployment):
    from prefect import Flow
    from prefect.flows import load_flow_from_entrypoint

    flow = load_flow_from_entrypoint(deployment["entrypoint"].replace(":", "."))
    assert isinstance(flow, Flow)
    inspect.signature(flow.fn).bind(**deployment["parameters"])
    assert "/" not in deployment["entrypoint"]


@pytest.mark.parametrize("deployment", DOCUMENT["deployments"], ids=lambda deployment: deployment["name"])
def test_a_deployment_has_a_calendar_and_the_folder_of_whoever_deploys(deployment):
    from prefect.client.schemas.schedules import CronSchedule

    for schedule in deployment["schedules"]:
        CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    assert deployment["parameters"]["folder"].startswith("{{ $PWD }}/studies/")
    assert (ROOT / deployment["parameters"]["folder"].removeprefix("{{ $PWD }}/") / "study.toml").is_file()
