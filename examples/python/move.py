#!/usr/bin/env python3
"""Moves a guest and tells what happens, one JSON object a line. `--cancel-at 20` cancels when 20 % are sent.

Exit code: 0 moved, 1 not moved, 2 refused by Drover.
"""

import argparse
import json
import sys

from drover.v1 import migration_pb2
from drover_client import Drover, DroverError, policy


def tell(event, **more):
    print(json.dumps({"event": event, **more}), flush=True)


def state(migration):
    return migration_pb2.MigrationState.Name(migration.state).removeprefix("MIGRATION_STATE_")


def follow(drover, migration, cancel_at):
    """Until it is at rest; returns the last record."""
    for message in drover.watch(migration.name):
        event = message.WhichOneof("event")
        if event in ("snapshot", "changed"):
            migration = getattr(message, event)
            tell(event, state=state(migration), phase=migration.phase, token=message.resume_token)
        elif event == "progress":
            progress = message.progress
            sent, left = progress.memory_sent_bytes, progress.memory_remaining_bytes
            percent = 100 * sent // max(sent + left, 1)
            tell(event, sent=sent, left=left, percent=percent)
            if cancel_at is not None and percent >= cancel_at:
                cancel_at = None
                tell("cancelling", state=state(drover.cancel(migration.name)))
        elif event == "guest_switched":
            blackout = message.guest_switched.blackout.ToNanoseconds() / 1e6
            tell(event, host=message.guest_switched.host, blackout_ms=blackout)
    return migration


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("guest", help="UUID of the guest")
    parser.add_argument("to", help="host that it moves to")
    parser.add_argument("--controller", required=True, metavar="HOST:PORT")
    for file in ("cert", "key", "ca"):
        parser.add_argument(f"--{file}", required=True, metavar="FILE")
    parser.add_argument("--bandwidth", type=int, default=0, metavar="BYTES", help="limit, in bytes per second")
    parser.add_argument("--cancel-at", type=int, metavar="PERCENT", help="cancel when so much is sent")
    options = parser.parse_args()
    with Drover(options.controller, options.cert, options.key, options.ca) as drover:
        try:
            labels = {"made-by": "move.py"}
            migration = drover.create(options.guest, options.to, labels, policy(bandwidth=options.bandwidth))
            tell("created", name=migration.name)
            end = follow(drover, migration, options.cancel_at)
        except DroverError as error:
            refused = {"reason": error.reason, "code": error.code.name, "fields": error.fields}
            tell("refused", **refused, message=str(error), remedy=error.remedy, host=error.host)
            return 2
    tell("end", state=state(end), host=end.guest_host, reason=end.error.reason)
    return 0 if end.state == migration_pb2.MIGRATION_STATE_SUCCEEDED else 1


if __name__ == "__main__":
    sys.exit(main())
