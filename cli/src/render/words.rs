//! The API's enums in lower-case words.

use drover_proto::v1::{
    CheckResult, GuestState, HostState, MigrationPhase, MigrationState, PhaseOutcome, TransferStage,
};

fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix)
        .unwrap_or(name)
        .to_lowercase()
        .replace('_', "-")
}

pub(crate) fn state(state: MigrationState) -> String {
    word(state.as_str_name(), "MIGRATION_STATE_")
}

pub(crate) fn phase(phase: MigrationPhase) -> String {
    match phase {
        MigrationPhase::Unspecified => "-".to_owned(),
        MigrationPhase::Validate
        | MigrationPhase::Prepare
        | MigrationPhase::Transfer
        | MigrationPhase::Verify
        | MigrationPhase::Finalize
        | MigrationPhase::Abort
        | MigrationPhase::Discard => word(phase.as_str_name(), "MIGRATION_PHASE_"),
    }
}

pub(crate) fn outcome(outcome: PhaseOutcome) -> String {
    match outcome {
        PhaseOutcome::Unspecified => "under way".to_owned(),
        PhaseOutcome::Done | PhaseOutcome::Refused | PhaseOutcome::Unknown | PhaseOutcome::Interrupted => {
            word(outcome.as_str_name(), "PHASE_OUTCOME_")
        }
    }
}

pub(crate) fn stage(stage: TransferStage) -> String {
    word(stage.as_str_name(), "TRANSFER_STAGE_")
}

pub(crate) fn guest_state(state: GuestState) -> String {
    word(state.as_str_name(), "GUEST_STATE_")
}

pub(crate) fn host_state(state: HostState) -> String {
    word(state.as_str_name(), "HOST_STATE_")
}

pub(crate) fn check_result(result: CheckResult) -> String {
    word(result.as_str_name(), "CHECK_RESULT_")
}

/// The id in a resource name: the part after the last slash.
pub(crate) fn id(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The same, or a dash.
pub(crate) fn id_or_dash(name: &str) -> &str {
    if name.is_empty() { "-" } else { id(name) }
}

/// What a guest is called: its name, or its UUID where the name is not known.
pub(crate) fn guest<'a>(name: &'a str, uuid: &'a str) -> &'a str {
    if name.is_empty() { uuid } else { name }
}

/// A message without the addresses of manuals that libraries put into their own.
pub(crate) fn without_manual(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::new();
    while let Some(at) = rest.find("https://docs.rs/") {
        kept.push_str(rest[..at].trim_end_matches([':', ' ']));
        let end = rest[at..].find(char::is_whitespace).unwrap_or(rest.len() - at);
        rest = &rest[at + end..];
    }
    kept + rest
}

/// Text from elsewhere for one line of a terminal: no control characters.
pub(crate) fn one_line(text: &str) -> String {
    without_manual(text)
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enums_become_words() {
        assert_eq!(state(MigrationState::AttentionRequired), "attention-required");
        assert_eq!(phase(MigrationPhase::Transfer), "transfer");
        assert_eq!(guest_state(GuestState::ShutOff), "shut-off");
        assert_eq!(id("hosts/a/guests/b"), "b");
        let eof = "peer closed: https://docs.rs/rustls/latest/x#y (host-b)";
        assert_eq!(one_line(eof), "peer closed (host-b)");
        assert_eq!(one_line("a\x1b[31m\nb"), "a [31m b");
    }
}
