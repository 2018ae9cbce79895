//! `drover pki`: a certificate authority for trying Drover out. Real fleets bring certificates of their own; what
//! counts is one SPIFFE URI in each.

mod authority;
mod files;
mod show;

use std::path::{Path, PathBuf};

use drover_proto::identity::{Identity, TrustDomain};
use drover_proto::tls::{Tls, TlsFiles};
use serde_json::json;

use crate::args::{Holder, Issue, Output, Pki};
use crate::exit::{Exit, Problem};
use crate::out;
use authority::{Authority, Names};
use files::Folder;
pub(crate) use show::describe;

pub(crate) fn run(command: Pki, output: Output) -> Result<(), Problem> {
    let report = match command {
        Pki::Init {
            dir,
            trust_domain,
            force,
        } => init(&dir, &trust_domain, force)?,
        Pki::Issue(issue) => self::issue(issue)?,
        Pki::Show { files } => return show::run(&files, output),
    };
    match output {
        Output::Table => out::result(&report.words),
        Output::Json => out::json(&json!({ "changed": report.changed, "folder": report.folder })),
    }
}

/// What was done.
#[derive(Debug)]
struct Report {
    changed: bool,
    folder: PathBuf,
    words: String,
}

fn usage(error: &dyn std::fmt::Display) -> Problem {
    Problem::new(Exit::Usage, error.to_string())
}

fn init(dir: &Path, trust_domain: &str, force: bool) -> Result<Report, Problem> {
    let trust_domain: TrustDomain = trust_domain.parse().map_err(|error| usage(&error))?;
    let folder = dir.to_owned();
    if !force && let Some(there) = Authority::load_if_there(dir)? {
        if there.trust_domain != trust_domain {
            let message = format!("{} has an authority for {}", dir.display(), there.trust_domain);
            return Err(
                Problem::new(Exit::Refused, message).with_next("choose another folder, or replace it by --force")
            );
        }
        let words = format!(
            "The authority for {trust_domain} is there already: {}. Nothing was done.",
            dir.display()
        );
        return Ok(Report {
            changed: false,
            folder,
            words,
        });
    }
    Authority::create(&trust_domain)?.save(dir)?;
    let dir = dir.display();
    let words = format!(
        "Made an authority for {trust_domain}: {dir}/ca.crt, {dir}/ca.key (keep it secret).\n\
         Next: drover pki issue {dir} controller; … agent HOST; … user NAME"
    );
    Ok(Report {
        changed: true,
        folder,
        words,
    })
}

fn issue(issue: Issue) -> Result<Report, Problem> {
    let (identity, name) = match issue.holder {
        Holder::Controller => (Identity::Controller, "controller".to_owned()),
        Holder::Agent { host } => {
            let host = host.parse().map_err(|error| usage(&error))?;
            let name = format!("agent-{host}");
            (Identity::Agent(host), name)
        }
        Holder::User { name } => {
            let identity = format!("user/{name}").parse().map_err(|error| usage(&error))?;
            (identity, format!("user-{name}"))
        }
    };
    let Some(authority) = Authority::load_if_there(&issue.dir)? else {
        let message = format!("there is no authority in {}", issue.dir.display());
        let next = format!("make one: drover pki init {}", issue.dir.display());
        return Err(Problem::new(Exit::NotFound, message).with_next(next));
    };
    let folder = Folder(issue.out.unwrap_or_else(|| issue.dir.join(name)));
    let place = folder.0.display().to_string();
    if !issue.force && folder.is_taken() {
        // By the authority of today: a certificate of a replaced one is of no use.
        let files = TlsFiles {
            ca: issue.dir.join("ca.crt"),
            ..folder.files()
        };
        require_usable(&files, &identity, &authority.trust_domain)?;
        let words = format!("{identity} has a certificate already: {place}. Nothing was done (--force renews it).");
        return Ok(Report {
            changed: false,
            folder: folder.0,
            words,
        });
    }
    let names = Names {
        dns: issue.dns,
        ip: issue.ip,
    };
    let (certificate, key) = authority.issue(&identity, &names, issue.days)?;
    folder.save(&certificate, &key, &authority.pem)?;
    let words = format!(
        "Made a certificate for {identity}, good for {} days: {place}/{{tls.crt,tls.key,ca.crt}}",
        issue.days
    );
    Ok(Report {
        changed: true,
        folder: folder.0,
        words,
    })
}

/// Something is there: it must be what was asked for, else nothing is touched.
fn require_usable(files: &TlsFiles, identity: &Identity, trust_domain: &TrustDomain) -> Result<(), Problem> {
    let refuse = |why: String| {
        Problem::new(Exit::Refused, why).with_next("choose another folder with --out, or replace it by --force")
    };
    let there = Tls::load(files.clone(), trust_domain.clone()).map_err(|error| refuse(error.to_string()))?;
    if there.own_identity() == *identity {
        return Ok(());
    }
    Err(refuse(format!(
        "{} is for {}",
        files.certificate.display(),
        there.own_identity()
    )))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
