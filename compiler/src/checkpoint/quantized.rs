//! Checkpoints whose weights are quantized already: which method, by what the config says or the tensors show.
//!
//! Invariant: codes that are not read as what they are (`methods.rs`) are refused by the name of their method, and the way on
//! is the checkpoint that this one was made from. Nothing is advised that could lose scales: codes without scales compile and
//! answer nonsense.

use std::path::Path;

use dlx_ir::Error;
use safetensors::Dtype;
use serde_json::Value;

use super::{Config, methods};

/// Endings of tensor names and the method that writes them; the first that matches counts.
const NAMES: &[(&str, &str)] = &[
    (".g_idx", "GPTQ"),
    (".qzeros", "AWQ or GPTQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_shape", "compressed-tensors"),
    (".absmax", "bitsandbytes, 4 bits"),
    (".quant_map", "bitsandbytes, 4 bits"),
    (".SCB", "bitsandbytes, 8 bits"),
    (".weight_format", "bitsandbytes, 8 bits"),
    (".W_q", "HQQ"),
    (".codebooks", "AQLM"),
    (".Qidxs", "QuIP#"),
    (".weight_scale_inv", "FP8"),
    ("_blocks", "MXFP4"),
    (".weight_scale_2", "NVFP4"),
    (".weight_scales", "EETQ"),
    (".weight_scale", "FP8 or int8 with scales"),
    (".qweight", "AWQ or GPTQ"),
    (".biases", "MLX"),
];

const ORIGINAL: &str =
    "use the unquantized checkpoint that this one was made from; dlxc quantizes it (--quant int4, int8)";

/// Those of them that are not read.
const UNREAD: &[&str] = &["AQLM", "EETQ", "HQQ", "MLX", "NVFP4", "QuIP#"];

/// What brings back a config that a quantizer wrote.
const CONFIG: &str = "download config.json from the model's repository: its `quantization_config` says how the weights are quantized; or use the unquantized checkpoint that this one was made from";

/// Files that quantizers leave beside the weights.
const FILES: &[(&str, &str)] = &[
    ("hf_quant_config.json", "ModelOpt"),
    ("quant_config.json", "AWQ"),
    ("quantize_config.json", "GPTQ"),
    ("quanto_qmap.json", "Quanto"),
];

/// What a directory says about quantization, before its tensors are looked at.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    /// File and key that say it.
    pub(super) place: String,
    /// The method's name.
    pub(super) method: String,
    /// What is said besides.
    pub(super) config: Config,
}

impl Declared {
    /// Whether the method may quantize plain weights while they are loaded: those stored beside it are the real ones.
    pub(super) fn while_loading(&self) -> bool {
        self.method == "bitsandbytes"
    }
}

/// The method that the config or a file beside it names.
///
/// # Errors
/// A file of a quantizer that cannot be read.
pub(super) fn declared(dir: &Path, config: &Config) -> Result<Option<Declared>, Error> {
    for key in ["quantization_config", "quantization", "compression_config"] {
        let Some(value) = config.get(key).filter(|v| v.as_object().is_none_or(|o| !o.is_empty())) else { continue };
        let text = |k: &str| value.get(k).and_then(Value::as_str).map(str::to_owned);
        let on = |k: &str| value.get(k).and_then(Value::as_bool) == Some(true);
        let method = text("quant_method").or_else(|| text("quant_algo")).or_else(|| value.as_str().map(str::to_owned));
        let method = method.unwrap_or_else(|| match key {
            "quantization" => "MLX".into(),
            "compression_config" => "compressed-tensors".into(),
            _ if on("load_in_4bit") || on("load_in_8bit") => "bitsandbytes".into(),
            _ => "a method that it does not name".into(),
        });
        let method = method.chars().filter(|c| !c.is_control()).take(40).collect();
        let place = format!("{}: `{key}`", dir.join("config.json").display());
        // A config that is no object says nothing but its name.
        let config = config.object(key).ok().flatten().map_or_else(|| Config::from_json(dir, b"{}"), Ok)?;
        return Ok(Some(Declared { place, method, config }));
    }
    let Some((file, method)) = FILES.iter().find(|(file, _)| dir.join(file).exists()) else { return Ok(None) };
    let path = dir.join(file);
    let config = Config::read_optional(&path)?.map_or_else(|| Config::from_json(&path, b"{}"), Ok)?;
    Ok(Some(Declared { place: path.display().to_string(), method: (*method).into(), config }))
}

/// What to say of weights that are plain floating point in spite of what was declared.
///
/// # Errors
/// A method that stores codes: a cast has lost their scales, or another checkpoint's config lies here.
pub(super) fn plain(declared: Declared) -> Result<String, Error> {
    if declared.while_loading() {
        let method = declared.method;
        return Ok(format!("the config asks to quantize with {method} while loading; the plain weights are compiled"));
    }
    let Declared { place, method, .. } = declared;
    Err(Error::new(
        place,
        format!("says that the weights are quantized with {method}, but no tensor is: a cast alone loses the scales"),
    )
    .help(ORIGINAL))
}

/// The error for a directory that holds no safetensors files and calls its weights quantized.
pub(super) fn without_weights(declared: &Declared) -> Error {
    let message =
        format!("the weights are quantized already, with {}, and there are no *.safetensors files", declared.method);
    Error::new(&declared.place, message).help(ORIGINAL)
}

/// The error for plain tensors among which some belong to quantized ones: codes that were cast without their scales.
pub(super) fn cast<'a>(dir: &Path, mut names: impl Iterator<Item = &'a str>) -> Option<Error> {
    let (name, method) = names.find_map(|n| Some((n, NAMES.iter().find(|(end, _)| n.ends_with(end))?.1)))?;
    let message =
        format!("belongs to weights that were quantized with {method}; a cast of them alone is not the model");
    Some(Error::new(format!("{}: `{name}`", dir.display()), message).help(ORIGINAL))
}

/// The error for a tensor whose element type is no float, and that belongs to no weight that is read; `names` are all tensors
/// that were found beside it.
pub(super) fn refuse<'a>(
    path: &Path,
    tensor: &str,
    dtype: Dtype,
    declared: Option<&Declared>,
    names: impl Iterator<Item = &'a str> + Clone,
) -> Error {
    let shown = || NAMES.iter().find(|(end, _)| names.clone().any(|n| n.ends_with(end))).map(|(_, method)| *method);
    let stored = format!("tensor `{tensor}` of {} is {dtype:?}", path.display());
    if let Some(Declared { place, method, .. }) = declared {
        let message = match methods::find(method) {
            None => format!("the weights are quantized already, with {method}: {stored}"),
            Some(_) => {
                format!("says that the weights are quantized with {method}, which leaves no such tensor: {stored}")
            }
        };
        return Error::new(place, message).help(ORIGINAL);
    }
    let place = format!("{}: `{tensor}`", path.display());
    let float8 = matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F8_E8M0 | Dtype::F4);
    match shown().or(if float8 { Some("FP8 or FP4") } else { None }) {
        Some(method) => {
            let message = format!("has element type {dtype:?}: the weights are quantized already, with {method}");
            if UNREAD.contains(&method) {
                return Error::new(place, message).help(ORIGINAL);
            }
            Error::new(place, message + ", and config.json does not say how").help(CONFIG)
        }
        None if dtype == Dtype::F64 => Error::new(place, "has element type F64; F32, F16 and BF16 can be compiled")
            .help("store the checkpoint as float32: every value of F64 weights has one close to it there"),
        None => Error::new(place, format!("has element type {dtype:?}; F32, F16 and BF16 can be compiled"))
            .help("use the checkpoint as its publisher made it, in floating point"),
    }
}
