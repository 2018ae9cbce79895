//! New certificates while the process runs: looks at the files now and then, takes good ones, and says what is wrong.
//!
//! Promise: connections that are there go on with what they were made with; new ones use the newest good material.
//! A bad file changes nothing but [`Tls::problem`]. The files may come in any order: a certificate whose authority
//! is not in the bundle yet is taken when the bundle follows, and the old one serves until then.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::tls::{Shared, Tls, TlsError};
use crate::tls_material::{self, Life, Material};
use crate::trace::names::{SCOPE, metric};

/// How often the files are looked at. Polled, because Kubernetes swaps symlinks that a watch would lose.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// Files that do not fit each other are looked at once more after this time: they are replaced one by one.
const SETTLE: Duration = Duration::from_secs(1);

/// The last part of a certificate's life in which it should have been renewed: a fifth, at most so much.
const LONGEST_WARNING: Duration = Duration::from_secs(14 * 24 * 3600);

impl Tls {
    /// When the own certificate's life ends.
    pub fn expires(&self) -> SystemTime {
        self.shared.material.load().life.until
    }

    /// Whether the own certificate's life has ended: nobody will connect any more.
    pub fn has_expired(&self) -> bool {
        SystemTime::now() > self.expires()
    }

    /// What is wrong with this process's certificates, for people; none where nothing is.
    pub fn problem(&self) -> Option<String> {
        let bad = self.bad_files().clone();
        let aged = aged(self.shared.material.load().life, SystemTime::now());
        match (bad, aged) {
            (Some(bad), Some(aged)) => Some(format!("{aged}; {bad}")),
            (bad, aged) => bad.or(aged),
        }
    }

    fn bad_files(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.shared.bad_files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files again; true where they changed. On any error the old material stays in use.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let outcome = self.shared.read_again();
        *self.bad_files() = outcome
            .as_ref()
            .err()
            .map(|error| format!("the new certificates are not usable, the old ones stay in use: {error}"));
        outcome
    }

    /// Reloads whenever the files change, until `shutdown`. What is wrong is logged once, when it changes.
    pub async fn keep_fresh(self, shutdown: CancellationToken) {
        self.measure();
        self.keep_looking(RELOAD_INTERVAL, SETTLE, shutdown).await;
    }

    async fn keep_looking(self, interval: Duration, settle: Duration, shutdown: CancellationToken) {
        let mut told = None;
        loop {
            let mut outcome = self.reload();
            if outcome.is_err() && timeout(settle, shutdown.cancelled()).await.is_err() {
                outcome = self.reload();
            }
            if let Ok(true) = outcome {
                tracing::info!("certificates were reloaded");
            }
            let problem = self.problem();
            if problem != told {
                match &problem {
                    Some(problem) => tracing::error!("certificates: {problem}"),
                    None => tracing::info!("certificates are in order again"),
                }
                told = problem;
            }
            if timeout(interval, shutdown.cancelled()).await.is_ok() {
                return;
            }
        }
    }

    /// Seconds left, for whoever collects metrics by OTLP.
    fn measure(&self) {
        let tls = self.clone();
        // The meter keeps it.
        let _ = opentelemetry::global::meter(SCOPE)
            .f64_observable_gauge(metric::CERTIFICATE_REMAINING)
            .with_unit("s")
            .with_callback(move |observer| observer.observe(remaining(tls.expires(), SystemTime::now()), &[]))
            .build();
    }
}

impl Shared {
    fn read_again(&self) -> Result<bool, TlsError> {
        let contents = tls_material::read(&self.files)?;
        let old = self.material.load();
        if old.is_made_of(&contents) {
            return Ok(false);
        }
        let new = Material::parse(contents, &self.files, &self.identities, &self.provider)?;
        if new.identity != old.identity {
            return Err(TlsError::IdentityChanged {
                old: old.identity.clone(),
                new: new.identity,
            });
        }
        self.material.store(Arc::new(new));
        Ok(true)
    }
}

/// Negative after the end.
fn remaining(until: SystemTime, now: SystemTime) -> f64 {
    match until.duration_since(now) {
        Ok(left) => left.as_secs_f64(),
        Err(past) => -past.duration().as_secs_f64(),
    }
}

/// What a certificate's age gives to say. The same words as long as nothing changes, so that they are logged once.
fn aged(life: Life, now: SystemTime) -> Option<String> {
    let whole = life.until.duration_since(life.from).unwrap_or_default();
    let warning = (whole / 5).min(LONGEST_WARNING);
    let until = OffsetDateTime::from(life.until).format(&Rfc3339).unwrap_or_default();
    if now > life.until {
        Some(format!("this process's certificate expired at {until}"))
    } else if now + warning > life.until {
        Some(format!(
            "this process's certificate expires at {until} and was not renewed"
        ))
    } else {
        None
    }
}

#[cfg(test)]
#[path = "tls_reload_tests.rs"]
mod tests;
