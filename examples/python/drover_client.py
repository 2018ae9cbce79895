"""A client of Drover in Python, to copy from: create, watch, cancel, read errors.

It knows nothing of Drover but the .proto files; README.md beside it says how to make the stubs.

    with Drover("controller.example:7440", "user.crt", "user.key", "ca.crt") as drover:
        migration = drover.create("5f0a3c8e-7d51-4c1b-9b0e-2f3a44d1c901", to="host-b")
        for message in drover.watch(migration.name):
            if message.WhichOneof("event") == "guest_switched":
                ...  # the guest runs at the destination: switch its network now
"""

import random
import time
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from drover.v1 import migration_pb2, migration_service_pb2, migration_service_pb2_grpc, policy_pb2

FINAL = {
    migration_pb2.MIGRATION_STATE_SUCCEEDED,
    migration_pb2.MIGRATION_STATE_FAILED,
    migration_pb2.MIGRATION_STATE_CANCELLED,
    migration_pb2.MIGRATION_STATE_GUEST_ENDED,
}

# A lost connection or a controller that is being restarted: what was asked for may or may not be done, ask again.
TRANSIENT = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}

# Seconds that one call may take. Watches have no deadline: heartbeats and keepalive tell a dead connection.
CALL = 30


class DroverError(Exception):
    """What Drover answered. Decide by `reason`, which is stable; the message is for people."""

    def __init__(self, error):
        self.code = error.code()
        self.reason, self.remedy, self.host, self.fields = "", "", "", {}
        super().__init__(error.details())
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info) and info.domain == "drover":
                self.reason = info.reason
                self.remedy = info.metadata.get("remedy", "")
                self.host = info.metadata.get("host", "")
            elif detail.Unpack(bad):
                self.fields = {field.field: field.description for field in bad.field_violations}


class Drover:
    """A connection to a controller. May be used by several threads."""

    def __init__(self, address, certificate, key, ca):
        def read(path):
            with open(path, "rb") as file:
                return file.read()

        credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(certificate))
        options = [
            # A connection that died silently is noticed, also while a watch has nothing to tell.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # A controller that was restarted is found again soon.
            ("grpc.max_reconnect_backoff_ms", 5_000),
        ]
        self._channel = grpc.secure_channel(address, credentials, options)
        self.migrations = migration_service_pb2_grpc.MigrationServiceStub(self._channel)

    def close(self):
        self._channel.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def create(self, guest_uuid, to, labels=None, policy=None, validate_only=False):
        """Starts a migration and returns its record. Raises DroverError.

        The request id makes a repeat harmless: an answer that was lost does not become a second migration.
        """
        request = migration_service_pb2.CreateMigrationRequest(
            migration=migration_pb2.Migration(
                guest_uuid=guest_uuid, destination_host=f"hosts/{to}", labels=labels or {}, policy=policy
            ),
            request_id=str(uuid.uuid4()),
            validate_only=validate_only,
        )
        return self._call(self.migrations.CreateMigration, request)

    def get(self, name):
        """The record of a migration, as it is now."""
        return self._call(self.migrations.GetMigration, migration_service_pb2.GetMigrationRequest(name=name))

    def cancel(self, name):
        """Asks for the undo of a migration; `watch` tells how it ends."""
        return self._call(self.migrations.CancelMigration, migration_service_pb2.CancelMigrationRequest(name=name))

    def watch(self, name, token=""):
        """All that happens to a migration, until it is at rest. A lost connection is taken up again where it broke:
        changes and the switch come exactly once; each connection begins with a snapshot of the record."""
        pauses = _pauses()
        while True:
            request = migration_service_pb2.WatchMigrationRequest(name=name, resume_token=token)
            try:
                for message in self.migrations.WatchMigration(request):
                    token = message.resume_token
                    pauses = _pauses()
                    yield message
                return  # The controller ends the stream when the migration is at rest.
            except grpc.RpcError as error:
                if error.code() in TRANSIENT:
                    time.sleep(next(pauses))
                elif error.code() == grpc.StatusCode.OUT_OF_RANGE:
                    token = ""  # Too old, or the controller's database was restored: begin with a fresh snapshot.
                else:
                    raise DroverError(error) from error

    def _call(self, method, request):
        pauses = _pauses()
        until = time.monotonic() + 4 * CALL
        while True:
            try:
                return method(request, timeout=CALL)
            except grpc.RpcError as error:
                if error.code() not in TRANSIENT or time.monotonic() > until:
                    raise DroverError(error) from error
                time.sleep(next(pauses))


def _pauses():
    """Between tries: longer and longer, and never all clients at once."""
    pause = 0.2
    while True:
        yield pause * random.uniform(0.5, 1.5)
        pause = min(pause * 2, 5)


def policy(bandwidth=0, max_downtime_seconds=None):
    """What is wanted of a migration; what is left out takes the controller's default."""
    wanted = policy_pb2.MigrationPolicy(bandwidth_limit_bytes_per_second=bandwidth)
    if max_downtime_seconds is not None:
        wanted.max_downtime.FromNanoseconds(int(max_downtime_seconds * 1e9))
    return wanted
