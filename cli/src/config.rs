//! Where the controller is and who we are: flags and environment first, then the user's file, then the machine's.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use drover_proto::identity::IdentityError;
use drover_proto::identity_patterns::{IdentityPatterns, PatternLists};
use drover_proto::tls::TlsFiles;
use figment::Figment;
use figment::providers::{Format, Toml};
use figment::value::magic::RelativePathBuf;
use serde::Deserialize;

use crate::args::Connection;
use crate::exit::{Exit, Problem};

/// The machine's file.
const SYSTEM_FILE: &str = "/etc/drover/config.toml";

/// Port of a controller, where the address names none.
const DEFAULT_PORT: u16 = 7440;

const DEFAULT_TRUST_DOMAIN: &str = "drover.local";

/// What is needed to reach a controller.
#[derive(Debug, PartialEq)]
pub(crate) struct Settings {
    /// `host:port`.
    pub(crate) controller: String,
    pub(crate) files: TlsFiles,
    pub(crate) identities: IdentityPatterns,
}

/// The keys of a configuration file. Relative paths are relative to the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    controller: Option<String>,
    cert: Option<RelativePathBuf>,
    key: Option<RelativePathBuf>,
    ca: Option<RelativePathBuf>,
    trust_domain: Option<String>,
    /// How certificates name identities, where they do it in another way than Drover's own.
    identities: PatternLists,
}

/// `$XDG_CONFIG_HOME/drover`, by default `~/.config/drover`.
fn user_folder() -> Option<PathBuf> {
    let named = |variable: &str| {
        std::env::var_os(variable)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = named("XDG_CONFIG_HOME").or_else(|| Some(named("HOME")?.join(".config")))?;
    Some(base.join("drover"))
}

/// Puts flags, environment (read by clap) and files together.
pub(crate) fn load(given: &Connection) -> Result<Settings, Problem> {
    let folder = user_folder();
    let mut files = Figment::new();
    if let Some(file) = &given.config {
        if file.is_dir() {
            let message = format!("{} is a directory, not a configuration file", file.display());
            let next = format!("did you mean {}?", file.join("config.toml").display());
            return Err(Problem::new(Exit::Usage, message).with_next(next));
        }
        if !file.is_file() {
            let message = format!("there is no configuration file {}", file.display());
            return Err(Problem::new(Exit::Usage, message).with_next("name another with --config"));
        }
        files = files.merge(Toml::file_exact(file));
    } else {
        // Either may be missing.
        files = files.merge(Toml::file(SYSTEM_FILE));
        if let Some(folder) = &folder {
            files = files.merge(Toml::file(folder.join("config.toml")));
        }
    }
    let file: File = files
        .extract()
        .map_err(|error| Problem::new(Exit::Usage, format!("configuration: {error}")))?;
    combine(given, file, folder.as_deref())
}

fn combine(given: &Connection, file: File, folder: Option<&Path>) -> Result<Settings, Problem> {
    let missing = |what: &str, flag: &str, variable: &str| {
        let next = format!("give {flag}, set {variable}, or write it into ~/.config/drover/config.toml");
        Problem::new(Exit::Usage, format!("{what} is not known")).with_next(next)
    };
    let controller = given.controller.clone().or(file.controller);
    let controller =
        controller.ok_or_else(|| missing("the controller's address", "--controller", "DROVER_CONTROLLER"))?;
    let controller = address(&controller)?;
    // Beside the user's configuration file, by the names that `drover pki issue` writes.
    let path = |flag: &Option<PathBuf>, key: Option<RelativePathBuf>, name: &str| {
        let key = key.map(|path| path.relative());
        flag.clone()
            .or(key)
            .or_else(|| Some(folder?.join(name)).filter(|path| path.exists()))
    };
    let files = TlsFiles {
        certificate: path(&given.cert, file.cert, "tls.crt")
            .ok_or_else(|| missing("your certificate", "--cert", "DROVER_CERT"))?,
        key: path(&given.key, file.key, "tls.key").ok_or_else(|| missing("your key", "--key", "DROVER_KEY"))?,
        ca: path(&given.ca, file.ca, "ca.crt")
            .ok_or_else(|| missing("the authorities' certificate", "--ca", "DROVER_CA"))?,
    };
    let trust_domain = given.trust_domain.clone().or(file.trust_domain);
    let trust_domain = trust_domain.as_deref().unwrap_or(DEFAULT_TRUST_DOMAIN).parse();
    let usage = |error: IdentityError| Problem::new(Exit::Usage, error.to_string());
    let identities = IdentityPatterns::new(trust_domain.map_err(usage)?, &file.identities).map_err(usage)?;
    Ok(Settings {
        controller,
        files,
        identities,
    })
}

/// The address of a controller, with its port.
fn address(text: &str) -> Result<String, Problem> {
    let wrong = |why: &str| {
        let message = format!("{text:?} is not the address of a controller: {why}");
        Problem::new(Exit::Usage, message)
            .with_next("give HOST or HOST:PORT, as in --controller controller.example:7440")
    };
    if text.contains("://") {
        return Err(wrong("an address has no scheme"));
    }
    let address = with_port(text.to_owned());
    let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("expected HOST:PORT"))?;
    if !port.parse::<u16>().is_ok_and(|port| port != 0) {
        return Err(wrong("a port is a number from 1 to 65535"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let is_host = match host.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']').is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty() && host.chars().all(plain),
    };
    if is_host {
        Ok(address)
    } else {
        Err(wrong("expected a name or an IP address"))
    }
}

/// Adds the usual port to an address without one.
fn with_port(address: String) -> String {
    let bare_v6 = address.matches(':').count() > 1 && !address.contains(']');
    if bare_v6 {
        format!("[{address}]:{DEFAULT_PORT}")
    } else if address.ends_with(']') || !address.contains(':') {
        format!("{address}:{DEFAULT_PORT}")
    } else {
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(controller: Option<&str>) -> Connection {
        Connection {
            controller: controller.map(str::to_owned),
            cert: Some("c".into()),
            key: Some("k".into()),
            ca: Some("a".into()),
            ..Connection::default()
        }
    }

    #[test]
    fn flags_win_over_files_and_files_over_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(
            &path,
            "controller = 'file:1'\nca = 'pki/ca.crt'\ntrust_domain = 'lab.local'\n",
        )
        .unwrap();
        let mut flags = Connection {
            ca: None,
            config: Some(path.clone()),
            ..given(None)
        };
        let settings = load(&flags).unwrap();
        assert_eq!(settings.controller, "file:1");
        assert_eq!(settings.files.ca, folder.path().join("pki/ca.crt"));
        assert_eq!(settings.files.key, PathBuf::from("k"));
        assert_eq!(settings.identities.trust_domain().as_str(), "lab.local");
        flags.controller = Some("flag:2".to_owned());
        assert_eq!(load(&flags).unwrap().controller, "flag:2");

        std::fs::write(&path, "contoller = 'typo:1'\n").unwrap();
        assert_eq!(load(&flags).unwrap_err().exit, Exit::Usage);
        flags.config = Some(folder.path().to_owned());
        assert!(load(&flags).unwrap_err().message.contains("is a directory"));
        flags.config = Some(folder.path().join("none.toml"));
        assert_eq!(load(&flags).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn what_is_missing_is_said() {
        let problem = combine(&given(None), File::default(), None).unwrap_err();
        assert_eq!(problem.exit, Exit::Usage);
        assert!(problem.next.unwrap().contains("DROVER_CONTROLLER"));
        let settings = combine(&given(Some("host")), File::default(), None).unwrap();
        assert_eq!(
            (
                settings.controller.as_str(),
                settings.identities.trust_domain().as_str()
            ),
            ("host:7440", "drover.local")
        );
    }

    #[test]
    fn addresses_get_the_usual_port() {
        for (given, expected) in [
            ("host", "host:7440"),
            ("host:1", "host:1"),
            ("::1", "[::1]:7440"),
            ("[::1]", "[::1]:7440"),
            ("[::1]:2", "[::1]:2"),
        ] {
            assert_eq!(address(given).unwrap(), expected);
        }
        for bad in [
            "",
            "http://c:1",
            "[http://",
            "c:99999",
            "c:0",
            "c:x",
            ":1",
            "a b:1",
            "[::1:7",
            "a/b:1",
        ] {
            let problem = address(bad).unwrap_err();
            assert_eq!(problem.exit, Exit::Usage, "{bad}");
            assert!(problem.next.unwrap().contains("HOST:PORT"));
        }
    }
}
