//! Running programs and waiting for conditions, never without an end.

use anyhow::{Context, Result, bail};
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a finished program left: how it ended and what it said.
#[derive(Debug, Clone)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// From start to end.
    pub wall: Duration,
}

/// Runs a program to its end, at most for `limit`; the program's failure is an error that quotes what it said.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    let output = run_any(command, limit)?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}: {}{}",
            output.status,
            output.stderr.trim(),
            output.stdout.trim()
        );
    }
    Ok(output)
}

/// Like [`run`], but a failing program is no error.
pub(crate) fn run_any(command: &mut Command, limit: Duration) -> Result<Output> {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait_for_exit(&mut child, limit).with_context(|| format!("running {command:?}"))?;
    // Daemons that a program leaves behind may hold its output open for ever: what came until now is enough.
    let wall = started.elapsed();
    Ok(Output {
        status,
        stdout: finish(&stdout),
        stderr: finish(&stderr),
        wall,
    })
}

fn wait_for_exit(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let started = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if started.elapsed() > limit {
            child.kill().context("killing a program that did not end in time")?;
            child.wait()?;
            bail!("did not end within {limit:?}; killed");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

struct Collected {
    reader: JoinHandle<()>,
    text: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
}

fn collect(stream: Option<impl Read + Send + 'static>) -> Collected {
    let text = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = std::sync::Arc::clone(&text);
    let reader = std::thread::spawn(move || {
        let Some(mut stream) = stream else { return };
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            sink.lock()
                .expect("reader threads do not panic")
                .extend_from_slice(&buffer[..length]);
        }
    });
    Collected { reader, text }
}

fn finish(collected: &Collected) -> String {
    let deadline = Instant::now() + Duration::from_millis(300);
    while !collected.reader.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
    let text = collected.text.lock().expect("reader threads do not panic");
    String::from_utf8_lossy(&text).into_owned()
}

/// Asks `look` until it returns something, at most for `limit`. An error of `look` means "not yet" and is quoted at
/// the end; `what` says what was waited for and where to look (name the log file).
pub fn wait_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let problem = match look() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if started.elapsed() > limit {
            return match problem {
                Some(error) => Err(error.context(format!("waited {limit:?} for {what}"))),
                None => bail!("waited {limit:?} for {what}"),
            };
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(25));
    }
}
