//! What a file or a directory is that is no checkpoint: a Git LFS pointer, an adapter, training state, weights of another
//! program, a web page, half a download.
//!
//! Invariant: nothing here decides whether something can be read; it is asked once reading has failed, and names what was
//! found and the way on. It deliberately advises no conversion that could lose a part of the weights.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use dlx_ir::Error;

use super::Config;

/// Endings of files that hold weights in another form: the form, and the way on.
const FORMS: &[(&str, &str, &str)] = &[
    ("bin", "PyTorch pickles", FROM_PICKLE),
    ("ckpt", "a training checkpoint", "export the model from the program that trained it as safetensors"),
    ("distcp", "the shards of a distributed training checkpoint", FROM_FSDP),
    ("gguf", "GGUF files for llama.cpp", ORIGINAL),
    ("h5", "TensorFlow weights", ORIGINAL),
    ("msgpack", "Flax weights", ORIGINAL),
    ("npz", "NumPy archives", ORIGINAL),
    ("onnx", "ONNX graphs", "give the .onnx file itself, or use the safetensors checkpoint that it was exported from"),
    ("pt", "PyTorch pickles", FROM_PICKLE),
    ("pth", "PyTorch pickles", FROM_PICKLE),
];
const ORIGINAL: &str = "use the safetensors checkpoint that they were made from";
const FROM_FSDP: &str =
    "merge them with `accelerate merge-weights SHARDS OUT`, and copy config.json and the tokenizer files into OUT";
const FROM_PICKLE: &str = "convert each with python3: import torch; from safetensors.torch import save_file; \
    state = torch.load(FILE, map_location=\"cpu\", weights_only=True); \
    save_file({k: v.clone().contiguous() for k, v in state.items()}, FILE[:FILE.rindex(\".\")] + \".safetensors\")";

const DIRECTORY: &str = "give the directory of a Hugging Face checkpoint: config.json, *.safetensors, tokenizer.json";

/// Endings of files that a download has not finished.
const UNFINISHED: &[&str] = &["aria2", "crdownload", "incomplete", "part", "partial"];

/// Fails for what is there and is no file, such as a pipe, on which reading would wait for ever.
pub(crate) fn check_is_file(path: &Path) -> Result<(), Error> {
    match path.metadata() {
        Ok(meta) if meta.is_file() => Ok(()),
        Ok(_) => Err(unreadable(path, &io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))),
        Err(e) => Err(unreadable(path, &e)),
    }
}

/// A file that is there and cannot be read.
pub(crate) fn unreadable(path: &Path, e: &io::Error) -> Error {
    if let Some(error) = dangling(path) {
        return error;
    }
    if path.is_dir() {
        return Error::new(path.display(), "is a directory").help("put the file of that name in its place");
    }
    Error::new(path.display(), format!("cannot be read: {e}")).help("check the file and its permissions")
}

/// A link whose target is gone, as a cache leaves it when it has been cleared.
fn dangling(path: &Path) -> Option<Error> {
    let target = std::fs::read_link(path).ok().filter(|_| !path.exists())?;
    let message = format!("is a link to {}, which is not there", target.display());
    Some(Error::new(path.display(), message).help("download the file again: the copy that the link meant is gone"))
}

/// A path that should have been a model directory.
pub(super) fn not_a_directory(path: &Path) -> Error {
    if let Some(error) = dangling(path) {
        return error;
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (message, help) = match path.metadata().map(|_| path.extension().and_then(|e| e.to_str())) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.extension().is_some_and(|e| e == "onnx") => {
            ("no such file".to_owned(), "check the name of the ONNX file".to_owned())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => (
            "no such directory".to_owned(),
            "download the checkpoint (config.json, *.safetensors, tokenizer.json) and give its directory".to_owned(),
        ),
        Err(e) => (format!("cannot be read: {e}"), "check its permissions".to_owned()),
        Ok(Some("dlxa")) => ("is compiled already".into(), format!("run it: dlxc run {}", path.display())),
        Ok(Some("safetensors" | "json")) => {
            ("is not a directory".into(), format!("give the directory that it is in: {}", parent.display()))
        }
        Ok(Some(ending)) if FORMS.iter().any(|(e, ..)| *e == ending) => {
            let (_, form, _) = FORMS.iter().find(|(e, ..)| *e == ending).expect("any() has just found it");
            (format!("is not a directory; its name is that of {form}"), format!("{ORIGINAL}, as a directory"))
        }
        Ok(_) => {
            let start = std::fs::File::open(path).ok().filter(|_| path.is_file()).and_then(|file| {
                let mut start = Vec::new();
                file.take(512).read_to_end(&mut start).ok().map(|_| start)
            });
            if let Some(error) = start.and_then(|start| by_content(path, &start)) {
                return error;
            }
            ("is not a directory".into(), DIRECTORY.into())
        }
    };
    Error::new(path.display(), message).help(help)
}

/// What a file's first bytes say that it is, if that is something well known that is neither JSON nor safetensors.
pub(crate) fn by_content(path: &Path, bytes: &[u8]) -> Option<Error> {
    let start = bytes.get(..512).unwrap_or(bytes);
    let text = String::from_utf8_lossy(start).trim_start().to_ascii_lowercase();
    let is = |prefixes: &[&str]| prefixes.iter().any(|p| text.starts_with(p));
    let holds = |magic: &[&[u8]]| magic.iter().any(|m| start.starts_with(m));
    let again = "download it again";
    // A safetensors header opens with its length, whose bytes can be anything, and a brace.
    let header = start.get(8) == Some(&b'{');
    let (what, help) = if bytes.is_empty() {
        ("is empty: the file is empty or was never written", "download the file again")
    } else if is(&["version https://git-lfs", "# xet version", "/annex/objects/"]) {
        let help = "run `git lfs install` and `git lfs pull` in the directory, or download the file from the model's repository";
        ("is a Git LFS pointer: the file itself was not downloaded", help)
    } else if is(&[
        "<!doctype",
        "<html",
        "<?xml",
        "entry not found",
        "repository not found",
        "invalid username",
        "access to model",
    ]) {
        let help = "download it again; a gated model needs `hf auth login` first";
        ("is a web page or a server's message in place of the file", help)
    } else if header {
        return None;
    } else if holds(&[b"GGUF"]) {
        ("is a GGUF file for llama.cpp", "use the safetensors checkpoint that it was made from")
    } else if holds(&[b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04"]) {
        (
            "is a zip archive or a PyTorch pickle",
            "use the checkpoint's safetensors files; an archive must be unpacked first",
        )
    } else if holds(&[b"\x1f\x8b\x08", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"BZh"])
        || bytes.get(257..262) == Some(b"ustar")
    {
        ("is a compressed file or an archive", "unpack it and give the files that were in it")
    } else if holds(&[b"\x89HDF"]) {
        ("holds TensorFlow weights", "use the safetensors checkpoint that it was made from")
    } else if start.len() > 8 && start.iter().all(|b| *b == 0) {
        ("begins with zeros: the download was not finished", again)
    } else {
        return None;
    };
    Some(Error::new(path.display(), what).help(help))
}

/// A directory without `config.json`.
pub(super) fn no_config(dir: &Path) -> Error {
    if let Some(error) = adapter(dir) {
        return error;
    }
    let models = model_dirs(dir);
    match models.as_slice() {
        [] => {}
        [one] => {
            return Error::new(dir.display(), "holds no config.json itself; a directory in it does")
                .help(format!("give that one: {}", one.display()));
        }
        [one, ..] => {
            return Error::new(
                dir.display(),
                format!("holds no config.json itself; {} directories in it do", models.len()),
            )
            .help(format!("give one of them, such as {}", one.display()));
        }
    }
    let file = dir.join("config.json");
    if dir.join("model_index.json").exists() {
        return Error::new(dir.display(), "is a diffusers pipeline for images, not a language model")
            .help("`dlxc families` lists what can be compiled");
    }
    if let Some((what, help)) = other_form(dir).filter(|_| !has_weights(dir)) {
        return Error::new(file.display(), format!("the file is missing; the directory holds {what}")).help(help);
    }
    Error::new(file.display(), "the file is missing")
        .help("download it from the model's repository into the same directory")
}

/// A directory without weights that can be read.
pub(super) fn no_weights(dir: &Path) -> Error {
    if let Some(name) = unfinished(dir) {
        return Error::new(
            dir.display(),
            format!("there are no *.safetensors files, but {name}: a download that was not finished"),
        )
        .help("run the same download again; it goes on where it was");
    }
    if let Some((what, help)) = other_form(dir) {
        return Error::new(dir.display(), format!("there are no *.safetensors files, but {what}")).help(help);
    }
    if let Some(one) = subdirs(dir).into_iter().find(|d| has_weights(d)) {
        return Error::new(dir.display(), "there are no *.safetensors files; a directory in it has some")
            .help(format!("move the files of {} up, if they belong to this config.json", one.display()));
    }
    Error::new(dir.display(), "there are no *.safetensors files")
        .help("download the weights (model.safetensors, or all shards and model.safetensors.index.json)")
}

/// The error for a directory with an adapter: of its own without weights, in question beside weights.
pub(super) fn adapter(dir: &Path) -> Option<Error> {
    let mut path = dir.join("adapter_config.json");
    if path.symlink_metadata().is_err() {
        path = dir.join("adapter_model.safetensors");
        path.metadata().ok().filter(|_| !dir.join("config.json").exists())?;
    }
    let config = Config::read_optional(&dir.join("adapter_config.json")).ok().flatten();
    let base = config.as_ref().and_then(|c| c.opt_str("base_model_name_or_path").ok().flatten());
    let base = base.map_or_else(
        || "its base model".to_owned(),
        |name| format!("its base model, {},", name.chars().filter(|c| !c.is_control()).take(100).collect::<String>()),
    );
    let merge = format!(
        "merge it first: load {base} with the class that its card names, then \
        peft.PeftModel.from_pretrained(base, {:?}).merge_and_unload().save_pretrained(OUT); copy the tokenizer files \
        into OUT and compile that",
        dir.display().to_string()
    );
    let model = std::fs::read_dir(dir).ok()?.filter_map(Result::ok).any(|e| {
        let name = e.file_name().to_string_lossy().into_owned();
        name.ends_with(".safetensors") && !name.starts_with("adapter_")
    });
    Some(if model && dir.join("config.json").exists() {
        Error::new(path.display(), "is an adapter beside a whole model: which of both is meant cannot be told")
            .help(format!("move the adapter_* files away to compile the model without it, or {merge}"))
    } else {
        Error::new(path.display(), "this is an adapter (LoRA or the like) for another model, not a model").help(merge)
    })
}

/// What tensors are that cannot be a whole model, by their names.
pub(super) fn by_tensors<'a>(place: &Path, names: impl Iterator<Item = &'a str> + Clone) -> Option<Error> {
    let any = |marks: &[&str]| names.clone().find(|n| marks.iter().any(|m| n.contains(m)));
    let all =
        |marks: &[&str]| names.clone().next().is_some() && names.clone().all(|n| marks.iter().any(|m| n.contains(m)));
    if let Some(name) =
        any(&[".lora_A", ".lora_B", ".lora_embedding_", ".lora_magnitude", ".base_layer.", ".modules_to_save."])
    {
        return Some(Error::new(format!("{}: `{name}`", place.display()), "belongs to an adapter (LoRA or the like)").help(
            "merge the adapter into its base model first, with peft's merge_and_unload(), and compile what that saves",
        ));
    }
    if all(&["vision_tower.", "vision_model.", "visual.", "mm_projector.", "multi_modal_projector."]) {
        return Some(
            Error::new(place.display(), "holds the vision part of a model alone")
                .help("give the directory of the whole language model"),
        );
    }
    if all(&["exp_avg", "optimizer.", "momentum_buffer", "param_groups"]) {
        return Some(
            Error::new(place.display(), "holds the state of an optimizer, not a model")
                .help("give the directory of the model that was saved with it"),
        );
    }
    None
}

/// The first form of weights in a directory that is not safetensors, and the way on.
fn other_form(dir: &Path) -> Option<(String, &'static str)> {
    let entries = entries(dir);
    let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let deepspeed =
        |n: &str| n.starts_with("global_step") || n.contains("_optim_states") || n.starts_with("zero_pp_rank");
    if let Some(p) = entries.iter().find(|p| deepspeed(&name(p))) {
        let help = "merge it with the script that DeepSpeed put beside it, `python3 zero_to_fp32.py . OUT --safe_serialization`, \
            and copy config.json and the tokenizer files into OUT";
        return Some((format!("{}, the state of a DeepSpeed training run", name(p)), help));
    }
    if let Some(p) =
        entries.iter().find(|p| subdirs(p).is_empty() && self::entries(p).iter().any(|f| ending(f) == "distcp"))
    {
        return Some((format!("{}, the shards of a distributed training checkpoint", name(p)), FROM_FSDP));
    }
    let state = |n: &str| {
        ["optimizer.", "scheduler.", "rng_state", "training_args.", "trainer_state.", "random_states"]
            .iter()
            .any(|s| n.starts_with(s))
    };
    for path in entries.iter().filter(|p| !state(&name(p)) && !p.is_dir()) {
        if let Some((_, what, help)) = FORMS.iter().find(|(e, ..)| *e == ending(path)) {
            return Some((format!("{what} ({})", name(path)), help));
        }
    }
    let path = entries.iter().find(|p| state(&name(p)))?;
    let help = "give the directory of the model that was saved with it: config.json and *.safetensors";
    Some((format!("the state of a training run without its model ({})", name(path)), help))
}

fn unfinished(dir: &Path) -> Option<String> {
    let cache = dir.join(".cache/huggingface/download");
    let found = entries(dir).into_iter().chain(entries(&cache)).find(|p| UNFINISHED.contains(&ending(p)))?;
    Some(found.file_name()?.to_string_lossy().into_owned())
}

/// Directories below this one that hold a `config.json`: in it, or in the `snapshots` of a download cache.
fn model_dirs(dir: &Path) -> Vec<PathBuf> {
    let children = subdirs(dir);
    let snapshots = |d: &Path| subdirs(&d.join("snapshots"));
    let below = children.iter().flat_map(|d| snapshots(d)).chain(snapshots(dir));
    let mut found: Vec<_> = below.chain(children.iter().cloned()).filter(|d| d.join("config.json").exists()).collect();
    found.sort();
    found
}

/// Whether a directory holds safetensors files.
pub(super) fn has_weights(dir: &Path) -> bool {
    entries(dir).iter().any(|p| ending(p) == "safetensors")
}

fn subdirs(dir: &Path) -> Vec<PathBuf> {
    entries(dir).into_iter().filter(|p| p.is_dir()).collect()
}

/// The first thousand entries of a directory, sorted; none where it cannot be listed.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<_> = listed.take(1000).map(|e| e.path()).collect();
    paths.sort();
    paths
}

fn ending(path: &Path) -> &str {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default()
}
