//! `dlxc devices`: the graphics devices of this machine, as `--device` counts and names them.

use clap::Parser;
use dlx_runtime::wgpu::adapters;
use serde_json::json;

use super::table::{self, Align};
use super::{Failure, terminal};

/// List the graphics devices that artifacts for wgpu can run on
#[derive(Parser, Debug)]
pub struct Args {
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// When stdout cannot be written.
pub fn run(args: &Args) -> Result<(), Failure> {
    let adapters = adapters();
    if args.json {
        return terminal::print(&format!("{:#}\n", json!({"devices": adapters})));
    }
    if adapters.is_empty() {
        return terminal::print("no graphics device; Mesa's lavapipe is a Vulkan driver that runs on any CPU\n");
    }
    let rows = adapters.iter().enumerate().map(|(i, a)| {
        vec![
            i.to_string(),
            a.name.clone(),
            a.backend.clone(),
            a.kind.into(),
            a.tier.into(),
            table::bytes(a.limits.max_binding),
            table::bytes(a.limits.max_buffer),
            table::bytes(a.limits.max_workgroup_storage.into()),
            a.limits.max_invocations.to_string(),
            a.driver.clone(),
        ]
    });
    let columns = [
        ("", Align::Right),
        ("device", Align::Left),
        ("backend", Align::Left),
        ("kind", Align::Left),
        ("kernels", Align::Left),
        ("binding", Align::Right),
        ("buffer", Align::Right),
        ("workgroup", Align::Right),
        ("threads", Align::Right),
        ("driver", Align::Left),
    ];
    terminal::print(&table::table(&columns, &rows.collect::<Vec<_>>()))
}
