//! What decoding a file would take, found out by walking through its fields before anything is allocated.
//!
//! Invariant: [`check`] allocates nothing but an error, returns for a file that is cut or is no ONNX an error that says
//! where, and lets no file through whose messages would take far more memory than the file has bytes. It deliberately does
//! not look at values; decoding does.

use std::mem::size_of;
use std::path::Path;

use dlx_ir::Error;
use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

use super::proto;

/// Deepest nesting of messages; decoding has the same limit.
const MAX_DEPTH: usize = 100;

/// Memory that any file may take.
const FREE: u64 = 64 << 20;

/// Memory per byte of a file, raw tensor data not counted, that a larger file may take. An empty node is 2 bytes in a file
/// and hundreds decoded, so a small file could ask for all memory there is. Files of exporters take 5 to 25 by the count
/// below: mostly names, each a string of its own, and lists, which grow by doubling.
const PER_BYTE: u64 = 48;

/// Kinds of messages, as far as they nest in what can be large or deep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    ValueInfo,
    Type,
    TypeTensor,
    TypeNested,
    Shape,
    Dim,
    Function,
    Training,
    Annotation,
    Entry,
    Opset,
    Device,
    Sharding,
    ShardedDim,
    SimpleDim,
    IndexMap,
    DeviceGroup,
    Segment,
}

/// What a length-delimited field holds.
#[derive(Clone, Copy)]
enum Field {
    /// A message.
    Message(Kind),
    /// Numbers: bytes of memory for one byte of the file.
    Packed(u64),
    /// A string or bytes in memory of their own.
    Text,
    /// Bytes that stay in the mapped file.
    Raw,
    /// Skipped by decoding.
    Unknown,
}

impl Kind {
    /// Bytes of the decoded message, without what it points to.
    fn size(self) -> usize {
        match self {
            Kind::Model => size_of::<proto::ModelProto>(),
            Kind::Graph => size_of::<proto::GraphProto>(),
            Kind::Node => size_of::<proto::NodeProto>(),
            Kind::Attribute => size_of::<proto::AttributeProto>(),
            Kind::Tensor => size_of::<proto::TensorProto>(),
            Kind::Sparse => size_of::<proto::SparseTensorProto>(),
            Kind::ValueInfo => size_of::<proto::ValueInfoProto>(),
            Kind::Type | Kind::TypeTensor | Kind::TypeNested => size_of::<proto::TypeProto>(),
            Kind::Shape => size_of::<proto::TensorShapeProto>(),
            Kind::Dim => size_of::<proto::tensor_shape_proto::Dimension>(),
            Kind::Function => size_of::<proto::FunctionProto>(),
            Kind::Training => size_of::<proto::TrainingInfoProto>(),
            Kind::Annotation => size_of::<proto::TensorAnnotation>(),
            Kind::Entry => size_of::<proto::StringStringEntryProto>(),
            Kind::Opset => size_of::<proto::OperatorSetIdProto>(),
            Kind::Device => size_of::<proto::NodeDeviceConfigurationProto>(),
            Kind::Sharding => size_of::<proto::ShardingSpecProto>(),
            Kind::ShardedDim => size_of::<proto::ShardedDimProto>(),
            Kind::SimpleDim => size_of::<proto::SimpleShardedDimProto>(),
            Kind::IndexMap => size_of::<proto::IntIntListEntryProto>(),
            Kind::DeviceGroup => size_of::<proto::DeviceConfigurationProto>(),
            Kind::Segment => size_of::<proto::tensor_proto::Segment>(),
        }
    }

    /// What a field is, by its number in `onnx.proto`.
    fn field(self, number: u32) -> Field {
        use Field::{Message, Packed, Raw, Text};
        match (self, number) {
            (Kind::Model, 7) | (Kind::Training, 1 | 2) | (Kind::Attribute, 6 | 11) => Message(Kind::Graph),
            (Kind::Model, 8) | (Kind::Function, 9) => Message(Kind::Opset),
            (Kind::Model, 20) => Message(Kind::Training),
            (Kind::Model, 25) => Message(Kind::Function),
            (Kind::Model, 26) => Message(Kind::DeviceGroup),
            (Kind::Graph, 1) | (Kind::Function, 7) => Message(Kind::Node),
            (Kind::Graph, 5) | (Kind::Attribute, 5 | 10) | (Kind::Sparse, 1 | 2) => Message(Kind::Tensor),
            (Kind::Graph, 15) | (Kind::Attribute, 22 | 23) => Message(Kind::Sparse),
            (Kind::Graph, 11..=13) | (Kind::Function, 12) => Message(Kind::ValueInfo),
            (Kind::Graph, 14) => Message(Kind::Annotation),
            (Kind::Node, 5) | (Kind::Function, 11) => Message(Kind::Attribute),
            (Kind::Node, 10) => Message(Kind::Device),
            (Kind::ValueInfo, 2) | (Kind::Attribute, 14 | 15) => Message(Kind::Type),
            (Kind::Type, 1 | 8) => Message(Kind::TypeTensor),
            (Kind::Type, 4 | 5 | 9) => Message(Kind::TypeNested),
            (Kind::TypeNested, 1 | 2) => Message(Kind::Type),
            (Kind::TypeTensor, 2) => Message(Kind::Shape),
            (Kind::Shape, 1) => Message(Kind::Dim),
            (Kind::Device, 2) => Message(Kind::Sharding),
            (Kind::Sharding, 3) => Message(Kind::IndexMap),
            (Kind::Sharding, 4) => Message(Kind::ShardedDim),
            (Kind::ShardedDim, 2) => Message(Kind::SimpleDim),
            (Kind::Tensor, 3) => Message(Kind::Segment),
            (Kind::Model | Kind::Function, 14)
            | (Kind::Graph | Kind::Tensor, 16)
            | (Kind::Node, 9)
            | (Kind::ValueInfo, 4)
            | (Kind::Tensor, 13)
            | (Kind::Annotation, 2)
            | (Kind::Training, 3 | 4) => Message(Kind::Entry),
            (Kind::Tensor, 1 | 7 | 11) | (Kind::Attribute, 8) | (Kind::Sparse, 3) => Packed(8),
            (Kind::Sharding | Kind::IndexMap, 2) => Packed(8),
            (Kind::Tensor, 5) => Packed(4),
            (Kind::Tensor, 4 | 10) | (Kind::Attribute, 7) => Packed(1),
            (Kind::Tensor, 9) => Raw,
            (Kind::Model, 2..=6)
            | (Kind::Graph, 2 | 10)
            | (Kind::Node, 1..=8)
            | (Kind::Attribute, 1 | 4 | 9 | 13 | 21)
            | (Kind::Tensor, 6 | 8 | 12)
            | (Kind::Function, 1 | 4..=6 | 8 | 10 | 13)
            | (Kind::ValueInfo | Kind::DeviceGroup, 1 | 3)
            | (Kind::Dim | Kind::SimpleDim, 2 | 3)
            | (Kind::TypeNested, _)
            | (Kind::Type, 6 | 7)
            | (Kind::Entry, _)
            | (Kind::Opset | Kind::Annotation | Kind::Device | Kind::Sharding, 1) => Text,
            _ => Field::Unknown,
        }
    }
}

/// The walk over one file.
struct Walk<'a> {
    path: &'a Path,
    file: &'a [u8],
    /// Memory that what was seen so far takes.
    cost: u64,
    /// Bytes of raw tensor data.
    raw: u64,
}

/// Fails for a file that is cut, is no message of the format, or would take unreasonable memory.
pub(super) fn check(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut walk = Walk { path, file: bytes, cost: 0, raw: 0 };
    walk.message(bytes, Kind::Model, 0)?;
    let justified = (bytes.len() as u64).saturating_sub(walk.raw).saturating_mul(PER_BYTE).saturating_add(FREE);
    if walk.cost > justified {
        let message = format!(
            "would take {} MiB of memory, though it has only {} bytes beside raw tensor data",
            walk.cost >> 20,
            bytes.len() as u64 - walk.raw
        );
        return Err(Error::new(path.display(), message).help("no exporter writes such files: export the model again"));
    }
    Ok(())
}

impl Walk<'_> {
    fn message(&mut self, mut rest: &[u8], kind: Kind, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(self.damaged(rest, &format!("nests more than {MAX_DEPTH} messages")));
        }
        // The field as a part of the message, and twice for the room that a growing list keeps.
        self.cost = self.cost.saturating_add(2 * kind.size() as u64);
        while rest.has_remaining() {
            let at = rest;
            let (number, wire) = decode_key(&mut rest).map_err(|e| self.damaged(at, &format!("{kind:?}: {e}")))?;
            let skip = match wire {
                WireType::Varint => {
                    decode_varint(&mut rest).map_err(|_| self.cut(at, kind))?;
                    // An element of a list that was not packed.
                    self.cost = self.cost.saturating_add(16);
                    continue;
                }
                WireType::ThirtyTwoBit => 4,
                WireType::SixtyFourBit => 8,
                WireType::LengthDelimited => decode_varint(&mut rest).map_err(|_| self.cut(at, kind))?,
                WireType::StartGroup | WireType::EndGroup => {
                    return Err(self.damaged(at, &format!("{kind:?} has a group, which the format does not use")));
                }
            };
            let len = usize::try_from(skip).unwrap_or(usize::MAX);
            let Some((value, after)) = rest.split_at_checked(len) else {
                return Err(self.cut(at, kind));
            };
            rest = after;
            if wire != WireType::LengthDelimited {
                self.cost = self.cost.saturating_add(2 * skip);
                continue;
            }
            match kind.field(number) {
                Field::Message(inner) => self.message(value, inner, depth + 1)?,
                Field::Packed(each) => self.cost = self.cost.saturating_add(2 * skip.saturating_mul(each)),
                Field::Text => self.cost = self.cost.saturating_add(skip + 2 * size_of::<String>() as u64),
                Field::Raw => self.raw += skip,
                Field::Unknown => {}
            }
        }
        Ok(())
    }

    fn cut(&self, at: &[u8], kind: Kind) -> Error {
        let message = format!(
            "is cut short or damaged: the field at byte {} of {} goes beyond the end of its {kind:?}",
            self.offset(at),
            self.file.len()
        );
        Error::new(self.path.display(), message).help("download or export the file again")
    }

    fn damaged(&self, at: &[u8], what: &str) -> Error {
        let message = format!("is not a valid ONNX file: {what} at byte {}", self.offset(at));
        Error::new(self.path.display(), message).help("download or export the file again")
    }

    /// Where in the file a part of it begins.
    fn offset(&self, part: &[u8]) -> usize {
        part.as_ptr().addr() - self.file.as_ptr().addr()
    }
}
