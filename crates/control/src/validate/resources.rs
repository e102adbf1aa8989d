//! Limits and reservations.

use swarm_api::v1::{ResourceRequirements, Resources};

use crate::error::{Error, Result};

/// Least CPU that can be asked for, in billionths of a CPU: one thousandth of one.
const MIN_NANO_CPUS: i64 = 1_000_000;
/// Least memory that can be asked for, in bytes.
const MIN_MEMORY: i64 = 4 * 1024 * 1024;

/// Limits first, then reservations. Whether they fit together is not checked.
pub(crate) fn check(requirements: &ResourceRequirements) -> Result<()> {
    requirements.limits.as_ref().map_or(Ok(()), one)?;
    requirements.reservations.as_ref().map_or(Ok(()), one)
}

fn one(resources: &Resources) -> Result<()> {
    if resources.nano_cpus != 0 && resources.nano_cpus < MIN_NANO_CPUS {
        return Err(Error::argument(format!(
            "invalid cpu value {}: must be at least 0.001",
            resources.nano_cpus as f64 / 1e9
        )));
    }
    if resources.memory_bytes != 0 && resources.memory_bytes < MIN_MEMORY {
        return Err(Error::argument(format!(
            "invalid memory value {}: must be at least 4MiB",
            resources.memory_bytes
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_is_refused() {
        let check = |nano_cpus, memory_bytes, text: Option<&str>| {
            let resources = Resources { nano_cpus, memory_bytes, ..Default::default() };
            let expected = text.map_or(Ok(()), |t| Err(Error::argument(t)));
            let limits = ResourceRequirements { limits: Some(resources.clone()), ..Default::default() };
            assert_eq!(super::check(&limits), expected);
            let reservations = ResourceRequirements { reservations: Some(resources), ..Default::default() };
            assert_eq!(super::check(&reservations), expected);
        };
        check(0, 0, None);
        check(1_000_000, 4 << 20, None);
        check(999_999, 0, Some("invalid cpu value 0.000999999: must be at least 0.001"));
        check(-1, 0, Some("invalid cpu value -0.000000001: must be at least 0.001"));
        check(0, (4 << 20) - 1, Some("invalid memory value 4194303: must be at least 4MiB"));
        check(0, -1, Some("invalid memory value -1: must be at least 4MiB"));
    }
}
