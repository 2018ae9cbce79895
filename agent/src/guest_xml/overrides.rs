//! A definition as the destination is to have it: the overrides in their places, every other byte as it was.
//!
//! An override that does not fit is a problem with the field it came from. The rules are the same when they are only
//! asked about and when a migration begins.

use std::net::IpAddr;

use drover_proto::overrides::{DiskSource, InterfaceNetwork, MacAddress, Network, Overrides, Problem};
use roxmltree::{Document, Node};

use super::document::{self, Unreadable};
use super::edit::{Edits, Unclear, escape};
use super::{child, children};

/// Which definition is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Definition {
    /// Of the running guest: every override has to name something in it.
    Live,
    /// What the guest is at its next start: devices that it does not have are passed over.
    Persistent,
}

/// Why a definition was not changed.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("{}", words(.0))]
    Problems(Vec<Problem>),
}

/// Problems in one line.
fn words(problems: &[Problem]) -> String {
    let each = problems.iter().map(|(field, why)| format!("{field}: {why}"));
    each.collect::<Vec<_>>().join("; ")
}

/// The definition with the overrides.
pub fn apply(xml: &str, overrides: &Overrides, definition: Definition) -> Result<String, Unfit> {
    if overrides.is_empty() {
        return Ok(xml.to_owned());
    }
    let document = document::parse(xml)?;
    let mut change = Change {
        document: &document,
        definition,
        edits: Edits::new(xml),
        problems: Vec::new(),
    };
    for (at, disk) in overrides.disks.iter().enumerate() {
        let done = change.disk(disk);
        change.note(|| format!("disks[{at}].target"), done);
    }
    for (at, interface) in overrides.interfaces.iter().enumerate() {
        let done = change.interface(interface);
        change.note(|| format!("interfaces[{at}].mac_address"), done);
    }
    if let Some(address) = overrides.graphics_listen {
        let done = change.graphics(address);
        change.note(|| "graphics_listen_address".to_owned(), done);
    }
    let Change { edits, problems, .. } = change;
    if !problems.is_empty() {
        return Err(Unfit::Problems(problems));
    }
    edits
        .finish()
        .map_err(|unclear| Unfit::Problems(vec![("disks".to_owned(), unclear.to_string())]))
}

/// Why one override does not fit.
enum Misfit {
    /// The guest has no such thing: no problem in a persistent definition.
    Absent(String),
    Wrong(String),
}

impl From<Unclear> for Misfit {
    fn from(unclear: Unclear) -> Self {
        Self::Wrong(unclear.to_string())
    }
}

struct Change<'a> {
    document: &'a Document<'a>,
    definition: Definition,
    edits: Edits<'a>,
    problems: Vec<Problem>,
}

impl<'a> Change<'a> {
    fn note(&mut self, field: impl FnOnce() -> String, done: Result<(), Misfit>) {
        match (done, self.definition) {
            (Ok(()), Definition::Live | Definition::Persistent) | (Err(Misfit::Absent(_)), Definition::Persistent) => {}
            (Err(Misfit::Absent(why)), Definition::Live)
            | (Err(Misfit::Wrong(why)), Definition::Live | Definition::Persistent) => {
                self.problems.push((field(), why));
            }
        }
    }

    /// All devices of a kind.
    fn devices(&self, kind: &'static str) -> impl Iterator<Item = Node<'a, 'a>> {
        let root = self.document.root_element();
        let all = children(root, "devices");
        all.flat_map(move |devices| children(devices, kind))
    }

    fn disk(&mut self, wanted: &DiskSource) -> Result<(), Misfit> {
        let target = wanted.target.as_str();
        let named = |disk: &Node<'a, 'a>| child(*disk, "target").and_then(|node| node.attribute("dev")) == Some(target);
        let disk = only(self.devices("disk").filter(named), || {
            format!("the guest has no disk {target}")
        })?;
        let kind = disk
            .attribute_node("type")
            .ok_or_else(|| wrong("its type is not said"))?;
        let (old, new) = match kind.value() {
            "file" => ("file", wanted.source.is_device().then_some(("block", "dev"))),
            "block" => ("dev", (!wanted.source.is_device()).then_some(("file", "file"))),
            other => {
                let why = format!("{target} is of type {other:?}: only files and block devices can lie elsewhere");
                return Err(Misfit::Wrong(why));
            }
        };
        let path = child(disk, "source").and_then(|source| source.attribute_node(old));
        let path = path.ok_or_else(|| Misfit::Absent(format!("the drive {target} is empty")))?;
        if children(disk, "backingStore").any(|store| child(store, "source").is_some()) {
            let why = format!("{target} has a backing chain, whose files would be looked for at their old places");
            return Err(Misfit::Wrong(why));
        }
        self.edits.set(path, wanted.source.as_str())?;
        if let Some((new_kind, new_name)) = new {
            self.edits.rename(path, new_name)?;
            self.edits.set(kind, new_kind)?;
        }
        Ok(())
    }

    fn interface(&mut self, wanted: &InterfaceNetwork) -> Result<(), Misfit> {
        let has = |interface: &Node<'a, 'a>| mac(*interface) == Some(wanted.mac_address);
        let absent = || format!("the guest has no interface {}", wanted.mac_address);
        let interface = only(self.devices("interface").filter(has), absent)?;
        let kind = interface.attribute("type").unwrap_or_default();
        match &wanted.network {
            Network::Bridge(name) => self.bridge(interface, kind, name.as_str()),
            Network::Device(name) => self.device(interface, kind, name.as_str()),
        }
    }

    fn bridge(&mut self, interface: Node<'a, 'a>, kind: &str, name: &str) -> Result<(), Misfit> {
        let source = child(interface, "source").ok_or_else(|| wrong("it has no source"))?;
        match kind {
            "bridge" => {
                let bridge = source
                    .attribute_node("bridge")
                    .ok_or_else(|| wrong("its bridge is not said"))?;
                self.edits.set(bridge, name)?;
            }
            "network" => {
                let kind = interface
                    .attribute_node("type")
                    .ok_or_else(|| wrong("its type is not said"))?;
                self.edits.set(kind, "bridge")?;
                self.edits
                    .replace(source, format!("<source bridge='{}'/>", escape(name)));
            }
            other => {
                let why = format!(
                    "it is of type {other:?}: only one on a bridge or a libvirt network can be put on a bridge"
                );
                return Err(Misfit::Wrong(why));
            }
        }
        Ok(())
    }

    fn device(&mut self, interface: Node<'a, 'a>, kind: &str, name: &str) -> Result<(), Misfit> {
        if !matches!(kind, "bridge" | "network" | "ethernet") {
            return Err(Misfit::Wrong(format!(
                "it is of type {kind:?}, which has no tap device"
            )));
        }
        match child(interface, "target") {
            Some(target) => match target.attribute_node("dev") {
                Some(dev) => self.edits.set(dev, name)?,
                None => self.edits.add(target, "dev", name)?,
            },
            None => {
                let behind = child(interface, "source").or_else(|| child(interface, "mac"));
                let behind = behind.ok_or(Unclear)?;
                self.edits
                    .add_behind(behind, &format!("<target dev='{}'/>", escape(name)));
            }
        }
        Ok(())
    }

    fn graphics(&mut self, address: IpAddr) -> Result<(), Misfit> {
        let address = address.to_string();
        let mut found = false;
        let kinds = ["vnc", "spice", "rdp"];
        let remote = |graphics: &Node<'a, 'a>| graphics.attribute("type").is_some_and(|kind| kinds.contains(&kind));
        for graphics in self.devices("graphics").filter(remote).collect::<Vec<_>>() {
            found |= self.listen(graphics, &address)?;
        }
        let why = "the guest has no VNC, SPICE or RDP that listens on an address";
        found.then_some(()).ok_or_else(|| Misfit::Absent(why.to_owned()))
    }

    /// Whether it listens on an address at all.
    fn listen(&mut self, graphics: Node<'a, 'a>, address: &str) -> Result<bool, Misfit> {
        let attribute = graphics.attribute_node("listen");
        let mut found = attribute.is_some();
        if let Some(listen) = attribute {
            self.edits.set(listen, address)?;
        }
        for listen in children(graphics, "listen") {
            match listen.attribute("type") {
                Some("address") => match listen.attribute_node("address") {
                    Some(old) => self.edits.set(old, address)?,
                    None => self.edits.add(listen, "address", address)?,
                },
                // The network's address was the source's own.
                Some("network") => {
                    let element = format!("<listen type='address' address='{}'/>", escape(address));
                    self.edits.replace(listen, element);
                }
                Some(_) | None => continue,
            }
            found = true;
        }
        if attribute.is_none()
            && children(graphics, "listen").next().is_none()
            && graphics.attribute("socket").is_none()
        {
            self.edits.add(graphics, "listen", address)?;
            found = true;
        }
        Ok(found)
    }
}

fn wrong(why: &str) -> Misfit {
    Misfit::Wrong(why.to_owned())
}

fn only<'a>(
    mut found: impl Iterator<Item = Node<'a, 'a>>,
    absent: impl FnOnce() -> String,
) -> Result<Node<'a, 'a>, Misfit> {
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(Misfit::Absent(absent())),
        (Some(_), Some(_)) => Err(wrong("the guest has several of that name")),
    }
}

fn mac(interface: Node<'_, '_>) -> Option<MacAddress> {
    child(interface, "mac")?.attribute("address")?.parse().ok()
}

#[cfg(test)]
#[path = "overrides_tests.rs"]
mod tests;
