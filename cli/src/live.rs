//! The live display of a migration, on stderr: a bar on a terminal, plain lines elsewhere or where NO_COLOR is set.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use drover_proto::v1::watch_migration_response::Event;
use drover_proto::v1::{GuestSwitched, Migration};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::Output;
use crate::follow::{News, is_at_rest};
use crate::out;
use crate::render::progress::Moment;
use crate::render::{units, words};

/// Between two plain lines of the same phase.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Steps of a bar.
const STEPS: u64 = 1000;

pub(crate) struct Display {
    surface: Surface,
    /// So many finished phases were told.
    phases_told: usize,
}

enum Surface {
    Bar(ProgressBar),
    Lines { title: String, written: Option<Instant> },
    Nothing,
}

impl Display {
    pub(crate) fn new(output: Output) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let surface = match output {
            Output::Json => Surface::Nothing,
            Output::Table if terminal && !plain => Surface::Bar(bar()),
            Output::Table => Surface::Lines {
                title: String::new(),
                written: None,
            },
        };
        Self {
            surface,
            phases_told: 0,
        }
    }

    pub(crate) fn hear(&mut self, news: &News<'_>) {
        match news {
            News::Message(message, migration) => {
                self.show(migration);
                if let Some(Event::GuestSwitched(switched)) = &message.event {
                    self.say(&switched_line(switched));
                }
            }
            News::Lost(why) => self.say(&lost_line(*why)),
        }
    }

    pub(crate) fn show(&mut self, migration: &Migration) {
        let ended: Vec<_> = migration
            .phases
            .iter()
            .filter(|phase| phase.end_time.is_some())
            .collect();
        for phase in ended.iter().skip(self.phases_told) {
            let took = phase
                .start_time
                .zip(phase.end_time)
                .map_or(0.0, |(start, end)| units::between(start, end));
            let name = words::phase(phase.phase());
            self.say(&format!(
                "{name:<10} {} after {}",
                words::outcome(phase.outcome()),
                units::seconds(took)
            ));
        }
        self.phases_told = self.phases_told.max(ended.len());
        // The result says how it ended.
        if is_at_rest(migration) {
            return;
        }
        let moment = Moment::of(migration);
        match &mut self.surface {
            Surface::Bar(bar) => draw(bar, &moment),
            Surface::Lines { title, written } => {
                if *title != moment.title || written.is_none_or(|written| written.elapsed() >= LINE_INTERVAL) {
                    out::note(&moment.line());
                    title.clone_from(&moment.title);
                    *written = Some(Instant::now());
                }
            }
            Surface::Nothing => {}
        }
    }

    /// A line that stays.
    fn say(&self, line: &str) {
        match &self.surface {
            Surface::Bar(bar) => bar.println(line),
            Surface::Lines { .. } => out::note(line),
            Surface::Nothing => {}
        }
    }

    /// Leaves the screen to others.
    pub(crate) fn clear(&self) {
        if let Surface::Bar(bar) = &self.surface {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr());
    bar.set_style(
        ProgressStyle::with_template("{spinner} {prefix:<10} {bar:36} {percent:>3} %  {elapsed}\n  {wide_msg}")
            .expect("the template is well formed")
            .progress_chars("━╸ "),
    );
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn draw(bar: &ProgressBar, moment: &Moment) {
    bar.set_prefix(moment.title.clone());
    bar.set_message(moment.details.clone());
    // Without a measure the bar stays where it was: a phase after the transfer does not begin at zero.
    if let Some(fraction) = moment.fraction {
        bar.set_position((fraction * STEPS as f64) as u64);
    }
}

/// What is said while the controller is away.
pub(crate) fn lost_line(why: Option<&str>) -> String {
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    format!("connection to the controller lost, trying again{why}")
}

fn switched_line(switched: &GuestSwitched) -> String {
    let host = words::id(&switched.host);
    match switched.blackout {
        Some(blackout) => format!("the guest runs on {host}, blackout {}", units::duration(blackout)),
        // It may be shut off or paused, as it was before.
        None => format!("the guest is on {host} now"),
    }
}
