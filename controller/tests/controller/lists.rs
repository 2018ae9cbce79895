//! Lists of the API: pages, filters, and what nobody could be asked about.

use drover_proto::failure::Reason;
use drover_proto::v1::{self, GetGuestOwnerRequest, ListGuestsRequest, ListMigrationsRequest};

use super::lab::{Lab, reason, wish};
use super::world::GUEST;

#[tokio::test(flavor = "multi_thread")]
async fn migrations_are_listed_in_pages_and_by_filter() {
    let lab = Lab::new().await;
    let mut names = Vec::new();
    for _ in 0..3 {
        lab.world.lock().host("host-2").shares = false;
        let created = lab.create().await;
        lab.at_rest(&created.name).await;
        names.insert(0, created.name);
    }
    let list = async |filter: &str, size: i32, token: &str| {
        let request = ListMigrationsRequest {
            page_size: size,
            page_token: token.to_owned(),
            filter: filter.to_owned(),
        };
        lab.migrations()
            .list_migrations(request)
            .await
            .map(tonic::Response::into_inner)
    };
    let first = list("state = FAILED", 2, "").await.unwrap();
    let second = list("state = FAILED", 2, &first.next_page_token).await.unwrap();
    let all: Vec<_> = first
        .migrations
        .iter()
        .chain(&second.migrations)
        .map(|m| m.name.clone())
        .collect();
    assert_eq!(all, names);
    assert!(second.next_page_token.is_empty());
    assert!(first.migrations[0].checks.is_empty() && !first.migrations[0].phases.is_empty());
    assert!(list("state = SUCCEEDED", 0, "").await.unwrap().migrations.is_empty());
    let refused = list("state = RUNNING", 2, &first.next_page_token).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::PageTokenInvalid);
    assert_eq!(
        reason(&list("nonsense", 2, "").await.unwrap_err()),
        Reason::InvalidArgument
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_kept_and_filtered_by() {
    let lab = Lab::new().await;
    lab.world.lock().host("host-2").shares = false;
    let create = async |team: &str| {
        let mut request = wish();
        let labels = &mut request.migration.as_mut().unwrap().labels;
        labels.insert("team".to_owned(), team.to_owned());
        labels.insert("it's \"odd\"%_".to_owned(), "x".to_owned());
        let created = lab.migrations().create_migration(request).await.unwrap().into_inner();
        lab.at_rest(&created.name).await
    };
    let (red, blue) = (create("red").await, create("blue").await);
    assert_eq!(red.labels["team"], "red");
    let list = async |filter: &str| {
        let request = ListMigrationsRequest {
            filter: filter.to_owned(),
            ..Default::default()
        };
        let listed = lab.migrations().list_migrations(request).await.unwrap().into_inner();
        listed.migrations.into_iter().map(|one| one.name).collect::<Vec<_>>()
    };
    assert_eq!(list("labels.team = red").await, std::slice::from_ref(&red.name));
    assert_eq!(
        list("labels.team = \"blue\" AND state = FAILED").await,
        std::slice::from_ref(&blue.name)
    );
    assert!(list("labels.team = re").await.is_empty() && list("labels.other = red").await.is_empty());
    assert!(list("labels.team = \"%\"").await.is_empty());
    let both = format!("guest_uuid = {GUEST} AND source_host = hosts/host-1 AND destination_host = host-2");
    assert_eq!(list(&both).await, [blue.name, red.name]);
}

#[tokio::test(flavor = "multi_thread")]
async fn page_tokens_are_good_for_their_own_list_only() {
    let lab = Lab::new().await;
    lab.register("host-3", "127.0.0.1:1").await.unwrap();
    let hosts = async |token: &str| {
        let request = v1::ListHostsRequest {
            page_size: 2,
            page_token: token.to_owned(),
        };
        lab.hosts().list_hosts(request).await.map(tonic::Response::into_inner)
    };
    let first = hosts("").await.unwrap();
    let second = hosts(&first.next_page_token).await.unwrap();
    let names: Vec<_> = first
        .hosts
        .iter()
        .chain(&second.hosts)
        .map(|host| host.name.as_str())
        .collect();
    assert_eq!(names, ["hosts/host-1", "hosts/host-2", "hosts/host-3"]);
    assert!(second.next_page_token.is_empty());
    for bad in ["!", "e30", "", &first.next_page_token] {
        let guests = ListGuestsRequest {
            parent: "hosts/host-1".to_owned(),
            page_token: bad.to_owned(),
            ..Default::default()
        };
        let answer = lab.hosts().list_guests(guests).await;
        if bad.is_empty() {
            answer.unwrap();
        } else {
            assert_eq!(reason(&answer.unwrap_err()), Reason::PageTokenInvalid, "{bad}");
            assert_eq!(
                hosts(bad).await.err().map(|status| reason(&status)),
                (bad != first.next_page_token).then_some(Reason::PageTokenInvalid)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_and_guests_are_listed_and_silent_hosts_named() {
    let lab = Lab::new().await;
    let hosts = lab
        .hosts()
        .list_hosts(v1::ListHostsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .hosts;
    let names: Vec<_> = hosts.iter().map(|host| host.name.as_str()).collect();
    assert_eq!(names, ["hosts/host-1", "hosts/host-2"]);
    assert!(
        hosts
            .iter()
            .all(|host| host.state() == v1::HostState::Up && host.last_seen_time.is_some())
    );
    lab.world.lock().away.insert("host-2".to_owned());
    let request = ListGuestsRequest {
        parent: "hosts/-".to_owned(),
        ..Default::default()
    };
    let listed = lab.hosts().list_guests(request).await.unwrap().into_inner();
    assert_eq!(listed.guests.len(), 1);
    assert_eq!(listed.guests[0].name, format!("hosts/host-1/guests/{GUEST}"));
    assert_eq!(listed.unreachable_hosts, ["hosts/host-2"]);
    let request = GetGuestOwnerRequest {
        guest_uuid: GUEST.to_owned(),
    };
    let owner = lab.hosts().get_guest_owner(request).await.unwrap().into_inner();
    assert_eq!(owner.owner_host, "hosts/host-1");
}
