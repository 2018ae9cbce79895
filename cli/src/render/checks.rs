//! Checks as tables for terminals of 80 columns: one line for each destination, or each thing that was looked at.

use drover_proto::v1::{Check, CheckResult, DestinationChecks, DiskAction, DiskPlan, EstimateView};

use super::{estimate, units, words};

/// Lines are never longer, however wide the terminal: the output is the same when it is piped.
const WIDTH: usize = 80;

/// Narrower columns help nobody.
const LEAST: usize = 24;

/// What is checked.
#[derive(Clone, Copy)]
pub(crate) struct Headline<'a> {
    pub(crate) guest: &'a str,
    pub(crate) source: &'a str,
    /// What is told of the cost.
    pub(crate) estimates: EstimateView,
}

/// A summary, or `every` check of every destination.
pub(crate) fn all(headline: Headline<'_>, destinations: &[DestinationChecks], every: bool) -> String {
    if destinations.is_empty() {
        return format!("{}: there is no other host", words::one_line(headline.guest));
    }
    if every {
        let tables = destinations.iter().map(|destination| table(headline, destination));
        return tables.collect::<Vec<_>>().join("\n\n");
    }
    summary(headline, destinations)
}

/// One line for each destination, with what it would cost or what is in the way.
fn summary(headline: Headline<'_>, destinations: &[DestinationChecks]) -> String {
    let rows = destinations.iter().map(|destination| {
        let word = if destination.acceptable { "yes" } else { "no" };
        let obstacle = first_obstacle(destination);
        let text = match (obstacle, &destination.estimate) {
            (Some(check), _) => format!("{}: {}", check.id, check.found),
            (None, Some(expected)) => estimate::short(expected),
            (None, None) if headline.estimates == EstimateView::None => estimate::LEFT_OUT.to_owned(),
            (None, None) => "-".to_owned(),
        };
        [
            words::id(&destination.destination_host).to_owned(),
            word.to_owned(),
            text,
        ]
    });
    let mut lines = vec![
        format!("{} on {}", words::one_line(headline.guest), headline.source),
        String::new(),
    ];
    lines.extend(columns(
        ["HOST", "ACCEPTABLE", "ESTIMATE, OR FIRST OBSTACLE"],
        rows.collect(),
    ));
    if destinations.iter().any(|destination| !destination.acceptable) {
        lines.push(String::new());
        lines.push("--to HOST shows every check of a host, and what to do".to_owned());
    }
    lines.join("\n")
}

fn first_obstacle(destination: &DestinationChecks) -> Option<&Check> {
    let of = |wanted: CheckResult| destination.checks.iter().find(|check| check.result() == wanted);
    // What was not checked may be a hint only: the controller has decided that.
    let unmade = || of(CheckResult::NotChecked).filter(|_| !destination.acceptable);
    of(CheckResult::Failed).or_else(unmade)
}

/// Every check of one destination.
fn table(headline: Headline<'_>, destination: &DestinationChecks) -> String {
    let verdict = if destination.acceptable {
        "acceptable"
    } else {
        "not acceptable"
    };
    let host = words::id(&destination.destination_host);
    let first = format!(
        "{} {} → {host}: {verdict}",
        words::one_line(headline.guest),
        headline.source
    );
    let mut lines = vec![first, String::new()];
    let rows = destination.checks.iter().map(|check| {
        let result = match check.result() {
            CheckResult::Passed => "passed",
            CheckResult::Failed => "FAILED",
            CheckResult::NotChecked | CheckResult::Unspecified => "not checked",
        };
        let remedy = Some(check.remedy.as_str()).filter(|remedy| !remedy.is_empty());
        let next = remedy.map(|remedy| format!("\nnext: {remedy}")).unwrap_or_default();
        [check.id.clone(), result.to_owned(), format!("{}{next}", check.found)]
    });
    lines.extend(columns(["CHECK", "RESULT", "FOUND"], rows.collect()));
    if !destination.disks.is_empty() {
        lines.push(String::new());
        lines.extend(columns(["DISK", "PLAN", "WHAT IT IS"], disks(&destination.disks)));
    }
    match &destination.estimate {
        Some(expected) => {
            lines.push(String::new());
            lines.extend(estimate::table(expected));
        }
        None if headline.estimates == EstimateView::None && destination.acceptable => {
            lines.push(String::new());
            lines.push(format!("estimate {}", estimate::LEFT_OUT));
        }
        None => {}
    }
    lines.join("\n")
}

/// One row for each disk: what is done with it, and what it is.
fn disks(disks: &[DiskPlan]) -> Vec<[String; 3]> {
    let row = |disk: &DiskPlan| {
        let action = match disk.action() {
            DiskAction::None => "nothing",
            DiskAction::CopyLive | DiskAction::CopyOffline => "copy",
            DiskAction::Refuse => "REFUSED",
            DiskAction::Unspecified => "unknown",
        };
        let mut words = vec![disk.format.clone(), disk.source.clone()];
        if !disk.destination_source.is_empty() && disk.destination_source != disk.source {
            words.push(format!("→ {}", disk.destination_source));
        }
        words.extend(disk.backing.iter().map(|layer| format!("on {layer}")));
        words.retain(|word| !word.is_empty());
        let mut text = words.join(" ");
        if disk.virtual_size_bytes > 0 {
            let (taken, size) = (
                units::bytes(disk.allocated_bytes),
                units::bytes(disk.virtual_size_bytes),
            );
            text.push_str(&format!(", {taken} of {size}"));
        }
        if disk.read_only {
            text.push_str(", read-only");
        }
        text.push_str(&format!("\n{}", disk.reason));
        if disk.destination_free_bytes > 0 {
            text.push_str(&format!(", {} free there", units::bytes(disk.destination_free_bytes)));
        }
        [disk.target.clone(), action.to_owned(), text]
    };
    disks.iter().map(row).collect()
}

/// Two narrow columns, and one that is wrapped in what is left of the line. A line break begins a new line there.
pub(super) fn columns(header: [&str; 3], rows: Vec<[String; 3]>) -> Vec<String> {
    let widest = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let (first, second) = (widest(0), widest(1));
    let left = first + second + 4;
    let width = WIDTH.saturating_sub(left).max(LEAST);
    let line =
        |one: &str, two: &str, three: &str| format!("{one:<first$}  {two:<second$}  {three}").trim_end().to_owned();
    let mut lines = vec![line(header[0], header[1], header[2])];
    for [one, two, text] in rows {
        let mut wrapped: Vec<String> = text
            .split('\n')
            .flat_map(|part| wrap(&words::one_line(part), width))
            .collect();
        if wrapped.is_empty() {
            wrapped.push(String::new());
        }
        lines.push(line(&words::one_line(&one), &two, &wrapped[0]));
        lines.extend(wrapped[1..].iter().map(|more| line("", "", more)));
    }
    lines
}

/// Words in lines of at most `width` characters; a word that is longer is cut.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let letters: Vec<char> = word.chars().collect();
        for (at, piece) in letters.chunks(width).enumerate() {
            let piece: String = piece.iter().collect();
            match lines.last_mut() {
                Some(last) if at == 0 && last.chars().count() + 1 + piece.chars().count() <= width => {
                    last.push(' ');
                    last.push_str(&piece);
                }
                Some(_) | None => lines.push(piece),
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADLINE: Headline<'_> = Headline {
        guest: "web-1",
        source: "host-a",
        estimates: EstimateView::Full,
    };

    fn check(id: &str, result: CheckResult, found: &str, remedy: &str) -> Check {
        Check {
            id: id.to_owned(),
            result: result.into(),
            found: found.to_owned(),
            remedy: remedy.to_owned(),
        }
    }

    fn destination(host: &str, acceptable: bool, checks: Vec<Check>) -> DestinationChecks {
        DestinationChecks {
            destination_host: format!("hosts/{host}"),
            acceptable,
            checks,
            ..DestinationChecks::default()
        }
    }

    fn two() -> Vec<DestinationChecks> {
        let lock = check(
            "lock-manager",
            CheckResult::NotChecked,
            "an agent may not read /etc/libvirt/qemu.conf",
            "see that lock_manager is the same on both hosts",
        );
        vec![
            destination(
                "host-b",
                true,
                vec![
                    check("cpu", CheckResult::Passed, "the guest's CPU can be had here", ""),
                    lock,
                ],
            ),
            destination(
                "host-c",
                false,
                vec![
                    check("cpu", CheckResult::Passed, "the guest's CPU can be had here", ""),
                    check(
                        "storage-shared",
                        CheckResult::Failed,
                        "vda (/srv/shared/web-1.qcow2): /srv/shared/.drover-probe-6b8f79be-5c29-48c6-86ea-4cc6a4dc2fe8 \
                         is not there: the folder is not the same one",
                        "put the disks on storage that both hosts have at the same path",
                    ),
                ],
            ),
        ]
    }

    #[test]
    fn all_destinations_are_a_line_each() {
        assert_eq!(
            all(HEADLINE, &two(), false),
            "web-1 on host-a\n\
             \n\
             HOST    ACCEPTABLE  ESTIMATE, OR FIRST OBSTACLE\n\
             host-b  yes         -\n\
             host-c  no          storage-shared: vda (/srv/shared/web-1.qcow2):\n\
             \x20                   /srv/shared/.drover-probe-6b8f79be-5c29-48c6-86ea-4cc6a4dc2f\n\
             \x20                   e8 is not there: the folder is not the same one\n\
             \n\
             --to HOST shows every check of a host, and what to do"
        );
    }

    #[test]
    fn one_destination_shows_every_check_within_80_columns() {
        let text = all(HEADLINE, &two(), true);
        assert_eq!(
            text,
            "web-1 host-a → host-b: acceptable\n\
             \n\
             CHECK         RESULT       FOUND\n\
             cpu           passed       the guest's CPU can be had here\n\
             lock-manager  not checked  an agent may not read /etc/libvirt/qemu.conf\n\
             \x20                          next: see that lock_manager is the same on both hosts\n\
             \n\
             web-1 host-a → host-c: not acceptable\n\
             \n\
             CHECK           RESULT  FOUND\n\
             cpu             passed  the guest's CPU can be had here\n\
             storage-shared  FAILED  vda (/srv/shared/web-1.qcow2):\n\
             \x20                       /srv/shared/.drover-probe-6b8f79be-5c29-48c6-86ea-4cc6a4\n\
             \x20                       dc2fe8 is not there: the folder is not the same one\n\
             \x20                       next: put the disks on storage that both hosts have at\n\
             \x20                       the same path"
        );
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
    }

    #[test]
    fn what_was_left_out_is_not_called_unknown() {
        let asked = Headline {
            estimates: EstimateView::None,
            ..HEADLINE
        };
        let text = all(asked, &two(), false);
        assert!(text.contains("host-b  yes         left out\n"), "{text}");
        assert!(text.contains("host-c  no          storage-shared: "), "{text}");
        let text = all(asked, &two(), true);
        assert_eq!(text.matches("\n\nestimate left out").count(), 1, "{text}");
    }

    #[test]
    fn each_disk_is_told_with_what_is_done_with_it() {
        let plan = |target: &str, action: DiskAction, reason: &str| DiskPlan {
            target: target.to_owned(),
            source: format!("/srv/{target}.qcow2"),
            destination_source: format!("/srv/{target}.qcow2"),
            format: "qcow2".to_owned(),
            virtual_size_bytes: 10 << 30,
            allocated_bytes: 2 << 30,
            action: action.into(),
            reason: reason.to_owned(),
            ..DiskPlan::default()
        };
        let copied = DiskPlan {
            destination_source: "/data/vdb.qcow2".to_owned(),
            destination_free_bytes: 90 << 30,
            ..plan("vdb", DiskAction::CopyLive, "not shared")
        };
        let host = DestinationChecks {
            disks: vec![plan("vda", DiskAction::None, "shared"), copied],
            ..destination("host-b", true, vec![check("cpu", CheckResult::Passed, "fits", "")])
        };
        assert_eq!(
            all(HEADLINE, &[host], true),
            "web-1 host-a → host-b: acceptable\n\
             \n\
             CHECK  RESULT  FOUND\n\
             cpu    passed  fits\n\
             \n\
             DISK  PLAN     WHAT IT IS\n\
             vda   nothing  qcow2 /srv/vda.qcow2, 2.0 GiB of 10 GiB\n\
             \x20              shared\n\
             vdb   copy     qcow2 /srv/vdb.qcow2 → /data/vdb.qcow2, 2.0 GiB of 10 GiB\n\
             \x20              not shared, 90 GiB free there"
        );
    }

    #[test]
    fn text_from_elsewhere_cannot_break_the_table() {
        let odd = destination(
            "host-b",
            false,
            vec![check("a\x1b[31m", CheckResult::Failed, "b\tc\x07", "")],
        );
        let text = all(HEADLINE, &[odd], true);
        assert!(!text.contains('\x1b') && !text.contains('\x07'), "{text:?}");
        assert_eq!(all(HEADLINE, &[], false), "web-1: there is no other host");
        let silent = destination("host-b", false, vec![check("x", CheckResult::Failed, "", "")]);
        assert!(all(HEADLINE, &[silent], true).contains("x      FAILED"));
    }
}
