//! The manifest of a graph artifact: which graphs there are, and what they take and give. JSON, so that anybody can read it.
//!
//! Nothing in it is trusted: names are for callers, and types must be those of the program ([`entries`]).

use super::embeds::Embeds;
use crate::artifact::{self, Artifact};
use dlx_ir::{DType, Graph, Module, Type, ValueId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Everything about a graph artifact but its bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphManifest {
    /// What tells it from a text generator's manifest, which has no such field.
    pub kind: Kind,
    /// Compiler and version.
    pub compiler: String,
    /// What the model is called.
    pub name: String,
    /// Number of weights.
    pub parameters: u64,
    /// The passes that made the program, as they can be given to `dlxc opt`.
    pub pipeline: String,
    /// Memory of a run; for people.
    pub memory: GraphMemory,
    /// Its graphs, in the order of the program.
    pub entries: Vec<Signature>,
    /// How a text's embedding is made of what they give; the artifact then holds a tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embeds: Option<Embeds>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What an artifact holds, if it is no text generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Graphs of named inputs and outputs.
    Graph,
}

/// Bytes that a loaded graph artifact takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphMemory {
    /// Weights as they are computed with.
    pub weights: u64,
    /// Most that the values of a run take at one time.
    pub values: u64,
}

/// What a graph takes and gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Name of the graph.
    pub name: String,
    /// Its inputs, in the order of its parameters.
    pub inputs: Vec<Port>,
    /// Its outputs, in the order of its results.
    pub outputs: Vec<Port>,
}

/// One named input or output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Name that callers use.
    pub name: String,
    /// Element type, as in the program: `f32`, `i64`, `bool`, ….
    pub dtype: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

impl Port {
    /// A port of a type.
    fn new(name: &str, ty: &Type) -> Self {
        Port { name: name.to_owned(), dtype: ty.dtype.to_string(), shape: ty.shape().unwrap_or_default() }
    }

    /// Type and sizes as text, such as `i64[1, 128]`.
    pub fn ty(&self) -> String {
        let sizes: Vec<_> = self.shape.iter().map(usize::to_string).collect();
        format!("{}[{}]", self.dtype, sizes.join(", "))
    }

    /// Whether an array of this type is what it takes.
    pub fn takes(&self, dtype: DType, shape: &[usize]) -> bool {
        self.dtype == dtype.to_string() && self.shape == shape
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.ty())
    }
}

impl std::fmt::Display for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |ports: &[Port]| ports.iter().map(Port::to_string).collect::<Vec<_>>().join(", ");
        write!(f, "{}({}) -> ({})", self.name, list(&self.inputs), list(&self.outputs))
    }
}

impl Signature {
    /// What a graph of static shapes takes and gives, under these names.
    ///
    /// # Errors
    /// A name that is empty or is given twice, or another number of them than there are parameters and results.
    pub fn of(graph: &Graph, inputs: &[String], outputs: &[String]) -> Result<Self, String> {
        let ports = |what: &str, names: &[String], values: &[ValueId]| {
            if names.len() != values.len() {
                return Err(format!("@{} has {} {what}, not {}", graph.name, values.len(), names.len()));
            }
            let distinct: BTreeSet<&String> = names.iter().collect();
            if distinct.len() != names.len() || names.iter().any(String::is_empty) {
                return Err(format!("the {what} of @{} need names, each its own", graph.name));
            }
            Ok(names.iter().zip(values).map(|(name, v)| Port::new(name, &graph.values[*v].ty)).collect())
        };
        Ok(Signature {
            name: graph.name.clone(),
            inputs: ports("inputs", inputs, &graph.params)?,
            outputs: ports("outputs", outputs, &graph.results)?,
        })
    }
}

/// Checks a manifest against the program and the section table.
///
/// # Errors
/// The first two places that contradict each other.
pub(super) fn agree(artifact: &Artifact, manifest: &GraphManifest, program: &Module) -> Result<(), String> {
    let name = artifact::program_section("cpu");
    let known = [artifact::WEIGHTS, artifact::MANIFEST, artifact::GOLDEN, &name];
    let needed =
        |section: &str| known.contains(&section) || (section == artifact::TOKENIZER && manifest.embeds.is_some());
    if let Some(other) = artifact.sections().iter().find(|s| !needed(&s.name)) {
        return Err(format!("there is a section `{}`, which no graph needs", other.name));
    }
    if let Some(embeds) = &manifest.embeds {
        embeds.width(&manifest.entries)?;
    }
    let listed = manifest.entries.iter().map(|e| &e.name);
    if !listed.clone().eq(program.graphs.iter().map(|g| &g.name)) {
        let listed: Vec<_> = listed.map(String::as_str).collect();
        return Err(format!("the manifest lists the graphs {}, section `{name}` has others", listed.join(", ")));
    }
    for (entry, graph) in manifest.entries.iter().zip(&program.graphs) {
        let names = |ports: &[Port]| ports.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        let found = Signature::of(graph, &names(&entry.inputs), &names(&entry.outputs))?;
        if found != *entry {
            return Err(format!("the manifest says other types of @{} than section `{name}`", graph.name));
        }
    }
    Ok(())
}
