//! `proto/` is the contract, member by member: `data/wire.tsv` lists every field, enum value and method that peers
//! of another make know, one a line: kind, full name, member, number, type, label, oneof, options, file.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::collections::BTreeMap;

use prost_reflect::{
    Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Syntax,
};

const CONTRACT: &str = include_str!("data/wire.tsv");
const PACKAGES: [&str; 2] = ["docker.swarmkit.v1", "raftpb"];

/// A member's line without kind, name and member, which are its key.
type Members = BTreeMap<(String, String, String), String>;

fn pool() -> DescriptorPool {
    let encoded = swarm_codegen::descriptors(&swarm_codegen::root()).unwrap();
    DescriptorPool::decode(encoded.as_slice()).unwrap()
}

fn expected() -> Members {
    let mut members = Members::new();
    for line in CONTRACT.lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        let [kind, name, member, number, ty, label, oneof, options, file] = columns[..] else {
            panic!("nine columns: {line:?}");
        };
        // How the Go code represents a field is not on the wire.
        let mut options: Vec<&str> = options
            .split(',')
            .filter(|o| *o != "-" && *o != "stdduration" && !o.starts_with("customtype="))
            .collect();
        options.sort_unstable();
        let rest = [number, ty, label, oneof, &or_dash(options.join(",")), file].join("\t");
        let key = (kind.to_owned(), name.to_owned(), member.to_owned());
        assert!(members.insert(key, rest).is_none(), "twice: {line:?}");
    }
    members
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn actual(pool: &DescriptorPool) -> Members {
    let mut members = Members::new();
    for message in pool.all_messages().filter(|m| PACKAGES.contains(&m.package_name()) && !m.is_map_entry()) {
        let file = file_name(message.parent_file().name());
        let mut add = |member: &str, rest: String| {
            let key = ("message".to_owned(), message.full_name().to_owned(), member.to_owned());
            members.insert(key, format!("{rest}\t{file}"));
        };
        if message.fields().len() == 0 {
            add("-", "0\t-\t-\t-\t-".to_owned());
        }
        for field in message.fields() {
            add(field.name(), describe_field(pool, &message, &field));
        }
    }
    for of_values in pool.all_enums().filter(|e| PACKAGES.contains(&e.package_name())) {
        let file = file_name(of_values.parent_file().name());
        for value in of_values.values() {
            let key = ("enum".to_owned(), of_values.full_name().to_owned(), value.name().to_owned());
            members.insert(key, format!("{}\t-\t-\t-\t-\t{file}", value.number()));
        }
    }
    let roles: BTreeMap<String, String> = swarm_codegen::method_roles(pool)
        .unwrap()
        .into_iter()
        .map(|m| (m.path, if m.insecure { "insecure".to_owned() } else { sorted_roles(&m.roles) }))
        .collect();
    for service in pool.services().filter(|s| PACKAGES.contains(&s.package_name())) {
        let file = file_name(service.parent_file().name());
        for method in service.methods() {
            let streams = match (method.is_client_streaming(), method.is_server_streaming()) {
                (false, false) => "unary",
                (true, false) => "client_stream",
                (false, true) => "server_stream",
                (true, true) => "both",
            };
            let mut options =
                vec![format!("roles={}", roles[&format!("/{}/{}", service.full_name(), method.name())])];
            if method.method_descriptor_proto().options.as_ref().is_some_and(|o| o.deprecated()) {
                options.push("deprecated".to_owned());
            }
            options.sort_unstable();
            let (input, output) = (method.input(), method.output());
            let key = ("service".to_owned(), service.full_name().to_owned(), method.name().to_owned());
            let rest = format!(
                "0\t{} -> {}\t{streams}\t-\t{}\t{file}",
                input.full_name(),
                output.full_name(),
                options.join(",")
            );
            members.insert(key, rest);
        }
    }
    members
}

fn sorted_roles(organizational_units: &[String]) -> String {
    let mut roles: Vec<&str> = organizational_units
        .iter()
        .map(|ou| match ou.as_str() {
            "swarm-worker" => "worker",
            "swarm-manager" => "manager",
            other => panic!("unknown role {other}"),
        })
        .collect();
    roles.sort_unstable_by_key(|role| *role != "worker");
    roles.join("+")
}

fn file_name(path: &str) -> String {
    path.rsplit('/').next().unwrap().to_owned()
}

fn describe_field(pool: &DescriptorPool, message: &MessageDescriptor, field: &FieldDescriptor) -> String {
    let proto3 = message.parent_file().syntax() == Syntax::Proto3;
    let ty = match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            format!(
                "map<{},{}>",
                kind(&entry.map_entry_key_field().kind()),
                kind(&entry.map_entry_value_field().kind())
            )
        }
        other => kind(&other),
    };
    let label = match field.cardinality() {
        _ if field.is_map() => "map",
        Cardinality::Repeated => "repeated",
        Cardinality::Required => "required",
        Cardinality::Optional if proto3 => "singular",
        Cardinality::Optional => "optional",
    };
    let oneof = field.containing_oneof().map_or("-".to_owned(), |oneof| oneof.name().to_owned());
    let nonnull = pool.get_extension_by_name("swarmd.options.nonnull").unwrap();
    let mut options = Vec::new();
    if field.field_descriptor_proto().options.as_ref().is_some_and(|o| o.deprecated()) {
        options.push("deprecated");
    }
    if field.options().get_extension(&nonnull).as_bool() == Some(true) {
        options.push("nonnull");
    }
    if field.is_list() && packable(&field.kind()) && !field.is_packed() {
        options.push("unpacked");
    }
    format!("{}\t{ty}\t{label}\t{oneof}\t{}", field.number(), or_dash(options.join(",")))
}

fn packable(kind: &Kind) -> bool {
    !matches!(kind, Kind::String | Kind::Bytes | Kind::Message(_))
}

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(of_values) => EnumDescriptor::full_name(of_values).to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

#[test]
fn every_member_of_the_contract_is_there_and_nothing_else() {
    let (mut actual, mut wrong) = (actual(&pool()), Vec::new());
    for (key, expected) in expected() {
        match actual.remove(&key) {
            Some(actual) if actual == expected => {}
            Some(actual) => wrong.push(format!("{key:?}\n  should be {expected:?}\n  but is    {actual:?}")),
            None => wrong.push(format!("{key:?} is missing")),
        }
    }
    wrong.extend(actual.keys().map(|key| format!("{key:?} is not in the contract")));
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_contract_is_as_large_as_it_was() {
    let count = |kind: &str| expected().keys().filter(|(k, ..)| k == kind).count();
    assert_eq!((count("message"), count("enum"), count("service")), (821, 165, 65));
}

/// Our own additions have packages of their own.
#[test]
fn no_other_package_is_served_by_accident() {
    let mut services: Vec<String> = pool().services().map(|s| s.package_name().to_owned()).collect();
    services.sort();
    services.dedup();
    assert!(services.iter().all(|p| p == "docker.swarmkit.v1" || p.starts_with("swarmd.")), "{services:?}");
}
