//! The other end of a `host` process: asks a command, gets the answer, complains with both.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

/// A host under test.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    enter: Vec<String>,
    uri: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What a host answered, and how long it took.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) result: Result<Value, Value>,
    pub(crate) milliseconds: f64,
}

impl Peer {
    pub(crate) fn start(name: &'static str, enter: &str, uri: &str) -> anyhow::Result<Self> {
        let enter: Vec<String> = enter.split_whitespace().map(str::to_owned).collect();
        let itself = std::env::current_exe()?;
        let mut command = in_host(&enter, itself.to_str().context("odd path")?);
        command
            .args(["host", "--uri", uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("{name}: {enter:?}"))?;
        let input = child.stdin.take().context("no stdin")?;
        let output = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self {
            name,
            enter,
            uri: uri.to_owned(),
            child,
            input,
            output,
        })
    }

    /// SIGKILL, and a fresh process in its place.
    pub(crate) fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        *self = Self::start(self.name, &self.enter.join(" "), &self.uri)?;
        Ok(())
    }

    pub(crate) fn ask(&mut self, op: &str, mut arguments: Value) -> anyhow::Result<Answer> {
        arguments["op"] = json!(op);
        writeln!(self.input, "{arguments}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "{} died over {op}", self.name);
        let mut reply: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        let milliseconds = reply["ms"].as_f64().unwrap_or(0.0);
        let result = if reply["error"].is_null() {
            Ok(reply["ok"].take())
        } else {
            Err(reply["error"].take())
        };
        let shown = match &result {
            Ok(_) => "ok".to_owned(),
            Err(error) => format!("{error}"),
        };
        println!("    {:<12}{op:<18}{milliseconds:>9.1} ms  {shown}", self.name);
        Ok(Answer { result, milliseconds })
    }

    /// Asks what has to work.
    pub(crate) fn must(&mut self, op: &str, arguments: Value) -> anyhow::Result<Value> {
        match self.ask(op, arguments)?.result {
            Ok(value) => Ok(value),
            Err(error) => bail!("{} refused {op}: {error}", self.name),
        }
    }

    /// The guest's state; `absent` where there is none.
    pub(crate) fn state(&mut self, guest: &str) -> anyhow::Result<String> {
        let facts = self.must("guest", json!({ "guest": guest }))?;
        Ok(facts["state"].as_str().unwrap_or("absent").to_owned())
    }

    /// Waits until the guest has one of these states.
    pub(crate) fn wait_for(&mut self, guest: &str, wanted: &[&str]) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let state = self.state(guest)?;
            if wanted.contains(&state.as_str()) {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "{}: the guest is {state}, not {wanted:?}",
                self.name
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Whatever the agent does not do itself.
    pub(crate) fn virsh(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = in_host(&self.enter, "virsh");
        let output = command.args(["-q", "-c", &self.uri]).args(arguments).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{}: virsh {arguments:?}: {complaint}",
            self.name
        );
        Ok(text)
    }
}

fn in_host(enter: &[String], program: &str) -> Command {
    match enter.split_first() {
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
        None => Command::new(program),
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
