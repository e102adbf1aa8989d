//! Which services must be up before the tasks of another one start.

use std::collections::BTreeMap;

use crate::v1::Service;

/// Service label: names of services that must be as asked for before its first tasks start, each with a [`Condition`]:
/// `db:healthy,migrate:completed`.
pub const DEPENDS_ON: &str = "swarmd.depends-on";

/// What is asked of the service that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// All its tasks run, and where they have a health check, it has passed.
    Healthy,
    /// All its tasks are started, healthy or not.
    Running,
    /// It is a job, and its present run is done.
    Completed,
}

impl Condition {
    /// Its name in labels and flags.
    pub fn name(self) -> &'static str {
        match self {
            Condition::Healthy => "healthy",
            Condition::Running => "running",
            Condition::Completed => "completed",
        }
    }

    /// The condition of this name.
    pub fn parse(name: &str) -> Option<Condition> {
        [Condition::Healthy, Condition::Running, Condition::Completed].into_iter().find(|c| c.name() == name)
    }
}

/// A service that is waited for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dependency {
    /// Its name: services can't be renamed, and one that is made anew under its name takes its place.
    pub service: String,
    /// What is waited for.
    pub condition: Condition,
}

impl std::fmt::Display for Dependency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.service, self.condition.name())
    }
}

/// What the labels of a service say of whom it waits for, in the order in which it is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartOrder(pub Vec<Dependency>);

impl StartOrder {
    /// Reads the labels of a service's spec.
    ///
    /// # Errors
    /// What is wrong with the label's value.
    pub fn read(labels: &BTreeMap<String, String>) -> Result<StartOrder, String> {
        let Some(value) = labels.get(DEPENDS_ON) else { return Ok(StartOrder::default()) };
        let bad = || {
            format!(
                "label {DEPENDS_ON:?} must be a list of NAME:healthy, NAME:running or NAME:completed, \
                 not {value:?}"
            )
        };
        let mut found: Vec<Dependency> = Vec::new();
        for term in value.split(',') {
            let (name, condition) = term.split_once(':').ok_or_else(bad)?;
            let condition = Condition::parse(condition).filter(|_| !name.is_empty()).ok_or_else(bad)?;
            if found.iter().any(|known| known.service == name) {
                return Err(format!("label {DEPENDS_ON:?} names the service {name:?} twice"));
            }
            found.push(Dependency { service: name.to_owned(), condition });
        }
        Ok(StartOrder(found))
    }

    /// Whom a service waits for; what can't be read says nothing.
    pub fn of(service: &Service) -> StartOrder {
        StartOrder::read(&service.spec.annotations.labels).unwrap_or_default()
    }

    /// Writes it into the labels of a service's spec, in place of what they said.
    pub fn write(&self, labels: &mut BTreeMap<String, String>) {
        labels.remove(DEPENDS_ON);
        if !self.0.is_empty() {
            let terms: Vec<String> = self.0.iter().map(Dependency::to_string).collect();
            labels.insert(DEPENDS_ON.to_owned(), terms.join(","));
        }
    }

    /// It waits for the service of this name.
    pub fn names(&self, service: &str) -> bool {
        self.0.iter().any(|dependency| dependency.service == service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(value: &str) -> BTreeMap<String, String> {
        [(DEPENDS_ON.to_owned(), value.to_owned()), ("mine".to_owned(), "x".to_owned())].into()
    }

    #[test]
    fn whom_a_service_waits_for_is_in_its_labels() {
        let dependency = |service: &str, condition| Dependency { service: service.into(), condition };
        let order = StartOrder(vec![
            dependency("migrate", Condition::Completed),
            dependency("db", Condition::Healthy),
            dependency("a.b_c-d", Condition::Running),
        ]);
        let mut written = labels("other:healthy");
        order.write(&mut written);
        assert_eq!(written, labels("migrate:completed,db:healthy,a.b_c-d:running"));
        assert_eq!(StartOrder::read(&written), Ok(order.clone()));
        assert!(order.names("db") && !order.names("d"));
        StartOrder::default().write(&mut written);
        assert_eq!(written.keys().collect::<Vec<_>>(), ["mine"]);
        assert_eq!(StartOrder::read(&written), Ok(StartOrder::default()));
    }

    #[test]
    fn what_can_not_be_read_is_refused() {
        for bad in ["", "db", "db:", ":healthy", "db:Healthy", "db:healthy,", "db:healthy;x:running"] {
            let error = StartOrder::read(&labels(bad)).unwrap_err();
            assert!(error.ends_with(&format!("not {bad:?}")), "{error}");
        }
        let error = StartOrder::read(&labels("db:healthy,db:running")).unwrap_err();
        assert_eq!(error, "label \"swarmd.depends-on\" names the service \"db\" twice");
    }
}
