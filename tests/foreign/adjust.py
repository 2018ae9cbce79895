"""Adjusts the blackout of a running migration again and again over one connection: one JSON object a line, with the
seconds since the epoch at which each call began and was answered.

    adjust.py MIGRATION MILLISECONDS...
"""

import argparse
import json
import sys
import time

import grpc

from drover.v1 import migration_service_pb2 as service
from drover.v1 import migration_service_pb2_grpc

# Seconds between two calls: whoever looks for the new value sees each of them.
PAUSE = 0.7


def connected(options):
    def read(path):
        with open(path, "rb") as file:
            return file.read()

    credentials = grpc.ssl_channel_credentials(read(options.ca), read(options.key), read(options.cert))
    stub = migration_service_pb2_grpc.MigrationServiceStub(grpc.secure_channel(options.controller, credentials))
    stub.GetMigration(service.GetMigrationRequest(name=options.name), timeout=20)
    return stub


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("name", help="name of a migration")
    parser.add_argument("milliseconds", type=int, nargs="+")
    for option in ("controller", "cert", "key", "ca"):
        parser.add_argument(f"--{option}", required=True)
    options = parser.parse_args()
    stub = connected(options)
    for value in options.milliseconds:
        request = service.AdjustMigrationRequest(name=options.name)
        request.max_downtime.FromMilliseconds(value)
        began = time.time()
        stub.AdjustMigration(request, timeout=20)
        print(json.dumps({"value": value, "began": began, "answered": time.time()}), flush=True)
        time.sleep(PAUSE)


if __name__ == "__main__":
    sys.exit(main())
