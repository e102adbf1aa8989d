//! Keys and passphrases that the daemon is started with.

use std::path::Path;

use anyhow::{Context as _, Result};
use swarm_node::Restore;
use swarm_pki::{SecretBytes, UnlockKey};

use crate::flags::Flags;

/// Environment variable with a backup's passphrase.
const PASSPHRASE: &str = "SWARM_BACKUP_PASSPHRASE";

/// The unlock key, if one was given.
pub(crate) fn unlock_key(flags: &Flags) -> Result<Option<UnlockKey>> {
    let (text, from) = match (&flags.unlock_key, &flags.unlock_key_file) {
        (Some(text), _) => (SecretBytes::new(text.clone().into_bytes()), "--unlock-key".to_owned()),
        (None, Some(file)) => (read(file)?, file.display().to_string()),
        (None, None) => return Ok(None),
    };
    let text = std::str::from_utf8(text.expose()).with_context(|| format!("{from}: not text"))?;
    text.trim().parse().map(Some).with_context(|| format!("{from}: not an unlock key"))
}

/// The backup to begin from, if one was given. Read before anything else is done.
pub(crate) fn restore(flags: &Flags) -> Result<Option<Restore>> {
    let Some(file) = &flags.restore else { return Ok(None) };
    let secret = match &flags.passphrase_file {
        Some(file) => line(&read(file)?),
        None => {
            let text = std::env::var(PASSPHRASE).with_context(|| {
                format!(
                    "--restore needs the passphrase or unlock key of the backup: give it in a file with \
                     --passphrase-file, or in the environment variable {PASSPHRASE}"
                )
            })?;
            SecretBytes::new(text.into_bytes())
        }
    };
    Ok(Some(Restore::read(file, &secret)?))
}

fn read(file: &Path) -> Result<SecretBytes> {
    let text = std::fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
    Ok(SecretBytes::new(text))
}

/// Without the end of the line that editors add.
fn line(text: &SecretBytes) -> SecretBytes {
    let text = text.expose();
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    SecretBytes::new(text.strip_suffix(b"\r").unwrap_or(text).to_vec())
}
