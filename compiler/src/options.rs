//! What a compilation can be told.
//!
//! Invariant: a value of these types is one that makes sense on its own; whether it suits the model (a group that does not
//! divide a row, a sequence longer than the model was trained for) is checked where the model is known.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use dlx_ir::{DType, Grid, QuantFormat};
use dlx_runtime::graph::Pooling;

use crate::check::each::Tolerances;
use crate::hf::Source;

/// How the weights of a model, or some of them, are stored in the artifact.
///
/// Text: `none`, `f16`, `bf16`, `int8[:GROUP][:min]`, `int4[:GROUP][:min]` with a group of 32, 64 or 128, or `l16`. `int8`
/// alone has one scale per row, `int4` alone means `int4:32`. A final `m` is short for `:min`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum QuantSpec {
    /// As in the checkpoint.
    #[default]
    None,
    /// 16-bit float.
    F16,
    /// bfloat16.
    Bf16,
    /// Quantized.
    Quant(QuantFormat),
}

impl QuantSpec {
    /// The element type to convert to, `None` to leave weights as they are.
    pub fn dtype(self) -> Option<DType> {
        match self {
            QuantSpec::None => None,
            QuantSpec::F16 => Some(DType::F16),
            QuantSpec::Bf16 => Some(DType::BF16),
            QuantSpec::Quant(format) => Some(DType::Quant(format)),
        }
    }
}

impl FromStr for QuantSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "`{text}` is not a weight format; use none, f16, bf16, int8, int4, int4:64, int4:128, int4:64:min, …, l16"
            )
        };
        match text {
            "none" => return Ok(QuantSpec::None),
            "f16" => return Ok(QuantSpec::F16),
            "bf16" => return Ok(QuantSpec::Bf16),
            "l16" => return Ok(QuantSpec::Quant(QuantFormat::L16)),
            _ => {}
        }
        let (rest, grid) = match text.strip_suffix(":min").or_else(|| text.strip_suffix('m')) {
            Some(rest) => (rest, Grid::Affine),
            None => (text, Grid::Symmetric),
        };
        let (name, group) = match rest.split_once(':') {
            Some((name, "32")) => (name, Some(32)),
            Some((name, "64")) => (name, Some(64)),
            Some((name, "128")) => (name, Some(128)),
            Some(_) => return Err(bad()),
            None => (rest, None),
        };
        match name {
            "int8" => Ok(QuantSpec::Quant(QuantFormat { bits: 8, group, grid })),
            "int4" => Ok(QuantSpec::Quant(QuantFormat { bits: 4, group: group.or(Some(32)), grid })),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for QuantSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QuantSpec::None => write!(f, "none"),
            QuantSpec::F16 => write!(f, "f16"),
            QuantSpec::Bf16 => write!(f, "bf16"),
            QuantSpec::Quant(format) if format.grid == Grid::Table => write!(f, "{format}"),
            QuantSpec::Quant(QuantFormat { bits, group, grid }) => {
                write!(f, "int{bits}")?;
                if let Some(group) = group {
                    write!(f, ":{group}")?;
                }
                if *grid == Grid::Affine { write!(f, ":min") } else { Ok(()) }
            }
        }
    }
}

/// `NAME,NAME[=FORMAT]`: weights that get a format of their own, `none` if no format is given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keep {
    /// Names of weights or of their parts, such as `lm_head`.
    pub names: Vec<String>,
    /// Their format.
    pub format: QuantSpec,
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (names, format) = match text.split_once('=') {
            Some((names, format)) => (names, format.parse()?),
            None => (text, QuantSpec::None),
        };
        let names: Vec<String> = names.split(',').map(|n| n.trim().to_owned()).collect();
        if names.iter().any(String::is_empty) {
            return Err(format!("`{text}` has an empty name; write lm_head,embed=int8"));
        }
        Ok(Keep { names, format })
    }
}

/// Element type of KV caches, by its name in `--kv`.
///
/// # Errors
/// There is none of that name.
pub fn kv_type(text: &str) -> Result<DType, String> {
    match text {
        "f16" => Ok(DType::F16),
        "f32" => Ok(DType::F32),
        "int8" | "q8" => Ok(DType::CACHE_Q8),
        _ => Err("use f16, f32 or int8".into()),
    }
}

/// A size in bytes: `2GiB`, `2G`, `1500MB`, `2000000`.
///
/// # Errors
/// What is no size, or more than fits a number.
pub fn memory_size(text: &str) -> Result<u64, String> {
    let bad = || {
        format!(
            "`{text}` is no size: write bytes, or a number with kB, MB, GB, KiB, MiB, GiB, K, M, G or T, such as 2GiB or 1.5G"
        )
    };
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.to_ascii_lowercase();
    let scale: u64 = match unit.as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(bad()),
    };
    let number = number.trim_end();
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > 9 || number.ends_with('.') {
        return Err(bad());
    }
    if !part.is_empty() && scale == 1 {
        return Err(format!("`{text}` is no whole number of bytes: write 2GiB, 1500MB or whole bytes"));
    }
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let part: u64 = format!("{part:0<9}").parse().map_err(|_| bad())?;
    let bytes = u128::from(whole) * u128::from(scale) + u128::from(part) * u128::from(scale) / 1_000_000_000;
    match u64::try_from(bytes) {
        Ok(0) => Err(format!("`{text}` is no memory at all: a limit is above 0, such as 2GiB")),
        Ok(bytes) => Ok(bytes),
        Err(_) => Err(format!("`{text}` is more than any machine has: write 2GiB or 1500MB")),
    }
}

/// Everything that a compilation depends on besides the checkpoint.
#[derive(Clone, PartialEq, Debug)]
pub struct CompileOptions {
    /// Names of the targets; the first is what runs unless another is asked for.
    pub targets: Vec<String>,
    /// Limits of the devices that plans are made for, by name.
    pub profile: Option<String>,
    /// Prompts that an export calibrates ranges on.
    pub calibrate: Option<PathBuf>,
    /// SoC that an export is for.
    pub soc: Option<String>,
    /// Whether an export may hold operators that the device does not take.
    pub allow_fallback: bool,
    /// Format of the matrices.
    pub quant: QuantSpec,
    /// Whether matrices that come quantized get that format too; else they keep their codes where a format holds them, and
    /// take the format that comes closest where none does.
    pub requantize: bool,
    /// Exceptions, later ones winning.
    pub keep: Vec<(String, QuantSpec)>,
    /// Rows of the KV caches; the model's own maximum, within reason, if not given.
    pub max_seq: Option<usize>,
    /// Block length of block-causal models; that of the checkpoint if not given.
    pub block: Option<usize>,
    /// Sampler, for checkpoints that do not say which one they were trained for.
    pub sampler: Option<String>,
    /// Family of an ONNX file that has no `config.json`.
    pub family: Option<String>,
    /// Mask token, instead of what the model's files say.
    pub mask_id: Option<i32>,
    /// Directory of an ONNX file's `config.json`, if not its own.
    pub config: Option<PathBuf>,
    /// Directory of an ONNX file's tokenizer files, if not that of its config.
    pub tokenizer: Option<PathBuf>,
    /// How the hidden states of an ONNX encoder become embeddings; its tokenizer then goes into the artifact.
    pub pooling: Option<Pooling>,
    /// Whether embeddings are scaled to length 1.
    pub normalize: bool,
    /// Whether an ONNX file is compiled as the graph that it is, even if it is known to generate text.
    pub graph: bool,
    /// Sizes of an ONNX file's dynamic dimensions by name; one graph for each combination.
    pub dims: Vec<(String, Vec<usize>)>,
    /// Element type of the KV caches: f32, f16 or [`DType::CACHE_Q8`]; f32 for unquantized models and f16 otherwise if not given.
    pub kv: Option<DType>,
    /// Rows of the compiled steps; chosen by the block length if empty.
    pub buckets: Vec<usize>,
    /// Passes to run instead of the target's own.
    pub pipeline: Option<String>,
    /// Directory for one numbered IR file per pass that changed something.
    pub dump: Option<PathBuf>,
    /// Passes after which the IR is printed.
    pub print_after: Vec<String>,
    /// Whether weights may hold NaN or infinity.
    pub allow_nonfinite: bool,
    /// Bytes that running the artifact may take at most.
    pub max_memory: Option<u64>,
    /// Threads to use; one per core if not given. The result does not depend on it.
    pub threads: Option<usize>,
    /// Run the module before and after every pass, and hold the pass to what it says it keeps.
    pub verify_each: bool,
    /// Errors that this allows instead of what passes say.
    pub tolerances: Tolerances,
}

impl CompileOptions {
    /// The usual options, but for the format of the matrices if one is asked for.
    pub fn asked(quant: Option<QuantSpec>) -> Self {
        let usual = CompileOptions::default();
        CompileOptions { quant: quant.unwrap_or(usual.quant), requantize: quant.is_some(), ..usual }
    }

    /// What the files of a model say, and what was asked for instead.
    pub fn source<'a>(&'a self, files: Source<'a>) -> Source<'a> {
        Source { mask_id: self.mask_id, block: self.block, sampler: self.sampler.as_deref(), ..files }
    }
}

impl Default for CompileOptions {
    /// The CPU target, int4, and everything else left to the model.
    fn default() -> Self {
        CompileOptions {
            targets: vec!["cpu".into()],
            profile: None,
            calibrate: None,
            soc: None,
            allow_fallback: false,
            quant: QuantSpec::Quant(QuantFormat::symmetric(4, Some(32))),
            requantize: false,
            keep: Vec::new(),
            max_seq: None,
            block: None,
            sampler: None,
            family: None,
            mask_id: None,
            config: None,
            tokenizer: None,
            pooling: None,
            normalize: false,
            graph: false,
            dims: Vec::new(),
            kv: None,
            buckets: Vec::new(),
            pipeline: None,
            dump: None,
            print_after: Vec::new(),
            allow_nonfinite: false,
            max_memory: None,
            threads: None,
            verify_each: false,
            tolerances: Tolerances::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_parse_and_print() {
        for (text, canonical, dtype) in [
            ("none", "none", None),
            ("f16", "f16", Some("f16")),
            ("bf16", "bf16", Some("bf16")),
            ("int8", "int8", Some("q8")),
            ("int8:32", "int8:32", Some("q8g32")),
            ("int4", "int4:32", Some("q4g32")),
            ("int4:128", "int4:128", Some("q4g128")),
            ("int4:64:min", "int4:64:min", Some("q4g64m")),
            ("int4:32m", "int4:32:min", Some("q4g32m")),
            ("int4:min", "int4:32:min", Some("q4g32m")),
            ("l16", "l16", Some("l16")),
            ("int8:min", "int8:min", Some("q8m")),
        ] {
            let spec: QuantSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), canonical);
            assert_eq!(canonical.parse::<QuantSpec>(), Ok(spec));
            assert_eq!(spec.dtype().map(|d| d.to_string()).as_deref(), dtype);
        }
        for text in [
            "",
            "int",
            "int2",
            "int4:",
            "int4:48",
            "int4:64:max",
            "int4:64:64",
            "f16:min",
            "INT4",
            "q4g64",
            "m",
            "l16:64",
            "l16m",
            "l16:min",
        ] {
            let e = text.parse::<QuantSpec>().unwrap_err();
            assert!(e.starts_with(&format!("`{text}` is not")), "{e}");
        }
    }

    #[test]
    fn sizes_of_memory_parse() {
        for (text, bytes) in [
            ("2GiB", 2 << 30),
            ("2G", 2 << 30),
            ("2 GiB", 2 << 30),
            ("1500MB", 1_500_000_000),
            ("1.5g", 3 << 29),
            ("0.5kB", 500),
            ("123456", 123_456),
            ("7b", 7),
            ("3t", 3 << 40),
        ] {
            assert_eq!(memory_size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "G", "2GG", "-1G", "1,5G", "1.G", ".5G", "2e9", "nan", "∞", "0", "0G", "1.5", "99999999999T", "2 G B"]
        {
            let error = memory_size(text).unwrap_err();
            assert!(error.contains("GiB"), "{text}: {error}");
        }
    }

    #[test]
    fn keep_lists_share_one_format() {
        let keep: Keep = "lm_head, embed=int8".parse().unwrap();
        assert_eq!(keep.names, ["lm_head", "embed"]);
        assert_eq!(keep.format.to_string(), "int8");
        assert_eq!("norm".parse::<Keep>().unwrap().format, QuantSpec::None);
        for bad in ["", "=int8", "a,,b", "a=int3", "a=int4=int8"] {
            assert!(bad.parse::<Keep>().is_err(), "{bad}");
        }
    }
}
