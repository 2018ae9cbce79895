//! Steps and events: what was, in its order, for ever.

use drover_proto::v1;
use drover_proto::v1::watch_migration_response::Event as Happened;

use super::*;

pub(super) async fn steps_are_written_once_and_ended_once(store: &dyn Store) {
    let mut record = created(store, record(1)).await;
    let first = step(1);
    record = store
        .write(Write {
            step: StepWrite::Start(first.clone()),
            ..write(&record)
        })
        .await
        .unwrap();
    assert_eq!(store.steps(record.id).await.unwrap(), vec![first.clone()]);
    let twice = store
        .write(Write {
            step: StepWrite::Start(first.clone()),
            ..write(&record)
        })
        .await;
    assert!(matches!(twice, Err(StoreError::Conflict)));

    let end = StepEnd {
        number: 1,
        ended: now(),
        outcome: StepOutcome::Unknown,
        detail: "the host did not answer".to_owned(),
    };
    record = store
        .write(Write {
            step: StepWrite::End(end.clone()),
            ..write(&record)
        })
        .await
        .unwrap();
    let ended = Step {
        end: Some((end.ended, end.outcome)),
        detail: end.detail.clone(),
        ..first
    };
    assert_eq!(store.steps(record.id).await.unwrap(), vec![ended]);
    let twice = store
        .write(Write {
            step: StepWrite::End(end),
            ..write(&record)
        })
        .await;
    assert!(matches!(twice, Err(StoreError::Conflict)));
    assert_eq!(
        store.migration(record.id).await.unwrap(),
        Some(record),
        "a refused step writes nothing else"
    );
}

pub(super) async fn events_come_in_order_and_from_where_one_stopped(store: &dyn Store) {
    let mut record = created(store, record(1)).await;
    let event = |name: &str| {
        let migration = v1::Migration {
            guest_name: name.to_owned(),
            ..Default::default()
        };
        Event {
            sequence: 0,
            time: now(),
            what: Happened::Changed(migration),
        }
    };
    let name = |event: &Event| match &event.what {
        Happened::Changed(migration) => migration.guest_name.clone(),
        other @ (Happened::Snapshot(_)
        | Happened::Progress(_)
        | Happened::GuestSwitched(_)
        | Happened::Heartbeat(_)) => {
            panic!("{other:?}")
        }
    };
    record = store
        .write(Write {
            events: vec![event("a"), event("b")],
            ..write(&record)
        })
        .await
        .unwrap();
    record = store.write(write(&record)).await.unwrap();
    store
        .write(Write {
            events: vec![event("c")],
            ..write(&record)
        })
        .await
        .unwrap();

    let all = store.events(record.id, 0, 100).await.unwrap();
    assert_eq!(all.iter().map(name).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(all.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    let rest = store.events(record.id, all[0].sequence, 1).await.unwrap();
    assert_eq!(rest.iter().map(name).collect::<Vec<_>>(), ["b"]);
    assert!(store.events(record.id, all[2].sequence, 100).await.unwrap().is_empty());
}
