"""The command line. Standard library only at import: `fedrounds --help` answers at once, each command imports what it needs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fedrounds.cli import arguments as kinds
from fedrounds.cli.stopping import heed, interrupted
from fedrounds.core.errors import FedroundsError

INTERRUPTED = 130


class UsageError(FedroundsError):
    """The command line itself says something it cannot mean."""

    exit_code = 2


VERIFY = "is the audit log as it was signed, and is the ledger what the log says?"


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
        if interrupted(error):
            safe = ": nothing is lost, `fedrounds run` goes on from the last closed round" if "run" in words[:1] else ""
            return _say("Stopped", f"stopped{safe}", INTERRUPTED, "--json" in words)
        if not isinstance(error, FedroundsError):
            raise
        return _say(type(error).__name__, str(error), error.exit_code, "--json" in words)


def program() -> NoReturn:
    """The console entry: `main`, and then out at once. All is closed by then, and tearing down big libraries takes a second."""
    for threads in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
    ):  # read when NumPy is imported; more wait for each other and for helpers
        os.environ.setdefault(threads, "1")
    heed()
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
                arguments.runner,
            )
        case "deploy":
            from fedrounds.cli.deploy import deploy

            what = arguments.what or "deploy"
            return deploy(arguments.dir, arguments.data, arguments.state, what, arguments.port, arguments.json)
        case "expectations":
            from fedrounds.cli.expectations import draft

            return draft(arguments.dir, arguments.data, arguments.json)
        case "site":
            return _site(arguments)
        case "coordinator":
            from fedrounds.cli.coordinator import coordinator

            return coordinator(arguments)
        case "status":
            from fedrounds.cli.status import status

            return status(arguments.dir, arguments.state, arguments.json)
        case "promote" | "rollback":
            return _act(arguments)
        case "models" | "strategies":
            from fedrounds.cli.catalogue import catalogue

            return catalogue(arguments.command, arguments.json)
        case "plan" | "report" | "baselines" | "explain" | "repair" | "verify" | "serve" | "score":
            return _told(arguments)
        case _:
            from fedrounds.cli.ui import ui

            return ui(arguments.dir, arguments.state, arguments.mlflow_port, arguments.prefect_port, arguments.json)


def _told(arguments: argparse.Namespace) -> int:
    if arguments.command == "plan":
        from fedrounds.cli.plan import plan

        return plan(arguments.dir, arguments.state, arguments.json)
    if arguments.command == "verify":
        from fedrounds.cli.verify import verify

        files = arguments.log, arguments.seen, arguments.export
        return verify(arguments.dir, arguments.state, *files, arguments.json)
    if arguments.command == "report":
        from fedrounds.cli.report import report

        return report(arguments.dir, arguments.state, arguments.out, arguments.json)
    if arguments.command == "baselines":
        from fedrounds.cli.baselines import baselines

        return baselines(arguments.dir, arguments.data, arguments.state, arguments.json)
    if arguments.command == "explain":
        from fedrounds.cli.explain import explain

        return explain(arguments.dir, arguments.data, arguments.state, arguments.json)
    if arguments.command in ("serve", "score"):
        from fedrounds.cli.serve import serving

        return serving(arguments)
    from fedrounds.cli.repair import repair

    return repair(arguments.dir, arguments.state, arguments.json)


def _act(arguments: argparse.Namespace) -> int:
    from fedrounds.cli.promote import promote, rollback

    why = arguments.reason, arguments.by
    if arguments.command == "promote":
        return promote(arguments.dir, arguments.state, arguments.round, arguments.reject, *why, arguments.json)
    return rollback(arguments.dir, arguments.state, arguments.to, *why, arguments.json)


def _site(arguments: argparse.Namespace) -> int:
    if arguments.action == "docs":
        from fedrounds.cli.site import docs

        return docs(arguments.dir, arguments.data, arguments.state, arguments.site, arguments.json)
    if arguments.action == "budget":
        from fedrounds.cli.plan import budget

        return budget(arguments.dir, arguments.state, arguments.json)
    if arguments.action == "join":
        from fedrounds.cli.join import join

        return join(
            arguments.token, arguments.dir, arguments.data, arguments.site_file, arguments.holder, arguments.json
        )
    if arguments.action == "roster":
        from fedrounds.cli.roster import agree

        return agree(arguments.dir, arguments.file, arguments.json)
    from fedrounds.cli import agent

    return getattr(agent, arguments.action)(arguments.dir, arguments.json)


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
    for word in ("models", "strategies"):
        listed = commands.add_parser(
            word, help=f"the {word} that a study may name", description=f"The {word} that a study may name."
        )
        listed.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    check = command("check", "validate everything without training")
    check.add_argument("--gate", action="store_true", help="run the sites' expectation suites too")
    plan = command("plan", "what the study will cost of its patients' privacy, and how loud the noise will be")
    run = command("run", "bring the study to its rounds; what is done already is not done again")
    run.add_argument("--more", type=kinds.positive, default=0, metavar="N", help="N rounds further than it is now")
    run.add_argument(
        "--runner",
        type=kinds.runner,
        metavar="RUNNER",
        help="where the sites' rows are: `dask`, or a scheduler, dask://HOST:PORT",
    )
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
        "--port", type=kinds.port, default=4200, metavar="PORT", help="of --serve, default 4200; 0 takes a free one"
    )
    status = command("status", "where the study stands")
    promote = command("promote", "make the version that waits for approval champion, or any that was scored")
    which = promote.add_mutually_exclusive_group()
    which.add_argument("--round", type=kinds.positive, metavar="N", help="the version of round N, waiting or not")
    which.add_argument("--reject", action="store_true", help="turn down the version that waits")
    rollback = command("rollback", "go back to an earlier champion")
    rollback.add_argument("--to", type=kinds.positive, metavar="N", help="that of round N (default: the one before)")
    promote.add_argument("--reason", default="", metavar="TEXT", help="why, for the record")
    rollback.add_argument("--reason", type=kinds.reason, required=True, metavar="TEXT", help="why, for the record")
    for made in (promote, rollback):
        made.add_argument("--by", metavar="NAME", help="who decides (default: you)")
    report = command("report", "write the study as one page, to read and to print: report.html")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: report.html beside the study's ledger")
    baselines = command("baselines", "train what the model is compared with, and score each model at every hospital")
    explain = command("explain", "what the model goes by, for whom it works, what each hospital brought to it")
    repair = command("repair", "write again, from the ledger, what MLflow's store has lost")
    verify = commands.add_parser("verify", help=VERIFY, description=VERIFY)
    verify.add_argument("dir", type=Path, nargs="?", metavar="DIR", help="the study's folder")
    verify.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    for flag, value, says in (
        ("log", "FILE", "an exported log alone, instead of DIR; checkpoint and public.pem lie beside it"),
        ("seen", "FILE", "a checkpoint that you kept from earlier: the log must have grown out of it"),
        ("export", "FOLDER", "write log, checkpoint, public key and a verifier that needs nothing of Fedrounds"),
    ):
        verify.add_argument(f"--{flag}", type=Path, metavar=value, help=says)
    ui = command("ui", "open the MLflow UI and the Prefect UI on this machine")
    ui.add_argument(
        "--mlflow-port", type=kinds.port, default=5000, metavar="PORT", help="default 5000; 0 takes a free one"
    )
    ui.add_argument(
        "--prefect-port", type=kinds.port, default=4200, metavar="PORT", help="default 4200; 0 takes a free one"
    )
    draft = command(
        "draft",
        "write a suite from the dictionary; what people changed stays",
        group("expectations", "the sites' suites"),
    )
    site = group("site", "a hospital's side: join, answer, see and limit what leaves")
    budget = command("budget", "what studies have spent of the patients' privacy, by dataset", site)
    docs = command("docs", "show a site's last validation in a folder of its own", site)
    join = site.add_parser("join", help="take part in a study: checks everything, says what will leave, enrols")
    join.add_argument("token", metavar="TOKEN", help="the coordinator's invitation, fedrounds1.…")
    join.add_argument(
        "dir", type=Path, nargs="?", metavar="DIR", help="the hospital's folder, to be made (default: its name)"
    )
    join.add_argument(
        "--data", type=Path, metavar="PATH", help="the table (.csv, .parquet), or where paths in --site-file start"
    )
    join.add_argument(
        "--site-file", type=Path, metavar="FILE", help="a site.toml with [source], for tables that need more words"
    )
    join.add_argument(
        "--holder", action="store_true", help="without patients, as the third party that holds the study's key"
    )
    join.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    for word, says in (
        ("start", "answer the coordinator's questions, reaching outwards alone, until it is stopped"),
        ("status", "what was asked, what became of it, how many bytes left, what waits for a person"),
        ("preview", "the exact bytes of sample replies in readable form; nothing is sent"),
        ("approve", "say yes to the study or round that waits for a person"),
    ):
        command(word, says, site)
    roster = command("roster", "whose keys count where sums are masked", site)
    roster.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="go by this roster from now on (default: show)"
    )
    _coordinator(command, group("coordinator", "the other side: servers, invitations, who takes part"))
    docs.add_argument("--site", metavar="NAME", help="this site alone (default: every one)")
    for made in (check, run, deploy, draft, docs, baselines, explain):
        made.add_argument(
            "--data", type=Path, metavar="FOLDER", help="where the sites' relative paths start (default: DIR)"
        )
    for made in (
        check,
        plan,
        budget,
        run,
        deploy,
        docs,
        status,
        promote,
        rollback,
        report,
        baselines,
        explain,
        repair,
        verify,
        ui,
        *kinds.serving(command),
    ):
        made.add_argument(
            "--state", type=Path, metavar="FOLDER", help="the state folder (default: mlruns/ at or above DIR)"
        )
    return parser


def _coordinator(command: Callable[..., argparse.ArgumentParser], among: Any) -> None:
    init = command("init", "make the folder: keys, configuration, databases, files for systemd and containers", among)
    init.add_argument(
        "--study", type=Path, required=True, metavar="FOLDER", help="the study's; its site files are not taken"
    )
    init.add_argument(
        "--public",
        default="https://localhost:8443",
        metavar="URL",
        help="what hospitals reach (default: https://localhost:8443)",
    )
    init.add_argument(
        "--postgres",
        default="",
        metavar="URL",
        help="postgresql://user:password@host/NAME (default: SQLite files, for a trial)",
    )
    start = command("start", "run the servers in the foreground, and let in who enrolled, until Ctrl-C", among)
    servers = ("mlflow", "prefect", "nginx", "admit")
    start.add_argument(
        "--only", action="append", choices=servers, help="this one alone, as systemd does; may be repeated"
    )
    for word, says in (
        ("invite", "print a one-time token by which a hospital joins"),
        ("suspend", "ask a hospital no more and let it in no more, for now"),
        ("resume", "go on with a suspended hospital"),
        ("remove", "take a hospital out for good"),
    ):
        made = command(word, says, among)
        made.add_argument("site", metavar="SITE", help="the hospital's name")
        if word == "invite":
            made.add_argument(
                "--days", type=kinds.days, default=7, metavar="N", help="how long the token holds (default: 7)"
            )
    command("sites", "who takes part", among)
    command("roster", "write the hospitals' keys into a file for them, which masked sums need", among)


if __name__ == "__main__":
    program()
