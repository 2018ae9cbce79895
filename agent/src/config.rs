//! The agent's configuration: a TOML file, every key also as `DROVER_AGENT_KEY` (`DROVER_AGENT_TLS__CA` for nested
//! ones), the main ones as flags. The later wins.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use drover_proto::identity::{IdentityError, TrustDomain};
use drover_proto::identity_patterns::{IdentityPatterns, PatternLists};
use drover_proto::ids::HostId;
use drover_proto::telemetry::LogFormat;
use drover_proto::tls::TlsFiles;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::{Figment, Provider};
use serde::{Deserialize, Serialize};

use crate::sim::SimConfig;

/// Drover's agent: moves the virtual machines of this host.
#[derive(Debug, Parser, Serialize)]
#[command(version)]
pub struct Flags {
    /// The configuration file.
    #[arg(long, default_value = "/etc/drover/agent.toml")]
    #[serde(skip)]
    pub config: PathBuf,
    /// Name of this host; its certificate must be for it.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    host_id: Option<String>,
    /// Address to listen on, `host:port`.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    /// The controller, `host:port`.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    controller: Option<String>,
    /// Where the journal is kept.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    state_dir: Option<PathBuf>,
    /// libvirt's URI.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    libvirt_uri: Option<String>,
}

/// All keys.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub host_id: HostId,
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Where the controller dials this agent, `host:port`.
    pub management_address: String,
    /// Where other agents dial it, best first; empty: the management address.
    #[serde(default)]
    pub migration_addresses: Vec<String>,
    /// `host:port`; without one the agent waits to be asked.
    pub controller: Option<String>,
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Short: paths of unix sockets have at most 107 bytes.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    #[serde(default = "default_libvirt_uri")]
    pub libvirt_uri: String,
    /// Group of QEMU's user; empty: the agent's own.
    #[serde(default = "default_qemu_group")]
    pub qemu_group: String,
    /// Folders in which disk images may be copied, made and removed; empty: none.
    #[serde(default)]
    pub storage_directories: Vec<PathBuf>,
    /// Block devices, and folders of such, that copies may overwrite; empty: none.
    #[serde(default)]
    pub block_devices: Vec<PathBuf>,
    /// How long the files of a guest that moved away shut off are kept, days; none: until somebody removes them.
    pub keep_moved_days: Option<u32>,
    pub tls: TlsFiles,
    #[serde(default = "default_trust_domain")]
    pub trust_domain: TrustDomain,
    /// How certificates name identities, where they do it in another way than Drover's own.
    #[serde(default)]
    pub identities: PatternLists,
    #[serde(default)]
    pub hypervisor: HypervisorKind,
    /// Guests of the simulated hypervisor.
    #[serde(default)]
    pub sim: SimConfig,
    #[serde(default)]
    pub log_format: LogFormat,
    #[serde(default = "default_log_filter")]
    pub log_filter: String,
}

/// What is below the seam.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HypervisorKind {
    #[default]
    Libvirt,
    Sim,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 7450))
}

fn default_state_dir() -> PathBuf {
    "/var/lib/drover-agent".into()
}

fn default_run_dir() -> PathBuf {
    "/run/drover-agent".into()
}

fn default_libvirt_uri() -> String {
    crate::libvirt::DEFAULT_URI.to_owned()
}

fn default_qemu_group() -> String {
    "libvirt-qemu".to_owned()
}

fn default_trust_domain() -> TrustDomain {
    // A constant that is known to be valid.
    "drover.local"
        .parse()
        .unwrap_or_else(|_| unreachable!("drover.local is a trust domain"))
}

fn default_log_filter() -> String {
    "info".to_owned()
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "there is no configuration file {}\n  next: write it as docs/operating.md shows, or name another with --config",
        .0.display()
    )]
    Missing(PathBuf),
    #[error("{0}\n  next: docs/operating.md tells what each key means")]
    Invalid(Box<figment::Error>),
}

impl Config {
    /// How certificates name identities.
    pub fn identities(&self) -> Result<IdentityPatterns, IdentityError> {
        IdentityPatterns::new(self.trust_domain.clone(), &self.identities)
    }

    /// Reads file, environment and flags.
    pub fn read(flags: &Flags) -> Result<Self, ConfigError> {
        let environment = Env::prefixed("DROVER_AGENT_").split("__");
        // Everything may be given without a file.
        Self::extract(Toml::file(&flags.config), environment, flags).map_err(|error| {
            if flags.config.exists() {
                ConfigError::Invalid(error)
            } else {
                ConfigError::Missing(flags.config.clone())
            }
        })
    }

    fn extract(file: impl Provider, environment: impl Provider, flags: &Flags) -> Result<Self, Box<figment::Error>> {
        let figment = Figment::new()
            .merge(file)
            .merge(environment)
            .merge(Serialized::defaults(flags));
        figment.extract().map_err(Box::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        host_id = "host-a"
        management_address = "10.0.0.1:7450"
        controller = "10.0.0.9:7440"
        [tls]
        certificate = "a.crt"
        key = "a.key"
        ca = "ca.crt"
    "#;

    fn read(file: &str, environment: &str, flags: &[&str]) -> Result<Config, Box<figment::Error>> {
        let flags = Flags::parse_from([&["drover-agent"], flags].concat());
        Config::extract(Toml::string(file), Toml::string(environment), &flags)
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let environment = "run_dir = '/run/x'\nstate_dir = '/state/env'\ntls.ca = 'other.crt'";
        let config = read(FILE, environment, &["--state-dir", "/state/flag"]).unwrap();
        assert_eq!(config.host_id.as_str(), "host-a");
        assert_eq!(config.state_dir, PathBuf::from("/state/flag"));
        assert_eq!(config.run_dir, PathBuf::from("/run/x"));
        assert_eq!(config.tls.ca, PathBuf::from("other.crt"));
        assert_eq!(config.tls.key, PathBuf::from("a.key"));
        assert_eq!(config.listen, default_listen());
        assert_eq!(
            (config.hypervisor, config.qemu_group.as_str()),
            (HypervisorKind::Libvirt, "libvirt-qemu")
        );
    }

    #[test]
    fn a_key_that_does_not_exist_is_an_error() {
        let error = read(&format!("lisen = 'x'\n{FILE}"), "", &[]).unwrap_err();
        assert!(error.to_string().contains("lisen"), "{error}");
    }
}
