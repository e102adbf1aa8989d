//! Generates the Rust code in `crates/api/src/generated` and `crates/raft-proto/src/generated` from `proto/`.
//!
//! The result is checked in, so that nobody needs a protobuf compiler (and its compile time) to build the
//! daemon. `cargo xtask codegen` rewrites it, and the tests of this crate fail when it is out of date.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use prost::Message as _;
use prost_reflect::DescriptorPool;
use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::{Label, Type};

mod shared;
mod texts;

/// Files of the contract and of our own packages, relative to `proto/`.
const FILES: &[&str] = &[
    "docker/swarmkit/v1/ca.proto",
    "docker/swarmkit/v1/control.proto",
    "docker/swarmkit/v1/dispatcher.proto",
    "docker/swarmkit/v1/health.proto",
    "docker/swarmkit/v1/logbroker.proto",
    "docker/swarmkit/v1/objects.proto",
    "docker/swarmkit/v1/raft.proto",
    "docker/swarmkit/v1/resource.proto",
    "docker/swarmkit/v1/snapshot.proto",
    "docker/swarmkit/v1/specs.proto",
    "docker/swarmkit/v1/types.proto",
    "docker/swarmkit/v1/watch.proto",
    "raftpb/raftpb.proto",
    "swarmd/options.proto",
    "swarmd/v1/backup.proto",
    "swarmd/v1/images.proto",
    "swarmd/v1/lock.proto",
    "swarmd/v1/peers.proto",
    "swarmd/v1/process.proto",
    "swarmd/v1/services.proto",
    "swarmd/v1/tasks.proto",
];

/// Files of the raft library's own messages.
const RAFT_FILES: &[&str] = &["eraftpb/eraftpb.proto"];

/// Messages that hold keys, tokens or payloads nobody may log: their `Debug` is written by hand.
const REDACTED: &[&str] = &[
    ".docker.swarmkit.v1.JoinTokens",
    ".docker.swarmkit.v1.RootCA",
    ".docker.swarmkit.v1.RootRotation",
    ".docker.swarmkit.v1.EncryptionKey",
    ".docker.swarmkit.v1.SecretSpec",
    ".docker.swarmkit.v1.ConfigSpec",
    ".docker.swarmkit.v1.CAConfig",
    ".docker.swarmkit.v1.IssueNodeCertificateRequest",
    ".docker.swarmkit.v1.GetUnlockKeyResponse",
    ".docker.swarmkit.v1.ContainerSpec.PullOptions",
    ".docker.swarmkit.v1.AcceptancePolicy.RoleAdmissionPolicy.Secret",
    ".docker.swarmkit.v1.MaybeEncryptedRecord",
    ".docker.swarmkit.v1.LogMessage",
    ".raftpb.Entry",
    ".raftpb.Snapshot",
    ".swarmd.v1.BackupRequest",
    ".swarmd.v1.ExecTask",
    ".swarmd.v1.FetchResponse",
    ".swarmd.v1.TaskInput",
    ".swarmd.v1.TaskOutput",
    ".swarmd.v1.PullOrder",
    ".swarmd.v1.PullRequest",
    ".swarmd.v1.UnlockRequest",
];

/// Messages of the contract that are written by hand, in `crates/api/src/log_lines.rs`: they leave the lines of logs as
/// they are on the wire.
const BY_HAND: &[&str] = &["PublishLogsMessage", "SubscribeLogsMessage"];

/// The repository's root, seen from this crate.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Compiles `proto/` to a descriptor set, custom options included.
pub fn descriptors(root: &Path) -> Result<Vec<u8>> {
    let mut compiler = protox::Compiler::new([root.join("proto")])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(FILES.iter().map(|f| root.join("proto").join(f)))?;
    Ok(compiler.encode_file_descriptor_set())
}

/// One method of the contract with what its option says of callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodRoles {
    /// gRPC path, `/package.Service/Method`.
    pub path: String,
    /// Organizational units that are let in.
    pub roles: Vec<String>,
    /// No client certificate needed.
    pub insecure: bool,
}

/// Reads the authorization option of every method of the contract.
pub fn method_roles(pool: &DescriptorPool) -> Result<Vec<MethodRoles>> {
    let option = pool
        .get_extension_by_name("swarmd.options.authorization")
        .context("proto/swarmd/options.proto lacks the authorization option")?;
    let mut all = Vec::new();
    for service in pool.services() {
        for method in service.methods() {
            let path = format!("/{}/{}", service.full_name(), method.name());
            let options = method.options();
            anyhow::ensure!(options.has_extension(&option), "{path} has no authorization option");
            let value = options.get_extension(&option);
            let value = value.as_message().context("the authorization option is a message")?;
            let roles = value.get_field_by_name("roles").context("roles")?;
            let roles = roles.as_list().context("roles is a list")?;
            let roles: Vec<String> = roles.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect();
            let insecure = value.get_field_by_name("insecure").and_then(|v| v.as_bool()).unwrap_or(false);
            anyhow::ensure!(insecure == roles.is_empty(), "{path}: either roles or insecure");
            all.push(MethodRoles { path, roles, insecure });
        }
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(all)
}

/// Generates every file: path relative to the repository's root, and content.
pub fn generate(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let encoded = descriptors(root)?;
    let pool = DescriptorPool::decode(encoded.as_slice())?;
    let mut set = FileDescriptorSet::decode(encoded.as_slice())?;
    require_nonnull(&pool, &mut set)?;
    set.file.retain(|f| f.package() != "swarmd.options");

    let out = tempdir()?;
    let mut config = prost_build::Config::new();
    config
        .out_dir(&out)
        .btree_map(["."])
        .bytes([".raftpb", ".swarmd.v1.TaskInput", ".swarmd.v1.TaskOutput"])
        .skip_debug(REDACTED)
        .boxed(".docker.swarmkit.v1.Task.log_driver")
        .boxed(".docker.swarmkit.v1.TaskStatus.runtime_status.container")
        .boxed(".docker.swarmkit.v1.TaskStatus.port_status")
        .enable_type_names()
        .include_file("mod.rs");
    for name in BY_HAND {
        config.extern_path(format!(".docker.swarmkit.v1.{name}"), format!("crate::log_lines::{name}"));
    }
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .build_transport(false)
        .codec_path("crate::codec::SmallCalls")
        .out_dir(&out)
        .compile_fds_with_config(set, config)?;

    let mut files = BTreeMap::new();
    let dir = Path::new("crates/api/src/generated");
    for (source, target) in
        [("docker.swarmkit.v1.rs", "v1.rs"), ("raftpb.rs", "raftpb.rs"), ("swarmd.v1.rs", "swarmd.rs")]
    {
        let code = std::fs::read_to_string(out.join(source)).with_context(|| source.to_owned())?;
        // The packages are sibling modules of one crate, not nested as their names would have it.
        let code = code.replace("super::super::super::raftpb::", "crate::raftpb::");
        let code = code.replace("super::super::super::docker::swarmkit::v1::", "crate::v1::");
        let mut code = code.replace("super::super::docker::swarmkit::v1::", "crate::v1::");
        if target == "v1.rs" {
            let _ = writeln!(code, "pub use crate::log_lines::{{{}}};", BY_HAND.join(", "));
        }
        files.insert(dir.join(target), texts::rewrite(&shared::wrap(&code)));
    }
    files.insert(dir.join("authorization.rs"), authorization_table(&method_roles(&pool)?));
    std::fs::remove_dir_all(&out)?;
    files.insert(PathBuf::from("crates/raft-proto/src/generated/eraftpb.rs"), raft_messages(root)?);
    Ok(files)
}

/// Generates the messages of the raft library.
fn raft_messages(root: &Path) -> Result<String> {
    let mut compiler = protox::Compiler::new([root.join("proto")])?;
    compiler.include_source_info(true);
    compiler.open_files(RAFT_FILES.iter().map(|f| root.join("proto").join(f)))?;
    let out = tempdir()?;
    prost_build::Config::new()
        .out_dir(&out)
        .bytes(["."])
        .skip_debug([".eraftpb.Entry", ".eraftpb.Snapshot"])
        .compile_fds(compiler.file_descriptor_set())?;
    let code = std::fs::read_to_string(out.join("eraftpb.rs"))?;
    std::fs::remove_dir_all(&out)?;
    Ok(code)
}

/// Makes the fields marked `nonnull` required, so that they become plain values that are always written and
/// whose absence reads as the default (`prost` raises no error for a missing required field).
fn require_nonnull(pool: &DescriptorPool, set: &mut FileDescriptorSet) -> Result<()> {
    let option = pool
        .get_extension_by_name("swarmd.options.nonnull")
        .context("proto/swarmd/options.proto lacks the nonnull option")?;
    let mut nonnull = std::collections::HashSet::new();
    for message in pool.all_messages() {
        for field in message.fields() {
            if field.options().has_extension(&option) {
                nonnull.insert(field.full_name().to_owned());
            }
        }
    }
    fn visit(
        message: &mut prost_types::DescriptorProto,
        name: &str,
        nonnull: &std::collections::HashSet<String>,
        proto2: bool,
    ) {
        for field in &mut message.field {
            let marked = nonnull.contains(&format!("{name}.{}", field.name()));
            let message_or_proto2 = field.r#type() == Type::Message || proto2;
            if marked && message_or_proto2 && field.label() == Label::Optional {
                field.set_label(Label::Required);
            }
        }
        for nested in &mut message.nested_type {
            let name = format!("{name}.{}", nested.name());
            visit(nested, &name, nonnull, proto2);
        }
    }
    for file in &mut set.file {
        let package = file.package().to_owned();
        let proto2 = file.syntax() != "proto3";
        for message in &mut file.message_type {
            let name = format!("{package}.{}", message.name());
            visit(message, &name, &nonnull, proto2);
        }
    }
    Ok(())
}

fn authorization_table(methods: &[MethodRoles]) -> String {
    let mut code = String::from(
        "// This file is @generated from the method options in proto/. Do not edit.\n\n\
         /// Every method of the contract with who may call it, sorted by path.\n\
         pub const METHODS: &[super::Method] = &[\n",
    );
    for method in methods {
        let allowed = if method.insecure {
            "super::Allowed::Anybody".to_owned()
        } else {
            let roles: Vec<String> = method.roles.iter().map(|r| format!("{r:?}")).collect();
            format!("super::Allowed::Roles(&[{}])", roles.join(", "))
        };
        let _ = writeln!(code, "    super::Method {{ path: {:?}, allowed: {allowed} }},", method.path);
    }
    code.push_str("];\n");
    code
}

fn tempdir() -> Result<PathBuf> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("swarm-codegen-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let dir = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}
