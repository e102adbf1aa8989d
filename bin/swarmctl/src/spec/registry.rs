//! The credentials that `docker login` stored, for an image's registry.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Docker's own registry, and the name that its credentials have.
const HUB: &str = "docker.io";
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// The credentials for an image's registry, as the spec holds them: base64url JSON.
pub(crate) fn credentials(image: &str) -> Result<String> {
    let path =
        path().ok_or_else(|| Error::plain("--with-registry-auth: neither DOCKER_CONFIG nor HOME is set"))?;
    let text = std::fs::read(&path)
        .map_err(|error| Error::plain(format!("--with-registry-auth: {}: {error}", path.display())))?;
    let found = from_config(&text, registry(image));
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
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => HUB,
    }
}

/// What engines expect, out of the client's configuration. Errors never quote it: it holds passwords.
fn from_config(text: &[u8], registry: &str) -> std::result::Result<Value, String> {
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
    let helper = helper.map(|(_, helper)| helper).or(config.get("credsStore")).and_then(Value::as_str);
    let auth = entry.and_then(|(_, entry)| entry["auth"].as_str()).filter(|auth| !auth.is_empty());
    let token =
        entry.and_then(|(_, entry)| entry["identitytoken"].as_str()).filter(|token| !token.is_empty());
    let server = entry.map_or(registry, |(key, _)| key);
    match (auth, token, helper) {
        (_, Some(token), _) => Ok(json!({"identitytoken": token, "serveraddress": server})),
        (Some(auth), None, _) => {
            let pair = STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = pair.ok_or_else(|| format!("the credentials for {registry} can't be read"))?;
            let (user, password) = pair
                .split_once(':')
                .ok_or_else(|| format!("the credentials for {registry} can't be read"))?;
            let password = password.trim_end_matches('\0');
            Ok(json!({"username": user, "password": password, "serveraddress": server}))
        }
        (None, None, Some(helper)) => Err(format!(
            "the credentials for {registry} are kept by docker-credential-{helper}, which this command does not ask"
        )),
        (None, None, None) => {
            Err(format!("there are no credentials for {registry}: `docker login {registry}` stores them"))
        }
    }
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
        let find = |registry: &str| from_config(config.to_string().as_bytes(), registry);
        assert_eq!(
            find(HUB),
            Ok(json!({"username": "user", "password": "pass:word", "serveraddress": HUB_KEY}))
        );
        let token = json!({"identitytoken": "t", "serveraddress": "https://quay.io/v2/"});
        assert_eq!(find("quay.io"), Ok(token));
        assert_eq!(find("reg:5000"), Err("the credentials for reg:5000 can't be read".into()));
        assert!(find("empty").unwrap_err().contains("`docker login empty` stores them"));
        assert!(find("other").unwrap_err().contains("there are no credentials for other"));
        assert!(find("gcr.io").unwrap_err().contains("kept by docker-credential-gcloud"));
        assert_eq!(from_config(b"{\"secret\"\n", HUB), Err("no JSON at line 2".into()));
    }
}
