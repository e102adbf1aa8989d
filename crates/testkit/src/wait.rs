//! Waiting for a condition instead of for time.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// Time between two looks at a condition.
const STEP: Duration = Duration::from_millis(25);

/// Polls a condition until it gives a value.
///
/// # Errors
/// After `deadline`, naming what was waited for and what the condition said last.
pub async fn until<T, F, Fut>(what: &str, deadline: Duration, mut condition: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let end = Instant::now() + deadline;
    loop {
        match condition().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                bail!("waited {deadline:?} for {what}: {error:#}");
            }
            Err(_) => tokio::time::sleep(STEP).await,
        }
    }
}
