//! `drover man`: manual pages, made from the same words as `--help`.

use std::path::Path;

use clap::CommandFactory;
use serde_json::json;

use crate::args::{Cli, Output};
use crate::exit::{Exit, Problem};
use crate::out;

/// Writes `drover.1`, `drover-migrate.1`, … into a folder, which is made where it is not there.
pub(crate) fn write(dir: &Path, output: Output) -> Result<(), Problem> {
    let failed = |error: std::io::Error| {
        let message = format!("cannot write manual pages to {}: {error}", dir.display());
        Problem::new(Exit::Failed, message).with_next("name a folder that you may write to with --dir")
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?;
    match output {
        Output::Table => out::result(&format!("Manual pages are in {0}: man {0}/drover.1", dir.display())),
        Output::Json => out::json(&json!({ "folder": dir })),
    }
}
