"""What a careless or hostile client sends to a controller, and what it gets: one JSON object a line.

    hostile.py requests GUEST_UUID      every odd request once
    hostile.py watchers MIGRATION       many watchers with a connection each, some of which do not read
"""

import argparse
import json
import sys
import threading

import grpc

from drover.v1 import migration_pb2, migration_service_pb2 as service
from drover.v1 import migration_service_pb2_grpc
from drover_client import DroverError

SERVICE = "/drover.v1.MigrationService/"
LOCK = threading.Lock()


def tell(**what):
    with LOCK:
        print(json.dumps(what), flush=True)


def channel(options):
    def read(path):
        with open(path, "rb") as file:
            return file.read()

    credentials = grpc.ssl_channel_credentials(read(options.ca), read(options.key), read(options.cert))
    # Connections of its own, not those of other channels of this process.
    return grpc.secure_channel(options.controller, credentials, [("grpc.use_local_subchannel_pool", 1)])


def requests(options):
    to = channel(options)
    stub = migration_service_pb2_grpc.MigrationServiceStub(to)

    def attempt(name, call, show=lambda _: {}):
        try:
            tell(request=name, code="OK", **show(call()))
        except grpc.RpcError as error:
            told = DroverError(error)
            tell(request=name, code=told.code.name, reason=told.reason, fields=told.fields, message=str(told))

    def raw(method, data):
        call = to.unary_unary(SERVICE + method, request_serializer=None, response_deserializer=None)
        return call(data, timeout=20)

    def listed(**fields):
        return stub.ListMigrations(service.ListMigrationsRequest(**fields), timeout=20)

    check = service.CheckMigrationRequest(guest_uuid=options.name)
    count = lambda page: {"entries": len(page.migrations)}
    attempt("deadline", lambda: stub.CheckMigration(check, timeout=0.02))
    large = migration_pb2.Migration(guest_uuid=options.name, labels={"large": "x" * (5 << 20)})
    attempt("too large", lambda: stub.CreateMigration(service.CreateMigrationRequest(migration=large), timeout=20))
    # Field 999 of wire type 2: a newer client's.
    unknown = service.ListMigrationsRequest(page_size=1).SerializeToString() + b"\xba\x3e\x03new"
    attempt("unknown field", lambda: raw("ListMigrations", unknown), lambda page: {"bytes": len(page)})
    attempt("bad UTF-8", lambda: raw("GetMigration", b"\x0a\x02\xff\xfe"))
    attempt("no protobuf", lambda: raw("GetMigration", b"\x0a\xff"))
    attempt("no such method", lambda: raw("FormatDisk", b""))
    attempt("page of everything", lambda: listed(page_size=2**31 - 1), count)
    attempt("page of less than nothing", lambda: listed(page_size=-1))
    attempt("forged page token", lambda: listed(page_token="Zm9yZ2Vk"))
    attempt("filter without end", lambda: listed(filter="state = RUNNING AND " * 5000 + "state = RUNNING"))
    name = "migrations/" + "0" * 100_000
    attempt("long name", lambda: stub.GetMigration(service.GetMigrationRequest(name=name), timeout=20))
    many = service.CheckMigrationRequest(guest_uuid=options.name, destination_hosts=["hosts/none"] * 100_000)
    attempt("a hundred thousand hosts", lambda: stub.CheckMigration(many, timeout=60))
    attempt("good", lambda: stub.CheckMigration(check, timeout=60), lambda answer: {"acceptable": acceptable(answer)})


def acceptable(answer: "service.CheckMigrationResponse"):
    return [one.destination_host for one in answer.destinations if one.acceptable]


def watchers(options):
    """Those that do not read begin to when the others have seen the end."""
    request = service.WatchMigrationRequest(name=options.name)
    ended = threading.Event()
    ready = threading.Barrier(options.count + 1)

    def watch(number):
        slow = number < options.slow
        seen = {"snapshot": 0, "changed": 0, "progress": 0, "guest_switched": 0, "heartbeat": 0}
        problem, state = "", 0
        with channel(options) as to:
            stream = migration_service_pb2_grpc.MigrationServiceStub(to).WatchMigration(request)
            try:
                for message in stream:
                    event = message.WhichOneof("event")
                    seen[event] += 1
                    state = message.changed.state if event == "changed" else state
                    if event == "snapshot":
                        ready.wait()
                        if slow:
                            ended.wait()
            except grpc.RpcError as error:
                problem = f"{error.code().name}: {error.details()}"
                ready.abort()
        tell(watcher=number, slow=slow, state=state, problem=problem, **seen)

    threads = [threading.Thread(target=watch, args=(number,)) for number in range(options.count)]
    for thread in threads:
        thread.start()
    ready.wait()
    tell(ready=options.count)
    for thread in threads[options.slow :]:
        thread.join()
    tell(readers_are_done=options.count - options.slow)
    ended.set()
    for thread in threads[: options.slow]:
        thread.join()
    tell(done=options.count)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["requests", "watchers"])
    parser.add_argument("name", help="UUID of a guest, or name of a migration")
    for option in ("controller", "cert", "key", "ca"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--slow", type=int, default=20)
    options = parser.parse_args()
    {"requests": requests, "watchers": watchers}[options.what](options)


if __name__ == "__main__":
    sys.exit(main())
