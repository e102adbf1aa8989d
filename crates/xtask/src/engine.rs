//! The little that developer commands need of a Docker Engine, over its socket and without its command line.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// Where an engine listens by default.
pub(crate) const SOCKET: &str = "/var/run/docker.sock";

/// Sends one request and returns the status code and the body.
fn request(method: &str, path: &str, body: &[u8]) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(SOCKET).with_context(|| format!("no engine answers on {SOCKET}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: application/x-tar\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no HTTP answer")?;
    let body = answer.split_once("\r\n\r\n").map(|(_, b)| b.to_owned()).unwrap_or_default();
    Ok((status, body))
}

/// An engine answers.
pub(crate) fn is_there() -> bool {
    request("GET", "/_ping", &[]).is_ok_and(|(status, _)| status == 200)
}

/// The engine has this image.
pub(crate) fn has_image(image: &str) -> Result<bool> {
    Ok(request("GET", &format!("/images/{image}/json"), &[])?.0 == 200)
}

/// Ids of a node's containers, ended ones included.
pub(crate) fn containers_of(node: &str) -> Result<Vec<String>> {
    // {"label":["com.docker.swarm.node.id=<node>"]}
    let filters = format!("%7B%22label%22%3A%5B%22com.docker.swarm.node.id%3D{node}%22%5D%7D");
    let (status, body) = request("GET", &format!("/containers/json?all=true&filters={filters}"), &[])?;
    ensure!(status == 200, "the engine does not list containers: {body}");
    let ids = body.split("\"Id\":\"").skip(1).filter_map(|rest| rest.split_once('"'));
    Ok(ids.map(|(id, _)| id.to_owned()).collect())
}

/// Ends a container and removes it, unless it is gone already.
pub(crate) fn remove_container(id: &str) -> Result<()> {
    let (status, body) = request("DELETE", &format!("/containers/{id}?force=true&v=true"), &[])?;
    ensure!(matches!(status, 204 | 404 | 409), "the engine does not remove container {id}: {body}");
    Ok(())
}

/// Imports a root file system as an image.
fn import(name: &str, tag: &str, tar: &[u8]) -> Result<()> {
    let (status, body) = request("POST", &format!("/images/create?fromSrc=-&repo={name}&tag={tag}"), tar)?;
    ensure!(status == 200 && !body.contains("\"error\""), "the engine refused the image: {body}");
    Ok(())
}

/// Makes sure that there is a tiny image with a long-running program, and returns its name and the command
/// that runs in it for ever.
pub(crate) fn demo_image(scratch: &Path) -> Result<(String, Vec<String>)> {
    let busybox = Path::new("/bin/busybox");
    let command = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let (name, words) = if is_static(busybox) {
        ("swarmd-demo-busybox", command(&["/bin/busybox", "sh", "-c", "while :; do date; sleep 1; done"]))
    } else {
        ("swarmd-demo", command(&["/bin/idle", "idle"]))
    };
    let image = format!("{name}:latest");
    if has_image(&image)? {
        return Ok((image, words));
    }
    let tree = scratch.join("image");
    if tree.exists() {
        std::fs::remove_dir_all(&tree)?;
    }
    std::fs::create_dir_all(tree.join("bin"))?;
    if name == "swarmd-demo" {
        let program = std::env::current_exe()?;
        std::fs::copy(&program, tree.join("bin/idle"))?;
        for library in libraries(&program)? {
            let target = tree.join(library.strip_prefix("/").unwrap_or(&library));
            std::fs::create_dir_all(target.parent().unwrap_or(&tree))?;
            std::fs::copy(&library, &target).with_context(|| library.display().to_string())?;
        }
    } else {
        std::fs::copy(busybox, tree.join("bin/busybox"))?;
    }
    let out = Command::new("tar").arg("-C").arg(&tree).args(["-c", "."]).output().context("can't run tar")?;
    ensure!(out.status.success(), "tar failed: {}", String::from_utf8_lossy(&out.stderr));
    import(name, "latest", &out.stdout)?;
    Ok((image, words))
}

fn is_static(program: &Path) -> bool {
    program.is_file()
        && Command::new("ldd").arg(program).output().is_ok_and(|out| {
            let text = [out.stdout, out.stderr].concat();
            String::from_utf8_lossy(&text).contains("not a dynamic executable")
        })
}

/// The shared libraries of a program, and its loader.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = crate::output(Command::new("ldd").arg(program))?;
    let found: Vec<PathBuf> = text
        .split_whitespace()
        .filter(|w| w.starts_with('/'))
        .map(|w| PathBuf::from(w.trim_end_matches(':')))
        .collect();
    if found.is_empty() {
        bail!("ldd names no library of {}", program.display());
    }
    Ok(found)
}
