//! Adapters, how one is chosen, and the device with what it reports.
//!
//! Invariant: a device is never picked by guess. One adapter is taken, several are listed and asked about; software
//! adapters stand back only behind exactly one real one. Errors of the driver never panic: they become [`LoadError`] or
//! wait in [`Device::fault`] for the next call.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::plan::{BIND_ALIGN, Feature, Profile};
use crate::exec::ExecError;

/// How long a device may work on what it was given: far longer than any step, and not forever, as a shader in a file could.
const PATIENCE: Duration = Duration::from_secs(600);

/// A graphics device that could run `wgpu` programs.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Adapter {
    /// Name that the driver gives.
    pub name: String,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// Driver and its version.
    pub driver: String,
    /// Kernels that it can run: `plain`, `f16`, `subgroups` or `f16+subgroups`.
    pub tier: &'static str,
    /// Limits, as far as plans depend on them.
    pub limits: Profile,
    /// What makes it the same device under another backend.
    #[serde(skip)]
    same: (u32, u32, String, String),
}

impl std::fmt::Display for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}, {})", self.name, self.backend, self.kind)
    }
}

/// A `wgpu` program that could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is no device.
    #[error(
        "no graphics device was found: install a Vulkan driver (Mesa's lavapipe runs on any CPU), or use the cpu target"
    )]
    NoAdapter,
    /// It is not clear which device is meant.
    #[error("{0}")]
    Choice(String),
    /// The device cannot run the program.
    #[error("{adapter} cannot run this program: {what}; choose another --device, or compile with a smaller --profile")]
    Unfit {
        /// The device.
        adapter: String,
        /// What it lacks.
        what: String,
    },
    /// The plan does not make sense.
    #[error("the plan cannot run: {0}; compile it again with this version")]
    Plan(String),
    /// Buffers cannot be had.
    #[error("not enough device memory for {0}: compile with a smaller --max-seq, or choose another --device")]
    OutOfMemory(String),
    /// The driver refused something.
    #[error("device error: {0}")]
    Device(String),
}

/// An open device.
pub(super) struct Device {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) adapter: Adapter,
    pub(super) features: Vec<Feature>,
    fault: Arc<Mutex<Option<ExecError>>>,
}

/// Every adapter of this machine, in the order that numbers of `--device` count in.
pub fn adapters() -> Vec<Adapter> {
    enumerate().iter().map(describe).collect()
}

impl Device {
    /// Opens the adapter that `choice` (a number or a part of a name) means, or the only one, with a profile's limits.
    pub(super) fn open(choice: Option<&str>, profile: &Profile) -> Result<Self, LoadError> {
        let found = enumerate();
        let described: Vec<Adapter> = found.iter().map(describe).collect();
        let index = choose(&described, choice)?;
        let (handle, adapter) = (&found[index], described[index].clone());
        if let Some(what) = lacks(&adapter.limits, profile) {
            return Err(LoadError::Unfit { adapter: adapter.name, what });
        }
        if u64::from(handle.limits().min_storage_buffer_offset_alignment) > BIND_ALIGN {
            return Err(LoadError::Unfit { adapter: adapter.name, what: "it binds at larger offsets only".into() });
        }
        let defaults = wgpu::Limits::default();
        let side = defaults.max_compute_workgroup_size_x.max(profile.max_invocations);
        let limits = wgpu::Limits {
            max_storage_buffer_binding_size: profile.max_binding,
            max_buffer_size: profile.max_buffer,
            max_compute_invocations_per_workgroup: profile.max_invocations,
            max_compute_workgroup_size_x: side.min(handle.limits().max_compute_workgroup_size_x),
            max_compute_workgroup_size_y: side.min(handle.limits().max_compute_workgroup_size_y),
            max_compute_workgroup_storage_size: profile.max_workgroup_storage,
            max_compute_workgroups_per_dimension: profile.max_workgroups,
            max_storage_buffers_per_shader_stage: profile.max_storage_buffers,
            ..defaults
        };
        let optional = [(Feature::F16, wgpu::Features::SHADER_F16), (Feature::Subgroups, wgpu::Features::SUBGROUP)];
        let optional: Vec<_> = optional.into_iter().filter(|(_, f)| handle.features().contains(*f)).collect();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("dlxc"),
            required_features: optional.iter().fold(wgpu::Features::empty(), |all, (_, f)| all | *f),
            required_limits: limits,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = wait_for(handle.request_device(&descriptor))
            .map_err(|e| LoadError::Device(format!("{}: {e}", adapter.name)))?;
        let fault = Arc::new(Mutex::new(None));
        let (lost, uncaptured) = (Arc::clone(&fault), Arc::clone(&fault));
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                keep(&lost, ExecError::DeviceLost(message));
            }
        });
        device.on_uncaptured_error(Arc::new(move |error| keep(&uncaptured, exec_error(&error))));
        Ok(Device { device, queue, adapter, features: optional.into_iter().map(|(f, _)| f).collect(), fault })
    }

    /// Runs `work` and turns what the driver says meanwhile into an error about `what`.
    pub(super) fn guarded<T>(&self, what: &str, work: impl FnOnce() -> T) -> Result<T, LoadError> {
        let filters = [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];
        let scopes = filters.map(|filter| self.device.push_error_scope(filter));
        let value = work();
        // Scopes close in reverse, all of them, whatever the first says.
        let [internal, memory, validation] = scopes;
        let errors = [wait_for(validation.pop()), wait_for(memory.pop()), wait_for(internal.pop())];
        // A driver that has no memory may report other things first.
        if errors.iter().flatten().any(|e| matches!(e, wgpu::Error::OutOfMemory { .. })) {
            return Err(LoadError::OutOfMemory(what.into()));
        }
        match errors.into_iter().flatten().next() {
            Some(error) => Err(LoadError::Device(format!("{what}: {error}"))),
            None => Ok(value),
        }
    }

    /// A buffer of at least four bytes, zeroed.
    pub(super) fn buffer(&self, what: &str, size: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer, LoadError> {
        let descriptor =
            wgpu::BufferDescriptor { label: Some(what), size: size.max(4), usage, mapped_at_creation: false };
        self.guarded(&format!("{what} ({size} bytes)"), || self.device.create_buffer(&descriptor))
    }

    /// Waits until everything submitted has run.
    pub(super) fn wait(&self) -> Result<(), ExecError> {
        let wait = wgpu::PollType::Wait { submission_index: None, timeout: Some(PATIENCE) };
        let polled = self.device.poll(wait);
        self.fault()?;
        if matches!(polled, Err(wgpu::PollError::Timeout)) {
            return Err(ExecError::DeviceLost(format!("it has not answered for {} s", PATIENCE.as_secs())));
        }
        polled.map(drop).map_err(|e| ExecError::Device(e.to_string()))
    }

    /// What has gone wrong since the last look.
    pub(super) fn fault(&self) -> Result<(), ExecError> {
        match self.fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// Keeps the first error: those after it are its consequences.
fn keep(fault: &Mutex<Option<ExecError>>, error: ExecError) {
    fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
}

fn exec_error(error: &wgpu::Error) -> ExecError {
    match error {
        wgpu::Error::OutOfMemory { source } => ExecError::OutOfMemory(source.to_string()),
        other => ExecError::Device(other.to_string()),
    }
}

fn enumerate() -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    wait_for(instance.enumerate_adapters(wgpu::Backends::all()))
}

fn describe(adapter: &wgpu::Adapter) -> Adapter {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let has = |f| features.contains(f);
    Adapter {
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        },
        backend: info.backend.to_str().into(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
        tier: match (has(wgpu::Features::SHADER_F16), has(wgpu::Features::SUBGROUP)) {
            (true, true) => "f16+subgroups",
            (true, false) => "f16",
            (false, true) => "subgroups",
            (false, false) => "plain",
        },
        limits: Profile {
            name: "device".into(),
            max_binding: limits.max_storage_buffer_binding_size,
            max_buffer: limits.max_buffer_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            max_workgroup_storage: limits.max_compute_workgroup_storage_size,
            max_workgroups: limits.max_compute_workgroups_per_dimension,
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
        },
        same: (info.vendor, info.device, info.device_pci_bus_id, info.name.clone()),
        name: info.name,
    }
}

/// The limit that a device does not reach.
fn lacks(has: &Profile, wants: &Profile) -> Option<String> {
    let small = [
        ("bytes per binding", has.max_binding, wants.max_binding),
        ("bytes per buffer", has.max_buffer, wants.max_buffer),
        ("invocations per workgroup", has.max_invocations.into(), wants.max_invocations.into()),
        ("bytes of workgroup memory", has.max_workgroup_storage.into(), wants.max_workgroup_storage.into()),
        ("workgroups per dimension", has.max_workgroups.into(), wants.max_workgroups.into()),
        ("storage buffers per stage", has.max_storage_buffers.into(), wants.max_storage_buffers.into()),
    ];
    let (what, has, needs) = small.into_iter().find(|(_, has, needs)| has < needs)?;
    Some(format!("it has {has} {what}, and profile `{}` was compiled for {needs}", wants.name))
}

/// The adapter that is meant.
fn choose(adapters: &[Adapter], choice: Option<&str>) -> Result<usize, LoadError> {
    let list = || adapters.iter().enumerate().map(|(i, a)| format!("\n  {i}: {}", a)).collect::<String>();
    if adapters.is_empty() {
        return Err(LoadError::NoAdapter);
    }
    let named = |text: &str| {
        let text = text.to_lowercase();
        let fits = move |a: &Adapter| a.to_string().to_lowercase().contains(&text);
        adapters.iter().enumerate().filter(|(_, a)| fits(a)).map(|(i, _)| i).collect::<Vec<_>>()
    };
    let meant = match choice {
        Some(text) => match text.parse::<usize>() {
            Ok(index) if index < adapters.len() => return Ok(index),
            Ok(index) => return Err(LoadError::Choice(format!("there is no device {index}, only{}", list()))),
            Err(_) => named(text),
        },
        None => {
            let real = |i: &usize| adapters[*i].kind != "software";
            let all: Vec<usize> = (0..adapters.len()).collect();
            let hardware: Vec<usize> = all.iter().copied().filter(real).collect();
            if hardware.is_empty() { all } else { hardware }
        }
    };
    match &meant[..] {
        [] => {
            Err(LoadError::Choice(format!("no device is called `{}`; there are{}", choice.unwrap_or_default(), list())))
        }
        // One device under several backends: the first is the one that the platform prefers.
        [first, rest @ ..] if rest.iter().all(|i| adapters[*i].same == adapters[*first].same) => Ok(*first),
        _ => Err(LoadError::Choice(format!("there are several devices; choose one with --device:{}", list()))),
    }
}

/// Waits for a future of wgpu. On native platforms they are ready at once, or as soon as the driver's thread has run.
pub(super) fn wait_for<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(name: &str, backend: &str, kind: &'static str) -> Adapter {
        let limits = Profile {
            name: "device".into(),
            max_binding: 1 << 27,
            max_buffer: 1 << 28,
            max_invocations: 256,
            max_workgroup_storage: 16 << 10,
            max_workgroups: 65_535,
            max_storage_buffers: 8,
        };
        let same = (1, 2, String::new(), name.to_owned());
        Adapter { name: name.into(), backend: backend.into(), kind, driver: String::new(), tier: "plain", limits, same }
    }

    #[test]
    fn one_device_is_taken_and_several_are_asked_about() {
        let (big, small) = (adapter("Big", "vulkan", "discrete"), adapter("Small", "vulkan", "integrated"));
        let soft = adapter("llvmpipe", "vulkan", "software");
        let pick = |adapters: &[&Adapter], choice: Option<&str>| {
            choose(&adapters.iter().map(|a| (*a).clone()).collect::<Vec<_>>(), choice).map_err(|e| e.to_string())
        };
        assert!(pick(&[], None).unwrap_err().contains("lavapipe"));
        assert_eq!(pick(&[&soft], None), Ok(0));
        assert_eq!(pick(&[&soft, &big], None), Ok(1));
        assert_eq!(pick(&[&big, &adapter("Big", "dx12", "discrete")], None), Ok(0));
        let asked = pick(&[&big, &small], None).unwrap_err();
        assert!(asked.contains("--device") && asked.contains("1: Small (vulkan, integrated)"), "{asked}");
        assert_eq!(pick(&[&big, &small], Some("1")), Ok(1));
        assert_eq!(pick(&[&big, &small, &soft], Some("PIPE")), Ok(2));
        assert!(pick(&[&big], Some("1")).unwrap_err().contains("no device 1"));
        assert!(pick(&[&big], Some("radeon")).unwrap_err().contains("radeon"));
        assert!(pick(&[&big, &small], Some("vulkan")).unwrap_err().contains("several"));
    }
}
