//! The safe layer against libvirt's own `test:///default`: guests without a QEMU, and no migration.

use std::sync::Arc;
use std::time::Duration;

use super::guest;
use super::monitor::Monitor;
use super::raw::{Connection, Domain};
use super::threads::{Pool, on_own_thread};
use crate::hypervisor::{ErrorClass, GuestState, Happened};

/// The test driver shares its guests among connections, so each test has a guest of its own.
fn guest_of(connection: &Arc<Connection>, name: &str) -> Domain {
    let xml = format!("<domain type='test'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os></domain>");
    Domain::define(connection, &xml).unwrap();
    Domain::find_by_name(connection, name).unwrap().unwrap()
}

fn connect() -> Arc<Connection> {
    Connection::open("test:///default").unwrap()
}

#[test]
fn a_guest_is_found_by_name_and_id_or_is_not_there() {
    let connection = connect();
    let domain = Domain::find_by_name(&connection, "test").unwrap().unwrap();
    let again = Domain::get(&connection, domain.id().unwrap()).unwrap();
    assert_eq!(again.name(), "test");
    assert_eq!(guest::state(&again).unwrap(), GuestState::Running);
    assert!(again.xml(0).unwrap().contains("<name>test</name>"));
    assert!(again.size().unwrap().memory > 0);

    assert!(Domain::find_by_name(&connection, "nobody").unwrap().is_none());
    let absent = "0190a1b2-0000-7000-8000-00000000abcd".parse().unwrap();
    assert!(Domain::find(&connection, absent).unwrap().is_none());
    assert_eq!(Domain::get(&connection, absent).unwrap_err().class, ErrorClass::NoGuest);
}

#[test]
fn what_libvirt_refuses_is_an_error_and_not_a_panic() {
    let connection = connect();
    let domain = Domain::find_by_name(&connection, "test").unwrap().unwrap();
    assert_eq!(domain.job_stats(0).unwrap_err().code, "VIR_ERR_NO_SUPPORT");
    assert_eq!(
        Connection::open("test:///nowhere/at/all").unwrap_err().class,
        ErrorClass::Unavailable
    );
    assert_eq!(Connection::open("a\0b").unwrap_err().code, "DROVER_NUL_IN_TEXT");
}

#[test]
fn a_definition_is_forgotten_and_absent_is_done() {
    let connection = connect();
    let domain = guest_of(&connection, "forgotten");
    assert!(domain.is_persistent().unwrap());
    // The test driver has none of the flags that keep things.
    domain.undefine(0).unwrap();
    guest::undefine(&domain).unwrap();
    assert!(Domain::find_by_name(&connection, "forgotten").unwrap().is_none());
}

#[test]
fn a_guest_is_started_from_its_definition_and_active_is_done() {
    let connection = connect();
    let domain = guest_of(&connection, "started");
    assert_eq!(guest::state(&domain).unwrap(), GuestState::ShutOff);
    guest::start(&domain).unwrap();
    assert_eq!(guest::state(&domain).unwrap(), GuestState::Running);
    assert!(domain.start().is_err(), "libvirt refuses to start it twice");
    guest::start(&domain).unwrap();
}

#[test]
fn every_guest_is_listed() {
    let connection = connect();
    let domain = guest_of(&connection, "listed");
    let names: Vec<String> = Domain::all(&connection).unwrap().iter().map(Domain::name).collect();
    assert!(
        names.contains(&"test".to_owned()) && names.contains(&"listed".to_owned()),
        "{names:?}"
    );
    domain.undefine(0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_and_name_the_guest() {
    let monitor = tokio::task::spawn_blocking(|| Monitor::start("test:///default").unwrap())
        .await
        .unwrap();
    let mut events = monitor.events();
    let pool = Pool::new("test:///default");
    let id = pool
        .call(|connection| {
            let domain = guest_of(connection, "watched");
            domain.undefine(0)?;
            domain.id()
        })
        .await
        .unwrap();
    let seen = async {
        loop {
            let event = events.recv().await.unwrap();
            if event.guest == id && matches!(event.what, Happened::Changed) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), seen)
        .await
        .expect("no event");
}

#[tokio::test]
async fn a_call_whose_future_is_dropped_runs_to_its_end() {
    let (ended, end) = tokio::sync::oneshot::channel();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let call = on_own_thread("test", move || {
        wait.recv().unwrap();
        ended.send(()).unwrap();
        Ok(())
    });
    drop(tokio::time::timeout(Duration::from_millis(10), call).await);
    go.send(()).unwrap();
    end.await.unwrap();
}

#[tokio::test]
async fn a_call_that_panics_is_ambiguous() {
    let error = on_own_thread::<()>("test", || panic!("on purpose")).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Ambiguous);
}
