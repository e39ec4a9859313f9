#!/usr/bin/env python3
"""Client flows against a running homeserver, by a client library that knows nothing of it.

    flow.py full   --url URL --users users.json [--register] [--router] [--push] [--report out.json]
    flow.py acked  --url URL --users users.json --ledger file.jsonl [--seconds N]
    flow.py verify --url URL --users users.json --ledger file.jsonl

`users.json` is a list of at least five {"name": …, "password": …}. Every step prints one line; the
exit status is 0 if all passed, 1 if any failed, 2 if the command line is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

import ledger
import steps
from harness import Http, Outcome, StepFailed

# Browsers keep few connections, five people with several clients many.
CONNECTIONS = 200
STARTED = time.monotonic()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--url", required=True, help="where clients find the homeserver")
    common.add_argument("--users", type=Path, required=True, help="JSON list of name and password")

    full = commands.add_parser("full", parents=[common], help="use every feature once")
    full.add_argument("--register", action="store_true", help="register the users first")
    full.add_argument("--router", action="store_true", help="the router is in front: try it too")
    full.add_argument("--push", action="store_true", help="the server may call this machine")
    full.add_argument("--no-skips", action="store_true", help="a skipped step is a failure")
    full.add_argument("--only", nargs="+", choices=list(steps.plan.steps), metavar="STEP")
    full.add_argument("--report", type=Path, help="write the outcomes as JSON")
    full.add_argument("--seconds", type=float, default=240, help="give up after so long")

    acked = commands.add_parser("acked", parents=[common], help="send until told to stop")
    acked.add_argument("--ledger", type=Path, required=True, help="acknowledged messages, appended")
    acked.add_argument("--rooms", type=int, default=6)
    acked.add_argument("--interval", type=float, default=0.5, help="each sender's pause, seconds")
    acked.add_argument(
        "--seconds", type=float, default=600, help="send for so long, unless SIGTERM comes first"
    )

    verify = commands.add_parser("verify", parents=[common], help="read the ledger's messages back")
    verify.add_argument("--ledger", type=Path, required=True)
    return parser.parse_args()


def accounts(path: Path, least: int) -> list[dict[str, str]]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if len(found) < least:
        sys.exit(f"{path} names {len(found)} users, {least} are needed")
    return found


def finish(outcomes: list[Outcome], report: Path | None, *, no_skips: bool = True) -> int:
    """Writes and prints how the steps went, and says with which status to exit."""
    counts = {kind: sum(o.outcome == kind for o in outcomes) for kind in ("pass", "fail", "skip")}
    failed = counts["fail"] + (counts["skip"] if no_skips else 0)
    if report:
        steps = [dataclasses.asdict(outcome) for outcome in outcomes]
        report.write_text(json.dumps({**counts, "steps": steps}, indent=1) + "\n", encoding="utf-8")
    print(
        f"{'FAIL' if failed else 'PASS'} {len(outcomes)} steps: {counts['pass']} passed, "
        f"{counts['fail']} failed, {counts['skip']} skipped in {time.monotonic() - STARTED:.1f} s",
        flush=True,
    )
    return 1 if failed else 0


def quiet() -> None:
    """matrix-nio tells on its log what the steps tell better."""
    logging.getLogger("nio").setLevel(logging.CRITICAL)


async def full(args: argparse.Namespace, http: Http) -> int:
    with tempfile.TemporaryDirectory(prefix="flow-") as stores:
        context = steps.Context(
            http=http,
            users=steps.users_in(Path(stores), http, accounts(args.users, 5)[:5]),
            run=secrets.token_hex(4),
            router=args.router,
            push=args.push,
            register=args.register,
        )
        try:
            outcomes = await asyncio.wait_for(steps.run(context, set(args.only or ())), args.seconds)
        except (TimeoutError, asyncio.TimeoutError):
            print(f"FAIL the flow is not done after {args.seconds:g} s", flush=True)
            return 1
    return finish(outcomes, args.report, no_skips=args.no_skips)


async def acked(args: argparse.Namespace, http: Http) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    people = [await ledger.log_in(http, account) for account in accounts(args.users, 2)]
    rooms = await ledger.make_rooms(people, args.rooms)
    loop.call_later(args.seconds, stop.set)
    print(f"sending: {len(people)} people in {len(rooms)} rooms", flush=True)
    with args.ledger.open("a", encoding="utf-8") as file:
        talk = await ledger.talk_until(people, rooms, file, stop, args.interval)
    print(
        f"PASS {talk.acknowledged} messages acknowledged, {talk.retries} retries, slowest "
        f"{talk.slowest:.2f} s; on the way: {dict(talk.troubles) or 'no trouble'}",
        flush=True,
    )
    return 0


async def verify(args: argparse.Namespace, http: Http) -> int:
    entries = ledger.read_ledger(args.ledger)
    if not entries:
        raise StepFailed(f"{args.ledger} is empty: nothing was acknowledged")
    person = await ledger.log_in(http, accounts(args.users, 1)[0])
    print(f"PASS {await ledger.verify(person, entries)}", flush=True)
    return 0


async def main() -> int:
    args = arguments()
    quiet()
    run = {"full": full, "acked": acked, "verify": verify}[args.command]
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector) as session:
        try:
            return await run(args, Http(args.url.rstrip("/"), session))
        except StepFailed as reason:
            print(f"FAIL {reason}", flush=True)
            return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
