//! Certificates of the running controller, and agents that share an identity.

use std::time::Duration;

use drover_proto::failure::Reason;
use drover_proto::v1::host_service_client::HostServiceClient;
use drover_proto::v1::{self, GetHostRequest, RegisterHostRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::agent::registration;
use super::lab::{Lab, reason};
use super::world::GUEST;

async fn get(lab: &Lab, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(lab.local_address()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn until_told(lab: &Lab, path: &str, words: &str) {
    let told = async {
        while !get(lab, path).await.contains(words) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(60), told).await;
    assert!(told.is_ok(), "{path} never says {words:?}: {}", get(lab, path).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_certificate_file_is_told_and_the_old_one_serves() {
    let lab = Lab::new().await;
    let key = lab.pki.files("controller").key;
    let good = std::fs::read(&key).unwrap();
    std::fs::write(&key, "no key").unwrap();
    until_told(&lab, "/readyz", "certificates: the new certificates are not usable").await;
    until_told(&lab, "/metrics", "drover_certificate_problem 1").await;
    assert!(get(&lab, "/readyz").await.starts_with("HTTP/1.1 200"));
    lab.hosts().list_hosts(v1::ListHostsRequest::default()).await.unwrap();

    std::fs::write(&key, good).unwrap();
    until_told(&lab, "/metrics", "drover_certificate_problem 0").await;
    assert!(!get(&lab, "/readyz").await.contains("certificates"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_of_one_identity_is_refused_while_the_first_answers() {
    let lab = Lab::new().await;
    let claim = async |instance: &str| {
        let mut rival = HostServiceClient::new(lab.channel("agent/host-1"));
        let host = v1::Host {
            agent_instance: instance.to_owned(),
            ..registration("host-1", "192.0.2.1:7450")
        };
        let request = RegisterHostRequest {
            host: Some(host),
            ..RegisterHostRequest::default()
        };
        rival.register_host(request).await
    };
    let shown = async || {
        let name = "hosts/host-1".to_owned();
        let host = lab.hosts().get_host(GetHostRequest { name }).await;
        host.unwrap().into_inner()
    };
    let refused = claim("second").await.unwrap_err();
    assert_eq!(reason(&refused), Reason::HostConflict);
    let host = shown().await;
    assert_eq!(
        host.management_address, lab.addresses[0],
        "the rival took the host over"
    );
    assert!(host.problem.contains("192.0.2.1:7450"), "{}", host.problem);
    // The host goes on as if nothing had happened.
    lab.register("host-1", &lab.addresses[0]).await.unwrap();
    let owner = v1::GetGuestOwnerRequest {
        guest_uuid: GUEST.to_owned(),
    };
    let owner = lab.hosts().get_guest_owner(owner).await.unwrap().into_inner();
    assert_eq!(owner.owner_host, "hosts/host-1");

    // Where the first one is gone, the other is its successor: a restart, a reinstalled host.
    lab.world.lock().away.insert("host-1".to_owned());
    claim("second").await.unwrap();
    assert_eq!(shown().await.management_address, "192.0.2.1:7450");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_says_is_wrong_is_shown_with_its_host() {
    let lab = Lab::new().await;
    for problem in ["the new certificates are not usable, the old ones stay in use", ""] {
        let request = RegisterHostRequest {
            host: Some(v1::Host {
                problem: problem.to_owned(),
                ..registration("host-1", &lab.addresses[0])
            }),
            ..RegisterHostRequest::default()
        };
        lab.register_as("host-1", request).await.unwrap();
        let name = "hosts/host-1".to_owned();
        let shown = lab.hosts().get_host(GetHostRequest { name }).await.unwrap();
        assert_eq!(shown.into_inner().problem, problem);
    }
}
