//! The text of a shader and the proof that it fits: bindings and sizes first, then WGSL written for them.
//!
//! Invariant: what [`check`] accepts needs no more of a device than the profile and the features of its variant say.

use std::fmt::Write;

use dlx_runtime::wgpu::plan::{Access, Feature, Profile};
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

/// A shader being written.
pub(super) struct Source {
    text: String,
    /// Access of each binding.
    pub(super) bindings: Vec<Access>,
}

/// A call's scalars, which every entry has.
const CALL: &str = "struct Call {
    at_row: u32,
    end_row: u32,
    from_row: u32,
    visible: u32,
    live: u32,
    unused0: u32,
    unused1: u32,
    unused2: u32,
}
";
/// Bytes of the scalars as a uniform binding: a multiple of 16.
pub(super) const CALL_BYTES: u64 = 32;

impl Source {
    /// A shader whose binding 0 is the call's scalars.
    pub(super) fn new(features: Features) -> Self {
        let enable = if features.contains(&Feature::F16) { "enable f16;\n" } else { "" };
        let text = format!("{enable}{CALL}@group(0) @binding(0) var<uniform> call: Call;\n");
        Source { text, bindings: vec![Access::Uniform] }
    }

    /// A buffer that is only read.
    pub(super) fn read(mut self, name: &str, element: &str) -> Self {
        self.bind(name, element, "read");
        self.bindings.push(Access::Read);
        self
    }

    /// A buffer of activations, states or results.
    pub(super) fn write(mut self, name: &str, element: &str) -> Self {
        self.bind(name, element, "read_write");
        self.bindings.push(Access::ReadWrite);
        self
    }

    fn bind(&mut self, name: &str, element: &str, access: &str) {
        let binding = self.bindings.len();
        let _ = writeln!(self.text, "@group(0) @binding({binding}) var<storage, {access}> {name}: array<{element}>;");
    }

    /// `const NAME: u32`.
    pub(super) fn size(mut self, name: &str, value: usize) -> Self {
        let _ = writeln!(self.text, "const {name}: u32 = {value}u;");
        self
    }

    /// `const NAME: f32`.
    pub(super) fn float(mut self, name: &str, value: f32) -> Self {
        let _ = writeln!(self.text, "const {name}: f32 = {};", float(value));
        self
    }

    /// WGSL.
    pub(super) fn text(mut self, text: &str) -> Self {
        self.text.push_str(text);
        self
    }

    /// The shader.
    pub(super) fn finish(self) -> (String, Vec<Access>) {
        (self.text, self.bindings)
    }
}

/// A number as WGSL reads it back to the same bits.
pub(super) fn float(value: f32) -> String {
    format!("{value:e}f")
}

/// How values of a workgroup are put together.
#[derive(Clone, Copy)]
pub(super) enum Fold {
    Sum,
    Max,
}

/// What every shader with a reduction knows about its thread.
pub(super) fn thread(features: Features) -> &'static str {
    if features.contains(&Feature::Subgroups) {
        "struct Thread {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
}
"
    } else {
        "struct Thread {
    @builtin(local_invocation_index) index: u32,
}
"
    }
}

/// A function that folds one value per thread into one that every thread gets, for any subgroup size of 4 and more and any
/// mapping of threads to lanes. `threads` is a multiple of 16.
pub(super) fn reduction(features: Features, fold: Fold, ty: &str, threads: usize) -> String {
    let (name, both, subgroup) = match fold {
        Fold::Sum => ("workgroup_sum", "a + b", "subgroupAdd"),
        Fold::Max => ("workgroup_max", "max(a, b)", "subgroupMax"),
    };
    let combine = format!("fn {name}_of(a: {ty}, b: {ty}) -> {ty} {{\n    return {both};\n}}\n");
    if features.contains(&Feature::Subgroups) {
        return format!(
            "{combine}var<workgroup> {name}_parts: array<{ty}, {parts}>;
fn {name}(value: {ty}, thread: Thread) -> {ty} {{
    let part = {subgroup}(value);
    workgroupBarrier();
    if (thread.lane == 0u) {{
        {name}_parts[thread.subgroup] = part;
    }}
    workgroupBarrier();
    var all = {name}_parts[0];
    for (var i = 1u; i < thread.subgroups; i++) {{
        all = {name}_of(all, {name}_parts[i]);
    }}
    return all;
}}
",
            parts = threads.div_ceil(4)
        );
    }
    format!(
        "{combine}var<workgroup> {name}_parts: array<{ty}, {threads}>;
fn {name}(value: {ty}, thread: Thread) -> {ty} {{
    workgroupBarrier();
    {name}_parts[thread.index] = value;
    workgroupBarrier();
    if (thread.index < 16u) {{
        var part = value;
        for (var i = thread.index + 16u; i < {threads}u; i += 16u) {{
            part = {name}_of(part, {name}_parts[i]);
        }}
        {name}_parts[thread.index] = part;
    }}
    workgroupBarrier();
    var all = {name}_parts[0];
    for (var i = 1u; i < 16u; i++) {{
        all = {name}_of(all, {name}_parts[i]);
    }}
    return all;
}}
"
    )
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
