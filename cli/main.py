"""The command line. Standard library only at import: `fedrounds --help` answers at once, each command imports what it needs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. An error that a person can act on is one line, anything else is a bug."""
    arguments = _parser().parse_args(argv)
    if arguments.command is None:
        _parser().print_help()
        return 2
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print(
            "stopped. Nothing is lost: run the same command again to go on from the last closed round.", file=sys.stderr
        )
        return INTERRUPTED
    except Exception as error:
        from fedrounds.core.errors import FedroundsError

        if not isinstance(error, FedroundsError):
            raise
        if arguments.json:
            print(
                json.dumps(
                    {"error": {"kind": type(error).__name__, "message": str(error), "exit_code": error.exit_code}}
                )
            )
        print(f"fedrounds: {error}", file=sys.stderr)
        return error.exit_code


def _run(arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "init":
            from fedrounds.cli.init import init

            return init(arguments.dir, arguments.json)
        case "check":
            from fedrounds.cli.check import check

            return check(arguments.dir, arguments.data, arguments.state, arguments.gate, arguments.json)
        case "run":
            from fedrounds.cli.run import run

            return run(arguments.dir, arguments.data, arguments.state, arguments.more, arguments.fresh, arguments.json)
        case "status":
            from fedrounds.cli.status import status

            return status(arguments.dir, arguments.state, arguments.json)
        case _:
            from fedrounds.cli.ui import ui

            return ui(arguments.dir, arguments.state, arguments.mlflow_port, arguments.prefect_port, arguments.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedrounds",
        description="Federated learning for hospitals: patient rows stay, models travel.",
        epilog="Start with `fedrounds init my-study`, then `fedrounds run my-study` and `fedrounds ui my-study`.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, what: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=what, description=what)
        made.add_argument("dir", type=Path, metavar="DIR", help="the study's folder")
        made.add_argument("--json", action="store_true", help="print one JSON document on standard output")
        return made

    command("init", "write a study that is ready to run: files with comments, four toy hospitals, a suite")
    check = command("check", "validate everything without training")
    check.add_argument("--gate", action="store_true", help="run the sites' expectation suites too")
    run = command("run", "bring the study to its rounds; what is done already is not done again")
    run.add_argument("--more", type=_positive, default=0, metavar="N", help="N rounds further than it is now")
    run.add_argument("--fresh", action="store_true", help="start anew; what was there is set aside")
    status = command("status", "where the study stands")
    ui = command("ui", "open the MLflow UI and the Prefect UI on this machine")
    ui.add_argument("--mlflow-port", type=_port, default=5000, metavar="PORT", help="default 5000; 0 takes a free one")
    ui.add_argument("--prefect-port", type=_port, default=4200, metavar="PORT", help="default 4200; 0 takes a free one")
    for made in (check, run):
        made.add_argument(
            "--data", type=Path, metavar="FOLDER", help="where the sites' relative paths start (default: DIR)"
        )
    for made in (check, run, status, ui):
        made.add_argument(
            "--state", type=Path, metavar="FOLDER", help="the state folder (default: mlruns/ at or above DIR)"
        )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of rounds above 0, found {number}")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, found {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
