//! `drover pki show`: what a certificate says, in words or as JSON.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

use crate::args::Output;
use crate::exit::{Exit, Problem};
use crate::out;

pub(super) fn run(files: &[PathBuf], output: Output) -> Result<(), Problem> {
    let mut entries = Vec::new();
    for file in files {
        entries.extend(describe(file, OffsetDateTime::now_utc())?);
    }
    match output {
        Output::Table => out::result(&entries.iter().map(words).collect::<Vec<_>>().join("\n\n")),
        Output::Json => out::json(&json!({ "entries": entries })),
    }
}

/// One entry for each block of a PEM file.
pub(crate) fn describe(file: &Path, now: OffsetDateTime) -> Result<Vec<Value>, Problem> {
    let failed = |why: String| Problem::new(Exit::Failed, format!("{}: {why}", file.display()));
    let bytes = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
    let mut entries = Vec::new();
    for block in Pem::iter_from_buffer(&bytes) {
        let block = block.map_err(|error| failed(error.to_string()))?;
        let mut entry = match block.label.as_str() {
            "CERTIFICATE" => {
                let certificate = block.parse_x509().map_err(|error| failed(error.to_string()))?;
                of_certificate(&certificate, now)
            }
            label => json!({ "kind": label.to_lowercase(), "mode": mode(file) }),
        };
        entry["file"] = file.display().to_string().into();
        entries.push(entry);
    }
    if entries.is_empty() {
        Err(failed("there is nothing PEM in it".to_owned()))
    } else {
        Ok(entries)
    }
}

fn of_certificate(certificate: &X509Certificate<'_>, now: OffsetDateTime) -> Value {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names: Vec<Value> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .map(name)
        .collect();
    let uris: Vec<&str> = names.iter().filter_map(|name| name["uri"].as_str()).collect();
    let validity = certificate.validity();
    let not_after = validity.not_after.to_datetime();
    json!({
        "kind": if certificate.is_ca() { "authority" } else { "certificate" },
        // Drover's peers read an identity only where there is exactly one URI.
        "identity": if uris.len() == 1 { uris[0].into() } else { Value::Null },
        "subject": certificate.subject().to_string(),
        "issuer": certificate.issuer().to_string(),
        "names": names,
        "not_before": time(validity.not_before.to_datetime()),
        "not_after": time(not_after),
        "expired": not_after < now,
        "days_left": (not_after - now).whole_days(),
        "serial": certificate.raw_serial_as_string(),
    })
}

fn name(name: &GeneralName<'_>) -> Value {
    match name {
        GeneralName::URI(uri) => json!({ "uri": uri }),
        GeneralName::DNSName(dns) => json!({ "dns": dns }),
        GeneralName::IPAddress(bytes) => json!({ "ip": address(bytes) }),
        other @ (GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..)) => json!({ "other": other.to_string() }),
    }
}

fn address(bytes: &[u8]) -> String {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    address.map_or_else(|_| "not valid".to_owned(), |address| address.to_string())
}

fn time(time: OffsetDateTime) -> Value {
    time.format(&Rfc3339).map_or(Value::Null, Value::String)
}

/// Permissions as in `chmod`.
fn mode(file: &Path) -> Value {
    std::fs::metadata(file).map_or(Value::Null, |file| {
        format!("{:04o}", file.permissions().mode() & 0o7777).into()
    })
}

fn words(entry: &Value) -> String {
    let text = |key: &str| entry[key].as_str().unwrap_or("none").to_owned();
    let mut lines = vec![format!("{}: {}", text("file"), text("kind"))];
    if entry["mode"].is_string() {
        lines.push(format!("  mode      {}", text("mode")));
        return lines.join("\n");
    }
    let listed = |name: &Value| {
        let named = name.as_object()?.iter().next()?;
        Some(format!("{}:{}", named.0, named.1.as_str()?))
    };
    let names: Vec<String> = entry["names"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(listed)
        .collect();
    let life = match (entry["expired"].as_bool(), entry["days_left"].as_i64()) {
        (Some(true), _) => "EXPIRED".to_owned(),
        (_, days) => format!("{} days left", days.unwrap_or(0)),
    };
    lines.push(format!("  identity  {}", text("identity")));
    lines.push(format!("  names     {}", names.join(" ")));
    lines.push(format!("  issuer    {}", text("issuer")));
    lines.push(format!(
        "  valid     {} to {} ({life})",
        text("not_before"),
        text("not_after")
    ));
    lines.push(format!("  serial    {}", text("serial")));
    lines.join("\n")
}
