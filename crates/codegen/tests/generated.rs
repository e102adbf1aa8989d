//! The checked-in code is what `proto/` says.

use std::collections::BTreeSet;
use std::path::PathBuf;

#[test]
fn generated_code_is_up_to_date() {
    let root = swarm_codegen::root();
    let generated = swarm_codegen::generate(&root).unwrap();
    assert!(generated.len() >= 5, "the messages, the authorization table and raft's own");
    for (path, code) in &generated {
        let checked_in = std::fs::read_to_string(root.join(path)).unwrap_or_default();
        assert!(checked_in == *code, "{} is out of date: run `cargo xtask codegen`", path.display());
    }
}

#[test]
fn nothing_else_is_among_the_generated_code() {
    let root = swarm_codegen::root();
    let generated: BTreeSet<PathBuf> = swarm_codegen::generate(&root).unwrap().into_keys().collect();
    for dir in ["crates/api/src/generated", "crates/raft-proto/src/generated"] {
        for entry in std::fs::read_dir(root.join(dir)).unwrap() {
            let path = PathBuf::from(dir).join(entry.unwrap().file_name());
            assert!(generated.contains(&path), "{} is not generated from proto/", path.display());
        }
    }
}
