//! Who may call what: one table over all RPCs, and the layer that asks it before anything else of a server does.
//!
//! Promise: what has no row is refused. The test at the end proves that every RPC has one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use crate::failure::{Failure, Reason};
use crate::identity::Identity;
use crate::roles::Role;
pub use crate::roles::Roles;
use crate::serve::Peer;

/// Somebody who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A controller.
    Controller,
    /// The agent of any host. Where it must be a certain one, the service compares.
    AnyAgent,
    /// Any user, with roles or without.
    AnyUser,
    /// A user with this role.
    With(Role),
}

const CONTROLLER: &[Caller] = &[Caller::Controller];
const AGENTS: &[Caller] = &[Caller::AnyAgent];
const USERS: &[Caller] = &[Caller::AnyUser];
const ANYBODY: &[Caller] = &[Caller::Controller, Caller::AnyAgent, Caller::AnyUser];
const READ: &[Caller] = &[
    Caller::With(Role::Viewer),
    Caller::With(Role::Operator),
    Caller::With(Role::Admin),
    Caller::With(Role::Scheduler),
];
const MOVE: &[Caller] = &[
    Caller::With(Role::Operator),
    Caller::With(Role::Admin),
    Caller::With(Role::Scheduler),
];
const OPERATE: &[Caller] = &[Caller::With(Role::Operator), Caller::With(Role::Admin)];

/// Full RPC path → who may call it.
pub const TABLE: &[(&str, &[Caller])] = &[
    ("/drover.v1.MigrationService/CheckMigration", READ),
    ("/drover.v1.MigrationService/CreateMigration", MOVE),
    ("/drover.v1.MigrationService/GetMigration", READ),
    ("/drover.v1.MigrationService/ListMigrations", READ),
    ("/drover.v1.MigrationService/WatchMigration", READ),
    ("/drover.v1.MigrationService/AdjustMigration", MOVE),
    ("/drover.v1.MigrationService/CancelMigration", MOVE),
    ("/drover.v1.MigrationService/RetryMigration", MOVE),
    // A word about a host that Drover cannot check: people only.
    ("/drover.v1.MigrationService/ResolveMigration", OPERATE),
    // The service also compares the host with the caller's identity.
    ("/drover.v1.HostService/RegisterHost", AGENTS),
    ("/drover.v1.HostService/ListHosts", READ),
    ("/drover.v1.HostService/GetHost", READ),
    ("/drover.v1.HostService/CordonHost", OPERATE),
    ("/drover.v1.HostService/UncordonHost", OPERATE),
    ("/drover.v1.HostService/DrainHost", OPERATE),
    ("/drover.v1.HostService/ListGuests", READ),
    ("/drover.v1.HostService/GetGuestOwner", READ),
    ("/drover.agent.v1.AgentService/GetAgentStatus", CONTROLLER),
    ("/drover.agent.v1.AgentService/InspectHost", CONTROLLER),
    ("/drover.agent.v1.AgentService/ListGuests", CONTROLLER),
    ("/drover.agent.v1.AgentService/InspectGuest", CONTROLLER),
    ("/drover.agent.v1.AgentService/CheckIncoming", CONTROLLER),
    ("/drover.agent.v1.AgentService/WriteStorageProbes", CONTROLLER),
    ("/drover.agent.v1.AgentService/ReadStorageProbes", CONTROLLER),
    ("/drover.agent.v1.AgentService/RemoveStorageProbes", CONTROLLER),
    ("/drover.agent.v1.AgentService/ProbePeer", CONTROLLER),
    ("/drover.agent.v1.AgentService/SampleGuest", CONTROLLER),
    ("/drover.agent.v1.AgentService/BeginOutgoing", CONTROLLER),
    ("/drover.agent.v1.AgentService/PrepareIncoming", CONTROLLER),
    ("/drover.agent.v1.AgentService/StartMigrate", CONTROLLER),
    ("/drover.agent.v1.AgentService/AdjustOutgoing", CONTROLLER),
    ("/drover.agent.v1.AgentService/WatchOutgoing", CONTROLLER),
    ("/drover.agent.v1.AgentService/GetMigrationStatus", CONTROLLER),
    ("/drover.agent.v1.AgentService/HandOver", CONTROLLER),
    ("/drover.agent.v1.AgentService/FinishIncoming", CONTROLLER),
    ("/drover.agent.v1.AgentService/AbortOutgoing", CONTROLLER),
    ("/drover.agent.v1.AgentService/RevokeIncoming", CONTROLLER),
    ("/drover.agent.v1.AgentService/SettleOutgoing", CONTROLLER),
    ("/drover.agent.v1.AgentService/SettleIncoming", CONTROLLER),
    ("/drover.agent.v1.AgentService/CloseMigration", CONTROLLER),
    // The service also compares the caller's host with the one that the ticket was made for.
    ("/drover.agent.v1.PeerService/HandOverGuest", AGENTS),
    ("/drover.agent.v1.PeerService/MeasureLink", AGENTS),
    ("/drover.agent.v1.PeerService/ReopenStream", AGENTS),
    ("/grpc.health.v1.Health/Check", ANYBODY),
    ("/grpc.health.v1.Health/Watch", ANYBODY),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", USERS),
];

impl Caller {
    fn is(self, identity: &Identity, roles: &Roles) -> bool {
        match (self, identity) {
            (Self::Controller, Identity::Controller)
            | (Self::AnyAgent, Identity::Agent(_))
            | (Self::AnyUser, Identity::User(_)) => true,
            (Self::With(role), Identity::User(user)) => roles.has(user, role),
            (Self::Controller | Self::AnyAgent | Self::AnyUser | Self::With(_), _) => false,
        }
    }
}

/// Whether this identity may call this path.
pub fn decide(path: &str, identity: &Identity, roles: &Roles) -> Result<(), Failure> {
    let Some((_, callers)) = TABLE.iter().find(|(row, _)| *row == path) else {
        return Err(Failure::new(Reason::Unimplemented, "there is no such RPC"));
    };
    if callers.iter().any(|caller| caller.is(identity, roles)) {
        return Ok(());
    }
    let failure = Failure::new(Reason::PermissionDenied, format!("{identity} may not call {path}"));
    match identity {
        Identity::User(user) => Err(failure.with_remedy(format!(
            "give {user} a role in [roles] of the controller's configuration"
        ))),
        Identity::Controller | Identity::Agent(_) => Err(failure),
    }
}

/// The layer that refuses what the table does not allow. Agents build it with empty `Roles`.
#[derive(Clone, Debug, Default)]
pub struct Authorize {
    roles: Arc<Roles>,
}

impl Authorize {
    pub fn new(roles: Roles) -> Self {
        Self { roles: Arc::new(roles) }
    }
}

impl<S> Layer<S> for Authorize {
    type Service = Authorized<S>;

    fn layer(&self, inner: S) -> Authorized<S> {
        Authorized {
            inner,
            roles: Arc::clone(&self.roles),
        }
    }
}

/// A service behind `Authorize`.
#[derive(Clone, Debug)]
pub struct Authorized<S> {
    inner: S,
    roles: Arc<Roles>,
}

impl<S, B> Service<Request<B>> for Authorized<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let decision = match request.extensions().get::<Peer>() {
            Some(peer) => decide(request.uri().path(), &peer.identity, &self.roles),
            None => Err(Failure::new(
                Reason::Unauthenticated,
                "the connection shows no identity",
            )),
        };
        match decision {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(failure) => {
                tracing::warn!(
                    path = request.uri().path(),
                    reason = failure.reason.name(),
                    "refused: {failure}"
                );
                let refusal = Status::from(failure).into_http();
                Box::pin(async move { Ok(refusal) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// Every RPC of a descriptor set, as a path.
    fn paths(descriptors: &[u8]) -> Vec<String> {
        let set = FileDescriptorSet::decode(descriptors).unwrap();
        let mut paths = Vec::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    paths.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        paths
    }

    #[test]
    fn every_rpc_has_a_row_and_no_row_is_stale() {
        let served: BTreeSet<String> = [
            paths(crate::FILE_DESCRIPTOR_SET),
            paths(tonic_health::pb::FILE_DESCRIPTOR_SET),
            paths(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET),
        ]
        .concat()
        .into_iter()
        .collect();
        let rows: BTreeSet<String> = TABLE.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(rows.len(), TABLE.len(), "a row is there twice");
        assert_eq!(
            served.difference(&rows).collect::<Vec<_>>(),
            Vec::<&String>::new(),
            "RPCs without a row"
        );
        assert_eq!(
            rows.difference(&served).collect::<Vec<_>>(),
            Vec::<&String>::new(),
            "rows without an RPC"
        );
        assert!(TABLE.iter().all(|(_, callers)| !callers.is_empty()));
    }

    fn user(name: &str) -> Identity {
        Identity::User(name.to_owned())
    }

    fn roles() -> Roles {
        Roles::default()
            .with("vera", Role::Viewer)
            .with("otto", Role::Operator)
            .with("alice", Role::Admin)
            .with("nova", Role::Scheduler)
    }

    #[test]
    fn each_role_may_do_its_part() {
        let agent = Identity::Agent("host-1".parse().unwrap());
        let callers = [
            Identity::Controller,
            agent,
            user("nobody"),
            user("vera"),
            user("otto"),
            user("alice"),
            user("nova"),
        ];
        // In the order of `callers`.
        for (path, allowed) in [
            (
                "/drover.agent.v1.AgentService/StartMigrate",
                [true, false, false, false, false, false, false],
            ),
            (
                "/drover.agent.v1.PeerService/HandOverGuest",
                [false, true, false, false, false, false, false],
            ),
            (
                "/drover.v1.HostService/RegisterHost",
                [false, true, false, false, false, false, false],
            ),
            (
                "/drover.v1.HostService/ListHosts",
                [false, false, false, true, true, true, true],
            ),
            (
                "/drover.v1.MigrationService/CreateMigration",
                [false, false, false, false, true, true, true],
            ),
            (
                "/drover.v1.MigrationService/ResolveMigration",
                [false, false, false, false, true, true, false],
            ),
            (
                "/drover.v1.HostService/DrainHost",
                [false, false, false, false, true, true, false],
            ),
            ("/grpc.health.v1.Health/Check", [true; 7]),
            (
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                [false, false, true, true, true, true, true],
            ),
            ("/drover.v1.MigrationService/NoSuchRpc", [false; 7]),
            ("", [false; 7]),
        ] {
            for (identity, expected) in callers.iter().zip(allowed) {
                assert_eq!(decide(path, identity, &roles()).is_ok(), expected, "{identity} {path}");
            }
        }
    }

    /// What somebody may call of the public API and of other agents' services, in the order of the table.
    fn allowed(identity: &Identity) -> Vec<&'static str> {
        let paths = TABLE.iter().map(|(path, _)| *path);
        let allowed = paths.filter(|path| decide(path, identity, &roles()).is_ok());
        allowed.filter_map(|path| path.rsplit('/').next()).collect()
    }

    const HEALTH: [&str; 2] = ["Check", "Watch"];

    #[test]
    fn the_key_of_a_host_registers_it_hands_guests_over_measures_its_links_and_nothing_else() {
        let agent = Identity::Agent("host-1".parse().unwrap());
        let mine = ["RegisterHost", "HandOverGuest", "MeasureLink", "ReopenStream"];
        assert_eq!(allowed(&agent), [&mine[..], &HEALTH].concat());
    }

    #[test]
    fn the_key_of_the_controller_commands_agents_and_nothing_else() {
        let rows = TABLE.iter().map(|(path, _)| *path);
        let commands = rows.filter_map(|path| path.strip_prefix("/drover.agent.v1.AgentService/"));
        let commands: Vec<_> = commands.chain(HEALTH).collect();
        assert_eq!(allowed(&Identity::Controller), commands);
    }

    #[test]
    fn a_user_may_what_the_role_may_and_nothing_else() {
        let anybody = [&HEALTH[..], &["ServerReflectionInfo"]].concat();
        let looks = [
            "CheckMigration",
            "GetMigration",
            "ListMigrations",
            "WatchMigration",
            "ListHosts",
            "GetHost",
            "ListGuests",
            "GetGuestOwner",
        ];
        let moves = [
            "CreateMigration",
            "AdjustMigration",
            "CancelMigration",
            "RetryMigration",
        ];
        let operates = ["ResolveMigration", "CordonHost", "UncordonHost", "DrainHost"];
        let everything = [&anybody[..], &looks, &moves, &operates].concat();
        for (name, expected) in [
            ("nobody", anybody.clone()),
            ("vera", [&anybody[..], &looks].concat()),
            ("nova", [&anybody[..], &looks, &moves].concat()),
            ("otto", everything.clone()),
            ("alice", everything),
        ] {
            let (given, expected): (BTreeSet<_>, BTreeSet<_>) = (
                allowed(&user(name)).into_iter().collect(),
                expected.into_iter().collect(),
            );
            assert_eq!(given, expected, "{name}");
        }
    }

    #[test]
    fn roles_are_read_as_written() {
        let roles: Roles = serde_json::from_str(r#"{"admin": ["alice"], "viewer": ["alice", "vera"]}"#).unwrap();
        assert!(roles.has("alice", Role::Admin) && roles.has("alice", Role::Viewer) && roles.has("vera", Role::Viewer));
        assert!(!roles.has("vera", Role::Admin) && !roles.has("", Role::Viewer));
        assert!(serde_json::from_str::<Roles>(r#"{"root": ["eve"]}"#).is_err());
    }
}
