//! `dlxc synth`: a checkpoint with random weights.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use super::{Failure, table, terminal};
use crate::synth::{Form, SHAPES, generate};

/// Write a full-size checkpoint with random weights.
#[derive(clap::Args, Debug)]
#[command(after_help = after_help())]
pub struct Args {
    /// Which public model to imitate.
    #[arg(value_name = "SHAPE", value_parser = clap::builder::PossibleValuesParser::new(SHAPES.iter().map(|s| s.name)))]
    pub shape: String,
    /// Directory to make.
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Seed of the random weights; the same seed gives the same bytes.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Number of layers, if not that of the model.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub layers: Option<u16>,
    /// Write an ONNX file and its weights as f32, as PyTorch exports them, instead of safetensors.
    #[arg(long)]
    pub onnx: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// When the checkpoint cannot be written, or on Ctrl-C.
pub fn run(args: &Args) -> Result<(), Failure> {
    let started = Instant::now();
    let bar = terminal::byte_progress(&args.shape);
    let mut written = 0;
    let form = if args.onnx { Form::Onnx } else { Form::Safetensors };
    let result =
        generate(&args.shape, &args.output, args.seed, args.layers.map(usize::from), form, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
            written = done;
            if terminal::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    bar.finish_and_clear();
    result?;
    let (size, time) = (table::bytes(written), table::duration(started.elapsed()));
    terminal::print(&format!("{}: {size} of weights in {time}\n", args.output.display()))
}

fn after_help() -> String {
    let rows: Vec<Vec<String>> = SHAPES
        .iter()
        .map(|s| {
            let weights = s.parameters();
            vec![format!("  {}", s.name), s.layers.to_string(), table::count(weights), table::bytes(2 * weights)]
        })
        .collect();
    let columns = [
        ("  Shape", table::Align::Left),
        ("layers", table::Align::Right),
        ("weights", table::Align::Right),
        ("size", table::Align::Right),
    ];
    let shapes = table::table(&columns, &rows);
    format!(
        "Shapes:\n{shapes}\nExamples:\n  dlxc synth sdar-1.7b -o models/sdar\n  dlxc synth llada-8b -o models/short --layers 2"
    )
}
