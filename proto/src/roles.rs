//! Which users have which roles: the controller's `[roles]` table.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;

/// What a user may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Looks.
    Viewer,
    /// Moves guests.
    Operator,
    /// May do everything that a user may.
    Admin,
    /// A program that places guests.
    Scheduler,
}

/// User name → roles. A user that is not in it has none.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "RoleLists")]
pub struct Roles {
    by_user: HashMap<String, BTreeSet<Role>>,
}

/// As it is written: for each role its users.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RoleLists {
    viewer: Vec<String>,
    operator: Vec<String>,
    admin: Vec<String>,
    scheduler: Vec<String>,
}

impl Roles {
    /// Gives a user one more role.
    #[must_use]
    pub fn with(mut self, user: impl Into<String>, role: Role) -> Self {
        self.by_user.entry(user.into()).or_default().insert(role);
        self
    }

    pub fn has(&self, user: &str, role: Role) -> bool {
        self.by_user.get(user).is_some_and(|roles| roles.contains(&role))
    }
}

impl From<RoleLists> for Roles {
    fn from(lists: RoleLists) -> Self {
        let named = [
            (Role::Viewer, lists.viewer),
            (Role::Operator, lists.operator),
            (Role::Admin, lists.admin),
            (Role::Scheduler, lists.scheduler),
        ];
        let pairs = named
            .into_iter()
            .flat_map(|(role, users)| users.into_iter().map(move |user| (user, role)));
        pairs.fold(Self::default(), |roles, (user, role)| roles.with(user, role))
    }
}
