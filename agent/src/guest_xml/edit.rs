//! Changes to a text of XML by place: what is not changed stays the very same bytes, quotes, order and spaces included.

use std::fmt::Write;
use std::ops::Range;

use roxmltree::{Attribute, Node};

/// A place cannot be changed safely; nothing was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its place in the definition cannot be told")]
pub(super) struct Unclear;

/// Changes that are collected, then made at once.
#[derive(Debug)]
pub(super) struct Edits<'a> {
    text: &'a str,
    changes: Vec<(Range<usize>, String)>,
}

impl<'a> Edits<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            changes: Vec::new(),
        }
    }

    /// Another value for an attribute, between the quotes that are there.
    pub(super) fn set(&mut self, attribute: Attribute<'_, '_>, value: &str) -> Result<(), Unclear> {
        let range = attribute.range_value();
        let quotes = (
            range.start.checked_sub(1).and_then(|before| self.byte(before)),
            self.byte(range.end),
        );
        // The parser counts spaces around `=` only so far.
        let (Some(open @ (b'"' | b'\'')), Some(close)) = quotes else {
            return Err(Unclear);
        };
        let inside = self.text.get(range.clone()).ok_or(Unclear)?;
        if open != close || inside.as_bytes().contains(&open) {
            return Err(Unclear);
        }
        self.changes.push((range, escape(value)));
        Ok(())
    }

    /// Another name for an attribute, its value and quotes untouched.
    pub(super) fn rename(&mut self, attribute: Attribute<'_, '_>, name: &str) -> Result<(), Unclear> {
        let range = attribute.range_qname();
        if self.text.get(range.clone()) != Some(attribute.name()) {
            return Err(Unclear);
        }
        self.changes.push((range, name.to_owned()));
        Ok(())
    }

    /// A new attribute, behind the others.
    pub(super) fn add(&mut self, element: Node<'_, '_>, name: &str, value: &str) -> Result<(), Unclear> {
        let at = match element.attributes().next_back() {
            Some(last) => last.range().end,
            None => self.end_of_name(element)?,
        };
        self.changes.push((at..at, format!(" {name}='{}'", escape(value))));
        Ok(())
    }

    /// Another element in the place of one.
    pub(super) fn replace(&mut self, element: Node<'_, '_>, with: String) {
        self.changes.push((element.range(), with));
    }

    /// A new element behind a sibling, indented like it.
    pub(super) fn add_behind(&mut self, sibling: Node<'_, '_>, element: &str) {
        let before = sibling.prev_sibling().filter(Node::is_text);
        let indent = before.map_or("", |text| &self.text[text.range()]);
        let indent = if indent.trim().is_empty() { indent } else { "" };
        let at = sibling.range().end;
        self.changes.push((at..at, format!("{indent}{element}")));
    }

    /// The text with all changes; none where two of them meet.
    pub(super) fn finish(mut self) -> Result<String, Unclear> {
        self.changes.sort_by_key(|(range, _)| (range.start, range.end));
        let mut written = String::with_capacity(self.text.len() + 256);
        let mut done = 0;
        for (range, with) in &self.changes {
            if range.start < done {
                return Err(Unclear);
            }
            written.push_str(self.text.get(done..range.start).ok_or(Unclear)?);
            written.push_str(with);
            done = range.end;
        }
        written.push_str(self.text.get(done..).ok_or(Unclear)?);
        Ok(written)
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    fn end_of_name(&self, element: Node<'_, '_>) -> Result<usize, Unclear> {
        let start = element.range().start + 1;
        let rest = self.text.get(start..).ok_or(Unclear)?;
        let length = rest.find(|c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>'));
        Ok(start + length.ok_or(Unclear)?)
    }
}

/// A value as it may stand between quotes of either kind.
pub(super) fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\t' | '\n' | '\r' => {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "&#{};", u32::from(c));
            }
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use roxmltree::Document;

    use super::*;

    fn edited(
        text: &str,
        change: impl Fn(&mut Edits<'_>, Node<'_, '_>) -> Result<(), Unclear>,
    ) -> Result<String, Unclear> {
        let document = Document::parse(text).unwrap();
        let mut edits = Edits::new(text);
        change(&mut edits, document.root_element())?;
        edits.finish()
    }

    fn first<'a>(node: Node<'a, 'a>) -> Attribute<'a, 'a> {
        node.attributes().next().unwrap()
    }

    #[test]
    fn a_value_changes_between_its_own_quotes() {
        let text = "<?xml version=\"1.0\"?>\n<a  b = \"x&amp;y\"\tc='1' />";
        assert_eq!(
            edited(text, |edits, a| edits.set(first(a), "1<\"'>&\n2")).unwrap(),
            "<?xml version=\"1.0\"?>\n<a  b = \"1&lt;&quot;&apos;&gt;&amp;&#10;2\"\tc='1' />"
        );
        assert_eq!(
            edited(text, |edits, a| edits.rename(first(a), "dev")).unwrap(),
            text.replace("b =", "dev =")
        );
    }

    #[test]
    fn what_is_added_stands_where_it_belongs() {
        assert_eq!(edited("<a/>", |edits, a| edits.add(a, "b", "1")).unwrap(), "<a b='1'/>");
        assert_eq!(
            edited("<a x=\"2\" >t</a>", |edits, a| edits.add(a, "b", "1")).unwrap(),
            "<a x=\"2\" b='1' >t</a>"
        );
        let behind = |text: &str| {
            edited(text, |edits, a| {
                edits.add_behind(a.first_element_child().unwrap(), "<n/>");
                Ok(())
            })
        };
        assert_eq!(behind("<a>\n  <b/>\n</a>").unwrap(), "<a>\n  <b/>\n  <n/>\n</a>");
        assert_eq!(behind("<a>word<b/></a>").unwrap(), "<a>word<b/><n/></a>");
    }

    #[test]
    fn what_cannot_be_placed_is_not_touched() {
        let spaces = " ".repeat(300);
        let text = format!("<a b{spaces}={spaces}'1'/>");
        assert_eq!(edited(&text, |edits, a| edits.set(first(a), "2")), Err(Unclear));
        let twice = |edits: &mut Edits<'_>, a: Node<'_, '_>| {
            edits.replace(a, "<b/>".to_owned());
            edits.set(first(a), "2")
        };
        assert_eq!(edited("<a b='1'/>", twice), Err(Unclear));
    }
}
