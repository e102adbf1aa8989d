//! Links between hosts: what is lost and what is refused on them.
//!
//! Rules are the receiving host's, in its own network namespace, for packets by their sender's address. They hold for
//! connections that are open already, and are in force before a host that starts runs anything. The test itself reaches
//! every host at any time.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use super::Lab;

/// What happens to packets of one host on their way to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// They are lost.
    Lost,
    /// They are answered with a reset, as a firewall does.
    Reset,
}

/// Faults by sender and receiver.
#[derive(Debug, Default)]
pub(super) struct Links(BTreeMap<(String, String), Fault>);

impl Lab {
    /// Loses every packet from one host to another; the other direction stays as it is.
    ///
    /// # Errors
    /// If the rules can't be set.
    pub async fn cut_one_way(&mut self, from: &str, to: &str) -> Result<()> {
        self.note(format!("cut: {from} → {to}"));
        self.fail(from, to, Fault::Lost)?;
        self.apply().await
    }

    /// Lets only those hosts hear each other that have a group in common: a host in two groups is a bridge between
    /// them. Hosts in no group are left as they are.
    ///
    /// # Errors
    /// If the rules can't be set.
    pub async fn partition(&mut self, groups: &[&[&str]]) -> Result<()> {
        self.note(format!("partition: {groups:?}"));
        for from in groups.concat() {
            for to in groups.concat() {
                if from != to && !groups.iter().any(|group| group.contains(&from) && group.contains(&to)) {
                    self.fail(from, to, Fault::Lost)?;
                }
            }
        }
        self.apply().await
    }

    /// Answers every TCP packet between two hosts with a reset.
    ///
    /// # Errors
    /// If the rules can't be set.
    pub async fn reset_link(&mut self, one: &str, other: &str) -> Result<()> {
        self.note(format!("reset: {one} ↔ {other}"));
        self.fail(one, other, Fault::Reset)?;
        self.fail(other, one, Fault::Reset)?;
        self.apply().await
    }

    /// Lets everybody hear everybody.
    ///
    /// # Errors
    /// If the rules can't be taken away.
    pub async fn heal(&mut self) -> Result<()> {
        self.note("healed");
        self.links.0.clear();
        self.apply().await
    }

    fn fail(&mut self, from: &str, to: &str, fault: Fault) -> Result<()> {
        // A name that is wrong would be no fault at all.
        self.host(from)?;
        self.host(to)?;
        self.links.0.insert((from.to_owned(), to.to_owned()), fault);
        Ok(())
    }

    /// The rules of a host, for `nft`; they replace those that it has.
    pub(super) fn rules(&self, to: &str) -> Result<String> {
        let mut rules =
            String::from("table inet lab\ndelete table inet lab\ntable inet lab {\nchain input {\n");
        rules.push_str("type filter hook input priority -10; policy accept;\n");
        for ((from, _), fault) in self.links.0.iter().filter(|((_, receiver), _)| receiver == to) {
            let what = match fault {
                Fault::Lost => "drop",
                // The other side's resets must get through.
                Fault::Reset => "tcp flags & rst == 0 reject with tcp reset",
            };
            writeln!(rules, "ip saddr {} {what}", self.host(from)?.ip())?;
        }
        rules.push_str("}\n}\n");
        Ok(rules)
    }

    /// Brings the rules of every host into force. A host that is down gets them when it starts, a frozen one when it
    /// wakes.
    pub(super) async fn apply(&mut self) -> Result<()> {
        let mut changed = Vec::new();
        for name in self.names() {
            let rules = self.rules(&name)?;
            if self.host_mut(&name)?.set_rules(rules)? {
                changed.push(name);
            }
        }
        futures::future::try_join_all(changed.iter().map(|name| self.load_rules(name))).await?;
        Ok(())
    }

    /// Makes a host read its rules.
    pub(super) async fn load_rules(&self, name: &str) -> Result<()> {
        if !self.host(name)?.is_awake() {
            return Ok(());
        }
        match self.exec(name, &["nft", "-f", "/lab/rules"]).await {
            // It ended by itself, or just now; it reads them when it starts.
            Err(_) if !self.runs(name).await? => Ok(()),
            result => result.map(drop).context("setting the rules of the network"),
        }
    }
}
