//! Binding the control socket: gRPC for whoever may open a file on this host.

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// The bound socket. Its file is removed when it is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    file: SocketFile,
}

impl ControlSocket {
    /// Binds the socket, in a directory that only the owner may enter if it has to be made. A file that a dead
    /// daemon left behind is replaced.
    ///
    /// # Errors
    /// `AddrInUse` if a living process answers on it; what the system says otherwise.
    pub fn bind(path: &Path) -> io::Result<ControlSocket> {
        if let Some(parent) = path.parent()
            && !parent.as_os_str().is_empty()
            && !parent.exists()
        {
            use std::os::unix::fs::DirBuilderExt as _;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        match UnixListener::bind(path) {
            Ok(listener) => Ok(ControlSocket { listener, file: SocketFile(path.to_owned()) }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    let text = "another daemon answers there; give this one another --listen-control-api";
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
                }
                std::fs::remove_file(path)?;
                Ok(ControlSocket { listener: UnixListener::bind(path)?, file: SocketFile(path.to_owned()) })
            }
            Err(error) => Err(error),
        }
    }

    /// The listener, and a guard that removes the file when it is dropped.
    pub fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// Removes the socket's file when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
        let dir = std::env::temp_dir().join(format!("swarm-socket-{}", std::process::id()));
        let path = dir.join("deep/control.sock");
        let first = ControlSocket::bind(&path).unwrap();
        let error = ControlSocket::bind(&path).unwrap_err();
        assert!(error.to_string().contains("another daemon"), "{error}");
        // Closed without removing the file, as a crash does.
        let (listener, file) = first.into_parts();
        drop(listener);
        std::mem::forget(file);
        assert!(path.exists());
        let second = ControlSocket::bind(&path).unwrap();
        drop(second);
        assert!(!path.exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
