//! What the controllers of these tests write into their logs as WARN and ERROR, by migration.

use std::fmt;
use std::sync::{Mutex, Once};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

/// One line about a migration.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) level: Level,
    /// The bare UUID.
    pub(crate) migration: String,
    pub(crate) message: String,
}

/// Keeps the lines from now on, of the whole process.
pub(crate) fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let lines = tracing_subscriber::registry().with(LevelFilter::WARN).with(Keeper);
        tracing::subscriber::set_global_default(lines).unwrap();
    });
}

/// What was told of a migration, in order.
pub(crate) fn of(name: &str) -> Vec<Line> {
    let id = name.trim_start_matches("migrations/");
    let lines = LINES.lock().unwrap();
    lines.iter().filter(|line| line.migration == id).cloned().collect()
}

struct Keeper;

impl<S: Subscriber> Layer<S> for Keeper {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line {
            level: *event.metadata().level(),
            migration: String::new(),
            message: String::new(),
        };
        event.record(&mut line);
        if !line.migration.is_empty() {
            LINES.lock().unwrap().push(line);
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "migration_id" => self.migration = format!("{value:?}"),
            "message" => self.message = format!("{value:?}"),
            _ => {}
        }
    }
}
