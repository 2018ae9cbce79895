//! The command line as types: what can be typed, and its help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use drover_proto::v1::{DiskOverride, InterfaceOverride};

use crate::overrides;

/// Moves virtual machines between KVM/QEMU hosts.
#[derive(Debug, Parser)]
#[command(name = "drover", version, propagate_version = true, after_help = crate::exit::HELP)]
pub(crate) struct Cli {
    /// How results are written. json: fields as in the .proto files, times RFC 3339, durations in seconds,
    /// enums without their prefix
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "DROVER_OUTPUT",
        hide_env_values = true
    )]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// How to reach the controller. What is not given is taken from `~/.config/drover/config.toml`, then from
/// `/etc/drover/config.toml`.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// Address of the controller, host:port
    #[arg(
        long,
        global = true,
        env = "DROVER_CONTROLLER",
        hide_env_values = true,
        value_name = "ADDRESS"
    )]
    pub(crate) controller: Option<String>,
    /// Your certificate (PEM)
    #[arg(
        long,
        global = true,
        env = "DROVER_CERT",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub(crate) cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, global = true, env = "DROVER_KEY", hide_env_values = true, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Authorities that sign the controller's certificate (PEM)
    #[arg(long, global = true, env = "DROVER_CA", hide_env_values = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Trust domain of all identities [default: drover.local]
    #[arg(
        long,
        global = true,
        env = "DROVER_TRUST_DOMAIN",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub(crate) trust_domain: Option<String>,
    /// Configuration file, in place of the usual ones
    #[arg(
        long,
        global = true,
        env = "DROVER_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Move a guest to another host and watch it go
    Migrate(Migrate),
    /// Ask whether a guest could move, and see why not; nothing is touched
    #[command(after_help = "Exit code 0: at least one of these hosts would be accepted; 3: none would.")]
    Check(Check),
    /// Look at migrations and act on them
    #[command(subcommand)]
    Migration(Migration),
    /// Look at hosts, and take them out of use as destinations
    #[command(subcommand)]
    Host(Host),
    /// Look at guests
    #[command(subcommand)]
    Guest(Guest),
    /// Show where the time of a migration went: phases, calls to libvirt, rounds
    Timeline {
        /// Id of the migration
        id: String,
    },
    /// Make certificates for trying Drover out
    #[command(subcommand)]
    Pki(Pki),
    /// Print a completion script
    Completion {
        /// The shell to complete in
        shell: Shell,
    },
    /// Write manual pages, one for each command
    Man {
        /// Folder to write to; for `man`, a folder named man1 in one of `manpath`
        #[arg(long, value_name = "FOLDER")]
        dir: PathBuf,
    },
    /// Tell what the exit codes mean
    #[command(after_help = crate::exit::HELP)]
    ExitCodes,
}

#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Name or UUID of the guest
    pub(crate) guest: String,
    /// Host to move it to
    #[arg(long, value_name = "HOST")]
    pub(crate) to: String,
    /// Host it is on; needed only where several hosts have a guest of that name
    #[arg(long, value_name = "HOST")]
    pub(crate) from: Option<String>,
    /// Label for the record; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Only check: print what a migration would be refused for, and move nothing
    #[arg(long, visible_alias = "validate-only", conflicts_with = "no_wait")]
    pub(crate) dry_run: bool,
    /// Return as soon as the migration is accepted
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// A UUID of your own: the same request sent twice makes one migration
    #[arg(long, value_name = "UUID")]
    pub(crate) request_id: Option<uuid::Uuid>,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
    #[command(flatten)]
    pub(crate) policy: crate::policy::Policy,
}

/// What must be different at the destination. All else in the guest's definition stays as it is.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Different at the destination")]
pub(crate) struct Overrides {
    /// Path at which a disk lies there (the same storage, proved); may be given several times
    #[arg(long = "disk", value_name = "TARGET=PATH", value_parser = overrides::disk)]
    pub(crate) disks: Vec<DiskOverride>,
    /// Bridge or tap device there of the interface with this MAC address; may be given several times
    #[arg(long = "interface", value_name = "MAC=bridge:NAME|device:NAME", value_parser = overrides::interface)]
    pub(crate) interfaces: Vec<InterfaceOverride>,
    /// IP address on which VNC, SPICE and RDP listen there
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) graphics_listen: Option<std::net::IpAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Name or UUID of the guest
    pub(crate) guest: String,
    /// Host it could move to; may be given several times [default: all others]
    #[arg(long, value_name = "HOST")]
    pub(crate) to: Vec<String>,
    /// Host it is on; needed only where several hosts have a guest of that name
    #[arg(long, value_name = "HOST")]
    pub(crate) from: Option<String>,
    /// Show every check of every host, also where several were asked
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Only check: leave out what the move would cost, which takes a second or more to find out
    #[arg(long)]
    pub(crate) no_estimate: bool,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
    #[command(flatten)]
    pub(crate) way: crate::policy::Way,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Migration {
    /// List migrations, newest first
    List {
        /// Only these: `state = RUNNING AND guest_uuid = "…"`; fields state, guest_uuid, source_host,
        /// destination_host, labels.KEY
        #[arg(long, default_value = "")]
        filter: String,
        /// At most so many
        #[arg(long, default_value_t = 50, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show a migration
    Get {
        /// Id of the migration
        id: String,
    },
    /// Follow a migration until it comes to rest
    Watch {
        /// Id of the migration
        id: String,
    },
    /// Ask for a migration to be undone: the guest stays where it is
    Cancel {
        /// Id of the migration
        id: String,
        /// Return as soon as the controller knows of it
        #[arg(long)]
        no_wait: bool,
    },
    /// Change how a migration may be done while it is under way
    Adjust(crate::policy::Adjust),
    /// Let a migration that asks for attention try again
    Retry {
        /// Id of the migration
        id: String,
    },
    /// State that a host is off and stays off, where only that can decide who may run the guest
    #[command(group = clap::ArgGroup::new("side").required(true))]
    Resolve {
        /// Id of the migration
        id: String,
        /// The source host is off: the guest belongs to the destination
        #[arg(long, group = "side")]
        source_is_fenced: bool,
        /// The destination host is off: the guest belongs to the source
        #[arg(long, group = "side")]
        destination_is_fenced: bool,
        /// Do not ask whether it is so
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Host {
    /// List hosts
    List,
    /// Show a host
    Get {
        /// Id of the host
        host: String,
    },
    /// Take a host out of use as a destination; its guests stay
    Cordon {
        /// Id of the host
        host: String,
    },
    /// Put a host back into use
    Uncordon {
        /// Id of the host
        host: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Guest {
    /// List guests
    List {
        /// Only of this host
        #[arg(long)]
        host: Option<String>,
    },
    /// Tell which host a guest belongs to, also while that is undecided
    Owner {
        /// Name or UUID of the guest
        guest: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Pki {
    /// Make a certificate authority
    Init {
        /// Folder of the authority
        dir: PathBuf,
        /// Trust domain of all identities it signs
        #[arg(long, default_value = "drover.local")]
        trust_domain: String,
        /// Replace an authority that is there: all certificates it signed become useless
        #[arg(long)]
        force: bool,
    },
    /// Make a certificate: tls.crt, tls.key and ca.crt in a folder of its own
    Issue(Issue),
    /// Show what certificates and keys are
    Show {
        /// PEM files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Issue {
    /// Folder of the authority
    pub(crate) dir: PathBuf,
    #[command(subcommand)]
    pub(crate) holder: Holder,
    /// Further DNS name, for clients that check names; may be given several times
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) dns: Vec<String>,
    /// Further IP address; may be given several times
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub(crate) ip: Vec<std::net::IpAddr>,
    /// Folder to write to [default: DIR/controller, DIR/agent-HOST or DIR/user-NAME]
    #[arg(long, global = true, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
    /// Days of life
    #[arg(long, global = true, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
    /// Replace a certificate that is there
    #[arg(long, global = true)]
    pub(crate) force: bool,
}

/// Whose certificate it is.
#[derive(Debug, Subcommand)]
pub(crate) enum Holder {
    /// A controller
    Controller,
    /// The agent of a host
    Agent {
        /// Id of the host
        host: String,
    },
    /// A person or a program that uses the API
    User {
        /// Its name, as in [roles] of the controller's configuration
        name: String,
    },
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("expected KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_heading_of_the_help_has_only_what_is_under_it() {
        for name in ["migrate", "check"] {
            let command = Cli::command();
            let command = command.find_subcommand(name).unwrap();
            let under = command
                .get_arguments()
                .filter(|arg| arg.get_help_heading() == Some("Different at the destination"));
            let names: Vec<&str> = under.map(|arg| arg.get_id().as_str()).collect();
            assert_eq!(names, ["disks", "interfaces", "graphics_listen"], "{name}");
        }
    }

    #[test]
    fn labels_have_a_key() {
        assert_eq!(label("team=red=blue"), Ok(("team".to_owned(), "red=blue".to_owned())));
        assert!(label("team").is_err() && label("=x").is_err());
    }
}
