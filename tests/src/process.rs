//! Running programs and waiting for conditions, never without an end.

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};
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
    let mut stdout = Collected::new(child.stdout.take())?;
    let mut stderr = Collected::new(child.stderr.take())?;
    let status = wait_for_exit(&mut child, limit, || {
        stdout.take_what_is_there();
        stderr.take_what_is_there();
    })
    .with_context(|| format!("running {command:?}"))?;
    Ok(Output {
        status,
        wall: started.elapsed(),
        stdout: stdout.text(),
        stderr: stderr.text(),
    })
}

/// `meanwhile` is called again and again, and once after the end.
fn wait_for_exit(child: &mut Child, limit: Duration, mut meanwhile: impl FnMut()) -> Result<ExitStatus> {
    let started = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        let ended = child.try_wait()?;
        meanwhile();
        if let Some(status) = ended {
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

/// What a program writes. Daemons that it leaves behind may hold its output open for ever, so the end of the stream is
/// not waited for: what the program itself wrote is in the pipe when it has ended.
struct Collected<S> {
    stream: Option<S>,
    bytes: Vec<u8>,
}

impl<S: Read + AsFd> Collected<S> {
    fn new(stream: Option<S>) -> Result<Self> {
        if let Some(stream) = &stream {
            fcntl(stream, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("a pipe that does not block")?;
        }
        let bytes = Vec::new();
        Ok(Self { stream, bytes })
    }

    fn take_what_is_there(&mut self) {
        if let Some(stream) = &mut self.stream {
            // An empty pipe is an error too; what came before it is kept.
            let _ = stream.read_to_end(&mut self.bytes);
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
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
