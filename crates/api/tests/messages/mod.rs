//! Messages of the contract, made and looked at by their descriptors.

#![allow(dead_code, clippy::unwrap_used)] // each test file uses a part of it

use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
};

pub(crate) fn pool() -> DescriptorPool {
    let encoded = swarm_codegen::descriptors(&swarm_codegen::root()).unwrap();
    DescriptorPool::decode(encoded.as_slice()).unwrap()
}

pub(crate) fn descriptor(pool: &DescriptorPool, name: &str) -> MessageDescriptor {
    pool.get_message_by_name(name).unwrap_or_else(|| panic!("no message {name}"))
}

/// A message with something in every field, all the way down. Of each oneof it has the member with the number
/// `choice`, so that as many choices as the largest oneof has members show everything. `bytes` and `string` say
/// what is in such a field.
pub(crate) struct Filler<'a> {
    pub(crate) choice: usize,
    pub(crate) bytes: &'a mut dyn FnMut(&FieldDescriptor) -> Vec<u8>,
    pub(crate) string: &'a mut dyn FnMut(&FieldDescriptor) -> String,
}

/// Members of the largest oneof.
pub(crate) const CHOICES: usize = 20;

impl Filler<'_> {
    pub(crate) fn fill(&mut self, descriptor: &MessageDescriptor) -> DynamicMessage {
        self.fill_below(descriptor, &[])
    }

    /// Messages inside one of their own kind are left out.
    fn fill_below(&mut self, descriptor: &MessageDescriptor, above: &[&str]) -> DynamicMessage {
        let inside: Vec<&str> = above.iter().copied().chain([descriptor.full_name()]).collect();
        let nests =
            |f: &FieldDescriptor| f.kind().as_message().is_some_and(|m| inside.contains(&m.full_name()));
        let mut message = DynamicMessage::new(descriptor.clone());
        for oneof in descriptor.oneofs() {
            let members: Vec<FieldDescriptor> = oneof.fields().collect();
            assert!(members.len() <= CHOICES);
            let field = &members[self.choice % members.len()];
            let value = self.value(field, &field.kind(), &inside);
            message.set_field(field, value);
        }
        for field in descriptor.fields().filter(|f| f.containing_oneof().is_none() && !nests(f)) {
            let value = match field.kind() {
                Kind::Message(entry) if field.is_map() => {
                    let value = entry.map_entry_value_field();
                    let value = self.value(&field, &value.kind(), &inside);
                    Value::Map([(MapKey::String("key".to_owned()), value)].into())
                }
                kind if field.is_list() => Value::List(vec![self.value(&field, &kind, &inside)]),
                kind => self.value(&field, &kind, &inside),
            };
            message.set_field(&field, value);
        }
        message
    }

    fn value(&mut self, field: &FieldDescriptor, kind: &Kind, inside: &[&str]) -> Value {
        match kind {
            Kind::Message(message) => Value::Message(self.fill_below(message, inside)),
            Kind::Enum(numbers) => Value::EnumNumber(numbers.values().last().unwrap().number()),
            Kind::String => Value::String((self.string)(field)),
            Kind::Bytes => Value::Bytes((self.bytes)(field).into()),
            Kind::Bool => Value::Bool(true),
            Kind::Double => Value::F64(1.5),
            Kind::Float => Value::F32(1.5),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(-7),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(-7_000_000_000),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(7),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(7_000_000_000),
        }
    }
}

/// A message full of ordinary values.
pub(crate) fn full(pool: &DescriptorPool, name: &str, choice: usize) -> DynamicMessage {
    Filler { choice, bytes: &mut |_| b"bytes".to_vec(), string: &mut |f| f.name().to_owned() }
        .fill(&descriptor(pool, name))
}

/// The numbers of the fields that stand in an encoded message.
pub(crate) fn field_numbers(encoded: &[u8]) -> Vec<u32> {
    let mut numbers = Vec::new();
    let mut rest = encoded;
    while !rest.is_empty() {
        let (number, wire) = prost::encoding::decode_key(&mut rest).unwrap();
        prost::encoding::skip_field(wire, number, &mut rest, Default::default()).unwrap();
        numbers.push(number);
    }
    numbers
}
