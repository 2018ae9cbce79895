//! What is read of a hello is what was written, and nothing else is taken for one.

use drover_proto::ids::{Attempt, MigrationId, Ticket};
use futures::FutureExt;
use proptest::prelude::*;
use uuid::Uuid;

use crate::tunnel::error::Refusal;
use crate::tunnel::hello::{Channel, HELLO_SIZE, Hello, HelloError, Reply};

fn channels() -> impl Strategy<Value = Channel> {
    prop_oneof![
        Just(Channel::Main),
        any::<u16>().prop_map(Channel::Multifd),
        Just(Channel::PostcopyPreempt),
        any::<u16>().prop_map(Channel::Nbd),
    ]
}

fn hellos() -> impl Strategy<Value = Hello> {
    (1u128.., any::<u32>(), any::<[u8; 32]>(), channels()).prop_map(|(id, attempt, ticket, channel)| Hello {
        migration: MigrationId::from_uuid(Uuid::from_u128(id)),
        attempt: Attempt(attempt),
        ticket: Ticket::from_slice(&ticket).unwrap(),
        channel,
    })
}

proptest! {
    #[test]
    fn a_hello_reads_back(hello in hellos()) {
        prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }

    /// Whatever is taken for a hello is written again as the very same bytes: no two hellos mean the same.
    #[test]
    fn no_bytes_break_the_reading(
        mut wire in prop::array::uniform32(any::<u8>()).prop_flat_map(|a| {
            prop::array::uniform32(any::<u8>()).prop_map(move |b| [a, b].concat())
        }),
        keep in 0usize..=12,
        hello in hellos(),
    ) {
        wire[..keep].copy_from_slice(&hello.encode()[..keep]);
        let wire: [u8; HELLO_SIZE] = wire.try_into().unwrap();
        if let Ok(read) = Hello::decode(&wire) {
            prop_assert_eq!(read.encode(), wire);
        }
    }

    #[test]
    fn a_reply_reads_back_and_takes_not_a_byte_more(detail in ".{0,300}", code in 1u8..=8, rest in any::<Vec<u8>>()) {
        let refusal = Refusal::from_code(code);
        let mut wire = Reply::Refused { refusal, detail: detail.clone() }.encode();
        wire.extend_from_slice(&rest);
        let mut reader = wire.as_slice();
        let read = Reply::read(&mut reader).now_or_never().unwrap().unwrap();
        let Reply::Refused { refusal: found, detail: text } = read else {
            return Err(TestCaseError::fail("accepted"));
        };
        prop_assert_eq!(found, refusal);
        prop_assert!(detail.starts_with(&text));
        prop_assert_eq!(reader, rest.as_slice());
    }
}

#[test]
fn foreign_bytes_are_named_for_what_they_are() {
    let hello = Hello {
        migration: MigrationId::generate(),
        attempt: Attempt(1),
        ticket: Ticket::generate().unwrap(),
        channel: Channel::Main,
    };
    let changed = |at: usize, to: u8| {
        let mut wire = hello.encode();
        wire[at] = to;
        Hello::decode(&wire)
    };
    assert_eq!(changed(0, b'X'), Err(HelloError::Magic));
    assert_eq!(changed(8, 2), Err(HelloError::Version(2)));
    assert_eq!(changed(9, 9), Err(HelloError::Channel { kind: 9, index: 0 }));
    assert_eq!(changed(11, 1), Err(HelloError::Channel { kind: 1, index: 1 }));
}
