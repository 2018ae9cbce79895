//! Decides whether a channel may come in: one registered migration, its ticket, and which channels it has.
//!
//! Nothing here waits or touches a socket.

use std::collections::HashSet;

use drover_proto::identity::Identity;
use drover_proto::ids::{Attempt, HostId, Ticket};
use tokio::time::Instant;

use super::error::Refusal;
use super::hello::{Channel, Hello};

/// More channels than any QEMU opens (multifd has at most 255), and few enough to bound memory.
const MOST_CHANNELS: usize = 512;

/// Which channels a migration has besides that for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    Memory,
    MemoryAndDisks,
    /// Of a guest that is shut off: files, and nothing else.
    Files,
}

/// Who may come in, and which channels are there.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) attempt: Attempt,
    pub(crate) ticket: Ticket,
    pub(crate) source: HostId,
    pub(crate) expires: Instant,
    pub(crate) takes: Takes,
    revoked: bool,
    /// The main channel was connected to QEMU: from then on the others may come and nothing expires.
    main: bool,
    channels: HashSet<Channel>,
}

impl Entry {
    pub(crate) fn new(attempt: Attempt, ticket: Ticket, source: HostId, expires: Instant, takes: Takes) -> Self {
        let channels = HashSet::new();
        Self {
            attempt,
            ticket,
            source,
            expires,
            takes,
            revoked: false,
            main: false,
            channels,
        }
    }

    /// Takes the channel's place, or says why not. Only who holds the ticket learns more than that it is not valid.
    pub(crate) fn claim(&mut self, hello: &Hello, peer: &Identity, now: Instant) -> Result<(), Refusal> {
        // Both are looked at in any case: the time taken tells nothing.
        let right_ticket = self.ticket == hello.ticket;
        let right_peer = *peer == Identity::Agent(self.source.clone());
        if !(right_ticket & right_peer) {
            return Err(Refusal::Ticket);
        }
        if hello.attempt != self.attempt {
            return Err(Refusal::Attempt);
        }
        if self.revoked {
            return Err(Refusal::Revoked);
        }
        if self.has_expired(now) {
            return Err(Refusal::Expired);
        }
        let in_order = match (self.takes, hello.channel) {
            // A new connection takes the place of one that nobody has noticed to be dead.
            (Takes::Files, Channel::Files) => return Ok(()),
            (Takes::Files, _) | (_, Channel::Files) => false,
            (_, Channel::Main) => true,
            (_, Channel::Multifd(_) | Channel::PostcopyPreempt) => self.main,
            (takes, Channel::Nbd(_)) => takes == Takes::MemoryAndDisks,
        };
        if !in_order || self.channels.len() >= MOST_CHANNELS || !self.channels.insert(hello.channel) {
            return Err(Refusal::Order);
        }
        Ok(())
    }

    /// Gives the place back: QEMU could not be connected.
    pub(crate) fn release(&mut self, channel: Channel) {
        self.channels.remove(&channel);
    }

    /// The channel reached QEMU. False: it was revoked meanwhile, so the channel has to go.
    pub(crate) fn attach(&mut self, channel: Channel) -> bool {
        if matches!(channel, Channel::Main | Channel::Files) && !self.revoked {
            self.main = true;
        }
        !self.revoked
    }

    pub(crate) fn revoke(&mut self) {
        self.revoked = true;
    }

    /// Disks are copied before the main channel comes: while they are, nothing expires either.
    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        !self.main && self.channels.is_empty() && now >= self.expires
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use drover_proto::ids::MigrationId;

    use super::*;

    fn entry() -> (Entry, Hello, Identity) {
        let ticket = Ticket::generate().unwrap();
        let source: HostId = "a".parse().unwrap();
        let expires = Instant::now() + Duration::from_secs(60);
        let hello = Hello {
            migration: MigrationId::generate(),
            attempt: Attempt(2),
            ticket: ticket.clone(),
            channel: Channel::Main,
        };
        (
            Entry::new(Attempt(2), ticket, source.clone(), expires, Takes::MemoryAndDisks),
            hello,
            Identity::Agent(source),
        )
    }

    #[test]
    fn only_the_right_agent_with_the_right_ticket_and_attempt_comes_in() {
        let (mut entry, hello, peer) = entry();
        let now = Instant::now();
        let other_ticket = Hello {
            ticket: Ticket::generate().unwrap(),
            ..hello.clone()
        };
        assert_eq!(entry.claim(&other_ticket, &peer, now), Err(Refusal::Ticket));
        for stranger in [
            Identity::Agent("b".parse().unwrap()),
            Identity::Controller,
            Identity::User("a".into()),
        ] {
            assert_eq!(entry.claim(&hello, &stranger, now), Err(Refusal::Ticket));
        }
        let other_attempt = Hello {
            attempt: Attempt(1),
            ..hello.clone()
        };
        assert_eq!(entry.claim(&other_attempt, &peer, now), Err(Refusal::Attempt));
        assert_eq!(entry.claim(&hello, &peer, now), Ok(()));
    }

    #[test]
    fn memory_channels_wait_for_the_main_one_and_none_comes_twice() {
        let (mut entry, hello, peer) = entry();
        let now = Instant::now();
        let on = |channel| Hello {
            channel,
            ..hello.clone()
        };
        assert_eq!(entry.claim(&on(Channel::Multifd(0)), &peer, now), Err(Refusal::Order));
        assert_eq!(entry.claim(&on(Channel::Nbd(0)), &peer, now), Ok(()));
        assert_eq!(entry.claim(&on(Channel::Main), &peer, now), Ok(()));
        assert_eq!(entry.claim(&on(Channel::Multifd(0)), &peer, now), Err(Refusal::Order));
        assert!(entry.attach(Channel::Main));
        assert_eq!(entry.claim(&on(Channel::Multifd(0)), &peer, now), Ok(()));
        assert_eq!(entry.claim(&on(Channel::Multifd(0)), &peer, now), Err(Refusal::Order));
        assert_eq!(entry.claim(&on(Channel::Main), &peer, now), Err(Refusal::Order));
    }

    #[test]
    fn a_ticket_expires_unless_a_channel_came() {
        let (mut entry, hello, peer) = entry();
        let late = entry.expires;
        assert_eq!(entry.claim(&hello, &peer, late), Err(Refusal::Expired));
        assert_eq!(entry.claim(&hello, &peer, Instant::now()), Ok(()));
        entry.attach(Channel::Main);
        assert!(!entry.has_expired(late));
        let second = Hello {
            channel: Channel::Multifd(0),
            ..hello
        };
        assert_eq!(entry.claim(&second, &peer, late), Ok(()));
    }

    #[test]
    fn a_revoked_migration_takes_nothing_any_more() {
        let (mut entry, hello, peer) = entry();
        assert_eq!(entry.claim(&hello, &peer, Instant::now()), Ok(()));
        entry.revoke();
        assert!(!entry.attach(Channel::Main));
        let second = Hello {
            channel: Channel::Nbd(0),
            ..hello
        };
        assert_eq!(entry.claim(&second, &peer, Instant::now()), Err(Refusal::Revoked));
    }
}
