//! Writing results to stdout and notes to stderr. A reader that went away (`drover … | head`) is no error.

use std::io::{ErrorKind, Write};

use serde_json::Value;

use crate::exit::{Exit, Problem};

/// A result, with a newline at its end.
pub(crate) fn result(text: &str) -> Result<(), Problem> {
    let mut text = text.trim_end().to_owned();
    text.push('\n');
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Problem::new(Exit::Failed, format!("cannot write the result: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A result for programs: one indented document.
pub(crate) fn json(value: &Value) -> Result<(), Problem> {
    result(&format!("{value:#}"))
}

/// A result for programs: one line of a stream.
pub(crate) fn json_line(value: &Value) -> Result<(), Problem> {
    result(&value.to_string())
}

/// A note for people.
pub(crate) fn note(text: &str) {
    // There is nowhere to complain about a closed stderr.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A question to whoever sits at the terminal; the answer follows on the same line.
pub(crate) fn ask(text: &str) -> Result<(), Problem> {
    let mut stderr = std::io::stderr().lock();
    let asked = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    asked.map_err(|error| Problem::new(Exit::Failed, format!("cannot ask: {error}")))
}
