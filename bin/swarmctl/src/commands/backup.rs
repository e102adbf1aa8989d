//! `cluster backup`: the manager's stream into a file.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use swarm_api::swarmd::BackupRequest;

use super::{Context, secret_line};
use crate::error::{Error, Result};

/// Where to, and what with.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// The file to be written; it must not be there yet
    file: PathBuf,
    /// File with the passphrase to encrypt with, - for the standard input; else SWARM_BACKUP_PASSPHRASE, else the
    /// unlock key of managers that lock themselves
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

pub(super) async fn run(context: &mut Context, flags: Flags) -> Result<String> {
    let passphrase = match &flags.passphrase_file {
        Some(file) => secret_line(file)?,
        None => std::env::var("SWARM_BACKUP_PASSPHRASE").unwrap_or_default(),
    };
    let path = flags.file;
    let failed = |source: io::Error| Error::Write { path: path.clone(), source };
    if path.exists() {
        return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, "it is there already")));
    }
    let mut stream = context.client.recovery().backup(BackupRequest { passphrase }).await?.into_inner();
    let mut temporary = path.clone().into_os_string();
    temporary.push(".tmp");
    let temporary = Temporary::create(temporary.into()).map_err(failed)?;
    let mut size = 0;
    // Only a stream that ends without an error is a whole backup.
    while let Some(chunk) = stream.message().await? {
        size += chunk.data.len();
        (&temporary.file).write_all(&chunk.data).map_err(failed)?;
    }
    temporary.finish(&path).map_err(failed)?;
    Ok(format!("{} ({size} bytes)\n", path.display()))
}

/// A file that goes away unless it is finished.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    fn create(path: PathBuf) -> io::Result<Temporary> {
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        Ok(Temporary { path, file })
    }

    fn finish(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.path, path)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After `finish` there is no file of this name any more.
        let _ = std::fs::remove_file(&self.path);
    }
}
