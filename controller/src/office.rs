//! The term: whether this controller is in office, and what it shows the agents as proof.
//!
//! Promise: once an agent has answered that somebody else is in office, no further command leaves this process.

use drover_proto::agent::v1::Fence;
use drover_proto::failure::{Failure, Reason};
use tokio::sync::watch;

use crate::store::Term;

/// Whether this controller may command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    InOffice(Term),
    /// It looks and answers, and commands nothing. Why, for people.
    ReadOnly(String),
}

/// What all parts of the process ask before they command.
pub struct Office {
    standing: watch::Sender<Standing>,
}

impl Default for Office {
    /// Not in office before the start has asked around.
    fn default() -> Self {
        Self {
            standing: watch::Sender::new(Standing::ReadOnly("the controller is starting".to_owned())),
        }
    }
}

impl Office {
    /// What was found at the start.
    pub fn enter(&self, standing: Standing) {
        self.standing.send_replace(standing);
    }

    /// The proof that goes with every command.
    pub fn fence(&self) -> Result<Fence, Failure> {
        match &*self.standing.borrow() {
            Standing::InOffice(term) => Ok(Fence {
                term: term.number,
                store_instance: term.instance.to_string(),
                lease: 0,
            }),
            Standing::ReadOnly(why) => Err(Failure::new(Reason::StaleTerm, why.clone())
                .with_remedy("use the controller that is in office, or restart this one if it should be")),
        }
    }

    /// Somebody else is in office: command nothing any more.
    pub fn leave(&self, why: &str) {
        self.standing.send_if_modified(|standing| match standing {
            Standing::InOffice(term) => {
                tracing::error!(term = term.number, "this controller is no longer in office: {why}");
                *standing = Standing::ReadOnly(why.to_owned());
                true
            }
            Standing::ReadOnly(_) => false,
        });
    }

    pub fn is_in_office(&self) -> bool {
        matches!(&*self.standing.borrow(), Standing::InOffice(_))
    }

    /// Returns when this controller is not in office.
    pub async fn left(&self) {
        let mut standing = self.standing.subscribe();
        // The sender is part of `self`: the wait cannot fail.
        let _ = standing
            .wait_for(|standing| matches!(standing, Standing::ReadOnly(_)))
            .await;
    }
}
