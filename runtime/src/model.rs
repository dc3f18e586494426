//! A loaded model: an artifact's program on this machine, its text side and its manifest.

use crate::agree;
use crate::artifact::{self, Artifact, ArtifactError};
use crate::cpu::{self, CpuExecutor, CpuOptions, LoadError};
use crate::exec::Executor;
use crate::manifest::{Manifest, kind_of};
use crate::memory::count::{Held, THREADS, Usage};
use crate::memory::{Budget, Certificate, OverLimit};
use crate::policies::Policies;
use crate::selftest::{self, GoldenVectors, SelfTest, SelfTestError};
use crate::text::{ChatTemplate, TextError, Tokenizer, TokenizerSize};
use crate::wgpu::plan::Plan;
use dlx_ir::{Error, VerifiedModule};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;

/// A model that is ready to run.
pub struct Model {
    /// What the artifact says of itself.
    pub manifest: Manifest,
    /// Runs its entries.
    pub executor: AnyExecutor,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Messages to text, if the model has a chat template.
    pub template: Option<ChatTemplate>,
    /// Measured settings, if the artifact has been tuned.
    pub policies: Option<Policies>,
}

/// The `text` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSection {
    /// Jinja source.
    pub chat_template: Option<String>,
    /// `bos_token` and the like → text.
    pub special_tokens: BTreeMap<String, String>,
    /// Whether `bos_token` comes before raw texts; what tokenizer.json says where this says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_bos_token: Option<bool>,
}

impl TextSection {
    /// The tokenizer as this section has it, and the chat template.
    pub(crate) fn load(self, mut tokenizer: Tokenizer) -> Result<(Tokenizer, Option<ChatTemplate>), TextError> {
        match self.add_bos_token {
            Some(false) => tokenizer.set_prefix(None),
            Some(true) if tokenizer.prefix().is_empty() => {
                let bos = self.special_tokens.get("bos_token");
                tokenizer.set_prefix(bos.and_then(|bos| tokenizer.token_id(bos)));
            }
            _ => {}
        }
        let template = self.chat_template.map(|t| ChatTemplate::new(&t, self.special_tokens)).transpose()?;
        Ok((tokenizer, template))
    }
}

/// The executor of one of an artifact's targets.
pub enum AnyExecutor {
    /// On the CPU.
    Cpu(Box<CpuExecutor>),
    /// On a graphics device.
    #[cfg(feature = "wgpu")]
    Wgpu(Box<crate::wgpu::WgpuExecutor>),
}

impl AnyExecutor {
    /// What it runs on, for people.
    pub fn device(&self) -> String {
        match self {
            AnyExecutor::Cpu(cpu) => format!("{} on {} threads", cpu.isa(), cpu.threads()),
            #[cfg(feature = "wgpu")]
            AnyExecutor::Wgpu(wgpu) => wgpu.adapter().to_string(),
        }
    }

    /// Kernels that the self-test replaced, and why.
    pub fn replaced(&self) -> Vec<String> {
        match self {
            AnyExecutor::Cpu(_) => Vec::new(),
            #[cfg(feature = "wgpu")]
            AnyExecutor::Wgpu(wgpu) => wgpu.replaced().iter().map(ToString::to_string).collect(),
        }
    }
}

impl AnyExecutor {
    /// The executor alone.
    pub fn into_executor(self) -> Box<dyn Executor + Send> {
        match self {
            AnyExecutor::Cpu(cpu) => cpu,
            #[cfg(feature = "wgpu")]
            AnyExecutor::Wgpu(wgpu) => wgpu,
        }
    }
}

impl Deref for AnyExecutor {
    type Target = dyn Executor + Send;

    fn deref(&self) -> &Self::Target {
        match self {
            AnyExecutor::Cpu(cpu) => &**cpu,
            #[cfg(feature = "wgpu")]
            AnyExecutor::Wgpu(wgpu) => &**wgpu,
        }
    }
}

impl DerefMut for AnyExecutor {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            AnyExecutor::Cpu(cpu) => &mut **cpu,
            #[cfg(feature = "wgpu")]
            AnyExecutor::Wgpu(wgpu) => &mut **wgpu,
        }
    }
}

/// How to load a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Target whose program runs; the first in the manifest if not given.
    pub target: Option<String>,
    /// Graphics device, by number or a part of its name; the only one if not given.
    pub device: Option<String>,
    /// Threads and instruction set of the CPU.
    pub cpu: CpuOptions,
    /// Whether to compare the checksum of the weights, which reads them all once, and the tokenizer's tables with its file.
    pub verify_weights: bool,
    /// How much of the golden vectors to run. On a graphics device, where weights are copied at load, all or nothing.
    pub self_test: SelfTest,
    /// Whether to read the measured settings; one that cannot be read is an error then.
    pub policies: bool,
    /// Bytes that the process may take for the model; one that could take more does not load, and one that is loaded does not
    /// grow beyond. What is counted says [`memory`](crate::memory).
    pub max_memory: Option<u64>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            target: None,
            device: None,
            cpu: CpuOptions::default(),
            verify_weights: true,
            self_test: SelfTest::default(),
            policies: true,
            max_memory: None,
        }
    }
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file is no sound artifact.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The artifact holds graphs.
    #[error(
        "{}: holds graphs that take and give tensors, and generates no text; use `dlxc run-graph`, or `GraphModel::load` in an app",
        path.display()
    )]
    Graph {
        /// The artifact.
        path: PathBuf,
    },
    /// A section does not hold what it should.
    #[error("{}: section `{section}` cannot be read: {reason}; compile it again with this version", path.display())]
    Section {
        /// The artifact.
        path: PathBuf,
        /// The section.
        section: String,
        /// What is wrong.
        reason: String,
    },
    /// Measured settings that this build cannot read; compiling would not bring them back.
    #[error("{}: section `policies` cannot be read: {reason}; run `dlxc tune` on the artifact again", path.display())]
    Policies {
        /// The artifact.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The program cannot run here.
    #[error("{}: {source}", path.display())]
    Load {
        /// The artifact.
        path: PathBuf,
        /// Why.
        source: LoadError,
    },
    /// It could take more memory than the limit.
    #[error("{}: {source}", path.display())]
    Memory {
        /// The artifact.
        path: PathBuf,
        /// What it takes.
        source: OverLimit,
    },
    /// The plan cannot run here.
    #[cfg(feature = "wgpu")]
    #[error("{}: {source}", path.display())]
    Device {
        /// The artifact.
        path: PathBuf,
        /// Why.
        source: crate::wgpu::LoadError,
    },
    /// The artifact has no program for the target, or this build does not run it.
    #[error("{}: {reason}", path.display())]
    Target {
        /// The artifact.
        path: PathBuf,
        /// What is missing, and what to do.
        reason: String,
    },
    /// The tokenizer or template is broken.
    #[error("{}: {source}", path.display())]
    Text {
        /// The artifact.
        path: PathBuf,
        /// Why.
        source: TextError,
    },
    /// The golden vectors came out wrong.
    #[error("{}: {source}", path.display())]
    SelfTest {
        /// The artifact.
        path: PathBuf,
        /// Which and how.
        source: SelfTestError,
    },
}

/// Reads the manifest of a text generator's artifact.
///
/// # Errors
/// An artifact of another kind, or a missing or malformed section.
pub fn read_manifest(artifact: &Artifact) -> Result<Manifest, ModelError> {
    if kind_of(artifact.text(artifact::MANIFEST)?).is_ok_and(|kind| kind.as_deref() == Some("graph")) {
        return Err(ModelError::Graph { path: artifact.path().to_path_buf() });
    }
    json(artifact, artifact::MANIFEST)
}

/// Reads the measured settings of an artifact, if it has any.
///
/// # Errors
/// A section that is malformed, of another version, or holds what cannot be.
pub fn read_policies(artifact: &Artifact) -> Result<Option<Policies>, ModelError> {
    let (name, path) = (artifact::POLICIES, artifact.path());
    if artifact.section(name).is_none() {
        return Ok(None);
    }
    let read = Policies::read(artifact.text(name)?);
    read.map(Some).map_err(|reason| ModelError::Policies { path: path.to_path_buf(), reason })
}

/// Loads a program of an artifact, without its text side.
///
/// # Errors
/// A damaged artifact, a program that this version or machine cannot run, or a failed self-test.
pub fn load_executor(artifact: &Artifact, options: &LoadOptions) -> Result<AnyExecutor, ModelError> {
    let targets = read_manifest(artifact)?.targets;
    let missing = |reason: String| ModelError::Target { path: artifact.path().to_path_buf(), reason };
    let target = options.target.as_ref().or(targets.first()).map_or("cpu", String::as_str);
    if !targets.iter().any(|t| t == target) {
        let have = targets.join(", ");
        return Err(missing(format!(
            "has no program for {target}, only for {have}; compile it with --target {target}"
        )));
    }
    match target {
        "cpu" => Ok(AnyExecutor::Cpu(Box::new(load_cpu(artifact, options)?))),
        #[cfg(feature = "wgpu")]
        "wgpu" => Ok(AnyExecutor::Wgpu(Box::new(load_wgpu(artifact, options)?))),
        other => Err(missing(format!("this build has no executor for {other}; use one with the feature `{other}`"))),
    }
}

/// Loads the CPU program of an artifact, without its text side.
///
/// # Errors
/// As [`load_executor`].
pub fn load_cpu(artifact: &Artifact, options: &LoadOptions) -> Result<CpuExecutor, ModelError> {
    if options.verify_weights {
        artifact.verify_weights()?;
    }
    let path = || artifact.path().to_path_buf();
    let program = program(artifact, "cpu")?;
    let manifest = agreed(artifact, &program, "cpu")?;
    let failed = |source| ModelError::Load { path: path(), source };
    let certify = |held: &Held, usage: &Usage| Certificate::of_cpu(&program, held, usage).map_err(failed);
    let budget = budget(artifact, options, &manifest, &certify)?;
    let (file, weights) = artifact.mapped_weights();
    let mut executor = CpuExecutor::new(&program, file, weights, options.cpu).map_err(failed)?;
    if let Some(budget) = budget {
        executor.set_budget(budget);
    }
    if options.self_test != SelfTest::Skip {
        let golden: GoldenVectors = json(artifact, artifact::GOLDEN)?;
        let failed = |source| ModelError::SelfTest { path: path(), source };
        selftest::check(&mut executor, &golden, options.self_test).map_err(failed)?;
    }
    Ok(executor)
}

/// Loads the wgpu plan of an artifact, without its text side.
///
/// # Errors
/// As [`load_executor`].
#[cfg(feature = "wgpu")]
pub fn load_wgpu(artifact: &Artifact, options: &LoadOptions) -> Result<crate::wgpu::WgpuExecutor, ModelError> {
    if options.verify_weights {
        artifact.verify_weights()?;
    }
    let path = || artifact.path().to_path_buf();
    let program = program(artifact, "wgpu")?;
    let manifest = agreed(artifact, &program, "wgpu")?;
    let plan = plan(artifact, &program)?;
    let certify = |held: &Held, usage: &Usage| Ok(Certificate::of_wgpu(&plan, held, usage));
    let budget = budget(artifact, options, &manifest, &certify)?;
    let (file, weights) = artifact.mapped_weights();
    let device = crate::wgpu::WgpuOptions { device: options.device.clone() };
    let executor = crate::wgpu::WgpuExecutor::new(plan, &file, weights, &device);
    let mut executor = executor.map_err(|source| ModelError::Device { path: path(), source })?;
    if let Some(budget) = budget {
        executor.set_budget(budget);
    }
    if options.self_test != SelfTest::Skip {
        let golden: GoldenVectors = json(artifact, artifact::GOLDEN)?;
        let failed = |source| ModelError::SelfTest { path: path(), source };
        executor.self_test(&golden).map_err(failed)?;
    }
    Ok(executor)
}

/// The verified program of a target.
fn program(artifact: &Artifact, target: &str) -> Result<VerifiedModule, ModelError> {
    let name = artifact::program_section(target);
    let broken =
        |reason: String| ModelError::Section { path: artifact.path().to_path_buf(), section: name.clone(), reason };
    let program = dlx_ir::parse(artifact.text(&name)?).map_err(|e| broken(e.to_string()))?;
    VerifiedModule::new(program).map_err(|e| broken(Error::first_of(e).to_string()))
}

/// The checked plan of a program for wgpu.
fn plan(artifact: &Artifact, program: &VerifiedModule) -> Result<Plan, ModelError> {
    let name = artifact::plan_section("wgpu");
    let plan: Plan = json(artifact, &name)?;
    let checked = plan.check_program(program).and_then(|()| plan.check(artifact.weights().len() as u64));
    checked.map_err(|reason| ModelError::Section { path: artifact.path().to_path_buf(), section: name, reason })?;
    Ok(plan)
}

/// What running one target of an artifact takes at most on so many threads, computed from its program.
///
/// # Errors
/// A target that it lacks, or a program that cannot be run.
pub fn certify(artifact: &Artifact, target: &str, threads: usize) -> Result<Certificate, ModelError> {
    let program = program(artifact, target)?;
    let manifest = agreed(artifact, &program, target)?;
    let held = held(artifact, target)?;
    let usage = Usage::of(&manifest.policy, manifest.model.max_seq, manifest.model.vocab, threads);
    let usage = Usage { loaders: rayon::current_num_threads().max(threads), ..usage };
    if target == "wgpu" {
        return Ok(Certificate::of_wgpu(&plan(artifact, &program)?, &held, &usage));
    }
    let failed = |source| ModelError::Load { path: artifact.path().to_path_buf(), source };
    Certificate::of_cpu(&program, &held, &usage).map_err(failed)
}

/// The manifest, unless the artifact contradicts itself; see [`agree`].
fn agreed(artifact: &Artifact, program: &dlx_ir::Module, target: &str) -> Result<Manifest, ModelError> {
    let manifest = read_manifest(artifact)?;
    let agreed = agree::sections(artifact, &manifest).and_then(|()| agree::program(&manifest, program, target));
    agreed.map_err(|reason| contradiction(artifact, reason))?;
    Ok(manifest)
}

fn contradiction(artifact: &Artifact, reason: String) -> ModelError {
    let section = artifact::MANIFEST.into();
    ModelError::Section { path: artifact.path().to_path_buf(), section, reason }
}

/// Checks what the manifest says of memory against what `certify` finds, and both against the limit, if there is one.
fn budget(
    artifact: &Artifact,
    options: &LoadOptions,
    manifest: &Manifest,
    certify: &dyn Fn(&Held, &Usage) -> Result<Certificate, ModelError>,
) -> Result<Option<Budget>, ModelError> {
    let (policy, model) = (&manifest.policy, &manifest.model);
    let usage = Usage::of(policy, model.max_seq, model.vocab, THREADS);
    let weights = artifact.weights().len() as u64;
    let found = certify(&Held { weights, ..Held::default() }, &usage)?;
    agree::memory(manifest, &found).map_err(|reason| contradiction(artifact, reason))?;
    let Some(limit) = options.max_memory else { return Ok(None) };
    let held = held(artifact, &found.target)?;
    let usage = Usage { threads: threads(options), loaders: rayon::current_num_threads(), ..usage };
    let over = |source| ModelError::Memory { path: artifact.path().to_path_buf(), source };
    Budget::new(limit, usage, policy, &|usage| certify(&held, usage), over).map(Some)
}

fn threads(options: &LoadOptions) -> usize {
    match options.cpu.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// Sizes of an artifact's sections.
fn held(artifact: &Artifact, target: &str) -> Result<Held, ModelError> {
    let size = |name: &str| artifact.section(name).map_or(0, |bytes| bytes.len() as u64);
    let tokenizer = match artifact.section(artifact::TOKENIZER_TABLES) {
        Some(tables) => TokenizerSize::of_compiled(tables),
        None => TokenizerSize::of(artifact.section(artifact::TOKENIZER).unwrap_or_default()),
    };
    let weights = artifact.weights().len() as u64;
    Ok(Held {
        weights,
        others: artifact.len().saturating_sub(weights),
        program: size(&artifact::program_section(target)),
        plan: size(&artifact::plan_section(target)),
        golden: size(artifact::GOLDEN),
        text: size(artifact::TEXT),
        tokenizer: tokenizer.map_err(|source| ModelError::Text { path: artifact.path().to_path_buf(), source })?,
    })
}

impl Model {
    /// Loads a program of an artifact and its text side.
    ///
    /// # Errors
    /// As [`load_executor`], or a broken tokenizer or template.
    pub fn load(artifact: &Artifact, options: &LoadOptions) -> Result<Self, ModelError> {
        // Graphs have no text side to be missed.
        let manifest = read_manifest(artifact)?;
        // A large vocabulary takes longer to read than everything else: it is read beside it.
        let (executor, text) = if options.max_memory.is_none() {
            rayon::join(|| load_executor(artifact, options), || load_text(artifact, options))
        } else {
            // Nothing is read for a program that does not fit.
            (Ok(load_executor(artifact, options)?), load_text(artifact, options))
        };
        // Reading a tokenizer takes several times what it keeps.
        cpu::give_back();
        let (tokenizer, template) = text?;
        let policies = if options.policies { read_policies(artifact)? } else { None };
        Ok(Model { manifest, executor: executor?, tokenizer, template, policies })
    }
}

fn load_text(artifact: &Artifact, options: &LoadOptions) -> Result<(Tokenizer, Option<ChatTemplate>), ModelError> {
    let text: TextSection = json(artifact, artifact::TEXT)?;
    let bad_text = |source| ModelError::Text { path: artifact.path().to_path_buf(), source };
    let file = artifact.section(artifact::TOKENIZER).unwrap_or_default();
    let tokenizer = match (artifact.section(artifact::TOKENIZER_TABLES), artifact.hash(artifact::TOKENIZER)) {
        (Some(tables), Some(hash)) => {
            let agreed = if options.verify_weights { Tokenizer::check_compiled(tables, file) } else { Ok(()) };
            agreed.and_then(|()| Tokenizer::from_compiled(tables, hash))
        }
        _ => Tokenizer::from_bytes(file),
    };
    tokenizer.and_then(|tokenizer| text.load(tokenizer)).map_err(bad_text)
}

fn json<T: for<'de> Deserialize<'de>>(artifact: &Artifact, section: &str) -> Result<T, ModelError> {
    let text = artifact.text(section)?;
    serde_json::from_str(text).map_err(|e| ModelError::Section {
        path: artifact.path().to_path_buf(),
        section: section.into(),
        reason: e.to_string(),
    })
}
