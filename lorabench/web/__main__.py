"""`lorabench web [FOLDER]`: the toolkit, the health and the results in a browser."""

import getpass
import importlib.util
import os
import sys
import webbrowser
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from lorabench.commands.frame import Outcome, Program, run_single
from lorabench.commands.options import natural, path_name, positive_int, positive_number
from lorabench.errors import LorabenchError, explain_writing
from lorabench.web.settings import LOOPBACK, Settings

__all__ = ["EXAMPLE", "INTERRUPTED", "add_arguments", "main", "run"]

EXAMPLE = "lorabench web adapters/ --runs multirun/"
INTERRUPTED = "jobs at work go on, and are found by the next server"
_DESCRIPTION = (
    "The toolkit, the health of adapters and the results of the benchmark in a browser, on this machine. Nothing "
    "leaves it. Needs the extra `web`: pip install 'lorabench[web]'."
)
_NEEDED = ("nicegui", "fastapi_offline", "argon2", "multipart")
_LAST_PORT = 65535
_CACHE = "~/.cache/lorabench"  # as conf/config.yaml has it, which is Hydra's to read
_TOKEN = "LORABENCH_WEB_TOKEN"  # noqa: S105  # the name of a variable


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `web`."""
    parser.add_argument("folder", nargs="?", type=path_name, metavar="FOLDER", help="adapters to show; only read")
    parser.add_argument(
        "--runs", nargs="+", default=[], type=path_name, metavar="DIR", help="runs and sweeps to show, or folders above"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; another one needs --users or a token"
    )
    parser.add_argument("--port", type=natural, default=8765, metavar="N", help="0: any that is free")
    parser.add_argument(
        "--models", nargs="+", type=path_name, default=[], metavar="DIR",
        help="folders of `lorabench export`, or above some: the panel Predict asks them",
    )  # fmt: skip
    parser.add_argument(
        "--name", action="append", default=[], metavar="HOST", help="a name that browsers call the server by; again"
    )
    parser.add_argument("--open", action="store_true", help="show the page in this machine's browser")
    parser.add_argument("--https", action="store_true", help="a proxy before the server speaks HTTPS")
    parser.add_argument("--users", type=path_name, metavar="FILE", help="names and hashed passwords of who may enter")
    parser.add_argument(
        "--add-user", metavar="NAME", help="ask for a password, write it to --users, and end; replaces an old one"
    )
    parser.add_argument("--remove-user", metavar="NAME", help="take one out of --users, and end")
    parser.add_argument(
        "--data", type=path_name, metavar="DIR", help="for uploads, jobs and results (default: web in the cache)"
    )
    parser.add_argument("--jobs", type=positive_int, default=1, metavar="N", help="that run at one time")
    parser.add_argument(
        "--job-memory", type=positive_number, metavar="MIB", help="that a process of a job may take; default: any"
    )
    parser.add_argument("--max-upload", type=positive_number, default=1024, metavar="MIB", help="of one upload")
    parser.add_argument("--quota", type=positive_number, default=8192, metavar="MIB", help="of all that a user has")
    parser.add_argument(
        "--keep-days", type=positive_number, default=14, metavar="N", help="old uploads and jobs go after so many"
    )
    parser.epilog = f"A token of one's own, for scripts and for other hosts, is given in {_TOKEN}.\n\n"


def run(args: Namespace) -> Outcome:
    """Serve, or write the file of users."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise LorabenchError(f"lorabench web needs {', '.join(missing)}: pip install 'lorabench[web]'")
    if args.add_user is not None or args.remove_user is not None:
        return _users(args)
    if args.port > _LAST_PORT:
        args.refuse(f"--port {args.port}: there are ports up to {_LAST_PORT}")
    token = os.environ.get(_TOKEN)
    if args.host not in LOOPBACK and args.users is None and token is None:
        args.refuse(f"--host {args.host} lets others in: give --users FILE, or a token in {_TOKEN}")
    if args.users is not None and token is not None:
        args.refuse(f"--users and {_TOKEN} are both given: choose one")
    settings = Settings(
        data=args.data or Path(os.environ.get("LORABENCH_CACHE") or _CACHE).expanduser() / "web",
        folder=args.folder,
        runs=tuple(args.runs),
        models=tuple(args.models),
        host=args.host,
        port=args.port,
        hosts=tuple(map(_in_address, (*LOOPBACK, args.host, *args.name))),
        max_upload=int(args.max_upload * 2**20),
        quota=int(args.quota * 2**20),
        keep_days=args.keep_days,
        jobs=args.jobs,
        job_memory=None if args.job_memory is None else int(args.job_memory * 2**20),
        https=args.https,
    )
    return _serve(settings, args.users, token, args.open)


def _serve(settings: Settings, users: Path | None, token: str | None, show: bool) -> Outcome:
    from lorabench.web.access import Access
    from lorabench.web.serve import listen, serve
    from lorabench.web.site import make_site

    access = Access(users, token)
    with explain_writing(settings.data, "Give another --data."):
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    site = make_site(settings, access)
    with listen(settings) as listening:
        address = f"http://{_in_address(settings.host)}:{listening.getsockname()[1]}"
        first = access.first_token
        where = f"{address}/enter?token={first}" if first else address

        def ready() -> None:
            sys.stderr.write(f"lorabench web: {where}\n")
            sys.stderr.flush()
            if show:
                webbrowser.open(where)

        serve(site, listening, ready)
    return Outcome({"address": address}, f"{address} has ended; {INTERRUPTED}")


def _in_address(host: str) -> str:
    """A host as addresses have it."""
    return f"[{host}]" if ":" in host else host


def _users(args: Namespace) -> Outcome:
    from lorabench.web.users import add_user, remove_user

    if args.users is None:
        args.refuse("--add-user and --remove-user need --users FILE")
    if args.remove_user is not None:
        remove_user(args.users, args.remove_user)
        return Outcome({"removed": args.remove_user}, f"{args.remove_user} is taken out of {args.users}")
    password = getpass.getpass(f"password of {args.add_user}: ") if sys.stdin.isatty() else sys.stdin.readline().strip()
    add_user(args.users, args.add_user, password)
    return Outcome({"added": args.add_user}, f"{args.add_user} may enter by {args.users}")


def program(name: str) -> Program:
    """The commands that jobs are."""
    from lorabench.web.tools import program as of_commands

    return of_commands(name)


def main(argv: Sequence[str] | None = None, name: str = "lorabench web") -> int:
    """Run it; see `lorabench.commands.frame` for what it prints and returns."""
    return run_single(name, _DESCRIPTION, sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
