//! The text of a shader and the proof that it fits: a template of `shaders/` and what it is told.
//!
//! Templates are the text, and Rust what it depends on: buffers, sizes, formats and features. A name in capitals is a
//! constant of the shader that its template reads as well; one in small letters is the template's alone.
//!
//! Invariant: what [`check`] accepts needs no more of a device than the profile and the features of its variant say.
//! Nothing of WGSL is put together here.

use std::collections::BTreeMap;
use std::error::Error;
use std::iter::successors;
use std::sync::LazyLock;

use dlx_ir::MAX_SPANS;
use dlx_runtime::wgpu::plan::{Access, Feature, Profile};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// Sizes and what may be used, for one variant of a kernel.
pub(super) type Features = &'static [Feature];

/// No optional feature.
pub(super) const PLAIN: Features = &[];
/// Subgroup operations.
pub(super) const SUBGROUPS: Features = &[Feature::Subgroups];
/// Half precision.
pub(super) const F16: Features = &[Feature::F16];
/// Both.
pub(super) const F16_SUBGROUPS: Features = &[Feature::F16, Feature::Subgroups];

/// Includes templates by their names.
macro_rules! templates {
    ($($name:literal)*) => {
        [$((concat!($name, ".wgsl"), include_str!(concat!("shaders/", $name, ".wgsl")))),*]
    };
}

/// Every template by its name.
static TEMPLATES: LazyLock<Result<Environment<'static>, minijinja::Error>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment
        .set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build()?);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    for (name, text) in templates!(
        "attention" "attention_merge" "cache" "elementwise" "embed" "head_final" "head_part" "kv_write" "linear" "norm"
        "product" "product_codes" "product_float" "product_sums" "quantize" "rms_norm" "rope" "rope_table" "shader" "silu"
        "stats" "store_rows" "take_rows" "thread" "weight"
    ) {
        environment.add_template(name, text)?;
    }
    Ok(environment)
});

/// A shader to be written. Equal sources have equal texts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    /// Access, name and element of each buffer; the first is bound at 1, behind the call.
    buffers: Vec<(Access, String, &'static str)>,
    /// Name, type and value of each constant.
    constants: Vec<(&'static str, &'static str, Value)>,
    /// What the template reads.
    values: BTreeMap<&'static str, Value>,
}

impl Source {
    /// A shader of the template of this name, without its ending.
    pub(super) fn new(features: Features, kernel: &str) -> Self {
        Source { buffers: Vec::new(), constants: Vec::new(), values: BTreeMap::new() }
            .set("kernel", format!("{kernel}.wgsl"))
            .set("f16", features.contains(&Feature::F16))
            .set("subgroups", features.contains(&Feature::Subgroups))
            .size("MAX_SPANS", MAX_SPANS)
    }

    /// A buffer that is only read.
    pub(super) fn read(mut self, name: impl Into<String>, element: &'static str) -> Self {
        self.buffers.push((Access::Read, name.into(), element));
        self
    }

    /// A buffer of activations, states or results.
    pub(super) fn write(mut self, name: impl Into<String>, element: &'static str) -> Self {
        self.buffers.push((Access::ReadWrite, name.into(), element));
        self
    }

    /// What the template alone reads.
    pub(super) fn set(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.values.insert(name, value.into());
        self
    }

    /// `const NAME: u32`.
    pub(super) fn size(self, name: &'static str, value: usize) -> Self {
        self.constant(name, "u32", value)
    }

    /// `const NAME: f32`.
    pub(super) fn float(self, name: &'static str, value: f32) -> Self {
        self.constant(name, "f32", float(value))
    }

    /// `const NAME: TYPE`.
    pub(super) fn constant(mut self, name: &'static str, ty: &'static str, value: impl Into<Value>) -> Self {
        let value = value.into();
        self.constants.push((name, ty, value.clone()));
        self.set(name, value)
    }

    /// Access of each binding; the call is the first.
    pub(super) fn bindings(&self) -> Vec<Access> {
        [Access::Uniform].into_iter().chain(self.buffers.iter().map(|b| b.0)).collect()
    }

    /// The shader.
    ///
    /// # Errors
    /// What is wrong with a template, and where.
    pub(super) fn text(&self) -> Result<String, String> {
        let buffers = self.buffers.iter().map(|(access, name, element)| {
            let access = if *access == Access::Read { "read" } else { "read_write" };
            Value::from((access, name, *element))
        });
        let constants = self.constants.iter().map(|(name, ty, value)| Value::from((*name, *ty, value.clone())));
        let mut values = self.values.clone();
        values.insert("buffers", buffers.collect());
        values.insert("constants", constants.collect());
        let rendered = TEMPLATES.as_ref().map_err(chain).and_then(|environment| {
            environment.get_template("shader.wgsl").and_then(|t| t.render(values)).map_err(|e| chain(&e))
        });
        rendered.map_err(|e| format!("no shader comes of its template: {e}"))
    }
}

/// An error of a template with its causes, outermost first.
fn chain(error: &minijinja::Error) -> String {
    let causes = successors(Some(error as &dyn Error), |&e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A number as WGSL reads it back to the same bits.
pub(super) fn float(value: f32) -> String {
    format!("{value:e}f")
}

/// Validates a shader with exactly the capabilities of its variant, and checks the profile's limits.
///
/// # Errors
/// What the validator says, or the limit that is exceeded, with both numbers.
pub(super) fn check(text: &str, features: &[Feature], profile: &Profile) -> Result<(), String> {
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    for feature in features {
        capabilities |= match feature {
            Feature::F16 => Capabilities::SHADER_FLOAT16,
            Feature::Subgroups => Capabilities::SUBGROUP,
        };
    }
    let mut options = naga::front::wgsl::Options::new();
    options.capabilities = capabilities;
    let module = naga::front::wgsl::Frontend::new_with_options(options)
        .parse(text)
        .map_err(|e| format!("the shader does not parse: {}", e.emit_to_string(text)))?;
    Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|e| format!("the shader is not valid: {}", e.emit_to_string(text)))?;
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).map_err(|e| e.to_string())?;
    let shared = module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
    let storage: u32 = shared.map(|(_, v)| layouter[v.ty].size.next_multiple_of(16)).sum();
    let threads: u32 = module.entry_points.iter().map(|e| e.workgroup_size.iter().product()).max().unwrap_or(0);
    for (what, value, limit) in [
        ("bytes of workgroup storage", storage, profile.max_workgroup_storage),
        ("invocations per workgroup", threads, profile.max_invocations),
    ] {
        if value > limit {
            return Err(format!("a kernel needs {value} {what}, and profile `{}` allows {limit}", profile.name));
        }
    }
    Ok(())
}
