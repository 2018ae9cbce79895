//! An sshd inside a host of the lab, for rsync: keys of its own, its host's own address, nothing of the machine's.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{Daemon, Host, run, wait_until};

const SHORT: Duration = Duration::from_secs(20);

/// A running sshd and the key that it takes.
#[derive(Debug)]
pub struct Ssh {
    _daemon: Daemon,
    folder: PathBuf,
    address: String,
}

impl Ssh {
    /// Starts it on `host`; returns when it listens.
    pub fn start(host: &Host) -> Result<Ssh> {
        let folder = host.folder().join("ssh");
        fs::create_dir_all(&folder)?;
        for name in ["host", "client"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(folder.join(name));
            run(&mut keygen, SHORT).context("is openssh-server installed?")?;
        }
        let address = host.address().to_string();
        let shown = folder.display();
        let config = format!(
            "ListenAddress {address}\nHostKey {shown}/host\nAuthorizedKeysFile {shown}/client.pub\nStrictModes no\n\
             UsePAM no\nPidFile none\nPermitRootLogin prohibit-password\n"
        );
        fs::write(folder.join("sshd_config"), config)?;
        host.run("mkdir", &["-p", "/run/sshd"])?;
        let mut command = host.command("/usr/sbin/sshd")?;
        command.args(["-D", "-e", "-f"]).arg(folder.join("sshd_config"));
        let daemon = Daemon::spawn(host, "sshd", &mut command)?;
        wait_until("sshd", SHORT, || {
            Ok(host
                .run("ss", &["-Hltn", "sport = :22"])?
                .stdout
                .contains(&address)
                .then_some(()))
        })
        .with_context(|| format!("log: {}", daemon.log().display()))?;
        Ok(Ssh {
            _daemon: daemon,
            folder,
            address,
        })
    }

    /// What `rsync -e` takes. Ciphers and all else are ssh's own choice.
    pub(super) fn shell(&self) -> String {
        let folder = self.folder.display();
        format!("ssh -F none -i {folder}/client -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no")
    }

    /// `root@ADDRESS:PATH`.
    pub(super) fn place(&self, path: &str) -> String {
        format!("root@{}:{path}", self.address)
    }
}
