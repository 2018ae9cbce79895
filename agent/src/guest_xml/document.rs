//! Reading a definition from outside: bounded in size, count and depth, and without entities of its own.

use roxmltree::{Document, ParsingOptions};

/// Largest definition that is read, in bytes. The largest in use have some hundred devices and 200 KiB.
pub const MAX_BYTES: usize = 1 << 20;

/// Most nodes (elements, texts, comments).
const MAX_NODES: u32 = 100_000;

/// Deepest nesting. A backing chain, the deepest that libvirt writes, has at most 200 images.
const MAX_DEPTH: u32 = 512;

/// The definition is not what libvirt writes.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("the guest's definition has {0} bytes, at most {MAX_BYTES} are read")]
    TooLarge(usize),
    #[error("the guest's definition is nested deeper than {MAX_DEPTH} elements")]
    TooDeep,
    #[error("the guest's definition begins with <{0}>, not with <domain>")]
    Root(String),
    /// Also a document type, which could declare entities, and too many nodes.
    #[error("the guest's definition cannot be read: {0}")]
    Xml(#[from] roxmltree::Error),
}

/// Parses a definition.
pub(super) fn parse(xml: &str) -> Result<Document<'_>, Unreadable> {
    if xml.len() > MAX_BYTES {
        return Err(Unreadable::TooLarge(xml.len()));
    }
    let options = ParsingOptions {
        allow_dtd: false,
        nodes_limit: MAX_NODES,
        ..ParsingOptions::default()
    };
    let document = Document::parse_with_options(xml, options)?;
    if depth(&document) > MAX_DEPTH {
        return Err(Unreadable::TooDeep);
    }
    let root = document.root_element().tag_name().name();
    if root != "domain" {
        return Err(Unreadable::Root(root.chars().take(80).collect()));
    }
    Ok(document)
}

/// In one pass: a node comes after its parent, and ids count in document order.
fn depth(document: &Document<'_>) -> u32 {
    let mut depths: Vec<u32> = Vec::new();
    for node in document.descendants() {
        let depth = node
            .parent()
            .and_then(|parent| depths.get(parent.id().get_usize()))
            .map_or(0, |above| above + 1);
        let at = node.id().get_usize();
        if depths.len() <= at {
            depths.resize(at + 1, 0);
        }
        depths[at] = depth;
    }
    depths.into_iter().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_too_deep_or_no_guest_is_refused() {
        let nested = |levels: usize| format!("<domain>{}{}</domain>", "<a>".repeat(levels), "</a>".repeat(levels));
        assert!(parse(&nested(500)).is_ok());
        assert!(matches!(parse(&nested(600)), Err(Unreadable::TooDeep)));
        assert!(parse(&nested(90_000)).is_err(), "and the stack holds");
        let large = format!("<domain>{}</domain>", " ".repeat(MAX_BYTES));
        assert!(matches!(parse(&large), Err(Unreadable::TooLarge(_))));
        let many = format!("<domain>{}</domain>", "<a/>".repeat(100_001));
        assert!(matches!(parse(&many), Err(Unreadable::Xml(_))));
        assert!(matches!(parse("<network/>"), Err(Unreadable::Root(_))));
    }

    #[test]
    fn entities_of_its_own_are_refused() {
        for xml in [
            "<!DOCTYPE domain [<!ENTITY a 'b'>]><domain>&a;</domain>",
            "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain/>",
            "<domain>&a;</domain>",
        ] {
            assert!(matches!(parse(xml), Err(Unreadable::Xml(_))), "{xml}");
        }
    }
}
