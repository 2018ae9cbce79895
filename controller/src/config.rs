//! What the controller is told: a TOML file, over it the environment, over that the command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_proto::identity::{IdentityError, TrustDomain};
use drover_proto::identity_patterns::{IdentityPatterns, PatternLists};
use drover_proto::roles::Roles;
use drover_proto::telemetry::LogFormat;
use drover_proto::tls::TlsFiles;
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};

use crate::policy::PolicyDefaults;

/// Keys of the environment: `DROVER_CONTROLLER_LISTEN`, `DROVER_CONTROLLER_TLS__KEY`.
const ENVIRONMENT: &str = "DROVER_CONTROLLER_";

/// The configuration. What has no default is required.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the API listens.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Plain HTTP for `/healthz`, `/readyz` and `/metrics`: for this machine only.
    #[serde(default = "default_metrics_listen")]
    pub metrics_listen: SocketAddr,
    /// `sqlite:///path/to/drover.db`, or `memory:`, which forgets everything at its end.
    #[serde(default = "default_store")]
    pub store: String,
    pub tls: TlsFiles,
    #[serde(default = "default_trust_domain")]
    pub trust_domain: TrustDomain,
    /// How certificates name identities, where they do it in another way than Drover's own.
    #[serde(default)]
    pub identities: PatternLists,
    /// Which users have which roles.
    #[serde(default)]
    pub roles: Roles,
    /// What counts where a request leaves it open.
    #[serde(default)]
    pub policy: PolicyDefaults,
    /// What a migration can use of the network between two hosts of which nothing was learnt yet: `10Gbit/s`. Only
    /// estimates are made from it.
    #[serde(default, deserialize_with = "crate::policy::rate")]
    pub link_speed: u64,
    /// How often agents say that they are there.
    #[serde(default = "default_heartbeat")]
    pub heartbeat_interval_seconds: u32,
    #[serde(default)]
    pub log_format: LogFormat,
    /// As in `RUST_LOG`.
    #[serde(default = "default_log_filter")]
    pub log_filter: String,
}

fn default_listen() -> SocketAddr {
    ([0, 0, 0, 0], 7440).into()
}

fn default_metrics_listen() -> SocketAddr {
    ([127, 0, 0, 1], 7441).into()
}

fn default_store() -> String {
    "sqlite:///var/lib/drover-controller/drover.db".to_owned()
}

fn default_trust_domain() -> TrustDomain {
    // A constant of letters and a dot is valid.
    "drover.local".parse().expect("a valid trust domain")
}

fn default_heartbeat() -> u32 {
    10
}

fn default_log_filter() -> String {
    "info".to_owned()
}

/// What the command line sets over the file and the environment.
#[derive(Clone, Debug, Default, clap::Parser, Serialize)]
#[command(
    name = "drover-controller",
    version,
    about = "Sequences the migrations of virtual machines"
)]
pub struct Flags {
    /// The configuration file.
    #[arg(
        long,
        value_name = "FILE",
        env = "DROVER_CONTROLLER_CONFIG",
        default_value = "/etc/drover/controller.toml"
    )]
    #[serde(skip)]
    pub config: PathBuf,
    /// Where the API listens, `0.0.0.0:7440`.
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Where health and metrics are served in plain text, `127.0.0.1:7441`.
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// `sqlite:///path/to/drover.db` or `memory:`.
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    #[command(subcommand)]
    #[serde(skip)]
    pub command: Option<Command>,
}

/// What to do in place of serving.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Make a database that was restored from a backup the one in use: ask all agents, take up the migrations that it
    /// does not know, and raise the term above theirs. Stop the controller first
    AdoptRestored {
        /// Go on although some registered hosts do not answer: what they know is taken up when they register
        #[arg(long)]
        allow_silent: bool,
    },
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
    /// Reads file, environment and flags.
    pub fn read(flags: &Flags) -> Result<Self, ConfigError> {
        if !flags.config.exists() {
            return Err(ConfigError::Missing(flags.config.clone()));
        }
        Self::from_figment(&flags.config, flags)
    }

    fn from_figment(file: &Path, flags: &Flags) -> Result<Self, ConfigError> {
        Figment::new()
            .merge(Toml::file_exact(file))
            .merge(Env::prefixed(ENVIRONMENT).ignore(&["config"]).split("__"))
            .merge(Serialized::defaults(flags))
            .extract()
            .map_err(|error| ConfigError::Invalid(Box::new(error)))
    }

    /// How certificates name identities.
    pub fn identities(&self) -> Result<IdentityPatterns, IdentityError> {
        IdentityPatterns::new(self.trust_domain.clone(), &self.identities)
    }

    /// How often agents say that they are there.
    pub fn heartbeat(&self) -> Duration {
        Duration::from_secs(u64::from(self.heartbeat_interval_seconds.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_is_enough_and_flags_win() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("controller.toml");
        let text = "listen = \"127.0.0.1:1\"\nlink_speed = \"10Gbit/s\"\n[tls]\ncertificate = \"c\"\nkey = \"k\"\nca = \"a\"\n[roles]\nadmin = [\"alice\"]\n\
            [policy]\nmax_downtime = \"200ms\"\nbandwidth = \"800Mbit/s\"\non_deadline = \"pause-and-finish\"\n";
        std::fs::write(&file, text).unwrap();
        let flags = Flags {
            store: Some("memory:".to_owned()),
            ..Flags::default()
        };
        let config = Config::from_figment(&file, &flags).unwrap();
        assert_eq!(config.listen.port(), 1);
        assert_eq!(config.store, "memory:");
        assert_eq!(config.trust_domain.as_str(), "drover.local");
        assert_eq!(config.policy.max_downtime, Some(Duration::from_millis(200)));
        assert_eq!(config.policy.bandwidth, 100_000_000);
        assert_eq!(config.link_speed, 1_250_000_000);
        assert!(config.roles.has("alice", drover_proto::roles::Role::Admin));

        for bad in [
            "max_downtime = \"200\"",
            "bandwidth = 5",
            "deadlin = \"5m\"",
            "on_deadline = \"never\"",
        ] {
            std::fs::write(&file, text.to_owned() + bad).unwrap();
            assert!(Config::from_figment(&file, &Flags::default()).is_err(), "{bad}");
        }
        std::fs::write(&file, "lisen = \"127.0.0.1:1\"").unwrap();
        assert!(
            Config::from_figment(&file, &Flags::default()).is_err(),
            "a word that is not known is not ignored"
        );
    }
}
