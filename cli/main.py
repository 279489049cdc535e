"""The command line. Standard library only at import: `fedrounds --help` answers at once, each command imports what it needs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from fedrounds.core.errors import FedroundsError

INTERRUPTED = 130


class UsageError(FedroundsError):
    """The command line itself says something it cannot mean."""

    exit_code = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. An error that a person can act on is one line, anything else is a bug."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        arguments = _parser().parse_args(words)
        if arguments.command is None:
            _parser().print_help()
            return UsageError.exit_code
        return _run(arguments)
    except BaseException as error:
        if _interrupted(error):
            safe = ": nothing is lost, `fedrounds run` goes on from the last closed round" if "run" in words[:1] else ""
            return _say("Stopped", f"stopped{safe}", INTERRUPTED, "--json" in words)
        if not isinstance(error, FedroundsError):
            raise
        return _say(type(error).__name__, str(error), error.exit_code, "--json" in words)


def program() -> NoReturn:
    """The console entry: `main`, and then out at once. All is closed by then, and tearing down big libraries takes a second."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without dots and dashes still gets its table
    try:
        code = main()
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:  # `fedrounds status DIR | head -1`
        code = 0
    os._exit(code)


def _say(kind: str, message: str, code: int, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": {"kind": kind, "message": message, "exit_code": code}}, ensure_ascii=False))
    print(f"fedrounds: {message}", file=sys.stderr)
    return code


def _interrupted(error: BaseException | None) -> bool:
    """Whether a signal is behind it: a library that is interrupted while it sets something up may stumble over what is missing."""
    while error is not None:
        if type(error).__name__ in ("KeyboardInterrupt", "TerminationSignal"):  # ours; Prefect's, while its flow runs
            return True
        error = error.__cause__ or error.__context__
    return False


def _interrupt(*_: Any) -> NoReturn:
    """Stop where we are. asyncio would rather cancel the flow when it next waits, which is at its end: Prefect's tasks do not wait."""
    raise KeyboardInterrupt


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

            return run(
                arguments.dir,
                arguments.data,
                arguments.state,
                arguments.more,
                arguments.fresh,
                arguments.json,
                arguments.accept_drift,
            )
        case "deploy":
            from fedrounds.cli.deploy import deploy

            what = arguments.what or "deploy"
            return deploy(arguments.dir, arguments.data, arguments.state, what, arguments.port, arguments.json)
        case "expectations":
            from fedrounds.cli.expectations import draft

            return draft(arguments.dir, arguments.data, arguments.json)
        case "site":
            from fedrounds.cli.site import docs

            return docs(arguments.dir, arguments.data, arguments.state, arguments.site, arguments.json)
        case "status":
            from fedrounds.cli.status import status

            return status(arguments.dir, arguments.state, arguments.json)
        case "promote":
            from fedrounds.cli.promote import promote

            words = (arguments.round, arguments.reject, arguments.reason, arguments.by)
            return promote(arguments.dir, arguments.state, *words, arguments.json)
        case "rollback":
            from fedrounds.cli.promote import rollback

            words = (arguments.to, arguments.reason, arguments.by)
            return rollback(arguments.dir, arguments.state, *words, arguments.json)
        case "report":
            from fedrounds.cli.report import report

            return report(arguments.dir, arguments.state, arguments.out, arguments.json)
        case "repair":
            from fedrounds.cli.repair import repair

            return repair(arguments.dir, arguments.state, arguments.json)
        case _:
            from fedrounds.cli.ui import ui

            return ui(arguments.dir, arguments.state, arguments.mlflow_port, arguments.prefect_port, arguments.json)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}: see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fedrounds",
        description="Federated learning for hospitals: patient rows stay, models travel.",
        epilog="Start with `fedrounds init my-study`, then `fedrounds run my-study` and `fedrounds ui my-study`.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, what: str, among: Any = commands) -> argparse.ArgumentParser:
        made = among.add_parser(name, help=what, description=what)
        made.add_argument("dir", type=Path, metavar="DIR", help="the study's folder")
        made.add_argument("--json", action="store_true", help="print one JSON document on standard output")
        return made

    def group(name: str, what: str) -> Any:
        made = commands.add_parser(name, help=what, description=what)
        return made.add_subparsers(dest="action", metavar="ACTION", required=True)

    command("init", "write a study that is ready to run: files with comments, four toy hospitals, a suite")
    check = command("check", "validate everything without training")
    check.add_argument("--gate", action="store_true", help="run the sites' expectation suites too")
    run = command("run", "bring the study to its rounds; what is done already is not done again")
    run.add_argument("--more", type=_positive, default=0, metavar="N", help="N rounds further than it is now")
    anew = run.add_mutually_exclusive_group()
    anew.add_argument("--fresh", action="store_true", help="start anew; what was there is set aside")
    anew.add_argument(
        "--accept-drift", action="store_true", help="the newest data are right: later ones are compared with them"
    )
    deploy = command("deploy", "put the study's schedule on a Prefect server, or bring it up to date there")
    what = deploy.add_mutually_exclusive_group()
    for word, says in (
        ("pause", "no tick until --resume"),
        ("resume", "go on with the calendar"),
        ("remove", "take the deployment and its notifications off the server; models and ledger stay"),
        ("serve", "bring a Prefect server and a worker, here, until Ctrl-C"),
    ):
        what.add_argument(f"--{word}", dest="what", action="store_const", const=word, help=says)
    deploy.add_argument(
        "--port", type=_port, default=4200, metavar="PORT", help="of --serve, default 4200; 0 takes a free one"
    )
    status = command("status", "where the study stands")
    promote = command("promote", "make the version that waits for approval champion, or any that was scored")
    which = promote.add_mutually_exclusive_group()
    which.add_argument("--round", type=_positive, metavar="N", help="the version of round N, waiting or not")
    which.add_argument("--reject", action="store_true", help="turn down the version that waits")
    rollback = command("rollback", "go back to an earlier champion")
    rollback.add_argument("--to", type=_positive, metavar="N", help="that of round N (default: the one before)")
    promote.add_argument("--reason", default="", metavar="TEXT", help="why, for the record")
    rollback.add_argument("--reason", type=_reason, required=True, metavar="TEXT", help="why, for the record")
    for made in (promote, rollback):
        made.add_argument("--by", metavar="NAME", help="who decides (default: you)")
    report = command("report", "write the study as one page, to read and to print: report.html")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: report.html beside the study's ledger")
    repair = command("repair", "write again, from the ledger, what MLflow's store has lost")
    ui = command("ui", "open the MLflow UI and the Prefect UI on this machine")
    ui.add_argument("--mlflow-port", type=_port, default=5000, metavar="PORT", help="default 5000; 0 takes a free one")
    ui.add_argument("--prefect-port", type=_port, default=4200, metavar="PORT", help="default 4200; 0 takes a free one")
    draft = command(
        "draft",
        "write a suite from the dictionary; what people changed stays",
        group("expectations", "the sites' suites"),
    )
    docs = command(
        "docs", "show a site's last validation in a folder of its own", group("site", "what a site keeps to itself")
    )
    docs.add_argument("--site", metavar="NAME", help="this site alone (default: every one)")
    for made in (check, run, deploy, draft, docs):
        made.add_argument(
            "--data", type=Path, metavar="FOLDER", help="where the sites' relative paths start (default: DIR)"
        )
    for made in (check, run, deploy, docs, status, promote, rollback, report, repair, ui):
        made.add_argument(
            "--state", type=Path, metavar="FOLDER", help="the state folder (default: mlruns/ at or above DIR)"
        )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of rounds above 0, found {text!r}")
    return int(text)


def _reason(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a reason, found an empty text")
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 65536:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, found {text!r}")
    return int(text)


if __name__ == "__main__":
    program()
