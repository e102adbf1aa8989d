//! References to images: `[registry[:port]/]path[:tag][@digest]`.

/// Longest name of a repository, registry included, in bytes.
const MAX_NAME: usize = 255;

/// The reference is one that an engine could pull.
pub fn is_reference(text: &str) -> bool {
    // A full image id is no reference: it would be read as a name in the default registry.
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return false;
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    // A colon after the last slash begins the tag; one before it belongs to a port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    is_name(name) && tag.is_none_or(is_tag) && digest.is_none_or(is_digest)
}

fn is_name(name: &str) -> bool {
    if name.is_empty() || name.len() > MAX_NAME {
        return false;
    }
    let path = match name.split_once('/') {
        Some((first, path)) if is_registry(first) => {
            if !is_host(first) {
                return false;
            }
            path
        }
        _ => name,
    };
    path.split('/').all(is_path_component)
}

/// The first part of a name is a registry if it can't be part of a path.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':', '[']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_host(host: &str) -> bool {
    let (host, port) = match host.strip_prefix('[').and_then(|h| h.split_once(']')) {
        Some((address, rest)) => {
            let hex = |b: u8| b.is_ascii_hexdigit() || b == b':';
            if address.is_empty() || !address.bytes().all(hex) {
                return false;
            }
            match rest.strip_prefix(':') {
                Some(port) => ("v6", Some(port)),
                None if rest.is_empty() => ("v6", None),
                None => return false,
            }
        }
        None => match host.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

/// Lower-case letters and digits, joined by one dot, one or two underscores, or any number of dashes.
fn is_path_component(part: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    if !(bytes.first().is_some_and(|b| word(*b)) && bytes.last().is_some_and(|b| word(*b))) {
        return false;
    }
    bytes
        .split(|b| word(*b))
        .all(|joint| matches!(joint, b"" | b"." | b"_" | b"__") || joint.iter().all(|b| *b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == length && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let digest = format!("redis@sha256:{}", "a".repeat(64));
        let id = "a".repeat(64);
        let good = [
            "redis",
            "redis:3.0.5",
            "library/redis",
            "a--b/c__d.e:Tag_1",
            "localhost/x",
            "registry.example.com:5000/team/app:v1",
            "Host/x",
            "[::1]:5000/x",
            &digest,
        ];
        for text in good {
            assert!(is_reference(text), "{text}");
        }
        let short = "redis@sha256:abc";
        let bad = [
            "",
            "Redis",
            "redis:",
            "redis:-x",
            ":tag",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "-a",
            "a b",
            "a@b",
            short,
            "host.example:x/y",
            "bad_host.com:80/x",
            "redis@sha1:aa",
            &id,
            "[::1/x",
            "redis:a@",
        ];
        for text in bad {
            assert!(!is_reference(text), "{text}");
        }
    }
}
