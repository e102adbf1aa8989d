//! The credentials that `docker login` stored, for an image's registry.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Value, json};
use swarm_api::v1::{ContainerSpec, ServiceSpec, task_spec};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use crate::error::{Error, Result};

/// Docker's own registry, and the name that its credentials have.
const HUB: &str = "docker.io";
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// How long a credential helper may take: some ask people or other machines.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a helper's answer that are read, and of its error that are shown.
const MOST: u64 = 64 * 1024;
const SHOWN: usize = 200;

/// The credentials for an image's registry, as the spec holds them: base64url JSON.
pub(crate) fn credentials(image: &str) -> Result<String> {
    let path =
        path().ok_or_else(|| Error::plain("--with-registry-auth: neither DOCKER_CONFIG nor HOME is set"))?;
    let text = std::fs::read(&path)
        .map_err(|error| Error::plain(format!("--with-registry-auth: {}: {error}", path.display())))?;
    let found = from_config(&text, registry(image), |helper, server| ask(helper, server, PATIENCE));
    let found =
        found.map_err(|why| Error::plain(format!("--with-registry-auth: {}: {why}", path.display())))?;
    Ok(URL_SAFE.encode(found.to_string()))
}

fn path() -> Option<PathBuf> {
    let directory = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker"));
    Some(directory.or_else(home)?.join("config.json"))
}

/// The registry that an image comes from. A first part that is no host name belongs to the image's name.
pub(crate) fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => HUB,
    }
}

/// The registry whose credentials a change of the image took out of a service, if it did.
pub(crate) fn lost_credentials<'a>(before: &'a ServiceSpec, after: &ServiceSpec) -> Option<&'a str> {
    let (before, after) = (container(before)?, container(after)?);
    let (old, new) = (registry(&before.image), registry(&after.image));
    (old != new && before.pull_options.is_some() && after.pull_options.is_none()).then_some(old)
}

fn container(spec: &ServiceSpec) -> Option<&ContainerSpec> {
    match &spec.task.runtime {
        Some(task_spec::Runtime::Container(container)) => Some(container),
        _ => None,
    }
}

/// What engines expect, out of the client's configuration: from the helper for this registry, else from that for all, else
/// from what is stored in it. Errors never quote what is stored.
fn from_config(
    text: &[u8],
    registry: &str,
    ask: impl Fn(&str, &str) -> std::result::Result<Option<Value>, String>,
) -> std::result::Result<Value, String> {
    let config: Value =
        serde_json::from_slice(text).map_err(|error| format!("no JSON at line {}", error.line()))?;
    let host = |key: &str| {
        let bare = key.trim_start_matches("https://").trim_start_matches("http://");
        bare.split('/').next().unwrap_or(bare).to_owned()
    };
    let own = |key: &str| if registry == HUB { key == HUB_KEY || key == HUB } else { host(key) == registry };
    let entry = config["auths"].as_object().and_then(|auths| auths.iter().find(|(key, _)| own(key)));
    let helper =
        config["credHelpers"].as_object().and_then(|helpers| helpers.iter().find(|(key, _)| own(key)));
    let helpers = helper.map(|(_, helper)| helper).into_iter().chain(config.get("credsStore"));
    let helpers: Vec<&str> = helpers.filter_map(Value::as_str).filter(|name| !name.is_empty()).collect();
    // What `docker login` called it: helpers look for exactly that.
    let server = entry.map_or(if registry == HUB { HUB_KEY } else { registry }, |(key, _)| key);
    for helper in &helpers {
        if let Some(found) = ask(helper, server)? {
            return Ok(found);
        }
    }
    let field =
        |name: &str| entry.and_then(|(_, entry)| entry[name].as_str()).filter(|text| !text.is_empty());
    match (field("identitytoken"), field("auth")) {
        (Some(token), _) => Ok(json!({"identitytoken": token, "serveraddress": server})),
        (None, Some(auth)) => {
            let pair = STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = pair.ok_or_else(|| format!("the credentials for {registry} can't be read"))?;
            let (user, password) = pair
                .split_once(':')
                .ok_or_else(|| format!("the credentials for {registry} can't be read"))?;
            let password = password.trim_end_matches('\0');
            Ok(json!({"username": user, "password": password, "serveraddress": server}))
        }
        (None, None) => {
            let asked: String =
                helpers.iter().map(|helper| format!(", and docker-credential-{helper} has none")).collect();
            Err(format!(
                "there are no credentials for {registry}{asked}: `docker login {registry}` stores them"
            ))
        }
    }
}

/// Asks a credential helper for a registry's credentials; `None` if it has none. What it answers is never quoted, but for
/// the text of an error that holds no answer.
fn ask(helper: &str, server: &str, patience: Duration) -> std::result::Result<Option<Value>, String> {
    let name = format!("docker-credential-{helper}");
    if !helper.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Err(format!(
            "{helper:?} is no name of a credential helper: letters, digits, '-', '_' and '.' are"
        ));
    }
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => format!(
            "the credentials for {server} are kept by {name}, which is not in the directories of PATH: install it, or take it \
             out of the file"
        ),
        _ => format!("{name} can't be asked: {error}"),
    };
    let mut command = Command::new(&name);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    // Specs are made between calls of the runtime that this thread has: the helper gets a thread with one of its own.
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { Ok(timeout(patience, answer(command, server)).await) })
        });
        asked.join().unwrap_or_else(|_| Err(std::io::Error::other("it can't be waited for")))
    });
    let answer = answer
        .map_err(failed)?
        .map_err(|_| format!("{name} did not answer within {}", humantime::format_duration(patience)))?;
    let (status, answer) = answer.map_err(failed)?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        let said = said.trim();
        // The text is part of the helpers' protocol.
        if said == "credentials not found in native keychain" {
            return Ok(None);
        }
        // What should have been an answer may hold a password.
        let said = if said.contains("Secret") { "" } else { said };
        let said: String = said.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
        return Err(format!("{name} failed ({status}){}{said}", if said.is_empty() { "" } else { ": " }));
    }
    let answer: Value = serde_json::from_slice(&answer)
        .map_err(|_| format!("{name} did not answer with a JSON object that has Username and Secret"))?;
    match (answer["Username"].as_str(), answer["Secret"].as_str()) {
        (Some("<token>"), Some(token)) if !token.is_empty() => {
            Ok(Some(json!({"identitytoken": token, "serveraddress": server})))
        }
        (Some(user), Some(password)) if !user.is_empty() => {
            Ok(Some(json!({"username": user, "password": password, "serveraddress": server})))
        }
        (Some(_), Some(_)) => Ok(None),
        _ => Err(format!("{name} did not answer with a JSON object that has Username and Secret")),
    }
}

/// All that a command answers to one line, and its end.
async fn answer(mut command: Command, line: &str) -> std::io::Result<(ExitStatus, Vec<u8>)> {
    let mut child = command.spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // One that reads nothing has its reasons, and says them.
        let _ = input.write_all(line.as_bytes()).await;
    }
    let mut text = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(MOST).read_to_end(&mut text).await?;
    }
    Ok((child.wait().await?, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_part_of_a_name_is_a_host_or_not() {
        for (image, expected) in [
            ("redis", HUB),
            ("library/redis:7", HUB),
            ("quay.io/a/b", "quay.io"),
            ("localhost/a", "localhost"),
            ("reg:5000/a@sha256:0", "reg:5000"),
        ] {
            assert_eq!(registry(image), expected, "{image}");
        }
    }

    #[test]
    fn stored_credentials_are_found_by_registry() {
        let auth = STANDARD.encode("user:pass:word");
        let config = json!({
            "auths": {
                "https://index.docker.io/v1/": {"auth": auth},
                "https://quay.io/v2/": {"identitytoken": "t"},
                "reg:5000": {"auth": "%"},
                "empty": {},
            },
            "credHelpers": {"gcr.io": "gcloud"},
        });
        let helper = |helper: &str, server: &str| match server {
            "gcr.io" => Ok(Some(json!({"username": helper}))),
            _ => Err(format!("{helper} is not to be asked for {server}")),
        };
        let find = |registry: &str| from_config(config.to_string().as_bytes(), registry, helper);
        assert_eq!(
            find(HUB),
            Ok(json!({"username": "user", "password": "pass:word", "serveraddress": HUB_KEY}))
        );
        let token = json!({"identitytoken": "t", "serveraddress": "https://quay.io/v2/"});
        assert_eq!(find("quay.io"), Ok(token));
        assert_eq!(find("reg:5000"), Err("the credentials for reg:5000 can't be read".into()));
        assert!(find("empty").unwrap_err().contains("`docker login empty` stores them"));
        assert!(find("other").unwrap_err().contains("there are no credentials for other"));
        assert_eq!(find("gcr.io"), Ok(json!({"username": "gcloud"})));
        assert_eq!(from_config(b"{\"secret\"\n", HUB, helper), Err("no JSON at line 2".into()));
    }

    #[test]
    fn helpers_come_before_what_is_stored_that_of_the_registry_first() {
        let config = json!({
            "auths": {
                "https://index.docker.io/v1/": {},
                "https://quay.io/v2/": {"auth": STANDARD.encode("stored:s")},
            },
            "credHelpers": {"gcr.io": "gcloud"},
            "credsStore": "store",
        });
        let find = |registry: &str, has: &[(&str, &str)]| {
            let asked = std::cell::RefCell::new(Vec::new());
            let found = from_config(config.to_string().as_bytes(), registry, |helper, server| {
                asked.borrow_mut().push(format!("{helper} {server}"));
                Ok(has.contains(&(helper, server)).then(|| json!({"username": helper})))
            });
            (found.map(|found| found["username"].as_str().unwrap().to_owned()), asked.into_inner())
        };
        let ok = |user: &str| Ok(user.to_owned());
        assert_eq!(find("gcr.io", &[("gcloud", "gcr.io")]), (ok("gcloud"), vec!["gcloud gcr.io".into()]));
        assert_eq!(
            find("gcr.io", &[("store", "gcr.io")]),
            (ok("store"), vec!["gcloud gcr.io".into(), "store gcr.io".into()])
        );
        assert_eq!(find(HUB, &[("store", HUB_KEY)]).0, ok("store"));
        assert_eq!(find("quay.io", &[("store", "https://quay.io/v2/")]).0, ok("store"));
        assert_eq!(find("quay.io", &[]), (ok("stored"), vec!["store https://quay.io/v2/".into()]));
        let none = find("gcr.io", &[]).0.unwrap_err();
        assert!(
            none.contains("docker-credential-gcloud has none, and docker-credential-store has none"),
            "{none}"
        );
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_no_helper() {
        let error = ask("x/../../tmp/y", "gcr.io", PATIENCE).unwrap_err();
        assert!(error.contains("is no name of a credential helper"), "{error}");
        let error = ask("nowhere-to-be-found", "gcr.io", PATIENCE).unwrap_err();
        assert!(error.contains("kept by docker-credential-nowhere-to-be-found, which is not in"), "{error}");
    }
}
